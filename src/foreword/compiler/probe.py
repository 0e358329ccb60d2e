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
            scores = np.abs(queries) @ np.abs(head.keys).T + np.abs(head.biases)
            eta = (head.keys.shape[1] + 4) * ULP * scores.max(axis=1) + 8 * ULP
            eta = eta + (moved @ np.abs(head.keys).T).max(axis=1)
            # sum_k w_k |v_k - g| is at most twice the same with any constant for g; half the range bounds it too.
            half = float(np.ptp(head.values, axis=0).max()) / 2
            slack = np.expm1(2 * eta) * half + (2 * head.positions + 8) * ULP * float(np.abs(head.values).max())
            if self._tape.outputs:
                own = [np.broadcast_to(known[p].error + known[p].rest, (rows,)) for p in self._tape.outputs]
                slack = slack + np.max(own, axis=0)
            else:  # what a callable returns is taken as exact up to a few roundings
                slack = slack + 64 * ULP * np.abs(values).max(axis=1)
            errors = np.abs(values - outputs).max(axis=1)
        is_known = np.isfinite(errors) & np.isfinite(slack)
        return np.where(is_known, errors, 0.0), np.where(is_known, slack * (1 + 1e-9), np.inf)


def _largest(domain: Domain) -> Floats:
    """The largest size of each column, at least 1."""
    if isinstance(domain, Sphere):
        return np.ones(domain.columns)
    ends = domain.box.T if isinstance(domain, Cube) else domain.points
    sizes: Floats = np.maximum(np.abs(ends).max(axis=0), 1.0)
    return sizes
