"""Every metric agrees with an independent oracle, and its intervals and comparisons mean what they say."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from foreword.assessment.evidence import LabelFailures
from foreword.assessment.metrics import compare, failures_by_label, measure
from foreword.confidence import mean_interval, paired_rate_difference_interval, rate_interval
from foreword.errors import DataError
from foreword.tuning.scoring import (
    METRICS,
    exact_match,
    json_valid,
    longest_common_subsequence,
    rouge_l,
    token_f1,
    tokens,
    value,
)

laws = settings(max_examples=60, deadline=None, derandomize=True, database=None)
words = st.lists(st.sampled_from("abcd"), max_size=12)
labels = st.sampled_from(["a", "b", "c"])
answered = st.lists(st.tuples(labels, st.one_of(st.none(), labels, st.just("other"))), min_size=1, max_size=30)


def test_the_registry_names_itself_and_knows_which_task_each_metric_serves() -> None:
    assert {name: (metric.kind, metric.tasks) for name, metric in METRICS.items()} == {
        "accuracy": ("rate", ("classify",)),
        "macro-f1": ("macro-f1", ("classify",)),
        "exact-match": ("rate", ("generate",)),
        "token-f1": ("mean", ("generate",)),
        "rouge-l": ("mean", ("generate",)),
        "json-valid": ("rate", ("generate",)),
    }
    assert all(metric.name == name for name, metric in METRICS.items())


@pytest.mark.parametrize(
    ("target", "output", "score"),
    [
        ("two words", "  two\u3000 words\n", 1.0),
        ("Two words", "two words", 0.0),
        ("が", unicodedata.normalize("NFD", "が"), 1.0),
        ("ＡＢ", "AB", 0.0),
        ("", " ", 1.0),
        ("a", "", 0.0),
    ],
)
def test_exact_match_forgives_composition_and_white_space_only(target: str, output: str, score: float) -> None:
    assert exact_match(target, output) == score


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Straße, don't!", ["strasse", "don", "t"]),
        ("東京は 3月、ｶﾅ・かな", ["東", "京", "は", "3", "月", "カ", "ナ", "か", "な"]),
        ("GPT-4oの時々", ["gpt", "4o", "の", "時", "々"]),
        ("서울 시", ["서울", "시"]),
        ("𠮷野", ["𠮷", "野"]),
        (" \n", []),
    ],
)
def test_tokens_are_words_and_single_cjk_characters(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


@pytest.mark.parametrize(
    ("target", "output", "score"),
    [
        ("the red car", "The car", 0.8),
        ("a a b", "a b b", 2 / 3),
        ("東京都", "京都", 0.8),
        ("", "", 1.0),
        ("a", "", 0.0),
        ("", "a", 0.0),
        ("a", "...", 0.0),
    ],
)
def test_token_f1_is_squads_on_bags_of_tokens(target: str, output: str, score: float) -> None:
    assert token_f1(target, output) == pytest.approx(score)


def test_rouge_l_respects_order_where_token_f1_does_not() -> None:
    assert token_f1("police killed the gunman", "the gunman killed police") == 1.0
    assert rouge_l("police killed the gunman", "the gunman killed police") == 0.5
    assert rouge_l("", "") == 1.0
    assert rouge_l("a", "") == 0.0


@laws
@given(words, words)
def test_bit_parallel_subsequence_equals_the_recursion(first: list[str], second: list[str]) -> None:
    @cache
    def longest(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return 0
        if first[i - 1] == second[j - 1]:
            return longest(i - 1, j - 1) + 1
        return max(longest(i - 1, j), longest(i, j - 1))

    assert longest_common_subsequence(first, second) == longest(len(first), len(second))


@laws
@given(words, words)
def test_graded_scores_are_symmetric_fractions_that_are_one_on_equal_texts(first: list[str], second: list[str]) -> None:
    one, other = " ".join(first), " ".join(second)
    for score in (token_f1, rouge_l):
        assert 0 <= score(one, other) == score(other, one) <= 1
        assert score(one, one) == 1
    assert rouge_l(one, other) <= token_f1(one, other)


@pytest.mark.parametrize("text", ['{"a": [1, 2.5e3, null]}', " 3 ", '"x"', "1" * 5000, "-1e400"])
def test_json_values_are_valid(text: str) -> None:
    assert json_valid("anything", text) == 1.0


@pytest.mark.parametrize("text", ["", "{'a': 1}", "NaN", "[-Infinity]", "{} {}", "```json\n{}\n```", "[" * 200_000])
def test_what_rfc_8259_does_not_allow_is_invalid(text: str) -> None:
    assert json_valid("anything", text) == 0.0


@laws
@given(answered)
def test_macro_f1_equals_sklearns_over_the_labels_of_the_targets(examples: list[tuple[str, str | None]]) -> None:
    targets, outputs = [target for target, _ in examples], [output for _, output in examples]
    named = ["(none)" if output is None else output for output in outputs]
    expected = f1_score(targets, named, labels=sorted(set(targets)), average="macro", zero_division=0)
    found = measure("macro-f1", targets, outputs)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


@laws
@given(answered)
def test_macro_f1_does_not_depend_on_the_order_of_examples(examples: list[tuple[str, str | None]]) -> None:
    targets, outputs = [target for target, _ in examples], [output for _, output in examples]
    assert measure("macro-f1", targets, outputs) == measure("macro-f1", targets[::-1], outputs[::-1])


def test_measure_gives_the_interval_that_the_kind_of_metric_calls_for() -> None:
    targets, outputs = ["a b", "a b", "c d", "e f"], ["a b", "a c", None, "e f g"]
    rate = measure("exact-match", targets, outputs, level=0.9)
    assert (rate.name, rate.value, rate.level, rate.method, rate.n) == ("exact-match", 0.25, 0.9, "clopper-pearson", 4)
    assert (rate.low, rate.high) == (rate_interval(1, 4, level=0.9).low, rate_interval(1, 4, level=0.9).high)
    mean = measure("token-f1", targets, outputs, level=0.9)
    expected = mean_interval([1, 0.5, 0, 0.8], level=0.9)
    assert (mean.value, mean.low, mean.high, mean.method) == (0.575, expected.low, expected.high, "betting")
    assert measure("macro-f1", targets, outputs).method == "bayes-bootstrap"


@pytest.mark.parametrize("metric", METRICS)
def test_no_answer_at_all_scores_zero(metric: str) -> None:
    found = measure(metric, ["a", "", "b"], [None, None, None])
    assert found.value == found.low == 0
    assert 0 < found.high < 1


@pytest.mark.parametrize("metric", [*METRICS])
@pytest.mark.parametrize("output", [None, "1", "other"])
def test_a_list_of_answers_ties_with_itself_within_an_interval_around_zero(metric: str, output: str | None) -> None:
    targets = ["1", "2", "3"] * 20
    found = compare(metric, targets, [output] * 60, [output] * 60, to="itself")
    assert (found.value, found.wins, found.losses, found.n, found.to) == (0, 0, 0, 60, "itself")
    assert -0.2 < found.low < 0 < found.high < 0.2


def test_compare_counts_wins_and_losses_and_gives_the_paired_interval() -> None:
    targets = ["a"] * 40
    mine: Sequence[str | None] = ["a"] * 30 + [None] * 10
    rival: Sequence[str | None] = ["a"] * 18 + ["b"] * 16 + ["a"] * 6
    found = compare("accuracy", targets, mine, rival, to="few-shot", level=0.9)
    expected = paired_rate_difference_interval(12, 6, 40, level=0.9)
    assert (found.wins, found.losses, found.value, found.method) == (12, 6, 0.15, "exact-unconditional")
    assert (found.low, found.high) == (expected.low, expected.high)
    assert (found.wins, found.losses) == tuple(
        getattr(compare("macro-f1", targets, mine, rival, to="few-shot"), name) for name in ("wins", "losses")
    )


def test_compare_of_graded_scores_uses_differences_example_by_example() -> None:
    targets = ["a b c d"] * 100
    rng = np.random.default_rng(4)
    rival = ["a b c x" if shorter else "a b x x" for shorter in rng.random(100) < 0.5]
    mine = ["a b c d" if text == "a b c x" else "a b c x" for text in rival]
    found = compare("token-f1", targets, mine, rival, to="rival")
    assert (found.value, found.wins, found.losses, found.method) == (0.25, 100, 0, "betting")
    # Each difference is 0.25 though the scores vary: pairing leaves no variance, which two intervals apart cannot see.
    apart = [measure("token-f1", targets, texts) for texts in (mine, rival)]
    assert 0 < found.low < 0.25 < found.high
    assert found.high - found.low < sum(estimate.high - estimate.low for estimate in apart)


def test_macro_f1_difference_is_the_difference_of_the_two_and_narrower_than_apart() -> None:
    rng = np.random.default_rng(8)
    targets = rng.choice(["a", "b", "c"], size=200).tolist()
    rival = [target if hit else "a" for target, hit in zip(targets, rng.random(200) < 0.7, strict=True)]
    mine = [target if hit else text for target, text, hit in zip(targets, rival, rng.random(200) < 0.2, strict=True)]
    first, second = measure("macro-f1", targets, mine), measure("macro-f1", targets, rival)
    found = compare("macro-f1", targets, mine, rival, to="rival")
    assert found.value == pytest.approx(first.value - second.value)
    assert 0 < found.low < found.value < found.high
    assert found.high - found.low < (first.high - first.low + second.high - second.low) / 2
    reverse = compare("macro-f1", targets, rival, mine, to="mine")
    assert (reverse.value, reverse.low, reverse.high) == (-found.value, -found.high, -found.low)
    assert compare("macro-f1", targets[::-1], mine[::-1], rival[::-1], to="rival") == found


def test_failures_by_label_names_the_most_frequent_confusion() -> None:
    targets = ["b", "a", "a", "a", "a", "c", "c", "d"]
    outputs = ["b", "c", "b", "b", "a", None, None, None]
    found = failures_by_label(targets, outputs)
    assert list(found) == ["a", "b", "c", "d"]
    assert found == {
        "a": LabelFailures(n=4, wrong=3, confused_with="b"),
        "b": LabelFailures(n=1, wrong=0, confused_with=None),
        "c": LabelFailures(n=2, wrong=2, confused_with=None),
        "d": LabelFailures(n=1, wrong=1, confused_with=None),
    }


def test_of_equal_confusions_the_first_in_order_is_named() -> None:
    assert failures_by_label(["a"] * 4, ["c", "b", "b", "c"])["a"].confused_with == "b"


@pytest.mark.parametrize(
    ("metric", "targets", "outputs", "complaint"),
    [
        ("accuracy", [], [], "no example"),
        ("macro-f1", [], [], "no example"),
        ("rouge-l", ["a", "b"], ["a"], "same examples"),
        ("f1", ["a"], ["a"], "accuracy, macro-f1, exact-match, token-f1, rouge-l, json-valid"),
    ],
)
def test_what_is_undefined_is_refused_with_a_remedy(
    metric: str, targets: list[str], outputs: list[str], complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint) as refusal:
        measure(metric, targets, outputs)
    assert refusal.value.fix
    with pytest.raises(DataError, match=complaint):
        compare(metric, targets, outputs, outputs, to="rival")


def test_a_rival_of_another_length_is_refused() -> None:
    with pytest.raises(DataError, match="rival outputs"):
        compare("accuracy", ["a", "b"], ["a", "b"], ["a"], to="rival")


@pytest.mark.parametrize("metric", ["accuracy", "macro-f1", "token-f1"])
def test_a_level_outside_zero_to_one_is_refused(metric: str) -> None:
    with pytest.raises(ValueError, match="level"):
        measure(metric, ["a"], ["a"], level=1.0)


@laws
@given(answered)
def test_the_plain_value_is_that_of_the_estimate(pairs: list[tuple[str, str | None]]) -> None:
    """Both are means of at most 30 numbers: they agree to a few units in the last place."""
    targets, outputs = [target for target, _ in pairs], [output for _, output in pairs]
    for metric in METRICS:
        assert value(metric, targets, outputs) == pytest.approx(measure(metric, targets, outputs).value, abs=1e-14)
