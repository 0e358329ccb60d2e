"""Whether what is to be fitted fits into memory and time, looked at before anything of its size is made."""

from __future__ import annotations

import time
from collections.abc import Sequence

import psutil
import torch

from foreword.engine.attach import attached
from foreword.engine.generation import completion_loss, embed
from foreword.engine.host import Host
from foreword.engine.rendering import TokenIds
from foreword.errors import FitError
from foreword.prefix import Prefix

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


# Prefixes that are timed, and how often each: what a position adds is the difference, over that of their lengths.
# Nothing is timed for a fit of fewer positions than the longer one.
TIMED, TIMES = (2048, 16_384), 2


def check_time(
    host: Host, rows: Sequence[TokenIds], answers: Sequence[TokenIds], positions: int, *, passes: int, limit: float
) -> None:
    """FitError when so many passes over one text behind a prefix of so many positions take more than `limit` seconds.

    `rows` are texts as the model reads them, `answers` what it writes behind them; none of a model that only reads.
    Timed are shorter prefixes, whose keys and values are quicker to come by, so that the truth is rather longer.
    """
    if positions <= TIMED[1]:
        return
    short, long = (_seconds_behind(host, rows, answers, timed) for timed in TIMED)
    least = (long - short) / (TIMED[1] - TIMED[0]) / len(rows) * positions * passes
    if least > limit:
        raise FitError(
            f"A prefix of {positions:,} positions takes longer than the fit may.",
            expected=f"a single step, and looks at the selection split before and after it, within {limit:g} seconds",
            found=f"at least {least:,.0f} seconds, by what {TIMED[1]:,} positions take here",
            fix="Use fewer positions: a prefix longer than the texts that it is fitted to has nothing left to learn. "
            "Or give the fit more seconds.",
        )


def _seconds_behind(host: Host, rows: Sequence[TokenIds], answers: Sequence[TokenIds], positions: int) -> float:
    """The quickest of a few passes over the rows behind a prefix."""
    found = []
    with attached(host, Prefix.random(host, positions=positions)), torch.no_grad():
        for _ in range(1 + TIMES):
            started = time.perf_counter()
            if answers:
                completion_loss(host, rows, answers)
            else:
                embed(host, rows)
            found.append(time.perf_counter() - started)
    return min(found[1:])  # the first one is slower than all others
