"""Damaged and malicious compiled files: each is refused with a CertificateError in a second, without much memory.

What is whole but false is refused by the checker (`tests/compiler/test_checker.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.hostile.liar import BESIDES, SECONDS, TIMES_THE_FILE, file_of, parts_of

from foreword.certificate import Certificate, Verdict
from foreword.compiler.charts import Identity
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Sphere
from foreword.compiler.file import CompiledFile, read_compiled, write_compiled
from foreword.compiler.head import Head
from foreword.errors import CertificateError

DTYPE = {"F64": "float64", "I8": "int8", "U64": "uint64", "F32": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    """A small whole file; that its certificate proves nothing does not matter to who reads it."""
    rng = np.random.default_rng(0)
    head = Head(rng.normal(size=(5, 2)), rng.normal(size=5), rng.normal(size=(5, 1)))
    cover = Cover.whole([[-3.2, 3.2]])
    target = {"expression": "x*y", "lipschitz": 1.0}
    certificate = Certificate(
        Verdict.PROVED, 0.1, 0.05, 0.04, {"approximation": 0.05}, (), "", "by hand", Sphere(1).as_dict(), target,
        head.digest, {"digest": cover.digest, "cells": 1, "order": 3}, {"seconds": 1.0},
    ).sealed()  # fmt: skip
    compiled = CompiledFile(head, Identity(2), Sphere(1), target, "by hand", certificate, cover, tried=({"name": "a"},))
    write_compiled(folder / "whole", compiled)
    return (folder / "whole").read_bytes()


def refused(folder: Path, content: bytes) -> None:
    (folder / "hostile").write_bytes(content)
    refused_path(folder / "hostile")


def refused_path(path: Path) -> None:
    started = time.process_time()
    with pytest.raises(CertificateError):
        read_compiled(path)
    assert time.process_time() - started < SECONDS
    size = path.stat().st_blocks * 512 if path.exists() else 0
    tracemalloc.start()
    try:
        with pytest.raises(CertificateError):
            read_compiled(path)
        assert tracemalloc.get_traced_memory()[1] < TIMES_THE_FILE * size + BESIDES
    finally:
        tracemalloc.stop()


def sealed(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """With a changed manifest, and the digest of what it now says."""
    header, manifest, data = parts_of(content)
    change(manifest)
    told = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode())
    for name in sorted(name for name in header if name != "__metadata__"):
        entry = header[name]
        start, end = entry["data_offsets"]
        kind = DTYPE[entry["dtype"]]
        digest.update(f"\n{name}\0{kind}\0{tuple(entry['shape'])}\0".encode() + data[start:end])
    manifest["digest"] = digest.hexdigest()
    header["__metadata__"]["foreword"] = json.dumps(manifest, ensure_ascii=False)
    return file_of(json.dumps(header), data)


def with_tensor(content: bytes, name: str, dtype: str, shape: list[int], more: bytes) -> bytes:
    """Another tensor at the end."""
    header, _, data = parts_of(content)
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(more)]}
    return sealed(file_of(json.dumps(header), data + more), lambda _: None)


def test_the_undamaged_file_is_read_and_so_is_one_sealed_anew(folder: Path, whole: bytes) -> None:
    """Otherwise the tests below would only show that everything is refused."""
    assert read_compiled(folder / "whole").head.positions == 5
    (folder / "again").write_bytes(sealed(whole, lambda _: None))
    assert read_compiled(folder / "again").certificate == read_compiled(folder / "whole").certificate


def test_a_file_truncated_anywhere_is_refused(folder: Path, whole: bytes) -> None:
    for length in [*range(16), *range(16, len(whole), 37), *range(len(whole) - 9, len(whole))]:
        refused(folder, whole[:length])


@pytest.mark.parametrize(("mask", "every"), [(0x01, 3), (0x80, 29)])
def test_a_file_with_any_byte_changed_is_refused(folder: Path, whole: bytes, mask: int, every: int) -> None:
    for position in range(0, len(whole), every):
        changed = bytearray(whole)
        changed[position] ^= mask
        (folder / "hostile").write_bytes(bytes(changed))
        with pytest.raises(CertificateError):
            read_compiled(folder / "hostile")


def test_a_file_with_something_behind_it_or_far_too_large_is_refused(folder: Path, whole: bytes) -> None:
    refused(folder, whole + b"\0")
    path = folder / "sparse"
    path.write_bytes(whole)
    os.truncate(path, 2**40)
    refused_path(path)
    path.unlink()


def test_what_is_not_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing", tmp_path / "pipe", Path("/dev/zero")):
        refused_path(path)


def entry(*path: Any, value: Any) -> Callable[[dict[str, Any]], object]:
    def lie(manifest: dict[str, Any]) -> None:
        at: Any = manifest
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value

    return lie


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "another schema": entry("schema", value="foreword.bundle/1"),
    "no chart": lambda m: m.pop("chart"),
    "chart a text": entry("chart", value="identity"),
    "an unknown chart": entry("chart", "name", value="polar"),
    "a chart of a huge width": entry("chart", "width", value=10**30),
    "a chart of endless width": entry("chart", "width", value="x" * 100),
    "no domain": lambda m: m.pop("domain"),
    "an unknown domain": entry("domain", "kind", value="torus"),
    "a domain of a text": entry("domain", "dimension", value="1"),
    "a table without points": entry("domain", value={"kind": "finite"}),
    "a cube with thousands of sides": entry("domain", value={"kind": "cube", "sides": [[0, 1]] * 60_000}),
    "target a list": entry("target", value=[]),
    "method null": entry("method", value=None),
    "tried a text": entry("tried", value="all"),
    "tried of texts": entry("tried", value=["a"]),
    "version a number": entry("version", value=1),
    "a certificate that is a list": entry("certificate", value=[1]),
    "a certificate that is empty": entry("certificate", value={}),
    "a certificate with an unknown verdict": entry("certificate", "verdict", value="certainly"),
    "a bound that is a text": entry("certificate", "bound", value="small"),
    "a bound that is a table": entry("certificate", "bound", value={}),
    "terms that are a list": entry("certificate", "terms", value=[0.1]),
    "a term that is null": entry("certificate", "terms", value={"approximation": None}),
    "a head that is a number": entry("certificate", "head", value=7),
    "an assumption that is a text": entry("certificate", "assumptions", value=["trust me"]),
    "an unknown entry": entry("certificate", "extra", value=1),
    "no certificate but cells": entry("certificate", value=None),
    "an integer of a thousand digits": entry("tried", value=[{"n": 10**1000}]),
    "many brackets": entry("tried", value=[{"n": [[]] * 150_000}]),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_sealed_manifest_that_does_not_fit_is_refused(folder: Path, whole: bytes, lie: str) -> None:
    refused(folder, sealed(whole, LIES[lie]))


def changed_tensor(content: bytes, name: str, replaced: bytes, **entries: Any) -> bytes:
    header, _, data = parts_of(content)
    start, end = header[name]["data_offsets"]
    header[name] |= entries
    return sealed(file_of(json.dumps(header), data[:start] + replaced + data[end:]), lambda _: None)


def test_sealed_tensors_that_do_not_fit_are_refused(folder: Path, whole: bytes) -> None:
    numbers = np.zeros(10)
    nan = numbers.copy()
    nan[3] = np.nan
    hostile = [
        changed_tensor(whole, "keys", nan.tobytes()),
        changed_tensor(whole, "keys", numbers.tobytes(), shape=[2, 5]),
        changed_tensor(whole, "keys", numbers.tobytes(), shape=[10]),
        changed_tensor(whole, "biases", np.zeros(5).tobytes(), shape=[5, 1]),
        changed_tensor(whole, "cover/levels", np.int8(-1).tobytes()),
        changed_tensor(whole, "cover/levels", np.int8(60).tobytes()),
        changed_tensor(whole, "cover/indices", np.uint64(2**64 - 1).tobytes()),
        changed_tensor(whole, "cover/knots/0", np.array([1.0, 0.0]).tobytes()),
        changed_tensor(whole, "cover/knots/0", np.array([0.0, np.nan]).tobytes()),
        with_tensor(whole, "stowaway", "F64", [1], b"\0" * 8),
        with_tensor(whole, "cover/stowaway", "F64", [1], b"\0" * 8),
        with_tensor(whole, "samples", "F64", [1], b"\0" * 8),
        with_tensor(whole, "cover/frame", "F64", [1, 1], b"\0" * 8),
        with_tensor(whole, "cover/knots/1", "F32", [1], b"\0" * 4),
        with_tensor(whole, "cover/knots/1", "F64", [0, 2**40], b""),
        whole.replace(b'"cover/levels"', b'"cover/lexels"'),
        whole.replace(b'"values"', b'"valuez"'),
    ]  # fmt: skip
    for content in hostile:
        assert content != whole
        refused(folder, content)
