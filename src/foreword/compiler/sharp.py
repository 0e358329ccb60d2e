"""Ranges of an expression over cells, whose ends stay where they are as long as the operations are exact.

`intervals.py` moves every end outward; at an end of a root's domain the last bit is too much: 1 - x^2 at x = 1 would
reach below 0. Here an end moves only if the operation was rounded, which the error terms of sums, products and
quotients tell (Knuth, Dekker), and cells are cut off at the sides of the box, beyond which f need not exist.

Not a number is the range of what is not sure to exist on all of a cell, and of all that is made of it. An infinite end
is a limit that the function takes, as floating point has it: log 0, and e to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from foreword.compiler import intervals, rectangles
from foreword.compiler.arrays import Floats
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import Node, ordered
from foreword.compiler.intervals import ULP, Interval, point
from foreword.compiler.rectangles import Rectangle

SAFE = (1e-250, 1e290)  # sizes of products between which Dekker's error term is exact
SPLITTER = 2.0**27 + 1
# Where a function is on the same side of its value at a point as its argument is of the point: point, value, reach.
RISING = {
    **dict.fromkeys(("sinh", "tanh", "arctan", "arcsin", "erf"), (0.0, 0.0, math.inf)),
    "sin": (0.0, 0.0, math.pi),  # the double is below pi, and its half below the half
    "tan": (0.0, 0.0, math.pi / 2),
    "exp": (0.0, 1.0, math.inf),
    "log": (1.0, 0.0, math.inf),
}


class SharpRanges:
    """The ranges on the cells from `lower` to `upper` `(cell, parameter)`, cut off at the domain's box.

    On a sphere points are `frame @ embed(angles)`, the frame being the orthogonal matrix nearest to the one given.
    """

    def __init__(self, domain: Sphere | Cube, frame: Floats | None, lower: Floats, upper: Floats) -> None:
        self.domain, self.frame, self.lower, self.upper = domain, frame, lower, upper
        self.cells = len(lower)
        self.found: dict[int, Interval] = {}

    @cached_property
    def columns(self) -> list[Interval]:
        """Of the points' columns; computed when first asked for, as few cells are."""
        margin = 8 * ULP * np.maximum(np.abs(self.lower), np.abs(self.upper))
        low, high = self.lower - margin, self.upper + margin
        low, high = np.maximum(low, self.domain.box[:, 0]), np.minimum(high, self.domain.box[:, 1])
        sides = [Interval(*ends) for ends in zip(low.T, high.T, strict=True)]
        return _on_sphere(sides, self.frame) if isinstance(self.domain, Sphere) else sides

    def of(self, *nodes: Node) -> Interval:
        """A range `(cell,)` of the values of all the nodes."""
        for inner in ordered(nodes):
            if id(inner) not in self.found:
                self.found[id(inner)] = self._range(inner)
        found = [self.found[id(node)] for node in nodes]
        low, high = found[0].lo, found[0].hi
        for other in found[1:]:
            low, high = np.minimum(low, other.lo), np.maximum(high, other.hi)
        nothing = np.zeros(self.cells)
        return Interval(low + nothing, high + nothing)

    def _range(self, node: Node) -> Interval:
        if node.operation == "variable":
            return self.columns[int(node.value or 0)]
        if node.operation == "constant":
            return point(float(node.value or 0.0))
        given = [self.found[id(argument)] for argument in node.arguments]
        found, exists = _operation(node, given), np.ones(self.cells, dtype=bool)
        for inner in given:
            exists = exists & ~(np.isnan(inner.lo) | np.isnan(inner.hi))
        return _where(exists, found)


def _on_sphere(angles: list[Interval], frame: Floats | None) -> list[Interval]:
    found, radius = [], point(1.0)
    for angle in angles:
        found.append(multiply(radius, intervals.sin(angle)))
        radius = multiply(radius, intervals.cos(angle))
    found.append(radius)
    if frame is None:
        return found
    gap = float(np.linalg.norm(frame.T @ frame - np.eye(len(frame)))) + 1e-14
    rows = []
    for row in frame:
        total = point(0.0)
        for weight, column in zip(row, found, strict=True):
            total = add(total, multiply(point(weight), column))
        total = total.widened(gap)
        rows.append(Interval(np.maximum(total.lo, -1.0), np.minimum(total.hi, 1.0)))
    return rows


def _operation(node: Node, given: list[Interval]) -> Interval:
    match node.operation, given:
        case "pi", []:
            return rectangles.PI.re
        case "add", [one, other]:
            return add(one, other)
        case "subtract", [one, other]:
            return add(one, -other)
        case "negative", [inner]:
            return -inner
        case "multiply", [one, other]:
            return power(one, 2) if node.arguments[0] is node.arguments[1] else multiply(one, other)
        case "divide", [one, other]:
            return divide(one, other)
        case "power", [inner]:
            return power(inner, int(node.value or 0))
        case "absolute", [inner]:
            return Interval(inner.least(), inner.size())
        case "maximum" | "minimum" as name, [one, other]:
            pick = np.maximum if name == "maximum" else np.minimum
            return Interval(pick(one.lo, other.lo), pick(one.hi, other.hi))
    inner = given[0]
    if node.operation == "log":  # the search's own has no limit at 0
        value = intervals.rising("log", inner)
    else:
        value = rectangles.OPERATIONS[node.operation][0](Rectangle(inner)).re
    value = _with_sign(node.operation, inner, value)
    match node.operation:
        case "sqrt" | "log":
            return _where(inner.lo >= 0, value)
        case "arcsin" | "arccos":
            return _where((inner.lo >= -1) & (inner.hi <= 1), value)
        case "sin" | "cos" | "tan":
            return _where(np.isfinite(inner.size()) & np.isfinite(value.size()), value)
    return value


def _with_sign(name: str, inner: Interval, value: Interval) -> Interval:
    """The range without what rounding has put on the wrong side: e^x is at least 1 for x >= 0."""
    if name == "cos":
        return value.from_zero(inner.size() <= math.pi / 2)
    if name == "arccos":
        return value.from_zero(inner.hi <= 1)
    if name not in RISING:
        return value
    turn, there, reach = RISING[name]
    is_above = (inner.lo >= turn) & (inner.hi <= turn + reach)
    is_below = (inner.hi <= turn) & (inner.lo >= turn - reach)
    low = np.where(is_above, np.maximum(value.lo, there), value.lo)
    return Interval(low, np.where(is_below, np.minimum(value.hi, there), value.hi))


def _where(exists: NDArray[np.bool_], found: Interval) -> Interval:
    return Interval(np.where(exists, found.lo, np.nan), np.where(exists, found.hi, np.nan))


def add(one: Interval, other: Interval) -> Interval:
    """The sums: with s computed, the two doubles' exact sum is s + e (Knuth)."""

    def end(a: Floats, b: Floats, toward: float) -> Floats:
        total = a + b
        back = total - a
        return _moved(total, (a - (total - back)) + (b - back), toward)

    return Interval(end(one.lo, other.lo, -math.inf), end(one.hi, other.hi, math.inf))


def multiply(one: Interval, other: Interval) -> Interval:
    """The products: the least and the largest of those of the ends."""
    return _of_ends(_product, one, other)


def divide(one: Interval, other: Interval) -> Interval:
    """The quotients, in the same way; not a number where 0 may be divided by."""
    found = _of_ends(_quotient, one, other)
    return _where((other.lo > 0) | (other.hi < 0), found)


def power(inner: Interval, exponent: int) -> Interval:
    """Whole powers: odd ones increase, even ones are powers of |x|, negative ones quotients."""
    if exponent < 0:
        return divide(point(1.0), power(inner, -exponent))
    if exponent % 2 == 0:
        return Interval(_raised(inner.least(), exponent, -math.inf), _raised(inner.size(), exponent, math.inf))

    def end(a: Floats, toward: float) -> Floats:
        up, down = _raised(np.abs(a), exponent, math.inf), _raised(np.abs(a), exponent, -math.inf)
        return np.where(a < 0, -(up if toward < 0 else down), down if toward < 0 else up)

    return Interval(end(inner.lo, -math.inf), end(inner.hi, math.inf))


def _raised(size: Floats, exponent: int, toward: float) -> Floats:
    """A power of numbers of 0 or more by repeated squaring, rounded in one direction."""
    found, square = None, size
    while exponent:
        if exponent & 1:  # the first is taken as it is: 1 times a tiny number is not known to be exact
            found = square if found is None else np.maximum(_product(found, square, toward), 0.0)
        exponent >>= 1
        square = np.maximum(_product(square, square, toward), 0.0) if exponent else square
    return np.ones_like(size) if found is None else found


def _of_ends(operation: Callable[[Floats, Floats, float], Floats], one: Interval, other: Interval) -> Interval:
    pairs = [(a, b) for a in (one.lo, one.hi) for b in (other.lo, other.hi)]
    low, high = ([operation(a, b, toward) for a, b in pairs] for toward in (-math.inf, math.inf))
    return Interval(
        np.minimum(np.minimum(low[0], low[1]), np.minimum(low[2], low[3])),
        np.maximum(np.maximum(high[0], high[1]), np.maximum(high[2], high[3])),
    )


def _product(a: Floats, b: Floats, toward: float) -> Floats:
    """The product, past which no exact one lies in that direction; its error is exact for sizes that are `SAFE`."""
    product = a * b
    error = _error_of_product(a, b, product)
    return _moved(product, np.where((a == 0) | (b == 0), product * 0.0, error), toward)


def _quotient(a: Floats, b: Floats, toward: float) -> Floats:
    """The quotient q, in the same way: a - q b is exact, and has its error's sign or the opposite one."""
    quotient = a / b
    product = quotient * b
    left = (a - product) - _error_of_product(quotient, b, product)
    return _moved(quotient, np.where(a == 0, quotient * 0.0, left * np.sign(b)), toward)


def _error_of_product(a: Floats, b: Floats, product: Floats) -> Floats:
    """a b - product exactly (Dekker); not a number where that is not sure."""
    (a_high, a_low), (b_high, b_low) = _split(a), _split(b)
    error = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
    is_safe = (np.abs(product) > SAFE[0]) & (np.abs(product) < SAFE[1])
    return np.where(is_safe & (np.abs(a) < SAFE[1]) & (np.abs(b) < SAFE[1]), error, np.nan)


def _split(a: Floats) -> tuple[Floats, Floats]:
    wide = SPLITTER * a
    high = wide - (wide - a)
    return high, a - high


def _moved(value: Floats, error: Floats, toward: float) -> Floats:
    """The computed value, or the next double in that direction unless the error, known to be exact, points away."""
    is_beyond = error >= 0 if toward < 0 else error <= 0
    return np.where(is_beyond, value, np.nextafter(value, toward))
