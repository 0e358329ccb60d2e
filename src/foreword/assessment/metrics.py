"""Metrics of a task, each with an interval that is honest at small n, and paired comparisons on the same examples.

How texts are scored is `foreword.tuning.scoring`'s business. This module knows no model, no split and no requirement,
and leaves every theorem to `foreword.confidence`; only macro-F1, for which there is none, is simulated (`macro_f1`) and
says so in its `method`. An output of None means "no answer" and counts as wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foreword.assessment.evidence import Difference, LabelFailures, MetricEstimate
from foreword.assessment.macro_f1 import simulated
from foreword.confidence import Interval, mean_interval, paired_rate_difference_interval, rate_interval
from foreword.tuning.scoring import METRICS, accuracy, check_examples, metric_named, scores_of


def measure(
    metric: str, targets: Sequence[str], outputs: Sequence[str | None], *, level: float = 0.95
) -> MetricEstimate:
    """The metric's value on these examples, with an interval for its value on the population they are drawn from.

    Rates: Clopper-Pearson. Graded means: betting. Both are guaranteed for independent examples. Macro-F1, over the
    labels that occur in the targets: see `simulated`, an estimate. DataError when there is nothing to measure, the
    lengths differ, or no such metric is known; ValueError when `level` is not between 0 and 1.

    >>> estimate = measure("accuracy", ["yes", "no", "no"], ["yes", "no", None])
    >>> round(estimate.value, 2), round(estimate.low, 2), round(estimate.high, 2), estimate.method
    (0.67, 0.09, 0.99, 'clopper-pearson')
    """
    score = metric_named(metric).score
    _check(targets, level, outputs=outputs)
    if score is None:
        value, interval = simulated(targets, [outputs], level)
    else:
        scores = scores_of(score, targets, outputs)
        value, interval = float(scores.mean()), _score_interval(metric, scores, level)
    return MetricEstimate(
        name=metric,
        value=value,
        low=interval.low,
        high=interval.high,
        level=level,
        method=interval.method,
        n=len(targets),
    )


def compare(
    metric: str,
    targets: Sequence[str],
    outputs: Sequence[str | None],
    rival_outputs: Sequence[str | None],
    *,
    to: str,
    level: float = 0.95,
) -> Difference:
    """The metric of `outputs` minus that of `rival_outputs`, called `to`, on the same examples; positive is better.

    Rates: exact unconditional interval for paired outcomes. Graded means: betting on the differences per example. Both
    are guaranteed for independent examples. Macro-F1: simulated jointly, an estimate. Errors as in `measure`.

    >>> compare("accuracy", ["a"] * 50, ["a"] * 50, ["b"] * 10 + ["a"] * 40, to="zero-shot").wins
    10
    """
    found, n = metric_named(metric), len(targets)
    _check(targets, level, outputs=outputs, rival_outputs=rival_outputs)
    score = found.score or accuracy
    differences = scores_of(score, targets, outputs) - scores_of(score, targets, rival_outputs)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    value = float(differences.mean())
    if found.kind == "macro-f1":
        value, interval = simulated(targets, [outputs, rival_outputs], level)
    elif found.kind == "rate":
        interval = paired_rate_difference_interval(wins, losses, n, level=level)
    else:
        interval = mean_interval(differences, low=-1.0, high=1.0, level=level)
    return Difference(
        to=to,
        value=value,
        low=interval.low,
        high=interval.high,
        level=level,
        method=interval.method,
        n=n,
        wins=wins,
        losses=losses,
    )


def failures_by_label(targets: Sequence[str], outputs: Sequence[str | None]) -> dict[str, LabelFailures]:
    """For each label among the targets, in order: its examples, the wrong ones, and the output most often given.

    The last is None when nothing was wrong, or when most often there was no answer; of equals, the first in order.
    """
    _check(targets, 0.5, outputs=outputs)
    wrong: dict[str, Counter[str | None]] = {label: Counter() for label in sorted(set(targets))}
    for target, output in zip(targets, outputs, strict=True):
        if output != target:
            wrong[target][output] += 1
    totals = Counter(targets)
    return {
        label: LabelFailures(
            n=totals[label],
            wrong=counts.total(),
            confused_with=min(counts, key=lambda output: (-counts[output], output or ""), default=None),
        )
        for label, counts in wrong.items()
    }


def _check(targets: Sequence[str], level: float, **outputs: Sequence[str | None]) -> None:
    if not 0 < level < 1:
        raise ValueError(f"The confidence level must lie strictly between 0 and 1; found {level}.")
    check_examples(targets, **outputs)


def _score_interval(metric: str, scores: NDArray[np.float64], level: float) -> Interval:
    if METRICS[metric].kind == "rate":
        return rate_interval(int(scores.sum()), scores.size, level=level)
    return mean_interval(scores, level=level)
