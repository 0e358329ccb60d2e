"""Targets that need no writing: standard test functions with the facts about them, each proved beside its number.

An entry knows its text on a given number of coordinates, a Lipschitz constant (Euclidean, on all of space unless a
condition says where, hence geodesic too: a chord is never longer than its arc), its kinks and, where known, its
extremes on the unit sphere. `target_of("bump", domain)` makes a target of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foreword.compiler.expression import coordinate_names

Kinks = list[tuple[list[float], float]]


@dataclass(frozen=True)
class Entry:
    """One target on `least` to `most` columns (None: any number): its text, and what is known of it.

    `lipschitz(columns, is_sphere)` holds on all of space or, when `inside` is given, where every coordinate lies in it.
    An entry with poles elsewhere exists only there. `extremes(columns)` are the least and the largest value on the unit
    sphere in that many columns.
    """

    name: str
    about: str
    text: Callable[[int], str]
    lipschitz: Callable[[int, bool], float]
    kinks: Callable[[int], Kinks] = lambda _: []
    extremes: Callable[[int], tuple[float, float] | None] = lambda _: None
    least: int = 1
    most: int | None = None
    inside: tuple[float, float] | None = None
    has_poles: bool = False  # outside `inside`


def _number(value: float) -> str:
    return repr(float(value))


def _sum(parts: Sequence[str]) -> str:
    return " + ".join(parts)


def _sides(columns: int) -> list[float]:
    """Slopes 3, 3/2, 1, ...: every coordinate counts, none alike."""
    return [3.0 / (index + 1) for index in range(columns)]


def _slopes(columns: int, _: bool = False) -> float:
    return math.sqrt(sum(slope * slope for slope in _sides(columns)))


def _centre(columns: int) -> list[float]:
    """A unit vector off the axes, (0.6, 0, ..., 0, 0.8)."""
    return [0.6] if columns == 1 else [0.6, *[0.0] * (columns - 2), 0.8]


def _squares(centre: Sequence[float]) -> str:
    names = coordinate_names(len(centre))
    return _sum([f"({name} - {_number(at)})**2" for name, at in zip(names, centre, strict=True)])


def _gaussian(width: float) -> Callable[[int], str]:
    return lambda columns: f"exp(-({_squares(_centre(columns))}) / {_number(2 * width * width)})"


def _trig(columns: int) -> str:
    names = coordinate_names(columns)
    return f"0.5 * sin(3 * {names[0]}) + 0.5 * cos(2 * {names[min(1, columns - 1)]}) * {names[-1]}"


def _largest(columns: int) -> str:
    return f"max({', '.join(coordinate_names(columns)[:3])})"


def _largest_kinks(columns: int) -> Kinks:
    """Where two of the first three coordinates are equal."""
    pairs = [(i, j) for i in range(min(columns, 3)) for j in range(i)]
    return [([float(k == i) - float(k == j) for k in range(columns)], 0.0) for i, j in pairs]


def _oscillatory(columns: int) -> str:
    terms = [f"{_number(a)} * {name}" for a, name in zip(_sides(columns), coordinate_names(columns), strict=True)]
    return f"cos(0.6 * pi + {_sum(terms)})"


def _product(columns: int) -> str:
    names = zip(_sides(columns), coordinate_names(columns), strict=True)
    return " * ".join(f"(1 / (1 + {_number(a * a)} * ({name} - 0.3)**2))" for a, name in names)


def _corner(columns: int) -> str:
    terms = [f"{_number(a)} * {name}" for a, name in zip(_sides(columns), coordinate_names(columns), strict=True)]
    return f"1 / (1 + {_sum(terms)})**{columns + 1}"


def _continuous(columns: int) -> str:
    terms = [
        f"{_number(a)} * abs({name} - 0.3)" for a, name in zip(_sides(columns), coordinate_names(columns), strict=True)
    ]
    return f"exp(-({_sum(terms)}))"


def _axes(columns: int) -> Kinks:
    return [([float(k == j) for k in range(columns)], 0.3) for j in range(columns)]


def _rough(columns: int) -> str:
    return _sum([f"sin({3**k} * {coordinate_names(columns)[0]}) / {3**k}" for k in range(8)])


def _net(columns: int) -> str:
    """The distance to the nearest of +-e_1, ..., +-e_n; a sum of squares, so no rounding makes it negative."""
    axes = [[sign * float(k == j) for k in range(columns)] for j in range(columns) for sign in (1, -1)]
    return f"sqrt(min({', '.join(_squares(axis) for axis in axes)}))"


def _net_extremes(columns: int) -> tuple[float, float]:
    """|x -+ e_j|^2 = 2 -+ 2 x_j, and the largest |x_j| of a unit vector is at least 1/sqrt(columns)."""
    return 0.0, math.sqrt(2 - 2 / math.sqrt(columns))


FRANKE = (
    "0.75 * exp(-((9 * x - 2)**2 + (9 * y - 2)**2) / 4) + 0.75 * exp(-(9 * x + 1)**2 / 49 - (9 * y + 1) / 10)"
    " + 0.5 * exp(-((9 * x - 7)**2 + (9 * y - 3)**2) / 4) - 0.2 * exp(-(9 * x - 4)**2 - (9 * y - 7)**2)"
)
NEEDLE = 0.02

_ENTRIES = (
    # The gradient of Re (x + iy)^3 is 3 |x + iy|^2, and |x + iy| <= 1 on the sphere and the disc; on [-1, 1]^2 it is 6.
    Entry(
        "harm",
        "a harmonic polynomial of degree 3",
        lambda columns: "{0}**3 - 3 * {0} * {1}**2".format(*coordinate_names(columns)),
        lambda _, is_sphere: 3.0 if is_sphere else 6.0,
        extremes=lambda _: (-1.0, 1.0),
        least=2,
        inside=(-1.0, 1.0),
    ),
    # Gradient (1.5 cos 3x, -z sin 2y, 0.5 cos 2y): with s = sin^2 2y, its square is at most 2.25 + s z^2 + (1 - s)/4,
    # and z^2 <= 1. Two columns: the second entry is 0.5 cos 2y - y sin 2y, at most |(0.5, 1)|. One: 1.5 + that.
    Entry(
        "trig",
        "sines and cosines of several coordinates",
        _trig,
        lambda columns, _: (
            math.sqrt(3.25) if columns > 2 else math.sqrt(3.5) if columns == 2 else 1.5 + math.sqrt(1.25)
        ),
        inside=(-1.0, 1.0),
    ),
    # |d/dr exp(-r^2/2s^2)| is largest at r = s: e^(-1/2)/s.
    Entry(
        "bump",
        "a Gaussian of width 0.5 about a point of the sphere",
        _gaussian(0.5),
        lambda *_: math.exp(-0.5) / 0.5,
        extremes=lambda columns: (math.exp(-8.0), 1.0) if columns > 1 else None,  # the antipode is 2 = 4 s away
    ),
    Entry(
        "abs",
        "a kink: the absolute value of the first coordinate",
        lambda columns: f"abs({coordinate_names(columns)[0]})",
        lambda *_: 1.0,
        kinks=lambda columns: [([1.0, *[0.0] * (columns - 1)], 0.0)],
        extremes=lambda columns: (0.0, 1.0) if columns > 1 else None,
    ),
    # A maximum of functions with constant 1 has constant 1.
    Entry("max", "the largest of the first three coordinates", _largest, lambda *_: 1.0, _largest_kinks, least=2),
    # |d/dx 1/(1 + 25 x^2)| = 50 x/(1 + 25 x^2)^2 is largest at x = 1/sqrt(75): 50/sqrt(75) * 9/16 = 15 sqrt(3)/8.
    Entry(
        "runge",
        "Runge's function of the first coordinate: polynomials at even nodes diverge",
        lambda columns: f"1 / (1 + 25 * {coordinate_names(columns)[0]}**2)",
        lambda *_: 15 * math.sqrt(3) / 8,
        extremes=lambda columns: (1 / 26, 1.0) if columns > 1 else None,
    ),
    # |grad a exp(-|9x - c|^2/4)| <= 9 a sqrt(1/2) e^(-1/2) = 3.861 a, for a = 0.75 and 0.5; for exp(-|9x - c|^2) it is
    # 9 a sqrt(2) e^(-1/2) = 7.721 a, a = 0.2. The second: with u = 9x + 1 and w = 9y + 1, both at least 1, the x entry
    # is at most 9 * 0.75 * e^(-1/10) * (2u/49) e^(-u^2/49) <= 6.108 * 0.1226, the y entry at most
    # 0.9 * 0.75 * e^(-1/49 - 1/10) <= 0.599; together 0.961. Sum 2.896 + 1.931 + 1.545 + 0.961.
    Entry("franke", "Franke's surface on [0, 1]^2", lambda _: FRANKE, lambda *_: 7.34, least=2, most=2, inside=(0, 1)),
    # Genz's families, slopes a = (3, 3/2, 1, ...). The cosine's gradient is at most |a|.
    Entry("oscillatory", "Genz: a plane wave", _oscillatory, _slopes),
    # d/dx 1/(1 + a^2 x^2) is at most a 3 sqrt(3)/8 (at a x = 1/sqrt(3)), and the other factors are at most 1.
    Entry("product", "Genz: a peak in every coordinate", _product, lambda n, _: 3 * math.sqrt(3) / 8 * _slopes(n)),
    # (n + 1) |a| (1 + <a, x>)^-(n + 2), largest at the corner 0 of [0, 1]^n.
    Entry(
        "corner",
        "Genz: a peak in a corner of [0, 1]^n",
        _corner,
        lambda n, _: (n + 1) * _slopes(n),
        inside=(0, 1),
        has_poles=True,
    ),
    # Off the kinks the gradient is -f (a_j sign): at most |a|, and a continuous f keeps the constant across them.
    Entry("continuous", "Genz: a kink in every coordinate", _continuous, _slopes, _axes),
    # The Gaussian again, of width 0.02: it lies between the points of any small sample.
    Entry(
        "needle",
        "a Gaussian of width 0.02: samples do not see it",
        _gaussian(NEEDLE),
        lambda *_: math.exp(-0.5) / NEEDLE,
    ),
    # |tanh'| <= 1.
    Entry("step", "a steep but smooth step", lambda n: f"tanh(20 * ({coordinate_names(n)[0]} - 0.1))", lambda *_: 20.0),
    # A Weierstrass sum: every term has slope at most 1, at frequencies 1, 3, ..., 2187.
    Entry("rough", "a Lipschitz function rough at every scale down to 1/2187", _rough, lambda *_: 8.0),
    # The distance to a set has constant 1.
    Entry("net", "the distance to the nearest axis point", _net, lambda *_: 1.0, extremes=_net_extremes),
    Entry(
        "identity",
        "every coordinate as an output",
        lambda columns: f"[{', '.join(coordinate_names(columns))}]",
        lambda *_: 1.0,
        extremes=lambda columns: (-1.0, 1.0) if columns > 1 else None,
    ),
    # |(sin a)'| <= 3 along the unit direction.
    Entry(
        "wave",
        "sin(3 x): the smooth function with the fewest terms",
        lambda n: f"sin(3 * {coordinate_names(n)[0]})",
        lambda *_: 3.0,
    ),
)
CATALOGUE: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
