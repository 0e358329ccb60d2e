"""Keys that leave the places where they began: a prefix is polished, or a part of it is, the rest on a net as before.

A short prefix's keys then leave the net or the grid, which is worth as much as three times its length (`polish.py`); of
a longer one, a part may (`extending.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from foreword.compiler.charts import Chart
from foreword.compiler.construction.contract import SELECTED, Request, Sampled, near_sides
from foreword.compiler.construction.crowded import crowded
from foreword.compiler.construction.dense import LEVELLED_OUTPUTS, DenseProblem, error_of
from foreword.compiler.construction.even import USUAL, OnNet, Placement
from foreword.compiler.construction.extending import POINTS, extended
from foreword.compiler.construction.fitting import LAWSON, Factors, bounded, levelled
from foreword.compiler.construction.grid import GridProblem
from foreword.compiler.construction.polish import parameters, polished
from foreword.compiler.construction.search import Candidate
from foreword.compiler.domain import Domain
from foreword.compiler.head import Head
from foreword.compiler.target import Target

MOST_PARAMETERS = 650  # numbers of a prefix up to which it is polished: some seconds
SAMPLED = 3  # fitting points for each of them
LEAST_SAMPLES = 600
LEAST_SHARE = 0.2  # a polished prefix is not looked for below that share of the length without
# Of the most that can be polished: sizes that are tried. Those in the middle are worth their time most, and come first.
PARTS = (0.56, 0.42, 1.0, 0.25, 0.12)
LEAST_PART = 12  # positions
HOPELESS = 5.0  # times the least error so far: then no shorter part is tried
PROMISING = 30.0  # times the tolerance: a part with a larger error is not extended
MOST_LENGTHENED = 3  # of the polished ones: the best
MOST_EXTENDED = 600  # positions that a polished part is extended to: a second
MARGIN = 0.6  # of the tolerance: an error at the fitting points that is small enough, and needs no more polish
WORTHWHILE = 0.1  # of the even net's error: a crowded one of less is polished in its place
EXACT = 1e-14  # of the target's size: rounding, which nothing improves


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
        share = (1.0 - np.cos(math.pi * rng.random((SAMPLED * MOST_PARAMETERS, domain.columns)))) / 2
        lower, upper = domain.box.T  # dense near the sides, where errors are largest, as Chebyshev's points are
        points = near_sides(domain, np.clip(lower + share * (upper - lower), lower, upper), rng)
        return cls(OnNet(domain, chart), problem, Sampled.at(points, target, chart))

    def best_of(self, count: int) -> Candidate:
        """The best of at most `count` positions: all on the net, crowded or not, all polished, or a part of them."""
        even, request = self.problem.best_of(count), self.problem.request
        if request.is_outdone(even.error):
            return even
        if even.error > self._exact and count <= self.most and isinstance(self.problem, DenseProblem):
            other = crowded(self.problem, count)
            if other is not None and other.error < WORTHWHILE * even.error:
                return self.improved(other)
        best, hopeless = even, 0
        for size in self._parts(count):
            if best.error <= self._exact or request.is_over() or request.is_met_by(best.error):
                break
            if size == count:
                best = min(best, self.improved(even), key=error_of)
            elif size > hopeless:
                small = self._small(size)
                hopeless = size if small.error > HOPELESS * best.error else hopeless
                best = min(best, small, self._extended(small, count), key=error_of) if size > hopeless else best
        return best

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

    def shortened(self, candidate: Candidate, request: Request) -> Candidate:
        """The shortest of a few shorter ones that meet the tolerance once polished; else the candidate."""
        return self.shortest(request, candidate.head.positions) or candidate

    def lengthened(self, request: Request, most: float) -> Candidate | None:
        """Polished ones that nearly meet the tolerance, with a net's keys besides, of fewer than `most` positions."""
        near = [small for small in self.made.values() if small.error <= PROMISING * (request.tolerance or 0.0)]
        near = sorted(near, key=error_of)[:MOST_LENGTHENED]
        sizes = [size for size in (MOST_EXTENDED // 2, MOST_EXTENDED) if size < most]
        longer = (self._extended(small, size) for size in sizes for small in near if not request.is_over())
        return next((found for found in longer if request.is_met_by(found.error)), None)

    def polished(self, size: int) -> Candidate:
        """A prefix of that size, one of the problem's, polished; made once."""
        if size not in self.made:
            self.made[size] = self.improved(self.problem.attempt(size))
        return self.made[size]

    def improved(self, candidate: Candidate) -> Candidate:
        """The candidate polished and its values solved anew, where that is better and it is short enough."""
        outputs = self.fitted.values.shape[1]
        count = parameters(candidate.head.positions, candidate.head.keys.shape[1], outputs)
        rows = slice(0, max(LEAST_SAMPLES, SAMPLED * count // outputs))
        queries, wanted = self.fitted.queries[rows], self.fitted.values[rows]
        if count > MOST_PARAMETERS or outputs > LEVELLED_OUTPUTS or len(queries) < 2 * count // outputs:
            return candidate
        request = self.problem.request
        if candidate.error <= EXACT * float(np.abs(wanted).max()) or request.is_over():
            return candidate
        limit, goal = self.problem.limit, MARGIN * (request.tolerance or 0.0)
        is_only = request.positions is not None
        head = polished(candidate.head, queries, wanted, limit, goal, is_only=is_only, is_over=request.is_over)
        factors = Factors.of(head.weights(queries))
        start = bounded(factors, wanted, limit)
        kept = np.clip(head.values, -limit, limit)
        for values in (kept, start.values, levelled(factors, wanted, limit, start, rounds=LAWSON)):
            made = Head(head.keys, head.biases, values)
            error = self.problem.chosen.worst(made)
            if error < candidate.error:
                candidate = Candidate(made, error, {**candidate.notes, "polished": True})
        return candidate

    @property
    def _exact(self) -> float:
        return EXACT * float(np.abs(self.fitted.values).max())

    @property
    def most(self) -> int:
        """Positions that can be polished."""
        outputs = self.fitted.values.shape[1]
        return 0 if outputs > LEVELLED_OUTPUTS else MOST_PARAMETERS // parameters(1, self.placement.width, outputs)

    def _parts(self, count: int) -> list[int]:
        """Sizes up to `count` that can be polished."""
        most = min(count, self.most)
        return [size for part in PARTS if (size := int(part * most)) >= LEAST_PART or size == count]

    def _small(self, size: int) -> Candidate:
        if isinstance(self.problem, GridProblem):
            return self.improved(self.problem.best_of(size))
        self.problem.shape = None
        return self.improved(self.problem.attempt(size))

    def _extended(self, candidate: Candidate, count: int) -> Candidate:
        """With a net's keys up to `count` positions, as far as there are samples to solve for their values."""
        rest = min(count, MOST_EXTENDED, len(self.fitted.queries) // POINTS) - candidate.head.positions
        if rest < LEAST_PART:
            return candidate
        shape = self.problem.shape if isinstance(self.problem, DenseProblem) else None
        net = self.placement.head(self.placement.points(rest), shape or (USUAL,), self.fitted.values.shape[1])
        return extended(candidate, net, self.fitted, self.problem.chosen, self.problem.limit)
