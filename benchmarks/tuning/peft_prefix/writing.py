"""The same question for a causal model that writes: ours, PEFT's PrefixTuning and Cartridge, on the laboratory.

    .venv/bin/python benchmarks/tuning/peft_prefix/writing.py --models runs/laboratory/models

256 sequences to fit, 128 to select by, 256 unseen; exact matches. PEFT's kind and rate are chosen on the selection
split of one seed; ours runs with its defaults. Lines go to results/written.jsonl; `summary.py --file written` makes the
table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft_writer import GRID, WriterSettings, Written, run_writer

import foreword as fw
from foreword.engine.host import Host
from foreword.record import Stopwatch, command_line
from foreword.tuning.candidates import Workbench
from foreword.tuning.examples import Example, load_splits
from foreword.tuning.predictor import Predictor
from foreword.tuning.task import Task

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "examples" / "laboratory"))
from cases import CASES, Case, write_case  # noqa: E402  it lies beside the package, not in it

RESULTS = HERE / "results" / "written.jsonl"
ELICITED = tuple(case for case in CASES if case.prefix_can)
POSITIONS, EVERY, BATCH, SEARCH_STEPS, LIMIT = 8, 8, 32, 160, 256


class Bench:
    """One case on its base model."""

    def __init__(self, case: Case, models: Path, folder: Path) -> None:
        self.case, self.task = case, Task.load(write_case(case, models, folder))
        self.host = Host.load(self.task.reference, device="cpu")
        self.splits = load_splits(self.task, limit=LIMIT)
        predictor = Predictor(self.host, Workbench(self.host, self.task, self.splits).manner())
        parts = (self.splits.fit, self.splits.selection, self.splits.test)
        self.tokens = [self._tokens(predictor, part) for part in parts]

    def _tokens(self, predictor: Predictor, part: tuple[Example, ...]) -> Written:
        end = self.host.tokenizer.eos_token_id
        prompts = predictor.rows([example.input for example in part])
        answers = [[*predictor.completion(example.target), end] for example in part]
        return Written(torch.tensor(prompts), torch.tensor(answers))

    def peft(self, settings: WriterSettings, *, steps: int, seed: int) -> dict[str, Any]:
        run = run_writer(
            self.task.reference,
            self.tokens,
            settings,
            positions=POSITIONS,
            steps=steps,
            batch=BATCH,
            seed=seed,
            every=EVERY,
        )
        return {"curve": run.curve, "right": run.right, "best_step": run.best_step, "settings": settings.as_dict()}

    def ours(self, method: str, *, steps: int, seed: int) -> dict[str, Any]:
        task = Task.parse({**self.task.settings(), "candidates": [{"kind": method}]}, folder=self.task.folder)
        length = POSITIONS if method == "prefix" else None
        options = {"steps": steps, "batch_size": BATCH, "evaluate_every": EVERY, "patience": steps}
        made = fw.fit(self.host, task, method=method, length=length, seed=seed, limit=LIMIT, **options)
        curve = [(moment.step, moment.seconds, moment.selection) for moment in made.history]
        answers = made.answer([example.input for example in self.splits.test])
        right = [int(a.output == x.target) for a, x in zip(answers, self.splits.test, strict=True)]
        made.close()
        return {"curve": curve, "right": right, "best_step": made.best.step, "settings": dict(made.details)}


def _found(done: list[dict[str, Any]], key: dict[str, Any]) -> dict[str, Any] | None:
    return next((row for row in done if all(row.get(name) == value for name, value in key.items())), None)


def _ran(done: list[dict[str, Any]], key: dict[str, Any], run: Any) -> dict[str, Any]:
    watch = Stopwatch(command_line(), seeds=(key["seed"],))
    row = {**run(), **key}
    row["record"] = watch.record(key).as_dict()
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    done.append(row)
    shown = f"{row['task']} {row['method']} seed {row['seed']} {key.get('settings', '')}"
    print(f"{shown}: test {sum(row['right']) / len(row['right']):.3f}, best at step {row['best_step']}", flush=True)
    return row


def searched(bench: Bench, done: list[dict[str, Any]]) -> WriterSettings:
    """PEFT's best kind and rate on the selection split of seed 0, by the mean of the last quarter of the looks."""
    scores = {}
    for settings in GRID:
        key = {"task": bench.case.name, "method": "peft-search", "seed": 0, "settings": settings.as_dict()}
        found = _found(done, key) or _ran(done, key, partial(bench.peft, settings, steps=SEARCH_STEPS, seed=0))
        late = [score for _, _, score in found["curve"]][-SEARCH_STEPS // EVERY // 4 :]
        scores[settings] = sum(late) / len(late)
    return max(scores, key=lambda settings: scores[settings])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("runs/laboratory/models"))
    parser.add_argument("--cases", nargs="+", default=[case.name for case in ELICITED])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=400)
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    done = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    for case in (case for case in ELICITED if case.name in arguments.cases):
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(case, arguments.models, Path(scratch))
            settings = searched(bench, done)
            for seed in arguments.seeds:
                for method in ("prefix", "peft", "lora"):
                    key = {"task": case.name, "method": method, "seed": seed, "steps": arguments.steps}
                    if _found(done, key) is None:
                        made = settings if method == "peft" else method
                        run = partial(bench.peft if method == "peft" else bench.ours, made)
                        _ran(done, key, partial(run, steps=arguments.steps, seed=seed))


if __name__ == "__main__":
    main()
