"""A compiled function as a picture: target, head, error with what was proved of it, and where its positions are.

One row for each output, up to three; positions are shared by all. Where the domain has more than two dimensions, a line
through it is drawn, and beside it how large the error is at how many points of all of it. Without a target the head is
shown alone, and the picture says so. Nothing is proved here: bounds are those of the certificate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap, Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from foreword.certificate import Verdict
from foreword.compiler.arrays import Floats
from foreword.compiler.canvas import (
    COLOURS,
    check_picture_path,
    colour_bar,
    framed,
    new_figure,
    ruled,
    write_picture,
)
from foreword.compiler.subject import Compiled, Subject
from foreword.compiler.view import View
from foreword.excerpt import excerpt

FAR = 12.0  # a bound so many times the largest error seen is told, not drawn: the error would be a flat line
SEPARATE = 300  # dots of full size on a map: more of them would run together
VALUES, ERRORS = "viridis", "RdBu_r"
BIASES = ListedColormap(colormaps["plasma"](np.linspace(0.0, 0.85, 256)))  # what follows is too bright for white paper

Panel = Callable[[Axes], None]


def plotted(compiled: Compiled, path: str | Path | None = None) -> Figure:
    """The figure, written to `path` where given; PictureError for a path that cannot be, before anything is drawn."""
    if path is not None:
        check_picture_path(path)
    figure = _picture(Subject(compiled))
    if path is not None:
        write_picture(figure, path)
    return figure


def _picture(subject: Subject) -> Figure:
    rows = [_of_output(subject, output) for output in range(subject.outputs)]
    shared: list[Panel] = [lambda axes: _positions(axes, subject)]
    if subject.view.is_section and subject.wanted is not None:
        shared.insert(0, lambda axes: _shares(axes, subject))
    is_map = subject.view.up is not None
    wide, high = (4.6, 2.7 if subject.view.projection or not is_map else 3.7)
    if len(rows) == 1:
        panels = [*rows[0], *shared]
        columns = 2 if is_map or len(panels) > 3 else 1
        lines = math.ceil(len(panels) / columns)
        places: list[tuple[Any, ...]] = [divmod(index, columns) for index in range(len(panels))]
        wide = wide if columns == 2 else 8.0
    else:
        columns, lines = len(rows[0]) + len(shared), len(rows)
        panels = [panel for row in rows for panel in row] + shared
        places = [(line, column) for line in range(lines) for column in range(len(rows[0]))]
        places += [(slice(None), len(rows[0]) + column) for column in range(len(shared))]
        wide, high = 3.8, 2.5
    figure = new_figure(wide * columns, high * lines, _title(subject), _about(subject))
    grid = figure.add_gridspec(lines, columns)
    for panel, place in zip(panels, places, strict=True):
        panel(figure.add_subplot(grid[place], projection=subject.view.projection))
    return figure


def _of_output(subject: Subject, output: int) -> list[Panel]:
    """The panels of one output."""
    if subject.view.up is None:
        curves: list[Panel] = [lambda axes: _curves(axes, subject, output)]
        return curves + [lambda axes: _error_curve(axes, subject, output)] * (subject.errors is not None)
    head, wanted, errors = subject.seen.outputs, subject.wanted, subject.errors
    of = _of(subject, output)
    if wanted is None or errors is None:
        ends = _ends(head[:, output])
        return [lambda axes: _map(axes, subject, head[:, output], f"head{of}", VALUES, ends)]
    ends, limit = _ends(wanted[:, output]), _scale(subject, output)
    told = f"the scale ends at the {_bound_of(subject)}" if limit == subject.bound else ""
    return [
        lambda axes: _map(axes, subject, wanted[:, output], f"target{of}", VALUES, ends),
        lambda axes: _map(axes, subject, head[:, output], f"head{of}", VALUES, ends),
        lambda axes: _map(axes, subject, errors[:, output], f"head minus target{of}", ERRORS, (-limit, limit), told),
    ]


def _curves(axes: Axes, subject: Subject, output: int) -> None:
    view, of = subject.view, _of(subject, output)
    _along(axes, view)
    ruled(framed(axes, f"{'head' if subject.wanted is None else 'target and head'}{of}", view.labels[0]))
    mark: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 5} if view.is_table else {"linewidth": 4.5}
    if subject.wanted is not None:
        axes.plot(view.across, subject.wanted[:, output], color="#c3c9d4", label="target", **mark)
    thin: dict[str, Any] = {"marker": ".", "linestyle": "", "markersize": 3} if view.is_table else {"linewidth": 1.4}
    axes.plot(view.across, subject.seen.outputs[:, output], color=COLOURS["prefix"], label="head", **thin)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=COLOURS["muted"])


def _error_curve(axes: Axes, subject: Subject, output: int) -> None:
    view, errors = subject.view, subject.errors
    if errors is None:
        return
    _along(axes, view)
    ruled(framed(axes, f"head minus target{_of(subject, output)}", view.labels[0]))
    mark: dict[str, Any] = {"marker": ".", "linestyle": ""} if view.is_table else {"linewidth": 1.0}
    axes.plot(view.across, errors[:, output], color=COLOURS["prefix"], label="error", **mark)
    limit = _scale(subject, output)
    axes.set_ylim(-1.18 * limit, 1.18 * limit)
    if limit == subject.bound:
        for side in (-limit, limit):
            axes.axhline(side, color=COLOURS["required"], linestyle=(0, (4, 3)), linewidth=1.3, label="bound")
        style: dict[str, Any] = {"va": "bottom", "ha": "right", "fontsize": 8.5, "color": COLOURS["required"]}
        axes.text(1, limit, f"{_bound_of(subject)} {limit:.3g} ", transform=axes.get_yaxis_transform(), **style)


def _map(
    axes: Axes, subject: Subject, numbers: Floats, title: str, colours: str, ends: tuple[float, float], label: str = ""
) -> None:
    view = subject.view
    _on_a_map(axes, view, title)
    style: dict[str, Any] = {"cmap": colours, "vmin": ends[0], "vmax": ends[1], "rasterized": True}
    if view.up is None:
        return
    if view.grid is None:
        drawn: Any = axes.scatter(view.across, view.up, c=numbers, s=12, linewidths=0, clip_on=False, **style)
    else:
        grids = (array.reshape(view.grid) for array in (view.across, view.up, numbers))
        drawn = axes.pcolormesh(*grids, shading="nearest", **style)
    colour_bar(axes, drawn, label)


def _positions(axes: Axes, subject: Subject) -> None:
    """Every position where its weight is largest; how large that is; and its bias as the colour."""
    view, seen, biases = subject.view, subject.seen, subject.compiled.head.biases
    is_even = bool(np.ptp(biases) <= 1e-12 * np.abs(biases).max(initial=0.0))
    style: dict[str, Any] = {"color": COLOURS["prefix"]}
    if not is_even:
        style = {"c": biases, "cmap": BIASES, "norm": _bias_scale(biases)}
    about = f"{subject.compiled.head.positions:,} positions, where each weighs most"
    if 4 * len(seen.peaks) > len(view.points):  # a place is then no finer than the picture
        about += f" of {len(view.points):,} points"
    drawn: Any
    if view.up is not None:
        _on_a_map(axes, view, about, "size: its weight there" + "; all biases are equal" * is_even)
        crowd = min(1.0, SEPARATE / len(seen.peaks))
        sizes = crowd * (4 + 36 * seen.peaks / max(seen.peaks.max(), 1e-300))
        style |= {"s": sizes, "linewidths": 0, "alpha": 0.85, "clip_on": False}
        drawn = axes.scatter(view.across[seen.places], view.up[seen.places], **style)
    else:
        _along(axes, view)
        ruled(framed(axes, about, view.labels[0], "attention weight"))
        if seen.weights is not None and not view.is_table:
            lines = [np.stack([view.across, weights], axis=1) for weights in seen.weights.T]
            drawn = LineCollection(lines, linewidths=0.7, alpha=0.55, color=COLOURS["prefix"] if is_even else None)
            if not is_even:
                drawn.set(array=biases, cmap=BIASES, norm=style["norm"])
            axes.add_collection(drawn)
        drawn = axes.scatter(view.across[seen.places], seen.peaks, s=16, zorder=3, linewidths=0, clip_on=False, **style)
        axes.set_ylim(0.0, 1.05 * max(float(seen.peaks.max()), 1e-300))
    if not is_even:
        colour_bar(axes, drawn, "bias, nats")


def _shares(axes: Axes, subject: Subject) -> None:
    """How large the error is at how many points that were drawn from all of the domain."""
    gaps = subject.gaps
    if gaps is None:
        return
    title = f"errors at {len(gaps):,} points of the whole domain"
    ruled(framed(axes, title, "error", "share of points with at least that"))
    share = 1.0 - np.arange(len(gaps)) / len(gaps)
    axes.step(gaps, share, where="pre", color=COLOURS["prefix"], linewidth=1.6, label="error")
    axes.set_yscale("log")
    if subject.bound is not None and subject.bound <= FAR * max(float(gaps[-1]), 1e-300):
        axes.axvline(subject.bound, color=COLOURS["required"], linestyle=(0, (4, 3)), linewidth=1.3, label="bound")
        style: dict[str, Any] = {"va": "top", "ha": "right", "fontsize": 8.5, "color": COLOURS["required"]}
        axes.text(subject.bound, 1.0, f"{_bound_of(subject)} {subject.bound:.3g} ", rotation=90, **style)
    axes.set_xlim(left=0.0)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _on_a_map(axes: Axes, view: View, title: str, label: str = "") -> None:
    framed(axes, title, label or view.labels[0], view.labels[1] if not view.projection else "")
    if view.projection:
        axes.set_xticklabels([])
        axes.set_yticklabels([])
        axes.set_axisbelow(True)
        axes.grid(color=COLOURS["line"], linewidth=0.5)
    else:
        if view.up is not None:  # of a few positions too, the whole domain
            axes.set_xlim(*_ends(view.across))
            axes.set_ylim(*_ends(view.up))
        if view.is_square:
            axes.set_aspect("equal", adjustable="box")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))


def _along(axes: Axes, view: View) -> None:
    if len(view.across) > 1 and np.ptp(view.across) > 0:
        axes.set_xlim(float(view.across.min()), float(view.across.max()))
    axes.xaxis.set_major_locator(MaxNLocator(5))  # in a narrow panel more would run together
    if view.is_angle:
        signs = {-2: "−π", -1: "−π/2", 0: "0", 1: "π/2", 2: "π"}
        axes.xaxis.set_major_locator(MultipleLocator(math.pi / 2))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda angle, _: signs.get(round(2 * angle / math.pi), "")))


def _bias_scale(biases: Floats) -> Normalize:
    """Even, or by orders of magnitude where a few biases are far from all others: as keys crowd towards a kink."""
    low, high = float(biases.min()), float(biases.max())
    unit = float(np.median(np.abs(biases)))
    if unit > 0 and max(-low, high) > 30 * unit:
        return SymLogNorm(linthresh=unit, vmin=low, vmax=high)
    return Normalize(low, high)


def _ends(numbers: Floats) -> tuple[float, float]:
    low, high = float(numbers.min()), float(numbers.max())
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _scale(subject: Subject, output: int) -> float:
    """Where the scale of an error ends: at the bound where that is not far off, else at the largest error seen."""
    largest = 0.0 if subject.errors is None else float(np.abs(subject.errors[:, output]).max())
    if subject.bound is not None and largest <= subject.bound <= FAR * largest:
        return subject.bound
    return largest or 1.0


def _of(subject: Subject, output: int) -> str:
    count = subject.compiled.head.values.shape[1]
    return f", output {output + 1} of {count}" if count > 1 else ""


def _bound_of(subject: Subject) -> str:
    return "estimate" if subject.is_estimate else "bound"


def _title(subject: Subject) -> str:
    told = subject.compiled.told
    name = str(told.get("name") or told.get("expression") or "a function without a name")
    return f"{excerpt(name, 70)} on {subject.compiled.domain}"


def _about(subject: Subject) -> list[str]:
    """What was found, in a line or two: what the picture itself saw, and as much as the certificate claims."""
    claim, errors = subject.compiled.certificate, subject.errors
    parts = [f"{subject.compiled.head.positions:,} positions by {subject.compiled.method}"]
    if errors is None:
        parts.append("the target is unknown: the head alone")
    else:
        where = f"{'all ' * subject.is_whole}{len(errors):,} points"
        parts.append(f"error up to {float(np.abs(errors).max()):.3g} at {where}")
    if claim is None or subject.bound is None:
        parts.append("no bound on the error")
    else:
        told = f"at most {subject.bound:.3g} everywhere "
        parts.append(told + ("(an estimate, not a proof)" if subject.is_estimate else "(proved)"))
        if claim.verdict is Verdict.NOT_REACHED and claim.tolerance is not None:
            parts.append(f"wanted was {claim.tolerance:.3g}")
    return [", ".join(parts), subject.view.note]
