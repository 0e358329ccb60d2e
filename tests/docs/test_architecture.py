"""ARCHITECTURE.md is the house as it stands: every module, the layers of the contract, and files that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "src" / "foreword"
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def test_every_module_has_its_line_and_no_line_is_left_of_one_that_is_gone() -> None:
    rooms = PAGE.partition("## Rooms")[2].partition("\n## ")[0]
    named = {name for row in rooms.splitlines() for name in re.findall(r"`([\w/]+\.py)`", row.split(" | ")[0])}
    empty = {
        "engine/__init__.py",
        "tuning/__init__.py",
        "assessment/__init__.py",
        "cli/__init__.py",
        "compiler/__init__.py",
        "compiler/construction/__init__.py",
        "tuning/objectives/__init__.py",
    }
    assert named == {path.relative_to(HOUSE).as_posix() for path in HOUSE.rglob("*.py")} - empty
    assert all((HOUSE / path).stat().st_size == 0 for path in empty)


def test_the_drawing_of_the_layers_is_the_import_contract() -> None:
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    drawing = PAGE.partition("## Layers")[2].partition("```\n")[2].partition("```")[0]
    drawn = [re.split(r" {2,}", line)[0] for line in drawing.strip().splitlines()]
    assert [{*line.split(" | ")} for line in drawn] == [{*line.split(" | ")} for line in contract[0]["layers"]]
    assert contract[0]["exhaustive"]


def test_every_page_that_a_page_names_exists() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {name for page in pages for name in re.findall(r"`(docs/[\w/.-]+\.md)`", page.read_text(encoding="utf-8"))}
    assert len(named) > 5
    assert {name for name in named if not (ROOT / name).is_file()} == set()
