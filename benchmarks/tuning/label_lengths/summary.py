"""The tables of results/runs.jsonl: held-out accuracy by way to score labels, and paired differences from the sum.

.venv/bin/python benchmarks/tuning/label_lengths/summary.py

The interval is Student's over base models' tasks, each the mean over its seeds: an estimate, for the tasks are few.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from scipy.stats import t

RESULTS = Path(__file__).resolve().parent / "results" / "runs.jsonl"
LOOKS = (0, 20, 50, 200)

# (base, task) -> way -> seed -> step -> accuracy
Found = dict[tuple[str, str], dict[str, dict[int, dict[int, float]]]]


def found_in(path: Path) -> tuple[Found, dict[tuple[str, str], list[int]]]:
    """Accuracies, and the labels' numbers of tokens."""
    found: Found = defaultdict(lambda: defaultdict(dict))
    tokens = {}
    for row in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        key = row["key"]
        place = (key["base"], key["task"])
        found[place][key["way"]][key["seed"]] = {int(look["step"]): look["score"] for look in row["curve"]}
        tokens[place] = row["tokens"]
    return found, tokens


def table(path: Path = RESULTS) -> str:
    found, tokens = found_in(path)
    ways = list(next(iter(found.values())))
    lines = [f"| base, task (tokens of the labels) | {' | '.join(ways)} |", "|---" * (len(ways) + 1) + "|"]
    for place, by_way in found.items():
        cells = []
        for way in ways:
            curves = by_way[way].values()
            cells.append(", ".join(f"{np.mean([curve[step] for curve in curves]):.2f}" for step in LOOKS))
        lines.append(f"| {', '.join(place)} ({', '.join(map(str, sorted(tokens[place])))}) | {' | '.join(cells)} |")
    lines += ["", f"| way less the sum | {' | '.join(f'{step} steps' for step in LOOKS)} |", "|---|---|---|---|---|"]
    for way in ways[1:]:
        cells = []
        for step in LOOKS:
            means = [
                np.mean([by_way[way][seed][step] - by_way["sum"][seed][step] for seed in by_way[way]])
                for by_way in found.values()
            ]
            half = t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / len(means) ** 0.5
            worse = sum(mean < -0.02 for mean in means)
            cells.append(f"{np.mean(means):+.3f} ± {half:.3f}, behind on {worse} of {len(means)}")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
