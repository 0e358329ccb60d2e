"""The sections of a task file: their fields with units, defaults, and what each value may be.

It knows one section at a time. How they fit together is `foreword.tuning.task`'s business, and how a refusal is worded
that of `foreword.tuning.problems`: a custom validator here raises ValueError with what was *expected*, nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationInfo,
    field_validator,
    model_validator,
)

from foreword.tuning.loop_settings import FitSettings, Schedule
from foreword.tuning.starts import Start

Kind = Literal["classify", "generate"]
Metric = Literal["accuracy", "macro-f1", "exact-match", "token-f1", "rouge-l", "json-valid"]
Readout = Literal["auto", "label-text", "prototypes", "linear"]
Objective = Literal["auto", "labels", "completion", "similarity", "distillation"]
TEACHERS = ("teacher_text", "teacher_shots", "teacher_file")
METRICS: Mapping[str, tuple[str, ...]] = {
    "classify": ("accuracy", "macro-f1"),
    "generate": ("exact-match", "token-f1", "rouge-l", "json-valid"),
}
_REQUIREMENT = re.compile(
    r"(?P<metric>.+?) (?:of )?(?:at least|>=|≥) ?(?P<least>[0-9]*\.?[0-9]+) ?(?P<of_100>%?),?"
    r" (?:with|at) (?P<confidence>[0-9]*\.?[0-9]+) ?(?P<sure_of_100>%?) confidence\.?",
    re.IGNORECASE,
)


def _like(pattern: str, expected: str) -> AfterValidator:
    """Text that matches `pattern` as a whole, or a refusal that says `expected`."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text, re.DOTALL) is None:
            raise ValueError(expected)
        return text

    return AfterValidator(check)


def _some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if not values:
        raise ValueError("at least one")
    return values


def _metric_name(name: object) -> object:
    return re.sub(r"[\s_]+", "-", name.strip().lower()) if isinstance(name, str) else name


def _share(value: object) -> int | float | str:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a fraction between 0 and 1, or a whole number of examples")
    if value == "rest" or (isinstance(value, int) and value >= 1) or (isinstance(value, float) and 0 < value < 1):
        return value
    raise ValueError('a fraction between 0 and 1, a whole number from 1, or (for test) "rest"')


def _rate(value: object) -> float | str:
    if value == "find" and isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError('a number above 0, or "find"')
    return float(value)


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


def _numbers(value: object) -> object:
    """Whole numbers and ranges such as "4-7", both ends included, as whole numbers in order, each once."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError('a list of whole numbers from 0 and ranges such as "4-7", at least one')
    found: set[int] = set()
    for each in value:
        ends = re.fullmatch(r"([0-9]{1,4})-([0-9]{1,4})", each) if isinstance(each, str) else None
        if ends is not None and int(ends[1]) <= int(ends[2]):
            found.update(range(int(ends[1]), int(ends[2]) + 1))
        elif isinstance(each, int) and not isinstance(each, bool) and each >= 0:
            found.add(each)
        else:
            raise ValueError(f'whole numbers from 0 and ranges such as "4-7", found {each!r}')
    return tuple(sorted(found))


Numbers = Annotated[tuple[int, ...], BeforeValidator(_numbers)]
Whole = Annotated[int, Field(strict=True, ge=1)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Money = Annotated[float, Field(strict=True, ge=0)]
Rate = Annotated[float, Field(strict=True, ge=0, le=1)]
Said = Annotated[str, _like(r".*\S.*", "text that is not blank")]
Label = Annotated[str, _like(r"\S(.*\S)?", "a label that is not blank, without spaces around it")]
Template = Annotated[str, _like(r".*\{input\}.*", "text that contains {input}, where the input goes")]
File = Annotated[str, _like(r"(?i:.*\.(jsonl|csv|parquet))", "a file that ends in .jsonl, .csv or .parquet")]
Name = Annotated[str, _like(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, dots, dashes; at most 64")]
Device = Annotated[str, _like(r"auto|cpu|cuda(:[0-9]+)?", "auto, cpu, cuda, or cuda and a number such as cuda:0")]
Currency = Annotated[str, _like(r"[A-Z]{3}", "a currency's three letters, such as JPY")]
MetricName = Annotated[Metric, BeforeValidator(_metric_name)]
LearningRate = Annotated[float | Literal["find"], PlainValidator(_rate)]
Share = Annotated[int | float | Literal["rest"], PlainValidator(_share)]


class Section(BaseModel):
    """Base of all sections: unknown fields are refused, values are not changed after the fact."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
        if metric is not None and _metric_name(metric) != required.metric:
            raise ValueError(f"{required.metric!r}, the metric of the requirement")
        return required.metric


class DataSettings(Section):
    """[data]: `files` (or one `file`), relative to the task file's folder; the columns of input and target."""

    files: Annotated[tuple[File, ...], AfterValidator(_some)]
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
    chat: Annotated[bool, Field(strict=True)] = False
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


class CandidateSettings(Section):
    """What every [[candidates]] table has. `name` is unique in the task and defaults to the kind."""

    kind: str
    name: Name = Field(default=None, validate_default=True)

    @field_validator("name", mode="before")
    @classmethod
    def _named_after_its_kind(cls, name: object, info: ValidationInfo) -> object:
        return info.data.get("kind", "") if name is None else name


class ZeroShotSettings(CandidateSettings):
    """`label_text`: what an encoder compares an input with.

    Each label's "description" (the label itself where it has none), or its "name".
    """

    kind: Literal["zero-shot"] = "zero-shot"
    label_text: Literal["description", "name"] = "description"


class HardPromptSettings(CandidateSettings):
    """`templates`: the prompts to choose from, on the selection split."""

    kind: Literal["hard-prompt"] = "hard-prompt"
    templates: Annotated[tuple[Template, ...], AfterValidator(_some)]
    readout: Readout = "auto"


class FewShotSettings(CandidateSettings):
    """`shots`: examples used per label (in total for generation); None: all for prototypes, as fits for a prompt."""

    kind: Literal["few-shot"] = "few-shot"
    shots: Whole | None = None


class ProbeSettings(CandidateSettings):
    kind: Literal["probe"] = "probe"


class FittedSettings(CandidateSettings):
    """Fitted by gradient descent: at most `steps`, within `seconds` (None: limits.fit_seconds).

    `learning_rate` None: the candidate's own choice; "find": searched in 48 steps. `part`: examples computed at once,
    all of a batch when None. The other fields are those of `foreword.tuning.fittable.FitSettings`; `checkpointing`
    computes the layers twice instead of keeping what they computed.
    `objective` is what is minimised; "distillation" needs one of
    `teacher_text`, `teacher_shots` and `teacher_file`, and `self_study` counts the lessons that a file gives.
    `leave_one_out`: hide from an example the positions that were made from it; None: from 4 such examples on.
    """

    readout: Readout = "auto"
    objective: Objective = "auto"
    teacher_text: Said | None = None
    teacher_shots: Whole | None = None
    teacher_file: Said | None = None
    self_study: Annotated[int, Field(strict=True, ge=2)] = 128
    leave_one_out: Annotated[bool, Field(strict=True)] | None = None
    steps: Whole = 200
    batch_size: Whole = 16
    learning_rate: LearningRate | None = None
    schedule: Schedule = "constant"
    evaluate_every: Whole = 8
    patience: Whole = 6
    seconds: Positive | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpointing: bool = False
    part: Whole | None = None
    bucketed: bool = False

    def loop(self, seconds: float) -> FitSettings:
        """What the fitting loop takes; `seconds` where these settings leave the time open."""
        own = {name: getattr(self, name) for name in FitSettings.__dataclass_fields__ if hasattr(self, name)}
        return FitSettings(**{**own, "seconds": seconds if self.seconds is None else self.seconds})

    @model_validator(mode="after")
    def _one_teacher(self) -> Self:
        given = [name for name in TEACHERS if getattr(self, name) is not None]
        if self.objective == "distillation" and len(given) != 1:
            raise ValueError(f"one of {', '.join(TEACHERS)} for distillation; found {' and '.join(given) or 'none'}")
        if self.objective != "distillation" and given:
            raise ValueError(f'objective = "distillation" beside {given[0]}')
        return self

    @model_validator(mode="after")
    def _reads_what_it_minimises(self) -> Self:
        if self.objective == "similarity" and self.readout not in ("auto", "label-text"):
            raise ValueError('readout "label-text" for objective "similarity"')
        if self.objective == "completion" and self.readout != "auto":
            raise ValueError('readout "auto" for objective "completion"')
        return self


class SoftPromptSettings(FittedSettings):
    """`start`: the tokens that the vectors start as: drawn at random, of the labels' texts, or of `start_text`."""

    kind: Literal["soft-prompt"] = "soft-prompt"
    positions: Whole = 16
    start: Literal["vocabulary", "labels", "text"] = "vocabulary"
    start_text: Said | None = None

    @model_validator(mode="after")
    def _starts_from_what_is_given(self) -> Self:
        if (self.start == "text") != (self.start_text is not None):
            raise ValueError(f'start = "text" and start_text together, found start = "{self.start}"')
        return self


class PrefixSettings(FittedSettings):
    """`start`: first values; `start_text` and `start_prefix` are what "text" and "prefix" start from.

    `train` "values": the first keys stay. `layers` and `heads` (of keys) say where the prefix sits, None everywhere;
    `sink` keeps the first position as it starts. `longest`: the first values are the beginning of those of so many
    positions; None: of `positions` themselves. `share`: of attention that a prefix without values of its own begins
    with, by a logit bias; 1: as its keys are drawn, without a bias.
    """

    kind: Literal["prefix"] = "prefix"
    positions: Whole = 16
    longest: Whole | None = None
    start: Start = "auto"
    start_text: Said | None = None
    start_prefix: Said | None = None
    train: Literal["both", "values"] = "both"
    layers: Numbers | None = None
    heads: Numbers | None = None
    sink: bool = False
    share: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.08
    schedule: Schedule = "inverse-sqrt"

    @field_validator("longest")
    @classmethod
    def _holds_all_positions(cls, longest: int | None, info: ValidationInfo) -> int | None:
        if longest is not None and longest < info.data.get("positions", 0):
            raise ValueError(f"at least the positions, {info.data['positions']}")
        return longest

    @model_validator(mode="after")
    def _start_from_what_is_given(self) -> Self:
        if self.start_text is not None and self.start != "text":
            raise ValueError(f'start = "text" beside start_text, found start = "{self.start}"')
        if self.start_prefix is not None and self.start != "prefix":
            raise ValueError(f'start = "prefix" beside start_prefix, found start = "{self.start}"')
        if self.start == "prefix" and self.start_prefix is None:
            raise ValueError('start_prefix, a bundle\'s path, beside start = "prefix"')
        if self.sink and self.positions < 2:
            raise ValueError("positions from 2 with sink = true: the first one is not fitted")
        return self


class LoraSettings(FittedSettings):
    """`alpha`: scale of the updates, over the rank (over its root when `rank_stabilized`); None: twice the rank.

    `targets`: the linear layers that get an update; "auto" is peft's choice for the family.
    """

    kind: Literal["lora"] = "lora"
    rank: Whole = 8
    alpha: Positive | None = None
    rank_stabilized: bool = False
    targets: Literal["auto", "attention", "mlp", "all-linear"] = "auto"


class FullSettings(FittedSettings):
    """All weights of a copy of the base model; only when a task file asks for it: it takes 40 bytes a weight."""

    kind: Literal["full"] = "full"


AnyCandidate = Annotated[
    ZeroShotSettings
    | HardPromptSettings
    | FewShotSettings
    | ProbeSettings
    | SoftPromptSettings
    | PrefixSettings
    | LoraSettings
    | FullSettings,
    Field(discriminator="kind"),
]
BY_KIND: dict[str, type[CandidateSettings]] = {
    get_args(kind.model_fields["kind"].annotation)[0]: kind for kind in get_args(get_args(AnyCandidate)[0])
}


class RunSettings(Section):
    """[run]: every candidate is fitted once for each of the `seeds`."""

    seeds: Annotated[tuple[Seed, ...], AfterValidator(_some)] = (0,)

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

    files: Annotated[tuple[Said, ...], AfterValidator(_some)] | None = None
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
