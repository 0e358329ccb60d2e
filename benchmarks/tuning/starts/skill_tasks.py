"""Skills of the laboratory's model as tasks: which of what it can do is meant, from a few hundred examples.

The model (examples/laboratory, "skills") was trained to sort up, sort down, add one or count, each as likely as the
others, so that bare it cannot know which is wanted. Sequences are drawn here, with a seed of their own.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from foreword.tuning.task import Task

LENGTH, DIGITS, FIT, HELD_OUT = 10, 8, 320, 200

SKILLS: Mapping[str, Callable[[Sequence[int]], list[int]]] = {
    "ascending": sorted,
    "descending": lambda row: sorted(row, reverse=True),
    "add-one": lambda row: [number + 1 for number in row],
}


def skill_task(name: str, folder: Path, *, base: Path) -> Task:
    """The task, with its data written into `folder`."""
    rng = random.Random(name)
    rows = sorted({tuple(rng.randrange(DIGITS) for _ in range(LENGTH)) for _ in range(FIT + HELD_OUT)})
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": _written(row), "label": _written(SKILLS[name](row))}) for row in rows]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = {
        "task": {"name": name, "kind": "generate", "requirement": "exact-match at least 0.70 with 95% confidence"},
        "data": {"file": "data.jsonl"},
        "model": {
            "reference": str(base.resolve()),
            "device": "cpu",
            "template": "{input}",
            "max_tokens": LENGTH + 1,
        },
        "splits": {"fit": FIT, "selection": 10, "test": "rest"},
        "candidates": [{"kind": "prefix"}],
        "limits": {"fit_seconds": 3600.0},
    }
    return Task.parse(values, folder=folder)


def _written(row: Sequence[int]) -> str:
    return " ".join(map(str, row))
