"""The teacher of a distillation: the same frozen model with a longer text in its context, and what it tells.

A causal model reads the text once (`bake`, exact) and carries its keys and values as a prefix; any other model, and a
chat, has the text in every prompt. What the teacher tells never changes during a fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.batches import in_batches
from foreword.engine.generation import completion_logits, continuations
from foreword.engine.host import Host
from foreword.engine.rendering import tokens
from foreword.errors import DataError, FitError
from foreword.prefix import Prefix
from foreword.tuning.adaptation import Bare, FixedPrefix
from foreword.tuning.predictor import Predictor

# A piece of a document fills at most this share of what the model reads; the rest is for prompts and answers.
PIECE_SHARE = 0.5
# Tokens of a document's excerpt that self-study goes on from: the shortest and the longest.
EXCERPT_TOKENS = (4, 16)


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


# Documents


def pieces(host: Host, text: str) -> list[list[int]]:
    """A document's token ids in pieces of like length that each leave room for a prompt and an answer.

    FitError for a model that cannot bake; DataError for a document without text.
    """
    if host.role != "causal":
        raise FitError(
            "Only a causal model can study a document.",
            expected="a causal base model, which keeps the document's keys and values",
            found=f"{host.reference}, {host.family}",
            fix="Use teacher_text or teacher_shots, or a causal base model.",
        )
    ids = tokens(host, text, special=False)
    if len(ids) <= EXCERPT_TOKENS[0]:
        raise DataError(
            "The document is too short to be studied.",
            expected=f"more than {EXCERPT_TOKENS[0]} tokens",
            found=str(len(ids)),
            fix="Name another file in teacher_file, or give the text itself as teacher_text.",
        )
    count = -(-len(ids) // int(PIECE_SHARE * host.max_positions))
    ends = [round(len(ids) * number / count) for number in range(count + 1)]
    return [ids[start:end] for start, end in pairwise(ends)]


def baked_pieces(host: Host, found: Sequence[list[int]]) -> list[Prefix]:
    """Each piece as a prefix, behind the beginning token that the tokenizer puts before a text."""
    begin = tokens(host, "", special=True)[:1]
    return [bake(host, [*begin, *piece]) for piece in found]


def self_study(
    host: Host,
    document: Sequence[list[int]],
    prefixes: Sequence[Prefix],
    prompts: Sequence[list[int]],
    *,
    count: int,
    new_tokens: int,
    seed: int,
) -> list[Lesson]:
    """`count` lessons whose answers the model itself writes with a piece of the document in its context.

    Prompts are in turn excerpts of the piece, drawn by `seed`, and those of `prompts`; answers are drawn from the
    model's own distribution. (Self-study of Cartridges, arXiv 2506.06266, without its written seed questions.)
    """
    rng = np.random.default_rng(seed)
    begin = tokens(host, "", special=True)[:1]
    drafts: list[Lesson] = []
    for number in range(count):
        source = int(rng.integers(len(document)))
        if prompts and number % 2:
            prompt = list(prompts[int(rng.integers(len(prompts)))])
        else:
            length = int(rng.integers(EXCERPT_TOKENS[0], min(EXCERPT_TOKENS[1], len(document[source]) - 1) + 1))
            start = int(rng.integers(len(document[source]) - length))
            prompt = [*begin, *document[source][start : start + length]]
        drafts.append(Lesson(prompt, unbegun(host, prompt), [], source))
    lessons, turn = list(drafts), 0

    def written(part: list[int]) -> Tensor:
        mine = [drafts[index] for index in part]
        with attached(host, list(prefixes), rows=[lesson.source for lesson in mine]):
            return continuations(
                host, [x.teacher_prompt for x in mine], max_new_tokens=new_tokens, seed=seed + 1_000 * turn
            )

    for part, found in in_batches([len(lesson.prompt) for lesson in drafts], 32, written):
        turn, mine = turn + 1, [drafts[index] for index in part]
        for index, lesson, answer in zip(part, mine, found.tolist(), strict=True):
            lessons[index] = replace(lesson, answer=_ended(host, answer))
    return lessons


def _ended(host: Host, answer: list[int]) -> list[int]:
    """An answer up to its end token, which belongs to it; the padding behind it does not."""
    ends = getattr(host.model.generation_config, "eos_token_id", None) or host.tokenizer.eos_token_id
    known = set(ends) if isinstance(ends, list) else {ends}
    at = next((index for index, token in enumerate(answer) if token in known), len(answer) - 1)
    return answer[: at + 1]
