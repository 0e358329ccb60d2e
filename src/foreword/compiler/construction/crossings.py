"""Kinks where something that varies along one direction vanishes: |x^2 - 0.3|, max(sin(3 (x + y)), 0.2).

The argument of an absolute value, or the difference of a maximum's, is then a function on an interval, whose changes of
sign are bracketed at even points and found by Brent's method. Each is a hyperplane. What is affine needs none of this
(`kinks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.optimize import brentq

from foreword.compiler.arrays import Floats
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import Expression, Node, ordered
from foreword.compiler.profile import Profile

EVEN = 4_001  # points between which a sign may change once
MOST = 24  # kinks of one argument: beyond, they are too many for gates
ROUNDED = 1e-12  # of the interval: how near a root is found


def crossings(outputs: Sequence[Node], domain: Sphere | Cube) -> Iterator[tuple[Floats, float]]:
    """Each kink as (unit normal, offset), in the order of the graph; the same hyperplane may come again."""
    for node in ordered(outputs):
        if node.operation in ("absolute", "maximum", "minimum"):
            argument = node.arguments[0] if len(node.arguments) == 1 else Node("subtract", node.arguments)
            for factor in _factors(argument):
                for normal, low, high, function in _directions(factor, domain):
                    found = _zeros(function, low, high)
                    if len(found) <= MOST:
                        yield from ((normal, zero) for zero in found)


def _factors(node: Node) -> Iterator[Node]:
    """What a product or quotient changes its sign with; less a constant 0, as max(x y, 0) subtracts."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        match node.operation, node.arguments:
            case ("multiply", (one, other)):
                waiting += [other, one]
            case ("subtract", (one, other)) if _is_zero(other) or _is_zero(one):
                waiting.append(other if _is_zero(one) else one)
            case ("negative", (one,)) | ("divide", (one, _)):
                waiting.append(one)
            case _:
                yield node


def _is_zero(node: Node) -> bool:
    return node.operation == "constant" and node.value == 0


def _directions(
    argument: Node, domain: Sphere | Cube
) -> Iterator[tuple[Floats, float, float, Callable[[Floats], Floats]]]:
    """The unit direction that an argument varies along, if it is one: from where to where, and the argument there."""
    columns = {int(node.value or 0) for node in ordered([argument]) if node.operation == "variable"}
    expression = Expression((argument,), ("",) * domain.columns, "")
    if len(columns) == 1:
        axis = columns.pop()
        low, high = domain.box[axis].tolist() if isinstance(domain, Cube) else (-1.0, 1.0)
        start = np.zeros(domain.columns)

        def along(places: Floats) -> Floats:
            points = np.tile(start, (len(places), 1))
            points[:, axis] = places
            return expression.evaluate(points)[:, 0]

        yield np.eye(domain.columns)[axis], low, high, along
        return
    profile = Profile.of(expression, domain)
    if profile is None or any(len(monomial) > 1 for monomial in profile.along):
        return
    slopes = np.array([float(profile.along.get((column,), 0)) for column in range(domain.columns)])
    length, shift, inner = float(np.linalg.norm(slopes)), float(profile.along.get((), 0)), profile.expression
    low, high = ((end - shift) / length for end in profile.span.sides[0])
    yield slopes / length, low, high, lambda places: inner.evaluate((length * places + shift)[:, None])[:, 0]


def _zeros(function: Callable[[Floats], Floats], low: float, high: float) -> list[float]:
    """Where the function changes its sign between the ends, apart from them."""
    places = np.linspace(low, high, EVEN)
    signs = np.sign(function(places))
    found = [float(places[at]) for at in range(1, EVEN - 1) if signs[at] == 0 and signs[at - 1] * signs[at + 1] < 0]
    for at in np.flatnonzero(signs[:-1] * signs[1:] < 0):
        ends = float(places[at]), float(places[at + 1])
        root = brentq(lambda place: float(function(np.array([place]))[0]), *ends, xtol=ROUNDED * (high - low))
        found.append(float(root))
    return sorted(found)
