"""What the compiler's pictures are drawn on: figures without a display, colours, and the file that a figure becomes.

It knows paper, not functions. Figures are made without pyplot, so nothing is left behind in the process; a name is
drawn as it is, never read as a formula, and the same figure is the same file every time.
"""

from __future__ import annotations

import io
import tempfile
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foreword.bundle import write_bytes_atomically
from foreword.errors import PictureError
from foreword.excerpt import excerpt
from foreword.regular_file import found_in

FORMATS = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
"""Suffixes that a picture's file may have, and what of its metadata would differ from run to run."""

DPI = 100
"""Pixels per inch of a PNG, and of the parts of an SVG or PDF that are drawn as pixels."""

TITLE, LINE = 0.42, 0.19
"""Inches above the panels that the title takes, and each line below it."""

COLOURS = {
    "ink": "#1d2433",
    "muted": "#5b6577",
    "line": "#dfe3ea",
    "prefix": "#3f3fd1",
    "other": "#8a94a6",
    "required": "#b4540a",
    "spectral": "#0b7a75",
    "nearest": "#946200",
    "adaptive": "#b0378f",
}
"""What a colour is for; those of the assessment's report under the same names."""


def check_picture_path(path: str | Path) -> Path:
    """The path, if a picture can be written there; PictureError for an unknown suffix or a folder that refuses.

    Meant to be called before long work. It leaves nothing behind, and makes no folder.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise PictureError(
            f"{path} does not say which kind of picture it should be.",
            expected=f"a name that ends in {', '.join(FORMATS)}",
            found=f"suffix {path.suffix!r}",
            fix=f"Name it {path.stem or 'picture'}.png, say.",
        )
    if path.is_dir():
        raise _unwritable(path, "a folder of this name")
    folder = path.absolute().parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:  # permissions alone do not tell: the file system may be read-only
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unwritable(path, f"{folder}: {found_in(error)}") from error
    return path


def write_picture(figure: Figure, path: str | Path) -> Path:
    """Write the figure in the format of the path's suffix, whole or not at all.

    PictureError as in `check_picture_path`, BundleError when the disk refuses.
    """
    path = check_picture_path(path)
    suffix, content = path.suffix.lower(), io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "foreword"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in another script
        figure.savefig(content, format=suffix[1:], dpi=DPI, metadata=FORMATS[suffix])
    write_bytes_atomically(path, content.getvalue())
    return path


def new_figure(width: float, height: float, title: str, about: Sequence[str]) -> Figure:
    """An empty figure with so many inches for panels, below a bold title and lines of what was found."""
    letters = int((width - 0.2) * 72 / 5.6)  # a letter of 10 points is about 5.6 points wide, a bold one of 13 about 9
    lines = [line for text in about for line in textwrap.wrap(excerpt(text, 3 * letters), letters)]
    header = TITLE + LINE * len(lines)
    figure = Figure(figsize=(width, height + header), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", rect=(0, 0, 1, height / (height + header)), h_pad=0.06, w_pad=0.08)
    title = excerpt(title, int(0.62 * letters))
    _say(figure, 0.12, title, fontsize=13, color=COLOURS["ink"], fontweight="bold")
    for index, line in enumerate(lines):
        _say(figure, TITLE - 0.05 + LINE * index, line, fontsize=10, color=COLOURS["muted"])
    return figure


def _say(figure: Figure, inches: float, text: str, **style: Any) -> None:
    """A line of the header, so many inches below the top."""
    width, height = figure.get_size_inches()
    figure.text(0.1 / width, 1 - inches / height, text, va="top", parse_math=False, **style)


def framed(axes: Axes, title: str, x: str = "", y: str = "") -> Axes:
    """The axes in the house's look, with a title and its labels."""
    axes.set_title(title, fontsize=10.5, color=COLOURS["ink"], loc="left", parse_math=False)
    for set_label, text in ((axes.set_xlabel, x), (axes.set_ylabel, y)):
        set_label(text, fontsize=9.5, color=COLOURS["muted"], parse_math=False)
    axes.tick_params(which="both", colors=COLOURS["muted"], labelsize=8.5, length=0, pad=4)
    axes.spines[:].set_color(COLOURS["line"])
    return axes


def ruled(axes: Axes) -> Axes:
    """Axes of curves: open at the top and at the right, on a grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=COLOURS["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    return axes


def colour_bar(axes: Axes, drawn: Any, label: str) -> None:
    """A bar beside the axes, as high as they are, for the colours of what is drawn."""
    bar = axes.figure.colorbar(drawn, cax=axes.inset_axes((1.03, 0.02, 0.035, 0.96)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=COLOURS["muted"], labelsize=8, length=0)
    bar.ax.yaxis.get_offset_text().set(color=COLOURS["muted"], fontsize=8)
    bar.set_label(label, fontsize=8.5, color=COLOURS["muted"])


def _unwritable(path: Path, found: str) -> PictureError:
    return PictureError(
        f"{path} cannot be written.", expected="a writable folder", found=found, fix="Name another folder."
    )
