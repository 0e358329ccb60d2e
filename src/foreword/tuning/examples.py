"""Examples of a task: each input once, divided into fit, selection and test.

It knows which rows say the same thing, and how content decides the split: by a hash of the normalised input and the
task's salt, so that a duplicate never stands in two splits and the order of the rows does not matter. It does not know
files (`foreword.tuning.rows` reads them) nor how an input is shown to a model.
"""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from foreword.errors import DataError
from foreword.tuning.rows import SourceFile, UsableRow, at_most, judged, shown
from foreword.tuning.sections import SplitSettings
from foreword.tuning.task import Task

_CHANCE = 0.05  # of still being too few, in what an error says would do


@dataclass(frozen=True)
class Example:
    """One row: what goes in and what should come out. `id` is the SHA-256 of the normalised input."""

    id: str
    input: str
    target: str


@dataclass(frozen=True)
class Examples:
    """All examples of a task, each input once, in the order of their ids.

    `labels` are as declared, else sorted; empty for generation. `hash` is of the set: the order of rows and files does
    not change it. `duplicates_merged` counts the rows that repeated another one's input and target.
    """

    rows: tuple[Example, ...]
    labels: tuple[str, ...]
    hash: str
    files: tuple[SourceFile, ...]
    duplicates_merged: int


@dataclass(frozen=True)
class Splits:
    """The three disjoint splits, each in hash order, and where they come from; `unused` examples stand in none."""

    fit: tuple[Example, ...]
    selection: tuple[Example, ...]
    test: tuple[Example, ...]
    unused: int
    labels: tuple[str, ...]
    hash: str
    files: tuple[SourceFile, ...]
    duplicates_merged: int

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Examples by split, then by label (one label "" for generation); a label that a split lacks counts 0."""
        return {
            split: dict.fromkeys(self.labels or ("",), 0) | Counter(row.target if self.labels else "" for row in rows)
            for split, rows in (("fit", self.fit), ("selection", self.selection), ("test", self.test))
        }


@dataclass(frozen=True)
class _Found:
    """An example and where it was read, for messages."""

    example: Example
    place: str


def normalised(text: str) -> str:
    """The form in which two inputs are compared: NFC, runs of whitespace as one space, case folded.

    >>> normalised("  Où  EST\\nmon colis ?")
    'où est mon colis ?'
    """
    return unicodedata.normalize("NFC", " ".join(unicodedata.normalize("NFC", text).split()).casefold())


def load_splits(task: Task, *, limit: int | None = None) -> Splits:
    """Read the task's data and divide it; `limit` caps each split. DataError when rows are unusable or too few."""
    return split_examples(load_examples(task), task.splits, limit=limit)


def load_examples(task: Task) -> Examples:
    """Read all files of a task. DataError lists what is unusable, conflicting, or at odds with the labels."""
    found: list[_Found] = []
    files: list[SourceFile] = []
    problems: list[str] = []
    for name in task.data.files:
        file = judged(name, task)
        found += [_Found(_example(row), f"{name} {row.place}") for row in file.usable]
        problems += at_most([f"{name}: {problem}" for problem in file.problems], f"{name}: ")
        files.append(file.source)
    if problems:
        _refuse(
            "The data cannot be used as it is.",
            problems,
            fix="Correct these rows, or leave them out of the file; [data] in the task file names the columns.",
        )
    rows = _merged(found)
    labels = _labels(rows, task) if task.kind == "classify" else ()
    listing = "\n".join(json.dumps([row.id, row.input, row.target]) for row in rows)
    return Examples(rows, labels, hashlib.sha256(listing.encode()).hexdigest(), tuple(files), len(found) - len(rows))


def split_examples(examples: Examples, settings: SplitSettings, *, limit: int | None = None) -> Splits:
    """Divide examples by content. DataError when a label (or the whole, for generation) has too few."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        found, fix = repr(limit), "Raise the limit, or leave it out."
        raise DataError("No example is left.", expected="a limit of 1 or more, a whole number", found=found, fix=fix)
    strata: dict[str, list[Example]] = {label: [] for label in examples.labels or ("",)}
    for row in sorted(examples.rows, key=lambda row: _place(row, settings.salt)):
        strata[row.target if examples.labels else ""].append(row)
    divided = {label: _divided(rows, settings) for label, rows in strata.items()}
    shortages = [_shortage(label, divided[label], len(rows), settings) for label, rows in strata.items()]
    if problems := list(filter(None, shortages)):
        _refuse(
            "There are too few examples.",
            at_most(problems),
            fix="Add examples, or change [splits]: whole numbers are met exactly, fractions only on average.",
        )
    fit, selection, test = (
        _capped([part[index] for part in divided.values()], limit, settings.salt) for index in range(3)
    )
    unused = len(examples.rows) - len(fit) - len(selection) - len(test)
    return Splits(
        fit, selection, test, unused, examples.labels, examples.hash, examples.files, examples.duplicates_merged
    )


# Judging the whole


def _example(row: UsableRow) -> Example:
    return Example(hashlib.sha256(normalised(row.input).encode()).hexdigest(), row.input, row.target)


def _merged(found: Iterable[_Found]) -> tuple[Example, ...]:
    """Each input once, by id; of spellings that compare equal the smallest is kept, whatever the order of the rows."""
    same: defaultdict[str, list[_Found]] = defaultdict(list)
    for each in found:
        same[each.example.id].append(each)
    conflicts = []
    for group in same.values():
        first = group[0]
        other = next((each for each in group if each.example.target != first.example.target), None)
        if other:
            conflicts.append(
                f"{shown(first.example.input)}: {shown(first.example.target)} in {first.place},"
                f" {shown(other.example.target)} in {other.place}"
            )
    if conflicts:
        _refuse(
            "The same input stands with different targets.",
            at_most(conflicts),
            fix="Keep the right one of each (case and spacing do not make inputs differ).",
        )
    kept = (min((each.example for each in same[key]), key=lambda example: example.input) for key in sorted(same))
    return tuple(kept)


def _labels(rows: Sequence[Example], task: Task) -> tuple[str, ...]:
    present = {row.target for row in rows}
    if absent := [label for label in task.labels if label not in present]:
        _refuse(
            "Declared labels have no example.",
            at_most([f"labels.{label}: expected examples, found none" for label in absent]),
            fix="Add examples with these labels, or take the labels out of [labels].",
        )
    if len(present) < 2:
        raise DataError(
            "There is only one label, so there is nothing to tell apart.",
            expected="examples of two labels or more",
            found=", ".join(map(shown, present)),
            fix="Add examples of the other labels, or correct `target` under [data].",
        )
    if not task.labels:
        _refuse_alike(rows)
    return tuple(task.labels) or tuple(sorted(present))


def _refuse_alike(rows: Sequence[Example]) -> None:
    """DataError for labels that differ as inputs do not: mostly one label, written in two ways."""
    alike: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        alike[normalised(row.target)][row.target] += 1
    problems = [
        ", ".join(f"{shown(label)} ({count})" for label, count in sorted(found.items()))
        for found in alike.values()
        if len(found) > 1
    ]
    if problems:
        _refuse(
            "Labels differ only in case or spacing (beside each, its number of examples).",
            at_most(sorted(problems)),
            fix="Write each label in one way; where two are meant, declare both in [labels].",
        )


def _refuse(what: str, problems: Sequence[str], *, fix: str) -> NoReturn:
    raise DataError(what + "".join(f"\n  - {problem}" for problem in problems), fix=fix)


# Dividing


def _place(example: Example, salt: str) -> str:
    """Where an example stands among all conceivable ones: uniform, and the same on every machine."""
    return hashlib.sha256(f"{salt}\0{example.id}".encode()).hexdigest()


def _divided(rows: Sequence[Example], settings: SplitSettings) -> tuple[list[Example], list[Example], list[Example]]:
    """One label's examples, given in hash order, as (fit, selection, test)."""
    rest = settings.test == "rest"
    first, second, third = float(settings.fit), float(settings.selection), math.inf if rest else float(settings.test)
    ends = (first, first + second, first + second + third)
    where: Sequence[float] = range(len(rows))
    if not settings.counted:
        # Multiples of 2**-48: none falls into the gap that rounding leaves below 1 in a sum such as 0.7 + 0.2 + 0.1.
        where = [int(_place(row, settings.salt)[:12], 16) / 16**12 for row in rows]
    parts: tuple[list[Example], list[Example], list[Example]] = ([], [], [])
    for row, at in zip(rows, where, strict=True):
        if at < ends[2]:
            parts[sum(at >= end for end in ends[:2])].append(row)
    return parts


def _shortage(label: str, parts: Sequence[Sequence[Example]], found: int, settings: SplitSettings) -> str:
    """What a label lacks, as one line, or "" when it has enough."""
    of = f"label {label!r}" if label else "examples"
    if settings.counted:
        fit, selection, test = settings.fit, settings.selection, 1 if settings.test == "rest" else settings.test
        needed = int(fit) + int(selection) + int(test)
        wanted = f"{needed} ({fit} fit, {selection} selection, {test} test)"
        return f"{of}: expected {wanted}, found {found}" if found < needed else ""
    if all(len(part) >= least for part, least in zip(parts, (2, 1, 1), strict=True)):
        return ""
    shares = [float(settings.fit), float(settings.selection)]
    shares.append(1 - sum(shares) if settings.test == "rest" else float(settings.test))
    fit, selection, test = map(len, parts)
    return (
        f"{of}: expected at least 2 fit, 1 selection, 1 test, found {fit}, {selection}, {test} of {found};"
        f" about {max(_enough(shares), found + 1)} examples would do"
    )


def _enough(shares: Sequence[float]) -> int:
    """About how many examples meet the minima with 95% probability, by the union bound over the three binomials."""
    fit, selection, test = shares
    n = 4
    while (1 - fit) ** n + n * fit * (1 - fit) ** (n - 1) + (1 - selection) ** n + (1 - test) ** n > _CHANCE:
        n += 1 + n // 50
    return n


def _capped(parts: Sequence[Sequence[Example]], limit: int | None, salt: str) -> tuple[Example, ...]:
    """At most `limit` examples, taken from the labels in turn; in hash order."""
    turns = sorted((turn, _place(row, salt), row) for part in parts for turn, row in enumerate(part))
    return tuple(row for _, _, row in sorted(turns[:limit], key=lambda each: each[1]))
