"""Elementary functions and expression graphs of truncated polynomials: the checker's own reading of a target.

A function of one variable is its Taylor series about each cell's middle with Lagrange's remainder, both by Arb whatever
the models' numbers are. Closed forms of the last coefficient, recurrences and Cauchy's bound on a disc give the
remainder, whichever is least. Where there is no series, `spans.py` may know a range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from flint import acb, arb, arb_series

from foreword.compiler.expression import Node, walk
from foreword.compiler.spans import Sides, Spans, sides_of
from foreword.compiler.truncated import Model
from foreword.errors import CertificateError

LARGEST_POWER = 4096
# Of sin(pi x) / (pi x), |x| <= 1: what follows x^80 adds to a coefficient at most sum_k>40 (2 pi)^(2k) / (2k + 1)!.
SINC_TERMS, SINC_LEFT_OUT = 40, 1e-50


def apply(name: str, inner: Model) -> Model:
    """A function of one variable, by its Taylor series about each cell's middle with Lagrange's remainder.

    Where the series does not exist over the whole cell but the function does, a constant with its range as rest.
    """
    space, system = inner.space, inner.system
    step = inner.without_constant()
    radius = step.largest
    centre, reach = system.balls(inner.coefficients[0]), system.balls(radius)
    whole = [middle + around * arb(0, 1) for middle, around in zip(centre, reach, strict=True)]
    series, errors = system.split(np.array([_series(name, ball, space.order) for ball in centre], dtype=object).T)
    last = system.upper(np.array([_last(name, ball, space.order).abs_upper() for ball in whole], dtype=object))
    result = space.constant(series[space.order - 1], errors[space.order - 1])
    for degree in range(space.order - 2, -1, -1):
        result = (result * step).shifted(series[degree]).widened(errors[degree])
    result = result.widened(last * system.power(radius, space.order))
    return _or_constant(result, name, whole)


def power(inner: Model, exponent: int) -> Model:
    """An integer power by repeated squaring."""
    if exponent < 0:
        return power(apply("inverse", inner), -exponent)
    result, square = inner.space.constant(inner.system.exact(np.ones(len(inner.rest)))), inner
    is_first = True
    while exponent:
        if exponent & 1:
            result, is_first = square if is_first else result * square, False
        exponent >>= 1
        square = square * square if exponent else square
    return result


def _or_constant(result: Model, name: str, whole: Sequence[arb]) -> Model:
    """The model, but the range of the function over a cell where that says more."""
    system = result.system
    rest, varying = system.ceiling(result.rest), system.ceiling(result.without_constant().size)
    # A polynomial that varies by more than its rest says more than a constant.
    doubtful = np.flatnonzero(~(np.isfinite(rest) & (rest <= varying)))
    ranges = [(cell, _series(name, whole[cell], 1)[0]) for cell in doubtful.tolist()]
    lost = [(cell, ball) for cell, ball in ranges if ball.is_finite() and not arb(rest[cell]) <= ball.rad()]
    return _constant_in(result, [cell for cell, _ in lost], [ball for _, ball in lost])


def _constant_in(result: Model, cells: Sequence[int], balls: Sequence[arb]) -> Model:
    """The model, but a constant with its ball as rest in these cells."""
    if not cells:
        return result
    system = result.system
    coefficients, widths = result.coefficients.copy(), result.rest.copy()
    for cell, ball in zip(cells, balls, strict=True):
        coefficients[:, cell] = system.zeros(len(coefficients))
        one = slice(cell, cell + 1)
        coefficients[0, one], error = system.split([arb(ball.mid())])
        widths[one] = system.up(system.upper([arb(ball.rad())]) + error)
    return Model(result.space, coefficients, widths)


def _series(name: str, ball: arb, length: int) -> list[arb]:
    """The first `length` Taylor coefficients at every point of the ball; NaN where there are none."""
    try:
        found = _OF_SERIES[name](arb_series([ball, 1], length)).coeffs()
    except ValueError:  # a quotient through 0
        found = [arb.nan()] * length
    return list(found[:length]) + [arb(0)] * (length - len(found))


def _last(name: str, ball: arb, degree: int) -> arb:
    """The Taylor coefficient of that degree at every point of the ball: a closed form, a recurrence, or Cauchy's bound.

    Where the derivative is analytic on a disc of radius R, |coefficient| <= max |derivative| / (degree R^(degree-1)).
    A square takes the disc's place, and the best of a few R is kept.
    """
    if name in _LAST:
        return _LAST[name](ball, degree)
    found = _series(name, ball, degree + 1)[degree].abs_upper()
    for radius in (arb(k) / 16 for k in (1, 2, 4, 8, 12, 16, 20)):
        square = acb(ball + radius * arb(0, 1), radius * arb(0, 1))
        bound = _steepness(name, square) / (degree * radius ** (degree - 1))
        found = bound if bound.is_finite() and not bound >= found else found
    return found


def _steepness(name: str, square: acb) -> arb:
    """A bound on the derivative's magnitude where it is analytic on the whole square; otherwise not finite."""
    match name:
        case "tan":
            return (1 / (square.cos() * square.cos())).abs_upper()
        case "tanh":
            return (1 / (square.cosh() * square.cosh())).abs_upper()
        case "arctan":
            return (1 / (1 + square * square)).abs_upper()
        case "erf":
            return 2 / arb.pi().sqrt() * (-square * square).exp().abs_upper()
    inside = 1 - square * square  # arcsin, arccos: analytic while this stays off the negative axis
    return 1 / inside.abs_lower().sqrt() if inside.real > 0 else arb.nan()


def _sinc(series: arb_series) -> arb_series:
    """sin(pi x) / (pi x): near 0 by its own series, of which what is left out is tiny at every degree."""
    if not abs(series[0]) <= 1:
        return series.sin_pi() / (arb.pi() * series)
    length = series.prec
    square, found = (arb.pi() * series) * (arb.pi() * series), arb_series([1], length)
    for k in range(SINC_TERMS, 0, -1):
        found = 1 - found * square / (2 * k * (2 * k + 1))
    return found + arb_series([arb(0, SINC_LEFT_OUT)] * length, length)


def _exp_pair(series: arb_series) -> tuple[arb_series, arb_series]:
    return series.exp(), (-series).exp()


_OF_SERIES: dict[str, Callable[[arb_series], arb_series]] = {
    "exp": lambda s: s.exp(),
    "log": lambda s: s.log(),
    "sqrt": lambda s: s.sqrt(),
    "sin": lambda s: s.sin(),
    "cos": lambda s: s.cos(),
    "tan": lambda s: s.tan(),
    "sinh": lambda s: (_exp_pair(s)[0] - _exp_pair(s)[1]) / 2,
    "cosh": lambda s: (_exp_pair(s)[0] + _exp_pair(s)[1]) / 2,
    "tanh": lambda s: 1 - 2 / ((2 * s).exp() + 1),
    "arctan": lambda s: s.atan(),
    "arcsin": lambda s: s.asin(),
    "arccos": lambda s: s.acos(),
    "erf": lambda s: s.erf(),
    "sinc": _sinc,
    "inverse": lambda s: 1 / s,
}
_LAST: dict[str, Callable[[arb, int], arb]] = {
    "exp": lambda x, n: x.exp() / arb(n).fac(),
    "sin": lambda x, n: (x + n * arb.pi() / 2).sin() / arb(n).fac(),
    "cos": lambda x, n: (x + n * arb.pi() / 2).cos() / arb(n).fac(),
    "sinh": lambda x, n: (x.cosh() if n % 2 else x.sinh()) / arb(n).fac(),
    "cosh": lambda x, n: (x.sinh() if n % 2 else x.cosh()) / arb(n).fac(),
    "log": lambda x, n: 1 / (n * x**n) if x > 0 else arb.nan(),
    "sqrt": lambda x, n: _half_choose(n) * x.sqrt() / x**n if x > 0 else arb.nan(),
    "sinc": lambda _, n: arb.pi() ** n / (arb(n).fac() * (n + 1)),  # of the integral of t^n cos(pi x t + n pi / 2)
    "inverse": lambda x, n: 1 / x ** (n + 1),
}


def _half_choose(n: int) -> arb:
    """The binomial coefficient (1/2 choose n)."""
    product = arb(1)
    for k in range(n):
        product = product * (1 - 2 * k) / (2 * (k + 1))
    return product


def enclose(outputs: Sequence[Node], columns: Sequence[Model], sides: Callable[[], Sides] | None = None) -> list[Model]:
    """Models of an expression graph's outputs from models of its variables; CertificateError for a strange node.

    Where a function has no series over a cell but a span, that is its model. The spans rest on the columns' `sides`:
    by default the models' own ends, which rounding may have moved past the cells'.
    """
    spans: list[Spans] = []
    space, cells = columns[0].space, len(columns[0].rest)

    def ranged(node: Node, found: Model) -> Model:
        lost = np.flatnonzero(~np.isfinite(space.system.ceiling(found.rest))).tolist()
        if lost and not spans:
            spans.append(Spans(sides_of(columns) if sides is None else sides()))
        balls = [(cell, spans[0].ball(node, cell)) for cell in lost]
        known = [(cell, ball) for cell, ball in balls if ball.is_finite()]
        return _constant_in(found, [cell for cell, _ in known], [ball for _, ball in known])

    def constant(ball: arb) -> Model:
        return space.constant(*space.system.split(np.full(cells, ball, dtype=object)))

    def visit(node: Node, found: list[Model]) -> Model:
        match node.operation, found:
            case "variable", []:
                return columns[int(node.value or 0)]
            case "constant", []:
                return constant(arb(float(node.value or 0.0)))
            case "pi", []:
                return constant(arb.pi())
            case "power", [inner] if abs(int(node.value or 0)) <= LARGEST_POWER:
                return power(inner, int(node.value or 0))
            case "absolute", [inner]:
                return inner.absolute()
            case "negative", [inner]:
                return -inner
            case name, [inner] if name in _OF_SERIES:
                return ranged(node, apply(name, inner))
            case name, [left, right] if name in _OF_PAIRS:
                return _OF_PAIRS[name](left, right)
        raise CertificateError(
            f"The checker does not know the operation {node.operation!r} with {len(found)} arguments.",
            expected=", ".join(sorted(_OF_SERIES | _OF_PAIRS)),
            found=f"{node.operation} {node.value!r}",
            fix="Write the target with these operations.",
        )

    try:
        models = walk(outputs, visit)
    except IndexError as error:
        raise CertificateError(
            "The expression uses a variable that the domain does not have.",
            expected=f"{len(columns)} variables",
            found="more",
            fix="Use the domain's coordinates.",
        ) from error
    return [models[id(node)] for node in outputs]


_OF_PAIRS: dict[str, Callable[[Model, Model], Model]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "divide": lambda a, b: a * apply("inverse", b),
    "maximum": lambda a, b: (a + b + (a - b).absolute()).scaled(0.5),
    "minimum": lambda a, b: (a + b - (a - b).absolute()).scaled(0.5),
}
