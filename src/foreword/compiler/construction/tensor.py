"""Prefixes on a grid of keys over a cube: attention weights are products of weights along the axes.

With scores that add up over the axes, softmax over all grid keys is the product of one softmax for each axis, so least
squares on a grid of samples needs one small singular value decomposition for each axis (a Kronecker product's factors)
and no large one. The regularisation is that of `fitting.py`, in the basis of the products.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.construction.fitting import BISECTIONS, LEAST, MOST, Factors
from foreword.compiler.head import Head

# Samples along an axis, by the number of axes: at most a million in all.
NODES = {1: 400, 2: 100, 3: 48, 4: 24, 5: 15, 6: 10}
GRADED_NODES = {1: 600, 2: 200, 3: 80, 4: 40, 5: 25, 6: 16}  # the same along an axis with kinks
CLOSEST = 1e-9  # least distance of such a sample from a kink
CLOSEST_TO_SIDE = 1e-12  # and from a side at which the target is like a root: the square root is 1e-6 there
FAR = 30.0  # sinh(30) scales are beyond every reach


@dataclass(frozen=True)
class Axis:
    """Keys `(count,)` and biases `(count,)` along one flat coordinate in [-1, 1]; `nodes` `(node,)` to sample it at."""

    keys: Floats
    biases: Floats
    nodes: Floats

    def weights(self, coordinate: Floats) -> Floats:
        """Softmax weights `(batch, count)` along the axis."""
        return Head(self.keys[:, None], self.biases, np.empty((len(self.keys), 0))).weights(coordinate[:, None])


def gaussian_axis(count: int, reach: float, overlap: float, nodes: int) -> Axis:
    """Equally spaced Gaussians from -reach to reach, of width 1 / sqrt(overlap) spacings; sampled at Chebyshev points.

    A reach of 2 to 3 is best for smooth targets: keys far outside the cube have next to no weight in it, so that the
    softmax's denominator is nearly constant and the outputs are nearly polynomials.
    """
    if count == 1:
        return Axis(np.zeros(1), np.zeros(1), chebyshev(nodes))
    centres = np.linspace(-reach, reach, count)
    sharpness = overlap * ((count - 1) / (2 * reach)) ** 2
    return Axis(sharpness * centres, -0.5 * sharpness * centres**2, chebyshev(nodes))


def graded_axis(count: int, reach: float, offsets: Sequence[float], scale: float, overlap: float, nodes: int) -> Axis:
    """Keys that crowd towards kinks at `offsets` as |t - offset| + scale does: spacing there about `scale`.

    Centres t_k lie evenly in sum over offsets of asinh((t - offset) / scale), from -reach to reach, but not beyond an
    offset that is an end of [-1, 1]: there the target is like a root, and only one side of it is seen. Neighbours with
    a spacing s differ by overlap / s in key and are equal in score half way: the soft Bregman neighbours (statement A3)
    of a convex function whose second derivative is overlap / s^2.
    """
    if count == 1:
        return Axis(np.zeros(1), np.zeros(1), graded(nodes, offsets))
    first, last = -1.0 if min(offsets) <= -1.0 else -reach, 1.0 if max(offsets) >= 1.0 else reach
    fine = np.concatenate([offset + scale * np.sinh(np.linspace(-1, 1, 4001) * FAR) for offset in offsets])
    fine = np.unique(np.clip(np.concatenate([fine, np.linspace(first, last, 4001)]), first, last))
    height = sum((np.arcsinh((fine - offset) / scale) for offset in offsets), start=np.zeros(len(fine)))
    centres = np.interp(np.linspace(height[0], height[-1], count), height, fine)
    steps = overlap / np.diff(centres)
    keys = np.concatenate([[0.0], np.cumsum(steps)])
    biases = np.concatenate([[0.0], -np.cumsum(steps * (centres[1:] + centres[:-1]) / 2)])
    # Adding to all keys changes no weight. Scores, and their rounding, are to be small: between kinks keys are to lie
    # around zero; where sides are steep, those far from them, so that what is large is that only close to a side.
    has_side = min(offsets) <= -1.0 or max(offsets) >= 1.0
    middle = keys[int(np.diff(centres).argmax())] if has_side else (keys[0] + keys[-1]) / 2
    return Axis(keys - middle, biases - biases.max(), graded(nodes, offsets))


def graded(count: int, offsets: Sequence[float]) -> Floats:
    """About `count` points in [-1, 1]: both sides of each offset have points at geometric distances and Chebyshev's."""
    share = max(4, count // (4 * len(offsets)))
    even = (1.0 - np.cos(np.linspace(0.0, math.pi, share))) / 2
    marks = sorted({-1.0, *offsets, 1.0})
    found = [np.array(marks)]
    for low, high in itertools.pairwise(marks):
        found += [low + (high - low) * even]
        found += [low + (high - low) * _distances(low, share)] if low in offsets else []
        found += [high - (high - low) * _distances(high, share)] if high in offsets else []
    return np.unique(np.clip(np.concatenate(found), -1.0, 1.0))


def _distances(offset: float, share: int) -> Floats:
    """Geometric distances of so many samples from an offset, as shares of the way to the next one."""
    return np.geomspace(CLOSEST_TO_SIDE if abs(offset) >= 1.0 else CLOSEST, 1.0, share)


def chebyshev(count: int) -> Floats:
    """Points in [-1, 1], ends included, dense at the ends: where least squares would else be worst."""
    return -np.cos(np.linspace(0.0, math.pi, count))


def grid_points(axes: Sequence[Axis]) -> Floats:
    """All combinations of the axes' nodes `(point, axis)`, the last axis fastest."""
    grids = np.meshgrid(*[axis.nodes for axis in axes], indexing="ij")
    return np.stack([grid.ravel() for grid in grids], axis=1)


def grid_values(axes: Sequence[Axis], wanted: Floats, limit: float) -> Floats:
    """Values `(count, ..., count, output)` for a target's values `(node, ..., node, output)`; see `fitting.bounded`."""
    made: dict[int, Factors] = {}
    factors = [made.setdefault(id(axis), Factors.of(axis.weights(axis.nodes))) for axis in axes]
    middle = wanted.reshape(-1, wanted.shape[-1]).mean(axis=0)
    shares = _along(wanted - middle, [factor.left.T for factor in factors])
    scale = np.ones(())
    for factor in factors:
        scale = np.multiply.outer(scale, factor.scale)
    scale = scale[..., None]
    most = float(scale.max())
    backs = [factor.right.T for factor in factors]

    def values(power: Floats) -> Floats:
        found: Floats = _along(shares * (scale / (scale**2 + (10.0**power * most) ** 2)), backs) + middle
        return found

    def is_within(found: Floats) -> NDArray[np.bool_]:
        kept: NDArray[np.bool_] = np.abs(found).reshape(-1, found.shape[-1]).max(axis=0) <= limit
        return kept

    low, high = np.full(len(middle), LEAST), np.full(len(middle), MOST)
    fits = is_within(values(low))
    high = np.where(fits, low, high)
    for _ in range(0 if fits.all() else BISECTIONS):
        half = (low + high) / 2
        fits = is_within(values(half))
        low, high = np.where(fits, low, half), np.where(fits, half, high)
    return values(high)


def grid_output(axes: Sequence[Axis], values: Floats, queries: Floats) -> Floats:
    """The head's output `(batch, output)` at queries `(batch, axis)`, without the head."""
    counts = [len(axis.keys) for axis in axes]
    block = max(1, (1 << 22) // max(1, math.prod(counts[1:]) * values.shape[-1]))
    parts = []
    for start in range(0, len(queries), block):
        rows = queries[start : start + block]
        found = axes[0].weights(rows[:, 0]) @ values.reshape(counts[0], -1)
        for position, axis in enumerate(axes[1:], start=1):
            found = found.reshape(len(rows), counts[position], -1)
            found = np.einsum("bk,bkr->br", axis.weights(rows[:, position]), found)
        parts.append(found)
    return np.concatenate(parts)


def grid_head(axes: Sequence[Axis], values: Floats) -> Head:
    """All combinations of the axes' keys as one head `(position, axis)`, biases added."""
    keys = np.stack([grid.ravel() for grid in np.meshgrid(*[axis.keys for axis in axes], indexing="ij")], axis=1)
    biases = sum(np.meshgrid(*[axis.biases for axis in axes], indexing="ij"), start=np.zeros(())).ravel()
    return Head(keys, biases, np.ascontiguousarray(values.reshape(len(keys), -1)))


def _along(values: Floats, matrices: Sequence[Floats]) -> Floats:
    """Each matrix `(row, column)` applied along its axis of `values`."""
    for axis, matrix in enumerate(matrices):
        values = np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
    return values
