"""Questions about six digits whose answer is one number: tasks of classification for small models, by families.

No family is in two parts. The bases of a part are trained on skills of its own families, so that some tasks are skills
that a base has, some are not, and some are hard for any small change of a model (whether a sum is odd).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LENGTH, DIGITS, NUMBERS = 6, 5, 10
Rows = NDArray[np.int64]
Answers = NDArray[np.int64]


def every_row() -> Rows:
    """All 15,625 rows of six digits from 0 to 4."""
    return np.indices((DIGITS,) * LENGTH).reshape(LENGTH, -1).T


def occurrences(rows: Rows) -> Rows:
    """How often each digit occurs in each row, `(row, digit)`."""
    return np.stack([(rows == digit).sum(axis=1) for digit in range(DIGITS)], axis=1)


def after_zero(rows: Rows) -> Answers:
    """The number behind the first 0 that has one behind it; where there is none, 0."""
    is_zero = rows[:, :-1] == 0
    found = rows[np.arange(len(rows)), is_zero.argmax(axis=1) + 1]
    return np.where(is_zero.any(axis=1), found, 0)


# calibration: extremes, places, steps from the first number, presence, parity, counts of the first, order of two
CALIBRATION: Mapping[str, Callable[[Rows], Answers]] = {
    "largest": lambda rows: rows.max(axis=1),
    "smallest": lambda rows: rows.min(axis=1),
    "first": lambda rows: rows[:, 0],
    "third": lambda rows: rows[:, 2],
    "last": lambda rows: rows[:, -1],
    "first plus one": lambda rows: rows[:, 0] + 1,
    "last mirrored": lambda rows: DIGITS - 1 - rows[:, -1],
    "has a three": lambda rows: (rows == 3).any(axis=1).astype(int),
    "odd sum": lambda rows: rows.sum(axis=1) % 2,
    "how often the first": lambda rows: (rows == rows[:, :1]).sum(axis=1),
    "first below last": lambda rows: (rows[:, 0] < rows[:, -1]).astype(int),
}
# validation: ranks in the middle, most frequent, variety, what follows, equality, remainders, majority, rises
VALIDATION: Mapping[str, Callable[[Rows], Answers]] = {
    "third smallest": lambda rows: np.sort(rows, axis=1)[:, 2],
    "most frequent": lambda rows: occurrences(rows).argmax(axis=1),
    "how many different": lambda rows: (occurrences(rows) > 0).sum(axis=1),
    "after zero": after_zero,
    "ends equal": lambda rows: (rows[:, 0] == rows[:, -1]).astype(int),
    "two together mod five": lambda rows: (rows[:, 0] + rows[:, 1]) % DIGITS,
    "mostly low": lambda rows: ((rows < 2).sum(axis=1) >= 3).astype(int),
    "how many rises": lambda rows: (rows[:, 1:] > rows[:, :-1]).sum(axis=1),
}
SKILLS: Mapping[str, Callable[[Rows], Answers]] = {**CALIBRATION, **VALIDATION}

FIT, SELECTION, TOTAL, FEWEST = 400, 80, 960, 100


def written(row: Rows) -> str:
    """Numbers with a space between them."""
    return " ".join(map(str, row.tolist()))


def numbers_task(skill: str, folder: Path, *, seed: int) -> dict[str, int]:
    """Write data.jsonl, as many rows of each answer; how many of each answer are for fit and selection.

    Answers that fewer than `FEWEST` rows have are left out.
    """
    rows = every_row()[np.random.default_rng(seed).permutation(DIGITS**LENGTH)]
    answers = SKILLS[skill](rows)
    found = {answer: np.flatnonzero(answers == answer) for answer in np.unique(answers)}
    kept = {answer: places for answer, places in found.items() if len(places) >= FEWEST}
    quota = min(TOTAL // len(kept), *map(len, kept.values()))
    lines = [
        json.dumps({"text": written(rows[place]), "label": str(answer)}) + "\n"
        for answer, places in kept.items()
        for place in places[:quota]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    return {"fit": quota * FIT // TOTAL, "selection": quota * SELECTION // TOTAL}
