"""The search for a prefix on a grid of keys over a cube: how many keys along each axis, how far out, how wide.

An axis may have kinks: the target is not smooth across a plane at right angles to it, and keys crowd towards it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.construction.contract import SELECTED, Request, Sampled, near_sides
from foreword.compiler.construction.kinks import Kink, along_axis, near_kinks
from foreword.compiler.construction.search import Candidate, sizes_between, tuned
from foreword.compiler.construction.tensor import (
    GRADED_NODES,
    NODES,
    Axis,
    gaussian_axis,
    graded_axis,
    grid_head,
    grid_output,
    grid_points,
    grid_values,
)
from foreword.compiler.domain import Cube
from foreword.compiler.target import Target

CLOSER = (0.1, 0.01)  # times the scale of the last attempt
TELLING = 0.1  # of the target's range: with less error, the best shape is where the next attempt begins
LEAST_SCALE = 1e-9  # of keys about a kink: closer ones are so large that their rounding is more than they gain
LIMIT = 20_000  # positions: float64 evaluation of more takes longer than their solution
SMOOTH = ((1.2, 0.5), (1.8, 0.5), (2.5, 0.6), (3.2, 0.7), (1.2, 0.2))  # (reach, overlap) of `gaussian_axis`
# The same where a side is like a root, whose error is a root of the scale.
ROOTED = ((1e-9, 0.3, 1.5), (1e-8, 0.2, 1.0), (1e-6, 0.2, 1.5), (1e-4, 0.3, 2.5))
GRADED = ((1e-5, 0.3, 1.2), (1e-4, 0.3, 1.7), (1e-3, 0.3, 2.5), (1e-2, 0.5, 2.5))  # (scale, overlap, reach)


@dataclass
class GridProblem:
    """Least squares axis by axis; `offsets` of the kinks along each axis are flat coordinates."""

    request: Request
    offsets: tuple[tuple[float, ...], ...]
    nodes: tuple[int, ...]
    wanted: Floats  # (node, ..., node, output)
    chosen: Sampled
    limit: float
    sizes: Sequence[int]
    is_rooted: bool  # whether the target is like a root at one of the offsets
    shape: Sequence[float] | None = None  # the best of the last attempt: reach, overlap, then those of graded axes

    @classmethod
    def of(
        cls,
        target: Target,
        domain: Cube,
        chart: Chart,
        request: Request,
        rng: np.random.Generator,
        *,
        kinks: Sequence[Kink],
        is_rooted: bool = False,
    ) -> GridProblem:
        """The problem; every kink's normal must be along an axis, and sides may be among them."""
        d = domain.dimension
        offsets = tuple(_flat_offsets(domain, axis, kinks) for axis in range(d))
        axes = [_axis(1, found, (1.2, 0.5, 1e-3, 0.3, 1.2), d) for found in offsets]
        lower, upper = domain.box.T
        points = np.clip((lower + upper) / 2 + grid_points(axes) * (upper - lower) / 2, lower, upper)
        values = target.evaluate(points)
        nodes = tuple(len(axis.nodes) for axis in axes)
        selection = near_kinks(domain, near_sides(domain, domain.sample(SELECTED, rng), rng), list(kinks), rng)
        chosen = Sampled.at(selection, target, chart)
        largest = min(2 * min(nodes) // 5, int(LIMIT ** (1 / d) + 1e-9))
        sizes = [count**d for count in sizes_between(min(largest, 3), largest, 1.08)]
        return cls(
            request, offsets, nodes, values.reshape(*nodes, -1), chosen, request.limit_for(values), sizes, is_rooted
        )

    @property
    def dimension(self) -> int:
        """The number of axes."""
        return len(self.nodes)

    def attempt(self, count: int) -> Candidate:
        """As many keys along each axis, `count` in all."""
        return self._with([round(count ** (1 / self.dimension))] * self.dimension)

    def best_of(self, count: int) -> Candidate:
        """At most `count` keys: the same number along each axis, then more where they help and fewer where not."""
        even = max(1, int(count ** (1 / self.dimension) + 1e-9))
        best = self._with(self._grown([min(even, most) for most in self._most], count))
        for _ in range(2):
            if self.request.is_over():
                break
            lean = self.trimmed(best, best.error * 1.1)
            grown = self._grown(list(lean.notes["counts"]), count)
            again = self._with(grown) if grown != best.notes["counts"] else best
            if again.error >= best.error:
                break
            best = again
        return best

    def trimmed(self, candidate: Candidate, allowed: float | None = None) -> Candidate:
        """Fewer keys along each axis by itself, as long as the error stays within what is allowed."""

        def is_fine(error: float) -> bool:
            return error <= allowed if allowed is not None else self.request.is_met_by(error)

        for axis in range(self.dimension if self.dimension > 1 else 0):
            low, high = 0, candidate.notes["counts"][axis]
            while high - low > 1 and not self.request.is_over():
                middle = (low + high) // 2
                counts = list(candidate.notes["counts"])
                counts[axis] = middle
                lean = self._with(counts)
                if is_fine(lean.error):
                    high, candidate = middle, lean
                else:
                    low = middle
        return candidate

    @property
    def _most(self) -> list[int]:
        return [2 * nodes // 5 for nodes in self.nodes]

    def _grown(self, counts: list[int], count: int) -> list[int]:
        """One more along the axis with the fewest keys, of those with more than one, while there is room."""
        counts = list(counts)
        while True:
            total = math.prod(counts)
            room = [
                axis
                for axis in np.argsort(counts, kind="stable").tolist()
                if (counts[axis] > 1 or total == 1)
                and counts[axis] < self._most[axis]
                and total // counts[axis] * (counts[axis] + 1) <= count
            ]
            if not room:
                return counts
            counts[room[0]] += 1

    def _with(self, counts: list[int]) -> Candidate:
        has_kinks = any(self.offsets)
        steps = (24 if self.dimension <= 2 else 12) * (2 if has_kinks else 1)
        starts: list[Sequence[float]] = [self.shape] if self.shape is not None else []
        if not starts:
            edges = (*GRADED, *ROOTED) if self.is_rooted else GRADED
            starts = [(*even, *edge) for even in SMOOTH[1:4] for edge in edges] if has_kinks else list(SMOOTH)
        elif self.is_rooted:  # more keys go closer, and from far off the search does not find its way
            even, edge = tuple(starts[0][:2]), tuple(starts[0][2:])
            starts += [(*even, closer * edge[0], *edge[1:]) for closer in CLOSER]
            starts += [(*other, *edge) for other in SMOOTH] if not all(self.offsets) else []
            starts += [(*even, *found) for found in ROOTED]
        is_over = self.request.is_over
        best, error = tuned(lambda shape: self._solve(counts, shape)[2], starts, steps=steps, is_over=is_over)
        is_telling = error <= TELLING * float(np.ptp(self.chosen.values, axis=0).max(initial=0.0))
        self.shape = best.tolist() if is_telling else None  # what is best for too few keys misleads more of them
        axes, values, error = self._solve(counts, best)
        names = ("reach", "overlap", "kink_scale", "kink_overlap", "kink_reach")
        notes = {"counts": counts, **dict(zip(names, best.tolist(), strict=False))}
        return Candidate(grid_head(axes, values), error, notes)

    def _solve(self, counts: Sequence[int], shape: Floats) -> tuple[list[Axis], Floats, float]:
        numbers = shape.tolist()
        if not (1.0 <= numbers[0] <= 20.0 and 1e-3 <= numbers[1] <= 20.0):
            return [], np.empty(0), math.inf
        if len(numbers) > 2 and not (
            LEAST_SCALE <= numbers[2] <= 1.0 and 1e-3 <= numbers[3] <= 20.0 and 0.2 < numbers[4] < 20
        ):
            return [], np.empty(0), math.inf
        made: dict[tuple[int, tuple[float, ...]], Axis] = {}
        for count, offsets in zip(counts, self.offsets, strict=True):
            made.setdefault((count, offsets), _axis(count, offsets, numbers, self.dimension))
        axes = [made[key] for key in zip(counts, self.offsets, strict=True)]
        values = grid_values(axes, self.wanted, self.limit)
        error = np.abs(grid_output(axes, values, self.chosen.queries) - self.chosen.values).max()
        return axes, values, float(error)


def _axis(count: int, offsets: tuple[float, ...], shape: Sequence[float], dimension: int) -> Axis:
    if not offsets:
        return gaussian_axis(count, shape[0], shape[1], NODES[dimension])
    return graded_axis(count, shape[4], offsets, shape[2], shape[3], GRADED_NODES[dimension])


def _flat_offsets(domain: Cube, axis: int, kinks: Sequence[Kink]) -> tuple[float, ...]:
    lower, upper = domain.sides[axis]
    along = sorted({offset / normal[axis] for normal, offset in kinks if along_axis(normal) == axis})
    return tuple((offset - (lower + upper) / 2) / ((upper - lower) / 2) for offset in along)
