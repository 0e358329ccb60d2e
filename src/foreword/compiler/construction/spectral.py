"""Values by regularised least squares on a net's softmax features: for smooth targets the error falls exponentially.

Keys are a net with a small sharpness, so that features are wide and the target is approximated as by a spectral method.
The sharpness is chosen by the error at points of selection; what is reported is the error at other points. A target
that varies along few directions may get keys in their span (`reducing.py`). Then keys may leave their places
(`off_net.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, chart_of
from foreword.compiler.construction.contract import (
    SELECTED,
    Draft,
    Obstacle,
    Request,
    Sampled,
    near_sides,
    out_of_time,
    unseen,
)
from foreword.compiler.construction.dense import DENSE_LIMIT, DenseProblem
from foreword.compiler.construction.even import OnNet
from foreword.compiler.construction.grid import GridProblem
from foreword.compiler.construction.off_net import MOST_EXTENDED, OffNet
from foreword.compiler.construction.reducing import Reduction
from foreword.compiler.construction.search import Candidate, shortest
from foreword.compiler.construction.tensor import NODES
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.target import Target

PROBED = 96  # positions of the prefixes by which a placement is chosen


@dataclass(frozen=True)
class Spectral:
    """Solved values on a net, lattice or grid; see the module."""

    name: str = "spectral"
    most: int | None = None  # positions from which on a prefix is of no use: another is as short

    def draft(self, target: Target, domain: Domain, request: Request, *, rng: np.random.Generator) -> Draft | Obstacle:
        """A draft; see `Construction.draft`."""
        constant = _constant(target, domain, request)
        if constant is not None:
            return constant
        reductions = Reduction.all_of(target, domain, request)
        inner = reductions[0].drafted(self, request, rng, []) if reductions else None
        if inner is None:
            return self._drafted(target, domain, request, reductions, rng)
        if len(reductions[0].directions) < domain.dimension:
            return inner
        return _preferred(request, inner, self._drafted(target, domain, request, [], rng))  # on a circle, it depends

    def _drafted(
        self,
        target: Target,
        domain: Domain,
        request: Request,
        reductions: Sequence[Reduction],
        rng: np.random.Generator,
    ) -> Draft | Obstacle:
        chart = chart_of(domain)
        problem, reduction = _problem(target, domain, chart, request, reductions, rng)
        off_net = OffNet.of(target, domain, chart, problem)
        if request.positions is not None:
            candidate = off_net.best_of(min(request.positions, problem.sizes[-1]))
        else:
            sizes = [size for size in problem.sizes if self.most is None or size < self.most] or problem.sizes[:1]
            made, least = _within(problem, off_net, request, sizes)
            if made is None:
                return too_rough(request, sizes[-1], least)
            candidate = made
        head, notes = candidate.head, candidate.notes
        if reduction is not None:
            head, notes = reduction.lifted(head), {**notes, **reduction.notes}
        return Draft(head, chart, self.name, None, unseen(target, domain, chart, head.positions).worst(head), notes)


def _constant(target: Target, domain: Domain, request: Request) -> Draft | None:
    """One position with the middle of the target's values, where that is all that a tolerance asks for."""
    if request.positions is not None or request.tolerance is None:
        return None
    chart = chart_of(domain)
    judged = unseen(target, domain, chart, 1)
    middle = (judged.values.max(axis=0) / 2 + judged.values.min(axis=0) / 2)[None]
    head = Head(np.zeros((1, chart.width)), np.zeros(1), middle)
    sampled = judged.worst(head)
    if not request.is_met_by(sampled):
        return None
    return Draft(head, chart, Spectral.name, None, sampled, {"constant": True})


def _preferred(request: Request, one: Draft | Obstacle, other: Draft | Obstacle) -> Draft | Obstacle:
    """The one of less error for so many positions, the shorter one for a tolerance."""
    if isinstance(one, Obstacle) or isinstance(other, Obstacle):
        return other if isinstance(one, Obstacle) else one
    if request.positions is None and one.head.positions != other.head.positions:
        return min(one, other, key=lambda draft: draft.head.positions)
    return min(one, other, key=lambda draft: draft.sampled)


def _problem(
    target: Target,
    domain: Domain,
    chart: Chart,
    request: Request,
    reductions: Sequence[Reduction],
    rng: np.random.Generator,
) -> tuple[DenseProblem | GridProblem, Reduction | None]:
    """A grid in a cube of few dimensions, else dense least squares; or on the lattice of a reduction that does better.

    Fewer directions are not always better: of a polynomial on S^2, a net of few keys may be.
    """
    most = min(DENSE_LIMIT, request.positions or DENSE_LIMIT)
    if isinstance(domain, FiniteSet):
        samples = Sampled.at(domain.spread(20_000), target, chart)
        most = min(most, len(domain.points))
        return DenseProblem.of(OnNet(domain, chart), request, samples, samples, most=most), None
    is_grid = isinstance(domain, Cube) and domain.dimension in NODES
    found: list[tuple[DenseProblem | GridProblem, Reduction | None]] = []
    if isinstance(domain, Cube) and is_grid:
        found.append((GridProblem.of(target, domain, chart, request, rng, kinks=()), None))
    if not is_grid or reductions:
        fitted = Sampled.at(_fit_points(domain, max(2_000, 6 * min(most, 700)), bool(reductions), rng), target, chart)
        chosen = Sampled.at(_to_sides(domain, domain.sample(SELECTED, rng), bool(reductions), rng), target, chart)
        if not is_grid:
            found.append((DenseProblem.of(OnNet(domain, chart), request, fitted, chosen, most=most), None))
        for each in reductions:
            samples, judges = each.seen(fitted), each.seen(chosen)
            found.append((DenseProblem.of(each.lattice(), request, samples, judges, most=most), each))
    if len(found) == 1:
        return found[0]
    best = min(found, key=lambda pair: _probed(pair[0], most))
    best[0].shape = None
    return best


def _probed(problem: DenseProblem | GridProblem, most: int) -> float:
    """The error of a prefix of moderate length."""
    size = max((size for size in problem.sizes if size <= min(PROBED, most)), default=problem.sizes[0])
    return problem.attempt(size).error


def _within(
    problem: DenseProblem | GridProblem, off_net: OffNet, request: Request, sizes: Sequence[int]
) -> tuple[Candidate | None, float]:
    """The shortest found that meets the tolerance, or None; and the least error of evenly placed keys.

    On a net, a few keys in their places are tried before very many in even ones, which take longer.
    """

    def even(sizes: Sequence[int]) -> tuple[Candidate | None, float]:
        found, least = shortest(
            problem.attempt,
            request.is_met_by,
            sizes,
            dimension=problem.dimension,
            goal=request.tolerance or 0.0,
            is_over=request.is_over,
        )
        return None if found is None else off_net.shortened(problem.trimmed(found), request), least

    first = [size for size in sizes if isinstance(problem, GridProblem) or size <= MOST_EXTENDED] or sizes
    made, least = even(first)
    made = off_net.shortest(request, sizes[-1] + 1) if made is None else made
    is_done = made is not None or len(first) == len(sizes) or request.is_over()
    return (made, least) if is_done else even(sizes[len(first) :])


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


def too_rough(request: Request, largest: int, least: float) -> Obstacle:
    """No length meets the tolerance, or none that was tried before time was up."""
    if request.is_over():
        return out_of_time(f"Solved values do not meet {request.tolerance:g}", least)
    return Obstacle(
        "length",
        f"Solved values do not meet {request.tolerance:g} within {largest:,} positions.",
        f"largest error {least:.2g}",
        "Declare kinks with Target(kinks=...) where the target has some along a hyperplane, or ask for a tolerance "
        "above the error that was found.",
    )
