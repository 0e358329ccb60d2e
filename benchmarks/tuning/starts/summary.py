"""The table and the plot of results/runs.jsonl: held-out score and loss by start, means over seeds.

.venv/bin/python benchmarks/tuning/starts/summary.py     # prints the table, writes results/starts.svg
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt  # after the backend is chosen

RESULTS = Path(__file__).resolve().parent / "results"
STARTS = ("zero", "random", "text", "vocabulary", "demonstrations", "closed-form")

# (base, task) -> start -> step -> the looks of all seeds; of a seed's runs of several lengths the longest
Looks = dict[tuple[str, str], dict[str, dict[int, list[dict[str, float]]]]]


def looks_of(rows: list[dict[str, Any]]) -> Looks:
    longest: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["key"]["steps"]):
        key = row["key"]
        longest[key["base"], key["task"], key["start"], str(key["seed"])] = row
    found: Looks = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for (base, task, start, _), row in longest.items():
        for look in row["curve"]:
            found[base, task][start][int(look["step"])].append(look)
    return found


def mean(looks: list[dict[str, float]], name: str) -> float:
    return sum(look[name] for look in looks) / len(looks)


def table(found: Looks) -> str:
    lines = ["| base | task | start | seeds | after 0 | 8 | 40 | 200 steps | seconds before step 1 |", "|---" * 9 + "|"]
    for (base, task), by_start in found.items():
        for start in STARTS:
            if start not in by_start:
                continue
            by_step = by_start[start]
            cells = [
                f"{mean(by_step[step], 'score'):.3f}, {mean(by_step[step], 'loss'):.2f}" if step in by_step else ""
                for step in (0, 8, 40, 200)
            ]
            seconds = f"{mean(by_step[0], 'seconds'):.1f}"
            lines.append(f"| {base} | {task} | {start} | {len(by_step[0])} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def plot(found: Looks, path: Path) -> None:
    """Held-out loss against steps, one panel for each base and task; a line for each start."""
    columns = 3
    rows = -(-len(found) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, 3 * rows), squeeze=False, layout="constrained")
    for axis, ((base, task), by_start) in zip(axes.flat, found.items(), strict=False):
        for number, start in enumerate(STARTS):
            if start in by_start:
                steps = sorted(by_start[start])
                losses = [mean(by_start[start][step], "loss") for step in steps]
                axis.plot(steps, losses, marker="o", markersize=3, color=f"C{number}", label=start)
        axis.set(title=f"{base}, {task}", xlabel="steps", ylabel="held-out loss, nats", yscale="log")
        axis.set_xscale("symlog", linthresh=8)
    for axis in axes.flat[len(found) :]:
        axis.set_visible(False)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(STARTS))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    rows = [json.loads(line) for line in (RESULTS / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    found = looks_of(rows)
    print(table(found))
    plot(found, RESULTS / "starts.svg")


if __name__ == "__main__":
    main()
