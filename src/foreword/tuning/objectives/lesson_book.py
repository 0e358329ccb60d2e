"""The answers of a self-study that were written before: writing takes minutes, and another fit would write the same.

It knows lessons and a file; what a lesson is for it does not know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foreword.bundle import write_bytes_atomically
from foreword.errors import BundleError, RunFolderError
from foreword.tuning.objectives.teacher import Lesson

Answers = list[list[int]]
LESSONS = "lessons.json"


class LessonBook:
    """Answers by what they were written from, for all that share the book: lengths of a sweep, a fit and its resume.

    With `path` the last that were written are kept in that file, once `writes` says that it may be written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self.writes = path, False
        self._known: dict[str, Answers] = {}

    def answers(self, drafts: Sequence[Lesson], told: Any, vocabulary: int, write: Callable[[], Answers]) -> Answers:
        """The answers to these drafts; `write` is called where they are not known.

        `told` is all else that answers depend on, as plain values; `vocabulary` bounds their tokens. RunFolderError
        when the file cannot be written.
        """
        asked = [[draft.teacher_prompt, draft.source] for draft in drafts]
        key = hashlib.sha256(json.dumps([told, asked]).encode()).hexdigest()
        found = self._known.get(key) or self._read(key, len(drafts), vocabulary)
        if found is None:
            found = write()
            self._keep(key, found)
        self._known[key] = found
        return found

    def _read(self, key: str, count: int, vocabulary: int) -> Answers | None:
        """What the file has under this key; None when it has something else, or is not whole."""
        if self.path is None:
            return None
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
            answers = told["answers"] if told["of"] == key else None
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None
        return answers if _are_answers(answers, count, vocabulary) else None

    def _keep(self, key: str, answers: Answers) -> None:
        if self.path is None or not self.writes:
            return
        try:
            write_bytes_atomically(self.path, json.dumps({"of": key, "answers": answers}).encode())
        except BundleError as error:
            raise RunFolderError(error.what, expected=error.expected, found=error.found, fix=error.fix) from error


def _are_answers(told: Any, count: int, vocabulary: int) -> bool:
    """Whether these are `count` rows of a token or more each, all of them in the vocabulary."""
    if not isinstance(told, list) or len(told) != count:
        return False
    return all(isinstance(row, list) and row and all(_is_token(each, vocabulary) for each in row) for row in told)


def _is_token(told: Any, vocabulary: int) -> bool:
    return isinstance(told, int) and not isinstance(told, bool) and 0 <= told < vocabulary
