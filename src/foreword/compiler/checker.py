"""The second opinion on a certificate: the claim is recomputed in ball arithmetic, with no code of the search.

Shared with the search are the definitions only: the expression graph, the head, the charts, the domains, the cover's
geometry. What the search found is taken as a hint (which cells, which order); every number that the claim rests on is
computed anew. Whatever cannot be shown, for want of time too, is said to be unchecked, never proved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from flint import arb
from numpy.typing import NDArray

from foreword.certificate import Certificate, Verdict
from foreword.compiler.arrays import Floats
from foreword.compiler.balls import Balls, as_balls, magnitude, precise, space_of
from foreword.compiler.charts import Chart
from foreword.compiler.claim import Claim, Findings, compare
from foreword.compiler.cover import Cover
from foreword.compiler.covering import nearest_bound
from foreword.compiler.domain import Domain, FiniteSet, Sphere
from foreword.compiler.enclosure import Problem, exact_head, exact_outputs
from foreword.compiler.expression import Expression, ordered
from foreword.compiler.file import CompiledFile
from foreword.compiler.floating import rounding_terms
from foreword.compiler.functions import enclose
from foreword.compiler.head import Head
from foreword.compiler.parser import parse_expression
from foreword.errors import CertificateError, CompileError

Progress = Callable[[float], None]

BLOCK = 32  # cells at once; near each other, since they share one shift of the keys
DEEPEST = 40  # halvings of a stored cell before the check gives up
BEST_ORDER = {1: 14, 2: 8, 3: 6}  # by dimension; a heuristic: the cost of a cell grows faster than the cells save
MOST_CELLS = 5_000_000
MOST_MONOMIALS = 5_000
MOST_FEATURES = 4_000_000  # numbers of a hundred bytes each
LONGEST_TEXT = 200_000  # characters; a traced function may be longer than what people type


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


def check(
    head: Head,
    chart: Chart,
    expression: Expression | None,
    domain: Domain,
    certificate: Certificate,
    cover: Cover | None = None,
    *,
    samples: Floats | None = None,
    function: Callable[[Floats], Floats] | None = None,
    seconds: float = 600.0,
    progress: Progress | None = None,
) -> CheckResult:
    """Whether the certificate holds of this head, chart, target and domain.

    `samples` are the values at a finite domain's points. `function`, points `(batch, columns)` to `(batch, output)`,
    is needed for the a-priori bound of a target without an expression: that values are the target's is not in a file.
    At most about `seconds` are spent; `progress` gets the share of the cells done. No input raises: what is wrong is
    a reason in the result.
    """
    started = time.perf_counter()
    claim = Claim(head, chart, domain, certificate, expression, cover, samples, function)
    found = Findings()
    try:
        compare(claim, found)
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


def check_compiled(
    compiled: CompiledFile,
    *,
    function: Callable[[Floats], Floats] | None = None,
    seconds: float = 600.0,
    progress: Progress | None = None,
) -> CheckResult:
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
    return check(*parts, samples=compiled.samples, function=function, seconds=seconds, progress=progress)


def _order(claim: Claim) -> int:
    """The order to expand to: the search's, or less where that would cost more than halving cells."""
    dimension, width = claim.domain.dimension, claim.chart.width
    order = int((claim.certificate.cover or {}).get("order", 2))
    order = max(min(order, BEST_ORDER.get(dimension, 4)), 2)
    largest = min(MOST_MONOMIALS, MOST_FEATURES // claim.head.values.size)
    while order > 2 and any(math.comb(order - 1 + size, size) > largest for size in (dimension, width)):
        order -= 1
    return order


def _recompute(claim: Claim, found: Findings, deadline: float, progress: Progress | None) -> None:
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
        _check_points(claim, found, allowed, deadline)
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


def _check_cells(claim: Claim, found: Findings, allowed: arb, deadline: float, progress: Progress | None) -> None:
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


def _errors(claim: Claim, points: Floats, samples: Floats | None) -> NDArray[np.object_]:
    """Bounds on |f - g| at each point `(batch, output)`: f the expression, or the samples."""
    queries = exact_outputs(claim.chart.expressions(points.shape[1]), points)
    if claim.expression is not None:
        wanted = exact_outputs(claim.expression.outputs, points)
    else:
        wanted = as_balls(np.empty((0, 0)) if samples is None else samples)
    given = exact_head(claim.head, queries)
    if wanted.shape != given.shape:
        raise ValueError(f"values {wanted.shape} where the head gives {given.shape}")
    return np.asarray(magnitude(wanted - given))


def _check_points(claim: Claim, found: Findings, allowed: arb, deadline: float) -> None:
    """A finite domain: the error at every point."""
    points = claim.domain.points if isinstance(claim.domain, FiniteSet) else np.empty((0, 0))
    if claim.expression is None and claim.samples is None:
        found.unchecked.append("the table's values are not at hand")
        return
    for start in range(0, len(points), BLOCK):
        if time.perf_counter() > deadline:
            found.unchecked.append(f"ran out of time after {start} of {len(points)} points")
            return
        rows = slice(start, start + BLOCK)
        errors = _errors(claim, points[rows], None if claim.samples is None else claim.samples[rows])
        found.cells += len(errors)
        failed = [row for row, error in enumerate(errors) if not all(entry <= allowed for entry in error)]
        if failed:
            found.wrong.append(f"the error at point {start + failed[0]} is not below the approximation term")
            return


def _check_seen(claim: Claim, found: Findings) -> None:
    """Where the certificate says at which point it saw its error, that the error is there."""
    told = claim.certificate.effort.get("seen_at")
    if told is None:
        return
    errors = _errors(claim, np.array([told], dtype=np.float64), None)
    if not any(error >= arb(claim.certificate.seen) for error in errors.ravel()):
        found.wrong.append("the error that the certificate says it saw is not at the point that it names")


def _check_a_priori(claim: Claim, found: Findings, allowed: arb) -> None:
    """Without cells: statement A.2, when the target's Lipschitz constant was declared."""
    lipschitz = claim.certificate.target.get("lipschitz")
    if claim.expression is not None and claim.cover is None and lipschitz is None:
        found.unchecked.append("the cells of the proof are not at hand")
        return
    if not isinstance(lipschitz, (int, float)) or not math.isfinite(lipschitz) or lipschitz < 0:
        found.unchecked.append("the target has no expression, and no Lipschitz constant was declared")
        return
    known = nearest_bound(claim.head, float(lipschitz), domain=claim.domain, chart=claim.chart)
    if known is None:
        found.unchecked.append("statement A.2 gives no bound for this prefix")
        return
    off = _off_at_the_net(claim, known.net)
    if off is None:
        found.unchecked.append("whether the values are the target's at the net: it is no expression, nor at hand")
    elif not known.error + off <= allowed:
        told = f"{float(known.error + off):.6g}"
        found.unchecked.append(f"statement A.2 gives {told} for this prefix, not the approximation term")


def _off_at_the_net(claim: Claim, net: Balls) -> arb | None:
    """How far the values are from the target's at the net, at most; None when the target is not at hand."""
    values = as_balls(claim.head.values)
    if claim.expression is not None:
        columns = [space_of(1, 1).constant(column) for column in net.T]
        models = enclose(claim.expression.outputs, columns)
        wanted = np.array([model.coefficients[0] + model.rest * arb(0, 1) for model in models], dtype=object).T
    elif claim.function is not None:
        found = np.asarray(claim.function(net.astype(np.float64)), dtype=np.float64)
        wanted = as_balls(found.reshape(len(net), -1))
    else:
        return None
    if wanted.shape != values.shape:
        raise ValueError(f"values {values.shape} where the target gives {wanted.shape}")
    off = arb(0)
    for entry in (wanted - values).ravel():
        off = off.max(entry.abs_upper())
    return off
