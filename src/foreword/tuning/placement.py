"""Where a fitted prefix sits, and what of it is fitted: layers, key heads, keys and values or values alone.

It knows positions in the list of a host's attention sites. Which choice is good it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foreword.engine.host import Host
from foreword.errors import FitError

# A logit bias this low leaves a position weight 0 in every dtype (float16 ends at 65504): exp(-1e4) rounds to 0.
ABSENT = -1e4


@dataclass(frozen=True)
class Placement:
    """Which attention sites (by their order in `host.sites`) and key heads carry a prefix; None: all of them.

    `train` "values" keeps the first keys as they are; `sink` keeps the whole first position, where attention goes that
    has nowhere else to go.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    train: Literal["both", "values"] = "both"
    sink: bool = False

    def check(self, host: Host, positions: int) -> None:
        """FitError when the host has no such layer or head, or when nothing is left to fit."""
        _within(self.layers, len(host.sites), "layers", host)
        _within(self.heads, min(site.kv_heads for site in host.sites), "heads", host)
        if self.sink and positions < 2:
            raise FitError(
                "A prefix of one position, kept as a sink, has nothing to fit.",
                expected="2 positions or more with sink = true",
                found=str(positions),
                fix="Raise positions, or leave sink out.",
            )

    def sites(self, host: Host) -> tuple[str, ...]:
        """The names of the sites that carry the prefix, in the host's order."""
        names = tuple(site.name for site in host.sites)
        return names if self.layers is None else tuple(names[layer] for layer in self.layers)

    def masked(self, bias: Tensor | None, kv_heads: int, positions: int) -> Tensor | None:
        """The logit bias `(kv_head or head, position)` with heads that carry nothing absent."""
        if self.heads is None:
            return bias
        bias = torch.zeros(kv_heads, positions) if bias is None else bias.clone()
        carried = torch.zeros(kv_heads, dtype=torch.bool)
        carried[list(self.heads)] = True
        bias[~carried.repeat_interleave(len(bias) // kv_heads).to(bias.device)] = ABSENT
        return bias


def _within(chosen: Sequence[int] | None, count: int, what: str, host: Host) -> None:
    if chosen is not None and (beyond := [number for number in chosen if not 0 <= number < count]):
        raise FitError(
            f"The base model has no such {what} for a prefix.",
            expected=f"numbers from 0 to {count - 1}" + (" (of key heads)" if what == "heads" else ""),
            found=f"{', '.join(map(str, beyond))}, for {host.reference}",
            fix=f"Correct {what} of the candidate; host.sites lists what there is.",
        )
