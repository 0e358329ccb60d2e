"""The placements that are possible for a target, and the shortest prefix on them that meets a tolerance.

Keys lie on a net of the domain, on a grid in a cube of few dimensions, or on the lattice of a reduction
(`reducing.py`). Fewer directions are not always better: of a polynomial on S^2, a net of few keys may be. Which is best
differs, too, between a short prefix that is polished and a longer one that is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.construction.contract import SELECTED, Request, Sampled, near_sides
from foreword.compiler.construction.dense import DENSE_LIMIT, DenseProblem, error_of
from foreword.compiler.construction.even import OnNet
from foreword.compiler.construction.grid import GridProblem
from foreword.compiler.construction.off_net import LEAST_PART, OffNet, samples_to_grow
from foreword.compiler.construction.reducing import Reduction
from foreword.compiler.construction.search import Candidate, shortest
from foreword.compiler.construction.tensor import NODES
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.target import Target

CHEAP = 600  # positions that a second solves for
PROBED = 96  # positions of the evenly placed prefixes by which a placement is chosen
HOPELESS = 5.0  # times the least error so far: then no shorter part is tried
PROMISING = 100.0  # times the least error so far, or the tolerance: a part with a larger error does not grow
SEED = 3  # a prefix that can be polished whole grows from so small a part of it first, however large its error is
LONGER = (1.4, 2.0, 2.8, 4.0)  # times the most that can be polished: lengths that are tried for a tolerance
PROBED_SHARE = 0.36  # of the most that are polished: those of the polished ones by which it is
CLOSER = 3  # times as many points of selection from three dimensions on, where few points miss the largest error


@dataclass(frozen=True)
class Placed:
    """A placement of keys, evenly and off their places, and the reduction that its queries are of, if any.

    `ground` is where its polished prefixes grow: on a net of all of a sphere. Only there features can be as narrow as
    is needed (`growing.py`); of few directions, and in a cube, they are not.
    """

    off_net: OffNet
    reduction: Reduction | None
    ground: OffNet | None

    @classmethod
    def all_of(
        cls,
        target: Target,
        domain: Domain,
        chart: Chart,
        request: Request,
        reductions: Sequence[Reduction],
        rng: np.random.Generator,
    ) -> list[Placed]:
        """A grid in a cube of few dimensions, else a net; beside it the lattice of every reduction."""

        def off_net(problem: DenseProblem | GridProblem) -> OffNet:
            return OffNet.of(target, domain, chart, problem)

        most = min(DENSE_LIMIT, request.positions or DENSE_LIMIT)
        if isinstance(domain, FiniteSet):
            samples = Sampled.at(domain.spread(20_000), target, chart)
            most = min(most, len(domain.points))
            return [
                cls(off_net(DenseProblem.of(OnNet(domain, chart), request, samples, samples, most=most)), None, None)
            ]
        found = []
        is_grid = isinstance(domain, Cube) and domain.dimension in NODES
        if isinstance(domain, Cube) and is_grid:
            found.append(cls(off_net(GridProblem.of(target, domain, chart, request, rng, kinks=())), None, None))
        if not is_grid or reductions:
            count = max(2_000, 6 * min(most, 700), samples_to_grow(most, chart.width, target.outputs))
            points = _fit_points(domain, count, bool(reductions), rng)
            fitted = Sampled.at(points, target, chart)
            points = domain.sample(SELECTED * (CLOSER if domain.dimension > 2 else 1), rng)
            chosen = Sampled.at(_to_sides(domain, points, bool(reductions), rng), target, chart)
            ground = None
            if not is_grid:
                net = off_net(DenseProblem.of(OnNet(domain, chart), request, fitted, chosen, most=most))
                ground = net if isinstance(domain, Sphere) else None
                found.append(cls(net, None, ground))
            for each in reductions:
                problem = DenseProblem.of(each.lattice(), request, each.seen(fitted), each.seen(chosen), most=most)
                found.append(cls(off_net(problem), each, ground))
        return found

    @property
    def problem(self) -> DenseProblem | GridProblem:
        """That of evenly placed keys."""
        return self.off_net.problem

    def lifted(self, candidate: Candidate) -> Candidate:
        """The candidate over queries of the domain's chart."""
        if self.reduction is None:
            return candidate
        notes = {**candidate.notes, **self.reduction.notes}
        return replace(candidate, head=self.reduction.lifted(candidate.head), notes=notes)

    def best_of(self, count: int) -> Candidate:
        """The best of at most `count` positions: all on the net, crowded or not, all polished, or a part of them.

        Over queries of the domain's chart.
        """
        request, exact, is_grown = self.problem.request, self.off_net.exact, False
        is_long = self.ground is not None and count > self.off_net.most  # then the even one hardly ever is the best
        even = self.problem.attempt(count) if is_long else self.problem.best_of(count)
        best, hopeless = self.lifted(even), 0

        def is_enough() -> bool:
            return best.error <= exact or request.is_over() or request.is_met_by(best.error)

        if request.is_outdone(even.error):
            return best
        if (crowded := self.off_net.crowded(count, even)) is not None:
            return self.lifted(crowded)
        sizes = self.off_net.parts(count)
        seed = 0 if self.ground is None or is_long else count // SEED
        for size in [seed, *sizes] if seed >= LEAST_PART else sizes:
            if is_enough():
                break
            if size <= hopeless:
                continue
            small = self.lifted(
                self.off_net.improved(even) if size == count else self.off_net.small(size, is_to_grow=is_long)
            )
            hopeless = size if size < count and small.error > HOPELESS * best.error else hopeless
            is_promising = size == seed or (size < count and small.error <= PROMISING * best.error)
            best = min(best, small, key=error_of)
            if is_promising and self.ground and not is_enough():
                best = min(best, self.ground.grown(small, count), key=error_of)
                is_grown = is_grown or "grown" in best.notes
        if is_long and not is_grown and not is_enough():
            best = min(best, self.lifted(self.problem.best_of(count)), key=error_of)
        return best

    def lengthened(self, request: Request, fewer_than: int) -> Candidate | None:
        """The best of the polished ones grown, where that meets the tolerance: the fewest of a few lengths."""
        if self.ground is None or not self.off_net.made:
            return None
        best = self.lifted(min(self.off_net.made.values(), key=error_of))
        lengths = [math.ceil(ratio * self.off_net.most) for ratio in LONGER]
        for count in [length for length in lengths if length < fewer_than]:
            if request.is_over() or best.error > PROMISING * (request.tolerance or 0.0):
                break
            found = self.ground.grown(best, count)
            if request.is_met_by(found.error):
                return found
        return None

    def even(self) -> float:
        """The error of a prefix of moderate length."""
        return self.problem.attempt(self._size_below(PROBED)).error

    def polished(self, most: float) -> float:
        """The error of one that is polished, at most so long."""
        return self.off_net.polished(self._size_below(most)).error

    def _size_below(self, most: float) -> int:
        return max((size for size in self.problem.sizes if size <= most), default=self.problem.sizes[0])


def best_even(placements: Sequence[Placed]) -> Placed:
    """The one on which a prefix of moderate length has the least error."""
    if len(placements) == 1:
        return placements[0]
    _, best = min(((each.even(), each) for each in placements), key=itemgetter(0))
    best.problem.shape = None
    return best


def best_polished(placements: Sequence[Placed]) -> Placed:
    """The one on which a polished prefix, which is shorter, has."""
    if len(placements) == 1:
        return placements[0]
    most = PROBED_SHARE * min(each.off_net.most for each in placements)
    _, best = min(((each.polished(most), each) for each in placements), key=itemgetter(0))
    best.problem.shape = None
    return best


def shortest_on(
    placements: Sequence[Placed], request: Request, fewer_than: int | None
) -> tuple[Candidate | None, float]:
    """The shortest prefix found that meets the tolerance, or None; and the least error of evenly placed keys.

    Keys that leave their places are tried before more of them in even ones; those may be fewer once they grow from a
    few, which is tried before very many, as they take long. On a grid, whose values are cheap, all lengths are tried
    at once, and then shortened.
    """
    on = best_polished(placements)
    sought, is_grid = _Sought(on, request, fewer_than), isinstance(on.problem, GridProblem)
    made = sought.even(0, math.inf if is_grid else on.off_net.most)
    made = sought.polished() if made is None else on.off_net.shortened(made, request)
    if made is not None or is_grid:
        return None if made is None else on.lifted(made), sought.least
    longer = _Sought(best_even(placements), request, fewer_than, sought.least)
    made = longer.even(on.off_net.most, CHEAP)
    grown = sought.grown(longer.sizes[-1] + 1 if made is None else made.head.positions)
    if grown is not None:
        return grown, longer.least
    made = longer.even(max(on.off_net.most, CHEAP), math.inf) if made is None else made
    return None if made is None else longer.on.lifted(made), longer.least


@dataclass
class _Sought:
    """The search on one placement: of fewer than so many positions, if not None."""

    on: Placed
    request: Request
    fewer_than: int | None
    least: float = math.inf  # error that evenly placed keys had

    @property
    def sizes(self) -> Sequence[int]:
        """The lengths that may be tried; one at least."""
        sizes, most = self.on.problem.sizes, self.fewer_than
        return [size for size in sizes if most is None or size < most] or sizes[:1]

    def even(self, above: float, most: float) -> Candidate | None:
        """Evenly placed keys, more than `above` and at most `most`."""
        problem, sizes = self.on.problem, [size for size in self.sizes if above < size <= most]
        if not sizes or (self.request.is_over() and math.isfinite(self.least)):
            return None
        found, least = shortest(
            problem.attempt,
            self.request.is_met_by,
            sizes,
            dimension=problem.dimension,
            goal=self.request.tolerance or 0.0,
            is_over=self.request.is_over,
        )
        self.least = min(self.least, least)
        return None if found is None else problem.trimmed(found)

    def polished(self) -> Candidate | None:
        """Keys off their places."""
        return self.on.off_net.shortest(self.request, self.sizes[-1] + 1)

    def grown(self, fewer_than: int) -> Candidate | None:
        """The same, grown."""
        return self.on.lengthened(self.request, fewer_than)


def _fit_points(domain: Sphere | Cube, count: int, is_reduced: bool, rng: np.random.Generator) -> Floats:
    """Evenly spread points that are not those of `spread`: on a sphere, turned; in a cube, near its sides too."""
    if isinstance(domain, Sphere):
        turn = np.linalg.qr(rng.standard_normal((domain.columns, domain.columns)))[0]
        points: Floats = domain.spread(count) @ turn
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        return points
    return _to_sides(domain, near_sides(domain, domain.sample(count, rng), rng), is_reduced, rng)


def _to_sides(domain: Sphere | Cube, points: Floats, is_reduced: bool, rng: np.random.Generator) -> Floats:
    """More of a cube's points on its sides, where its image in few directions has its edge: only there a corner is."""
    for _ in range(3 if is_reduced else 0):
        points = near_sides(domain, points, rng)
    return points
