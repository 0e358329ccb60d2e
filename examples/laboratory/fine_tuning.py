"""Full fine-tuning as one more way to change what a frozen host computes: the yardstick that no prefix has to reach.

The host keeps its weights: the fitted ones stand in their place within `active`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from foreword.engine.host import Host
from foreword.tuning.adaptation import Adaptation, ParameterGroup


class FineTuned(Adaptation):
    """A copy of all weights, each free to change."""

    RATE = 1e-3

    def __init__(self, host: Host) -> None:
        self.host = host
        self._places = [
            (module, name, nn.Parameter(weight.detach().clone()))
            for module in host.model.modules()
            for name, weight in module.named_parameters(recurse=False)
        ]

    @contextmanager
    def active(self) -> Iterator[None]:
        own = [getattr(module, name) for module, name, _ in self._places]
        for module, name, weight in self._places:
            setattr(module, name, weight)
        try:
            yield
        finally:
            for (module, name, _), weight in zip(self._places, own, strict=True):
                setattr(module, name, weight)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {f"{number} {name}": weight for number, (_, name, weight) in enumerate(self._places)}

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        return [{"params": list(self.parameters().values()), "lr": learning_rate or self.RATE}]
