"""Symbols: numbers of a function under trace, and the tape on which every operation on them is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.choices import Combined, Comparison, Condition, Values
from foreword.compiler.elementary import ELEMENTARY, UntraceableError, fold
from foreword.compiler.expression import Node, Nodes

LIMIT = 20_000
"""Operations in a traced graph; beyond, a proof would not end, and the function stays a black box."""

CONNECTIVES = {
    "logical_and": "and",
    "bitwise_and": "and",
    "logical_or": "or",
    "bitwise_or": "or",
    "logical_not": "not",
    "invert": "not",
}


class Tape:
    """The graph under way, and what may be done to its symbols; at `points` it is found out whether formulas meet."""

    def __init__(self, points: Floats) -> None:
        self.nodes, self.values = Nodes(LIMIT), Values(points)

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
        if name in CONNECTIVES:
            return self._connected(CONNECTIVES[name], elements)
        if name == "heaviside":  # what it is at 0 is one point's value
            return Comparison(self.node(elements[0]), self.nodes.constant(0.0))
        if name == "sign":
            return Sign(self, self.node(elements[0]))
        if name == "multiply":  # x * (x > 0), x * sign(x)
            for one, other in (elements, elements[::-1]):
                if isinstance(one, Condition):
                    return self.where(one, other, 0.0)
                if isinstance(one, Sign):
                    return self.where(one.is_positive, other, self.apply("negative", other))
        if name not in ELEMENTARY or (name == "arctan2" and not (self.values(self.node(elements[1])) > 0).all()):
            raise UntraceableError(f"the operation {name}")
        arguments = [self.node(element) for element in elements]
        return Symbol(fold(self.nodes, name, arguments) or ELEMENTARY[name](self.nodes, *arguments), self)

    def where(self, condition: Any, first: Any, second: Any) -> Symbol:
        """`first` where the condition holds, else `second`, if the two meet where it turns."""
        if isinstance(condition, Condition):
            return Symbol(condition.choose(self.nodes, self.node(first), self.node(second), self.values), self)
        return Symbol(self.node(first if bool(condition) else second), self)

    def _connected(self, name: str, conditions: Sequence[Any]) -> Any:
        """Conditions that are joined: those that are plain truths decide, or fall away."""
        if not all(isinstance(condition, (Condition, bool, np.bool_)) for condition in conditions):
            raise UntraceableError(f"{name} of numbers")
        if name == "not":
            only = conditions[0]
            return Combined((only,), is_all=True, is_opposite=True) if isinstance(only, Condition) else not only
        unknown = tuple(condition for condition in conditions if isinstance(condition, Condition))
        is_all = name == "and"
        if any(bool(condition) != is_all for condition in conditions if not isinstance(condition, Condition)):
            return not is_all
        return Combined(unknown, is_all) if unknown else is_all


class Sign:
    """The sign of a number: worth something only as a factor of what vanishes where it turns."""

    def __init__(self, tape: Tape, node: Node) -> None:
        self.is_positive = Comparison(node, tape.nodes.constant(0.0))


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
