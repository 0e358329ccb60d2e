"""A test that is skipped or expected to fail has a row in QUARANTINES.md, and a row has its test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
MARKS = re.compile(r"\bpytest\.(mark\.)?(skip|skipif|xfail|importorskip)\(")


def conditional_tests() -> set[str]:
    """The functions whose decorators or bodies may skip them; a module that skips as a whole goes by its name."""
    found: set[str] = set()
    for path in TESTS.rglob("*.py"):
        if path == Path(__file__):
            continue
        source = path.read_text(encoding="utf-8")
        for node in ast.parse(source).body:
            lines = source.splitlines()
            first = min([node.lineno, *(mark.lineno for mark in getattr(node, "decorator_list", []))])
            if MARKS.search("\n".join(lines[first - 1 : node.end_lineno])):
                found.add(getattr(node, "name", path.name))
    return found


def test_the_table_of_quarantines_is_that_of_the_code() -> None:
    page = (TESTS / "QUARANTINES.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w[\w.]*)` \| (.+?) \| (.+?) \| (.+?) \|$", page, flags=re.MULTILINE)
    assert {row[0] for row in rows} == conditional_tests()
