"""Gradient checkpointing under a prefix: the second forward pass must see what the first one saw.

Checkpointing runs a layer's forward again during the backward pass, perhaps in another thread, perhaps after the
context that attached the prefix was left. So while a prefix is attached, each layer's checkpointing function is bound:
it notes the handler that was active when the layer ran and puts it back for the replay. transformers sets that function
on the layer when checkpointing is switched on, which may happen after the prefix was attached: a hook looks again
before each layer runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from foreword.engine.attention import current_handler, intercepted
from foreword.engine.layout import Layout

_NAME = "_gradient_checkpointing_func"


class _Bound:
    """A checkpointing function that replays with the handler of the first pass."""

    def __init__(self, checkpoint: Callable[..., Any], watched: tuple[nn.Module, ...]) -> None:
        self.checkpoint, self.watched = checkpoint, watched

    def __call__(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        handler = current_handler()
        if handler is None:
            return self.checkpoint(run, *arguments, **options)
        frozen = handler.frozen()
        first = True

        def replay(*again: Any, **more: Any) -> Any:
            nonlocal first
            if first:  # the first pass runs under the live handler, which counts calls on
                first = False
                return run(*again, **more)
            with intercepted(frozen.frozen(), self.watched, alone=True):
                return run(*again, **more)

        return self.checkpoint(replay, *arguments, **options)


@contextmanager
def replayed(layout: Layout) -> Iterator[None]:
    """Within this context checkpointed layers replay under the handler that they first ran under."""

    def bind(layer: nn.Module, *_: Any) -> None:
        found = layer.__dict__.get(_NAME)
        if found is not None and not isinstance(found, _Bound):
            layer.__dict__[_NAME] = _Bound(found, layout.watched)

    for layer in layout.layers:
        bind(layer)
    hooks = [layer.register_forward_pre_hook(bind) for layer in layout.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer in layout.layers:
            found = layer.__dict__.get(_NAME)
            if isinstance(found, _Bound):
                layer.__dict__[_NAME] = found.checkpoint
