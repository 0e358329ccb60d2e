"""What NumPy's elementary operations are as graphs, for tracing: each is the same real function as the ufunc's."""

from __future__ import annotations

import math
from collections.abc import Callable

from foreword.compiler.expression import OPERATIONS, Node, Nodes

EXPONENTS = 1_000
"""Largest integer power that is traced, as in the parser."""


DEGREES = 40
"""Largest degree of a classical polynomial that is written out."""


class UntraceableError(TypeError):
    """The function under trace did what no expression says; `trace` turns it into None."""


def fold(nodes: Nodes, name: str, arguments: list[Node]) -> Node | None:
    """The node that an operation leaves when it does nothing (x + 0, x * 1, 0 * x) or works on constants alone.

    Constants are folded in float64, as the function itself computes them.
    """
    values = [float(node.value or 0.0) if node.operation == "constant" else None for node in arguments]
    if name in OPERATIONS and None not in values:
        result = float(OPERATIONS[name](*[value for value in values if value is not None]))
        if math.isfinite(result):
            return nodes.constant(result)
        raise UntraceableError(f"a constant {result}")
    if name in ("add", "multiply") and 0.0 in values:
        other = arguments[1 - values.index(0.0)]
        return other if name == "add" else nodes.constant(0.0)
    if name == "multiply" and 1.0 in values:
        return arguments[1 - values.index(1.0)]
    if (name, values[-1]) in (("subtract", 0.0), ("divide", 1.0)):
        return arguments[0]
    return _bounded(nodes, name, arguments)


def _bounded(nodes: Nodes, name: str, arguments: list[Node]) -> Node | None:
    """A bound on what is bounded already: max(max(a, 1), 2) is max(a, 2), and min(max(a, 1), 0) is 0; |max(a, 1)|."""
    if name == "absolute":
        return _magnitude(nodes, arguments[0])
    if name not in ("maximum", "minimum"):
        return None
    if arguments[0] is arguments[1]:
        return arguments[0]
    for outer, inner in (arguments, arguments[::-1]):
        if outer.operation != "constant" or inner.operation not in ("maximum", "minimum"):
            continue
        for bound, other in (inner.arguments, inner.arguments[::-1]):
            if bound.operation != "constant":
                continue
            if inner.operation == name:
                return nodes(name, other, nodes.constant(OPERATIONS[name](bound.value, outer.value)))
            if OPERATIONS[name](bound.value, outer.value) == outer.value:
                return outer
    return None


def _magnitude(nodes: Nodes, node: Node) -> Node | None:
    """The magnitude of what a bound keeps on one side of 0, or of an even power."""
    bounds = [float(part.value or 0.0) for part in node.arguments if part.operation == "constant"]
    if node.operation == "maximum" and any(bound >= 0 for bound in bounds):
        return node
    if node.operation == "minimum" and any(bound <= 0 for bound in bounds):
        return nodes.negative(node)
    is_even = node.operation == "power" and int(node.value or 0) % 2 == 0
    return node if is_even or node.operation == "absolute" else None


def _plain(name: str) -> Callable[..., Node]:
    return lambda nodes, *arguments: nodes(name, *arguments)


def _same(_: Nodes, a: Node) -> Node:
    return a


def _multiply(nodes: Nodes, a: Node, b: Node) -> Node:
    return nodes.power(a, 2) if a is b else nodes("multiply", a, b)


def _power(nodes: Nodes, base: Node, exponent: Node) -> Node:
    if exponent.operation == "constant":
        value = float(exponent.value or 0.0)
        if abs(value) > EXPONENTS:
            raise UntraceableError("an exponent beyond 1,000")
        if value.is_integer():
            return nodes.power(base, int(value))
        if (2 * value).is_integer():
            return nodes.power(nodes("sqrt", base), int(2 * value))
    return nodes("exp", nodes("multiply", exponent, nodes("log", base)))


def _log_of(base: float) -> Callable[[Nodes, Node], Node]:
    return lambda nodes, a: nodes("divide", nodes("log", a), nodes("log", nodes.constant(base)))


def _degrees(nodes: Nodes, a: Node) -> Node:
    return nodes("divide", nodes("multiply", a, nodes.constant(180.0)), nodes("pi"))


def _radians(nodes: Nodes, a: Node) -> Node:
    return nodes("divide", nodes("multiply", a, nodes("pi")), nodes.constant(180.0))


def _hypot(nodes: Nodes, a: Node, b: Node) -> Node:
    return nodes("sqrt", nodes("add", nodes.power(a, 2), nodes.power(b, 2)))


def _arctan2(nodes: Nodes, a: Node, b: Node) -> Node:
    """Twice the half angle, whose tangent is a / (r + b): for b > 0, as there is a cut where a is 0 and b negative."""
    half = nodes("arctan", nodes("divide", a, nodes("add", _hypot(nodes, a, b), b)))
    return nodes("multiply", nodes.constant(2.0), half)


def _logaddexp(nodes: Nodes, a: Node, b: Node) -> Node:
    return nodes("log", nodes("add", nodes("exp", a), nodes("exp", b)))


def _expit(nodes: Nodes, a: Node) -> Node:
    one = nodes.constant(1.0)
    return nodes("divide", one, nodes("add", one, nodes("exp", nodes.negative(a))))


def _ndtr(nodes: Nodes, a: Node) -> Node:
    """The normal distribution's share below a."""
    half, scaled = nodes.constant(0.5), nodes("divide", a, nodes("sqrt", nodes.constant(2.0)))
    return nodes("multiply", half, nodes("add", nodes.constant(1.0), nodes("erf", scaled)))


def _log_expit(nodes: Nodes, a: Node) -> Node:
    return nodes.negative(nodes("log", nodes("add", nodes.constant(1.0), nodes("exp", nodes.negative(a)))))


def _times_log(nodes: Nodes, a: Node, b: Node) -> Node:
    return nodes("multiply", a, nodes("log", b))


def _huber(nodes: Nodes, delta: Node, a: Node) -> Node:
    """m (|a| - m / 2), m the smaller one of |a| and delta."""
    size = nodes("absolute", a)
    least = nodes("minimum", size, delta)
    return nodes("multiply", least, nodes("subtract", size, nodes("multiply", nodes.constant(0.5), least)))


def _pseudo_huber(nodes: Nodes, delta: Node, a: Node) -> Node:
    one = nodes.constant(1.0)
    root = nodes("sqrt", nodes("add", one, nodes.power(nodes("divide", a, delta), 2)))
    return nodes("multiply", nodes.power(delta, 2), nodes("subtract", root, one))


def _polynomial(step: Callable[[int], tuple[float, float, float]], first: float | None = None) -> Callable[..., Node]:
    """P_k+1 = (s a + o) P_k - p P_k-1 with (s, o, p) = step(k), P_0 = 1, P_-1 = 0; the first s may be another."""

    def polynomial(nodes: Nodes, degree: Node, a: Node) -> Node:
        count = float(degree.value or 0.0) if degree.operation == "constant" else math.nan
        if not (count.is_integer() and 0 <= count <= DEGREES):
            raise UntraceableError("a polynomial of a degree that is no small whole number")
        before, found = nodes.constant(0.0), nodes.constant(1.0)
        for k in range(int(count)):
            slope, offset, less = step(k)
            slope = first if k == 0 and first is not None else slope
            factor = folded(nodes, "multiply", nodes.constant(slope), a)
            factor = folded(nodes, "add", factor, nodes.constant(offset))
            more = folded(nodes, "multiply", factor, found)
            before, found = (
                found,
                folded(nodes, "subtract", more, folded(nodes, "multiply", nodes.constant(less), before)),
            )
        return found

    return polynomial


def folded(nodes: Nodes, name: str, *arguments: Node) -> Node:
    """The operation on the arguments, or the number that it is."""
    return fold(nodes, name, list(arguments)) or ELEMENTARY[name](nodes, *arguments)


ELEMENTARY: dict[str, Callable[..., Node]] = {
    **{name: _plain(name) for name in OPERATIONS},
    "negative": lambda nodes, a: nodes.negative(a),
    "multiply": _multiply,
    "power": _power,
    "float_power": _power,
    "square": lambda nodes, a: nodes.power(a, 2),
    "reciprocal": lambda nodes, a: nodes.power(a, -1),
    "positive": _same,
    "conjugate": _same,
    "fabs": _plain("absolute"),
    "fmax": _plain("maximum"),
    "fmin": _plain("minimum"),
    "exp2": lambda nodes, a: nodes("exp", nodes("multiply", a, nodes("log", nodes.constant(2.0)))),
    "expm1": lambda nodes, a: nodes("subtract", nodes("exp", a), nodes.constant(1.0)),
    "log1p": lambda nodes, a: nodes("log", nodes("add", nodes.constant(1.0), a)),
    "log2": _log_of(2.0),
    "log10": _log_of(10.0),
    "cbrt": lambda nodes, a: nodes("exp", nodes("divide", nodes("log", a), nodes.constant(3.0))),
    "arcsinh": lambda nodes, a: nodes("log", nodes("add", a, _hypot(nodes, a, nodes.constant(1.0)))),
    "hypot": _hypot,
    "arctan2": _arctan2,
    "radians": _radians,
    "deg2rad": _radians,
    "degrees": _degrees,
    "rad2deg": _degrees,
    "logaddexp": _logaddexp,
    "expit": _expit,
    "erfc": lambda nodes, a: nodes("subtract", nodes.constant(1.0), nodes("erf", a)),
    "ndtr": _ndtr,
    "log_ndtr": lambda nodes, a: nodes("log", _ndtr(nodes, a)),
    "log_expit": _log_expit,
    "exp10": lambda nodes, a: nodes("exp", nodes("multiply", a, nodes("log", nodes.constant(10.0)))),
    "cosm1": lambda nodes, a: nodes("subtract", nodes("cos", a), nodes.constant(1.0)),
    "xlogy": _times_log,
    "xlog1py": lambda nodes, a, b: _times_log(nodes, a, nodes("add", nodes.constant(1.0), b)),
    "entr": lambda nodes, a: nodes.negative(_times_log(nodes, a, a)),
    "rel_entr": lambda nodes, a, b: _times_log(nodes, a, nodes("divide", a, b)),
    "huber": _huber,
    "pseudo_huber": _pseudo_huber,
    "eval_legendre": _polynomial(lambda k: ((2 * k + 1) / (k + 1), 0.0, k / (k + 1))),
    "eval_chebyt": _polynomial(lambda _: (2.0, 0.0, 1.0), first=1.0),
    "eval_chebyu": _polynomial(lambda _: (2.0, 0.0, 1.0)),
    "eval_hermite": _polynomial(lambda k: (2.0, 0.0, 2.0 * k)),
    "eval_hermitenorm": _polynomial(lambda k: (1.0, 0.0, float(k))),
    "eval_laguerre": _polynomial(lambda k: (-1 / (k + 1), (2 * k + 1) / (k + 1), k / (k + 1))),
}
