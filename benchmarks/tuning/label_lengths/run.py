"""Should a label be scored by the sum of its tokens' log-likelihoods, where labels differ in length?

    .venv/bin/python benchmarks/tuning/label_lengths/run.py          # writes results/runs.jsonl
    .venv/bin/python benchmarks/tuning/label_lengths/summary.py      # the table

    sum      as Foreword does
    mean     divided by the label's number of tokens
    empty    the sum, less what the bare model gives the label after an empty input
    average  the sum, less what it gives the label on average over the inputs that are fitted to

Same prefix, batches and learning rates for all; nothing is chosen: what is held out is looked at after a fixed number
of steps. What is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foreword.engine.host import Host
from foreword.record import Stopwatch, command_line
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidate_settings import PrefixSettings
from foreword.tuning.candidates import Workbench
from foreword.tuning.candidates.prefix import put_first_values
from foreword.tuning.examples import load_splits
from foreword.tuning.fittable import FitWatch
from foreword.tuning.loop import fit
from foreword.tuning.objective import objective_for
from foreword.tuning.objectives.contract import Objective
from foreword.tuning.objectives.labels import all_label_scores
from foreword.tuning.predictor import Predictor

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "starts")]
import small_seq2seq  # noqa: E402  beside this folder
from label_tasks import OF_DIGITS, OF_TEXT, label_task  # noqa: E402
from small_causal import trained  # noqa: E402

WAYS = ("sum", "mean", "empty", "average")
LOOKS = (0, 20, 50, 200)
# Width, layers and steps of training of the causal models.
CAUSAL = {"tiny": (48, 2, 500), "small": (96, 3, 1500), "wider": (128, 4, 1500)}


@dataclass
class Rescored(Predictor):
    """Answers by label scores that are divided by `by` and lessened by `less`, both `(label,)`."""

    by: Tensor | float = 1.0
    less: Tensor | float = 0.0

    def label_scores(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return (super().label_scores(rows) - self.less) / self.by


def rescored(bench: Workbench, adaptation: FittedPrefix, way: str) -> Rescored:
    """The predictor of a way to score; offsets are the bare model's."""
    bare = Predictor(bench.host, bench.manner())
    found = Rescored(bench.host, bench.manner(), adaptation)
    if way == "mean":
        found.by = torch.tensor([len(each) for each in found._completions])
    elif way != "sum":
        inputs = [""] if way == "empty" else [example.input for example in bench.splits.fit]
        found.less = all_label_scores(bare, bare.rows(inputs)).mean(dim=0)
    return found


class Looked:
    """A problem that is scored at LOOKS only, and remembers what it scored."""

    is_kept_by_loss = False

    def __init__(self, problem: Objective) -> None:
        self.problem, self.examples, self.lengths = problem, problem.examples, problem.lengths
        self.curve = list[dict[str, float]]()
        self.loss, self.weight = problem.loss, problem.weight
        self.memory, self.remember = problem.memory, problem.remember

    def evaluate(self, step: int) -> tuple[float, float]:
        if step in LOOKS:
            score, minus_loss = self.problem.evaluate(step)
            self.curve.append({"step": step, "score": score, "loss": -minus_loss})
        return self.curve[-1]["score"], -self.curve[-1]["loss"]


def run(bench: Workbench, way: str, *, positions: int, seed: int) -> dict[str, Any]:
    """One fit: its looks, and how many tokens the labels have."""
    settings = PrefixSettings(positions=positions, steps=max(LOOKS), batch_size=8)
    adaptation = FittedPrefix(bench.host, positions=positions, seed=seed)
    predictor = rescored(bench, adaptation, way)
    held = bench.splits.selection + bench.splits.test
    objective = objective_for(predictor, bench.splits.fit, held, bench.score, settings=settings)
    problem, began = Looked(objective), time.process_time()
    put_first_values(bench, objective, settings, seed=seed)
    outcome = fit(
        problem,
        adaptation,
        replace(settings.loop(1e6), evaluate_every=10, patience=10**6),
        seed=seed,
        watch=FitWatch(),
    )
    tokens = [len(each) for each in predictor._completions]
    seconds = time.process_time() - began
    return {
        "curve": problem.curve,
        "held": len(held),
        "tokens": tokens,
        "seconds": seconds,
        "notices": outcome.notices,
    }


def hosts(names: Sequence[str]) -> dict[str, Host]:
    found = {}
    for name in names:
        if name == "t5":
            found[name] = Host.load(str(small_seq2seq.trained("t5", ROOT / "runs" / "small-seq2seq")), device="cpu")
        else:
            width, layers, steps = CAUSAL[name]
            folder = ROOT / "runs" / ("small-causal" if name == "small" else f"causal-{name}")
            found[name] = trained(folder, steps=steps, width=width, layers=layers)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=[*CAUSAL, "t5"], choices=[*CAUSAL, "t5"])
    parser.add_argument("--tasks", nargs="+", default=[*OF_TEXT, *OF_DIGITS], choices=[*OF_TEXT, *OF_DIGITS])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--positions", type=int, default=8)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "runs.jsonl")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line)["key"] for line in out.read_text().splitlines()] if out.exists() else []
    loaded = hosts(arguments.bases)
    for seed in arguments.seeds:
        for base, host in loaded.items():
            for name in [each for each in arguments.tasks if each in (OF_DIGITS if base == "t5" else OF_TEXT)]:
                with tempfile.TemporaryDirectory() as scratch:
                    task = label_task(name, Path(scratch), base=host.reference)
                    bench = Workbench(host, task, load_splits(task))
                    for way in arguments.ways:
                        key = {"base": base, "task": name, "way": way, "seed": seed, "positions": arguments.positions}
                        if key in done:
                            continue
                        watch = Stopwatch(command_line(), seeds=(seed,))
                        row = run(bench, way, positions=arguments.positions, seed=seed)
                        row = {"key": key, **row, "record": watch.record(key).as_dict()}
                        with out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
                        looks = [(x["step"], round(x["score"], 3), round(x["loss"], 2)) for x in row["curve"]]
                        print(base, name, way, seed, row["tokens"], looks, round(row["seconds"], 1), flush=True)


if __name__ == "__main__":
    main()
