"""Wording: every code that the assessment produces has a sentence."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args

import pytest

from foreword.assessment import wording
from foreword.assessment.evidence import CandidateKind, ProbeEvidence, Reason, Verdict
from foreword.assessment.quantities import UNKNOWN
from foreword.assessment.wording import headlines, lines, sentence, standing
from foreword.tuning.field_values import Metric

DIFFERENCE = {"value": 0.031, "low": 0.011, "high": 0.052}
CODES: dict[str, dict[str, Any]] = {
    "requirement-met": {"metric": "accuracy", "low": 0.73, "at_least": 0.70},
    "requirement-missed": {"metric": "accuracy", "high": 0.68, "at_least": 0.70},
    "requirement-open": {"metric": "macro-f1", "value": 0.71, "low": 0.67, "high": 0.75, "at_least": 0.70},
    "more-examples": {"n_now": 200, "n_needed": 1400},
    "better-than-baseline": {"candidate": "prefix", "baseline": "zero-shot", **DIFFERENCE},
    "not-better-than-baseline": {"candidate": "prefix", "baseline": "zero-shot", **DIFFERENCE},
    "prefix-versus": {"rival": "probe", **DIFFERENCE},
    "cheaper-equivalent": {"candidate": "probe", "chosen": "lora", **DIFFERENCE},
    "stress-failed": {"probe": "typos", "rate": 0.2, "upper": 0.27, "limit": 0.1},
    "stress-passed": {"probes": "typos, case"},
    "other-text-loss": {"candidate": "prefix", **DIFFERENCE},
    "other-text-neighbours": {"candidate": "prefix", **DIFFERENCE},
    "base-changed": {},
    "base-unchanged": {},
    "not-chosen-prefix": {"chosen": "probe", "prefix": "prefix"},
    "examples-few": {"label": "xml", "n": 4},
    "candidate-failed": {"name": "lora", "code": "FitError"},
    "cost-per-month": {"currency": "JPY", "amount": 852.0},
    "break-even": {"months": 3.5},
    "limited-run": {"limit": 100},
    "supported-requirement": {"at_least_possible": 0.66},
    "full-run": {},
    "fix-probe": {"probe": "typos", "limit": 0.1},
    "none-fitted": {},
}


@pytest.mark.parametrize("code", CODES)
def test_every_code_has_a_sentence_that_says_its_parameters(code: str) -> None:
    said = sentence(Reason(code=code, parameters=CODES[code]))
    assert not said.startswith(code)
    assert said.endswith(".")
    assert UNKNOWN not in said
    for name, value in CODES[code].items():
        if isinstance(value, str) and name not in ("metric", "probe", "probes"):
            assert value in said


def test_the_catalogue_has_no_sentence_for_a_code_that_nobody_produces() -> None:
    assert {key.partition(".")[0] for key in wording.REASONS} == set(CODES)


def test_the_catalogue_has_every_code_that_decision_states() -> None:
    tree = ast.parse((Path(wording.__file__).parent / "decision.py").read_text(encoding="utf-8"))
    stated = {
        constant.value
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Reason"
        for keyword in call.keywords
        if keyword.arg == "code"
        for constant in ast.walk(keyword.value)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    }
    assert len(stated) > 10
    assert stated <= set(CODES)


def test_every_closed_list_of_codes_is_worded_in_full() -> None:
    assert set(wording.KINDS) == set(get_args(CandidateKind))
    assert set(wording.VERDICTS) == set(get_args(Verdict))
    assert set(wording.METRICS) == set(get_args(Metric))
    assert set(wording.PROBE_KINDS) == set(get_args(ProbeEvidence.model_fields["kind"].annotation))


@pytest.mark.parametrize("catalogue", ["KINDS", "READOUTS", "METRICS", "PROBES", "METHODS"])
def test_an_unknown_name_is_shown_as_it_is(catalogue: str) -> None:
    assert wording.word(getattr(wording, catalogue), "something-new") == "something-new"


def test_an_unknown_code_is_shown_with_its_parameters() -> None:
    assert sentence(Reason(code="new", parameters={"a": 1, "b": None})) == "new (a=1, b=None)"
    assert sentence(Reason(code="new")) == "new"


@pytest.mark.parametrize("parameters", [{}, {"metric": "accuracy", "low": "high", "at_least": 0.7}])
def test_a_known_code_with_wrong_parameters_is_shown_as_it_is(parameters: dict[str, Any]) -> None:
    assert sentence(Reason(code="requirement-met", parameters=parameters)).startswith("requirement-met")


def test_braces_in_a_name_are_not_read_as_a_field() -> None:
    said = sentence(Reason(code="candidate-failed", parameters={"name": "{code}{0.__class__}", "code": "E"}))
    assert "“{code}{0.__class__}”" in said


@pytest.mark.parametrize(
    ("low", "high", "expected", "tone"),
    [
        (0.01, 0.05, "better than", "good"),
        (-0.05, -0.01, "worse than", "bad"),
        (-0.01, 0.05, "cannot be told", "plain"),
        (0.0, 0.05, "cannot be told", "plain"),
    ],
)
def test_the_prefix_against_a_rival_is_worded_by_the_sign_of_the_interval(
    low: float, high: float, expected: str, tone: str
) -> None:
    reason = Reason(
        code="prefix-versus", parameters={"rival": "probe", "value": (low + high) / 2, "low": low, "high": high}
    )
    assert expected in sentence(reason)
    assert lines([reason])[0].tone == tone


def test_what_cannot_be_said_is_said_so() -> None:
    assert "cannot be said" in sentence(Reason(code="more-examples", parameters={"n_now": 9, "n_needed": None}))
    assert "not pay" in sentence(Reason(code="break-even", parameters={"months": None}))


def test_headlines_join_comparisons_and_keep_what_speaks_against() -> None:
    rivals = [
        Reason(code="prefix-versus", parameters={"rival": f"r{i}", "value": 0.1, "low": 0.05, "high": 0.2})
        for i in range(9)
    ]
    good = [Reason(code="base-unchanged"), Reason(code="requirement-met", parameters=CODES["requirement-met"])]
    bad = Reason(code="stress-failed", parameters=CODES["stress-failed"])
    few = [Reason(code="examples-few", parameters={"label": str(i), "n": 2}) for i in range(4)]
    said = headlines([*good, *rivals, *few, bad], 4)
    assert [line.tone for line in said] == ["good", "good", "open", "bad"]
    assert said[-1].text == sentence(bad)
    assert "3 more" in headlines(rivals, 1)[0].text


def test_standing_is_met_only_when_the_whole_interval_reaches_the_threshold() -> None:
    assert [standing(0.7, 0.8, 0.7), standing(0.6, 0.7, 0.7), standing(0.6, 0.69, 0.7)] == ["met", "open", "missed"]
