"""The pairs of encoder-decoders that foretelling is judged on: written answers and labels on small bases.

All were written down before any fit of them; `f7` and `f8` after the first six were judged, three of which had learned
nothing in training (their answers do not hang on what they read) and tell little. They are held out as they stand: no
rule was made from an encoder-decoder. Should the rule of causal models be right on fewer than 80% of a kind's pairs
("can a prefix do it?"), the bases of `FIRST_HALF` become the calibration of a rule of their own, and the others of the
first six judge it.
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


def _writes(family: str, *skills: str, **size: int) -> Seq2SeqRecipe:
    return Seq2SeqRecipe(family, "sequences", skills, **size)


def _answers(family: str, *questions: str, **size: Any) -> Seq2SeqRecipe:
    return Seq2SeqRecipe(family, "answers", questions, **size)


def _reads(family: str, **size: int) -> Seq2SeqRecipe:
    return Seq2SeqRecipe(family, "text", rate=3e-3, rows=16, **size)


FIRST_HALF = ("e1", "e2", "e3", "f1", "f2", "f3")
BASES = (
    Base(
        "e1", "generate", 61, _writes("t5", "ascending", "reverse", "add one"),
        ("ascending", "reverse, add one", "histogram"),
    ),
    Base("e2", "generate", 62, _writes("bart", "copy", "descending", "add two"), ("descending", "shift", "parity")),
    Base(
        "e3", "generate", 63, _writes("pegasus", "mirror", "shift", layers=1, width=32),
        ("mirror", "shift, mirror", "ascending"),
    ),
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
    Base("f2", "classify", 72, _reads("bart", width=64), ("negations", "months", "python lines")),
    Base(
        "f3", "classify", 73, _answers("pegasus", "most frequent", "how many different", "after zero"),
        ("most frequent", "third smallest", "first below last"),
    ),
    Base(
        "f4", "classify", 74, _answers("umt5", "third smallest", "ends equal", "last"),
        ("third smallest", "first", "two together mod five"),
    ),
    Base("f5", "classify", 75, _reads("t5", width=64), ("who first", "units", "word order")),
    Base(
        "f6", "classify", 76, _answers("bart", "smallest", "has a three", "how many rises", layers=3, width=32),
        ("how many rises", "mostly low", "how often the first"),
    ),
    Base(
        "f7", "classify", 77, _answers("bart", "largest", "has a three", "last", steps=1800, rate=2e-3),
        ("has a three", "smallest", "last mirrored"),
    ),
    Base(
        "f8", "classify", 78, _answers("t5", "how many different", "after zero", "mostly low", steps=1800, rate=2e-3),
        ("after zero", "how many rises", "ends equal"),
    ),
)  # fmt: skip


def seq2seq_pairs(
    work: Path, kind: Literal["generate", "classify"], part: str | None = None, bases: Sequence[str] | None = None
) -> list[Pair]:
    """The pairs of a kind, or those of some bases, trained and their data written below `work` where missing.

    All are of the validation, unless a rule is to be made: `FIRST_HALF` would then be the calibration.
    """
    chosen = [base for base in BASES if base.kind == kind and (bases is None or base.name in bases)]
    found = [_pair(base, asked, work) for base in chosen for asked in base.tasks]
    return [pair for pair in found if part in (None, pair.part)]


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
        return Pair(name, "validation", folder / "task.toml", WRITTEN, LORA)
    return Pair(name, "validation", folder / "task.toml", SMALL, OF_DIGITS if asked in QUESTIONS else OF_TEXT)
