"""Conditions of a function under trace, and the choices that they leave open.

Where two formulas meet, a choice between them is one expression (`meeting.py`). Where they do not, it stays a choice,
and what is done with it is done with both: `out[m] = a`, then `out[~m] = b`, begins with a jump, which need not last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any

from foreword.compiler.arrays import Floats
from foreword.compiler.elementary import UntraceableError
from foreword.compiler.expression import Node, Nodes, ordered
from foreword.compiler.guards import unguarded
from foreword.compiler.meeting import Bend, Values, bends, chosen

Choose = Callable[[Any, Any, Any], Any]
FORMULAS = 64  # among which a choice may be open
WORK = 120_000  # nodes of formulas that are chosen between, all choices together: some seconds


@dataclass(frozen=True, eq=False)
class _Sides:
    """Two formulas that a condition is about."""

    left: Node
    right: Node

    def __bool__(self) -> bool:
        raise UntraceableError("a decision that depends on the values")

    def turns(self, nodes: Nodes) -> Iterator[tuple[int, float]]:
        """The column and the number at which this changes, where it is a condition on one coordinate."""
        for bend in bends(nodes, self.left, self.right):
            if bend.side.operation == "variable" and bend.limit.operation == "constant":
                value = float(bend.limit.value or 0.0)
                yield from ((int(bend.side.value or 0), at) for at in ((value, -value) if bend.is_even else (value,)))

    def _is_about(self, other: _Sides) -> bool:
        """Whether the other's sides are the same, either way round."""
        return {id(self.left), id(self.right)} == {id(other.left), id(other.right)}


class Comparison(_Sides):
    """`left > right` between symbols: worth something only where a choice can be written as one expression."""

    def settles(self, other: Single, *, holds: bool) -> bool | None:
        """Whether the other holds where this one does (or does not), but for equality; None where it may or may not."""
        if isinstance(other, Equality):
            return None
        if self._is_about(other):
            return (self.left is other.left) == holds
        one, two = self._threshold(), other._threshold()
        if one is None or two is None or one.side is not two.side:
            return None
        is_above, here, there = one.is_above == holds, float(one.limit.value or 0.0), float(two.limit.value or 0.0)
        is_settled = here >= there if is_above else here <= there
        return is_above == two.is_above if is_settled else None

    def known(self, nodes: Nodes, box: Floats) -> bool | None:
        """Whether this holds, or does not, wherever each coordinate is between its two numbers in `box` `(column, 2)`.

        But for equality; None where it depends, or is no condition on one coordinate.
        """
        for bend in bends(nodes, self.left, self.right):
            if bend.side.operation == "variable" and bend.limit.operation == "constant":
                limit, (low, high) = float(bend.limit.value or 0.0), box[int(bend.side.value or 0)]
                if limit >= (max(-low, high) if bend.is_even else high):
                    return not bend.is_above
                if limit <= low and not bend.is_even:
                    return bend.is_above
        return None

    def _threshold(self) -> Bend | None:
        if self.right.operation == "constant":
            return Bend(self.left, self.right, is_above=True)
        return Bend(self.right, self.left, is_above=False) if self.left.operation == "constant" else None


class Equality(_Sides):
    """`left == right` between symbols: what is chosen there can be the value that a formula has anyway."""

    def settles(self, other: Single, *, holds: bool) -> bool | None:
        """Whether the other holds where this one does (or does not): of itself it is known."""
        return holds if isinstance(other, Equality) and self._is_about(other) else None


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


Single = Comparison | Equality
Condition = Single | Combined


@dataclass(frozen=True, eq=False)
class Choice:
    """`first` where the condition holds, else `second`: formulas that do not meet where it turns."""

    condition: Single
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

    def where(self, condition: Single, first: Formula, second: Formula) -> Formula:
        """`first` where the condition holds, else `second`: one expression if they meet, a choice of both if not."""
        first, second = self.within(first, condition, holds=True), self.within(second, condition, holds=False)
        if not isinstance(first, Choice) and not isinstance(second, Choice):
            self.work += sum(1 for _ in ordered([first, second]))
            if self.work > WORK:
                raise UntraceableError("too many choices among large formulas")
            choose = unguarded if isinstance(condition, Equality) else chosen
            found = choose(self.nodes, condition.left, condition.right, first, second, self.values)
            if found is not None:
                return found
        choice = Choice(condition, first, second)
        if choice.formulas > FORMULAS:
            raise UntraceableError(f"a choice among more than {FORMULAS} formulas")
        return choice

    def within(self, formula: Formula, condition: Single, *, holds: bool) -> Formula:
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
