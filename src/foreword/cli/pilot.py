"""`foreword pilot TASK`: compare the candidates on a task, judge, decide, and write the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from foreword.cli.screen import on_one_screen

if TYPE_CHECKING:
    from rich.progress import TaskID


def pilot(
    task: Path = typer.Argument(..., help="The task file; `foreword init FOLDER` writes one."),
    out: Path | None = typer.Option(None, "--out", help="Run folder. Default: runs/TASK-NAME."),
    only: list[str] = typer.Option([], "--only", help="Run only this candidate, by name or kind; repeatable."),
    seed: list[int] = typer.Option([], "--seed", min=0, max=2**32 - 1, help="Not the task's seeds; repeatable."),
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
        with _Bars(quiet=quiet) as bars:
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
    console.print(summary_text(result.evidence), highlight=False, markup=False)
    for failed in result.evidence.failed:
        typer.echo(f"\n{failed.name} failed. {on_one_screen(failed.message)}")
    typer.echo()
    typer.echo(f"report    {result.report}")
    typer.echo(f"evidence  {result.folder / 'evidence.json'}")
    if result.bundle is not None:
        typer.echo(f"bundle    {result.bundle}")
    if not result.evidence.candidates:
        raise typer.Exit(1)


class _Bars:
    """Progress bars on stderr, one line a stage; plain lines when stderr is no terminal."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, quiet=quiet)
        self._plain = not self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=quiet or self._plain,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def watch(self, stage: str, done: int, of: int, note: str) -> None:
        if self._plain:
            if done >= of or stage not in self._bars:
                self._console.print(f"{stage}: {done}/{of} {note}".rstrip(), highlight=False, markup=False)
                self._bars[stage] = self._bars.get(stage) or self._progress.add_task(stage, note="")
            return
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=of, note=note)
        self._progress.update(self._bars[stage], completed=done, total=of, note=note)
