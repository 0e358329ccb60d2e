"""What a fitted predictor does on each example of the selection split: its answer, and its loss there.

This is what paired comparisons are made of. It draws no conclusion; `foreword.tuning.length_choice` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foreword.engine.generation import completion_loss
from foreword.tuning.candidates import Workbench
from foreword.tuning.examples import Example
from foreword.tuning.predictor import Predictor

ROWS = 32


@dataclass(frozen=True)
class Outcomes:
    """For each example of the selection split, in its order: the answer, and the loss of the target.

    `losses` are in nats: minus the log-probability of the right label; for written answers, minus the mean
    log-probability of the target's tokens. Where a teacher is imitated (`is_taught`) the examples are its lessons,
    `losses` how far it is from each, and what is written does not count: `outputs` is empty.
    """

    outputs: tuple[str, ...]
    losses: tuple[float, ...]
    is_taught: bool = False

    @property
    def loss(self) -> float:
        """The mean loss."""
        return sum(self.losses) / len(self.losses)

    @property
    def likenesses(self) -> NDArray[np.float64]:
        """exp(-loss) of each example, in [0, 1]: a target's probability, or how like the teacher it is on a lesson."""
        return np.asarray(np.exp(-np.maximum(self.losses, 0.0)))


def outcomes_of(bench: Workbench, predictor: Predictor) -> Outcomes:
    """Answer and loss of `predictor` on every example of the workbench's selection split."""
    inputs = [example.input for example in bench.splits.selection]
    outputs = tuple(answer.output for answer in predictor.answer(inputs))
    return Outcomes(outputs, tuple(losses_of(predictor, bench.splits.selection)))


def losses_of(predictor: Predictor, examples: Sequence[Example]) -> list[float]:
    """The loss of each example's target, in nats, as `Outcomes` tells them; nothing is generated."""
    rows, targets = predictor.rows([x.input for x in examples]), [x.target for x in examples]
    found: list[float] = []
    with torch.no_grad(), predictor.adaptation.active():
        if predictor.manner.kind == "generate":
            for row, target in zip(rows, targets, strict=True):
                answer = predictor.completion(target)[: predictor.manner.max_new_tokens]
                found.append(float(completion_loss(predictor.host, [row], [answer], soft=predictor.adaptation.soft)))
            return found
        right = torch.tensor([predictor.manner.labels.index(target) for target in targets])
        for start in range(0, len(rows), ROWS):
            scores = predictor.label_scores(rows[start : start + ROWS]).float().cpu()
            part = nn.functional.cross_entropy(scores, right[start : start + ROWS], reduction="none")
            found.extend(map(float, part))
    return found
