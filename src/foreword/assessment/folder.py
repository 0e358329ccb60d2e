"""The run folder: one pilot's work on disk, so that an interrupted pilot goes on where it stopped.

    run.json                     what is being run: task, data, base, seeds; another pilot is refused
    candidates/NAME/seed-N.json  what one fit gave: its answers on the test split, and what it took
    candidates/NAME/seed-N.pt    checkpoint of a fit
    evidence.json, report.html, best.prefix

Every file is written through a temporary one, and a lock keeps two pilots out of one folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field

from foreword.assessment.evidence import HistoryPoint
from foreword.bundle import write_bytes_atomically
from foreword.errors import BundleError, RunFolderError


class Judged(BaseModel):
    """What one fit of one candidate gave and took; `outputs` are its answers on the test split, in order."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int
    readout: str | None
    selection: float
    outputs: list[str]
    trainable: int
    bytes: int
    fit_seconds: float
    peak_memory_bytes: int
    bare_latency_ms: float = Field(gt=0)
    latency_added_ms: float
    history: list[HistoryPoint]
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
        changed = self._changed(wanted)
        if changed and self._work():
            raise RunFolderError(
                f"{self.path} holds the work of another pilot.",
                expected="the same task, data, base model and seeds as before",
                found="; ".join(changed[:6]),
                fix="Name another folder with --out, or discard the earlier work with --fresh.",
            )
        if changed:
            self.write(self._identity, json.dumps(wanted, indent=2, ensure_ascii=False))

    @property
    def _identity(self) -> Path:
        return self.path / "run.json"

    def _changed(self, wanted: dict[str, Any]) -> list[str]:
        """What differs from the pilot that the folder belongs to; a line too when that cannot be told."""
        try:
            found = json.loads(self._identity.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return ["no run.json, which says whose work it is"]
        except (OSError, ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            return ["a run.json, which says whose work it is, that cannot be read"]
        return [f"changed: {line}" for line in _difference(found, wanted)]

    def _work(self) -> list[Path]:
        """Everything in the folder that a pilot makes, but for run.json; a folder may hold other things as well."""
        made = [path for path in (self.evidence, self.report, self.bundle) if path.exists()]
        return made + sorted(self.path.glob("candidates/*/seed-*"))

    def _discard(self) -> None:
        """Remove what a pilot made, the traces of writing that was cut off included, and nothing else."""
        places = [self.path, *self.path.glob("candidates/*")]
        traces = [
            path
            for place in places
            for name in ("seed-*", "evidence.json", "report.html", "best.prefix", "run.json")
            for path in place.glob(f".{name}.*")
        ]
        try:
            for path in [*self._work(), *traces, self._identity]:  # run.json last: until then it says whose they are
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"The earlier work in {self.path} cannot be discarded.",
                expected="files that can be removed",
                found=str(error),
                fix="Remove the folder by hand, or name another one with --out.",
            ) from error
        for place in [*places[1:], self.path / "candidates"]:
            with suppress(OSError):  # missing, or it holds what no pilot made
                place.rmdir()

    def finished(self, candidate: str, seed: int, *, answers: int) -> Judged | None:
        """What an earlier run has already judged; None when it has not, or the file is not whole.

        `answers` is how many it must have.
        """
        try:
            found = Judged.model_validate_json(self._result(candidate, seed).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if found.seed == seed and len(found.outputs) == answers else None

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
