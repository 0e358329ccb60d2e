"""Keys on a net of the circle that is moved by a conformal map, so that they crowd where a target is steep.

The maps of S^m that keep angles are, up to turns, x -> (1 - |a|^2) / |x + a|^2 (x + a) + a with |a| < 1: on the circle,
Moebius' maps. Lengths near the image y are |y - a|^2 / (1 - |a|^2) times as long as before, least at a / |a|, and so
is the width of the Gaussian about y. A function that is singular just off the sphere, as 1 / (1.2 + <w, x>) is, becomes
one that is singular further off: that is what an even net is good for. Where to crowd is tried, not derived. On S^2 it
was tried too, and gained nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.construction.dense import DenseProblem, error_of
from foreword.compiler.construction.even import STARTS, USUAL, OnNet, net_points, sharpnesses_around, spacing
from foreword.compiler.construction.search import Candidate
from foreword.compiler.domain import Sphere
from foreword.compiler.head import Head

CENTRES = 12  # points of a net towards which crowding is tried
PULLS = (0.2, 0.35, 0.5, 0.65)  # |a|; keys at the point are (1 + |a|) / (1 - |a|) times as close
STEPS = (0.1, 0.05, 0.05, 0.025, 0.0125)  # of a descent from the best of these
FARTHEST = 0.85


@dataclass(frozen=True)
class Crowded:
    """On a net of a sphere, moved by the map of `pull` (a): shapes are `(sharpness,)`, as on the net."""

    domain: Sphere
    pull: Floats
    starts: Sequence[tuple[float, ...]] = STARTS

    @property
    def dimension(self) -> int:
        """The sphere's."""
        return self.domain.dimension

    @property
    def width(self) -> int:
        """The sphere's columns."""
        return self.domain.columns

    def around(self, shape: Sequence[float]) -> Sequence[tuple[float, ...]]:
        """Other sharpnesses close by."""
        return sharpnesses_around(shape)

    def points(self, count: int) -> Floats:
        """The net's points, moved."""
        return moved(net_points(self.domain, count), self.pull)

    def relaxed(self, _: Floats, /) -> Floats | None:
        """None: evenly is not how they lie."""
        return None

    def head(self, points: Floats, shape: Sequence[float], outputs: int) -> Head:
        """Gaussians about the points, as wide as the net is there, and of one height."""
        scale = ((points - self.pull) ** 2).sum(axis=1) / (1.0 - self.pull @ self.pull)
        sharpness = shape[0] / (scale * spacing(self.domain, points)) ** 2
        return Head(sharpness[:, None] * points, -sharpness, np.zeros((len(points), outputs)))


def moved(points: Floats, pull: Floats) -> Floats:
    """The image of points of the sphere `(batch, column)`, on the sphere again."""
    from_pull = points + pull
    found: Floats = (1.0 - pull @ pull) / (from_pull**2).sum(axis=1, keepdims=True) * from_pull + pull
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def crowded(problem: DenseProblem, count: int) -> Candidate | None:
    """The best of a few pulls, its sharpness tuned; None where the problem's keys lie on no net of the circle."""
    on = problem.placement
    if not (isinstance(on, OnNet) and isinstance(on.domain, Sphere) and on.dimension == 1):
        return None
    domain, centres = on.domain, net_points(on.domain, CENTRES)

    def pulled(pull: Floats) -> tuple[float, Floats]:
        return replace(problem, placement=Crowded(domain, pull)).solved((USUAL,), count).error, pull

    best = min((pulled(size * centre) for size in PULLS for centre in centres), key=itemgetter(0))
    for step in STEPS:
        sides = step * np.concatenate([np.eye(domain.columns), -np.eye(domain.columns)])
        near = [pull for pull in best[1] + sides if np.linalg.norm(pull) <= FARTHEST]
        best = min([best, *(pulled(pull) for pull in near)], key=itemgetter(0))
    found = replace(problem, placement=Crowded(domain, best[1]))
    return min(found.solved((USUAL,), count), found.attempt(count), key=error_of)
