"""A document that a model studies: its pieces, how a prompt is read with a piece in the context, lessons from it.

A causal model reads each piece once (`bake`, exact) and carries it as a prefix; an encoder-decoder model has the piece
in its encoder's input, before the prompt, and writes with its decoder. The student reads the same prompts alone. Nobody
has to bring questions or answers: the model goes on from excerpts and answers the task's inputs by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from torch import Tensor

from foreword.engine.bake import bake
from foreword.engine.batches import in_batches
from foreword.engine.generation import continuations
from foreword.engine.host import Host
from foreword.engine.rendering import tokens
from foreword.errors import DataError
from foreword.tuning.objectives.lesson_book import LessonBook
from foreword.tuning.objectives.teacher import Lesson, Shelf, carrying, unbegun

# A piece of a document fills at most this share of what the model reads; the rest is for prompts and answers.
PIECE_SHARE = 0.5
# Tokens of a document's excerpt that self-study goes on from: the shortest and the longest.
EXCERPT_TOKENS = (4, 16)


@dataclass(frozen=True)
class Document:
    """A document's token ids in `pieces` of like length, each of which leaves room for a prompt and an answer.

    `shelf` has the pieces as a causal model carries them; None for an encoder-decoder model. `before` and `after`
    are the tokens that the tokenizer puts around every text, `gap` those that part a piece from a prompt behind it in
    one input.
    """

    host: Host
    pieces: tuple[list[int], ...]
    shelf: Shelf | None
    before: list[int]
    after: list[int]
    gap: list[int]

    @classmethod
    def read(cls, host: Host, text: str) -> Document:
        """The document as `host`, which writes, reads it. DataError when it is too short."""
        ids = tokens(host, text, special=False)
        if len(ids) <= EXCERPT_TOKENS[0]:
            raise DataError(
                "The document is too short to be studied.",
                expected=f"more than {EXCERPT_TOKENS[0]} tokens",
                found=str(len(ids)),
                fix="Name another file in teacher_file, or give the text itself as teacher_text.",
            )
        before, after = _around(ids, tokens(host, text, special=True))
        pieces = tuple(_pieces(ids, int(PIECE_SHARE * host.max_positions)))
        if host.role == "causal":
            shelf = Shelf(host, lambda source: bake(host, [*before, *pieces[source]]))
            return cls(host, pieces, shelf, before, after, [])
        return cls(host, pieces, None, before, after, tokens(host, "\n\n", special=False))

    @property
    def occupies(self) -> int:
        """Tokens that the longest piece takes from what the model reads beside a prompt."""
        beside = self.gap if self.shelf is None else self.before
        return max(map(len, self.pieces)) + len(beside)

    def lesson(self, prompt: list[int], source: int) -> Lesson:
        """A lesson, still without its answer, whose teacher has piece number `source` in its context."""
        if self.shelf is not None:
            return Lesson(prompt, unbegun(self.host, prompt), [], source)
        start = len(self.before)
        return Lesson(prompt, [*prompt[:start], *self.pieces[source], *self.gap, *prompt[start:]], [], source)

    def excerpt(self, rng: np.random.Generator, source: int) -> list[int]:
        """A prompt made of some tokens in a row of piece number `source`."""
        piece = self.pieces[source]
        length = int(rng.integers(EXCERPT_TOKENS[0], min(EXCERPT_TOKENS[1], len(piece) - 1) + 1))
        start = int(rng.integers(len(piece) - length))
        return [*self.before, *piece[start : start + length], *self.after]


def self_study(
    document: Document,
    prompts: Sequence[Sequence[int]],
    *,
    count: int,
    new_tokens: int,
    seed: int,
    studied: Callable[[int, int], None] | None = None,
    book: LessonBook | None = None,
) -> list[Lesson]:
    """`count` lessons whose answers the model itself writes with a piece of the document in its context.

    Prompts are in turn excerpts of the piece, drawn by `seed`, and those of `prompts`; answers are drawn from the
    model's own distribution. `studied` is told how many are written, and of how many; what `book` has is not written.
    (Self-study of Cartridges, arXiv 2506.06266, without its written seed questions.)
    """
    rng = np.random.default_rng(seed)
    drafts: list[Lesson] = []
    for number in range(count):
        source = int(rng.integers(len(document.pieces)))
        is_asked = prompts and number % 2
        prompt = list(prompts[int(rng.integers(len(prompts)))]) if is_asked else document.excerpt(rng, source)
        drafts.append(document.lesson(prompt, source))
    host = document.host
    told = [host.fingerprint, str(host.device), str(host.dtype), document.pieces, new_tokens, seed]

    def write() -> list[list[int]]:
        return _written(document, drafts, new_tokens=new_tokens, seed=seed, studied=studied)

    answers = (book or LessonBook()).answers(drafts, told, _vocabulary(host), write)
    return [replace(draft, answer=answer) for draft, answer in zip(drafts, answers, strict=True)]


def _written(
    document: Document,
    drafts: Sequence[Lesson],
    *,
    new_tokens: int,
    seed: int,
    studied: Callable[[int, int], None] | None,
) -> list[list[int]]:
    """The answers to these drafts, in their order."""
    answers: list[list[int]] = [[] for _ in drafts]
    turn = done = 0

    def written(part: list[int]) -> Tensor:
        mine = [drafts[index] for index in part]
        with carrying(document.shelf, mine):
            rows = [lesson.teacher_prompt for lesson in mine]
            return continuations(document.host, rows, max_new_tokens=new_tokens, seed=seed + 1_000 * turn)

    for part, found in in_batches([len(lesson.prompt) for lesson in drafts], 32, written):
        turn += 1
        for index, answer in zip(part, found.tolist(), strict=True):
            answers[index] = _ended(document.host, answer)
        done += len(part)
        if studied is not None:
            studied(done, len(drafts))
    return answers


def _vocabulary(host: Host) -> int:
    """How many tokens the model can write."""
    return len(host.model.get_output_embeddings().weight)


def _pieces(ids: list[int], longest: int) -> list[list[int]]:
    """`ids` in as few pieces of like length as have at most `longest` tokens each."""
    count = -(-len(ids) // longest)
    ends = [round(len(ids) * number / count) for number in range(count + 1)]
    return [ids[start:end] for start, end in pairwise(ends)]


def _around(ids: list[int], whole: list[int]) -> tuple[list[int], list[int]]:
    """What stands before and behind `ids` in `whole`; nothing when they do not stand in it in a row."""
    for start in range(len(whole) - len(ids) + 1):
        if whole[start : start + len(ids)] == ids:
            return whole[:start], whole[start + len(ids) :]
    return [], []


def _ended(host: Host, answer: list[int]) -> list[int]:
    """An answer up to its end token, which belongs to it; the padding behind it does not."""
    ends = getattr(host.model.generation_config, "eos_token_id", None) or host.tokenizer.eos_token_id
    known = set(ends) if isinstance(ends, list) else {ends}
    at = next((index for index, token in enumerate(answer) if token in known), len(answer) - 1)
    return answer[: at + 1]
