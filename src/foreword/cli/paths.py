"""Paths as a command line says them."""

from __future__ import annotations

from pathlib import Path

import typer


def named(text: str) -> Path:
    """The path; an empty one, as an unset variable of a shell leaves it, is not the folder one happens to be in."""
    if not text.strip():
        raise typer.BadParameter("it names nothing; write a path, or leave the option out.")
    return Path(text)
