"""Evenly placed points, and how far any point of the domain can be from the nearest of them.

The covering radius is what the a-priori bound of soft nearest neighbours needs (statement A.2, docs/theory). Here it
is an upper bound that holds: its only premises are IEEE arithmetic and libm within a few ulp. This module knows no
target.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.spatial import ConvexHull, QhullError, cKDTree
from scipy.special import gammaln

from foreword.compiler.arrays import Floats
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.lattices import icosahedral, points_of, regular, size_of, tori, triangle_numbers

Indices = NDArray[np.intp]

GOLDEN_ANGLE = math.pi * (3.0 - math.sqrt(5.0))
SUPER_FIBONACCI = 1.533751168755204288118041  # psi of super-Fibonacci spirals (Alexa, CVPR 2022): psi^4 = psi + 4
SLACK = 1e-14  # more than the roundings of a scalar product of unit vectors in up to 40 dimensions

# (covering radius)^m * positions of the nets that `net_within` makes, m = 1, 2, 3; m >= 4 is layered.
COVERING = {1: math.pi, 2: 5.4, 3: 10.6}
FEW = 10_000  # up to so many points a net is relaxed, which then costs a second
SPIRALS = 600  # up to so many points a relaxed spiral may do better than a lattice: both are made
SCANNED = tuple(1.0 + 0.01 * step for step in range(16))  # what tori of so few points are made for, in radii


@dataclass(frozen=True)
class Net:
    """`points` `(position, column)`; every point of the domain lies within `radius` of one of them.

    On a sphere the radius is an angle, on a cube a Euclidean length.
    """

    points: Floats
    radius: float


def sphere_net(dimension: int, count: int) -> Floats:
    """Points `(count, m + 1)` spread evenly over S^m, in no particular direction.

    Equal angles (m = 1), a Fibonacci spiral (2), a relaxed super-Fibonacci spiral (3), relaxed Kronecker points (4 on).

    >>> sphere_net(2, 100).shape
    (100, 3)
    """
    return np.array(_sphere_net(dimension, count))


@lru_cache(maxsize=64)
def _sphere_net(dimension: int, count: int) -> Floats:
    if dimension == 1:
        angles: Floats = (2 * math.pi / count) * (np.arange(count, dtype=np.float64)[:, None] + 0.25)
        return Sphere(1).embed(angles)
    if dimension == 2:
        return _fibonacci(count)
    if dimension == 3:
        return relaxed(_super_fibonacci(count), rounds=8)
    return _relaxed_by_samples(Sphere(dimension).spread(count), rounds=10)


def _fibonacci(count: int) -> Floats:
    """Equal areas along z, a golden angle apart."""
    step = np.arange(count) + 0.5
    height = 1.0 - 2.0 * step / count
    width, angle = np.sqrt(1.0 - height**2), GOLDEN_ANGLE * step
    return np.stack([width * np.cos(angle), width * np.sin(angle), height], axis=1)


def _super_fibonacci(count: int) -> Floats:
    """Two spirals at once on S^3."""
    step = np.arange(count) + 0.5
    inner, outer = np.sqrt(step / count), np.sqrt(1.0 - step / count)
    first, second = 2 * math.pi * step / math.sqrt(2.0), 2 * math.pi * step / SUPER_FIBONACCI
    return np.stack(
        [inner * np.sin(first), inner * np.cos(first), outer * np.sin(second), outer * np.cos(second)], axis=1
    )


def relaxed(points: Floats, *, rounds: int) -> Floats:
    """The points on S^m, m >= 2, each moved `rounds` times to the middle of the Delaunay circumcentres around it.

    The mean is weighted by the facets' volume. It needs the hull in m + 1 dimensions: sensible up to m = 4. When the
    points do not surround the centre they stay as they are.
    """
    for _ in range(rounds):
        try:
            hull = ConvexHull(points, qhull_options="Qt")
        except QhullError:  # too few points, or all in one plane
            return points
        volume = np.abs(np.linalg.det(points[hull.simplices]))
        centres = hull.equations[:, :-1] * volume[:, None]
        moved = np.zeros_like(points)
        for corner in range(points.shape[1]):
            for column in range(points.shape[1]):
                moved[:, column] += np.bincount(hull.simplices[:, corner], centres[:, column], len(points))
        norm = np.linalg.norm(moved, axis=1, keepdims=True)
        if norm.min() <= 1e-12:
            return points
        points = moved / norm
    return points


def _relaxed_by_samples(points: Floats, *, rounds: int, per_point: int = 60) -> Floats:
    """Lloyd's algorithm on evenly spread samples, for dimensions where the hull has too many facets."""
    samples = Sphere(points.shape[1] - 1).spread(per_point * len(points))
    for _ in range(rounds):
        owner = cKDTree(points).query(samples)[1]
        moved = np.stack([np.bincount(owner, column, len(points)) for column in samples.T], axis=1)
        norm = np.linalg.norm(moved, axis=1, keepdims=True)
        points = np.where(norm > 1e-12, moved / np.maximum(norm, 1e-12), points)
    return points


def covering_radius(points: Floats) -> float:
    """An angle that no point of the sphere is further away from all `points` `(count, m + 1)` of norm 1; pi at worst.

    m = 1: half the largest gap. Else from the hull's simplices. Let x lie in the cone of a simplex with vertices b_i,
    x = sum c_i b_i with c_i >= 0, and let n be any vector with <n, b_i> >= h > 0 for all i. Then <n, x> >= h sum c_i,
    so sum c_i <= |n| / h, and 1 = <x, x> = sum c_i <x, b_i> <= (|n| / h) max <x, b_i>: x is within arccos(h / |n|) of
    a vertex. That holds for any n; the hull's normals make it tight. The cones cover the sphere because the simplices
    form a cycle modulo 2 (each ridge belongs to an even number) whose degree is odd (a generic point lies in an odd
    number of cones), both of which are verified here, whatever the hull's own rounding.
    """
    if points.shape[1] == 2:
        angles = np.sort(np.arctan2(points[:, 0], points[:, 1]))
        gaps = np.diff(angles, append=angles[0] + 2 * math.pi)
        return float(gaps.max()) / 2 + SLACK
    try:
        hull = ConvexHull(points, qhull_options="Qt")
    except QhullError:
        return math.pi
    simplices: Indices = np.asarray(hull.simplices, dtype=np.intp)
    normals = hull.equations[:, :-1]
    heights = np.einsum("fc,fvc->fv", normals, points[simplices]).min(axis=1) / np.linalg.norm(normals, axis=1)
    height = float(heights.min()) - SLACK
    if height <= 0 or not _is_cycle(simplices) or not _has_odd_degree(points, simplices, height):
        return math.pi
    return min(math.acos(height) * (1 + 1e-15), math.pi)


def _is_cycle(simplices: Indices) -> bool:
    """Whether every ridge (a simplex without one vertex) occurs an even number of times."""
    ordered = np.sort(simplices, axis=1)
    width = ordered.shape[1]
    ridges = np.concatenate([np.delete(ordered, corner, axis=1) for corner in range(width)])
    ridges = ridges[np.lexsort(ridges.T)]
    starts = np.flatnonzero(np.r_[True, (np.diff(ridges, axis=0) != 0).any(axis=1), True])
    return bool((np.diff(starts) % 2 == 0).all())


def _has_odd_degree(points: Floats, simplices: Indices, height: float) -> bool:
    """Whether a generic point, the middle of some simplex, lies in an odd number of cones: decided with a margin."""
    for simplex in simplices[:: max(1, len(simplices) // 20)]:
        middle = points[simplex].mean(axis=0)
        middle /= np.linalg.norm(middle)
        # A cone that holds the point has a vertex at least this close to it, by the inequality above.
        near = simplices[(points @ middle >= height - SLACK)[simplices].any(axis=1)]
        corners = np.swapaxes(points[near], 1, 2)
        if np.abs(np.linalg.det(corners)).min() < 1e-14:
            continue
        shares = np.linalg.solve(corners, np.broadcast_to(middle[:, None], (len(near), len(middle), 1)))[..., 0]
        smallest = shares.min(axis=1)
        if np.abs(smallest).min() > 1e-7:
            return bool((smallest > 0).sum() % 2 == 1)
    return False


def net_within(domain: Sphere | Cube, radius: float, *, limit: int) -> Net | None:
    """A net of small size whose covering radius is at most `radius`; None when it would take more than `limit` points.

    >>> len(net_within(Sphere(1), 0.1, limit=1000).points)
    32
    """
    if isinstance(domain, Cube):
        counts = np.maximum(1, np.ceil(_cell_counts(domain, radius) - 1e-9)).astype(int)
        return cube_net(domain, counts) if math.prod(counts.tolist()) <= limit else None
    if positions_for(domain, radius) > 2.0 * limit + 50:
        return None
    coarse = regular(domain.dimension, radius)
    if coarse is not None:
        return Net(*coarse) if len(coarse[0]) <= limit else None
    if domain.dimension > 3:
        return _layered(domain.dimension, radius, limit)
    if domain.dimension == 1:
        count = max(2, math.ceil(math.pi / (radius - SLACK)))
        return _spiral_within(1, radius, count, limit)
    found = [_lattice_within(domain.dimension, radius, limit)]
    if positions_for(domain, radius) <= SPIRALS:
        found.append(_spiral_within(domain.dimension, radius, domain.dimension + 2, limit))
    nets = [net for net in found if net is not None]
    return min(nets, key=lambda net: len(net.points)) if nets else None


def _spiral_within(dimension: int, radius: float, count: int, limit: int) -> Net | None:
    """The first net of `sphere_net_of` that is fine enough, from `count` points on."""
    while count <= limit:
        net = sphere_net_of(dimension, count)
        if net.radius <= radius:
            return net
        count = max(count + 1, math.ceil(count * min(1.3, 0.99 * (net.radius / radius) ** dimension)))
    return None


def _lattice_within(dimension: int, radius: float, limit: int) -> Net | None:
    """A lattice of `lattices` that is fine enough, m = 2 or 3: first guesses are too coarse, and then corrected."""
    if dimension == 2:
        wanted = (0.9 * COVERING[2] / radius**2 - 2) / 10
        for number, h, k in triangle_numbers(max(1, (limit - 2) // 10)):
            if number >= wanted:
                net = _eased(icosahedral(h, k))
                if net.radius <= radius:
                    return net
                wanted = max(number + 1, 0.99 * number * (net.radius / radius) ** 2)
        return None
    about = positions_for(Sphere(3), radius)
    scales = SCANNED if about <= SPIRALS else SCANNED[1:5] if about <= FEW else ()
    nets = [_eased(points_of(tori(radius * scale))) for scale in scales]
    fine = [net for net in nets if net.radius <= radius and len(net.points) <= limit]
    scale = 1.02
    while not fine and scale > 0.5:
        stack = tori(radius * scale)
        if size_of(stack) > limit:
            return None
        net = _eased(points_of(stack))
        fine = [net] if net.radius <= radius else []
        scale *= 0.9995 * min(1.0, radius / net.radius)
    return min(fine, key=lambda net: len(net.points)) if fine else None


def finest_sphere_net(dimension: int, count: int) -> Net:
    """A net of at most `count` points on S^m, m <= 3, with as small a covering radius as we know how to make."""
    nets = []
    if dimension == 2 and count >= 12:
        nets = [_eased(icosahedral(h, k)) for _, h, k in triangle_numbers((count - 2) // 10)[-2:]]
    if dimension == 3 and count >= 16:
        low, high = 0.5 * (COVERING[3] / count) ** (1 / 3), 3.0
        for _ in range(30):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if size_of(tori(middle)) <= count else (middle, high)
        nets = [_eased(points_of(tori(high)))]
    if not nets or count <= SPIRALS:
        nets.append(sphere_net_of(dimension, count))
    return min(nets, key=lambda net: net.radius)


def _eased(points: Floats) -> Net:
    """The points, or those relaxed a little where that covers better."""
    nets = [Net(points, covering_radius(points))]
    if len(points) <= FEW:
        moved = relaxed(points, rounds=2 if points.shape[1] > 3 else 5)
        nets.append(Net(moved, covering_radius(moved)))
    return min(nets, key=lambda net: net.radius)


def sphere_net_of(dimension: int, count: int) -> Net:
    """The net of `count` points with its covering radius, m <= 3; on S^2 relaxed, which a fifth fewer points cover."""
    points = sphere_net(dimension, count)
    if dimension == 2:
        points = relaxed(points, rounds=5)
    return Net(points, covering_radius(points))


def positions_for(domain: Sphere | Cube, radius: float) -> float:
    """About how many points a net of that covering radius has: C_m / radius^m on a sphere; exact for a cube's grid."""
    if isinstance(domain, Cube):
        return float(np.prod(np.maximum(1.0, np.ceil(_cell_counts(domain, radius) - 1e-9))))
    m = domain.dimension
    if m in COVERING:
        return COVERING[m] / max(radius, 1e-90) ** m
    return math.exp(
        min(
            700.0,
            math.log(COVERING[3] * 2.0 ** (m - 3)) - m * math.log(max(radius, 1e-300)) + _log_area(m) - _log_area(3),
        )
    )


def _log_area(dimension: int) -> float:
    half = (dimension + 1) / 2
    return float(math.log(2) + half * math.log(math.pi) - gammaln(half))


def _cell_counts(domain: Cube, radius: float) -> Floats:
    """Cells along each axis so that half a diagonal is the radius: cubic cells, or whole sides where they are short."""
    sides = np.ptp(domain.box, axis=1)
    share = np.full(len(sides), radius**2 / len(sides))
    for _ in range(len(sides)):  # a side shorter than its share leaves the rest to the others
        short = (sides / 2) ** 2 <= share
        if short.all():
            break
        rest = max(radius**2 - float(((sides[short] / 2) ** 2).sum()), 0.0)
        share = np.where(short, share, rest / max(1, int((~short).sum())))
    return np.asarray(sides / (2 * np.sqrt(share)), dtype=np.float64)


def cube_net(domain: Cube, counts: NDArray[np.int_]) -> Net:
    """The middles of `counts` equal cells along each axis; the radius is half a cell's diagonal."""
    axes = [
        lower + (upper - lower) * (np.arange(count) + 0.5) / count
        for (lower, upper), count in zip(domain.sides, counts, strict=True)
    ]
    points = np.stack([axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")], axis=1)
    sides, size = np.ptp(domain.box, axis=1), float(np.abs(domain.box).max())
    half = sides / (2 * np.asarray(counts)) + 4 * np.finfo(float).eps * size
    return Net(points, float(np.linalg.norm(half)) * (1 + 1e-15))


def _layered(dimension: int, radius: float, limit: int) -> Net | None:
    """Layers of equal latitude, each carrying a net of the sphere one dimension lower; any dimension above one.

    A point at latitude a within half a step of a layer at a' is at angle t <= r' from a point of the layer's net, so
    cos d = sin a sin a' + cos a cos a' cos t is smallest at t = r' and, being a sinusoid in a that is concave where it
    is positive, at one of the strip's two ends. A layer north of the equator mirrors one south of it.
    """
    layers = max(1, math.ceil(math.pi / (2 * radius / math.sqrt(dimension))))
    edges = np.linspace(-math.pi / 2, math.pi / 2, layers + 1).tolist()
    points: list[Floats] = []
    worst, left = 0.0, limit
    for number in range((layers + 1) // 2):
        lower, upper = edges[number], edges[number + 1]
        is_mirrored = number != layers - 1 - number
        middle = (lower + upper) / 2 if is_mirrored else 0.0
        share = left // 2 if is_mirrored else left
        lesser = net_within(Sphere(dimension - 1), _reach(lower, middle, upper, radius), limit=share)
        if lesser is None:
            return None
        count = len(lesser.points)
        ring = np.concatenate([np.full((count, 1), math.sin(middle)), math.cos(middle) * lesser.points], axis=1)
        ring /= np.linalg.norm(ring, axis=1, keepdims=True)
        points.append(ring)
        if is_mirrored:
            points.append(ring * np.array([-1.0] + [1.0] * dimension))
        left -= count * (1 + is_mirrored)
        worst = max(worst, _strip_radius(lower, middle, upper, lesser.radius))
    return Net(np.concatenate(points), worst)


def _strip_radius(lower: float, middle: float, upper: float, reach: float) -> float:
    """The largest distance from a strip's point to the layer's net of covering radius `reach`."""
    least = min(
        math.sin(end) * math.sin(middle) + math.cos(end) * math.cos(middle) * math.cos(reach) for end in (lower, upper)
    )
    return math.acos(max(-1.0, least - SLACK)) if least > SLACK else math.pi


def _reach(lower: float, middle: float, upper: float, radius: float) -> float:
    """The largest covering radius in the layer that keeps the strip within `radius`; at most pi."""
    if _strip_radius(lower, middle, upper, math.pi) <= radius:
        return math.pi
    return float(brentq(lambda reach: _strip_radius(lower, middle, upper, reach) - radius, 0.0, math.pi)) * (1 - 1e-12)
