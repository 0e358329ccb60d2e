"""Each interval misses the truth at most as often as it says, at small n and in the corners.

Where outcomes can be counted, coverage is computed exactly. Where they cannot, seeded repetitions against a known truth
are judged by the binomial: an interval whose true error is at most delta exceeds the 1 - 1e-6 quantile of
Binomial(repetitions, delta) misses in fewer than one of a million seeds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from foreword.assessment.metrics import compare, measure
from foreword.confidence import (
    mean_interval,
    paired_rate_difference_interval,
    rate_interval,
    rate_upper_bound,
)

ROUNDING = 1e-9

Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]


def most_misses(repetitions: int, delta: float) -> int:
    return int(stats.binom.ppf(1 - 1e-6, repetitions, delta))


def misses(draw: Draw, truth: float, *, n: int, repetitions: int, low: float = 0.0, level: float = 0.95) -> int:
    rng = np.random.default_rng([n, repetitions])
    found = (mean_interval(draw(rng, n), low=low, level=level) for _ in range(repetitions))
    return sum(not interval.low <= truth <= interval.high for interval in found)


def test_the_pass_mark_catches_an_interval_that_is_too_narrow() -> None:
    rng = np.random.default_rng(0)
    rates = rng.binomial(20, 0.05, size=600) / 20
    reach = 1.96 * np.sqrt(rates * (1 - rates) / 20)  # the textbook normal approximation
    assert np.sum(np.abs(rates - 0.05) > reach) > most_misses(600, 0.05)


@pytest.mark.parametrize("n", [1, 5, 20, 60])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_rate_bounds_cover_every_rate_exactly_counted(n: int, level: float) -> None:
    found = [rate_interval(successes, n, level=level) for successes in range(n + 1)]
    upper = np.array([rate_upper_bound(failures, n, level=level) for failures in range(n + 1)])
    low, high = np.array([interval.low for interval in found]), np.array([interval.high for interval in found])
    for rate in [*np.linspace(0, 1, 101), 1e-4, 0.002, 0.998, 1 - 1e-4]:
        mass = stats.binom.pmf(np.arange(n + 1), n, rate)
        assert mass[(low <= rate + ROUNDING) & (rate - ROUNDING <= high)].sum() >= level - ROUNDING
        assert mass[rate - ROUNDING <= upper].sum() >= level - ROUNDING


@pytest.mark.parametrize(
    ("n", "level"), [(1, 0.95), (5, 0.95), (5, 0.8), (11, 0.95), pytest.param(20, 0.95, marks=pytest.mark.slow)]
)
def test_paired_interval_covers_every_pair_of_rates_exactly_counted(n: int, level: float) -> None:
    outcomes = np.array([(wins, losses) for wins in range(n + 1) for losses in range(n + 1 - wins)])
    found = [paired_rate_difference_interval(int(wins), int(losses), n, level=level) for wins, losses in outcomes]
    low, high = np.array([interval.low for interval in found]), np.array([interval.high for interval in found])
    neither = n - outcomes.sum(axis=1, keepdims=True)
    rates = [0.0, 0.005, 0.02, *np.linspace(0.05, 0.95, 19), 0.98, 0.995, 1.0]
    for win in rates:
        for loss in rates:
            if win + loss <= 1:
                chances = [win, loss, max(1 - win - loss, 0.0)]
                mass = stats.multinomial.pmf(np.hstack([outcomes, neither]), n, chances)
                covers = (low <= win - loss + ROUNDING) & (win - loss - ROUNDING <= high)
                assert mass[covers].sum() >= level - ROUNDING, (win, loss)


@pytest.mark.parametrize(
    ("win", "loss"),
    [
        (0.02, 0.01),
        pytest.param(0.16, 0.04, marks=pytest.mark.slow),
        pytest.param(0.35, 0.25, marks=pytest.mark.slow),
    ],
    ids=["highly-correlated", "correlated", "hardly-correlated"],
)
def test_paired_interval_covers_at_the_size_of_a_real_test_split(win: float, loss: float) -> None:
    draws = np.random.default_rng(17).multinomial(60, [win, loss, 1 - win - loss], size=400)
    found = [paired_rate_difference_interval(int(wins), int(losses), 60) for wins, losses, _ in draws]
    assert sum(not interval.low <= win - loss <= interval.high for interval in found) <= most_misses(400, 0.05)


MEANS: dict[str, tuple[Draw, float]] = {
    "rare": (lambda rng, n: (rng.random(n) < 0.02).astype(float), 0.02),
    "nearly-always": (lambda rng, n: (rng.random(n) < 0.97).astype(float), 0.97),
    "skewed": (lambda rng, n: rng.beta(0.2, 3, n), 0.2 / 3.2),
    "mostly-one-else-graded": (lambda rng, n: np.where(rng.random(n) < 0.9, 1.0, rng.random(n) ** 2), 0.9 + 0.1 / 3),
    "two-heaps": (lambda rng, n: rng.beta(0.1, 0.1, n), 0.5),
    "narrow": (lambda rng, n: rng.beta(80, 20, n), 0.8),
    "constant": (lambda _, n: np.full(n, 0.25), 0.25),
}


@pytest.mark.parametrize("n", [5, 20, 150])
@pytest.mark.parametrize("values", MEANS)
def test_mean_interval_covers_the_mean_of_bounded_values(values: str, n: int) -> None:
    draw, truth = MEANS[values]
    assert misses(draw, truth, n=n, repetitions=300) <= most_misses(300, 0.05)


@pytest.mark.parametrize("n", [5, 20, 150])
@pytest.mark.parametrize("shared", [0.0, 0.95], ids=["apart", "nearly-the-same"])
def test_mean_interval_covers_paired_graded_differences(shared: float, n: int) -> None:
    def draw(rng: np.random.Generator, n: int) -> NDArray[np.float64]:
        first, second = rng.beta(4, 2, n), rng.beta(2, 2, n)
        return first - np.where(rng.random(n) < shared, first, second)

    truth = (1 - shared) * (4 / 6 - 1 / 2)
    assert misses(draw, truth, n=n, repetitions=300, low=-1.0) <= most_misses(300, 0.05)


def test_mean_interval_keeps_a_lower_level_too() -> None:
    draw, truth = MEANS["skewed"]
    assert misses(draw, truth, n=40, repetitions=600, level=0.7) <= most_misses(600, 0.3)


def confusion(classes: int, accuracy: float) -> NDArray[np.float64]:
    """Rows of P(output | label): right with `accuracy`, else the first other label."""
    rows = np.diag(np.full(classes, accuracy))
    rows[np.arange(classes), (np.arange(classes) == 0).astype(int)] += 1 - accuracy
    return rows


def macro_f1(prior: NDArray[np.float64], rows: NDArray[np.float64], present: NDArray[np.int64]) -> float:
    joint = prior[:, None] * rows
    return float(np.mean((2 * np.diag(joint) / (joint.sum(axis=0) + joint.sum(axis=1)))[present]))


@pytest.mark.parametrize(
    ("classes", "n", "accuracy", "skew"),
    [
        (2, 20, 0.8, 1.0),
        pytest.param(2, 300, 0.3, 0.6, marks=pytest.mark.slow),
        (3, 50, 0.3, 1.0),
        pytest.param(5, 100, 0.8, 0.6, marks=pytest.mark.slow),
        (10, 20, 0.6, 1.0),
        (10, 60, 0.99, 0.6),
    ],
)
def test_macro_f1_intervals_cover_as_often_as_their_docstring_says(
    classes: int, n: int, accuracy: float, skew: float
) -> None:
    prior = skew ** np.arange(classes)
    prior /= prior.sum()
    own, other = confusion(classes, accuracy), confusion(classes, 0.7)
    rng = np.random.default_rng([classes, n])
    missed, missed_difference, repetitions = 0, 0, 100
    for _ in range(repetitions):
        truth = rng.choice(classes, size=n, p=prior)
        answers = [(rows.cumsum(axis=1)[truth] < rng.random((n, 1))).sum(axis=1) for rows in (own, other)]
        answers[1] = np.where(rng.random(n) < 0.5, answers[0], answers[1])
        targets, mine, rival = ([f"{label:02}" for label in column] for column in (truth, *answers))
        present = np.unique(truth)
        value, rivals = (macro_f1(prior, rows, present) for rows in (own, (own + other) / 2))
        estimate, difference = measure("macro-f1", targets, mine), compare("macro-f1", targets, mine, rival, to="rival")
        missed += not estimate.low <= value <= estimate.high
        missed_difference += not difference.low <= value - rivals <= difference.high
    # The docstring's lowest figure is a coverage of 94.4%.
    assert max(missed, missed_difference) <= most_misses(repetitions, 0.056)
