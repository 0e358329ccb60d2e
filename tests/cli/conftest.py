"""The command run in this process as a user would run it, and a pilot's folder to use it on."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Two candidates that take no time, and the smallest prefix, so that there is a bundle.
CANDIDATES: list[dict[str, Any]] = [
    {"kind": "zero-shot"},
    {"kind": "probe"},
    {"kind": "prefix", "positions": 2, "steps": 2},
]


@dataclass(frozen=True)
class Ran:
    """What a command said and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def foreword(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `foreword ARGUMENTS`, with `stdin` as what is piped in."""
    from foreword.cli.main import run

    def command(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "argv", ["foreword", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        monkeypatch.setenv("COLUMNS", "80")
        capsys.readouterr()
        code = 0
        try:
            run()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return command


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path], write_task: Callable[..., Path]
) -> Path:
    """The run folder of a pilot that is done, with its task beside it; never to be changed."""
    import torch

    from foreword.assessment.pilot import run_pilot

    folder = tmp_path_factory.mktemp("finished")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    task = write_task(folder, model_folder("bert"), CANDIDATES)
    run_pilot(task, out=folder / "run", command=f"foreword pilot {task}")
    torch.set_num_threads(threads)
    return folder / "run"
