"""A proof that |f - g| stays below a bound on the whole domain, as a certificate (statement C.2, docs/theory).

The bound is found by branch and bound (`branching.py`) where anything is known of f between points: an expression,
derivatives with bounds, or a Lipschitz constant. On a finite domain every point is evaluated. Where nothing is known,
the largest error seen is an estimate, and the certificate says so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from foreword.certificate import Assumption, Certificate, Verdict
from foreword.compiler.aims import Aims
from foreword.compiler.arrays import Floats
from foreword.compiler.branching import SAMPLES, Progress, Search, begin, run, settled
from foreword.compiler.charts import Chart, Flat
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.expression import ordered
from foreword.compiler.head import Head
from foreword.compiler.model import Model, query_norm
from foreword.compiler.probe import Probe
from foreword.compiler.profile import Profile
from foreword.compiler.residual import Residual
from foreword.compiler.rounding import rounding_terms
from foreword.compiler.target import Target
from foreword.compiler.taylor import smoothness
from foreword.errors import CompileError

__all__ = ["Progress", "Proof", "prove"]

# Numbers of interpolation points that an axis may have, by how many axes f and g depend on, and points of the grid for
# each degree.
POINTS = {
    1: (1, 4, 8, 12, 16, 20),
    2: (1, 3, 6, 9, 12, 15),
    3: (1, 2, 4, 6, 8, 10),
    4: (1, 2, 3, 4, 5, 6),
    5: (1, 2, 3, 4, 6, 8),
    6: (1, 2, 3, 4, 5, 6),
    7: (1, 2, 3, 4),
    8: (1, 2, 3),
}
OVERSAMPLING = {1: 8, 2: 6, 3: 5, 4: 4}
FEWEST_OVERSAMPLING = 3
FRACTION = 0.25  # of a round's aim, in the next one, where bounds shrink with the cells and have no higher order
USUAL, USUAL_BEYOND = 1.25, 1.5  # times the error seen: the goal, up to two dimensions and from three on
# Times the error seen: what is asked for is worth many cells, but not those that follow every maximum. In three
# dimensions a ratio of 1.11 took 40 seconds, where one of 1.2 takes 2.
CLOSEST, CLOSEST_BEYOND = 1.04, 1.2
FLOOR = 4.0  # cells are never asked for less than this many times the rounding of f - g
SMALL = 0.05  # of a search's goal: so much may what rounding keys leaves over take of a bound on an interval
MOST_AXES = 8
MOST_DIMENSIONS = 60  # NumPy's arrays have up to 64, with cells and outputs
LARGEST_NUMBER = 1e150  # products of two larger ones overflow


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
    context: float = 0.0,
    method: str = "",
) -> Proof:
    """The smallest bound on |f - g| that can be proved in about `seconds`, at best `tightness` times the true maximum.

    `tightness` is by default 1.25, and 1.5 from three dimensions on. `frame` turns the sphere's angles, so that kinks
    lie on cell borders; by default it is found from the target. Where target and head hang on one polynomial of the
    coordinates alone (statement C.8), cells are those of an interval. `progress` gets the search after every step.
    `context` is the context term (`context.context_term`), a summand of the bound. CompileError for numbers that are
    not finite or too large to compute with, and for a target with another number of outputs than the head.

    >>> from foreword.compiler.charts import Flat
    >>> from foreword.compiler.domain import Cube
    >>> from foreword.compiler.parser import parse_expression
    >>> line = Cube([(-1, 1)])
    >>> head = Head(np.array([[1.0], [-1.0]]), np.zeros(2), np.array([[1.0], [-1.0]]))  # this head is tanh
    >>> close = Target(domain=line, expression=parse_expression("tanh(x) + 0.01*x", 1))
    >>> told = prove(head, Flat((0.0,), (1.0,)), close, line, tolerance=0.02).certificate
    >>> told.verdict.value, told.seen <= 0.01 <= told.bound < 0.0126
    ('proved', True)
    """
    _check(head, target, tolerance)
    started = time.perf_counter()
    report = _Report(head, chart, target, domain, tolerance, context, method)
    if isinstance(domain, FiniteSet):
        return report.on_points(started)
    if target.expression is None and smoothness(target)[0] == 0:
        return report.of_samples(started)
    deadline = started + seconds
    whole = _Problem(head, chart, target, domain, report.probe)
    along = whole.along if frame is None and (resume is None or len(resume.knots) == 1) else None
    if along is not None:
        aims, search = report.aims(tightness, along), resume or begin(along.target, along.domain, None, along.probe)
        if resume or along.gap <= SMALL * aims.goal(search.seen):
            return report.of_search(along, along.searched(search, aims, deadline, progress))
    search = resume or begin(target, domain, frame, report.probe)
    return report.of_search(whole, whole.searched(search, report.aims(tightness, whole), deadline, progress))


def _check(head: Head, target: Target, tolerance: float | None) -> None:
    arrays: Sequence[tuple[str, Floats]] = (("keys", head.keys), ("biases", head.biases), ("values", head.values))
    for name, array in arrays:
        with np.errstate(all="ignore"):
            largest = float(np.abs(array).max(initial=0.0))
        if not largest <= LARGEST_NUMBER:
            raise CompileError(
                f"The prefix's {name} are too large to compute with.",
                expected=f"finite numbers of size at most {LARGEST_NUMBER:g}",
                found=f"{largest:g}",
                fix="Scale the target.",
            )
    if target.outputs != head.values.shape[1]:
        raise CompileError(
            "The head has another number of outputs than the target.",
            expected=str(target.outputs),
            found=str(head.values.shape[1]),
            fix="Prove the head that was compiled for this target.",
        )
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise CompileError("The tolerance cannot be.", expected="a positive number", found=repr(tolerance))


@dataclass(frozen=True)
class _Searched:
    """What a search has proved, where it goes on, and the order of its bounds."""

    told: Search
    kept: Search
    order: int


@dataclass(frozen=True)
class _Problem:
    """What is searched: |f - g| on the domain or, where both hang on one polynomial of the coordinates, on an interval.

    `profile` tells which polynomial that is, and `gap` what is added to the bound.
    """

    head: Head
    chart: Chart
    target: Target
    domain: Sphere | Cube
    probe: Probe
    gap: float = 0.0
    profile: Profile | None = None

    @property
    def along(self) -> _Problem | None:
        """The one on an interval; None where there is none, or f's graph has no value somewhere on it."""
        profile = Profile.of(self.target.expression, self.domain)
        found = None if profile is None else profile.head(self.head, self.chart)
        if profile is None or found is None:
            return None
        (head, gap), span = found, profile.span
        if not np.isfinite(profile.expression.evaluate(np.linspace(*span.sides[0], SAMPLES)[:, None])).all():
            return None
        target, chart = Target(domain=span, expression=profile.expression), Flat((0.0,), (1.0,))
        return _Problem(head, chart, target, span, Probe(head, chart, target, span), gap, profile)

    def searched(self, search: Search, aims: Aims, deadline: float, progress: Progress | None) -> _Searched:
        """The search when its aims are reached or time is up. CompileError where f and g vary along too many axes."""
        started = time.perf_counter()
        model = Model(self.head, self.chart, self.target, self.domain, search.frame)
        axes = max(int(model.depends.sum()), 1)  # a function of one coordinate is interpolated as one of a line
        if axes > MOST_AXES:
            raise CompileError(
                "Target and head vary along too many dimensions for a proof by cells.",
                expected=f"at most {MOST_AXES}",
                found=f"{axes} of {self.domain.dimension}",
                fix="Use `nearest`, whose bound needs no search, or certify=False (--no-certify): then nothing is "
                "claimed.",
            )
        residual = Residual(model, POINTS[axes], OVERSAMPLING.get(axes, FEWEST_OVERSAMPLING))
        search = search if search.cells else aims.begun(search)
        search = run(search, residual, self.probe, aims=aims, deadline=deadline, progress=progress)
        told = search
        if len(search.levels):
            now = time.perf_counter()
            told = settled(search, residual, aims.at(search), now + max(1.0, 0.1 * (now - started)))
        return _Searched(told, search, max(residual.orders))


def _query_roundings(chart: Chart, columns: int) -> int:
    """Operations behind a query coordinate, at most."""
    nodes = chart.expressions(columns)
    return max(sum(bool(inner.arguments) for inner in ordered([node])) for node in nodes)


class _Report:
    """Certificates for one problem."""

    def __init__(
        self,
        head: Head,
        chart: Chart,
        target: Target,
        domain: Domain,
        tolerance: float | None,
        context: float,
        method: str,
    ) -> None:
        self.head, self.chart, self.target, self.domain = head, chart, target, domain
        self.tolerance, self.context, self.method = tolerance, context, method
        self.probe = Probe(head, chart, target, domain)

    def aims(self, tightness: float | None, problem: _Problem) -> Aims:
        """What the rounds of a problem's search bring the bound to.

        An expression's bounds are of high order: few cells more bring them to the goal, after what was asked for. The
        others shrink with their cells, and begin at the size of the values.
        """
        tightness = tightness or (USUAL if problem.domain.dimension <= 2 else USUAL_BEYOND)
        floor = FLOOR * (self.rounding["rounding_float64"] + 1e-15 * float(np.abs(self.head.values).max()))
        asked = math.inf
        if self.tolerance is not None:
            asked = (self.tolerance - self.context - self.rounding["rounding_float64"] - problem.gap) * (1 - 1e-12)
        if self.target.expression is not None:
            closest = CLOSEST if problem.domain.dimension <= 2 else CLOSEST_BEYOND
            return Aims(tightness, floor, asked, asked if math.isfinite(asked) else 0.0, 0.0, closest)
        return Aims(tightness, floor, asked, float(np.abs(self.head.values).max()), FRACTION)

    def on_points(self, started: float) -> Proof:
        """Every point of a finite domain is evaluated; the error there is exact but for rounding."""
        points = self.domain.points if isinstance(self.domain, FiniteSet) else np.empty((0, 0))
        errors, slack = self.probe.look(points)
        worst = int(np.argmax(errors))
        effort = {"points": len(points), "seconds": time.perf_counter() - started, "seen_at": points[worst].tolist()}
        seen = max(float(errors[worst] - slack[worst]), 0.0)
        bound = float((errors + slack).max())
        return Proof(self._certificate(bound, seen, effort, None), None, None)

    def of_samples(self, started: float) -> Proof:
        """Nothing is known of the target between points: an estimate, and it says so."""
        points = self.domain.spread(16 * SAMPLES)
        errors, slack = self.probe.look(points)
        worst = int(np.argmax(errors))
        effort = {"points": len(points), "seconds": time.perf_counter() - started, "seen_at": points[worst].tolist()}
        seen = max(float(errors[worst] - slack[worst]), 0.0)
        premise = Assumption("sampled", f"no error is larger than at {len(points)} points", "sampled")
        return Proof(self._certificate(float(errors[worst]), seen, effort, None, premise), None, None)

    def of_search(self, problem: _Problem, searched: _Searched) -> Proof:
        """What the search has proved so far, and where it goes on."""
        search, seen, seen_at = searched.told, searched.told.seen, searched.told.seen_at
        told = {"digest": search.cover.digest, "cells": len(search.cover), "order": int(searched.order)}
        if problem.profile is not None:
            told["along"] = problem.profile.text
            if seen_at is not None:
                points = problem.profile.point(float(seen_at[0]))
                errors, slack = self.probe.look(points)
                seen, seen_at = max(float(errors[0] - slack[0]), 0.0), points[0]
        effort = {
            "cells": search.cells,
            "open": len(search.levels),
            "evaluations": search.evaluations,
            "seconds": search.seconds,
            "seen_at": None if seen_at is None else seen_at.tolist(),
        }
        upper = math.nextafter(search.upper + problem.gap, math.inf) if problem.gap else search.upper
        return Proof(self._certificate(upper, seen, effort, told), search.cover, searched.kept)

    def _certificate(
        self,
        approximation: float,
        seen: float,
        effort: dict[str, Any],
        cover: dict[str, Any] | None,
        premise: Assumption | None = None,
    ) -> Certificate:
        terms = {"approximation": approximation, "context": self.context, **self.rounding}
        bound = math.fsum([approximation, self.context, terms["rounding_float64"]]) * (1 + 2.0**-51)
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

    @cached_property
    def rounding(self) -> dict[str, float]:
        """The rounding terms of this head on this domain."""
        if isinstance(self.domain, FiniteSet):
            norm = float(np.linalg.norm(self.chart(self.domain.points), axis=1).max(initial=0.0)) * (1 + 1e-9)
        elif isinstance(self.domain, Sphere) and self.chart.name == "identity":
            norm = 1 + 1e-12
        else:
            norm = query_norm(self.chart, self.domain)
        roundings = _query_roundings(self.chart, self.domain.columns)
        return rounding_terms(self.head, norm=norm, query_roundings=roundings)

    def _premises(self) -> tuple[Assumption, ...]:
        """What the bound rests on: the target's facts that were used, and libm."""
        used, told = {"expression"}, []
        if self.target.expression is None:
            used = [set(), {"lipschitz"}, {"gradient", "second"}, {"gradient", "hessian", "third"}][
                smoothness(self.target)[0]
            ]
            used |= {"lipschitz"} if self.target.kinks else set()
            told = [Assumption("values", "what the function returns is exact but for a few roundings", "declared")]
        facts = [premise for premise in self.target.assumptions if premise.code in used] + told
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
        if not math.isfinite(bound):
            return (
                "Somewhere on the domain no bound was found, as beside a place where the formula is 0 / 0 or log(0): "
                "leave such a place out, or write the target without it."
            )
        tolerance = self.tolerance if self.tolerance is not None else math.inf
        if seen > tolerance:
            return f"The error is {seen:.3g} at a point: use more positions, or a tolerance of at least {bound:.3g}."
        if terms["context"] + terms["rounding_float64"] > tolerance:
            return "Rounding and context alone exceed the tolerance: smaller keys and values, or a larger offset."
        if effort.get("open", 0):
            return (
                f"{effort['open']} cells are open after {effort['seconds']:.0f} s: give it more time (it resumes), or "
                f"a tolerance of {bound:.3g}."
            )
        return f"A tolerance of {bound:.3g}, or more positions."
