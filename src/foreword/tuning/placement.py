"""Where a fitted prefix sits, and what of it is fitted: layers, key heads, keys and values or values alone.

It knows positions in the list of a host's attention sites. Which choice is good it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foreword.engine.host import Host
from foreword.engine.sites import Site
from foreword.errors import FitError
from foreword.prefix import ABSENT

# A message names so many of the layers that lack a head, and so many numbers in a row.
SHOWN, LISTED = 3, 8


@dataclass(frozen=True)
class Placement:
    """Which attention sites (by their order in `host.sites`) and key heads carry a prefix; None: all of them.

    `heads` are the same at every site, or a mapping has the heads of each site that carries it: `layers` is then None,
    and a site that it does not name carries nothing. `train` "values" keeps the first keys as they are; `sink` keeps
    the whole first position, where attention goes that has nowhere else to go.
    """

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | Mapping[int, tuple[int, ...]] | None = None
    train: Literal["both", "values"] = "both"
    sink: bool = False

    def check(self, host: Host, positions: int) -> None:
        """FitError when the host has no such layer, or a layer no such head, or when nothing is left to fit."""
        count = len(host.sites)
        if beyond := [layer for layer in self._layers(host) if layer >= count]:
            raise FitError(
                "The base model has no such layers for a prefix.",
                expected=f"numbers from 0 to {count - 1}",
                found=f"{_listed(beyond)}, for {host.reference}",
                fix="Correct layers of the candidate, or the layers in its heads; host.sites lists what there is.",
            )
        if wrong := [each for layer in self._layers(host) if (each := self._beyond(host.sites[layer]))]:
            expected, found = zip(*wrong, strict=True)
            raise FitError(
                "The base model has no such heads for a prefix.",
                expected=_few(expected),
                found=f"{_few(found)}, for {host.reference}",
                fix="Correct heads of the candidate; host.sites lists what there is, and query heads that share a key "
                "head carry a prefix together.",
            )
        if self.sink and positions < 2:
            raise FitError(
                "A prefix of one position, kept as a sink, has nothing to fit.",
                expected="2 positions or more with sink = true",
                found=str(positions),
                fix="Raise positions, or leave sink out.",
            )

    def carried(self, host: Host) -> dict[str, tuple[int, ...] | None]:
        """The key heads that carry the prefix by their site's name, in the host's order; None: all of the site's."""
        return {host.sites[layer].name: self._heads_at(layer) for layer in self._layers(host)}

    def _layers(self, host: Host) -> Sequence[int]:
        if isinstance(self.heads, Mapping):
            return sorted(self.heads)
        return range(len(host.sites)) if self.layers is None else sorted(self.layers)

    def _heads_at(self, layer: int) -> tuple[int, ...] | None:
        return self.heads[layer] if isinstance(self.heads, Mapping) else self.heads

    def _beyond(self, site: Site) -> tuple[str, str] | None:
        """What heads a site has and which of the chosen ones it has not, in words; None when it has all of them."""
        beyond = [head for head in self._heads_at(site.order) or () if head >= site.kv_heads]
        if not beyond:
            return None
        shared = "" if site.heads == site.kv_heads else f", each shared by {site.heads // site.kv_heads} query heads"
        there = f"key heads 0 to {site.kv_heads - 1}" if site.kv_heads > 1 else "key head 0 alone"
        return f"{there} at layer {site.order}{shared}", f"{_listed(beyond)} at layer {site.order}"


def masked(bias: Tensor | None, heads: tuple[int, ...] | None, kv_heads: int, positions: int) -> Tensor | None:
    """The logit bias `(kv_head or head, position)` with key heads other than `heads` absent; None: as it is."""
    if heads is None:
        return bias
    bias = torch.zeros(kv_heads, positions) if bias is None else bias.clone()
    carries = torch.zeros(kv_heads, dtype=torch.bool)
    carries[list(heads)] = True
    bias[~carries.repeat_interleave(len(bias) // kv_heads).to(bias.device)] = ABSENT
    return bias


def _few(lines: Sequence[str]) -> str:
    return "; ".join(lines[:SHOWN]) + (f"; and at {len(lines) - SHOWN} more layers" if len(lines) > SHOWN else "")


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:LISTED])) + (
        f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    )
