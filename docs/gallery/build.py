"""Makes the gallery of the compiler's pictures: every image, and README.md with captions taken from the runs.

    make gallery

Each case is compiled, proved and drawn; what a caption says of it (positions, bound, seconds) is what that run found.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

import foreword as fw
from foreword.certificate import Verdict
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.lengths import LengthStudy
from foreword.record import RunRecord, Stopwatch, command_line

HERE = Path(__file__).resolve().parent
SQUARE = Cube([(-1, 1)] * 2)


@dataclass(frozen=True)
class Compilation:
    """One function: what is shown of it, and how it is compiled."""

    file: str
    title: str
    about: str
    function: str
    domain: Domain
    options: dict[str, Any]

    def draw(self, path: Path) -> str:
        """Compile, prove, draw; the caption."""
        started = time.perf_counter()
        compiled = fw.compile_function(self.function, self.domain, **self.options)
        seconds = time.perf_counter() - started
        compiled.plot(path)
        claim = compiled.certificate
        if claim is None:
            raise SystemExit(f"{self.file}: no certificate was made")
        told = f"**{compiled.positions} positions** by `{compiled.method}`"
        if claim.verdict is Verdict.PROVED:
            told += f"; proved: the error is at most **{claim.bound:.2e}**, and at least {claim.seen:.2e} somewhere"
        else:
            told += f"; {claim.verdict}: bound {claim.bound:.2e}, error {claim.seen:.2e} at a point"
        return f"{told}. Compiled and proved in {seconds:.1f} s."

    @property
    def call(self) -> str:
        """The call that makes the picture."""
        made = f'compiled = fw.compile_function("{self.function}", {_as_code(self.domain)}{_given(self.options)})'
        return f'{made}\ncompiled.plot("{self.file}")'


@dataclass(frozen=True)
class Lengths:
    """Error against length for one function, by every construction."""

    file: str
    title: str
    about: str
    function: str
    domain: Domain
    positions: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def draw(self, path: Path) -> str:
        """Measure, prove, draw; the caption."""
        started = time.perf_counter()
        study = fw.measure_lengths(self.function, self.domain, positions=self.positions, **self.options)
        seconds = time.perf_counter() - started
        study.plot(path)
        parts = [_best(study, method) for method in dict.fromkeys(row.method for row in study.rows)]
        parts += [f"`{method}` is left out: {why}" for method, why in study.left_out.items()]
        return f"{' '.join(parts)} Measured and proved in {seconds:.1f} s."

    @property
    def call(self) -> str:
        """The call that makes the picture."""
        told = f'"{self.function}", {_as_code(self.domain)}{_given({"positions": self.positions, **self.options})}'
        return f'study = fw.measure_lengths({told})\nstudy.plot("{self.file}")'


@dataclass(frozen=True)
class Bounds:
    """The bounds on a length, and its cost."""

    file: str
    title: str
    about: str
    options: dict[str, Any]
    at: float

    def draw(self, path: Path) -> str:
        """Draw; the caption."""
        fw.plot_prefix_length(path, **self.options)
        told = fw.prefix_length(tolerance=self.at, **self.options)
        rows = "; ".join(f"`{name}` {bound} ({bound.standing})" for name, bound in told.rows())
        return f"Positions for a tolerance of {self.at:g}: {rows}."

    @property
    def call(self) -> str:
        """The call that makes the picture."""
        return f'fw.plot_prefix_length("{self.file}"{_given(self.options)})'


Case = Compilation | Lengths | Bounds

CASES: tuple[Case, ...] = (
    Compilation(
        "smooth-circle.png", "A smooth function on the circle",
        "Keys, biases and values moved together from an even start: the error is spread evenly, just below the bound.",
        "sin(3*x) * exp(y)", Sphere(1), {"tolerance": 1e-7},
    ),
    Compilation(
        "kink-circle.png", "A kink on the circle",
        "Each side of the kink has keys of its own; large opposite keys and biases switch between the two groups.",
        "abs(x - 0.3)", Sphere(1), {"tolerance": 1e-4},
    ),
    Compilation(
        "oscillation.png", "A wave packet on an interval",
        "Some keys lie outside the interval: they weigh most at its ends, and steady the denominator there.",
        "cos(30*x) * exp(-4*x**2)", Cube([(-1, 1)]), {"tolerance": 1e-4},
    ),
    Compilation(
        "smooth-sphere.png", "A smooth function on the sphere",
        "Keys start as an even net without biases; moving them with biases and values saves positions.",
        "0.5*sin(3*x) + 0.5*cos(2*y)*z", Sphere(2), {"tolerance": 1e-5},
    ),
    Compilation(
        "kink-sphere.png", "A kink along a plane through the sphere",
        "All keys lie along the plane's normal: circles about it are points to them, and each dot stands for a circle.",
        "max(0.6*x - 0.8*y - 0.2, 0)", Sphere(2), {"tolerance": 1e-4},
    ),
    Compilation(
        "nearest-sphere.png", "Only a Lipschitz constant: soft nearest neighbours",
        "The bound needs no search, and holds for every function with this constant and these values.",
        "net", Sphere(2), {"tolerance": 0.2, "method": "nearest"},
    ),
    Compilation(
        "smooth-square.png", "A smooth function on the square",
        "Keys start on a grid, where weights are products of weights along the axes; those of a short prefix leave it.",
        "sin(3*x) * exp(-y**2)", SQUARE, {"tolerance": 1e-4},
    ),
    Compilation(
        "kink-ring.png", "A kink along a circle in the square",
        "The target hangs on x² + y² alone, so that it is compiled and proved as a function on an interval.",
        "abs(x**2 + y**2 - 0.5)", SQUARE, {"tolerance": 1e-3},
    ),
    Compilation(
        "kinks-square.png", "Pieces that meet along lines",
        "Each smooth piece has a prefix of its own; gates at the kinks tell them apart.",
        "max(1 - abs(x) - abs(y), 0) * exp(x)", SQUARE, {"tolerance": 1e-3},
    ),
    Compilation(
        "vector-square.png", "Two outputs at once",
        "Keys and biases are shared; each output has values of its own. The bound is for the worse one.",
        "[exp(x)*cos(3*y), exp(x)*sin(3*y)]", SQUARE, {"tolerance": 1e-4},
    ),
    Compilation(
        "section-3-sphere.png", "Three dimensions: a section, and all errors",
        "What cannot be drawn is seen along a great circle; beside it, how many points of all have how large an error.",
        "0.5*sin(3*x0) + 0.5*cos(2*x1)*x3", Sphere(3), {"tolerance": 4e-2},
    ),
    Lengths(
        "lengths-smooth.png", "Error against length: a smooth function",
        "Solved values leave the bounds for all Lipschitz functions behind: this one is smooth, most of those are not.",
        "trig", Sphere(2), (8, 16, 32, 64, 128, 256),
    ),
    Lengths(
        "lengths-kink.png", "Error against length: a kink",
        "Keys for each side of the kink need hardly any positions; others gain little from more, within their seconds.",
        "max(0.6*x - 0.8*y - 0.2, 0)", Sphere(2), (4, 8, 16, 32, 64), {"lipschitz": 1.0},
    ),
    Bounds(
        "bounds.png", "How long a prefix must be, and what it costs",
        "Bounds for all functions with a Lipschitz constant of 1, and what smooth ones took.",
        {"dimension": 2, "lipschitz": 1.0}, 0.01,
    ),
)  # fmt: skip

HEADER = """# Gallery

What the compiler makes of a few functions. Every caption is what its run found; the whole page is made by

```sh
make gallery
```

from `docs/gallery/build.py`. A picture of your own: `compiled.plot("f.png")`, or `foreword compile ... --plot f.png`.
Each shows target, head, head minus target with the bound of the certificate, and the positions: each where its
attention weight is largest, with its bias as the colour. What the bounds mean is in
[the compiler's statements](../theory/compiler.md).
"""


def build(folder: Path, cases: tuple[Case, ...] = CASES, say: Callable[[str], None] = print) -> None:
    """Write images and README.md of these cases into the folder."""
    watch = Stopwatch(command=command_line(), seeds=(0,))
    record = watch.record()  # before the images change the checkout
    parts = [HEADER]
    for case in cases:
        caption = case.draw(folder / case.file)
        _with_few_colours(folder / case.file)
        say(f"{case.file}: {caption}")
        image = f"![{case.title}]({case.file})"
        parts.append(f"## {case.title}\n\n{image}\n\n{case.about} {caption}\n\n```python\n{case.call}\n```\n")
    parts.append(_made_by(record, watch.seconds))
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")


def _best(study: LengthStudy, method: str) -> str:
    row = min(study.of(method), key=lambda row: row.error)
    proved = "" if row.bound is None else f", proved at most {row.bound:.1e}"
    return f"`{method}`: {row.error:.1e} at unseen points with {row.positions} positions{proved}."


def _made_by(record: RunRecord, seconds: float) -> str:
    commit = "no commit" if record.commit is None else f"commit {record.commit[:7]}{' (changed)' * bool(record.dirty)}"
    machine = f"{record.machine['cores']} cores of {record.machine['processor'] or 'an unknown processor'}"
    return f"---\n\nMade at {commit} on {machine}, in {seconds:.0f} s.\n"


def _with_few_colours(path: Path) -> None:
    """The image again with a palette, its colours off by 10 of 255 at most: git keeps every byte for ever."""
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE).save(path, optimize=True)


def _given(options: dict[str, Any]) -> str:
    return "".join(f", {name}={json.dumps(value)}" for name, value in options.items())


def _as_code(domain: Domain) -> str:
    match domain:
        case Sphere(dimension=dimension):
            return f"fw.Sphere({dimension})"
        case Cube(sides=((low, high), *_) as sides) if len(set(sides)) == 1:
            return f"fw.Cube([({low:g}, {high:g})] * {len(sides)})"
    raise SystemExit(f"no text is known for {domain!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="the folder to write (default: beside this script)")
    build(parser.parse_args().out)
