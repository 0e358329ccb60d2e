"""Real tasks of similarity that any machine can make: an input is answered by the text that it is most like.

    countries  which of 48 English names of countries means this name in another language?
    tongues    the same for 80 names of languages: more texts than one step compares with
    errors     which built-in exception says this message? (six, told by what their classes say of themselves)

From Babel's locale data and the standard library's sources. Everything is drawn with a seed of its own.
"""

from __future__ import annotations

import ast
import builtins
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from babel import Locale
from code_tasks import LEFT_OUT
from small_causal import LIBRARY
from text_tasks import BASE

from foreword.tuning.task import Task

# Languages that are written in Latin letters, as the encoder has read few others.
LANGUAGES = (
    "af ca cs da de es et eu fi fr gl hr hu id is it lt lv nb nl pl pt ro sk sl sq sv sw tr vi".split()  # noqa: SIM905
)
RAISED = ("ValueError", "TypeError", "RuntimeError", "NotImplementedError", "OSError", "ImportError")
FEWEST_WORDS, LONGEST = 3, 200
Names = dict[str, set[str]]


@dataclass(frozen=True)
class Kind:
    """One task's texts by their label, what a label's text is, and how many examples of each stand in a split."""

    named: Callable[[], Names]
    labels: int
    fit: int
    selection: int
    test: int
    text: Callable[[str], str] = str


def countries() -> Names:
    """Names in other languages by the English one."""
    return _abroad("territories")


def tongues() -> Names:
    """Languages' names in other languages by the English one."""
    return _abroad("languages")


def errors() -> Names:
    """Messages that the library raises, by the exception's name; what is filled in is three dots."""
    found: Names = defaultdict(set)
    for path in sorted(LIBRARY.glob("**/*.py")):
        if LEFT_OUT & set(path.relative_to(LIBRARY).parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        except (SyntaxError, ValueError):
            continue
        for name, text in _raised(tree):
            if name in RAISED and len(text.split()) >= FEWEST_WORDS and len(text) <= LONGEST:
                found[name].add(text)
    return found


def _abroad(table: str) -> Names:
    english = getattr(Locale("en"), table)
    found: Names = defaultdict(set)
    for key, name in english.items():
        if key.isdigit():  # parts of the world among the countries
            continue
        told = [getattr(Locale(language), table).get(key) for language in LANGUAGES]
        found[name] |= {each for each in told if each and each.casefold() != name.casefold()}
    return found


def _raised(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call) or not node.exc.args:
            continue
        called, said = node.exc.func, node.exc.args[0]
        said = said.left if isinstance(said, ast.BinOp) else said
        parts = said.values if isinstance(said, ast.JoinedStr) else [said]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in parts)
        if isinstance(called, ast.Name):
            yield called.id, " ".join(text.split())


TASKS: Mapping[str, Kind] = {
    "countries": Kind(countries, 48, 4, 2, 6),
    "tongues": Kind(tongues, 80, 4, 2, 4),
    "errors": Kind(errors, len(RAISED), 12, 5, 20, lambda name: str(getattr(builtins, name).__doc__)),
}


def similarity_task(name: str, folder: Path, *, base: str = BASE) -> Task:
    """The task, with its data written into `folder`; labels and texts are chosen by seed."""
    kind, rng = TASKS[name], random.Random(0)
    needed = kind.fit + kind.selection
    named: Names = {}
    owners: dict[str, set[str]] = defaultdict(set)
    found = kind.named()
    for label, texts in found.items():
        for text in texts:
            owners[text.casefold()].add(label)
    for label, texts in sorted(found.items()):  # a text of two labels is left out
        once = {text.casefold(): text for text in sorted(texts) if len(owners[text.casefold()]) == 1}
        if len(once) > needed + 1:
            named[label] = set(once.values())
    chosen = sorted(rng.sample(sorted(named), kind.labels))
    rows = []
    for label in chosen:
        texts = rng.sample(sorted(named[label]), min(needed + kind.test, len(named[label])))
        rows += [{"text": text, "label": label} for text in texts]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = {
        "task": {"name": name, "kind": "classify", "requirement": "accuracy at least 0.70 with 95% confidence"},
        "data": {"file": "data.jsonl"},
        "labels": {label: kind.text(label) for label in chosen},
        "model": {"reference": base, "device": "cpu"},
        "splits": {"fit": kind.fit, "selection": kind.selection, "test": "rest"},
        "candidates": [{"kind": "prefix", "objective": "similarity"}],
        "limits": {"fit_seconds": 3600.0},
    }
    return Task.parse(values, folder=folder)
