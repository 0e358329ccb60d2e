"""The files that `foreword init` writes: a task file that explains itself, and a small data set to try it on.

It knows where the two templates are and how to write them whole or not at all. What their fields mean is the task
file's own business (`foreword.tuning.task`).
"""

from __future__ import annotations

import secrets
from importlib import resources
from pathlib import Path

from foreword.errors import RunFolderError
from foreword.regular_file import found_in

NAMES = ("task.toml", "data.jsonl")


def write_starter(folder: Path, *, force: bool = False) -> list[Path]:
    """Write `task.toml` and `data.jsonl` into a folder, which is made when missing; gives the paths written.

    Each file appears whole or not at all. RunFolderError when one of them exists already (unless `force`), or when the
    folder cannot be written.
    """
    templates = resources.files("foreword.tuning") / "templates"
    contents = [(templates / name).read_bytes() for name in NAMES]
    paths = [folder / name for name in NAMES]
    if existing := [path.name for path in paths if path.exists() and not (force and path.is_file())]:
        raise RunFolderError(
            f"The folder {folder} already holds {' and '.join(existing)}.",
            expected=f"a folder without {' and '.join(NAMES)}",
            fix="Name another folder, or overwrite the files with --force (folders of these names are never replaced).",
        )
    drafts: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, content in zip(paths, contents, strict=True):
            drafts.append(path.with_name(f".{path.name}.{secrets.token_hex(8)}"))
            with drafts[-1].open("xb") as draft:
                draft.write(content)
        for draft_path, path in zip(drafts, paths, strict=True):
            draft_path.replace(path)
    except OSError as error:
        raise RunFolderError(
            f"The starter files cannot be written into {folder}.",
            expected="a folder that may be written, on a disk with room",
            found=found_in(error),
            fix="Name another folder, or correct its access rights.",
        ) from error
    finally:
        for draft_path in drafts:
            if draft_path.parent.is_dir():
                draft_path.unlink(missing_ok=True)
    return paths
