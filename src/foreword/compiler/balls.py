"""Truncated polynomials in several variables with rigorous remainders, in ball arithmetic (Arb, through python-flint).

A `Model` stands, for each of a block of cells, for every function of s in [-1, 1]^p that differs by at most `rest`
from a polynomial of total degree below `order` whose coefficients lie in the given balls. Each operation gives a model
of the result: what is dropped goes into `rest`, and Arb rounds outward. A domain failure (a logarithm through 0)
makes the rest not a number, and no bound is ever met by one.

It shares nothing with the search's own arithmetic (`taylor.py`), by intention.
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
from flint import acb, arb, arb_series, ctx
from numpy.typing import NDArray

from foreword.compiler.expression import Node, walk
from foreword.errors import CertificateError

Balls = NDArray[np.object_]  # of arb

PRECISION = 128  # bits; two machine words, as fast as one
LARGEST_POWER = 4096

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
        coefficients = _zeros(len(self.degrees), len(values))
        coefficients[0] = values
        return Model(self, coefficients, _zeros(len(values)))

    def along(self, axis: int, series: Sequence[Balls], rest: Balls) -> Model:
        """A function of one variable: its coefficients by degree, each `(cell,)`; too high a degree goes into the rest."""
        coefficients = _zeros(len(self.degrees), len(rest))
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
        return np.asarray(np.add.reduceat(magnitude(self.coefficients), self.space.starts[:-1], axis=0))

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
        space, lowest = self.space, self.lowest + other.lowest
        coefficients = _zeros(*self.coefficients.shape)
        left, right, starts, product = space.pairs(self.lowest, other.lowest)
        if len(left):
            terms = self.coefficients[left] * other.coefficients[right]
            coefficients[product] = np.add.reduceat(terms, starts, axis=0)
        rest = self.size * other.rest + other.size * self.rest + self.rest * other.rest
        tails = np.cumsum(other.sizes[::-1], axis=0)  # tails[i]: degrees order - 1 - i and above
        for degree in range(max(1, self.lowest), space.order):
            rest = rest + self.sizes[degree] * tails[degree - 1]
        return Model(space, coefficients, rest, lowest)

    def power(self, exponent: int) -> Model:
        """An integer power by repeated squaring."""
        if exponent < 0:
            return apply("inverse", self).power(-exponent)
        result, square = None, self
        while exponent:
            if exponent & 1:
                result = square if result is None else result * square
            exponent >>= 1
            square = square * square if exponent else square
        return self.space.constant(_ones(len(self.rest))) if result is None else result

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


def apply(name: str, inner: Model) -> Model:
    """A function of one variable, by its Taylor series about each cell's middle with Lagrange's remainder.

    Where the series does not exist over the whole cell but the function does, a constant with its range as rest.
    """
    order, cells = inner.space.order, len(inner.rest)
    centre = inner.coefficients[0]
    step = Model(inner.space, np.concatenate([_zeros(1, cells), inner.coefficients[1:]]), inner.rest, 1)
    radius = magnitude(step.size + step.rest)
    whole = centre + radius * arb(0, 1)
    series = np.array([_series(name, ball, order) for ball in centre], dtype=object).T
    last = np.array([_last(name, ball, order) for ball in whole], dtype=object)
    result = inner.space.constant(series[order - 1])
    for degree in range(order - 2, -1, -1):
        result = (result * step).shifted(series[degree])
    result = Model(result.space, result.coefficients, result.rest + magnitude(last) * radius**order)
    return _or_constant(result, np.array([_series(name, ball, 1)[0] for ball in whole], dtype=object))


def _or_constant(result: Model, ranges: Balls) -> Model:
    """The model, but the range where that says more than the model."""
    finite = [size.is_finite() for size in result.size + result.rest]
    lost = [k for k, ball in enumerate(ranges) if ball.is_finite() and not (finite[k] and result.rest[k] <= ball.rad())]
    if not lost:
        return result
    coefficients, rest = result.coefficients.copy(), result.rest.copy()
    for cell in lost:
        coefficients[:, cell] = arb(0)
        coefficients[0, cell] = ranges[cell].mid()
        rest[cell] = arb(ranges[cell].rad())
    return Model(result.space, coefficients, rest)


def _series(name: str, ball: arb, length: int) -> list[arb]:
    """The first `length` Taylor coefficients at every point of the ball; NaN where there are none."""
    try:
        found = _OF_SERIES[name](arb_series([ball, 1], length)).coeffs()
    except ValueError:  # a quotient through 0
        found = [arb.nan()] * length
    return list(found[:length]) + [arb(0)] * (length - len(found))


def _last(name: str, ball: arb, degree: int) -> arb:
    """The Taylor coefficient of that degree at every point of the ball: a closed form, a recurrence, or Cauchy's bound.

    Where the derivative is analytic on a disc of radius R, |coefficient| <= max |derivative| / (degree R^(degree-1)).
    A square takes the disc's place, and the best of a few R is kept.
    """
    if name in _LAST:
        return _LAST[name](ball, degree)
    found = _series(name, ball, degree + 1)[degree].abs_upper()
    for radius in (arb(k) / 16 for k in (1, 2, 4, 8, 12, 16, 20)):
        square = acb(ball + radius * arb(0, 1), radius * arb(0, 1))
        bound = _steepness(name, square) / (degree * radius ** (degree - 1))
        found = bound if bound.is_finite() and not bound >= found else found
    return found


def _steepness(name: str, square: acb) -> arb:
    """A bound on the derivative's magnitude where it is analytic on the whole square; otherwise not finite."""
    match name:
        case "tan":
            return (1 / (square.cos() * square.cos())).abs_upper()
        case "tanh":
            return (1 / (square.cosh() * square.cosh())).abs_upper()
        case "arctan":
            return (1 / (1 + square * square)).abs_upper()
    inside = 1 - square * square  # arcsin, arccos: analytic while this stays off the negative axis
    return 1 / inside.abs_lower().sqrt() if inside.real > 0 else arb.nan()


def _exp_pair(series: arb_series) -> tuple[arb_series, arb_series]:
    return series.exp(), (-series).exp()


_OF_SERIES: dict[str, Callable[[arb_series], arb_series]] = {
    "exp": lambda s: s.exp(),
    "log": lambda s: s.log(),
    "sqrt": lambda s: s.sqrt(),
    "sin": lambda s: s.sin(),
    "cos": lambda s: s.cos(),
    "tan": lambda s: s.tan(),
    "sinh": lambda s: (_exp_pair(s)[0] - _exp_pair(s)[1]) / 2,
    "cosh": lambda s: (_exp_pair(s)[0] + _exp_pair(s)[1]) / 2,
    "tanh": lambda s: 1 - 2 / ((2 * s).exp() + 1),
    "arctan": lambda s: s.atan(),
    "arcsin": lambda s: s.asin(),
    "arccos": lambda s: s.acos(),
    "inverse": lambda s: 1 / s,
}
_LAST: dict[str, Callable[[arb, int], arb]] = {
    "exp": lambda x, n: x.exp() / arb(n).fac(),
    "sin": lambda x, n: (x + n * arb.pi() / 2).sin() / arb(n).fac(),
    "cos": lambda x, n: (x + n * arb.pi() / 2).cos() / arb(n).fac(),
    "sinh": lambda x, n: (x.cosh() if n % 2 else x.sinh()) / arb(n).fac(),
    "cosh": lambda x, n: (x.sinh() if n % 2 else x.cosh()) / arb(n).fac(),
    "log": lambda x, n: 1 / (n * x**n) if x > 0 else arb.nan(),
    "sqrt": lambda x, n: _half_choose(n) * x.sqrt() / x**n if x > 0 else arb.nan(),
    "inverse": lambda x, n: 1 / x ** (n + 1),
}


def _half_choose(n: int) -> arb:
    """The binomial coefficient (1/2 choose n)."""
    product = arb(1)
    for k in range(n):
        product = product * (1 - 2 * k) / (2 * (k + 1))
    return product


def enclose(outputs: Sequence[Node], columns: Sequence[Model]) -> list[Model]:
    """Models of an expression graph's outputs from models of its variables; CertificateError for a strange node."""

    def visit(node: Node, found: list[Model]) -> Model:
        space, cells = columns[0].space, len(columns[0].rest)
        match node.operation, found:
            case "variable", []:
                return columns[int(node.value or 0)]
            case "constant", []:
                return space.constant(np.full(cells, arb(float(node.value or 0.0)), dtype=object))
            case "pi", []:
                return space.constant(np.full(cells, arb.pi(), dtype=object))
            case "power", [inner] if abs(int(node.value or 0)) <= LARGEST_POWER:
                return inner.power(int(node.value or 0))
            case "absolute", [inner]:
                return inner.absolute()
            case "negative", [inner]:
                return -inner
            case name, [inner] if name in _OF_SERIES:
                return apply(name, inner)
            case name, [left, right] if name in _OF_PAIRS:
                return _OF_PAIRS[name](left, right)
        raise CertificateError(
            f"The checker does not know the operation {node.operation!r} with {len(found)} arguments.",
            expected=", ".join(sorted(_OF_SERIES | _OF_PAIRS)),
            found=f"{node.operation} {node.value!r}",
            fix="Write the target with these operations.",
        )

    try:
        models = walk(outputs, visit)
    except IndexError as error:
        raise CertificateError(
            "The expression uses a variable that the domain does not have.",
            expected=f"{len(columns)} variables",
            found="more",
            fix="Use the domain's coordinates.",
        ) from error
    return [models[id(node)] for node in outputs]


_OF_PAIRS: dict[str, Callable[[Model, Model], Model]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a * apply("inverse", b),
    "maximum": lambda a, b: (a + b + (a - b).absolute()).scaled(arb(0.5)),
    "minimum": lambda a, b: (a + b - (a - b).absolute()).scaled(arb(0.5)),
}


def _positive(balls: Balls) -> Balls:
    return np.asarray(_positive_part(balls)).reshape(balls.shape)


_positive_part: Callable[[Any], Any] = np.frompyfunc(lambda ball: ball.max(arb(0)), 1, 1)


def _zeros(*shape: int) -> Balls:
    return np.full(shape, arb(0), dtype=object)


def _ones(cells: int) -> Balls:
    return np.full(cells, arb(1), dtype=object)
