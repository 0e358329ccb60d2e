"""The a-priori bounds of soft nearest neighbours, checked in ball arithmetic (statement A.2).

For keys along a net of covering radius delta, values f at the net, f L-Lipschitz, and every r > delta,

    |f - g| <= L (r + D N e^-(lambda (C(delta) - C(r)))),

D the largest distance of a point to a key; C = cos on the sphere, where the keys' lengths lie near lambda; C = -r^2 / 2
on a cube, where keys and biases make Gaussians. The covering radius is found anew: half the largest gap on a circle,
from a triangulation by hull facets on higher spheres, axis by axis for a grid. Where none is found, g is still an
average of values f(b_k): |f - g| <= L D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flint import arb, arb_mat
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from foreword.compiler.arrays import Floats
from foreword.compiler.balls import Balls, as_balls
from foreword.compiler.charts import Chart, Flat
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.head import Head

Watch = Callable[[float], None]

WATCHED = 256  # facets between two calls
ALMOST_BACK = 1e-9  # tangent of how far two opposite keys may be from half a turn


@dataclass(frozen=True)
class NearestBound:
    """`error` bounds |f - g| over the domain when `values` are f at `net` `(position, column)`."""

    error: arb
    net: Balls


def nearest_bound(
    head: Head, lipschitz: float, *, domain: Domain, chart: Chart, watch: Watch = lambda _: None
) -> NearestBound | None:
    """Statement A.2 for a head whose keys are along a net; None when none was found.

    `lipschitz` is in angles on a sphere and in Euclidean distance on a cube; a Euclidean constant serves for both.
    `watch` gets the share of the net that was examined, now and then, and stops the work by raising.
    """
    match domain, chart:
        case Sphere(), _ if chart.name == "identity":
            found = _on_the_sphere(head, watch)
        case Cube(), Flat():
            found = _on_the_cube(head, domain, chart)
        case _:
            found = None
    if found is None or not found.error.is_finite():
        return None
    return NearestBound((arb(lipschitz) * found.error).upper(), found.net)


def _on_the_sphere(head: Head, watch: Watch) -> NearestBound | None:
    keys = as_balls(head.keys)
    lengths = [(key * key).sum().sqrt() for key in keys]
    if not all(length > 0 for length in lengths):
        return None
    net = keys / np.array(lengths, dtype=object)[:, None]
    cosine = covering_cosine(head.keys, watch)
    if cosine is None:
        return NearestBound(arb.pi().upper(), net)
    shortest, longest = lengths[0].lower(), lengths[0].upper()
    for length in lengths:
        shortest, longest = shortest.min(length.lower()), longest.max(length.upper())
    span = arb(float(head.biases.max())) - arb(float(head.biases.min()))
    nearest = (shortest * cosine).min(longest * cosine)

    def exponent(reach: arb) -> arb:
        """A key beyond r scores at most as much as the longest or the shortest one there; the nearest at least so."""
        far = reach.cos()
        left: arb = nearest - (longest * far).max(shortest * far) - span
        return left

    error = _best(exponent, arb.pi() * head.positions, (cosine.acos().upper(), arb.pi()))
    return NearestBound(arb.pi().upper() if error is None else error.min(arb.pi().upper()), net)


def _on_the_cube(head: Head, domain: Cube, chart: Flat) -> NearestBound | None:
    """Keys u = m h^2 b and biases -m |h b|^2 / 2 up to a constant: Gaussians of sharpness m about the points h b.

    What the biases lack of that, after rounding, is their span.
    """
    half, middle = as_balls(np.array(chart.half)), as_balls(np.array(chart.middle))
    lower, upper = (as_balls(ends) - middle for ends in domain.box.T)
    if head.positions == 1:  # one value everywhere: it may stand at any point
        farthest = sum(
            (low.abs_upper().max(high.abs_upper()) ** 2 for low, high in zip(lower, upper, strict=True)), arb(0)
        )
        return NearestBound(farthest.sqrt().upper(), middle[None, :])
    scaled = head.keys / np.array(chart.half)
    row = int(np.abs(head.biases).argmax())
    if not head.biases[row] < 0:
        return None
    sharpness = arb(float((scaled[row] ** 2).sum() / (-2 * head.biases[row])))
    if not sharpness > 0:
        return None
    squared, diameter = arb(0), arb(0)
    count = 1
    for axis in range(domain.dimension):
        places = as_balls(np.unique(head.keys[:, axis])) / (sharpness * half[axis])
        count *= len(places)
        widest = (places[0] - lower[axis]).max(upper[axis] - places[-1])
        for gap in (places[1:] - places[:-1]) / 2:
            widest = widest.max(gap)
        squared += widest**2
        diameter += (places[-1] - lower[axis]).max(upper[axis] - places[0]) ** 2
    if count != head.positions or len(np.unique(head.keys, axis=0)) != count:
        return None  # not a whole grid
    spare = as_balls(head.biases) + ((as_balls(head.keys) / half) ** 2).sum(axis=1) / (2 * sharpness)
    highest, lowest = spare[0], spare[0]
    for entry in spare:
        highest, lowest = highest.max(entry), lowest.min(entry)
    diameter = diameter.sqrt()
    error = _best(
        lambda reach: sharpness * (reach**2 - squared) / 2 - (highest - lowest),
        diameter * head.positions,
        (squared.sqrt().upper(), diameter),
    )
    return None if error is None else NearestBound(error, middle + as_balls(head.keys) / (sharpness * half))


def _best(exponent: Callable[[arb], arb], factor: arb, ends: tuple[arb, arb]) -> arb | None:
    """The least r + factor e^-exponent(r) over r between `ends`: a heuristic picks r, and any r gives a bound."""
    low, high = (float(end) for end in ends)
    if not 0 < low < high:
        return None
    candidates = low + (high - low) * np.geomspace(1e-7, 1.0, 60)[:-1]
    best: arb | None = None
    for _ in range(6):
        bounds = [(arb(reach) + factor * (-exponent(arb(reach))).exp()).upper() for reach in candidates.tolist()]
        place = min(range(len(bounds)), key=lambda index: float(bounds[index]))
        reach = arb(float(candidates[place]))
        if reach > ends[0] and reach < ends[1] and (best is None or bounds[place] < best):
            best = bounds[place]
        neighbours = candidates[max(place - 1, 0)], candidates[min(place + 1, len(candidates) - 1)]
        candidates = np.linspace(*neighbours, 30)
    return best


def covering_cosine(keys: Floats, watch: Watch = lambda _: None) -> arb | None:
    """A lower bound on the cosine of the keys' covering radius on the unit sphere; None when none was verified."""
    directions = keys / np.linalg.norm(keys, axis=1, keepdims=True)  # used only to guess what is next to what
    return _circle(keys, directions) if keys.shape[1] == 2 else _sphere(keys, directions, watch)


def _circle(keys: Floats, directions: Floats) -> arb | None:
    """Once around the circle, each step a turn to the left, by less than pi or hardly more, which is checked."""
    around = keys[np.argsort(np.arctan2(directions[:, 1], directions[:, 0]))]
    widest = arb(0)
    points = [(arb(x), arb(y)) for x, y in around.tolist()]
    for (a, b), (c, d) in zip(points, points[1:] + points[:1], strict=True):
        cross, dot = a * d - b * c, a * c + b * d
        if cross > 0:
            widest = widest.max(arb.atan2(cross, dot))
        elif dot < 0 and abs(cross) < -ALMOST_BACK * dot:  # half a turn, and rounding may have made it more
            widest = widest.max(arb.pi() + (cross / dot).abs_upper())  # the tangent is above its angle
        elif not (a.overlaps(c) and b.overlaps(d) and dot > 0):  # the same key again
            return None
    return (widest / 2).cos().lower() if widest > 0 else None


def _sphere(keys: Floats, directions: Floats, watch: Watch) -> arb | None:
    """From a closed triangulated surface around the origin whose simplices all turn the same way: it covers.

    Such a surface projects to the sphere with a positive degree, so it misses nothing. Within a simplex with corners
    b_i and n the solution of <n, b_i> = 1 (for all i), x = sum t_i b_i has sum t_i = <n, x> <= |n|, and
    1 = sum t_i <x, b_i>, so some corner has <x, b_i> >= 1 / |n|.
    """
    try:
        facets = ConvexHull(directions, qhull_options="Qt").simplices
    except (QhullError, ValueError):
        return None
    facets = np.array(facets)
    flipped = np.linalg.det(directions[facets]) < 0
    facets[flipped, :2] = facets[flipped, 1::-1]
    if not _is_closed(facets):
        return None
    balls = as_balls(keys)
    units = np.array([key / (key * key).sum().sqrt() for key in balls], dtype=object)
    return _least_cosine(units, facets, watch)


def _least_cosine(units: Balls, facets: NDArray[np.int_], watch: Watch) -> arb | None:
    size = units.shape[1]
    ones = arb_mat([[1]] * size)
    steepest = arb(0)
    for row, facet in enumerate(facets):
        if row % WATCHED == 0:
            watch(row / len(facets))
        corners = arb_mat(units[facet].tolist())
        try:
            normal = corners.solve(ones)
        except ZeroDivisionError:
            return None
        if not corners.det() > 0:
            return None
        steepest = steepest.max(sum((entry * entry for entry in normal.entries()), arb(0)))
    return (1 / steepest.sqrt()).lower()


def _is_closed(facets: NDArray[np.int_]) -> bool:
    """Whether every oriented ridge has its opposite, each exactly once."""
    size = facets.shape[1]
    ridges, signs = [], []
    for corner in range(size):
        ridge = np.delete(facets, corner, axis=1)
        order = np.argsort(ridge, axis=1)
        ridges.append(np.take_along_axis(ridge, order, axis=1))
        signs.append((-1) ** corner * _parity(order))
    every, sign = np.concatenate(ridges), np.concatenate(signs)
    _, inverse, counts = np.unique(every, axis=0, return_inverse=True, return_counts=True)
    return bool((counts == 2).all() and (np.bincount(inverse.ravel(), weights=sign) == 0).all())


def _parity(orders: NDArray[np.int_]) -> NDArray[np.int_]:
    """Signs of permutations, one a row."""
    size = orders.shape[1]
    swaps = sum(
        ((orders[:, i] > orders[:, j]).astype(int) for i in range(size) for j in range(i + 1, size)),
        np.zeros(len(orders), dtype=int),
    )
    return np.where(swaps % 2 == 0, 1, -1)
