"""A value of its own at one place, as in `np.where(x != 0, np.sin(x) / x, 1.0)`, written as one expression.

Let f be B where L != R, and A elsewhere. Where B has a value at L = R too, and it is A, f is B. A sine over its own
argument has one once it is written as a `sinc`; other quotients that are 0 / 0 there stay what they are.
"""

from __future__ import annotations

import math
from collections import Counter
from functools import partial, reduce

import numpy as np

from foreword.compiler.elementary import UntraceableError
from foreword.compiler.expression import Node, Nodes, ordered
from foreword.compiler.meeting import MEETING, End, Values, bends, meets, remade, substituted

FACTORS = 32  # of a product at most, among which a sine's argument is looked for


def unguarded(nodes: Nodes, left: Node, right: Node, own: Node, elsewhere: Node, values: Values) -> Node | None:
    """`own` where `left == right`, else `elsewhere`, as one expression; None where there is none."""
    if own is elsewhere:
        return own
    with np.errstate(all="ignore"):
        try:
            whole = _with_sincs(nodes, elsewhere)
            gap, size = np.abs(values(whole) - values(elsewhere)), np.abs(values(elsewhere))
            if not (gap <= MEETING * size.max(initial=0.0)).all():
                return None
            for bend in bends(nodes, left, right):
                places = [bend.limit, nodes.negative(bend.limit)] if bend.is_even else [bend.limit]
                ends = [End(at, *(substituted(nodes, part, bend.side, at) for part in (whole, own))) for at in places]
                if all(meets(end, bend.side, own, whole, values) for end in ends):
                    return whole
        except UntraceableError:  # no value at all there
            return None
    return None


def _with_sincs(nodes: Nodes, formula: Node) -> Node:
    """The formula with sin(a) / a and tan(a) / a, and multiples of them and what they divide, by sinc(a / pi)."""
    made: dict[int, Node] = {}
    for node in ordered([formula]):
        found = remade(nodes, node, tuple(made[id(argument)] for argument in node.arguments))
        made[id(node)] = _quotient(nodes, found) if found.operation == "divide" else found
    return made[id(formula)]


def _quotient(nodes: Nodes, node: Node) -> Node:
    above, below = ([*_factors(nodes, argument)] for argument in node.arguments)
    above, below = _cancelled(nodes, above, below)
    below, above = _cancelled(nodes, below, above)
    number = _number(above) / _number(below)
    above, below = ([part for part in parts if part.operation != "constant"] for parts in (above, below))
    found = _product(nodes, number, above)
    return nodes("divide", found, _product(nodes, 1.0, below)) if below else found


def _cancelled(nodes: Nodes, above: list[Node], below: list[Node]) -> tuple[list[Node], list[Node]]:
    """Factors of a quotient without the sines above that stand over their arguments."""
    found: list[Node] = []
    for factor in above:
        if factor.operation not in ("sin", "tan"):
            found.append(factor)
            continue
        angle, left = factor.arguments[0], below.copy()
        parts = _factors(nodes, angle)
        numbers = [part for part in parts if part.operation in ("constant", "pi")]
        others = [part for part in parts if part.operation not in ("constant", "pi")]
        try:
            for part in others:
                left.remove(part)
        except ValueError:
            found.append(factor)
            continue
        below = left
        found += [*numbers, nodes("sinc", nodes("divide", angle, nodes("pi")))]
        if factor.operation == "tan":
            below = [*below, nodes("cos", angle)]
    return found, below


def _factors(nodes: Nodes, node: Node) -> list[Node]:
    """What a product is made of; the product itself where that is too much to look through."""
    found: list[Node] = []
    waiting = [node]
    while waiting:
        part = waiting.pop()
        if part.operation == "multiply":
            waiting += part.arguments[::-1]
        elif part.operation == "negative":
            waiting += [part.arguments[0], nodes.constant(-1.0)]
        elif part.operation == "power" and int(part.value or 0) <= FACTORS:
            waiting += [part.arguments[0]] * int(part.value or 0)
        elif part.operation == "divide" and part.arguments[1].operation == "constant":
            waiting += [part.arguments[0], nodes.constant(1.0 / float(part.arguments[1].value or 0.0))]
        else:
            found.append(part)
        if len(found) + len(waiting) > FACTORS:
            return [node]
    return found


def _number(factors: list[Node]) -> float:
    return math.prod(float(part.value or 0.0) for part in factors if part.operation == "constant")


def _product(nodes: Nodes, number: float, factors: list[Node]) -> Node:
    """The number times factors that are no numbers, of which some may be there more than once."""
    times = Counter(factors)
    parts = [nodes.power(factor, count) for factor, count in times.items()]
    parts = parts if number == 1.0 and parts else [nodes.constant(number), *parts]
    return reduce(partial(nodes, "multiply"), parts)
