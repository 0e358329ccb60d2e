"""The second opinion on a certificate: the claim is recomputed in ball arithmetic, with no code of the search.

Shared with the search are the definitions only: the expression graph, the head, the charts, the domains, the cover's
geometry. What the search found is taken as a hint (which cells, which order); every number that the claim rests on is
computed anew. Whatever cannot be shown, for want of time too, is said to be unchecked, never proved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flint import arb
from numpy.typing import NDArray

from foreword.certificate import Certificate, Verdict
from foreword.compiler.balls import as_balls, enclose, magnitude, precise, space_of
from foreword.compiler.charts import Chart
from foreword.compiler.cover import Cover
from foreword.compiler.covering import nearest_bound
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.enclosure import Problem
from foreword.compiler.expression import Expression, ordered
from foreword.compiler.file import CompiledFile
from foreword.compiler.floating import rounding_terms
from foreword.compiler.head import Head
from foreword.compiler.parser import parse_expression
from foreword.errors import CertificateError, CompileError

Floats = NDArray[np.float64]
Progress = Callable[[float], None]

BLOCK = 32  # cells at once; near each other, since they share one shift of the keys
DEEPEST = 12  # halvings of a stored cell before the check gives up
MOST_CELLS = 5_000_000
MOST_MONOMIALS = 5_000
LONGEST_TEXT = 200_000  # characters; a traced function may be longer than what people type
SUM_SLACK = 2.0**-48  # a float64 sum of a handful of terms is nearer than this to the exact one


@dataclass(frozen=True)
class CheckResult:
    """`verdict` is PROVED only when everything that the certificate claims was shown again.

    NOT_REACHED: `reasons` say what is wrong, or that the bound, though confirmed, exceeds the tolerance.
    ASSUMPTION_UNVERIFIED: nothing was found wrong, but `reasons` name what could not be checked. `cells` were examined.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    seconds: float
    cells: int

    @property
    def is_refused(self) -> bool:
        """Whether something is wrong or unchecked: a certificate that stands has no reasons against it."""
        return bool(self.reasons)


@dataclass
class _Findings:
    wrong: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    cells: int = 0


@dataclass(frozen=True, eq=False)
class Claim:
    """Everything that a certificate is about. `samples` `(count, output)` are the values on a finite domain."""

    head: Head
    chart: Chart
    domain: Domain
    certificate: Certificate
    expression: Expression | None = None
    cover: Cover | None = None
    samples: Floats | None = None


def check(
    head: Head,
    chart: Chart,
    expression: Expression | None,
    domain: Domain,
    certificate: Certificate,
    cover: Cover | None = None,
    *,
    samples: Floats | None = None,
    seconds: float = 600.0,
    progress: Progress | None = None,
) -> CheckResult:
    """Whether the certificate holds of this head, chart, target and domain.

    At most about `seconds` are spent; `progress` gets the share of the cells done. No input raises: what is wrong is
    a reason in the result.
    """
    started = time.perf_counter()
    claim = Claim(head, chart, domain, certificate, expression, cover, samples)
    found = _Findings()
    try:
        _compare(claim, found)
        if not found.wrong:
            with precise(_order(claim)):
                _recompute(claim, found, started + seconds, progress)
    except (CertificateError, ArithmeticError, ValueError, TypeError, KeyError, AttributeError) as error:
        found.wrong.append(f"the claim cannot be followed ({type(error).__name__}: {error})")
    reasons = (*found.wrong, *found.unchecked)
    verdict = certificate.verdict
    if found.wrong:
        verdict = Verdict.NOT_REACHED
    elif found.unchecked:
        verdict = Verdict.ASSUMPTION_UNVERIFIED
    return CheckResult(verdict, reasons, time.perf_counter() - started, found.cells)


def check_compiled(compiled: CompiledFile, *, seconds: float = 600.0, progress: Progress | None = None) -> CheckResult:
    """`check` of everything in a file that was read; the expression is parsed anew from its text."""
    certificate = compiled.certificate
    if certificate is None:
        return CheckResult(Verdict.ASSUMPTION_UNVERIFIED, ("the file has no certificate",), 0.0, 0)
    text = compiled.target.get("expression")
    try:
        expression = (
            None if text is None else parse_expression(str(text), compiled.domain.columns, length_limit=LONGEST_TEXT)
        )
    except CompileError as error:
        return CheckResult(Verdict.NOT_REACHED, (f"the expression cannot be read: {error.what}",), 0.0, 0)
    if compiled.target != certificate.target or compiled.method != certificate.method:
        return CheckResult(Verdict.NOT_REACHED, ("the certificate is for another target or method",), 0.0, 0)
    parts = (compiled.head, compiled.chart, expression, compiled.domain, certificate, compiled.cover)
    return check(*parts, samples=compiled.samples, seconds=seconds, progress=progress)


def _compare(claim: Claim, found: _Findings) -> None:
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


def _compare_cover(claim: Claim, found: _Findings) -> None:
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


def _order(claim: Claim) -> int:
    """The order that the search used, or the largest that stays affordable."""
    order = int((claim.certificate.cover or {}).get("order", 2))
    sizes = (claim.domain.dimension, claim.chart.width)
    while order > 1 and any(math.comb(order - 1 + size, size) > MOST_MONOMIALS for size in sizes):
        order -= 1
    return order


def _recompute(claim: Claim, found: _Findings, deadline: float, progress: Progress | None) -> None:
    """The analysis: rounding terms, then the approximation by cells, points or the a-priori statement."""
    told = claim.certificate
    rounding = rounding_terms(claim.head, norm=_query_norm(claim), query_roundings=_query_roundings(claim))
    for name, least in rounding.items():
        if not arb(told.terms.get(name, math.nan)) >= least:
            found.wrong.append(f"{name} is {told.terms.get(name)!r} where {float(least.upper()):.4g} can occur")
    if told.terms["context"] > 0:
        found.unchecked.append("the context term rests on facts about the model's other tokens")
    if found.wrong:
        return
    if not math.isfinite(told.bound):
        found.unchecked.append("the certificate claims no finite bound")
        return
    exact = arb(told.bound) - rounding["rounding_float64"] - arb(told.terms["context"])
    allowed = arb(told.terms["approximation"]).min(exact).lower()
    if isinstance(claim.domain, FiniteSet):
        _check_points(claim, found, allowed)
    elif claim.expression is not None and claim.cover is not None:
        _check_seen(claim, found)
        _check_cells(claim, found, allowed, deadline, progress)
    else:
        _check_a_priori(claim, found, allowed)


def _query_norm(claim: Claim) -> arb:
    """A bound on the length of a query, over the domain."""
    if isinstance(claim.domain, Sphere) and claim.chart.name == "identity":
        return arb(1)
    box = claim.domain.points if isinstance(claim.domain, FiniteSet) else claim.domain.box.T
    low, high = as_balls(box.min(axis=0)), as_balls(box.max(axis=0))
    if isinstance(claim.domain, Sphere):
        low, high = as_balls(np.full(claim.domain.columns, -1.0)), as_balls(np.full(claim.domain.columns, 1.0))
    middle, half = (low + high) / 2, (high - low) / 2
    space = space_of(len(middle), 2)
    columns = [
        space.along(i, [np.array([m]), np.array([h])], np.array([arb(0)]))
        for i, (m, h) in enumerate(zip(middle, half, strict=True))
    ]
    models = enclose(claim.chart.expressions(claim.domain.columns), columns)
    return sum(((model.size[0] + model.rest[0]) ** 2 for model in models), arb(0)).sqrt().upper()


def _query_roundings(claim: Claim) -> int:
    """Operations behind a query coordinate, at most."""
    nodes = claim.chart.expressions(claim.domain.columns)
    return max(sum(bool(inner.arguments) for inner in ordered([node])) for node in nodes)


def _problem(claim: Claim) -> Problem:
    expression, domain = claim.expression, claim.domain
    if expression is None or len(expression.outputs) != claim.head.values.shape[1]:
        raise CertificateError(
            "The target has another number of outputs than the head.",
            expected=str(claim.head.values.shape[1]),
            found=str(0 if expression is None else len(expression.outputs)),
            fix="Check the prefix with the target that it was compiled for.",
        )
    frame = None if claim.cover is None else claim.cover.frame
    queries = claim.chart.expressions(domain.columns)
    return Problem(claim.head, queries, expression.outputs, isinstance(domain, Sphere), frame)


def _check_cells(claim: Claim, found: _Findings, allowed: arb, deadline: float, progress: Progress | None) -> None:
    """|f - g| <= allowed over every cell; a cell that fails is halved along its worst axis, up to `DEEPEST` times."""
    problem, order = _problem(claim), _order(claim)
    cover = claim.cover
    lower, upper = (np.empty((0, 0)),) * 2 if cover is None else (cover.lower, cover.upper)
    for depth in range(DEEPEST + 1):
        open_cells: list[tuple[Floats, Floats]] = []
        for start, rows in _blocks(lower, upper):
            if time.perf_counter() > deadline or found.cells > MOST_CELLS:
                share = start / len(lower) if depth == 0 else 1.0
                found.unchecked.append(
                    f"ran out of time or cells after {share:.0%} of the cover, {depth} halvings deep"
                )
                return
            bounds = problem.bounds(lower[rows], upper[rows], order)
            found.cells += len(rows)
            if any(least > allowed for least in bounds.least):
                row = rows[next(i for i, least in enumerate(bounds.least) if least > allowed)]
                middle = ((lower[row] + upper[row]) / 2).tolist()
                found.wrong.append(f"the error exceeds the approximation term at the parameters {middle}")
                return
            failed = np.array([not error <= allowed for error in bounds.error])
            if failed.any():
                swing = np.where(np.isfinite(bounds.swing[failed]), bounds.swing[failed], 0.0)
                open_cells.append(_halved(lower[rows[failed]], upper[rows[failed]], swing))
            if progress is not None and depth == 0:
                progress((start + len(rows)) / len(lower))
        if not open_cells:
            return
        lower, upper = (np.concatenate(ends) for ends in zip(*open_cells, strict=True))
    found.wrong.append(f"the error could not be shown to stay below the approximation term in {len(lower)} cells")


def _blocks(lower: Floats, upper: Floats) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Rows in blocks of neighbours, by interleaving the bits of their places."""
    middle = (lower + upper) / 2
    low, high = middle.min(axis=0), middle.max(axis=0)
    grid = ((middle - low) / np.where(high > low, high - low, 1.0) * 1023).astype(np.int64)
    code = np.zeros(len(middle), dtype=np.int64)
    for bit in range(9, -1, -1):
        for axis in range(min(grid.shape[1], 6)):
            code = 2 * code + ((grid[:, axis] >> bit) & 1)
    order = np.argsort(code, kind="stable")
    for start in range(0, len(order), BLOCK):
        yield start, order[start : start + BLOCK]


def _halved(lower: Floats, upper: Floats, swing: Floats) -> tuple[Floats, Floats]:
    """Both halves of each cell, along the axis of the largest swing; the widest where nothing is known."""
    width = upper - lower
    axis = np.where(swing.max(axis=1) > 0, (swing * (width > 0)).argmax(axis=1), width.argmax(axis=1))
    rows = np.arange(len(lower))
    middle = (lower[rows, axis] + upper[rows, axis]) / 2
    left, right = upper.copy(), lower.copy()
    left[rows, axis], right[rows, axis] = middle, middle
    return np.concatenate([lower, right]), np.concatenate([left, upper])


def _check_points(claim: Claim, found: _Findings, allowed: arb) -> None:
    """A finite domain: the exact error at every point."""
    points = claim.domain.points if isinstance(claim.domain, FiniteSet) else np.empty((0, 0))
    problem_values: Any = claim.samples
    if claim.expression is None and (claim.samples is None or len(claim.samples) != len(points)):
        found.unchecked.append("the table's values are not at hand")
        return
    space = space_of(1, 1)
    for start in range(0, len(points), BLOCK):
        rows = slice(start, start + BLOCK)
        columns = [space.constant(column) for column in as_balls(points[rows].T)]
        if claim.expression is not None:
            wanted = [m.coefficients[0] + m.rest * arb(0, 1) for m in enclose(claim.expression.outputs, columns)]
        else:
            wanted = list(as_balls(problem_values[rows].T))
        queries = [
            m.coefficients[0] + m.rest * arb(0, 1) for m in enclose(claim.chart.expressions(points.shape[1]), columns)
        ]
        given = _evaluate(claim.head, np.array(queries, dtype=object).T)
        errors = magnitude(np.array(wanted, dtype=object).T - given)
        found.cells += len(errors)
        if not all(error <= allowed for error in errors.ravel()):
            found.wrong.append(f"the error at a point from {start} on is not below the approximation term")
            return


def _evaluate(head: Head, queries: NDArray[np.object_]) -> NDArray[np.object_]:
    """The head in balls: outputs `(batch, output)` at `queries` `(batch, q)`."""
    scores = queries @ as_balls(head.keys).T + as_balls(head.biases)
    highest = as_balls(scores.astype(np.float64).max(axis=1))
    weights = np.array([[score.exp() for score in row] for row in scores - highest[:, None]], dtype=object)
    return np.asarray((weights @ as_balls(head.values)) / weights.sum(axis=1)[:, None])


def _check_seen(claim: Claim, found: _Findings) -> None:
    """Where the certificate says at which point it saw its error, that the error is there."""
    told = claim.certificate.effort.get("seen_at")
    if told is None or claim.expression is None:
        return
    space = space_of(1, 1)
    columns = [space.constant(np.array([arb(float(entry))], dtype=object)) for entry in told]
    wanted = [m.coefficients[0] + m.rest * arb(0, 1) for m in enclose(claim.expression.outputs, columns)]
    queries = [m.coefficients[0] + m.rest * arb(0, 1) for m in enclose(claim.chart.expressions(len(columns)), columns)]
    given = _evaluate(claim.head, np.array(queries, dtype=object).T)
    errors = magnitude(np.array(wanted, dtype=object).T - given).ravel()
    if not any(error >= arb(claim.certificate.seen) for error in errors):
        found.wrong.append("the error that the certificate says it saw is not at the point that it names")


def _check_a_priori(claim: Claim, found: _Findings, allowed: arb) -> None:
    """Without cells: statement A.2, when the target's Lipschitz constant was declared."""
    lipschitz = claim.certificate.target.get("lipschitz")
    if claim.expression is not None and claim.cover is None and lipschitz is None:
        found.unchecked.append("the cells of the proof are not at hand")
        return
    if not isinstance(lipschitz, (int, float)) or not math.isfinite(lipschitz) or lipschitz < 0:
        found.unchecked.append("the target has no expression, and no Lipschitz constant was declared")
        return
    if not (isinstance(claim.domain, Sphere) and claim.chart.name == "identity"):
        found.unchecked.append("without an expression only the sphere's a-priori bound can be recomputed")
        return
    bound = nearest_bound(claim.head, float(lipschitz))
    if bound is None or not bound <= allowed:
        told = "no bound" if bound is None else f"{float(bound):.4g}"
        found.unchecked.append(f"the a-priori bound of soft nearest neighbours gives {told} for this prefix")
