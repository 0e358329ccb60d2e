"""What the checker computes with: arrays of numbers of one system, each operation with a bound on what it may be wrong.

Two systems have the same operations. `balls.py`: Arb's balls, as precise as wanted; a ball holds its own error.
`doubles.py`: float64, much faster; an operation is right up to `unit` times what went into it, and whoever uses it adds
that to the bound that he keeps. This module knows what both must offer, nothing of either.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]
"""An array of one system's numbers."""


class System(ABC):
    """One system of numbers. `unit` is the roundoff that users must account for, and `exp_unit` that of `exp`: 0 where
    numbers hold their own.
    """

    unit: float
    exp_unit: float

    @abstractmethod
    def exact(self, doubles: Any) -> Numbers:
        """Doubles as they are."""

    @abstractmethod
    def split(self, balls: Any) -> tuple[Numbers, Numbers]:
        """Numbers near Arb's balls, and bounds on how far the balls reach from them."""

    @abstractmethod
    def balls(self, numbers: Any) -> Numbers:
        """Arb's balls that hold the numbers."""

    @abstractmethod
    def magnitude(self, numbers: Any) -> Numbers:
        """An upper bound on each magnitude."""

    @abstractmethod
    def up(self, bounds: Any) -> Numbers:
        """At least what sums and products of a few thousand non-negative bounds come to, if computed exactly."""

    @abstractmethod
    def upper(self, balls: Any) -> Numbers:
        """Upper bounds on Arb's balls."""

    @abstractmethod
    def larger(self, left: Any, right: Any) -> Numbers:
        """The larger of each two; not a number where either is none."""

    @abstractmethod
    def root(self, bounds: Any) -> Numbers:
        """An upper bound on each square root."""

    @abstractmethod
    def exp(self, numbers: Any) -> Numbers:
        """e to each number, right up to `exp_unit` of itself; 0 where that is too small for the system."""

    @abstractmethod
    def exp_above(self, bounds: Any) -> Numbers:
        """Upper bounds on e to bounds; infinite where they are too large for the system."""

    @abstractmethod
    def ceiling(self, numbers: Any) -> NDArray[np.float64]:
        """The nearest doubles that are not below; not a number where a number is none."""

    @abstractmethod
    def floor(self, numbers: Any) -> NDArray[np.float64]:
        """The nearest doubles that are not above."""

    def zeros(self, *shape: int) -> Numbers:
        """Exact zeros."""
        return self.exact(np.zeros(shape))

    def lost(self, sizes: Any, operations: int) -> Numbers | float:
        """What rounding adds to a sum of products whose magnitudes add up to `sizes`, after so many operations."""
        return 0.0 if self.unit == 0 else np.asarray(sizes * (1.01 * self.unit * operations))

    def power(self, bounds: Any, exponent: int) -> Numbers:
        """Upper bounds on powers of non-negative bounds, `exponent` at least 1."""
        found = bounds
        for _ in range(exponent - 1):
            found = found * bounds
        return self.up(found)
