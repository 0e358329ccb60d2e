"""Flat lattices wrapped around S^2 and S^3: fewer points for a covering radius than spirals take.

In the plane equilateral triangles cover best, N r^2 = 8 pi / (3 sqrt 3) = 4.84 for a sphere's area. On S^2 they are
drawn on an icosahedron's faces, which bends them little: 5.1 to 5.4. S^3 is a stack of tori, and those are flat: a
lattice of triangles on each, 2 r / sqrt 3 apart, has N r^3 = pi^2 = 9.87 up to the edges of the stack; seen: 10.0 to
11.7. What is made here is a heuristic: how well it covers is found afterwards (`nets.covering_radius`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull

from foreword.compiler.arrays import Floats

GOLDEN = (1.0 + math.sqrt(5.0)) / 2.0
SHIFTS = (0.38196601125010515, 0.2451223337533073)  # turns of each torus against the last: no two are in step


def triangle_numbers(most: int) -> list[tuple[int, int, int]]:
    """`(T, h, k)` with T = h^2 + h k + k^2 from 1 to `most`, each T once: triangles to an icosahedron's face.

    >>> [entry[0] for entry in triangle_numbers(13)]
    [1, 3, 4, 7, 9, 12, 13]
    """
    found: dict[int, tuple[int, int]] = {}
    for h in range(1, math.isqrt(most) + 1):
        for k in range(h + 1):
            number = h * h + h * k + k * k
            if number <= most:
                found[number] = (h, k)
    return [(number, *found[number]) for number in sorted(found)]


def icosahedral(h: int, k: int) -> Floats:
    """10 (h^2 + h k + k^2) + 2 points on S^2: steps (h, k) of a lattice of triangles lead from corner to corner.

    A point with shares a of a face's corners V goes along sum sin(a angle) V, angle the corners' own: the same from
    either side of an edge, and evener than the point of the plane itself.

    >>> len(icosahedral(2, 1))
    72
    """
    corners, faces = _icosahedron()
    angle = math.acos(float(corners[faces[0, 0]] @ corners[faces[0, 1]]))
    steps = np.stack(np.meshgrid(np.arange(-k, h + 1), np.arange(h + k + 1), indexing="ij"), axis=-1).reshape(-1, 2)
    number = h * h + h * k + k * k
    # The corners lie at (0, 0), (h, k) and (-k, h + k); shares are whole numbers over T, so sides are told exactly.
    second = (h + k) * steps[:, 0] + k * steps[:, 1]
    third = h * steps[:, 1] - k * steps[:, 0]
    shares = np.stack([number - second - third, second, third], axis=1)
    shares = shares[(shares >= 0).all(axis=1)]
    # A point of an edge or a corner lies on several faces: it is the same point there, and is taken once.
    seen: set[tuple[tuple[int, int], ...]] = set()
    points = []
    for face in faces:
        owned = []
        for row in shares.tolist():
            name = tuple(sorted((corner, share) for corner, share in zip(face.tolist(), row, strict=True) if share))
            owned.append(len(name) == 3 or name not in seen)
            if len(name) < 3:
                seen.add(name)
        points.append(np.sin(shares[owned] * (angle / number)) @ corners[face])
    found = np.concatenate(points)
    made: Floats = found / np.linalg.norm(found, axis=1, keepdims=True)
    return made


def _icosahedron() -> tuple[Floats, np.ndarray[tuple[int, int], np.dtype[np.int_]]]:
    """Its corners, and its faces, all turning the same way."""
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=2)))
    flat = np.stack([signs[:, 0], GOLDEN * signs[:, 1], np.zeros(4)], axis=1)
    corners = np.concatenate([np.roll(flat, shift, axis=1) for shift in range(3)]) / math.hypot(1.0, GOLDEN)
    faces = np.array(ConvexHull(corners).simplices, dtype=np.int_)
    turned = np.linalg.det(corners[faces]) < 0
    faces[turned, 1:] = faces[turned, :0:-1]
    return corners, faces


@dataclass(frozen=True)
class Torus:
    """Points of S^3 at (cos a, sin a) from its two circles: `rows` rings of `columns`, every second one half a step on.

    The rings run along the second circle where `is_swapped`, else along the first.
    """

    angle: float
    rows: int
    columns: int
    is_staggered: bool
    is_swapped: bool

    @property
    def count(self) -> int:
        """Its points."""
        return self.rows * self.columns

    def points(self, turn: int) -> Floats:
        """`(count, 4)`, turned by so many `SHIFTS`."""
        row, column = np.divmod(np.arange(self.count), self.columns)
        along = 2 * math.pi * (column + 0.5 * self.is_staggered * (row % 2) + turn * SHIFTS[0]) / self.columns
        across = 2 * math.pi * (row + turn * SHIFTS[1]) / self.rows
        first, second = (across, along) if self.is_swapped else (along, across)
        near, far = math.cos(self.angle), math.sin(self.angle)
        return np.stack(
            [near * np.cos(first), near * np.sin(first), far * np.cos(second), far * np.sin(second)], axis=1
        )


def tori(radius: float) -> list[Torus]:
    """The tori, about as few points as cover S^3 within `radius`: of a few numbers of layers the best.

    Two points at a and b from the first circle, whose places on the two circles are angles s and t apart, have
    chord^2 = 4 sin^2((a - b)/2) + cos a cos b 4 sin^2(s/2) + sin a sin b 4 sin^2(t/2): at most that between the layers
    and a flat distance on a torus of circumferences 2 pi sqrt(cos a cos b) and 2 pi sqrt(sin a sin b).
    """
    usual = math.pi / 2 / (2 * radius / math.sqrt(3.0))
    stacks = []
    for layers in range(max(1, math.floor(usual)), math.ceil(usual) + 2):
        height = math.pi / 2 / layers
        left = (2 * math.sin(radius / 2)) ** 2 - (2 * math.sin(height / 4)) ** 2
        if left > 0:
            stacks.append([_torus((layer + 0.5) * height, height, math.sqrt(left)) for layer in range(layers)])
    return min(stacks, key=size_of)


def size_of(stack: Sequence[Torus]) -> int:
    """The points of all."""
    return sum(torus.count for torus in stack)


def points_of(stack: Sequence[Torus]) -> Floats:
    """`(count, 4)`, norms 1."""
    return np.concatenate([torus.points(turn) for turn, torus in enumerate(stack)])


def _torus(angle: float, height: float, radius: float) -> Torus:
    """The shortest lattice that covers the layer, whose wider circumferences are those at its two faces."""
    first = 2 * math.pi * math.sqrt(math.cos(angle) * math.cos(angle - height / 2))
    second = 2 * math.pi * math.sqrt(math.sin(angle) * math.sin(angle + height / 2))
    found = []
    for is_swapped, (along, across) in enumerate(((first, second), (second, first))):
        rows = np.arange(1, max(2, math.ceil(across / (1.2 * radius)) + 2))
        gap = across / rows
        with np.errstate(invalid="ignore"):
            # Rectangles: half a diagonal. Triangles of base s and height g, g >= s/2: (g^2 + s^2/4) / (2 g).
            straight = 2 * np.sqrt(radius**2 - (gap / 2) ** 2)
            staggered = np.where(rows % 2 == 0, 2 * np.minimum(np.sqrt(gap * (2 * radius - gap)), gap), np.nan)
        for is_staggered, step in enumerate((straight, staggered)):
            columns = np.where(step > 0, np.ceil(along / np.where(step > 0, step, 1.0)), np.inf)
            best = int((rows * columns).argmin())
            if math.isfinite(columns[best]):
                found.append(Torus(angle, int(rows[best]), int(columns[best]), bool(is_staggered), bool(is_swapped)))
    return min(found, key=lambda torus: torus.count)


def regular(dimension: int, radius: float) -> tuple[Floats, float] | None:
    """The fewest corners of a regular body, or of less, that cover S^m within `radius`, and their covering radius.

    One point covers within pi, two within pi/2, the m + 2 corners of a simplex within arccos(1/(m + 1)), those of a
    cross-polytope, 2 (m + 1), within arccos((m + 1)^(-1/2)): furthest are the middles of their faces.
    """
    columns = dimension + 1
    unit = np.eye(columns)
    if radius >= math.pi:
        return unit[:1], math.pi
    radii = (math.pi / 2, math.acos(1 / columns), math.acos(columns**-0.5))
    for number, found in enumerate(radii):
        if found * (1 + 1e-12) <= radius:
            bodies = (np.stack([unit[0], -unit[0]]), _simplex(columns), np.concatenate([unit, -unit]))
            return bodies[number], found * (1 + 1e-12)
    return None


def _simplex(columns: int) -> Floats:
    """Its `columns + 1` corners, of norm 1: those of the standard one, a dimension higher, seen along its diagonal."""
    corners = np.eye(columns + 1) - 1 / (columns + 1)
    plane = np.linalg.svd(corners)[2][:columns]
    found = corners @ plane.T
    made: Floats = found / np.linalg.norm(found, axis=1, keepdims=True)
    return made
