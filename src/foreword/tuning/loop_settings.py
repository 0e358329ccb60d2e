"""The settings of the fitting loop, plain numbers without torch: a task file is checked before torch is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["constant", "cosine", "inverse-sqrt"]
# Steps after which an "inverse-sqrt" rate has fallen to 0.71 of what it was.
FALLING_STEPS = 32


@dataclass(frozen=True)
class FitSettings:
    """At most `steps` steps of `batch_size` examples, within `seconds` of wall time over all resumes.

    The selection score is taken every `evaluate_every` steps and at the start; after `patience` of them without a
    better one the fit stops. `clip` bounds the gradient's norm. `learning_rate` None: the adaptation's own; "find":
    searched from the start state, which takes 48 steps. `schedule`: "cosine" warms up over a twentieth of the steps and
    falls to a tenth; "inverse-sqrt" falls as 1 / sqrt(1 + step / 32), however many steps are to come. `part`: examples
    computed at once, the gradients of a batch's parts being added up; a part that does not fit into memory is halved.
    `bucketed`: batches of examples of like length. `precision`: what products are computed in; the parameters stay as
    they are.
    """

    steps: int
    batch_size: int
    seconds: float
    evaluate_every: int = 8
    patience: int = 6
    learning_rate: float | Literal["find"] | None = None
    clip: float = 1.0
    schedule: Schedule = "constant"
    part: int | None = None
    bucketed: bool = False
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    def rate_at(self, step: int) -> float:
        """The schedule's factor of the learning rate at a step, in (0, 1]."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "inverse-sqrt":
            return 1 / math.sqrt(1 + step / FALLING_STEPS)
        warm = max(1, self.steps // 20)
        if step < warm:
            return (step + 1) / warm
        return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, self.steps - warm)))
