"""The processes that share a fit, one per device: `torchrun` or, on GPUs, `accelerate launch` starts them.

Every process takes the same steps from the same batches; each computes its share of the batch, and the gradients are
summed. What is decided from measured time or scores is decided by the first process, so that no two disagree.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from foreword.errors import FitError

T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this process is the one that writes files and speaks, as its launcher says."""
    return os.environ.get("RANK", "0") == "0"


def launched_alone() -> str | None:
    """A sentence when accelerate's launcher was asked for several processes and started this one alone.

    It does so on CPUs: its one process has an address to meet the others at, but is not told how many they are.
    """
    told = os.environ
    if "ACCELERATE_MIXED_PRECISION" in told and "MASTER_ADDR" in told and "WORLD_SIZE" not in told:
        return (
            "accelerate was asked for several processes, but started one, which fits alone; "
            "on CPUs start them with torchrun --nproc-per-node=N -m foreword.cli.main fit ..."
        )
    return None


class Devices:
    """This process among `count` of them; `index` 0 is the one that writes files."""

    def __init__(self) -> None:
        self.index, self.count, self.device = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            try:
                from accelerate import PartialState
            except ImportError as error:
                raise FitError(
                    "A fit on several devices needs the accelerate library, which is not installed.",
                    expected="accelerate 1.0 or later",
                    found="no accelerate in this environment",
                    fix="pip install accelerate, or start one process.",
                ) from error
            state = PartialState(cpu=not torch.cuda.is_available())
            self.index, self.count, self.device = state.process_index, state.num_processes, str(state.device)

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def share(self, indices: Sequence[int]) -> list[int]:
        """This process's part of a batch."""
        return list(indices[self.index :: self.count])

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        for tensor in tensors:
            tensor.copy_(reduce(tensor, "sum"))

    def told(self, value: T) -> T:
        """The first process's value, in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        return broadcast_object_list([value])[0]  # type: ignore[no-any-return]
