"""One choice between two formulas, as a function under trace makes it with `where`, written as one expression.

Let f be A where L > R, and B elsewhere, and let both be the same where L = R. Then, for any points,

    f = A[L -> max(L, R)] + B[L -> min(L, R)] - B[L -> R]:

where L > R the last two are both B with R in L's place, elsewhere the first and the last are A and B with R in L's
place, which are the same there. So a choice is a sum of formulas with a kink, where its formulas say that they meet
(x**2 for x > 0, else 0, is max(x, 0)**2). Whether they meet, and which of the condition's sides they are written in, is
found out at points (`Values`): a graph is a guess in any case, until it is compared with the function.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.elementary import UntraceableError, folded
from foreword.compiler.expression import Node, Nodes, ordered, value_of

MEETING = 1e-12  # of the largest number on the way to it: by so much formulas may differ where they meet


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

    def largest(self, formula: Node, side: Node, end: Node) -> Floats:
        """The largest magnitude that occurs where a formula is computed with `end` as `side`: the unit of rounding."""
        there = Values(self.points, {id(side): self(end)})
        there(formula)
        return np.asarray(reduce(np.maximum, (np.abs(there(part)) for part in ordered([formula]))))


@dataclass(frozen=True)
class Bend:
    """Where the formulas are to meet: `side` less than `limit` in one, more in the other.

    `is_above`: the first formula is that of side > limit. With `is_even` the condition is on the magnitude of `side`.
    """

    side: Node
    limit: Node
    is_above: bool
    is_even: bool = False


def chosen(nodes: Nodes, left: Node, right: Node, first: Node, second: Node, values: Values) -> Node | None:
    """`first` where `left > right`, else `second`, as one expression; None where there is none.

    What the formulas are where they meet is compared at all points, on whichever side they lie.
    """
    plain = _plain(nodes, left, right, first, second)
    if plain is not None:
        return plain
    for one, other, is_first in ((first, second, True), (second, first, False)):
        if one.operation == "add" and other in one.arguments:  # f + g here, f there: f, and a choice of g and 0
            more, zero = one.arguments[one.arguments[0] is other], nodes.constant(0.0)
            found = chosen(nodes, left, right, *((more, zero) if is_first else (zero, more)), values)
            return None if found is None else _made(nodes, "add", other, found)
    with np.errstate(all="ignore"):
        wanted = np.where(values(left) > values(right), values(first), values(second))
        allowed = MEETING * float(np.abs(wanted).max(initial=0.0))
        for bend in bends(nodes, left, right):
            try:
                guess, ends = _joined(nodes, bend, first, second)
            except UntraceableError:  # a formula that has no value where they would meet
                continue
            is_one = all(meets(end, bend.side, first, second, values) for end in ends)
            if is_one and (np.abs(values(guess) - wanted) <= allowed).all():
                return guess
    return None


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


def bends(nodes: Nodes, left: Node, right: Node) -> Iterator[Bend]:
    """What the condition says of one node and another: the deepest node first, as all that hangs on it is seen."""
    found = [Bend(left, right, is_above=True), Bend(right, left, is_above=False)]
    for bend in tuple(found):
        while (peeled := _peeled(nodes, bend)) is not None:
            found.append(bend := peeled)
    yield from (bend for bend in reversed(found) if bend.side.operation != "constant")


def _peeled(nodes: Nodes, bend: Bend) -> Bend | None:
    """The same condition on what `bend.side` is made of: a number less, a multiple, a magnitude, a difference of 0."""
    side, limit = bend.side, bend.limit
    if bend.is_even or side.operation in ("constant", "variable") or limit.operation != "constant":
        return None
    value, parts = float(limit.value or 0.0), side.arguments
    numbers = [float(part.value or 0.0) if part.operation == "constant" else None for part in parts]
    match side.operation, numbers:
        case "negative", _:
            return Bend(parts[0], nodes.constant(-value), not bend.is_above)
        case "absolute", _ if value >= 0:
            return Bend(parts[0], limit, bend.is_above, is_even=True)
        case "power", _ if side.value == 2 and value >= 0:
            return Bend(parts[0], nodes.constant(math.sqrt(value)), bend.is_above, is_even=True)
        case "sqrt", _ if value >= 0:
            return Bend(parts[0], nodes.constant(value * value), bend.is_above)
        case "add", [float(number), None] | [None, float(number)]:
            return Bend(parts[numbers.index(None)], nodes.constant(value - number), bend.is_above)
        case "subtract", [None, float(number)]:
            return Bend(parts[0], nodes.constant(value + number), bend.is_above)
        case "subtract", [float(number), None]:
            return Bend(parts[1], nodes.constant(number - value), not bend.is_above)
        case "subtract", [None, None] if value == 0:
            return Bend(parts[0], parts[1], bend.is_above)
        case "multiply", [float(number), None] | [None, float(number)] if number:
            return Bend(parts[numbers.index(None)], nodes.constant(value / number), bend.is_above == (number > 0))
        case "divide", [None, float(number)] if number:
            return Bend(parts[0], nodes.constant(value * number), bend.is_above == (number > 0))
    return None


def _joined(nodes: Nodes, bend: Bend, first: Node, second: Node) -> tuple[Node, list[End]]:
    """The sum of both formulas with a kink, and the places where they must meet."""
    side, limit = bend.side, bend.limit
    above, below = (first, second) if bend.is_above else (second, first)
    low = nodes.negative(limit) if bend.is_even else None
    within = nodes("maximum", side, low) if low is not None else side
    places = [end for end in (limit, low) if end is not None]
    ends = [End(end, *(substituted(nodes, formula, side, end) for formula in (below, above))) for end in places]
    found = substituted(nodes, below, side, nodes("minimum", within, limit))
    found = _sum(nodes, substituted(nodes, above, side, nodes("maximum", side, limit)), found, ends[0].below)
    if low is not None:
        found = _sum(nodes, found, substituted(nodes, above, side, nodes("minimum", side, low)), ends[1].below)
    return found, ends


@dataclass(frozen=True)
class End:
    """A place `at` where the condition turns, and what the formulas below and above it are there."""

    at: Node
    below: Node
    above: Node


def meets(end: End, side: Node, first: Node, second: Node, values: Values) -> bool:
    """Whether the formulas are the same at an end, at all points, but for rounding.

    Where a formula has a bend of which the points see one side only, what it is on the other is not known.
    """
    if end.below is end.above:
        return True
    for node in ordered([end.below, end.above]):
        if node.operation in ("maximum", "minimum", "absolute"):
            ahead = values(node.arguments[0]) - (values(node.arguments[1]) if len(node.arguments) > 1 else 0.0)
            if not ((ahead > 0).any() and (ahead < 0).any()):
                return False
    one, other = values(end.below), values(end.above)
    gap, unit = np.abs(one - other), np.maximum(np.abs(one), np.abs(other))
    if (gap <= MEETING * unit).all() and np.isfinite(unit).all():
        return True
    unit = np.maximum(values.largest(first, side, end.at), values.largest(second, side, end.at))
    return bool(((gap <= MEETING * unit) & np.isfinite(unit)).all())


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
    return folded(nodes, name, *arguments)


def substituted(nodes: Nodes, formula: Node, old: Node, new: Node) -> Node:
    """The formula with another node in a node's place."""
    made: dict[int, Node] = {}
    for node in ordered([formula]):
        given = tuple(made[id(argument)] for argument in node.arguments)
        if node is old:
            made[id(node)] = new
        else:
            made[id(node)] = remade(nodes, node, given)
    return made[id(formula)]


def remade(nodes: Nodes, node: Node, given: tuple[Node, ...]) -> Node:
    """The operation of a node on other arguments."""
    if given == node.arguments:
        return node
    return (
        _power(nodes, given[0], int(node.value or 0))
        if node.operation == "power"
        else _made(nodes, node.operation, *given)
    )


def _power(nodes: Nodes, base: Node, exponent: int) -> Node:
    if base.operation != "constant":
        return nodes.power(base, exponent)
    value = float(base.value or 0.0) ** exponent
    if not math.isfinite(value):
        raise UntraceableError(f"a constant {value}")
    return nodes.constant(value)
