"""The task file: what is asked of the base model, in one TOML file that a person writes and every run reads.

It knows the sections, their fields with units and defaults, and says everything that is wrong with a file at once. It
does not know the data (`foreword.tuning.examples` reads them) nor the model: whether a candidate suits the base model
is seen when it runs. Every custom validator raises ValueError with what was *expected*; `Task.parse` adds the rest.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from foreword.errors import TaskError

Kind = Literal["classify", "generate"]
Metric = Literal["accuracy", "macro-f1", "exact-match", "token-f1", "rouge-l", "json-valid"]
Readout = Literal["auto", "label-text", "prototypes", "linear"]
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
    `max_tokens` is the number of tokens that a generation may add.
    """

    reference: Said
    template: Template | None = None
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_tokens: Whole = 64


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
    """`label_text`: what an encoder compares an input with: each label's "description" (itself by default) or "name"."""

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

    `learning_rate` None: the candidate's own choice.
    """

    readout: Readout = "auto"
    steps: Whole = 200
    batch_size: Whole = 16
    learning_rate: Positive | None = None
    seconds: Positive | None = None


class SoftPromptSettings(FittedSettings):
    kind: Literal["soft-prompt"] = "soft-prompt"
    positions: Whole = 16


class PrefixSettings(FittedSettings):
    kind: Literal["prefix"] = "prefix"
    positions: Whole = 16


class LoraSettings(FittedSettings):
    kind: Literal["lora"] = "lora"
    rank: Whole = 8


AnyCandidate = Annotated[
    ZeroShotSettings
    | HardPromptSettings
    | FewShotSettings
    | ProbeSettings
    | SoftPromptSettings
    | PrefixSettings
    | LoraSettings,
    Field(discriminator="kind"),
]
_BY_KIND: dict[str, type[CandidateSettings]] = {
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


class Task(BaseModel):
    """A task as it was understood, defaults filled in. Made by `load` from a file, or by `parse` from its values."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: TaskSection
    data: DataSettings
    labels: dict[Label, Said] = {}
    model: ModelSettings
    splits: SplitSettings = SplitSettings()
    candidates: tuple[AnyCandidate, ...] = Field(default=None, validate_default=True)
    run: RunSettings = RunSettings()
    limits: Limits = Limits()
    prices: Prices = Prices()
    _folder: Path = PrivateAttr(default=Path())

    @field_validator("labels")
    @classmethod
    def _suit_the_kind(cls, labels: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        if labels and "task" in info.data and info.data["task"].kind == "generate":
            raise ValueError("no labels, as the kind is 'generate'")
        if len(labels) == 1:
            raise ValueError("two labels or more, or none (they are then found in the data)")
        return labels

    @field_validator("candidates", mode="before")
    @classmethod
    def _all_that_need_no_options(cls, candidates: object, info: ValidationInfo) -> object:
        if candidates is not None:
            return candidates
        generates = "task" in info.data and info.data["task"].kind == "generate"
        return [{"kind": kind} for kind in _BY_KIND if kind != "hard-prompt" and not (generates and kind == "probe")]

    @field_validator("candidates")
    @classmethod
    def _fit_together(cls, candidates: tuple[AnyCandidate, ...], info: ValidationInfo) -> tuple[AnyCandidate, ...]:
        names = [candidate.name.casefold() for candidate in candidates]
        expected = [] if names else ["at least one"]
        expected += [
            f"names that differ, found {name!r} twice" for name in dict.fromkeys(names) if names.count(name) > 1
        ]
        if "task" in info.data and info.data["task"].kind == "generate":
            for candidate in candidates:
                if isinstance(candidate, ProbeSettings):
                    expected.append(f"no probe ({candidate.name!r}), as the kind is 'generate'")
                if getattr(candidate, "readout", "auto") != "auto":
                    expected.append(f"no readout in {candidate.name!r}, as the kind is 'generate'")
        if expected:
            raise ValueError("; ".join(expected))
        return candidates

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def kind(self) -> Kind:
        return self.task.kind

    @property
    def metric(self) -> Metric:
        return self.task.metric

    @property
    def requirement(self) -> Requirement:
        return self.task.requirement

    @property
    def folder(self) -> Path:
        """The folder that relative paths of the task start from."""
        return self._folder

    @property
    def reference(self) -> str:
        """The base model's reference; a relative folder that exists beside the task file as its absolute path."""
        beside = self._folder / self.model.reference
        is_folder = not self.model.reference.startswith("package:") and beside.is_dir()
        return str(beside.resolve()) if is_folder else self.model.reference

    def description(self, label: str) -> str:
        """The declared description of a label, or the label itself."""
        return self.labels.get(label, label)

    def settings(self) -> dict[str, Any]:
        """All fields as JSON values, defaults filled in; `parse` reads them back to an equal task."""
        return self.model_dump(mode="json")

    @classmethod
    def parse(cls, values: Mapping[str, Any], *, folder: Path, source: str = "The task") -> Self:
        """A task from the values of its file. TaskError lists every field that is wrong; `source` begins its text."""
        try:
            task = cls.model_validate(dict(values))
        except ValidationError as error:
            problems = [_problem(found) for found in error.errors(include_url=False)]
            raise TaskError(
                f"{source} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:"
                + "".join(f"\n  - {problem}" for problem in problems),
                fix="Correct the fields named above; `foreword init FOLDER` writes a task file that explains each.",
            ) from error
        task._folder = folder
        return task

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a task file. TaskError when it is missing, not UTF-8, not TOML, or wrong in any field."""
        path = Path(path)
        return cls.parse(_toml(path), folder=path.absolute().parent, source=f"The task file {path}")


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        found = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
        raise TaskError(
            f"The task file {path} cannot be read.",
            expected="a TOML file in UTF-8",
            found=found,
            fix="Name a task file, or write one with `foreword init FOLDER`.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise TaskError(
            f"The task file {path} is not valid TOML.",
            expected="TOML: text in quotes, [section] lines, one `field = value` a line",
            found=str(error),
            fix="Correct the place named above, or start again from `foreword init FOLDER`.",
        ) from error


_PLAIN = re.compile(r"[A-Za-z0-9_-]+").fullmatch
_WORDS = {
    "missing": "this field",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table of texts",
    "tuple_type": "a list",
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
}


def _problem(error: ErrorDetails) -> str:
    """One line on one wrong field: its dotted name, what was expected, what was found."""
    kind, at, found = error["type"], error["loc"], error["input"]
    table = _BY_KIND.get(str(at[2])) if at[0] == "candidates" and len(at) > 2 else None
    at = at[:2] + at[3:] if table else at  # pydantic names the kind between the number and the field
    if kind == "extra_forbidden":
        known = table.model_fields if table else _fields_beside(at)
        hint = did_you_mean(str(at[-1]), known) or f" (known: {', '.join(known)})"
        return f"{_dotted(at)}: expected no such field{hint}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = _WORDS.get(kind, f"a number {message}" if message.startswith(("greater", "less")) else message)
    if kind.startswith("union_tag"):
        at, found = (*at, "kind"), found.get("kind") if isinstance(found, dict) else found
        expected = f"one of {', '.join(_BY_KIND)}{did_you_mean(str(found), _BY_KIND)}"
    if kind in {"missing", "union_tag_not_found"}:
        return f"{_dotted(at)}: expected {expected}, found nothing"
    if kind == "value_error" and isinstance(found, dict | list | tuple):
        return f"{_dotted(at)}: expected {expected}"
    shown = repr(found)
    return f"{_dotted(at)}: expected {expected}, found {shown if len(shown) <= 60 else shown[:57] + '...'}"


def _fields_beside(at: tuple[int | str, ...]) -> Iterable[str]:
    """The known fields of the section that the place `at` lies in."""
    section: Any = Task
    for step in at[:-1]:
        section = section.model_fields[str(step)].annotation
    return list(section.model_fields)


def _dotted(at: Iterable[int | str]) -> str:
    """A place as the task file's reader would write it: `candidates[0].positions`, `labels.'two words'`."""
    steps = [step for step in at if step != "[key]"]
    shown = [f"[{step}]" if isinstance(step, int) else f".{step}" if _PLAIN(step) else f".{step!r}" for step in steps]
    return "".join(shown).removeprefix(".")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean ...?)" with the nearest known word, or nothing when none is near.

    >>> did_you_mean("positons", ["steps", "positions"])
    " (did you mean 'positions'?)"
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
