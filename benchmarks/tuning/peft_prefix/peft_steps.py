"""The loop that PEFT's documentation fits with: AdamW, and a linear schedule, after a warm-up where there is one.

Batches are those of ours (`foreword.tuning.batching`). A batch's loss may come in parts that are summed: their
gradients add up to the whole's, and rows of like length need less padding. Looks at the selection and the unseen
examples are not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from runs import WARM_UP, Fixed, is_unseen_look
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from foreword.tuning.batching import Batches


def peft_run(
    model: nn.Module,
    losses: Callable[[list[int]], Iterable[Tensor]],
    right: Callable[[int], list[int]],
    settings: dict[str, Any],
    *,
    examples: int,
    fixed: Fixed,
    steps: int,
    seed: int,
    warm_up: float = WARM_UP,
    looks_at_unseen: bool = True,
) -> dict[str, Any]:
    """Fit `model`'s parameters by the sum of `losses` of example indices, and look every few steps.

    `right(1)` says which selection examples the model answers rightly, `right(2)` which unseen ones; the best state is
    the one that the selection split says. Where settings are only searched, nobody looks at the unseen ones.
    """
    fitted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(fitted, lr=settings["learning_rate"])
    schedule = get_linear_schedule_with_warmup(optimizer, int(warm_up * steps), steps)
    drawn, seconds = Batches(examples, fixed.batch, seed), 0.0
    curve: list[tuple[int, float, float]] = []
    unseen: list[tuple[int, float]] = []
    best_step, kept, best = 0, list[int](), -1.0
    for step in range(steps + 1):
        if step % fixed.every == 0 or step == steps:
            selected = right(1)
            curve.append((step, seconds, sum(selected) / len(selected)))
            is_best = curve[-1][2] > best
            is_looked_at = looks_at_unseen and (is_best or is_unseen_look(step))
            answered = right(2) if is_looked_at else []
            if answered:
                unseen.append((step, sum(answered) / len(answered)))
            if is_best:
                best_step, kept, best = step, answered, curve[-1][2]
        if step < steps:
            started = time.perf_counter()
            optimizer.zero_grad()
            for part in losses(drawn.at(step)):
                part.backward()
            optimizer.step()
            schedule.step()
            seconds += time.perf_counter() - started
    return {"curve": curve, "unseen": unseen, "right": kept, "best_step": best_step, "settings": settings}
