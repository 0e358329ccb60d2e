"""Before a fit: can a prefix do this task on this model at all? A foretelling with a stated error rate.

Probes (`foreword.tuning.probes`) are turned into a verdict by a rule that was calibrated on pairs of tasks and models
with known outcomes, and judged on others (benchmarks/tuning/foretelling). Each kind of task has a versioned file of its
own: rule, counts and the interval of the error rate. A foretelling is a reason where to begin; only a pilot measures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from foreword.confidence import rate_interval
from foreword.engine.host import Host
from foreword.tuning.candidates import Workbench
from foreword.tuning.examples import load_splits
from foreword.tuning.field_values import Kind
from foreword.tuning.fit_request import check_seed
from foreword.tuning.probes import Probes, probe
from foreword.tuning.task import Task

Verdict = Literal["prefix", "lora", "other base", "nothing needed"]
SCHEMA = "foreword.foretelling/1"
# Objectives that the probes do not fit by, and for which the rules were not validated.
UNPROBED = {"similarity", "distillation"}

ADVICE: Mapping[Verdict, str] = {
    "prefix": (
        "Fit a prefix: the model seems to have what the task needs, and a prefix can bring it out. "
        "Run `foreword fit TASK --length auto`."
    ),
    "lora": (
        "Use LoRA: the task seems to need another pattern of attention or another computation than the model has, "
        'which a prefix cannot give. Run `foreword fit TASK --method lora`, or add kind = "lora" to the pilot.'
    ),
    "other base": (
        "Take another base model: neither a prefix nor small changes of the weights moved this one far enough towards "
        "the task. Name a larger model, or one trained on similar texts, under [model] reference; or check template "
        "and labels."
    ),
    "nothing needed": (
        "Fit nothing yet: the bare model meets the requirement on the examples that were looked at. "
        "Run `foreword pilot TASK` with a zero-shot candidate to have that measured on the test split."
    ),
}


@dataclass(frozen=True)
class Score:
    """A probability from features: logistic, weights on features that are first brought to their calibrated scale."""

    features: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float

    @classmethod
    def parse(cls, told: Mapping[str, Any]) -> Score:
        """From the values of a file."""
        means, scales, weights = (tuple(map(float, told[name])) for name in ("means", "scales", "weights"))
        return cls(tuple(told["features"]), means, scales, weights, float(told["intercept"]))

    def of(self, found: Mapping[str, float]) -> float:
        """The probability for these features."""
        parts = zip(self.features, self.means, self.scales, self.weights, strict=True)
        total = self.intercept + sum(weight * (found[name] - mean) / scale for name, mean, scale, weight in parts)
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, total))))


@dataclass(frozen=True)
class Calibration:
    """The rule of one kind of task and role of model, and how often it was right on pairs that it was not made from.

    `works`: that anything fitted gains on the metric; `prefix`: that a prefix reaches most of the larger gain, among
    the pairs where anything gains (`is_conditional`) or among all.
    `pairs`, `right` and `prefix_right` are of the validation: verdicts, and the answer to "can a prefix?" alone.
    `roles` and `kinds` are what was validated; elsewhere no error rate is stated.
    """

    works: Score
    prefix: Score
    is_conditional: bool
    pairs: int
    right: int
    prefix_right: int
    roles: tuple[str, ...]
    kinds: tuple[str, ...]

    @classmethod
    def load(cls, kind: Kind, role: str) -> Calibration:
        """The calibration for a kind of task and role of model that comes with this version.

        That of causal models where there is none for the role: it states no error rate there.
        """
        return _calibration(kind, role)

    @classmethod
    def parse(cls, told: Mapping[str, Any]) -> Calibration:
        """From the values of its file; ValueError when it has another schema."""
        if told["schema"] != SCHEMA:
            raise ValueError(f"expected schema {SCHEMA}, found {told['schema']}")
        seen, domain = told["validation"], told["domain"]
        return cls(
            Score.parse(told["works"]),
            Score.parse(told["prefix"]),
            {"working": True, "all": False}[told["prefix_of"]],
            int(seen["pairs"]),
            int(seen["right"]),
            int(seen["prefix_right"]),
            tuple(domain["roles"]),
            tuple(domain["kinds"]),
        )


@dataclass(frozen=True)
class ErrorRate:
    """Of `pairs` held-out pairs `wrong` were told wrongly; the rate lies in [`low`, `high`] at `level` (exact)."""

    wrong: int
    pairs: int
    low: float
    high: float
    level: float

    @classmethod
    def of(cls, right: int, pairs: int) -> ErrorRate:
        """From counts, with Clopper and Pearson's interval at 95%."""
        found = rate_interval(pairs - right, pairs)
        return cls(pairs - right, pairs, found.low, found.high, found.level)

    @property
    def text(self) -> str:
        """The count and the interval, in words."""
        return (
            f"{self.wrong} of {self.pairs} (error rate {self.low:.0%} to {self.high:.0%}, {self.level:.0%} confidence)"
        )


@dataclass(frozen=True)
class Foretelling:
    """The verdict on a task and a base model, with the probes it rests on.

    `probability` is the rule's own for the verdict, from `works` and `prefix` (see `Calibration`). `error_rate` is how
    often the answer to "can a prefix do it?" was wrong on held-out pairs, `verdict_error_rate` how often the verdict
    was, which also tells LoRA from another base. Both are None where the rule was not validated: for other roles of
    models or kinds of tasks, and for `objectives`, those of the task's candidates that the probes do not fit by.
    `required` is the metric's value that the task asks for.
    """

    verdict: Verdict
    probability: float
    works: float
    prefix: float
    error_rate: ErrorRate | None
    verdict_error_rate: ErrorRate | None
    probes: Probes
    objectives: tuple[str, ...] = ()
    required: float | None = None

    @property
    def advice(self) -> str:
        """What to do, in plain words; and what was measured, where it speaks against the verdict or a teacher."""
        reached, probes, told = self.probes.prefix_metric, self.probes, ADVICE[self.verdict]
        is_doubted = self.verdict in ("lora", "other base")
        if is_doubted and self.required is not None and reached is not None and reached >= self.required:
            told += (
                f" But the short prefix fit reached {reached:.3f} on the {probes.judged} examples, "
                f"and {self.required:g} is required: let `foreword pilot` judge a prefix beside it."
            )
        return f"{told} {self._of_the_teacher}" if probes.teacher_is_behind else told

    @property
    def _of_the_teacher(self) -> str:
        """Where a teacher is behind a short fit to the targets: what a distillation of it comes near to."""
        probes = self.probes
        mine, other = ("metric", (probes.teacher_metric, probes.prefix_metric))
        if None in other:
            mine, other = "loss of the targets", (probes.teacher, probes.prefix)
        return (
            f"The task's teacher does it less well than that fit ({mine} {other[0]:.3f} and {other[1]:.3f}), and a "
            'distillation comes near to its teacher: fit to the targets (objective = "auto").'
        )

    @property
    def reliability(self) -> str:
        """How often such a verdict is wrong, in plain words."""
        if self.objectives:
            return (
                f"The task's candidates are fitted by {' and '.join(self.objectives)}, and the probes to the examples' "
                "targets: what this says of the targets was not compared with such fits; take it as a hint."
            )
        if self.error_rate is None or self.verdict_error_rate is None:
            return "How often this is wrong was not measured for this kind of model and task; take it as a hint."
        return (
            "On pairs of tasks and small models that the rule had not seen, whether a prefix can do the task was told "
            f"wrongly on {self.error_rate.text}, what to do instead as well on {self.verdict_error_rate.text}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {name: getattr(self, name) for name in ("verdict", "probability", "works", "prefix")}
        rates = {name: getattr(self, name) for name in ("error_rate", "verdict_error_rate")}
        told = {name: None if rate is None else asdict(rate) for name, rate in rates.items()}
        return {
            **values,
            "advice": self.advice,
            "reliability": self.reliability,
            **told,
            "objectives": list(self.objectives),
            "probes": self.probes.as_dict(),
        }


def foretell(
    host: Host | str | None,
    task: Task | Path | str,
    *,
    seed: int = 0,
    limit: int | None = None,
    watch: Callable[[str], None] | None = None,
) -> Foretelling:
    """Look at a task and a base model before a fit, and say what is likely to do it.

    `host` is a Host, a reference, or None for the task's own. Only the fit and selection splits are used. `watch` is
    told the name of each probe as it begins. Errors are those of the task file, its data and the model.
    """
    check_seed(seed)
    task = task if isinstance(task, Task) else Task.load(task)
    splits = load_splits(task, limit=limit)
    if not isinstance(host, Host):
        host = Host.load(host or task.reference, dtype=task.model.dtype, device=task.model.device)
    found = probe(Workbench(host, task, splits), seed=seed, watch=watch)
    rule = Calibration.load(task.kind, host.role)
    made = judged(found, rule, role=host.role, kind=task.kind, required=task.requirement.at_least)
    named = {getattr(candidate, "objective", "auto") for candidate in task.candidates}
    objectives = tuple(sorted(named & UNPROBED))
    return replace(made, error_rate=None, verdict_error_rate=None, objectives=objectives) if objectives else made


def judged(found: Probes, rule: Calibration, *, role: str, kind: str, required: float) -> Foretelling:
    """The verdict of a rule on what the probes found; `required` is the metric's value that the task asks for."""
    works, prefix = rule.works.of(found.features), rule.prefix.of(found.features)
    can = works * prefix if rule.is_conditional else min(works, prefix)
    chances: dict[Verdict, float] = {"prefix": can, "lora": works - can, "other base": 1 - works}
    verdict: Verdict = "other base" if works < 0.5 else "prefix" if prefix >= 0.5 else "lora"
    probability = chances[verdict]
    if found.metric >= required:
        verdict, probability = "nothing needed", 1.0
    rates: tuple[ErrorRate | None, ErrorRate | None] = (None, None)
    if role in rule.roles and kind in rule.kinds:
        rates = ErrorRate.of(rule.prefix_right, rule.pairs), ErrorRate.of(rule.right, rule.pairs)
    return Foretelling(verdict, probability, works, prefix, *rates, found, required=required)


@cache
def _calibration(kind: Kind, role: str) -> Calibration:
    folder = resources.files("foreword.tuning") / "calibration"
    own = folder / f"foretelling-{kind}-{role}.json"
    place = own if own.is_file() else folder / f"foretelling-{kind}-causal.json"
    return Calibration.parse(json.loads(place.read_text(encoding="utf-8")))
