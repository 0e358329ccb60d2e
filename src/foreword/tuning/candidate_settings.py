"""The settings of each kind of candidate, as a task file's [[candidates]] tables give them."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from foreword.tuning.field_values import (
    Heads,
    LearningRate,
    Name,
    Numbers,
    Objective,
    Positive,
    Readout,
    Said,
    Section,
    Switch,
    Template,
    Whole,
    some,
)
from foreword.tuning.loop_settings import FitSettings, Schedule
from foreword.tuning.starts import Start

TEACHERS = ("teacher_text", "teacher_shots", "teacher_file")


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
    templates: Annotated[tuple[Template, ...], AfterValidator(some)]
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
    leave_one_out: Switch | None = None
    steps: Whole = 200
    batch_size: Whole = 16
    learning_rate: LearningRate | None = None
    schedule: Schedule = "constant"
    evaluate_every: Whole = 8
    patience: Whole = 6
    seconds: Positive | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    checkpointing: Switch = False
    part: Whole | None = None
    bucketed: Switch = False

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
    def _has_positions_to_hide(self) -> Self:
        if self.leave_one_out and getattr(self, "start", None) != "demonstrations":
            raise ValueError('a prefix with start = "demonstrations" beside leave_one_out')
        return self

    @model_validator(mode="after")
    def _reads_what_it_minimises(self) -> Self:
        if self.objective == "similarity" and self.readout not in ("auto", "label-text"):
            raise ValueError('readout "label-text" for objective "similarity"')
        if self.objective == "completion" and self.readout != "auto":
            raise ValueError('readout "auto" for objective "completion"')
        if self.objective == "distillation" and self.readout == "calibrated":
            raise ValueError('another readout than "calibrated" for objective "distillation"')
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
    `heads` as a table has the heads of each layer that carries it, and no other layer does. `sink` keeps the first
    position as it starts. `longest`: the first values are the beginning of those of so many
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
    heads: Heads | None = None
    sink: Switch = False
    share: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.08
    schedule: Schedule = "inverse-sqrt"

    @field_validator("longest")
    @classmethod
    def _holds_all_positions(cls, longest: int | None, info: ValidationInfo) -> int | None:
        if longest is not None and longest < info.data.get("positions", 0):
            raise ValueError(f"at least the positions, {info.data['positions']}")
        return longest

    @model_validator(mode="after")
    def _names_its_layers_once(self) -> Self:
        if isinstance(self.heads, dict) and self.layers is not None:
            raise ValueError("layers left out beside heads as a table, which names the layers itself")
        return self

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
    rank_stabilized: Switch = False
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
