"""Choices between two formulas, as a function under trace makes them with `where`, written as one expression.

Let f be A where L > R, and B elsewhere, and let both be the same where L = R. Then, for any points,

    f = A[L -> max(L, R)] + B[L -> min(L, R)] - B[L -> R]:

where L > R the last two are both B with R in L's place, elsewhere the first and the last are A and B with R in L's
place, which are the same there. So a choice is a sum of formulas with a kink, where its formulas say that they meet
(x**2 for x > 0, else 0, is max(x, 0)**2), and untraceable where they do not. Whether they meet, and which of the
condition's sides the formulas are written in, is found out at points (`Values`): a graph is a guess in any case, until
it is compared with the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.elementary import ELEMENTARY, UntraceableError, fold
from foreword.compiler.expression import Node, Nodes, ordered, value_of

Choose = Callable[[Any, Any, Any], Any]
MEETING = 1e-12  # of the formulas' largest value: by so much they may differ where they meet


@dataclass(frozen=True)
class Values:
    """What nodes are at `points` `(batch, column)`; each is computed once."""

    points: Floats
    known: dict[int, Any] = field(default_factory=dict)

    def __call__(self, node: Node) -> Floats:
        stack = [node]
        while stack:
            waiting = [part for part in stack[-1].arguments if id(part) not in self.known]
            if waiting:
                stack.extend(waiting)
                continue
            ready = stack.pop()
            self.known[id(ready)] = value_of(ready, [self.known[id(part)] for part in ready.arguments], self.points)
        return np.broadcast_to(self.known[id(node)], len(self.points))


@dataclass(frozen=True)
class _Bend:
    """Where the formulas are to meet: `side` less than `limit` in one, more in the other.

    `is_above`: the first formula is that of side > limit. With `is_even` the condition is on the magnitude of `side`.
    """

    side: Node
    limit: Node
    is_above: bool
    is_even: bool = False


def chosen(nodes: Nodes, left: Node, right: Node, first: Node, second: Node, values: Values) -> Node:
    """`first` where `left > right`, else `second`, as one expression; UntraceableError where there is none.

    What the formulas are where they meet is compared at all points, on whichever side they lie.
    """
    plain = _plain(nodes, left, right, first, second)
    if plain is not None:
        return plain
    with np.errstate(all="ignore"):
        wanted = np.where(values(left) > values(right), values(first), values(second))
        allowed = MEETING * float(np.abs(wanted).max(initial=0.0))
        for bend in _bends(nodes, left, right):
            try:
                guess, *gaps = _joined(nodes, bend, first, second)
            except UntraceableError:  # a formula that has no value where they would meet
                continue
            off = [np.abs(values(guess) - wanted), *(np.abs(values(gap)) for gap in gaps)]
            if all((part <= allowed).all() for part in off):
                return guess
    raise UntraceableError("a choice of formulas that do not meet")


def _plain(nodes: Nodes, left: Node, right: Node, first: Node, second: Node) -> Node | None:
    """The forms that are one function whatever the values are: a maximum, a minimum, an absolute value."""
    if first is second:
        return first
    if (first, second) == (left, right):
        return nodes("maximum", left, right)
    if (first, second) == (right, left):
        return nodes("minimum", left, right)
    zero = nodes.constant(0.0)
    for side, is_larger in ((left, right is zero), (right, left is zero)):
        opposite = nodes.negative(side)
        if is_larger and {id(first), id(second)} == {id(side), id(opposite)}:
            is_positive = (first is side) == (side is left)
            absolute = nodes("absolute", side)
            return absolute if is_positive else nodes.negative(absolute)
    return None


def _bends(nodes: Nodes, left: Node, right: Node) -> Iterator[_Bend]:
    """What the condition says of one node and another: the deepest node first, as all that hangs on it is seen."""
    found = [_Bend(left, right, is_above=True), _Bend(right, left, is_above=False)]
    for bend in tuple(found):
        while (peeled := _peeled(nodes, bend)) is not None:
            found.append(bend := peeled)
    yield from (bend for bend in reversed(found) if bend.side.operation != "constant")


def _peeled(nodes: Nodes, bend: _Bend) -> _Bend | None:
    """The same condition on what `bend.side` is made of: a number less, a multiple, a magnitude, a difference of 0."""
    side, limit = bend.side, bend.limit
    if bend.is_even or side.operation in ("constant", "variable") or limit.operation != "constant":
        return None
    value, parts = float(limit.value or 0.0), side.arguments
    numbers = [float(part.value or 0.0) if part.operation == "constant" else None for part in parts]
    match side.operation, numbers:
        case "negative", _:
            return _Bend(parts[0], nodes.constant(-value), not bend.is_above)
        case "absolute", _ if value >= 0:
            return _Bend(parts[0], limit, bend.is_above, is_even=True)
        case "power", _ if side.value == 2 and value >= 0:
            return _Bend(parts[0], nodes.constant(math.sqrt(value)), bend.is_above, is_even=True)
        case "sqrt", _ if value >= 0:
            return _Bend(parts[0], nodes.constant(value * value), bend.is_above)
        case "add", [float(number), None] | [None, float(number)]:
            return _Bend(parts[numbers.index(None)], nodes.constant(value - number), bend.is_above)
        case "subtract", [None, float(number)]:
            return _Bend(parts[0], nodes.constant(value + number), bend.is_above)
        case "subtract", [float(number), None]:
            return _Bend(parts[1], nodes.constant(number - value), not bend.is_above)
        case "subtract", [None, None] if value == 0:
            return _Bend(parts[0], parts[1], bend.is_above)
        case "multiply", [float(number), None] | [None, float(number)] if number:
            return _Bend(parts[numbers.index(None)], nodes.constant(value / number), bend.is_above == (number > 0))
        case "divide", [None, float(number)] if number:
            return _Bend(parts[0], nodes.constant(value * number), bend.is_above == (number > 0))
    return None


def _joined(nodes: Nodes, bend: _Bend, first: Node, second: Node) -> list[Node]:
    """The sum of both formulas with a kink, and what they differ by where they meet."""
    side, limit = bend.side, bend.limit
    above, below = (first, second) if bend.is_above else (second, first)
    if not bend.is_even:
        beyond = _with(nodes, above, side, nodes("maximum", side, limit))
        before = _with(nodes, below, side, nodes("minimum", side, limit))
        meeting, other = _with(nodes, below, side, limit), _with(nodes, above, side, limit)
        return [_sum(nodes, beyond, before, meeting), _made(nodes, "subtract", meeting, other)]
    low, size = nodes.negative(limit), nodes("absolute", side)
    inside = _with(nodes, below, side, nodes("minimum", nodes("maximum", side, low), limit))
    beyond = _with(nodes, above, size, nodes("maximum", size, limit))
    meeting = _with(nodes, above, size, limit)
    ends = [_with(nodes, below, side, end) for end in (low, limit)]
    return [_sum(nodes, inside, beyond, meeting), *(_made(nodes, "subtract", meeting, end) for end in ends)]


def _sum(nodes: Nodes, one: Node, other: Node, less: Node) -> Node:
    """one + other - less, where two of them may be the same."""
    if other is less:
        return one
    if one is less:
        return other
    return _made(nodes, "subtract", _made(nodes, "add", one, other), less)


def _made(nodes: Nodes, name: str, *arguments: Node) -> Node:
    if name == "subtract" and arguments[0] is arguments[1]:
        return nodes.constant(0.0)
    return fold(nodes, name, list(arguments)) or ELEMENTARY[name](nodes, *arguments)


def _with(nodes: Nodes, formula: Node, old: Node, new: Node) -> Node:
    """The formula with another node in a node's place."""
    made: dict[int, Node] = {}
    for node in ordered([formula]):
        given = tuple(made[id(argument)] for argument in node.arguments)
        if node is old:
            made[id(node)] = new
        elif given == node.arguments:
            made[id(node)] = node
        elif node.operation == "power":
            made[id(node)] = _power(nodes, given[0], int(node.value or 0))
        else:
            made[id(node)] = _made(nodes, node.operation, *given)
    return made[id(formula)]


def _power(nodes: Nodes, base: Node, exponent: int) -> Node:
    if base.operation != "constant":
        return nodes.power(base, exponent)
    value = float(base.value or 0.0) ** exponent
    if not math.isfinite(value):
        raise UntraceableError(f"a constant {value}")
    return nodes.constant(value)


@dataclass(frozen=True, eq=False)
class Comparison:
    """`left > right` between symbols: worth something only where `where` can write it as one expression."""

    left: Node
    right: Node

    def __bool__(self) -> bool:
        raise UntraceableError("a decision that depends on the values")

    def choose(self, nodes: Nodes, first: Node, second: Node, values: Values) -> Node:
        """`first` where this holds, else `second`."""
        return chosen(nodes, self.left, self.right, first, second, values)


@dataclass(frozen=True, eq=False)
class Combined:
    """Conditions that hold all (`is_all`) or of which one holds, or the opposite of that (`is_opposite`)."""

    parts: tuple[Condition, ...]
    is_all: bool
    is_opposite: bool = False

    def __bool__(self) -> bool:
        raise UntraceableError("a decision that depends on the values")

    def choose(self, nodes: Nodes, first: Node, second: Node, values: Values) -> Node:
        """`first` where this holds, else `second`: one condition after the other."""
        yes, no = (second, first) if self.is_opposite else (first, second)
        if self.is_all:
            return reduce(lambda so_far, part: part.choose(nodes, so_far, no, values), self.parts, yes)
        return reduce(lambda so_far, part: part.choose(nodes, yes, so_far, values), self.parts, no)


Condition = Comparison | Combined


def select(conditions: Sequence[Condition], held: Sequence[Any], otherwise: Any, choose: Choose) -> Any:
    """What is `held` under the first condition that holds; `choose(condition, one, other)` is a single choice.

    What a condition says again of those before it, that they do not hold, is left out of it: t < -1, then -1 <= t < 1.
    """
    refused: list[Comparison] = []
    needed: list[tuple[Condition, Any]] = []
    for condition, piece in zip(conditions, held, strict=True):
        parts = [part for part in _all_of(condition) if not any(_is_opposite(part, other) for other in refused)]
        if not parts:  # it holds wherever the others do not
            otherwise = piece
            break
        needed.append((parts[0] if len(parts) == 1 else Combined(tuple(parts), is_all=True), piece))
        refused += [part for part in parts if len(parts) == 1 and isinstance(part, Comparison)]
    return reduce(lambda so_far, one: choose(one[0], one[1], so_far), reversed(needed), otherwise)


def _all_of(condition: Condition) -> list[Condition]:
    """Conditions that hold together exactly where this one does."""
    if isinstance(condition, Combined) and condition.is_all and not condition.is_opposite:
        return [part for each in condition.parts for part in _all_of(each)]
    return [condition]


def _is_opposite(one: Condition, other: Comparison) -> bool:
    """Whether one holds where the other does not, but for equality."""
    return isinstance(one, Comparison) and one.left is other.right and one.right is other.left
