"""Cost: every amount, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from foreword.assessment.cost import break_even, cost_of, one_off_cost
from foreword.assessment.evidence import CandidateEvidence, Evidence
from foreword.tuning.examples import Example, Splits
from foreword.tuning.sections import Prices

# Round figures, so that each step can be checked in the head.
PRICES = Prices(
    currency="EUR",
    machine_per_hour=36.0,  # one cent a second
    requests_per_month=50_000,
    label_per_example=0.5,
    engineer_per_hour=80.0,
    setup_hours=10.0,
    alternative_per_request=0.01,
)


def examples(count: int) -> tuple[Example, ...]:
    return tuple(Example(str(n), f"text {n}", "a") for n in range(count))


@pytest.fixture
def splits() -> Splits:
    return Splits(examples(20), examples(10), examples(70), 5, ("a", "b"), "0" * 64, (), 0)


@pytest.fixture
def candidate(sample_evidence: Callable[..., Evidence]) -> Callable[..., CandidateEvidence]:
    found = sample_evidence().candidates[0]
    return lambda **changes: found.model_copy(update=changes)


def test_a_row_is_what_it_is_by_hand(candidate: Callable[..., CandidateEvidence], splits: Splits) -> None:
    found = candidate(name="p", kind="prefix", latency_ms=200.0, fit_seconds=300.0, bytes=4096, peak_memory_bytes=7_000)
    (row,) = cost_of([found], splits, PRICES).rows
    assert row.requests_per_second == pytest.approx(5)  # 1 / 0.2 s
    assert row.per_1k_requests == pytest.approx(2)  # 200 s at 0.01
    assert row.monthly == pytest.approx(100)  # fifty thousand
    # 100 labelled at 0.50, 10 hours at 80, 300 s at 0.01
    assert row.one_off == pytest.approx(50 + 800 + 3)
    # Today 50,000 at 0.01 = 500 a month, so 400 are saved each month.
    assert row.break_even_months == pytest.approx(853 / 400)
    assert (row.candidate, row.latency_ms, row.bytes, row.peak_memory_bytes) == ("p", 200.0, 4096, 7_000)


@pytest.mark.parametrize(
    ("kind", "labelled"),
    [
        ("zero-shot", 70),  # judged on the test split, made from nothing
        ("hard-prompt", 80),  # chosen on the selection split
        ("few-shot", 90),  # shown the fit split
        ("probe", 100),
        ("soft-prompt", 100),
        ("prefix", 100),
        ("lora", 100),
        ("full", 100),
    ],
)
def test_a_candidate_pays_for_the_labels_that_it_needs(kind: str, labelled: int, splits: Splits) -> None:
    assert one_off_cost(kind, 0.0, splits, PRICES) == pytest.approx(0.5 * labelled + 800)


def test_nothing_is_paid_back_where_nothing_is_saved() -> None:
    assert break_even(853.0, 500.0, PRICES) is None  # as dear as today
    assert break_even(853.0, 600.0, PRICES) is None
    assert break_even(853.0, 499.0, PRICES) == pytest.approx(853)
    assert break_even(0.0, 100.0, PRICES) == 0


def test_without_an_alternative_there_is_no_break_even(
    candidate: Callable[..., CandidateEvidence], splits: Splits
) -> None:
    prices = PRICES.model_copy(update={"alternative_per_request": None})
    found = cost_of([candidate()], splits, prices)
    assert found.rows[0].break_even_months is None
    assert "alternative_per_request" not in found.assumptions


def test_the_assumptions_are_told_in_the_task_s_currency(splits: Splits) -> None:
    found = cost_of([], splits, PRICES)
    assert (found.currency, found.rows) == ("EUR", [])
    assert found.assumptions == PRICES.model_dump()


def test_a_machine_that_costs_nothing_leaves_the_labels_and_the_work(
    candidate: Callable[..., CandidateEvidence], splits: Splits
) -> None:
    prices = PRICES.model_copy(update={"machine_per_hour": 0.0})
    (row,) = cost_of([candidate(kind="prefix", fit_seconds=1000.0)], splits, prices).rows
    assert (row.per_1k_requests, row.monthly, row.one_off) == (0, 0, pytest.approx(850))
