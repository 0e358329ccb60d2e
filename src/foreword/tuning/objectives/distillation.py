"""Distillation: a short prefix learns to act as a longer text in the context does.

The student is the model under the adaptation, the teacher the same bare model that reads the text (`teacher.py`). What
is matched is what the task answers by: the distribution over the labels, features, or the distribution over every token
of the answers. KL is teacher first, in nats: the loss is 0 exactly when both say the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foreword.engine.batches import in_batches
from foreword.engine.generation import completion_logits, features
from foreword.tuning.examples import Example
from foreword.tuning.objectives.completion import answer_tokens, judged_answers
from foreword.tuning.objectives.contract import Ground, Objective, judged, targets_of
from foreword.tuning.objectives.labels import LearnedReadout, adapted_features, all_label_scores
from foreword.tuning.objectives.teacher import Lesson, Shelf, Taught, Teacher, told

# What a teacher tells of all lessons is kept when it is at most so many bytes; else it is asked anew in each step. (Not
# as steps come by: a batch's rounding depends on its rows, and a resumed fit must see the same numbers.)
KEPT_BYTES = 2**28
BATCH = 32


class LabelDistillation(Objective):
    """KL(teacher || student) over the labels, by their likelihoods; a mean over examples."""

    is_kept_by_loss = True

    def __init__(self, ground: Ground, teacher: Teacher) -> None:
        super().__init__(ground)
        inputs = [[example.input for example in split] for split in (ground.fit, ground.selection)]
        rows = (self.rows, self.selection_rows)
        self._told, self._selection_told = (
            torch.log_softmax(all_label_scores(teacher.predictor, teacher.rows(texts, mine)), dim=1)
            for texts, mine in zip(inputs, rows, strict=True)
        )
        self._selection_targets = targets_of(self.predictor, ground.selection)

    def loss(self, indices: list[int], step: int) -> Tensor:
        del step
        with self.active(indices):
            scores = self.predictor.label_scores([self.rows[index] for index in indices])
        return divergence(self._told[indices].to(scores.device), scores)

    def evaluate(self, step: int) -> tuple[float, float]:
        del step
        scores = all_label_scores(self.predictor, self.selection_rows)
        score, _ = judged(scores, self._selection_targets, self.predictor, self.score)
        return score, -float(divergence(self._selection_told, scores))

    def apart(self) -> list[float]:
        scores = all_label_scores(self.predictor, self.selection_rows)
        return divergences(self._selection_told, scores).tolist()

    def teacher_score(self) -> float:
        return judged(self._selection_told, self._selection_targets, self.predictor, self.score)[0]


class FeatureDistillation(Objective):
    """1 - cosine between the student's and the teacher's feature of the same input; a mean over examples.

    For every read-out of features. `kind` is that of one solved on examples ("linear", "prototypes"), or None where the
    predictor's own is fixed.
    """

    is_kept_by_loss = True

    def __init__(self, ground: Ground, teacher: Teacher, *, kind: str | None) -> None:
        super().__init__(ground)
        inputs = [[example.input for example in split] for split in (ground.fit, ground.selection)]
        rows = (self.rows, self.selection_rows)
        read = [teacher.rows(texts, mine) for texts, mine in zip(inputs, rows, strict=True)]
        found = [adapted_features(teacher.predictor, each) for each in read]
        self._told, self._selection_told = (nn.functional.normalize(each, dim=1) for each in found)
        targets, self._targets = (targets_of(self.predictor, split) for split in (ground.fit, ground.selection))
        self._learned = None if kind is None else LearnedReadout(self.predictor, targets, self._targets, kind)
        # With a read-out of its own: solved on its own features, as the student's is on the student's.
        own = None if kind is None else LearnedReadout(self.predictor, targets, self._targets, kind).final(*found)
        answers = teacher.predictor if own is None else replace(teacher.predictor, readout=own)
        self._taught = Taught(answers, read[1])

    def loss(self, indices: list[int], step: int) -> Tensor:
        del step
        with self.active(indices):
            found = features(self.predictor.host, [self.rows[i] for i in indices], soft=self.predictor.adaptation.soft)
        return _away(found, self._told[indices].to(found.device)).mean()

    def evaluate(self, step: int) -> tuple[float, float]:
        del step
        selection = adapted_features(self.predictor, self.selection_rows)
        if self._learned is not None:
            scores = self._learned.scores(adapted_features(self.predictor, self.rows), selection)
        else:
            scores = all_label_scores(self.predictor, self.selection_rows)
        score, _ = judged(scores, self._targets, self.predictor, self.score)
        return score, -float(_away(selection, self._selection_told).mean())

    def apart(self) -> list[float]:
        return _away(adapted_features(self.predictor, self.selection_rows), self._selection_told).tolist()

    def teacher_score(self) -> float:
        return self.score([example.target for example in self.selection], self._taught.outputs())

    def memory(self) -> dict[str, Tensor]:
        return {} if self._learned is None else self._learned.memory()

    def remember(self, memory: dict[str, Tensor]) -> None:
        if self._learned is not None:
            self._learned.remember(memory)

    def finish(self) -> None:
        if self._learned is not None:
            bank, selection = (adapted_features(self.predictor, rows) for rows in (self.rows, self.selection_rows))
            self.predictor.readout = self._learned.final(bank, selection)


class AnswerDistillation(Objective):
    """KL(teacher || student) over the vocabulary at every token of the lessons' answers; a mean over tokens.

    The lessons are those of the fit examples, with their own answers, or a document's self-study; `selection_lessons`
    choose the state that is kept. `shelf` has the texts that the teacher carries. `taught` is the teacher as it does
    the task itself; None for one whose text is read in pieces.
    """

    is_kept_by_loss = True

    def __init__(
        self,
        ground: Ground,
        lessons: Sequence[Lesson],
        selection_lessons: Sequence[Lesson],
        shelf: Shelf | None,
        taught: Taught | None,
    ) -> None:
        super().__init__(ground)
        self._taught = taught
        self.lessons, self.selection_lessons, self.shelf = list(lessons), list(selection_lessons), shelf
        self.examples = len(self.lessons)
        self._kept, self._selection_kept = self._asked(self.lessons), self._asked(self.selection_lessons)

    @property
    def lengths(self) -> list[int]:
        return [len(lesson.prompt) + len(lesson.answer) for lesson in self.lessons]

    def weight(self, indices: Sequence[int]) -> float:
        """The answers' tokens."""
        return sum(len(self.lessons[index].answer) for index in indices)

    def loss(self, indices: list[int], step: int) -> Tensor:
        del step
        lessons = [self.lessons[index] for index in indices]
        wanted = self._told(lessons, [self._kept[index] for index in indices] if self._kept else None)
        with self.active(indices):
            return divergence(wanted, self._student(lessons))

    def evaluate(self, step: int) -> tuple[float, float]:
        del step
        sizes = [len(lesson.answer) for lesson in self.selection_lessons]
        total = sum(size * found for size, found in zip(sizes, self.apart(), strict=True))
        return judged_answers(self), -total / sum(sizes)

    def apart(self) -> list[float]:
        lessons, kept = self.selection_lessons, self._selection_kept

        def each(part: list[int]) -> list[float]:
            mine = [lessons[index] for index in part]
            wanted = self._told(mine, [kept[index] for index in part] if kept else None)
            with torch.no_grad(), self.predictor.adaptation.active():
                found = divergences(wanted, self._student(mine)).double()
            return [float(rows.mean()) for rows in torch.split(found, [len(lesson.answer) for lesson in mine])]

        told: dict[int, float] = {}
        for part, found in in_batches([len(lesson.prompt) for lesson in lessons], BATCH, each):
            told.update(zip(part, found, strict=True))
        return [told[index] for index in range(len(lessons))]

    def teacher_score(self) -> float | None:
        if self._taught is None:
            return None
        return self.score([example.target for example in self.selection], self._taught.outputs())

    def details(self) -> dict[str, Any]:
        return {**super().details(), "lessons": len(self.lessons), "answer_tokens": self.weight(range(self.examples))}

    def _student(self, lessons: Sequence[Lesson]) -> Tensor:
        soft = self.predictor.adaptation.soft
        return completion_logits(
            self.predictor.host, [x.prompt for x in lessons], [x.answer for x in lessons], soft=soft
        )

    def _told(self, lessons: Sequence[Lesson], kept: list[Tensor] | None) -> Tensor:
        host = self.predictor.host
        return told(host, lessons, self.shelf) if kept is None else torch.cat(kept).to(host.device)

    def _asked(self, lessons: Sequence[Lesson]) -> list[Tensor]:
        """What the teacher tells of each lesson, `(token, vocabulary)`, on the CPU; empty when that is too much."""
        tokens = sum(len(lesson.answer) for lesson in lessons)
        if 4 * tokens * len(self.predictor.host.model.get_output_embeddings().weight) > KEPT_BYTES:
            return []

        def asked(part: list[int]) -> Sequence[Tensor]:
            mine = [lessons[index] for index in part]
            whole = told(self.predictor.host, mine, self.shelf).cpu()
            split: Sequence[Tensor] = torch.split(whole, [len(x.answer) for x in mine])
            return split

        found: dict[int, Tensor] = {}
        for part, each in in_batches([len(lesson.prompt) for lesson in lessons], BATCH, asked):
            found.update(zip(part, each, strict=True))
        return [found[index] for index in range(len(lessons))]


def divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """KL of log-probabilities `wanted` to what `logits` say, both `(row, class)`, in nats; a mean over rows."""
    return divergences(wanted, logits).mean()


def divergences(wanted: Tensor, logits: Tensor) -> Tensor:
    """The same row by row, `(row,)`."""
    found = torch.log_softmax(logits.float(), dim=-1)
    return nn.functional.kl_div(found, wanted, log_target=True, reduction="none").sum(dim=-1)


def lessons_of(ground: Ground, teacher: Teacher, examples: Sequence[Example]) -> list[Lesson]:
    """Examples as lessons: their prompts as student and teacher read them, and their own answers."""
    prompts = [found.ids for found in ground.read(examples)]
    behind = teacher.rows([example.input for example in examples], prompts)
    answers = [answer_tokens(ground.predictor, example.target) for example in examples]
    return [Lesson(*parts) for parts in zip(prompts, behind, answers, strict=True)]


def _away(found: Tensor, wanted: Tensor) -> Tensor:
    """1 - cosine of each row, `(row,)`."""
    return 1 - (nn.functional.normalize(found.float(), dim=1) * wanted).sum(dim=1)
