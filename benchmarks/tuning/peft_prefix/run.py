"""How many steps does a prefix need, and how good does it get? Ours, PEFT's PrefixTuning and LoRA on the same batches.

    make bench-fit            # or: .venv/bin/python benchmarks/tuning/peft_prefix/run.py --tasks modules --seeds 0 1 2

Same frozen encoder, same length, same examples in the same order. PEFT's rate, reparametrisation and head are chosen on
the selection split of one seed out of a grid around its documented setting; ours runs with its defaults. Steps are
counted until the selection split's accuracy is that of PEFT's best state; test accuracies are those of the states that
each would keep. Each run is a line of results/runs.jsonl; what is there is not run again. `summary.py` makes the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from peft_rival import GRID, PeftSettings, run_peft

import foreword as fw
from foreword.engine.host import Host
from foreword.record import Stopwatch, command_line
from foreword.tuning.candidates import Workbench
from foreword.tuning.examples import load_splits
from foreword.tuning.objectives.contract import targets_of
from foreword.tuning.predictor import Predictor
from foreword.tuning.readout import Readout
from foreword.tuning.task import Task

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from text_tasks import BASE, TASKS, task_named  # noqa: E402  it lies one folder up

RESULTS = HERE / "results" / "runs.jsonl"
POSITIONS, EVERY = 16, 4
SEARCH_STEPS = 120


class Bench:
    """One task on the host: the rows and targets of its three splits."""

    def __init__(self, name: str, host: Host, folder: Path) -> None:
        self.name, self.host = name, host
        self.task = task_named(name, folder)
        self.splits = load_splits(self.task)
        bench = Workbench(host, self.task, self.splits)
        predictor = Predictor(host, bench.manner(), readout=_any_readout(bench))
        parts = (self.splits.fit, self.splits.selection, self.splits.test)
        self.rows = [predictor.rows([example.input for example in part]) for part in parts]
        self.targets = [targets_of(predictor, part) for part in parts]

    def peft(self, settings: PeftSettings, *, steps: int, seed: int) -> dict[str, Any]:
        run = run_peft(
            self.host, self.rows, self.targets, settings, positions=POSITIONS, steps=steps, seed=seed, every=EVERY
        )
        right = [int(a == b) for a, b in zip(run.outputs, self.targets[2].tolist(), strict=True)]
        return {"curve": run.curve, "right": right, "best_step": run.best_step, "settings": settings.as_dict()}

    def ours(self, method: str, *, steps: int, seed: int) -> dict[str, Any]:
        task = Task.parse({**self.task.settings(), "candidates": [{"kind": method}]}, folder=self.task.folder)
        made = fw.fit(self.host, task, method=method, seed=seed, steps=steps, evaluate_every=EVERY, patience=25)
        curve = [(moment.step, moment.seconds, moment.selection) for moment in made.history]
        answers = made.answer([example.input for example in self.splits.test])
        right = [int(a.output == x.target) for a, x in zip(answers, self.splits.test, strict=True)]
        made.close()
        return {"curve": curve, "right": right, "best_step": made.best.step, "settings": dict(made.details)}


def _any_readout(bench: Workbench) -> Readout:
    from foreword.tuning.candidates.contract import unset_readout

    return unset_readout("linear", bench)


def searched(bench: Bench, done: list[dict[str, Any]]) -> PeftSettings:
    """PEFT's best setting on the selection split of seed 0, by the mean of the last quarter of the looks at it."""
    scores = {}
    for settings in GRID:
        key = {"task": bench.name, "method": "peft-search", "seed": 0, "settings": settings.as_dict()}
        found = _found(done, key) or _ran(done, key, partial(bench.peft, settings, steps=SEARCH_STEPS, seed=0))
        late = [score for _, _, score in found["curve"]][-SEARCH_STEPS // EVERY // 4 :]
        scores[settings] = sum(late) / len(late)
    return max(scores, key=lambda settings: scores[settings])


def _found(done: list[dict[str, Any]], key: dict[str, Any]) -> dict[str, Any] | None:
    return next((row for row in done if all(row.get(name) == value for name, value in key.items())), None)


def _ran(done: list[dict[str, Any]], key: dict[str, Any], run: Any) -> dict[str, Any]:
    watch = Stopwatch(command_line(), seeds=(key["seed"],))
    row = {**run(), **key}
    row["record"] = watch.record(key).as_dict()
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    done.append(row)
    accuracy = sum(row["right"]) / len(row["right"])
    shown = f"{row['task']} {row['method']} seed {row['seed']} {key.get('settings', '')}"
    print(f"{shown}: test {accuracy:.3f}, best at step {row['best_step']}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    host = Host.load(BASE, device="cpu")
    for name in arguments.tasks:
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(name, host, Path(scratch))
            settings = searched(bench, done)
            for seed in arguments.seeds:  # interleaved: the machine's moods fall on all alike
                for method in ("prefix", "peft", "lora"):
                    key = {"task": name, "method": method, "seed": seed, "steps": arguments.steps}
                    if _found(done, key) is None:
                        made = settings if method == "peft" else method
                        run = partial(bench.peft if method == "peft" else bench.ours, made)
                        _ran(done, key, partial(run, steps=arguments.steps, seed=seed))


if __name__ == "__main__":
    main()
