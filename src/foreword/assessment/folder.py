"""The run folder: one pilot's work on disk, so that an interrupted pilot goes on where it stopped.

    run.json                     what is being run: task, data, base, seeds; another pilot is refused
    candidates/NAME/seed-N.json  what one fit gave: its answers on the test split, and what it took
    candidates/NAME/seed-N.pt    checkpoint of a fit
    evidence.json, report.html, best.prefix

Every file is written through a temporary one, and a lock keeps two pilots out of one folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from foreword.assessment.evidence import ForgettingEvidence, HistoryPoint
from foreword.tuning.folder import HeldFolder


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
    forgetting: ForgettingEvidence | None


class RunFolder:
    """One run folder, held by this process while in use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._held = HeldFolder(
            path,
            work="pilot",
            same="the same task, data, base model and seeds as before",
            identity_name="run.json",
            made=("evidence.json", "report.html", "best.prefix", "candidates/*/seed-*"),
        )

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

    def held(self, identity: Mapping[str, Any], *, fresh: bool = False) -> AbstractContextManager[bool]:
        """Lock the folder for the pilot of this identity; `fresh` discards what an earlier one left there.

        RunFolderError when it cannot be written, another process holds it, or it holds another pilot's work.
        """
        return self._held.held(identity, fresh=fresh)

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
        self._held.write(path, text)
