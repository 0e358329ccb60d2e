"""Which learning rate, schedule and form does each fitted candidate want? The same search for all, on the same batches.

    .venv/bin/python benchmarks/tuning/rivals/run.py    # each row of `plan` in turn, but those that are there
    .venv/bin/python benchmarks/tuning/rivals/run.py --minutes 30    # start no further run after so long
    .venv/bin/python benchmarks/tuning/rivals/run.py --table         # only the tables of what is there

Tasks of `text_tasks.py` on MiniLM and on the small causal model of `small_causal.py` (labels by likelihood). A variant
is a candidate's options over its defaults; every variant of a kind is fitted with the same seed, steps and batches, and
keeps its best state on the selection split. A line of results/runs.jsonl has the selection curve, the loss, which test
examples were right, and the record of the run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from small_causal import MODEL, trained  # noqa: E402
from text_tasks import BASE, task_named  # noqa: E402

import foreword as fw  # noqa: E402
from foreword.engine.host import Host  # noqa: E402
from foreword.record import Stopwatch, command_line  # noqa: E402
from foreword.tuning.examples import load_splits  # noqa: E402
from foreword.tuning.task import Task  # noqa: E402

RESULTS = HERE / "results" / "runs.jsonl"
LOOP = {"steps": 100, "evaluate_every": 20, "patience": 99, "batch_size": 16}
RATES: dict[str, tuple[float, ...]] = {
    "prefix": (0.01, 0.03, 0.1, 0.3),
    "soft-prompt": (0.003, 0.01, 0.03, 0.1),
    "lora": (0.0006, 0.002, 0.006, 0.02),
    "full": (0.00002, 0.00005, 0.00015, 0.0005),
}
FORMS: dict[str, tuple[dict[str, Any], ...]] = {
    "lora": (
        {"targets": "attention"},
        {"targets": "mlp"},
        {"targets": "all-linear"},
        {"rank": 32},
        {"rank": 32, "alpha": 16.0, "rank_stabilized": True},
    ),
    "soft-prompt": ({"start": "labels"},),
}
# Two on the causal model, whose steps are quick, around one on MiniLM.
PLACES = (("kinds", "causal"), ("regions", "minilm"), ("modules", "causal"))


def plan() -> Iterator[tuple[str, str, str, dict[str, Any], int]]:
    """(task, base, kind, options, seed): one place after the other, the first seed of everything first."""
    for task, base in PLACES:
        for seed in (0, 1, 2):
            for kind, rates in RATES.items():
                yield from ((task, base, kind, {"learning_rate": rate}, seed) for rate in rates)
            for kind in RATES:
                for form in ({"learning_rate": "find"}, {"schedule": "cosine"}, *FORMS.get(kind, ())):
                    yield task, base, kind, form, seed


def fitted(host: Host, task: Task, kind: str, options: dict[str, Any], seed: int) -> dict[str, Any]:
    """One fit, its curve on the selection split, and which test examples its best state has right."""
    made = fw.fit(host, task, method=kind, seed=seed, **{**LOOP, **options})
    test = load_splits(task).test
    answers = made.answer([example.input for example in test])
    right = [int(answer.output == example.target) for answer, example in zip(answers, test, strict=True)]
    curve = [(moment.step, moment.seconds, moment.loss, moment.selection) for moment in made.history]
    rates = made.details["learning_rates"]
    made.close()
    return {"curve": curve, "right": right, "rates": rates, "best_step": made.best.step, "selection": made.selection}


def run(minutes: float) -> None:
    done = rows()
    known = {json.dumps(row["key"], sort_keys=True) for row in done}
    deadline = time.perf_counter() + 60 * minutes
    hosts: dict[str, Host] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for task_name, base, kind, options, seed in plan():
            key = {"task": task_name, "base": base, "kind": kind, "options": options, "seed": seed, "loop": LOOP}
            if json.dumps(key, sort_keys=True) in known:
                continue
            if time.perf_counter() > deadline:
                return
            if base not in hosts:
                hosts[base] = trained() if base == "causal" else Host.load(BASE, device="cpu")
            reference = str(MODEL) if base == "causal" else BASE
            task = task_named(task_name, Path(scratch) / f"{task_name}-{base}", base=reference)
            watch = Stopwatch(command_line(), seeds=(seed,))
            row = {"key": key, **fitted(hosts[base], task, kind, options, seed)}
            row["record"] = watch.record(key).as_dict()
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            accuracy = sum(row["right"]) / len(row["right"])
            print(
                f"{task_name} {base} {kind} {options} seed {seed}: test {accuracy:.3f} at {row['best_step']}",
                flush=True,
            )


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.exists() else []


def table() -> None:
    """For each kind: test accuracy by variant and place, the mean over its seeds; and the mean over common places."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in rows():
        key = row["key"]
        variant = ", ".join(f"{name} {value}" for name, value in key["options"].items())
        place = f"{key['task']}/{key['base']}"
        accuracy = sum(row["right"]) / len(row["right"])
        found.setdefault(key["kind"], {}).setdefault(variant, {}).setdefault(place, []).append(accuracy)
    for kind, variants in found.items():
        places = sorted({place for by_place in variants.values() for place in by_place})
        print(f"\n| {kind} | {' | '.join(places)} | mean |\n|---|{'---|' * (len(places) + 1)}")
        for variant, by_place in variants.items():
            means = [sum(by_place[place]) / len(by_place[place]) if place in by_place else None for place in places]
            cells = ["" if mean is None else f"{mean:.3f}" for mean in means]
            whole = [mean for mean in means if mean is not None]
            overall = f"{sum(whole) / len(whole):.3f}" if len(whole) == len(means) else ""
            print(f"| {variant} | {' | '.join(cells)} | {overall} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments.minutes)
    table()


if __name__ == "__main__":
    main()
