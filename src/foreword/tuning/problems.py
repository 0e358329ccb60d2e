"""What is wrong with a task file, in words: the field as its author would write it, what was expected, what was found.

It knows pydantic's error records and the sections' names. It deliberately judges nothing: what is wrong was found by
`foreword.tuning.task`, and what may stand where by `foreword.tuning.sections`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from foreword.excerpt import excerpt
from foreword.tuning.candidate_settings import BY_KIND

_PLAIN = re.compile(r"[A-Za-z0-9_-]+").fullmatch
_QUOTED = re.compile(r"'([^']*)'")
_WORDS = {
    "missing": "this field",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "dict_type": "a table of texts",
    "tuple_type": "a list",
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}


def problem(error: ErrorDetails, *, of: type[BaseModel]) -> str:
    """One line on one wrong field of `of`: its dotted name, what was expected, what was found."""
    kind, at, found = error["type"], error["loc"], error["input"]
    table = BY_KIND.get(str(at[2])) if at[0] == "candidates" and len(at) > 2 else None
    at = at[:2] + at[3:] if table else at  # pydantic names the kind between the number and the field
    if kind == "extra_forbidden":
        known = table.model_fields if table else _fields_beside(at, of)
        hint = did_you_mean(str(at[-1]), known) or f" (known: {', '.join(known)})"
        return f"{_dotted(at)}: expected no such field{hint}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    expected = _WORDS.get(kind, f"a number {message}" if message.startswith(("greater", "less")) else message)
    if kind == "literal_error":
        expected += did_you_mean(str(found), _QUOTED.findall(expected))
    if kind.startswith("union_tag"):
        at, found = (*at, "kind"), found.get("kind") if isinstance(found, dict) else found
        expected = f"one of {', '.join(BY_KIND)}{did_you_mean(str(found), BY_KIND)}"
    if kind in {"missing", "union_tag_not_found"}:
        return f"{_dotted(at)}: expected {expected}, found nothing"
    if kind == "value_error" and isinstance(found, dict | list | tuple):
        return f"{_dotted(at)}: expected {expected}"
    return f"{_dotted(at)}: expected {expected}, found {excerpt(repr(found))}"


def option_problems(errors: Iterable[ErrorDetails], kind: str, *, of: type[BaseModel]) -> list[str]:
    """A line on each wrong field of a candidate of this kind that stands alone, in the words of a task file `of`."""
    at = ("candidates", 0, kind)
    lines = [problem({**error, "loc": (*at, *error["loc"])}, of=of) for error in errors]
    return [line.removeprefix("candidates[0]").lstrip(".:").lstrip() for line in lines]


def _fields_beside(at: tuple[int | str, ...], of: type[BaseModel]) -> Iterable[str]:
    """The known fields of the section of `of` that the place `at` lies in."""
    section: Any = of
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
