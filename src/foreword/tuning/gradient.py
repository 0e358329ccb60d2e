"""The gradient of one batch: in parts where it does not fit into memory, in lower precision, over several devices.

It knows how a mean over a batch is put together from the means of its parts; it does not know what becomes of the
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from foreword.engine.batches import is_out_of_memory
from foreword.errors import FitError
from foreword.tuning.devices import Devices
from foreword.tuning.fittable import Problem
from foreword.tuning.loop_settings import FitSettings


class Gradient:
    """Leaves the gradient of a batch's mean loss, clipped, in the parameters.

    `part` is how many examples are computed at once, None for the whole batch; it is halved when they do not fit, and
    `notice` is told.
    """

    def __init__(
        self,
        problem: Problem,
        parameters: Sequence[nn.Parameter],
        settings: FitSettings,
        devices: Devices,
        notice: Callable[[str], None],
    ) -> None:
        self.problem, self.parameters, self.settings = problem, list(parameters), settings
        self.devices, self.notice = devices, notice
        self.part: int | None = settings.part
        self.device = self.parameters[0].device.type
        self.scaler = torch.amp.GradScaler(self.device, enabled=settings.precision == "float16")

    def autocast(self) -> AbstractContextManager[object]:
        """The context that losses and scores are computed in."""
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device, dtype=getattr(torch, self.settings.precision))

    def of(self, indices: list[int], step: int, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        """Loss of a batch and norm of its gradient before clipping, either of them perhaps not finite.

        FitError when not even one example fits into memory.
        """
        while True:
            try:
                return self._by_parts(indices, step, optimizer)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error, len(self.devices.share(indices)))
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _by_parts(self, indices: list[int], step: int, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        optimizer.zero_grad(set_to_none=True)
        mine = self.devices.share(indices)
        size = self.part or max(1, len(mine))
        if size < len(mine):
            mine = sorted(mine, key=lambda index: self.problem.lengths[index])
        total = torch.zeros((), dtype=torch.float64)
        for start in range(0, len(mine), size):
            part = mine[start : start + size]
            with self.autocast():
                loss = self.problem.loss(part, step)
            _check_reached(loss)
            if len(part) < len(indices):
                loss = loss * (self.problem.weight(part) / self.problem.weight(indices))
            torch.autograd.backward(self.scaler.scale(loss))
            total += loss.detach().double().cpu()
        if self.devices.count > 1:
            self._sum(total)
        self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        return float(total), float(norm)

    def _sum(self, total: Tensor) -> None:
        for parameter in self.parameters:  # a process without a share has none
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        total_here = total.to(self.parameters[0].device, torch.float32)
        self.devices.sum([total_here, *[p.grad for p in self.parameters if p.grad is not None]])
        total.copy_(total_here)

    def _halve(self, error: BaseException, whole: int) -> None:
        size = min(self.part or whole, whole)
        self.part = halved_part(size, error)
        self.notice(f"a batch of {size} does not fit into memory: read in parts of {self.part}")


def _check_reached(loss: Tensor) -> None:
    """FitError when the loss does not depend on anything that is fitted."""
    if not loss.requires_grad:
        raise FitError(
            "Nothing that is fitted has a part in the answers.",
            expected="a prefix where the answers are read from",
            found="a loss that does not depend on it",
            fix="Leave layers out, or name others: a read-out of features is of an encoder-decoder's encoder, "
            "and its decoder's layers have no part in it.",
        )


def halved_part(size: int, error: BaseException) -> int:
    """Half of a part that did not fit into memory, as `error` says; FitError when it was a single example."""
    if size <= 1:
        raise FitError(
            "Not even one example fits into memory.",
            expected="memory for one forward and backward pass",
            found=str(error).splitlines()[0][:200],
            fix="Shorten the inputs (max_input_tokens), fit with checkpointing, or use a smaller base model.",
        ) from error
    return size // 2
