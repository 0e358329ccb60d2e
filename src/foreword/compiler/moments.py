"""A softmax head over blocks of cells, as polynomials with rests, in either of the checker's number systems.

With q(s) = q(0) + h(s) the query over a cell, w_k the weights at its middle, u any double vector, z_k = <u_k - u, h>,

    g - v = sum_k w_k (v_k - v) e^(z_k) / sum_k w_k e^(z_k)                            (statement C.1),

and e^(z_k) = sum_{|a| < order} (u_k - u)^a h^a / a! + at most |z_k|^order / order! e^|z_k|. So the head needs its
moments sum_k w_k (u_k - u)^a (v_k - v) only. Keys that lie along few directions, u_k - u = B'a_k up to b_k, have
moments in these: z_k = <a_k, Bh> up to <b_k, h>.

Rounding, in doubles: a sum over k of products of at most 3 order + 3 rounded factors is wrong by less than
(N + 4 order + 8) u times sum_k w_k |v_k - v| |a_k^a| / a!, and sum_a |a_k^a (Bh)^a| / a! <= e^(<|a_k|, |Bh|>).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from flint import arb

from foreword.compiler.arrays import Floats
from foreword.compiler.head import Head
from foreword.compiler.numbers import Numbers
from foreword.compiler.truncated import Model, Space, space_of

NEGLIGIBLE = -45.0  # e to this is far below the roundoff of doubles
UNDERFLOW = 1e-290  # what products too small for doubles may add up to, times a bound on what they are multiplied by
ALONG = 1e-13  # how far keys may be beside a few directions, relative to the longest: rounding


def head_models(head: Head, queries: Sequence[Model], basis: Floats | None = None) -> tuple[list[Model], Model, Floats]:
    """For each output sum_k w_k (v_k - v) e^(z_k); sum_k w_k e^(z_k); for each output v, `(cell, output)`.

    u and v are doubles near the keys' mean and g's value at the middle: any would do. `basis` is that of `directions`.
    """
    space = queries[0].space
    system, steps = space.system, [query.without_constant() for query in queries]
    middles = np.array([query.coefficients[0] for query in queries]).T  # (cell, q)
    hints = head.weights(middles.astype(np.float64))
    shift, guesses = hints @ head.keys, hints @ head.values
    keys = system.exact(head.keys)[None] - system.exact(shift)[:, None]  # (cell, position, q)
    changes = _changes(keys, steps, basis)
    weights, tails = _weights(head, middles, changes, space)
    far = system.exact(head.values)[None] - system.exact(guesses)[:, None]  # (cell, position, output)
    factors = np.concatenate([system.exact(np.ones((*weights.shape, 1))), far], axis=2)
    ambient = space_of(len(changes.moves), space.order, system)
    moments = _monomials(changes.keys, ambient) @ (weights[:, :, None] * factors)  # (cell, monomial, 1 + output)
    powers = _powers(ambient, changes.moves)
    rests = system.up((tails[:, :, None] * system.magnitude(factors)).sum(axis=1))
    models = [_combined_powers(moments[:, :, i], powers, rests[:, i]) for i in range(factors.shape[2])]
    return models[1:], models[0], guesses


def directions(head: Head) -> Floats | None:
    """Few directions `(direction, q)` along which all the keys' differences lie, up to rounding; None when all count.

    They are for doubles: balls are there for what rounding would spoil.
    """
    differences = head.keys - head.keys.mean(axis=0)
    sizes, rows = np.linalg.svd(differences, full_matrices=False)[1:]
    count = max(1, int((sizes > ALONG * max(sizes[0], np.finfo(float).tiny)).sum()))
    return None if count >= head.keys.shape[1] else np.asarray(rows[:count])


@dataclass(frozen=True, eq=False)
class Changes:
    """How the scores change over the cells: z_k = <`keys`, `moves`> up to `beside`, |z_k| <= `largest`,
    <|keys|, |moves|> <= `most`, all `(cell, position)`; |moves| <= `reach` `(cell,)`.
    """

    keys: Numbers
    moves: Sequence[Model]
    largest: Numbers
    most: Numbers
    beside: Numbers
    reach: Numbers


def _changes(keys: Numbers, steps: Sequence[Model], basis: Floats | None) -> Changes:
    """`keys` `(cell, position, q)` and the steps of the query, or both along the rows of `basis`."""
    space, system, cells = steps[0].space, steps[0].system, len(steps[0].rest)
    linear = slice(space.starts[1], space.starts[2])
    slopes = np.array([step.coefficients[linear] for step in steps]).transpose(2, 0, 1)  # (cell, q, parameter)
    bent = np.array([system.up(step.sizes[2:].sum(axis=0) + step.rest) for step in steps]).T  # (cell, q)

    def reached(sizes: Numbers, moves: Sequence[Model]) -> Numbers:
        reach = np.array([move.largest for move in moves]).T
        return system.up((sizes @ reach[:, :, None]).reshape(cells, -1))

    sizes = system.magnitude(keys)
    most = reached(sizes, steps)
    straight = system.magnitude(keys @ slopes).sum(axis=2) + (sizes @ bent[:, :, None]).reshape(cells, -1)
    largest, beside = system.up(straight + system.lost(most, 2 * len(steps) + 4)), system.zeros(*most.shape)
    moves = steps
    if basis is not None:
        moves, whole = [combined(row, steps) for row in basis], keys
        keys = whole @ basis.T
        sizes = system.up(sizes + np.abs(keys) @ np.abs(basis))
        beside = reached(np.abs(whole - keys @ basis) + system.lost(sizes, len(basis) + 3), steps)
        # Along the basis, what bends in the columns cancels too: a kink's keys do not turn along its other angles.
        most = reached(np.abs(keys), moves)
        largest = np.minimum(system.up(largest + beside), system.up(most + beside))
    reach = np.array([move.largest for move in moves]).max(axis=0)
    return Changes(keys, moves, largest, most, beside, reach)


def _weights(head: Head, middles: Numbers, changes: Changes, space: Space) -> tuple[Numbers, Numbers]:
    """Weights w_k `(cell, position)` at the cells' middles up to a factor for each cell, and bounds on
    |w_k e^(z_k) - the polynomial that it is taken for| over the cells.

    A weight too small to matter anywhere in a cell is taken for 0 there. A score that is off by d makes its weight
    wrong by at most |d| e^|d| of itself.
    """
    system = space.system
    told, biases = system.exact(head.keys), system.exact(head.biases)
    scores = middles @ told.T + biases
    sizes = system.magnitude(middles) @ system.magnitude(told).T + system.magnitude(biases)
    exponents = scores - system.exact(scores.astype(np.float64).max(axis=1)[:, None])
    off = system.up(system.lost(sizes, told.shape[1] + 2) + system.lost(system.magnitude(exponents), 1))
    weights = system.exp(exponents)
    factorial = system.upper(np.array([1 / arb(space.order).fac()]))[0]
    above = system.exp_above(exponents + off + changes.largest)
    tails = above * (system.power(changes.largest, space.order) * factorial + changes.beside)
    if system.unit:
        is_small = (exponents + off + changes.largest < NEGLIGIBLE) | (weights == 0)
        operations = weights.shape[1] + 4 * space.order + 8
        relative = off * system.exp_above(off) + system.exp_unit + system.lost(1.0, operations)
        rounded = tails + relative * system.exp_above(exponents + off + changes.most)
        weights, tails = np.where(is_small, 0.0, weights), np.where(is_small, above, rounded)
        tails = tails + UNDERFLOW * system.power(np.maximum(changes.reach, 1.0), space.order)[:, None]
    return weights, system.up(tails)


def _monomials(keys: Numbers, space: Space) -> Numbers:
    """`keys` `(cell, position, q)` to the powers a, over a!: `(cell, monomial, position)`."""
    found = np.empty((len(space.degrees), *keys.shape[:2]), dtype=keys.dtype)
    found[0] = space.system.exact(np.ones(keys.shape[:2]))
    coordinates = np.ascontiguousarray(keys.transpose(2, 0, 1))
    for index, (axis, before, count) in enumerate(space.ancestors, start=1):
        found[index] = found[before] * (coordinates[axis] / count)
    return found.transpose(1, 0, 2)


def _powers(space: Space, steps: Sequence[Model]) -> list[Model]:
    """h^a for every monomial a but the first."""
    found: list[Model] = []
    for axis, before, _ in space.ancestors:
        found.append(found[before - 1] * steps[axis] if before else steps[axis])
    return found


def _combined_powers(moments: Numbers, powers: Sequence[Model], rest: Numbers) -> Model:
    """sum_a moments[:, a] h^a, `moments` `(cell, monomial)`, with `rest` `(cell,)` beside."""
    space, system = powers[0].space, powers[0].system
    coefficients = system.zeros(*powers[0].coefficients.shape)
    coefficients[0] = moments[:, 0]
    sizes = system.zeros(len(rest))
    for index, power in enumerate(powers, start=1):
        start, moment = space.starts[power.lowest], system.magnitude(moments[:, index])
        coefficients[start:] = coefficients[start:] + power.coefficients[start:] * moments[:, index]
        rest = rest + power.rest * moment
        sizes = sizes + power.size * moment
    return Model(space, coefficients, system.up(rest + system.lost(sizes, len(powers) + 1)))


def combined(factors: Numbers, models: Sequence[Model]) -> Model:
    """sum_i factors[i] models[i], the factors doubles or balls."""
    total = models[0].scaled(factors[0])
    for factor, model in zip(factors[1:], models[1:], strict=True):
        total = total + model.scaled(factor)
    return total
