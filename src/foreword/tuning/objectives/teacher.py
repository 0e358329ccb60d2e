"""The teacher of a distillation: the same frozen model with a longer text in its context, and what it tells.

A causal model reads the text once (`bake`, exact) and carries its keys and values as a prefix; any other model, and a
chat, has the text in every prompt. What the teacher tells never changes during a fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.generation import completion_logits
from foreword.engine.host import Host
from foreword.engine.rendering import tokens
from foreword.prefix import Prefix
from foreword.tuning.adaptation import Bare, FixedPrefix
from foreword.tuning.predictor import Predictor


@dataclass(frozen=True)
class Lesson:
    """One prompt as the student and as the teacher read it, the answer, and which of the teacher's texts is read."""

    prompt: list[int]
    teacher_prompt: list[int]
    answer: list[int]
    source: int = 0


@dataclass(frozen=True)
class Teacher:
    """A predictor that stands for the bare model with `text` before every prompt; `prefix` where it could be baked."""

    predictor: Predictor
    prefix: Prefix | None

    @property
    def reserve(self) -> int:
        """Tokens that the text takes from what the model reads."""
        return 0 if self.prefix is None else self.prefix.occupies

    def rows(self, inputs: Sequence[str], student_rows: Sequence[list[int]]) -> list[list[int]]:
        """The teacher's prompts: behind a baked text the student's own, else the inputs behind the text."""
        if self.prefix is None:
            return self.predictor.rows(inputs)
        return [unbegun(self.predictor.host, row) for row in student_rows]


def teacher_with(student: Predictor, text: str) -> Teacher:
    """The teacher of `student` that has `text` in its context, parted from the prompt by an empty line.

    PrefixError or DataError when the text leaves the prompt no room.
    """
    text = text if text[-1:].isspace() else f"{text}\n\n"
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


def told(host: Host, lessons: Sequence[Lesson], prefixes: Sequence[Prefix]) -> Tensor:
    """The teacher's log-probabilities of each token of the lessons' answers, `(token, vocabulary)`, float32."""
    rows = [lesson.source for lesson in lessons]
    context = attached(host, list(prefixes), rows=rows) if prefixes else nullcontext()
    with torch.no_grad(), context:
        logits = completion_logits(host, [x.teacher_prompt for x in lessons], [x.answer for x in lessons])
    return torch.log_softmax(logits.float(), dim=-1)
