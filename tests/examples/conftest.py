"""The scripts of benchmarks, which are no package: imported by name for one test, and forgotten after it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
TUNING = ROOT / "benchmarks" / "tuning"


@pytest.fixture
def import_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, ModuleType]]]:
    """Imports scripts of `benchmarks/tuning` by name, from there and from its folders that are told."""
    before = set(sys.modules)

    def imported(*names: str, folders: tuple[str, ...] = ()) -> dict[str, ModuleType]:
        for folder in (TUNING, *(TUNING / folder for folder in folders)):
            monkeypatch.syspath_prepend(str(folder))
        return {name: importlib.import_module(name) for name in names}

    yield imported
    ours = (TUNING, ROOT / "examples")
    for name in set(sys.modules) - before:
        place = getattr(sys.modules[name], "__file__", None)
        if place is not None and any(Path(place).is_relative_to(folder) for folder in ours):
            del sys.modules[name]
