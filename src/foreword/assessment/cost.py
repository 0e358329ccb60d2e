"""What a candidate costs to make and to run, from what was measured and the prices that the task file assumes.

Money is in the task's currency; a request is one input. One request at a time on one machine: batching lowers the cost
per request, so these are upper estimates of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from foreword.assessment.evidence import CandidateEvidence, CostEvidence, CostRow
from foreword.tuning.examples import Splits
from foreword.tuning.sections import Prices

# What must be labelled before a candidate exists; judging it takes the test split in every case.
NEEDS_FIT = ("few-shot", "probe", "soft-prompt", "prefix", "lora", "full")
NEEDS_SELECTION = ("hard-prompt", "probe", "soft-prompt", "prefix", "lora", "full")


def cost_of(candidates: Sequence[CandidateEvidence], splits: Splits, prices: Prices) -> CostEvidence:
    """One row a candidate: cost per 1,000 requests, to make it, per month, and months until it has paid for itself."""
    return CostEvidence(
        currency=prices.currency,
        assumptions={name: value for name, value in prices.model_dump(mode="json").items() if value is not None},
        rows=[_row(candidate, splits, prices) for candidate in candidates],
    )


def _row(candidate: CandidateEvidence, splits: Splits, prices: Prices) -> CostRow:
    seconds = candidate.latency_ms / 1000
    per_1k = 1000 * seconds / 3600 * prices.machine_per_hour
    monthly = per_1k * prices.requests_per_month / 1000
    one_off = one_off_cost(candidate.kind, candidate.fit_seconds, splits, prices)
    return CostRow(
        candidate=candidate.name,
        latency_ms=candidate.latency_ms,
        requests_per_second=1 / seconds,
        per_1k_requests=per_1k,
        one_off=one_off,
        monthly=monthly,
        bytes=candidate.bytes,
        peak_memory_bytes=candidate.peak_memory_bytes,
        break_even_months=break_even(one_off, monthly, prices),
    )


def one_off_cost(kind: str, fit_seconds: float, splits: Splits, prices: Prices) -> float:
    """Labelling what the candidate needs and is judged on, setting it up, and the machine while it is fitted."""
    labelled = len(splits.test)
    labelled += len(splits.fit) if kind in NEEDS_FIT else 0
    labelled += len(splits.selection) if kind in NEEDS_SELECTION else 0
    return (
        labelled * prices.label_per_example
        + prices.setup_hours * prices.engineer_per_hour
        + fit_seconds / 3600 * prices.machine_per_hour
    )


def break_even(one_off: float, monthly: float, prices: Prices) -> float | None:
    """Months until `one_off` is saved against doing the task as today; None when that is unknown or never."""
    if prices.alternative_per_request is None:
        return None
    saved = prices.alternative_per_request * prices.requests_per_month - monthly
    return one_off / saved if saved > 0 else None
