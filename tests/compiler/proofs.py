"""Small prefixes with honest certificates, made by hand: least squares, a uniform cover, a brute-force maximum."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foreword.certificate import Certificate, Verdict
from foreword.compiler.charts import Chart, chart_of
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Cube, FiniteSet, Sphere
from foreword.compiler.expression import Expression
from foreword.compiler.floating import rounding_terms
from foreword.compiler.head import Head
from foreword.compiler.nets import sphere_net
from foreword.compiler.parser import parse_expression

CIRCLE = "0.5*sin(3*x) + 0.5*cos(2*y)*y"
SPHERE = "0.5*sin(3*x) + 0.5*cos(2*y)*z"


@dataclass(frozen=True)
class Proof:
    """A head with its target, and a certificate that is true by a margin; `true` is the largest error seen."""

    head: Head
    chart: Chart
    expression: Expression
    domain: Sphere | Cube
    certificate: Certificate
    cover: Cover
    true: float

    @property
    def parts(self) -> tuple[Any, ...]:
        """The arguments of `check`."""
        return self.head, self.chart, self.expression, self.domain, self.certificate, self.cover

    def told(self, **changes: Any) -> Proof:
        """With a changed certificate that is sealed anew, as somebody does who knows the format."""
        return replace(self, certificate=replace(self.certificate, **changes).sealed())


def fitted(domain: Sphere | Cube, expression: Expression, positions: int, sharpness: float, cutoff: float) -> Head:
    """Values by truncated least squares on a net (statement B.3)."""
    chart = chart_of(domain)
    if isinstance(domain, Sphere):
        keys = sharpness * sphere_net(domain.dimension, positions)
        biases = np.zeros(positions)
    else:
        side = round(positions ** (1 / domain.dimension))
        axes = np.meshgrid(*[np.linspace(-1.1, 1.1, side)] * domain.dimension, indexing="ij")
        net = np.stack([axis.ravel() for axis in axes], axis=1)
        keys, biases = sharpness * net, -sharpness * (net**2).sum(axis=1) / 2
    points = domain.sample(20 * positions + 1000, np.random.default_rng(5))
    features = Head(keys, biases, np.zeros((len(keys), 1))).weights(chart(points))
    values = np.linalg.lstsq(features, expression.evaluate(points), rcond=cutoff)[0]
    return Head(keys, biases, values)


def uniform(domain: Sphere | Cube, level: int, knots: dict[int, float] | None = None) -> Cover:
    """Cells halved `level` times along every axis; the last angle of a sphere, twice as wide, once more."""
    ends = [
        [low, *([knots[axis]] if knots and axis in knots else []), high] for axis, (low, high) in enumerate(domain.box)
    ]
    levels = np.array([level] * domain.dimension)
    levels[-1] += isinstance(domain, Sphere)
    counts = [(len(axis) - 1) << n for axis, n in zip(ends, levels.tolist(), strict=True)]
    indices = np.indices(counts).reshape(len(counts), -1).T
    return Cover(np.broadcast_to(levels, indices.shape).astype(np.int8), indices.astype(np.uint64), ends)


def certificate_for(
    head: Head, chart: Chart, expression: Expression | None, domain: Sphere | Cube | FiniteSet, cover: Cover | None,
    approximation: float, seen: float, order: int = 8,
) -> Certificate:  # fmt: skip
    """A sealed certificate with that approximation term."""
    from flint import arb

    is_sphere = isinstance(domain, Sphere)
    norm = 1.0 if is_sphere else 1.5 * float(np.linalg.norm(chart(domain.spread(4000)), axis=1).max())
    terms = {
        name: float(term) * (1 + 1e-9)
        for name, term in rounding_terms(head, norm=arb(norm), query_roundings=0 if is_sphere else 9).items()
    }
    terms |= {"approximation": approximation, "context": 0.0}
    bound = approximation + terms["rounding_float64"]
    return Certificate(
        verdict=Verdict.PROVED,
        tolerance=2 * bound,
        bound=bound,
        seen=seen,
        terms=terms,
        assumptions=(),
        remedy="",
        method="by hand",
        domain=domain.as_dict(),
        target={"expression": None if expression is None else expression.text, "lipschitz": None},
        head=head.digest,
        cover=None if cover is None else {"digest": cover.digest, "cells": len(cover), "order": order},
        effort={},
    ).sealed()


def proof_of(
    text: str, domain: Sphere | Cube, *, positions: int, sharpness: float, level: int, order: int = 8,
    cutoff: float = 1e-8, slack: float = 1.5, knots: dict[int, float] | None = None,
) -> Proof:  # fmt: skip
    """The whole: `slack` is how far the approximation term lies above the largest error that was seen."""
    expression, chart = parse_expression(text, domain.columns), chart_of(domain)
    head = fitted(domain, expression, positions, sharpness, cutoff)
    points = domain.sample(40_000, np.random.default_rng(9))
    true = float(np.abs(head.evaluate(chart(points)) - expression.evaluate(points)).max())
    cover = uniform(domain, level, knots)
    certificate = certificate_for(head, chart, expression, domain, cover, slack * true, true, order)
    return Proof(head, chart, expression, domain, certificate, cover, true)
