"""The record of a run: what was run, from which commit, with which versions, on which machine, for how long.

Anything that reports a number carries one of these. It looks at the machine and at git when it is made, and never
guesses: what cannot be found out is None.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from foreword.version import __version__

PACKAGES = ("torch", "transformers", "peft", "numpy", "scipy", "safetensors", "tokenizers")


@dataclass(frozen=True)
class RunRecord:
    """Configuration, seeds, commit, machine and timing of one run.

    `started` is an ISO time in UTC; `seconds` is wall time. `commit` and `dirty` describe the git checkout that the
    running code lies in, None when it is installed from elsewhere.
    """

    command: str
    started: str
    seconds: float
    seeds: tuple[int, ...]
    settings: dict[str, Any]
    commit: str | None
    dirty: bool | None
    versions: dict[str, str]
    machine: dict[str, str | int | float | None]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return asdict(self)


@dataclass
class Stopwatch:
    """Starts when made; `record` closes it into a RunRecord.

    >>> watch = Stopwatch(command="foreword pilot task.toml", seeds=(0,))
    >>> watch.record({"steps": 3}).seeds
    (0,)
    """

    command: str
    seeds: tuple[int, ...] = ()
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    _from: float = field(default_factory=time.perf_counter, repr=False)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._from

    def record(self, settings: dict[str, Any] | None = None) -> RunRecord:
        """The record of the run from the stopwatch's start until now."""
        commit, dirty = checkout_state()
        return RunRecord(
            command=self.command,
            started=self.started,
            seconds=self.seconds,
            seeds=self.seeds,
            settings=settings or {},
            commit=commit,
            dirty=dirty,
            versions=installed_versions(),
            machine=machine_facts(),
        )


def command_line() -> str:
    """The command that runs, as a user would type it in a shell; bytes that are not UTF-8 are replaced."""
    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    return shlex.join([name, *sys.argv[1:]]).encode(errors="surrogateescape").decode(errors="replace")


def checkout_state() -> tuple[str | None, bool | None]:
    """The commit of the checkout this code lies in, and whether it has uncommitted changes; None without a checkout."""
    folder = Path(__file__).resolve().parent
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None or _git(folder, "ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    status = _git(folder, "status", "--porcelain")
    return commit, bool(status) if status is not None else None


def installed_versions() -> dict[str, str]:
    """Versions of foreword, Python and the libraries that decide a result; a library that is absent is left out."""
    found = {"foreword": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine_facts() -> dict[str, str | int | float | None]:
    """Operating system, processor, usable cores, memory in bytes, and accelerator when torch is loaded and sees one."""
    import psutil

    torch = sys.modules.get("torch")
    gpu = torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": cores,
        "memory_bytes": int(psutil.virtual_memory().total),
        "accelerator": gpu,
        "threads": torch.get_num_threads() if torch is not None else None,
    }


def _processor() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or None


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  fixed words, no shell
            ["git", *words],  # noqa: S607  git is looked up as the user's shell would
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
