"""The pairs of a task of written answers and a base model that foretelling is calibrated and judged on, and their data.

A pair is in one of two parts, and the part goes with the base model: no base of the validation part is in the
calibration part, and the sets of skills and the seeds differ. Each part was written down before any fit of it. The
bases `v1` to `v5` were the validation of a first rule, `w1` to `w5` of a second and `x1` to `x6` of a third
(benchmarks/LOG.md); once that had been looked at they joined the calibration, and the next were drawn up; `y1` to `y6`
judge the fourth. None of the laboratory's own eight cases is in either part.

The bases are trained by the laboratory's machinery (examples/laboratory) on other skills, at sizes that take seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foreword.bundle import write_bytes_atomically

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "examples" / "laboratory"))

import chance  # noqa: E402, F401 - the bases of the other kinds are checked by it, too
import skills as laboratory  # noqa: E402
import train  # noqa: E402

Rows = laboratory.Rows
SHORT = laboratory.Sequences(length=6, digits=5)
FIT, SELECTION, TEST = 800, 64, 200
BUDGET: dict[str, Any] = {"steps": 1500, "batch_size": 16, "evaluate_every": 50, "patience": 10}
LORA: dict[str, Any] = {"rank": 2, "targets": "all-linear", "learning_rate": 1e-2, "schedule": "cosine"}


def reverse(rows: Rows) -> Rows:
    """The last number first."""
    return rows[:, ::-1]


def copy(rows: Rows) -> Rows:
    """As it was."""
    return rows


def shift(rows: Rows) -> Rows:
    """Every number one place on, the last one first."""
    return np.roll(rows, 1, axis=1)


def shift_two(rows: Rows) -> Rows:
    """Every number two places on."""
    return np.roll(rows, 2, axis=1)


def unique(rows: Rows) -> Rows:
    """A number where it is the first of its kind, 0 where it came before."""
    earlier = (rows[:, :, None] == rows[:, None, :]) & np.tri(rows.shape[1], k=-1, dtype=bool)
    return np.where(earlier.any(axis=2), 0, rows)


def largest_so_far(rows: Rows) -> Rows:
    """The largest number up to each place."""
    return np.maximum.accumulate(rows, axis=1)


def parity(rows: Rows) -> Rows:
    """Whether so far the sum is odd."""
    return np.cumsum(rows, axis=1) % 2


def mirror(rows: Rows) -> Rows:
    """How far each number is below the largest digit."""
    return SHORT.digits - 1 - rows


def add(number: int, before: Callable[[Rows], Rows]) -> Callable[[Rows], Rows]:
    """A skill, and then a number added to each."""
    return lambda rows: before(rows) + number


def mirrored(before: Callable[[Rows], Rows]) -> Callable[[Rows], Rows]:
    """A skill, and then mirrored."""
    return lambda rows: mirror(before(rows))


SKILLS: Mapping[str, Callable[[Rows], Rows]] = {
    **laboratory.SKILLS,
    "reverse": reverse,
    "copy": copy,
    "shift": shift,
    "shift two": shift_two,
    "unique": unique,
    "largest so far": largest_so_far,
    "parity": parity,
    "mirror": mirror,
    "reverse, add one": add(1, reverse),
    "reverse, add two": add(2, reverse),
    "descending, add one": add(1, laboratory.SKILLS["descending"]),
    "descending, add two": add(2, laboratory.SKILLS["descending"]),
    "copy, add one": add(1, copy),
    "reverse, mirror": mirrored(reverse),
    "shift, mirror": mirrored(shift),
    "shift two, mirror": mirrored(shift_two),
}


@dataclass(frozen=True)
class Base:
    """A small base model: what it is trained on, its size, and the tasks that it is asked to do."""

    name: str
    part: str
    seed: int
    plan: train.Plan
    tasks: tuple[str, ...]


def _plan(*skills: str, layers: int = 2, heads: int = 2, width: int = 32, steps: int = 2000) -> train.Plan:
    return train.Plan(skills, layers, heads, width, steps=steps, batch=32, rate=6e-3, sequences=SHORT)


BASES = (
    Base(
        "c1", "calibration", 1, _plan("ascending", "reverse", "add one"),
        ("ascending", "reverse", "histogram", "reverse, add one", "parity"),
    ),
    Base(
        "c2", "calibration", 2, _plan("copy", "largest so far", "shift", width=48),
        ("largest so far", "shift", "ascending", "mirror", "shift two"),
    ),
    Base("c3", "calibration", 3, _plan("reverse", layers=1, heads=1), ("reverse", "copy", "shift", "add two")),
    Base(
        "c4", "calibration", 4, _plan("histogram", "descending"),
        ("histogram", "descending", "unique", "ascending", "double histogram"),
    ),
    Base("c5", "calibration", 5, _plan("mirror", "unique", layers=3, heads=4), ("mirror", "copy", "reverse", "unique")),
    Base(
        "v1", "calibration", 11, _plan("descending", "copy", "add two", width=40),
        ("descending", "copy", "add one", "histogram", "reverse"),
    ),
    Base(
        "v2", "calibration", 12, _plan("unique", "shift", "ascending", layers=3),
        ("unique", "shift", "ascending", "descending", "parity"),
    ),
    Base(
        "v3", "calibration", 13, _plan("largest so far", "mirror", layers=1, heads=2),
        ("largest so far", "mirror", "shift", "ascending"),
    ),
    Base(
        "v4", "calibration", 14, _plan("parity", "reverse", "histogram", "add one", width=48),
        ("parity", "histogram", "reverse, add one", "ascending", "shift two"),
    ),
    Base("v5", "calibration", 15, _plan("copy", layers=1, heads=1, width=48), ("copy", "reverse", "mirror", "unique")),
    Base(
        "w1", "calibration", 21, _plan("descending", "mirror", "shift", width=40),
        ("descending", "shift", "ascending", "reverse", "unique"),
    ),
    Base(
        "w2", "calibration", 22, _plan("add two", "unique", "reverse", layers=3, heads=4),
        ("add two", "unique", "largest so far", "mirror", "histogram"),
    ),
    Base(
        "w3", "calibration", 23, _plan("copy", "ascending", heads=4, width=48),
        ("ascending", "ascending, add one", "parity", "shift", "descending"),
    ),
    Base(
        "w4", "calibration", 24, _plan("largest so far", "add one", "parity", "shift two", width=48),
        ("shift two", "parity", "add two", "reverse", "copy"),
    ),
    Base(
        "w5", "calibration", 25, _plan("ascending", layers=1, heads=1, width=48),
        ("ascending", "descending", "add one", "histogram"),
    ),
    Base(
        "k1", "calibration", 31, _plan("ascending", "descending", "add one", "add two", width=48),
        ("descending, add two", "histogram", "reverse", "copy"),
    ),
    Base(
        "k2", "calibration", 32, _plan("shift", "reverse", "mirror", layers=3),
        ("reverse, mirror", "shift, mirror", "ascending", "shift two"),
    ),
    Base(
        "k3", "calibration", 33, _plan("copy", "add one", "descending", heads=4, width=40),
        ("copy, add one", "descending, add one", "add two", "unique"),
    ),
    Base(
        "x1", "calibration", 41, _plan("descending", "add one", "mirror", width=48),
        ("descending, add one", "add two", "ascending", "histogram", "mirror"),
    ),
    Base(
        "x2", "calibration", 42, _plan("reverse", "add two", "largest so far", layers=3),
        ("reverse, add two", "largest so far", "copy", "unique", "shift"),
    ),
    Base(
        "x3", "calibration", 43, _plan("shift two", "ascending", "mirror", "histogram", heads=4, width=48),
        ("shift two", "shift two, mirror", "double histogram", "reverse", "parity"),
    ),
    Base(
        "x4", "calibration", 44, _plan("copy", "add one", "unique"),
        ("copy", "unique", "shift", "add two", "descending"),
    ),
    Base(
        "x5", "calibration", 45, _plan("parity", "reverse", layers=1, width=40),
        ("reverse", "copy", "mirror", "largest so far"),
    ),
    Base(
        "x6", "calibration", 46, _plan("shift", "mirror", "descending", layers=3, heads=4, width=40),
        ("shift, mirror", "descending", "shift two", "ascending"),
    ),
    Base(
        "y1", "validation", 51, _plan("ascending", "reverse", "add two", width=48),
        ("ascending", "reverse, add two", "descending", "histogram", "copy"),
    ),
    Base(
        "y2", "validation", 52, _plan("shift two", "unique", "add one", layers=3),
        ("shift two", "unique", "shift", "add two", "copy, add one"),
    ),
    Base(
        "y3", "validation", 53, _plan("copy", "descending", "parity", heads=4),
        ("copy", "parity", "descending", "ascending", "mirror"),
    ),
    Base(
        "y4", "validation", 54, _plan("largest so far", "reverse", "mirror", width=40),
        ("largest so far", "reverse, mirror", "copy", "shift", "add one"),
    ),
    Base(
        "y5", "validation", 55, _plan("histogram", "add two", width=48),
        ("histogram", "add two", "double histogram", "descending"),
    ),
    Base(
        "y6", "validation", 56, _plan("shift", "ascending", layers=1, width=48),
        ("shift", "ascending", "descending", "reverse"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A task on a base model. `part`: calibration or validation. `budget`, `lora`: of the fits that are its truth."""

    name: str
    part: str
    task: Path
    budget: Mapping[str, Any] = field(default_factory=lambda: BUDGET)
    lora: Mapping[str, Any] = field(default_factory=lambda: LORA)


def pairs(work: Path, part: str | None = None, bases: Sequence[str] | None = None) -> list[Pair]:
    """All pairs, or those of a part and of some bases, trained and their data written below `work` where missing."""
    laboratory.SKILLS = SKILLS  # type: ignore[assignment]
    train.SKILLS = SKILLS  # type: ignore[assignment]
    train.PLANS = {**train.PLANS, **{base.name: base.plan for base in BASES}}
    chosen = [base for base in BASES if part in (None, base.part) and (bases is None or base.name in bases)]
    return [_pair(base, skill, work) for base in chosen for skill in base.tasks]


def _pair(base: Base, skill: str, work: Path) -> Pair:
    model = train.build(work / "models", base.name, seed=base.seed).resolve()
    name = f"{base.name}-{skill.replace(', ', '-').replace(' ', '-')}"
    folder = work / "tasks" / name
    if not (folder / "task.toml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        sequences_data(skill, folder, seed=(base.seed, base.tasks.index(skill)))
        write_bytes_atomically(folder / "task.toml", sequences_task(name, str(model)).encode())
    return Pair(name, base.part, folder / "task.toml")


def sequences_data(skill: str, folder: Path, *, seed: tuple[int, int]) -> None:
    """Write data.jsonl: sequences that no base was trained on, none of them twice, and what the skill makes of them."""
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([SHORT.draw(rng, FIT + SELECTION + TEST, unseen=True) for _ in range(8)])
    first = np.sort(np.unique(drawn, axis=0, return_index=True)[1])
    rows = drawn[first][: FIT + SELECTION + TEST]
    lines = [
        json.dumps({"sequence": laboratory.written(row), "answer": laboratory.written(answer)}) + "\n"
        for row, answer in zip(rows, SKILLS[skill](rows), strict=True)
    ]
    write_bytes_atomically(folder / "data.jsonl", "".join(lines).encode())


def sequences_task(name: str, model: str) -> str:
    """The task file that goes with such data."""
    return f"""\
[task]
name = {json.dumps(name)}
kind = "generate"
requirement = "exact-match at least 0.70 with 95% confidence"

[data]
file = "data.jsonl"
input = "sequence"
target = "answer"

[model]
reference = {json.dumps(model)}
template = "{{input}}"
max_tokens = {SHORT.length + 1}
device = "cpu"

[splits]
fit = {FIT}
selection = {SELECTION}
test = "rest"

[limits]
fit_seconds = 3600.0
"""
