"""The checker's own reading of a proof along one polynomial P: that target and head hang on it alone (statement C.8).

The certificate names P, as an expression. Polynomials are FLINT's over the rationals, in which doubles are exact;
nothing of how the search found P is used. What is not shown raises a CertificateError, which says what.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from flint import arb, fmpq, fmpq_mpoly, fmpq_mpoly_ctx

from foreword.compiler.charts import Flat
from foreword.compiler.claim import Claim
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import Expression, Node, Nodes, expression_of, walk
from foreword.compiler.head import Head
from foreword.compiler.parser import parse_expression
from foreword.errors import CertificateError

DEGREE = 2
LONGEST_TEXT = 200_000  # characters of P; as of a traced target
LONGEST_NUMBER = 10_000  # bits of a coefficient; a file that names a longer one is none of ours
MOST_COLUMNS = 64
MOST_TERMS = 5_000_000  # of all scores


@dataclass(frozen=True)
class Line:
    """The claim over an interval that the one over the domain follows from, less `gap`."""

    claim: Claim
    gap: arb


def line_of(claim: Claim) -> Line | None:
    """The claim over u = P(x); None where the certificate's cells are those of the domain itself.

    CertificateError when it does not follow: P is no polynomial, target or head hang on something else, or the cells do
    not hold all values of P.
    """
    text = (claim.certificate.cover or {}).get("along")
    if text is None:
        return None
    domain, cover, expression = claim.domain, claim.cover, claim.expression
    if not isinstance(domain, Sphere | Cube) or cover is None or len(cover.knots) != 1 or expression is None:
        raise _refused("cells of one parameter, and a target's expression on a sphere or a cube", "others")
    if not isinstance(text, str) or domain.columns > MOST_COLUMNS:
        raise _refused(f"a polynomial of at most {MOST_COLUMNS} coordinates", repr(text)[:80])
    read = parse_expression(text, domain.columns, length_limit=LONGEST_TEXT)
    ring = _Ring(domain)
    along = ring.polynomials(read.outputs)[id(read.outputs[0])] if len(read.outputs) == 1 else None
    if along is None or along.is_constant():
        raise _refused("a polynomial of degree 1 or 2", text[:80])
    if not ring.is_held(along, cover):
        raise _refused("cells over all values of the polynomial", f"{cover.knots[0][0]:g} to {cover.knots[0][-1]:g}")
    outputs = ring.composed(expression.outputs, along)
    head, change = ring.head(claim, along)
    widest = max((arb(float(column.max())) - arb(float(column.min())) for column in head.values.T), default=arb(0))
    interval = Cube([(float(cover.knots[0][0]), float(cover.knots[0][-1]))])
    over = replace(claim, head=head, chart=Flat((0.0,), (1.0,)), domain=interval, expression=outputs, target=None)
    return Line(over, (widest * (arb(change) / 2).tanh()).upper())


class _Ring:
    """The rational polynomials of a domain's coordinates, of degree 2 at most; on a sphere |x|^2 is 1."""

    def __init__(self, domain: Sphere | Cube) -> None:
        self.domain = domain
        self.context = fmpq_mpoly_ctx.get(("x", domain.columns), "lex")
        self.variables = self.context.gens()

    def constant(self, value: float) -> fmpq_mpoly:
        """A double, exactly."""
        return self.context.constant(_exact(value))

    def polynomials(self, nodes: Sequence[Node]) -> dict[int, fmpq_mpoly | None]:
        """Each node's polynomial by `id`; None where it is none of these."""

        def visit(node: Node, given: list[fmpq_mpoly | None]) -> fmpq_mpoly | None:
            arguments = [argument for argument in given if argument is not None]
            found = self._of(node, arguments) if len(arguments) == len(given) else None
            return None if found is None else self._reduced(found)

        return walk(nodes, visit)

    def _of(self, node: Node, given: list[fmpq_mpoly]) -> fmpq_mpoly | None:
        match node.operation, given:
            case "variable", []:
                return self.variables[int(node.value or 0)]
            case "constant", [] if math.isfinite(node.value or 0.0):
                return self.constant(float(node.value or 0.0))
            case "add", [a, b]:
                return a + b
            case "subtract", [a, b]:
                return a - b
            case "negative", [a]:
                return -a
            case "multiply", [a, b] if _degree(a) + _degree(b) <= DEGREE:
                return a * b
            case "divide", [a, b] if b.is_constant() and not b.is_zero():
                return a / b.leading_coefficient()
            case "power", [a] if node.value == DEGREE and 2 * _degree(a) <= DEGREE:
                return a * a
        return None

    def _reduced(self, found: fmpq_mpoly) -> fmpq_mpoly | None:
        if isinstance(self.domain, Sphere):
            *others, last = self.variables
            square = found.to_dict().get((0,) * len(others) + (2,), fmpq(0))
            found = found - square * (last * last + sum((one * one for one in others), self.constant(-1.0)))
        if _degree(found) > DEGREE:
            return None
        bits = [max(part.p.bit_length(), part.q.bit_length()) for part in found.coeffs()]
        return None if max(bits, default=0) > LONGEST_NUMBER else found

    def composed(self, outputs: Sequence[Node], along: fmpq_mpoly) -> Expression:
        """f over u = P: every node that is a P + b, a and b doubles, is that of u."""
        nodes, known = Nodes(), self.polynomials(outputs)

        def visit(node: Node, given: list[Node | None]) -> Node | None:
            told = self._multiple(known[id(node)], along)
            if told is not None:
                scaled = nodes("multiply", nodes.constant(told[0]), nodes("variable", value=0))
                return nodes("add", scaled, nodes.constant(told[1]))
            if node.operation == "variable" or any(argument is None for argument in given):
                return None
            return nodes(node.operation, *(argument for argument in given if argument is not None), value=node.value)

        made = walk(outputs, visit)
        found = [made[id(output)] for output in outputs]
        if any(node is None for node in found):
            raise _refused("a target that hangs on the named polynomial alone", "one that hangs on more")
        return expression_of([node for node in found if node is not None], 1)

    def _multiple(self, found: fmpq_mpoly | None, along: fmpq_mpoly) -> tuple[float, float] | None:
        if found is None or found.is_constant():
            return None
        lead, coefficient = next((m, c) for m, c in along.to_dict().items() if any(m))
        factor = found.to_dict().get(lead, fmpq(0)) / coefficient
        left = found - factor * along
        shift = left.to_dict().get((0,) * len(lead), fmpq(0))
        if factor == 0 or not left.is_constant() or any(_exact(_nearest(part)) != part for part in (factor, shift)):
            return None
        return _nearest(factor), _nearest(shift)

    def head(self, claim: Claim, along: fmpq_mpoly) -> tuple[Head, fmpq]:
        """The head over u with scores a P + b, a and b doubles, and by how much a score of the real one may differ."""
        nodes = claim.chart.expressions(self.domain.columns)
        known = self.polynomials(nodes)
        queries = [known[id(node)] for node in nodes]
        told = [query for query in queries if query is not None]
        if len(told) < len(queries) or claim.head.keys.size * sum(len(query) for query in told) > MOST_TERMS:
            raise _refused("a chart of polynomials, and a head that is not too long", "others")
        lead, coefficient = max(
            ((m, c) for m, c in along.to_dict().items() if any(m)), key=lambda term: abs(term[1]) * self._reach(term[0])
        )
        slopes, shifts, change = [], [], fmpq(0)
        for key, bias in zip(claim.head.keys.tolist(), claim.head.biases.tolist(), strict=True):
            score = sum((_exact(part) * query for part, query in zip(key, told, strict=True)), self.constant(bias))
            slopes.append(_nearest(score.to_dict().get(lead, fmpq(0)) / coefficient))
            score = score - _exact(slopes[-1]) * along
            shifts.append(_nearest(score.to_dict().get((0,) * len(lead), fmpq(0))))
            left = (score - self.constant(shifts[-1])).to_dict()
            change = max(change, sum((abs(part) * self._reach(m) for m, part in left.items()), fmpq(0)))
        return Head(np.array(slopes)[:, None], np.array(shifts), claim.head.values), change

    def is_held(self, along: fmpq_mpoly, cover: Cover) -> bool:
        """Whether the cover's only parameter takes all values of P on the domain."""
        parts = along.to_dict()
        columns = range(self.domain.columns)
        unit = [tuple(int(column == other) for other in columns) for column in columns]
        low, high = (_exact(float(end)) for end in cover.knots[0][[0, -1]])
        middle = parts.pop((0,) * len(unit), fmpq(0))
        squares = [parts.pop(tuple(2 * entry for entry in one), fmpq(0)) for one in unit]
        slopes = [parts.pop(one, fmpq(0)) for one in unit]
        if parts:  # products of two coordinates
            return False
        if isinstance(self.domain, Sphere):
            reach = sum((slope * slope for slope in slopes), fmpq(0))
            ends = (middle - low, high - middle)
            return not any(squares) and all(end >= 0 and end * end >= reach for end in ends)
        least = greatest = middle
        for slope, square, side in zip(slopes, squares, self.domain.sides, strict=True):
            places = [_exact(end) for end in side]
            if square != 0:
                places.append(min(max(-slope / (2 * square), places[0]), places[1]))
            values = [(slope + square * place) * place for place in places]
            least, greatest = least + min(values), greatest + max(values)
        return bool(low <= least and greatest <= high)

    def _reach(self, monomial: Sequence[int]) -> fmpq:
        """The largest size of a product of coordinates, or more."""
        found = fmpq(1)
        if isinstance(self.domain, Cube):
            for power, side in zip(monomial, self.domain.sides, strict=True):
                found *= max(abs(_exact(end)) for end in side) ** int(power)
        return found


def _degree(found: fmpq_mpoly) -> int:
    return max((sum(int(power) for power in monomial) for monomial in found.to_dict()), default=0)


def _exact(value: float) -> fmpq:
    return fmpq(*float(value).as_integer_ratio())


def _nearest(value: fmpq) -> float:
    """The double nearest to a fraction, as Python divides integers."""
    return int(value.p) / int(value.q)


def _refused(expected: str, found: str) -> CertificateError:
    return CertificateError(
        "The cells are not those of this claim.",
        expected=expected,
        found=found,
        fix="Prove the prefix again; the certificate is written with its cells.",
    )
