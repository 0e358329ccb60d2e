"""Symbols: numbers of a function under trace, and the tape on which every operation on them is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreword.compiler.elementary import ELEMENTARY, UntraceableError, choose, fold
from foreword.compiler.expression import Node, Nodes

LIMIT = 20_000
"""Operations in a traced graph; beyond, a proof would not end, and the function stays a black box."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """`left > right` between symbols: worth something only where `where` can write it as a maximum or the like."""

    left: Node
    right: Node

    def __bool__(self) -> bool:
        raise UntraceableError("a decision that depends on the values")


class Tape:
    """The graph under way, and what may be done to its symbols."""

    def __init__(self) -> None:
        self.nodes = Nodes(LIMIT)

    def node(self, element: Any) -> Node:
        """The node of an array's element: a symbol's own, or a constant."""
        if getattr(element, "shape", None) == () and hasattr(element, "symbols"):  # an array of one, out of a row
            element = element.symbols.item()
        if isinstance(element, Symbol):
            return element.node
        if isinstance(element, (bool, int, float, np.number, np.bool_)) and not isinstance(element, np.complexfloating):
            value = float(element)
            if math.isfinite(value) and value == element:
                return self.nodes.constant(value)
        raise UntraceableError(f"an operand {element!r}"[:80])

    def apply(self, name: str, *elements: Any) -> Any:
        """One elementary operation on elements of arrays: a symbol, or a comparison."""
        if name in ("greater", "greater_equal", "less", "less_equal"):
            left, right = (self.node(element) for element in elements)
            return Comparison(left, right) if name.startswith("greater") else Comparison(right, left)
        if name == "multiply" and any(isinstance(element, Comparison) for element in elements):  # x * (x > 0)
            first, second = elements if isinstance(elements[0], Comparison) else elements[::-1]
            return self.where(first, second, 0.0)
        if name not in ELEMENTARY:
            raise UntraceableError(f"the operation {name}")
        arguments = [self.node(element) for element in elements]
        return Symbol(fold(self.nodes, name, arguments) or ELEMENTARY[name](self.nodes, *arguments), self)

    def where(self, condition: Any, first: Any, second: Any) -> Symbol:
        """`first` where the condition holds, else `second`, if that is a maximum, a minimum or an absolute value."""
        if isinstance(condition, Comparison):
            nodes = (condition.left, condition.right, self.node(first), self.node(second))
            return Symbol(choose(self.nodes, *nodes), self)
        return Symbol(self.node(first if bool(condition) else second), self)


class Symbol:
    """One element of a stand-in array; arithmetic on it, by Python or by NumPy's loops over objects, is recorded."""

    def __init__(self, node: Node, tape: Tape) -> None:
        self.node, self.tape = node, tape

    def _with(self, name: str, other: Any, *, is_left: bool = True) -> Any:
        if isinstance(other, np.ndarray) or hasattr(other, "symbols"):
            return NotImplemented
        return self.tape.apply(name, self, other) if is_left else self.tape.apply(name, other, self)

    def __getattr__(self, name: str) -> Callable[[], Any]:
        if name.startswith("__") or name not in ELEMENTARY:
            raise AttributeError(name)
        return lambda: self.tape.apply(name, self)

    def __float__(self) -> float:
        raise UntraceableError("a number in place of a symbol")

    def __bool__(self) -> bool:
        raise UntraceableError("a decision that depends on the values")

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        raise UntraceableError("a decision that depends on the values")


def _operator(name: str, *, is_left: bool = True) -> Callable[[Symbol, Any], Any]:
    return lambda symbol, other: symbol._with(name, other, is_left=is_left)


_SIGNS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power"}
for _short, _name in _SIGNS.items():
    setattr(Symbol, f"__{_short}__", _operator(_name))
    setattr(Symbol, f"__r{_short}__", _operator(_name, is_left=False))
for _short, _name in {"gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal"}.items():
    setattr(Symbol, f"__{_short}__", _operator(_name))
for _short, _name in {"neg": "negative", "abs": "absolute", "pos": "positive"}.items():
    setattr(Symbol, f"__{_short}__", lambda symbol, name=_name: symbol.tape.apply(name, symbol))
