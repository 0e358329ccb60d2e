"""Samples taken where a head misses most, and the head polished on them, again and again.

Of a kink along a curve, a cone's tip or a narrow bump, the largest error lies on a small part of the domain. Samples
drawn evenly hardly meet it: a fit to them leaves an error there that is ten or thirty times its root mean square. So
each round draws points, and more around the worst of them, takes some into the samples, those of large errors far
more often, and polishes on; an exchange, as Remez's of single points. The head that it ends with is the best of all
rounds at points drawn at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.construction.contract import Draft, Request, Sampled, near_sides, unseen
from foreword.compiler.construction.off_net import LEAST_SAMPLES, MOST_GROWN, MOST_OUTPUTS
from foreword.compiler.construction.polish import parameters, polished
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.construction.unit import LARGE
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.target import Target

CREST = 5.0  # times its root mean square: an error beyond lies on a small part of the domain
ROUGH = 1e-4  # of the target's size: a larger error at that is no smooth target's
ROUNDS = 12
PATIENCE = 4  # rounds without a smaller error
EVEN, WORST, TAKEN = 2.5, 2.2, 0.55  # samples for each number of the head: drawn evenly, taken in all, and in a round
POOL = 16_000  # points drawn in a round
AROUND = 300  # of the worst of them, around which more are drawn
NEARER = 0.2  # of the distance between keys: how far around
STEEPNESS = 4.0  # of the chance of a point to be taken, in powers of its error
STEPS = 8  # of a polish at least
DAMPING = 1e-6  # of its first step
WORSE = 1.2  # times the error before: a round that ends above is gone back on


def exchanged(draft: Draft, target: Target, domain: Domain, request: Request, rng: np.random.Generator) -> Draft:
    """The draft after an exchange, where its errors ask for one and it then is better; else as it is."""
    numbers = parameters(draft.head.positions, draft.chart.width, target.outputs)
    is_small = target.outputs <= MOST_OUTPUTS and numbers <= MOST_GROWN
    if draft.method != Spectral.name or isinstance(domain, FiniteSet) or not is_small:
        return draft
    judged = unseen(target, domain, draft.chart, draft.head.positions)
    errors = np.abs(draft.head.evaluate(judged.queries) - judged.values)
    size, worst = np.abs(judged.values).max(), errors.max()
    is_local = worst > CREST * np.sqrt((errors**2).mean())
    if not (ROUGH * size < worst and is_local and 1 / LARGE <= size <= LARGE) or request.is_over():
        return draft
    limit = request.limit_for(judged.values)
    made = Exchange(target, domain, draft.chart, request, limit, rng).improved(draft.head)
    sampled = judged.worst(made)
    if not sampled < draft.sampled:
        return draft
    return replace(draft, head=made, sampled=sampled, notes={**draft.notes, "exchanged": True})


@dataclass
class Exchange:
    """Rounds of samples and polish for heads over `chart`'s queries; values are at most `limit`."""

    target: Target
    domain: Sphere | Cube
    chart: Chart
    request: Request
    limit: float
    rng: np.random.Generator
    tried: list[Head] = field(default_factory=list)

    def improved(self, head: Head) -> Head:
        """The head of all rounds with the least error, which may be the one given."""
        numbers = parameters(head.positions, self.chart.width, 1)
        count = max(LEAST_SAMPLES, math.ceil(EVEN * numbers))
        even = self._at(self._drawn(count))
        taken = _rows(even, slice(0, 0))
        self.tried, best, since = [head], math.inf, 0
        for _ in range(ROUNDS):
            drawn = self._at(self._drawn(POOL))
            pool = _joined(drawn, self._around(head, drawn))
            errors = _errors(head, pool)
            best, since = (errors.max(), 0) if errors.max() < best else (best, since + 1)
            if since > PATIENCE or not 0 < errors.max() < math.inf or self.request.is_over():
                break
            taken = _joined(taken, _rows(pool, self._chosen(errors, math.ceil(TAKEN * numbers))))
            taken = _rows(taken, slice(-math.ceil(WORST * numbers), None))
            made = self._polished(head, _joined(even, taken))
            self.tried.append(made)
            head = made if _errors(made, pool).max() < WORSE * errors.max() else head
        return self._best()

    def _best(self) -> Head:
        """The one whose largest error is least at points drawn now, those around the worst of each among them."""
        drawn = self._at(self._drawn(POOL))
        judged = _joined(drawn, *(self._around(head, drawn) for head in self.tried))
        return min(self.tried, key=judged.worst)

    def _polished(self, head: Head, samples: Sampled) -> Head:
        made = polished(
            head,
            samples.queries,
            samples.values,
            self.limit,
            is_only=True,
            least=STEPS,
            damping=DAMPING,
            is_over=self.request.is_over,
        )
        return Head(made.keys, made.biases, np.clip(made.values, -self.limit, self.limit))

    def _at(self, points: Floats) -> Sampled:
        return Sampled.at(points, self.target, self.chart)

    def _chosen(self, errors: Floats, count: int) -> NDArray[np.intp]:
        """Rows drawn at random, those of large errors far more often: the worst alone would lie in one place."""
        chances = (errors / errors.max()) ** STEEPNESS + 1e-12
        return self.rng.choice(len(errors), size=count, replace=False, p=chances / chances.sum())

    def _drawn(self, count: int) -> Floats:
        return near_sides(self.domain, self.domain.sample(count, self.rng), self.rng)

    def _around(self, head: Head, samples: Sampled) -> Sampled:
        """Samples around those that the head misses most."""
        extent = np.ptp(self.domain.box, axis=1) if isinstance(self.domain, Cube) else 2.0
        between = extent / head.positions ** (1 / self.domain.dimension)
        worst = samples.points[_errors(head, samples).argsort()[-AROUND:]]
        moved = np.tile(worst, (len(samples.points) // (4 * AROUND) + 1, 1))
        moved = moved + NEARER * between * self.rng.standard_normal(moved.shape)
        return self._at(self.domain.nearest(moved))


def _errors(head: Head, samples: Sampled) -> Floats:
    found: Floats = np.abs(head.evaluate(samples.queries) - samples.values).max(axis=1)
    return found


def _joined(*parts: Sampled) -> Sampled:
    points, queries, values = zip(*((part.points, part.queries, part.values) for part in parts), strict=True)
    return Sampled(np.concatenate(points), np.concatenate(queries), np.concatenate(values))


def _rows(samples: Sampled, rows: slice | NDArray[np.intp]) -> Sampled:
    return Sampled(samples.points[rows], samples.queries[rows], samples.values[rows])
