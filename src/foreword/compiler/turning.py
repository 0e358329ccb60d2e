"""Points at which a function may have a value of its own: where its conditions turn, and where coordinates are round.

With `np.select([t < 0, t > 0], [1 + t, 1 - t])` the value at 0 is 0. No draw at random meets such a point; people and
even nets of points do.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.domain import Cube, Domain, Sphere

EVEN, GRID = 8, 500  # parts of each side of the domain, and how many points of that grid are drawn
MOVED = 8  # points for each condition on one coordinate


def sides_of(domain: Domain) -> Floats:
    """Between which numbers each coordinate lies, `(column, 2)`; of a table's points nothing is said."""
    if isinstance(domain, Cube):
        return domain.box
    reach = 1.0 if isinstance(domain, Sphere) else np.inf
    return np.array([[-reach, reach]] * domain.columns)


def round_points(domain: Sphere | Cube) -> Floats:
    """Points `(batch, column)` of an even grid, the same in each call: coordinates are 0, ends, middles, or equal."""
    sides = sides_of(domain)
    parts = np.random.default_rng(0).integers(0, EVEN + 1, (GRID, domain.columns)) / EVEN
    parts = parts[(parts != 0.5).any(axis=1)] if isinstance(domain, Sphere) else parts  # the centre is on no sphere
    return domain.nearest(sides[:, 0] + parts * (sides[:, 1] - sides[:, 0]))


def turning_points(domain: Domain, points: Floats, turns: Iterable[tuple[int, float]]) -> Floats:
    """Round points, and some of `points` `(batch, column)` moved to where a coordinate is the number of its turn.

    `turns` are columns and numbers. None for a table of points.
    """
    if not isinstance(domain, (Sphere, Cube)):
        return points[:0]
    sides, found = sides_of(domain), [round_points(domain)]
    for column, number in turns:
        if sides[column, 0] <= number <= sides[column, 1]:
            moved = points[:MOVED].copy()
            if isinstance(domain, Sphere):  # what is left to the other coordinates of a point of norm 1
                moved *= np.sqrt((1 - number**2) / np.maximum(1 - moved[:, [column]] ** 2, 1e-300))
            moved[:, column] = number
            found.append(moved)
    return np.concatenate(found)
