"""The task file: what is asked of the base model, in one TOML file that a person writes and every run reads.

It knows how the sections (`foreword.tuning.sections`) fit together, and says everything that is wrong with a file at
once. It does not know the data (`foreword.tuning.examples` reads them) nor the model: whether a candidate suits the
base model is seen when it runs.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from foreword.errors import TaskError
from foreword.regular_file import found_in
from foreword.tuning.candidate_settings import BY_KIND, AnyCandidate, CandidateSettings, ProbeSettings
from foreword.tuning.field_values import Kind, Label, Metric, Said
from foreword.tuning.problems import problem
from foreword.tuning.sections import (
    DataSettings,
    ForgettingSettings,
    Limits,
    ModelSettings,
    Prices,
    Requirement,
    RunSettings,
    SplitSettings,
    TaskSection,
)

# Kinds that compete only when a task file names them: one needs options, the other far more memory and time.
ASKED_FOR = ("hard-prompt", "full")


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
    forgetting: ForgettingSettings = ForgettingSettings()
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
        left_out = ASKED_FOR + (("probe",) if generates else ())
        return [{"kind": kind} for kind in BY_KIND if kind not in left_out]

    @field_validator("candidates")
    @classmethod
    def _fit_together(cls, candidates: tuple[AnyCandidate, ...], info: ValidationInfo) -> tuple[AnyCandidate, ...]:
        names = [candidate.name.casefold() for candidate in candidates]
        expected = [] if names else ["at least one"]
        expected += [
            f"names that differ, found {name!r} twice" for name in dict.fromkeys(names) if names.count(name) > 1
        ]
        if "task" in info.data and info.data["task"].kind == "generate":
            expected += [line for candidate in candidates for line in unsuited_to_generate(candidate)]
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
            problems = [problem(found, of=cls) for found in error.errors(include_url=False)]
            raise TaskError(
                f"{source} has {len(problems)} problem{'s' if len(problems) > 1 else ''}:"
                + "".join(f"\n  - {line}" for line in problems),
                fix="Correct the fields named above; `foreword init FOLDER` writes a task file that explains each.",
            ) from error
        task._folder = folder
        return task

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a task file. TaskError when it is missing, not UTF-8, not TOML, or wrong in any field."""
        if not isinstance(path, str | os.PathLike):
            raise TaskError(
                "This does not name a task file.",
                expected="a path, as text or a Path, or a Task that is loaded already",
                found=type(path).__name__,
                fix="Write Task.load('my-task/task.toml').",
            )
        path = Path(path)
        return cls.parse(_toml(path), folder=path.absolute().parent, source=f"The task file {path}")


def unsuited_to_generate(candidate: CandidateSettings) -> list[str]:
    """What is expected instead of each field of a candidate that makes sense only where there are labels."""
    expected, where = [], f"{candidate.name!r}, as the kind is 'generate'"
    if isinstance(candidate, ProbeSettings):
        expected.append(f"no probe ({candidate.name!r}), as the kind is 'generate'")
    if getattr(candidate, "readout", "auto") != "auto":
        expected.append(f"no readout in {where}")
    if (named := getattr(candidate, "objective", "auto")) in ("labels", "similarity"):
        expected.append(f"another objective than {named!r} in {where}")
    return expected


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        inside = path / "task.toml"
        remedy = f"Name the file in it: {inside}" if path.is_dir() and inside.is_file() else None
        raise TaskError(
            f"The task file {path} cannot be read.",
            expected="a TOML file in UTF-8",
            found=found_in(error),
            fix=remedy or "Name a task file, or write one with `foreword init FOLDER`.",
        ) from error
    except (ValueError, RecursionError) as error:
        raise TaskError(
            f"The task file {path} is not valid TOML.",
            expected="TOML: text in quotes, [section] lines, one `field = value` a line",
            found=str(error),
            fix="Correct the place named above, or start again from `foreword init FOLDER`.",
        ) from error
