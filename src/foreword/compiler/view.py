"""Where a picture looks at a domain: the points, and the place of each on paper.

One coordinate or angle is a curve, two are a map (the sphere in Hammer's projection, whose areas are true). What has
more is seen along one line through it. Points near kinks are among those of a curve: that is where errors hide.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.construction.kinks import Kink, kinks_of, near_kinks
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.expression import coordinate_names
from foreword.compiler.target import Target
from foreword.errors import CompileError

CURVE = 2_000  # points of a curve, as many again near kinks
MAP = 30_000  # points of a map
LONGEST = 3.0  # sides up to so many times as long as the other one are drawn true to scale
LEAST = 400  # points of a picture of however long a prefix
AXES, FEW = 8, 65  # axes whose lines through a domain of many dimensions are looked at, and points of each
CLEARLY = 4.0  # times as much as along the usual line: so much more a target varies along one that is taken instead


@dataclass(frozen=True)
class View:
    """Points `(batch, column)` of a domain with their places on paper.

    `across` `(batch,)` and, on a map, `up` `(batch,)`; `grid` `(rows, columns)` where they form one, row by row.
    `is_table` when nothing lies between the points, `is_section` when the domain has more dimensions than are seen.
    """

    points: Floats
    across: Floats
    up: Floats | None
    grid: tuple[int, int] | None
    labels: tuple[str, str]
    note: str
    projection: str | None = None
    is_table: bool = False
    is_section: bool = False

    @property
    def is_angle(self) -> bool:
        """Whether `across` is an angle that runs once around."""
        return self.labels[0].startswith("angle")

    @property
    def is_square(self) -> bool:
        """Whether a map's two coordinates have ranges so much alike that a unit can be as long on both."""
        ranges = [float(np.ptp(places)) for places in (self.across, self.up) if places is not None]
        return max(ranges) <= LONGEST * min(ranges)


def view_of(domain: Domain, target: Target | None, most: int) -> View:
    """At most `most` points (but not less than 400) of the domain, as it is seen best."""
    most = max(LEAST, most)
    names = coordinate_names(domain.columns)
    match domain:
        case Sphere(dimension=1):
            return _circle(domain, target, names, most)
        case Sphere(dimension=2):
            return _globe(names, most)
        case Sphere():
            return _great_circle(domain, target, names, most)
        case Cube(dimension=1):
            [(low, high)] = domain.sides
            points = _with_kinks(domain, target, np.linspace(low, high, min(CURVE, most // 2) + 1)[:, None])
            order = np.argsort(points[:, 0], kind="stable")
            return View(points[order], points[order, 0], None, None, (names[0], ""), "")
        case Cube(dimension=2):
            side = int(math.sqrt(min(MAP, most)))
            x, y = (np.linspace(low, high, side) for low, high in domain.sides)
            across, up = (grid.ravel() for grid in np.meshgrid(x, y))
            return View(np.stack([across, up], axis=1), across, up, (side, side), (names[0], names[1]), "")
        case Cube():
            return _diagonal(domain, target, most)
    return _table(domain, names, most)


def _circle(domain: Sphere, target: Target | None, names: tuple[str, ...], most: int) -> View:
    angles = np.linspace(-math.pi, math.pi, min(CURVE, most // 2) + 1)
    points = _with_kinks(domain, target, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    angles = np.arctan2(points[:, 1], points[:, 0])
    order = np.argsort(angles, kind="stable")
    label = f"angle t; ({', '.join(names)}) = (cos t, sin t)"
    return View(points[order], angles[order], None, None, (label, ""), "")


def _globe(names: tuple[str, ...], most: int) -> View:
    rows = int(math.sqrt(min(MAP, most) / 2))
    height = math.pi * ((np.arange(rows) + 0.5) / rows - 0.5)
    around = 2 * math.pi * ((np.arange(2 * rows) + 0.5) / (2 * rows) - 0.5)
    longitude, latitude = (grid.ravel() for grid in np.meshgrid(around, height))
    x, y = np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude)
    points = np.stack([x, y, np.sin(latitude)], axis=1)
    note = f"Hammer projection, areas are true: longitude atan2({names[1]}, {names[0]}), latitude asin {names[2]}"
    return View(points, longitude, latitude, (rows, 2 * rows), ("", ""), note, projection="hammer")


def _great_circle(domain: Sphere, target: Target | None, names: tuple[str, ...], most: int) -> View:
    """Through the first and the last axis, or those two of the first eight between which the target varies far more."""

    def along(angles: Floats, one: int, other: int) -> Floats:
        points = np.zeros((len(angles), domain.columns))
        points[:, one], points[:, other] = np.cos(angles), np.sin(angles)
        return points

    pairs = list(itertools.combinations(range(min(domain.columns, AXES)), 2))
    pairs.insert(0, (0, domain.columns - 1))
    few = np.linspace(-math.pi, math.pi, FEW)
    one, other = pairs[_most_varied(target, [along(few, *pair) for pair in pairs])]
    angles = np.linspace(-math.pi, math.pi, min(CURVE, most) + 1)
    note = f"along the great circle {names[one]} = cos t, {names[other]} = sin t"
    return View(along(angles, one, other), angles, None, None, ("angle t", ""), note, is_section=True)


def _diagonal(domain: Cube, target: Target | None, most: int) -> View:
    """From the lowest corner to the highest, or from one of its neighbours to the corner that is farthest from that."""
    lower, upper = domain.box.T

    def along(share: Floats, turned: int | None) -> Floats:
        start, end = lower.copy(), upper.copy()
        if turned is not None:
            start[turned], end[turned] = upper[turned], lower[turned]
        points: Floats = np.clip(start + (end - start) * share[:, None], lower, upper)
        return points

    ways = [None, *range(min(domain.columns, AXES))]
    turned = ways[_most_varied(target, [along(np.linspace(0.0, 1.0, FEW), way) for way in ways])]
    share = np.linspace(0.0, 1.0, min(CURVE, most) + 1)
    note = "along the diagonal from the lowest corner (0) to the highest (1)"
    if turned is not None:
        note += f", but for {coordinate_names(domain.columns)[turned]}, which falls"
    return View(along(share, turned), share, None, None, ("share of the diagonal", ""), note, is_section=True)


def _most_varied(target: Target | None, lines: Sequence[Floats]) -> int:
    """The line along which the first output varies most, clearly more than along the first one."""
    changes = [_change(target, points) for points in lines]
    best = int(np.argmax(changes))
    return best if changes[best] > CLEARLY * changes[0] else 0


def _change(target: Target | None, points: Floats) -> float:
    """How much the first output varies there; 0 where it is unknown, or not defined."""
    try:
        return 0.0 if target is None else float(np.ptp(target.evaluate(points)[:, 0]))
    except CompileError:
        return 0.0


def _table(domain: FiniteSet, names: tuple[str, ...], most: int) -> View:
    points = domain.spread(min(most, MAP))
    if domain.columns == 1:
        points = points[np.argsort(points[:, 0], kind="stable")]
        return View(points, points[:, 0], None, None, (names[0], ""), "", is_table=True)
    if domain.columns == 2:
        return View(points, points[:, 0], points[:, 1], None, (names[0], names[1]), "", is_table=True)
    return View(points, np.arange(float(len(points))), None, None, ("row of the table", ""), "", is_table=True)


def known_kinks(target: Target | None, domain: Domain) -> list[Kink]:
    """Kinks that are declared or stand in the expression: for a picture, none is searched for."""
    if target is None or not (target.kinks or target.expression is not None):
        return []
    return kinks_of(target, domain, np.random.default_rng(CURVE))[0]


def _with_kinks(domain: Domain, target: Target | None, points: Floats) -> Floats:
    """The points, and where there are kinks as many again of which half are close to one."""
    kinks = known_kinks(target, domain)
    if not kinks:
        return points
    return np.concatenate([points, near_kinks(domain, points, kinks, np.random.default_rng(CURVE))])
