"""A bundle on disk: what is written is what is read, and a failed write leaves the old file whole."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from foreword.bundle import SCHEMA, load_bundle, save_bundle, write_bytes_atomically
from foreword.errors import BaseMismatchError, BundleError
from foreword.prefix import Prefix


@dataclass(frozen=True)
class FakeHost:
    reference: str = "some/model"
    fingerprint: str = "f" * 64
    family: str = "bert"


def a_prefix(*, seed: int = 0, dtype: str = "float32", bias: bool = False, positions: int = 3) -> Prefix:
    rng = np.random.default_rng(seed)
    shapes = [(2, positions, 4), (2, positions, 5)] + ([(2, positions)] if bias else [])
    made = {site: tuple(rng.normal(size=shape) for shape in shapes) for site in ("h.0.attn", "h.1.attn")}
    return Prefix.from_arrays(made, occupies=2).cast(dtype)


# Round trip


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_what_is_written_is_what_is_read(tmp_path: Path, dtype: str, bias: bool) -> None:
    prefix = a_prefix(dtype=dtype, bias=bias)
    readout = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3).T, "bias": np.zeros(3, ml_dtypes.bfloat16)}
    told = {
        "use": {"labels": ["é", "日本", '"quoted" \\ {}'], "deep": {"of": [1, 2.5, None, True]}},
        "provenance": {"seed": 3, "seconds": 0.1},
        "evidence": {"value": 0.7},
    }
    path = tmp_path / "new folder" / "a.prefix"
    saved = save_bundle(path, prefix, host=FakeHost(), readout=readout, **told)
    found = load_bundle(path, host=FakeHost())
    assert found.prefix == saved.prefix == prefix
    assert found.prefix.dtype == dtype
    assert found.prefix.occupies == 2
    assert found.prefix.sites == prefix.sites
    assert [(x.bias is not None) for x in found.prefix.layers] == [bias, bias]
    assert (found.reference, found.fingerprint, found.family) == ("some/model", "f" * 64, "bert")
    assert {"use": found.use, "provenance": found.provenance, "evidence": found.evidence} == told
    assert found.readout.keys() == readout.keys()
    for name, array in readout.items():
        assert found.readout[name].dtype == array.dtype
        assert np.array_equal(found.readout[name], array)


def test_a_bundle_without_extras_reads_back_as_empty(tmp_path: Path) -> None:
    save_bundle(tmp_path / "a.prefix", a_prefix(), host=FakeHost())
    found = load_bundle(tmp_path / "a.prefix")
    assert (found.use, found.readout, found.provenance, found.evidence) == ({}, {}, {}, None)


def test_keys_that_are_numbers_are_read_back_as_text(tmp_path: Path) -> None:
    """2 sorts before 10 as a number and behind it as text: a digest over the numbers would not hold for the file."""
    save_bundle(tmp_path / "a.prefix", a_prefix(), host=FakeHost(), provenance={"by seed": {2: 0.5, 10: 0.6}})
    assert load_bundle(tmp_path / "a.prefix").provenance == {"by seed": {"2": 0.5, "10": 0.6}}


def test_the_same_bundle_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_bundle(tmp_path / name, a_prefix(bias=True), host=FakeHost(), use={"x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_bundle_is_a_safetensors_file_that_others_can_read(tmp_path: Path) -> None:
    from safetensors import safe_open

    prefix = a_prefix(bias=True)
    save_bundle(tmp_path / "a.prefix", prefix, host=FakeHost())
    with safe_open(tmp_path / "a.prefix", framework="numpy") as file:
        assert sorted(file.keys()) == sorted(
            f"prefix/{site}/{part}" for site in prefix.sites for part in ("keys", "values", "bias")
        )
        assert np.array_equal(file.get_tensor("prefix/h.1.attn/values"), prefix.layer("h.1.attn").values)
        manifest = json.loads(file.metadata()["foreword"])
    assert manifest["schema"] == SCHEMA
    assert manifest["prefix"]["hash"] == prefix.hash
    assert manifest["base"]["fingerprint"] == "f" * 64


# Another base


def test_a_bundle_for_another_base_is_refused_naming_both(tmp_path: Path) -> None:
    save_bundle(tmp_path / "a.prefix", a_prefix(), host=FakeHost())
    other = FakeHost(reference="other/model", fingerprint="0" * 64)
    with pytest.raises(BaseMismatchError) as caught:
        load_bundle(tmp_path / "a.prefix", host=other)
    assert "some/model" in str(caught.value)
    assert "ffffffff" in str(caught.value)
    assert "other/model" in str(caught.value)
    assert "00000000" in str(caught.value)


# What cannot be written


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("evidence", {"value": float("nan")}),
        ("use", {"labels": {"a", "b"}}),
        ("provenance", {"seconds": np.float32(1)}),
        ("use", {"label": "half a surrogate \ud800"}),
        ("provenance", {1: "a", "1": "b"}),
        ("evidence", {"much": "x" * (17 * 2**20)}),
    ],
    ids=["NaN", "a set", "a NumPy number", "not Unicode", "one key twice", "too large"],
)
def test_a_manifest_that_could_not_be_read_back_is_not_written(tmp_path: Path, part: str, value: Any) -> None:
    path = tmp_path / "a.prefix"
    options: dict[str, Any] = {part: value}
    with pytest.raises(BundleError, match="manifest"):
        save_bundle(path, a_prefix(), host=FakeHost(), **options)
    assert list(tmp_path.iterdir()) == []


def test_a_read_out_of_another_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="int64"):
        save_bundle(tmp_path / "a", a_prefix(), host=FakeHost(), readout={"weights": np.arange(3)})
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_or_device_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(BundleError, match="a pipe or device"):
        save_bundle(pipe, a_prefix(), host=FakeHost())
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "a.prefix"
    save_bundle(path, a_prefix(seed=1), host=FakeHost())
    return path


def is_whole_and_alone(path: Path) -> bool:
    """Is the old bundle there as it was, and nothing beside it?"""
    return load_bundle(path).prefix == a_prefix(seed=1) and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_the_old_bundle_whole(
    old: Path, monkeypatch: pytest.MonkeyPatch, fails: str, code: int
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os if fails == "fsync" else Path, fails, full)
        with pytest.raises(BundleError, match=os.strerror(code)):
            save_bundle(old, a_prefix(seed=2), host=FakeHost())
    assert is_whole_and_alone(old)


@pytest.mark.parametrize("signal", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_keeps_the_old_bundle_whole(
    old: Path, monkeypatch: pytest.MonkeyPatch, signal: type[BaseException]
) -> None:
    def interrupted(_: int) -> None:
        raise signal

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(signal):
            save_bundle(old, a_prefix(seed=2), host=FakeHost())
    assert is_whole_and_alone(old)


SCRIPT = """
import os, resource, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
from foreword.bundle import write_bytes_atomically
from foreword.errors import BundleError
if sys.argv[1] == "full":  # the kernel itself refuses to write more, as a full disk would
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
else:
    os.fsync = lambda _: os._exit(9)
try:
    write_bytes_atomically(Path(sys.argv[2]), b"new" * 100_000)
except BundleError as error:
    print(error)
    sys.exit(2)
"""


def in_a_process(how: str, path: Path) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(here=str(Path(__file__).parents[1] / "src"))
    return subprocess.run(
        [sys.executable, "-c", script, how, str(path)], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_real_limit_of_the_file_system_keeps_the_old_bundle_whole(old: Path) -> None:
    done = in_a_process("full", old)
    assert (done.returncode, done.stderr) == (2, "")
    assert os.strerror(errno.EFBIG) in done.stdout
    assert is_whole_and_alone(old)


def test_a_process_that_dies_while_writing_leaves_the_old_bundle_whole(old: Path) -> None:
    assert in_a_process("die", old).returncode == 9
    assert load_bundle(old).prefix == a_prefix(seed=1)


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path, old: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (old / "below a file", tmp_path / "folder", Path("/proc/a.prefix"), tmp_path / ("x" * 300)):
        with pytest.raises(BundleError, match="could not be written"):
            save_bundle(path, a_prefix(), host=FakeHost())
    assert load_bundle(old).prefix == a_prefix(seed=1)
    assert sorted(tmp_path.iterdir()) == [old, tmp_path / "folder"]


def test_atomic_writing_replaces_the_whole_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in (b"long content", b"x", b""):
        write_bytes_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_read_out_that_is_not_finite_is_neither_written_nor_read(
    tmp_path: Path, number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, readout = tmp_path / "a.prefix", {"weights": np.array([1.0, number], np.float32)}
    with pytest.raises(BundleError, match="readout/weights is not all finite"):
        save_bundle(path, a_prefix(), host=FakeHost(), readout=readout)
    assert not path.exists()
    with monkeypatch.context() as patch:
        patch.setattr("foreword.bundle.is_finite", lambda _: True)
        save_bundle(path, a_prefix(), host=FakeHost(), readout=readout)
    with pytest.raises(BundleError, match="a read-out that is not all finite"):
        load_bundle(path)


def test_what_is_no_prefix_host_or_table_is_not_written(tmp_path: Path) -> None:
    mine, path = a_prefix(), tmp_path / "a.prefix"
    for wrong in ("a prefix", {}, None):
        with pytest.raises(BundleError, match="not a prefix"):
            save_bundle(path, wrong, host=FakeHost())  # type: ignore[arg-type]
    for no_host in (None, object()):
        with pytest.raises(BundleError, match="not a host"):
            save_bundle(path, mine, host=no_host)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="not a table"):
        save_bundle(path, mine, host=FakeHost(), provenance=["a list"])  # type: ignore[arg-type]
    for name in ("a\0b", "\ud800"):
        with pytest.raises(BundleError, match="could not be written"):
            save_bundle(tmp_path / name, mine, host=FakeHost())
    assert not list(tmp_path.iterdir())
    save_bundle(path, mine, host=FakeHost())
    with pytest.raises(BundleError, match="not a host"):
        load_bundle(path, host=object())  # type: ignore[arg-type]


def test_an_interrupt_as_the_file_is_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Path.open

    def interrupted(self: Path, mode: str) -> None:
        usual(self, mode).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_bytes_atomically(tmp_path / "f.prefix", b"1")
    assert list(tmp_path.iterdir()) == []
