"""A prefix that begins unheard: fitted from values of zero under a logit bias so low that the model is not disturbed.

An ordinary prefix takes its share of attention from the first step on, even while its values are zero: on a small
causal model that alone cost more than what 40 steps won back (benchmarks/LOG.md). Here the share is a few percent at
the start, and values are learned faster by as much as they weigh less.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import nn

from foreword.engine.assignment import SiteTensors
from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.tuning.adaptation import Adaptation, FittedPrefix, ParameterGroup


class QuietPrefix(Adaptation):
    """`positions` keys and values at every site under a fixed logit bias; normal keys, values of zero."""

    BIAS, VALUE_RATE = -4.0, 0.5

    def __init__(self, host: Host, *, positions: int, seed: int) -> None:
        self.host = host
        generator = torch.Generator().manual_seed(seed)
        self._tensors: dict[str, SiteTensors] = {}
        for site in host.sites:
            keys = torch.randn(site.kv_heads, positions, site.key_dim, generator=generator) * FittedPrefix.KEY_SCALE
            values = torch.zeros(site.kv_heads, positions, site.value_dim)
            bias = torch.full((site.kv_heads, positions), self.BIAS)
            self._tensors[site.name] = SiteTensors(
                nn.Parameter(keys.to(host.device)), nn.Parameter(values.to(host.device)), bias.to(host.device)
            )

    def active(self) -> AbstractContextManager[None]:
        return attached(self.host, self._tensors)

    def parameters(self) -> dict[str, nn.Parameter]:
        named = {}
        for site, found in self._tensors.items():
            named[f"{site}/keys"], named[f"{site}/values"] = found.keys, found.values
        return {name: parameter for name, parameter in named.items() if isinstance(parameter, nn.Parameter)}

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        factor = 1.0 if learning_rate is None else learning_rate / self.VALUE_RATE
        return [
            {"params": [found.keys for found in self._tensors.values()], "lr": FittedPrefix.KEY_RATE * factor},
            {"params": [found.values for found in self._tensors.values()], "lr": self.VALUE_RATE * factor},
        ]
