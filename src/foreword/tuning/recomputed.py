"""A problem whose losses keep no activations: the base model's layers are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from foreword.engine.checkpointing import checkpointed
from foreword.engine.host import Host
from foreword.tuning.fittable import Problem


class Recomputed:
    """`problem`, with gradient checkpointing in its losses and none in its evaluations, which may use caches.

    A layer is computed again within `again()`: what an adaptation put into the layers must be there then, too.
    """

    def __init__(self, problem: Problem, host: Host, again: Callable[[], AbstractContextManager[None]]) -> None:
        self.problem, self.host, self.again, self.examples = problem, host, again, problem.examples

    @property
    def is_kept_by_loss(self) -> bool:
        return self.problem.is_kept_by_loss

    @property
    def lengths(self) -> Sequence[int]:
        return self.problem.lengths

    def loss(self, indices: list[int], step: int) -> Tensor:
        with checkpointed(self.host.model, self.again):
            return self.problem.loss(indices, step)

    def weight(self, indices: list[int]) -> float:
        return self.problem.weight(indices)

    def evaluate(self, step: int) -> tuple[float, float]:
        return self.problem.evaluate(step)

    def memory(self) -> dict[str, Tensor]:
        return self.problem.memory()

    def remember(self, memory: dict[str, Tensor]) -> None:
        self.problem.remember(memory)
