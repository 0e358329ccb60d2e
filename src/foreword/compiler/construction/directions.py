"""The few directions that a target varies along: f(x) = F(W x), W with fewer rows than x has columns.

People write such targets all the time (a plane wave, a bump about a point of the sphere, sin(3x) exp(-y^2) on S^3), and
a prefix whose keys lie in the span of W approximates F in fewer dimensions. W is found by sampling: by derivatives
first, which is exact to some 1e-8, and then by moving points along what is left out until nothing changes.

In a cube, what is left out is where the gradient never points. On a sphere, f depends on W x alone just when every
rotation of what is left out leaves it unchanged; where that is one direction, its reflection: |x| = 1 tells the size of
the missing coordinate. Such directions guide where keys are put; no proof rests on them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from scipy.optimize import least_squares

from foreword.compiler.arrays import Floats
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.target import Target

MOST_COLUMNS = 32  # of a cube; beyond, derivatives in every direction take too many evaluations
MOST_TURNED = 12  # columns of a sphere: every pair of them is a rotation
POINTS = 80  # at which derivatives are taken
CHECKED = 800  # at which directions are checked
ARM = 1e-4  # of the derivatives' differences, in units of the domain
FLAT = 1e-5  # of the largest derivative: what is smaller is taken for none, and then checked
NEAR = 0.2  # of the target's spread: directions with a larger error than that are not improved
SAME = 1e-10  # of the target's spread: the largest change allowed along what is left out
SHARE = 0.02  # of the tolerance: the same, where one is asked for
CLOSE = 1e-6  # two directions are the same up to that
AXIS = 1e-6  # entries of a projection that close to 0 or 1 are taken for them


def few_directions(target: Target, domain: Sphere | Cube, tolerance: float | None = None) -> list[Floats]:
    """Each W there is: orthonormal rows `(direction, column)`, fewer than columns, with f(x) = F(W x).

    Rows are coordinate axes where they can be. F may change by a small share of `tolerance` along what is left out. On
    a sphere, there may be several that leave one direction out; of a W of fewer directions there is one.
    """
    if domain.columns > (MOST_TURNED if isinstance(domain, Sphere) else MOST_COLUMNS) or domain.columns < 2:
        return []
    rng = np.random.default_rng(POINTS)
    values = target.evaluate(domain.sample(CHECKED, rng))
    spread = float(np.ptp(values, axis=0).max())
    if not spread > 0:
        return []
    allowed = max(SAME * spread, SHARE * (tolerance or 0.0))
    found: list[Floats] = []
    flat = max(FLAT, allowed / spread)
    for left_out in _left_out(target, domain, flat, rng):
        count = left_out.shape[1]
        if not 0 < count < domain.columns or any(np.abs(known @ left_out).max() < CLOSE for known in found):
            continue
        change = _Change(target, domain, count)
        best = _axes(left_out)
        if best is None or change.largest(best) > allowed:
            best = left_out if change.largest(left_out) > NEAR * spread else change.improved(left_out)
        if change.largest(best) <= allowed and not any(np.abs(known @ best).max() < CLOSE for known in found):
            found.append(_rest(best))
        if count > 1 and found:
            break
    return found


def _left_out(target: Target, domain: Sphere | Cube, flat: float, rng: np.random.Generator) -> Iterator[Floats]:
    return _turned(target, domain, flat, rng) if isinstance(domain, Sphere) else _moved(target, domain, flat, rng)


def _moved(target: Target, cube: Cube, flat: float, rng: np.random.Generator) -> Iterator[Floats]:
    """What the gradient never points to, `(column, left out)`."""
    half = np.ptp(cube.box, axis=1) / 2
    points = cube.box.mean(axis=1) + (1 - 2 * ARM) * (cube.sample(POINTS, rng) - cube.box.mean(axis=1))
    steps = ARM * np.diag(half)
    derivatives = [
        (target.evaluate(points + step) - target.evaluate(points - step)) / (2 * length)
        for step, length in zip(steps, ARM * half, strict=True)
    ]
    yield _null(np.stack(derivatives, axis=2).reshape(-1, cube.columns), flat)


def _turned(target: Target, sphere: Sphere, flat: float, rng: np.random.Generator) -> Iterator[Floats]:
    """The directions that rotations turn which leave the target as it is; then single ones, to be reflected."""
    columns = sphere.columns
    points, planes = sphere.sample(POINTS, rng), list(itertools.combinations(range(columns), 2))
    derivatives = [
        (target.evaluate(_rotated(points, plane, ARM)) - target.evaluate(_rotated(points, plane, -ARM))) / (2 * ARM)
        for plane in planes
    ]
    still = _null(np.stack(derivatives, axis=2).reshape(-1, len(planes)), flat)
    generators = np.zeros((still.shape[1], columns, columns))
    for row, (i, j) in enumerate(planes):
        generators[:, i, j], generators[:, j, i] = still[row], -still[row]
    sizes, axes = np.linalg.eigh(np.einsum("gij,gik->jk", generators, generators))
    turning = axes[:, sizes > 1e-4]
    if turning.shape[1] * (turning.shape[1] - 1) // 2 == still.shape[1] > 0:
        yield turning
    yield from (axis[:, None] for axis in np.eye(columns))
    points = sphere.spread(20_000)
    values = target.evaluate(points)
    values = (values - values.mean(axis=0))[:, :4]
    for power, output in itertools.product((1, 2), range(values.shape[1])):
        moments = np.einsum("b,bi,bj->ij", values[:, output] ** power, points, points)
        yield from (axis[:, None] for axis in np.linalg.eigh(moments)[1].T)


def _rotated(points: Floats, plane: tuple[int, int], angle: float) -> Floats:
    found = np.array(points)
    first, second = points[:, plane[0]], points[:, plane[1]]
    found[:, plane[0]] = np.cos(angle) * first - np.sin(angle) * second
    found[:, plane[1]] = np.sin(angle) * first + np.cos(angle) * second
    return found


def _null(derivatives: Floats, flat: float) -> Floats:
    """Directions `(column, found)` in which derivatives `(row, column)` are `flat` times the largest, or less."""
    _, scale, right = np.linalg.svd(derivatives, full_matrices=True)
    sizes = np.zeros(derivatives.shape[1])
    sizes[: len(scale)] = scale
    found: Floats = right[sizes <= flat * sizes[0]].T
    return found


class _Change:
    """How much the target changes where points are moved along what is left out, and nothing else."""

    def __init__(self, target: Target, domain: Sphere | Cube, count: int) -> None:
        rng = np.random.default_rng(CHECKED)
        self.target, self.domain = target, domain
        self.points, self.others = domain.sample(CHECKED, rng), domain.sample(CHECKED, rng)
        self.values = target.evaluate(self.points)
        # On a sphere: a random orthogonal map for each point; of one direction, its reflection.
        draws = np.linalg.qr(rng.standard_normal((CHECKED, count, count)))[0]
        self.turns = -np.ones((CHECKED, 1, 1)) if count == 1 else draws

    def of(self, left_out: Floats, rows: slice = slice(None)) -> Floats:
        """The change `(row * output,)`."""
        along = self.points[rows] @ left_out
        if isinstance(self.domain, Sphere):
            shift = (np.einsum("bij,bj->bi", self.turns[rows], along) - along) @ left_out.T
            moved = self.points[rows] + shift
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        else:
            shift = (self.others[rows] @ left_out - along) @ left_out.T
            lower, upper = self.domain.box.T
            room = np.where(shift > 0, upper - self.points[rows], self.points[rows] - lower)
            part = (room / np.maximum(np.abs(shift), 1e-300)).min(axis=1).clip(0.0, 1.0)
            moved = np.clip(self.points[rows] + part[:, None] * shift, lower, upper)
        change: Floats = (self.target.evaluate(moved) - self.values[rows]).ravel()
        return change

    def largest(self, left_out: Floats) -> float:
        """The largest change at all points."""
        return float(np.abs(self.of(left_out)).max())

    def improved(self, left_out: Floats) -> Floats:
        """Directions close by with less change, by Gauss and Newton's method."""
        rest, shape = _rest(left_out).T, (left_out.shape[0] - left_out.shape[1], left_out.shape[1])

        def turned(tilt: Floats) -> Floats:
            return np.linalg.qr(left_out + rest @ tilt.reshape(shape))[0]

        def change(tilt: Floats) -> Floats:
            return self.of(turned(tilt), slice(0, CHECKED // 2))

        found = least_squares(change, np.zeros(shape).ravel(), xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=30)
        return turned(found.x)


def _axes(left_out: Floats) -> Floats | None:
    """The coordinate axes that are left out, where the directions span such."""
    projection = left_out @ left_out.T
    whole = np.round(projection)
    if np.abs(projection - whole).max() > AXIS or np.count_nonzero(whole) != left_out.shape[1]:
        return None
    return np.eye(len(left_out))[:, np.flatnonzero(whole.diagonal())]


def _rest(left_out: Floats) -> Floats:
    """Orthonormal rows that span the orthogonal complement of the columns; axes where it is spanned by axes."""
    whole = _axes(left_out)
    if whole is not None:
        return np.eye(len(left_out))[~whole.any(axis=1)]
    return np.linalg.svd(left_out, full_matrices=True)[0][:, left_out.shape[1] :].T
