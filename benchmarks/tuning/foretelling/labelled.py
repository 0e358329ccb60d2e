"""The pairs of a classification task and a base model that foretelling is calibrated and judged on.

Causal models answer questions about digits: gpt2 in the calibration, llama and GPT-NeoX in the validation. Encoders
sort texts, since digits leave nothing to gain beside a read-out. The parts share no family of tasks, no corpus of
skills and no base but MiniLM, which the validation asks other tasks, and of which `m1` and `m2` are parts. Numbers that
are left out were encoders trained here, all of which had learned nothing (benchmarks/LOG.md). Each part was written
down before any fit of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from event_tasks import EVENTS
from labelled_bases import MINILM, Cut, Recipe, cut, trained
from number_tasks import SKILLS, numbers_task
from pairs import Pair
from relation_tasks import RELATIONS
from sentence_tasks import TEXTS, sentences_task
from source_tasks import SOURCES

from foreword.bundle import write_bytes_atomically

# What a metric must reach: a bare model with its read-out that does is told "nothing needed", and is no pair.
REQUIRED = 0.9
SMALL: dict[str, Any] = {"steps": 200, "batch_size": 16, "evaluate_every": 20, "patience": 6}
LARGE: dict[str, Any] = {"steps": 120, "batch_size": 16, "evaluate_every": 12, "patience": 6}
# LoRA as in the part of written answers for models of digits; as a task file's default for models of text.
OF_DIGITS: dict[str, Any] = {"rank": 2, "targets": "all-linear", "learning_rate": 1e-2, "schedule": "cosine"}
OF_TEXT: dict[str, Any] = {"rank": 8, "targets": "all-linear"}


@dataclass(frozen=True)
class Base:
    """A base model, the tasks that it is asked to do, and what stands around an input."""

    name: str
    part: str
    seed: int
    recipe: Recipe | Cut | None
    tasks: tuple[str, ...]
    budget: dict[str, Any] = field(default_factory=lambda: SMALL)

    @property
    def role(self) -> str:
        """What `Host.role` is of the model."""
        return "causal" if isinstance(self.recipe, Recipe) else "encoder"

    @property
    def template(self) -> str | None:
        """As the model was trained to be asked; of texts, the product's own choice."""
        return None if self.role == "encoder" else "{input} ="


NUMBERS_SEEN = ("largest", "smallest", "third", "last mirrored", "has a three", "odd sum", "how often the first")
NUMBERS_HELD_OUT = (
    "third smallest", "most frequent", "how many different", "after zero", "ends equal", "two together mod five",
)  # fmt: skip
TEXTS_JUDGED = ("negations", "files", "months", "characters", "weekdays", "who first")

BASES = (
    Base(
        "a4", "calibration", 4, Recipe("gpt2", ("largest", "third", "first plus one")),
        (*NUMBERS_SEEN, "first plus one"),
    ),
    Base(
        "a5", "calibration", 5,
        Recipe("gpt2", ("smallest", "last mirrored", "how often the first"), layers=3),
        ("smallest", "last mirrored", "how often the first", "last", "has a three", "first below last"),
    ),
    Base(
        "a6", "calibration", 6, Recipe("gpt2", ("first", "has a three", "odd sum"), layers=1, width=64),
        ("third", "has a three", "largest", "odd sum", "first plus one"),
    ),
    Base("b6", "calibration", 17, None, TEXTS_JUDGED, LARGE),
    Base(
        "b3", "validation", 13, Recipe("llama", ("most frequent", "how many different", "after zero")),
        (*NUMBERS_HELD_OUT, "how many rises", "mostly low"),
    ),
    Base(
        "b4", "validation", 14, Recipe("gpt_neox", ("third smallest", "two together mod five"), layers=3),
        (*NUMBERS_HELD_OUT, "mostly low", "how many rises"),
    ),
    Base("d6", "validation", 26, None, ("owners", "tallest", "opinions", "operators", "identifiers"), LARGE),
    Base("g1", "validation", 31, None, ("given", "missing", "corrected", "chased", "beside"), LARGE),
    Base(
        "m1", "validation", 41, Cut(layers=2),
        ("owners", "tallest", "moved", "middle", "corrected", "chased", "repeated", "operators", "given", "opinions"),
        LARGE,
    ),
    Base("m2", "validation", 42, Cut(layers=3), ("moved", "middle", "beside", "units", "missing", "repeated"), LARGE),
)  # fmt: skip


def bases_of(role: str) -> list[str]:
    """The names of the bases that play this role."""
    return [base.name for base in BASES if base.role == role]


def labelled_pairs(work: Path, part: str | None = None, bases: Sequence[str] | None = None) -> list[Pair]:
    """All pairs, or those of a part and of some bases, trained and their data written below `work` where missing."""
    chosen = [base for base in BASES if part in (None, base.part) and (bases is None or base.name in bases)]
    return [_pair(base, task, work) for base in chosen for task in base.tasks]


def _pair(base: Base, asked: str, work: Path) -> Pair:
    reference = MINILM
    place = work / "models" / base.name
    if isinstance(base.recipe, Recipe):
        reference = str(trained(base.recipe, place, seed=base.seed).resolve())
    elif isinstance(base.recipe, Cut):
        reference = str(cut(base.recipe, place).resolve())
    name = f"{base.name}-{asked.replace(' ', '-')}"
    folder = work / "tasks" / name
    if not (folder / "task.toml").exists():
        counts = labels_data(asked, folder, seed=100 * base.seed + base.tasks.index(asked))
        write_bytes_atomically(folder / "task.toml", labels_task(name, reference, base.template, counts).encode())
    lora = OF_DIGITS if asked in SKILLS else OF_TEXT
    return Pair(name, base.part, folder / "task.toml", base.budget, lora)


def labels_data(asked: str, folder: Path, *, seed: int) -> dict[str, int]:
    """Write data.jsonl of a question about digits or of a family of texts; how many of each label fit and select."""
    if asked in SKILLS:
        return numbers_task(asked, folder, seed=seed)
    return sentences_task({**TEXTS, **RELATIONS, **SOURCES, **EVENTS}[asked](), folder)


def labels_task(name: str, reference: str, template: str | None, counts: dict[str, int]) -> str:
    """The task file that goes with such data."""
    return f"""\
[task]
name = {json.dumps(name)}
kind = "classify"
requirement = "accuracy at least {REQUIRED} with 95% confidence"

[data]
file = "data.jsonl"

[model]
reference = {json.dumps(reference)}
device = "cpu"
{"" if template is None else f"template = {json.dumps(template)}"}

[splits]
fit = {counts["fit"]}
selection = {counts["selection"]}
test = "rest"

[limits]
fit_seconds = 3600.0
"""
