"""What a certificate is about, and what of its claim needs no analysis: that parts belong together and numbers agree.

Digests, sums, the order of bound and tolerance, and that the cells cover. It computes nothing about the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from flint import arb

from foreword.certificate import Certificate, Verdict
from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.expression import Expression
from foreword.compiler.head import Head

SUM_SLACK = 2.0**-48  # a float64 sum of a handful of terms is nearer than this to the exact one


@dataclass
class Findings:
    """What is wrong, what could not be checked, and how many cells were examined."""

    wrong: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    cells: int = 0


@dataclass(frozen=True, eq=False)
class Claim:
    """Everything that a certificate is about. `samples` `(count, output)` are the values on a finite domain.

    `function` is the target itself, where somebody still has it.
    """

    head: Head
    chart: Chart
    domain: Domain
    certificate: Certificate
    expression: Expression | None = None
    cover: Cover | None = None
    samples: Floats | None = None
    function: Callable[[Floats], Floats] | None = None


def compare(claim: Claim, found: Findings) -> None:
    """What needs no analysis: the parts belong together, and the numbers agree with each other."""
    told, head, expression = claim.certificate, claim.head, claim.expression
    arrays = (head.keys, head.biases, head.values)
    if not all(np.isfinite(array).all() for array in arrays):
        found.wrong.append("the head has numbers that are not finite")
        return
    text = None if expression is None else expression.text
    terms = told.terms
    numbers = [told.bound, told.seen, *terms.values()]
    in_bound = [terms.get(name, math.nan) for name in ("approximation", "context", "rounding_float64")]
    reached = told.tolerance is None or told.bound <= told.tolerance
    differences = {
        "the seal does not fit: a number was changed after the certificate was made": told.seal == told.digest,
        "the head is not the one that the certificate is for": told.head == head.digest,
        "the domain is not the one that the certificate is for": told.domain == claim.domain.as_dict(),
        "the expression is not the one that the certificate is for": told.target.get("expression") == text,
        "a bound or term is missing, negative or not a number": all(number >= 0 for number in numbers + in_bound),
        "the bound is not the sum of its terms": math.fsum(in_bound) <= told.bound * (1 + SUM_SLACK)
        and told.bound <= math.fsum(in_bound) * (1 + SUM_SLACK),
        "an error was seen that exceeds the bound": told.seen <= told.bound,
        "the tolerance is not a positive number": told.tolerance is None or told.tolerance > 0,
        f"the verdict {told.verdict!s} does not follow from bound and tolerance": {
            Verdict.PROVED: reached,
            Verdict.NOT_REACHED: told.tolerance is None or not reached,
            Verdict.ASSUMPTION_UNVERIFIED: True,
        }[told.verdict],
    }
    found.wrong += [reason for reason, is_so in differences.items() if not is_so]
    if claim.cover is not None or told.cover is not None:
        _compare_cover(claim, found)


def _compare_cover(claim: Claim, found: Findings) -> None:
    told, cover = claim.certificate.cover, claim.cover
    if told is None or cover is None:
        found.wrong.append("the cells and what the certificate says of them are not both there")
        return
    order = told.get("order")
    if not (isinstance(order, int) and not isinstance(order, bool) and 1 <= order <= 64):
        found.wrong.append(f"the order {order!r} is not an integer from 1 to 64")
    if told.get("digest") != cover.digest or told.get("cells") != len(cover):
        found.wrong.append("the cells are not those that the certificate is for")
    wanted = claim.domain.columns if cover.frame is not None else None
    if wanted is not None and (
        not isinstance(claim.domain, Sphere) or cover.frame is None or len(cover.frame) != wanted
    ):
        found.wrong.append("the cells' frame does not fit the domain")
    if len(cover.knots) != claim.domain.dimension or not _reaches(cover, claim.domain):
        found.wrong.append("the cells leave out a margin of the domain")
    elif hole := cover.find_hole():
        found.wrong.append(f"the cells leave a hole: {hole}")


def _reaches(cover: Cover, domain: Domain) -> bool:
    """Whether the cover's box holds the whole of the domain's."""
    match domain:
        case Sphere():
            spans = [arb.pi() / 2] * (domain.dimension - 1) + [arb.pi()]
            ends = zip(cover.knots, spans, strict=True)
            return all(arb(float(knots[0])) <= -span and arb(float(knots[-1])) >= span for knots, span in ends)
        case Cube():
            pairs = zip(cover.knots, domain.sides, strict=True)
            return all(knots[0] <= low and knots[-1] >= high for knots, (low, high) in pairs)
    return False
