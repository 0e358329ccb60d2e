"""Summary: the terminal's table and lines, and the four answers, say what the evidence says."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from foreword.assessment.decision import best_prefix
from foreword.assessment.evidence import Evidence, Reason
from foreword.assessment.summary import answers, ranked, summary_table, summary_text

Sample = Callable[..., Evidence]
NO_COST = {"currency": "USD", "assumptions": {}, "rows": []}


def shown(evidence: Evidence, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(summary_table(evidence))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def decided(evidence: Evidence, *reasons: Reason, chosen: str | None = "prefix") -> dict[str, Any]:
    return {**evidence.decision.model_dump(), "reasons": [r.model_dump() for r in reasons], "chosen": chosen}


def test_the_table_has_every_candidate_best_first_and_those_that_failed(sample_evidence: Sample) -> None:
    evidence = sample_evidence()
    text = shown(evidence)
    places = [text.index(f"\n{candidate.name} ") for candidate in ranked(evidence)]
    assert places == sorted(places)
    assert "failed: FitError" in text
    assert "(chosen)" in text
    assert "vs chosen" in text  # the best on the selection split may be another one


def test_the_table_fits_eighty_columns(sample_evidence: Sample) -> None:
    text = shown(sample_evidence(), 80)
    assert "73.1–79.7%" in text
    assert "+27.4 to +37.3" in text


def test_markup_and_control_characters_in_names_stay_text(sample_evidence: Sample) -> None:
    evidence = sample_evidence()
    odd = evidence.candidates[0].model_copy(update={"name": "[red]x[/nope]\x1b[2J"})
    changed = sample_evidence(candidates=[odd], decision=decided(evidence, Reason(code="\x1b[31m"), chosen=odd.name))
    assert "[red]x[/nope]" in shown(changed)
    assert "\x1b" not in shown(changed) + summary_text(changed)


def test_the_lines_name_verdict_choice_requirement_reasons_and_changes(sample_evidence: Sample) -> None:
    evidence = sample_evidence()
    text = summary_text(evidence)
    assert text.startswith("GO: ")
    for part in ("prefix", evidence.task.requirement.text, "73.1%", "2,170 test examples", "typing errors"):
        assert part in text


def test_the_best_prefix_is_the_one_that_did_best_on_the_selection_split(sample_evidence: Sample) -> None:
    prefix = sample_evidence().candidate("prefix")
    lucky_metric = prefix.metric.model_copy(update={"value": 0.99})
    lucky = prefix.model_copy(update={"name": "lucky", "metric": lucky_metric, "selection": prefix.selection - 0.1})
    found = best_prefix([lucky, prefix])
    assert found is not None
    assert found.name == "prefix"


def test_the_answers_of_the_sample(sample_evidence: Sample) -> None:
    can, better, cost = answers(sample_evidence())
    assert (can.headline, can.tone) == ("Yes", "good")
    assert (better.headline, better.tone) == ("Better than 5 of 6", "good")
    assert cost.headline == "JPY 8.52 a month"
    assert "No difference shown to “lora”" in better.support


@pytest.mark.parametrize(("at_least", "headline"), [(0.70, "Yes"), (0.76, "Not settled"), (0.9, "No")])
def test_whether_a_prefix_can_is_judged_on_its_interval(
    sample_evidence: Sample, at_least: float, headline: str
) -> None:
    evidence = sample_evidence()
    required = {**evidence.task.requirement.model_dump(), "at_least": at_least}
    task = {**evidence.task.model_dump(), "requirement": required}
    can, _, _ = answers(sample_evidence(task=task, decision=decided(evidence)))
    assert can.headline == headline


def test_the_decisions_own_finding_on_the_chosen_prefix_counts_more_than_its_interval(sample_evidence: Sample) -> None:
    open_ = Reason(code="requirement-open", parameters={})
    evidence = sample_evidence()
    assert answers(sample_evidence(decision=decided(evidence, open_)))[0].headline == "Not settled"
    assert answers(sample_evidence(decision=decided(evidence, open_, chosen="lora")))[0].headline == "Yes"


@pytest.mark.parametrize(
    ("interval", "headline", "tone"),
    [((-0.05, -0.01), "Worse than 1 of 1", "bad"), ((-0.05, 0.01), "Not shown", "open"), ((0.01, 0.05), "Yes", "good")],
)
def test_whether_a_prefix_is_better_follows_the_comparisons(
    sample_evidence: Sample, interval: tuple[float, float], headline: str, tone: str
) -> None:
    low, high = interval
    versus = Reason(
        code="prefix-versus", parameters={"rival": "probe", "value": (low + high) / 2, "low": low, "high": high}
    )
    _, better, _ = answers(sample_evidence(decision=decided(sample_evidence(), versus)))
    assert (better.headline, better.tone) == (headline, tone)


def test_without_a_prefix_the_answers_say_that_nothing_is_known(sample_evidence: Sample) -> None:
    failed = [{"name": "prefix", "kind": "prefix", "code": "FitError", "message": "no"}]
    evidence = sample_evidence(candidates=[], failed=failed, cost=NO_COST, stress=None)
    assert {answer.headline for answer in answers(evidence)} == {"Not known"}
    assert "FitError" in answers(evidence)[0].support[0]
    assert "FitError" in shown(evidence)
