"""What the fitting loop is given and what it gives back: the two contracts, the outcome, who is told of it.

A `Problem` is a loss over examples and a score; a `Fittable` has parameters. The loop knows neither task nor model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from foreword.tuning.adaptation import ParameterGroup
from foreword.tuning.checkpoint import Moment

# From the first values' score on the selection split to notices.
JudgeStart = Callable[[float], Sequence[str]]


@dataclass(frozen=True)
class FitOutcome:
    """How a fit went; the parameters hold the best state. `stopped_by` is "steps", "seconds" or "patience".

    `notices` are what was done of its own accord: batches halved, learning rates halved or found, best state taken
    back; and what was found amiss with the first values or the launch. `factor` is what the adaptation's learning rates
    were multiplied by in the end. `about` is what was told of the first values when the fit began. `start_loss` and
    `best_loss` are the losses on the selection split that the fit began with and the best state has.
    """

    history: tuple[Moment, ...]
    best: Moment
    seconds: float
    stopped_by: str
    notices: tuple[str, ...] = ()
    factor: float = 1.0
    about: Mapping[str, Any] = field(default_factory=dict)
    start_loss: float = 0.0
    best_loss: float = 0.0


class Problem(Protocol):
    """What an adaptation is fitted to."""

    examples: int

    @property
    def is_kept_by_loss(self) -> bool:
        """Whether the best state is that of the least loss on the selection split; else that of the best score."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """Each example's number of tokens."""
        ...

    def loss(self, indices: list[int], step: int) -> Tensor:
        """Loss of these examples at this step, a scalar with gradients: a mean in which each has its weight."""
        ...

    def weight(self, indices: list[int]) -> float:
        """What these examples weigh together in a mean: their number, or that of their scored tokens."""
        ...

    def evaluate(self, step: int) -> tuple[float, float]:
        """After `step` steps: score on the selection split (higher is better), and minus the loss there.

        The best state is chosen by one of them (`is_kept_by_loss`), and of equals by the other.
        """
        ...

    def memory(self) -> dict[str, Tensor]:
        """What later losses depend on besides the parameters; saved with a checkpoint."""
        ...

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Take up the memory of a checkpoint."""
        ...


class Fittable(Protocol):
    """What a fit changes: an adaptation's parameters."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """By name."""
        ...

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        """The same parameters with their learning rates."""
        ...


@dataclass(frozen=True)
class StepTaken:
    """One step of at most `of`: its loss (NaN when it was not finite), the largest learning rate, seconds in all."""

    step: int
    of: int
    loss: float
    best: float
    rate: float
    seconds: float


class FitWatch:
    """Is told of a fit under way; logs and progress bars override what they need. This one ignores everything."""

    def start(self, step: int) -> None:
        """The loop begins after `step` steps; what was told of later ones is void."""

    def stepped(self, taken: StepTaken) -> None:
        """A step was taken."""

    def evaluated(self, moment: Moment) -> None:
        """The selection score was taken."""

    def notice(self, text: str) -> None:
        """The loop did something of its own accord."""

    def studied(self, number: int, of: int) -> None:
        """So many of the lessons about a document were written, before the first step."""

    def tried(self, number: int, of: int, best: float) -> None:
        """So many of the things to choose from were scored on the selection split."""
