"""A target that hangs on one polynomial of the coordinates alone, compiled as the function on an interval that it is.

Rings, cones, bumps and wells about a point are f(x) = F(P(x)) with P(x) = sum a_j x_j^2 + <b, x> + c, all a_j of one
sign; of plane waves and oblique kinks P is affine (`profile.py`). Over a cube's queries with a sum of squares as one
more coordinate (a paraboloid, statement B.4) P is linear, so a head over u = P(x) is one over the domain: a ring is a
kink along a hyperplane there, and a cone's tip a root at an end of an interval. P is read off the target's expression;
no proof rests on it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, Flat
from foreword.compiler.construction.contract import Construction, Draft, Obstacle, Request, Sampled
from foreword.compiler.domain import Domain
from foreword.compiler.head import Head
from foreword.compiler.profile import Profile
from foreword.compiler.target import Target

JUDGED = 20_000  # values of P at which a draft is judged
CLOSEST = 1e-12  # of the interval: how near to its ends some of them lie, where a root is steep


@dataclass(frozen=True)
class Along:
    """f(x) = F(u) with u = <slopes, q> + shift for the queries q of `chart`."""

    target: Target
    profile: Profile
    chart: Chart
    slopes: Floats
    shift: float

    @classmethod
    def of(cls, target: Target, domain: Domain) -> Along | None:
        """The one of an expression; None where it hangs on anything else, or on squares of both signs."""
        profile = Profile.of(target.expression, domain)
        over = None if profile is None else profile.over_queries()
        return None if profile is None or over is None else cls(target, profile, *over)

    def drafted(self, construction: Construction, request: Request, rng: np.random.Generator) -> Draft | Obstacle:
        """The construction's draft of F on the interval, lifted."""
        inner = Target(domain=self.profile.span, expression=self.profile.expression, name=self.target.name)
        found = construction.draft(inner, self.profile.span, replace(request, is_flat=True), rng=rng)
        if isinstance(found, Obstacle):
            return found
        judged = self._judged(inner, found.chart)
        sampled = max(found.sampled, judged.worst(found.head))
        notes = {**found.notes, "along": self.profile.text}
        return replace(
            found, head=self._lifted(found.head, found.chart), chart=self.chart, sampled=sampled, notes=notes
        )

    def _judged(self, inner: Target, chart: Chart) -> Sampled:
        """Values of F all over the interval, and ever nearer to its ends."""
        low, high = self.profile.span.sides[0]
        steps = np.geomspace(CLOSEST, 1.0, JUDGED // 4) * (high - low)
        places = np.concatenate([np.linspace(low, high, JUDGED // 2), low + steps, high - steps])
        return Sampled.at(np.clip(places, low, high)[:, None], inner, chart)

    def _lifted(self, head: Head, chart: Chart) -> Head:
        """The head over an interval's flat queries as one over the domain's."""
        if not isinstance(chart, Flat):
            raise TypeError("an interval's chart is flat")
        steps = head.keys[:, 0] / chart.half[0]
        return Head(np.outer(steps, self.slopes), head.biases + steps * (self.shift - chart.middle[0]), head.values)
