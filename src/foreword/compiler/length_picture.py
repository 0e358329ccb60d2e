"""Pictures of lengths: the error that prefixes of a length have, and the length that a tolerance takes, with its cost.

Both are log-log. The published bound has dozens of digits where a prefix has two or three: it has a panel of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from foreword.compiler.bounds import LengthBound, PrefixLength, prefix_length
from foreword.compiler.canvas import COLOURS, check_picture_path, framed, new_figure, ruled, write_picture
from foreword.compiler.lengths import TOLERANCES, LengthStudy
from foreword.errors import PictureError

NAMES = {
    "published": "published (B.1), λ = ε⁻⁴",
    "published_best": "published, best λ",
    "nearest": "enough for all: nearest (A.2)",
    "at_centres": "too few with values at centres",
    "fixed_keys": "too few with fixed keys",
    "any_keys": "too few with any keys",
    "smooth": "smooth targets took (estimate)",
}
STYLES: dict[str, dict[str, Any]] = {
    "published": {"color": COLOURS["other"], "linestyle": "-"},
    "published_best": {"color": COLOURS["other"], "linestyle": "--"},
    "nearest": {"color": COLOURS["nearest"], "linestyle": "--"},
    "at_centres": {"color": COLOURS["required"], "linestyle": "-."},
    "fixed_keys": {"color": COLOURS["required"], "linestyle": "--"},
    "any_keys": {"color": COLOURS["required"], "linestyle": "-"},
    "smooth": {"color": COLOURS["spectral"], "linestyle": ":"},
}
ASTRONOMIC = ("published", "published_best")
MARKERS = {"adaptive": "D", "spectral": "o", "nearest": "s"}
ASKED = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def plotted_study(study: LengthStudy, path: str | Path | None = None) -> Figure:
    """Error against length, every construction, with what was proved and the bounds of the target's class."""
    if path is not None:
        check_picture_path(path)
    errors = [number for row in study.rows for number in (row.error, row.bound) if number and math.isfinite(number)]
    low, high = min(errors, default=1e-16) / 3, max(errors, default=1.0) * 3
    bounds = study.class_bounds(np.geomspace(low, high, TOLERANCES).tolist())
    figure = new_figure(9.0, 5.4, f"Error against length: {study.name or 'a function'} on {study.domain}", _told(study))
    grid = figure.add_gridspec(1, 2 if bounds else 1, width_ratios=[4.2, 1.0][: 2 if bounds else 1])
    axes = figure.add_subplot(grid[0, 0])
    ruled(framed(axes, "", "positions of the prefix", "error"))
    axes.set(xscale="log", yscale="log", ylim=(low, high))
    for method in dict.fromkeys(row.method for row in study.rows):
        _draw_method(axes, study, method)
    lengths = [row.positions for row in study.rows]
    axes.set_xlim(max(0.7, min(lengths) / 2), max(lengths) * 6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}" if count >= 1 else ""))
    for name, told in bounds.items():
        if name not in ASTRONOMIC:
            _draw_bound(axes, name, [10**bound.log10 for _, bound in told], [tolerance for tolerance, _ in told])
    if any(name in bounds for name in ASTRONOMIC):
        _draw_astronomic(figure.add_subplot(grid[0, 1], sharey=axes), bounds)
    figure.legend(
        loc="outside lower center", ncols=3, frameon=False, fontsize=8.5, labelcolor=COLOURS["muted"], handlelength=3.2
    )
    if path is not None:
        write_picture(figure, path)
    return figure


def plot_prefix_length(
    path: str | Path | None = None,
    *,
    dimension: int = 2,
    lipschitz: float = 1.0,
    tolerances: Sequence[float] = ASKED,
    supremum: float = 1.0,
    domain: Literal["sphere", "cube"] = "sphere",
    outputs: int = 1,
    dtype: str = "float32",
    heads: int = 1,
    head_dim: int | None = None,
) -> Figure:
    """Length against tolerance by every bound of `prefix_length`, and what such a prefix costs, as a figure.

    Also written to `path` (.png, .svg or .pdf) where given. PictureError for a path that cannot be or fewer than two
    tolerances, CompileError as in `prefix_length`.

    >>> figure = plot_prefix_length(dimension=1, tolerances=[0.1, 0.01])
    >>> len(figure.axes)
    3
    """
    if path is not None:
        check_picture_path(path)
    asked = sorted({float(tolerance) for tolerance in tolerances}, reverse=True)
    if len(asked) < 2:
        raise PictureError(
            "A curve needs two points.", expected="two or more tolerances", found=str(len(asked)), fix="Give a range."
        )
    given: dict[str, Any] = {"dimension": dimension, "lipschitz": lipschitz, "supremum": supremum, "domain": domain}
    given |= {"outputs": outputs, "dtype": dtype, "heads": heads, "head_dim": head_dim}
    found = [prefix_length(tolerance=tolerance, **given) for tolerance in asked]
    space = f"S^{dimension}" if domain == "sphere" else f"[-1, 1]^{dimension}"
    told = f"Lipschitz constant {lipschitz:g}, |f| up to {supremum:g}; "
    told += f"the cost is that of {heads} head{'s' * (heads > 1)} with {dtype} keys and values"
    figure = new_figure(10.0, 5.4, f"How long a prefix must be: functions on {space}", [told])
    _draw_lengths(figure, asked, found)
    figure.legend(
        *_one_of_each(figure.axes), loc="outside lower center", ncols=3, frameon=False, fontsize=8.5,
        labelcolor=COLOURS["muted"], handlelength=3.2,
    )  # fmt: skip
    if path is not None:
        write_picture(figure, path)
    return figure


def _draw_lengths(figure: Figure, asked: Sequence[float], found: Sequence[PrefixLength]) -> None:
    """The published bound above, the others below it, bytes and operations beside."""
    bounds: dict[str, list[LengthBound]] = {}
    for lengths in found:
        for name, bound in lengths.rows():
            bounds.setdefault(name, []).append(bound)
    is_published = "published" in bounds
    grid = figure.add_gridspec(2 if is_published else 1, 2, height_ratios=[1.0, 2.4] if is_published else [1.0])
    below = figure.add_subplot(grid[-1, 0])
    beside = figure.add_subplot(grid[:, 1])
    ruled(framed(below, "", "tolerance", "positions, log10"))
    ruled(framed(beside, "its cost beside the model", "tolerance", "bytes held, log10"))
    for name, told in bounds.items():
        if name not in ASTRONOMIC:
            _draw_bound(below, name, asked, [bound.log10 for bound in told])
            _draw_bound(beside, name, asked, [bound.cost.log10_bytes for bound in told])
    shift = bounds["nearest"][0].cost.log10_flops - bounds["nearest"][0].cost.log10_bytes
    _draw_operations(beside, shift)
    every = [below, beside]
    if is_published:
        above = figure.add_subplot(grid[0, 0], sharex=below)
        ruled(framed(above, "positions, log10: as published", "", ""))
        for name in ASTRONOMIC:
            _draw_bound(above, name, asked, [bound.log10 for bound in bounds[name]])
        below.set_title("and by the bounds of this project", fontsize=10.5, color=COLOURS["ink"], loc="left")
        above.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        above.tick_params(labelbottom=False)
        every.append(above)
    for axes in every:
        axes.set_xscale("log")
        axes.set_xlim(asked[0], asked[-1])


def _draw_operations(axes: Axes, shift: float) -> None:
    """A second axis on the right: operations a token are a fixed multiple of bytes, `shift` higher in log10."""
    both_ways: Any = (lambda size: size + shift, lambda work: work - shift)
    right: Any = axes.secondary_yaxis("right", functions=both_ways)
    right.set_ylabel("operations a token, log10", fontsize=9.5, color=COLOURS["muted"])
    right.tick_params(colors=COLOURS["muted"], labelsize=8.5, length=0, pad=4)
    right.spines[:].set_visible(False)


def _draw_method(axes: Axes, study: LengthStudy, method: str) -> None:
    rows, colour = study.of(method), COLOURS.get(method, COLOURS["other"])
    lengths, marker = [row.positions for row in rows], MARKERS.get(method, "o")
    axes.plot(
        lengths, [row.error for row in rows], color=colour, marker=marker, ms=5.5, lw=1.8, label=f"{method}: measured"
    )
    proved = [(row.positions, row.bound) for row in rows if row.bound is not None and math.isfinite(row.bound)]
    if proved:
        style: dict[str, Any] = {"mfc": "white", "mec": colour, "color": colour, "ls": (0, (1, 2)), "lw": 1.2}
        axes.plot(*zip(*proved, strict=True), marker=marker, ms=5.5, label=f"{method}: proved", **style)


def _draw_bound(axes: Axes, name: str, across: Sequence[float], up: Sequence[float]) -> None:
    axes.plot(across, up, linewidth=1.4, label=NAMES[name], zorder=1.5, **STYLES[name])


def _draw_astronomic(axes: Axes, bounds: dict[str, list[tuple[float, LengthBound]]]) -> None:
    """The published bounds, whose lengths no floating-point number holds: their logarithms on an even axis."""
    ruled(framed(axes, "", "digits of the length"))
    for name in ASTRONOMIC:
        told = bounds.get(name, [])
        _draw_bound(axes, name, [bound.log10 for _, bound in told], [tolerance for tolerance, _ in told])
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.tick_params(labelleft=False)


def _told(study: LengthStudy) -> list[str]:
    told = "No bounds for its class: no Lipschitz constant is declared, or the domain is no sphere and no cube"
    if study.class_bounds([1.0]):
        told = f"Bounds without markers are for all functions with Lipschitz constant {study.lipschitz:.3g}"
        told += f" and |f| up to {study.supremum:.3g}, not for this one"
    told += f". A proof had {study.seconds:g} s." if study.seconds > 0 else ""
    return [told, *(f"{method} left out: {why}" for method, why in study.left_out.items())]


def _one_of_each(every: Sequence[Axes]) -> tuple[list[Any], list[str]]:
    """Handles and labels of a legend in which each label stands once, in the order of `NAMES`."""
    found = {label: handle for axes in every for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [label for label in NAMES.values() if label in found]
    return [found[label] for label in labels], labels
