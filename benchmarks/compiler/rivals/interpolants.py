"""Radial basis functions and polynomials of the same size as a prefix, each given what helps it.

Interpolation is SciPy's, over kernels, shape parameters, two sets of nodes and with or without a polynomial part. The
least-squares fits have several truncations and Lawson's reweighting towards the largest error; nothing limits their
coefficients. All choices are made on the same points of selection as the compiler has, never on those of the judgement.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.linalg import LinAlgError
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.linalg import svd
from scipy.spatial import cKDTree
from targets import Case, Points, drawn

from foreword.compiler.charts import chart_of
from foreword.compiler.construction.even import net_points
from foreword.compiler.domain import Cube, Sphere

Floats = NDArray[np.float64]
Function = Callable[[Floats], Floats]

SHAPED = ("gaussian", "inverse_multiquadric", "multiquadric", "inverse_quadratic")
PLAIN = ("thin_plate_spline", "cubic", "quintic")
SHAPES = np.geomspace(0.03, 2.0, 7)  # the kernel's shape parameter times the spacing of the nodes
REFINED = 6  # golden-section steps about the best of them
CUTS = (1e-14, 1e-11)  # of the singular values of a least-squares fit
LAWSON = 5  # rounds of reweighting
BLOCK = 4_000


@dataclass(frozen=True)
class Result:
    """The largest error at the points of judgement, the seconds that the whole search took, and what was chosen."""

    error: float
    seconds: float
    choice: str


def rbf_interpolation(case: Case, selection: Points, judged: Points) -> Result:
    """The best of the kernels, shapes and nodes."""
    started = time.process_time()
    tried: dict[str, tuple[float, Function]] = {}

    def attempt(
        label: str, nodes: Floats, spacing: float, kernel: str, shape: float | None, degree: int | None
    ) -> float:
        values = case.target.evaluate(_points(case, nodes))[:, 0]
        options = {} if shape is None else {"epsilon": shape / spacing}
        options |= {} if degree is None else {"degree": degree}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = RBFInterpolator(nodes, values, kernel=kernel, **options)
                error = float(np.abs(made(selection.queries[:2_000]) - selection.values[:2_000]).max())
        except (LinAlgError, ValueError):  # a flat kernel's matrix is singular in float64
            return math.inf
        tried[label] = (error if math.isfinite(error) else math.inf, made)
        return tried[label][0]

    for name, nodes in _node_sets(case):
        spacing = _spacing(nodes)
        for kernel in PLAIN:
            attempt(f"{kernel}, {name} nodes", nodes, spacing, kernel, None, None)
        found = {
            (kernel, float(shape)): attempt(
                f"{kernel} {shape:.3g}, {name} nodes", nodes, spacing, kernel, shape, degree
            )
            for kernel in (SHAPED if len(nodes) <= 600 else SHAPED[:1])
            for shape in SHAPES
            for degree in [-1 if kernel != "multiquadric" else None]
        }
        kernel, shape = min(found, key=lambda key: found[key])
        degree = -1 if kernel != "multiquadric" else None
        for step in np.geomspace(1 / 1.8, 1.8, REFINED + 1):
            near = shape * step
            attempt(f"{kernel} {near:.3g}, {name} nodes", nodes, spacing, kernel, near, degree)
    label = min(tried, key=lambda key: tried[key][0])
    return Result(_judge(tried[label][1], judged), time.process_time() - started, label)


def rbf_least_squares(case: Case, selection: Points, judged: Points) -> Result:
    """Gaussians about the same number of centres, on a cube also reaching beyond its sides; coefficients unlimited."""
    started = time.process_time()
    fitted = drawn(case, max(2_000, 3 * case.positions), 1)
    is_cube = isinstance(case.domain, Cube)
    found: list[tuple[float, str, Function]] = []
    centres = _node_sets(case)[0][1]
    shapes = SHAPES[1:] if case.positions <= 400 else SHAPES[1:4]
    for reach, shape in itertools.product((1.0, 1.4, 2.0) if is_cube else (1.0,), shapes):
        width = shape / (reach * _spacing(centres))
        if is_cube:
            function = _separable(case, np.unique(centres[:, 0]) * reach, width)
        else:
            function = _least_squares(lambda queries, width=width: _gaussians(queries, centres, width), fitted)
        error = float(np.abs(function(selection.queries) - selection.values).max())
        found.append((error, f"gaussian {shape:.3g}, reach {reach:g}", function))
    best = min(found, key=lambda made: made[0])
    return Result(_judge(best[2], judged), time.process_time() - started, best[1])


def polynomials(case: Case, selection: Points, judged: Points) -> Result:
    """All polynomials of the largest degree that fits, the sphere's or the cube's; in a cube also a tensor product."""
    started = time.process_time()
    fitted = drawn(case, max(4_000, 6 * case.positions), 2)
    found: list[tuple[float, str, Function]] = []
    for label, exponents in _bases(case):
        features = _chebyshev_features(np.array(exponents))
        function = _least_squares(features, fitted)
        error = float(np.abs(function(selection.queries) - selection.values).max())
        found.append((error, f"{label}, {len(exponents)} terms", function))
    best = min(found, key=lambda made: made[0])
    return Result(_judge(best[2], judged), time.process_time() - started, best[1])


def _least_squares(features: Function, fitted: Points) -> Function:
    """The best of several truncations of the singular values, then of Lawson's reweightings, at the fitting points."""
    left, scale, right = svd(features(fitted.queries), full_matrices=False, check_finite=False)
    found = []
    for cut in CUTS:
        kept = left[:, scale > cut * scale[0]]
        weights = np.ones(len(kept))
        for _ in range(1 + LAWSON):
            weighted = kept.T * weights
            shares = np.linalg.solve(weighted @ kept, weighted @ fitted.values)
            error = np.abs(kept @ shares - fitted.values)
            found.append((float(error.max()), right[: kept.shape[1]].T @ (shares / scale[: kept.shape[1]])))
            weights = weights * (error / max(float(error.mean()), 1e-300) + 1e-3)
            weights /= weights.mean()
    chosen = min(found, key=lambda made: made[0])[1]
    return lambda queries: features(queries) @ chosen


def _separable(case: Case, centres: Floats, width: float) -> Function:
    """Gaussians on a grid, solved axis by axis at Chebyshev points."""
    nodes = -np.cos(np.linspace(0.0, np.pi, 4 * len(centres)))
    columns = case.domain.columns
    grid = np.array(list(itertools.product(nodes, repeat=columns)))
    values = case.target.evaluate(_points(case, grid))[:, 0].reshape([len(nodes)] * columns)
    backwards = np.linalg.pinv(_gaussians(nodes[:, None], centres[:, None], width), rcond=1e-14)
    for axis in range(columns):
        values = np.moveaxis(np.tensordot(backwards, values, axes=(1, axis)), 0, axis)

    def function(queries: Floats) -> Floats:
        found = np.broadcast_to(values, (len(queries), *values.shape))
        for axis in range(columns):
            part = _gaussians(queries[:, axis, None], centres[:, None], width)
            found = np.einsum("bk,bk...->b...", part, found)
        return found

    return function


def _gaussians(queries: Floats, centres: Floats, width: float) -> Floats:
    squares = (queries**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * queries @ centres.T
    found: Floats = np.exp(-(width**2) * np.maximum(squares, 0.0))
    return found


def _judge(function: Function, judged: Points) -> float:
    found = np.concatenate([function(judged.queries[at : at + BLOCK]) for at in range(0, len(judged.queries), BLOCK)])
    return float(np.abs(found - judged.values).max())


def _node_sets(case: Case) -> list[tuple[str, Floats]]:
    """Nodes in query coordinates: the compiler's net on a sphere; even and Chebyshev grids in a cube."""
    if isinstance(case.domain, Sphere):
        return [("even", net_points(case.domain, case.positions))]
    side = round(case.positions ** (1 / case.domain.dimension))
    while side**case.domain.dimension > case.positions:
        side -= 1
    grids = {"even": np.linspace(-1, 1, side), "Chebyshev": -np.cos(np.pi * np.arange(side) / max(1, side - 1))}
    return [
        (name, np.array(list(itertools.product(axis, repeat=case.domain.dimension)))) for name, axis in grids.items()
    ]


def _points(case: Case, queries: Floats) -> Floats:
    chart = chart_of(case.domain)
    if isinstance(case.domain, Sphere):
        return queries
    return queries * np.array(chart.half) + np.array(chart.middle)  # type: ignore[union-attr]


def _spacing(nodes: Floats) -> float:
    """Half the typical distance of neighbours: of the order of the covering radius."""
    return float(np.median(cKDTree(nodes).query(nodes, k=2)[0][:, 1]))


def _bases(case: Case) -> Iterator[tuple[str, list[tuple[int, ...]]]]:
    columns, most = case.domain.columns, case.positions
    if isinstance(case.domain, Sphere):  # the last coordinate's square is a polynomial in the others

        def terms(degree: int) -> list[tuple[int, ...]]:
            powers = itertools.product(range(degree + 1), repeat=columns - 1)
            return [(*p, last) for p in powers for last in (0, 1) if sum(p) + last <= degree]

        yield "degree", _largest(terms, most)
        return

    def total(degree: int) -> list[tuple[int, ...]]:
        return [p for p in itertools.product(range(degree + 1), repeat=columns) if sum(p) <= degree]

    yield "total degree", _largest(total, most)
    yield "tensor", _largest(lambda degree: list(itertools.product(range(degree + 1), repeat=columns)), most)


def _largest(terms: Callable[[int], list[tuple[int, ...]]], most: int) -> list[tuple[int, ...]]:
    degree = 0
    while len(terms(degree + 1)) <= most:
        degree += 1
    return terms(degree)


def _chebyshev_features(exponents: NDArray[np.int64]) -> Function:
    """Products of Chebyshev polynomials of the coordinates, one column for each row of `exponents`."""

    def features(queries: Floats) -> Floats:
        angles = np.arccos(np.clip(queries, -1.0, 1.0))
        found = np.ones((len(queries), len(exponents)))
        for column in range(queries.shape[1]):
            table = np.cos(angles[:, column, None] * np.arange(exponents[:, column].max() + 1))
            found *= table[:, exponents[:, column]]
        return found

    return features
