"""Metrics of a task, each with an interval that is honest at small n, and paired comparisons on the same examples.

It knows texts: targets, outputs, and how alike they are. It knows no model, no split and no requirement, and it leaves
every theorem to `foreword.confidence`; only macro-F1, for which there is none, is simulated (`macro_f1`) and says so in
its `method`. An output of None means "no answer" and counts as wrong.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from foreword.assessment.evidence import Difference, LabelFailures, MetricEstimate
from foreword.assessment.macro_f1 import simulated
from foreword.confidence import Interval, mean_interval, paired_rate_difference_interval, rate_interval
from foreword.errors import DataError

# Han, kana and their iteration marks are written without spaces between words, so each character is a token.
_CJK = "\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
_TOKEN = re.compile(rf"(?=\w)[{_CJK}]|(?:(?![{_CJK}])\w)+")


@dataclass(frozen=True)
class Metric:
    """How outputs are judged. `score(target, output)` in [0, 1] judges one example; macro-F1 has none.

    `kind` says what the scores are: "rate" (0 or 1), "mean" (graded), or "macro-f1" (of the whole set).
    """

    name: str
    kind: Literal["rate", "mean", "macro-f1"]
    tasks: tuple[Literal["classify", "generate"], ...]
    score: Callable[[str, str], float] | None


def accuracy(target: str, output: str) -> float:
    """1 when the label is the target's, character for character."""
    return float(target == output)


def exact_match(target: str, output: str) -> float:
    """1 when the texts agree after Unicode NFC, stripping, and collapsing of white space; case matters.

    >>> exact_match("two  words", " two words\\n")
    1.0
    """
    return float(_canonical(target) == _canonical(output))


def token_f1(target: str, output: str) -> float:
    """F1 of the two bags of tokens (see `tokens`); 1 when both are empty, 0 when one is. As in SQuAD, any language.

    Rajpurkar et al., arXiv 1606.05250.

    >>> token_f1("the red car", "a red car")
    0.666...
    """
    expected, found = tokens(target), tokens(output)
    return _f_measure((Counter(expected) & Counter(found)).total(), len(expected), len(found))


def rouge_l(target: str, output: str) -> float:
    """F-measure of the longest common subsequence of tokens; 1 when both texts are empty, 0 when one is.

    Lin, ROUGE (2004), with equal weight on precision and recall.

    >>> rouge_l("police killed the gunman", "police kill the gunman")
    0.75
    """
    expected, found = tokens(target), tokens(output)
    return _f_measure(longest_common_subsequence(expected, found), len(expected), len(found))


def json_valid(target: str, output: str) -> float:  # noqa: ARG001 - every score takes a target
    """1 when the whole output is one JSON value by RFC 8259, which has no NaN or Infinity. The target is ignored."""
    try:
        json.loads(output, parse_constant=_refuse_constant, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        metric.name: metric
        for metric in (
            Metric("accuracy", "rate", ("classify",), accuracy),
            Metric("macro-f1", "macro-f1", ("classify",), None),
            Metric("exact-match", "rate", ("generate",), exact_match),
            Metric("token-f1", "mean", ("generate",), token_f1),
            Metric("rouge-l", "mean", ("generate",), rouge_l),
            Metric("json-valid", "rate", ("generate",), json_valid),
        )
    }
)


def tokens(text: str) -> list[str]:
    """The words of a text: NFKC, case folded, runs of letters, digits and _; each Han or kana character on its own.

    >>> tokens("It's 3 ＡＢ, 東京タワー")
    ['it', 's', '3', 'ab', '東', '京', 'タ', 'ワ', 'ー']
    """
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def longest_common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the table per token of `second` held in one integer.

    Bit i of `row` is 0 where the table's row grows at column i; the update is Hyyrö's (AWOCA 2004).
    """
    columns: dict[str, int] = defaultdict(int)
    for position, token in enumerate(first):
        columns[token] |= 1 << position
    full = (1 << len(first)) - 1
    row = full
    for token in second:
        matches = row & columns.get(token, 0)
        row = ((row + matches) | (row - matches)) & full
    return len(first) - row.bit_count()


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
    _check_examples(targets, level, outputs=outputs)
    if score is None:
        value, interval = simulated(targets, [outputs], level)
    else:
        scores = _scores(score, targets, outputs)
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
    _check_examples(targets, level, outputs=outputs, rival_outputs=rival_outputs)
    score = found.score or accuracy
    differences = _scores(score, targets, outputs) - _scores(score, targets, rival_outputs)
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
    _check_examples(targets, 0.5, outputs=outputs)
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


def metric_named(name: str) -> Metric:
    """The metric of that name; DataError, with the names that are known, when there is none."""
    if name not in METRICS:
        raise DataError(
            "There is no metric of this name.",
            expected=", ".join(METRICS),
            found=repr(name),
            fix="Name one of these as the task's metric.",
        )
    return METRICS[name]


def _check_examples(targets: Sequence[str], level: float, **outputs: Sequence[str | None]) -> None:
    if not 0 < level < 1:
        raise ValueError(f"The confidence level must lie strictly between 0 and 1; found {level}.")
    if not targets:
        raise DataError(
            "There is no example to measure on; the metric is undefined.",
            expected="at least one target",
            found="none",
            fix="Give the test split at least one example.",
        )
    for name, texts in outputs.items():
        if len(texts) != len(targets):
            raise DataError(
                f"The targets and the {name.replace('_', ' ')} do not belong to the same examples.",
                expected=f"{len(targets)} {name}",
                found=str(len(texts)),
                fix="Give one output per target, in the same order; None where there is no answer.",
            )


def _scores(
    score: Callable[[str, str], float], targets: Sequence[str], outputs: Sequence[str | None]
) -> NDArray[np.float64]:
    pairs = zip(targets, outputs, strict=True)
    return np.array([0.0 if output is None else score(target, output) for target, output in pairs])


def _score_interval(metric: str, scores: NDArray[np.float64], level: float) -> Interval:
    if METRICS[metric].kind == "rate":
        return rate_interval(int(scores.sum()), scores.size, level=level)
    return mean_interval(scores, level=level)


def _canonical(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _f_measure(common: int, expected: int, found: int) -> float:
    return 2 * common / (expected + found) if expected + found else 1.0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
