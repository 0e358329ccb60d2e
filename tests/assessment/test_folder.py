"""The run folder: one pilot at a time, nothing of another pilot's taken over or lost, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from foreword.assessment.folder import Judged, RunFolder
from foreword.errors import RunFolderError
from foreword.tuning.fit_folder import held_folder

MINE: dict[str, Any] = {"task": {"name": "mine", "labels": ["a", "b"]}, "seeds": [0], "limit": None}
OTHER: dict[str, Any] = {**MINE, "task": {"name": "other", "labels": ["a", "b"]}}
RESULT: dict[str, Any] = {
    "seed": 0,
    "readout": "linear",
    "selection": 0.5,
    "outputs": ["a", "b"],
    "trainable": 3,
    "bytes": 12,
    "fit_seconds": 0.1,
    "peak_memory_bytes": 100,
    "bare_latency_ms": 1.5,
    "latency_added_ms": -0.1,
    "history": [{"step": 0, "seconds": 0.0, "loss": None, "selection": 0.5}],
    "details": {"positions": 2},
    "forgetting": None,
}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A folder with one finished result of the pilot `MINE`."""
    found = RunFolder(tmp_path / "run")
    with found.held(MINE):
        found.finish("probe", Judged(**RESULT))
    return found


def refusal(folder: RunFolder, identity: dict[str, Any] = MINE, **options: Any) -> RunFolderError:
    with pytest.raises(RunFolderError) as caught, folder.held(identity, **options):
        raise AssertionError("it was entered")
    assert caught.value.fix
    return caught.value


def contents(folder: RunFolder) -> dict[str, bytes]:
    return {
        path.relative_to(folder.path).as_posix(): path.read_bytes()
        for path in folder.path.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_what_was_finished_is_found_again(folder: RunFolder) -> None:
    with folder.held(MINE):
        assert folder.finished("probe", 0, answers=2) == Judged(**RESULT)
        assert folder.finished("probe", 1, answers=2) is None
        assert folder.finished("prefix", 0, answers=2) is None


def test_another_pilot_s_work_is_refused_and_named_by_what_differs(folder: RunFolder) -> None:
    before = contents(folder)
    assert 'task.name was "mine", is "other"' in refusal(folder, OTHER).found
    assert "limit was null, is 5" in refusal(folder, {**MINE, "limit": 5}).found
    assert "more was null, is 1" in refusal(folder, {**MINE, "more": 1}).found
    assert contents(folder) == before


def test_a_folder_in_which_nothing_was_made_yet_goes_to_the_next_pilot(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.held(MINE):
        pass
    with folder.held(OTHER):
        pass
    assert json.loads((folder.path / "run.json").read_text(encoding="utf-8")) == OTHER


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_work_whose_owner_cannot_be_read_is_refused(folder: RunFolder, content: bytes) -> None:
    (folder.path / "run.json").write_bytes(content)
    assert "cannot be read" in refusal(folder).found


@pytest.mark.parametrize("kept", ["candidates/probe/seed-0.json", "evidence.json", "report.html", "best.prefix"])
def test_work_without_an_owner_is_refused(tmp_path: Path, kept: str) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / kept).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / kept).write_text("x", encoding="utf-8")
    assert "no run.json" in refusal(folder).found
    with folder.held(MINE, fresh=True):
        assert not (tmp_path / kept).exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_pilot_and_a_fit_do_not_share_a_folder(folder: RunFolder, tmp_path: Path, fresh: bool) -> None:
    """Each would replace the other's best.prefix, beside a report that speaks of another one."""
    fitted, before = held_folder(tmp_path / "fitted"), contents(folder)
    with fitted.held({"task": "mine"}):
        pass
    assert refusal(RunFolder(fitted.path), fresh=fresh).what == f"{fitted.path} is the folder of a fit."
    with (
        pytest.raises(RunFolderError, match="is the folder of a pilot"),
        held_folder(folder.path).held({"task": "mine"}, fresh=fresh),
    ):
        pass
    assert contents(folder) == before


def test_fresh_discards_the_work_and_the_traces_of_writing_and_nothing_else(folder: RunFolder) -> None:
    own = {"notes.txt": b"n", "candidates/mine.txt": b"m", "candidates/probe/thoughts.md": b"t"}
    made = ["evidence.json", "report.html", "best.prefix", "candidates/probe/seed-0.pt"]
    traces = [".evidence.json.x1.part", ".report.html.0f", "candidates/probe/.seed-0.pt.x2.part"]
    for name in (*own, *made, *traces):
        (folder.path / name).write_bytes(own.get(name, b"x"))
    (folder.path / "candidates" / "prefix").mkdir()
    with folder.held(OTHER, fresh=True):
        assert folder.finished("probe", 0, answers=2) is None
    assert contents(folder) == {**own, "run.json": json.dumps(OTHER, indent=2).encode()}
    assert not (folder.path / "candidates" / "prefix").exists()


def test_what_cannot_be_discarded_is_said(folder: RunFolder) -> None:
    (folder.path / "evidence.json").mkdir()
    assert "cannot be discarded" in refusal(folder, fresh=True).what
    assert (folder.path / "run.json").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"outputs": ["a"]},
        {"outputs": ["a", None]},
        {"outputs": "ab"},
        {"seed": 1},
        {"bare_latency_ms": 0.0},
        {"selection": float("nan")},
        {"fit_seconds": float("inf")},
        {"history": [{"step": 0}]},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_result_that_is_not_whole_counts_as_not_finished(folder: RunFolder, change: dict[str, Any]) -> None:
    path = folder.path / "candidates" / "probe" / "seed-0.json"
    path.write_text(json.dumps({**RESULT, **change}), encoding="utf-8")
    assert folder.finished("probe", 0, answers=2) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"null"])
def test_an_unreadable_result_counts_as_not_finished(folder: RunFolder, content: bytes) -> None:
    (folder.path / "candidates" / "probe" / "seed-0.json").write_bytes(content)
    assert folder.finished("probe", 0, answers=2) is None


def test_a_second_pilot_in_the_folder_is_refused_and_the_first_goes_on(folder: RunFolder) -> None:
    refused: list[RunFolderError] = []
    with folder.held(MINE):
        thread = threading.Thread(target=lambda: refused.append(refusal(RunFolder(folder.path))))
        thread.start()
        thread.join()
        assert "Another pilot is running" in refused[0].what
        assert folder.finished("probe", 0, answers=2) is not None
    with RunFolder(folder.path).held(MINE):
        pass


def test_another_process_holds_the_folder_until_it_ends(folder: RunFolder) -> None:
    code = (
        "import sys; from filelock import FileLock\n"
        "lock = FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        assert "Another pilot is running" in refusal(folder).what
        other.kill()
    with folder.held(MINE):
        pass


def test_the_folder_is_free_again_after_an_error_inside(folder: RunFolder) -> None:
    with pytest.raises(KeyboardInterrupt), folder.held(MINE):
        raise KeyboardInterrupt
    with folder.held(MINE):
        pass


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none", "locked"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    (tmp_path / "locked" / ".lock").mkdir(parents=True)
    error = refusal(RunFolder(tmp_path / place))
    assert str(tmp_path / place) in error.what
    assert error.found
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_a_full_disk_leaves_the_old_file_whole(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        folder.finish("probe", Judged(**{**RESULT, "selection": 0.9}))
    assert contents(folder) == before


def test_long_values_are_shortened_where_they_differ(folder: RunFolder) -> None:
    assert len(refusal(folder, {**MINE, "task": {"name": "x" * 5000, "labels": ["a", "b"]}}).found) < 150
