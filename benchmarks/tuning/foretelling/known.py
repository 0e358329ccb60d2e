"""The verdicts of foretelling on the laboratory's eight cases with known answers, from which no rule was made.

    python examples/laboratory/cases.py --models runs/laboratory/models --out runs/laboratory/cases
    python benchmarks/tuning/foretelling/known.py --cases runs/laboratory/cases

Right: the verdict is "prefix" exactly where a prefix is known to do the task. Written to `results/known.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from pairs import ROOT  # noqa: F401 - finds the laboratory

import foreword as fw
from foreword.bundle import write_bytes_atomically
from foreword.record import Stopwatch, command_line

RESULTS = Path(__file__).parent / "results" / "known.json"


def main(arguments: Sequence[str] | None = None) -> None:
    """Foretell every case and print which are right."""
    from cases import CASES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="folder that cases.py wrote")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    stopwatch, told = Stopwatch(command_line()), []
    for case in CASES:
        found = fw.foretell(None, options.cases / case.name / "task.toml")
        is_right = (found.verdict == "prefix") == case.prefix_can
        told.append({"case": case.name, "prefix_can": case.prefix_can, "is_right": is_right, **found.as_dict()})
        print(f"{case.name:<28} known: {case.prefix_can!s:<6} {found.verdict:<14} {'right' if is_right else 'WRONG'}")
    RESULTS.parent.mkdir(exist_ok=True)
    right = sum(bool(each["is_right"]) for each in told)
    record = stopwatch.record({"cases": len(told)}).as_dict()
    write_bytes_atomically(RESULTS, json.dumps({"right": right, "cases": told, "record": record}, indent=1).encode())
    print(f"{right} of {len(told)} right")


if __name__ == "__main__":
    main()
