"""Gradient checkpointing under a prefix: the second forward pass must see what the first one saw.

Checkpointing runs a layer's forward again during the backward pass, perhaps in another thread, perhaps after the
context that attached the prefix was left. So while a prefix is attached, each layer's checkpointing function is bound:
it notes the handler that was active when the layer ran and puts it back for the replay. transformers sets that function
on the layer when checkpointing is switched on, which may happen after the prefix was attached: so they are bound again
before each forward pass of the model. A hook on the layer would come too late where its call is what is checkpointed.

`checkpointed` switches it on for a fit. transformers recomputes only layers in training mode, where dropout would act
too: there each layer is in training mode as it is entered, and out of it as it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from foreword.engine.attention import current_handler, intercepted, watchable
from foreword.engine.layout import Layout
from foreword.errors import HostError

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


class Replays:
    """The checkpointing functions of a model's layers, bound so that they replay under what they first ran under."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def bind(self) -> None:
        """Bind those that are there and are not bound yet."""
        for layer in self.layout.layers:
            found = layer.__dict__.get(_NAME)
            if found is not None and not isinstance(found, _Bound):
                layer.__dict__[_NAME] = _Bound(found, self.layout.watched)

    def release(self) -> None:
        """Put back what was there."""
        for layer in self.layout.layers:
            found = layer.__dict__.get(_NAME)
            if isinstance(found, _Bound):
                layer.__dict__[_NAME] = found.checkpoint


def is_recomputed(layout: Layout) -> bool:
    """Whether layers that run now are set to be computed again: transformers gives them no cache, gradients or not."""
    return any(layer.gradient_checkpointing and layer.training for layer in layout.layers)


@contextmanager
def checkpointed(model: nn.Module, again: Callable[[], AbstractContextManager[None]] = nullcontext) -> Iterator[None]:
    """Within this context the model's layers keep no activations for the backward pass, which computes them again.

    Each layer computes within `again()`, the second time as the first. Dropout stays off. Caches cannot be used: a
    layer would write to them twice. HostError for a model without layers that transformers can recompute.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise HostError(
            "This base model's layers cannot be recomputed, so gradient checkpointing would save nothing.",
            expected="layers of transformers' GradientCheckpointingLayer",
            found=type(model).__name__,
            fix="Fit without checkpointing, with a smaller batch.",
        )
    before = [(layer, layer.training, layer.gradient_checkpointing) for layer in layers]
    watched = tuple(watchable(model))
    for layer in layers:
        layer.gradient_checkpointing, layer.training = True, True
        layer.__dict__[_NAME] = _Bound(_Calm(layer, again), watched)
    try:
        yield
    finally:
        for layer, training, was_on in before:
            layer.gradient_checkpointing, layer.training = was_on, training
            layer.__dict__.pop(_NAME, None)


class _Calm:
    """A layer's checkpointing function that takes the layer out of training mode while it computes."""

    def __init__(self, layer: nn.Module, again: Callable[[], AbstractContextManager[None]]) -> None:
        self.layer, self.again = layer, again

    def __call__(self, run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        def calmly(*again: Any, **more: Any) -> Any:
            before, self.layer.training = self.layer.training, False
            try:
                with self.again():
                    return run(*again, **more)
            finally:
                self.layer.training = before

        return checkpoint(calmly, *arguments, use_reentrant=False, preserve_rng_state=False, **options)
