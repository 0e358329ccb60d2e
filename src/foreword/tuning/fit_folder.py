"""The folder of a fit, as it lies on disk: what is in it, whose it is, and whether its fit has ended.

It imports no torch, so that a folder that holds no fit is told at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import RunFolderError
from foreword.tuning.folder import HeldFolder
from foreword.tuning.task import Task

# What a fit writes, and a sweep over lengths of each length that is done.
MADE = ("checkpoint.pt", "log.jsonl", "result.json", "best.prefix", "lora/*", "full/*", "tensorboard/events.*")
FITTED = "fitted.json"


@dataclass(frozen=True)
class Begun:
    """The fit that a folder was made for, as it was asked for. `lengths`: those of a sweep, None for a single fit."""

    task: Task
    method: str
    lengths: list[int] | None
    seed: int
    limit: int | None
    reference: str


def held_folder(folder: Path) -> HeldFolder:
    return HeldFolder(
        folder,
        work="fit",
        same="the same task, data, base model, settings and seed as before",
        identity_name="fit.json",
        made=(
            *MADE,
            "lessons.json",
            "length.json",
            "length.svg",
            *(f"lengths/*/{name}" for name in (*MADE, "fit.json", FITTED, ".lock")),
        ),
    )


def begun_in(folder: Path) -> Begun:
    """The fit of a folder, ended or not. RunFolderError when it holds none."""
    told = held_folder(folder).told()
    try:
        if told is None:
            raise KeyError("fit.json")
        values = {**told["task"], "candidates": [told["settings"]]}
        task = Task.parse(values, folder=Path(told["aside"]["task_folder"]), source=f"{folder}/fit.json")
        return Begun(
            task,
            told["settings"]["kind"],
            told.get("lengths"),
            int(told["seed"]),
            told["limit"],
            str(told["aside"]["reference"]),
        )
    except (LookupError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{folder} holds no fit to go on with.",
            expected="a folder that `foreword fit` or fw.fit(..., out=FOLDER) wrote, with its fit.json",
            found="no fit.json that can be read" if told is None else f"a fit.json without {error}",
            fix="Name the folder of a fit, or start one with a task file.",
        ) from error


def told_result(folder: Path) -> dict[str, Any] | None:
    """What the folder's result tells, the last that a fit writes; None when it is not there, or not whole."""
    try:
        told = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) else None
