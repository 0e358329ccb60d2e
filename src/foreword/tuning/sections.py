"""The sections of a task file that are no candidates: their fields with units and defaults.

It knows one section at a time. How they fit together is `foreword.tuning.task`'s business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from foreword.tuning.field_values import (
    Currency,
    Device,
    File,
    Kind,
    MetricName,
    Money,
    Positive,
    Rate,
    Said,
    Section,
    Seed,
    Share,
    Switch,
    Template,
    Whole,
    metric_name,
    some,
)

METRICS: Mapping[str, tuple[str, ...]] = {
    "classify": ("accuracy", "macro-f1"),
    "generate": ("exact-match", "token-f1", "rouge-l", "json-valid"),
}
_REQUIREMENT = re.compile(
    r"(?P<metric>.+?) (?:of )?(?:at least|>=|≥) ?(?P<least>[0-9]*\.?[0-9]+) ?(?P<of_100>%?),?"
    r" (?:with|at) (?P<confidence>[0-9]*\.?[0-9]+) ?(?P<sure_of_100>%?) confidence\.?",
    re.IGNORECASE,
)


def _requirement(value: object) -> object:
    """A sentence becomes the fields of a `Requirement`; its fields as a table pass."""
    if isinstance(value, dict | Requirement):
        return value
    found = _REQUIREMENT.fullmatch(" ".join(value.split())) if isinstance(value, str) else None
    if found is None:
        raise ValueError('a sentence such as "accuracy at least 0.70 with 95% confidence"')
    return {
        "metric": found["metric"],
        "at_least": float(Decimal(found["least"]) / (100 if found["of_100"] else 1)),
        "confidence": float(Decimal(found["confidence"]) / (100 if found["sure_of_100"] else 1)),
    }


class Requirement(Section):
    """The metric's lower bound at `confidence` must reach `at_least`; both are fractions, not percent.

    >>> Requirement.parse("Accuracy at least 70% with 95% confidence")
    Requirement(metric='accuracy', at_least=0.7, confidence=0.95)
    """

    metric: MetricName
    at_least: Annotated[float, Field(strict=True, gt=0, lt=1)]
    confidence: Annotated[float, Field(strict=True, ge=0.5, lt=1)]

    @classmethod
    def parse(cls, sentence: str) -> Self:
        """Read "METRIC at least VALUE with CONFIDENCE confidence"; ValueError (pydantic's included) when it is not."""
        return cls.model_validate(_requirement(sentence))

    @property
    def text(self) -> str:
        """The requirement as a sentence that `parse` reads back."""
        percent = (Decimal(repr(self.confidence)) * 100).normalize()
        return f"{self.metric} at least {Decimal(repr(self.at_least)):f} with {percent:f}% confidence"


class TaskSection(Section):
    """[task]: `metric` is the requirement's; stating it as well is allowed, contradicting it is not."""

    name: Said
    kind: Kind
    requirement: Annotated[Requirement, BeforeValidator(_requirement)]
    metric: MetricName = Field(default=None, validate_default=True)

    @field_validator("requirement")
    @classmethod
    def _measures_this_kind(cls, requirement: Requirement, info: ValidationInfo) -> Requirement:
        known = METRICS.get(info.data.get("kind", ""), (requirement.metric,))
        if requirement.metric not in known:
            raise ValueError(f"a metric for kind {info.data['kind']!r}: {' or '.join(known)}")
        return requirement

    @field_validator("metric", mode="before")
    @classmethod
    def _is_the_required_one(cls, metric: object, info: ValidationInfo) -> object:
        required = info.data.get("requirement")
        if required is None:
            return metric or "accuracy"  # never kept: the requirement itself is already refused
        if metric is not None and metric_name(metric) != required.metric:
            raise ValueError(f"{required.metric!r}, the metric of the requirement")
        return required.metric


class DataSettings(Section):
    """[data]: `files` (or one `file`), relative to the task file's folder; the columns of input and target."""

    files: Annotated[tuple[File, ...], AfterValidator(some)]
    input: Said = "text"
    target: Said = "label"

    @model_validator(mode="before")
    @classmethod
    def _one_file_is_a_list_of_one(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or "file" not in raw:
            return raw
        if "files" in raw:
            raise ValueError("either file or files, found both")
        return {"files": [raw["file"]], **{key: value for key, value in raw.items() if key != "file"}}

    @field_validator("target")
    @classmethod
    def _is_another_column(cls, target: str, info: ValidationInfo) -> str:
        if target == info.data.get("input"):
            raise ValueError("another column than the input's")
        return target


class ModelSettings(Section):
    """[model]: the frozen base model and how an input is shown to it.

    `template` contains {input}, replaced literally (other braces stay); None leaves the choice to the candidate.
    `max_tokens` is the number of tokens that a generation may add. `chat`: the prompt is a user's message in the
    model's chat template, behind the text `system` when there is one.
    """

    reference: Said
    template: Template | None = None
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_tokens: Whole = 64
    chat: Switch = False
    system: Said | None = None

    @field_validator("system")
    @classmethod
    def _stands_in_a_chat(cls, system: str | None, info: ValidationInfo) -> str | None:
        if system is not None and info.data.get("chat") is False:
            raise ValueError("chat = true beside it")
        return system


class SplitSettings(Section):
    """[splits]: three fractions of all examples, or three whole numbers (per label, or in total for generation).

    A fraction is a threshold on the hash of the input, so an example never changes its split when rows are added.
    Whole numbers are taken in the order of that hash. `test` may be "rest". `salt` gives another division.
    """

    fit: Share = 0.5
    selection: Share = 0.2
    test: Share = "rest"
    salt: str = "foreword"

    @model_validator(mode="after")
    def _add_up(self) -> Self:
        if "rest" in (self.fit, self.selection):
            raise ValueError('numbers for fit and selection; only test may be "rest"')
        shares = [share for share in (self.fit, self.selection, self.test) if not isinstance(share, str)]
        if len({type(share) for share in shares}) > 1:
            raise ValueError(f"all fractions or all whole numbers; found {', '.join(map(str, shares))}")
        if not self.counted and (total := sum(shares)) > (1 - 1e-9 if self.test == "rest" else 1 + 1e-9):
            raise ValueError(f"fractions that leave something to each split; found a sum of {total:g}")
        return self

    @property
    def counted(self) -> bool:
        """Are the splits whole numbers of examples, and not fractions?"""
        return isinstance(self.fit, int)


class RunSettings(Section):
    """[run]: every candidate is fitted once for each of the `seeds`."""

    seeds: Annotated[tuple[Seed, ...], AfterValidator(some)] = (0,)

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError("seeds that differ")
        return seeds


class Limits(Section):
    """[limits]: seconds a candidate may fit, tokens of an input, and failure rates allowed under stress.

    `flip_rate`: answers that change though they should not (invariance); `crash_rate`: no answer in the allowed form
    (robustness); `overconfidence_rate`: confident answers to inputs outside the task (rejection).
    """

    fit_seconds: Positive = 240.0
    max_input_tokens: Whole | None = None
    flip_rate: Rate = 0.10
    crash_rate: Rate = 0.0
    overconfidence_rate: Rate = 0.20


class ForgettingSettings(Section):
    """[forgetting]: text outside the task that fitted candidates are looked at on.

    `files`: text files, relative to the task file's folder; None: Python's own manual. `texts`: passages drawn of them,
    0 to leave it out.
    """

    files: Annotated[tuple[Said, ...], AfterValidator(some)] | None = None
    texts: Annotated[int, Field(strict=True, ge=0)] = 64


class Prices(Section):
    """[prices]: assumptions, in `currency`. The defaults are rough yen figures, to be replaced by one's own.

    Money: `machine_per_hour`, `label_per_example` (having one example labelled), `engineer_per_hour`, and
    `alternative_per_request` (doing the task as it is done today; None: not compared). `setup_hours` are hours of work.
    """

    currency: Currency = "JPY"
    machine_per_hour: Money = 30.0
    requests_per_month: Whole = 100_000
    label_per_example: Money = 30.0
    engineer_per_hour: Money = 6_000.0
    setup_hours: Annotated[float, Field(strict=True, ge=0)] = 16.0
    alternative_per_request: Money | None = None

    @model_validator(mode="after")
    def _one_currency(self) -> Self:
        in_yen = {"machine_per_hour", "label_per_example", "engineer_per_hour"} - self.model_fields_set
        if self.currency != "JPY" and in_yen:
            raise ValueError(f"every price in {self.currency}; {', '.join(sorted(in_yen))} would be a default in JPY")
        return self
