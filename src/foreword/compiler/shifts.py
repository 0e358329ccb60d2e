"""Shifts that a formula takes back, as `z - z.max()` in a softmax or in the logarithm of a sum of exponentials.

They keep floating-point numbers small and change nothing else, but a proof would have to find that out at every kink
of the maximum. Whether the result hangs on a maximum is found out at points: a graph is a guess in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from foreword.compiler.elementary import UntraceableError
from foreword.compiler.expression import Node, Nodes, ordered
from foreword.compiler.meeting import Values, substituted

UNCHANGED = 1e-13  # of an output's largest value: by so much rounding may change it
EXTREMES = ("maximum", "minimum")


def without_shifts(nodes: Nodes, outputs: Sequence[Node], values: Values) -> list[Node]:
    """The outputs without the maxima and minima on whose values they do not hang."""
    found, rng = list(outputs), np.random.default_rng(0)
    with np.errstate(all="ignore"):
        for extreme in _outermost(found):
            known = Values(values.points, {id(extreme): values(extreme) + rng.normal(size=len(values.points))})
            if not all(_is_same(known(output), values(output)) for output in found):
                continue
            for other in (nodes.constant(0.0), _first(extreme)):
                try:
                    without = [substituted(nodes, output, extreme, other) for output in found]
                except UntraceableError:
                    continue
                if all(_is_same(values(new), values(old)) for new, old in zip(without, found, strict=True)):
                    found = without
                    break
    return found


def _outermost(outputs: Sequence[Node]) -> Iterator[Node]:
    extremes = [node for node in ordered(outputs) if node.operation in EXTREMES]
    inner = {id(part) for node in extremes for part in node.arguments if part.operation in EXTREMES}
    yield from (node for node in extremes if id(node) not in inner)


def _first(extreme: Node) -> Node:
    while extreme.operation in EXTREMES:
        extreme = extreme.arguments[0]
    return extreme


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool((np.abs(one - other) <= UNCHANGED * np.abs(other).max(initial=0.0)).all())
