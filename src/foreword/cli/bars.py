"""Progress on stderr: one bar a stage with what is left, plain lines where stderr is no terminal."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, TaskID

EVERY = 30.0  # seconds between two plain lines of one stage: a log shows that a long one is alive


class Bars:
    """Progress bars on stderr, one line a stage; plain lines when stderr is no terminal.

    Steps are counted, or shown as a share where `in_percent`: `watch` is then told so many of 100.
    """

    def __init__(self, *, quiet: bool, in_percent: bool = False) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.table import Column

        self._console = Console(stderr=True, quiet=quiet)
        self._plain = not self._console.is_terminal
        self._unit = "%" if in_percent else ""

        def whole(width: int) -> Column:
            """A column that stays whole where the terminal is narrow: bar and note give way."""
            return Column(min_width=width, no_wrap=True)

        counted: list[ProgressColumn] = [
            MofNCompleteColumn(table_column=whole(5)),
            TimeElapsedColumn(table_column=whole(7)),
            TimeRemainingColumn(table_column=whole(7)),
        ]
        self._progress = Progress(
            TextColumn("{task.description:<18}" if in_percent else "{task.description}", markup=False),
            BarColumn(bar_width=10 if in_percent else 30),
            *([TaskProgressColumn(), TimeElapsedColumn()] if in_percent else counted),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            disable=quiet or self._plain,
        )
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._last = ""

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
            now = time.monotonic()
            if done >= of or now >= self._said.get(stage, 0.0) + EVERY or stage not in self._said:
                share = f"{done}{self._unit}" if self._unit else f"{done}/{of}"
                line = f"{stage}: {share} {note}".rstrip()
                if line != self._last:  # an end that is told twice
                    self._console.print(line, highlight=False, markup=False)
                self._said[stage], self._last = now, line
            return
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=of, note=note)
        self._progress.update(self._bars[stage], completed=done, total=of, note=note)
