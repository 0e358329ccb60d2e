"""Truncated polynomials in several variables with rigorous remainders, in either of the checker's number systems.

A `Model` stands, for each of a block of cells, for every function of s in [-1, 1]^p that differs by at most `rest`
from a polynomial of total degree below `order` with the given coefficients. Each operation gives a model of the
result: what is dropped goes into `rest`, and so does what rounding may have changed. A domain failure (a logarithm
through 0) makes the rest not a number, and no bound is ever met by one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.balls import BALLS
from foreword.compiler.numbers import Numbers, System


@dataclass(frozen=True)
class Space:
    """Polynomials in `parameters` variables of total degree below `order`, in `system`'s numbers; use `space_of`.

    `exponents` `(monomial, parameter)` are sorted by degree; `starts[d]` is the first monomial of degree d.
    """

    parameters: int
    order: int
    system: System = BALLS

    @cached_property
    def exponents(self) -> NDArray[np.int64]:
        """The monomials' exponents."""
        axes = range(self.parameters)
        chosen = (itertools.combinations_with_replacement(axes, degree) for degree in range(self.order))
        every = (tuple(factors.count(axis) for axis in axes) for factors in itertools.chain.from_iterable(chosen))
        told = sorted(every, key=lambda e: (sum(e), e))
        return np.array(told, dtype=np.int64).reshape(-1, self.parameters)

    @cached_property
    def degrees(self) -> NDArray[np.int64]:
        """Total degree of each monomial."""
        return np.asarray(self.exponents.sum(axis=1))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """First monomial of each degree, and the number of monomials at the end."""
        return np.searchsorted(self.degrees, np.arange(self.order + 1))

    @cached_property
    def is_even(self) -> NDArray[np.bool_]:
        """Whether the monomial is a product of squares, other than 1: it lies in [0, 1]."""
        return np.asarray((self.exponents % 2 == 0).all(axis=1) & (self.degrees > 0))

    @cached_property
    def position(self) -> dict[tuple[int, ...], int]:
        """Where each exponent stands."""
        return {tuple(exponent): index for index, exponent in enumerate(self.exponents.tolist())}

    @cached_property
    def ancestors(self) -> list[tuple[int, int, int]]:
        """For each monomial but 1: a variable in it, where the monomial divided by that stands, its exponent there."""
        found = []
        for exponent in self.exponents[1:].tolist():
            axis = next(i for i, power in enumerate(exponent) if power)
            before = exponent.copy()
            before[axis] -= 1
            found.append((axis, self.position[tuple(before)], exponent[axis]))
        return found

    @cache  # noqa: B019 - spaces are few and are kept by `space_of`
    def pairs(self, left: int, right: int) -> tuple[NDArray[np.int64], ...]:
        """Factors' monomials of at least these degrees whose product stays: left, right, groups' starts, products."""
        found = [
            (self.position[tuple((a + b).tolist())], i, j)
            for i, a in enumerate(self.exponents)
            for j, b in enumerate(self.exponents)
            if self.degrees[i] >= left and self.degrees[j] >= right and self.degrees[i] + self.degrees[j] < self.order
        ]
        table = np.array(sorted(found), dtype=np.int64).reshape(-1, 3)
        starts = np.flatnonzero(np.diff(table[:, 0], prepend=-1))
        return table[:, 1], table[:, 2], starts, table[starts, 0]

    def constant(self, values: Numbers, rest: Numbers | None = None) -> Model:
        """Constants `(cell,)`, each within `rest` of its value."""
        coefficients = self.system.zeros(len(self.degrees), len(values))
        coefficients[0] = values
        return Model(self, coefficients, self.system.zeros(len(values)) if rest is None else rest)

    def along(self, axis: int, series: Sequence[Numbers], rest: Numbers) -> Model:
        """A function of one variable: coefficients by degree, each `(cell,)`; too high a degree goes into the rest."""
        coefficients = self.system.zeros(len(self.degrees), len(rest))
        for values in series[self.order :]:
            rest = self.system.up(rest + self.system.magnitude(values))
        for degree, values in enumerate(series[: self.order]):
            exponent = [0] * self.parameters
            exponent[axis] = degree
            coefficients[self.position[tuple(exponent)]] = values
        return Model(self, coefficients, rest)


@cache
def space_of(parameters: int, order: int, system: System = BALLS) -> Space:
    """The space, made once."""
    return Space(parameters, order, system)


@dataclass(frozen=True, eq=False)
class Model:
    """A block of enclosures: `coefficients` `(monomial, cell)`, `rest` `(cell,)`; nothing below degree `lowest`."""

    space: Space
    coefficients: Numbers
    rest: Numbers
    lowest: int = 0

    @property
    def system(self) -> System:
        """What the coefficients are."""
        return self.space.system

    @cached_property
    def sizes(self) -> Numbers:
        """Bounds on the sum of the magnitudes of the coefficients of each degree `(degree, cell)`."""
        start, nothing = self.space.starts[self.lowest], self.system.zeros(self.lowest, len(self.rest))
        told = self.system.magnitude(self.coefficients[start:])
        if len(told):
            told = self.system.up(np.add.reduceat(told, self.space.starts[self.lowest : -1] - start, axis=0))
        return np.concatenate([nothing, told])

    @cached_property
    def size(self) -> Numbers:
        """A bound on the polynomial part's magnitude `(cell,)`."""
        return self.system.up(self.sizes.sum(axis=0))

    @cached_property
    def tails(self) -> Numbers:
        """`tails[i]`: bounds on the sizes of degree order - 1 - i and above together."""
        return self.system.up(np.cumsum(self.sizes[::-1], axis=0))

    @property
    def largest(self) -> Numbers:
        """A bound on the function's magnitude `(cell,)`."""
        return self.system.up(self.size + self.rest)

    def __add__(self, other: Model) -> Model:
        return self._rounded(
            self.coefficients + other.coefficients, self.rest + other.rest, min(self.lowest, other.lowest)
        )

    def __sub__(self, other: Model) -> Model:
        return self + -other

    def __neg__(self) -> Model:
        return Model(self.space, -self.coefficients, self.rest, self.lowest)

    def scaled(self, factor: Any) -> Model:
        """Times one number, or one for each cell: doubles, which are taken as exact, or Arb's balls."""
        told, error = self._numbers(factor)
        rest = self.rest * (self.system.magnitude(told) + error) + self.size * error
        return self._rounded(self.coefficients * told, rest, self.lowest)

    def shifted(self, constant: Any) -> Model:
        """Plus one number, or one for each cell, as for `scaled`."""
        told, error = self._numbers(constant)
        coefficients = self.coefficients.copy()
        coefficients[0] = coefficients[0] + told
        lost = self.system.lost(self.system.magnitude(coefficients[0]), 1)
        return Model(self.space, coefficients, self.system.up(self.rest + error + lost))

    def widened(self, rest: Numbers) -> Model:
        """The same with more rest `(cell,)`."""
        return Model(self.space, self.coefficients, self.system.up(self.rest + rest), self.lowest)

    def without_constant(self) -> Model:
        """Less its constant coefficient, exactly."""
        coefficients = self.coefficients.copy()
        coefficients[0] = self.system.zeros(len(self.rest))
        return Model(self.space, coefficients, self.rest, max(self.lowest, 1))

    def _numbers(self, told: Any) -> tuple[Numbers, Any]:
        told = np.asarray(told)
        return self.system.split(told) if told.dtype == object else (self.system.exact(told), 0.0)

    def _rounded(self, coefficients: Numbers, rest: Numbers, lowest: int) -> Model:
        """The model, with what one rounding of each coefficient may have changed in its rest."""
        if self.system.unit:
            rest = rest + self.system.lost(np.abs(coefficients).sum(axis=0), 1)
        return Model(self.space, coefficients, self.system.up(rest), lowest)

    def __mul__(self, other: Model) -> Model:
        space, lowest = self.space, min(self.lowest + other.lowest, self.space.order)
        coefficients = self.system.zeros(*self.coefficients.shape)
        left, right, starts, product = space.pairs(self.lowest, other.lowest)
        rest = self.size * other.rest + other.size * self.rest + self.rest * other.rest
        if len(left):
            terms = self.coefficients[left] * other.coefficients[right]
            coefficients[product] = np.add.reduceat(terms, starts, axis=0)
            longest = int(np.diff(starts, append=len(left)).max())
            rest = rest + self.system.lost(self.size * other.size, longest)
        for degree in range(max(1, self.lowest), space.order):
            rest = rest + self.sizes[degree] * other.tails[degree - 1]
        return Model(space, coefficients, self.system.up(rest), lowest)

    def range(self) -> tuple[Numbers, Numbers]:
        """A lower and an upper bound over each cell; even monomials lie in [0, 1], others in [-1, 1]."""
        system, centre, even = self.system, self.coefficients[0], self.coefficients[self.space.is_even]
        odd = ~self.space.is_even
        odd[0] = False
        swing = system.magnitude(self.coefficients[odd]).sum(axis=0) + self.rest
        nothing = system.zeros(*even.shape)
        above = system.up(swing + system.larger(even, nothing).sum(axis=0))
        below = system.up(swing + system.larger(-even, nothing).sum(axis=0))
        size = system.magnitude(centre)
        low = centre - system.up(below + system.lost(size + below, 2))
        return low, centre + system.up(above + system.lost(size + above, 2))

    def absolute(self) -> Model:
        """|.|: exact where the sign is certain, otherwise a line with a sound rest.

        For |slope| <= 1 and t in [low, high] around 0: 0 <= |t| - slope t <= max((1 - slope) high, (1 + slope) |low|).
        """
        low, high = self.range()
        ends = self.system.floor(low), self.system.ceiling(high)
        width = ends[1] - ends[0]
        ratio = np.divide(ends[1] + ends[0], width, out=np.zeros_like(width), where=width > 0)
        slope = np.clip(np.nan_to_num(ratio, nan=0.0), -1.0, 1.0)
        slope = np.where(ends[0] >= 0, 1.0, np.where(ends[1] <= 0, -1.0, slope))
        falls, rises = 1 - self.system.exact(slope), 1 + self.system.exact(slope)
        gap = self.system.larger(falls * self.system.magnitude(high), rises * self.system.magnitude(low))
        offset = self.system.up(gap / 2)
        is_certain = (ends[0] >= 0) | (ends[1] <= 0)
        offset = np.where(is_certain, self.system.zeros(len(offset)), offset)
        line = self.scaled(slope).shifted(offset)
        return Model(line.space, line.coefficients, self.system.up(line.rest + offset))
