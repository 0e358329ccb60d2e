"""The report's pictures as SVG text to be set into a page: drawn by matplotlib, without a display, equal every time.

It knows how to draw evidence. It deliberately knows nothing of the page, except that the page may define the colours:
each is written as `var(--plot-ink, #1d2433)`, so that one picture is legible on light and on dark ground. Text stays
text, in the page's font; a name is drawn as it is, never read as a formula. None means that there is nothing to draw.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from foreword.assessment.evidence import CandidateEvidence, Evidence
from foreword.assessment.quantities import count, percent, printable
from foreword.assessment.summary import ranked, span
from foreword.assessment.wording import METRICS, standing, word

DPI = 72
"""Points per inch in SVG: at 72, one unit of the picture is one CSS pixel."""

PALETTE = {
    "ink": "#1d2433",
    "muted": "#5b6577",
    "line": "#dfe3ea",
    "prefix": "#3f3fd1",
    "other": "#8a94a6",
    "required": "#b4540a",
    "enough": "#eef7f1",
    "chosen": "#f1f2fd",
    "ground": "#fffffe",
    "soft-prompt": "#0b7a75",
    "lora": "#b0378f",
    "probe": "#946200",
    "full": "#5a6e00",
}
"""What a colour is for, and its value on a light ground; no two are equal, since the value finds the page's name."""

DASHES = {"prefix": "-", "soft-prompt": "--", "lora": "-.", "probe": ":", "full": ":"}
_VARIABLES = {value: f"var(--plot-{name}, {value})" for name, value in PALETTE.items()}


def interval_picture(evidence: Evidence, *, narrow: bool = False) -> str | None:
    """Every candidate's metric with its interval, best first, against the threshold; `narrow` is for a phone.

    A filled dot: the whole interval reaches the threshold; a ring: it contains it; a cross: it lies below.
    """
    found = ranked(evidence)
    if not found:
        return None
    width, row, left, right = (340, 46, 12, 62) if narrow else (640, max(26, min(39, 300 // len(found))), 160, 136)
    height = row * len(found) + 58
    figure, axes = _canvas(width, height, left=left, right=right, top=24, bottom=34)
    lows, highs = [c.metric.low for c in found], [c.metric.high for c in found]
    required = evidence.task.requirement.at_least
    _limits(axes, (*lows, *highs, required))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    end = axes.get_xlim()[1]
    axes.axvspan(required, end, color=PALETTE["enough"], linewidth=0, zorder=0)
    axes.axvline(required, color=PALETTE["required"], linewidth=1.5, linestyle=(0, (4, 3)), zorder=2)
    side = "right" if required > sum(axes.get_xlim()) / 2 else "left"
    _say(axes, required, -0.5, f"required: {percent(required)}", color="required", dy=9, ha=side, weight="bold")
    for index, candidate in enumerate(found):
        _interval_row(axes, index, candidate, evidence, narrow=narrow)
    return _svg(figure, "interval-narrow" if narrow else "interval", "Measured values with their intervals")


def _interval_row(axes: Axes, index: int, candidate: CandidateEvidence, evidence: Evidence, *, narrow: bool) -> None:
    metric, chosen = candidate.metric, candidate.name == evidence.decision.chosen
    color = PALETTE["prefix" if candidate.kind == "prefix" else "other"]
    y = index + 0.2 if narrow else index
    if chosen:
        band = {"xmin": -2.0, "xmax": 3.0, "clip_on": False, "linewidth": 0, "zorder": -1}
        axes.axhspan(index - 0.48, index + 0.48, color=PALETTE["chosen"], **band)
    axes.plot([metric.low, metric.high], [y, y], color=color, linewidth=5, solid_capstyle="round", zorder=3)
    found = standing(metric.low, metric.high, evidence.task.requirement.at_least)
    marker = {"met": "o", "open": "o", "missed": "X"}[found]
    inside = color if found == "met" else PALETTE["ground"]
    axes.plot(metric.value, y, marker, ms=10, mfc=inside, mec=color, mew=2 if found != "missed" else 1.2, zorder=4)
    weight, ink = ("bold", "ink") if chosen else ("normal", "ink" if candidate.kind == "prefix" else "muted")
    start, end = axes.get_xlim()
    name = printable(candidate.name, 34 if narrow else 17)
    value = f"{percent(metric.value)}"
    if narrow:
        _say(axes, start, index - 0.26, name, color=ink, weight=weight, ha="left")
        _say(axes, end, y, value, color=ink, weight="bold", dx=10, ha="left")
    else:
        _say(axes, start, y, name, color=ink, weight=weight, dx=-14, ha="right", size=13)
        _say(axes, end, y, value, color=ink, weight="bold", dx=12, ha="left", size=13)
        _say(axes, end, y, span(metric), color="muted", dx=64, ha="left", size=11)


def fit_curves(evidence: Evidence) -> str | None:
    """The metric on the selection split against the step, for every candidate that recorded its fit."""
    fits = [(c, [p for p in c.history if p.selection is not None]) for c in ranked(evidence)]
    fits = [(candidate, points) for candidate, points in fits if points]
    if not fits:
        return None
    figure, axes = _canvas(560, 320, left=56, right=120, top=16, bottom=46)
    values = [point.selection for _, points in fits for point in points if point.selection is not None]
    _limits(axes, values, axis="y")
    _frame(axes, "step", f"{word(METRICS, evidence.task.metric)} on the selection split")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: count(step)))
    ends = []
    for candidate, points in fits:
        steps, line = [point.step for point in points], [point.selection or 0.0 for point in points]
        color, dashes = PALETTE.get(candidate.kind, PALETTE["other"]), DASHES.get(candidate.kind, "-")
        width = 2.4 if candidate.kind == "prefix" else 1.8
        axes.plot(steps, line, color=color, linestyle=dashes, linewidth=width, marker="o", ms=3.5)
        ends.append((float(steps[-1]), line[-1], candidate.name, candidate.kind))
    _label_at_right(axes, ends)
    return _svg(figure, "fit", "Metric on the selection split during fitting")


def value_against_cost(evidence: Evidence) -> str | None:
    """Every candidate's metric against the cost of 1,000 requests; or its latency where cost is unknown."""
    rows = {row.candidate: row for row in evidence.cost.rows}
    found = ranked(evidence)
    if not found:
        return None
    priced = all(c.name in rows and rows[c.name].per_1k_requests > 0 for c in found)
    costs = [rows[c.name].per_1k_requests if priced else c.latency_ms for c in found]
    figure, axes = _canvas(560, 320, left=56, right=120, top=16, bottom=46)
    if min(costs) > 0 and max(costs) / min(costs) > 20:  # seen: a tenfold spread still reads well on a plain axis
        axes.set_xscale("log")
    unit = f"{evidence.cost.currency} per 1,000 requests" if priced else "ms for one request"
    _frame(axes, printable(unit), word(METRICS, evidence.task.metric))
    if axes.get_xscale() == "linear":
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:,.4g}"))
    _limits(axes, [bound for c in found for bound in (c.metric.low, c.metric.high)], axis="y")
    for candidate, cost in zip(found, costs, strict=True):
        color = PALETTE["prefix" if candidate.kind == "prefix" else "other"]
        axes.plot([cost, cost], [candidate.metric.low, candidate.metric.high], color=color, linewidth=1.5, alpha=1)
        axes.plot(cost, candidate.metric.value, "o", ms=9, color=color)
    axes.margins(x=0.12)
    _label_at_right(axes, [(cost, c.metric.value, c.name, c.kind) for c, cost in zip(found, costs, strict=True)])
    return _svg(figure, "cost", "Metric against cost")


def spread(positions: Sequence[float], gap: float, high: float) -> list[float]:
    """Positions in the same order, moved as little as needed to lie `gap` apart, the highest at most at `high`.

    >>> spread([1.0, 1.1, 5.0], gap=1.0, high=10.0)
    [0.55, 1.55, 5.0]
    """
    order = sorted(range(len(positions)), key=positions.__getitem__)
    groups: list[list[float]] = []  # [centre, members]: touching labels move as one
    for index in order:
        centre, members = positions[index], 1.0
        while groups and centre - groups[-1][0] < gap * (members + groups[-1][1]) / 2:
            before, joined = groups.pop()
            centre, members = (centre * members + before * joined) / (members + joined), members + joined
        groups.append([min(centre, high - gap * (members - 1) / 2), members])
    placed = [centre + gap * (place - (n - 1) / 2) for centre, n in groups for place in range(int(n))]
    found = dict(zip(order, placed, strict=True))
    return [found[index] for index in range(len(positions))]


def _label_at_right(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names in the right margin beside their points (x, y, name, kind), apart from one another, tied by thin lines."""
    low, high = axes.get_ylim()
    gap = (high - low) * 17 / axes.bbox.height
    edge = axes.get_xlim()[1]
    for (x, y, name, kind), place in zip(ends, spread([y for _, y, _, _ in ends], gap, high), strict=True):
        shift = (place - y) / (high - low) * axes.bbox.height
        arrow = {"arrowstyle": "-", "color": PALETTE["other"], "linewidth": 0.6, "shrinkA": 2, "shrinkB": 6}
        end = axes.transData.transform((edge, y))[0] - axes.transData.transform((x, y))[0] + 12
        ink, weight = (PALETTE["prefix"], "bold") if kind == "prefix" else (PALETTE["ink"], "normal")
        axes.annotate(
            printable(name, 17), (x, y), (end, shift), textcoords="offset points", arrowprops=arrow, va="center",
            color=ink, fontsize=12, fontweight=weight, annotation_clip=False, parse_math=False,
        )  # fmt: skip


def _canvas(width: int, height: int, *, left: int, right: int, top: int, bottom: int) -> tuple[Figure, Axes]:
    """A figure of so many CSS pixels with one axes, its margins in pixels, top down."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(box)


def _limits(axes: Axes, values: Sequence[float], *, axis: Literal["x", "y"] = "x") -> None:
    """An axis of percents that shows all `values` with some air, and stops at 0 and 100 unless a value lies beyond."""
    low, high = min(values), max(values)
    air = max(0.06 * (high - low), 0.01)
    start, end = max(low - air, min(0.0, low)), min(high + air, max(1.0, high))
    (axes.set_xlim if axis == "x" else axes.set_ylim)(start, end)
    ticks = axes.xaxis if axis == "x" else axes.yaxis
    ticks.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    ticks.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
    axes.tick_params(colors=PALETTE["muted"], labelsize=11, length=0, pad=7)
    axes.spines[:].set_color(PALETTE["line"])
    axes.patch.set_visible(False)
    axes.grid(axis=axis, color=PALETTE["line"], linewidth=0.8)
    axes.set_axisbelow(True)


def _frame(axes: Axes, x: str, y: str) -> None:
    axes.spines[["right", "top"]].set_visible(False)
    for set_label, text in ((axes.set_xlabel, x), (axes.set_ylabel, y)):
        set_label(text, color=PALETTE["muted"], fontsize=12, labelpad=8, parse_math=False)
    axes.tick_params(colors=PALETTE["muted"], labelsize=11, length=0, pad=7)


def _say(axes: Axes, x: float, y: float, text: str, **how: Any) -> None:
    """Text at a point of the axes, moved by (`dx`, `dy`) pixels."""
    axes.annotate(
        text, (x, y), (how.get("dx", 0), how.get("dy", 0)), textcoords="offset points", va="center",
        ha=how["ha"], color=PALETTE[how["color"]], fontsize=how.get("size", 12), fontweight=how.get("weight", "normal"),
        annotation_clip=False, parse_math=False,
    )  # fmt: skip


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an SVG element for an HTML page: without fonts, style sheet, addresses or date."""
    text = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": f"foreword-{name}", "svg.fonttype": "none"}), warnings.catch_warnings():
        # matplotlib measures with its own font, which lacks some scripts; the page's fonts do the drawing.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(text.getvalue())  # noqa: S314  matplotlib wrote it, a line above
    for child in [child for child in root if child.tag.endswith(("metadata", "defs"))]:
        root.remove(child)  # a licence note with addresses, and a style sheet that would style the whole page
    linked = set(re.findall(r"#([\w-]+)", " ".join(v for e in root.iter() for k, v in e.items() if k != "style")))
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        attributes = {key.rpartition("}")[2]: value for key, value in element.items()}
        kept = {key: value for key, value in attributes.items() if key != "id" or value in linked}
        element.attrib.clear()
        element.attrib.update(kept | ({"style": _themed(kept["style"])} if "style" in kept else {}))
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "class": f"plot plot-{name}", "role": "img", "aria-label": title})
    root.set("style", f"max-width: {box.split()[2]}px; stroke-linejoin: round")
    return ElementTree.tostring(root, encoding="unicode")


def _themed(style: str) -> str:
    """An SVG style with the page's colours by name, and without a font family, so that it takes the page's."""
    return re.sub(
        r"#[0-9a-f]{6}", lambda hex_: _VARIABLES.get(hex_[0], hex_[0]), re.sub(r"font-family:[^;]*;?", "", style)
    )
