"""The checker's fast numbers: float64, with a bound on what rounding adds.

Assumed is IEEE 754: + - * / and the square root are the exact result times (1 + d), |d| <= u = 2^-53, plus at most the
smallest normal double where that is smaller; so a sum of n terms, in whatever order, is within (n - 1) u / (1 - n u)
of the terms' magnitudes. NumPy's exponential and its like are not assumed to be anything: `exp` is our own.
It shares nothing with the search's own arithmetic (`intervals.py`), by intention.
"""

from __future__ import annotations

import math
from typing import Any, final

import numpy as np
from flint import arb
from numpy.typing import NDArray

from foreword.compiler.balls import as_balls
from foreword.compiler.numbers import Numbers, System

UNIT = 2.0**-53
GROWTH = 1 + 2.0**-36  # 2^16 roundings of non-negative numbers are below 2^-37 of the result
TINY = 1e-290  # more than 10^17 smallest normal doubles
LOG_2 = (0.693147180369123816490, 1.90821492927058770002e-10)  # the first has 32 bits: its multiples by n are exact
SMALLEST = -680.0  # e to less than this is taken as 0, which is off by less than TINY
LARGEST = 650.0  # e to more than this is taken as infinite
TERMS = 14  # of e^r, |r| <= 0.35: what is left out is below 0.35^15 / 15! < 2^-62
INVERSE_FACTORIALS = [1 / math.factorial(degree) for degree in range(TERMS + 1)]


@final
class Doubles(System):
    """Arrays of float64."""

    unit = UNIT
    exp_unit = 8 * UNIT

    def exact(self, doubles: Any) -> Numbers:
        return np.asarray(doubles, dtype=np.float64)

    def split(self, balls: Any) -> tuple[Numbers, Numbers]:
        told = np.asarray(balls, dtype=object)
        middle = _floats(told)
        return middle, self.upper(told - as_balls(middle), through=arb.abs_upper)

    def balls(self, numbers: Any) -> Numbers:
        return np.asarray(as_balls(numbers))

    def magnitude(self, numbers: Any) -> Numbers:
        return np.asarray(np.abs(numbers))

    def up(self, bounds: Any) -> Numbers:
        return np.asarray(bounds * GROWTH + TINY)

    def upper(self, balls: Any, through: Any = arb.upper) -> Numbers:
        told = np.asarray(balls, dtype=object)
        return np.nextafter(_floats(np.frompyfunc(through, 1, 1)(told)), np.inf)

    def larger(self, left: Any, right: Any) -> Numbers:
        return np.asarray(np.maximum(left, right))

    def root(self, bounds: Any) -> Numbers:
        return self.up(np.sqrt(bounds))

    def exp(self, numbers: Any) -> Numbers:
        """By e^x = 2^n e^r, |r| <= 0.35, and Taylor's polynomial of degree `TERMS`.

        n times the first part of log 2 is exact, and so is x less that (Sterbenz); the second part makes r wrong by
        less than 0.4 u. Horner's rule rounds e^r, then what is multiplied by r, by r^2, ...: together, and with the
        rounded 1 / d!, less than 4 u. Relative to e^r >= 0.7 all of it is below 6.5 u, and `exp_unit` above.
        """
        told = np.asarray(numbers, dtype=np.float64)
        inside = np.clip(told, SMALLEST, LARGEST)
        count = np.rint(inside / (LOG_2[0] + LOG_2[1]))
        rest = (inside - count * LOG_2[0]) - count * LOG_2[1]
        total = np.full_like(rest, INVERSE_FACTORIALS[TERMS])
        for inverse in INVERSE_FACTORIALS[TERMS - 1 :: -1]:
            total = total * rest + inverse
        power = np.ldexp(total, np.nan_to_num(count).astype(np.int64))
        return np.where(told < SMALLEST, 0.0, np.where(told > LARGEST, np.inf, power))

    def exp_above(self, bounds: Any) -> Numbers:
        return self.up(self.exp(bounds))

    def ceiling(self, numbers: Any) -> NDArray[np.float64]:
        return np.asarray(numbers, dtype=np.float64)

    def floor(self, numbers: Any) -> NDArray[np.float64]:
        return np.asarray(numbers, dtype=np.float64)


def _floats(balls: Any) -> NDArray[np.float64]:
    """The balls' middles, to the nearest double or the one beside it."""
    told = np.asarray(balls, dtype=object)
    return np.array([float(ball) for ball in told.ravel()], dtype=np.float64).reshape(told.shape)


DOUBLES = Doubles()
