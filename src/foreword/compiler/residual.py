"""How large |f - g| can be on cells: f a smooth stand-in with a rest, g a softmax head (statements C.1 and C.3).

On a cell with middle c let h be the query's change, w_k the weights at c, u the mean key sum_k w_k u_k, and
z_k = <u_k - u, h>. Then D = sum_k w_k e^(z_k) >= 1 (Jensen), and for any polynomial P on the cell

    (f - g - P) D = sum_k w_k (f - P - v_k) e^(z_k) =: F.

F is analytic, and bounded on complex ellipses term by term. With P the interpolant of f - g at Chebyshev points, F
vanishes there up to rounding, so |F| is at most its interpolation error, and |f - g| <= |P| + |F| / D. So high order
costs point evaluations of f and g only. Every rounding is in a named place: of f - g at points (`error`), of weights
(`eta`), of P (`interpolation.py`); sums of nonnegative terms are inflated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.compiler import interpolation
from foreword.compiler.intervals import ULP, finite, point
from foreword.compiler.model import Model, Surface
from foreword.compiler.rectangles import Rectangle
from foreword.compiler.intervals import Interval

Floats = NDArray[np.float64]

RATIOS = np.array([1.3, 1.7, 2.2, 2.8, 3.5, 4.4, 5.5, 7.0, 9.0, 12.0, 16.0, 24.0])
INFLATION = 1 + 1e-9  # covers the rounding of sums of up to 10^6 nonnegative terms
STEEPEST = 300.0  # scores may change by this over a cell before its weights leave float64's range
ENTRIES = 3_000_000  # numbers in the largest temporary array


@dataclass
class Terms:
    """The head on a block of cells. `sums` is `(cell, region, 1 + output)`: sum_k w_k e^z (1, |v_k - centre|).

    Region 0 is the real cell; the others are axis by axis the ellipses. `first` `(cell, axis, 1 + output)` are the sums
    with |dz/ds_axis| in front, on the real cell. `floor` bounds D from below.
    """

    sums: Floats
    first: Floats
    floor: Floats
    eta: Floats
    steepness: Floats


@dataclass
class Found:
    """Of each cell of a block: `upper` bounds |f - g| (largest output); `seen` is attained, at `where` (local).

    `shares` `(cell, axis)` say which axis to halve; `is_sampled` whether the cell was worth sampling.
    """

    upper: Floats
    seen: Floats
    shares: Floats
    where: Floats
    is_sampled: NDArray[np.bool_]
    log_z: Floats


class Residual:
    """Bounds |f - g| on blocks of cells of one problem; `orders` are the numbers of points an axis may have."""

    def __init__(self, model: Model, orders: Sequence[int], oversampling: int) -> None:
        self.model = model
        self.orders = np.array(orders)
        self.oversampling = oversampling
        self.regions = 1 + model.parameters * len(RATIOS)
        long, short = (RATIOS + 1 / RATIOS) / 2, (RATIOS - 1 / RATIOS) / 2
        self.long, self.short = long * (1 + 4 * ULP), short * (1 + 4 * ULP)
        self.evaluations = 0

    def bound(self, lower: Floats, upper: Floats, goal: float) -> Found:
        """Bounds on the cells from `lower` to `upper` `(cell, parameter)`; those that cannot meet `goal` are marked."""
        with np.errstate(all="ignore"):
            return self._bound(lower, upper, goal)

    def _bound(self, lower: Floats, upper: Floats, goal: float) -> Found:
        model, cells = self.model, len(lower)
        centre = lower + (upper - lower) / 2
        half = np.maximum(upper - centre, centre - lower) * (1 + 2 * ULP)
        surface = model.surface(centre, half, self._ellipses(centre, half))
        kept, far = model.kept_keys(surface, goal)
        terms = self._terms(surface, kept)
        rests = surface.rest + far[:, None]
        remainders = self._remainders(surface, terms, np.zeros((cells, self.regions, surface.outputs)))
        orders, is_ready = self._choose(remainders, terms, rests, goal)
        shares = self._shares(remainders[-1], rests, surface)
        upper_bound = np.full(cells, np.inf)
        seen, where = np.zeros(cells), np.zeros((cells, model.parameters))
        for counts in np.unique(orders[is_ready], axis=0) if is_ready.any() else []:
            chosen = np.flatnonzero(is_ready & (orders == counts).all(axis=1))
            size = int(np.prod(counts)) * (len(kept) + surface.outputs)
            for start in range(0, len(chosen), max(1, ENTRIES // size)):
                rows = chosen[start : start + max(1, ENTRIES // size)]
                result = self._sample(surface, terms, kept, rows, tuple(int(c) for c in counts), rests, goal)
                upper_bound[rows], seen[rows], where[rows], shares[rows] = result
        upper_bound = np.where(np.isnan(upper_bound), np.inf, upper_bound)
        return Found(upper_bound, seen, shares, where, is_ready, surface.log_z)

    def _ellipses(self, centre: Floats, half: Floats) -> list[Rectangle]:
        """Each parameter on every region but the first: arrays `(axis, ratio, cell)`."""
        axes, ratios = self.model.parameters, len(RATIOS)
        found = []
        for axis in range(axes):
            long, short = np.ones((axes, ratios, 1)), np.zeros((axes, ratios, 1))
            long[axis, :, 0], short[axis, :, 0] = self.long, self.short
            reach = long * half[:, axis] * (1 + 4 * ULP)
            re = point(np.broadcast_to(centre[:, axis], reach.shape)).widened(reach)
            depth = short * half[:, axis] * (1 + 4 * ULP)
            found.append(Rectangle(re, Interval(-depth, depth)))
        return found

    def _terms(self, surface: Surface, kept: NDArray[np.intp]) -> Terms:
        cells = len(surface.centre)
        step = max(1, ENTRIES // (len(kept) * self.regions))
        parts = [self._terms_of(surface, kept, slice(a, a + step)) for a in range(0, cells, step)]
        return Terms(*[np.concatenate([getattr(part, name) for part in parts]) for name in Terms.__annotations__])

    def _terms_of(self, surface: Surface, kept: NDArray[np.intp], rows: slice) -> Terms:
        model = self.model
        keys, values = model.keys[kept], model.values[kept]
        scores = surface.query[rows] @ keys.T + model.biases[kept]
        top = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=1, keepdims=True)
        surface.log_z[rows] = (top + np.log(total))[:, 0]
        weights /= total
        mean = weights @ keys
        spread = keys - mean[:, None, :]
        linear = np.abs(spread @ surface.jacobian[rows].transpose(0, 2, 1)) * (1 + 64 * ULP)
        linear += ULP * 8 * np.abs(spread).sum(axis=2, keepdims=True) * np.abs(surface.jacobian[rows]).max(
            axis=(1, 2), keepdims=True
        )
        size = np.abs(spread)
        reach = linear @ self._stretch() + size @ surface.curvature[rows].transpose(0, 2, 1)
        growth = weights[:, :, None] * np.exp(reach)
        gaps = np.concatenate([np.ones((*weights.shape, 1)), np.abs(values - surface.value[rows][:, None, :])], axis=2)
        eta = model.eta(surface, rows, kept)
        factor = np.exp(2 * eta) * INFLATION
        sums = growth.transpose(0, 2, 1) @ gaps * factor[:, None, None]
        slope = linear + size @ surface.wobble[rows].transpose(0, 2, 1)
        first = (slope * growth[:, :, :1]).transpose(0, 2, 1) @ gaps * factor[:, None, None]
        shift = np.abs(np.einsum("ck,ckq->cq", weights, spread))
        swing = (weights * reach[:, :, 0]).sum(axis=1)
        loss = (np.expm1(2 * eta) + (len(kept) + 16) * ULP) * swing + (shift * surface.reach[rows]).sum(axis=1)
        clean = [np.where(np.isnan(found), np.inf, found) for found in (sums, first)]
        floor = np.exp(-loss * INFLATION) * (1 - 1e-9)
        steepness = reach[:, :, 0].max(axis=1)
        return Terms(clean[0], clean[1], np.where(np.isnan(floor), 0.0, floor), eta, steepness)

    def _stretch(self) -> Floats:
        """How far s_j reaches on each region: `(axis, region)`."""
        axes, ratios = self.model.parameters, len(RATIOS)
        found = np.ones((axes, axes, ratios))
        for axis in range(axes):
            found[axis, axis] = self.long
        return np.concatenate([np.ones((axes, 1)), found.reshape(axes, -1)], axis=1)

    def _remainders(self, surface: Surface, terms: Terms, growth: Floats) -> Floats:
        """|F| that each axis may add, without amplification: `(order, cell, axis)`, the largest over outputs.

        `growth` `(cell, region, output)` bounds |P|.
        """
        cells, axes = len(surface.centre), self.model.parameters
        swing = surface.swing + growth
        bounds = terms.sums[:, :, 1:] + swing * terms.sums[:, :, :1]
        bounds = np.where(np.isnan(bounds), np.inf, bounds).max(axis=2)
        ellipses = bounds[:, 1:].reshape(cells, axes, len(RATIOS))
        found = np.empty((len(self.orders), cells, axes))
        for index, order in enumerate(self.orders):
            if order == 1:
                first = terms.first[:, :, 1:] + swing[:, :1] * terms.first[:, :, :1]
                first = first + surface.slope * terms.sums[:, :1, :1]
                found[index] = np.where(np.isnan(first), np.inf, first).max(axis=2)
            else:
                found[index] = (ellipses * (4 * RATIOS ** (1.0 - order) / (RATIOS - 1))).min(axis=2)
        found[:, :, ~self.model.depends] = 0.0
        return found * INFLATION

    def _choose(
        self, remainders: Floats, terms: Terms, rests: Floats, goal: float
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each cell the fewest points on each axis that leave a small remainder, and whether there are such."""
        axes = remainders.shape[2]
        amplified = interpolation.amplification(int(self.orders[-1])) ** np.arange(axes)
        budget = 0.1 * goal / axes / amplified
        is_small = remainders / terms.floor[:, None] <= budget
        first = is_small.argmax(axis=0)
        is_ready = is_small.any(axis=0).all(axis=1) & (rests.max(axis=1) <= 0.6 * goal)
        return self.orders[first], is_ready & (terms.steepness < STEEPEST)

    def _shares(self, remainders: Floats, rests: Floats, surface: Surface) -> Floats:
        """Which axis is worth halving: by remainder; where the rest is larger, by what the rest comes from."""
        fallback = surface.extent * self.model.depends
        shares = np.where(np.isfinite(remainders), remainders, np.inf)
        is_lost = np.isinf(shares)
        shares = np.where(is_lost.any(axis=1, keepdims=True), np.where(is_lost, fallback, 0.0), shares)
        by_rest = rests.max(axis=1, keepdims=True) > shares.sum(axis=1, keepdims=True)
        shares = np.where(by_rest, np.where(surface.blame.any(axis=1, keepdims=True), surface.blame, fallback), shares)
        return np.where(shares.any(axis=1, keepdims=True), shares, fallback + 1e-300)

    def _sample(
        self,
        surface: Surface,
        terms: Terms,
        kept: NDArray[np.intp],
        rows: NDArray[np.intp],
        counts: tuple[int, ...],
        rests: Floats,
        goal: float,
    ) -> tuple[Floats, Floats, Floats, Floats]:
        """Upper bounds, attained errors, their places and the axes' shares, for cells with the same point counts."""
        part = surface.rows(rows)
        local = interpolation.grid(counts)
        values = self.model.errors_at(part, local, kept)
        self.evaluations += values.shape[0] * values.shape[1]
        largest_value = np.abs(values).max(axis=1)
        error = part.error + self.model.head_error(part, terms, rows, len(kept))
        at = np.abs(values).max(axis=2)
        best = at.argmax(axis=1)
        seen = np.max(largest_value - error - rests[rows], axis=1)
        coefficients = interpolation.coefficients_of(values.reshape(len(rows), *counts, -1))
        few = Terms(*[getattr(terms, name)[rows] for name in Terms.__annotations__])
        remainders = self._remainders(part, few, self._growth(coefficients))
        index = np.searchsorted(self.orders, counts)
        picked = np.stack([remainders[index[axis], :, axis] for axis in range(len(counts))], axis=1)
        amplified = np.cumprod([1.0] + [interpolation.amplification(count) for count in counts])
        noise = error + interpolation.transform_error(counts) * largest_value
        outer = ((picked * amplified[:-1]).sum(axis=1) + 0.0)[:, None] + amplified[-1] * few.sums[:, 0, :1] * noise
        other = outer / few.floor[:, None] * INFLATION + rests[rows]
        size, where = interpolation.largest(coefficients, 2)
        upper = ((size + other) * INFLATION).max(axis=1)
        again = np.flatnonzero((upper > goal) & (other.max(axis=1) < goal))
        if again.size:
            step = max(1, ENTRIES // int(np.prod([self.oversampling * count for count in counts])))
            for start in range(0, len(again), step):
                chosen = again[start : start + step]
                size[chosen], where[chosen] = interpolation.largest(coefficients[chosen], self.oversampling)
            upper = ((size + other) * INFLATION).max(axis=1)
        upper = np.where(np.isnan(upper), np.inf, upper)
        where = np.where((seen >= goal)[:, None], local[best], where)
        shares = self._shares(picked * amplified[:-1], rests[rows], part)
        return upper, np.where(np.isfinite(seen), np.maximum(seen, 0.0), 0.0), where, shares

    def _growth(self, coefficients: Floats) -> Floats:
        """|P| on every region, from its coefficients: |T_j| <= rho^j on the ellipse."""
        sizes = interpolation.sizes_by_degree(coefficients)
        found = [sizes[0].sum(axis=1, keepdims=True)]
        for size in sizes:
            powers = RATIOS[:, None] ** np.arange(size.shape[1])
            found.append(np.einsum("rd,cdo->cro", powers, size))
        return np.concatenate(found, axis=1) * INFLATION
