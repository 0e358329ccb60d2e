"""What one value of a task file may be: names, texts, numbers and ranges, each with the words of its refusal.

A custom validator here raises ValueError with what was *expected*, nothing else: how a refusal is worded is the
business of `foreword.tuning.problems`.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from foreword.excerpt import excerpt

Kind = Literal["classify", "generate"]
Metric = Literal["accuracy", "macro-f1", "exact-match", "token-f1", "rouge-l", "json-valid"]
Readout = Literal["auto", "label-text", "prototypes", "linear", "likelihood", "calibrated"]
Objective = Literal["auto", "labels", "completion", "similarity", "distillation"]


def like(pattern: str, expected: str) -> AfterValidator:
    """Text that matches `pattern` as a whole, or a refusal that says `expected`."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text, re.DOTALL) is None:
            raise ValueError(expected)
        return text

    return AfterValidator(check)


def some(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """One value or more."""
    if not values:
        raise ValueError("at least one")
    return values


def metric_name(name: object) -> object:
    """A metric's name as it is written here, so that "Macro F1" is "macro-f1"."""
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


def _numbers(value: object) -> object:
    """Whole numbers and ranges such as "4-7", both ends included, as whole numbers in order, each once."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError('a list of whole numbers from 0 and ranges such as "4-7", at least one')
    found: set[int] = set()
    for each in value:
        numbers = _span(each)
        if numbers is None:
            raise ValueError(f'whole numbers from 0 and ranges such as "4-7", found {excerpt(repr(each))}')
        found.update(numbers)
    return tuple(sorted(found))


def _span(value: object) -> range | None:
    """The numbers that a whole number from 0 or a range such as "4-7" stands for; None for anything else."""
    ends = re.fullmatch(r"([0-9]{1,4})-([0-9]{1,4})", value) if isinstance(value, str) else None
    if ends is not None and int(ends[1]) <= int(ends[2]):
        return range(int(ends[1]), int(ends[2]) + 1)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return range(value, value + 1)
    return None


def _heads(value: object) -> object:
    """Heads at every layer alike, as `_numbers` reads them; or a table from layers, or ranges of them, to theirs."""
    if not isinstance(value, dict):
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(
                'a list of heads such as [0, "2-3"], or a table of the heads of each layer, such as '
                '{0 = [1], 4-7 = [0, "2-3"]} in TOML, each layer once'
            )
        return _numbers(value)
    if not value:
        raise ValueError("at least one layer in the table, such as {0 = [1]}")
    found: dict[int, Any] = {}
    for name, heads in value.items():
        # The keys of a TOML table are text.
        is_number = isinstance(name, str) and re.fullmatch("[0-9]{1,4}", name) is not None
        layers = _span(int(name) if is_number else name)
        if layers is None:
            raise ValueError(f'layers as whole numbers from 0 or ranges such as "4-7", found {excerpt(repr(name))}')
        if twice := [layer for layer in layers if layer in found]:
            raise ValueError(f"each layer once, found layer {twice[0]} twice")
        try:
            found.update(dict.fromkeys(layers, _numbers(heads)))
        except ValueError as error:
            raise ValueError(f"for layer {name} {error}") from error
    return dict(sorted(found.items()))


Numbers = Annotated[tuple[int, ...], BeforeValidator(_numbers)]
Heads = Annotated[tuple[int, ...] | dict[int, tuple[int, ...]], BeforeValidator(_heads)]
Whole = Annotated[int, Field(strict=True, ge=1)]
Switch = Annotated[bool, Field(strict=True)]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]
Positive = Annotated[float, Field(strict=True, gt=0)]
Money = Annotated[float, Field(strict=True, ge=0)]
Rate = Annotated[float, Field(strict=True, ge=0, le=1)]
Said = Annotated[str, like(r".*\S.*", "text that is not blank")]
Label = Annotated[str, like(r"\S(.*\S)?", "a label that is not blank, without spaces around it")]
# Only one place is filled: a second {input} would be read as these letters.
Template = Annotated[
    str, like(r"(?!.*\{input\}.*\{input\}).*\{input\}.*", "text that contains {input} once, where the input goes")
]
File = Annotated[str, like(r"(?i:.*\.(jsonl|csv|parquet))", "a file that ends in .jsonl, .csv or .parquet")]
Name = Annotated[str, like(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, dots, dashes; at most 64")]
Device = Annotated[str, like(r"auto|cpu|cuda(:[0-9]+)?", "auto, cpu, cuda, or cuda and a number such as cuda:0")]
Currency = Annotated[str, like(r"[A-Z]{3}", "a currency's three letters, such as JPY")]
MetricName = Annotated[Metric, BeforeValidator(metric_name)]
LearningRate = Annotated[float | Literal["find"], PlainValidator(_rate)]
Share = Annotated[int | float | Literal["rest"], PlainValidator(_share)]


class Section(BaseModel):
    """Base of all sections: unknown fields are refused, values are not changed after the fact."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
