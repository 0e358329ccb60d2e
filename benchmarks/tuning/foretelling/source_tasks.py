"""Texts of the standard library's sources and of Babel to classify: held-out families of encoders' tasks.

What is raised after these lines, what an identifier names, which bracket closes a line, which operator stood here,
what a unit measures.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from babel import Locale
from sentence_tasks import Row, library

OPERATORS = ("==", "+", "in", "and", "or", "-", "is", "<")
EXCEPTIONS = ("ValueError", "TypeError", "RuntimeError", "KeyError")
MEASURES = ("length", "mass", "volume", "area", "speed", "energy", "duration", "digital")
RAISE, LONGEST = re.compile(r"^\s+raise (\w+)\b"), 100
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def _packages() -> Iterator[str]:
    """The sources of packages of the library that every machine has."""
    folder = Path(sysconfig.get_path("stdlib"))
    names = ("asyncio", "collections", "concurrent", "email", "http", "importlib", "json", "logging", "multiprocessing")
    for path in sorted(
        path for name in (*names, "unittest", "urllib", "xml") for path in (folder / name).rglob("*.py")
    ):
        yield path.read_text(encoding="utf-8", errors="replace")


def raised() -> list[Row]:
    """The lines before a `raise`: which of four exceptions is raised?"""
    found = []
    for text in (*_packages(), *library()):
        lines = text.splitlines()
        for number, line in enumerate(lines):
            told = RAISE.match(line)
            if told is not None and told[1] in EXCEPTIONS:
                before = "\n".join(part.strip() for part in lines[max(0, number - 3) : number])
                found.append((before[-LONGEST:], told[1]))
    return [row for row in found if row[0].strip()]


def identifiers() -> list[Row]:
    """An identifier in small words: is it a class, a function, a parameter or a constant?"""
    named: dict[str, set[str]] = {}
    for text in library():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef):
                named.setdefault(_worded(node.name), set()).add("class")
            elif isinstance(node, ast.FunctionDef):
                named.setdefault(_worded(node.name), set()).add("function")
            elif isinstance(node, ast.arg):
                named.setdefault(_worded(node.arg), set()).add("parameter")
            elif isinstance(node, ast.Name) and node.id.isupper() and len(node.id) > 1:
                named.setdefault(_worded(node.id), set()).add("constant")
    return [(words, sorts.pop()) for words, sorts in sorted(named.items()) if words and len(sorts) == 1]


def _worded(identifier: str) -> str:
    return " ".join(WORD.findall(identifier)).lower()


def endings() -> list[Row]:
    """A line of code without the brackets that end it: which are they, of the five most frequent?"""
    found, closing = [], re.compile(r"(\)|\]|\)\)|\}|\]\))$")
    for line in (line.strip() for text in _packages() for line in text.splitlines()):
        told = re.search(r"[\])}]+$", line)
        if told is not None and closing.fullmatch(told[0]) and 8 <= told.start() <= LONGEST:
            found.append((line[: told.start()], told[0]))
    return found


def operators() -> list[Row]:
    """A line of code with one operator hidden: which of eight?"""
    rng, found = random.Random(31), []
    for line in (line.strip() for text in _packages() for line in text.splitlines()):
        places = [(f" {operator} ", operator) for operator in OPERATORS if line.count(f" {operator} ") == 1]
        if places and not line.startswith(("#", "for ")) and len(line) <= 60:
            told, operator = rng.choice(places)
            found.append((line.replace(told, " ? "), operator))
    return found


def units() -> list[Row]:
    """The name of a unit in one of ten languages: what does it measure?"""
    found = []
    for code in ("en", "de", "fr", "es", "it", "nl", "sv", "pl", "pt", "da"):
        for kind, name in sorted(Locale(code).unit_display_names.items()):
            sort = kind.partition("-")[0]
            if sort in MEASURES and "long" in name:
                found.append((str(name["long"]), sort))
    return found


SOURCES: Mapping[str, Callable[[], list[Row]]] = {
    "raised": raised,
    "identifiers": identifiers,
    "endings": endings,
    "operators": operators,
    "units": units,
}
