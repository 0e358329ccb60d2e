"""Progress on stderr: one bar a stage with what is left, plain lines where stderr is no terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import TaskID


class Bars:
    """Progress bars on stderr, one line a stage; plain lines when stderr is no terminal."""

    def __init__(self, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = Console(stderr=True, quiet=quiet)
        self._plain = not self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.description:<24}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=quiet or self._plain,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(text, highlight=False, markup=False)

    def watch(self, stage: str, done: int, of: int, note: str) -> None:
        """So many of a stage's steps are done."""
        if self._plain:
            if done >= of or stage not in self._bars:
                self._console.print(f"{stage}: {done}/{of} {note}".rstrip(), highlight=False, markup=False)
                self._bars[stage] = self._bars.get(stage) or self._progress.add_task(stage, note="")
            return
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=of, note=note)
        self._progress.update(self._bars[stage], completed=done, total=of, note=note)
