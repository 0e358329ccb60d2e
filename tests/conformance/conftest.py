"""Keeps the outcome of every cell of the matrix; with `--write-conformance` they become the page of the manual."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.conformance.columns import COLUMNS
from tests.conformance.families import BUILDERS, not_applicable

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"
OPTION = "--write-conformance"
OUTCOMES = pytest.StashKey[dict[tuple[str, str], str]]()
HEAD = """# Conformance: every family against every law

Generated from the outcomes of the tests by

    python -m pytest tests/conformance --write-conformance

with {versions}. Each family is built from a small configuration with random weights; `tests/conformance/columns.py`
says what each column demands, with its tolerance. `right`: shown by the test of that cell. `not applicable`: for the
numbered reason below the table. **WRONG**: the test failed.

"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(OPTION, action="store_true", help="write docs/reference/conformance.md from the outcomes")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[OUTCOMES] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    where = getattr(item, "callspec", None)
    if where is not None and report.when == "call" and {"family", "column"} <= set(where.params):
        outcomes = item.config.stash.setdefault(OUTCOMES, {})
        outcomes[where.params["family"], where.params["column"]] = "right" if report.passed else "**WRONG**"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not session.config.getoption(OPTION, default=False):
        return
    outcomes = session.config.stash.setdefault(OUTCOMES, {})
    missing = [(f, c) for f in BUILDERS for c in COLUMNS if not_applicable(f, c) is None and (f, c) not in outcomes]
    if missing:
        raise pytest.UsageError(f"{len(missing)} cells did not run ({missing[0]}, ...): run the whole matrix")
    PAGE.write_text(page(outcomes), encoding="utf-8")


def page(outcomes: dict[tuple[str, str], str]) -> str:
    reasons: dict[str, int] = {}

    def cell(family: str, column: str) -> str:
        why = not_applicable(family, column)
        if why is None:
            return outcomes[family, column]
        return f"not applicable ({reasons.setdefault(why, len(reasons) + 1)})"

    head = HEAD.format(versions=", ".join(f"{name} {found}" for name, found in versions().items()))
    lines = ["| family | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    lines += [f"| `{family}` | " + " | ".join(cell(family, column) for column in COLUMNS) + " |" for family in BUILDERS]
    counted = list(outcomes.values()).count("right")
    lines += ["", f"{counted} of {len(outcomes)} applicable cells are right.", "", "Not applicable:", ""]
    lines += [f"{number}. {why}" for why, number in reasons.items()]
    return head + "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    return {"Python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers")}}
