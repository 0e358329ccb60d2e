"""The table of results/runs.jsonl: steps to PEFT's best accuracy, accuracy on unseen examples, spread over seeds.

    .venv/bin/python benchmarks/tuning/peft_prefix/summary.py [--file written]

Differences are paired by example: each test example's mean over the seeds, ours minus the rival's, with a betting
interval (`foreword.confidence.mean_interval`, 95%) for its mean over the examples that the task is drawn from.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from foreword.confidence import mean_interval

RESULTS = Path(__file__).resolve().parent / "results"


def steps_to(curve: list[list[float]], accuracy: float) -> float:
    """The first step at which the selection split's accuracy is reached; infinite when it never is."""
    return next((step for step, _, score in curve if score >= accuracy - 1e-9), math.inf)


def seconds_to(curve: list[list[float]], accuracy: float) -> float:
    """The seconds of fitting at that step."""
    return next((seconds for _, seconds, score in curve if score >= accuracy - 1e-9), math.inf)


def compared(mine: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """Mean difference of test accuracy with its interval."""
    rights = [np.mean([run["right"] for run in runs], axis=0) for runs in (mine, theirs)]
    differences = rights[0] - rights[1]
    found = mean_interval(differences, low=-1.0, high=1.0, level=0.95)
    return f"{differences.mean():+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def accuracies(runs: list[dict[str, Any]]) -> list[float]:
    """Test accuracy of each seed."""
    return [float(np.mean(run["right"])) for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", default="runs", choices=("runs", "written"))
    path = RESULTS / f"{parser.parse_args().file}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    ratios: list[float] = []
    print("| task | runs | steps ours / PEFT | ours | PEFT | LoRA | ours - PEFT | ours - LoRA | spread ours / PEFT |")
    print("|---|---|---|---|---|---|---|---|---|")
    for task in dict.fromkeys(row["task"] for row in rows):
        by = {m: [r for r in rows if (r["task"], r["method"]) == (task, m)] for m in ("prefix", "peft", "lora")}
        seeds = sorted(set.intersection(*({run["seed"] for run in runs} for runs in by.values())))
        by = {m: sorted((r for r in runs if r["seed"] in seeds), key=lambda r: r["seed"]) for m, runs in by.items()}
        if not seeds:
            continue
        pairs = []
        for mine, theirs in zip(by["prefix"], by["peft"], strict=True):
            goal = max(score for _, _, score in theirs["curve"])
            pairs.append((steps_to(mine["curve"], goal), steps_to(theirs["curve"], goal)))
        ratios += [mine / max(theirs, 1) for mine, theirs in pairs]
        shown = "/".join(f"{statistics.median(each):g}" for each in zip(*pairs, strict=True))
        means = [f"{np.mean(accuracies(by[m])):.3f}" for m in ("prefix", "peft", "lora")]
        spreads = [np.std(accuracies(by[m]), ddof=1) if len(seeds) > 1 else math.nan for m in ("prefix", "peft")]
        cells = [task, len(seeds), shown, *means, compared(by["prefix"], by["peft"])]
        cells += [compared(by["prefix"], by["lora"]), f"{spreads[0]:.4f}/{spreads[1]:.4f}"]
        print("| " + " | ".join(map(str, cells)) + " |")
    print(f"\nsteps ours / PEFT's, median over tasks and seeds: {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main()
