"""Values by least squares on softmax features, within a limit, then towards the smallest largest error.

With weights W `(point, position)` at samples and the target's values F, minimise |W v - F|^2 + mu^2 |v - middle|^2:
through one singular value decomposition the solution for every mu is at hand, and the least mu whose values keep to
the limit is found by bisection. Weights sum to 1, so values may be counted from the middle of F. Lawson's reweighting
then moves the squared error towards the largest error (Lawson 1961; each point's weight is multiplied by its error).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, qr, svd

from foreword.compiler.arrays import Floats

LEAST = -15.5  # log10 of the least mu, in units of the largest singular value: float64 bears no less
MOST = 3.0
BISECTIONS = 16
LAWSON = 8  # rounds of reweighting, as a rule
NOTHING = 1e-100  # of the largest singular value
RELAXED = 1.5  # Lawson's values are larger than those of plain least squares; a larger mu keeps them in the limit


@dataclass(frozen=True)
class Factors:
    """W = left @ diag(scale) @ right."""

    left: Floats
    scale: Floats
    right: Floats

    @classmethod
    def of(cls, weights: Floats) -> Factors:
        """Decompose weights `(point, position)`; the plain LAPACK driver where the fast one does not converge."""
        try:
            found = svd(weights, full_matrices=False, check_finite=False)
        except LinAlgError:
            found = svd(weights, full_matrices=False, check_finite=False, lapack_driver="gesvd")
        left, scale, right = found
        kept = scale > NOTHING * scale[0]  # a position that no point attends to has a singular value of zero
        return cls(left[:, kept], scale[kept], right[kept])


@dataclass(frozen=True)
class Solved:
    """Values `(position, output)` and the regularisation `(output,)` that keeps them within the limit."""

    values: Floats
    damping: Floats


def bounded(factors: Factors, wanted: Floats, limit: float) -> Solved:
    """Values with the least regularisation that keeps every magnitude within `limit`, for each output by itself.

    `wanted` is `(point, output)`, its magnitude below the limit.
    """
    middle = middle_of(wanted)
    return _bounded(factors, factors.left.T @ (wanted - middle), middle, limit)


def sketched(weights: Floats, wanted: Floats, limit: float) -> Solved:
    """What `bounded` gives, for a third of the time: there is nothing to level it with.

    Of [W, F - middle] = Q R, R is a square triangle, and |W u - F + middle| = |R_1 u - R_2| + what no u changes: the
    decomposition of R_1 is that of W, and Q is never made.
    """
    count, middle = weights.shape[1], middle_of(wanted)
    (triangle,) = qr(np.concatenate([weights, wanted - middle], axis=1), mode="r", check_finite=False)
    factors = Factors.of(triangle[:count, :count])
    return _bounded(factors, factors.left.T @ triangle[:count, count:], middle, limit)


def _bounded(factors: Factors, shares: Floats, middle: Floats, limit: float) -> Solved:
    """See `bounded`; `shares` `(rank, output)` of the target less its `middle` in the left singular vectors."""

    def values(power: Floats) -> Floats:
        damping = 10.0**power * factors.scale[0]
        found: Floats = factors.right.T @ (shares * _inverse(factors.scale, damping)) + middle
        return found

    low, high = np.full(len(middle), LEAST), np.full(len(middle), MOST)
    fits = np.abs(values(low)).max(axis=0) <= limit
    high = np.where(fits, low, high)
    for _ in range(0 if fits.all() else BISECTIONS):
        half = (low + high) / 2
        fits = np.abs(values(half)).max(axis=0) <= limit
        low, high = np.where(fits, low, half), np.where(fits, half, high)
    return Solved(values(high), 10.0**high * factors.scale[0])


def levelled(factors: Factors, wanted: Floats, limit: float, start: Solved, *, rounds: int) -> Floats:
    """Values `(position, output)` of a smaller largest error at the samples, within `limit`; else the start's."""
    middle = middle_of(wanted)
    columns = [
        _levelled(factors, wanted[:, j] - middle[j], middle[j], limit, start.values[:, j], start.damping[j], rounds)
        for j in range(wanted.shape[1])
    ]
    return np.stack(columns, axis=1)


def _levelled(
    factors: Factors, wanted: Floats, middle: float, limit: float, start: Floats, damping: float, rounds: int
) -> Floats:
    best, least = start, np.inf
    penalty = np.diag((RELAXED * damping / factors.scale) ** 2)
    weights = np.ones(len(wanted))
    for _ in range(rounds):
        weighted = factors.left.T * weights
        try:
            shares = cho_solve(cho_factor(weighted @ factors.left + penalty), weighted @ wanted)
        except LinAlgError:
            break
        values = factors.right.T @ (shares / factors.scale) + middle
        error = np.abs(factors.left @ shares - wanted)
        if np.abs(values).max() <= limit and error.max() < least:
            best, least = values, float(error.max())
        weights = weights * (error / max(float(error.mean()), 1e-300) + 1e-3)
        weights /= weights.mean()
    return best


def middle_of(wanted: Floats) -> Floats:
    """What values are counted from: the mean of each output."""
    middle: Floats = wanted.mean(axis=0)
    return middle


def _inverse(scale: Floats, damping: Floats) -> Floats:
    """s / (s^2 + mu^2) for singular values `(rank,)` and mu `(output,)`, as `(rank, output)`."""
    found: Floats = scale[:, None] / (scale[:, None] ** 2 + damping[None, :] ** 2)
    return found
