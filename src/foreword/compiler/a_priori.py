"""The certificate of a draft whose error a theorem bounds: soft nearest neighbours, statement A.2 (docs/theory)."""

from __future__ import annotations

import math

from foreword.certificate import Assumption, Certificate, Verdict
from foreword.compiler.construction.contract import Draft
from foreword.compiler.domain import Domain
from foreword.compiler.rounding import rounding_terms
from foreword.compiler.target import Target


def a_priori_certificate(draft: Draft, target: Target, domain: Domain, tolerance: float | None) -> Certificate:
    """The certificate of statement A.2 (docs/theory) for a draft that has such a bound: no search, no cells."""
    norm = 1.0 + 1e-12
    roundings = 0
    if draft.chart.name != "identity":  # a flat chart: coordinates in [-1, 1], a difference and a quotient
        norm, roundings = math.sqrt(domain.columns) * (1.0 + 1e-12), 2
    rounding = rounding_terms(draft.head, norm=norm, query_roundings=roundings)
    terms = {"approximation": float(draft.a_priori or 0.0), "context": 0.0, **rounding}
    bound = math.fsum([terms["approximation"], terms["rounding_float64"]]) * (1 + 2.0**-51)
    is_proved = math.isfinite(bound) and (tolerance is None or bound <= tolerance)
    net = Assumption(
        "net-values", "the values are the target's at the net's points, as evaluated in float64", "checked"
    )
    declared = [premise for premise in target.assumptions if premise.code == "lipschitz"]
    return Certificate(
        verdict=Verdict.PROVED if is_proved else Verdict.NOT_REACHED,
        tolerance=tolerance,
        bound=bound,
        seen=min(draft.sampled, bound),
        terms=terms,
        assumptions=(*declared, net),
        remedy="" if is_proved else f"A tolerance of {bound:.3g}, or more positions.",
        method=draft.method,
        domain=domain.as_dict(),
        target=target.as_dict(),
        head=draft.head.digest,
        effort={"covering_radius": draft.notes["covering_radius"], "sharpness": draft.notes["sharpness"]},
    )
