"""From evidence to a decision, by rules that were fixed before the data were seen.

The candidate is chosen on the selection split (`choose`), so its interval on the test split is not the winner's luck.
The requirement is judged on the bound of that interval: GO when the lower bound reaches it, CONDITIONAL when it does
but a stress probe fails or the run was limited, NO-GO when the upper bound does not reach it, NOT ENOUGH EVIDENCE in
between, with the number of test examples that would settle it if the measured value held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, get_args

from foreword.assessment.evidence import (
    CandidateEvidence,
    CandidateKind,
    CostEvidence,
    DecisionEvidence,
    Difference,
    Estimate,
    FailedCandidate,
    MetricEstimate,
    Reason,
    StressEvidence,
    Verdict,
)
from foreword.confidence import trials_needed
from foreword.tuning.scoring import metric_named
from foreword.tuning.sections import Requirement

# From the least intrusive to the most.
KINDS: tuple[str, ...] = get_args(CandidateKind)
# A requirement below that is written as 0.0%, and asks for nothing.
LEAST_SUPPORTED = 0.001
# Test examples of a label below which its failures are called uncertain.
FEW_EXAMPLES = 10


@dataclass(frozen=True)
class Case:
    """Everything that a decision is made from.

    `judged` is the chosen candidate's metric at the requirement's own confidence; `versus_prefix` are the paired
    differences of the best prefix to each rival.
    """

    requirement: Requirement
    candidates: Sequence[CandidateEvidence]
    failed: Sequence[FailedCandidate]
    chosen: CandidateEvidence | None
    baseline: CandidateEvidence | None
    judged: MetricEstimate | None
    prefix: CandidateEvidence | None
    versus_prefix: Sequence[Difference]
    versus_chosen: Sequence[tuple[CandidateEvidence, Difference]]
    stress: StressEvidence | None
    cost: CostEvidence
    base_unchanged: bool
    limit: int | None


class Standing(Protocol):
    """What a choice looks at: never the test split."""

    @property
    def kind(self) -> str: ...
    @property
    def selection(self) -> float: ...
    @property
    def trainable(self) -> int: ...


Standings = TypeVar("Standings", bound=Standing)


def choose(candidates: Sequence[Standings], *, examples: int) -> Standings | None:
    """Of those that a selection split of so many `examples` cannot tell from the best, the least intrusive one.

    The one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984, 3.4.3): a candidate is kept
    when its score is within sqrt(s (1 - s) / n) of the best score s, the largest standard error of a mean of scores in
    [0, 1]. The kinds are ordered by how much they change: words, then read-outs, then what the model reads, then its
    weights. Of equals the better, then the one with fewer fitted numbers, then the one given first.
    """
    if not candidates:
        return None
    best = max(candidate.selection for candidate in candidates)
    near = best - math.sqrt(max(best * (1 - best), 0.0) / examples)
    kept = [candidate for candidate in candidates if candidate.selection >= near]
    return min(kept, key=lambda found: (KINDS.index(found.kind), -found.selection, found.trainable))


def best_prefix(candidates: Sequence[CandidateEvidence]) -> CandidateEvidence | None:
    """The prefix that did best on the selection split; None without one."""
    prefixes = [found for found in candidates if found.kind == "prefix"]
    return max(prefixes, key=lambda found: found.selection, default=None)


def decide(case: Case) -> DecisionEvidence:
    """The verdict, why, and what would change it."""
    failures = [Reason(code="candidate-failed", parameters={"name": x.name, "code": x.code}) for x in case.failed]
    if case.chosen is None or case.judged is None:
        return DecisionEvidence(
            verdict="NOT ENOUGH EVIDENCE", chosen=None, reasons=[Reason(code="none-fitted"), *failures], changes=[]
        )
    verdict = _verdict(case, case.judged)
    reasons = [
        _on_requirement(case.requirement, case.judged),
        *_on_baseline(case),
        *_on_prefix(case),
        *_on_stress(case),
        *_on_other_text(case),
        *_on_base(case),
        *_on_cost(case),
        *_on_limits(case),
        *failures,
    ]
    return DecisionEvidence(
        verdict=verdict, chosen=case.chosen.name, reasons=reasons, changes=_changes(case, case.judged, verdict)
    )


def _verdict(case: Case, judged: MetricEstimate) -> Verdict:
    if not case.base_unchanged or judged.high < case.requirement.at_least:
        return "NO-GO"
    if judged.low < case.requirement.at_least:
        return "NOT ENOUGH EVIDENCE"
    return "CONDITIONAL" if _failed_probes(case.stress) or case.limit is not None else "GO"


def _failed_probes(stress: StressEvidence | None) -> list[Reason]:
    return [
        Reason(
            code="stress-failed",
            parameters={"probe": probe.name, "rate": probe.rate, "upper": probe.upper, "limit": probe.limit},
        )
        for probe in (stress.probes if stress is not None else [])
        if probe.passed is False
    ]


def _on_requirement(requirement: Requirement, judged: MetricEstimate) -> Reason:
    told: dict[str, float | int | str | None] = {"metric": judged.name, "at_least": requirement.at_least}
    if judged.low >= requirement.at_least:
        return Reason(code="requirement-met", parameters={**told, "low": judged.low})
    if judged.high < requirement.at_least:
        return Reason(code="requirement-missed", parameters={**told, "high": judged.high})
    return Reason(
        code="requirement-open",
        parameters={**told, "value": judged.value, "low": judged.low, "high": judged.high},
    )


def _on_baseline(case: Case) -> list[Reason]:
    if case.chosen is None or case.baseline is None or case.chosen.name == case.baseline.name:
        return []
    found = case.chosen.difference.baseline
    if found is None:
        return []
    told = _interval(found) | {"candidate": case.chosen.name, "baseline": case.baseline.name}
    return [Reason(code="better-than-baseline" if found.low > 0 else "not-better-than-baseline", parameters=told)]


def _interval(found: Estimate) -> dict[str, float | int | str | None]:
    return {"value": found.value, "low": found.low, "high": found.high}


def _on_prefix(case: Case) -> list[Reason]:
    """How the prefix stands against every rival, and which cheaper candidate would do as well as the chosen one."""
    reasons = [
        Reason(code="prefix-versus", parameters={"rival": found.to, **_interval(found)}) for found in case.versus_prefix
    ]
    if case.chosen is None:
        return reasons
    if case.prefix is not None and case.prefix.name != case.chosen.name:
        told: dict[str, float | int | str | None] = {"chosen": case.chosen.name, "prefix": case.prefix.name}
        reasons.append(Reason(code="not-chosen-prefix", parameters=told))
    for rival, found in case.versus_chosen:
        cheaper = rival.bytes < case.chosen.bytes and rival.latency_ms < case.chosen.latency_ms
        if cheaper and found.low <= 0 <= found.high:
            told = {"candidate": rival.name, "chosen": case.chosen.name, **_interval(found)}
            reasons.append(Reason(code="cheaper-equivalent", parameters=told))
    return reasons


def _on_stress(case: Case) -> list[Reason]:
    if case.stress is None:
        return []
    passed = [probe.name for probe in case.stress.probes if probe.passed]
    good = [Reason(code="stress-passed", parameters={"probes": ", ".join(passed)})] if passed else []
    return _failed_probes(case.stress) + good


def _on_other_text(case: Case) -> list[Reason]:
    """What the chosen candidate does to text outside the task."""
    found = None if case.chosen is None else case.chosen.forgetting
    if case.chosen is None or found is None:
        return []
    told: dict[str, float | int | str | None] = {"candidate": case.chosen.name}
    if found.loss_change is not None:
        return [Reason(code="other-text-loss", parameters=told | _interval(found.loss_change))]
    return [Reason(code="other-text-neighbours", parameters=told | _interval(found.changed))]


def _on_base(case: Case) -> list[Reason]:
    return [Reason(code="base-unchanged" if case.base_unchanged else "base-changed")]


def _on_cost(case: Case) -> list[Reason]:
    row = next((row for row in case.cost.rows if case.chosen is not None and row.candidate == case.chosen.name), None)
    if row is None:
        return []
    reasons = [Reason(code="cost-per-month", parameters={"currency": case.cost.currency, "amount": row.monthly})]
    if "alternative_per_request" in case.cost.assumptions:
        reasons.append(Reason(code="break-even", parameters={"months": row.break_even_months}))
    return reasons


def _on_limits(case: Case) -> list[Reason]:
    reasons = [] if case.limit is None else [Reason(code="limited-run", parameters={"limit": case.limit})]
    failures = {} if case.chosen is None else case.chosen.failures
    return reasons + [
        Reason(code="examples-few", parameters={"label": label, "n": found.n})
        for label, found in failures.items()
        if found.n < FEW_EXAMPLES
    ]


def _changes(case: Case, judged: MetricEstimate, verdict: Verdict) -> list[Reason]:
    if verdict == "NOT ENOUGH EVIDENCE":
        needed = examples_needed(judged, case.requirement)
        return [Reason(code="more-examples", parameters={"n_now": judged.n, "n_needed": needed})]
    if verdict == "NO-GO" and case.base_unchanged:
        if judged.low < LEAST_SUPPORTED:
            return []
        return [Reason(code="supported-requirement", parameters={"at_least_possible": judged.low})]
    whole = [] if case.limit is None else [Reason(code="full-run")]
    return whole + [
        Reason(code="fix-probe", parameters={name: reason.parameters[name] for name in ("probe", "limit")})
        for reason in _failed_probes(case.stress)
    ]


def examples_needed(judged: MetricEstimate, requirement: Requirement) -> int | None:
    """Test examples after which the interval would lie on one side of the requirement, if the measured value held.

    Exact for a rate (Clopper-Pearson); for other metrics the interval's side towards the requirement is taken to shrink
    with the square root of n: an estimate. None when the value is the requirement itself, or a million would not do.
    """
    if metric_named(judged.name).kind == "rate":
        return trials_needed(judged.value, requirement.at_least, level=requirement.confidence)
    gap = judged.value - requirement.at_least
    side = judged.value - judged.low if gap > 0 else judged.high - judged.value
    if gap == 0 or side <= 0:
        return None
    needed = math.ceil(judged.n * (side / gap) ** 2)
    return needed if needed <= 1_000_000 else None
