"""A function of named coordinates as a graph of elementary operations, shared by everything that must understand it.

The graph is what a *rigorous* evaluation needs: the same nodes are evaluated in float64 (here), on real and complex
cells in the search (`tape.py`) and as enclosures by the checker. It is made by the safe parser (`parser.py`) or by
tracing a NumPy callable (`tracing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

from foreword.compiler.arrays import Floats
from foreword.errors import CompileError

# What each operation does in float64. By name are handled: `variable`, `constant`, `pi` (no arguments; the number
# itself in a rigorous evaluation, not the double beside it) and `power` (an integer exponent in `value`).
OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "negative": np.negative,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "arctan": np.arctan,
    "arcsin": np.arcsin,
    "arccos": np.arccos,
    "erf": special.erf,
    "sinc": np.sinc,
    "absolute": np.abs,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


@dataclass(frozen=True, eq=False)
class Node:
    """One operation; `value` is a constant's number, a variable's column or a power's integer exponent."""

    operation: str
    arguments: tuple[Node, ...] = field(default=(), repr=False)  # a graph may be deeper than a repr can go
    value: float | int | None = None


@dataclass(frozen=True, eq=False)
class Expression:
    """Outputs as nodes over `variables` named columns; `text` reads back to the same graph through the parser."""

    outputs: tuple[Node, ...]
    variables: tuple[str, ...]
    text: str

    def evaluate(self, points: Floats) -> Floats:
        """Values `(batch, output)` in float64 at `points` `(batch, variable)`."""
        with np.errstate(all="ignore"):
            columns = walk(self.outputs, lambda node, found: value_of(node, found, points))
        return np.stack([np.broadcast_to(columns[id(node)], points.shape[:1]) for node in self.outputs], axis=1)


def walk(outputs: Sequence[Node], apply: Callable[[Node, list[Any]], Any]) -> dict[int, Any]:
    """`apply(node, results of its arguments)` once for each node, arguments first; results by `id(node)`."""
    found: dict[int, Any] = {}
    for node in ordered(outputs):
        found[id(node)] = apply(node, [found[id(argument)] for argument in node.arguments])
    return found


def ordered(outputs: Sequence[Node]) -> Iterator[Node]:
    """Every node once, arguments before what uses them; no recursion, so depth is no limit."""
    seen: set[int] = set()
    stack = [(node, False) for node in reversed(outputs)]
    while stack:
        node, is_ready = stack.pop()
        if id(node) in seen:
            continue
        if is_ready:
            seen.add(id(node))
            yield node
        else:
            stack.append((node, True))
            stack.extend((argument, False) for argument in reversed(node.arguments))


def value_of(node: Node, found: list[Any], points: Floats) -> Any:
    """What a node is at points `(batch, variable)`, from what its arguments are: `(batch,)`, or a number."""
    if node.operation == "variable":
        return points[:, int(node.value or 0)]
    if node.operation == "constant":
        return np.float64(node.value)
    if node.operation == "pi":
        return np.float64(np.pi)
    if node.operation == "power":
        return found[0] ** int(node.value or 0)
    return OPERATIONS[node.operation](*found)


class Nodes:
    """Makes nodes, each once: the same operation on the same nodes is the same node.

    CompileError beyond `limit` nodes. The special forms keep graphs canonical, so that a graph reads back from its own
    text: the sign of a constant is part of it, and a power's exponent is at least 2.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self.limit = limit
        self._made: dict[tuple[str, tuple[int, ...], str], Node] = {}

    def __call__(self, operation: str, *arguments: Node, value: float | int | None = None) -> Node:
        key = (operation, tuple(id(argument) for argument in arguments), repr(value))
        if key not in self._made:
            if len(self._made) >= self.limit:
                raise CompileError(
                    "The expression is too large.",
                    expected=f"at most {self.limit:,} operations",
                    found="more",
                    fix="Write the target with fewer terms, or pass it as a function with a Lipschitz constant.",
                )
            self._made[key] = Node(operation, arguments, value)
        return self._made[key]

    def constant(self, value: float) -> Node:
        """A number: the double, exactly."""
        return self("constant", value=float(value))

    def negative(self, node: Node) -> Node:
        """`-node`; of a constant, the other constant."""
        if node.operation == "constant":
            return self.constant(-float(node.value or 0.0))
        return self("negative", node)

    def power(self, base: Node, exponent: int) -> Node:
        """`base` to an integer power; a negative one is the reciprocal of a positive one."""
        if exponent == 0:
            return self.constant(1.0)
        positive = base if abs(exponent) == 1 else self("power", base, value=abs(exponent))
        return positive if exponent > 0 else self("divide", self.constant(1.0), positive)


SYMBOLS = {"add": (" + ", 1), "subtract": (" - ", 1), "multiply": (" * ", 2), "divide": (" / ", 2)}
SIGN, POWER, ATOM = 3, 4, 5  # how tightly a text binds, from a sum (1) to a name or a call
SHORT = {"absolute": "abs", "maximum": "max", "minimum": "min"}
NESTED = 40  # parentheses in a text before a part of it is given a name of its own


def coordinate_names(columns: int) -> tuple[str, ...]:
    """How coordinates are called: x, y, z up to three; x0, x1, ... beyond."""
    return ("x", "y", "z")[:columns] if columns <= 3 else tuple(f"x{column}" for column in range(columns))


def expression_of(outputs: Sequence[Node], columns: int) -> Expression:
    """The expression of a graph, with a text that the parser reads back to the same graph.

    >>> x = Node("variable", value=0)
    >>> square = Node("power", (x,), 2)
    >>> expression_of([Node("exp", (square,)), Node("add", (square, x))], 1).text
    't0 = x**2; [exp(t0), t0 + x]'
    """
    variables = coordinate_names(columns)
    return Expression(tuple(outputs), variables, _text(outputs, variables))


def _text(outputs: Sequence[Node], variables: Sequence[str]) -> str:
    """A node that is used twice, or nested deep, is defined once by a name: the text grows as the graph does."""
    uses: dict[int, int] = {}
    for node in ordered(outputs):
        for argument in node.arguments:
            uses[id(argument)] = uses.get(id(argument), 0) + 1
    definitions: list[str] = []

    def write(node: Node, parts: list[tuple[str, int, int]]) -> tuple[str, int, int]:
        text, binds, depth = _written(node, parts, variables)
        if node.arguments and (uses.get(id(node), 0) > 1 or depth > NESTED):
            definitions.append(f"t{len(definitions)} = {text}; ")
            return f"t{len(definitions) - 1}", ATOM, 0
        return text, binds, depth

    written = walk(outputs, write)
    results = [written[id(node)][0] for node in outputs]
    return "".join(definitions) + (results[0] if len(results) == 1 else f"[{', '.join(results)}]")


def _written(node: Node, parts: list[tuple[str, int, int]], variables: Sequence[str]) -> tuple[str, int, int]:
    """A node's text from its arguments' `(text, binding, depth)`; parentheses only where the parser needs them."""

    def inner(index: int, least: int) -> str:
        return parts[index][0] if parts[index][1] >= least else f"({parts[index][0]})"

    depth = 1 + max((part[2] for part in parts), default=-1)
    if node.operation == "variable":
        return variables[int(node.value or 0)], ATOM, depth
    if node.operation == "constant":
        value = float(node.value or 0.0)
        text = str(int(value)) if value.is_integer() and abs(value) < 1e15 and str(value) != "-0.0" else repr(value)
        return text, SIGN if text.startswith("-") else ATOM, depth
    if node.operation == "negative":
        return f"-{inner(0, SIGN)}", SIGN, depth
    if node.operation == "power":
        return f"{inner(0, ATOM)}**{node.value}", POWER, depth
    if node.operation in SYMBOLS:
        symbol, binds = SYMBOLS[node.operation]
        return f"{inner(0, binds)}{symbol}{inner(1, binds + 1)}", binds, depth
    called = ", ".join(part[0] for part in parts)
    return (f"{SHORT.get(node.operation, node.operation)}({called})" if parts else node.operation), ATOM, depth
