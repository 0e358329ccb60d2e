"""The record of a run says what can be found out, and None for what cannot."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from foreword import record
from foreword.record import Stopwatch, checkout_state, command_line, installed_versions, machine_facts


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository of one commit that the record's module seems to lie in."""
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    module = tmp_path / "record.py"
    module.write_text("x = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "record.py")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "one")
    monkeypatch.setattr(record, "__file__", str(module))
    return tmp_path


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_record_is_plain_json_and_names_its_run() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    watch = Stopwatch(command="foreword pilot task.toml", seeds=(3, 4))
    time.sleep(0.01)
    made = watch.record({"steps": 8})
    told = json.loads(json.dumps(made.as_dict(), allow_nan=False))
    assert told["command"] == "foreword pilot task.toml"
    assert told["seeds"] == [3, 4]
    assert told["settings"] == {"steps": 8}
    assert before <= datetime.fromisoformat(told["started"]) <= datetime.now(UTC)
    assert 0.01 <= told["seconds"] <= watch.seconds
    assert told["versions"]["numpy"] == np.__version__
    assert told["versions"]["python"] == platform.python_version()
    assert told["machine"]["memory_bytes"] > 2**20


def test_a_clean_checkout_is_named_by_its_commit(checkout: Path) -> None:
    assert checkout_state() == (git(checkout, "rev-parse", "HEAD"), False)


@pytest.mark.parametrize("name", ["record.py", "new.txt"])
def test_a_changed_or_new_file_makes_the_checkout_dirty(checkout: Path, name: str) -> None:
    (checkout / name).write_text("changed\n")
    assert checkout_state() == (git(checkout, "rev-parse", "HEAD"), True)


def test_code_that_git_does_not_track_has_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed copy inside somebody else's repository (a .venv in it) is not of that repository's commit."""
    installed = checkout / "site-packages" / "record.py"
    installed.parent.mkdir()
    installed.write_text("x = 1\n")
    monkeypatch.setattr(record, "__file__", str(installed))
    assert checkout_state() == (None, None)


def test_without_git_or_a_repository_there_is_no_commit(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        assert checkout_state() == (None, None)
    assert checkout_state()[0] is not None
    elsewhere = tmp_path_factory.mktemp("no-repository")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(elsewhere.parent))
    monkeypatch.setattr(record, "__file__", str(elsewhere / "record.py"))
    assert checkout_state() == (None, None)


def test_a_library_that_is_absent_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "PACKAGES", ("numpy", "surely-not-installed-xyz"))
    assert sorted(installed_versions()) == ["foreword", "numpy", "python"]


def test_the_machine_has_the_cores_that_this_process_may_use() -> None:
    facts = machine_facts()
    assert facts["cores"] == len(os.sched_getaffinity(0))
    assert facts["architecture"] == platform.machine()
    assert facts["processor"]


def test_a_machine_without_torch_loaded_has_no_known_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    facts = machine_facts()
    assert (facts["accelerator"], facts["threads"]) == (None, None)


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["/usr/bin/foreword", "pilot", "task.toml"], "foreword pilot task.toml"),
        (["foreword", "pilot", "my task.toml"], "foreword pilot 'my task.toml'"),
        (["foreword", "pilot", "it's $HOME.toml", ""], """foreword pilot 'it'"'"'s $HOME.toml' ''"""),
        ([""], "python"),
        ([], "python"),
    ],
)
def test_the_command_line_is_as_a_user_would_type_it(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], told: str
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == told
