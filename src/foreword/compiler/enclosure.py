"""Upper bounds on |f - g| over blocks of cells, in ball arithmetic: g a softmax head (statement C.1).

With q(s) = q(0) + h(s) the query over a cell, w_k the weights at its middle and z_k = <u_k - shift, h>,

    g - v = sum_k w_k (v_k - v) e^(z_k) / sum_k w_k e^(z_k),

and e^(z_k) = sum_{|a| < order} (u_k - shift)^a h^a / a! + at most |z_k|^order / order! e^|z_k|. So the head needs its
moments sum_k w_k (u_k - shift)^a v_k only, one product of matrices for a block. The error times the denominator is one
polynomial: what f and g have in common cancels in its coefficients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from flint import arb, arb_mat

from foreword.compiler.arrays import Floats
from foreword.compiler.balls import Balls, Model, Space, as_balls, magnitude, space_of
from foreword.compiler.expression import Node
from foreword.compiler.functions import apply, enclose
from foreword.compiler.head import Head


@dataclass(frozen=True)
class Bounds:
    """Of a block: `error` `(cell,)` bounds |f - g| from above over a cell, largest output; `least` from below at its
    middle; `swing` `(cell, parameter)` tells where to halve.
    """

    error: Balls
    least: Balls
    swing: Floats


@dataclass(frozen=True, eq=False)
class Problem:
    """f and g over a box: a head, the nodes of its query coordinates, f, and the box's place in space.

    `wanted` gives models of f's outputs from models of the columns. `is_sphere` tells that parameters are angles;
    `frame` is the cover's, or None.
    """

    head: Head
    queries: Sequence[Node]
    wanted: Callable[[Sequence[Model]], list[Model]]
    is_sphere: bool
    frame: Floats | None = None

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

    def points(self, space: Space, lower: Floats, upper: Floats) -> list[Model]:
        """Models of the points' columns over cells `(cell, parameter)`."""
        low, high = as_balls(lower.T), as_balls(upper.T)
        centres, halves = (low + high) / 2, (high - low) / 2
        if not self.is_sphere:
            nothing = halves[0] * 0
            return [space.along(i, [c, h], nothing) for i, (c, h) in enumerate(zip(centres, halves, strict=True))]
        columns, radius = [], space.constant(halves[0] * 0 + 1)
        for axis, (centre, half) in enumerate(zip(centres, halves, strict=True)):
            sine, cosine = _sine_and_cosine(space, axis, centre, half)
            columns.append(radius * sine if axis else sine)
            radius = radius * cosine if axis else cosine
        columns.append(radius)
        return columns if self.rotation is None else [_combined(row, columns) for row in self.rotation]

    def bounds(self, lower: Floats, upper: Floats, order: int) -> Bounds:
        """Bounds over cells between `lower` and `upper` `(cell, parameter)`, near each other for the sake of cost.

        `order` 1 would lose slopes; it is taken as 2.
        """
        with np.errstate(all="ignore"):  # float64 gives hints only here
            return self._bounds(lower, upper, max(order, 2))

    def _bounds(self, lower: Floats, upper: Floats, order: int) -> Bounds:
        space = space_of(lower.shape[1], order)
        columns = self.points(space, lower, upper)
        wanted = self.wanted(columns)
        numerators, denominator, guesses = _moments(self.head, enclose(self.queries, columns))
        smallest = denominator.range()[0]
        error, least, swing = _nothing(len(lower)), _nothing(len(lower)), np.zeros(lower.shape)
        for output, model in enumerate(wanted):
            difference = model.shifted(-guesses[output]) * denominator - numerators[output]
            low, high = difference.range()
            above = np.array([a.abs_upper().max(b.abs_upper()) for a, b in zip(low, high, strict=True)], dtype=object)
            ratio = [a / b if b > 0 else arb.nan() for a, b in zip(above, smallest, strict=True)]
            error = np.array([e.max(r) for e, r in zip(error, ratio, strict=True)], dtype=object)
            least = np.array(
                [e.max(r) for e, r in zip(least, _at_the_middle(difference, denominator), strict=True)], dtype=object
            )
            swing += _swing(difference)
        return Bounds(error, least, swing)


def _at_the_middle(difference: Model, denominator: Model) -> list[arb]:
    """Lower bounds on |difference / denominator| at s = 0."""
    above = [
        arb(ball.abs_lower()) - rest for ball, rest in zip(difference.coefficients[0], difference.rest, strict=True)
    ]
    below = denominator.coefficients[0] + denominator.rest
    return [a.lower() / b.upper() if a > 0 and b > 0 else arb(0) for a, b in zip(above, below, strict=True)]


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
    weights = np.asarray(_exp(scores - highest[:, None]))
    return np.asarray(_product(weights, as_balls(head.values)) / weights.sum(axis=1)[:, None])


def _swing(difference: Model) -> Floats:
    """How much each parameter contributes to the bound `(cell, parameter)`: a heuristic for where to halve."""
    sizes = np.nan_to_num(magnitude(difference.coefficients).astype(np.float64), nan=0.0, posinf=1e200)
    return np.asarray(sizes.T @ difference.space.exponents.astype(np.float64))


def _moments(head: Head, queries: Sequence[Model]) -> tuple[list[Model], Model, list[Balls]]:
    """For each output sum_k w_k (v_k - v) e^(z_k); sum_k w_k e^(z_k); for each output v, a double near g's middle."""
    space, cells = queries[0].space, len(queries[0].rest)
    middles = np.array([model.coefficients[0] for model in queries]).astype(np.float64).T
    shift = head.weights(middles).mean(axis=0) @ head.keys  # any doubles would do: a common factor cancels
    ambient = space_of(len(queries), space.order)
    keys = as_balls(head.keys) - as_balls(shift)
    weights, centring = _weights(head, keys, queries, middles)
    values = as_balls(head.values)
    features = np.concatenate([_monomials(keys, ambient)] * (1 + values.shape[1]), axis=1)
    for output in range(values.shape[1]):
        part = slice((1 + output) * len(ambient.degrees), (2 + output) * len(ambient.degrees))
        features[:, part] = features[:, part] * values[:, output : output + 1]
    # (cell, output + 1, monomial)
    moments = _product(weights, features).reshape(cells, 1 + values.shape[1], -1)
    steps = [model.shifted(-model.coefficients[0]) for model in queries]
    steps = [Model(step.space, step.coefficients, step.rest, 1) for step in steps]
    tails = weights * _tails(keys, steps).T  # (cell, position)
    powers = _powers(ambient, steps)
    denominator = _combined_powers(moments[:, 0], powers, tails.sum(axis=1))
    factor = apply("exp", -_combined(centring.T, steps))
    numerators, guesses = [], []
    for output in range(values.shape[1]):
        guess = as_balls((moments[:, 1 + output, 0] / moments[:, 0, 0]).astype(np.float64))
        far = magnitude(values[:, output][None] - guess[:, None])
        told = moments[:, 1 + output] - guess[:, None] * moments[:, 0]
        numerators.append(_combined_powers(told, powers, (tails * far).sum(axis=1)) * factor)
        guesses.append(guess)
    return numerators, denominator * factor, guesses


def _weights(head: Head, keys: Balls, queries: Sequence[Model], middles: Floats) -> tuple[Balls, Balls]:
    """Weights `(cell, position)` at the cells' middles up to a factor for each cell, and what recentres the keys there.

    Without recentring `(cell, q)` the denominator would not be near 1 over the whole of a cell.
    """
    near = head.weights(middles)
    scores = _product(np.array([model.coefficients[0] for model in queries], dtype=object).T, keys.T)
    scores = scores + as_balls(head.biases)
    highest = scores.astype(np.float64).max(axis=1)
    weights = np.asarray(_exp(scores - as_balls(highest)[:, None]))
    weights = weights / weights.sum(axis=1)[:, None]
    centring = near @ keys.astype(np.float64)
    return weights, as_balls(centring)


def _tails(keys: Balls, steps: Sequence[Model]) -> Balls:
    """Bounds `(position, cell)` on what e^(z_k) has beyond the monomials below `order`."""
    space, cells, positions = steps[0].space, len(steps[0].rest), len(keys)
    slopes = np.array([step.coefficients[space.starts[1] : space.starts[2]] for step in steps], dtype=object)
    along = magnitude(_product(keys, slopes.reshape(len(steps), -1))).reshape(positions, -1, cells).sum(axis=1)
    bent = np.array([step.sizes[2:].sum(axis=0) + step.rest for step in steps], dtype=object)
    largest = magnitude(along + _product(magnitude(keys), bent))
    return np.asarray(largest**space.order * _exp(largest) / arb(space.order).fac())


def _monomials(vectors: Balls, space: Space) -> Balls:
    """`vectors` `(row, coordinate)` to the powers a, over a!: `(row, monomial)`."""
    found = np.full((len(vectors), len(space.degrees)), arb(1), dtype=object)
    for index, (axis, before, count) in enumerate(_ancestors(space), start=1):
        found[:, index] = found[:, before] * (vectors[:, axis] / count)
    return found


def _powers(space: Space, steps: Sequence[Model]) -> list[Model]:
    """h^a for every monomial a but the first."""
    found: list[Model] = []
    for axis, before, _ in _ancestors(space):
        found.append(found[before - 1] * steps[axis] if before else steps[axis])
    return found


def _ancestors(space: Space) -> list[tuple[int, int, int]]:
    """For each monomial but 1: a variable in it, where the monomial divided by that stands, and its exponent there."""
    found = []
    for exponent in space.exponents[1:].tolist():
        axis = next(i for i, power in enumerate(exponent) if power)
        before = exponent.copy()
        before[axis] -= 1
        found.append((axis, space.position[tuple(before)], exponent[axis]))
    return found


def _combined_powers(moments: Balls, powers: Sequence[Model], rest: Balls) -> Model:
    """sum_a moments[:, a] h^a, `moments` `(cell, monomial)`, with `rest` `(cell,)` beside."""
    space = powers[0].space
    coefficients = np.full(powers[0].coefficients.shape, arb(0), dtype=object)
    coefficients[0] = moments[:, 0]
    for index, power in enumerate(powers, start=1):
        start = space.starts[power.lowest]
        coefficients[start:] = coefficients[start:] + power.coefficients[start:] * moments[:, index]
        rest = rest + power.rest * magnitude(moments[:, index])
    return Model(space, coefficients, rest)


def _combined(factors: Sequence[Balls] | Balls, models: Sequence[Model]) -> Model:
    total = models[0].scaled(factors[0])
    for factor, model in zip(factors[1:], models[1:], strict=True):
        total = total + model.scaled(factor)
    return total


def _sine_and_cosine(space: Space, axis: int, centre: Balls, half: Balls) -> tuple[Model, Model]:
    """Of centre + half s along one axis; the terms left out are at most half^order / order!."""
    pairs = np.array([ball.sin_cos() for ball in centre], dtype=object).T
    sine, cosine = [], []
    step = half * 0 + 1
    for degree in range(space.order):
        sign = -1 if degree % 4 >= 2 else 1
        sine.append(pairs[degree % 2] * step * sign)
        cosine.append(pairs[(degree + 1) % 2] * step * (-1 if degree % 4 in (1, 2) else 1))
        step = step * half / (degree + 1)
    return space.along(axis, sine, magnitude(step)), space.along(axis, cosine, magnitude(step))


def _product(left: Balls, right: Balls) -> Balls:
    """The matrix product, by Arb."""
    product = arb_mat(left.tolist()) * arb_mat(right.tolist())
    return np.array(product.entries(), dtype=object).reshape(left.shape[0], right.shape[1])


_exp = np.frompyfunc(arb.exp, 1, 1)


def _nothing(cells: int) -> Balls:
    return np.full(cells, arb(0), dtype=object)
