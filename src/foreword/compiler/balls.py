"""Truncated polynomials in several variables with rigorous remainders, in ball arithmetic (Arb, through python-flint).

A `Model` stands, for each of a block of cells, for every function of s in [-1, 1]^p that differs by at most `rest`
from a polynomial of total degree below `order` whose coefficients lie in the given balls. Each operation gives a model
of the result: what is dropped goes into `rest`, and Arb rounds outward. A domain failure (a logarithm through 0)
makes the rest not a number, and no bound is ever met by one.

It shares nothing with the search's own arithmetic (`intervals.py`), by intention.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from flint import arb, ctx
from numpy.typing import NDArray

Balls = NDArray[np.object_]  # of arb

PRECISION = 128  # bits; two machine words, as fast as one

magnitude: Callable[[Any], Any] = np.frompyfunc(arb.abs_upper, 1, 1)
as_balls: Callable[[Any], Any] = np.frompyfunc(arb, 1, 1)


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


@dataclass(frozen=True)
class Space:
    """Polynomials in `parameters` variables of total degree below `order`; use `space_of`.

    `exponents` `(monomial, parameter)` are sorted by degree; `starts[d]` is the first monomial of degree d.
    """

    parameters: int
    order: int

    @cached_property
    def exponents(self) -> NDArray[np.int64]:
        """The monomials' exponents."""
        every = itertools.product(range(self.order), repeat=self.parameters)
        told = sorted((e for e in every if sum(e) < self.order), key=lambda e: (sum(e), e))
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

    def constant(self, values: Balls) -> Model:
        """Constants `(cell,)`."""
        coefficients = zeros(len(self.degrees), len(values))
        coefficients[0] = values
        return Model(self, coefficients, zeros(len(values)))

    def along(self, axis: int, series: Sequence[Balls], rest: Balls) -> Model:
        """A function of one variable: coefficients by degree, each `(cell,)`; too high a degree goes into the rest."""
        coefficients = zeros(len(self.degrees), len(rest))
        for values in series[self.order :]:
            rest = rest + magnitude(values)
        for degree, values in enumerate(series[: self.order]):
            exponent = [0] * self.parameters
            exponent[axis] = degree
            coefficients[self.position[tuple(exponent)]] = values
        return Model(self, coefficients, rest)


@cache
def space_of(parameters: int, order: int) -> Space:
    """The space, made once."""
    return Space(parameters, order)


@dataclass(frozen=True, eq=False)
class Model:
    """A block of enclosures: `coefficients` `(monomial, cell)`, `rest` `(cell,)`; nothing below degree `lowest`."""

    space: Space
    coefficients: Balls
    rest: Balls
    lowest: int = 0

    @cached_property
    def sizes(self) -> Balls:
        """Sum of the magnitudes of the coefficients of each degree `(degree, cell)`."""
        start, nothing = self.space.starts[self.lowest], zeros(self.lowest, len(self.rest))
        told = magnitude(self.coefficients[start:])
        sums = np.add.reduceat(told, self.space.starts[self.lowest : -1] - start, axis=0) if len(told) else told
        return np.concatenate([nothing, sums])

    @cached_property
    def size(self) -> Balls:
        """A bound on the polynomial part's magnitude `(cell,)`."""
        return np.asarray(self.sizes.sum(axis=0))

    def __add__(self, other: Model) -> Model:
        lowest = min(self.lowest, other.lowest)
        return Model(self.space, self.coefficients + other.coefficients, self.rest + other.rest, lowest)

    def __sub__(self, other: Model) -> Model:
        return self + -other

    def __neg__(self) -> Model:
        return Model(self.space, -self.coefficients, self.rest, self.lowest)

    def scaled(self, factor: Any) -> Model:
        """Times one ball, or one for each cell."""
        return Model(self.space, self.coefficients * factor, self.rest * magnitude(factor), self.lowest)

    def shifted(self, constant: Any) -> Model:
        """Plus one ball, or one for each cell."""
        coefficients = self.coefficients.copy()
        coefficients[0] = coefficients[0] + constant
        return Model(self.space, coefficients, self.rest)

    def __mul__(self, other: Model) -> Model:
        space, lowest = self.space, min(self.lowest + other.lowest, self.space.order)
        coefficients = zeros(*self.coefficients.shape)
        left, right, starts, product = space.pairs(self.lowest, other.lowest)
        if len(left):
            terms = self.coefficients[left] * other.coefficients[right]
            coefficients[product] = np.add.reduceat(terms, starts, axis=0)
        rest = self.size * other.rest + other.size * self.rest + self.rest * other.rest
        tails = np.cumsum(other.sizes[::-1], axis=0)  # tails[i]: degrees order - 1 - i and above
        for degree in range(max(1, self.lowest), space.order):
            rest = rest + self.sizes[degree] * tails[degree - 1]
        return Model(space, coefficients, rest, lowest)

    def range(self) -> tuple[Balls, Balls]:
        """A lower and an upper bound over each cell; even monomials lie in [0, 1], others in [-1, 1]."""
        centre, even = self.coefficients[0], self.coefficients[self.space.is_even]
        odd = ~self.space.is_even
        odd[0] = False
        swing = magnitude(self.coefficients[odd]).sum(axis=0) + self.rest
        above, below = _positive(even).sum(axis=0), _positive(-even).sum(axis=0)
        return centre - below - swing, centre + above + swing

    def absolute(self) -> Model:
        """|.|: exact where the sign is certain, otherwise a line with a sound rest.

        For |slope| <= 1 and t in [low, high] around 0: 0 <= |t| - slope t <= max((1 - slope) high, (1 + slope) |low|).
        """
        low, high = self.range()
        slopes, offsets = [], []
        for a, b in zip(low, high, strict=True):
            if a >= 0 or b <= 0:
                slopes.append(arb(1 if a >= 0 else -1))
                offsets.append(arb(0))
                continue
            ends = float(a), float(b)
            ratio = (ends[1] + ends[0]) / (ends[1] - ends[0]) if ends[0] < ends[1] else 0.0
            slope = arb(min(max(ratio, -1.0), 1.0)) if math.isfinite(ratio) else arb(0)
            slopes.append(slope)
            offsets.append(((1 - slope) * b.abs_upper()).max((1 + slope) * a.abs_upper()) / 2)
        line = self.scaled(np.array(slopes, dtype=object))
        offset = np.array(offsets, dtype=object)
        return Model(line.space, line.coefficients, line.rest + magnitude(offset)).shifted(offset)


def _positive(balls: Balls) -> Balls:
    return np.asarray(_positive_part(balls)).reshape(balls.shape)


_positive_part: Callable[[Any], Any] = np.frompyfunc(lambda ball: ball.max(arb(0)), 1, 1)


def zeros(*shape: int) -> Balls:
    """An array of exact zeros."""
    return np.full(shape, arb(0), dtype=object)
