"""Text outside the task: a seeded sample of passages, from the user's files or from Python's own reference manual.

It knows files and passages. What a candidate does to them is `foreword.assessment.forgetting`'s business.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from foreword.errors import DataError
from foreword.regular_file import content_of, found_in
from foreword.tuning.sections import ForgettingSettings

# Characters of a passage: long enough to have a context, short enough that one forward pass reads it whole.
SHORTEST, LONGEST = 240, 800
# The manual that every CPython brings for its help(): English prose about programming, with examples in it.
BUILT_IN = "pydoc_data.topics"
SEED = 0


@dataclass(frozen=True)
class OtherText:
    """Passages outside the task, and the files (or the module) that they were drawn from."""

    passages: tuple[str, ...]
    sources: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the passages in their order."""
        return hashlib.sha256("\0".join(self.passages).encode()).hexdigest()


def other_text(settings: ForgettingSettings, folder: Path) -> OtherText | None:
    """The sample that a task asks for; None when it asks for none, or this Python brings no manual.

    `folder` is where relative paths start. DataError when a file cannot be read, or they hold no passage.
    """
    if settings.texts == 0:
        return None
    if settings.files is not None:
        found = [_read(folder / name) for name in settings.files]
    else:
        try:
            found = [text for _, text in sorted(import_module(BUILT_IN).topics.items())]
        except (ImportError, AttributeError):
            return None
    known = list(dict.fromkeys(passage for text in found for passage in passages(text)))
    if not known:
        raise DataError(
            "The files under [forgetting] hold no text to look at.",
            expected=f"passages of at least {SHORTEST} characters",
            found=f"none in {', '.join(settings.files or (BUILT_IN,))}",
            fix="Name files with more text, or leave the section out to use Python's own manual.",
        )
    drawn = random.Random(SEED).sample(  # noqa: S311
        known, min(settings.texts, len(known))
    )
    return OtherText(tuple(drawn), settings.files or (BUILT_IN,))


def passages(text: str) -> Iterable[str]:
    """Neighbouring paragraphs put together until they are long enough, and cut where they are too long.

    >>> [len(passage) for passage in passages("\\n\\n".join(["a line"] * 100))]
    [246, 246, 246]
    """
    gathered = ""
    for paragraph in re.split(r"\n\s*\n", text):
        gathered = f"{gathered}\n\n{paragraph.strip()}".strip()
        if len(gathered) >= SHORTEST:
            yield gathered[:LONGEST]
            gathered = ""


def _read(path: Path) -> str:
    try:
        return content_of(path).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(
            f"The file {path} under [forgetting] cannot be read.",
            expected="a file of text in UTF-8",
            found=found_in(error),
            fix="Correct its name or its encoding, or leave the section out to use Python's own manual.",
        ) from error
