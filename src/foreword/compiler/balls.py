"""The checker's exact numbers: balls of Arb (through python-flint), of `PRECISION` bits, rounded outward by Arb.

A domain failure (a logarithm through 0) gives a ball that is not a number, and no bound is ever met by one. It shares
nothing with the search's own arithmetic (`intervals.py`), by intention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import numpy as np
from flint import arb, ctx
from numpy.typing import NDArray

from foreword.compiler.numbers import Numbers, System

Balls = NDArray[np.object_]  # of arb

PRECISION = 128  # bits; two machine words, as fast as one

magnitude: Callable[[Any], Any] = np.frompyfunc(lambda ball: ball.abs_upper(), 1, 1)
as_balls: Callable[[Any], Any] = np.frompyfunc(arb, 1, 1)
_larger: Callable[[Any, Any], Any] = np.frompyfunc(lambda left, right: left.max(right), 2, 1)
_root: Callable[[Any], Any] = np.frompyfunc(lambda ball: ball.sqrt().upper(), 1, 1)
_exp: Callable[[Any], Any] = np.frompyfunc(lambda ball: ball.exp(), 1, 1)
_upper: Callable[[Any], Any] = np.frompyfunc(lambda ball: ball.upper(), 1, 1)


@contextmanager
def precise(order: int) -> Iterator[None]:
    """Arb at `PRECISION` bits, and its series long enough for `order`; as it was before, afterwards."""
    length = ctx.cap
    ctx.cap = order + 1
    try:
        with ctx.workprec(PRECISION):
            yield
    finally:
        ctx.cap = length


@final
class BallSystem(System):
    """Arrays of `arb`: every number holds its own error, so nothing is to be added."""

    unit = 0.0
    exp_unit = 0.0

    def exact(self, doubles: Any) -> Numbers:
        return np.asarray(as_balls(np.asarray(doubles)))

    def split(self, balls: Any) -> tuple[Numbers, Numbers]:
        told = np.asarray(balls, dtype=object)
        return told, self.zeros(*told.shape)

    def balls(self, numbers: Any) -> Numbers:
        return np.asarray(numbers, dtype=object)

    def magnitude(self, numbers: Any) -> Numbers:
        return np.asarray(magnitude(numbers))

    def up(self, bounds: Any) -> Numbers:
        return np.asarray(bounds)

    def upper(self, balls: Any) -> Numbers:
        return np.asarray(_upper(balls))

    def larger(self, left: Any, right: Any) -> Numbers:
        return np.asarray(_larger(left, right))

    def root(self, bounds: Any) -> Numbers:
        return np.asarray(_root(bounds))

    def exp(self, numbers: Any) -> Numbers:
        return np.asarray(_exp(numbers))

    def exp_above(self, bounds: Any) -> Numbers:
        return np.asarray(_upper(_exp(bounds)))

    def ceiling(self, numbers: Any) -> NDArray[np.float64]:
        return np.nextafter(np.asarray(_upper(numbers)).astype(np.float64), np.inf)

    def floor(self, numbers: Any) -> NDArray[np.float64]:
        return np.nextafter(np.asarray(-_upper(-np.asarray(numbers))).astype(np.float64), -np.inf)


BALLS = BallSystem()
