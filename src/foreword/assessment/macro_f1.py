"""Macro-F1 and its simulated interval: the one metric here that no exact theorem covers.

It knows labels and answers. It deliberately claims no guarantee: its interval is an estimate, whose coverage was
measured and is stated where it is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foreword.confidence import Interval

DRAWS = 4000
"""Posterior draws behind a macro-F1 interval: each limit's tail of 2.5% is then simulated to about 0.25%."""

DRAWS_SEED = 1979
"""Seed of those draws, so that the same answers always give the same interval."""

IMAGINED = 0.5
"""Size, in examples, of the observation imagined for each label in a macro-F1 interval (that of Jeffreys' prior)."""


def simulated(targets: Sequence[str], answers: Sequence[Sequence[str | None]], level: float) -> tuple[float, Interval]:
    """Macro-F1 of one list of answers, or of the first minus the second, with a Bayesian-bootstrap interval.

    Examples weigh Gamma(1) each (Rubin, Annals of Statistics 9 (1981)), jointly for both lists. Since what was never
    seen would weigh nothing, each label has one imagined example more, of weight Gamma(1/2): for the lower limit the
    first list gets it wrong (spread evenly over the other labels) and the second right, for the upper limit the
    reverse. The lists exchanged, the same draws give the same interval with the other sign.

    An estimate, not a guarantee, of macro-F1 in the population over the labels that occur. Measured at level 0.95 in
    720 regimes (2 to 25 labels, 20 to 300 examples, 2% to 99% right, balanced or each label 0.6 as frequent as the one
    before, errors spread or all on one label; lists that agree by chance or up to 90%; 300 repetitions each): 97.7% on
    average for a value, 99.2% for a difference. The lowest regimes, repeated 3,000 times, lie between 94.4% and 97%. It
    is wide where labels have few examples. Imagining both outcomes for both limits, the plain Jeffreys prior, covers as
    little as 40%, since it pulls each label to 1/2; one imagined example in all instead of half a one per label, 53%
    for a difference.
    """
    labels = sorted(set(targets))
    position: dict[str | None, int] = {label: index for index, label in enumerate(labels)}
    observed = [[position.get(text, len(labels)) for text in texts] for texts in (targets, *answers)]
    if len(answers) == 2 and sorted(zip(*observed, strict=True)) > sorted(
        zip(observed[0], *observed[:0:-1], strict=True)
    ):
        value, found = simulated(targets, answers[::-1], level)
        return -value, Interval(-found.high, -found.low, level, found.method)
    (truth, *predicted), repeats = np.unique(np.array(observed), axis=1, return_counts=True)
    counts = repeats.astype(np.float64)
    rng = np.random.default_rng(DRAWS_SEED)
    weights = rng.standard_gamma(counts, size=(DRAWS, counts.size))
    imagined = rng.standard_gamma(IMAGINED, size=(DRAWS, len(labels)))
    none = np.zeros((1, len(labels)))
    value, low, high = 0.0, np.zeros(DRAWS), np.zeros(DRAWS)
    for sign, found in zip((1, -1), predicted, strict=False):
        value += sign * float(_macro_f1(counts[None], truth, found, right=none, wrong=none)[0])
        pessimistic = _macro_f1(weights, truth, found, right=none, wrong=imagined)
        optimistic = _macro_f1(weights, truth, found, right=imagined, wrong=none)
        low += pessimistic if sign > 0 else -optimistic
        high += optimistic if sign > 0 else -pessimistic
    lower, upper = float(np.quantile(low, (1 - level) / 2)), float(np.quantile(high, (1 + level) / 2))
    return value, Interval(min(lower, value), max(upper, value), level, "bayes-bootstrap")


def _macro_f1(
    weights: NDArray[np.float64],
    truth: NDArray[np.int64],
    predicted: NDArray[np.int64],
    *,
    right: NDArray[np.float64],
    wrong: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Macro-F1 per draw, of atoms (`truth`, `predicted`) that weigh `weights` (draw, atom).

    `right` and `wrong` (draw, label) are weights added to each label's examples that are predicted right, or wrong.
    """
    labels = right.shape[1]
    unit = np.eye(labels + 1)[:, :labels]
    hits = weights @ (unit[truth] * (truth == predicted)[:, None]) + right
    there = weights @ unit[truth] + right + wrong
    named = weights @ unit[predicted] + right + (wrong.sum(axis=1, keepdims=True) - wrong) / max(labels - 1, 1)
    return np.asarray(np.mean(2 * hits / (there + named), axis=1))
