"""The tables of results/*.jsonl: steps to PEFT's best accuracy, accuracy on unseen examples, spread over seeds.

    .venv/bin/python benchmarks/tuning/peft_prefix/summary.py [--file written] [--method "prefix, closed form"]
    .venv/bin/python benchmarks/tuning/peft_prefix/summary.py --file runs written-documented texts \\
        --rival "peft, example"   # as documented, over all tasks

Steps are counted to two goals: PEFT's best score on the selection split, by the score there; and the accuracy of the
state that PEFT keeps on the unseen examples, by the accuracy there. Passes that first values take count as steps.
Differences are paired by example: each unseen example's mean over the seeds, ours minus the rival's, with a betting
interval (`foreword.confidence.mean_interval`, 95%) for its mean over the examples that the task is drawn from.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from runs import DOCUMENTED, SOLVED, STARTS

from foreword.confidence import mean_interval

RESULTS = Path(__file__).resolve().parent / "results"
Run = dict[str, Any]


def steps_to(curve: Sequence[Sequence[float]], accuracy: float) -> float:
    """The first step whose look shows the accuracy; infinite when none does. Scores are the last of each look."""
    return next((look[0] for look in curve if look[-1] >= accuracy - 1e-9), math.inf)


def before(run: Run) -> float:
    """Steps' worth of passes before the first step, of first values and calibration: a backward pass counts as two."""
    start = run["settings"].get("start", {})
    passes = start.get("forwards", 0) + 2 * start.get("backwards", 0) + run["settings"].get("calibrated_on", 0)
    return passes / (3 * run["settings"]["batch_size"]) if passes else 0.0


def ratios(mine: Run, theirs: Run) -> tuple[float, float]:
    """Our steps over PEFT's to its best selection score, and to its kept state's accuracy on unseen examples."""
    goals = {"curve": max(look[-1] for look in theirs["curve"]), "unseen": accuracy(theirs)}
    counted = [(before(mine) + steps_to(mine[on], goal), steps_to(theirs[on], goal)) for on, goal in goals.items()]
    return counted[0][0] / max(counted[0][1], 1), counted[1][0] / max(counted[1][1], 1)


def accuracy(run: Run) -> float:
    """Of the kept state on the unseen examples."""
    return float(np.mean(run["right"]))


def together(ours: dict[int, Run], others: dict[int, Run]) -> tuple[list[Run], list[Run]]:
    """The runs of both with the seeds that both have, in their order."""
    seeds = sorted(set(ours) & set(others))
    return [ours[seed] for seed in seeds], [others[seed] for seed in seeds]


def mean_accuracy(runs: list[Run]) -> str:
    """Over the seeds; a dash when there is none."""
    return f"{np.mean([accuracy(run) for run in runs]):.3f}" if runs else "-"


def compared(mine: list[Run], theirs: list[Run]) -> str:
    """Mean difference of accuracy with its interval."""
    rights = [np.mean([run["right"] for run in runs], axis=0) for runs in (mine, theirs)]
    differences = rights[0] - rights[1]
    found = mean_interval(differences, low=-1.0, high=1.0, level=0.95)
    return f"{differences.mean():+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def spread(runs: list[Run]) -> float:
    """Standard deviation of the accuracy over seeds."""
    return float(np.std([accuracy(run) for run in runs], ddof=1)) if len(runs) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = ("runs", "written", "written-documented", "texts", "similar")
    parser.add_argument("--file", nargs="+", default=["runs"], choices=files, help="the tasks of all of them together")
    parser.add_argument("--method", default="prefix", choices=tuple(STARTS))
    parser.add_argument("--rival", default="peft", choices=("peft", *DOCUMENTED, *SOLVED))
    arguments = parser.parse_args()
    every: list[list[tuple[float, float]]] = []
    spreads: list[float] = []
    print(
        f"| task | seeds | steps / PEFT's: selection, unseen | ours | {arguments.rival} | LoRA "
        "| ours - PEFT | ours - LoRA | spread |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for file in arguments.file:
        rows = [json.loads(line) for line in (RESULTS / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()]
        for task in dict.fromkeys(row["task"] for row in rows):
            by = {
                method: {r["seed"]: r for r in rows if (r["task"], r["method"]) == (task, method)}
                for method in (arguments.method, arguments.rival, "lora")
            }
            ours, rival, lora = by.values()
            mine, theirs = together(ours, rival)
            if not mine:
                continue
            every.append([ratios(a, b) for a, b in zip(mine, theirs, strict=True)])
            spreads.append(spread(mine) / spread(theirs) if spread(theirs) > 0 else math.nan)
            beside, updates = together(ours, lora)
            means = [mean_accuracy(mine), mean_accuracy(theirs), mean_accuracy(updates)]
            seeds = f"{len(mine)}" if len(updates) == len(mine) else f"{len(mine)} (LoRA {len(updates)})"
            against_lora = compared(beside, updates) if updates else "-"
            cells = [task, seeds, medians(every[-1], 2), *means, compared(mine, theirs), against_lora]
            print("| " + " | ".join(map(str, [*cells, f"{spread(mine):.4f} / {spread(theirs):.4f}"])) + " |")
    if every:
        runs = [run for task in every for run in task]
        tasks = [tuple(statistics.median(each) for each in zip(*task, strict=True)) for task in every]
        print(f"\nsteps over PEFT's, median over {len(runs)} runs: {medians(runs, 3)}")
        print(f"median over {len(tasks)} tasks of the median over seeds: {medians(tasks, 3)}")
    known = [ratio for ratio in spreads if math.isfinite(ratio)]
    if known:
        few = sum(ratio <= 0.5 for ratio in known)
        print(
            f"spread over PEFT's: median {statistics.median(known):.2f}, at most a half on {few} of {len(known)} tasks"
        )


def medians(pairs: Sequence[tuple[float, ...]], digits: int) -> str:
    """Of each part of the pairs."""
    return ", ".join(f"{statistics.median(each):.{digits}f}" for each in zip(*pairs, strict=True))


if __name__ == "__main__":
    main()
