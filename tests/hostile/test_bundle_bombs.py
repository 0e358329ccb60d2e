"""Bundles that are made to take time, memory, a path or the terminal: each is refused in a second, without any."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import psutil
import pytest
from tests.hostile.liar import FakeHost, file_of, parts_of, refused, refused_path, sealed

from foreword.bundle import load_bundle, save_bundle
from foreword.errors import BundleError
from foreword.prefix import Prefix
from foreword.tensorfile import HEADER_LIMIT, SIZE_LIMIT

NAME = "prefix/h.0.attn/keys"


def entry(shape: object, start: object, end: object, dtype: object = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def with_tensors(whole: bytes, tensors: dict[str, Any], data: bytes) -> bytes:
    """A file of these tensors with the manifest of the whole one."""
    header, _, _ = parts_of(whole)
    return file_of(json.dumps({"__metadata__": header["__metadata__"], **tensors}), data)


# Sizes

SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "a small file that promises 2^62 bytes": ({NAME: entry([2**60], 0, 2**62)}, 24),
    "more than 64 bits of bytes": ({NAME: entry([2**70], 0, 2**72)}, 24),
    "a shape whose product is 2^64, or 0 in 64 bits": ({NAME: entry([2**32, 2**32], 0, 24)}, 24),
    "a shape whose product wraps round to its size": ({NAME: entry([2**62 + 6], 0, 24)}, 24),
    "a shape of many axes": ({NAME: entry([1] * 60_000, 0, 4)}, 4),
    "no axes": ({NAME: entry([], 0, 4)}, 4),
    "no positions": ({NAME: entry([1, 0, 3], 0, 0)}, 0),
    "no positions of 2^62 numbers": ({NAME: entry([2**62, 0, 2**62], 0, 0)}, 0),
    "a negative length": ({NAME: entry([1, -2, -3], 0, 24)}, 24),
    "a negative start": ({NAME: entry([1, 2, 3], -24, 0)}, 0),
    "a negative end": ({NAME: entry([1, 2, 3], 0, -24)}, 24),
    "an end before its start": ({NAME: entry([1, 2, 3], 24, 0)}, 24),
    "bytes that belong to two tensors": ({NAME: entry([1, 2, 3], 0, 24), "readout/a": entry([6], 0, 24)}, 24),
    "bytes that overlap": ({NAME: entry([1, 2, 3], 0, 24), "readout/a": entry([6], 12, 36)}, 36),
    "bytes that belong to nothing": ({NAME: entry([1, 2, 3], 0, 24), "readout/a": entry([6], 28, 52)}, 52),
    "bytes before the first tensor": ({NAME: entry([1, 2, 3], 4, 28)}, 28),
    "fractions": ({NAME: entry([1, 2, 3], 0.0, 24.0)}, 24),
    "booleans": ({NAME: entry([1], False, True, "F32")}, 1),
    "texts": ({NAME: entry(["1", "2", "3"], "0", "24")}, 24),
    "three offsets": ({NAME: {**entry([1, 2, 3], 0, 24), "data_offsets": [0, 12, 24]}}, 24),
    "fifty thousand tensors of nothing": ({f"readout/{n}": entry([0], 0, 0) for n in range(50_000)}, 0),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes_that_lie_are_refused(folder: Path, whole: bytes, name: str) -> None:
    tensors, size = SIZES[name]
    refused(folder, with_tensors(whole, tensors, b"\0" * size))


def test_an_empty_position_is_refused_even_when_sealed(folder: Path, whole: bytes) -> None:
    header, _, data = parts_of(whole)
    names = [name for name in header if name.startswith("prefix/h.0")]
    for name in names:
        header[name]["shape"][1] = 0
    kept, start = b"", 0
    for name in (name for name in header if name != "__metadata__"):
        first, last = header[name]["data_offsets"]
        part = b"" if name in names else data[first:last]
        header[name]["data_offsets"] = [start, start + len(part)]
        kept, start = kept + part, start + len(part)
    refused(folder, sealed(file_of(json.dumps(header), kept), lambda _: None), match="an empty one")


def test_a_file_far_larger_than_its_header_promises_is_refused_before_it_is_read(folder: Path, whole: bytes) -> None:
    """A terabyte that takes no place on the disk: reading it would end in a MemoryError, not in a BundleError."""
    path = folder / "sparse"
    path.write_bytes(whole)
    os.truncate(path, 2**40)
    refused_path(path, match="promises")
    path.unlink()


@pytest.mark.parametrize("size", [50 * 2**30, 2**40], ids=["50 GiB", "1 TiB"])
def test_a_sparse_file_as_large_as_it_promises_is_refused_before_it_is_read(
    folder: Path, whole: bytes, size: int
) -> None:
    path = folder / "sparse"
    path.write_bytes(with_tensors(whole, {NAME: entry([size // 4], 0, size)}, b""))
    os.truncate(path, path.stat().st_size + size)
    assert size > SIZE_LIMIT
    refused_path(path, match="too large to be read here")
    path.unlink()


def test_a_bundle_that_does_not_fit_into_the_free_memory_is_refused(
    folder: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = psutil.virtual_memory()._replace(available=3 * len(whole) - 1)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    refused(folder, whole, match="free memory")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=3 * len(whole)))
    load_bundle(folder / "whole")


# JSON


def padded(before: str, filling: str, after: str) -> str:
    """As much filling as the header's limit leaves room for."""
    room = HEADER_LIMIT - len(before.encode()) - len(after.encode())
    return before + filling * (room // len(filling.encode())) + after


HEADERS: dict[str, Callable[[], str]] = {
    "16 MiB of spaces": lambda: " " * HEADER_LIMIT,
    "16 MiB of spaces behind a header": lambda: padded("{}", " ", ""),
    "16 MiB of empty lists": lambda: padded('{"a": [', "[],", "[]]}"),
    "16 MiB of tables": lambda: padded('{"a": [', '{"":0},', "0]}"),
    "as many tables as the limit allows": lambda: '{"a": [' + '{"":0},' * 99_990 + "0]}",
    "16 MiB of brackets": lambda: "[" * HEADER_LIMIT,
    "ten thousand brackets": lambda: "[" * 10_000 + "]" * 10_000,
    "ten thousand tables in tables": lambda: '{"a":' * 10_000 + "0" + "}" * 10_000,
    "a number of a million digits": lambda: '{"a": ' + "9" * 10**6 + "}",
    "a number of 16 MiB of digits": lambda: padded('{"a": ', "9", "}"),
    "a fraction of a million digits": lambda: '{"a": 0.' + "9" * 10**6 + "}",
    "an exponent of a million digits": lambda: '{"a": 1e' + "9" * 10**6 + "}",
    "a text of 16 MiB": lambda: padded('{"a": "', "x", '"}'),
    "a key of 16 MiB": lambda: padded('{"', "x", '": 0}'),
    "16 MiB of escapes": lambda: padded('{"a": "', "\\u0000", '"}'),
    "one key ten thousand times": lambda: '{"a": 0' + ', "a": 0' * 10_000 + "}",
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_that_is_a_bomb_is_refused(folder: Path, name: str) -> None:
    refused(folder, file_of(HEADERS[name](), b""))


@pytest.mark.parametrize("name", HEADERS)
def test_a_manifest_that_is_a_bomb_is_refused(folder: Path, whole: bytes, name: str) -> None:
    header, _, data = parts_of(whole)
    bomb = HEADERS[name]()[: HEADER_LIMIT // 2]  # half of it, and what is left is quoted: it must fit into the header
    header["__metadata__"]["foreword"] = bomb
    refused(folder, file_of(json.dumps(header), data))


def test_no_setting_of_the_interpreter_lets_a_long_number_take_minutes(folder: Path, whole: bytes) -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        refused(folder, file_of('{"a": ' + "9" * 10**6 + "}", b""), match="digits")
    finally:
        sys.set_int_max_str_digits(before)


def test_text_that_is_wide_in_memory_takes_as_much_as_its_width(folder: Path, whole: bytes) -> None:
    """Python keeps a text with one character outside the basic plane in four bytes each; some five such copies."""
    header, _, data = parts_of(whole)
    header["__metadata__"]["foreword"] = json.dumps({"schema": "foreword.bundle/1", "use": "x" * (15 * 2**20)})
    content = file_of(json.dumps(header, ensure_ascii=False).replace("xx", "\U0001f600", 1), data)
    path = folder / "wide"
    path.write_bytes(content)
    refused_path(path, match="digest", besides=5 * 4 * len(content))
    path.unlink()


@pytest.mark.parametrize(
    ("once", "twice"),
    [
        ('"__metadata__": {', '"__metadata__": {}, "__metadata__": {'),
        ('"foreword": ', '"foreword": "{}", "foreword": '),
        ('"prefix/h.0.attn/keys": ', '"prefix/h.0.attn/keys": {}, "prefix/h.0.attn/keys": '),
        ('"dtype": "F32"', '"dtype": "F32", "dtype": "F32"'),
        ('\\"schema\\": ', '\\"schema\\": 0, \\"schema\\": '),
        ('\\"sites\\": ', '\\"sites\\": [], \\"sites\\": '),
        ('\\"labels\\": ', '\\"labels\\": [], \\"labels\\": '),
    ],
    ids=["metadata", "manifest", "tensor", "dtype", "line of the manifest", "entry of a line", "entry of use"],
)
def test_a_key_that_stands_twice_is_refused_at_every_level(folder: Path, whole: bytes, once: str, twice: str) -> None:
    header, _, data = parts_of(whole)
    text = json.dumps(header)
    assert once in text
    refused(folder, file_of(text.replace(once, twice, 1), data), match="twice")


# Names

NAMES = {
    "a path upwards": "../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a path of Windows": "C:\\Windows\\system32",
    "two dots": "..",
    "a NUL": "h.0\0attn",
    "a line break": "h.0\nattn",
    "a clear screen": "\x1b[2J\x1b[Hh.0",
    "a control sequence in one byte": "\x9b2Jh.0",
    "a bell": "h.0\x07",
    "text turned round": "h.\u202e0.nttA",
    "nothing": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_site_by_such_a_name_is_refused_in_and_out(folder: Path, whole: bytes, name: str) -> None:
    hostile = NAMES[name]
    header, _, data = parts_of(whole)
    header = {key.replace("h.0.attn", hostile): value for key, value in header.items()}

    def rename(manifest: dict[str, Any]) -> None:
        manifest["prefix"]["sites"][0] = hostile

    refused(folder, sealed(file_of(json.dumps(header), data), rename), match="by the name")
    ones = np.ones((1, 2, 3), np.float32)
    with pytest.raises(BundleError, match="name that a bundle does not hold"):
        save_bundle(folder / "never", Prefix.from_arrays({hostile: (ones, ones)}), host=FakeHost())
    assert not (folder / "never").exists()


@pytest.mark.parametrize("name", NAMES)
def test_a_read_out_by_such_a_name_is_refused_in_and_out(folder: Path, whole: bytes, name: str) -> None:
    hostile = NAMES[name]
    header, _, data = parts_of(whole)
    header = {key.replace("weights", hostile): value for key, value in header.items()}
    refused(folder, sealed(file_of(json.dumps(header), data), lambda _: None), match="by the name")
    ones = np.ones((1, 2, 3), np.float32)
    with pytest.raises(BundleError, match="name that a bundle does not hold"):
        save_bundle(folder / "never", Prefix.from_arrays({"h": (ones, ones)}), host=FakeHost(), readout={hostile: ones})


def test_a_name_cannot_hide_a_second_tensor_from_the_digest(folder: Path, whole: bytes) -> None:
    """The digest sets name, dtype, shape and bytes apart with NUL and line breaks: a name that holds them could hold
    all of the tensor before it, and two different files would have one digest and one signature.
    """
    header, _, data = parts_of(whole)
    weights = header.pop("readout/weights")
    hidden = "readout/bias\0float32\0(1,)\0\0\0\0\0\nreadout/weights"  # a bias of 0, and the name behind it
    refused(folder, file_of(json.dumps({**header, hidden: weights}), data), match="by the name")


# Numbers


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("part", ["keys", "values", "bias"])
def test_a_number_that_is_not_finite_is_refused_even_when_sealed(
    folder: Path, part: str, dtype: str, value: float
) -> None:
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    arrays = tuple(np.ones(shape, kind) for shape in ((1, 2, 3), (1, 2, 3), (1, 2)))
    save_bundle(folder / "finite", Prefix.from_arrays({"h.0.attn": arrays}), host=FakeHost())
    header, _, data = parts_of((folder / "finite").read_bytes())
    end = header[f"prefix/h.0.attn/{part}"]["data_offsets"][1]
    poisoned = data[: end - kind.itemsize] + np.array(value).astype(kind).tobytes() + data[end:]
    refused(folder, sealed(file_of(json.dumps(header), poisoned), lambda _: None, dtype=dtype), match="not all finite")


# Not files


def test_what_is_not_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "there").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "there")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to a pipe").symlink_to(tmp_path / "pipe")
    for name in ("", "missing", "there", "loop", "pipe", "to a pipe", "/dev/null", "/dev/zero", "x" * 300):
        path = tmp_path / name
        if name in ("there", "loop", "x" * 300):  # `exists` would raise
            with pytest.raises(BundleError):
                load_bundle(path)
        else:
            refused_path(path)


def test_a_path_with_a_nul_is_refused() -> None:
    with pytest.raises(BundleError):
        load_bundle("a\0b")
