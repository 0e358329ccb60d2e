"""Poles that samples miss: where an expression divides by what changes its sign, or only just comes down to 0.

A divisor that is negative at one point of the domain and positive at another is 0 somewhere on the way between them,
since a sphere or a cube is connected and the divisor continuous. That alone is no pole: sin(x) / x stays finite. So the
zero is found by bisection, and the expression is looked at beside it. A divisor of one sign may touch 0, as x**2 + y**2
does: it is followed down from the sample where it is least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from foreword.compiler.arrays import Floats
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import Expression, Node, expression_of, ordered, value_of, walk

HALVINGS = 60
BESIDE = 1e-10  # of the way between the two points: how close to the zero the expression is looked at
HUGE = 1e6  # times the median magnitude
TOUCHING = 1e-13  # times a divisor's median magnitude: what comes down to less is taken for 0
DESCENT = {"xtol": 1e-12, "ftol": 1e-14, "maxfev": 2_000}


@dataclass(frozen=True)
class Pole:
    """The divisor's text, a zero of it `(column,)`, and the expression's magnitude close by."""

    divisor: str
    at: Floats
    magnitude: float


def pole_of(expression: Expression, domain: Sphere | Cube, points: Floats) -> Pole | None:
    """The first pole between the points `(batch, column)`; None where no divisor is seen to lead to one."""
    divisors = list(_divisors(expression))
    if not divisors:
        return None
    usual = float(np.median(np.abs(expression.evaluate(points))))
    values = _at(divisors, points)
    for divisor in divisors:
        of_divisor = values[id(divisor)]
        if of_divisor.ndim == 0:
            continue
        low, high = points[of_divisor.argmin()], points[of_divisor.argmax()]
        changes = of_divisor.min() < 0 < of_divisor.max()
        zero = _zero_between(divisor, domain, low, high) if changes else _touched(divisor, domain, points, of_divisor)
        if zero is None:
            continue
        step = BESIDE * (high - low)
        beside = np.abs(expression.evaluate(domain.nearest(np.stack([zero - step, zero + step]))))
        magnitude = float(np.where(np.isnan(beside), np.inf, beside).max())
        if magnitude > HUGE * usual:
            return Pole(expression_of([divisor], domain.columns).text, zero, magnitude)
    return None


def _divisors(expression: Expression) -> Iterator[Node]:
    """What the expression divides by, or what that is a power, a root or the magnitude of."""
    for node in ordered(expression.outputs):
        if node.operation == "divide":
            divisor = node.arguments[1]
            while divisor.operation in ("power", "absolute", "negative", "sqrt"):
                divisor = divisor.arguments[0]
            yield divisor
        elif node.operation == "tan":
            yield Node("cos", node.arguments)


def _zero_between(divisor: Node, domain: Sphere | Cube, low: Floats, high: Floats) -> Floats:
    for _ in range(HALVINGS):
        middle = domain.nearest(((low + high) / 2)[None])
        value = float(_at([divisor], middle)[id(divisor)].item())
        if value == 0:
            return np.asarray(middle[0])
        low, high = (middle[0], high) if value < 0 else (low, middle[0])
    return np.asarray(domain.nearest(((low + high) / 2)[None])[0])


def _touched(divisor: Node, domain: Sphere | Cube, points: Floats, values: Floats) -> Floats | None:
    """A point where a divisor of one sign is 0 but for rounding, down from the least of its `values`; None without."""

    def magnitude(at: Floats) -> float:
        return abs(float(_at([divisor], domain.nearest(at[None]))[id(divisor)].item()))

    usual, start = float(np.median(np.abs(values))), points[np.abs(values).argmin()]
    found = domain.nearest(minimize(magnitude, start, method="Powell", options=DESCENT).x[None])[0]
    return np.asarray(found) if magnitude(found) <= TOUCHING * usual else None


def _at(nodes: Sequence[Node], points: Floats) -> dict[int, Floats]:
    """What the nodes are at the points, by `id(node)`: `(batch,)`, or a number that does not hang on them."""
    with np.errstate(all="ignore"):
        return walk(nodes, lambda node, found: np.asarray(value_of(node, found, points)))
