"""The range of an expression's nodes over single cells, from end to end, by Arb: the checker's other way to bound.

Polynomials fail where a function has no slope, as a root at 0, or `arccos` at 1, and their ranges reach a little below
0 where the true ones end there. The span of a node is computed from those of its arguments, each end by itself: at 128
bits the ends of sums and products of doubles are mostly exact, so 1 - x^2 is not negative up to x = 1.

A span that is not a number belongs to a node that is not sure to exist on all of the cell. An infinite end is a limit
that the function takes: log 0, and e to that. It shares nothing with the search's sharp ranges, by intention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flint import arb

from foreword.compiler.balls import Balls, as_balls
from foreword.compiler.expression import Node, ordered
from foreword.compiler.truncated import Model

Span = tuple[arb, arb]
Sides = Sequence[tuple[Balls, Balls]]
"""Of each column exact lower and upper ends `(cell,)`."""

NOWHERE: Span = (arb.nan(), arb.nan())


def sides_of(columns: Sequence[Model], least: float = -float("inf"), most: float = float("inf")) -> Sides:
    """The ends of the columns' models, and no further than from `least` to `most`."""
    ends = []
    for column in columns:
        low, high = column.range()
        floor, ceiling = column.system.floor(low), column.system.ceiling(high)
        ends.append((as_balls(floor.clip(min=least)), as_balls(ceiling.clip(max=most))))
    return ends


@dataclass(frozen=True)
class Spans:
    """Spans over a block of cells whose columns have these `sides`; what was computed is kept."""

    sides: Sides
    found: dict[tuple[int, int], Span] = field(default_factory=dict)

    def ball(self, node: Node, cell: int) -> arb:
        """A ball that holds the node's values over a cell; not a number, or infinite, where there is none."""
        for inner in ordered([node]):
            key = (id(inner), cell)
            if key not in self.found:
                self.found[key] = self._span(inner, cell)
        low, high = self.found[id(node), cell]
        return low.union(high)

    def _span(self, node: Node, cell: int) -> Span:
        match node.operation:
            case "variable":
                low, high = self.sides[int(node.value or 0)]
                return low[cell], high[cell]
            case "constant":
                value = arb(float(node.value or 0.0))
                return value, value
        given = [self.found[id(argument), cell] for argument in node.arguments]
        if any(low.is_nan() or high.is_nan() for low, high in given):
            return NOWHERE
        least, most = _operation(node, given)
        return (least.lower(), most.upper()) if not (least.is_nan() or most.is_nan()) else NOWHERE


def _operation(node: Node, given: list[Span]) -> Span:
    """Balls around the least and the largest value; not numbers where the operation is not sure to exist."""
    match node.operation, given:
        case "pi", []:
            return arb.pi(), arb.pi()
        case "add", [(a, b), (c, d)]:
            return a + c, b + d
        case "subtract", [(a, b), (c, d)]:
            return a - d, b - c
        case "multiply", [one, other]:
            return _power(one, 2) if node.arguments[0] is node.arguments[1] else _product(one, other)
        case "divide", [one, other]:
            return _quotient(one, other)
        case "power", [inner]:
            return _power(inner, int(node.value or 0))
        case "maximum", [(a, b), (c, d)]:
            return a.max(c), b.max(d)
        case "minimum", [(a, b), (c, d)]:
            return a.min(c), b.min(d)
        case name, [inner] if name in _OF_ONE:
            return _OF_ONE[name](*inner)
    return NOWHERE


def _product(one: Span, other: Span) -> Span:
    low = high = one[0] * other[0]
    for product in (one[0] * other[1], one[1] * other[0], one[1] * other[1]):
        low, high = low.min(product), high.max(product)
    return low, high


def _quotient(one: Span, other: Span) -> Span:
    """By the ends, as 3 / 3 is exact and 3 times 1/3 is not."""
    if not (other[0] > 0 or other[1] < 0):
        return NOWHERE
    low = high = one[0] / other[0]
    for quotient in (one[0] / other[1], one[1] / other[0], one[1] / other[1]):
        low, high = low.min(quotient), high.max(quotient)
    return low, high


def _power(inner: Span, exponent: int) -> Span:
    if exponent < 0:
        return _power(_quotient((arb(1), arb(1)), inner), -exponent)
    low, high = inner if exponent % 2 else _sizes(*inner)
    return low**exponent, high**exponent


def _sizes(low: arb, high: arb) -> Span:
    """The least and the largest magnitude."""
    return arb(0).max(low).max(-high), high.max(-low)


def _rising(function: Callable[[arb], arb], least: arb, most: arb) -> Callable[[arb, arb], Span]:
    """A function that increases where it exists, from `least` to `most`."""

    def span(low: arb, high: arb) -> Span:
        return (function(low), function(high)) if least <= low and high <= most else NOWHERE

    return span


def _log(x: arb) -> arb:
    return arb.neg_inf() if x == 0 else x.log()


def _sin(low: arb, high: arb) -> Span:
    """Increasing, or above the lower of its ends, or below the higher, on half a turn; elsewhere Arb's ball."""
    quarter, half = arb.pi() / 2, arb.pi()
    if low >= -quarter and high <= quarter:
        return low.sin(), high.sin()
    whole = low.union(high).sin()
    ends = low.sin(), high.sin()
    if low >= 0 and high <= half:
        return ends[0].min(ends[1]), whole.upper()
    if low >= -half and high <= 0:
        return whole.lower(), ends[0].max(ends[1])
    return whole.lower(), whole.upper()


def _cos(low: arb, high: arb) -> Span:
    """Decreasing in the magnitude up to half a turn; elsewhere Arb's ball."""
    least, most = _sizes(low, high)
    if most <= arb.pi():
        return most.cos(), least.cos()
    whole = low.union(high).cos()
    return whole.lower(), whole.upper()


def _tan(low: arb, high: arb) -> Span:
    quarter = arb.pi() / 2
    if low > -quarter and high < quarter:
        return low.tan(), high.tan()
    whole = low.union(high).tan()
    return whole.lower(), whole.upper()


def _arccos(low: arb, high: arb) -> Span:
    return (high.acos(), low.acos()) if low >= -1 and high <= 1 else NOWHERE


def _sinc(low: arb, high: arb) -> Span:
    whole = low.union(high).sinc_pi()
    return whole.lower(), whole.upper()


def _cosh(low: arb, high: arb) -> Span:
    least, most = _sizes(low, high)
    return least.cosh(), most.cosh()


_LEAST, _MOST = arb.neg_inf(), arb.pos_inf()
_OF_ONE: dict[str, Callable[[arb, arb], Span]] = {
    "negative": lambda low, high: (-high, -low),
    "absolute": _sizes,
    "exp": _rising(lambda x: x.exp(), _LEAST, _MOST),
    "log": _rising(_log, arb(0), _MOST),
    "sqrt": _rising(lambda x: x.sqrt(), arb(0), _MOST),
    "sin": _sin,
    "cos": _cos,
    "tan": _tan,
    "sinh": _rising(lambda x: x.sinh(), _LEAST, _MOST),
    "cosh": _cosh,
    "tanh": _rising(lambda x: x.tanh(), _LEAST, _MOST),
    "arctan": _rising(lambda x: x.atan(), _LEAST, _MOST),
    "arcsin": _rising(lambda x: x.asin(), arb(-1), arb(1)),
    "arccos": _arccos,
    "erf": _rising(lambda x: x.erf(), _LEAST, _MOST),
    "sinc": _sinc,
}
