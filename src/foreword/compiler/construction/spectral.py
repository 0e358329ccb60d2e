"""Values by regularised least squares on a net's softmax features: for smooth targets the error falls exponentially.

Keys are a net with a small sharpness, so that features are wide and the target is approximated as by a spectral method.
The sharpness is chosen by the error at points of selection; what is reported is the error at other points. A short
prefix's keys then leave the net (`polish.py`), which is worth as much as three times its length; of a longer one, a
part may (`extending.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.spatial import cKDTree

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, chart_of
from foreword.compiler.construction.contract import SELECTED, Draft, Obstacle, Request, Sampled, near_sides, unseen
from foreword.compiler.construction.extending import LAWSON, POINTS, extended
from foreword.compiler.construction.fitting import Factors, bounded, levelled
from foreword.compiler.construction.grid import GridProblem
from foreword.compiler.construction.nearest import net_of_at_most, soft_head
from foreword.compiler.construction.polish import parameters, polished
from foreword.compiler.construction.search import Candidate, shortest, sizes_between, tuned
from foreword.compiler.construction.tensor import NODES
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.nets import relaxed, sphere_net
from foreword.compiler.target import Target

CHEAP = 260  # positions up to which the sharpness is looked for from scratch: a second in all
DENSE_LIMIT = 1_536  # positions of a dense least-squares problem: 15 s for one decomposition
MOST_PARAMETERS = 650  # numbers of a prefix up to which it is polished: some seconds
SAMPLED = 3  # fitting points for each of them
LEAST_SAMPLES = 600
LEAST_SHARE = 0.2  # a polished prefix is not looked for below that share of the length without
PARTS = (1.0, 0.56, 0.42, 0.25, 0.12)  # of the most that can be polished: sizes that are tried
LEAST_PART = 12  # positions
HOPELESS = 5.0  # times the error of the whole length on a net: then no shorter part is tried
PROMISING = 30.0  # times the tolerance: a part with a larger error is not extended
MOST_EXTENDED = 600  # positions that a polished part is extended to: a second
LEVELLED_OUTPUTS = 8  # outputs up to which reweighting, which is for each output by itself, is worth its time
SHARPNESS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # lambda spacing^2 to begin with; best 0.05 (very smooth) to 1 (rough)
# Net points of S^m with covering radius delta: delta about (FILL / N)^(1/m), which sets the unit of the sharpness.
FILL = {1: math.pi, 2: 6.0, 3: 12.0}


@dataclass(frozen=True)
class Spectral:
    """Solved values on a net or grid; see the module."""

    name: str = "spectral"
    most: int | None = None  # positions from which on a prefix is of no use: another is as short

    def draft(self, target: Target, domain: Domain, request: Request, *, rng: np.random.Generator) -> Draft | Obstacle:
        """A draft; see `Construction.draft`."""
        chart = chart_of(domain)
        problem: _OnNet | GridProblem
        if isinstance(domain, Cube) and domain.dimension in NODES:
            problem = GridProblem.of(target, domain, chart, request, rng, kinks=())
        else:
            problem = _OnNet.of(target, domain, chart, request, rng)
        polish = _Polish.of(target, domain, chart, problem)
        if request.positions is not None:
            candidate = polish.best_of(min(request.positions, problem.sizes[-1]))
        else:
            sizes = [size for size in problem.sizes if self.most is None or size < self.most] or problem.sizes[:1]
            made, least = _within(problem, polish, domain, request, sizes)
            if made is None:
                return too_rough(request, sizes[-1], least)
            candidate = made
        judged = unseen(target, domain, chart, candidate.head.positions)
        return Draft(candidate.head, chart, self.name, None, judged.worst(candidate.head), candidate.notes)


def _within(
    problem: _OnNet | GridProblem, polish: _Polish, domain: Domain, request: Request, sizes: Sequence[int]
) -> tuple[Candidate | None, float]:
    """The shortest found that meets the tolerance, or None; and the least error of evenly placed keys.

    On a net, a few keys in their places are tried before very many in even ones, which take longer.
    """

    def even(sizes: Sequence[int]) -> tuple[Candidate | None, float]:
        found, least = shortest(
            problem.attempt, request.is_met_by, sizes, dimension=domain.dimension, goal=request.tolerance or 0.0
        )
        return None if found is None else polish.shortened(problem.trimmed(found), request), least

    first = [size for size in sizes if isinstance(problem, GridProblem) or size <= MOST_EXTENDED] or sizes
    made, least = even(first)
    made = polish.shortest(request) if made is None else made
    return even(sizes[len(first) :]) if made is None and len(first) < len(sizes) else (made, least)


@dataclass
class _OnNet:
    """Dense least squares on a net's features: spheres, tables of points, and cubes of many dimensions."""

    domain: Domain
    chart: Chart
    request: Request
    fitted: Sampled
    chosen: Sampled
    limit: float
    sizes: Sequence[int]
    sharpness: float | None = field(default=None)  # the best of the last attempt: where the next one begins

    @classmethod
    def of(cls, target: Target, domain: Domain, chart: Chart, request: Request, rng: np.random.Generator) -> _OnNet:
        largest = min(DENSE_LIMIT, request.positions or DENSE_LIMIT)
        if isinstance(domain, FiniteSet):
            largest = min(largest, len(domain.points))
            fitted = chosen = Sampled.at(domain.spread(20_000), target, chart)
        else:
            fitted = Sampled.at(_fit_points(domain, max(2_000, 6 * min(largest, 700)), rng), target, chart)
            chosen = Sampled.at(domain.sample(SELECTED, rng), target, chart)
        first = min(largest, 4 if domain.dimension == 1 else 8)
        sizes = sizes_between(first, largest, 1.07 if domain.dimension == 1 else 1.16)
        return cls(domain, chart, request, fitted, chosen, request.limit_for(fitted.values), sizes)

    def attempt(self, count: int) -> Candidate:
        """The best of a few sharpnesses; around the last best where each is dear."""
        points = net_points(self.domain, count)
        starts = [[s] for s in SHARPNESS[:-1]]
        if count > CHEAP and self.sharpness is not None:
            starts = [[self.sharpness * ratio] for ratio in (0.8, 1.0, 1.25)]
        seen: dict[float, Candidate] = {}

        def error(parameters: Floats) -> float:
            sharpness = float(parameters[0])
            seen[sharpness] = self._solve(points, sharpness)
            return seen[sharpness].error

        tuned(error, starts, steps=5 if count <= CHEAP else 0)
        self.sharpness = min(seen, key=lambda key: seen[key].error)
        return min(seen[self.sharpness], self._solve(points, self.sharpness, rounds=LAWSON), key=_error_of)

    def best_of(self, count: int) -> Candidate:
        """The best of a few nets of that size, each with its sharpness."""
        best = self.attempt(count)
        best = self.attempt(count) if count > CHEAP else best  # around the first one's best
        if isinstance(self.domain, Sphere) and 2 <= self.domain.dimension <= 3:
            again = relaxed(net_points(self.domain, count), rounds=30)
            for sharpness in (self.sharpness or 0.2, 1.25 * (self.sharpness or 0.2)):
                best = min(best, self._solve(again, sharpness, rounds=LAWSON), key=_error_of)
        return best

    def trimmed(self, candidate: Candidate) -> Candidate:
        """The candidate: nothing to trim on a net."""
        return candidate

    def _solve(self, points: Floats, sharpness: float, *, rounds: int = 0) -> Candidate:
        count = len(points)
        head = soft_head(
            self.domain, self.chart, points, sharpness / spacing(self.domain, points) ** 2, np.zeros((count, 1))
        )
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
        return Candidate(made, float(errors[best]), {"sharpness": sharpness, "levelled": best == 1})


@dataclass(frozen=True)
class _Polish:
    """Candidates whose keys leave the net or grid that they began at."""

    domain: Domain
    chart: Chart
    problem: _OnNet | GridProblem
    fitted: Sampled

    @classmethod
    def of(cls, target: Target, domain: Domain, chart: Chart, problem: _OnNet | GridProblem) -> _Polish:
        if isinstance(problem, _OnNet):
            return cls(domain, chart, problem, problem.fitted)
        rng = np.random.default_rng(SELECTED)
        share = (1.0 - np.cos(math.pi * rng.random((SAMPLED * MOST_PARAMETERS, domain.columns)))) / 2
        lower, upper = domain.box.T  # dense near the sides, where errors are largest, as Chebyshev's points are
        points = near_sides(domain, np.clip(lower + share * (upper - lower), lower, upper), rng)
        return cls(domain, chart, problem, Sampled.at(points, target, chart))

    def best_of(self, count: int) -> Candidate:
        """The best of at most `count` positions: all on the net, all polished, or a part of them."""
        best = self.improved(self.problem.best_of(count))
        for size in self._parts(count, best.head.keys.shape[1]):
            small = self._small(size)
            if small.error > HOPELESS * best.error:
                break
            best = min(best, small, self._extended(small, count), key=_error_of)
        return best

    def shortest(self, request: Request) -> Candidate | None:
        """A short one that meets the tolerance where none on a net does; None when there is none."""
        made = [self._small(size) for size in reversed(self._parts(MOST_EXTENDED, self.chart.width))]
        near = [small for small in made if small.error <= PROMISING * (request.tolerance or 0.0)]
        longer = (self._extended(small, size) for size in (MOST_EXTENDED // 2, MOST_EXTENDED) for small in near)
        return next((found for group in (made, longer) for found in group if request.is_met_by(found.error)), None)

    def _parts(self, count: int, width: int) -> list[int]:
        """Sizes below `count` that can be polished, the largest first."""
        outputs = self.fitted.values.shape[1]
        if outputs > LEVELLED_OUTPUTS:
            return []
        most = min(count, MOST_PARAMETERS // parameters(1, width, outputs))
        return [size for part in PARTS if LEAST_PART <= (size := int(part * most)) < count]

    def _small(self, size: int) -> Candidate:
        problem = self.problem
        if isinstance(problem, GridProblem):
            return self.improved(problem.best_of(size))
        problem.sharpness = None
        return self.improved(problem.attempt(size))

    def _extended(self, candidate: Candidate, count: int) -> Candidate:
        """With a net's keys up to `count` positions, as far as there are samples to solve for their values."""
        rest = min(count, MOST_EXTENDED, len(self.fitted.queries) // POINTS) - candidate.head.positions
        if rest < LEAST_PART:
            return candidate
        points = net_points(self.domain, rest)
        sharpness = (getattr(self.problem, "sharpness", None) or SHARPNESS[2]) / spacing(self.domain, points) ** 2
        outputs = self.fitted.values.shape[1]
        net = soft_head(self.domain, self.chart, points, sharpness, np.zeros((len(points), outputs)))
        return extended(candidate, net, self.fitted, self.problem.chosen, self.problem.limit)

    def improved(self, candidate: Candidate) -> Candidate:
        """The candidate polished and its values solved anew, where that is better and it is short enough."""
        outputs = self.fitted.values.shape[1]
        count = parameters(candidate.head.positions, candidate.head.keys.shape[1], outputs)
        rows = slice(0, max(LEAST_SAMPLES, SAMPLED * count // outputs))
        queries, wanted = self.fitted.queries[rows], self.fitted.values[rows]
        if count > MOST_PARAMETERS or outputs > LEVELLED_OUTPUTS or len(queries) < 2 * count // outputs:
            return candidate
        head, limit = polished(candidate.head, queries, wanted, self.problem.limit), self.problem.limit
        factors = Factors.of(head.weights(queries))
        start = bounded(factors, wanted, limit)
        kept = np.clip(head.values, -limit, limit)
        for values in (kept, start.values, levelled(factors, wanted, limit, start, rounds=LAWSON)):
            made = Head(head.keys, head.biases, values)
            error = self.problem.chosen.worst(made)
            if error < candidate.error:
                candidate = Candidate(made, error, {**candidate.notes, "polished": True})
        return candidate

    def shortened(self, candidate: Candidate, request: Request) -> Candidate:
        """The shortest of a few shorter ones that meet the tolerance once polished; else the candidate."""
        width, outputs = candidate.head.keys.shape[1], self.fitted.values.shape[1]
        most = min(candidate.head.positions - 1, MOST_PARAMETERS // parameters(1, width, outputs))
        least = min(LEAST_SHARE * candidate.head.positions, PARTS[-1] * most)
        sizes = [size for size in self.problem.sizes if least <= size <= most]
        low, high = -1, len(sizes)
        while high - low > 1:
            middle = (low + high) // 2
            made = self.improved(self.problem.attempt(sizes[middle]))
            if request.is_met_by(made.error):
                high, candidate = middle, made
            else:
                low = middle
        return candidate


def _error_of(candidate: Candidate) -> float:
    return candidate.error


def net_points(domain: Domain, count: int) -> Floats:
    """Evenly placed points of the domain `(position, column)`, at most `count`."""
    if isinstance(domain, Sphere):
        return sphere_net(domain.dimension, count)
    return net_of_at_most(domain, count).points


def spacing(domain: Domain, points: Floats) -> float:
    """The unit of the sharpness: about the net's covering radius."""
    if isinstance(domain, Sphere) and domain.dimension in FILL:
        return float((FILL[domain.dimension] / len(points)) ** (1 / domain.dimension))
    if len(points) == 1:
        return 1.0
    return max(float(np.median(cKDTree(points).query(points, k=2)[0][:, 1])), 1e-150)


def _fit_points(domain: Domain, count: int, rng: np.random.Generator) -> Floats:
    """Evenly spread points that are not those of `spread`: on a sphere, turned; in a cube, near its sides too."""
    if isinstance(domain, Sphere):
        turn = np.linalg.qr(rng.standard_normal((domain.columns, domain.columns)))[0]
        points: Floats = domain.spread(count) @ turn
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        return points
    return near_sides(domain, domain.sample(count, rng), rng)


def too_rough(request: Request, largest: int, least: float) -> Obstacle:
    return Obstacle(
        "length",
        f"Solved values do not meet {request.tolerance:g} within {largest:,} positions.",
        f"largest error {least:.2g}",
        "Declare kinks with Target(kinks=...) where the target has some along a hyperplane, or ask for a tolerance "
        "above the error that was found.",
    )
