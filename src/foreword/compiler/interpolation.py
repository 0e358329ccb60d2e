"""Polynomials through Chebyshev points of a box, how far they are from an analytic function, and how large they are.

Statement C.3 (docs/theory). With p points x_j = cos((2j + 1) pi / 2p) on [-1, 1]:
* a function bounded by B on the ellipse with foci -1, 1 and half-axes (rho + 1/rho)/2, (rho - 1/rho)/2 differs from its
  interpolant by at most 4 B rho^(1-p) / (rho - 1);
* the interpolant of values <= 1 is <= (2/pi) log p + 1 =: L_p;
* on a box, F - IF = sum_i I_1 ... I_(i-1) (F - I_i F), so the axes' errors add, each times the L of the axes before it,
  and each needs F on the ellipse of *one* axis only, the others real;
* a polynomial of degree n is at most max_j |P(x_j)| / cos(n pi / 2M) on [-1, 1], the x_j being M > n such points
  (Ehlich and Zeller, 1964; from Riesz's lemma on trigonometric polynomials).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from foreword.compiler.arrays import Floats


@lru_cache(maxsize=256)
def nodes(count: int) -> Floats:
    """The Chebyshev points of the first kind; for one, the middle."""
    found = np.cos((2 * np.arange(count) + 1) * math.pi / (2 * count)) if count > 1 else np.zeros(1)
    found.setflags(write=False)
    return found


@lru_cache(maxsize=256)
def grid(counts: tuple[int, ...]) -> Floats:
    """The nodes of a box `(point, axis)`, the last axis fastest."""
    found = np.stack(np.meshgrid(*[nodes(count) for count in counts], indexing="ij"), axis=-1).reshape(-1, len(counts))
    found.setflags(write=False)
    return found


@lru_cache(maxsize=256)
def to_coefficients(count: int) -> Floats:
    """The matrix `(degree, node)` from values at the nodes to Chebyshev coefficients."""
    angles = np.outer(np.arange(count), (2 * np.arange(count) + 1) * math.pi / (2 * count))
    found: Floats = np.cos(angles) * (2.0 / count)
    found[0] /= 2
    return found


@lru_cache(maxsize=256)
def to_values(degrees: int, count: int) -> Floats:
    """The matrix `(point, degree)` from coefficients of degree < `degrees` to values at `count` Chebyshev points."""
    angles = (2 * np.arange(count) + 1) * math.pi / (2 * count)
    found: Floats = np.cos(np.outer(angles, np.arange(degrees)))
    return found


def amplification(count: int) -> float:
    """L_p, an upper bound on the Lebesgue constant of `count` Chebyshev points."""
    return 1.0 if count == 1 else (2 / math.pi * math.log(count) + 1) * (1 + 1e-12)


def along_axes(matrices: Sequence[Floats], values: Floats) -> Floats:
    """`values` `(cell, n_1, ..., n_m, output)` with each matrix `(new, n_i)` applied to its axis."""
    for axis, matrix in enumerate(matrices, start=1):
        moved = np.moveaxis(values, axis, -1)
        values = np.moveaxis(moved @ matrix.T, -1, axis)
    return values


def coefficients_of(values: Floats) -> Floats:
    """Chebyshev coefficients of the interpolants of `values` `(cell, p_1, ..., p_m, output)`, in the same shape."""
    return along_axes([to_coefficients(count) for count in values.shape[1:-1]], values)


def transform_error(counts: Sequence[int]) -> float:
    """How far, relative to the largest value, evaluating coefficients can be from the values they were made of.

    Each axis costs p + 8 roundings each way, every coefficient may be twice the largest value on each axis, and as many
    are added as there are nodes.
    """
    size = math.prod(2.0 * count for count in counts)
    return 2.0**-52 * size * sum(count + 8.0 for count in counts) * 2


def sizes_by_degree(coefficients: Floats) -> list[Floats]:
    """For each axis `(cell, degree, output)`: the sum of |coefficients| over all other axes."""
    size = np.abs(coefficients)
    axes = range(1, size.ndim - 1)
    return [size.sum(axis=tuple(other for other in axes if other != axis)) for axis in axes]


def largest(coefficients: Floats, oversampling: int) -> tuple[Floats, Floats]:
    """Upper bound on |P| over the box `(cell, output)`, and where it is largest on a fine grid `(cell, axis)`.

    `oversampling` points for each degree and axis. Trailing degrees that are below a hundredth of the whole are bounded
    by the sum of their coefficients, which lets the grid be coarser.
    """
    counts = coefficients.shape[1:-1]
    tail = np.zeros((len(coefficients), coefficients.shape[-1]))
    whole = np.abs(coefficients).reshape(len(coefficients), -1).max(axis=1).max(initial=0.0)
    kept = coefficients
    for axis, sizes in enumerate(sizes_by_degree(coefficients), start=1):
        behind = np.cumsum(sizes[:, ::-1], axis=1)[:, ::-1]  # sum of this degree and all above it
        small = np.flatnonzero(behind.max(axis=(0, 2)) <= 0.01 * whole)
        if small.size and small[0] >= 1:
            tail = tail + behind[:, small[0]]
            kept = np.take(kept, range(small[0]), axis=axis)
    degrees = kept.shape[1:-1]
    fine = [1 if degree == 1 else max(oversampling * (degree - 1), degree + 1) for degree in degrees]
    factor = math.prod(1 / math.cos((d - 1) * math.pi / (2 * f)) for d, f in zip(degrees, fine, strict=True))
    values = np.abs(along_axes([to_values(d, f) for d, f in zip(degrees, fine, strict=True)], kept))
    flat = values.reshape(len(values), -1, values.shape[-1])
    found = flat.max(axis=1) * factor + tail
    place = np.unravel_index(flat.max(axis=2).argmax(axis=1), fine)
    where = np.stack([nodes(f)[index] for f, index in zip(fine, place, strict=True)], axis=1)
    whole_sum = np.abs(coefficients).reshape(len(values), -1, values.shape[-1]).sum(axis=1)
    return found * (1 + 1e-12) + 2.0**-52 * sum(count + 8.0 for count in counts) * whole_sum, where
