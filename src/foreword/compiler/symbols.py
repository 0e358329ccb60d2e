"""Symbols: numbers of a function under trace, and the tape on which every operation on them is recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.choices import Choice, Choices, Combined, Comparison, Condition, Equality, Formula
from foreword.compiler.elementary import ELEMENTARY, UntraceableError, folded
from foreword.compiler.expression import Node, Nodes, ordered
from foreword.compiler.meeting import Values
from foreword.compiler.steps import STEPPED, stepped

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
TRUTHS = (Condition, bool, np.bool_)
OF_ZERO = ("xlogy", "xlog1py", "entr", "rel_entr")  # 0 log 0 is 0, which no formula of a product says
TURNING = ("sign", "heaviside", "copysign")  # at 0 they are one point's value


class Tape:
    """The graph under way, and what may be done to its symbols; at `points` it is found out whether formulas meet.

    Coordinates are taken to lie between their two numbers in `box` `(column, 2)`.
    """

    def __init__(self, points: Floats, box: Floats) -> None:
        self.box = box
        self.nodes, self.values = Nodes(LIMIT), Values(points)
        self.choices = Choices(self.nodes, self.values)
        self.has_conditions = False
        self.turns: set[tuple[int, float]] = set()  # columns, and numbers at which a condition on them changes

    def formula(self, element: Any) -> Formula:
        """What an array's element is: a symbol's own, a constant, or of a condition 1 and 0."""
        if getattr(element, "shape", None) == () and hasattr(element, "symbols"):  # an array of one, out of a row
            element = element.symbols.item()
        element = self.number(element)
        if isinstance(element, Symbol):
            return element.formula
        if isinstance(element, (bool, int, float, np.number, np.bool_)) and not isinstance(element, np.complexfloating):
            value = float(element)
            if value == element or math.isnan(value):
                return self.nodes.constant(value)
        raise UntraceableError(f"an operand {element!r}"[:80])

    def number(self, element: Any) -> Any:
        """An element as a number: of a condition 1 and 0."""
        return self.where(element, 1.0, 0.0) if isinstance(element, Condition) else element

    def output(self, element: Any) -> Node:
        """What an element of the result is, as an expression of finite numbers."""
        found = self.formula(element)
        if isinstance(found, Choice):
            raise UntraceableError("a choice of formulas that do not meet")
        if not all(math.isfinite(float(node.value or 0.0)) for node in ordered([found])):
            raise UntraceableError("a number that is not finite")
        return found

    def apply(self, name: str, *elements: Any) -> Any:
        """One elementary operation on elements of arrays: a symbol, or a comparison."""
        if name in ("greater", "greater_equal", "less", "less_equal"):
            return self._compared(*(elements if name.startswith("greater") else elements[::-1]))
        if name in CONNECTIVES:
            return self._connected(CONNECTIVES[name], elements)
        if name in ("equal", "not_equal"):
            same = self._equal(*elements)
            return same if name == "equal" else self._connected("not", [same])
        if all(isinstance(element, TRUTHS) for element in elements):
            if name != "multiply":  # of truths NumPy makes other numbers, or none
                raise UntraceableError(f"{name} of conditions")
            return self._connected("and", elements)
        if name in TURNING:
            is_positive = self._compared(elements[0] if name != "copysign" else elements[1], 0.0)
            size = self.apply("absolute", elements[0]) if name == "copysign" else 1.0
            return self.where(is_positive, size, 0.0 if name == "heaviside" else self.apply("negative", size))
        if name in STEPPED:
            return stepped(self, name, *elements)
        if name not in ELEMENTARY:
            raise UntraceableError(f"the operation {name}")
        return Symbol(self.choices.spread(partial(self._operation, name), *map(self.formula, elements)), self)

    def where(self, condition: Any, first: Any, second: Any) -> Symbol:
        """`first` where the condition holds, else `second`."""
        if isinstance(condition, Combined):
            return Symbol(self.formula(condition.choose(self.where, first, second)), self)
        if isinstance(condition, (Comparison, Equality)):
            return Symbol(self.choices.where(condition, self.formula(first), self.formula(second)), self)
        return Symbol(self.formula(first if bool(condition) else second), self)

    def _operation(self, name: str, *nodes: Node) -> Node:
        if name == "arctan2" and not (self.values(nodes[1]) > 0).all():
            raise UntraceableError("an angle that may be beyond its cut")
        self.has_conditions |= name in OF_ZERO
        return folded(self.nodes, name, *nodes)

    def _compared(self, left: Any, right: Any) -> Any:
        """Whether left > right."""
        found = Comparison(*self._sides(left, right))
        self.turns.update(found.turns(self.nodes))
        known = found.known(self.nodes, self.box)
        return found if known is None else known

    def _equal(self, left: Any, right: Any) -> Any:
        """Whether left == right."""
        found = Equality(*self._sides(left, right))
        self.turns.update(found.turns(self.nodes))
        if found.left.operation == found.right.operation == "constant":
            return found.left is found.right
        return True if found.left is found.right else found

    def _sides(self, left: Any, right: Any) -> tuple[Node, Node]:
        sides = self.formula(left), self.formula(right)
        if isinstance(sides[0], Choice) or isinstance(sides[1], Choice):
            raise UntraceableError("a comparison of choices")
        self.has_conditions = True
        return sides[0], sides[1]

    def _connected(self, name: str, conditions: Sequence[Any]) -> Any:
        """Conditions that are joined: those that are plain truths decide, or fall away."""
        if not all(isinstance(condition, TRUTHS) for condition in conditions):
            raise UntraceableError(f"{name} of numbers")
        if name == "not":
            only = conditions[0]
            return Combined((only,), is_all=True, is_opposite=True) if isinstance(only, Condition) else not only
        unknown = tuple(condition for condition in conditions if isinstance(condition, Condition))
        is_all = name == "and"
        if any(bool(condition) != is_all for condition in conditions if not isinstance(condition, Condition)):
            return not is_all
        return Combined(unknown, is_all) if unknown else is_all


class Symbol:
    """One element of a stand-in array; arithmetic on it, by Python or by NumPy's loops over objects, is recorded."""

    def __init__(self, formula: Formula, tape: Tape) -> None:
        self.formula, self.tape = formula, tape

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


_SIGNS = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power", "mod": "remainder"}
for _short, _name in _SIGNS.items():
    setattr(Symbol, f"__{_short}__", _operator(_name))
    setattr(Symbol, f"__r{_short}__", _operator(_name, is_left=False))
for _short, _name in {"gt": "greater", "ge": "greater_equal", "lt": "less", "le": "less_equal"}.items():
    setattr(Symbol, f"__{_short}__", _operator(_name))
for _short, _name in {"neg": "negative", "abs": "absolute", "pos": "positive"}.items():
    setattr(Symbol, f"__{_short}__", lambda symbol, name=_name: symbol.tape.apply(name, symbol))
