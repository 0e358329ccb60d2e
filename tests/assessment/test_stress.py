"""Stress probes: perturbations that are seeded and change the text, and findings on predictors with known faults."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.assessment.evidence import Evidence, ProbeEvidence
from foreword.assessment.report import render
from foreword.assessment.stress import EMPTY, OFF_TOPIC, SAMPLE, cut_short, run_stress, with_typos
from foreword.confidence import rate_upper_bound
from foreword.errors import DataError
from foreword.tuning.examples import Example
from foreword.tuning.predictor import LONGEST_INPUT, Answer
from foreword.tuning.sections import Limits

laws = settings(max_examples=60, deadline=None, derandomize=True, database=None)

TEXT = "please open the second file and read the first line aloud"
Answering = Callable[[str], Answer]


class Fake:
    """A predictor that answers each text by a function."""

    def __init__(self, answering: Answering, *, kind: str = "classify", positions: int = 64) -> None:
        self.answering, self.asked = answering, list[str]()
        self.manner = SimpleNamespace(kind=kind, labels=("red", "blue"))
        self.host = SimpleNamespace(max_positions=positions)

    def answer(self, inputs: Sequence[str], *, progress: Callable[[int], None] | None = None) -> list[Answer]:
        self.asked += inputs
        found = [self.answering(text) for text in inputs]
        if progress is not None:
            progress(len(inputs))
        return found


def probes(
    answering: Answering,
    texts: Sequence[str] = (TEXT,) * 4,
    *,
    metric: str = "accuracy",
    target: str = "red",
    limits: Limits | None = None,
    **options: Any,
) -> dict[str, ProbeEvidence]:
    """What is found of a predictor on texts that should all be answered with `target`."""
    examples = [Example(str(number), text, target) for number, text in enumerate(texts)]
    found = run_stress(
        Fake(answering, **options),  # type: ignore[arg-type]
        examples,
        candidate="fake",
        metric=metric,
        limits=limits or Limits(),
        seed=0,
    )
    assert found.candidate == "fake"
    return {probe.name: probe for probe in found.probes}


def steady(text: str) -> Answer:
    """The same answer to everything, without much confidence in what is not the task's."""
    return Answer("red", 0.9 if "file" in text.casefold() else 0.2)


# Perturbations


@laws
@given(st.text(max_size=200), st.integers(0, 9))
def test_typos_are_a_function_of_text_and_seed(text: str, seed: int) -> None:
    assert with_typos(text, seed=seed) == with_typos(text, seed=seed)


@laws
@given(st.text(max_size=200), st.integers(0, 9))
def test_typos_change_every_text_that_has_a_word_of_two_letters(text: str, seed: int) -> None:
    able = any(len(word) >= 2 for word in text.split(" "))
    assert (with_typos(text, seed=seed) != text) is able


@laws
@given(st.text(max_size=200))
def test_typos_leave_the_number_of_words_and_all_but_one_letter_of_each(text: str) -> None:
    before, after = text.split(" "), with_typos(text, seed=0).split(" ")
    # A letter that is a space for neither split may be doubled or dropped, never made.
    assert len(before) == len(after)
    assert all(abs(len(old) - len(new)) <= 1 and set(new) <= set(old) for old, new in zip(before, after, strict=True))


def test_about_one_word_in_eight_is_mistyped() -> None:
    words = [f"word{number}" for number in range(4000)]
    changed = sum(a != b for a, b in zip(words, with_typos(" ".join(words), seed=0).split(" "), strict=True))
    assert 420 < changed < 580  # 500 expected; within four standard deviations, 4 * sqrt(4000 / 8 * 7 / 8) = 84


def test_other_seeds_give_other_typos() -> None:
    assert len({with_typos(TEXT, seed=seed) for seed in range(20)}) > 10


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("one two three four five six", "one two three four"),
        ("one  two\nthree", "one two"),
        ("東京タワーに行く", "東京タワー"),
        ("abc", "ab"),
        ("a", "a"),
    ],
)
def test_a_text_is_cut_to_two_thirds(text: str, cut: str) -> None:
    assert cut_short(text) == cut


@laws
@given(st.text(min_size=1, max_size=300))
def test_what_is_cut_short_is_a_beginning_of_the_text(text: str) -> None:
    found = cut_short(text)
    assert " ".join(text.split()).startswith(found) or text.startswith(found)
    assert 0 < len(found) <= len(text) or not text.split()


# Findings


def test_a_steady_predictor_passes_every_probe() -> None:
    found = probes(steady)
    assert list(found) == ["typos", "case", "truncation", "empty", "very-long", "off-topic"]
    assert all(probe.passed and probe.failures == 0 and probe.rate == 0 for probe in found.values())
    assert {probe.kind for probe in found.values()} == {"invariance", "robustness", "rejection"}
    assert found["typos"].upper == rate_upper_bound(0, 4)
    assert found["typos"].metric == 1.0


def test_an_answer_that_hangs_on_the_spelling_fails_by_typos() -> None:
    found = probes(lambda text: Answer("red" if text.startswith(TEXT) else "blue", 0.5))["typos"]
    assert (found.n, found.failures, found.rate, found.passed, found.metric) == (4, 4, 1.0, False, 0.0)
    assert found.examples[0][1:] == ("red", "blue")
    assert len(found.examples) == 3
    assert re.fullmatch(r"[a-z ]+", found.examples[0][0])


def test_an_answer_that_hangs_on_case_fails_by_case_alone() -> None:
    found = probes(lambda text: Answer("blue" if text.isupper() else "red", 0.5))
    assert {name for name, probe in found.items() if probe.kind == "invariance" and not probe.passed} == {"case"}


def test_a_change_counts_even_where_the_answer_gets_better() -> None:
    found = probes(lambda text: Answer("red" if text.isupper() else "blue", 0.5))["case"]
    assert (found.failures, found.metric) == (4, 1.0)


def test_a_text_without_case_shows_nothing_about_case() -> None:
    found = probes(steady, ["東京タワーのファイルを開く", TEXT])["case"]
    assert (found.n, found.failures) == (1, 0)
    found = probes(steady, ["東京タワーのファイルを開く"])["case"]
    assert (found.n, found.rate, found.upper, found.passed, found.metric) == (0, None, None, None, None)


def test_a_probe_that_showed_nothing_is_told_in_the_report(sample_evidence: Callable[..., Evidence]) -> None:
    evidence = sample_evidence()
    assert evidence.stress is not None
    empty = probes(steady, ["東京"])["case"]
    told = evidence.stress.model_copy(update={"probes": [empty, *evidence.stress.probes]})
    assert "nan" not in render(evidence.model_copy(update={"stress": told})).casefold().split()


def test_an_error_on_an_empty_text_fails_by_empty_and_is_quoted() -> None:
    def fragile(text: str) -> Answer:
        if not text.strip():
            raise DataError("There is nothing to read.", fix="Give a text.")
        return steady(text)

    found = probes(fragile)["empty"]
    blank = [text for text in EMPTY if not text.strip()]
    assert (found.n, found.failures, found.limit, found.passed) == (len(EMPTY), len(blank), 0.0, False)
    assert found.examples[0][2].startswith("DataError: There is nothing to read.")


def test_a_label_that_the_task_does_not_have_fails() -> None:
    found = probes(lambda text: Answer("red" if "file" in text.casefold() else "purple", 0.5))
    assert found["empty"].failures == len(EMPTY)
    assert found["very-long"].passed


def test_an_error_that_is_a_fault_of_the_program_is_not_counted_as_a_finding() -> None:
    def broken(text: str) -> Answer:
        if not text.strip():
            raise KeyError(text)
        return steady(text)

    with pytest.raises(KeyError):
        probes(broken)


def test_confidence_in_what_is_off_topic_fails_by_it() -> None:
    found = probes(lambda _: Answer("red", 0.9))["off-topic"]
    assert (found.n, found.failures, found.limit, found.passed) == (len(OFF_TOPIC), len(OFF_TOPIC), 0.2, False)
    assert found.examples[0] == (OFF_TOPIC[0], "", "red (0.90)")


def test_the_task_s_own_limits_decide() -> None:
    def hasty(text: str) -> Answer:
        return Answer("blue" if text.isupper() else "red", 0.9)

    lenient = Limits(flip_rate=1.0, crash_rate=1.0, overconfidence_rate=1.0)
    assert all(probe.passed for probe in probes(hasty, limits=lenient).values())
    assert not probes(hasty)["case"].passed


@pytest.mark.parametrize(("positions", "length"), [(64, 64 * 40), (10**6, LONGEST_INPUT)])
@pytest.mark.parametrize("text", [TEXT, "x" * LONGEST_INPUT, "file " * 90_000])
def test_a_very_long_text_is_ten_times_what_is_read_and_no_longer_than_may_be_asked(
    positions: int, length: int, text: str
) -> None:
    fake = Fake(steady, positions=positions)
    run_stress(fake, [Example("0", text, "red")], candidate="x", metric="accuracy", limits=Limits(), seed=0)  # type: ignore[arg-type]
    asked = fake.asked[-len(OFF_TOPIC) - 1]  # what comes before the last probe
    assert len(asked) == length
    assert asked.startswith((text + " ")[:length])
    assert max(map(len, fake.asked)) <= LONGEST_INPUT


def test_at_most_so_many_examples_are_used() -> None:
    assert probes(steady, [f"{TEXT} {number}" for number in range(SAMPLE + 50)])["typos"].n == SAMPLE


# Generation


def test_for_generation_an_answer_fails_where_it_gets_worse() -> None:
    def writer(text: str) -> Answer:
        return Answer("a red car" if text.isupper() else "a car")

    better = probes(writer, metric="token-f1", target="a red car", kind="generate")["case"]
    assert (better.failures, better.metric) == (0, 1.0)
    worse = probes(writer, metric="token-f1", target="a car", kind="generate")["case"]
    assert (worse.failures, worse.passed) == (4, False)


def test_for_generation_off_topic_texts_need_only_be_answered() -> None:
    found = probes(lambda _: Answer("anything"), metric="token-f1", kind="generate")["off-topic"]
    assert (found.kind, found.n, found.passed) == ("robustness", len(OFF_TOPIC), True)
