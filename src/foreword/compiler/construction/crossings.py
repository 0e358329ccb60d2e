"""Kinks where something that varies along one direction or one distance vanishes: |x^2 - 0.3|, max(x^2 + y^2, 0.2).

The argument of an absolute value, or the difference of a maximum's, is then a function on an interval, whose changes of
sign are bracketed at even points and found by Brent's method. Each is a hyperplane, or where a square of a distance has
one value. What is affine needs none of this (`kinks.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from flint import fmpq, fmpq_mpoly_ctx
from scipy.optimize import brentq

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Flat, Paraboloid, chart_of
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import Expression, Node, ordered
from foreword.compiler.profile import DEGREE, Polynomial, Polynomials, Profile, polynomials

EVEN = 4_001  # points between which a sign may change once
MOST_COLUMNS = 32  # of a polynomial that is factored
MOST = 24  # kinks of one argument: beyond, they are too many for gates
CLOSEST, PROJECTIONS = 1e-9, 4  # of P's range, how near its place points are taken; and the steps that take them there
ROUNDED = 1e-12  # of the interval: how near a root is found


@dataclass(frozen=True)
class Round:
    """P(x) = `place`, P being no affine polynomial: <`slopes`, q> + `shift` = 0 over the queries of a paraboloid.

    `gradient` are P's coefficients `(column, 2)`: of each coordinate and of its square.
    """

    gradient: Floats
    place: float
    slopes: Floats
    shift: float

    def near(self, domain: Cube, points: Floats, rng: np.random.Generator) -> Floats:
        """Points `(batch, column)`, every second one moved to where P is nearly its place."""
        found = np.array(points)
        moved = found[1::2]
        size = np.exp(rng.uniform(math.log(CLOSEST), 0.0, len(moved))) * rng.choice([-1.0, 1.0], len(moved))
        wanted = self.place + size * float(np.ptp(self._values(points)))
        for _ in range(PROJECTIONS):
            along = self.gradient[:, 0] + 2 * self.gradient[:, 1] * moved
            steps = (wanted - self._values(moved)) / np.maximum((along**2).sum(axis=1), 1e-12)
            moved = domain.nearest(moved + steps[:, None] * along)
        found[1::2] = moved
        return found

    def _values(self, points: Floats) -> Floats:
        found: Floats = points @ self.gradient[:, 0] + points**2 @ self.gradient[:, 1]
        return found


def crossings(outputs: Sequence[Node], domain: Sphere | Cube) -> Iterator[tuple[Floats, float]]:
    """Each hyperplane as (unit normal, offset), in the order of the graph; the same one may come again."""
    for factor, known in _turning(outputs, domain):
        yield from _planes(known[id(factor)] or {}, domain)
        for normal, low, high, function in _directions(factor, domain, known):
            found = _zeros(function, low, high)
            if len(found) <= MOST:
                yield from ((normal, zero) for zero in found)


def _planes(polynomial: Polynomial, domain: Sphere | Cube) -> Iterator[tuple[Floats, float]]:
    """Of a polynomial that is a product of two affine ones, as x y - x is, where these vanish."""
    count = domain.columns
    if count > MOST_COLUMNS or max(map(len, polynomial), default=0) < DEGREE:
        return
    context = fmpq_mpoly_ctx.get(("x", count), "lex")
    powers = {tuple(m.count(c) for c in range(count)): fmpq(*part.as_integer_ratio()) for m, part in polynomial.items()}
    for factor, power in context.from_dict(powers).factor()[1]:
        if power != 1 or factor.total_degree() > 1:
            continue
        slopes, constant = np.zeros(count), 0.0
        for monomial, part in factor.to_dict().items():
            number = int(part.p) / int(part.q)
            if any(monomial):
                slopes[monomial.index(1)] = number
            else:
                constant = number
        length = float(np.linalg.norm(slopes))
        yield slopes / length, -constant / length


def rounds(outputs: Sequence[Node], domain: Sphere | Cube) -> Iterator[Round]:
    """The kinks where a square of a distance, in units of half the cube's sides, has one value."""
    flat = chart_of(domain)
    if not isinstance(domain, Cube) or not isinstance(flat, Flat):
        return
    for factor, known in _turning(outputs, domain):
        expression = Expression((factor,), ("",) * domain.columns, "")
        profile = Profile.of(expression, domain, known)
        over = None if profile is None else profile.over_queries()
        if profile is None or over is None or over[0] != Paraboloid.of(flat):
            continue
        _, slopes, shift = over
        columns, inner = range(domain.columns), profile.expression
        gradient = np.array([[float(profile.along.get(m, 0)) for m in ((c,), (c, c))] for c in columns])
        size = float(np.linalg.norm(gradient[:, 0] + 2 * gradient[:, 1] * domain.box.T, axis=1).max())
        constant = float(profile.along.get((), 0))

        def along(places: Floats, inner: Expression = inner) -> Floats:
            return inner.evaluate(places[:, None])[:, 0]

        found = _zeros(along, *profile.span.sides[0])
        for zero in found if len(found) <= MOST else []:
            yield Round(gradient, zero - constant, slopes / size, (shift - zero) / size)


def _turning(outputs: Sequence[Node], domain: Sphere | Cube) -> Iterator[tuple[Node, Polynomials]]:
    """What vanishes where an absolute value or an extreme turns, factor by factor; and the polynomials among nodes."""
    arguments = (node.arguments for node in ordered(outputs) if node.operation in ("absolute", "maximum", "minimum"))
    found = [each for given in arguments for each in _factors(given[0] if len(given) == 1 else Node("subtract", given))]
    known = polynomials(found, domain)
    yield from ((factor, known) for factor in found)


def _factors(node: Node) -> Iterator[Node]:
    """What a product or quotient changes its sign with; less a constant 0, as max(x y, 0) subtracts."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        match node.operation, node.arguments:
            case ("multiply", (one, other)):
                waiting += [other, one]
            case ("subtract", (one, other)) if _is_zero(other) or _is_zero(one):
                waiting.append(other if _is_zero(one) else one)
            case ("negative", (one,)) | ("divide", (one, _)):
                waiting.append(one)
            case _:
                yield node


def _is_zero(node: Node) -> bool:
    return node.operation == "constant" and node.value == 0


def _directions(
    argument: Node, domain: Sphere | Cube, known: Polynomials
) -> Iterator[tuple[Floats, float, float, Callable[[Floats], Floats]]]:
    """The unit direction that an argument varies along, if it is one: from where to where, and the argument there."""
    columns = {int(node.value or 0) for node in ordered([argument]) if node.operation == "variable"}
    expression = Expression((argument,), ("",) * domain.columns, "")
    if len(columns) == 1:
        axis = columns.pop()
        low, high = domain.box[axis].tolist() if isinstance(domain, Cube) else (-1.0, 1.0)
        start = np.zeros(domain.columns)

        def along(places: Floats) -> Floats:
            points = np.tile(start, (len(places), 1))
            points[:, axis] = places
            return expression.evaluate(points)[:, 0]

        yield np.eye(domain.columns)[axis], low, high, along
        return
    profile = Profile.of(expression, domain, known)
    if profile is None or any(len(monomial) > 1 for monomial in profile.along):
        return
    slopes = np.array([float(profile.along.get((column,), 0)) for column in range(domain.columns)])
    length, shift, inner = float(np.linalg.norm(slopes)), float(profile.along.get((), 0)), profile.expression
    low, high = ((end - shift) / length for end in profile.span.sides[0])
    yield slopes / length, low, high, lambda places: inner.evaluate((length * places + shift)[:, None])[:, 0]


def _zeros(function: Callable[[Floats], Floats], low: float, high: float) -> list[float]:
    """Where the function changes its sign between the ends, apart from them."""
    places = np.linspace(low, high, EVEN)
    signs = np.sign(function(places))
    found = [float(places[at]) for at in range(1, EVEN - 1) if signs[at] == 0 and signs[at - 1] * signs[at + 1] < 0]
    for at in np.flatnonzero(signs[:-1] * signs[1:] < 0):
        ends = float(places[at]), float(places[at + 1])
        root = brentq(lambda place: float(function(np.array([place]))[0]), *ends, xtol=ROUNDED * (high - low))
        found.append(float(root))
    return sorted(found)
