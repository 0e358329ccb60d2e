"""Whether what is to be fitted fits into memory, looked at before anything of its size is made."""

from __future__ import annotations

import psutil
import torch

from foreword.errors import FitError

# In units of what is fitted: its numbers, their gradient and Adam's two moments where the model runs; in main memory
# the best state and, while a checkpoint is written, the state again and the file's bytes (all four).
ON_DEVICE, IN_MAIN_MEMORY = 4, 6


def free_bytes(device: torch.device) -> int:
    """Memory that is free where tensors of this device are made."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def check_room(device: torch.device, size: int, *, what: str, fix: str) -> None:
    """FitError when a fit of so many bytes on `device` does not fit, with what it would take.

    `what` begins the message, `fix` ends it.
    """
    cpu = torch.device("cpu")
    needed = {device: ON_DEVICE * size}
    needed[cpu] = needed.get(cpu, 0) + IN_MAIN_MEMORY * size
    for place, least in needed.items():
        if (free := free_bytes(place)) < least:
            raise FitError(
                f"{what} does not fit into memory.",
                expected=f"{least / 1e9:,.1f} GB free on {place}, for gradients, optimizer and checkpoint too",
                found=f"{free / 1e9:,.1f} GB",
                fix=fix,
            )
