"""The tutorial runs as a reader would type it, page by page, and prints what its pages show.

A block is executed where it stands: Python in one namespace for a page, `foreword ...` as a command. The `text` block
behind it is what must be printed, word for word. `...` stands for anything; the last digit of a decimal may be off by
two, and a number with a power of ten by a factor of two, since processors round differently. A block below the line
`<!-- slow -->` is left out of the short run.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foreword.cli.main import run

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial"
PAGES = sorted(path.name for path in TUTORIAL.glob("[0-9]*.md"))
BLOCK = re.compile(r"(<!-- slow -->\n+)?^```(\w*)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
DECIMAL = r"\d+(?:\.\d+)?e[+-]?\d+|\d+\.\d+"
LAST_DIGIT, FACTOR = 2, 2.0
LONG = ("2-from-a-function.md",)  # whose blocks are all left out of the short run: what they do is tested apart

pytestmark = pytest.mark.usefixtures("one_thread")


def blocks(page: str) -> Iterator[tuple[bool, str, str, str | None]]:
    """Of each block to run: whether it is slow, its language, its text, and what it must print, if the page says so."""
    found = [(bool(slow), language, text) for slow, language, text in BLOCK.findall(page)]
    for (slow, language, text), after in zip(found, [*found[1:], (False, "", "")], strict=True):
        if language in ("python", "sh"):
            yield slow, language, text, after[2] if after[1] == "text" else None


def is_near(shown: str, printed: str) -> bool:
    """Whether a decimal is the one that a page shows, but for its last digit, or its size if it has a power of ten."""
    one, other = float(shown), float(printed)
    if "e" in shown:
        return one / FACTOR <= other <= one * FACTOR
    return abs(one - other) <= (LAST_DIGIT + 0.01) * 10.0 ** -len(shown.partition(".")[2])


def agrees(shown: str, printed: str) -> bool:
    """Whether what was printed is what the page shows; how much space stands between two words does not matter."""
    shown, printed = " ".join(shown.split()), " ".join(printed.split())
    parts = re.split(rf"({DECIMAL})", shown)  # text and decimals in turn
    pattern = f"({DECIMAL})".join(re.escape(text).replace(r"\.\.\.", ".*") for text in parts[::2])
    found = re.fullmatch(pattern, printed)
    return found is not None and all(map(is_near, parts[1::2], found.groups()))


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Reads a page in an empty folder: runs its blocks in order and holds what they print against it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def command(line: str) -> None:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "foreword", line
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with contextlib.suppress(SystemExit):
            run()

    def read_page(name: str, *, slow: bool) -> None:
        names: dict[str, Any] = {"__name__": "__main__"}
        for is_slow, language, text, shown in blocks((TUTORIAL / name).read_text(encoding="utf-8")):
            if is_slow and not slow:
                continue
            capsys.readouterr()
            if language == "python":
                exec(compile(text, name, "exec"), names)  # noqa: S102  the page is the test
            else:
                for line in text.splitlines():
                    command(line)
            out, err = capsys.readouterr()
            assert shown is None or agrees(shown, out), f"{name}\n{text}\nshows\n{shown}\nand prints\n{out}\n{err}"

    return read_page


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in PAGES]
)
def test_every_block_of_the_tutorial_prints_what_its_page_shows(name: str, read: Callable[..., None]) -> None:
    read(name, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in PAGES if "<!-- slow -->" in (TUTORIAL / name).read_text("utf-8")])
def test_the_slow_blocks_do_so_too(name: str, read: Callable[..., None]) -> None:
    read(name, slow=True)


def test_the_pages_are_those_that_the_contents_list_in_order() -> None:
    contents = (TUTORIAL / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((\d-[\w-]+\.md)\)", contents) == PAGES
    linked = {
        path.parent / link
        for path in TUTORIAL.glob("*.md")
        for link in re.findall(r"\]\(([^)#]+)\)", path.read_text("utf-8"))
    }
    assert [link for link in linked if not link.exists()] == []


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("mass 0.76", "mass   0.75\n", True),
        ("mass 0.76", "mass 0.73", False),
        ("bound 5.8e-04", "bound 7.9e-04", True),
        ("bound 5.8e-04", "bound 5.8e-03", False),
        ("bound 0e+00", "bound 1e-09", False),
        ("4 positions", "5 positions", False),
        ("seal ... holds", "seal 12ab holds", True),
        ("seal ... holds", "seal 12ab differs", False),
        ("True", "False", False),
    ],
)
def test_what_is_printed_must_be_what_is_shown_but_for_a_last_digit(shown: str, printed: str, same: bool) -> None:
    assert agrees(shown, printed) is same
