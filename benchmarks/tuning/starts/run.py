"""From which first values does a fitted prefix go best? Loss and accuracy on held-out text after 0, 8, 40, 200 steps.

    .venv/bin/python benchmarks/tuning/starts/run.py --bases minilm --tasks kinds --seeds 0

Same base, length, batches and learning rates for all starts; nothing is chosen, so what is held out (the selection and
test splits together) is looked at after a fixed number of steps and no best state is kept. "seconds" counts the start
itself too. One line a run in results/runs.jsonl (--out elsewhere keeps the checkout clean); what is there is not run
again. `summary.py` makes the table and plot.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from foreword.engine.host import Host
from foreword.record import Stopwatch, command_line
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidate_settings import PrefixSettings
from foreword.tuning.candidates import Workbench
from foreword.tuning.candidates.contract import unset_readout
from foreword.tuning.candidates.prefix import put_first_values
from foreword.tuning.examples import load_splits
from foreword.tuning.loop import fit
from foreword.tuning.objective import objective_for
from foreword.tuning.objectives.contract import Objective
from foreword.tuning.predictor import Predictor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from skill_tasks import SKILLS, skill_task  # noqa: E402
from small_causal import trained  # noqa: E402  beside this folder
from small_seq2seq import FAMILIES  # noqa: E402
from small_seq2seq import trained as trained_seq2seq  # noqa: E402
from text_tasks import BASE, TASKS, task_named  # noqa: E402

LOOKS = (0, 8, 40, 200)
STARTS = ("zero", "random", "text", "vocabulary", "demonstrations", "closed-form")
BASES = ("minilm", "small-causal", "skills", *FAMILIES)
HELD = 300  # examples held out, at most


class Looked:
    """A problem that is scored at LOOKS only, and remembers what it scored."""

    is_kept_by_loss = False

    def __init__(self, problem: Objective) -> None:
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
    objective = objective_for(predictor, bench.splits.fit, held, bench.score, settings=settings)
    problem = Looked(objective)
    started = put_first_values(bench, objective, settings, seed=seed)
    loop = replace(settings.loop(1e6), evaluate_every=8, patience=10**6)
    fit(problem, adaptation, loop, seed=seed)
    return {"curve": problem.curve, "started": started}


def _reference(base: str, skills: Path) -> Path:
    """The folder of a base that writes skills."""
    return trained_seq2seq(base) if base in FAMILIES else skills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", default=["minilm", "small-causal"], choices=BASES)
    parser.add_argument("--tasks", nargs="+", default=["kinds", "languages"], choices=[*TASKS, *SKILLS])
    parser.add_argument("--skills", type=Path, default=Path("runs/laboratory/models/skills"), help='the base "skills"')
    parser.add_argument("--starts", nargs="+", default=list(STARTS), choices=STARTS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--positions", type=int, default=16)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "runs.jsonl")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.parent.mkdir(exist_ok=True)
    done = [json.loads(line)["key"] for line in out.read_text().splitlines()] if out.exists() else []
    for base in arguments.bases:
        writes = base == "skills" or base in FAMILIES
        if base == "small-causal":
            host = trained()
        else:
            host = Host.load(str(_reference(base, arguments.skills)) if writes else BASE, device="cpu")
        for name in arguments.tasks:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                skilled = _reference(base, arguments.skills) if writes else None
                task = task_named(name, folder) if skilled is None else skill_task(name, folder, base=skilled)
                bench = Workbench(host, task, load_splits(task))
                for seed in arguments.seeds:
                    for start in arguments.starts:
                        key = {"base": base, "task": name, "start": start, "seed": seed}
                        key |= {"steps": arguments.steps, "positions": arguments.positions}
                        if key in done:
                            continue
                        watch = Stopwatch(command_line(), seeds=(seed,))
                        row = run(bench, start, positions=arguments.positions, steps=arguments.steps, seed=seed)
                        row = {"key": key, "role": host.role, **row, "record": watch.record(key).as_dict()}
                        with out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(row) + "\n")
                        looks = [(x["step"], round(x["score"], 3), round(x["loss"], 3)) for x in row["curve"]]
                        print(key["base"], name, start, seed, looks, flush=True)


if __name__ == "__main__":
    main()
