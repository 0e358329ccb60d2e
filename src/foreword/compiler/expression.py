"""A function of named coordinates as a graph of elementary operations, shared by everything that must understand it.

The graph is what a *rigorous* evaluation needs: the same nodes are evaluated in float64 (here), with Taylor models in
the search (`taylor.py`) and in ball arithmetic by the checker. It is made by the safe parser (`parser.py`) or by
tracing a NumPy callable (`tracing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

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
    "absolute": np.abs,
    "maximum": np.maximum,
    "minimum": np.minimum,
}


@dataclass(frozen=True, eq=False)
class Node:
    """One operation; `value` is a constant's number, a variable's column or a power's integer exponent."""

    operation: str
    arguments: tuple[Node, ...] = ()
    value: float | int | None = None


@dataclass(frozen=True, eq=False)
class Expression:
    """Outputs as nodes over `variables` named columns; `text` reads back to the same graph through the parser."""

    outputs: tuple[Node, ...]
    variables: tuple[str, ...]
    text: str

    def evaluate(self, points: Floats) -> Floats:
        """Values `(batch, output)` in float64 at `points` `(batch, variable)`."""
        columns = walk(self.outputs, lambda node, found: _apply(node, found, points))
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


def _apply(node: Node, found: list[Any], points: Floats) -> Any:
    if node.operation == "variable":
        return points[:, int(node.value or 0)]
    if node.operation == "constant":
        return np.float64(node.value)
    if node.operation == "pi":
        return np.float64(np.pi)
    if node.operation == "power":
        return found[0] ** int(node.value or 0)
    return OPERATIONS[node.operation](*found)
