"""A folder that holds one piece of work: whose it is, a lock, what it may discard, and whole files only.

It knows nothing of what the work is. A first file says what is being made (its *identity*); another identity is refused
with the differences, and nothing that the work did not make is ever removed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from foreword.bundle import write_bytes_atomically
from foreword.errors import BundleError, RunFolderError
from foreword.excerpt import excerpt
from foreword.regular_file import found_in

# By the file that says whose it is, the works that name their other files alike: a folder holds one of them.
ALIKE: Mapping[str, str] = {"run.json": "pilot", "fit.json": "fit"}


@dataclass(frozen=True)
class HeldFolder:
    """A folder for one `work` ("pilot", "fit"), which makes the files that `made` lists as patterns.

    `identity_name` is the file that says whose work it is; `same` says in words what must be equal to go on.
    """

    path: Path
    work: str
    same: str
    identity_name: str
    made: Sequence[str]

    @contextmanager
    def held(
        self,
        identity: Mapping[str, Any],
        *,
        fresh: bool = False,
        aside: Mapping[str, Any] | None = None,
        is_finished: bool = False,
    ) -> Iterator[bool]:
        """Lock the folder for the work of this identity; `fresh` discards what an earlier one left there.

        Gives whether the folder may be written; work that `is_finished` is only read where it may not, without a lock.
        `aside` is written beside the identity and not compared. RunFolderError when the folder cannot be written,
        another process holds it, or it holds other work: of another kind with `fresh`, too.
        """
        self._refuse_other_kinds()
        wanted = json.loads(json.dumps(identity))
        if not fresh:
            self._check(wanted)
            if is_finished and not os.access(self.path, os.W_OK):
                yield False
                return
        lock = FileLock(self.path / ".lock")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunFolderError(
                f"Another {self.work} is running in {self.path}.",
                expected=f"one {self.work} at a time in a run folder",
                found="a lock held by another process",
                fix="Wait for it to end, or name another folder with --out.",
            ) from error
        except OSError as error:
            raise RunFolderError(
                f"The run folder {self.path} cannot be written.",
                expected="a folder that can be made and written",
                found=found_in(error),
                fix="Name another folder with --out.",
            ) from error
        try:
            if fresh:
                self._discard()
            if self._check(wanted):
                told = {**wanted, "aside": dict(aside)} if aside else wanted
                self.write(self._identity, json.dumps(told, indent=2, ensure_ascii=False))
            yield True
        finally:
            lock.release()

    def _refuse_other_kinds(self) -> None:
        for name, kind in ALIKE.items():
            if name != self.identity_name and (self.path / name).exists():
                raise RunFolderError(
                    f"{self.path} is the folder of a {kind}.",
                    expected=f"a folder of its own for a {self.work}",
                    found=name,
                    fix="Name another folder with --out.",
                )

    def _check(self, wanted: dict[str, Any]) -> bool:
        """Whether the folder has yet to say whose it is. RunFolderError when it holds other work."""
        changed = self._changed(wanted)
        if changed and self._found():
            raise RunFolderError(
                f"{self.path} holds the work of another {self.work}.",
                expected=self.same,
                found="; ".join(changed[:6]),
                fix="Name another folder with --out, or discard the earlier work with --fresh.",
            )
        return bool(changed)

    @property
    def _identity(self) -> Path:
        return self.path / self.identity_name

    def told(self) -> dict[str, Any] | None:
        """What the folder says of whose work it is, `aside` included; None when that cannot be read."""
        try:
            found = json.loads(self._identity.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _changed(self, wanted: dict[str, Any]) -> list[str]:
        """What differs from the work that the folder belongs to; a line too when that cannot be told."""
        if not self._identity.exists():
            return [f"no {self.identity_name}, which says whose work it is"]
        found = self.told()
        if found is None:
            return [f"a {self.identity_name}, which says whose work it is, that cannot be read"]
        found.pop("aside", None)
        return [f"changed: {line}" for line in differences(found, wanted)]

    def _found(self) -> list[Path]:
        """Everything in the folder that the work makes, but for its identity; it may hold other things as well."""
        return sorted(path for pattern in self.made for path in self.path.glob(pattern))

    def _discard(self) -> None:
        """Remove what the work made, the traces of writing that was cut off included, and nothing else."""
        patterns = [*self.made, self.identity_name]
        traces = [
            path
            for folder, _, name in (pattern.rpartition("/") for pattern in patterns)
            for path in self.path.glob(f"{folder}/.{name}.*".lstrip("/"))
        ]
        found = self._found()
        try:
            for path in [*found, *traces, self._identity]:  # the identity last: until then it says whose they are
                path.unlink(missing_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"The earlier work in {self.path} cannot be discarded.",
                expected="files that can be removed",
                found=str(error),
                fix="Remove the folder by hand, or name another one with --out.",
            ) from error
        own = {str(place) for pattern in patterns for place in Path(pattern).parents if place.name}
        places = {place for pattern in own for place in self.path.glob(pattern) if place.is_dir()}
        for place in sorted(places, key=lambda each: -len(each.parts)):
            with suppress(OSError):  # it holds what the work did not make
                place.rmdir()

    def write(self, path: Path, text: str) -> None:
        """Write atomically; RunFolderError when that fails."""
        try:
            write_bytes_atomically(path, text.encode("utf-8"))
        except BundleError as error:
            raise RunFolderError(error.what, expected=error.expected, found=error.found, fix=error.fix) from error


def differences(found: Any, wanted: Any, at: str = "") -> list[str]:
    """Where two JSON values differ, as dotted paths with both values."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = [*found, *(key for key in wanted if key not in found)]
        return [
            line for key in keys for line in differences(found.get(key), wanted.get(key), f"{at}.{key}" if at else key)
        ]
    return [] if found == wanted else [f"{at} was {_shown(found)}, is {_shown(wanted)}"]


def _shown(value: Any) -> str:
    return excerpt(json.dumps(value, ensure_ascii=False), 40)
