"""Choices between two formulas, as a function under trace makes them with `where`, written as one expression.

Let f be A where L > R, and B elsewhere, and let both be the same where L = R. Then, for any points,

    f = A[L -> max(L, R)] + B[L -> min(L, R)] - B[L -> R]:

where L > R the last two are both B with R in L's place, elsewhere the first and the last are A and B with R in L's
place, which are the same there. So a choice is a sum of formulas with a kink, where its formulas say that they meet
(x**2 for x > 0, else 0, is max(x, 0)**2). Where they do not, it stays a choice, and what is done with it is done with
both: `out[m] = a`, then `out[~m] = b`, begins with a jump, which need not last. Whether formulas meet, and which of the
condition's sides they are written in, is found out at points (`Values`): a graph is a guess in any case, until it is
compared with the function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.elementary import ELEMENTARY, UntraceableError, fold
from foreword.compiler.expression import Node, Nodes, ordered, value_of

Choose = Callable[[Any, Any, Any], Any]
MEETING = 1e-12  # of the largest number on the way to it: by so much formulas may differ where they meet
FORMULAS = 64  # among which a choice may be open
WORK = 120_000  # nodes of formulas that are chosen between, all choices together: some seconds


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
class _Bend:
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
        for bend in _bends(nodes, left, right):
            try:
                guess, ends = _joined(nodes, bend, first, second)
            except UntraceableError:  # a formula that has no value where they would meet
                continue
            is_one = all(_meets(end, bend.side, first, second, values) for end in ends)
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


def _joined(nodes: Nodes, bend: _Bend, first: Node, second: Node) -> tuple[Node, list[_End]]:
    """The sum of both formulas with a kink, and the places where they must meet."""
    side, limit = bend.side, bend.limit
    above, below = (first, second) if bend.is_above else (second, first)
    low = nodes.negative(limit) if bend.is_even else None
    within = nodes("maximum", side, low) if low is not None else side
    ends = [_End(end, *(_with(nodes, formula, side, end) for formula in (below, above))) for end in (limit, low) if end]
    found = _with(nodes, below, side, nodes("minimum", within, limit))
    found = _sum(nodes, _with(nodes, above, side, nodes("maximum", side, limit)), found, ends[0].below)
    if low is not None:
        found = _sum(nodes, found, _with(nodes, above, side, nodes("minimum", side, low)), ends[1].below)
    return found, ends


@dataclass(frozen=True)
class _End:
    """A place `at` where the condition turns, and what the formulas below and above it are there."""

    at: Node
    below: Node
    above: Node


def _meets(end: _End, side: Node, first: Node, second: Node, values: Values) -> bool:
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
    """`left > right` between symbols: worth something only where a choice can be written as one expression."""

    left: Node
    right: Node

    def __bool__(self) -> bool:
        raise UntraceableError("a decision that depends on the values")

    def settles(self, other: Comparison, *, holds: bool) -> bool | None:
        """Whether the other holds where this one does (or does not), but for equality; None where it may or may not."""
        if {id(self.left), id(self.right)} == {id(other.left), id(other.right)}:
            return (self.left is other.left) == holds
        one, two = self._threshold(), other._threshold()
        if one is None or two is None or one.side is not two.side:
            return None
        is_above, here, there = one.is_above == holds, float(one.limit.value or 0.0), float(two.limit.value or 0.0)
        is_settled = here >= there if is_above else here <= there
        return is_above == two.is_above if is_settled else None

    def turns(self, nodes: Nodes) -> Iterator[tuple[int, float]]:
        """The column and the number at which this changes, where it is a condition on one coordinate."""
        for bend in _bends(nodes, self.left, self.right):
            if bend.side.operation == "variable" and bend.limit.operation == "constant":
                value = float(bend.limit.value or 0.0)
                yield from ((int(bend.side.value or 0), at) for at in ((value, -value) if bend.is_even else (value,)))

    def known(self, nodes: Nodes, box: Floats) -> bool | None:
        """Whether this holds, or does not, wherever each coordinate is between its two numbers in `box` `(column, 2)`.

        But for equality; None where it depends, or is no condition on one coordinate.
        """
        for bend in _bends(nodes, self.left, self.right):
            if bend.side.operation == "variable" and bend.limit.operation == "constant":
                limit, (low, high) = float(bend.limit.value or 0.0), box[int(bend.side.value or 0)]
                if limit >= (max(-low, high) if bend.is_even else high):
                    return not bend.is_above
                if limit <= low and not bend.is_even:
                    return bend.is_above
        return None

    def _threshold(self) -> _Bend | None:
        if self.right.operation == "constant":
            return _Bend(self.left, self.right, is_above=True)
        return _Bend(self.right, self.left, is_above=False) if self.left.operation == "constant" else None


@dataclass(frozen=True, eq=False)
class Combined:
    """Conditions that hold all (`is_all`) or of which one holds, or the opposite of that (`is_opposite`)."""

    parts: tuple[Condition, ...]
    is_all: bool
    is_opposite: bool = False

    def __bool__(self) -> bool:
        raise UntraceableError("a decision that depends on the values")

    def choose(self, choose: Choose, first: Any, second: Any) -> Any:
        """`first` where this holds, else `second`: one condition after the other."""
        yes, no = (second, first) if self.is_opposite else (first, second)
        if self.is_all:
            return reduce(lambda so_far, part: choose(part, so_far, no), self.parts, yes)
        return reduce(lambda so_far, part: choose(part, yes, so_far), self.parts, no)


Condition = Comparison | Combined


@dataclass(frozen=True, eq=False)
class Choice:
    """`first` where the condition holds, else `second`: formulas that do not meet where it turns."""

    condition: Comparison
    first: Formula
    second: Formula

    @property
    def formulas(self) -> int:
        """How many there are to choose from."""
        return sum(part.formulas if isinstance(part, Choice) else 1 for part in (self.first, self.second))


Formula = Node | Choice


@dataclass
class Choices:
    """Choices as they come up while a graph grows; at the points of `values` it is found out whether formulas meet."""

    nodes: Nodes
    values: Values
    work: int = 0

    def where(self, condition: Comparison, first: Formula, second: Formula) -> Formula:
        """`first` where the condition holds, else `second`: one expression if they meet, a choice of both if not."""
        first, second = self.within(first, condition, holds=True), self.within(second, condition, holds=False)
        if not isinstance(first, Choice) and not isinstance(second, Choice):
            self.work += sum(1 for _ in ordered([first, second]))
            if self.work > WORK:
                raise UntraceableError("too many choices among large formulas")
            found = chosen(self.nodes, condition.left, condition.right, first, second, self.values)
            if found is not None:
                return found
        choice = Choice(condition, first, second)
        if choice.formulas > FORMULAS:
            raise UntraceableError(f"a choice among more than {FORMULAS} formulas")
        return choice

    def within(self, formula: Formula, condition: Comparison, *, holds: bool) -> Formula:
        """What the formula is where the condition holds, or does not: choices that this settles are made."""
        if not isinstance(formula, Choice):
            return formula
        settled = condition.settles(formula.condition, holds=holds)
        if settled is not None:
            return self.within(formula.first if settled else formula.second, condition, holds=holds)
        parts = [self.within(part, condition, holds=holds) for part in (formula.first, formula.second)]
        is_same = parts[0] is formula.first and parts[1] is formula.second
        return formula if is_same else self.where(formula.condition, *parts)

    def spread(self, operate: Callable[..., Node], *formulas: Formula) -> Formula:
        """An operation on formulas, done with each of those that a choice is open among."""
        choice = next((formula for formula in formulas if isinstance(formula, Choice)), None)
        if choice is None:
            return operate(*formulas)
        done = []
        for holds in (True, False):
            given = [self.within(formula, choice.condition, holds=holds) for formula in formulas]
            try:
                done.append(self.spread(operate, *given))
            except UntraceableError:  # no value at all, as log(0): of no account if it is never chosen
                done.append(self.nodes.constant(math.nan))
        return self.where(choice.condition, *done)
