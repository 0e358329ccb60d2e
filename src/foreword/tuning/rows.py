"""Rows of data files: read from JSONL, CSV or Parquet, and judged one by one against the task.

It knows the three formats and what a usable row is; what is wrong with a file is listed, not only the first. It does
not know when two rows say the same thing, nor any split: that is `foreword.tuning.examples`' business.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from foreword.errors import DataError
from foreword.excerpt import VALUE, excerpt
from foreword.regular_file import content_of, found_in
from foreword.tuning.problems import did_you_mean
from foreword.tuning.task import Task

LARGEST_TEXT_BYTES = 1_000_000
LISTED = 10
"""Problems that a message lists one by one, of each file."""

_LARGEST_CELL = 2**31 - 1  # of one CSV cell: the largest that every platform's C long holds


@dataclass(frozen=True)
class UsableRow:
    """The input and the target in one row, and its place in the file (`line 3`), for messages."""

    place: str
    input: str
    target: str


@dataclass(frozen=True)
class SourceFile:
    """A file as it was read: its path as the task names it, the SHA-256 of its bytes, and its number of rows."""

    path: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class JudgedFile:
    """A file with its usable rows, and one line on each thing that is wrong with the others."""

    source: SourceFile
    usable: tuple[UsableRow, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Row:
    place: str
    values: Mapping[str, object]


@dataclass(frozen=True)
class _Table:
    columns: tuple[str, ...]
    rows: tuple[_Row, ...]
    problems: tuple[str, ...] = ()


def judged(name: str, task: Task) -> JudgedFile:
    """Read one of the task's files. DataError when it cannot be read at all, or holds no row."""
    content = _content(task.folder / name)
    table = _table(content, name)
    usable, problems = _usable(table, task)
    source = SourceFile(name, hashlib.sha256(content).hexdigest(), len(table.rows))
    return JudgedFile(source, tuple(usable), tuple(problems))


def shown(value: object) -> str:
    """A value in a message: short, and on one line whatever it holds."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "an object"
    return excerpt(repr(value[:VALUE] if isinstance(value, str) else value))


def at_most(problems: Sequence[str], start: str = "") -> list[str]:
    """The first problems of many, and how many more there are."""
    more = len(problems) - LISTED
    return [*problems[:LISTED], *([f"{start}and {more} more"] if more > 0 else [])]


# Reading


def _content(path: Path) -> bytes:
    try:
        content = content_of(path)
    except (OSError, ValueError) as error:
        raise DataError(
            f"The data file {path} cannot be read.",
            expected="a .jsonl, .csv or .parquet file, relative to the task file's folder",
            found=found_in(error),
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
            problems.append(f"line {number}: expected one JSON object a line, found {shown(values)}")
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


def _usable(table: _Table, task: Task) -> tuple[list[UsableRow], list[str]]:
    """The usable rows of a table, and a line on each thing that is wrong with the others."""
    missing = [column for column in (task.data.input, task.data.target) if column not in table.columns]
    if missing and table.rows:
        others = [*_other_separators(table.columns), *table.problems]
        return [], [*(_no_column(column, table.columns) for column in missing), *others]
    usable: list[UsableRow] = []
    problems = list(table.problems)
    for row in table.rows:
        try:
            usable.append(UsableRow(row.place, *_texts(row.values, task)))
        except ValueError as error:
            problems.append(f"{row.place}: {error}")
    return usable, problems


def _other_separators(columns: Sequence[str]) -> list[str]:
    """What is wrong with a table of one column whose name holds semicolons or tabs; nothing, mostly."""
    (name,) = columns if len(columns) == 1 else ("",)
    said = {";": "semicolons", "\t": "tabs"}
    return [f"header: expected commas between columns, found {said[mark]}" for mark in said if mark in name]


def _no_column(column: str, columns: Sequence[str]) -> str:
    known = ", ".join(map(shown, columns[:LISTED])) + (", ..." if len(columns) > LISTED else "")
    return f"expected a column {column!r}{did_you_mean(column, columns)}, found {known or 'none'}"


def _texts(values: Mapping[str, object], task: Task) -> tuple[str, str]:
    """The input and the target in a row. ValueError with what is wrong with them."""
    for column in (task.data.input, task.data.target):
        if column not in values:
            raise ValueError(_no_column(column, list(values)))
    text = _as_text(values[task.data.input], task.data.input)
    target = _as_text(values[task.data.target], task.data.target, truth=True)
    if task.kind == "classify":
        target = target.strip()
        if task.labels and target not in task.labels:
            hint = did_you_mean(target, task.labels) or f" (declared: {', '.join(list(task.labels)[:LISTED])})"
            raise ValueError(f"{task.data.target}: expected a label declared in [labels]{hint}, found {shown(target)}")
    return text, target


def _as_text(value: object, column: str, *, truth: bool = False) -> str:
    """Text as it is, a number (with `truth`, true and false too) as JSON writes it; ValueError for anything else."""
    if isinstance(value, bool) and truth:
        value = json.dumps(value)
    elif isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value):
        value = str(value)
    if not isinstance(value, str):
        raise ValueError(f"{column}: expected text, found {shown(value)}")
    if not value.strip():
        raise ValueError(f"{column}: expected text, found {'only spaces' if value else 'an empty text'}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise ValueError(f"{column}: expected text, found half a surrogate pair at character {error.start}") from error
    if size > LARGEST_TEXT_BYTES:
        raise ValueError(f"{column}: expected at most {LARGEST_TEXT_BYTES:,} bytes of text, found {size:,}")
    return value
