"""Cross-entropy over labels: by the predictor's own scores, or against leave-one-out class prototypes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foreword.engine.batches import in_batches
from foreword.engine.generation import embed, features
from foreword.errors import DataError
from foreword.tuning.objectives.contract import Ground, Objective, judged, targets_of
from foreword.tuning.predictor import Predictor
from foreword.tuning.readout import (
    Readout,
    best_logistic_regression,
    from_prototypes,
    logistic_regression,
    without_self,
)

# Inputs that offsets are a mean over: their standard error is then an eighth of a score's own spread over inputs.
CALIBRATED_ON = 64
# Steps after which the prototypes that a fit is trained against are computed anew.
BANK_STEPS = 8


class LabelCrossEntropy(Objective):
    """Cross-entropy over the labels by the predictor's own scores: similarity to fixed texts, or label likelihoods.

    With `is_calibrated` the likelihoods get the offsets of the state that the fit begins with, which stay as they are.
    """

    def __init__(self, ground: Ground, *, is_calibrated: bool = False) -> None:
        super().__init__(ground)
        self.is_calibrated = is_calibrated
        self.targets = targets_of(self.predictor, ground.fit)
        self.selection_targets = targets_of(self.predictor, ground.selection)

    def loss(self, indices: list[int], step: int) -> Tensor:
        del step
        with self.active(indices):
            scores = self.predictor.label_scores([self.rows[index] for index in indices])
        return nn.functional.cross_entropy(scores, self.targets[indices].to(scores.device))

    def evaluate(self, step: int) -> tuple[float, float]:
        del step
        scores = all_label_scores(self.predictor, self.selection_rows)
        return judged(scores, self.selection_targets, self.predictor, self.score)

    def calibrate(self, offsets: Tensor | None = None) -> None:
        if self.is_calibrated:
            found = offsets_of(self.predictor, self.rows, self.targets) if offsets is None else offsets
            self.predictor.offsets = found

    def memory(self) -> dict[str, Tensor]:
        return {} if self.predictor.offsets is None else {"offsets": self.predictor.offsets}

    def remember(self, memory: dict[str, Tensor]) -> None:
        self.predictor.offsets = memory.get("offsets")

    def details(self) -> dict[str, Any]:
        offsets = self.predictor.offsets
        if offsets is None:
            return super().details()
        told = dict(zip(self.predictor.manner.labels, offsets.tolist(), strict=True))
        return {**super().details(), "label_offsets": told, "calibrated_on": len(_sampled(self.rows))}


class ClassContrast(Objective):
    """Cross-entropy against class prototypes made of the *other* fit examples, for read-outs learned from examples.

    A head that has seen an example says little about it: with hundreds of numbers per label and tens of examples, every
    training loss is near 0 and has no slope. Leaving each example out of its own class keeps the loss honest. The
    prototypes of a step are constants, computed anew every few steps. What answers in the end is solved on the adapted
    features of all examples: prototypes, or a logistic regression.
    Snell, Swersky, Zemel, "Prototypical networks for few-shot learning", 2017, here with cosine similarity.
    """

    def __init__(self, ground: Ground, *, kind: str) -> None:
        super().__init__(ground)
        self.targets = targets_of(self.predictor, ground.fit)
        self._bank, self._bank_step = torch.empty(0), -1
        self._learned = LearnedReadout(self.predictor, self.targets, targets_of(self.predictor, ground.selection), kind)

    def loss(self, indices: list[int], step: int) -> Tensor:
        bank = self._bank_at(step - step % BANK_STEPS) if step % BANK_STEPS == 0 or self._bank_step < 0 else self._bank
        with self.active(indices):
            found = features(self.predictor.host, [self.rows[i] for i in indices], soft=self.predictor.adaptation.soft)
        own = torch.tensor(indices)
        scores = without_self(found, bank, self.targets[own], self.targets, own)
        return nn.functional.cross_entropy(scores, self.targets[own].to(scores.device))

    def evaluate(self, step: int) -> tuple[float, float]:
        scores = self._learned.scores(self._bank_at(step), adapted_features(self.predictor, self.selection_rows))
        return judged(scores, self._learned.selection_targets, self.predictor, self.score)

    def memory(self) -> dict[str, Tensor]:
        return {"bank": self._bank, "bank_step": torch.tensor(self._bank_step), **self._learned.memory()}

    def remember(self, memory: dict[str, Tensor]) -> None:
        self._bank, self._bank_step = memory["bank"], int(memory["bank_step"])
        self._learned.remember(memory)

    def finish(self) -> None:
        bank, selection = (adapted_features(self.predictor, rows) for rows in (self.rows, self.selection_rows))
        self.predictor.readout = self._learned.final(bank, selection)

    def _bank_at(self, step: int) -> Tensor:
        if step != self._bank_step:
            self._bank, self._bank_step = adapted_features(self.predictor, self.rows), step
        return self._bank


class LearnedReadout:
    """The read-out that a state of a fit would answer with: solved on features of the fit examples, each time anew."""

    def __init__(self, predictor: Predictor, targets: Tensor, selection_targets: Tensor, kind: str) -> None:
        self.targets, self.selection_targets, self.kind = targets, selection_targets, kind
        self.labels = len(predictor.manner.labels)
        self._inverse_penalty, self._last = 0.0, predictor.readout

    def scores(self, bank: Tensor, selection: Tensor) -> Tensor:
        """`(row, label)`, for features `selection` `(row, hidden)`, solved on those of `bank` `(example, hidden)`."""
        if self.kind == "linear" and self._inverse_penalty:
            # The penalty stays the one that was best at the start: searching it each time would take longer than steps.
            self._last = logistic_regression(
                bank, self.targets, self.labels, inverse_penalty=self._inverse_penalty, start=self._last
            )
        else:
            self._last, self._inverse_penalty = self._solved(bank, selection)
        return self._last.scores(selection)

    def final(self, bank: Tensor, selection: Tensor) -> Readout:
        """The read-out to answer with, its penalty searched once more."""
        return self._solved(bank, selection)[0]

    def memory(self) -> dict[str, Tensor]:
        last = {} if self._last is None else {"weights": self._last.weights, "bias": self._last.bias}
        return {**last, "inverse_penalty": torch.tensor(self._inverse_penalty)}

    def remember(self, memory: dict[str, Any]) -> None:
        self._inverse_penalty = float(memory["inverse_penalty"])
        if self._last is not None:
            self._last = replace(self._last, weights=memory["weights"], bias=memory["bias"])

    def _solved(self, bank: Tensor, selection: Tensor) -> tuple[Readout, float]:
        """The read-out on these features of the fit examples, and its inverse penalty (0 for prototypes)."""
        if self.kind == "prototypes":
            return from_prototypes(bank, self.targets, self.labels), 0.0
        return best_logistic_regression(bank, self.targets, selection, self.selection_targets, self.labels)


def offsets_of(predictor: Predictor, rows: list[list[int]], targets: Tensor) -> Tensor:
    """What is added to the labels' log-likelihoods `(label,)`, in nats, so that they start out as usual as labels are.

    How likely a label is as a text (its length, its tokens' frequency) is in every one of its scores and says nothing
    about the input. Taken off is its mean score over inputs (Zhou et al. 2023, "Batch Calibration"), put on the log of
    its share of the fit split's `targets` (add-one smoothing). By the predictor as it is, uncalibrated. DataError when
    a label's score is not finite.
    """
    predictor.offsets = None
    scores = all_label_scores(predictor, _sampled(rows))
    _check_finite(scores, predictor.manner.labels)
    usual = scores.mean(dim=0)
    counts = torch.bincount(targets, minlength=len(usual)).float() + 1
    return (counts / counts.sum()).log() - usual


def _check_finite(scores: Tensor, labels: Sequence[str]) -> None:
    """DataError that names the labels with scores `(row, label)` that have no mean."""
    broken = (~scores.isfinite()).sum(dim=0).tolist()
    found = [f"{label!r} after {count} of {len(scores)}" for label, count in zip(labels, broken, strict=True) if count]
    if found:
        raise DataError(
            "The base model gives labels no likelihood, so that they cannot be calibrated.",
            expected="a finite log-likelihood of every label after every input",
            found=f"infinite or no numbers: {', '.join(found[:6])} inputs",
            fix="Load the model in float32 if it is in lower precision, give these labels other names, or let every "
            'candidate read them from features: readout = "prototypes" or "linear".',
        )


def _sampled(rows: list[list[int]]) -> list[list[int]]:
    """At most CALIBRATED_ON of the rows, evenly over their order."""
    count = min(len(rows), CALIBRATED_ON)
    return [rows[number * len(rows) // count] for number in range(count)]


def all_label_scores(predictor: Predictor, rows: list[list[int]]) -> Tensor:
    """Label scores `(row, label)` under the adaptation, without gradients, on the CPU."""
    scores = torch.empty(len(rows), len(predictor.manner.labels))

    def computed(indices: list[int]) -> Tensor:
        return predictor.label_scores([rows[index] for index in indices]).float().cpu()

    with torch.no_grad(), predictor.adaptation.active():
        for indices, found in in_batches([len(row) for row in rows], 32, computed):
            scores[indices] = found
    return scores


def adapted_features(predictor: Predictor, rows: list[list[int]]) -> Tensor:
    """Features `(row, hidden)` under the adaptation, without gradients, on the CPU."""
    soft = predictor.adaptation.soft
    with predictor.adaptation.active():
        return embed(predictor.host, rows, soft=None if soft is None else soft.detach())
