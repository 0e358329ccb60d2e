"""The second opinion on a certificate: the claim is recomputed in rigorous arithmetic, with no code of the search.

Shared with the search are the definitions only: the expression graph, the head, the charts, the domains, the cover's
geometry. What the search found is taken as a hint (which cells, which order); every number that the claim rests on is
computed anew. Whatever cannot be shown, for want of time too, is said to be unchecked, never proved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from flint import arb
from numpy.typing import NDArray

from foreword.certificate import Certificate, Verdict
from foreword.compiler.arrays import Floats
from foreword.compiler.balls import BALLS, Balls, as_balls, magnitude, precise
from foreword.compiler.charts import Chart, Paraboloid
from foreword.compiler.claim import Claim, Examined, Findings, compare
from foreword.compiler.composed import Line, line_of
from foreword.compiler.cover import Cover
from foreword.compiler.covering import nearest_bound
from foreword.compiler.domain import Domain, FiniteSet, Sphere
from foreword.compiler.enclosure import exact_head, exact_outputs
from foreword.compiler.expression import Expression, ordered
from foreword.compiler.file import CompiledFile
from foreword.compiler.floating import rounding_terms
from foreword.compiler.functions import enclose
from foreword.compiler.head import Head
from foreword.compiler.parser import parse_expression
from foreword.compiler.sweep import Progress, Sweep
from foreword.compiler.target import Target
from foreword.compiler.truncated import space_of
from foreword.errors import CertificateError, CompileError

POINTS = 32  # of a table at once

BEST_ORDER = {1: 14, 2: 8, 3: 7}  # by dimension; a heuristic: the cost of a cell grows faster than the cells save
MOST_MONOMIALS = 5_000
MOST_FEATURES = 4_000_000  # numbers of a hundred bytes each
CHART_ROUNDING = 1e-12  # relative; above what a chart's dozen operations and a norm round away at a point
LONGEST_TEXT = 200_000  # characters; a traced function may be longer than what people type


@dataclass(frozen=True)
class CheckResult:
    """`verdict` is PROVED only when everything that the certificate claims was shown again.

    NOT_REACHED: `reasons` say what is wrong, or that the bound, though confirmed, exceeds the tolerance.
    ASSUMPTION_UNVERIFIED: nothing was found wrong, but `reasons` name what could not be checked. `cells` were examined.
    `lines` tell what was checked, one part of the claim each.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    seconds: float
    cells: int
    lines: tuple[Examined, ...] = ()

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
    target: Target | None = None,
    seconds: float = 600.0,
    progress: Progress | None = None,
) -> CheckResult:
    """Whether the certificate holds of this head, chart, target and domain.

    `samples` are the values at a finite domain's points. `target` is needed where it is no expression: its values and
    derivatives are in no file, and what is declared of it stays an assumption, which the certificate must name.
    At most about `seconds` are spent; `progress` gets the share of the cells done. No input raises: what is wrong is
    a reason in the result.
    """
    started = time.perf_counter()
    claim = Claim(head, chart, domain, certificate, expression, cover, samples, target)
    found = Findings()
    try:
        compare(claim, found)
        if not found.wrong:
            line = line_of(claim)
            if line is not None:
                told = str((certificate.cover or {}).get("along"))
                found.examine(
                    "along", told, lambda: "target and head hang on nothing else, and the cells hold its values"
                )
            with precise(_order(claim if line is None else line.claim)):
                _recompute(claim, line, found, started + seconds, progress)
    except (CertificateError, CompileError, ArithmeticError, ValueError, TypeError, KeyError, AttributeError) as error:
        found.wrong.append(f"the claim cannot be followed ({type(error).__name__}: {error})")
    reasons = (*found.wrong, *found.unchecked)
    verdict = certificate.verdict
    if found.wrong:
        verdict = Verdict.NOT_REACHED
    elif found.unchecked:
        verdict = Verdict.ASSUMPTION_UNVERIFIED
    return CheckResult(verdict, reasons, time.perf_counter() - started, found.cells, tuple(found.lines))


def check_compiled(
    compiled: CompiledFile,
    *,
    target: Target | None = None,
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
    return check(*parts, samples=compiled.samples, target=target, seconds=seconds, progress=progress)


def _order(claim: Claim) -> int:
    """The order to expand to: the search's, or less where that would cost more than halving cells."""
    dimension, width = claim.domain.dimension, claim.chart.width
    order = int((claim.certificate.cover or {}).get("order", 2))
    order = max(min(order, BEST_ORDER.get(dimension, 4)), 2)
    if claim.declared is not None:
        order = min(order, claim.declared.terms + 1)
    largest = min(MOST_MONOMIALS, MOST_FEATURES // claim.head.values.size)
    while order > 2 and any(math.comb(order - 1 + size, size) > largest for size in (dimension, width)):
        order -= 1
    return max(order, 2)


def _recompute(claim: Claim, line: Line | None, found: Findings, deadline: float, progress: Progress | None) -> None:
    """The analysis: rounding terms, then the approximation by cells, points or the a-priori statement."""
    told = claim.certificate
    rounding = rounding_terms(claim.head, norm=_query_norm(claim), query_roundings=_query_roundings(claim))
    for name, least in rounding.items():
        found.examine(name, f"{told.terms.get(name, math.nan):.6g}", partial(_check_term, claim, found, name, least))
    found.examine("context", f"{told.terms['context']:.6g}", partial(_check_context, told, found))
    if found.wrong:
        return
    if not math.isfinite(told.bound):
        found.unchecked.append("the certificate claims no finite bound")
        return
    exact = arb(told.bound) - rounding["rounding_float64"] - arb(told.terms["context"])
    allowed = arb(told.terms["approximation"]).min(exact).lower()
    is_finite = isinstance(claim.domain, FiniteSet)
    is_bounded = claim.expression is not None or (claim.declared is not None and claim.declared.terms > 0)
    by_cells = is_bounded and claim.cover is not None and not is_finite
    if by_cells:
        found.examine("seen", f"{told.seen:.6g}", partial(_check_seen, claim, found))

    def approximation() -> str:
        if is_finite:
            return _check_points(claim, found, allowed, deadline)
        if line is not None:
            return _check_cells(line.claim, found, (allowed - line.gap).lower(), deadline, progress)
        if by_cells:
            return _check_cells(claim, found, allowed, deadline, progress)
        return _check_a_priori(claim, found, allowed, deadline, progress)

    found.examine("approximation", f"{told.terms['approximation']:.6g}", approximation)


def _check_term(claim: Claim, found: Findings, name: str, least: arb) -> str:
    """A rounding term, against what can occur."""
    told = claim.certificate.terms.get(name, math.nan)
    if not arb(told) >= least:
        found.wrong.append(f"{name} is {told!r} where {float(least.upper()):.4g} can occur")
    return f"at most {float(least.upper()):.6g}"  # as many digits as of the certificate's


def _check_context(told: Certificate, found: Findings) -> str:
    if told.terms["context"] > 0:
        found.unchecked.append("the context term rests on facts about the model's other tokens")
    return "no other token is spoken of"


def _check_cells(claim: Claim, found: Findings, allowed: arb, deadline: float, progress: Progress | None) -> str:
    """By cells, and with what is declared of a target that is no expression."""
    if claim.declared is not None:
        _check_named(claim, found, claim.declared.premises)
        if claim.declared.terms > 1 and claim.declared.target.kinks and claim.declared.target.lipschitz is None:
            found.unchecked.append("beyond a declared kink nothing bounds the target: it has no Lipschitz constant")
        if found.wrong or found.unchecked:
            return ""
    return Sweep(claim, found, float(BALLS.floor(allowed)), _order(claim), deadline, progress).run()


def _check_named(claim: Claim, found: Findings, codes: Sequence[str]) -> None:
    """What the bound rests on and no code can check has to stand in the certificate as an assumption."""
    named = {premise.code for premise in claim.certificate.assumptions}
    missing = [code for code in codes if code not in named]
    if missing:
        found.wrong.append(f"the certificate does not name what it rests on: {', '.join(missing)}")
    for premise in claim.certificate.assumptions:
        number = claim.certificate.target.get(premise.code)
        if premise.code in codes and isinstance(number, float) and f" {number!r} " not in premise.text:
            found.wrong.append(f"what the certificate says of {premise.code} is not the number that it rests on")


def _query_norm(claim: Claim) -> arb:
    """A bound on the length of a query, over the domain."""
    if isinstance(claim.domain, Sphere) and claim.chart.name == "identity":
        return arb(1)
    if isinstance(claim.domain, FiniteSet):
        largest = float(np.linalg.norm(claim.chart(claim.domain.points), axis=1).max())
        return (arb(largest) * (1 + CHART_ROUNDING)).upper()
    low, high = (as_balls(ends) for ends in claim.domain.box.T)
    if isinstance(claim.domain, Sphere):
        low, high = as_balls(np.full(claim.domain.columns, -1.0)), as_balls(np.full(claim.domain.columns, 1.0))
    middle, half = (low + high) / 2, (high - low) / 2
    space = space_of(len(middle), 2)
    columns = [
        space.along(i, [np.array([m]), np.array([h])], np.array([arb(0)]))
        for i, (m, h) in enumerate(zip(middle, half, strict=True))
    ]
    chart = claim.chart
    flat = chart.base if isinstance(chart, Paraboloid) else chart
    models = enclose(flat.expressions(claim.domain.columns), columns)
    sizes = [model.size[0] + model.rest[0] for model in models]
    if isinstance(chart, Paraboloid):
        sizes.append(_square_size(chart, sizes))
    return sum((size**2 for size in sizes), arb(0)).sqrt().upper()


def _square_size(chart: Paraboloid, sizes: Sequence[arb]) -> arb:
    """A bound on |2 |t|^2 / k - 1|, given the flat queries' sizes: |t|^2 is not negative, which an enclosure loses."""
    total = arb(0)
    for row, offset in zip(chart.slopes, chart.offsets, strict=True):
        reach = sum((abs(arb(slope)) * size for slope, size in zip(row, sizes, strict=True)), abs(arb(offset)))
        total += reach**2
    return (2 * total / len(chart.offsets) - 1).upper().max(arb(1))


def _query_roundings(claim: Claim) -> int:
    """Operations behind a query coordinate, at most."""
    nodes = claim.chart.expressions(claim.domain.columns)
    return max(sum(bool(inner.arguments) for inner in ordered([node])) for node in nodes)


def _errors(claim: Claim, points: Floats, samples: Floats | None) -> NDArray[np.object_]:
    """Bounds on |f - g| at each point `(batch, output)`: f the expression, what the callable returns, or samples."""
    queries = exact_outputs(claim.chart.expressions(points.shape[1]), points)
    if claim.expression is not None:
        wanted = exact_outputs(claim.expression.outputs, points)
    elif samples is None and claim.declared is not None:
        wanted = claim.declared.values(points)
    else:
        wanted = as_balls(np.empty((0, 0)) if samples is None else samples)
    given = exact_head(claim.head, queries)
    if wanted.shape != given.shape:
        raise ValueError(f"values {wanted.shape} where the head gives {given.shape}")
    return np.asarray(magnitude(wanted - given))


def _check_points(claim: Claim, found: Findings, allowed: arb, deadline: float) -> str:
    """A finite domain: the error at every point."""
    points = claim.domain.points if isinstance(claim.domain, FiniteSet) else np.empty((0, 0))
    if claim.expression is None and claim.samples is None and claim.declared is None:
        found.unchecked.append("the table's values are not at hand")
        return ""
    for start in range(0, len(points), POINTS):
        if time.perf_counter() > deadline:
            found.unchecked.append(f"ran out of time after {start} of {len(points)} points")
            return ""
        rows = slice(start, start + POINTS)
        errors = _errors(claim, points[rows], None if claim.samples is None else claim.samples[rows])
        found.cells += len(errors)
        failed = [row for row, error in enumerate(errors) if not all(entry <= allowed for entry in error)]
        if failed:
            found.wrong.append(f"the error at point {start + failed[0]} is not below the approximation term")
            return ""
    return f"shown at all {len(points):,} points"


def _check_seen(claim: Claim, found: Findings) -> str:
    """Where the certificate says at which point it saw its error, that the error is there."""
    told = claim.certificate.effort.get("seen_at")
    if told is None:
        return "no point is named"
    errors = _errors(claim, np.array([told], dtype=np.float64), None)
    if not any(error >= arb(claim.certificate.seen) for error in errors.ravel()):
        found.wrong.append("the error that the certificate says it saw is not at the point that it names")
    return "attained at the point that is named"


def _check_a_priori(claim: Claim, found: Findings, allowed: arb, deadline: float, progress: Progress | None) -> str:
    """Without cells: statement A.2, when the target's Lipschitz constant was declared."""
    lipschitz = claim.certificate.target.get("lipschitz")
    if claim.expression is not None and claim.cover is None and lipschitz is None:
        found.unchecked.append("the cells of the proof are not at hand")
        return ""
    if not isinstance(lipschitz, (int, float)) or not math.isfinite(lipschitz) or lipschitz < 0:
        found.unchecked.append("the target has no expression, and no Lipschitz constant was declared")
        return ""
    _check_named(claim, found, ("lipschitz",))

    def watch(share: float) -> None:
        if time.perf_counter() > deadline:
            raise TimeoutError
        if progress is not None:
            progress(share)

    try:
        known = nearest_bound(claim.head, float(lipschitz), domain=claim.domain, chart=claim.chart, watch=watch)
    except TimeoutError:
        found.unchecked.append("ran out of time while the net's covering radius was computed")
        return ""
    if known is None:
        found.unchecked.append("statement A.2 gives no bound for this prefix")
        return ""
    off = _off_at_the_net(claim, known.net, arb(lipschitz))
    if off is None:
        found.unchecked.append("whether the values are the target's at the net: it is no expression, nor at hand")
        return ""
    told = f"statement A.2 gives {float(known.error + off):.6g}"
    if not known.error + off <= allowed:
        found.unchecked.append(f"{told} for this prefix, not the approximation term")
    return f"{told} for {claim.head.positions:,} positions"


def _off_at_the_net(claim: Claim, net: Balls, lipschitz: arb) -> arb | None:
    """How far the values are from the target's at the net, at most; None when the target is not at hand.

    A callable is asked at the doubles next to the net's points, and moves by `lipschitz` from there.
    """
    values = as_balls(claim.head.values)
    moved = arb(0)
    if claim.expression is not None:
        wanted = _at_points(claim.expression, net)
    elif claim.declared is not None:
        near = net.astype(np.float64)
        wanted = claim.declared.values(near)
        for row in net - as_balls(near):
            moved = moved.max((row * row).sum().sqrt().upper())
        moved = moved * arb.pi() / 2  # an angle is at most so much longer than its chord
    else:
        return None
    if wanted.shape != values.shape:
        raise ValueError(f"values {values.shape} where the target gives {wanted.shape}")
    off = arb(0)
    for entry in (wanted - values).ravel():
        off = off.max(entry.abs_upper())
    return off + lipschitz * moved


def _at_points(expression: Expression, points: Balls) -> Balls:
    """Balls around an expression's outputs `(batch, output)` at points that are balls themselves."""
    columns = [space_of(1, 1).constant(column) for column in points.T]
    models = enclose(expression.outputs, columns)
    return np.array([model.coefficients[0] + model.rest * arb(0, 1) for model in models], dtype=object).T
