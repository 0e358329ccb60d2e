"""The pairs of encoder-decoders that foretelling is judged on: written answers and labels on small bases.

All were written down before any fit of them. Written answers are told by the rule of causal models, and all their pairs
are held out. Labels have a rule of their own: `f1` to `f8`, on which the rule of causal models was judged, became its
calibration, and `h1` to `h6` judge it. Numbers that are left out (e3, f2, f3, f6, h3) were bases that learned nothing
in training, which is refused now (examples/laboratory/chance.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from labelled import OF_DIGITS, OF_TEXT, SMALL, labels_data, labels_task
from number_tasks import SKILLS as QUESTIONS
from pairs import LORA, Pair, sequences_data, sequences_task
from seq2seq_bases import Seq2SeqRecipe, trained

from foreword.bundle import write_bytes_atomically

# Fewer steps than a causal model's pairs get, which are a third of the size.
WRITTEN: dict[str, Any] = {"steps": 800, "batch_size": 16, "evaluate_every": 50, "patience": 8}


@dataclass(frozen=True)
class Base:
    """An encoder-decoder and the tasks that it is asked to do."""

    name: str
    kind: Literal["generate", "classify"]
    seed: int
    recipe: Seq2SeqRecipe
    tasks: tuple[str, ...]

    @property
    def part(self) -> str:
        """Which part its pairs are in."""
        return "calibration" if self.name.startswith("f") else "validation"


def _writes(family: str, *skills: str, **size: int) -> Seq2SeqRecipe:
    return Seq2SeqRecipe(family, "sequences", skills, **size)


def _answers(family: str, *questions: str, **size: Any) -> Seq2SeqRecipe:
    return Seq2SeqRecipe(family, "answers", questions, **size)


def _reads(family: str, **size: int) -> Seq2SeqRecipe:
    return Seq2SeqRecipe(family, "text", rate=3e-3, rows=16, **size)


BASES = (
    Base(
        "e1", "generate", 61, _writes("t5", "ascending", "reverse", "add one"),
        ("ascending", "reverse, add one", "histogram"),
    ),
    Base("e2", "generate", 62, _writes("bart", "copy", "descending", "add two"), ("descending", "shift", "parity")),
    Base(
        "e4", "generate", 64, _writes("umt5", "reverse", "add two", "histogram"),
        ("histogram", "reverse, add two", "copy"),
    ),
    Base(
        "e5", "generate", 65, _writes("bart", "shift two", "ascending", "unique", layers=3, width=32),
        ("shift two", "add one", "double histogram"),
    ),
    Base(
        "e6", "generate", 66, _writes("t5", "copy", "largest so far", layers=1, width=64),
        ("largest so far", "descending", "mirror"),
    ),
    Base(
        "f1", "classify", 71, _answers("t5", "largest", "third", "first plus one"),
        ("largest", "last mirrored", "odd sum"),
    ),
    Base(
        "f4", "classify", 74, _answers("umt5", "third smallest", "ends equal", "last"),
        ("third smallest", "first", "two together mod five"),
    ),
    Base("f5", "classify", 75, _reads("t5", width=64), ("who first", "units", "word order")),
    Base(
        "f7", "classify", 77, _answers("bart", "largest", "has a three", "last", steps=1800, rate=2e-3),
        ("has a three", "smallest", "last mirrored"),
    ),
    Base(
        "f8", "classify", 78, _answers("t5", "how many different", "after zero", "mostly low", steps=1800, rate=2e-3),
        ("after zero", "how many rises", "ends equal"),
    ),
    Base(
        "h1", "classify", 81, _answers("t5", "smallest", "how often the first", "ends equal"),
        ("how often the first", "largest", "first plus one", "has a three"),
    ),
    Base(
        "h2", "classify", 82, _answers("umt5", "most frequent", "first plus one", "how many rises"),
        ("most frequent", "third", "how many different", "first below last"),
    ),
    Base(
        "h4", "classify", 84, _answers("t5", "last", "third smallest", "mostly low", layers=1, width=64),
        ("third smallest", "last mirrored", "most frequent", "ends equal"),
    ),
    Base("h5", "classify", 85, _reads("t5", width=64), ("corrected", "negations", "opinions", "given")),
    Base("h6", "classify", 86, _reads("t5", layers=3, width=48), ("chased", "owners", "files", "sums")),
)  # fmt: skip


def seq2seq_pairs(
    work: Path, kind: Literal["generate", "classify"], part: str | None = None, bases: Sequence[str] | None = None
) -> list[Pair]:
    """The pairs of a kind, those of a part or of some bases; trained and written below `work` where missing."""
    chosen = [base for base in BASES if base.kind == kind and part in (None, base.part)]
    return [_pair(base, asked, work) for base in chosen if bases is None or base.name in bases for asked in base.tasks]


def _pair(base: Base, asked: str, work: Path) -> Pair:
    reference = str(trained(base.recipe, work / "models" / base.name, seed=base.seed).resolve())
    name = f"{base.name}-{asked.replace(', ', '-').replace(' ', '-')}"
    folder, number = work / "tasks" / name, base.tasks.index(asked)
    if not (folder / "task.toml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        if base.kind == "generate":
            sequences_data(asked, folder, seed=(base.seed, number))
            told = sequences_task(name, reference)
        else:
            told = labels_task(name, reference, "{input}", labels_data(asked, folder, seed=100 * base.seed + number))
        write_bytes_atomically(folder / "task.toml", told.encode())
    if base.kind == "generate":
        return Pair(name, base.part, folder / "task.toml", WRITTEN, LORA)
    return Pair(name, base.part, folder / "task.toml", SMALL, OF_DIGITS if asked in QUESTIONS else OF_TEXT)
