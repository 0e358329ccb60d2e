"""Values by regularised least squares on a net's softmax features: for smooth targets the error falls exponentially.

Keys are a net with a small sharpness, so that features are wide and the target is approximated as by a spectral method.
The sharpness is chosen by the error at points of selection; what is reported is the error at other points. A target
that varies along few directions may get keys in their span (`reducing.py`). Then keys may leave their places
(`off_net.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from foreword.compiler.charts import chart_of
from foreword.compiler.construction.along import Along
from foreword.compiler.construction.contract import Draft, Obstacle, Request, out_of_time, unseen
from foreword.compiler.construction.placed import Placed, best_even
from foreword.compiler.construction.reducing import Reduction
from foreword.compiler.construction.shortest import shortest_on
from foreword.compiler.domain import Domain
from foreword.compiler.head import Head
from foreword.compiler.target import Target


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
        along = None if request.arms is not None else Along.of(target, domain)  # whose queries would be others
        inner = None if along is None else along.drafted(self, request, rng)
        if isinstance(inner, Draft) and (request.tolerance is None or request.is_met_by(inner.sampled)):
            return inner
        reductions = Reduction.all_of(target, domain, request)
        inner = reductions[0].drafted(self, request, rng, []) if reductions else None
        if inner is None:
            return self._drafted(target, domain, request, reductions, rng)
        if len(reductions[0].directions) < domain.dimension:
            return inner
        shorter = self if isinstance(inner, Obstacle) else replace(self, most=inner.head.positions)
        return _preferred(request, inner, shorter._drafted(target, domain, request, [], rng))  # on a circle, it depends

    def _drafted(
        self,
        target: Target,
        domain: Domain,
        request: Request,
        reductions: Sequence[Reduction],
        rng: np.random.Generator,
    ) -> Draft | Obstacle:
        chart = chart_of(domain)
        placements = Placed.all_of(target, domain, chart, request, reductions, rng)
        if request.positions is not None:
            on = best_even(placements)
            candidate = on.best_of(min(request.positions, on.problem.sizes[-1]))
        else:
            made, least = shortest_on(placements, request, self.most)
            if made is None:
                largest = max(each.problem.sizes[-1] for each in placements)
                return too_rough(request, min(largest, self.most or largest), least)
            candidate = made
        head, over = candidate.head, candidate.chart or chart
        sampled = unseen(target, domain, over, head.positions).worst(head)
        return Draft(head, over, self.name, None, sampled, candidate.notes)


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
