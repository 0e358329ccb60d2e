"""Keys that leave the places where they began: a short prefix is polished, and a longer one grows from it.

That is worth as much as three times the length of a short one (`polish.py`, `growing.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, Flat, Identity
from foreword.compiler.construction.contract import SELECTED, Instant, Request, Sampled, near_sides
from foreword.compiler.construction.crowded import crowded
from foreword.compiler.construction.dense import LEVELLED_OUTPUTS, DenseProblem
from foreword.compiler.construction.even import OnNet, Placement
from foreword.compiler.construction.fitting import LAWSON, Factors, bounded, levelled
from foreword.compiler.construction.grid import GridProblem
from foreword.compiler.construction.growing import DAMPING, STEPS, ground_of, grown, widened
from foreword.compiler.construction.polish import FIRST_DAMPING, parameters, polished
from foreword.compiler.construction.search import Candidate
from foreword.compiler.domain import Cube, Domain, Sphere, as_chebyshev
from foreword.compiler.head import Head
from foreword.compiler.target import Target

MOST_PARAMETERS = 650  # numbers of a prefix up to which it is polished from its places: some seconds
MOST_OUTPUTS = 24  # beyond, the positions that have so many numbers are too few to be worth their time
MOST_GROWN = 3_600  # up to which one grows: three seconds for a step
SAMPLED = 3  # fitting points for each number of a short prefix
LEAST_SAMPLED_WHOLE = 2  # of one that is polished from its places, at least
LEAST_SAMPLED = 1.5  # of one that grows
LEAST_SAMPLES = 600
SAMPLES = math.ceil(LEAST_SAMPLED * MOST_GROWN)  # for all that
LEAST_SHARE = 0.2  # a polished prefix is not looked for below that share of the length without
# Of the most that can be polished: sizes that are tried. Those in the middle are worth their time most, and come first.
PARTS = (0.56, 0.42, 1.0, 0.25, 0.12)
LEAST_PART = 6  # positions
# Below that, one key less is tried too: of an odd function's odd number of keys, the middle one stays in the middle. A
# handful of keys is held fast so often that all that are fewer are tried.
FEW, HANDFUL = 14, 6
LEAST_REST = 4  # positions that a prefix grows by
MARGIN = 0.6  # of the tolerance: an error that is small enough, and needs no more polish
LONGEST = 4.0  # seconds of a polish for a tolerance, which another length may meet sooner
WORTHWHILE = 0.1  # of the even net's error: a crowded one of less is polished in its place
LITTLE_DAMPING = 1e-8  # of the first step of a polish that begins where little is left to do
EXACT = 1e-14  # of the target's size: rounding, which nothing improves


def samples_to_grow(positions: int, width: int, outputs: int) -> int:
    """Fitting points that so many positions need, or as many as can grow, with keys of that width."""
    return math.ceil(LEAST_SAMPLED * min(MOST_GROWN, parameters(positions, width, outputs)) / outputs)


@dataclass(frozen=True)
class OffNet:
    """Candidates whose keys leave the net, lattice or grid that they began at."""

    placement: Placement
    problem: DenseProblem | GridProblem
    fitted: Sampled
    made: dict[int, Candidate] = field(default_factory=dict)  # by size, those that were polished for a tolerance

    @classmethod
    def of(cls, target: Target, domain: Domain, chart: Chart, problem: DenseProblem | GridProblem) -> OffNet:
        """For the candidates of that problem."""
        if isinstance(problem, DenseProblem):
            return cls(problem.placement, problem, problem.fitted)
        rng = np.random.default_rng(SELECTED)
        # Dense near the sides: there errors are largest.
        points = near_sides(domain, as_chebyshev(domain.box, rng.random((SAMPLES, domain.columns))), rng)
        return cls(OnNet(domain, chart), problem, Sampled.at(points, target, chart))

    def ground(self, domain: Domain, chart: Identity | Flat) -> OffNet | None:
        """Where what is polished here, over queries of the domain's chart, grows; None where nothing can."""
        over = ground_of(domain, chart, self.problem.request.arms)
        if over == chart:
            return self
        if over is None or self.problem.request.is_flat:
            return None
        raised = [replace(each, queries=over(each.points)) for each in (self.problem.chosen, self.fitted)]
        return OffNet(OnNet(domain, over), replace(self.problem, chosen=raised[0]), raised[1])

    def crowded(self, count: int, even: Candidate) -> Candidate | None:
        """Keys that crowd somewhere, polished, where that is far better than the even ones."""
        if even.error <= self.exact or count > self.most or not isinstance(self.problem, DenseProblem):
            return None
        other = crowded(self.problem, count)
        return None if other is None or other.error >= WORTHWHILE * even.error else self.improved(other)

    def parts(self, count: int) -> list[int]:
        """Sizes up to `count` that can be polished: of a few positions, one less too, or all."""
        most = min(count, self.most)
        found = [size for part in PARTS if (size := int(part * most)) >= LEAST_PART or size == count]
        fewer = range(most - 1, 0 if most < HANDFUL else most - 2, -1) if 1 < most < FEW else ()
        return [*found, *(size for size in fewer if size not in found)]

    def small(self, size: int, *, is_only: bool) -> Candidate:
        """So many positions, polished: see `polish.polished` for `is_only`."""
        if isinstance(self.problem, GridProblem):
            return self.improved(self.problem.best_of(size), is_only=is_only)
        self.problem.shape = None
        return self.improved(self.problem.attempt(size), is_only=is_only)

    def shortest(self, request: Request, most: float) -> Candidate | None:
        """The shortest found of fewer than `most` positions that meets the tolerance once polished; or None."""
        last = min(most - 1, self.most)
        least = min(LEAST_SHARE * most, PARTS[-1] * last)
        sizes = [size for size in self.problem.sizes if least <= size <= last]
        low, high, found = -1, len(sizes), None
        while high - low > 1 and not request.is_over():
            middle = (low + high) // 2
            made = self.polished(sizes[middle])
            low, high = (low, middle) if request.is_met_by(made.error) else (middle, high)
            found = made if high == middle else found
        return found

    def polished(self, size: int) -> Candidate:
        """A prefix of that size, one of the problem's, polished; made once."""
        if size not in self.made:
            self.made[size] = self.improved(self.problem.attempt(size))
        return self.made[size]

    def improved(self, candidate: Candidate, *, is_only: bool | None = None) -> Candidate:
        """The candidate polished and its values solved anew, where that is better and it is short enough.

        For `is_only` see `polish.polished`: so it is where no tolerance is asked, unless told otherwise.
        """
        count, outputs = self._parameters(candidate.head.positions), self._outputs
        rows = max(LEAST_SAMPLES, SAMPLED * count // outputs)
        if candidate.head.positions > self.most:
            return candidate
        if candidate.error <= self.exact or self.problem.request.is_over():
            return candidate
        return self._polished(candidate, candidate.head, rows, is_only=self._is_only(is_only))

    def grown(self, candidate: Candidate, count: int, *, is_only: bool | None = None) -> Candidate:
        """The candidate grown to `count` positions of this ground and polished, where that is better.

        Fewer positions where there are not samples enough, or where a step would take too long.
        """
        on, outputs = self.placement, self._outputs
        count = min(count, self.most_grown)
        rest = count - candidate.head.positions
        if rest < LEAST_REST or not isinstance(on, OnNet) or not isinstance(on.domain, Sphere | Cube):
            return candidate
        own = widened(candidate.head, on.width)
        head = grown(own, on.domain, on.chart, rest, self.problem.limit)
        rows = max(LEAST_SAMPLES, samples_to_grow(count, on.width, outputs))
        made = self._polished(candidate, head, rows, is_only=self._is_only(is_only), least=STEPS, damping=DAMPING)
        return candidate if made is candidate else replace(made, notes={**made.notes, "grown": True}, chart=on.chart)

    def again(self, candidate: Candidate) -> Candidate:
        """The candidate polished, or polished on, over the queries of this ground, where that is better."""
        on, outputs = self.placement, self._outputs
        count = self._parameters(candidate.head.positions)
        rows = min(len(self.fitted.queries), max(LEAST_SAMPLES, SAMPLED * count // outputs))
        if count > MOST_GROWN or not isinstance(on, OnNet) or rows * outputs < LEAST_SAMPLED * count:
            return candidate
        made = self._polished(
            candidate, widened(candidate.head, on.width), rows, is_only=True, least=STEPS, damping=LITTLE_DAMPING
        )
        return candidate if made is candidate else replace(made, chart=on.chart)

    def _polished(
        self,
        candidate: Candidate,
        head: Head,
        rows: int,
        *,
        is_only: bool,
        least: int = 1,
        damping: float = FIRST_DAMPING,
    ) -> Candidate:
        """The head, polished by the first `rows` samples and its values solved anew, or the candidate if better."""
        queries, wanted = self.fitted.queries[:rows], self.fitted.values[:rows]
        request, limit, begun = self.problem.request, self.problem.limit, Instant()
        goal = MARGIN * (request.tolerance or 0.0)

        def is_over() -> bool:
            return request.is_over() or (request.positions is None and begun.since() >= LONGEST)

        def is_good(made: Head) -> bool:
            return self.problem.chosen.worst(replace(made, values=np.clip(made.values, -limit, limit))) < goal

        found = polished(
            head,
            queries,
            wanted,
            limit,
            goal,
            is_only=is_only,
            least=least,
            damping=damping,
            is_over=is_over,
            is_good=is_good if is_only else None,  # few samples miss the largest error
        )
        kept = self._better(candidate, found, np.clip(found.values, -limit, limit))
        if kept is not candidate and request.is_met_by(kept.error):
            return kept
        factors = Factors.of(found.weights(queries))
        start = bounded(factors, wanted, limit)
        solved = self._better(kept, found, start.values)
        if self._outputs > LEVELLED_OUTPUTS:
            return solved
        return self._better(solved, found, levelled(factors, wanted, limit, start, rounds=LAWSON))

    def _better(self, candidate: Candidate, head: Head, values: Floats) -> Candidate:
        """The candidate, or the head with those values if that is better."""
        made = Head(head.keys, head.biases, values)
        error = self.problem.chosen.worst(made)
        return Candidate(made, error, {**candidate.notes, "polished": True}) if error < candidate.error else candidate

    def _is_only(self, told: bool | None) -> bool:
        return self.problem.request.positions is not None if told is None else told

    @property
    def exact(self) -> float:
        """An error that nothing improves."""
        return EXACT * float(np.abs(self.fitted.values).max())

    @property
    def most(self) -> int:
        """Positions that can be polished: by their numbers, and by the samples that there are, few in a short table."""
        if self._outputs > MOST_OUTPUTS:
            return 0
        numbers = min(MOST_PARAMETERS, len(self.fitted.queries) * self._outputs // LEAST_SAMPLED_WHOLE)
        return numbers // self._parameters(1)

    @property
    def most_grown(self) -> int:
        """Positions that can grow, by their numbers and by the samples that there are."""
        each = self._parameters(1)
        return min(MOST_GROWN // each, int(len(self.fitted.queries) * self._outputs / (LEAST_SAMPLED * each)))

    @property
    def _outputs(self) -> int:
        return int(self.fitted.values.shape[1])

    def _parameters(self, positions: int) -> int:
        return parameters(positions, self.placement.width, self._outputs)
