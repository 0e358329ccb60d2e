"""A pilot in brief: four answers for whoever decides, and a table and a few lines for the terminal.

It knows which candidate stands for "a prefix" and how to say what was found. It deliberately decides nothing: the
verdict and its reasons come from the evidence; here they are only put into words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from foreword.assessment.decision import best_prefix
from foreword.assessment.evidence import CandidateEvidence, CostRow, Difference, Estimate, Evidence, Reason
from foreword.assessment.quantities import (
    UNKNOWN,
    amount,
    byte_size,
    count,
    duration,
    milliseconds,
    months,
    percent,
    points,
    printable,
)
from foreword.assessment.wording import METRICS, VERDICTS, Standing, Tone, headlines, lines, sides_of, standing, word

MARKS: Mapping[Tone, str] = {"good": "+", "bad": "!", "open": "?", "plain": "-"}


@dataclass(frozen=True)
class Answer:
    """A decider's question with its answer in a few words, and what the answer rests on."""

    question: str
    headline: str
    support: tuple[str, ...]
    tone: Tone


def ranked(evidence: Evidence) -> list[CandidateEvidence]:
    """The judged candidates, best measured metric first."""
    return sorted(evidence.candidates, key=lambda candidate: -candidate.metric.value)


def span(estimate: Estimate) -> str:
    """An interval of a metric, rounded outward: `71.2–79.0%`."""
    return f"{percent(estimate.low, bound='low').removesuffix('%')}–{percent(estimate.high, bound='high')}"


def span_of_difference(difference: Difference) -> str:
    """An interval of a difference in points, rounded outward: `+2.1 to +5.0`."""
    return f"{points(difference.low, bound='low')} to {points(difference.high, bound='high')}"


def answers(evidence: Evidence) -> tuple[Answer, Answer, Answer]:
    """Can a prefix do this task? Is it better than the alternatives? What does it cost?"""
    return _can(evidence), _better(evidence), _cost(evidence)


def _can(evidence: Evidence) -> Answer:
    question = "Can a prefix do this task?"
    prefix, required = best_prefix(evidence.candidates), evidence.task.requirement
    if prefix is None:
        failed = [found for found in evidence.failed if found.kind == "prefix"]
        why = f"“{failed[0].name}” failed with {failed[0].code}." if failed else "No prefix was among the candidates."
        return Answer(question, "Not known", (why,), "open")
    headline, tone = _OUTCOMES[_standing(evidence, prefix)]
    measured = f"{percent(prefix.metric.value)} {word(METRICS, prefix.metric.name)} ({span(prefix.metric)})"
    return Answer(question, headline, (measured, f"{percent(required.at_least)} required"), tone)


def _standing(evidence: Evidence, prefix: CandidateEvidence) -> Standing:
    """The decision's own finding where it judged this prefix, at the requirement's confidence; else by its interval."""
    codes: tuple[Standing, ...] = ("met", "missed", "open")
    stated = [code for code in codes for r in evidence.decision.reasons if r.code == f"requirement-{code}"]
    if stated and evidence.decision.chosen == prefix.name:
        return stated[0]
    return standing(prefix.metric.low, prefix.metric.high, evidence.task.requirement.at_least)


_OUTCOMES: Mapping[Standing, tuple[str, Tone]] = {
    "met": ("Yes", "good"),
    "missed": ("No", "bad"),
    "open": ("Not settled", "open"),
}


def _better(evidence: Evidence) -> Answer:
    question = "Is it better than the alternatives?"
    prefix = best_prefix(evidence.candidates)
    if prefix is None:
        return Answer(question, "Not known", ("There is no prefix to compare.",), "open")
    sides = sides_of(_comparisons(evidence, prefix))
    total = sum(map(len, sides.values()))
    better, worse, same = (len(sides[side]) for side in ("better", "worse", "same"))
    support = []
    if prefix.difference.baseline is not None:
        change = prefix.difference.baseline
        support.append(f"{points(change.value)} points over “{change.to}” ({span_of_difference(change)})")
    if worse:
        names = ", ".join(f"“{name}”" for name in sides["worse"])
        return Answer(question, f"Worse than {worse} of {total}", (f"Worse: {names}", *support), "bad")
    if same:
        support.append(f"No difference shown to {', '.join(f'“{name}”' for name in sides['same'])}")
    if not total:
        return Answer(question, "Not known", ("There is no other candidate to compare with.",), "open")
    headline = f"Better than {better} of {total}" if same else f"Better than all {total}" if total > 1 else "Yes"
    return Answer(question, headline if better else "Not shown", tuple(support), "good" if better else "open")


def _comparisons(evidence: Evidence, prefix: CandidateEvidence) -> list[Reason]:
    """What the decision compared the prefix with, or else the baseline and the chosen candidate."""
    stated = [reason for reason in evidence.decision.reasons if reason.code == "prefix-versus"]
    differences = {found.to: found for found in (prefix.difference.baseline, prefix.difference.best) if found}
    return stated or [
        Reason(code="prefix-versus", parameters={"rival": to, "value": d.value, "low": d.low, "high": d.high})
        for to, d in differences.items()
    ]


def _cost(evidence: Evidence) -> Answer:
    question = "What does it cost?"
    prefix = best_prefix(evidence.candidates)
    name = prefix.name if prefix else evidence.decision.chosen
    row = next((row for row in evidence.cost.rows if row.candidate == name), None)
    if row is None:
        return Answer(question, "Not known", ("No cost was worked out.",), "open")
    money = f"{evidence.cost.currency} {amount(row.monthly)} a month"
    return Answer(question, money, _cost_support(evidence, row), "plain")


def _cost_support(evidence: Evidence, row: CostRow) -> tuple[str, ...]:
    found = next((candidate for candidate in evidence.candidates if candidate.name == row.candidate), None)
    currency = evidence.cost.currency
    speed = f"{milliseconds(row.latency_ms)} a request"
    added = f" ({milliseconds(found.latency_added_ms, added=True)} added)" if found else ""
    once = f"{currency} {amount(row.one_off)} once"
    pays = f"pays back in {months(row.break_even_months)}" if row.break_even_months is not None else ""
    return (speed + added, ", ".join(filter(None, (once, pays))))


def summary_table(evidence: Evidence) -> Table:
    """The candidates side by side for the terminal, best first; the chosen one is marked."""
    baseline = next((c.difference.baseline.to for c in evidence.candidates if c.difference.baseline), None)
    levels = sorted({candidate.metric.level for candidate in evidence.candidates})
    title = Text(f"{printable(evidence.task.name, 60)}: {word(METRICS, evidence.task.metric)}{_at(levels)}")
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("candidate", overflow="fold")
    headings = ("measured", f"vs {printable(baseline, 11)}" if baseline else "vs baseline", "vs chosen")
    for heading in (*headings, "fitted\nstored", "latency\nfit time"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for candidate in ranked(evidence):
        chosen = candidate.name == evidence.decision.chosen
        cells = (
            printable(candidate.name) + ("\n(chosen)" if chosen else ""),
            f"{percent(candidate.metric.value)}\n{span(candidate.metric)}",
            _difference(candidate.difference.baseline),
            _difference(candidate.difference.best),
            f"{count(candidate.trainable)}\n{byte_size(candidate.bytes)}",
            f"{milliseconds(candidate.latency_ms)}\n{duration(candidate.fit_seconds)}",
        )
        table.add_row(*map(Text, cells), style="bold" if chosen else None)
    for failed in evidence.failed:
        table.add_row(Text(f"{printable(failed.name)}\nfailed: {printable(failed.code)}"), style="dim")
    return table


def summary_text(evidence: Evidence) -> str:
    """Verdict, what was required, why, and what would change it, as plain lines."""
    decision = evidence.decision
    chosen = decision.chosen or UNKNOWN
    said = [f"{decision.verdict}: {VERDICTS[decision.verdict][1]}"]
    said += [f"  chosen:    {chosen}", f"  required:  {evidence.task.requirement.text}", "", "Why"]
    said += [f"  {MARKS[line.tone]} {line.text}" for line in headlines(decision.reasons, len(decision.reasons))]
    if decision.changes:
        said += ["", "What would change it", *(f"  - {line.text}" for line in lines(decision.changes))]
    return "\n".join(printable(line) for line in said)


def _at(levels: Sequence[float]) -> str:
    """The confidence of a table's intervals, which need not be that of the requirement."""
    told = " and ".join(f"{100 * level:.4g}" for level in levels)
    return f", {told}% intervals" if told else ""


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return UNKNOWN
    return f"{points(difference.value)}\n{span_of_difference(difference)}"
