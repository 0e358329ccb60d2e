"""Tables of samples as strangers write them: read right, or refused with the place, in no time and little memory."""

from __future__ import annotations

import contextlib
import io
import os
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from foreword.compiler import samples
from foreword.compiler.domain import FiniteSet
from foreword.compiler.samples import read_samples
from foreword.errors import CompileError


def table_of(path: Path) -> tuple[np.ndarray, np.ndarray]:
    target = read_samples(path)
    assert isinstance(target.domain, FiniteSet)
    assert target.samples is not None
    assert np.array_equal(target.evaluate(target.domain.points), target.samples)
    return np.array(target.domain.points), np.array(target.samples)


POINTS = np.array([[0.0, 1.5], [2.0, -3.0], [1e-300, 4.0]])
VALUES = np.array([[1.0], [2.0], [3.0]])

TEXTS = {
    "plain": "x0,x1,y\n0,1.5,1\n2,-3,2\n1e-300,4,3\n",
    "windows": "\ufeffx0,x1,y\r\n0,1.5,1\r\n2,-3,2\r\n1e-300,4,3\r\n",
    "other order": "y,x1,x0\n1,1.5,0\n2,-3,2\n3,4,1e-300\n",
    "from one": "x1;x2;y1\n0;1.5;1\n2;-3;2\n1e-300;4;3",
    "spaces, quotes, blank lines": 'x0,\t"x1", y0\n\n 0 ,"1.5",1\n2,-3,2\n\n1e-300,4,3\n\n',
    "a row twice": "x0,x1,y\n0,1.5,1\n2,-3,2\n0,1.5,1\n-0,1.5,1\n1e-300,4,3\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_table_is_read(tmp_path: Path, name: str) -> None:
    file = tmp_path / "f.csv"
    file.write_text(TEXTS[name].replace("\t", ""), encoding="utf-8")
    points, values = table_of(file)
    assert np.array_equal(points, POINTS)
    assert np.array_equal(values, VALUES)


def test_arrays_are_read_whatever_their_order_and_type(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=POINTS, y=VALUES[:, 0])
    np.savez_compressed(tmp_path / "g.npz", x=np.asfortranarray(POINTS), y=VALUES.astype(">i4"))
    np.save(tmp_path / "h.npy", np.asfortranarray(np.column_stack([POINTS, VALUES])))
    for name in ("f.npz", "g.npz", "h.npy"):
        points, values = table_of(tmp_path / name)
        assert np.array_equal(points, POINTS)
        assert np.array_equal(values, VALUES)


BAD_TEXTS = {
    "": "no input column",
    "x,y\n": "no line of numbers",
    "x0,x1\n1,2\n": "no output column",
    "y\n1\n": "no input column",
    "a,y\n1,2\n": "named 'a'",
    "0.5,1.5\n1,2\n": "named '0.5'",
    "x0,x2,y\n1,2,3\n": "input columns x0, x2",
    "x,x,y\n1,2,3\n": "input columns x, x",
    "x,x0,y\n1,2,3\n": "input columns x, x0",
    "x01,y\n1,2\n": "input columns x01",
    "x,y\n1,2\n\n3\n": "1 fields in line 4",
    "x,y\n1,2,3\n": "3 fields in line 2",
    "x,y\n1,2\n3,four\n": "'four' in line 3",
    "x,y\n1,\n": "'' in line 2",
    "x,y\n1,2\nnan,3\n": "line 3",
    "x,y\n1,2\n3,-inf\n": "line 3",
    "x,y\n1,1e999\n": "line 2",
    "x,y\n1,2\n5,6\n1,3\n": "[2.0] in line 2 and [3.0] in line 4 for the point [1.0]",
    'x,y\n1,"2\n': "unexpected end",
    "x,y\n1,2\x00\n": "in line 2",
    "x,y\n1," + "9" * 500 + "\n": "in line 2",
    "x,y\n1," + "9" * 200_000 + "\n": "field larger",
}


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_a_bad_text_table_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "f.csv"
    file.write_text(text)
    with pytest.raises(CompileError, match="no table of samples") as refused:
        read_samples(file)
    assert BAD_TEXTS[text] in refused.value.found
    assert refused.value.expected
    assert refused.value.fix
    assert len(str(refused.value)) < 1_000


def npy(header: str, data: bytes = b"") -> bytes:
    told = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(told).to_bytes(2, "little") + told + data


def archive(parts: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for name, content in parts.items():
            made.writestr(name, content)
    return file.getvalue()


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


X, Y = saved(np.array([[1.0], [2.0]])), saved(np.array([3.0, 4.0]))

BAD_FILES: dict[str, bytes] = {
    "objects.npy": saved(np.array([[1, "a"], [2, None]], dtype=object)),
    "texts.npy": saved(np.array([["1", "2"]])),
    "complex.npy": saved(np.array([[1.0 + 1j, 2.0]])),
    "one_column.npy": saved(np.array([1.0, 2.0])),
    "cube.npy": saved(np.ones((2, 2, 2))),
    "none.npy": saved(np.empty((0, 3))),
    "not_finite.npy": saved(np.array([[1.0, np.nan]])),
    "two_values.npy": saved(np.array([[1.0, 2.0], [1.0, 3.0]])),
    "endless.npy": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 3)}"),
    "overflow.npy": npy(f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({2**62}, {2**62})}}"),
    "negative.npy": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 3)}", b"0" * 24),
    "too_short.npy": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)}", b"0" * 31),
    "too_long.npy": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2)}", b"0" * 33),
    "code.npy": npy("__import__('os').abort()"),
    "deep.npy": npy("[" * 110),
    "cut.npy": X[:60],
    "text.npy": b"x,y\n1,2\n",
    "empty.npy": b"",
    "empty.npz": b"",
    "text.npz": b"PK\x03\x04 no archive",
    "nothing.npz": archive({}),
    "only_x.npz": archive({"x.npy": X}),
    "other.npz": archive({"x.npy": X, "y.npy": Y, "z.npy": Y}),
    "paths.npz": archive({"../x.npy": X, "y.npy": Y}),
    "lengths.npz": archive({"x.npy": X, "y.npy": saved(np.ones(3))}),
    "objects.npz": archive({"x.npy": saved(np.array([[None]], dtype=object)), "y.npy": Y}),
    "endless.npz": archive(
        {"x.npy": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (10**12, 3)}"), "y.npy": Y}
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_array_is_refused_at_once_and_in_little_memory(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(BAD_FILES[name])
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(CompileError) as refused:
            read_samples(file)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(BAD_FILES[name]) + 2**21
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 2
    assert refused.value.fix
    assert len(str(refused.value)) < 1_000


def test_an_archive_that_unpacks_to_more_than_it_may_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(samples, "LARGEST_FILE", 2**20)
    file = tmp_path / "bomb.npz"
    file.write_bytes(archive({"x.npy": X + bytes(30 * 2**20), "y.npy": Y}))
    tracemalloc.start()
    try:
        with pytest.raises(CompileError, match="bytes unpacked"):
            read_samples(file)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "f.xlsx").write_text("x,y\n1,2\n")
    with (tmp_path / "vast.csv").open("wb") as file:
        file.truncate(2**40)
    for path in ("pipe.csv", "folder.csv", "f.xlsx", "vast.csv", "missing.csv", "a\0b.csv"):
        with pytest.raises(CompileError, match="no table"):
            read_samples(tmp_path / path)


@pytest.mark.parametrize("name", ["f.csv", "f.npy", "f.npz"])
def test_no_mutation_of_a_table_raises_anything_else(tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(len(name) + ord(name[-1]))
    whole = {
        "f.csv": TEXTS["plain"].encode(),
        "f.npy": saved(np.ones((5, 3))),
        "f.npz": archive({"x.npy": X, "y.npy": Y}),
    }
    for _ in range(300):
        content = bytearray(whole[name])
        for _ in range(int(rng.integers(1, 5))):
            place = int(rng.integers(0, min(len(content), 140) if name == "f.npy" else len(content)))
            kind = int(rng.integers(0, 3))
            content[place : place + kind] = bytes(rng.integers(0, 256, int(rng.integers(1, 3))).astype(np.uint8))
        (tmp_path / name).write_bytes(content)
        with contextlib.suppress(CompileError):
            read_samples(tmp_path / name)
