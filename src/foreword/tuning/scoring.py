"""How an output is judged against its target: scores of single texts, and a metric's value on a whole split.

It knows texts: targets, outputs, and how alike they are. It knows no model and no split, and makes no statement about
what was not seen: intervals are `foreword.assessment.metrics`' business. An output of None means "no answer" and counts
as wrong.
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


def value(metric: str, targets: Sequence[str], outputs: Sequence[str | None]) -> float:
    """The metric's value on these examples, in [0, 1]; macro-F1 over the labels that occur in the targets.

    DataError when there is no example, the lengths differ, or no such metric is known.

    >>> value("accuracy", ["yes", "no", "no", "no"], ["yes", "no", "no", None])
    0.75
    """
    score = metric_named(metric).score
    check_examples(targets, outputs=outputs)
    return macro_f1(targets, outputs) if score is None else float(scores_of(score, targets, outputs).mean())


def macro_f1(targets: Sequence[str], outputs: Sequence[str | None]) -> float:
    """The mean over the labels among the targets of each label's F1: 2 right / (examples of it + answers that name it).

    >>> macro_f1(["a", "a", "b"], ["a", "b", "b"])
    0.666...
    """
    there, named = Counter(targets), Counter(outputs)
    right = Counter(target for target, output in zip(targets, outputs, strict=True) if target == output)
    return sum(2 * right[label] / (there[label] + named[label]) for label in there) / len(there)


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


def check_examples(targets: Sequence[str], **outputs: Sequence[str | None]) -> None:
    """DataError when there is no target, or the `outputs` are not one for each."""
    if not targets:
        raise DataError(
            "There is no example to measure on; the metric is undefined.",
            expected="at least one target",
            found="none",
            fix="Give the split at least one example.",
        )
    for name, texts in outputs.items():
        if len(texts) != len(targets):
            raise DataError(
                f"The targets and the {name.replace('_', ' ')} do not belong to the same examples.",
                expected=f"{len(targets)} {name}",
                found=str(len(texts)),
                fix="Give one output per target, in the same order; None where there is no answer.",
            )


def scores_of(
    score: Callable[[str, str], float], targets: Sequence[str], outputs: Sequence[str | None]
) -> NDArray[np.float64]:
    """The score of each example, `(example,)`; 0 where there is no answer."""
    pairs = zip(targets, outputs, strict=True)
    return np.array([0.0 if output is None else score(target, output) for target, output in pairs])


def _canonical(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def _f_measure(common: int, expected: int, found: int) -> float:
    return 2 * common / (expected + found) if expected + found else 1.0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
