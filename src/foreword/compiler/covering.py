"""The a-priori bound of soft nearest neighbours on a sphere, checked in ball arithmetic (statement A.2).

For keys u_k of length near lambda along a net of covering radius delta, values f at the net and f L-Lipschitz,
|f - g| <= L (r + pi N e^-(lambda (cos delta - cos r))) for every r from delta to pi / 2. The covering radius is found
anew: it is half the largest gap on a circle, and on higher spheres it comes from a triangulation by hull facets.
"""

from __future__ import annotations

import numpy as np
from flint import arb, arb_mat
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from foreword.compiler.balls import Balls, as_balls
from foreword.compiler.head import Head

Floats = NDArray[np.float64]


def nearest_bound(head: Head, lipschitz: float) -> arb | None:
    """A bound on |f - g| on the sphere, geodesic `lipschitz`, when `values` are f along the keys; None: no bound."""
    keys = as_balls(head.keys)
    lengths = [(key * key).sum().sqrt() for key in keys]
    if not all(length > 0 for length in lengths):
        return None
    cosine = covering_cosine(head.keys)
    if cosine is None or not cosine > 0:
        return None
    shortest, longest = lengths[0].lower(), lengths[0].upper()
    for length in lengths:
        shortest, longest = shortest.min(length.lower()), longest.max(length.upper())
    radius = cosine.acos().upper()
    # A heuristic picks r; any r in the range gives a bound.
    candidates = float(radius) + (np.pi / 2 - float(radius)) * np.geomspace(1e-6, 1.0, 600)[:-1]
    exponents = float(shortest) * float(cosine) - float(longest) * np.cos(candidates) - np.ptp(head.biases)
    guesses = candidates + np.pi * head.positions * np.exp(-np.maximum(exponents, -700))
    reach = arb(float(candidates[guesses.argmin()]))
    if not (reach > radius and reach < arb.pi() / 2):
        return None
    span = arb(float(head.biases.max())) - arb(float(head.biases.min()))
    exponent = shortest * cosine - longest * reach.cos() - span
    bound = arb(lipschitz) * (reach + arb.pi() * head.positions * (-exponent).exp())
    return bound.upper() if bound.is_finite() else None


def covering_cosine(keys: Floats) -> arb | None:
    """A lower bound on the cosine of the keys' covering radius on the unit sphere; None when none was verified."""
    directions = keys / np.linalg.norm(keys, axis=1, keepdims=True)  # used only to guess what is next to what
    return _circle(keys, directions) if keys.shape[1] == 2 else _sphere(keys, directions)


def _circle(keys: Floats, directions: Floats) -> arb | None:
    """Once around the circle, each step a turn to the left by less than pi, which is checked."""
    around = keys[np.argsort(np.arctan2(directions[:, 1], directions[:, 0]))]
    widest = arb(0)
    points = [(arb(x), arb(y)) for x, y in around.tolist()]
    for (a, b), (c, d) in zip(points, points[1:] + points[:1], strict=True):
        cross, dot = a * d - b * c, a * c + b * d
        if not cross > 0:
            if a.overlaps(c) and b.overlaps(d) and dot > 0:
                continue  # the same key again
            return None
        widest = widest.max(arb.atan2(cross, dot))
    return (widest / 2).cos().lower() if widest > 0 else None


def _sphere(keys: Floats, directions: Floats) -> arb | None:
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
    return _least_cosine(units, facets)


def _least_cosine(units: Balls, facets: NDArray[np.int_]) -> arb | None:
    size = units.shape[1]
    ones = arb_mat([[1]] * size)
    steepest = arb(0)
    for facet in facets:
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
