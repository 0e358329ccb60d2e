"""`foreword init FOLDER`: a commented task file with toy data, to start from."""

from __future__ import annotations

from pathlib import Path

import typer


def init(
    folder: Path = typer.Argument(..., help="Folder to write task.toml and data.jsonl into; made when missing."),
    force: bool = typer.Option(False, "--force", help="Overwrite files that are there."),
) -> None:
    """Write a commented task file and toy data that it runs on."""
    from foreword.tuning.starter import write_starter

    for path in write_starter(folder, force=force):
        typer.echo(f"wrote {path}")
    typer.echo(f"next:  foreword pilot {folder / 'task.toml'}")
