"""Jumps of a function of which only values are known: what no attention head follows, since its output is continuous.

Between two points at which a function differs, one half of the way holds at least half of the difference. Halved again
and again, a slope leaves less and less of it, and a jump all of it. A heuristic: a jump is not found where no pair of
points lies on both sides of it, or where the function is steeper than it is high.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.domain import Cube, Sphere, beside
from foreword.compiler.target import Target

REACH = 0.02  # of the domain's size: how far apart the points of a pair are
FOLLOWED = 32  # pairs, those with the largest differences
HALVINGS = 20  # twice: a jump keeps its size in the second half of them
KEPT = 0.9  # of it
CLOSER = 2.0 ** (1 - HALVINGS)  # what the second half must leave of the way: where doubles are too far apart, it cannot


@dataclass(frozen=True)
class Jump:
    """How much an output changes between two points `(column,)` that are next to each other."""

    size: float
    one: Floats
    other: Floats


@dataclass(frozen=True)
class _Pairs:
    """Points `(batch, column)` two by two, and the target's values there `(batch, output)`."""

    low: Floats
    high: Floats
    of_low: Floats
    of_high: Floats

    @property
    def changes(self) -> Floats:
        """How much the values differ `(batch,)`."""
        return _change(self.of_low, self.of_high)

    @property
    def lengths(self) -> Floats:
        """How far apart the points are `(batch,)`."""
        found: Floats = np.linalg.norm(self.high - self.low, axis=1)
        return found

    def kept(self, rows: NDArray[np.intp]) -> _Pairs:
        """The pairs of these rows."""
        return _Pairs(self.low[rows], self.high[rows], self.of_low[rows], self.of_high[rows])

    def halved(self, target: Target, domain: Sphere | Cube) -> _Pairs:
        """Of every pair the half with more of the change."""
        middle = domain.nearest(self.low + (self.high - self.low) / 2)
        of_middle = target.evaluate(middle)
        is_first = (_change(self.of_low, of_middle) > _change(of_middle, self.of_high))[:, None]
        return _Pairs(
            np.where(is_first, self.low, middle),
            np.where(is_first, middle, self.high),
            np.where(is_first, self.of_low, of_middle),
            np.where(is_first, of_middle, self.of_high),
        )


def jump_of(target: Target, domain: Sphere | Cube, points: Floats, values: Floats, least: float) -> Jump | None:
    """The largest jump found beside the points `(batch, column)`, at which the target has `values` `(batch, output)`.

    None where nothing jumps by more than `least`. It takes as many evaluations as there are points, and a thousand at
    most besides.
    """
    other = beside(domain, points, REACH, np.random.default_rng(20_241))
    pairs = _Pairs(points, other, values, target.evaluate(other))
    pairs = pairs.kept(np.argsort(-pairs.changes)[:FOLLOWED])
    before = pairs
    for halving in range(2 * HALVINGS):
        if not (pairs.changes > least).any():
            return None
        before = pairs if halving == HALVINGS else before
        pairs = pairs.halved(target, domain)
    is_jump = (pairs.changes >= KEPT * before.changes) & (pairs.lengths <= CLOSER * before.lengths)
    found = np.where(is_jump, pairs.changes, 0.0)
    row = int(found.argmax())
    return Jump(float(found[row]), pairs.low[row], pairs.high[row]) if found[row] > least else None


def _change(one: Floats, other: Floats) -> Floats:
    found: Floats = np.abs(one - other).max(axis=1)
    return found
