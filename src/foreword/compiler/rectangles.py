"""Complex numbers known to lie in rectangles: a real interval for each part, rounded outward.

Where a function stays bounded on a neighbourhood of a cell in the complex plane, polynomials approximate it
geometrically fast on the cell (statement C.3, docs/theory): that is all that the search needs complex numbers for. A
rectangle without an imaginary part is real, and then every range is the sharpest that intervals give.

`OPERATIONS` gives for each name the value and the derivative. A result is infinite where the function has a branch
cut, a pole or an overflow, or where that cannot be excluded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foreword.compiler import intervals as real
from foreword.compiler.arrays import Floats
from foreword.compiler.intervals import Interval, finite, outward, point


@dataclass(frozen=True, eq=False)
class Rectangle:
    """Numbers with real part in `re` and imaginary part in `im`; `im` None means real numbers."""

    re: Interval
    im: Interval | None = None

    def __neg__(self) -> Rectangle:
        return Rectangle(-self.re, None if self.im is None else -self.im)

    def __add__(self, other: Rectangle) -> Rectangle:
        if self.im is None or other.im is None:
            return Rectangle(self.re + other.re, self.im or other.im)
        return Rectangle(self.re + other.re, self.im + other.im)

    def __sub__(self, other: Rectangle) -> Rectangle:
        return self + -other

    def __mul__(self, other: Rectangle) -> Rectangle:
        if other.im is None:
            return Rectangle(self.re * other.re, None if self.im is None else self.im * other.re)
        if self.im is None:
            return Rectangle(self.re * other.re, self.re * other.im)
        return Rectangle(self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re)

    def scaled(self, factor: float | Floats) -> Rectangle:
        """This times exact real numbers."""
        return Rectangle(self.re.scaled(factor), None if self.im is None else self.im.scaled(factor))

    def square(self) -> Rectangle:
        """z^2."""
        if self.im is None:
            return Rectangle(self.re.square())
        return Rectangle(self.re.square() - self.im.square(), (self.re * self.im).scaled(2.0))

    def reciprocal(self) -> Rectangle:
        """1 / z: conj(z) / |z|^2, and for a rectangle no larger than the reciprocal of the disc around it."""
        if self.im is None:
            return Rectangle(self.re.reciprocal())
        over = (self.re.square() + self.im.square()).reciprocal()
        direct = Rectangle(self.re * over, -(self.im * over))
        x, y = self.re.middle(), self.im.middle()
        reach = np.hypot(self.re.radius(), self.im.radius()) * (1 + 8 * real.ULP)
        gap = outward(x * x + y * y, x * x + y * y).lo - outward(reach * reach, reach * reach).hi
        gap = gap * (1 - 4 * real.ULP)
        centre = Rectangle(Interval(x, x).scaled(1.0), Interval(-y, -y)) * Rectangle(point(gap).reciprocal())
        around = disc(centre, np.where(gap > 0, reach / gap * (1 + 8 * real.ULP), np.inf))
        return direct.meet(around)

    def meet(self, other: Rectangle) -> Rectangle:
        """What lies in both; both must contain the same numbers of interest."""
        return Rectangle(_meet(self.re, other.re), None if self.im is None else _meet(self.im, other.im or point(0.0)))

    def size(self) -> Floats:
        """An upper bound on |z|."""
        if self.im is None:
            return self.re.size()
        found: Floats = np.hypot(self.re.size(), self.im.size()) * (1 + 8 * real.ULP) + real.TINY
        return np.where(np.isnan(found), np.inf, found)

    def least(self) -> Floats:
        """A lower bound on |z|."""
        if self.im is None:
            return self.re.least()
        return np.maximum(np.hypot(self.re.least(), self.im.least()) * (1 - 8 * real.ULP) - real.TINY, 0.0)


def disc(centre: Rectangle, radius: Floats) -> Rectangle:
    """Every number within `radius` of a number in `centre`."""
    im = centre.im if centre.im is not None else point(np.zeros_like(centre.re.lo))
    return Rectangle(centre.re.widened(radius), im.widened(radius))


def _meet(one: Interval, other: Interval) -> Interval:
    return Interval(np.maximum(one.lo, other.lo), np.minimum(one.hi, other.hi))


def constant(value: float) -> Rectangle:
    """One exact real number."""
    return Rectangle(point(value))


def where(condition: NDArray[np.bool_], one: Rectangle, other: Rectangle) -> Rectangle:
    """`one` where the condition holds, else `other`."""

    def pick(a: Interval, b: Interval) -> Interval:
        return Interval(np.where(condition, a.lo, b.lo), np.where(condition, a.hi, b.hi))

    if one.im is None and other.im is None:
        return Rectangle(pick(one.re, other.re))
    return Rectangle(pick(one.re, other.re), pick(one.im or point(0.0), other.im or point(0.0)))


def exp(z: Rectangle) -> Rectangle:
    """e^z."""
    size = real.exp(z.re)
    if z.im is None:
        return Rectangle(size)
    return Rectangle(size * real.cos(z.im), size * real.sin(z.im))


def sin(z: Rectangle) -> Rectangle:
    """sin(a + ib) = sin a cosh b + i cos a sinh b."""
    if z.im is None:
        return Rectangle(real.sin(z.re))
    return Rectangle(real.sin(z.re) * real.cosh(z.im), real.cos(z.re) * real.rising("sinh", z.im))


def cos(z: Rectangle) -> Rectangle:
    """cos(a + ib) = cos a cosh b - i sin a sinh b."""
    if z.im is None:
        return Rectangle(real.cos(z.re))
    return Rectangle(real.cos(z.re) * real.cosh(z.im), -(real.sin(z.re) * real.rising("sinh", z.im)))


def sinh(z: Rectangle) -> Rectangle:
    """sinh(a + ib) = sinh a cos b + i cosh a sin b."""
    if z.im is None:
        return Rectangle(real.rising("sinh", z.re))
    return Rectangle(real.rising("sinh", z.re) * real.cos(z.im), real.cosh(z.re) * real.sin(z.im))


def cosh(z: Rectangle) -> Rectangle:
    """cosh(a + ib) = cosh a cos b + i sinh a sin b."""
    if z.im is None:
        return Rectangle(real.cosh(z.re))
    return Rectangle(real.cosh(z.re) * real.cos(z.im), real.rising("sinh", z.re) * real.sin(z.im))


def tan(z: Rectangle) -> Rectangle:
    """sin / cos; infinite where a pole may lie in z."""
    return Rectangle(real.tan(z.re)) if z.im is None else sin(z) * cos(z).reciprocal()


def tanh(z: Rectangle) -> Rectangle:
    """sinh / cosh, and where the real part has one sign 1 - 2w / (1 + w) with w = e^(-2z), which does not overflow."""
    if z.im is None:
        return _within(Rectangle(real.rising("tanh", z.re)), -1.0)
    right = _tanh_right(z)
    left = -_tanh_right(-z)
    middle = sinh(z) * cosh(z).reciprocal()
    return where(z.re.lo >= 0, right, where(z.re.hi <= 0, left, middle))


def _within(z: Rectangle, least: float) -> Rectangle:
    """Real numbers without what rounding has put below `least` or above 1; complex ones as they are."""
    if z.im is not None:
        return z
    return Rectangle(_meet(z.re, Interval(np.full_like(z.re.lo, least), np.ones_like(z.re.lo))))


def _tanh_right(z: Rectangle) -> Rectangle:
    w = exp(z.scaled(-2.0))
    return constant(1.0) - w.scaled(2.0) * (constant(1.0) + w).reciprocal()


def log(z: Rectangle) -> Rectangle:
    """The logarithm on the right half-plane, where it is one function."""
    if z.im is None:
        return Rectangle(real.log(z.re))
    size = real.log(z.re.square() + z.im.square()).scaled(0.5)
    turn = real.rising("arctan", z.im * z.re.reciprocal())
    nothing = np.full_like(size.lo, np.inf)
    everything = Rectangle(Interval(-nothing, nothing), Interval(-nothing, nothing))
    return where(z.re.lo > 0, Rectangle(size, turn), everything)


def sqrt(z: Rectangle) -> Rectangle:
    """The root on the right half-plane: |Im z^(1/2)| = |b| / (2 Re z^(1/2)), and the real part grows with |b|."""
    if z.im is None:
        return Rectangle(real.sqrt(z.re))
    a = z.re
    size = Interval(z.least(), z.size())
    whole = real.sqrt((Interval(np.maximum(size.lo, a.lo), size.hi) + a).scaled(0.5))
    rise = z.im * whole.scaled(2.0).reciprocal()
    nothing = np.full_like(whole.lo, np.inf)
    everything = Rectangle(Interval(-nothing, nothing), Interval(-nothing, nothing))
    return where(a.lo > 0, Rectangle(whole, rise), everything)


def _around(z: Rectangle, at: Callable[[Floats], Interval], slope: Callable[[Rectangle], Rectangle]) -> Rectangle:
    """A function by its values `at` the middle of the real part and the largest slope on the way to z from there."""
    middle = z.re.middle()
    value = at(middle)
    im = z.im or point(np.zeros_like(middle))
    way = Rectangle(z.re, Interval(np.minimum(im.lo, 0.0), np.maximum(im.hi, 0.0)))
    reach = (z - Rectangle(point(middle))).size() * slope(way).size() * (1 + 8 * real.ULP)
    return disc(Rectangle(value), np.where(np.isnan(reach) | np.isinf(value.lo), np.inf, reach))


def _rising(name: str, z: Rectangle, slope: Callable[[Rectangle], Rectangle]) -> Rectangle:
    """A function that increases on the line: its values at the ends there, elsewhere what lies around the middle."""
    if z.im is None:
        return Rectangle(real.rising(name, z.re))
    return _around(z, lambda middle: real.rising(name, point(middle)), slope)


def arctan(z: Rectangle) -> Rectangle:
    """The inverse tangent; infinite near its branch points i and -i."""
    return _rising("arctan", z, _arctan_slope)


def arcsin(z: Rectangle) -> Rectangle:
    """The inverse sine; infinite where 1 - z^2 leaves the right half-plane."""
    return _rising("arcsin", z, _arcsin_slope)


def arccos(z: Rectangle) -> Rectangle:
    """The inverse cosine, in the same way."""
    if z.im is None:
        return Rectangle(-real.rising("arcsin", z.re) + HALF_PI)
    return _around(z, lambda middle: -real.rising("arcsin", point(middle)) + HALF_PI, _arcsin_slope)


def erf(z: Rectangle) -> Rectangle:
    """The error function, 2 / sqrt(pi) times the integral of e^(-t^2) from 0."""
    return _within(_rising("erf", z, _erf_slope), -1.0)


def sinc(z: Rectangle) -> Rectangle:
    """sin(pi z) / (pi z), the integral of cos(pi z t) for t from 0 to 1; entire."""
    found = _around(z, lambda middle: point(np.sinc(middle)).widened(real.LIBRARY * real.ULP), _sinc_slope)
    return found if z.im is not None else _within(Rectangle(found.re), SINC_LEAST)


def _arctan_slope(z: Rectangle) -> Rectangle:
    """1 / (1 + z^2), bounded only where |Im z| < 1, so that a segment to the middle meets no branch cut."""
    found = (constant(1.0) + z.square()).reciprocal()
    if z.im is None:
        return found
    return where(z.im.size() < 1, found, _everything(found))


def _arcsin_slope(z: Rectangle) -> Rectangle:
    return sqrt(constant(1.0) - z.square()).reciprocal()


def _erf_slope(z: Rectangle) -> Rectangle:
    return exp(-z.square()).scaled(2 / np.sqrt(np.pi))  # moved outward by more than the factor is off


def _sinc_slope(z: Rectangle) -> Rectangle:
    """-pi times the integral of t sin(pi z t), by its value at the middle; its own slope is at most pi^2/3 cosh(pi b).

    Near 0 the value is that of its series, -pi^2 m / 3 + pi^4 m^3 / 30, whose terms alternate and fall.
    """
    middle = z.re.middle()
    is_near = np.abs(middle) < 0.02
    away = np.where(is_near, 1.0, middle)
    series = -(np.pi**2) / 3 * middle + np.pi**4 / 30 * middle**3
    value = np.where(is_near, series, (np.cos(np.pi * away) - np.sinc(away)) / away)
    off = np.where(is_near, 1.15 * np.abs(middle) ** 5 + 32 * real.ULP, 64 * real.ULP * (1 + 1 / np.abs(away)))
    height = np.zeros_like(middle) if z.im is None else z.im.size()
    bend = 3.29 * np.cosh(np.pi * height) * (1 + 64 * real.ULP)  # pi^2 / 3 = 3.2899
    return disc(Rectangle(point(value)), off + (z - Rectangle(point(middle))).size() * bend)


def _everything(like: Rectangle) -> Rectangle:
    nothing = np.full_like(like.re.lo, np.inf)
    return Rectangle(Interval(-nothing, nothing), Interval(-nothing, nothing))


SINC_LEAST = -0.2172336283  # below its least value, -0.21723362821...
HALF_PI = Interval(np.array(np.pi / 2), np.array(np.nextafter(np.pi / 2, np.inf)))
PI = Rectangle(Interval(np.array(np.pi), np.array(np.nextafter(np.pi, np.inf))))

Function = Callable[[Rectangle], Rectangle]
# For each name: the function, and its derivative from the argument and the value.
OPERATIONS: dict[str, tuple[Function, Callable[[Rectangle, Rectangle], Rectangle]]] = {
    "exp": (exp, lambda _z, value: value),
    "log": (log, lambda z, _: z.reciprocal()),
    "sqrt": (sqrt, lambda _z, value: value.scaled(2.0).reciprocal()),
    "sin": (sin, lambda z, _: cos(z)),
    "cos": (cos, lambda z, _: -sin(z)),
    "tan": (tan, lambda _z, value: constant(1.0) + value.square()),
    "sinh": (sinh, lambda z, _: cosh(z)),
    "cosh": (cosh, lambda z, _: sinh(z)),
    "tanh": (tanh, lambda _z, value: constant(1.0) - value.square()),
    "arctan": (arctan, lambda z, _: _arctan_slope(z)),
    "arcsin": (arcsin, lambda z, _: _arcsin_slope(z)),
    "arccos": (arccos, lambda z, _: -_arcsin_slope(z)),
    "erf": (erf, lambda z, _: _erf_slope(z)),
    "sinc": (sinc, lambda z, _: _sinc_slope(z)),
}


def power(z: Rectangle, exponent: int) -> Rectangle:
    """z^exponent for an integer exponent; negative ones through the reciprocal."""
    if exponent < 0:
        return power(z, -exponent).reciprocal()
    if z.im is None:
        return Rectangle(real.monotone_power(z.re, exponent))
    if exponent == 0:
        return constant(1.0)
    result = z if exponent == 1 else power(z, exponent // 2).square()
    return result * z if exponent % 2 and exponent > 1 else result


def middle_of(z: Rectangle) -> Floats:
    """The middle of the real part, finite."""
    return finite(z.re.middle())
