"""Upper bounds on |f - g| over blocks of cells: g a softmax head (statement C.1), in either of the number systems.

The head gives numerators (g - v) D and a denominator D as polynomials with rests (`moments.py`). The error times D is
one polynomial, (f - v) D less the numerator: what f and g have in common cancels in its coefficients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from flint import arb, arb_mat

from foreword.compiler.arrays import Floats
from foreword.compiler.balls import BALLS, Balls, as_balls, magnitude
from foreword.compiler.expression import Node
from foreword.compiler.functions import enclose
from foreword.compiler.head import Head
from foreword.compiler.moments import combined, directions, head_models
from foreword.compiler.numbers import System
from foreword.compiler.spans import Sides, sides_of
from foreword.compiler.truncated import Model, Space, space_of


@dataclass(frozen=True)
class Bounds:
    """Of a block: `error` `(cell,)` bounds |f - g| from above over a cell, largest output; `least` from below at its
    middle; `swing` `(cell, parameter)` tells where to halve.
    """

    error: Floats
    least: Floats
    swing: Floats


@dataclass(frozen=True, eq=False)
class Problem:
    """f and g over a box: a head, the nodes of its query coordinates, f, and the box's place in space.

    `wanted` gives models of f's outputs from models of the columns and their sides. `is_sphere`: parameters are angles;
    `frame` is the cover's, or None. `axes` are the parameters that f and g depend on; None for all.
    """

    head: Head
    queries: Sequence[Node]
    wanted: Callable[[Sequence[Model], Callable[[], Sides]], list[Model]]
    is_sphere: bool
    frame: Floats | None = None
    axes: tuple[int, ...] | None = None

    @cached_property
    def rotation(self) -> Balls | None:
        """The frame made exactly orthogonal: Gram and Schmidt, column by column, in balls."""
        if self.frame is None:
            return None
        columns: list[Balls] = []
        for column in as_balls(self.frame.T):
            vector = column
            for found in columns:
                vector = vector - found * (found * vector).sum()
            columns.append(vector / (vector * vector).sum().sqrt())
        return np.array(columns, dtype=object).T

    @cached_property
    def directions(self) -> Floats | None:
        """Few directions along which the keys lie; None when all count."""
        return directions(self.head)

    def basis(self, system: System) -> Floats | None:
        """The directions that the head is expanded along, in one system; None for its queries' own coordinates."""
        return self.directions if system.unit else None

    def points(self, space: Space, lower: Floats, upper: Floats) -> list[Model]:
        """Models of the points' columns over cells `(cell, parameter)`, or a little more than these."""
        centres = lower + (upper - lower) / 2
        halves = np.maximum(_difference_above(upper, centres), _difference_above(centres, lower))
        system, nothing = space.system, space.system.zeros(len(centres))
        places = {axis: place for place, axis in enumerate(self._axes(lower))}
        if not self.is_sphere:
            pairs = zip(system.exact(centres.T), system.exact(halves.T), strict=True)
            return [
                space.along(places[axis], [centre, half], nothing) if axis in places else space.constant(centre)
                for axis, (centre, half) in enumerate(pairs)
            ]
        columns, radius = [], space.constant(system.exact(np.ones(len(centres))))
        for axis, (centre, half) in enumerate(zip(centres.T, halves.T, strict=True)):
            if axis in places:
                sine, cosine = _sine_and_cosine(space, places[axis], centre, half)
            else:  # of what nothing depends on, any point does
                sine, cosine = space.constant(nothing), space.constant(system.exact(np.ones(len(centres))))
            columns.append(radius * sine if axis else sine)
            radius = radius * cosine if axis else cosine
        columns.append(radius)
        return columns if self.rotation is None else [combined(row, columns) for row in self.rotation]

    def bounds(self, lower: Floats, upper: Floats, order: int, system: System = BALLS) -> Bounds:
        """Bounds over cells between `lower` and `upper` `(cell, parameter)`.

        `order` 1 would lose slopes; it is taken as 2.
        """
        with np.errstate(all="ignore"):  # what is not finite passes no comparison
            return self._bounds(lower, upper, space_of(len(self._axes(lower)), max(order, 2), system))

    def _axes(self, lower: Floats) -> tuple[int, ...]:
        return tuple(range(lower.shape[1])) if self.axes is None else self.axes

    def _bounds(self, lower: Floats, upper: Floats, space: Space) -> Bounds:
        system = space.system
        columns = self.points(space, lower, upper)
        wanted = self.wanted(columns, partial(self._sides, columns, lower, upper))
        numerators, denominator, guesses = head_models(self.head, enclose(self.queries, columns), self.basis(system))
        smallest = system.floor(denominator.range()[0])
        error, least, swing = np.zeros(len(lower)), np.zeros(len(lower)), np.zeros(lower.shape)
        axes = list(self._axes(lower))
        for output, model in enumerate(wanted):
            difference = model.shifted(-guesses[:, output]) * denominator - numerators[output]
            low, high = difference.range()
            above = system.ceiling(system.larger(system.magnitude(low), system.magnitude(high)))
            ratio = np.where(smallest > 0, np.nextafter(above / smallest, np.inf), np.nan)
            error = np.maximum(error, ratio)
            least = np.maximum(least, _at_the_middle(difference, denominator))
            swing[:, axes] += _swing(difference) + self._swing_of_angles(difference, (upper - lower)[:, axes])
        return Bounds(error, least, swing)

    def _sides(self, columns: Sequence[Model], lower: Floats, upper: Floats) -> Sides:
        """Between what the columns lie over the cells: on a sphere from -1 to 1, whatever rounding adds to models."""
        if self.is_sphere:
            return sides_of(columns, -1.0, 1.0)
        return [(as_balls(low), as_balls(high)) for low, high in zip(lower.T, upper.T, strict=True)]

    def _swing_of_angles(self, difference: Model, width: Floats) -> Floats:
        """How much of the rest is what the series of sines and cosines leave out, by angle: a heuristic, as `_swing`.

        It cancels in no sum of columns: along a wide angle that no coefficient depends on, it alone asks for halving.
        """
        if not self.is_sphere:
            return np.zeros_like(width)
        order, head = difference.space.order, self.head
        left_out = (width / 2) ** order / math.factorial(order)
        steep = (1.0 + np.linalg.norm(head.keys, axis=1).max()) * max(float(np.ptp(head.values)), 1e-300)
        rest = np.nan_to_num(difference.system.ceiling(difference.rest), nan=1e200, posinf=1e200)
        return np.asarray(np.minimum(steep * left_out, rest[:, None]))


def _difference_above(left: Floats, right: Floats) -> Floats:
    """left - right where that is a double, and the next one above where it is rounded (Knuth's TwoSum tells)."""
    difference = left - right
    taken = difference - left
    is_exact = (left - (difference - taken)) + (-right - taken) == 0
    return np.where(is_exact, difference, np.nextafter(difference, np.inf))


def _at_the_middle(difference: Model, denominator: Model) -> Floats:
    """Lower bounds on |difference / denominator| at s = 0; 0 where there is none."""
    system = difference.system
    value, rest = difference.coefficients[0], difference.rest
    above = np.maximum(system.floor(value) - system.ceiling(rest), -system.ceiling(value) - system.ceiling(rest))
    below = system.ceiling(denominator.coefficients[0]) + system.ceiling(denominator.rest)
    found = (above / below) * (1 - 2.0**-50)  # four roundings
    return np.where((above > 0) & (below > 0) & np.isfinite(found), found, 0.0)


def exact_outputs(nodes: Sequence[Node], points: Floats) -> Balls:
    """Balls around an expression graph's outputs `(batch, output)` at `points` `(batch, column)`."""
    space = space_of(1, 1)
    columns = [space.constant(column) for column in as_balls(points.T)]
    models = enclose(nodes, columns)
    return np.array([model.coefficients[0] + model.rest * arb(0, 1) for model in models], dtype=object).T


def exact_head(head: Head, queries: Balls) -> Balls:
    """Balls around the head's outputs `(batch, output)` at `queries` `(batch, q)`."""
    scores = _product(queries, as_balls(head.keys.T)) + as_balls(head.biases)
    highest = as_balls(scores.astype(np.float64).max(axis=1))
    weights = BALLS.exp(scores - highest[:, None])
    return np.asarray(_product(weights, as_balls(head.values)) / weights.sum(axis=1)[:, None])


def _swing(difference: Model) -> Floats:
    """How much each parameter contributes to the bound `(cell, parameter)`: a heuristic for where to halve."""
    sizes = difference.system.ceiling(difference.system.magnitude(difference.coefficients))
    sizes = np.nan_to_num(sizes, nan=0.0, posinf=1e200)
    return np.asarray(sizes.T @ difference.space.exponents.astype(np.float64))


def _sine_and_cosine(space: Space, axis: int, centre: Floats, half: Floats) -> tuple[Model, Model]:
    """Of centre + half s along one axis, by Arb; the terms left out are at most half^order / order!."""
    pairs, where = np.unique(np.stack([centre, half], axis=1), axis=0, return_inverse=True)
    centres, halves = as_balls(pairs.T)
    known = np.array([ball.sin_cos() for ball in centres], dtype=object).T
    series: list[list[Balls]] = [[], []]
    step = halves * 0 + 1
    for degree in range(space.order):
        series[0].append(known[degree % 2] * step * (-1 if degree % 4 >= 2 else 1))
        series[1].append(known[(degree + 1) % 2] * step * (-1 if degree % 4 in (1, 2) else 1))
        step = step * halves / (degree + 1)
    where = where.reshape(-1)
    left_out = space.system.upper(magnitude(step))
    models = []
    for told in series:
        coefficients, errors = space.system.split(np.array(told, dtype=object))
        rest = space.system.up(errors.sum(axis=0) + left_out)
        models.append(space.along(axis, [terms[where] for terms in coefficients], rest[where]))
    return models[0], models[1]


def _product(left: Balls, right: Balls) -> Balls:
    """The matrix product, by Arb."""
    product = arb_mat(left.tolist()) * arb_mat(right.tolist())
    return np.array(product.entries(), dtype=object).reshape(left.shape[0], right.shape[1])
