"""The run folder: one pilot's work on disk, so that an interrupted pilot goes on where it stopped.

    run.json                     what is being run: task, data, base, seeds; another pilot is refused
    candidates/NAME/seed-N.json  what one fit gave: its answers on the test split, and what it took
    candidates/NAME/seed-N.pt    checkpoint of a fit
    evidence.json, report.html, best.prefix

Every file is written through a temporary one, and a lock keeps two pilots out of one folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from foreword.bundle import write_bytes_atomically
from foreword.errors import BundleError, RunFolderError


class Judged(BaseModel):
    """What one fit of one candidate gave and took; `outputs` are its answers on the test split, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    readout: str | None
    selection: float
    outputs: list[str]
    trainable: int
    bytes: int
    fit_seconds: float
    peak_memory_bytes: int
    latency_ms: float
    latency_added_ms: float
    history: list[dict[str, float | int | None]]
    details: dict[str, Any]


class RunFolder:
    """One run folder, held by this process while in use."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def evidence(self) -> Path:
        return self.path / "evidence.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def bundle(self) -> Path:
        return self.path / "best.prefix"

    def checkpoint(self, candidate: str, seed: int) -> Path:
        """Where a fit saves itself."""
        return self.path / "candidates" / candidate / f"seed-{seed}.pt"

    def _result(self, candidate: str, seed: int) -> Path:
        return self.path / "candidates" / candidate / f"seed-{seed}.json"

    @contextmanager
    def held(self, identity: Mapping[str, Any], *, fresh: bool = False) -> Iterator[None]:
        """Lock the folder for the pilot of this identity; `fresh` discards what an earlier one left there.

        RunFolderError when it cannot be written, another process holds it, or it holds another pilot's work.
        """
        lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunFolderError(
                f"Another pilot is running in {self.path}.",
                expected="one pilot at a time in a run folder",
                found="a lock held by another process",
                fix="Wait for it to end, or name another folder with --out.",
            ) from error
        except OSError as error:
            raise RunFolderError(
                f"The run folder {self.path} cannot be written.",
                expected="a folder that can be made and written",
                found=error.strerror or str(error),
                fix="Name another folder with --out.",
            ) from error
        try:
            self._enter(identity, fresh=fresh)
            yield
        finally:
            lock.release()

    def _enter(self, identity: Mapping[str, Any], *, fresh: bool) -> None:
        if fresh:
            self._discard()
        wanted = json.loads(json.dumps(identity))
        path = self.path / "run.json"
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                found = {}
            changed = _difference(found, wanted)
            if changed:
                raise RunFolderError(
                    f"{self.path} holds the work of another pilot.",
                    expected="the same task, data, base model and seeds as before",
                    found="changed: " + "; ".join(changed[:6]),
                    fix="Name another folder with --out, or discard the earlier work with --fresh.",
                )
        else:
            self.write(path, json.dumps(wanted, indent=2, ensure_ascii=False))

    def _discard(self) -> None:
        for path in (self.evidence, self.report, self.bundle, self.path / "run.json"):
            path.unlink(missing_ok=True)
        shutil.rmtree(self.path / "candidates", ignore_errors=True)

    def finished(self, candidate: str, seed: int) -> Judged | None:
        """What an earlier run has already judged; None when it has not, or the file is unreadable."""
        try:
            return Judged.model_validate_json(self._result(candidate, seed).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def finish(self, candidate: str, judged: Judged) -> None:
        self.write(self._result(candidate, judged.seed), judged.model_dump_json(indent=1))

    def write(self, path: Path, text: str) -> None:
        """Write atomically; RunFolderError when that fails."""
        try:
            write_bytes_atomically(path, text.encode("utf-8"))
        except BundleError as error:
            raise RunFolderError(error.what, expected=error.expected, found=error.found, fix=error.fix) from error


def _difference(found: Any, wanted: Any, at: str = "") -> list[str]:
    """Where two JSON values differ, as dotted paths with both values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*found, *(key for key in wanted if key not in found)]
        return [
            line for key in keys for line in _difference(found.get(key), wanted.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if found == wanted else [f"{at} was {_short(found)}, is {_short(wanted)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
