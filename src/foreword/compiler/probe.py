"""Errors at points that certainly occur: |f - g| as computed, less what rounding may have added to it.

A search compares its bounds with the largest of them, and a certificate quotes it as `seen`.
"""

from __future__ import annotations

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.head import Head
from foreword.compiler.intervals import ULP
from foreword.compiler.recording import tape_of
from foreword.compiler.target import Target

ENTRIES = 2_000_000  # weights at once
LIGHT = 1e-18  # weights below this are without weight


class Probe:
    """Evaluates one target and one head at points, with error bounds for both."""

    def __init__(self, head: Head, chart: Chart, target: Target, domain: Domain) -> None:
        self.head, self.chart, self.target = head, chart, target
        # A point's columns as free parameters: its own numbers are what is evaluated, wherever they came from.
        largest = _largest(domain)
        space = Cube([(-size, size) for size in largest.tolist()])
        outputs = () if target.expression is None else target.expression.outputs
        self._tape = tape_of(space, outputs, chart.expressions(domain.columns))

    def look(self, points: Floats) -> tuple[Floats, Floats]:
        """At `points` `(batch, column)`: |f - g| of the worst output `(batch,)`, and a bound on its rounding error."""
        step = max(1, ENTRIES // self.head.positions)
        parts = [self._look(points[start : start + step]) for start in range(0, len(points), step)]
        errors, slack = (np.concatenate(part) for part in zip(*parts, strict=True))
        return errors, slack

    def _look(self, points: Floats) -> tuple[Floats, Floats]:
        head, rows = self.head, len(points)
        values = self.target.evaluate(points)
        with np.errstate(all="ignore"):
            known, _ = self._tape.on_cells(points, points)
            queries = self.chart(points)
            weights = head.weights(queries)
            outputs = weights @ head.values
            places = self._tape.queries
            moved = np.stack([np.broadcast_to(known[p].error + known[p].rest, (rows,)) for p in places], axis=1)
            sizes = np.abs(queries) @ np.abs(head.keys).T + np.abs(head.biases)
            eta = (head.keys.shape[1] + 4) * ULP * sizes + 8 * ULP + moved @ np.abs(head.keys).T
            slack = _moved_by(weights, eta, head, outputs)
            slack = slack + (2 * head.positions + 8) * ULP * float(np.abs(head.values).max())
            if self._tape.outputs:
                own = [np.broadcast_to(known[p].error + known[p].rest, (rows,)) for p in self._tape.outputs]
                slack = slack + np.max(own, axis=0)
            else:  # what a callable returns is taken as exact up to a few roundings
                slack = slack + 64 * ULP * np.abs(values).max(axis=1)
            errors = np.abs(values - outputs).max(axis=1)
        is_known = np.isfinite(errors) & np.isfinite(slack)
        return np.where(is_known, errors, 0.0), np.where(is_known, slack * (1 + 1e-9), np.inf)


def _moved_by(weights: Floats, eta: Floats, head: Head, outputs: Floats) -> Floats:
    """How far an output g `(batch, output)` may move `(batch,)` when scores move by at most `eta` `(batch, position)`.

    If all scores move by eta at most, sum_k w_k |v_k - g| (e^(2 eta) - 1) bounds it: next to a steep key the values
    with weight are close to each other. A key without weight may have a large score that moves far: then what the
    others give moves by as much as they do, and the mass of those without weight, before and after, comes on top, times
    the range of the values.
    """
    values, reach = head.values, float(np.ptp(head.values, axis=0).max())
    gaps = [(weights * np.abs(values[:, o] - outputs[:, o, None])).sum(axis=1) for o in range(values.shape[1])]
    spread = np.max(gaps, axis=0)
    together = np.expm1(2 * eta.max(axis=1)) * spread
    is_light = weights < LIGHT
    others = np.where(is_light, 0.0, eta).max(axis=1)
    # A weight that is 0 because it underflows is at most the smallest number.
    before = np.where(is_light, np.maximum(weights, np.finfo(np.float64).tiny), 0.0)
    after = (before * np.exp(eta + others[:, None])).sum(axis=1) / np.where(is_light, 0.0, weights).sum(axis=1)
    mass = before.sum(axis=1)  # what the others give by themselves is at most so much of the range from g
    apart = np.expm1(2 * others) * (spread + mass * reach) / (1 - mass) + (mass + after) * reach
    found: Floats = np.fmin(np.where(np.isnan(together), np.inf, together), apart)
    return found


def _largest(domain: Domain) -> Floats:
    """The largest size of each column, at least 1."""
    if isinstance(domain, Sphere):
        return np.ones(domain.columns)
    ends = domain.box.T if isinstance(domain, Cube) else domain.points
    sizes: Floats = np.maximum(np.abs(ends).max(axis=0), 1.0)
    return sizes
