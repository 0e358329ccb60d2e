"""Arithmetic on arrays of real intervals, rounded outward: every result contains every value of the exact operation.

One NumPy operation serves many cells. After each one the ends are moved outward by more than its rounding error: two
units in the last place for the four operations and the root, eight for the others (they are assumed accurate to four,
and tests compare them with 200-bit arithmetic). Where nothing finite can be said, an end is infinite; NaN never is.

It knows no expressions (`tape.py`) and no complex numbers (`rectangles.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from foreword.compiler.arrays import Floats

ULP = 2.0**-52
TINY = 1e-300  # above every rounding error in the subnormal range
SIMPLE, LIBRARY = 2.0, 8.0  # outward moves in units of 2^-52 relative
TURNS = 1e8  # an argument of sin beyond this many radians is not reduced: the range is [-1, 1]


@dataclass(frozen=True, eq=False)
class Interval:
    """All numbers from `lo` to `hi`, arrays of one shape (or broadcastable)."""

    lo: Floats
    hi: Floats

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo)

    def __add__(self, other: Interval) -> Interval:
        low = self.lo + other.lo
        return outward(low, self.hi + other.hi).from_zero(low >= 0)  # a sum that rounds to 0 or more is 0 or more

    def __sub__(self, other: Interval) -> Interval:
        return outward(self.lo - other.hi, self.hi - other.lo)

    def __mul__(self, other: Interval) -> Interval:
        ends = (self.lo * other.lo, self.lo * other.hi, self.hi * other.lo, self.hi * other.hi)
        low = np.minimum(np.minimum(ends[0], ends[1]), np.minimum(ends[2], ends[3]))
        found = outward(low, np.maximum(np.maximum(ends[0], ends[1]), np.maximum(ends[2], ends[3])))
        return found.from_zero(((self.lo >= 0) & (other.lo >= 0)) | ((self.hi <= 0) & (other.hi <= 0)))

    def scaled(self, factor: float | Floats) -> Interval:
        """This times exact numbers."""
        low, high = self.lo * factor, self.hi * factor
        found = outward(np.minimum(low, high), np.maximum(low, high))
        return found.from_zero(np.where(np.asarray(factor) >= 0, self.lo >= 0, self.hi <= 0))

    def from_zero(self, is_so: NDArray[np.bool_]) -> Interval:
        """Where `is_so` nothing below 0: for results whose sign is known, so that roots of them keep their domain."""
        return Interval(np.where(is_so, np.maximum(self.lo, 0.0), self.lo), self.hi)

    def to_zero(self, is_so: NDArray[np.bool_]) -> Interval:
        """Where `is_so` nothing above 0."""
        return Interval(self.lo, np.where(is_so, np.minimum(self.hi, 0.0), self.hi))

    def widened(self, margin: float | Floats) -> Interval:
        """All numbers within `margin` >= 0 of this."""
        return outward(self.lo - margin, self.hi + margin)

    def square(self) -> Interval:
        """x^2."""
        least, most = self.least(), self.size()
        found = outward(least * least, most * most)
        return Interval(np.maximum(found.lo, 0.0), found.hi)

    def reciprocal(self) -> Interval:
        """1 / x; everything when 0 lies in this."""
        found = outward(1.0 / self.hi, 1.0 / self.lo)
        is_sure = (self.lo > 0) | (self.hi < 0)
        return Interval(np.where(is_sure, found.lo, -np.inf), np.where(is_sure, found.hi, np.inf))

    def size(self) -> Floats:
        """The largest |x|."""
        return np.maximum(np.abs(self.lo), np.abs(self.hi))

    def least(self) -> Floats:
        """The smallest |x|."""
        return np.maximum(np.maximum(self.lo, -self.hi), 0.0)

    def middle(self) -> Floats:
        """A number in the middle, and 0 where there is none."""
        return finite(self.lo + (self.hi - self.lo) / 2)

    def radius(self) -> Floats:
        """An upper bound on the distance from `middle`."""
        middle = self.middle()
        reach = np.maximum(self.hi - middle, middle - self.lo) * (1 + 4 * ULP) + TINY
        return np.where(np.isnan(reach), np.inf, reach)


def point(value: ArrayLike) -> Interval:
    """The interval of one exact number (or an array of them)."""
    array = np.asarray(value, dtype=np.float64)
    return Interval(array, array)


def finite(values: Floats) -> Floats:
    """The values with 0 for what is infinite or no number."""
    return np.where(np.isfinite(values), values, 0.0)


def outward(lo: Floats, hi: Floats, units: float = SIMPLE) -> Interval:
    """The computed ends, moved outward past their rounding error; NaN becomes infinite."""
    low = lo - (units * ULP * np.abs(lo) + TINY)
    high = hi + (units * ULP * np.abs(hi) + TINY)
    return Interval(np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high))


def rising(name: str, x: Interval) -> Interval:
    """A function of NumPy or SciPy that increases: the values at the ends."""
    function = getattr(np, name, None) or getattr(special, name)
    return outward(function(x.lo), function(x.hi), LIBRARY)


def exp(x: Interval) -> Interval:
    """e^x, never below 0."""
    found = rising("exp", x)
    return Interval(np.maximum(found.lo, 0.0), found.hi)


def log(x: Interval) -> Interval:
    """The natural logarithm; everything where x may be 0 or less."""
    found = rising("log", x)
    return Interval(np.where(x.lo > 0, found.lo, -np.inf), np.where(x.lo > 0, found.hi, np.inf))


def sqrt(x: Interval) -> Interval:
    """The root; everything where x may be negative."""
    found = outward(np.sqrt(x.lo), np.sqrt(x.hi))
    is_sure = x.lo >= 0
    return Interval(np.where(is_sure, np.maximum(found.lo, 0.0), -np.inf), np.where(is_sure, found.hi, np.inf))


def cosh(x: Interval) -> Interval:
    """The hyperbolic cosine, at least 1."""
    found = outward(np.cosh(x.least()), np.cosh(x.size()), LIBRARY)
    return Interval(np.maximum(found.lo, 1.0), found.hi)


def sin(x: Interval) -> Interval:
    """The sine: its values at the ends, and 1 and -1 where a turning point may lie between."""
    return _wave(np.sin, x, math.pi / 2, np.minimum(1.0, x.size()))


def cos(x: Interval) -> Interval:
    """The cosine, in the same way."""
    return _wave(np.cos, x, 0.0, np.ones_like(x.lo))


def tan(x: Interval) -> Interval:
    """The tangent; everything where a pole may lie in x."""
    found = rising("tan", x)
    # A pole a little outside counts as one inside.
    is_sure = ~_has_turn(x, math.pi / 2, math.pi) & (x.hi - x.lo < math.pi)
    return Interval(np.where(is_sure, found.lo, -np.inf), np.where(is_sure, found.hi, np.inf))


def power(x: Interval, exponent: int) -> Interval:
    """x^exponent for exponent >= 0, by squaring."""
    if exponent == 0:
        return point(np.ones_like(x.lo))
    half = x if exponent == 1 else power(x, exponent // 2)
    if exponent == 1:
        return half
    return half.square() if exponent % 2 == 0 else half.square() * x


def monotone_power(x: Interval, exponent: int) -> Interval:
    """x^exponent, the exact range: odd powers increase, even ones are powers of |x|."""
    if exponent % 2:
        low, high = power(point(x.lo), exponent), power(point(x.hi), exponent)
        return Interval(low.lo, high.hi)
    low, high = power(point(x.least()), exponent), power(point(x.size()), exponent)
    return Interval(np.maximum(low.lo, 0.0), high.hi)


def _has_turn(x: Interval, first: float, period: float) -> NDArray[np.bool_]:
    """Whether first + k * period, k an integer, may lie in x; the slack covers the rounding of both."""
    slack = 1e-7
    return np.asarray(
        ~(np.floor((x.hi - first) / period + slack) < np.ceil((x.lo - first) / period - slack)) | ~(x.size() < TURNS)
    )


def _wave(function: np.ufunc, x: Interval, top: float, size: Floats) -> Interval:
    """`size` bounds |function|: an absolute error, since near a zero the reduction of the argument decides."""
    ends = function(x.lo), function(x.hi)
    margin = LIBRARY * ULP * size + TINY
    low = np.where(_has_turn(x, top - math.pi, 2 * math.pi), -1.0, np.minimum(ends[0], ends[1]) - margin)
    high = np.where(_has_turn(x, top, 2 * math.pi), 1.0, np.maximum(ends[0], ends[1]) + margin)
    return Interval(
        np.maximum(np.where(np.isnan(low), -1.0, low), -1.0), np.minimum(np.where(np.isnan(high), 1.0, high), 1.0)
    )
