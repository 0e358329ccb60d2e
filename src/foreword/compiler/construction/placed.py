"""The placements that are possible for a target, and the best prefix of a length on them.

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
from foreword.compiler.charts import Flat, Identity
from foreword.compiler.construction.contract import SELECTED, Request, Sampled, near_sides
from foreword.compiler.construction.dense import DENSE_LIMIT, DenseProblem, error_of
from foreword.compiler.construction.even import OnNet
from foreword.compiler.construction.grid import GridProblem
from foreword.compiler.construction.off_net import FEW, LEAST_PART, OffNet, samples_to_grow
from foreword.compiler.construction.reducing import Reduction
from foreword.compiler.construction.search import Candidate
from foreword.compiler.construction.tensor import NODES
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.target import Target

PROBED = 96  # positions of the evenly placed prefixes by which a placement is chosen
HOPELESS = 5.0  # times the least error so far: then no shorter part is tried
PROMISING = 100.0  # times the least error so far, or the tolerance: a part with a larger error does not grow
# A prefix that can be polished whole grows from so small parts of it first: on a grid, polishing more takes long.
SEEDS = {"grid": (6, 3), "net": (3,)}
GAIN = 100.0  # times that growing lowers a seed's error, as a rule: an even prefix that has less is polished first
USUAL = (0, 2)  # of the shapes that a search begins with
NEAR = 1.5  # times the tolerance: an even prefix of a usual shape that has less may meet it in its best one
SHORT = 0.2  # of the most that can be polished: so many are polished over flat queries first, which is soon done
WORTH_MORE = 0.9  # of the error: where a polish leaves more, there is not another one
LONGER = (1.4, 2.0, 2.8, 4.0)  # times the most that can be polished: lengths that are tried for a tolerance
PROBED_SHARE = 0.36  # of the most that are polished: those of the polished ones by which it is
CLOSER = 3  # times as many points of selection from three dimensions on, where few points miss the largest error


@dataclass(frozen=True)
class Placed:
    """A placement of keys, evenly and off their places, and the reduction that its queries are of, if any.

    `ground` is where its polished prefixes grow: on a net of all of the domain, over curved queries, where features can
    be as narrow as is needed (`growing.py`). What has few directions grows on a sphere only.
    """

    off_net: OffNet
    reduction: Reduction | None
    ground: OffNet | None

    @classmethod
    def all_of(
        cls,
        target: Target,
        domain: Domain,
        chart: Identity | Flat,
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
            grid = off_net(GridProblem.of(target, domain, chart, request, rng, kinks=()))
            found.append(cls(grid, None, grid.ground(domain, chart)))
        if not is_grid or reductions:
            count = max(2_000, 6 * min(most, 700), samples_to_grow(most, chart.width, target.outputs))
            points = _fit_points(domain, count, bool(reductions), rng)
            fitted = Sampled.at(points, target, chart)
            points = domain.sample(SELECTED * (CLOSER if domain.dimension > 2 else 1), rng)
            chosen = Sampled.at(_to_sides(domain, points, bool(reductions), rng), target, chart)
            ground = None
            if not is_grid:
                net = off_net(DenseProblem.of(OnNet(domain, chart), request, fitted, chosen, most=most))
                found.append(cls(net, None, net.ground(domain, chart)))
                ground = net if isinstance(domain, Sphere) else None
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

        Over queries of the domain's chart, or of its ground.
        """
        # One that is too long to be polished whole hardly ever is the best, and dear but on a grid.
        is_put_off = self.ground is not None and count > self.off_net.most and not self.is_grid
        made = self._first(count) if is_put_off else []
        if made and self.problem.request.is_met_by(made[-1].error):
            return made[-1]
        even = self.problem.attempt(count) if is_put_off else self.problem.best_of(count)
        if self.problem.request.is_outdone(even.error):
            return self.lifted(even)
        if (crowded := self.off_net.crowded(count, even)) is not None:
            return self.lifted(crowded)
        seeds, parts = self._seeds(count), self.off_net.parts(count)[1 if made else 0 :]
        first = [*seeds, count] if seeds and self.is_grid else [*seeds, *parts]
        best = _Best(self, count, even, self.lifted(even))
        for candidate in made:
            best.take(candidate)
        best.try_sizes(first, seeds)
        if is_put_off and not best.is_grown and not best.is_enough():
            best.take(self.lifted(self.problem.best_of(count)))
        best.polish_on()
        best.try_sizes([size for size in parts if size not in first], [])
        return best.found

    def _first(self, count: int) -> list[Candidate]:
        """A short one and what grows from it, before an even prefix's shape is looked for.

        Nothing where there is no tolerance, where an even one may well meet it, or where there are others' drafts.
        """
        request = self.problem.request
        if request.tolerance is None or math.isfinite(request.rival):
            return []
        parts = self.off_net.parts(count)
        if not isinstance(self.problem, DenseProblem) or request.is_over() or not parts:
            return []
        shapes = [self.problem.placement.starts[number] for number in USUAL]
        if any(self.problem.solved(shape, count).error <= NEAR * request.tolerance for shape in shapes):
            return []
        small = self.small(parts[0], is_only=False)
        return [small] if request.is_met_by(small.error) else [small, self.grown(small, count)]

    @property
    def is_grid(self) -> bool:
        """Whether evenly placed keys are a grid's, whose values are cheap."""
        return isinstance(self.problem, GridProblem)

    def _seeds(self, count: int) -> list[int]:
        """The lengths from which a prefix grows first, however large their errors are."""
        if self.ground is None or count > (self.ground.most_grown if self.is_grid else self.off_net.most):
            return []
        most = min(count, self.ground.most)
        return [size for part in SEEDS["grid" if self.is_grid else "net"] if (size := most // part) >= LEAST_PART]

    def small(self, size: int, *, is_only: bool) -> Candidate:
        """So many positions, polished; to their end, if they are the `only` length that counts."""
        return self.lifted(self.off_net.small(size, is_only=is_only))

    def whole(self, even: Candidate) -> Candidate:
        """The even one, polished: over the ground's queries where they are others."""
        if self.ground is None or self.ground is self.off_net or self.reduction is not None:
            return self.lifted(self.off_net.improved(even))
        short = even.head.positions <= SHORT * self.off_net.most
        return self.ground.again(self.off_net.improved(even) if short else even)

    def grown(self, small: Candidate, count: int) -> Candidate:
        """The candidate grown to so many positions: on a grid first to as many as are polished to their end."""
        ground = self.ground
        if ground is None:
            return small
        if self.is_grid and LONGER[0] * ground.most < count:
            small = ground.grown(small, ground.most)
        return small if self.problem.request.is_over() else ground.grown(small, count)

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


@dataclass
class _Best:
    """The best of at most `count` positions that was `found`, and what its tries have told."""

    on: Placed
    count: int
    even: Candidate
    found: Candidate
    hopeless: int = 0  # positions: so many or fewer are not tried any more
    is_grown: bool = False

    def take(self, candidate: Candidate) -> None:
        """It, if it is better."""
        self.found = min(self.found, candidate, key=error_of)
        self.is_grown = self.is_grown or "grown" in self.found.notes

    def is_enough(self, candidate: Candidate | None = None) -> bool:
        """Whether nothing more is tried: not beside the candidate, or what was found."""
        error, request = (candidate or self.found).error, self.on.problem.request
        return error <= self.on.off_net.exact or request.is_over() or request.is_met_by(error)

    def try_sizes(self, sizes: Sequence[int], seeds: Sequence[int]) -> None:
        """Polish so many positions, and let them grow where that is promising: seeds, whatever their error is."""
        waiting, is_long = list(sizes), self.on.ground is not None and self.count > self.on.off_net.most
        while waiting and not self.is_enough():
            size = waiting.pop(0)
            least = self.found.error
            if size <= self.hopeless or (size == self.count and self.even.error > PROMISING * least):
                continue
            small = self._small(size, is_only=not is_long)
            self.take(small)
            if size == self.count:
                continue
            self.hopeless = size if small.error > HOPELESS * least else self.hopeless
            if size in seeds and self.count in waiting and GAIN * self.even.error < small.error:
                waiting.remove(self.count)
                waiting.insert(0, self.count)
            elif (size in seeds or small.error <= PROMISING * least) and not self.is_enough():
                self.take(self.on.grown(small, self.count))

    def _small(self, size: int, *, is_only: bool) -> Candidate:
        """So many positions, polished: all of them, and of few each size as if it alone were asked for."""
        is_few = self.count < FEW
        if size != self.count and not is_few:
            return self.on.small(size, is_only=is_only)
        whole = self.on.whole(self.even if size == self.count else self.on.problem.best_of(size))
        return self._polished_on(whole) if is_few else whole

    def polish_on(self) -> None:
        """Polish it further, as long as that is worth it and a step takes little."""
        self.take(self._polished_on(self.found))

    def _polished_on(self, candidate: Candidate) -> Candidate:
        ground = self.on.ground
        if ground is None or candidate.head.positions > LONGER[0] * ground.most:
            return candidate
        while not self.is_enough(candidate):
            last, candidate = candidate.error, ground.again(candidate)
            if candidate.error > WORTH_MORE * last:
                break
        return candidate


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
