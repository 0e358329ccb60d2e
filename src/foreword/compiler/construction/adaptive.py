"""Targets with kinks: branches or nets of keys behind gates, axes graded towards kinks and roots; the shortest of them.

Where an expression tells the branches, each has a prefix of its own (`branches.py`); else one net of keys stands in
every sector (`gates.py`). On a cube, kinks at right angles to an axis may also be graded axes of a grid
(`tensor.graded_axis`). Kinks that nobody declared are looked for (`kinks.py`); so are sides of a cube at which the
target is like a root, towards which axes are graded, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foreword.compiler.charts import chart_of
from foreword.compiler.construction.along import Along
from foreword.compiler.construction.branches import GENTLEST, Branches
from foreword.compiler.construction.contract import (
    SELECTED,
    Draft,
    Obstacle,
    Request,
    Sampled,
    near_sides,
    unseen,
)
from foreword.compiler.construction.crossings import Round, rounds
from foreword.compiler.construction.dense import DENSE_LIMIT
from foreword.compiler.construction.gates import SHARPEST, Gates, gridded, sharpness_for
from foreword.compiler.construction.grid import GridProblem
from foreword.compiler.construction.kinks import Kink, along_axis, kinks_of, near_kinks, rooted_planes
from foreword.compiler.construction.reducing import Reduction
from foreword.compiler.construction.search import Candidate, shortest
from foreword.compiler.construction.spectral import too_rough
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.target import Target

BRANCHES = 0.8  # of the seconds, for a prefix of each branch
SHARE = 0.5  # of the seconds for gates, where graded axes are to be tried after them


@dataclass(frozen=True)
class Adaptive:
    """Gates at kinks; see the module."""

    name: str = "adaptive"

    def draft(self, target: Target, domain: Domain, request: Request, *, rng: np.random.Generator) -> Draft | Obstacle:
        """A draft; see `Construction.draft`. An obstacle when there is no kink."""
        along = Along.of(target, domain)
        inner = None if along is None else along.drafted(self, request, rng)
        if isinstance(inner, Draft):
            return inner
        chart = chart_of(domain)
        kinks, known = kinks_of(target, domain, rng)
        rooted, sides = list[Kink](), list[Kink]()
        cube = gridded(domain)
        if cube is not None:
            rooted = rooted_planes(target.evaluate, cube, kinks, np.random.default_rng(0))  # others' draws stay
            sides = [plane for plane in rooted if not any(plane is kink for kink in kinks)]
        nothing = Obstacle("kinks", f"No kink along a hyperplane is known or was found on {domain}.")
        if (turned := self._across_rounds(target, domain, request, kinks, rng)) is not None:
            return turned
        if isinstance(domain, FiniteSet) or not (kinks or sides):
            return nothing
        notes = {"kinks": _told(kinks), "known": known} | ({"like_roots": _told(rooted)} if rooted else {})
        # One kink's keys lie along its normal already, and their proof is tighter than that of graded axes.
        reductions = Reduction.all_of(target, domain, request) if len(kinks) > 1 else []
        inner = reductions[0].drafted(self, request, rng, kinks) if reductions else None
        if isinstance(inner, Draft):
            return replace(inner, notes={**inner.notes, **notes})
        is_along = all(along_axis(normal) is not None for normal, _ in kinks)
        candidate: Candidate | Obstacle = nothing
        if kinks and not (rooted and is_along):  # beside gates the target is to be smooth
            own = replace(request, seconds=BRANCHES * request.seconds)
            candidate = self._by_branches(target, domain, own, kinks, rng)
            is_short = isinstance(candidate, Candidate) and request.positions is None
            part = SHARE if cube is not None and is_along and domain.dimension > 1 and not is_short else 1.0
            own = replace(request, seconds=request.made.since() + part * (request.seconds - request.made.since()))
            most = candidate.head.positions - 1 if isinstance(candidate, Candidate) and is_short else DENSE_LIMIT
            gates = Gates.of(target, domain, chart, own, kinks, rng)
            candidate = _better(request, candidate, gates.found(most))
        is_on_line = isinstance(candidate, Candidate) and candidate.notes["beside"] in ("line", "branches")
        if cube is not None and is_along and not (is_on_line and request.positions is None):
            planes, is_rooted = [*kinks, *sides], bool(rooted)
            grid = GridProblem.of(target, cube, chart, request, rng, kinks=planes, is_rooted=is_rooted)
            candidate = _better(request, candidate, _on_grid(grid, request))
        if isinstance(candidate, Obstacle):
            return candidate
        over = candidate.chart or chart
        judged = unseen(target, domain, over, candidate.head.positions, kinks=[*kinks, *sides])
        return Draft(candidate.head, over, self.name, None, judged.worst(candidate.head), {**candidate.notes, **notes})

    def _across_rounds(
        self, target: Target, domain: Domain, request: Request, kinks: list[Kink], rng: np.random.Generator
    ) -> Draft | None:
        """The draft by branches of a target with kinks where a distance has one value; None where there are none."""
        if isinstance(domain, FiniteSet) or target.expression is None:
            return None
        found = list(rounds(target.expression.outputs, domain))
        made = self._by_branches(target, domain, request, kinks, rng, found) if found else None
        if not isinstance(made, Candidate) or made.chart is None:
            return None
        judged = unseen(target, domain, made.chart, made.head.positions, kinks=kinks)
        sampled = max(judged.worst(made.head), made.error)
        return Draft(made.head, made.chart, self.name, None, sampled, {**made.notes, "rounds": len(found)})

    def _by_branches(
        self,
        target: Target,
        domain: Sphere | Cube,
        request: Request,
        kinks: list[Kink],
        rng: np.random.Generator,
        around: Sequence[Round] = (),
    ) -> Candidate | Obstacle:
        """Each branch's own prefix behind gates, where the target is an expression."""
        nothing = Obstacle("kinks", "The target has no branches that are known.")
        chart = chart_of(domain)
        points = near_kinks(domain, near_sides(domain, domain.sample(SELECTED, rng), rng), kinks, rng)
        if isinstance(domain, Cube):
            points = np.concatenate([points, *(each.near(domain, points, rng) for each in around)])
        found = Branches.of(target, domain, chart, kinks, Sampled.at(points, target, chart), around)
        if found is None:
            return nothing
        sharpness = GENTLEST if request.tolerance is None else sharpness_for(target, domain, request.tolerance, kinks)
        made = found.candidate(request, sharpness, SHARPEST, rng)
        is_enough = made is not None and (request.tolerance is None or request.is_met_by(made.error))
        return made if made is not None and is_enough else nothing


def _told(kinks: Sequence[Kink]) -> list[list[object]]:
    return [[normal.tolist(), offset] for normal, offset in kinks]


def _on_grid(grid: GridProblem, request: Request) -> Candidate | Obstacle:
    if request.positions is not None:
        return grid.best_of(request.positions)
    found, least = shortest(
        grid.attempt,
        request.is_met_by,
        grid.sizes,
        dimension=grid.dimension,
        goal=request.tolerance or 0.0,
        is_over=request.is_over,
    )
    return too_rough(request, grid.sizes[-1], least) if found is None else grid.trimmed(found)


def _better(request: Request, one: Candidate | Obstacle, other: Candidate | Obstacle) -> Candidate | Obstacle:
    """The one of less error for so many positions, the shorter one for a tolerance."""
    if isinstance(one, Obstacle) or isinstance(other, Obstacle):
        return other if isinstance(one, Obstacle) else one
    if request.positions is not None:
        return one if one.error <= other.error else other
    return one if one.head.positions <= other.head.positions else other
