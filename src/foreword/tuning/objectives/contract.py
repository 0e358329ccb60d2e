"""What every objective gives a fit: a loss over examples, and how the state is judged on the selection split.

An objective reads its examples once, when it is made, and says how many of them it had to cut. It knows nothing of
optimisers, steps to take or when to stop (`foreword.tuning.fit`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foreword.engine.rendering import Rendered
from foreword.errors import DataError, FitError
from foreword.tuning.adaptation import Bare, FittedPrefix
from foreword.tuning.examples import Example
from foreword.tuning.predictor import Predictor

Score = Callable[[Sequence[str], Sequence[str]], float]
# Example index to the prefix's positions that were made from this example.
OwnPositions = Mapping[int, slice | Sequence[int]]

# With fewer demonstrations than this, leaving one out takes away too much of what the others are read by: Context
# Tuning (arXiv 2507.04221) found masking to hurt there.
FEWEST_MASKED = 4
# Before all steps: what an objective remembers of a step is not taken for the bare model's.
NO_STEP = -2


@dataclass(frozen=True)
class Ground:
    """What an objective is made from.

    `own` says which positions of the prefix were made from which fit example; while an example is fitted, its own
    positions are then out of its sight. Empty: nothing is hidden. `reserve` tokens are left free beside every prompt,
    for a teacher that reads it behind a text. `told` is what the fit's record tells of how it was made.
    """

    predictor: Predictor
    fit: Sequence[Example]
    selection: Sequence[Example]
    score: Score
    own: OwnPositions = field(default_factory=dict)
    reserve: int = 0
    told: Mapping[str, Any] = field(default_factory=dict)

    def read(self, examples: Sequence[Example]) -> list[Rendered]:
        """The prompts of `examples`."""
        return self.predictor.rendered([example.input for example in examples], reserve=self.reserve)

    def __post_init__(self) -> None:
        check_metric(self.selection, self.score)


class Objective(ABC):
    """A loss over `examples` examples and its judgement; final classes add what they minimise.

    `lengths` are the tokens that each example makes the model read, for batches of like length. `cut` counts inputs, by
    split, of which the end was cut off.

    `is_kept_by_loss`: the best state is the one whose loss on the selection split is least, and not the one that the
    metric rates highest: so where the loss itself, and not the targets, says what is wanted.
    """

    is_kept_by_loss: ClassVar[bool] = False

    def __init__(self, ground: Ground) -> None:
        self.predictor, self.score, self.told = ground.predictor, ground.score, dict(ground.told)
        self.own: OwnPositions = {}
        self.hide(ground.own)
        self.selection = list(ground.selection)
        fit, selection = ground.read(ground.fit), ground.read(ground.selection)
        self.rows, self.selection_rows = [found.ids for found in fit], [found.ids for found in selection]
        self.examples = len(self.rows)
        self.cut = {
            name: sum(found.is_cut for found in split) for name, split in (("fit", fit), ("selection", selection))
        }

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.rows]

    def weight(self, indices: Sequence[int]) -> float:
        """How many terms the loss of these examples is a mean over: the examples, unless a class says otherwise.

        The loss of a batch is the mean of its parts' losses by these weights.
        """
        return len(indices)

    def hide(self, own: OwnPositions) -> None:
        """From now on, no example sees the positions of the prefix that were made from it.

        FitError when what is fitted has no positions to hide.
        """
        if own and not isinstance(self.predictor.adaptation, FittedPrefix):
            raise FitError(
                "Only a prefix has positions that can be hidden from the example they were made from.",
                expected="a fitted prefix",
                found=type(self.predictor.adaptation).__name__,
                fix="Leave leave_one_out out of this candidate.",
            )
        self.own = dict(own)

    def active(self, indices: Sequence[int]) -> AbstractContextManager[None]:
        """The adaptation for a batch of these examples, each blind to its own positions."""
        adaptation = self.predictor.adaptation
        hidden = [self.own.get(index) for index in indices]
        if isinstance(adaptation, FittedPrefix) and any(found is not None for found in hidden):
            return adaptation.active_without(hidden)
        return adaptation.active()

    @abstractmethod
    def loss(self, indices: list[int], step: int) -> Tensor:
        """Mean loss of these examples at this step, a scalar with gradients."""

    @abstractmethod
    def evaluate(self, step: int) -> tuple[float, float]:
        """After `step` steps: the metric on the selection split, and minus the loss there."""

    def apart(self) -> list[float]:
        """How far each lesson of the selection split is from its teacher, in the loss's units; none without one."""
        return []

    def teacher_score(self) -> float | None:
        """The metric of the teacher itself on the selection split; None without one that answers there."""
        return None

    def bare_score(self) -> float:
        """The metric of the bare model on the selection split, as `evaluate` finds it; it leaves nothing behind."""
        fitted, memory = self.predictor.adaptation, self.memory()
        self.predictor.adaptation = Bare()
        try:
            self.calibrate()
            return self.evaluate(NO_STEP)[0]
        finally:
            self.predictor.adaptation = fitted
            self.remember(memory)

    def calibrate(self, offsets: Tensor | None = None) -> None:
        """Settle what depends on the state that a fit begins with, once the first values are in their place.

        `offsets` `(label,)` are those that the first values were fitted with, in nats, where they were.
        """
        del offsets

    def memory(self) -> dict[str, Tensor]:
        """What later losses depend on besides the parameters."""
        return {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Take up the memory of a checkpoint."""
        del memory

    def finish(self) -> None:
        """Give the predictor what it answers with, once the parameters are the best ones."""
        return

    def details(self) -> dict[str, Any]:
        """What a record of the fit should tell: the objective's name, the inputs that were cut, by split, and more."""
        masked = {"leave_one_out": len(self.own)} if self.own else {}
        return {"objective": type(self).__name__, "inputs_cut": dict(self.cut), **masked, **self.told}


def masked_positions(own: OwnPositions | None, wanted: bool | None) -> OwnPositions:
    """The positions to hide from their own examples: all when wanted, none when not, for None from 4 examples on."""
    if own is None:
        return {}
    hides = len(own) >= FEWEST_MASKED if wanted is None else wanted
    return own if hides else {}


def check_metric(selection: Sequence[Example], score: Score) -> None:
    """DataError when the metric tells nothing on the selection split.

    That is, when it has no value even for answers that are all right, or the same value for empty ones: words of
    targets that have none, or JSON where no target is JSON.
    """
    targets = [example.target for example in selection]
    found = score(targets, targets) if targets else math.nan
    if targets and found == score(targets, [""] * len(targets)):
        raise DataError(
            "The metric cannot tell right answers from empty ones on the selection split.",
            expected="targets that it rates higher than an empty answer",
            found=f"{found:.3g} for both, with targets such as {targets[0][:60]!r}",
            fix="State another metric, such as exact-match, or correct the targets.",
        )
    if not math.isfinite(found):
        raise DataError(
            "The metric is undefined on the selection split, so no state of a fit could be chosen by it.",
            expected="a number for answers that equal the targets",
            found=f"{found} on {len(targets)} examples",
            fix="Give the selection split more examples, or state another metric.",
        )


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
