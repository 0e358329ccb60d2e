"""The teacher of a distillation: the same frozen model with a longer text in its context, and what it tells.

A causal model reads the text once (`bake`, exact) and carries its keys and values as a prefix; any other model, and a
chat, has the text in every prompt. What the teacher tells never changes during a fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.generation import completion_logits
from foreword.engine.host import Host
from foreword.engine.rendering import tokens
from foreword.errors import DataError
from foreword.prefix import Prefix
from foreword.tuning.adaptation import Bare, FixedPrefix
from foreword.tuning.candidate_settings import FittedSettings
from foreword.tuning.demonstrations import Demonstrations, demonstrations, first_examples
from foreword.tuning.examples import Example
from foreword.tuning.predictor import Manner, Predictor

# Bytes of what a teacher has read that are kept: what has not been needed for longest is read anew when it is.
READ_BYTES = 2**30


@dataclass(frozen=True)
class Lesson:
    """One prompt as the student and as the teacher read it, the answer, and which of the teacher's texts is read."""

    prompt: list[int]
    teacher_prompt: list[int]
    answer: list[int]
    source: int = 0


@dataclass(frozen=True)
class Shelf:
    """The texts that a teacher carries, by number: each is `read` to a prefix when a lesson needs it, and kept a while.

    A document may have thousands of pieces, each as a prefix a thousand times as large as its text.
    """

    host: Host
    read: Callable[[int], Prefix]
    kept: dict[int, Prefix] = field(default_factory=dict)  # the one that was needed last is the last

    def prefix(self, source: int) -> Prefix:
        """Text number `source`, as the host carries it."""
        found = self.kept.pop(source) if source in self.kept else self.read(source)
        self.kept[source] = found
        return found

    def carried(self, lessons: Sequence[Lesson]) -> AbstractContextManager[None]:
        """The host with these lessons' texts, row by row."""
        needed = list(dict.fromkeys(lesson.source for lesson in lessons))
        prefixes = [self.prefix(source) for source in needed]
        size = sum(prefix.nbytes for prefix in self.kept.values())
        for source in [source for source in self.kept if source not in needed]:
            if size > READ_BYTES:
                size -= self.kept.pop(source).nbytes
        return attached(self.host, prefixes, rows=[needed.index(lesson.source) for lesson in lessons])


@dataclass(frozen=True)
class Teacher:
    """A predictor that stands for the bare model with `text` before every prompt; `prefix` where it could be baked."""

    predictor: Predictor
    prefix: Prefix | None

    @property
    def shelf(self) -> Shelf | None:
        """The text alone, where it could be baked."""
        prefix = self.prefix
        return None if prefix is None else Shelf(self.predictor.host, lambda _: prefix)

    @property
    def reserve(self) -> int:
        """Tokens that the text takes from what the model reads."""
        return 0 if self.prefix is None else self.prefix.occupies

    def rows(self, inputs: Sequence[str], student_rows: Sequence[list[int]]) -> list[list[int]]:
        """The teacher's prompts: behind a baked text the student's own, else the inputs behind the text."""
        if self.prefix is None:
            return self.predictor.rows(inputs)
        return [unbegun(self.predictor.host, row) for row in student_rows]


@dataclass(frozen=True)
class Taught:
    """A teacher as it does the task itself: who answers, and the selection split's prompts as it reads them."""

    predictor: Predictor
    rows: Sequence[list[int]]

    def outputs(self) -> list[str]:
        """What it answers, in order."""
        return [answer.output for answer in self.predictor.answers_to(self.rows)]


def read_by_teacher(host: Host, manner: Manner, fit: Sequence[Example], settings: FittedSettings) -> Demonstrations:
    """The text before a teacher's prompts: the one that the settings give, or fit examples written out.

    DataError when not one example has room.
    """
    if settings.teacher_text is not None:
        text = settings.teacher_text
        return Demonstrations(text if text[-1:].isspace() else f"{text}\n\n", 0, 0)
    shown = first_examples(fit, manner.labels, settings.teacher_shots)
    found = demonstrations(host, manner.template, shown)
    if not found.used:
        raise DataError(
            "The teacher has no room for a single example.",
            expected=f"an example of at most half of the {host.max_positions} tokens that the model reads",
            found=f"a longer one first: {shown[0].input[:60]!r}",
            fix="Give a text as teacher_text, or use a base model that reads more.",
        )
    return found


def teacher_with(student: Predictor, text: str) -> Teacher:
    """The teacher of `student` that has `text` before its prompts.

    PrefixError or DataError when the text leaves the prompt no room.
    """
    host, manner = student.host, student.manner
    if host.role == "causal" and not manner.template.chat:
        baked = bake(host, text)
        return Teacher(replace(student, adaptation=FixedPrefix(host, baked)), baked)
    longer = replace(manner.template, before=text + manner.template.before)
    limit = manner.max_input_tokens  # it is the input that may not have more tokens, not the text before it
    limit = None if limit is None else limit + len(tokens(host, text, special=False))
    manner = replace(manner, template=longer, max_input_tokens=limit)
    return Teacher(replace(student, manner=manner, adaptation=Bare()), None)


def unbegun(host: Host, row: list[int]) -> list[int]:
    """A prompt without its beginning token: behind a baked text, which has one, it would be a second one."""
    begin = getattr(host.tokenizer, "bos_token_id", None)
    return row[1:] if len(row) > 1 and begin is not None and row[0] == begin else row


def carrying(shelf: Shelf | None, lessons: Sequence[Lesson]) -> AbstractContextManager[None]:
    """The host with the texts of these lessons, where the teacher carries any."""
    return nullcontext() if shelf is None else shelf.carried(lessons)


def told(host: Host, lessons: Sequence[Lesson], shelf: Shelf | None) -> Tensor:
    """The teacher's log-probabilities of each token of the lessons' answers, `(token, vocabulary)`, float32."""
    with torch.no_grad(), carrying(shelf, lessons):
        logits = completion_logits(host, [x.teacher_prompt for x in lessons], [x.answer for x in lessons])
    return torch.log_softmax(logits.float(), dim=-1)
