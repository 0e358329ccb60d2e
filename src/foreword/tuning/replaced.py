"""An adaptation that puts other parts in the places of the model's own while it is active, and only then.

LoRA's layers and a full fine-tune's weights are of this kind. What is put where is theirs to say; that the model holds
its very own parts again outside `active`, however often that is nested, is said here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from torch import nn

from foreword.tuning.adaptation import Adaptation, ParameterGroup


@dataclass(frozen=True)
class Place:
    """Where a module holds a part of the model, a weight or a layer, and what takes its place."""

    module: nn.Module
    attribute: str
    original: nn.Module | nn.Parameter
    fitted: nn.Module | nn.Parameter


class Replaced(Adaptation):
    """The parts of `places` are the fitted ones while active; `named` are the parameters that a fit may change."""

    RATE: float

    def __init__(self, named: dict[str, nn.Parameter], places: Iterable[Place]) -> None:
        self._named, self._places, self._depth = named, list(places), 0
        self._put(fitted=False)

    @contextmanager
    def active(self) -> Iterator[None]:
        self._depth += 1
        try:
            if self._depth == 1:
                self._put(fitted=True)
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._put(fitted=False)

    def _put(self, *, fitted: bool) -> None:
        for place in self._places:
            setattr(place.module, place.attribute, place.fitted if fitted else place.original)

    def recomputed(self) -> AbstractContextManager[None]:
        return self.active()

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._named)

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        return [{"params": list(self._named.values()), "lr": learning_rate or self.RATE}]

    def close(self) -> None:
        """Let what was fitted go; the model holds its own parts already."""
        self._named, self._places = {}, []
