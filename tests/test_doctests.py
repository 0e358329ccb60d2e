"""The examples in the documentation of the modules that need no model run, and say what they print."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import foreword

HOUSE = Path(foreword.__file__).parent
# Whose examples load the base model of the demo: the tests of the engine run what they show.
WITH_A_MODEL = {"foreword.engine.host"}


def modules_with_examples() -> list[str]:
    found = [path for path in sorted(HOUSE.rglob("*.py")) if ">>> " in path.read_text(encoding="utf-8")]
    names = [".".join(("foreword", *path.relative_to(HOUSE).with_suffix("").parts)) for path in found]
    return [name.removesuffix(".__init__") for name in names if name not in WITH_A_MODEL]


def test_the_modules_with_examples_are_found() -> None:
    assert {"foreword.prefix", "foreword.confidence", "foreword.errors"} <= set(modules_with_examples())


@pytest.mark.usefixtures("hardly_polished")
@pytest.mark.parametrize("name", modules_with_examples())
def test_the_examples_run_in(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
