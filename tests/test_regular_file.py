"""A stranger's path is read when it is a regular file of bounded size, and is refused before it is opened otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from foreword.regular_file import content_of, found_in, size_of


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"a\r\nb")
    assert content_of(tmp_path / "f") == content_of(tmp_path / "f", 4) == b"a\r\nb"
    assert size_of(tmp_path / "f") == 4


def test_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    with pytest.raises(ValueError, match="5 bytes, of at most 4"):
        content_of(tmp_path / "f", 4)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder"):
        content_of(tmp_path)


def test_a_device_is_not_read() -> None:
    with pytest.raises(ValueError, match="a pipe or device"):
        content_of(Path(os.devnull))


def test_an_error_is_told_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="absent") as missing:
        content_of(tmp_path / "absent")
    assert found_in(missing.value) == "No such file or directory"
    assert found_in(ValueError("5 bytes")) == "5 bytes"
    assert found_in(RecursionError()) == "RecursionError"
