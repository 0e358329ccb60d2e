"""Tables and picture of what `run.py` measured; it measures nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

Line = dict[str, Any]

DOMAINS = ("S1", "S2", "S3", "square", "cube")
COLOURS = {
    "prefix": "#d1495b",
    "RBF interpolation": "#2e86ab",
    "polynomials": "#3f7d20",
    "network": "#8d6a9f",
    "network, Levenberg-Marquardt": "#5c4d7d",
    "ReLU network": "#8d6a9f",
    "ReLU network, Levenberg-Marquardt": "#5c4d7d",
}


def report(lines: list[Line], folder: Path | None) -> None:
    """Print the tables; with a folder, write them to summary.md beside the picture."""
    text = "\n".join([*_lengths(lines), *_nearest(lines), *_certificates(lines), *_thousandth(lines), *_rivals(lines)])
    print(text)
    if folder is not None:
        (folder / "summary.md").write_text(text + "\n", encoding="utf-8")
        _plot(lines, folder / "rivals.png")


def _lengths(lines: list[Line]) -> list[str]:
    rows = _grouped([line for line in lines if line["part"] == "lengths"], "domain", "kind", "positions", "asked")
    found = ["", "## Lengths: the largest error at unseen points", ""]
    found += ["| domain | targets | positions | asked | met | median | worst |", "|---|---|---|---|---|---|---|"]
    for (domain, kind, positions, asked), group in rows.items():
        errors = [line["error"] for line in group]
        met = sum(error <= asked for error in errors)
        worst = max(group, key=lambda line: line["error"])
        found.append(
            f"| {domain} | {kind} | {positions} | {asked:g} | {met} of {len(errors)} | {median(errors):.1e} | "
            f"{worst['error']:.1e} ({worst['target']}) |"
        )
    return found


def _nearest(lines: list[Line]) -> list[str]:
    found = ["", "## `nearest`: positions / covering bound", ""]
    found += ["| domain | target | tolerance | positions | bound | ratio | seconds | verdict |", "|" + "---|" * 8]
    for line in [line for line in lines if line["part"] == "nearest"]:
        shown = [line["domain"], line["target"], f"{line['tolerance']:g}", line["used"], f"{line['covering']:.0f}"]
        shown += [f"{line['error']:.3f}", f"{line['seconds']:.1f}", line["choice"]]
        found += [_row(shown)]
    return found


def _row(shown: list[Any]) -> str:
    return f"| {' | '.join(map(str, shown))} |"


def _certificates(lines: list[Line]) -> list[str]:
    found = ["", "## Certificates", ""]
    columns = (
        "domain, tolerance, target, positions, largest error, bound, ratio, proof s, all s, verdict, check s, checked"
    )
    found += [_row(columns.split(", ")), "|" + "---|" * 12]
    for line in [line for line in lines if line["part"] == "certificates"]:
        shown = [line["domain"], f"{line['tolerance']:g}", line["target"], line["used"], f"{line['error']:.2e}"]
        shown += [f"{line['bound']:.2e}", f"{line['ratio']:.2f}", f"{line['proof_seconds']:.1f}"]
        shown += [f"{line['seconds']:.1f}", line["verdict"], f"{line['check_seconds']:.1f}", line["checked"]]
        found += [_row(shown)]
    return found


def _thousandth(lines: list[Line]) -> list[str]:
    found = ["", "## Asked for a thousandth of the error of the best network of its size, sines left out", ""]
    columns = "domain, target, network's error, its s, prefix's error, network's / prefix's, prefix's s, positions"
    found += [_row(columns.split(", ")), "|" + "---|" * 8]
    for line in [line for line in lines if line["part"] == "thousandth"]:
        shown = [line["domain"], line["target"], f"{line['network error']:.1e}", f"{line['network seconds']:.1f}"]
        shown += [f"{line['error']:.1e}", f"{line['network error'] / line['error']:.3g}", f"{line['seconds']:.1f}"]
        found += [_row([*shown, line["used"]])]
    return found


def _rivals(lines: list[Line]) -> list[str]:
    """For each domain and kind of target: each method's error in units of the prefix's, and its seconds likewise."""
    chosen = [line for line in lines if line["part"] in ("smooth", "kinks", "waves", "longer")]
    ours = {_which(line): line for line in chosen if line["method"] == "prefix"}
    found = [
        "",
        "## Rivals of equal size: error / the prefix's error (above 1: the prefix is better), seconds likewise",
        "",
    ]
    found += ["| part | domain | targets | method | count | median error | error ratio: median | least | time ratio |"]
    found += ["|" + "---|" * 9]
    for (part, domain, kind, method), group in _grouped(chosen, "part", "domain", "kind", "method").items():
        group = [line for line in group if _which(line) in ours]
        if not group:
            continue
        ratios = [line["error"] / max(ours[_which(line)]["error"], 1e-300) for line in group]
        times = [line["seconds"] / ours[_which(line)]["seconds"] for line in group]
        found.append(
            f"| {part} | {domain} | {kind} | {method} | {len(group)} | {median(line['error'] for line in group):.1e} | "
            f"{median(ratios):.3g} | {min(ratios):.2g} | {median(times):.2g} |"
        )
    return found


def _which(line: Line) -> tuple[Any, ...]:
    return line["part"], line["domain"], line["target"], line["positions"]


def _grouped(lines: Iterable[Line], *names: str) -> dict[tuple[Any, ...], list[Line]]:
    found: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        found.setdefault(tuple(line[name] for name in names), []).append(line)
    return found


def _plot(lines: list[Line], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [("smooth", domain) for domain in DOMAINS] + [("kinks", "S2"), ("waves", "S2"), ("waves", "square")]
    figure, axes = pyplot.subplots(2, 4, figsize=(15, 7), sharey=True)
    for axis, (part, domain) in zip(axes.flat, panels, strict=True):
        chosen = [line for line in lines if line["part"] == part and line["domain"] == domain]
        names = list(dict.fromkeys(line["target"] for line in chosen))
        for method, colour in COLOURS.items():
            found = [line for line in chosen if line["method"] == method]
            places = [names.index(line["target"]) for line in found]
            heights = [max(line["error"], 1e-16) for line in found]
            if found:
                axis.semilogy(places, heights, "o", color=colour, label=method, markersize=6, alpha=0.85)
        axis.set_xticks(range(len(names)), names, rotation=70, fontsize=7)
        axis.set_title(
            f"{part}, {domain}, {chosen[0]['positions']} positions" if chosen else f"{part}, {domain}", fontsize=9
        )
        axis.grid(axis="y", alpha=0.3)
    for axis in axes[:, 0]:
        axis.set_ylabel("largest error")
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="lower center", ncols=min(7, math.ceil(len(handles))), fontsize=8
    )
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=80)
