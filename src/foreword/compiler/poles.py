"""Poles that samples miss: where an expression divides by what changes its sign.

A divisor that is negative at one point of the domain and positive at another is 0 somewhere on the way between them,
since a sphere or a cube is connected and the divisor continuous. That alone is no pole: sin(x) / x stays finite. So the
zero is found by bisection, and the expression is looked at beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import Expression, Node, expression_of, ordered, value_of, walk

HALVINGS = 60
BESIDE = 1e-10  # of the way between the two points: how close to the zero the expression is looked at
HUGE = 1e6  # times the median magnitude


@dataclass(frozen=True)
class Pole:
    """The divisor's text, a zero of it `(column,)`, and the expression's magnitude close by."""

    divisor: str
    at: Floats
    magnitude: float


def pole_of(expression: Expression, domain: Sphere | Cube, points: Floats) -> Pole | None:
    """The first pole between two of the points `(batch, column)`; None where no divisor is seen to lead to one."""
    usual = float(np.median(np.abs(expression.evaluate(points))))
    with np.errstate(all="ignore"):
        values = walk(expression.outputs, lambda node, found: value_of(node, found, points))
    for divisor in _divisors(expression):
        of_divisor = _at(divisor, points) if id(divisor) not in values else np.asarray(values[id(divisor)])
        if of_divisor.ndim == 0 or not of_divisor.min() < 0 < of_divisor.max():
            continue
        low, high = points[of_divisor.argmin()], points[of_divisor.argmax()]
        zero = _zero_between(divisor, domain, low, high)
        step = BESIDE * (high - low)
        with np.errstate(all="ignore"):
            beside = np.abs(expression.evaluate(_inside(domain, np.stack([zero - step, zero + step]))))
        magnitude = float(np.where(np.isnan(beside), np.inf, beside).max())
        if magnitude > HUGE * usual:
            return Pole(expression_of([divisor], domain.columns).text, zero, magnitude)
    return None


def _divisors(expression: Expression) -> Iterator[Node]:
    """What the expression divides by, or what that is a power or the magnitude of."""
    for node in ordered(expression.outputs):
        if node.operation == "divide":
            divisor = node.arguments[1]
            while divisor.operation in ("power", "absolute", "negative"):
                divisor = divisor.arguments[0]
            yield divisor
        elif node.operation == "tan":
            yield Node("cos", node.arguments)


def _zero_between(divisor: Node, domain: Sphere | Cube, low: Floats, high: Floats) -> Floats:
    for _ in range(HALVINGS):
        middle = _inside(domain, ((low + high) / 2)[None])
        value = float(_at(divisor, middle)[0])
        if value == 0:
            return np.asarray(middle[0])
        low, high = (middle[0], high) if value < 0 else (low, middle[0])
    found: Floats = _inside(domain, ((low + high) / 2)[None])[0]
    return found


def _at(node: Node, points: Floats) -> Floats:
    with np.errstate(all="ignore"):
        found: Any = walk([node], lambda each, given: value_of(each, given, points))[id(node)]
    return np.asarray(found, dtype=np.float64)


def _inside(domain: Sphere | Cube, points: Floats) -> Floats:
    """The points, on the sphere, or within the cube."""
    if isinstance(domain, Sphere):
        return np.asarray(points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-300))
    return np.asarray(np.clip(points, domain.box[:, 0], domain.box[:, 1]))
