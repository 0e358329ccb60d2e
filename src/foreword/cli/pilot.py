"""`foreword pilot TASK`: compare the candidates on a task, judge, decide, and write the report."""

from __future__ import annotations

import textwrap
from pathlib import Path

import typer

from foreword.cli.bars import Bars
from foreword.cli.paths import named
from foreword.cli.screen import on_one_screen


def pilot(
    task: Path = typer.Argument(..., help="The task file; `foreword init FOLDER` writes one."),
    out: Path | None = typer.Option(
        None, "--out", parser=named, metavar="PATH", help="Run folder. Default: runs/TASK-NAME."
    ),
    only: list[str] = typer.Option([], "--only", help="Run only this candidate, by name or kind; repeatable."),
    seed: list[int] = typer.Option(
        [], "--seed", min=0, max=2**32 - 1, help="This seed instead of the task's; repeatable."
    ),
    limit: int | None = typer.Option(None, "--limit", min=1, help="Use at most this many examples of each split."),
    fresh: bool = typer.Option(False, "--fresh", help="Discard what an earlier run left in the run folder."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bars."),
) -> None:
    """Run every candidate, judge them on one untouched split, stress the best, and decide.

    Ctrl-C loses nothing: the same command goes on where it stopped.
    """
    from rich.console import Console

    from foreword.tuning.task import Task

    loaded = Task.load(task)  # before torch is imported: a wrong task file is told at once
    console = Console()

    from transformers.utils import logging

    from foreword.assessment.pilot import run_pilot
    from foreword.assessment.summary import summary_table, summary_text
    from foreword.record import command_line

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with Bars(quiet=quiet) as bars:
            result = run_pilot(
                loaded,
                out=out,
                only=only,
                seeds=seed,
                limit=limit,
                fresh=fresh,
                watch=bars.watch,
                command=command_line(),
            )
    except KeyboardInterrupt as error:
        typer.echo("\ninterrupted: what was finished is kept; the same command goes on from there.", err=True)
        raise typer.Exit(130) from error
    console.print(summary_table(result.evidence))
    for line in summary_text(result.evidence).splitlines():
        console.print(_hanging(line, console.width), highlight=False, markup=False)
    for failed in result.evidence.failed:
        typer.echo(f"\n{failed.name} failed. {on_one_screen(failed.message)}")
    typer.echo()
    typer.echo(f"report    {result.report}")
    typer.echo(f"evidence  {result.folder / 'evidence.json'}")
    if result.bundle is not None:
        typer.echo(f"bundle    {result.bundle}")
    if not result.evidence.candidates:
        raise typer.Exit(1)


def _hanging(line: str, width: int) -> str:
    """A line of the summary broken at the terminal's width, what follows a mark below what it marks."""
    margin = len(line) - len(line.lstrip())
    return textwrap.fill(line, width, subsequent_indent=" " * (margin + 2)) if margin else line
