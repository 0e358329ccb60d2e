"""A callable target near a point, from declared derivatives: its Taylor polynomial and a bound on what is left.

The polynomial of degree 0, 1 or 2 stands in for f; the Lipschitz constant, or the bound on the second or third
derivative, bounds the rest (Taylor's theorem along segments, which is why the bounds are asked for on the convex hull).
What the callables return is taken as exact up to a few roundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.intervals import ULP
from foreword.compiler.rectangles import Rectangle
from foreword.compiler.target import Target

UP = 1 + 1e-9
ON_KINK = 1e-12  # cells that reach no further over a declared kink count as on one side of it


@dataclass(frozen=True)
class Local:
    """On cells, largest distance `reach` from the middle; `parts` are value, gradient and Hessian there.

    `swing` bounds |polynomial - value|, `slope` its derivative by length, `rest` |f - polynomial|, `error` the rounding
    of its values; all `(cell, output)`.
    """

    parts: list[Floats]
    value: Floats
    swing: Floats
    slope: Floats
    rest: Floats
    error: Floats


def smoothness(target: Target) -> tuple[int, float]:
    """How many Taylor terms of a callable are declared (1, 2, 3), and the bound on the next derivative; 0 for none."""
    if target.third is not None and target.gradient is not None and target.hessian is not None:
        return 3, target.third
    if target.second is not None and target.gradient is not None:
        return 2, target.second
    return (1, target.lipschitz) if target.lipschitz is not None else (0, np.inf)


def derivatives_of(target: Target, points: Floats) -> list[Floats]:
    """Gradient `(cell, output, column)` and Hessian `(cell, output, column, column)` at `points`, where declared."""
    order = smoothness(target)[0]
    found = [target.gradient_at(points)] if order >= 2 else []
    return [*found, target.hessian_at(points)] if order == 3 else found


def taylor_of(target: Target, points: Floats, length: Floats, is_split: NDArray[np.bool_]) -> Local:
    """The stand-in at `points` `(cell, column)` for distances up to `length` `(cell,)`.

    Where a kink divides the cell (`is_split`) derivatives say nothing: the Lipschitz constant must do, if there is one.
    """
    value = target.evaluate(points)
    cells, outputs = value.shape
    order, constant = smoothness(target)
    told = derivatives_of(target, points)
    parts = [value, *(np.where(is_split.reshape(-1, *[1] * (each.ndim - 1)), 0.0, each) for each in told)]
    reach, nothing = length[:, None], np.zeros((cells, outputs))
    first = np.linalg.norm(parts[1], axis=2) if len(parts) > 1 else nothing
    second = np.linalg.norm(parts[2], axis=(2, 3)) if len(parts) > 2 else nothing
    rest = constant * reach**order / (1.0, 1.0, 2.0, 6.0)[order] + nothing
    if order > 1:
        lipschitz = np.inf if target.lipschitz is None else target.lipschitz
        # The sliver that may lie beyond a kink, where another gradient holds.
        sliver = 0.0 if not target.kinks else 4 * ON_KINK * (first + constant * (1 + reach))
        rest = np.where(is_split[:, None], lipschitz * reach, rest + sliver)
    rounding = 64 * ULP * (np.abs(value) + first * (reach + 1) + second * reach * (reach + 1))
    return Local(
        parts=parts,
        value=value,
        swing=(first * reach + second * reach**2 / 2) * UP,
        slope=(first + second * reach) * UP,
        rest=(rest + rounding) * UP,
        error=rounding,
    )


def taylor_values(parts: Sequence[Floats], moves: Floats) -> Floats:
    """The polynomial's values `(cell, point, output)` at `moves` `(cell, point, column)` from the middle."""
    found = np.repeat(parts[0][:, None, :], moves.shape[1], axis=1)
    if len(parts) > 1:
        found = found + np.einsum("cpi,coi->cpo", moves, parts[1])
    if len(parts) > 2:
        found = found + np.einsum("cpi,coij,cpj->cpo", moves, parts[2], moves, optimize=True) / 2
    return found


def taylor_size(parts: Sequence[Floats], moves: Sequence[Rectangle]) -> Floats:
    """A bound on |polynomial - value| on complex regions, in the shape of `moves`; `parts` are gradient and Hessian."""
    total = moves[0].scaled(0.0)
    if parts:
        for column, move in enumerate(moves):
            total = total + move.scaled(parts[0][:, column])
    if len(parts) > 1:
        for i, one in enumerate(moves):
            for j, other in enumerate(moves[i:], start=i):
                product = one.square() if i == j else (one * other).scaled(2.0)
                total = total + product.scaled(parts[1][:, i, j] / 2)
    return total.size()
