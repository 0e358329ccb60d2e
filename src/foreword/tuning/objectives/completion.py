"""The likelihood of written answers: the loss is on the answer's tokens only, never on the prompt's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.engine.batches import in_batches
from foreword.engine.generation import completion_loss
from foreword.tuning.objectives.contract import Ground, Objective
from foreword.tuning.predictor import Predictor


class CompletionLikelihood(Objective):
    """Mean negative log-likelihood per token of the answers, in nats, end of text included; prompts are not scored.

    A batch's loss is a mean over its tokens, so a long answer weighs more than a short one (`weight`).
    """

    def __init__(self, ground: Ground) -> None:
        super().__init__(ground)
        self.answers = [answer_tokens(self.predictor, example.target) for example in ground.fit]
        whole = [answer_tokens(self.predictor, example.target, cut=False) for example in ground.fit]
        self.answers_cut = sum(len(answer) < len(uncut) for answer, uncut in zip(self.answers, whole, strict=True))
        self.answers_unknown = sum(_has_unknown(self.predictor, example.target) for example in ground.fit)
        self.selection_answers = [answer_tokens(self.predictor, example.target) for example in ground.selection]

    @property
    def lengths(self) -> list[int]:
        return [len(row) + len(answer) for row, answer in zip(self.rows, self.answers, strict=True)]

    def weight(self, indices: Sequence[int]) -> float:
        """The answers' tokens."""
        return sum(len(self.answers[index]) for index in indices)

    def loss(self, indices: list[int], step: int) -> Tensor:
        del step
        with self.active(indices):
            return self._loss([self.rows[i] for i in indices], [self.answers[i] for i in indices])

    def _loss(self, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
        return completion_loss(self.predictor.host, prompts, answers, soft=self.predictor.adaptation.soft)

    def evaluate(self, step: int) -> tuple[float, float]:
        del step
        rows, answers = self.selection_rows, self.selection_answers

        def summed(part: list[int]) -> float:
            told = [answers[i] for i in part]
            return float(self._loss([rows[i] for i in part], told)) * sum(map(len, told))

        with torch.no_grad(), self.predictor.adaptation.active():
            total = sum(found for _, found in in_batches([len(row) for row in rows], 32, summed))
        return judged_answers(self), -total / sum(map(len, answers))

    def details(self) -> dict[str, Any]:
        return {**super().details(), "answers_cut": self.answers_cut, "answers_unknown": self.answers_unknown}


def answer_tokens(predictor: Predictor, target: str, *, cut: bool = True) -> list[int]:
    """The tokens that a model should write for `target`, end of text included; as many as an answer may have."""
    end = getattr(predictor.host.tokenizer, "eos_token_id", None)
    answer = predictor.completion(target)
    whole = answer + ([] if end is None or answer[-1] == end else [end])
    return whole[: predictor.manner.max_new_tokens] if cut else whole


def _has_unknown(predictor: Predictor, target: str) -> bool:
    """Whether the tokenizer has no token for a part of the target: the model can only write that it is unknown."""
    unknown = getattr(predictor.host.tokenizer, "unk_token_id", None)
    return unknown is not None and unknown in predictor.completion(target)


def judged_answers(objective: Objective) -> float:
    """The task's metric of what the predictor answers on the selection split."""
    outputs = [answer.output for answer in objective.predictor.answer([x.input for x in objective.selection])]
    return objective.score([x.target for x in objective.selection], outputs)
