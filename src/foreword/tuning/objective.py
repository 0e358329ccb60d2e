"""What a fit minimises, and what it is judged by while it runs.

Three objectives: cross-entropy over labels by similarity to their texts or by their likelihoods; cross-entropy against
leave-one-out class prototypes; and the likelihood of written answers. Each judges itself on the
selection split by the task's own metric, with its loss there as the tie-breaker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from foreword.engine.generation import completion_loss, embed, features
from foreword.engine.rendering import batches
from foreword.tuning.examples import Example
from foreword.tuning.predictor import Predictor
from foreword.tuning.readout import (
    Readout,
    best_logistic_regression,
    from_prototypes,
    logistic_regression,
    without_self,
)

Score = Callable[[Sequence[str], Sequence[str]], float]

# Steps after which the prototypes that a fit is trained against are computed anew.
BANK_STEPS = 8


def objective_for(
    predictor: Predictor, fit: Sequence[Example], selection: Sequence[Example], score: Score
) -> LabelCrossEntropy | ClassContrast | AnswerLikelihood:
    """The objective that suits how `predictor` answers."""
    if predictor.manner.kind == "generate":
        return AnswerLikelihood(predictor, fit, selection, score)
    if predictor.readout is not None and predictor.readout.kind != "label-text":
        return ClassContrast(predictor, fit, selection, score, kind=predictor.readout.kind)
    return LabelCrossEntropy(predictor, fit, selection, score)


class LabelCrossEntropy:
    """Cross-entropy over the labels by the predictor's own scores: similarity to fixed texts, or label likelihoods."""

    def __init__(
        self, predictor: Predictor, fit: Sequence[Example], selection: Sequence[Example], score: Score
    ) -> None:
        self.predictor, self.score = predictor, score
        self.rows, self.targets = predictor.rows([x.input for x in fit]), targets_of(predictor, fit)
        self.selection_rows = predictor.rows([x.input for x in selection])
        self.selection_targets = targets_of(predictor, selection)
        self.examples, self.lengths = len(self.rows), [len(row) for row in self.rows]

    def loss(self, indices: list[int], step: int) -> Tensor:
        del step
        with self.predictor.adaptation.active():
            scores = self.predictor.label_scores([self.rows[index] for index in indices])
        return nn.functional.cross_entropy(scores, self.targets[indices].to(scores.device))

    def weight(self, indices: list[int]) -> float:
        return float(len(indices))

    def evaluate(self, step: int) -> tuple[float, float]:
        del step
        scores = torch.empty(len(self.selection_rows), len(self.predictor.manner.labels))
        with torch.no_grad(), self.predictor.adaptation.active():
            for indices in batches([len(row) for row in self.selection_rows], 32):
                scores[indices] = self.predictor.label_scores([self.selection_rows[i] for i in indices]).float().cpu()
        return judged(scores, self.selection_targets, self.predictor, self.score)

    def memory(self) -> dict[str, Tensor]:
        return {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        del memory

    def finish(self) -> None:
        return


class ClassContrast:
    """Cross-entropy against class prototypes made of the *other* fit examples, for read-outs learned from examples.

    A head that has seen an example says little about it: with hundreds of numbers per label and tens of examples, every
    training loss is near 0 and has no slope. Leaving each example out of its own class keeps the loss honest. The
    prototypes of a step are constants, computed anew every few steps. What answers in the end is solved on the adapted
    features of all examples: prototypes, or a logistic regression.
    Snell, Swersky, Zemel, "Prototypical networks for few-shot learning", 2017, here with cosine similarity.
    """

    def __init__(
        self, predictor: Predictor, fit: Sequence[Example], selection: Sequence[Example], score: Score, *, kind: str
    ) -> None:
        self.predictor, self.score, self.kind = predictor, score, kind
        self.rows, self.targets = predictor.rows([x.input for x in fit]), targets_of(predictor, fit)
        self.selection_rows = predictor.rows([x.input for x in selection])
        self.selection_targets = targets_of(predictor, selection)
        self.examples, self.lengths = len(self.rows), [len(row) for row in self.rows]
        self._bank, self._bank_step = torch.empty(0), -1
        self._inverse_penalty, self._last = 0.0, predictor.readout

    def loss(self, indices: list[int], step: int) -> Tensor:
        bank = self._bank_at(step - step % BANK_STEPS) if step % BANK_STEPS == 0 or self._bank_step < 0 else self._bank
        with self.predictor.adaptation.active():
            found = features(self.predictor.host, [self.rows[i] for i in indices], soft=self.predictor.adaptation.soft)
        own = torch.tensor(indices)
        scores = without_self(found, bank, self.targets[own], self.targets, own)
        return nn.functional.cross_entropy(scores, self.targets[own].to(scores.device))

    def weight(self, indices: list[int]) -> float:
        return float(len(indices))

    def evaluate(self, step: int) -> tuple[float, float]:
        bank, selection = self._bank_at(step), self._embedded(self.selection_rows)
        if self.kind == "linear" and self._inverse_penalty:
            # The penalty stays the one that was best at the start: searching it each time would take longer than steps.
            self._last = logistic_regression(
                bank, self.targets, self.labels, inverse_penalty=self._inverse_penalty, start=self._last
            )
        else:
            self._last, self._inverse_penalty = self._solved(bank, selection)
        return judged(self._last.scores(selection), self.selection_targets, self.predictor, self.score)

    def memory(self) -> dict[str, Tensor]:
        last = {} if self._last is None else {"weights": self._last.weights, "bias": self._last.bias}
        numbers = {"bank_step": self._bank_step, "inverse_penalty": self._inverse_penalty}
        return {"bank": self._bank, **last, **{name: torch.tensor(number) for name, number in numbers.items()}}

    def remember(self, memory: dict[str, Tensor]) -> None:
        self._bank, self._bank_step = memory["bank"], int(memory["bank_step"])
        self._inverse_penalty = float(memory["inverse_penalty"])
        if self._last is not None:
            self._last = replace(self._last, weights=memory["weights"], bias=memory["bias"])

    def finish(self) -> None:
        bank, selection = self._embedded(self.rows), self._embedded(self.selection_rows)
        self.predictor.readout = self._solved(bank, selection)[0]

    @property
    def labels(self) -> int:
        return len(self.predictor.manner.labels)

    def _bank_at(self, step: int) -> Tensor:
        if step != self._bank_step:
            self._bank, self._bank_step = self._embedded(self.rows), step
        return self._bank

    def _solved(self, bank: Tensor, selection: Tensor) -> tuple[Readout, float]:
        """The read-out on these features of the fit examples, and its inverse penalty (0 for prototypes)."""
        if self.kind == "prototypes":
            return from_prototypes(bank, self.targets, self.labels), 0.0
        return best_logistic_regression(bank, self.targets, selection, self.selection_targets, self.labels)

    def _embedded(self, rows: list[list[int]]) -> Tensor:
        soft = self.predictor.adaptation.soft
        with self.predictor.adaptation.active():
            return embed(self.predictor.host, rows, soft=None if soft is None else soft.detach())


class AnswerLikelihood:
    """Mean negative log-likelihood per token of the written answers, end of text included; prompts are not scored."""

    def __init__(
        self, predictor: Predictor, fit: Sequence[Example], selection: Sequence[Example], score: Score
    ) -> None:
        self.predictor, self.score = predictor, score
        self.prompts = predictor.rows([x.input for x in fit])
        self.answers = [self._answer(x.target) for x in fit]
        self.selection = list(selection)
        self.selection_prompts = predictor.rows([x.input for x in selection])
        self.selection_answers = [self._answer(x.target) for x in selection]
        self.examples = len(self.prompts)
        pairs = zip(self.prompts, self.answers, strict=True)
        self.lengths = [len(prompt) + len(answer) for prompt, answer in pairs]

    def _answer(self, target: str) -> list[int]:
        end = getattr(self.predictor.host.tokenizer, "eos_token_id", None)
        room = self.predictor.manner.max_new_tokens
        answer = self.predictor.completion(target)
        return (answer + ([] if end is None or answer[-1] == end else [end]))[:room]

    def loss(self, indices: list[int], step: int) -> Tensor:
        del step
        return self._loss([self.prompts[i] for i in indices], [self.answers[i] for i in indices])

    def _loss(self, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
        adaptation = self.predictor.adaptation
        with adaptation.active():
            return completion_loss(self.predictor.host, prompts, answers, soft=adaptation.soft)

    def weight(self, indices: list[int]) -> float:
        return float(sum(len(self.answers[index]) for index in indices))

    def evaluate(self, step: int) -> tuple[float, float]:
        del step
        outputs = [answer.output for answer in self.predictor.answer([x.input for x in self.selection])]
        with torch.no_grad():
            losses = [
                float(self._loss([self.selection_prompts[i] for i in part], [self.selection_answers[i] for i in part]))
                for part in batches([len(row) for row in self.selection_prompts], 32)
            ]
        return self.score([x.target for x in self.selection], outputs), -sum(losses) / len(losses)

    def memory(self) -> dict[str, Tensor]:
        return {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        del memory

    def finish(self) -> None:
        return


def targets_of(predictor: Predictor, examples: Sequence[Example]) -> Tensor:
    """Indices of the examples' labels in the predictor's order, `(example,)`."""
    order = {label: index for index, label in enumerate(predictor.manner.labels)}
    return torch.tensor([order[example.target] for example in examples])


def judged(scores: Tensor, targets: Tensor, predictor: Predictor, score: Score) -> tuple[float, float]:
    """The task's metric of label scores `(row, label)` against `targets` `(row,)`, and minus their cross-entropy."""
    labels = predictor.manner.labels
    wanted = [labels[index] for index in targets.tolist()]
    given = [labels[index] for index in scores.argmax(dim=1).tolist()]
    return score(wanted, given), -float(nn.functional.cross_entropy(scores, targets))
