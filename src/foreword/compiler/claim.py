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
from foreword.compiler.declared import Declared
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.expression import Expression
from foreword.compiler.head import Head
from foreword.compiler.target import Target

SUM_SLACK = 2.0**-48  # a float64 sum of a handful of terms is nearer than this to the exact one


@dataclass(frozen=True)
class Examined:
    """One line of a check: `what`, what the certificate says of it, what was `found`; `holds` is None if unchecked."""

    what: str
    told: str
    found: str
    holds: bool | None


@dataclass
class Findings:
    """What is wrong, what could not be checked, how many cells were examined, and the lines of the check."""

    wrong: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    cells: int = 0
    lines: list[Examined] = field(default_factory=list)

    def examine(self, what: str, told: str, work: Callable[[], str | None]) -> None:
        """Do `work`, and add its line: it holds unless the work finds something wrong or unchecked, else it says so."""
        wrong, unchecked = len(self.wrong), len(self.unchecked)
        found = work()
        reasons = [*self.wrong[wrong:], *self.unchecked[unchecked:]]
        holds = False if len(self.wrong) > wrong else None if reasons else True
        self.lines.append(Examined(what, told, "; ".join(reasons) or found or "", holds))


@dataclass(frozen=True, eq=False)
class Claim:
    """Everything that a certificate is about. `samples` `(count, output)` are the values on a finite domain.

    `target` is the target itself, where somebody still has it.
    """

    head: Head
    chart: Chart
    domain: Domain
    certificate: Certificate
    expression: Expression | None = None
    cover: Cover | None = None
    samples: Floats | None = None
    target: Target | None = None

    @property
    def declared(self) -> Declared | None:
        """What the target's caller says of it, where it is at hand and no expression."""
        return None if self.expression is not None or self.target is None else Declared(self.target)


def compare(claim: Claim, found: Findings) -> None:
    """What needs no analysis: the parts belong together, and the numbers agree with each other.

    Cells along a polynomial of the coordinates (`along`) are those of an interval, of which `composed.py` asks whether
    it holds all values of that.
    """
    head = claim.head
    if not all(np.isfinite(array).all() for array in (head.keys, head.biases, head.values)):
        found.wrong.append("the head has numbers that are not finite")
        return
    told = claim.certificate
    found.examine("parts", f"seal {told.seal[:12]}", lambda: _compare_parts(claim, found))
    found.examine("bound", f"{told.bound:.6g}", lambda: _compare_numbers(told, found))
    if claim.cover is not None or told.cover is not None:
        count = str((told.cover or {}).get("cells"))[:20]
        found.examine("cells", count, lambda: _compare_cover(claim, found))


def _compare_parts(claim: Claim, found: Findings) -> str:
    told, target = claim.certificate, claim.target
    text = None if claim.expression is None else claim.expression.text
    differences = {
        "the seal does not fit: a number was changed after the certificate was made": told.seal == told.digest,
        "the head is not the one that the certificate is for": told.head == claim.head.digest,
        "the domain is not the one that the certificate is for": told.domain == claim.domain.as_dict(),
        "the expression is not the one that the certificate is for": told.target.get("expression") == text,
        "the target at hand is not the one that the certificate is for": target is None
        or (target.as_dict() == told.target and target.domain == claim.domain),
    }
    found.wrong += [reason for reason, is_so in differences.items() if not is_so]
    return "seal, head, domain and target are the certificate's"


def _compare_numbers(told: Certificate, found: Findings) -> str:
    terms = told.terms
    numbers = [told.bound, told.seen, *terms.values()]
    in_bound = [terms.get(name, math.nan) for name in ("approximation", "context", "rounding_float64")]
    reached = told.tolerance is None or told.bound <= told.tolerance
    differences = {
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
    return "the sum of its terms"


def _compare_cover(claim: Claim, found: Findings) -> str:
    told, cover = claim.certificate.cover, claim.cover
    if told is None or cover is None:
        found.wrong.append("the cells and what the certificate says of them are not both there")
        return ""
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
    is_along = told.get("along") is not None
    if not is_along and (len(cover.knots) != claim.domain.dimension or not _reaches(cover, claim.domain)):
        found.wrong.append("the cells leave out a margin of the domain")
    elif hole := cover.find_hole():
        found.wrong.append(f"the cells leave a hole: {hole}")
    return "no hole, no margin left out"


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
