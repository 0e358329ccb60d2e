"""A proof that |f - g| stays below a bound on the whole domain: branch and bound over cells of its parameters.

Cells are halved along one axis at a time, the one that does most to keep their bounds large, until each has a bound
below `tightness` times the largest error that was found at a point (statement C.2, docs/theory). What the bound of one
cell rests on is `residual.py`; here is only the search, and what it found as a certificate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.certificate import Assumption, Certificate, Verdict
from foreword.compiler.charts import Chart
from foreword.compiler.cover import DEEPEST, Cover
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere, frame_along
from foreword.compiler.expression import ordered
from foreword.compiler.head import Head
from foreword.compiler.model import Model, kinks_of, query_norm, smoothness
from foreword.compiler.residual import Found, Residual
from foreword.compiler.rounding import Context, context_term, rounding_terms
from foreword.compiler.target import Target
from foreword.errors import CompileError

Floats = NDArray[np.float64]
Progress = Callable[[float, float, float], None]

SAMPLES = 4096  # points a search starts from: cells can be dropped only once an error has been seen
BLOCK = 256  # cells at once
FLOOR = 32.0  # goals are never less than this many times the rounding of f - g
MOST_OPEN = 2_000_000
POINTS = {1: (1, 4, 8, 12, 16, 20), 2: (1, 3, 6, 9, 12, 15), 3: (1, 2, 4, 6, 8, 10), 4: (1, 2, 3, 4, 5, 6)}
OVERSAMPLING = {1: 8, 2: 6, 3: 5}
LARGEST_NUMBER = 1e150  # products of two larger ones overflow


@dataclass
class Search:
    """Where a branch and bound stands: open cells, finished ones with their bounds, the largest error found.

    It can be handed to `prove` again (`resume`), which goes on where it stopped.
    """

    knots: list[Floats]
    frame: Floats | None
    levels: NDArray[np.int8]
    indices: NDArray[np.uint64]
    bounds: Floats
    done: list[tuple[NDArray[np.int8], NDArray[np.uint64], Floats]] = field(default_factory=list)
    seen: float = 0.0
    seen_at: Floats | None = None
    cells: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    log_sum: float = math.inf

    @property
    def upper(self) -> float:
        """The bound that stands proved now, over finished and open cells."""
        finished = max((float(bounds.max(initial=0.0)) for _, _, bounds in self.done), default=0.0)
        return max(finished, float(self.bounds.max(initial=0.0)))

    @property
    def cover(self) -> Cover:
        """All cells, finished and open."""
        levels = np.concatenate([self.levels, *[part[0] for part in self.done]])
        indices = np.concatenate([self.indices, *[part[1] for part in self.done]])
        return Cover(levels, indices, self.knots, self.frame)


@dataclass(frozen=True)
class Proof:
    """A certificate, the cells that it speaks of (None without a search), and where the search stands."""

    certificate: Certificate
    cover: Cover | None
    search: Search | None


def prove(
    head: Head,
    chart: Chart,
    target: Target,
    domain: Domain,
    *,
    tolerance: float | None = None,
    tightness: float | None = None,
    seconds: float = 60.0,
    progress: Progress | None = None,
    resume: Search | None = None,
    frame: Floats | None = None,
    context: Context | None = None,
    method: str = "",
) -> Proof:
    """The smallest bound on |f - g| that can be proved in about `seconds`, at best `tightness` times the true maximum.

    `tightness` is by default 1.25, and 1.5 from three dimensions on. `frame` turns the sphere's angles, so that kinks
    lie on cell borders; by default it is found from the target. `progress(share, upper, seen)` is called now and then.
    On a finite domain every point is evaluated. A target of which nothing is known beyond its values gets the largest
    error seen, as an estimate. CompileError for numbers that are not finite or too large to compute with.
    """
    _check_numbers(head, tolerance)
    started = time.perf_counter()
    tightness = tightness or (1.25 if domain.dimension <= 2 else 1.5)
    report = _Report(head, chart, target, domain, tolerance, context, method)
    if isinstance(domain, FiniteSet):
        return report.on_points(started)
    if target.expression is None and smoothness(target)[0] == 0:
        return report.of_samples(started)
    search = resume or _start(target, domain, frame)
    model = Model(head, chart, target, domain, search.frame)
    if resume is None:
        _look_around(search, head, chart, target, domain)
    axes = domain.dimension
    residual = Residual(model, POINTS[min(axes, 4)], OVERSAMPLING.get(axes, 4))
    _run(search, residual, chart, tightness, started + seconds, progress)
    search.seconds += time.perf_counter() - started
    search.evaluations += residual.evaluations
    return report.of_search(search, max(residual.orders))


def _start(target: Target, domain: Sphere | Cube, frame: Floats | None) -> Search:
    """One cell for each piece between kinks that lie along an axis; on a sphere the frame makes one normal an axis."""
    knots = [np.array(side) for side in domain.box]
    kinks = [(np.asarray(normal), offset) for normal, offset in target.kinks]
    if target.expression is not None:
        kinks += kinks_of(target, domain)
    if isinstance(domain, Sphere) and frame is None and kinks and domain.dimension >= 1:
        first = np.zeros(domain.columns)
        first[0] = 1.0
        normal = kinks[0][0]
        if not np.allclose(np.abs(normal), first, atol=1e-12):
            frame = frame_along(normal)
    for normal, offset in kinks:
        along = normal if frame is None else frame.T @ normal
        axis = int(np.argmax(np.abs(along)))
        if np.abs(np.delete(along, axis)).max(initial=0.0) > 1e-9:
            continue
        place = offset / along[axis]
        if isinstance(domain, Sphere):
            if axis != 0 or not -1 < place < 1:
                continue
            place = math.asin(place)
            places = [place, math.copysign(math.pi, place) - place] if domain.dimension == 1 else [place]
        else:
            places = [place]
        low, high = knots[axis][0], knots[axis][-1]
        gap = 1e-9 * (high - low)
        inside = [p for p in places if low + gap < p < high - gap and np.abs(knots[axis] - p).min() > gap]
        knots[axis] = np.sort(np.concatenate([knots[axis], inside]))
    cover = Cover.whole(knots, frame)
    return Search(list(cover.knots), cover.frame, cover.levels, cover.indices, np.full(len(cover), np.inf))


def _look_around(search: Search, head: Head, chart: Chart, target: Target, domain: Sphere | Cube) -> None:
    points = domain.spread(SAMPLES)
    errors, slack = _errors(points, head, chart, target)
    _note(search, points, errors - slack)


def _errors(points: Floats, head: Head, chart: Chart, target: Target) -> tuple[Floats, float]:
    """|f - g| `(batch,)` at points, largest output, and a bound on what rounding did to them."""
    values = target.evaluate(points)
    queries = chart(points)
    with np.errstate(all="ignore"):
        errors = np.abs(values - head.evaluate(queries)).max(axis=1)
    slack = rounding_terms(head, norm=_norm(chart, points), query_roundings=_query_roundings(chart, points.shape[1]))
    # A target's own formula is taken to be good to a few hundred roundings of its largest value.
    return np.where(np.isfinite(errors), errors, 0.0), slack["rounding_float64"] + 1e-13 * float(np.abs(values).max())


def _note(search: Search, points: Floats, errors: Floats) -> None:
    best = int(np.argmax(errors))
    if errors[best] > search.seen:
        search.seen, search.seen_at = float(errors[best]), np.array(points[best])


def _run(
    search: Search,
    residual: Residual,
    chart: Chart,
    tightness: float,
    deadline: float,
    progress: Progress | None,
) -> None:
    model = residual.model
    floor = FLOOR * _rounding(model, chart)
    box = float(np.prod([knots[-1] - knots[0] for knots in search.knots]))
    while len(search.levels) and time.perf_counter() < deadline:
        # The oldest cells first, so that all shrink together; the youngest first when there are too many.
        oldest = len(search.levels) <= MOST_OPEN
        taken = slice(0, BLOCK) if oldest else slice(len(search.levels) - BLOCK, None)
        left = slice(BLOCK, None) if oldest else slice(0, len(search.levels) - BLOCK)
        levels, indices, known = search.levels[taken], search.indices[taken], search.bounds[taken]
        block = Cover(levels, indices, search.knots)
        found = residual.bound(block.lower, block.upper, tightness * search.seen + floor)
        search.cells += len(levels)
        search.log_sum = min(search.log_sum, float(found.log_z.min()))
        upper = np.fmin(found.upper, known)
        _follow(search, model, chart, found, block)
        is_done = (upper <= tightness * search.seen + floor) | (levels.max(axis=1) >= DEEPEST - 1)
        search.done.append((levels[is_done], indices[is_done], upper[is_done]))
        children = _halve(levels[~is_done], indices[~is_done], upper[~is_done], found.shares[~is_done])
        parts = zip((search.levels[left], search.indices[left], search.bounds[left]), children, strict=True)
        search.levels, search.indices, search.bounds = (np.concatenate(part) for part in parts)
        if progress is not None:
            progress(_share(search, box), search.upper, search.seen)
    if len(search.levels):
        _settle(search, residual, tightness * search.seen + floor, time.perf_counter() + deadline_share(search))


def deadline_share(search: Search) -> float:
    """Seconds for `_settle`: a fifth of what the search took, at least two."""
    return max(2.0, 0.2 * search.seconds)


def _settle(search: Search, residual: Residual, goal: float, deadline: float) -> None:
    """Time is up: the open cells get what bounds they have, tried against ever larger goals."""
    for factor in (2.0, 6.0, 30.0, 1e3, 1e6):
        waiting = np.flatnonzero(search.bounds > factor * goal)
        for start in range(0, len(waiting), BLOCK):
            if time.perf_counter() > deadline:
                return
            rows = waiting[start : start + BLOCK]
            block = Cover(search.levels[rows], search.indices[rows], search.knots)
            found = residual.bound(block.lower, block.upper, factor * goal)
            search.bounds[rows] = np.fmin(search.bounds[rows], found.upper)


def _rounding(model: Model, chart: Chart) -> float:
    """About how much rounding is in f - g: below this no tightness can be asked for."""
    points = model.domain.spread(64)
    terms = rounding_terms(model.head, norm=_norm(chart, points))
    return terms["rounding_float64"] + 1e-15 * float(np.abs(model.target.evaluate(points)).max())


def _halve(
    levels: NDArray[np.int8], indices: NDArray[np.uint64], bounds: Floats, shares: Floats
) -> tuple[NDArray[np.int8], NDArray[np.uint64], Floats]:
    """Both halves of every cell along its axis of the largest share."""
    rows, axis = np.arange(len(levels)), shares.argmax(axis=1) if len(levels) else np.zeros(0, dtype=np.intp)
    levels, left = levels.copy(), indices.copy()
    levels[rows, axis] += 1
    left[rows, axis] *= np.uint64(2)
    right = left.copy()
    right[rows, axis] += np.uint64(1)
    both = np.stack([left, right], axis=1).reshape(-1, levels.shape[1])
    return np.repeat(levels, 2, axis=0), both, np.repeat(bounds, 2)


def _follow(search: Search, model: Model, chart: Chart, found: Found, block: Cover) -> None:
    """Look at the places where the block's error seems largest."""
    worth = np.flatnonzero(np.isfinite(found.upper) & (found.upper > search.seen))
    if not worth.size:
        return
    worth = worth[np.argsort(-found.upper[worth])[:64]]
    lower, upper = block.lower[worth], block.upper[worth]
    points = model.domain.embed(lower + (upper - lower) * (found.where[worth] + 1) / 2)
    if isinstance(model.domain, Sphere):
        points = points if search.frame is None else points @ search.frame.T
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
    errors, slack = _errors(points, model.head, chart, model.target)
    _note(search, points, errors - slack)


def _share(search: Search, box: float) -> float:
    """How much of the box's volume is finished."""
    if not len(search.levels):
        return 1.0
    block = Cover(search.levels, search.indices, search.knots)
    return 1.0 - float(np.prod(block.upper - block.lower, axis=1).sum()) / box


def _norm(chart: Chart, points: Floats) -> float:
    """The length of queries over the domain, from the points' (a heuristic; what is proved uses cells)."""
    return float(np.linalg.norm(chart(points), axis=1).max(initial=0.0)) * (1 + 1e-9)


def _query_roundings(chart: Chart, columns: int) -> int:
    """Operations behind a query coordinate, at most."""
    nodes = chart.expressions(columns)
    return max(sum(bool(inner.arguments) for inner in ordered([node])) for node in nodes)


def _check_numbers(head: Head, tolerance: float | None) -> None:
    arrays: Sequence[tuple[str, Floats]] = (("keys", head.keys), ("biases", head.biases), ("values", head.values))
    for name, array in arrays:
        largest = float(np.abs(array).max(initial=0.0))
        if not largest <= LARGEST_NUMBER:
            raise CompileError(
                f"The prefix's {name} are too large to compute with.",
                expected=f"finite numbers of size at most {LARGEST_NUMBER:g}",
                found=f"{largest:g}",
                fix="Scale the target.",
            )
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise CompileError("The tolerance cannot be.", expected="a positive number", found=repr(tolerance))


class _Report:
    """Certificates for one problem."""

    def __init__(
        self,
        head: Head,
        chart: Chart,
        target: Target,
        domain: Domain,
        tolerance: float | None,
        context: Context | None,
        method: str,
    ) -> None:
        self.head, self.chart, self.target, self.domain = head, chart, target, domain
        self.tolerance, self.context, self.method = tolerance, context, method

    def on_points(self, started: float) -> Proof:
        """Every point of a finite domain is evaluated; the error there is exact but for rounding."""
        points = self.domain.points if isinstance(self.domain, FiniteSet) else np.empty((0, 0))
        errors, slack = _errors(points, self.head, self.chart, self.target)
        worst = int(np.argmax(errors))
        effort = {"points": len(points), "seconds": time.perf_counter() - started, "seen_at": points[worst].tolist()}
        seen = max(float(errors[worst]) - slack, 0.0)
        return Proof(self._certificate(float(errors[worst]) + slack, seen, effort, None, math.nan), None, None)

    def of_samples(self, started: float) -> Proof:
        """Nothing is known of the target between points: an estimate, and it says so."""
        points = self.domain.spread(16 * SAMPLES)
        errors, _ = _errors(points, self.head, self.chart, self.target)
        worst = int(np.argmax(errors))
        effort = {"points": len(points), "seconds": time.perf_counter() - started, "seen_at": points[worst].tolist()}
        seen = float(errors[worst])
        premise = Assumption("sampled", f"no error is larger than at {len(points)} points", "sampled")
        return Proof(self._certificate(seen, seen, effort, None, math.nan, premise), None, None)

    def of_search(self, search: Search, order: int) -> Proof:
        """What the search has proved so far."""
        cover = search.cover
        effort = {
            "cells": search.cells,
            "open": len(search.levels),
            "evaluations": search.evaluations,
            "seconds": search.seconds,
            "seen_at": None if search.seen_at is None else search.seen_at.tolist(),
        }
        told = {"digest": cover.digest, "cells": len(cover), "order": int(order)}
        return Proof(self._certificate(search.upper, search.seen, effort, told, search.log_sum), cover, search)

    def _certificate(
        self,
        approximation: float,
        seen: float,
        effort: dict[str, Any],
        cover: dict[str, Any] | None,
        log_sum: float,
        premise: Assumption | None = None,
    ) -> Certificate:
        terms = rounding_terms(
            self.head, norm=self._query_norm(), query_roundings=_query_roundings(self.chart, self.domain.columns)
        )
        largest = float(np.abs(self.head.values).max())
        added = 0.0 if self.context is None else context_term(self.context, log_sum=log_sum, largest=largest)
        added = math.inf if math.isnan(added) else added
        terms = {"approximation": approximation, "context": added, **terms}
        bound = math.fsum([approximation, added, terms["rounding_float64"]]) * (1 + 2.0**-51)
        verdict = Verdict.PROVED
        if premise is not None:
            verdict = Verdict.ASSUMPTION_UNVERIFIED
        elif not (math.isfinite(bound) and (self.tolerance is None or bound <= self.tolerance)):
            verdict = Verdict.NOT_REACHED
        return Certificate(
            verdict=verdict,
            tolerance=self.tolerance,
            bound=bound,
            seen=min(seen, bound),
            terms=terms,
            assumptions=(*self._premises(), *([] if premise is None else [premise])),
            remedy=self._remedy(verdict, bound, seen, terms, effort),
            method=self.method,
            domain=self.domain.as_dict(),
            target=self.target.as_dict(),
            head=self.head.digest,
            cover=cover,
            effort=effort,
        )

    def _query_norm(self) -> float:
        """A bound on the length of queries over the domain."""
        if isinstance(self.domain, FiniteSet):
            return _norm(self.chart, self.domain.points)
        if isinstance(self.domain, Sphere) and self.chart.name == "identity":
            return 1 + 1e-12
        return query_norm(self.chart, self.domain)

    def _premises(self) -> tuple[Assumption, ...]:
        """What the bound rests on: the target's facts that were used, and libm."""
        used = {"expression"}
        if self.target.expression is None:
            used = [set(), {"lipschitz"}, {"gradient", "second"}, {"gradient", "hessian", "third"}][
                smoothness(self.target)[0]
            ]
        facts = [premise for premise in self.target.assumptions if premise.code in used]
        library = Assumption("libm", "NumPy's elementary functions are within 4 units in the last place", "sampled")
        return (*facts, library)

    def _remedy(
        self, verdict: Verdict, bound: float, seen: float, terms: dict[str, float], effort: dict[str, Any]
    ) -> str:
        if verdict is Verdict.PROVED:
            return ""
        if verdict is Verdict.ASSUMPTION_UNVERIFIED:
            return (
                "Give the target a Lipschitz constant, derivatives with bounds, or an expression: then this becomes a "
                "proof."
            )
        tolerance = self.tolerance if self.tolerance is not None else math.inf
        if seen > tolerance:
            return f"The error is {seen:.3g} at a point: use more positions, or a tolerance of at least {bound:.3g}."
        if terms["context"] + terms["rounding_float64"] > tolerance:
            return "Rounding and context alone exceed the tolerance: smaller keys and values, or a larger offset."
        if effort.get("open", 0):
            return (
                f"{effort['open']} cells are still open after {effort['seconds']:.0f} s: give it more time (it resumes), "
                f"or a tolerance of {bound:.3g}."
            )
        return f"A tolerance of {bound:.3g}, or more positions."
