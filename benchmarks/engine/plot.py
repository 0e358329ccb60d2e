"""The benchmark's pictures, from what is in results/: speed against PEFT and the bare model, and peak memory.

    .venv/bin/python benchmarks/engine/plot.py

Of several runs of one cell the latest is drawn. Nothing is measured here; each line of the files has its own record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = {
    "gpt2": "GPT-2 small",
    "llama-small": "Llama-like, width 768",
    "llama": "Llama-like, width 1024",
    "llama-wide": "Llama-like, width 2048",
}
COLOURS = {1: "#7a7a7a", 8: "#c8742b", 32: "#2b6cb0", 64: "#2f855a"}


def rows(name: str) -> list[dict[str, Any]]:
    """The latest row of each cell of one file."""
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in (RESULTS / name).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        latest[row["model"], row["what"], row["prefix"], row["batch"]] = row
    return list(latest.values())


def speed(axes: Axes, found: list[dict[str, Any]], ratio: str, title: str) -> None:
    """One ratio of times against the prefix's length, a line for each batch; above 1 ours is the faster one."""
    for batch in sorted({row["batch"] for row in found}):
        cells = sorted((row["prefix"], row[ratio]) for row in found if row["batch"] == batch and ratio in row)
        if cells:
            lengths, values = zip(*cells, strict=True)
            axes.plot(lengths, values, "o-", color=COLOURS.get(batch, "black"), label=f"batch {batch}")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(xscale="log", yscale="log", title=title, xlabel="positions of the prefix")
    axes.grid(visible=True, which="both", alpha=0.2)


def decoding() -> Figure:
    """Decoding with one shared prefix: ours against PEFT (above) and against the bare model (below)."""
    found = [row for row in rows("cells.jsonl") if row["what"] == "decode"]
    models = [model for model in MODELS if any(row["model"] == model for row in found)]
    figure = Figure(figsize=(4 * len(models), 6.5), layout="constrained")
    grid = figure.subplots(2, len(models), sharex=True, squeeze=False)
    for column, model in enumerate(models):
        mine = [row for row in found if row["model"] == model]
        speed(grid[0, column], mine, "peft/ours", f"{MODELS[model]}\nPEFT's time / ours")
        speed(grid[1, column], mine, "bare/ours", "bare model's time / ours")
    grid[0, 0].legend(frameon=False)
    return figure


def memory() -> Figure:
    """Peak memory above the loaded model and prefix, for each cell and rival."""
    found = rows("memory.jsonl")
    figure = Figure(figsize=(7, 0.6 + 0.55 * len(found)), layout="constrained")
    axes = figure.subplots()
    rivals = {"bare": "#7a7a7a", "peft": "#c8742b", "ours": "#2b6cb0"}
    for place, row in enumerate(found):
        told: Mapping[str, float | None] = row["megabytes"]
        for offset, (rival, colour) in enumerate(rivals.items()):
            if told.get(rival) is not None:
                axes.barh(place + 0.25 * (offset - 1), told[rival], 0.23, color=colour, label=rival)
    axes.set_yticks(
        range(len(found)), [f"{row['model']} {row['what']}, {row['prefix']} x {row['batch']}" for row in found]
    )
    axes.set(xscale="log", xlabel="megabytes at the peak")
    axes.invert_yaxis()
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), frameon=False)
    return figure


if __name__ == "__main__":
    for name, figure in (("decode", decoding()), ("memory", memory())):
        figure.savefig(RESULTS / f"{name}.png", dpi=110)
        print(RESULTS / f"{name}.png")
