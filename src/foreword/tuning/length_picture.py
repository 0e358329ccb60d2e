"""The picture of a sweep over lengths: the metric, how many directions are used, and the cost, one above the other.

It knows how to draw a `Sweep`. matplotlib is loaded when a picture is drawn, and its output is equal every time.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from foreword.tuning.length_choice import LengthTrial, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, LINE, CHOSEN, OTHER = "#1d2433", "#5b6577", "#dfe3ea", "#3f3fd1", "#8a94a6"


def length_picture(sweep: Sweep) -> str:
    """An SVG text: metric with its interval against the best, effective ranks, and cost, over the lengths."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8.4), dpi=72)
    metric, rank, cost = figure.subplots(3, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2, 2), "hspace": 0.12})
    _metric(metric, sweep)
    _ranks(rank, sweep.trials)
    _cost(cost, sweep.trials)
    for axes in (metric, rank, cost):
        axes.axvline(sweep.chosen, color=CHOSEN, linewidth=1, linestyle=":", zorder=0)
    metric.set_title(sweep.sentence, color=INK, fontsize=11, loc="left", wrap=True, parse_math=False)
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "foreword-length", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    return text.getvalue()


def _metric(axes: Axes, sweep: Sweep) -> None:
    """The metric of each length; a bar for where it lies if the best's value is taken as known."""
    trials = sweep.trials
    best = next(trial for trial in trials if trial.length == sweep.best)
    axes.plot([t.length for t in trials], [t.selection for t in trials], color=OTHER, linewidth=1.2)
    for trial in trials:
        found, color = trial.comparison, CHOSEN if trial.length == sweep.chosen else OTHER
        ends = [best.selection - found.high, best.selection - found.low]
        axes.plot([trial.length] * 2, ends, color=color, linewidth=4, alpha=0.35, solid_capstyle="round")
        marker = "X" if found.finding == "worse" else "o"
        axes.plot(trial.length, trial.selection, marker, ms=9, color=color, mec="white")
    axes.set_xscale("log", base=2)
    axes.set_xticks([t.length for t in trials], [str(t.length) for t in trials])
    axes.minorticks_off()
    _frame(axes, f"{sweep.metric} (selection)")


def _ranks(axes: Axes, trials: Sequence[LengthTrial]) -> None:
    """Effective rank of values and keys: each layer's as a thin line, their mean as a thick one."""
    lengths = [trial.length for trial in trials]
    for name, color, style in (("values", CHOSEN, "-"), ("keys", OTHER, "--")):
        layers = list(zip(*([getattr(rank, name) for rank in trial.ranks] for trial in trials), strict=True))
        for layer in layers:
            axes.plot(lengths, layer, color=color, linestyle=style, linewidth=0.6, alpha=0.5)
        mean = [sum(column) / len(column) for column in zip(*layers, strict=True)]
        axes.plot(lengths, mean, color=color, linestyle=style, linewidth=2, label=name)
    axes.legend(frameon=False, fontsize=10, labelcolor=MUTED, loc="upper left")
    _frame(axes, "effective rank")


def _cost(axes: Axes, trials: Sequence[LengthTrial]) -> None:
    """Measured ms added to one input, with bytes and FLOPs beside each point."""
    lengths = [trial.length for trial in trials]
    axes.plot(lengths, [trial.cost.added_ms for trial in trials], "o-", color=INK, linewidth=1.2, ms=5)
    for trial in trials:
        label = f"{_short(trial.cost.bytes, 1024, ('B', 'KiB', 'MiB', 'GiB'))}\n"
        label += _short(trial.cost.flops_per_token, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP"))
        axes.annotate(
            label,
            (trial.length, trial.cost.added_ms),
            (0, 7),
            textcoords="offset points",
            ha="center",
            color=MUTED,
            fontsize=8,
        )
    axes.margins(y=0.35)
    axes.set_xlabel("positions (beside each cost: bytes kept, FLOPs per token read)", color=MUTED, fontsize=10)
    _frame(axes, "ms added to one input")


def _short(amount: float, step: int, units: Sequence[str]) -> str:
    """An amount in the largest unit that leaves at least 1."""
    for unit in units[:-1]:
        if amount < step:
            return f"{amount:.3g} {unit}"
        amount /= step
    return f"{amount:.3g} {units[-1]}"


def _frame(axes: Axes, label: str) -> None:
    axes.spines[["right", "top"]].set_visible(False)
    axes.spines[:].set_color(LINE)
    axes.set_ylabel(label, color=MUTED, fontsize=11)
    axes.tick_params(colors=MUTED, labelsize=10, length=0)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
