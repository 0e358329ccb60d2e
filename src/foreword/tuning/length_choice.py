"""Which of several lengths to take: the shortest that is statistically as good as the best.

It knows per-example outcomes on one split, and nothing of how they came about. The rule, for a shorter length against
the one with the best metric (of equals, with the lowest mean loss), at level 1 - a:

1. The metric decides where it can. With D the metric of the best minus that of the shorter one, on the same examples,
   an exact paired interval [low, high] of level 1 - a is computed. low > 0: worse. high <= margin: as good.
2. Otherwise the split is too small for the metric to say, and the losses decide. Worse: the best's loss is the lower
   one on so many examples that a fair coin does that with probability at most a/2 (exact sign test), and the
   probability that it gives the targets is higher by more than the margin on average.
3. Neither can say for sure on a split like this. Likely worse: its metric, or the probability that it gives the
   targets, is lower by more than the margin and by more than one standard error of the paired differences. It is not
   taken: what a longer prefix costs is small beside what a shorter one may lose. (One standard error is the rule of
   Breiman et al., "Classification and Regression Trees", 1984, 3.4.3, with paired differences.)
4. Otherwise nothing speaks against the shorter one: it counts as good, and is said to be "not shown worse".

Where a prefix imitates a teacher the targets do not count. The examples are then the teacher's lessons, and the metric
is how like the teacher it is on each: exp(-divergence).

What that guarantees, for independent examples: a given length that is truly as good (D <= 0, and losses as often lower
as higher) is called worse with probability at most a, by the union bound over the two tests, each of error a/2; and
likely worse with about a third at most, as a mean is above one standard error with probability 0.16 (normal). One
that is called "as good" is truly worse by more than the margin with probability at most a/2.
What it does not: "not shown worse" is no proof of anything, only a lack of evidence, and more so the fewer the
examples. The best is chosen on the same split, so its own value is optimistic, which makes the rule err towards longer
prefixes. Nothing is corrected for the number of lengths. The split was used for early stopping as well: a value to
report needs another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from foreword.confidence import mean_interval, paired_rate_difference_interval
from foreword.tuning.effective_rank import LayerRank
from foreword.tuning.scoring import accuracy, metric_named, scores_of
from foreword.tuning.selection_outcomes import Outcomes

Finding = Literal["best", "as good", "not shown worse", "likely worse", "worse"]
REFUSED = ("worse", "likely worse")
LEVEL = 0.95
LIKENESS = "likeness"
"""The metric of what imitates a teacher: the mean of exp(-divergence) over lessons, in [0, 1]."""
MARGIN = 0.02
"""A metric lower by this much counts as equally good: two points of a hundred."""


@dataclass(frozen=True)
class Comparison:
    """One length against the best: `difference` is the best's metric minus its own, in [`low`, `high`] at the level.

    `wins` counts examples on which the best's outcome is better, `losses` those on which it is worse; `lower_loss`
    those on which the best's loss is lower. `sign_test` is the one-sided probability of that many under a fair coin,
    `gain` the mean gain in the target's probability. `by` says which evidence decided.
    """

    finding: Finding
    by: Literal["metric", "loss", "neither"]
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    lower_loss: int
    sign_test: float
    gain: float


@dataclass(frozen=True)
class PrefixCost:
    """What a prefix adds to the bare model: bytes kept, attention's FLOPs per token read, ms per forward pass.

    `flops_per_token` are 4 per position, layer and width (a product with the key and one with the value, each a
    multiplication and an addition). `added_ms` is measured on this machine, one input at a time: the median of paired
    differences, which can be negative where noise is larger.
    """

    bytes: int
    flops_per_token: int
    added_ms: float


@dataclass(frozen=True)
class LengthTrial:
    """One length of a sweep, fitted: metric and mean loss on the selection split, steps, seconds, cost and ranks."""

    length: int
    selection: float
    loss: float
    steps: int
    seconds: float
    cost: PrefixCost
    ranks: tuple[LayerRank, ...]
    comparison: Comparison


@dataclass(frozen=True)
class Sweep:
    """The lengths tried, shortest first; `best` has the best metric, `chosen` is the shortest that is as good."""

    trials: tuple[LengthTrial, ...]
    best: int
    chosen: int
    metric: str
    level: float
    margin: float
    examples: int

    @property
    def trial(self) -> LengthTrial:
        """The chosen one."""
        return next(trial for trial in self.trials if trial.length == self.chosen)

    @property
    def _shorter(self) -> list[LengthTrial]:
        return [trial for trial in self.trials if trial.length < self.chosen]

    @property
    def sentence(self) -> str:
        """Why this length, in words.

        It says which kind of evidence there was, since a lack of evidence is easily read as a proof.
        """
        found, chosen = self.trial.comparison, f"{self.chosen} position" + ("s" if self.chosen > 1 else "")
        if found.finding == "best":
            if self.chosen == self.trials[0].length:
                return f"{chosen}: the best of {len(self.trials)}, and no shorter one was tried."
            surely = "" if all(trial.comparison.finding == "worse" for trial in self._shorter) else "likely "
            return f"{chosen}: the best, and every shorter prefix is {surely}worse by its metric or its losses."
        if found.finding == "as good":
            bound = f"at most {max(found.high, 0.0):.3f} below the best ({self.best}) at {self.level:.0%} confidence"
            return f"{chosen}: {bound}."
        return (
            f"{chosen}: not shown worse than the best ({self.best}) on {self.examples} examples, "
            f"which leave open a difference of up to {found.high:.3f}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "sentence": self.sentence}


def best_of(lengths: Sequence[int], selections: Sequence[float], outcomes: Sequence[Outcomes]) -> int:
    """Index of the highest metric; of equals the lowest mean loss, then the shortest."""
    order = sorted(range(len(lengths)), key=lambda i: (-selections[i], outcomes[i].loss, lengths[i]))
    return order[0]


def compared(
    metric: str,
    targets: Sequence[str],
    best: Outcomes,
    other: Outcomes,
    *,
    level: float = LEVEL,
    margin: float = MARGIN,
) -> Comparison:
    """How `other` stands against `best` on the same examples, by the rule at the top of this module.

    Macro-F1 belongs to no single example: there right or wrong is compared.
    """
    if metric == LIKENESS:
        kind, differences = "mean", best.likenesses - other.likenesses
    else:
        judged = metric_named(metric)
        kind, score = judged.kind, judged.score or accuracy
        differences = scores_of(score, targets, best.outputs) - scores_of(score, targets, other.outputs)
    wins, losses, n = int((differences > 0).sum()), int((differences < 0).sum()), len(targets)
    if kind == "mean":
        interval = mean_interval(differences, low=-1.0, high=1.0, level=level)
    else:
        interval = paired_rate_difference_interval(wins, losses, n, level=level)
    lower, sign_test = _by_losses(np.array(best.losses), np.array(other.losses))
    gains = best.likenesses - other.likenesses
    gain = float(np.mean(gains))
    finding: Finding = "not shown worse"
    by: Literal["metric", "loss", "neither"] = "neither"
    if interval.low > 0:
        finding, by = "worse", "metric"
    elif interval.high <= margin:
        finding, by = "as good", "metric"
    elif sign_test <= (1 - level) / 2 and gain > margin:
        finding, by = "worse", "loss"
    elif _leans(differences, margin):
        finding, by = "likely worse", "metric"
    elif _leans(gains, margin):
        finding, by = "likely worse", "loss"
    return Comparison(
        finding, by, float(differences.mean()), interval.low, interval.high, wins, losses, lower, sign_test, gain
    )


def the_best() -> Comparison:
    """The best against itself."""
    return Comparison("best", "metric", 0.0, 0.0, 0.0, 0, 0, 0, 1.0, 0.0)


def shortest_as_good(lengths: Sequence[int], comparisons: Sequence[Comparison]) -> int:
    """The shortest length that is neither worse than the best nor likely so; the best itself is not."""
    return min(length for length, found in zip(lengths, comparisons, strict=True) if found.finding not in REFUSED)


def _leans(differences: NDArray[np.float64], margin: float) -> bool:
    """Whether paired differences are above the margin, and above one standard error of their mean."""
    if len(differences) < 2:  # no spread to judge by
        return False
    error = float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    return bool(np.mean(differences) > max(margin, error))


def _by_losses(best: NDArray[np.float64], other: NDArray[np.float64]) -> tuple[int, float]:
    """Examples on which the best's loss is lower, and the sign test's one-sided p-value.

    Sign test: given that they differ, either is the lower one with probability 1/2; P(Binomial(m, 1/2) >= lower).
    """
    lower, differing = int((best < other).sum()), int((best != other).sum())
    return lower, float(binom.sf(lower - 1, differing, 0.5)) if differing else 1.0
