"""The codes of the evidence in English, and its reasons as sentences: one catalogue for page and terminal.

It knows every code that the assessment produces, and turns it into a sentence. It deliberately decides nothing and
knows neither HTML nor the terminal. A code that it does not know is shown as it is, with its parameters: a report
must never fail, or fall silent, because an evidence file says more than this catalogue.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from foreword.assessment.evidence import CandidateEvidence, Reason
from foreword.assessment.quantities import UNKNOWN, amount, count, months, nats, percent, points

Tone = Literal["good", "bad", "open", "plain"]
Side = Literal["better", "worse", "same"]
Standing = Literal["met", "missed", "open"]

NAMES_IN_A_SENTENCE = 6

VERDICTS: Mapping[str, tuple[Tone, str]] = {
    "GO": ("good", "The evidence supports using the chosen candidate on texts like these."),
    "CONDITIONAL": ("open", "The chosen candidate can be used once the conditions below are met."),
    "NO-GO": ("bad", "The evidence speaks against going on with this task as it stands."),
    "NOT ENOUGH EVIDENCE": ("plain", "What was measured cannot settle it either way."),
}
KINDS: Mapping[str, str] = {
    "zero-shot": "zero-shot: the base model as it is",
    "hard-prompt": "hard prompt: the best of the given wordings",
    "few-shot": "few-shot: labelled examples, no steps of fitting",
    "probe": "linear probe: a linear head on the frozen model",
    "soft-prompt": "soft prompt: fitted input vectors",
    "prefix": "prefix: fitted keys and values in every layer",
    "lora": "LoRA: fitted low-rank changes to the weights",
    "full": "full fine-tune: a fitted copy of all weights",
}
READOUTS: Mapping[str, str] = {
    "label-text": "nearest label text",
    "prototypes": "nearest class prototype",
    "linear": "linear head",
    "likelihood": "most likely label",
    "calibrated": "label likelier than usual",
}
METRICS: Mapping[str, str] = {
    "accuracy": "accuracy",
    "macro-f1": "macro-F1",
    "exact-match": "share of exact matches",
    "token-f1": "token F1",
    "rouge-l": "ROUGE-L",
    "json-valid": "share of valid JSON",
}
PROBES: Mapping[str, str] = {
    "typos": "typing errors",
    "case": "upper and lower case",
    "truncation": "cut-off text",
    "empty": "empty input",
    "very-long": "very long input",
    "off-topic": "off-topic input",
}
PROBE_KINDS: Mapping[str, str] = {
    "invariance": "the answer should not change",
    "robustness": "a well-formed answer must come back",
    "rejection": "it should not answer with confidence",
}
SPLITS: Mapping[str, str] = {"fit": "fitting", "selection": "selection", "test": "test"}
METHODS: Mapping[str, str] = {
    "clopper-pearson": "Clopper–Pearson, from the binomial distribution itself: valid at any number of examples.",
    "exact-unconditional": "exact unconditional test of paired answers, turned into an interval: valid at any number.",
    "identity": "a candidate compared with itself: nothing is uncertain.",
    "betting": "betting confidence interval for a bounded mean: valid at any number, whatever the distribution.",
    "bayes-bootstrap": "Bayesian bootstrap over the examples or texts: an estimate, not a guarantee.",
}
REASONS: Mapping[str, str] = {
    "requirement-met": "The {metric:metric} is at least {low:low}, and {at_least:percent} is required.",
    "requirement-missed": "The {metric:metric} is at most {high:high}, but {at_least:percent} is required.",
    "requirement-open": "The {metric:metric} is {value:percent}, but could, at the confidence that is required, be "
    "anything from {low:low} to {high:high}: the required {at_least:percent} lies in between.",
    "more-examples": "About {n_needed:count} test examples instead of {n_now:count} would settle it, "
    "if the measured values hold.",
    "more-examples.unknown": "More than the {n_now:count} test examples are needed; how many cannot be said.",
    "better-than-baseline": "“{candidate}” beats the baseline “{baseline}” by {value:gap} points "
    "(interval {low:low_points} to {high:high_points}).",
    "not-better-than-baseline": "“{candidate}” is not shown to beat the baseline “{baseline}”: the difference is "
    "{value:points} points (interval {low:low_points} to {high:high_points}).",
    "prefix-versus.better": "The prefix is {value:gap} points better than “{rival}” "
    "(interval {low:low_points} to {high:high_points}).",
    "prefix-versus.worse": "The prefix is {value:gap} points worse than “{rival}” "
    "(interval {low:low_points} to {high:high_points}).",
    "prefix-versus.same": "The prefix and “{rival}” cannot be told apart: {value:points} points "
    "(interval {low:low_points} to {high:high_points}).",
    "cheaper-equivalent": "“{candidate}” is cheaper, and cannot be told apart from “{chosen}”: {value:points} points "
    "(interval {low:low_points} to {high:high_points}).",
    "stress-failed": "Under stress by {probe:probe} it fails at {rate:percent}, and possibly at up to {upper:high}; "
    "the limit is {limit:percent}.",
    "stress-passed": "The measured failure rates under stress are within the limits: {probes:probes}.",
    "other-text-loss": "On text outside the task “{candidate}” adds {value:nats} nats to the loss of a token "
    "(interval {low:nats} to {high:nats}) while it is active.",
    "other-text-neighbours": "Of texts outside the task “{candidate}” gives {value:percent} another nearest neighbour "
    "(interval {low:low} to {high:high}) while it is active.",
    "base-changed": "The base model's weights changed during the run, so nothing measured here can be relied on.",
    "base-unchanged": "The base model's weights are the same after the run as before.",
    "not-chosen-prefix": "The choice falls on “{chosen}”, not on the prefix “{prefix}”.",
    "examples-few": "The label “{label}” has few examples ({n:count}): what is said about it is uncertain.",
    "candidate-failed": "“{name}” could not be judged ({code}), so it is missing from the comparison.",
    "cost-per-month": "Running it costs about {currency} {amount:amount} a month.",
    "break-even": "It pays for itself after {months:months}.",
    "break-even.unknown": "It does not pay for itself under the stated assumptions.",
    "limited-run": "The run was limited to at most {limit:count} of each split's examples; only a full run counts.",
    "supported-requirement": "This evidence would support a requirement of up to {at_least_possible:low}.",
    "fix-probe": "Bring the failure rate under stress by {probe:probe} down to {limit:percent}.",
    "full-run": "Run it without --limit.",
    "none-fitted": "No candidate could be judged, so there is nothing to choose from.",
}
TONES: Mapping[str, Tone] = {
    **dict.fromkeys(("requirement-met", "better-than-baseline", "prefix-versus.better"), "good"),
    **dict.fromkeys(("stress-passed", "base-unchanged"), "good"),
    **dict.fromkeys(("requirement-missed", "base-changed", "prefix-versus.worse", "stress-failed"), "bad"),
    **dict.fromkeys(("none-fitted", "candidate-failed"), "bad"),
    **dict.fromkeys(("requirement-open", "not-better-than-baseline", "limited-run", "examples-few"), "open"),
}


@dataclass(frozen=True)
class Line:
    """One sentence, and whether it speaks for (good) or against (bad), or leaves the matter open."""

    text: str
    tone: Tone = "plain"


def standing(low: float, high: float, at_least: float) -> Standing:
    """Whether an interval lies wholly at or above a threshold (met), below it (missed), or contains it (open)."""
    if low >= at_least:
        return "met"
    return "missed" if high < at_least else "open"


def word(catalogue: Mapping[str, str], code: str | None) -> str:
    """A code's word from one of the catalogues; the code itself when it is not listed."""
    return UNKNOWN if code is None else catalogue.get(code, code)


def method_of(code: str) -> str:
    """What an interval's method means; says so when it is not in the catalogue."""
    return METHODS.get(code, "a method that this version of the report has no explanation for.")


def describe(candidate: CandidateEvidence) -> str:
    """A candidate's kind and read-out in a few words, for under its name."""
    kind = word(KINDS, candidate.kind)
    return kind if candidate.readout is None else f"{kind}; answer by {word(READOUTS, candidate.readout)}"


def sentence(reason: Reason) -> str:
    """A reason as an English sentence.

    >>> sentence(Reason(code="cost-per-month", parameters={"currency": "JPY", "amount": 21600.0}))
    'Running it costs about JPY 21,600 a month.'
    >>> sentence(Reason(code="new-code", parameters={"n": 3}))
    'new-code (n=3)'
    """
    template = REASONS.get(_variant(reason))
    if template is not None:
        try:
            return _SPEECH.vformat(template, (), reason.parameters)
        except (KeyError, TypeError, ValueError):  # a parameter is missing or of another type: show what there is
            pass
    shown = ", ".join(f"{name}={value}" for name, value in reason.parameters.items())
    return f"{reason.code} ({shown})" if shown else reason.code


def lines(reasons: Sequence[Reason]) -> tuple[Line, ...]:
    """Every reason in words, in its order."""
    return tuple(Line(sentence(reason), TONES.get(_variant(reason), "plain")) for reason in reasons)


def headlines(reasons: Sequence[Reason], limit: int) -> tuple[Line, ...]:
    """At most `limit` sentences not to be missed: neighbours of one kind joined, what speaks against kept first."""
    found: list[Line] = []
    joined = {"prefix-versus": versus, "examples-few": few}
    for code, group in itertools.groupby(reasons, lambda reason: reason.code):
        alike = list(group)
        found += [joined[code](alike)] if code in joined and len(alike) > 1 else lines(alike)
    order: list[Tone] = ["bad", "open", "good", "plain"]
    kept = sorted(range(len(found)), key=lambda index: order.index(found[index].tone))[:limit]
    return tuple(found[index] for index in sorted(kept))


def sides_of(rivals: Sequence[Reason]) -> Mapping[Side, tuple[str, ...]]:
    """The names of the rivals that the prefix is better than, worse than, and cannot be told apart from."""
    sides: tuple[Side, ...] = ("better", "worse", "same")
    return {
        side: tuple(str(r.parameters.get("rival")) for r in rivals if _variant(r) == f"prefix-versus.{side}")
        for side in sides
    }


def versus(rivals: Sequence[Reason]) -> Line:
    """Several comparisons of the prefix with a rival as one sentence."""
    sides = sides_of(rivals)
    phrases = {"better": "is better than", "worse": "is worse than", "same": "cannot be told apart from"}
    parts = [f"{phrases[side]} {_listed(names)}" for side, names in sides.items() if names]
    tone: Tone = "bad" if sides["worse"] else "good" if sides["better"] else "plain"
    return Line(f"The prefix {'; it '.join(parts)}.", tone)


def few(labels: Sequence[Reason]) -> Line:
    """Several labels with few examples as one sentence."""
    names = _listed([str(reason.parameters.get("label")) for reason in labels])
    return Line(f"{len(labels)} labels have few examples, so what is said about them is uncertain: {names}.", "open")


def _listed(names: Sequence[str]) -> str:
    parts = [f"“{name}”" for name in names[:NAMES_IN_A_SENTENCE]]
    parts += [f"{len(names) - len(parts)} more"] if len(names) > len(parts) else []
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _variant(reason: Reason) -> str:
    """The catalogue's key for a reason: some codes have one sentence for each outcome."""
    values = reason.parameters
    if reason.code == "prefix-versus":
        low, high = values.get("low"), values.get("high")
        if isinstance(low, int | float) and isinstance(high, int | float):
            return f"prefix-versus.{'better' if low > 0 else 'worse' if high < 0 else 'same'}"
    if reason.code == "more-examples" and values.get("n_needed") is None:
        return "more-examples.unknown"
    if reason.code == "break-even" and values.get("months") is None:
        return "break-even.unknown"
    return reason.code


_SPECS: Mapping[str, Callable[[Any], str]] = {
    "": lambda value: UNKNOWN if value is None else str(value),
    "percent": percent,
    "low": lambda value: percent(value, bound="low"),
    "high": lambda value: percent(value, bound="high"),
    "points": points,
    "low_points": lambda value: points(value, bound="low"),
    "high_points": lambda value: points(value, bound="high"),
    "gap": lambda value: points(abs(value)).removeprefix("+"),
    "count": count,
    "nats": nats,
    "amount": amount,
    "months": months,
    "metric": lambda code: word(METRICS, code),
    "probe": lambda code: word(PROBES, code),
    "probes": lambda codes: ", ".join(word(PROBES, code.strip()) for code in str(codes).split(",")),
}


class _Speech(string.Formatter):
    """Fills the catalogue's sentences; the format of a field is a key of `_SPECS`."""

    def format_field(self, value: Any, format_spec: str) -> str:
        return _SPECS[format_spec](value)


_SPEECH = _Speech()
