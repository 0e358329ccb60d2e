"""A table of samples from a file, as a target on its points: what no function describes, or nobody wrote down.

    .csv    a first line that names the columns: inputs x or x0, x1, ..., outputs y or y0, y1, ...
    .npz    two arrays: `x` (count, columns) and `y` (count,) or (count, outputs)
    .npy    one array (count, columns + 1): the last column is the output

The file is taken for a stranger's: what it says of its own size is compared with what it holds before anything is
allocated, and nothing is unpickled. Every mistake is told with its line.
"""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from tokenize import TokenError

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.domain import FiniteSet
from foreword.compiler.target import Target
from foreword.errors import CompileError
from foreword.regular_file import content_of, found_in

LARGEST_FILE = 256 * 2**20  # bytes, unpacked
MOST_NUMBERS = 16_000_000
LONGEST_FIELD = 400  # characters that a number may take
MALFORMED = (ValueError, TypeError, SyntaxError, TokenError)  # what reading the header of an .npy file raises
BROKEN_ARCHIVE = (ValueError, RuntimeError, EOFError, OSError, OverflowError, MemoryError, KeyError)
READERS = (".csv", ".npy", ".npz")


def read_samples(path: str | Path) -> Target:
    """The target whose domain is the table's points and whose values are its outputs.

    A row that stands twice is taken once. CompileError when the file cannot be read, has no inputs or outputs, a number
    that is not finite, or two values for one point: with the line (the row, counted from 0, of an array).
    """
    path = Path(path)
    content = _content(path)
    match path.suffix.lower():
        case ".csv":
            points, values, lines = _from_csv(path, content)
        case ".npz":
            points, values = _from_npz(path, content)
            lines = [f"row {row}" for row in range(len(points))]
        case _:
            table = _two_axes(path, "the array", _array(path, content))
            if table.shape[1] < 2:
                raise _unreadable(path, f"an array of shape {table.shape}", "inputs, and the output in the last column")
            points, values = table[:, :-1], table[:, -1:]
            lines = [f"row {row}" for row in range(len(points))]
    _check_finite(path, points, values, lines)
    rows = _distinct(path, points, values, lines)
    return Target(samples=values[rows], domain=FiniteSet(points[rows]), name=path.name)


def _content(path: Path) -> bytes:
    """The bytes of a regular file of moderate size."""
    if path.suffix.lower() not in READERS:
        raise _unreadable(path, f"a file that ends in {path.suffix!r}", "a .csv, .npy or .npz file")
    try:
        return content_of(path, LARGEST_FILE)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it, too
        raise _unreadable(path, found_in(error), f"a file of at most {LARGEST_FILE:,} bytes") from error


def _from_csv(path: Path, content: bytes) -> tuple[Floats, Floats, list[str]]:
    """Points, values, and for each row the words for its line."""
    numbers: list[list[float]] = []
    lines: list[str] = []
    try:
        text = content.decode("utf-8-sig")
        first = text.split("\n", 1)[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
        names = [name.strip() for name in next(reader, [])]
        inputs, outputs = _columns(path, names)
        for row in reader:
            if not any(field.strip() for field in row):
                continue
            if len(row) != len(names):
                raise _unreadable(path, f"{len(row)} fields in line {reader.line_num}", f"{len(names)} fields a line")
            numbers.append([_number(path, field, reader.line_num) for field in row])
            lines.append(f"line {reader.line_num}")
            if len(numbers) * len(names) > MOST_NUMBERS:
                raise _unreadable(path, f"more than {MOST_NUMBERS:,} numbers", f"at most {MOST_NUMBERS:,}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, str(error), "a text file of comma-separated numbers in UTF-8") from error
    if not numbers:
        raise _unreadable(path, "no line of numbers", "at least one line below the names")
    table = np.array(numbers, dtype=np.float64)
    return table[:, inputs], table[:, outputs], lines


def _columns(path: Path, names: Sequence[str]) -> tuple[list[int], list[int]]:
    """Where inputs and outputs stand, in the order of their numbers."""
    wanted = "a first line of names: x or x0, x1, ... for inputs, y or y0, y1, ... for outputs"
    found = {letter: [name for name in names if re.fullmatch(rf"{letter}\d{{0,4}}", name)] for letter in "xy"}
    told = ", ".join(names)[:200]
    other = [name for name in names if name not in found["x"] + found["y"]]
    if other:
        raise _unreadable(path, f"a column named {other[0][:40]!r} among {told}", wanted)
    for letter, kind in (("x", "input"), ("y", "output")):
        if not found[letter]:
            raise _unreadable(path, f"no {kind} column among {told}", wanted)
        starts = [[f"{letter}{index + start}" for index in range(len(found[letter]))] for start in (0, 1)]
        if sorted(found[letter]) not in ([letter], *map(sorted, starts)):
            raise _unreadable(path, f"{kind} columns {', '.join(found[letter])}"[:200], wanted + ", each once")
    orders = [sorted(found[letter], key=lambda name: int(name[1:] or 0)) for letter in "xy"]
    inputs, outputs = ([list(names).index(name) for name in order] for order in orders)
    return inputs, outputs


def _number(path: Path, field: str, line: int) -> float:
    try:
        if len(field) > LONGEST_FIELD:
            raise ValueError
        return float(field)
    except ValueError:
        raise _unreadable(path, f"{field.strip()[:40]!r} in line {line}", "a number in every field") from None


def _from_npz(path: Path, content: bytes) -> tuple[Floats, Floats]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            if set(sizes) != {"x.npy", "y.npy"}:
                named = ", ".join(sorted(name.removesuffix(".npy") for name in sizes))[:200]
                raise _unreadable(path, f"the arrays {named or 'none'}", "two arrays, x and y")
            if sum(sizes.values()) > LARGEST_FILE:
                raise _unreadable(path, f"{sum(sizes.values()):,} bytes unpacked", f"at most {LARGEST_FILE:,} bytes")
            # No more than the promised size is unpacked, whatever the archive holds.
            parts = {name: archive.read(name) for name in sizes}
    except (zipfile.BadZipFile, zlib.error, *BROKEN_ARCHIVE) as error:
        raise _unreadable(path, str(error)[:200], "an archive that numpy.savez wrote") from error
    points = _two_axes(path, "x", _array(path, parts["x.npy"]))
    values = _two_axes(path, "y", _array(path, parts["y.npy"]))
    if len(points) != len(values):
        raise _unreadable(path, f"{len(points)} rows in x and {len(values)} in y", "as many rows in y as in x")
    return points, values


def _array(path: Path, content: bytes) -> Floats:
    """The array of numbers in the bytes of an .npy file, whose header is believed only as far as its bytes go."""
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version} of the format")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote
            shape, is_fortran, dtype = read(file)
        if dtype.kind not in "fiub":
            raise ValueError(f"entries of type {dtype}")
        count = math.prod(shape)
        if not 0 < count <= MOST_NUMBERS or count * dtype.itemsize != len(content) - file.tell():
            raise ValueError(f"shape {shape} for {len(content) - file.tell():,} bytes")
        numbers = np.frombuffer(content, dtype=dtype, count=count, offset=file.tell())
        with np.errstate(over="ignore"):
            table = numbers.astype(np.float64)
        return table.reshape(shape, order="F" if is_fortran else "C")
    except (*MALFORMED, OverflowError, EOFError, MemoryError, RecursionError) as error:
        found = f"{error}".splitlines()[0][:200] if str(error) else type(error).__name__
        raise _unreadable(
            path, found, f"an array of at most {MOST_NUMBERS:,} numbers, as numpy.save writes it"
        ) from error


def _two_axes(path: Path, name: str, array: Floats) -> Floats:
    found = array[:, None] if array.ndim == 1 else array
    if found.ndim != 2:
        raise _unreadable(path, f"{name} of shape {array.shape}", "one row for each sample")
    return found


def _check_finite(path: Path, points: Floats, values: Floats, lines: Sequence[str]) -> None:
    is_finite = np.isfinite(points).all(axis=1) & np.isfinite(values).all(axis=1)
    if not is_finite.all():
        row = int(np.argmin(is_finite))
        told = f"{points[row].tolist()} and {values[row].tolist()}"[:200]
        raise _unreadable(path, f"{told} in {lines[row]}", "finite numbers")


def _distinct(path: Path, points: Floats, values: Floats, lines: Sequence[str]) -> NDArray[np.intp]:
    """The rows without those that stand there already; CompileError when one point has two values."""
    _, first, of = np.unique(points + 0.0, axis=0, return_index=True, return_inverse=True)
    of = of.reshape(-1)
    differ = (values != values[first[of]]).any(axis=1)
    if differ.any():
        row = int(np.argmax(differ))
        before = int(first[of[row]])
        told = f"{values[before].tolist()} in {lines[before]} and {values[row].tolist()} in {lines[row]}"[:200]
        raise _unreadable(path, f"{told} for the point {points[row].tolist()}"[:300], "one value for each point")
    return np.sort(first)


def _unreadable(path: Path, found: str, expected: str) -> CompileError:
    return CompileError(
        f"{path} is no table of samples.",
        expected=expected,
        found=found,
        fix="Correct the file; what it may hold is described by `foreword compile --help`.",
    )
