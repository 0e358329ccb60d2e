"""A target of few directions, compiled as the function of fewer coordinates that it is.

Where f(x) = F(u) with u = W x (`directions.py`), a prefix for F is one for f: the score k u + b is linear in x. One
direction makes F a function on an interval, coordinate axes of a cube one on a cube of fewer sides; there constructions
work as on any domain. Of two or three directions otherwise, F lives on the image of the domain, a ball or a polytope,
and keys on a lattice in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, Flat, Paraboloid, chart_of
from foreword.compiler.construction.contract import Construction, Draft, Obstacle, Request, Sampled, unseen
from foreword.compiler.construction.directions import few_directions
from foreword.compiler.construction.even import GENERATORS, OnLattice
from foreword.compiler.construction.kinks import Kink, range_along
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.target import Target

PARALLEL = 1e-9  # a kink's normal is within the directions up to that


@dataclass(frozen=True)
class Reduction:
    """f(x) = F(W x) on a domain, W being `directions` `(direction, column)`, orthonormal."""

    target: Target
    domain: Sphere | Cube
    directions: Floats

    @classmethod
    def all_of(cls, target: Target, domain: Domain, request: Request) -> list[Reduction]:
        """The reductions that constructions can use; one to an interval or a cube is the only one."""
        if isinstance(domain, FiniteSet):
            return []
        found = [cls(target, domain, each) for each in few_directions(target, domain, request.tolerance)]
        boxes = [each for each in found if each.box is not None]
        return boxes[:1] or [each for each in found if len(each.directions) in GENERATORS]

    @property
    def box(self) -> Cube | None:
        """Where u lies, if that is an interval or a cube."""
        if len(self.directions) == 1:
            return Cube([range_along(self.domain, self.directions[0])])
        axes = self.directions.argmax(axis=1)
        if isinstance(self.domain, Cube) and np.array_equal(self.directions, np.eye(self.domain.columns)[axes]):
            return Cube(self.domain.box[axes].tolist())
        return None

    @property
    def notes(self) -> dict[str, Any]:
        """What a draft says of it."""
        return {"directions": self.directions.tolist()}

    def drafted(
        self, construction: Construction, request: Request, rng: np.random.Generator, kinks: list[Kink]
    ) -> Draft | Obstacle | None:
        """The construction's draft of F on an interval or a cube, lifted; None when F is on neither.

        None, too, for a kink across other directions.
        """
        box = self.box
        normals = [self.directions @ normal for normal, _ in kinks]
        if box is None or any(np.linalg.norm(normal) < 1 - PARALLEL for normal in normals):
            return None
        told = tuple((tuple(n.tolist()), offset) for n, (_, offset) in zip(normals, kinks, strict=True))
        inner = Target(self._function, domain=box, kinks=told, name=self.target.name)
        # A sphere's queries are its points, and `arms` are those of another box.
        is_flat = isinstance(self.domain, Sphere) or request.arms is not None
        request = replace(request, is_flat=is_flat, arms=None)
        draft = construction.draft(inner, box, request, rng=rng)
        if isinstance(draft, Obstacle):
            return draft
        head, chart = self._off_box(draft.head, draft.chart)
        judged = unseen(self.target, self.domain, chart, head.positions, kinks=kinks)
        return replace(draft, head=head, chart=chart, sampled=judged.worst(head), notes={**draft.notes, **self.notes})

    def _off_box(self, head: Head, chart: Chart) -> tuple[Head, Chart]:
        """The head over u in the box, with queries of `chart`, as one over the domain, and the chart for that."""
        flat, over = (chart.base if isinstance(chart, Paraboloid) else chart), chart_of(self.domain)
        if not isinstance(flat, Flat):
            raise TypeError("a cube's chart is flat, or a paraboloid over that")
        half, middle = np.array(flat.half), np.array(flat.middle)
        lifted = self._over_domain(Head(head.keys[:, : flat.width] / half, head.biases, head.values), middle)
        if flat is chart or not isinstance(over, Flat):
            return lifted, over
        slopes, offsets = along(over, self.directions, middle, np.diag(1 / half))
        curved = Paraboloid(over, tuple(map(tuple, slopes.tolist())), tuple(offsets.tolist()))
        return replace(lifted, keys=np.concatenate([lifted.keys, head.keys[:, flat.width :]], axis=1)), curved

    def lattice(self) -> OnLattice:
        """Keys in the image of the domain."""
        return OnLattice(self.domain, self.directions)

    def lifted(self, head: Head) -> Head:
        """The head over queries of the domain's chart that the lattice's head is."""
        return self._over_domain(head, self._middle)

    def seen(self, sampled: Sampled) -> Sampled:
        """The same samples with u less its middle as the queries."""
        return replace(sampled, queries=sampled.points @ self.directions.T - self._middle)

    def _over_domain(self, head: Head, middle: Floats) -> Head:
        """The head over queries of the domain's chart that a head over u - middle is."""
        keys, biases = along(chart_of(self.domain), self.directions, middle, head.keys)
        return Head(keys, head.biases + biases, head.values)

    @property
    def _middle(self) -> Floats:
        """What the lattice's coordinates are counted from."""
        if isinstance(self.domain, Sphere):
            return np.zeros(len(self.directions))
        middle: Floats = self.directions @ self.domain.box.mean(axis=1)
        return middle

    @property
    def _function(self) -> Callable[[Floats], Floats]:
        """F, by a point of the domain for each u."""
        directions = self.directions
        if isinstance(self.domain, Sphere):
            across = np.linalg.svd(directions, full_matrices=True)[2][-1]
            return lambda u: self.target.evaluate(_normed(u @ directions + _height(u) * across))
        lower, upper = self.domain.box.T
        if len(directions) > 1:  # coordinate axes
            rest = ((lower + upper) / 2) * ~directions.any(axis=0)
            return lambda u: self.target.evaluate(u @ directions + rest)
        first = np.where(directions[0] > 0, lower, upper)  # the corners that are furthest along
        last = lower + upper - first
        low, high = range_along(self.domain, directions[0])

        def on_diagonal(u: Floats) -> Floats:
            share = ((u - low) / (high - low)).clip(0.0, 1.0)
            return self.target.evaluate(np.clip(first + share * (last - first), lower, upper))

        return on_diagonal


def along(chart: Chart, directions: Floats, middle: Floats, slopes: Floats) -> tuple[Floats, Floats]:
    """Keys `(position, q)` and biases whose scores are <slopes, W x - middle>, W being `directions`.

    `slopes` is `(position, direction)`, `middle` `(direction,)`.
    """
    if isinstance(chart, Flat):  # x_j = half_j q_j + middle_j
        middle = middle - directions @ np.array(chart.middle)
        directions = directions * np.array(chart.half)
    return slopes @ directions, -slopes @ middle


def _height(u: Floats) -> Floats:
    found: Floats = np.sqrt(np.maximum(0.0, 1.0 - (u**2).sum(axis=1, keepdims=True)))
    return found


def _normed(points: Floats) -> Floats:
    found: Floats = points / np.linalg.norm(points, axis=1, keepdims=True)
    return found
