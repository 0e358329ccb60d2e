"""Functions that vary along one polynomial of the coordinates: f(x) = F(P(x)), and heads that do (statement C.8).

P is affine where f is a plane wave or bends along a hyperplane, and a square of a distance where f is a ring, a cone or
a bump about a point. A head whose keys lie along P, up to rounding, has the scores a P(x) + b: it is one over u = P(x),
and a bound on an interval is one on the domain, whatever its dimension. Cells of a plane that follow an oblique kink
are hundreds of thousands; of the interval, dozens.

Whether all of f hangs on P is read off its graph, in exact arithmetic: doubles are fractions. What rounding leaves over
in the scores is bounded and told. The checker finds the same with code of its own (`composed.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, Flat, Paraboloid, chart_of
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.expression import Expression, Node, Nodes, expression_of, ordered, walk
from foreword.compiler.head import Head

Monomial = tuple[int, ...]  # the columns that are multiplied, in rising order: none for the constant, two at most
Polynomial = dict[Monomial, Fraction]
Polynomials = dict[int, Polynomial | None]  # by the `id` of a node; None for what is none

DEGREE = 2
CANDIDATES = 8  # polynomials that are tried: a function of several directions has many, and hangs on none alone
LONGEST = 4096  # bits of a coefficient: beyond, exact arithmetic takes too long
MOST_COLUMNS = 64
MOST_PRODUCTS = 2_000_000  # of fractions, for a head
UP = 1 + 1e-9  # outward: covers the rounding of a few operations
HALVINGS = 60  # until a point has the wanted P


@dataclass(frozen=True)
class Profile:
    """f(x) = F(P(x)) on a domain. `along` is P, `text` P as an expression, `expression` F, `span` all values of P."""

    domain: Sphere | Cube
    along: Polynomial
    text: str
    expression: Expression
    span: Cube

    @classmethod
    def of(cls, expression: Expression | None, domain: Domain, known: Polynomials | None = None) -> Profile | None:
        """The one of an expression of two coordinates or more; None where it hangs on no such polynomial alone.

        `known` is what `polynomials` says of its nodes, where that was asked before.

        >>> from foreword.compiler.parser import parse_expression
        >>> found = Profile.of(parse_expression("exp(-((x - 1)**2 + y**2))", 2), Cube([(-1, 1)] * 2))
        >>> found.text, found.expression.text, str(found.span)
        ('-((x - 1)**2 + y**2)', 'exp(x)', '[-5, 0]')
        """
        if expression is None or isinstance(domain, FiniteSet) or domain.dimension < 2 or domain.columns > MOST_COLUMNS:
            return None
        known = polynomials(expression.outputs, domain) if known is None else known
        for node, along in _candidates(expression.outputs, known, domain):
            outputs = _composed(expression.outputs, known, along)
            span = _span(along, domain)
            if outputs is not None and span is not None:
                text = expression_of([node], domain.columns).text
                return cls(domain, along, text, expression_of(outputs, 1), span)
        return None

    def head(self, head: Head, chart: Chart) -> tuple[Head, float] | None:
        """The head over u, and a bound on what its outputs differ by; None where a score hangs on something else.

        Scores differ by little where keys are P's up to rounding, and by much where they are not.
        """
        nodes = chart.expressions(self.domain.columns)
        known = polynomials(nodes, self.domain)
        told = [query for query in (known[id(node)] for node in nodes) if query is not None]
        if len(told) < len(nodes):
            return None
        monomials = sorted({(), *self.along, *(monomial for query in told for monomial in query)})
        if head.keys.size * len(monomials) > MOST_PRODUCTS:
            return None
        table = np.array([[query.get(monomial, Fraction(0)) for monomial in monomials] for query in told], dtype=object)
        scores = _fractions(head.keys) @ table
        constant = monomials.index(())
        scores[:, constant] += _fractions(head.biases)
        along = np.array([self.along.get(monomial, Fraction(0)) for monomial in monomials], dtype=object)
        reach = [_reach(monomial, self.domain) for monomial in monomials]
        sizes = [
            abs(self.along.get(monomial, Fraction(0))) * far for monomial, far in zip(monomials, reach, strict=True)
        ]
        lead = max((i for i in range(len(monomials)) if i != constant), key=sizes.__getitem__)
        slopes = np.array([_double(part / along[lead]) for part in scores[:, lead]])
        if not np.isfinite(slopes).all():
            return None
        scores = scores - np.outer(_fractions(slopes), along)
        biases = np.array([_double(part) for part in scores[:, constant]])
        if not np.isfinite(biases).all():
            return None
        scores[:, constant] -= _fractions(biases)
        left = max(sum(abs(part) * far for part, far in zip(row, reach, strict=True)) for row in scores)
        widest = float(np.ptp(head.values, axis=0).max(initial=0.0))
        return Head(slopes[:, None], biases, head.values), widest * _double(left) / 2 * UP  # tanh(eta / 2) <= eta / 2

    def over_queries(self) -> tuple[Chart, Floats, float] | None:
        """(chart, slopes, shift) with P(x) = <slopes, q> + shift for the queries q of the chart (statement B.4).

        That is a paraboloid where P has squares; None where they are of both signs.
        """
        columns, flat = range(self.domain.columns), chart_of(self.domain)
        squares = np.array([float(self.along.get((column, column), 0)) for column in columns])
        slopes = np.array([float(self.along.get((column,), 0)) for column in columns])
        constant = float(self.along.get((), 0))
        if not isinstance(flat, Flat):
            return flat, slopes, constant
        middle, half = np.array(flat.middle), np.array(flat.half)
        constant += float(slopes @ middle + squares @ middle**2)
        slopes = half * (slopes + 2 * squares * middle)
        if not squares.any():
            return flat, slopes, constant
        sign = 1.0 if squares.max() > 0 else -1.0
        if (squares * sign < 0).any():
            return None
        arms = np.sqrt(np.abs(squares)) * half
        rows = np.diag(arms / arms.max())[arms > 0]
        chart = Paraboloid(flat, tuple(map(tuple, rows.tolist())), (0.0,) * len(rows))
        scale = sign * float(arms.max()) ** 2 * len(rows) / 2  # the squares are that times (q + 1), q the last query
        return chart, np.append(slopes, scale), constant + scale

    def point(self, place: float) -> Floats:
        """A point of the domain `(1, column)` at which P is `place`, nearly; where P is least or greatest beyond that.

        On the way from where P is least to where it is greatest it takes every value between.
        """
        least, greatest = _ends(self.along, self.domain)
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            value = self.at(_between(self.domain, least, greatest, middle))
            low, high = (middle, high) if value < place else (low, middle)
        return _between(self.domain, least, greatest, high)[None]

    def at(self, point: Floats) -> float:
        """P at a point `(column,)`."""
        return math.fsum(float(part) * math.prod(point[list(columns)]) for columns, part in self.along.items())


def polynomials(nodes: Sequence[Node], domain: Sphere | Cube) -> Polynomials:
    """By `id`, each node as a polynomial of degree 2 at most; None for what is none, or of too long coefficients.

    On a sphere the last coordinate's square is 1 less the others'.
    """
    last = domain.dimension if isinstance(domain, Sphere) else -1

    def visit(node: Node, arguments: list[Polynomial | None]) -> Polynomial | None:
        given = [argument for argument in arguments if argument is not None]
        found = _combined(node, given) if len(given) == len(arguments) else None
        if found is None:
            return None
        if (square := found.pop((last, last), None)) is not None:
            others: Polynomial = {(column, column): -square for column in range(last)}
            found = _sum(found, {(): square, **others}, 1)
        found = {monomial: part for monomial, part in found.items() if part}
        parts = (number for part in found.values() for number in part.as_integer_ratio())
        return None if any(number.bit_length() > LONGEST for number in parts) else found

    return walk(nodes, visit)


def _combined(node: Node, given: list[Polynomial]) -> Polynomial | None:
    match node.operation:
        case "variable":
            return {(int(node.value or 0),): Fraction(1)}
        case "constant" if math.isfinite(node.value or 0.0):
            return {(): Fraction(node.value or 0.0)}
        case "add":
            return _sum(given[0], given[1], 1)
        case "subtract":
            return _sum(given[0], given[1], -1)
        case "negative":
            return _sum({}, given[0], -1)
        case "multiply":
            return _product(given[0], given[1])
        case "divide" if list(given[1]) == [()]:
            return _product(given[0], {(): 1 / given[1][()]})
        case "power" if int(node.value or 0) == DEGREE:
            return _product(given[0], given[0])
    return None


def _sum(one: Polynomial, other: Polynomial, sign: int) -> Polynomial:
    return {m: one.get(m, Fraction(0)) + sign * other.get(m, Fraction(0)) for m in {**one, **other}}


def _product(one: Polynomial, other: Polynomial) -> Polynomial | None:
    found: Polynomial = {}
    for left, a in one.items():
        for right, b in other.items():
            monomial = tuple(sorted(left + right))
            if len(monomial) > DEGREE:
                return None
            found[monomial] = found.get(monomial, Fraction(0)) + a * b
    return found


def _candidates(
    outputs: Sequence[Node], known: Polynomials, domain: Sphere | Cube
) -> Iterator[tuple[Node, Polynomial]]:
    """Different ones, larger ones first: of two coordinates at least, and on a sphere, affine."""
    found: list[tuple[Node, Polynomial]] = []
    for node in reversed(list(ordered(outputs))):
        along = known[id(node)] or {}
        columns = {column for monomial in along for column in monomial}
        is_affine = all(len(monomial) < DEGREE for monomial in along)
        is_one = is_affine and bool(columns) if isinstance(domain, Sphere) else len(columns) > 1
        if is_one and len(found) < CANDIDATES and not any(_multiple(along, other) for _, other in found):
            found.append((node, along))
    yield from found


def _multiple(one: Polynomial, other: Polynomial) -> tuple[float, float] | None:
    """(a, b) with one = a other + b, and a not 0; None where there are none that are doubles."""
    monomials = one.keys() - {()}
    if not monomials or monomials != other.keys() - {()}:
        return None
    first = next(iter(monomials))
    factor = one[first] / other[first]
    if any(one[monomial] != factor * other[monomial] for monomial in monomials):
        return None
    shift = one.get((), Fraction(0)) - factor * other.get((), Fraction(0))
    told = _double(factor), _double(shift)
    return told if told[0] == factor and told[1] == shift else None  # fractions equal no infinity


def _hangs_on(outputs: Sequence[Node], known: Polynomials, along: Polynomial) -> bool:
    """Whether no way from the outputs to a variable misses P; told at the first that does."""
    waiting, seen = list(outputs), set[int]()
    while waiting:
        node = waiting.pop()
        if id(node) in seen or _multiple(known[id(node)] or {}, along) is not None:
            continue
        if node.operation == "variable":
            return False
        seen.add(id(node))
        waiting.extend(node.arguments)
    return True


def _composed(outputs: Sequence[Node], known: Polynomials, along: Polynomial) -> list[Node] | None:
    """The outputs as graphs over u = P; None where one hangs on something else, or a number is no double."""
    if not _hangs_on(outputs, known, along):
        return None
    nodes = Nodes()
    u = nodes("variable", value=0)

    def visit(node: Node, arguments: list[Node | None]) -> Node | None:
        told = _multiple(known[id(node)] or {}, along)
        if told is not None:
            factor, shift = told
            scaled = u if factor == 1 else nodes("multiply", nodes.constant(factor), u)
            return nodes("add", scaled, nodes.constant(shift)) if shift else scaled
        given = [argument for argument in arguments if argument is not None]
        if node.operation == "variable" or len(given) < len(arguments):
            return None
        return nodes(node.operation, *given, value=node.value)

    made = walk(outputs, visit)
    found = [made[id(output)] for output in outputs]
    return None if any(node is None for node in found) else found


def _span(along: Polynomial, domain: Sphere | Cube) -> Cube | None:
    """All values of P: an interval whose ends are doubles, moved outward where P's are none."""
    if isinstance(domain, Sphere):
        middle = along.get((), Fraction(0))
        length = _root_above(sum((part**2 for monomial, part in along.items() if monomial), Fraction(0)))
        least, greatest = middle - length, middle + length
    elif any(len(set(monomial)) > 1 for monomial in along):
        return None
    else:
        least, greatest = (sum((end[at] for end in _sides(along, domain)), along.get((), Fraction(0))) for at in (0, 2))
    low, high = _double(least), _double(greatest)
    if not math.isfinite(high - low):
        return None
    low = low if Fraction(low) <= least else math.nextafter(low, -math.inf)
    high = high if Fraction(high) >= greatest else math.nextafter(high, math.inf)
    return Cube([(low, high)]) if low < high else None


def _sides(along: Polynomial, domain: Cube) -> Iterator[tuple[Fraction, Fraction, Fraction, Fraction]]:
    """For each coordinate x of a cube: the least and the greatest part of P that is its own, each with its place."""
    for column, ends in enumerate(domain.sides):
        slope, square = along.get((column,), Fraction(0)), along.get((column, column), Fraction(0))
        places = [Fraction(end) for end in ends]
        if square and places[0] < (turn := -slope / (2 * square)) < places[1]:
            places.append(turn)
        values = [(slope * place + square * place**2, place) for place in places]
        yield (*min(values), *max(values))


def _ends(along: Polynomial, domain: Sphere | Cube) -> tuple[Floats, Floats]:
    """Where P is least and where it is greatest, `(column,)` each."""
    if isinstance(domain, Cube):
        sides = [[float(number) for number in side] for side in _sides(along, domain)]
        return np.array([side[1] for side in sides]), np.array([side[3] for side in sides])
    slopes = np.array([float(along.get((column,), 0)) for column in range(domain.columns)])
    greatest: Floats = slopes / np.linalg.norm(slopes)
    return -greatest, greatest


def _between(domain: Sphere | Cube, least: Floats, greatest: Floats, share: float) -> Floats:
    """The point `(column,)` so far on a way from one to the other."""
    if isinstance(domain, Cube):
        found: Floats = domain.nearest(least + share * (greatest - least))
        return found
    across = np.linalg.svd(greatest[None])[2][1]
    angle = math.pi * share
    on: Floats = domain.nearest((-math.cos(angle) * greatest + math.sin(angle) * across)[None])[0]
    return on


def _double(number: Fraction) -> float:
    """The nearest double; infinite where there is none."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _root_above(square: Fraction) -> Fraction:
    """A number at least as large as the root, and equal to it where that is a double."""
    root = math.sqrt(_double(square))
    while math.isfinite(root) and Fraction(root) ** 2 < square:
        root = math.nextafter(root, math.inf)
    return Fraction(root) if math.isfinite(root) else square + 1


def _reach(monomial: Monomial, domain: Sphere | Cube) -> Fraction:
    """The largest size of a product of coordinates, or more."""
    if isinstance(domain, Sphere):
        return Fraction(1)
    sizes = [max(abs(Fraction(end)) for end in side) for side in domain.sides]
    return math.prod((sizes[column] for column in monomial), start=Fraction(1))


def _fractions(numbers: Floats) -> NDArray[np.object_]:
    """The doubles as fractions, an array of the same shape."""
    return np.array([Fraction(number) for number in numbers.ravel().tolist()], dtype=object).reshape(numbers.shape)
