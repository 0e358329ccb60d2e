"""Where a target lives: the sphere, the cube, or a table of points.

A domain knows how to draw points, how to refuse points outside it, and one box of parameters that covers it exactly,
which is what a proof searches. It knows no head and no target; how points become queries is `charts.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri

from foreword.arrays import is_count
from foreword.compiler.arrays import Floats
from foreword.errors import CompileError

UNIT_TOLERANCE = 1e-9  # how far from 1 the norm of a point on the sphere may lie
ON_A_SIDE = 0.05  # share of `Cube.spread` that lies on each side: that is where a fit is worst


@dataclass(frozen=True)
class Sphere:
    """The unit sphere S^m in R^(m+1), `dimension` m at least 1.

    >>> Sphere(2).columns
    3
    >>> Sphere(2).embed(np.array([[0.0, 0.0]]))
    array([[0., 0., 1.]])
    """

    dimension: int

    def __post_init__(self) -> None:
        if not (is_count(self.dimension) and self.dimension):
            raise CompileError(
                "The sphere's dimension is not one.",
                expected="an integer of at least 1",
                found=repr(self.dimension),
                fix="Sphere(2) is the unit sphere in three-dimensional space; Sphere(1) is the circle.",
            )
        object.__setattr__(self, "dimension", int(self.dimension))

    @property
    def columns(self) -> int:
        """Coordinates of a point: m + 1."""
        return self.dimension + 1

    @property
    def box(self) -> Floats:
        """The angles' range `(parameter, 2)`, an ulp wider than the sphere needs, so that the cover is rigorous."""
        half, whole = np.nextafter(math.pi / 2, np.inf), np.nextafter(math.pi, np.inf)
        return np.array([[-half, half]] * (self.dimension - 1) + [[-whole, whole]])

    def embed(self, parameters: Floats) -> Floats:
        """Points `(batch, m + 1)` at angles `(batch, m)`.

        x_j = cos a_0 ... cos a_(j-1) sin a_j for j < m, and x_m = cos a_0 ... cos a_(m-1).
        """
        points = np.empty((len(parameters), self.columns))
        radius = np.ones(len(parameters))
        for j in range(self.dimension):
            points[:, j] = radius * np.sin(parameters[:, j])
            radius = radius * np.cos(parameters[:, j])
        points[:, -1] = radius
        return points

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """Points `(count, m + 1)`, uniform."""
        return _on_the_sphere(rng.standard_normal((count, self.columns)))

    def spread(self, count: int) -> Floats:
        """Points `(count, m + 1)`, always the same and evenly spread; no net's points are among them."""
        if self.dimension == 1:
            return self.embed(2 * math.pi * (even_shares(count, 1) - 0.5))
        return _on_the_sphere(ndtri(even_shares(count, self.columns)))

    def nearest(self, points: Floats) -> Floats:
        """The points of the sphere nearest to these, `(batch, m + 1)`."""
        found: Floats = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-300)
        return found

    def check(self, points: Any) -> Floats:
        """The points as float64 `(batch, m + 1)`; CompileError unless finite and of norm 1 within 1e-9."""
        found = _checked(points, self.columns)
        off = np.abs(np.linalg.norm(found, axis=1) - 1.0)
        if off.size and off.max() > UNIT_TOLERANCE:
            row = int(off.argmax())
            raise CompileError(
                f"Point {row} does not lie on {self}.",
                expected=f"norm 1 within {UNIT_TOLERANCE:g}",
                found=f"norm {np.linalg.norm(found[row]):.12g}",
                fix="Divide each point by its norm.",
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `domain_from_dict` reads them back."""
        return {"kind": "sphere", "dimension": self.dimension}

    def __str__(self) -> str:
        return f"S^{self.dimension}"


@dataclass(frozen=True)
class Cube:
    """A box: one `(lower, upper)` for each coordinate, lower < upper, finite.

    >>> Cube([(-1, 1)] * 2).dimension
    2
    """

    sides: tuple[tuple[float, float], ...]

    def __init__(self, sides: Sequence[Sequence[float]]) -> None:
        try:
            found = tuple((float(lower), float(upper)) for lower, upper in sides)
        except (TypeError, ValueError) as error:
            raise CompileError(
                "The cube's sides cannot be read.",
                expected="one (lower, upper) pair of numbers for each coordinate",
                found=repr(sides)[:200],
                fix="Cube([(-1, 1)] * 2) is a square.",
            ) from error
        for axis, (lower, upper) in enumerate(found):
            if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
                raise CompileError(
                    f"Side {axis} of the cube is empty, degenerate or not finite.",
                    expected="lower < upper, both finite",
                    found=f"({lower!r}, {upper!r})",
                    fix="Give each coordinate an interval of positive length; leave out a coordinate that is constant.",
                )
            _check_width(axis, lower, upper)
        if not found:
            raise CompileError("The cube has no sides.", expected="at least one (lower, upper)", found="none", fix="")
        object.__setattr__(self, "sides", found)

    @property
    def dimension(self) -> int:
        """Number of coordinates."""
        return len(self.sides)

    @property
    def columns(self) -> int:
        """Coordinates of a point: the dimension."""
        return len(self.sides)

    @property
    def box(self) -> Floats:
        """The sides as an array `(coordinate, 2)`."""
        return np.array(self.sides)

    def embed(self, parameters: Floats) -> Floats:
        """The parameters `(batch, coordinate)` are the points."""
        return np.array(parameters, dtype=np.float64)

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """Points `(count, coordinate)`, uniform."""
        return self._scaled(rng.random((count, self.columns)))

    def spread(self, count: int) -> Floats:
        """Points `(count, coordinate)`, always the same and evenly spread.

        A twentieth of each coordinate's values lies on each of its two sides, edges and corners included.
        """
        even = even_shares(count, self.columns)
        return self._scaled(np.clip((even - ON_A_SIDE) / (1 - 2 * ON_A_SIDE), 0.0, 1.0))

    def nearest(self, points: Floats) -> Floats:
        """The points of the cube nearest to these, `(batch, d)`."""
        found: Floats = np.clip(points, self.box[:, 0], self.box[:, 1])
        return found

    def check(self, points: Any) -> Floats:
        """The points as float64 `(batch, coordinate)`; CompileError unless finite and inside."""
        found = _checked(points, self.columns)
        lower, upper = self.box.T
        outside = (found < lower) | (found > upper)
        if outside.any():
            row, axis = (int(index) for index in np.argwhere(outside)[0])
            raise CompileError(
                f"Point {row} does not lie in {self}.",
                expected=f"coordinate {axis} in [{lower[axis]:g}, {upper[axis]:g}]",
                found=repr(float(found[row, axis])),
                fix="Widen the cube, or leave the point out.",
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `domain_from_dict` reads them back."""
        return {"kind": "cube", "sides": [list(side) for side in self.sides]}

    def __str__(self) -> str:
        return " x ".join(f"[{lower:g}, {upper:g}]" for lower, upper in self.sides)

    def _scaled(self, unit: Floats) -> Floats:
        lower, upper = self.box.T
        points: Floats = np.clip(lower + (upper - lower) * unit, lower, upper)
        return points


@dataclass(frozen=True, eq=False)
class FiniteSet:
    """A table of points `(count, column)`: a proof over it is an evaluation at every point.

    >>> FiniteSet([[0.0, 1.0], [2.0, 3.0]]).columns
    2
    """

    points: Floats

    def __post_init__(self) -> None:
        found = np.array(_checked(self.points, None))
        if not found.size:
            raise CompileError(
                "The table of points is empty.", expected="at least one row", found=str(found.shape), fix="Give points."
            )
        found.setflags(write=False)
        object.__setattr__(self, "points", found)

    @property
    def dimension(self) -> int:
        """Coordinates of a point."""
        return int(self.points.shape[1])

    @property
    def columns(self) -> int:
        """Coordinates of a point."""
        return int(self.points.shape[1])

    @property
    def box(self) -> Floats:
        """No parameters, `(0, 2)`: nothing lies between the points."""
        return np.empty((0, 2))

    def embed(self, parameters: Floats) -> Floats:
        """CompileError: a table has no parameters."""
        raise CompileError(
            "A table of points has no parameters.",
            expected="a sphere or a cube",
            found=f"{self}; {len(parameters)} parameters",
            fix="Use .points.",
        )

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """Rows `(count, column)`, drawn with replacement."""
        return np.array(self.points[rng.integers(len(self.points), size=count)])

    def spread(self, count: int) -> Floats:
        """At most `count` rows, evenly spaced in the table; all of them when there are no more."""
        total = len(self.points)
        return np.array(self.points[np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(np.intp))])

    def check(self, points: Any) -> Floats:
        """The points as float64 `(batch, column)`; CompileError unless each is a row of the table."""
        found = _checked(points, self.columns)
        known = {row.tobytes() for row in self.points + 0.0}
        for row, point in enumerate(found + 0.0):
            if point.tobytes() not in known:
                raise CompileError(
                    f"Point {row} is not in the table.",
                    expected=f"one of {len(self.points)} points",
                    found=str(point.tolist())[:200],
                    fix="Compile for a sphere or a cube to evaluate between the samples.",
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `domain_from_dict` reads them back."""
        return {"kind": "finite", "points": self.points.tolist()}

    def __str__(self) -> str:
        return f"{len(self.points)} points of {self.columns} coordinates"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FiniteSet) and np.array_equal(self.points, other.points)

    def __hash__(self) -> int:
        return hash((self.points.shape, self.points.tobytes()))


Domain = Sphere | Cube | FiniteSet


def domain_from_dict(told: dict[str, Any]) -> Domain:
    """The domain that `as_dict` wrote; CompileError when it is none.

    >>> domain_from_dict(Sphere(3).as_dict())
    Sphere(dimension=3)
    """
    match told:
        case {"kind": "sphere", "dimension": dimension}:
            return Sphere(dimension)
        case {"kind": "cube", "sides": sides}:
            return Cube(sides)
        case {"kind": "finite", "points": points}:
            return FiniteSet(np.asarray(points, dtype=np.float64))
    raise CompileError(
        "This is no domain.", expected="kind sphere, cube or finite", found=repr(told)[:200], fix="Write as_dict()."
    )


def beside(domain: Sphere | Cube, points: Floats, step: float, rng: np.random.Generator) -> Floats:
    """A point of the domain close to each of `points` `(batch, column)`: within `step` of its size in every column."""
    size = 1.0 if isinstance(domain, Sphere) else np.ptp(domain.box, axis=1)
    return domain.nearest(points + step * size * rng.uniform(-1.0, 1.0, points.shape))


def frame_along(normal: Sequence[float] | Floats) -> Floats:
    """An orthogonal matrix `(column, column)` whose first column is the unit vector along `normal` (Householder).

    Points are `embed(angles) @ frame.T`: the first coordinate in the frame is the one along the normal.
    """
    unit = np.asarray(normal, dtype=np.float64)
    unit = unit / np.linalg.norm(unit)
    mirror = unit.copy()
    mirror[0] += math.copysign(1.0, unit[0])
    frame = np.eye(len(unit)) - 2.0 * np.outer(mirror, mirror) / (mirror @ mirror)
    frame[:, 0] *= -math.copysign(1.0, unit[0])
    return frame


def as_chebyshev(box: Floats, unit: Floats) -> Floats:
    """Points of the box `(coordinate, 2)` for those of the unit cube, as dense near its sides as Chebyshev's are."""
    lower, upper = box.T
    points: Floats = np.clip(lower + (1.0 - np.cos(math.pi * unit)) / 2 * (upper - lower), lower, upper)
    return points


def even_shares(count: int, columns: int) -> Floats:
    """Evenly spread points `(count, column)` in the open unit cube: a generalised golden ratio's multiples."""
    ratio = 2.0
    for _ in range(64):  # the root of r^(columns + 1) = r + 1
        ratio = (1.0 + ratio) ** (1.0 / (columns + 1))
    steps = ratio ** -np.arange(1.0, columns + 1.0)
    unit: Floats = np.mod(0.5 + np.outer(np.arange(1, count + 1), steps), 1.0)
    return np.clip(unit, 1e-12, 1.0 - 1e-12)


def _on_the_sphere(vectors: Floats) -> Floats:
    points: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return points


def _checked(points: Any, columns: int | None) -> Floats:
    """Any array-like as finite float64 `(batch, column)`."""
    try:
        found: Floats = np.asarray(points, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise CompileError(
            "The points are not numbers.", expected="(batch, column)", found=repr(points)[:200], fix="Give an array."
        ) from error
    if found.ndim != 2 or (columns is not None and found.shape[1] != columns):
        wanted = "column" if columns is None else columns
        raise CompileError(
            "The points have the wrong shape.",
            expected=f"(batch, {wanted})",
            found=str(found.shape),
            fix="Give one row for each point, even for a single one.",
        )
    if not np.isfinite(found).all():
        row = int(np.argwhere(~np.isfinite(found))[0, 0])
        raise CompileError(
            f"Point {row} is not finite.", expected="numbers", found=str(found[row].tolist())[:200], fix="Leave it out."
        )
    return found


def _check_width(axis: int, lower: float, upper: float) -> None:
    """An interval must be wide enough to have points in it, and not so wide that its length overflows."""
    width, size = upper - lower, max(abs(lower), abs(upper))
    if not math.isfinite(width) or width <= 1e-9 * size:
        raise CompileError(
            f"Side {axis} of the cube has no width that float64 resolves.",
            expected="a length of at least 1e-9 of its ends, and finite",
            found=f"({lower!r}, {upper!r})",
            fix="Shift the coordinate so that the interval lies near 0, or scale it.",
        )
