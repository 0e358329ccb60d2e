"""Samples taken where a head misses most, and the head polished on them, again and again.

Of a kink along a curve, a cone's tip or a narrow bump, the largest error lies on a small part of the domain. Samples
drawn evenly hardly meet it: a fit to them leaves an error there that is ten or thirty times its root mean square. So
each round draws points, and more around the worst of them, takes some into the samples, those of large errors far
more often, and polishes a few steps on: an exchange, as Remez's of single points. Many rounds of few steps count for
more than few of many, which fit one round's samples and nothing else. Samples stay for ten rounds, so that what they
ask for is not forgotten.

A short head settles in seconds, and a longer one from where it began hardly does: so each grows from a shorter one
(`growing.py`). On the square, 36 positions are nearer to `abs(x*y - 0.2)` after eight seconds than 144 evenly placed
and polished ones are after a minute.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, chart_of
from foreword.compiler.construction.contract import (
    HEADROOM,
    Draft,
    Instant,
    Obstacle,
    Request,
    Sampled,
    near_sides,
    unseen,
)
from foreword.compiler.construction.growing import ground_of, grown, widened
from foreword.compiler.construction.off_net import LEAST_SAMPLES, MOST_OUTPUTS
from foreword.compiler.construction.placed import Placed
from foreword.compiler.construction.polish import descended, parameters
from foreword.compiler.construction.spectral import Spectral, too_rough
from foreword.compiler.construction.unit import LARGE
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.target import Target

ROUGH = 1e-4  # of the target's size: a larger error at that is no smooth target's
BEHIND = 1.5  # times a rival's error: beyond, more positions do not bring a length past it
FIRST = 6  # positions of the first head, for each dimension
LEAST = 6  # positions
NEARLY = 0.75  # of the length asked for: from there on the next is that
MOST = 900  # numbers of a head: a step of more takes too long
PATIENCE = 12  # rounds without an error that is GAIN times the least before
GAIN = 0.97
LOOK = 10  # rounds after which a tolerance is foretold from them
AHEAD = 5.0  # times so many rounds: as long as the error, falling on as it does, may take to the tolerance
REACH = 12.0  # times the tolerance: a larger error of a fair length is not brought there by more positions
FAIR = 12  # positions of that, for each dimension
EVEN, WORST, TAKEN = 2.5, 5.0, 0.5  # samples for each number of the head: drawn evenly, taken in all, and in a round
POOL = 16_000  # points drawn in a round
TIMED, SLOW = 1_000, 0.1  # points, and seconds for so many beyond which a target's rounds would take too long
CONFIRMED = 4  # times as many more, at which an error that seems to meet the tolerance is looked at again
AROUND = 300  # of the worst of them, around which more are drawn
NEARER, NEAREST = 0.2, 0.02  # of the distance between keys: how far around
NEARING = (1.0, 0.1, 0.01)  # times that, one after the other, where an error is looked at again
CLOSE = 4  # one in so many is that near
STEEPNESS = 4.0  # of the chance of a point to be taken, in powers of its error
WORK = 5e9  # multiplications of a round's steps
STEPS = (8, 30)  # of a round, at least and at most
DAMPING = 1e-9, 1e-6, 1e-2  # of a round's first step: at least, in the first round, and at most
JUDGED = 6  # of the heads with the least errors, which are compared at the same points


def exchanged(draft: Draft, target: Target, domain: Domain, request: Request, rng: np.random.Generator) -> Draft:
    """The draft of at most so many positions, or one by an exchange where its error is large and that is better."""
    exchange = Exchange.of(target, domain, request, rng) if draft.method == Spectral.name else None
    if exchange is None or draft.sampled < ROUGH * exchange.size:
        return draft
    made = exchange.draft(exchange.best(draft.sampled))
    return made if made.sampled < draft.sampled else draft


def met(
    target: Target,
    domain: Domain,
    request: Request,
    rng: np.random.Generator,
    *,
    fewer_than: float = math.inf,
    begun: Draft | None = None,
) -> Draft | Obstacle:
    """A draft by an exchange that seems to meet the tolerance, of `fewer_than` so many positions.

    It goes on from the one that was `begun` with, if it is one of these.
    """
    exchange = Exchange.of(target, domain, request, rng, fewer_than)
    if exchange is None or (request.tolerance or 0.0) < ROUGH * exchange.size:
        return Obstacle("length", "Not tried: it would be of no use.")
    head = begun.head if begun is not None and begun.notes.get("exchanged") else None
    return exchange.first(head) or too_rough(request, exchange.most, exchange.least)


@dataclass
class Exchange:
    """Rounds of samples and polish for heads of at most so many positions over `chart`'s queries.

    `size` is that of the target, and values are at most `limit`.
    """

    target: Target
    domain: Sphere | Cube
    chart: Chart
    request: Request
    most: int
    size: float
    limit: float
    rng: np.random.Generator
    least: float = math.inf  # error of any length so far

    @classmethod
    def of(
        cls, target: Target, domain: Domain, request: Request, rng: np.random.Generator, fewer_than: float = math.inf
    ) -> Exchange | None:
        """One for a target of few outputs and of a size that is neither huge nor tiny, on a sphere or a cube."""
        chart = None if isinstance(domain, FiniteSet) else ground_of(domain, chart_of(domain))
        if chart is None or isinstance(domain, FiniteSet) or target.outputs > MOST_OUTPUTS or request.is_over():
            return None
        most = min(MOST // parameters(1, chart.width, target.outputs), request.positions or MOST)
        most = int(min(most, fewer_than - 1))
        begun, values = Instant(), target.evaluate(domain.spread(TIMED))
        size = float(np.abs(values).max())
        if most < LEAST or begun.since() > SLOW or not 1 / LARGE <= size <= LARGE:
            return None
        return cls(target, domain, chart, request, most, size, request.limit_for(values), rng)

    def best(self, rival: float) -> Head:
        """The best head, of the length asked for or a shorter one; given up where it is far behind a rival's error."""
        lengths = list(self._lengths(min(self.most, FIRST * self.domain.dimension), 2.0))
        head, found = self._begun(lengths[0]), list[tuple[float, Head]]()
        for index, count in enumerate(lengths):
            seconds = (self.request.seconds - self.request.made.since()) / (len(lengths) - index)
            error, head = self._settled(head, count, seconds)
            found.append((error, head))
            if index and error > BEHIND * rival:
                break
        return min(found, key=lambda each: each[0])[1]

    def first(self, begun: Head | None) -> Draft | None:
        """The first that seems to meet the tolerance, as lengths rise; or None.

        One is not made longer where its error is too large for a longer one's to be small enough.
        """
        shortest, tolerance = min(self.most, FIRST * self.domain.dimension), self.request.tolerance or 0.0
        head = self._begun(shortest) if begun is None else begun
        for count in self._lengths(head.positions, 1.4):
            error, head = self._settled(head, count, math.inf)
            if self.request.is_met_by(error) and self.request.is_met_by((draft := self.draft(head)).sampled):
                return draft
            is_hopeless = count >= FAIR * self.domain.dimension and error > REACH * tolerance
            if self.request.is_over() or is_hopeless:
                break
        return None

    def _settled(self, head: Head, count: int, seconds: float) -> tuple[float, Head]:
        """The largest error of the best head of so many positions that grows from a shorter one; and that."""
        if count > head.positions:
            head = grown(head, self.domain, self.chart, count - head.positions, self.limit)
        rounds = _Rounds(self, head, seconds)
        rounds.run()
        error, head = rounds.best()
        self.least = min(self.least, error)
        return error, head

    def draft(self, head: Head) -> Draft:
        """The head as a draft; its keys and biases less what all have in common, which rounding is the smaller for."""
        keys, biases = (each - (each.max(axis=0) + each.min(axis=0)) / 2 for each in (head.keys, head.biases))
        head = replace(head, keys=keys, biases=biases)
        sampled = unseen(self.target, self.domain, self.chart, head.positions).worst(head)
        return Draft(head, self.chart, Spectral.name, None, sampled, {"exchanged": True})

    def _lengths(self, count: int, factor: float) -> Iterator[int]:
        """Rising lengths from `count` on, each so many times the one before."""
        while count < NEARLY * self.most:
            yield count
            count = math.ceil(factor * count)
        yield self.most

    def _begun(self, count: int) -> Head:
        """So many even positions, polished."""
        request = self.request if self.request.positions is None else replace(self.request, positions=count)
        flat = chart_of(self.domain)
        on, *_ = Placed.all_of(self.target, self.domain, flat, request, [], self.rng)
        return widened(on.small(count, is_only=False).head, self.chart.width)

    def at(self, points: Floats) -> Sampled:
        """Samples at points."""
        return Sampled.at(points, self.target, self.chart)

    def drawn(self, count: int) -> Sampled:
        """So many samples, drawn evenly, and more near the sides."""
        return self.at(near_sides(self.domain, self.domain.sample(count, self.rng), self.rng))

    def around(self, seen: _Seen, near: float = 1.0) -> Sampled:
        """Samples around those that a head misses most, so much nearer to them than usual."""
        extent = np.ptp(self.domain.box, axis=1) if isinstance(self.domain, Cube) else 2.0
        between = extent / seen.head.positions ** (1 / self.domain.dimension)
        worst = seen.samples.points[seen.errors.argsort()[-AROUND:]]
        moved = np.tile(worst, (POOL // (4 * AROUND) + 1, 1))
        scale = near * np.where(np.arange(len(moved)) % CLOSE == 0, NEAREST, NEARER)[:, None]
        moved = moved + scale * between * self.rng.standard_normal(moved.shape)
        return self.at(self.domain.nearest(moved))


@dataclass(frozen=True)
class _Seen:
    """Samples with a head's largest error at each, `(sample,)`."""

    head: Head
    samples: Sampled
    errors: Floats

    @classmethod
    def of(cls, head: Head, samples: Sampled) -> _Seen:
        """Evaluate the head there."""
        return cls(head, samples, np.abs(head.evaluate(samples.queries) - samples.values).max(axis=1))

    def plus(self, samples: Sampled) -> _Seen:
        """These and more; the head is evaluated at the new ones alone."""
        more = _Seen.of(self.head, samples)
        return _Seen(self.head, _joined(self.samples, samples), np.concatenate([self.errors, more.errors]))

    def chosen(self, count: int, rng: np.random.Generator) -> Sampled:
        """So many drawn at random, those of large errors far more often: the worst alone would lie in one place."""
        chances = (self.errors / self.errors.max()) ** STEEPNESS + 1e-12
        size = min(count, len(chances))
        return _rows(self.samples, rng.choice(len(chances), size=size, replace=False, p=chances / chances.sum()))


@dataclass
class _Rounds:
    """The rounds of one length, for so many `seconds` at most."""

    on: Exchange
    head: Head
    seconds: float
    begun: Instant = field(default_factory=Instant)
    tried: list[tuple[float, Head]] = field(default_factory=list)  # with the largest errors that their rounds saw

    def run(self) -> None:
        """Rounds until one meets the tolerance, they hardly help, or time is up."""
        on, numbers = self.on, parameters(self.head.positions, self.on.chart.width, self.on.target.outputs)
        rows = [math.ceil(each * numbers / on.target.outputs) for each in (EVEN, WORST, TAKEN)]
        steps = int(np.clip(WORK / ((EVEN + WORST) * numbers**3), *STEPS))
        even, damping = on.drawn(max(LEAST_SAMPLES, rows[0])), DAMPING[1]
        taken = _rows(even, slice(0, 0))
        while True:
            pool = self._pool()
            worst = float(pool.errors.max())
            self.tried.append((worst, self.head))
            if not 0 < worst < math.inf or self._is_over():
                break
            taken = _rows(_joined(taken, pool.chosen(rows[2], on.rng)), slice(-rows[1], None))
            samples = _joined(even, taken)
            made, damping = descended(self.head, samples.queries, samples.values, on.limit, steps, damping)
            self.head = replace(made, values=np.clip(made.values, -on.limit, on.limit))
            damping = min(max(damping, DAMPING[0]), DAMPING[2])

    def best(self) -> tuple[float, Head]:
        """The head whose largest error is least at points drawn now, those around the worst of each among them.

        The last one, if it meets the tolerance: that was told at more points.
        """
        on, (error, head) = self.on, self.tried[-1]
        if on.request.is_met_by(error):
            return error, head
        drawn = on.drawn(POOL)
        heads = [head for _, head in sorted(self.tried, key=lambda each: each[0])[:JUDGED]]
        judged = _joined(drawn, *(on.around(_Seen.of(head, drawn)) for head in heads))
        return min(((judged.worst(head), head) for head in heads), key=lambda each: each[0])

    def _pool(self) -> _Seen:
        """Samples drawn now, and more around those that the head misses most.

        Where these seem to meet the tolerance, far more, and ever nearer to the worst: a tip is a single point.
        """
        on = self.on
        pool = _Seen.of(self.head, on.drawn(POOL))
        pool = pool.plus(on.around(pool))
        if on.request.is_met_by(pool.errors.max()):
            pool = pool.plus(on.drawn(CONFIRMED * POOL))
            for near in NEARING:
                pool = pool.plus(on.around(pool, near))
        return pool

    def _is_over(self) -> bool:
        request, errors = self.on.request, np.array([error for error, _ in self.tried])
        least = np.minimum.accumulate(errors)
        if request.is_over() or self.begun.since() >= self.seconds or request.is_met_by(errors[-1]):
            return True
        if len(least) > PATIENCE and least[-1] > GAIN * least[-1 - PATIENCE]:
            return True
        if request.tolerance is None or len(least) <= LOOK or least[-1] <= 0:
            return False
        fall = math.log(least[-1 - LOOK] / least[-1])
        return math.log(HEADROOM * least[-1] / request.tolerance) > AHEAD * fall


def _joined(*parts: Sampled) -> Sampled:
    points, queries, values = zip(*((part.points, part.queries, part.values) for part in parts), strict=True)
    return Sampled(np.concatenate(points), np.concatenate(queries), np.concatenate(values))


def _rows(samples: Sampled, rows: slice | NDArray[np.intp]) -> Sampled:
    return Sampled(samples.points[rows], samples.queries[rows], samples.values[rows])
