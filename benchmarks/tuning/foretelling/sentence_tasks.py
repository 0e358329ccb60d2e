"""Short texts to classify that any machine can make, easy and hard ones: the calibration's families of encoders' tasks.

Beside the tasks of benchmarks/tuning/text_tasks.py: lines of Python, word order, sums, who came first, months and
weekdays, negation, kinds of characters, sorts of files. The held-out families are in relation_tasks.py and
source_tasks.py.
"""

from __future__ import annotations

import datetime
import itertools
import json
import mimetypes
import random
import sys
import sysconfig
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from babel import Locale

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks" / "tuning"))

import text_tasks  # noqa: E402

Row = tuple[str, str]
A_LABEL, FIT = 200, 160
WORDS = ("def", "return", "if", "for", "import", "class", "raise")
NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Greta", "Hugo", "Ines", "Jonas", "Karin", "Leo")
THINGS = ("book", "lamp", "cup", "key", "coat", "map", "box", "pen", "chair", "phone", "bag", "clock")


def library() -> list[str]:
    """The sources of the standard library's modules that are one file, by path."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.py"))]


def python_lines() -> list[Row]:
    """Lines of Python with their first word taken away: which was it?"""
    found = []
    for line in (line.strip() for text in library() for line in text.splitlines()):
        word, _, rest = line.partition(" ")
        if word in WORDS and 8 <= len(rest) <= 40:
            found.append((rest, word))
    return found


def word_order() -> list[Row]:
    """Five words of a comment as they stand, or shuffled."""
    rng, found = random.Random(1), []
    for line in (line.strip() for text in library() for line in text.splitlines()):
        words = line.removeprefix("#").split()
        if line.startswith("# ") and len(words) >= 5 and all(word.isalpha() for word in words[:5]):
            kept = words[:5]
            mixed = rng.sample(kept, 5)
            is_mixed = rng.random() < 0.5 and mixed != kept
            found.append((" ".join(mixed if is_mixed else kept), "shuffled" if is_mixed else "whole"))
    return found


def sums() -> list[Row]:
    """Two numbers below 100: is their sum below 100?"""
    rng = random.Random(2)
    pairs = {(rng.randrange(100), rng.randrange(100)) for _ in range(2000)}
    return [(f"{a} + {b}", "small" if a + b < 100 else "large") for a, b in sorted(pairs)]


def odd_sums() -> list[Row]:
    """Two numbers below 100: is their sum odd?"""
    rng = random.Random(3)
    pairs = {(rng.randrange(100), rng.randrange(100)) for _ in range(2000)}
    return [(f"{a} + {b}", "odd" if (a + b) % 2 else "even") for a, b in sorted(pairs)]


def who_first() -> list[Row]:
    """Two people arrive, one before or after the other: who was there first, of the first four of the names?"""
    rng, found = random.Random(4), []
    for first, other, thing in itertools.product(NAMES[:4], NAMES[:4], THINGS):
        if first != other:
            orders = (f"{first} came before {other}", f"{other} came after {first}")
            found += [(f"{rng.choice(orders)} and brought a {thing}", first)]
            found += [(f"{rng.choice(orders)} and took a {thing}", first)]
    return found


def months() -> list[Row]:
    """A month's name in some language, within a date: which month?"""
    rng, found = random.Random(5), []
    for code in ("cs", "da", "de", "es", "fi", "fr", "hu", "it", "lt", "nl", "pl", "pt", "ro", "sv", "tr"):
        named = Locale(code).months["format"]["wide"]
        names = [str(named[month]) for month in range(1, 13)]
        english = [str(Locale("en").months["format"]["wide"][month]) for month in range(1, 13)]
        found += [
            (f"{rng.randrange(1, 29)} {names[month]} {rng.randrange(1950, 2030)}", english[month])
            for month in range(12)
            for _ in range(8)
        ]
    return found


def weekdays() -> list[Row]:
    """A date in numbers: does it fall on a weekend?"""
    rng = random.Random(6)
    days = {datetime.date(1950, 1, 1) + datetime.timedelta(days=rng.randrange(29_000)) for _ in range(4000)}
    return [(day.isoformat(), "weekend" if day.weekday() >= 5 else "week") for day in sorted(days)]


def negations() -> list[Row]:
    """Two things, of which one is denied: which is on the table, of four?"""
    rng, found = random.Random(7), []
    for there, other, owner in itertools.product(THINGS[:4], THINGS[:4], NAMES):
        if there != other:
            orders = (
                f"the {there} of {owner} is on the table, but the {other} is not",
                f"the {other} is not on the table, but the {there} of {owner} is",
            )
            found += [(rng.choice(orders), there), (f"I see that {rng.choice(orders)}", there)]
    return found


def characters() -> list[Row]:
    """A character's name in Unicode: which sort of character is it?"""
    sorts = {"Lu": "capital", "Ll": "small", "Sm": "mathematical", "Nd": "digit", "Po": "punctuation", "Mn": "mark"}
    found = []
    for number in range(0x30000):
        sort = sorts.get(unicodedata.category(chr(number)))
        name = unicodedata.name(chr(number), "").lower()
        if sort and 0 < len(name) <= 40:
            # The words that give it away stay out.
            kept = [
                word for word in name.split() if word not in ("capital", "small", "digit", "sign", "mark", "letter")
            ]
            found.append((" ".join(kept), sort))
    return found


def files() -> list[Row]:
    """A file's ending behind a made-up name: which sort of file is it?"""
    rng, found = random.Random(8), []
    for ending, kind in sorted(mimetypes.MimeTypes(()).types_map[True].items()):
        sort = kind.partition("/")[0]
        if sort in ("application", "audio", "image", "text", "video"):
            found += [(f"{rng.choice(NAMES).lower()}-{rng.choice(THINGS)}{ending}", sort) for _ in range(6)]
    return found


def _of_text_tasks(name: str) -> Callable[[], list[Row]]:
    return lambda: [(row["text"], row["label"]) for row in text_tasks.TASKS[name](ROOT / "runs" / "docs-routing")]


TEXTS: Mapping[str, Callable[[], list[Row]]] = {
    "languages": _of_text_tasks("languages"),
    "kinds": _of_text_tasks("kinds"),
    "regions": _of_text_tasks("regions"),
    "python lines": python_lines,
    "word order": word_order,
    "sums": sums,
    "odd sums": odd_sums,
    "modules": _of_text_tasks("modules"),
    "who first": who_first,
    "months": months,
    "weekdays": weekdays,
    "negations": negations,
    "characters": characters,
    "files": files,
}


def sentences_task(rows: list[Row], folder: Path) -> dict[str, int]:
    """Write data.jsonl, at most `A_LABEL` rows a label and 720 in all; fit and selection examples of each label."""
    kept: dict[str, list[str]] = {}
    random.Random(0).shuffle(rows)
    labels = len({label for _, label in rows})
    seen, quota = set(), min(A_LABEL, 720 // labels)
    for text, label in rows:
        if text.casefold() not in seen and len(kept.setdefault(label, [])) < quota:
            seen.add(text.casefold())
            kept[label].append(text)
    fewest = min(map(len, kept.values()))
    lines = [
        json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n"
        for label in sorted(kept)
        for text in kept[label]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    return {"fit": min(FIT // labels, fewest // 3), "selection": min(max(8, 64 // labels), fewest // 6)}
