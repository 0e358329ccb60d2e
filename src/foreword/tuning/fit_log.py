"""What a fit leaves behind as it goes: one JSON line per step and evaluation, and TensorBoard's event files on demand.

A fit that goes on after a kill takes some steps again: their lines are removed first, so each step stands there once.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foreword.bundle import write_bytes_atomically
from foreword.errors import BundleError, FitError, RunFolderError
from foreword.regular_file import found_in
from foreword.tuning.checkpoint import Moment
from foreword.tuning.fittable import FitWatch, StepTaken


class FitLog(FitWatch):
    """Writes `log.jsonl` into `folder`, and TensorBoard events when asked to; tells `then` the same.

    FitError when TensorBoard's events are wanted and its library is not installed.
    """

    def __init__(self, folder: Path, then: FitWatch, *, tensorboard: bool = False) -> None:
        self.path, self.then = folder / "log.jsonl", then
        self._board = _Board(folder / "tensorboard") if tensorboard else None

    def start(self, step: int) -> None:
        kept = [line for line in self._lines() if _step_of(line) <= step]
        try:
            write_bytes_atomically(self.path, "".join(f"{line}\n" for line in kept).encode())
        except BundleError as error:
            raise RunFolderError(error.what, expected=error.expected, found=error.found, fix=error.fix) from error
        if self._board is not None:
            self._board.start(step)
        self.then.start(step)

    def stepped(self, taken: StepTaken) -> None:
        loss = taken.loss if math.isfinite(taken.loss) else None
        self._write({"step": taken.step, "loss": loss, "learning_rate": taken.rate, "seconds": taken.seconds})
        if self._board is not None:
            self._board.add(taken.step, {"loss": taken.loss, "learning_rate": taken.rate})
        self.then.stepped(taken)

    def evaluated(self, moment: Moment) -> None:
        self._write({"evaluation": asdict(moment), "step": moment.step})
        if self._board is not None:
            self._board.add(moment.step, {"selection": moment.selection})
        self.then.evaluated(moment)

    def notice(self, text: str) -> None:
        self._write({"notice": text})
        self.then.notice(text)

    def studied(self, number: int, of: int) -> None:
        self.then.studied(number, of)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self._board is not None:
            self._board.close()

    def _lines(self) -> list[str]:
        try:
            return [line for line in self.path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        except (OSError, UnicodeDecodeError):
            return []

    def _write(self, row: dict[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunFolderError(
                f"The log {self.path} cannot be written.",
                expected="a folder that can be written, on a disk with room",
                found=found_in(error),
                fix="Make room, or name another folder with --out.",
            ) from error


class _Board:
    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise FitError(
                "TensorBoard's log needs the tensorboard library, which is not installed.",
                expected="the package tensorboard",
                found="it is not installed",
                fix="pip install 'foreword[tensorboard]', or leave the option out: log.jsonl is written anyway.",
            ) from error
        self._open = SummaryWriter
        self.folder = folder
        self.writer: Any = None

    def start(self, step: int) -> None:
        self.writer = self._open(str(self.folder), purge_step=step + 1)

    def close(self) -> None:
        if self.writer is not None:  # a fit that is refused before its first step has none
            self.writer.close()

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)


def _step_of(line: str) -> float:
    """The step that a line tells of; a line that is not whole belongs to no step."""
    try:
        found = json.loads(line)
    except ValueError:
        return math.inf
    return float(found.get("step", 0)) if isinstance(found, dict) else math.inf
