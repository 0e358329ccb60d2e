"""Tasks made from the standard library's sources, for the causal model that has read such text (`small_causal.py`).

    raises     which exception does this code raise? (by the likelihood of four names)
    closings   which brackets close this line? (written)

The sources are those of the library's packages: the model was trained on the modules beside them. Everything is drawn
with a seed of its own; a text is cut to its last characters, to stay within what the model was trained to read.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from small_causal import LIBRARY, MODEL

from foreword.tuning.task import Task

# Folders that are no part of the library proper, or are there on some machines only.
LEFT_OUT = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3", "__pycache__", "lib-dynload"}
EXCEPTIONS = ("ValueError", "TypeError", "RuntimeError", "NotImplementedError")
CHARACTERS, LINES = 100, 3
RAISE = re.compile(r"^\s+raise (\w+)\b")
CLOSING = re.compile(r"[\])}]+$")
Row = Mapping[str, str]


def sources() -> Iterator[str]:
    """The sources of the library's packages, by path."""
    for path in sorted(LIBRARY.glob("*/**/*.py")):
        if not LEFT_OUT & set(path.relative_to(LIBRARY).parts):
            yield path.read_text(encoding="utf-8", errors="replace")


def raises() -> list[Row]:
    """The lines before a `raise`, with what is raised."""
    rows = []
    for source in sources():
        lines = source.splitlines()
        for number, line in enumerate(lines):
            found = RAISE.match(line)
            if found is None or found[1] not in EXCEPTIONS:
                continue
            before = "\n".join(part.strip() for part in lines[max(0, number - LINES) : number])
            rows.append({"text": before[-CHARACTERS:], "label": found[1]})
    return rows


def closings() -> list[Row]:
    """A line up to the brackets that end it, and these."""
    rows = []
    for source in sources():
        for line in map(str.strip, source.splitlines()):
            found = CLOSING.search(line)
            if found is None or line.startswith("#") or not found.start() or len(line) > CHARACTERS:
                continue
            if not is_balanced(line):
                continue
            rows.append({"text": line[: found.start()], "label": found[0]})
    return rows


def is_balanced(line: str) -> bool:
    """Is every bracket of this line closed within it, by its like?"""
    pairs, opened = {")": "(", "]": "[", "}": "{"}, list[str]()
    for character in line:
        if character in pairs.values():
            opened.append(character)
        elif character in pairs and (not opened or opened.pop() != pairs[character]):
            return False
    return not opened


TASKS: Mapping[str, Callable[[], list[Row]]] = {"raises": raises, "closings": closings}
WRITES = "closings"
# Splits, of `raises` for each label and of `closings` in all, and how many rows may have the same answer.
SPLITS: Mapping[str, dict[str, Any]] = {
    "raises": {"fit": 30, "selection": 20, "test": 30},
    "closings": {"fit": 256, "selection": 80, "test": 160},
}
ALIKE = {"raises": 90, "closings": 140}


def code_task(name: str, folder: Path, *, base: str = str(MODEL), seed: int = 0) -> Task:
    """The task, with its data written into `folder`: at most so many rows of one answer, no text twice."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = TASKS[name]()
    random.Random(seed).shuffle(rows)
    kept: dict[str, list[Row]] = {}
    texts: set[str] = set()
    for row in rows:
        if row["text"].strip() and row["text"] not in texts and len(kept.setdefault(row["label"], [])) < ALIKE[name]:
            kept[row["label"]].append(row)
            texts.add(row["text"])
    lines = [json.dumps(row, ensure_ascii=False) for label in sorted(kept) for row in kept[label]]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    is_written = name == WRITES
    values = {
        "task": {
            "name": name,
            "kind": "generate" if is_written else "classify",
            "requirement": f"{'exact-match' if is_written else 'accuracy'} at least 0.70 with 95% confidence",
        },
        "data": {"file": "data.jsonl"} | ({"target": "label"} if is_written else {}),
        "model": {"reference": base, "device": "cpu"} | ({"max_tokens": 8} if is_written else {}),
        "splits": dict(SPLITS[name]),
        "candidates": [{"kind": "prefix"}],
        "limits": {"fit_seconds": 3600.0},
    }
    return Task.parse(values, folder=folder)
