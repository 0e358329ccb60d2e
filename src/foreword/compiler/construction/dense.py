"""Values by dense least squares on the softmax features of evenly placed keys, their shape chosen by its error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.construction.contract import Request, Sampled
from foreword.compiler.construction.even import Placement
from foreword.compiler.construction.fitting import LAWSON, Factors, bounded, levelled, sketched
from foreword.compiler.construction.search import Candidate, sizes_between, tuned
from foreword.compiler.head import Head

CHEAP = 260  # positions up to which the shape is looked for from scratch: a second in all
DENSE_LIMIT = 1_536  # positions of a dense least-squares problem: 15 s for one decomposition
LEVELLED_OUTPUTS = 8  # outputs up to which reweighting, which is for each output by itself, is worth its time
STEPS = {1: (5, 6), 2: (16, 8)}  # of the search for a shape of so many numbers: where it is cheap, where it is dear
DEAREST = 1_100  # positions from which on there is no search but the best of a few shapes
TRIED = (2_000, 3)  # samples, at least, and for each position, by which shapes are compared; the best gets all


@dataclass
class DenseProblem:
    """Keys where the placement puts them, values solved at `fitted`, judged at `chosen`."""

    placement: Placement
    request: Request
    fitted: Sampled
    chosen: Sampled
    limit: float
    sizes: Sequence[int]
    shape: Sequence[float] | None = field(default=None)  # the best of the last attempt: where the next one begins

    @classmethod
    def of(cls, placement: Placement, request: Request, fitted: Sampled, chosen: Sampled, *, most: int) -> DenseProblem:
        """For at most so many positions."""
        most = min(DENSE_LIMIT, most)
        is_line = placement.dimension == 1
        sizes = sizes_between(min(most, 4 if is_line else 8), most, 1.07 if is_line else 1.16)
        return cls(placement, request, fitted, chosen, request.limit_for(fitted.values), sizes)

    @property
    def dimension(self) -> int:
        """In how many directions the keys spread."""
        return self.placement.dimension

    def attempt(self, count: int) -> Candidate:
        """The best of a few shapes; around the last best where each is dear."""
        points, starts = self.placement.points(count), self.placement.starts
        if count > CHEAP and self.shape is not None:
            starts = self.placement.around(self.shape)
        cheap, dear = STEPS[len(starts[0])]
        steps = cheap if count <= CHEAP else dear if count <= DEAREST else 0
        best, _ = tuned(lambda shape: self._tried(points, shape), starts, steps=steps, is_over=self.request.is_over)
        self.shape = best.tolist()
        return self._solve(points, best.tolist(), rounds=LAWSON)

    def best_of(self, count: int) -> Candidate:
        """The best of a few placements of that size, each with its shape."""
        best = self.attempt(count)
        if self.request.is_over():
            return best
        best = self.attempt(count) if count > CHEAP else best  # around the first one's best
        again = self.placement.relaxed(self.placement.points(count))
        if again is not None and self.shape is not None:
            for ratio in (1.0, 1.25):
                shape = (*self.shape[:-1], ratio * self.shape[-1])
                best = min(best, self._solve(again, shape, rounds=LAWSON), key=error_of)
        return best

    def solved(self, shape: Sequence[float], count: int) -> Candidate:
        """So many keys in that shape."""
        return self._solve(self.placement.points(count), shape)

    def trimmed(self, candidate: Candidate) -> Candidate:
        """The candidate: there is nothing to trim."""
        return candidate

    def _tried(self, points: Floats, shape: Floats) -> float:
        """The error of that shape, by fewer samples than it is solved and judged by in the end."""
        head = self.placement.head(points, shape.tolist(), self.fitted.values.shape[1])
        least, each = TRIED
        rows = slice(0, max(least, each * head.positions))
        values = sketched(head.weights(self.fitted.queries[rows]), self.fitted.values[rows], self.limit).values
        judged = slice(0, least)
        found = np.abs(head.weights(self.chosen.queries[judged]) @ values - self.chosen.values[judged])
        return float(found.max())

    def _solve(self, points: Floats, shape: Sequence[float], *, rounds: int = 0) -> Candidate:
        head = self.placement.head(points, shape, self.fitted.values.shape[1])
        count = head.positions
        rows = slice(0, max(2_000, 6 * count) if count <= 256 else max(1_600, 4 * count))
        wanted = self.fitted.values[rows]
        factors = Factors.of(head.weights(self.fitted.queries[rows]))
        start = bounded(factors, wanted, self.limit)
        features = head.weights(self.chosen.queries)
        found = [start.values]
        if rounds and wanted.shape[1] <= LEVELLED_OUTPUTS:
            found.append(levelled(factors, wanted, self.limit, start, rounds=rounds))
        errors = [np.abs(features @ values - self.chosen.values).max() for values in found]
        best = int(np.argmin(errors))
        made = Head(head.keys, head.biases, found[best])
        told = dict(zip(("sharpness", "reach"), reversed(shape), strict=False))
        return Candidate(made, float(errors[best]), {**told, "levelled": best == 1})


def error_of(candidate: Candidate) -> float:
    """What candidates are compared by."""
    return candidate.error
