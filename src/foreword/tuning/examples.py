"""Examples of a task, read from JSONL, CSV or Parquet and divided into fit, selection and test.

It knows what a usable row is, which rows say the same thing, and how content decides the split: by a hash of the
normalised input and the task's salt, so that a duplicate never stands in two splits and the order of the rows does not
matter. It does not know how an input is shown to a model. What is wrong with the data is listed, not only the first.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import NoReturn

from foreword.errors import DataError
from foreword.tuning.task import SplitSettings, Task, did_you_mean

LARGEST_TEXT_BYTES = 1_000_000
_SHOWN = 10  # problems that one file may list
_CHANCE = 0.05  # of still being too few, in what an error says would do
_LARGEST_CELL = 2**31 - 1  # of one CSV cell: the largest that every platform's C long holds


@dataclass(frozen=True)
class Example:
    """One row: what goes in and what should come out. `id` is the SHA-256 of the normalised input."""

    id: str
    input: str
    target: str


@dataclass(frozen=True)
class SourceFile:
    """A file as it was read: its path as the task names it, the SHA-256 of its bytes, and its number of rows."""

    path: str
    sha256: str
    rows: int


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
class _Row:
    place: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class _Table:
    columns: tuple[str, ...]
    rows: tuple[_Row, ...]
    problems: tuple[str, ...] = ()


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
        content = _content(task.folder / name)
        table = _table(content, name)
        usable, unusable = _usable(table, task)
        found += [_Found(example, f"{name} {place}") for place, example in usable]
        problems += _at_most([f"{name}: {problem}" for problem in unusable], f"{name}: ")
        files.append(SourceFile(name, hashlib.sha256(content).hexdigest(), len(table.rows)))
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
    if limit is not None and limit < 1:
        found = str(limit)
        raise DataError("No example is left.", expected="a limit of 1 or more", found=found, fix="Raise the limit.")
    strata: dict[str, list[Example]] = {label: [] for label in examples.labels or ("",)}
    for row in sorted(examples.rows, key=lambda row: _place(row, settings.salt)):
        strata[row.target if examples.labels else ""].append(row)
    divided = {label: _divided(rows, settings) for label, rows in strata.items()}
    shortages = [_shortage(label, divided[label], len(rows), settings) for label, rows in strata.items()]
    if problems := list(filter(None, shortages)):
        _refuse(
            "There are too few examples.",
            _at_most(problems),
            fix="Add examples, or change [splits]: whole numbers are met exactly, fractions only on average.",
        )
    fit, selection, test = (
        _capped([part[index] for part in divided.values()], limit, settings.salt) for index in range(3)
    )
    unused = len(examples.rows) - len(fit) - len(selection) - len(test)
    return Splits(
        fit, selection, test, unused, examples.labels, examples.hash, examples.files, examples.duplicates_merged
    )


# Reading


def _content(path: Path) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise DataError(
                f"The data file {path} is not a file.",
                expected="a .jsonl, .csv or .parquet file",
                found="a folder" if path.is_dir() else "a device or pipe",
                fix="Name the file itself under [data].",
            )
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"The data file {path} cannot be read.",
            expected="a .jsonl, .csv or .parquet file, relative to the task file's folder",
            found=error.strerror or type(error).__name__,
            fix="Correct the name under [data], or its access rights.",
        ) from error
    if not content.strip():
        raise DataError(
            f"The data file {path} is empty.", expected="rows", fix="Name the file that holds the examples."
        )
    return content


def _table(content: bytes, name: str) -> _Table:
    read: Mapping[str, Callable[[bytes, str], _Table]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    table = read[Path(name).suffix.lower()](content, name)
    if not table.rows and not table.problems:
        raise DataError(f"The data file {name} has no rows.", expected="rows", fix="Name a file that holds examples.")
    return table


def _text(content: bytes, name: str) -> str:
    """The content as text, without a byte-order mark. DataError says where it stops being UTF-8 text."""
    found = ""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        found = "UTF-16 text"
    elif (at := content.find(b"\0")) >= 0:
        found = f"binary content (a NUL byte at byte {at})"
    else:
        try:
            return content.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            found = f"byte 0x{content[error.start]:02x} at byte {error.start}, line {line}"
    raise DataError(
        f"The data file {name} is not UTF-8 text.",
        expected="text in UTF-8",
        found=found,
        fix="Save the file as UTF-8, or name the file that was meant.",
    )


def _jsonl(content: bytes, name: str) -> _Table:
    rows: list[_Row] = []
    problems: list[str] = []
    columns: dict[str, None] = {}
    for number, line in enumerate(_text(content, name).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: expected one JSON object, found malformed JSON ({error})")
            continue
        if not isinstance(values, dict):
            problems.append(f"line {number}: expected one JSON object a line, found {_shown(values)}")
            continue
        columns.update(dict.fromkeys(values))
        rows.append(_Row(f"line {number}", values))
    return _Table(tuple(columns), tuple(rows), tuple(problems))


def _csv(content: bytes, name: str) -> _Table:
    header: list[str] = []
    rows: list[_Row] = []
    problems: list[str] = []
    with _wide_cells():
        reader = csv.reader(io.StringIO(_text(content, name), newline=""), strict=True)
        line = 1
        try:
            for cells in reader:
                place, line = f"line {line}", reader.line_num + 1
                if cells and not header:
                    header = cells
                elif len(cells) == len(header):
                    rows.append(_Row(place, dict(zip(header, cells, strict=True))))
                elif cells:
                    problems.append(f"{place}: expected {len(header)} cells, as in the header, found {len(cells)}")
        except csv.Error as error:
            problems.append(f"line {line}: expected comma-separated values, found {error}")
    twice = [column for column, times in Counter(header).items() if times > 1]
    problems += [f"header: expected columns that differ, found {column!r} twice" for column in twice]
    return _Table(tuple(header), tuple(rows), tuple(problems))


@contextmanager
def _wide_cells() -> Iterator[None]:
    """Let csv read cells of any size, so that a cell that is too large is refused by its row; then as it was."""
    before = csv.field_size_limit(_LARGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet(content: bytes, name: str) -> _Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"The data file {name} is Parquet, which needs pyarrow.",
            expected="the package pyarrow",
            found="it is not installed",
            fix="pip install 'foreword[parquet]', or save the data as .jsonl or .csv.",
        ) from error
    try:
        found = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
        columns = tuple(map(str, found.column_names))
        rows = tuple(_Row(f"row {number}", row) for number, row in enumerate(found.to_pylist(), start=1))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"The data file {name} cannot be read as Parquet.",
            expected="a whole Parquet file",
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="Write the file again, or name the file that was meant.",
        ) from error
    return _Table(columns, rows)


# Judging rows


def _usable(table: _Table, task: Task) -> tuple[list[tuple[str, Example]], list[str]]:
    """The rows of a table as (place, example), and a line on each thing that is wrong with the others."""
    missing = [column for column in (task.data.input, task.data.target) if column not in table.columns]
    if missing and table.rows:
        return [], [*(_no_column(column, table.columns) for column in missing), *table.problems]
    usable: list[tuple[str, Example]] = []
    problems = list(table.problems)
    for row in table.rows:
        try:
            usable.append((row.place, _example(row.values, task)))
        except ValueError as error:
            problems.append(f"{row.place}: {error}")
    return usable, problems


def _no_column(column: str, columns: Sequence[str]) -> str:
    known = ", ".join(map(_shown, columns[:_SHOWN])) + (", ..." if len(columns) > _SHOWN else "")
    return f"expected a column {column!r}{did_you_mean(column, columns)}, found {known or 'none'}"


def _example(values: Mapping[str, object], task: Task) -> Example:
    """The example in a row. ValueError with what is wrong with it."""
    for column in (task.data.input, task.data.target):
        if column not in values:
            raise ValueError(_no_column(column, list(values)))
    text = _as_text(values[task.data.input], task.data.input)
    target = _as_text(values[task.data.target], task.data.target, truth=True)
    if task.kind == "classify":
        target = target.strip()
        if task.labels and target not in task.labels:
            hint = did_you_mean(target, task.labels) or f" (declared: {', '.join(list(task.labels)[:_SHOWN])})"
            raise ValueError(f"{task.data.target}: expected a label declared in [labels]{hint}, found {_shown(target)}")
    return Example(hashlib.sha256(normalised(text).encode()).hexdigest(), text, target)


def _as_text(value: object, column: str, *, truth: bool = False) -> str:
    """Text as it is, a number (with `truth`, true and false too) as JSON writes it; ValueError for anything else."""
    if isinstance(value, bool) and truth:
        value = json.dumps(value)
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{column}: expected text, found {_shown(value)}")
    if not value.strip():
        raise ValueError(f"{column}: expected text, found {'only spaces' if value else 'an empty text'}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{column}: expected text, found half a surrogate pair at character {error.start}") from error
    if size > LARGEST_TEXT_BYTES:
        raise ValueError(f"{column}: expected at most {LARGEST_TEXT_BYTES:,} bytes of text, found {size:,}")
    return value


def _shown(value: object) -> str:
    """A value in a message: short, and on one line whatever it holds."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "an object"
    shown = repr(value[:60] if isinstance(value, str) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


# Judging the whole


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
                f"{_shown(first.example.input)}: {_shown(first.example.target)} in {first.place},"
                f" {_shown(other.example.target)} in {other.place}"
            )
    if conflicts:
        _refuse(
            "The same input stands with different targets.",
            _at_most(conflicts),
            fix="Keep the right one of each (case and spacing do not make inputs differ).",
        )
    kept = (min((each.example for each in same[key]), key=lambda example: example.input) for key in sorted(same))
    return tuple(kept)


def _labels(rows: Sequence[Example], task: Task) -> tuple[str, ...]:
    present = {row.target for row in rows}
    if absent := [label for label in task.labels if label not in present]:
        _refuse(
            "Declared labels have no example.",
            _at_most([f"labels.{label}: expected examples, found none" for label in absent]),
            fix="Add examples with these labels, or take the labels out of [labels].",
        )
    if len(present) < 2:
        raise DataError(
            "There is only one label, so there is nothing to tell apart.",
            expected="examples of two labels or more",
            found=", ".join(map(_shown, present)),
            fix="Add examples of the other labels, or correct `target` under [data].",
        )
    return tuple(task.labels) or tuple(sorted(present))


def _at_most(problems: Sequence[str], start: str = "") -> list[str]:
    more = len(problems) - _SHOWN
    return [*problems[:_SHOWN], *([f"{start}and {more} more"] if more > 0 else [])]


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
