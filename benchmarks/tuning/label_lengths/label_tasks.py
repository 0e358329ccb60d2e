"""Tasks whose labels have very different numbers of tokens, for models that score labels by their likelihood.

    raises    which exception does this code raise? (four labels: two short, two told in a sentence)
    prose     is this line code or prose? (two labels)
    keywords  which keyword did this line begin with? (four labels)
    short     the same with labels of one or two tokens each, for comparison
    first     is the first digit below the last? (two labels of digits, for models that know nothing else)
    high      are there more digits above 3 than below 4? (likewise)

The sources are those of the standard library's packages. Everything is drawn with a seed of its own.
"""

from __future__ import annotations

import ast
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from code_tasks import CHARACTERS, raises, sources  # beside this folder

from foreword.tuning.task import Task

A_CLASS, FIT, SELECTION = 80, 30, 10
LENGTH, DIGITS = 10, 8
Rows = list[tuple[str, str]]

RAISED = {
    "ValueError": "value",
    "TypeError": "an object of a kind that does not fit here at all",
    "RuntimeError": "something that went wrong only while it ran",
    "NotImplementedError": "todo",
}
PROSE, CODE = "words that a person writes for another person to read", "code"
BEGUN = {
    "return": "out",
    "if": "a question that is asked before something is done",
    "def": "new",
    "import": "what is taken from another file of the same library",
}
BELOW, ABOVE = "7 6 5 4 3 2 1 0", "0"


def raised() -> Rows:
    return [(row["text"], RAISED[row["label"]]) for row in raises()]


def prose() -> Rows:
    """First lines of docstrings, and lines of code."""
    found: Rows = []
    for source in sources():
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (told := ast.get_docstring(node)):
                found.append((told.splitlines()[0][:CHARACTERS], PROSE))
                last = ast.get_source_segment(source, node.body[-1]) or ""
                found.append((last.splitlines()[0][:CHARACTERS] if last else "", CODE))
    return found


def keywords() -> Rows:
    """Lines without the keyword that they begin with."""
    lines = [line.strip().partition(" ") for source in sources() for line in source.splitlines()]
    return [(rest.strip()[:CHARACTERS], BEGUN[word]) for word, _, rest in lines if word in BEGUN and rest]


def short() -> Rows:
    names = dict(zip(BEGUN.values(), ("out", "ask", "new", "use"), strict=True))
    return [(text, names[label]) for text, label in keywords()]


def first() -> Rows:
    return [(_written(row), BELOW if row[0] < row[-1] else ABOVE) for row in _drawn("first") if row[0] != row[-1]]


def high() -> Rows:
    return [(_written(row), BELOW if sum(x > 3 for x in row) > 5 else ABOVE) for row in _drawn("high")]


def _drawn(name: str) -> list[list[int]]:
    rng = random.Random(name)
    return [[rng.randrange(DIGITS) for _ in range(LENGTH)] for _ in range(2000)]


def _written(row: list[int]) -> str:
    return " ".join(map(str, row))


OF_TEXT: Mapping[str, Callable[[], Rows]] = {"raises": raised, "prose": prose, "keywords": keywords, "short": short}
OF_DIGITS: Mapping[str, Callable[[], Rows]] = {"first": first, "high": high}


def label_task(name: str, folder: Path, *, base: str) -> Task:
    """The task, with its data written into `folder`: as many rows of each label, no text twice."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = ({**OF_TEXT, **OF_DIGITS})[name]()
    random.Random(0).shuffle(rows)
    kept: dict[str, list[str]] = {}
    texts: set[str] = set()
    for text, label in rows:
        if text.strip() and text not in texts and len(kept.setdefault(label, [])) < A_CLASS:
            kept[label].append(text)
            texts.add(text)
    lines = [json.dumps({"text": text, "label": label}) for label in sorted(kept) for text in kept[label]]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = {
        "task": {"name": name, "kind": "classify", "requirement": "accuracy at least 0.70 with 95% confidence"},
        "data": {"file": "data.jsonl"},
        "model": {"reference": base, "device": "cpu"} | ({"template": "{input}"} if name in OF_DIGITS else {}),
        "splits": {"fit": FIT, "selection": SELECTION, "test": "rest"},
        "candidates": [{"kind": "prefix"}],
        "limits": {"fit_seconds": 3600.0},
    }
    return Task.parse(values, folder=folder)
