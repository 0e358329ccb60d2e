"""Each bound equals an independent computation of its theorem, obeys its symmetries, and refuses what means nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from foreword.confidence import (
    BET_CAP,
    SHUFFLE_SEED,
    Interval,
    _score,
    mean_interval,
    paired_rate_difference_interval,
    rate_interval,
    rate_upper_bound,
    trials_needed,
)

laws = settings(max_examples=60, deadline=None, derandomize=True, database=None)
levels = st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99])
unit_values = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=40)


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    trials = draw(st.integers(1, 400))
    return draw(st.integers(0, trials)), trials


@st.composite
def pairs(draw: st.DrawFn) -> tuple[int, int, int]:
    trials = draw(st.integers(1, 60))
    wins = draw(st.integers(0, trials))
    return wins, draw(st.integers(0, trials - wins)), trials


def width(interval: Interval) -> float:
    return interval.high - interval.low


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 17), (60, 300), (4999, 5000)])
@pytest.mark.parametrize("level", [0.8, 0.95, 0.999])
def test_rate_interval_equals_scipys_exact_one(successes: int, trials: int, level: float) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(level, method="exact")
    found = rate_interval(successes, trials, level=level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
    assert (found.level, found.method) == (level, "clopper-pearson")


@pytest.mark.parametrize(("failures", "trials"), [(0, 20), (0, 60), (0, 300), (2, 30), (30, 30)])
def test_rate_upper_bound_equals_scipys_one_sided_one(failures: int, trials: int) -> None:
    expected = stats.binomtest(failures, trials, alternative="less").proportion_ci(0.95, method="exact").high
    assert rate_upper_bound(failures, trials) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("trials", "bound"), [(20, 0.139), (60, 0.049), (300, 0.010)])
def test_no_failure_in_n_trials_leaves_the_textbook_bound(trials: int, bound: float) -> None:
    assert rate_upper_bound(0, trials) == pytest.approx(1 - 0.05 ** (1 / trials))
    assert rate_upper_bound(0, trials) == pytest.approx(bound, abs=5e-4)


def test_without_observations_nothing_is_excluded() -> None:
    assert rate_interval(0, 0) == Interval(0.0, 1.0, 0.95, "clopper-pearson")
    assert rate_upper_bound(0, 0) == 1.0
    assert mean_interval([], low=-2, high=3) == Interval(-2, 3, 0.95, "betting")
    assert paired_rate_difference_interval(0, 0, 0) == Interval(-1.0, 1.0, 0.95, "exact-unconditional")


@laws
@given(counts(), levels)
def test_rate_interval_mirrors_when_success_and_failure_swap(count: tuple[int, int], level: float) -> None:
    successes, trials = count
    found, mirrored = (
        rate_interval(successes, trials, level=level),
        rate_interval(trials - successes, trials, level=level),
    )
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-12)
    assert found.low <= successes / trials <= found.high


@laws
@given(counts())
def test_more_confidence_never_narrows_a_rate_interval(count: tuple[int, int]) -> None:
    narrow, wide = rate_interval(*count, level=0.9), rate_interval(*count, level=0.99)
    assert wide.low <= narrow.low <= narrow.high <= wide.high


def betting_capital(values: list[float], mean: float, level: float) -> float:
    """Highest capital against `mean` from below, by the formulas of the paper, one value at a time."""
    order = np.random.default_rng(SHUFFLE_SEED).permutation(np.array(values))
    capital = best = 1.0
    seen: list[float] = []
    squares = 0.0
    for value in order:
        variance = (0.25 + squares) / (len(seen) + 1)
        bet = math.sqrt(2 * math.log(2 / (1 - level)) / (len(values) * variance))
        capital *= 1 + min(bet, BET_CAP / mean) * (value - mean)
        best = max(best, capital)
        seen.append(value)
        squares += (value - (0.5 + sum(seen)) / (len(seen) + 1)) ** 2
    return best


@laws
@given(unit_values, levels)
def test_mean_interval_excludes_exactly_what_the_paper_s_capital_excludes(values: list[float], level: float) -> None:
    found, mean, target = mean_interval(values, level=level), float(np.mean(values)), 2 / (1 - level)
    if found.low < mean:
        assert betting_capital(values, found.low + 1e-9, level) < target
        assert found.low == 0 or betting_capital(values, found.low, level) >= target * (1 - 1e-9)
    if found.high > mean:
        mirrored = [1 - value for value in values]
        assert betting_capital(mirrored, 1 - found.high + 1e-9, level) < target
        assert found.high == 1 or betting_capital(mirrored, 1 - found.high, level) >= target * (1 - 1e-9)


@laws
@given(unit_values, levels)
def test_mean_interval_contains_the_mean_and_mirrors(values: list[float], level: float) -> None:
    found = mean_interval(values, level=level)
    mirrored = mean_interval([1 - value for value in values], level=level)
    assert 0 <= found.low <= float(np.mean(values)) <= found.high <= 1
    assert (found.low, found.high) == pytest.approx((1 - mirrored.high, 1 - mirrored.low), abs=1e-9)


@laws
@given(unit_values)
def test_mean_interval_follows_a_change_of_units(values: list[float]) -> None:
    found, scaled = mean_interval(values), mean_interval([5 * value - 2 for value in values], low=-2, high=3)
    assert (scaled.low, scaled.high) == pytest.approx((5 * found.low - 2, 5 * found.high - 2), abs=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [1, 5, 100])
def test_equal_values_leave_an_interval_that_is_neither_a_point_nor_empty(constant: float, n: int) -> None:
    found = mean_interval([constant] * n)
    assert found.low <= constant <= found.high
    # Had each value been drawn as 1 (or as 0) with probability d instead, n equal values would still be seen with
    # probability (1 - d)^n; where that exceeds 5%, the means c + d (1 - c) and c - d c must both be kept.
    assert width(found) >= 1 - 0.05 ** (1 / n) - 1e-12


def test_mean_interval_uses_a_small_variance() -> None:
    values = np.random.default_rng(5).beta(90, 10, size=300)
    hoeffding = 2 * math.sqrt(math.log(2 / 0.05) / (2 * 300))
    assert width(mean_interval(values)) < hoeffding / 5


@laws
@given(pairs(), levels)
def test_paired_interval_contains_the_difference_and_changes_sign_with_the_roles(
    outcome: tuple[int, int, int], level: float
) -> None:
    wins, losses, trials = outcome
    found = paired_rate_difference_interval(wins, losses, trials, level=level)
    swapped = paired_rate_difference_interval(losses, wins, trials, level=level)
    assert (found.low, found.high) == (-swapped.high, -swapped.low)
    assert -1 <= found.low <= (wins - losses) / trials <= found.high <= 1
    assert found.low < found.high


@pytest.mark.parametrize("trials", [1, 5, 20, 100, 1000])
def test_no_discordant_pair_still_leaves_room_for_a_difference(trials: int) -> None:
    found = paired_rate_difference_interval(0, 0, trials)
    # With P(win) = d and P(loss) = 0, no discordant pair is seen with probability (1 - d)^n: where that exceeds 5%, d
    # must be kept. A difference is at most the discordance rate, whose upper bound errs with 0.02 * 5% / 2 = 0.05%.
    assert found.high == -found.low
    assert 1 - 0.05 ** (1 / trials) <= found.high <= 1 - 0.0005 ** (1 / trials)


def test_a_further_win_never_lowers_and_a_further_loss_never_raises_the_paired_interval() -> None:
    ends = {
        (wins, losses): paired_rate_difference_interval(wins, losses, 15)
        for wins in range(16)
        for losses in range(16 - wins)
    }
    slack = 0.005  # bisection stops at this part of a standard error, which is below 1
    for (wins, losses), found in ends.items():
        for better in ((wins + 1, losses), (wins, losses - 1)):
            if better in ends:
                assert ends[better].low >= found.low - slack
                assert ends[better].high >= found.high - slack


@pytest.mark.parametrize(("wins", "losses", "trials"), [(3, 1, 50), (10, 10, 200), (14, 6, 200), (42, 18, 200)])
def test_paired_interval_is_narrower_than_the_other_guaranteed_constructions(
    wins: int, losses: int, trials: int
) -> None:
    found = width(paired_rate_difference_interval(wins, losses, trials))
    differences = [1.0] * wins + [-1.0] * losses + [0.0] * (trials - wins - losses)
    rng = np.random.default_rng(3)
    betting = np.mean([width(mean_interval(rng.permutation(differences), low=-1)) for _ in range(10)])
    separate = width(rate_interval(wins, trials, level=0.975)) + width(rate_interval(losses, trials, level=0.975))
    share = rate_interval(wins, wins + losses, level=0.96)
    most = rate_interval(wins + losses, trials, level=0.99).high
    conditional = most * ((2 * share.high - 1) - (2 * share.low - 1))
    assert found < min(betting, separate, conditional)


@pytest.mark.parametrize("trials", [1, 2, 5, 12, 20])
def test_the_score_that_ranks_outcomes_is_monotone_in_wins_losses_and_difference(trials: int) -> None:
    # The two facts that the exactness of the paired interval rests on, beyond its theorems.
    wins, losses = np.meshgrid(np.arange(trials + 1.0), np.arange(trials + 1.0), indexing="ij")
    possible = np.where(wins + losses <= trials, 1.0, np.nan)
    differences = np.linspace(-0.999, 0.999, 200)
    scores = np.stack([possible * _score(wins, losses, trials, float(difference)) for difference in differences])
    assert np.nanmax(np.diff(scores, axis=0)) <= 1e-9
    assert np.nanmin(np.diff(scores, axis=1)) >= -1e-9
    assert np.nanmax(np.diff(scores, axis=2)) <= 1e-9


def trials_needed_by_counting(rate: float, threshold: float, *, level: float, limit: int) -> int | None:
    for trials in range(1, limit + 1):
        successes = math.floor(rate * trials + 1e-9) if rate > threshold else math.ceil(rate * trials - 1e-9)
        found = rate_interval(successes, trials, level=level)
        if rate > threshold < found.low or rate < threshold > found.high:
            return trials
    return None


@laws
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 10), levels)
def test_trials_needed_is_the_first_that_counting_finds(
    successes: int, failures: int, tenths: int, level: float
) -> None:
    rate, threshold = successes / max(successes + failures, 1), tenths / 10
    if rate != threshold:
        expected = trials_needed_by_counting(rate, threshold, level=level, limit=300)
        assert trials_needed(rate, threshold, level=level, limit=300) == expected


def test_trials_needed_is_none_on_the_threshold_and_beyond_the_limit() -> None:
    assert trials_needed(0.9, 0.9) is None
    assert trials_needed(0.9001, 0.9, limit=10_000) is None
    assert trials_needed(1.0, 0.95) == 72
    assert trials_needed(1.0, 0.95, limit=71) is None


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: rate_interval(-1, 5), "whole number"),
        (lambda: rate_interval(1.5, 5), "whole number"),  # type: ignore[arg-type]
        (lambda: rate_interval(math.nan, 5), "whole number"),  # type: ignore[arg-type]
        (lambda: rate_interval(6, 5), "more successes than trials"),
        (lambda: rate_upper_bound(6, 5), "more failures than trials"),
        (lambda: paired_rate_difference_interval(3, 3, 5), "more wins and losses than trials"),
        (lambda: paired_rate_difference_interval(0, -1, 5), "whole number"),
        (lambda: rate_interval(1, 5, level=1.0), "level"),
        (lambda: rate_upper_bound(1, 5, level=math.nan), "level"),
        (lambda: mean_interval([0.5], level=0.0), "level"),
        (lambda: mean_interval([0.5, math.nan]), "NaN"),
        (lambda: mean_interval([0.5, 1.1]), "Every value"),
        (lambda: mean_interval([0.5], low=1, high=1), "low < high"),
        (lambda: mean_interval([[0.5]]), "flat"),  # type: ignore[list-item]
        (lambda: trials_needed(1.1, 0.5), "rate"),
        (lambda: trials_needed(0.5, math.nan), "threshold"),
        (lambda: trials_needed(0.5, 0.4, limit=0), "limit"),
    ],
)
def test_meaningless_arguments_are_refused_in_a_sentence(call: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        call()  # type: ignore[operator]
