"""One safetensors file, read as if a stranger had written it.

It knows the file's layout (8 bytes of header length, a JSON header with texts and tensors, the tensors' bytes), and
what must hold before anything is allocated: sizes, JSON that is not a bomb, names that no terminal and no path obeys,
memory that is there. It deliberately does not know what the tensors mean: `bundle.py` does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import ml_dtypes
import numpy as np
import psutil
from safetensors import SafetensorError, deserialize

from foreword.arrays import Array
from foreword.errors import BundleError
from foreword.regular_file import found_in, size_of

HEADER_LIMIT = 16 * 2**20
# Commas and brackets in the JSON of a header: an empty list takes 3 bytes in a file and 64 in memory.
MARKS_LIMIT = 200_000
# A cartridge of 2^16 positions for 80 layers, 8 heads and 128 numbers in each takes 21 GB in bfloat16.
SIZE_LIMIT = 32 * 2**30
# A file being read is in memory three times: its bytes, the arrays made of them, and the prefix, which keeps its own.
COPIES = 3
LONGEST_INTEGER = 40
# The text of the metadata that is the manifest: JSON that names its schema.
MANIFEST = "foreword"

NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class TensorFile:
    """The texts of a file's metadata and its arrays, by name."""

    texts: dict[str, str]
    tensors: dict[str, Array]


def broken(path: Path, found: str) -> BundleError:
    """The error for a file whose bytes are not those that foreword wrote."""
    return BundleError(
        f"{path} is not a whole foreword bundle.",
        expected="a safetensors file with a foreword manifest, as it was written",
        found=found,
        fix="Name a bundle, such as runs/TASK/best.prefix; if it is one, copy it again or fit the prefix again.",
    )


def read_content(path: Path) -> bytes:
    """The bytes of a regular file whose header promises exactly them; BundleError before they are read otherwise."""
    try:
        size = size_of(path)
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little") if len(start) == 8 else -1
            if not 2 <= length <= min(HEADER_LIMIT, size - 8):
                raise broken(path, _not_a_length(start, length, size))
            _check_promise(path, _header(path, file.read(length)), size - 8 - length)
            _check_memory(path, size)
            file.seek(0)
            return file.read(size)  # and no more, should it be growing
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        inside = Path(path) / "best.prefix"
        raise BundleError(
            f"The bundle {path} cannot be read.",
            expected="a file written by foreword",
            found=found_in(error),
            fix=f"Name the bundle in it: {inside}" if _is_there(inside) else "Check the path and the permissions.",
        ) from error


def decoded(path: Path, content: bytes, *, dtypes: Mapping[str, np.dtype[Any]] = DTYPES) -> TensorFile:
    """The texts and arrays, of `dtypes`, in bytes that `read_content` gave; `path` is for the error's words."""
    header = _header(path, content[8 : 8 + int.from_bytes(content[:8], "little")])
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise broken(path, "metadata that are not texts")
    try:
        found: list[tuple[str, dict[str, Any]]] = deserialize(content)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        raise broken(path, str(error)) from error
    tensors: dict[str, Array] = {}
    for name, entry in found:
        if not all(map(is_plain, name.split("/"))):
            raise broken(path, f"a tensor by the name of {name[:80]!r}")
        dtype = dtypes.get(entry["dtype"])
        if dtype is None:
            raise broken(path, f"tensor {name[:80]!r} of dtype {entry['dtype']}")
        try:
            tensors[name] = np.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"])
        except ValueError as error:  # more axes than NumPy has, or none times 2^62
            raise broken(path, f"tensor {name[:80]!r} of a shape that no array has ({error})") from error
    return TensorFile(texts, tensors)


def file_path(given: object) -> Path:
    """What the caller gave as a path; BundleError when it is none."""
    try:
        return Path(given)  # type: ignore[arg-type]
    except TypeError as error:
        raise BundleError(
            "This is not a path.",
            expected="a text or a pathlib.Path",
            found=type(given).__name__,
            fix="Name the file or folder, such as 'runs/mine/best.prefix'.",
        ) from error


def schema_of(path: Path, content: bytes) -> str | None:
    """The schema that the manifest in bytes of `read_content` names; None when it names none that can be read."""
    header = _header(path, content[8 : 8 + int.from_bytes(content[:8], "little")])
    try:
        text = header["__metadata__"][MANIFEST]
        found = parsed(text)["schema"] if isinstance(text, str) else None
    except (KeyError, ValueError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def content_digest(manifest: Mapping[str, Any], tensors: Mapping[str, Array]) -> str:
    """SHA-256 over the manifest but its `digest`, and over every tensor's name, dtype, shape and bytes."""
    told = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False, allow_nan=False).encode())
    for name in sorted(tensors):
        digest.update(f"\n{name}\0{tensors[name].dtype}\0{tensors[name].shape}\0".encode())
        digest.update(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def with_text(path: Path, content: bytes, name: str, text: str) -> bytes:
    """The same file with `text` in its metadata under `name`; no byte of a tensor changes."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = _header(path, content[8:end])
    header["__metadata__"] = {**header["__metadata__"], name: text}
    told = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)  # tensors start at a multiple of 8
    if len(told) > HEADER_LIMIT:
        raise BundleError(
            f"There is no room for the {name} of {path}.",
            expected=f"at most {HEADER_LIMIT:,} bytes of header",
            found=f"{len(told):,}",
            fix="Keep large evidence in a file of its own.",
        )
    return len(told).to_bytes(8, "little") + told + content[end:]


def parsed(text: str | bytes) -> Any:
    """JSON as foreword writes it; ValueError or RecursionError for anything else, before it takes much memory.

    Refused: a key that stands twice, NaN and infinities, integers of more than forty digits, and more than 200,000
    commas and brackets.

    >>> parsed('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: a key stands twice in the JSON
    """
    count = sum(text.count(mark) if isinstance(text, str) else text.count(mark.encode()) for mark in ",[{")
    if count > MARKS_LIMIT:
        raise ValueError(f"{count:,} commas and brackets, of at most {MARKS_LIMIT:,}")
    return json.loads(
        text, object_pairs_hook=_without_duplicates, parse_constant=_refused_constant, parse_int=_short_integer
    )


def is_plain(name: str) -> bool:
    """Whether a name can neither be taken for a path nor speak to a terminal, and cannot hide a second name.

    >>> is_plain("h.0.attn"), is_plain("../secret"), is_plain("a\\x1b[2J"), is_plain("a\\0b")
    (True, False, False, False)
    """
    return name.isprintable() and not set("/\\") & set(name) and name not in ("", ".", "..")


def _header(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = parsed(text)
    except (ValueError, RecursionError) as error:
        raise broken(path, f"a header that is not plain JSON ({type(error).__name__}: {error})") from error
    if not isinstance(header, dict):
        raise broken(path, f"a header that is a {type(header).__name__}")
    return header


def _not_a_length(start: bytes, length: int, size: int) -> str:
    """What a file begins with whose first eight bytes cannot be the length of its header."""
    if len(start) == 8 and start.isascii() and all(chr(byte).isprintable() or byte in b"\t\r\n" for byte in start):
        return f"a text that begins with {start.decode()!r}"
    return f"a header of {length:,} bytes in a file of {size:,}"


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # ValueError: a path with a NUL in it
        return False


def _check_promise(path: Path, header: dict[str, Any], size: int) -> None:
    """BundleError unless the tensors that the header lists are the `size` bytes that follow it, one after another."""
    promised = 0
    try:
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        for name, entry in sorted(entries, key=lambda found: tuple(found[1]["data_offsets"])):
            start, end = entry["data_offsets"]
            if not (type(start) is type(end) is int and promised == start <= end):
                raise broken(path, f"tensor {name[:80]!r} at bytes {start} to {end} where byte {promised:,} is next")
            promised = end
    except (ValueError, KeyError, TypeError) as error:
        raise broken(path, f"a header without readable tensors ({type(error).__name__}: {error})") from error
    if promised != size:
        raise broken(path, f"{size:,} bytes of tensors where the header promises {promised:,}")


def _check_memory(path: Path, size: int) -> None:
    room = min(SIZE_LIMIT, psutil.virtual_memory().available // COPIES)
    if size > room:
        raise BundleError(
            f"The bundle {path} is too large to be read here.",
            expected=f"at most {room:,} bytes: {SIZE_LIMIT:,}, or what fits {COPIES} times into the free memory",
            found=f"{size:,} bytes",
            fix="Free some memory, or use a prefix of fewer positions or of a narrower dtype.",
        )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in the JSON")
    return found


def _refused_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} in the JSON")


def _short_integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER:  # the time to read one grows with the square of its digits
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)
