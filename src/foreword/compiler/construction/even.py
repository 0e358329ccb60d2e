"""Keys placed evenly: on a net of the domain, or on a lattice in the span of the few directions that a target needs.

A placement says where so many keys go and what head they make, given a shape of one or two positive numbers: how wide
the features are in units of the keys' spacing and, on a lattice, how far out the keys reach. On a net of a sphere keys
cannot reach further out: the Gaussian about a point off the sphere is, on it, one of another width about a point of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.spatial import ConvexHull, cKDTree

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.construction.contract import gaussian_head
from foreword.compiler.construction.nearest import net_of_at_most, soft_head
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.head import Head
from foreword.compiler.nets import relaxed, sphere_net

SHARPNESS = (0.05, 0.1, 0.2, 0.4, 0.8)  # lambda spacing^2 to begin with; best 0.05 (very smooth) to 1 (rough)
STARTS = tuple((sharpness,) for sharpness in SHARPNESS)
USUAL = 0.2
LATTICE = ((1.0, 0.3), (1.2, 0.7), (1.6, 0.3), (1.6, 0.7), (2.2, 0.5), (3.0, 0.6))  # (reach, sharpness) likewise
# Net points of S^m with covering radius delta: delta about (FILL / N)^(1/m), which sets the unit of the sharpness.
FILL = {1: math.pi, 2: 6.0, 3: 12.0}
# Rows generate the densest lattice of each dimension, or the one that samples best: hexagons, body-centred cubes.
GENERATORS = {
    2: np.array([[1.0, 0.0], [0.5, math.sqrt(0.75)]]),
    3: np.array([[1.0, 1.0, -1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]),
}
OFFSET = (0.29, 0.17, 0.41)  # of the body's middle, in units of the generators: no symmetry with it


class Placement(Protocol):
    """Where keys go; final, one class each."""

    @property
    def dimension(self) -> int:
        """In how many directions the keys spread."""
        ...

    @property
    def width(self) -> int:
        """Columns of a key."""
        ...

    @property
    def starts(self) -> Sequence[tuple[float, ...]]:
        """Shapes to begin a search at."""
        ...

    def around(self, shape: Sequence[float]) -> Sequence[tuple[float, ...]]:
        """The shape and a few close by."""
        ...

    def points(self, count: int) -> Floats:
        """At most so many points `(position, column)`."""
        ...

    def relaxed(self, points: Floats, /) -> Floats | None:
        """Points that lie more evenly still, where there are any."""
        ...

    def head(self, points: Floats, shape: Sequence[float], outputs: int) -> Head:
        """The head with a key for each point, all values zero."""
        ...


def sharpnesses_around(shape: Sequence[float]) -> Sequence[tuple[float, ...]]:
    """The sharpness of a shape that is nothing else, and two close by."""
    return [(shape[0] * ratio,) for ratio in (0.8, 1.0, 1.25)]


@dataclass(frozen=True)
class OnNet:
    """On a net of the domain: shapes are `(sharpness,)`."""

    domain: Domain
    chart: Chart
    starts: Sequence[tuple[float, ...]] = STARTS

    @property
    def dimension(self) -> int:
        """The domain's."""
        return self.domain.dimension

    @property
    def width(self) -> int:
        """The chart's."""
        return self.chart.width

    def around(self, shape: Sequence[float]) -> Sequence[tuple[float, ...]]:
        """Other sharpnesses close by."""
        return sharpnesses_around(shape)

    def points(self, count: int) -> Floats:
        """See `net_points`."""
        return net_points(self.domain, count)

    def relaxed(self, points: Floats) -> Floats | None:
        """Of S^2 and S^3."""
        is_hull_cheap = isinstance(self.domain, Sphere) and 2 <= self.domain.dimension <= 3
        return relaxed(points, rounds=30) if is_hull_cheap else None

    def head(self, points: Floats, shape: Sequence[float], outputs: int) -> Head:
        """Gaussians about the points."""
        sharpness = shape[0] / spacing(self.domain, points) ** 2
        return soft_head(self.domain, self.chart, points, sharpness, np.zeros((len(points), outputs)))


@dataclass(frozen=True)
class OnLattice:
    """On a lattice in the image of the domain under `directions` (W, 2 or 3 rows): shapes are `(reach, sharpness)`.

    Keys and queries are in the coordinates W (x - middle).
    """

    domain: Sphere | Cube
    directions: Floats
    starts: Sequence[tuple[float, ...]] = LATTICE

    @property
    def dimension(self) -> int:
        """The number of directions."""
        return len(self.directions)

    @property
    def width(self) -> int:
        """The number of directions."""
        return len(self.directions)

    def around(self, shape: Sequence[float]) -> Sequence[tuple[float, ...]]:
        """Other reaches and sharpnesses close by."""
        reach, sharpness = shape
        ratios = ((1.0, 1.0), (1.0, 0.8), (1.0, 1.25), (0.87, 1.0), (1.15, 1.0))
        return [(max(1.0, reach * far), sharpness * sharp) for far, sharp in ratios]

    def points(self, count: int) -> Floats:
        """So many points of the lattice, those that are the least far out; the last lies on the image's edge."""
        generators = GENERATORS[self.dimension]
        side = math.ceil(2.2 * count ** (1 / self.dimension)) + 3
        steps = np.array(list(itertools.product(range(-side, side + 1), repeat=self.dimension)))
        found = (steps + np.array(OFFSET[: self.dimension])) @ generators
        far = self._gauge(found)
        order = np.argsort(far, kind="stable")[:count]
        points: Floats = found[order] / far[order[-1]]
        return points

    def relaxed(self, _: Floats, /) -> Floats | None:
        """None: a lattice is as even as can be."""
        return None

    def head(self, points: Floats, shape: Sequence[float], outputs: int) -> Head:
        """Gaussians about the points, moved out."""
        reach, sharpness = shape
        width = reach * spacing(self.domain, points)
        keys = np.zeros((len(points), outputs))
        return gaussian_head(reach * points, sharpness / width**2, np.ones(self.dimension), keys)

    def _gauge(self, points: Floats) -> Floats:
        """How far out: below 1 inside the image of the domain, 1 on its edge."""
        if isinstance(self.domain, Sphere):
            return np.asarray(np.linalg.norm(points, axis=1))
        half = np.ptp(self.domain.box, axis=1) / 2
        corners = np.array(list(itertools.product((-1.0, 1.0), repeat=self.domain.columns))) * half
        faces = ConvexHull(corners @ self.directions.T).equations
        far: Floats = (points @ (faces[:, :-1] / -faces[:, -1:]).T).max(axis=1)
        return far


def net_points(domain: Domain, count: int) -> Floats:
    """Evenly placed points of the domain `(position, column)`, at most `count`."""
    if isinstance(domain, Sphere):
        return sphere_net(domain.dimension, count)
    return net_of_at_most(domain, count).points


def spacing(domain: Domain, points: Floats) -> float:
    """The unit of the sharpness: about the covering radius of a net of the domain, the closeness of other points."""
    if isinstance(domain, Sphere) and domain.dimension in FILL and points.shape[1] == domain.columns:
        return float((FILL[domain.dimension] / len(points)) ** (1 / domain.dimension))
    if len(points) == 1:
        return 1.0
    return max(float(np.median(cKDTree(points).query(points, k=2)[0][:, 1])), 1e-150)
