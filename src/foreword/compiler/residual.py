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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foreword.compiler import interpolation
from foreword.compiler.arrays import Floats
from foreword.compiler.intervals import ULP, Interval, point
from foreword.compiler.model import Model, Surface
from foreword.compiler.rectangles import Rectangle

RATIOS = np.array([1.3, 1.7, 2.2, 2.8, 3.5, 4.4, 5.5, 7.0, 9.0, 12.0, 16.0, 24.0])
INFLATION = 1 + 1e-9  # covers the rounding of sums of up to 10^6 nonnegative terms
WILDEST = 25.0  # interpolation is tried where log sum_k w_k e^|z_k| stays below this
CROWDED, FEWEST = 8_000, 4  # a block of more cells times keys than this is split, down to few cells
MOST_REST = 0.6  # of the goal: what interpolation does not resolve
NOISY = 0.25  # of the goal: more rounding than that, and a smaller cell is no use
ENTRIES = 3_000_000  # numbers in the largest temporary array
AT_ONCE = 2_000_000  # interpolation points of all cells of a block: no longer between two looks at the clock


@dataclass
class Terms:
    """The head on a block of cells. `sums` is `(cell, region, 1 + output)`: sum_k w_k e^z (1, |v_k - centre|).

    Region 0 is the real cell; the others are axis by axis the ellipses. `first` `(cell, axis, 1 + output)` are the sums
    with |dz/ds_axis| in front, on the real cell. `floor` bounds D from below, `tilt` `(cell, axis)` |dz_k/ds_axis|
    over the keys that matter; `mean` `(cell, q)` are the mean keys.
    """

    sums: Floats
    first: Floats
    floor: Floats
    eta: Floats
    mean: Floats
    tilt: Floats


@dataclass
class Found:
    """Of each cell of a block: `upper` bounds |f - g| (largest output), of which `noise`
    is due to rounding and would not shrink with the cell; `seen` is attained, at `where` (local).

    `shares` `(cell, axis)` say which axis to halve; `is_sampled` tells whether points of the cell were evaluated.
    """

    upper: Floats
    noise: Floats
    seen: Floats
    shares: Floats
    where: Floats
    is_sampled: NDArray[np.bool_]


class Residual:
    """Bounds |f - g| on blocks of cells of one problem; `orders` are the numbers of points an axis may have.

    `most` is how many cells are to be bounded at once at most.
    """

    def __init__(self, model: Model, orders: Sequence[int], oversampling: int) -> None:
        self.model = model
        self.orders = np.array(orders)
        self.oversampling = oversampling
        self.regions = 1 + model.parameters * len(RATIOS)
        self.most = max(FEWEST, AT_ONCE // max(orders) ** int(model.depends.sum()))
        long, short = (RATIOS + 1 / RATIOS) / 2, (RATIOS - 1 / RATIOS) / 2
        self.long, self.short = long * (1 + 4 * ULP), short * (1 + 4 * ULP)
        self.evaluations = 0

    def bound(self, lower: Floats, upper: Floats, goal: float) -> Found:
        """Bounds on the cells from `lower` to `upper` `(cell, parameter)`; those that cannot meet `goal` are marked."""
        with np.errstate(all="ignore"):
            return self._bound(lower, upper, goal)

    def _bound(self, lower: Floats, upper: Floats, goal: float) -> Found:
        centre = lower + (upper - lower) / 2
        half = np.maximum(upper - centre, centre - lower) * (1 + 2 * ULP)
        surface = self.model.surface(centre, half)
        cells, axes = centre.shape
        found = Found(
            upper=np.full(cells, np.inf),
            noise=np.zeros(cells),
            seen=np.zeros(cells),
            shares=np.zeros((cells, axes)),
            where=np.zeros((cells, axes)),
            is_sampled=np.zeros(cells, dtype=bool),
        )
        pending = [np.arange(cells)]
        while pending:
            rows = pending.pop()
            part = surface.rows(rows)
            kept, far = self.model.kept_keys(part, goal)
            if self._is_worth_splitting(surface, rows, len(kept), goal):
                pending += [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
                continue
            self._bound_rows(found, rows, part, kept, far, goal)
            pending += self._noisy_with_others(found, surface, rows, kept, goal)
        found.upper = np.where(np.isnan(found.upper), np.inf, found.upper)
        return found

    def _is_worth_splitting(self, surface: Surface, rows: NDArray[np.intp], kept: int, goal: float) -> bool:
        """Whether a smaller block would leave many more keys out: neighbours share keys."""
        if len(rows) <= FEWEST or len(rows) * kept <= CROWDED:
            return False
        return len(self.model.kept_keys(surface.rows(rows[:FEWEST]), goal)[0]) < 0.6 * kept

    def _noisy_with_others(
        self, found: Found, surface: Surface, rows: NDArray[np.intp], kept: NDArray[np.intp], goal: float
    ) -> list[NDArray[np.intp]]:
        """Cells to be bounded again, each by itself: those whose rounding counts only with keys that others need."""
        if len(rows) == 1:
            return []
        size = self.model.key_sizes
        noisy = rows[(found.noise[rows] > NOISY * goal) & (found.upper[rows] > goal)]
        alone = [(row, self.model.kept_keys(surface.rows(np.array([row])), goal)[0]) for row in noisy]
        return [np.array([row]) for row, own in alone if size[own].max() < size[kept].max() / 2]

    def _bound_rows(
        self, found: Found, rows: NDArray[np.intp], surface: Surface, kept: NDArray[np.intp], far: float, goal: float
    ) -> None:
        """First what the hull of the values gives; then, where that is too much and order pays, interpolation."""
        surface.rest = surface.rest + far
        surface.span[:, 1] += far
        step = max(1, ENTRIES // (len(kept) * (4 + surface.outputs)))
        hulls = [self._hull(surface, kept, slice(a, a + step)) for a in range(0, len(rows), step)]
        upper, tilt, is_mild = (np.concatenate(part) for part in zip(*hulls, strict=True))
        nothing = np.full_like(found.shares[rows], np.inf)
        # Of what no interpolation resolves, a cell may have little: until then only halving helps that lessens it.
        is_rough = ~(surface.rest.max(axis=1) <= MOST_REST * goal)
        by_rest = is_rough[:, None] & surface.blame.any(axis=1, keepdims=True)
        shares = np.where(by_rest, surface.blame, self._shares(nothing, surface, tilt))
        found.upper[rows], found.shares[rows] = upper, shares
        left = np.flatnonzero(~(upper <= goal) & is_mild & ~is_rough)
        if left.size:
            part = surface.rows(left)
            part = self.model.extended(part, self._ellipses(part.centre, part.half))
            self._interpolate(found, rows[left], part, kept, goal)

    def _interpolate(
        self, found: Found, rows: NDArray[np.intp], surface: Surface, kept: NDArray[np.intp], goal: float
    ) -> None:
        terms = self._terms(surface, kept)
        remainders = self._remainders(surface, terms, np.zeros((len(rows), self.regions, surface.outputs)))
        orders, is_ready = self._choose(remainders, terms, surface.rest, goal)
        found.shares[rows] = self._shares(remainders[-1], surface, terms.tilt)
        for counts in np.unique(orders[is_ready], axis=0) if is_ready.any() else []:
            chosen = np.flatnonzero(is_ready & (orders == counts).all(axis=1))
            step = max(1, ENTRIES // (int(np.prod(counts)) * (len(kept) + surface.outputs)))
            for start in range(0, len(chosen), step):
                few = chosen[start : start + step]
                result = self._sample(surface, terms, kept, few, tuple(int(c) for c in counts), goal)
                place = rows[few]
                found.upper[place] = np.fmin(found.upper[place], result[0])
                found.is_sampled[place] = True
                found.noise[place], found.seen[place], found.where[place], found.shares[place] = result[1:]

    def _hull(self, surface: Surface, kept: NDArray[np.intp], rows: slice) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """g lies in the hull of the values that matter: |f - g| <= max over them of |f - v_k| + the others' weights.

        Also how much the scores that matter turn `(cell, axis)`, and whether weights change so
        little over the cell that interpolation has a chance.
        """
        logs, _, _, reach, slope, eta = self._scores(surface, kept, rows)
        values = self.model.values[kept]
        gaps = np.abs(values - surface.value[rows][:, None, :])
        top = logs.argmax(axis=1)[:, None]
        most = logs + reach[:, :, 0] + 2 * eta[:, None] + 1e-9
        least = np.take_along_axis(logs, top, 1) - np.take_along_axis(reach[:, :, 0], top, 1)
        share = np.exp(np.minimum(most - least + 2 * eta[:, None], 0.0)) * INFLATION
        share = np.where(np.isnan(share), 1.0, share)
        best = np.full((len(share), surface.outputs), np.inf)
        for limit in (1e-2, 1e-5):
            is_far = (share < limit)[:, :, None]
            near, beyond = np.where(is_far, 0.0, gaps).max(axis=1), (np.where(is_far, gaps, 0.0) * share[:, :, None])
            best = np.fmin(best, near + beyond.sum(axis=1) * INFLATION)
        upper = (best + surface.swing[rows, 0] + surface.rest[rows]).max(axis=1) * INFLATION
        matters = (share > 1e-4)[:, :, None]
        tilt = np.where(matters, slope, 0.0).max(axis=1)
        is_mild = np.log(np.exp(most).sum(axis=1)) < WILDEST
        return np.where(np.isnan(upper), np.inf, upper), tilt, is_mild

    def _scores(self, surface: Surface, kept: NDArray[np.intp], rows: slice) -> tuple[Floats, ...]:
        """Of the cells `rows`: weights `(cell, key)` at the centre as logarithms and themselves, keys less their mean
        `(cell, key, q)`, bounds on |z_k| on every region known `(cell, key, region)` and on |dz_k/ds| `(cell, key,
        axis)`, eta."""
        keys = self.model.keys[kept]
        scores = surface.query[rows] @ keys.T + self.model.biases[kept]
        top = scores.max(axis=1, keepdims=True)
        log_z = top + np.log(np.exp(scores - top).sum(axis=1, keepdims=True))
        # The logarithms are kept: a weight that underflows at the centre may be large elsewhere in the cell.
        logs = scores - log_z
        weights = np.exp(logs)
        spread = keys - (weights @ keys)[:, None, :]
        jacobian = surface.jacobian[rows]
        size = np.abs(spread)
        linear = np.abs(spread @ jacobian.transpose(0, 2, 1)) * (1 + 64 * ULP)
        linear += 64 * ULP * size.sum(axis=2, keepdims=True) * np.abs(jacobian).max(axis=(1, 2), keepdims=True)
        stretch = self._stretch()[:, : surface.curvature.shape[1]]
        reach = linear @ stretch + size @ surface.curvature[rows].transpose(0, 2, 1)
        slope = linear + size @ surface.wobble[rows].transpose(0, 2, 1)
        eta = self.model.eta(surface, rows, kept, size)
        return logs, weights, spread, reach, slope, eta

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
        logs, weights, spread, reach, slope, eta = self._scores(surface, kept, rows)
        keys, values, size = self.model.keys[kept], self.model.values[kept], np.abs(spread)
        growth = np.exp(logs[:, :, None] + reach)
        gaps = np.concatenate([np.ones((*weights.shape, 1)), np.abs(values - surface.value[rows][:, None, :])], axis=2)
        factor = (np.exp(2 * eta) * INFLATION)[:, None, None]
        sums = growth.transpose(0, 2, 1) @ gaps * factor
        first = (slope * growth[:, :, :1]).transpose(0, 2, 1) @ gaps * factor
        shift = np.abs(np.einsum("ck,ckq->cq", weights, spread))
        swing = (weights * reach[:, :, 0]).sum(axis=1)
        noise = (len(kept) + 16) * ULP * np.einsum("ck,ckq->cq", weights, size)
        loss = np.expm1(2 * eta) * swing + ((shift + noise) * surface.reach[rows]).sum(axis=1)
        floor = np.exp(-loss * INFLATION) * (1 - 1e-9)
        matters = (growth[:, :, 0] > 1e-4)[:, :, None]
        return Terms(
            sums=np.where(np.isnan(sums), np.inf, sums),
            first=np.where(np.isnan(first), np.inf, first),
            floor=np.where(np.isnan(floor), 0.0, floor),
            eta=eta,
            mean=weights @ keys,
            tilt=np.where(matters, slope, 0.0).max(axis=1),
        )

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
        depends = self.model.depends
        before: NDArray[np.int64] = np.cumsum(depends) - depends
        amplified = interpolation.amplification(int(self.orders[-1])) ** before
        budget = 0.1 * goal / max(int(depends.sum()), 1) / amplified
        is_small = remainders / terms.floor[:, None] <= budget
        first = is_small.argmax(axis=0)
        is_ready = np.all(is_small.any(axis=0), axis=1) & (rests.max(axis=1) <= MOST_REST * goal)
        return self.orders[first], is_ready

    def _shares(self, remainders: Floats, surface: Surface, tilt: Floats) -> Floats:
        """Which axis is worth halving: by remainder; where the rest is larger, by what the rest comes from.

        Where nothing finite is known: by what turns the scores most, or by length where they hardly turn.
        """
        lengths = surface.extent * self.model.depends
        turns = np.where(np.isfinite(tilt), tilt, 1e300) * self.model.depends
        fallback = np.where(turns.max(axis=1, keepdims=True) > 1, turns, lengths)
        shares = np.where(np.isfinite(remainders).all(axis=1, keepdims=True), remainders, fallback)
        is_rest = np.isfinite(remainders).all(axis=1) & (surface.rest.max(axis=1) > remainders.sum(axis=1))
        by_rest = np.where(surface.blame.any(axis=1, keepdims=True), surface.blame, lengths)
        shares = np.where(is_rest[:, None], by_rest, shares)
        return np.where(shares.any(axis=1, keepdims=True), shares, lengths + 1e-300)

    def _sample(
        self,
        surface: Surface,
        terms: Terms,
        kept: NDArray[np.intp],
        rows: NDArray[np.intp],
        counts: tuple[int, ...],
        goal: float,
    ) -> tuple[Floats, Floats, Floats, Floats, Floats]:
        """Of cells with the same point counts: upper bounds, their part from rounding, attained errors, their places
        and the axes' shares."""
        part, few = surface.rows(rows), Terms(*[getattr(terms, name)[rows] for name in Terms.__annotations__])
        local = interpolation.grid(counts)
        values = self.model.errors_at(part, local, kept, few.mean)
        self.evaluations += values.shape[0] * values.shape[1]
        largest = np.abs(values).max(axis=1)
        spread = 2 * few.sums[:, 0, 1:] / few.floor[:, None]
        error = part.error + self.model.head_error(spread, few.eta, len(kept))
        seen = np.max(largest - error - part.rest, axis=1)
        coefficients = interpolation.coefficients_of(values.reshape(len(rows), *counts, -1))
        remainders = self._remainders(part, few, self._growth(coefficients))
        index = np.searchsorted(self.orders, counts)
        picked = np.stack([remainders[index[axis], :, axis] for axis in range(len(counts))], axis=1)
        amplified = np.cumprod([1.0] + [interpolation.amplification(count) for count in counts])
        noise = error + interpolation.transform_error(counts) * largest
        noise = amplified[-1] * few.sums[:, 0, :1] * noise / few.floor[:, None]
        other = (picked * amplified[:-1]).sum(axis=1)[:, None] / few.floor[:, None]
        other = (other + noise) * INFLATION + part.rest
        upper, where = self._largest(coefficients, other, goal)
        best = np.abs(values).max(axis=2).argmax(axis=1)
        where = np.where((seen >= goal)[:, None], local[best], where)
        shares = self._shares(picked * amplified[:-1], part, few.tilt)
        return upper, noise.max(axis=1), np.where(np.isfinite(seen), np.maximum(seen, 0.0), 0.0), where, shares

    def _largest(self, coefficients: Floats, other: Floats, goal: float) -> tuple[Floats, Floats]:
        """Bounds on |P| + `other` `(cell,)`, and where |P| is largest: on a coarse grid, or a fine one if it pays."""
        size, where = interpolation.largest(coefficients, 2)
        upper = ((size + other) * INFLATION).max(axis=1)
        again = np.flatnonzero((upper > goal) & (other.max(axis=1) < goal))
        points = math.prod(self.oversampling * count for count in coefficients.shape[1:-1])
        step = max(1, ENTRIES // points)
        for start in range(0, len(again), step):
            chosen = again[start : start + step]
            size[chosen], where[chosen] = interpolation.largest(coefficients[chosen], self.oversampling)
        upper = ((size + other) * INFLATION).max(axis=1)
        return np.where(np.isnan(upper), np.inf, upper), where

    def _growth(self, coefficients: Floats) -> Floats:
        """|P| on every region, from its coefficients: |T_j| <= rho^j on the ellipse."""
        sizes = interpolation.sizes_by_degree(coefficients)
        found = [sizes[0].sum(axis=1, keepdims=True)]
        for size in sizes:
            powers = RATIOS[:, None] ** np.arange(size.shape[1])
            found.append(np.einsum("rd,cdo->cro", powers, size))
        return np.concatenate(found, axis=1) * INFLATION
