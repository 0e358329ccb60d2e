"""The report: one evidence file as one HTML page that stands alone, for whoever decides and whoever checks.

It arranges what the evidence says for the template; every figure comes from there, every sentence from `wording` and
`summary`, every picture from `plots`. It deliberately measures and decides nothing. Texts of the task are not trusted:
all of them are escaped, and the page forbids itself scripts and anything from elsewhere.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from foreword.assessment import plots, quantities, wording
from foreword.assessment.decision import best_prefix
from foreword.assessment.evidence import CandidateEvidence, Estimate, Evidence, LabelFailures
from foreword.assessment.summary import Answer, answers, ranked, span, span_of_difference
from foreword.assessment.wording import Line, Tone
from foreword.errors import RunFolderError
from foreword.regular_file import found_in

REASONS_ON_FIRST_SCREEN = 4
CHANGES_ON_FIRST_SCREEN = 3


@dataclass(frozen=True)
class Failures:
    """One candidate's errors by label, most frequent first; `role` says why it is shown."""

    name: str
    role: str
    labels: tuple[tuple[str, LabelFailures], ...]


@dataclass(frozen=True)
class NamedInterval:
    """One interval of the page with what it is an interval of, and how its numbers are written.

    "points" is a paired difference, which has wins and losses.
    """

    candidate: str
    quantity: str
    estimate: Estimate
    form: Literal["share", "points", "plain"]


@dataclass(frozen=True)
class View:
    """The evidence as the template needs it."""

    tone: Tone
    meaning: str
    answers: tuple[Answer, ...]
    why: tuple[Line, ...]
    all_reasons: tuple[Line, ...]
    changes: tuple[Line, ...]
    all_changes: tuple[Line, ...]
    candidates: list[CandidateEvidence]
    fitted: list[CandidateEvidence]
    failures: tuple[Failures, ...]
    intervals: tuple[NamedInterval, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    base_unchanged: bool
    pictures: dict[str, str | None]
    settings: str


def render(evidence: Evidence) -> str:
    """The page's HTML: no script, and no address of anything outside it; the same evidence gives the same text."""
    return _template().render(evidence=evidence, view=_view(evidence))


def write_report(evidence: Evidence, path: Path) -> None:
    """Write the page to `path`, which holds either the whole page or what it held before. RunFolderError otherwise."""
    # A lone surrogate, which JSON may hold and UTF-8 may not, becomes a character reference that a browser replaces.
    page = render(evidence).encode("utf-8", errors="xmlcharrefreplace")
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with unfinished.open("xb") as file:
            file.write(page)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise RunFolderError(
            f"The report {path} cannot be written.",
            expected="an existing folder with room and the right to write in it",
            found=found_in(error),
            fix="Make room or name another folder with --out, and run the same command again.",
        ) from error


def _view(evidence: Evidence) -> View:
    decision = evidence.decision
    tone, meaning = wording.VERDICTS[decision.verdict]
    counts = evidence.data.counts
    return View(
        tone=tone,
        meaning=meaning,
        answers=answers(evidence),
        why=wording.headlines(decision.reasons, REASONS_ON_FIRST_SCREEN),
        all_reasons=wording.lines(decision.reasons),
        changes=wording.headlines(decision.changes, CHANGES_ON_FIRST_SCREEN),
        all_changes=wording.lines(decision.changes),
        candidates=ranked(evidence),
        fitted=[found for found in ranked(evidence) if found.forgetting is not None],
        failures=_failures(evidence),
        intervals=_intervals(evidence),
        splits=tuple(counts),
        labels=tuple(dict.fromkeys(label for by_label in counts.values() for label in by_label)),
        base_unchanged=evidence.base.fingerprint_before == evidence.base.fingerprint_after,
        pictures={
            "interval": plots.interval_picture(evidence),
            "interval_narrow": plots.interval_picture(evidence, narrow=True),
            "fit": plots.fit_curves(evidence),
            "cost": plots.value_against_cost(evidence),
        },
        settings=json.dumps(evidence.provenance.settings, indent=2, ensure_ascii=False, default=str),
    )


def _failures(evidence: Evidence) -> tuple[Failures, ...]:
    """The errors of the chosen candidate and of the best prefix; of one candidate when they are the same."""
    prefix = best_prefix(evidence.candidates)
    chosen = next((c for c in evidence.candidates if c.name == evidence.decision.chosen), None)
    shown = [(chosen, "chosen"), (prefix, "best prefix")]
    if chosen is not None and prefix is not None and chosen.name == prefix.name:
        shown = [(chosen, "chosen, and the best prefix")]
    return tuple(
        Failures(found.name, role, tuple(sorted(found.failures.items(), key=lambda item: -(_rate(item[1]) or 0))))
        for found, role in shown
        if found is not None and found.failures
    )


def _rate(failures: LabelFailures) -> float | None:
    return failures.wrong / failures.n if failures.n else None


def _intervals(evidence: Evidence) -> tuple[NamedInterval, ...]:
    """Every interval of every candidate, in full."""
    found = []
    for candidate in ranked(evidence):
        metric = wording.word(wording.METRICS, candidate.metric.name)
        found.append(NamedInterval(candidate.name, metric, candidate.metric, "share"))
        for difference, what in ((candidate.difference.baseline, "baseline"), (candidate.difference.best, "chosen")):
            if difference is not None:
                quantity = f"{metric}, minus {what} “{difference.to}”"
                found.append(NamedInterval(candidate.name, quantity, difference, "points"))
        found += _of_other_text(candidate)
    return tuple(found)


def _of_other_text(candidate: CandidateEvidence) -> list[NamedInterval]:
    found = candidate.forgetting
    if found is None:
        return []
    named: list[tuple[str, Estimate | None, Literal["share", "plain"]]] = [
        ("other text: nats a token added", found.loss_change, "plain"),
        ("other text: divergence, nats a token", found.divergence, "plain"),
        ("other text: 1 − cosine of features", found.turned, "plain"),
        ("other text: share changed", found.changed, "share"),
    ]
    return [NamedInterval(candidate.name, quantity, x, form) for quantity, x, form in named if x is not None]


def _told(value: Any) -> str:
    """A setting or a fact of unknown type as text: numbers as they are, lists and tables as JSON."""
    if value is None:
        return quantities.UNKNOWN
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _fact(name: str, value: Any) -> str:
    """A fact whose name ends in its unit, such as `memory_bytes`, with that unit."""
    return quantities.byte_size(value) if name.endswith("_bytes") and isinstance(value, int | float) else _told(value)


@functools.cache
def _template() -> Template:
    house = Environment(
        loader=PackageLoader("foreword.assessment"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    house.filters.update(
        percent=quantities.percent,
        points=quantities.points,
        count=quantities.count,
        figure=quantities.figure,
        amount=quantities.amount,
        byte_size=quantities.byte_size,
        duration=quantities.duration,
        milliseconds=quantities.milliseconds,
        nats=quantities.nats,
        months=quantities.months,
        word=lambda code, catalogue: wording.word(getattr(wording, catalogue), code),
        method=wording.method_of,
        describe=wording.describe,
        span=span,
        span_of_difference=span_of_difference,
        rate=_rate,
        told=_told,
    )
    house.globals["fact"] = _fact
    return house.get_template("report.html.j2")
