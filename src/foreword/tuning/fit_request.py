"""What is asked of a fit: method, length and other options as a candidate's settings, or why they are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from foreword.errors import FitError
from foreword.tuning.candidate_settings import BY_KIND, CandidateSettings, FittedSettings
from foreword.tuning.length import Length
from foreword.tuning.problems import did_you_mean, option_problems
from foreword.tuning.task import Task, unsuited_to_generate

METHODS = tuple(kind for kind, settings in BY_KIND.items() if issubclass(settings, FittedSettings))


def check_seed(seed: object) -> None:
    """FitError when this is no seed, by the range that a task file's seeds have."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise FitError(
            "The seed cannot be used.",
            expected=f"a whole number from 0 to {2**32 - 1}",
            found=repr(seed),
            fix="Choose another seed.",
        )


def check_tensorboard(wanted: bool, out: object) -> None:
    """FitError when events are wanted and there is no folder for them."""
    if wanted and out is None:
        raise FitError(
            "TensorBoard's events have no folder to be written to.",
            expected="a folder beside tensorboard=True",
            found="no out",
            fix="Name one with out, or leave tensorboard out.",
        )


def _length_of(method: str, kind: type[CandidateSettings]) -> str:
    """The field that a length is of this kind of candidate."""
    for field in ("positions", "rank"):
        if field in kind.model_fields:
            return field
    raise FitError(
        f"The method {method} has no length.",
        expected="a length for prefix, soft-prompt (positions) or lora (rank)",
        found=method,
        fix="Leave the length out.",
    )


def sweeps(method: str, length: Length, lengths: Sequence[int] | None) -> bool:
    """Is the length to be found? FitError when what is said of it does not go together."""
    if length != "auto" and not isinstance(length, int | None):
        expected, found = 'a whole number from 1, or "auto"', repr(length)
    elif length == "auto" and method != "prefix":
        expected, found = "a number for every method but prefix", f'"auto" for {method}'
    elif length != "auto" and lengths is not None:
        expected = 'lengths to try together with length "auto"'
        found = "lengths, and no length" if length is None else f"lengths, and length {length}"
    else:
        return length == "auto"
    raise FitError(
        "The length of the fit cannot be understood.",
        expected=expected,
        found=found,
        fix='Name one length, or let several be tried: method "prefix", length "auto".',
    )


def settings_for(task: Task, method: str, length: int | None, options: Mapping[str, Any]) -> FittedSettings:
    """The settings of a candidate: the task's own of that kind, and over them what the caller says."""
    if method not in METHODS:
        raise FitError(
            "There is no such method.",
            expected=", ".join(METHODS),
            found=method + did_you_mean(method, METHODS),
            fix='Name one of these; "prefix" is the default.',
        )
    kind = BY_KIND[method]
    own = next((found for found in task.candidates if found.kind == method), None)
    values = {} if own is None else own.model_dump(include=own.model_fields_set, mode="json")
    if length is not None:
        values[field := _length_of(method, kind)] = length
        if field in options:
            raise FitError(
                "The length of the fit is said twice.",
                expected=f"the length, or {field}",
                found=f"length {length} and {field} {options[field]}",
                fix="Leave one of them out.",
            )
    known = [name for name in kind.model_fields if name not in ("kind", "name")]
    unknown = [name for name in options if name not in (*known, "name")]
    if unknown:
        raise FitError(
            f"A {method} has no option {unknown[0]!r}.",
            expected=", ".join(known),
            found=unknown[0] + did_you_mean(unknown[0], known),
            fix="Correct its name; docs/reference/task-file.md explains each.",
        )
    try:
        made: CandidateSettings = kind.model_validate({**values, **options, "kind": method})
    except ValidationError as error:
        raise _unusable(method, option_problems(error.errors(include_url=False), method, of=Task)) from error
    if task.kind == "generate" and (expected := unsuited_to_generate(made)):
        raise _unusable(method, [f"expected {each}" for each in expected])
    if not isinstance(made, FittedSettings):
        raise TypeError(f"{method} is not fitted")
    return made


def _unusable(method: str, problems: Sequence[str]) -> FitError:
    return FitError(
        f"The options of the {method} cannot be used:" + "".join(f"\n  - {line}" for line in problems),
        fix="Correct the options named above; docs/reference/task-file.md explains each.",
    )
