"""Where a prefix meets a live model: the attention functions that transformers calls, and what stands in their place.

Every family on transformers' attention interface computes its queries, keys and values (after rotation, after the
cache) and hands them to one registered function. While a handler is active in the current context, the registry's own
entries are wrapped, so that the model keeps its implementation's name, its masks and its cache. The handler is looked
up in a context variable: another thread, or code after the context, sees the bare model. When the last handler leaves,
the registry holds exactly the functions that it held before.

`joined` is the plain meaning of a prefix: softmax over the joint scores of [prefix ; context].
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]

IMPLEMENTATIONS = ("sdpa", "eager")


@dataclass(frozen=True)
class AttentionCall:
    """One call of the attention function by one module.

    `query` is `(batch, head, query, dim)`; `key`, `value` are `(batch, kv_head, key, dim)`, cached part included;
    `mask` is None, boolean (True = attend) or additive, `(batch or 1, head or 1, query, key)`. `options` are the
    remaining keyword arguments and `compute` is the function that the model would have called.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    compute: AttentionFunction

    def run(self) -> tuple[Tensor, Tensor | None]:
        """What the bare model computes."""
        return self.compute(self.module, self.query, self.key, self.value, self.mask, **self.options)

    @property
    def is_causal(self) -> bool:
        """Whether the implementation would hide later keys by itself: no mask given, and the module is causal."""
        stated = self.options.get("is_causal")
        causal = stated if stated is not None else getattr(self.module, "is_causal", True)
        return self.mask is None and bool(causal) and self.query.shape[2] > 1


Handler = Callable[[AttentionCall], tuple[Tensor, Tensor | None]]

_handler: ContextVar[Handler | None] = ContextVar("foreword_attention_handler", default=None)
_lock = threading.Lock()
_installed = 0
_before: dict[str, AttentionFunction | None] = {}


@contextmanager
def intercepted(handler: Handler) -> Iterator[None]:
    """Within this context (and only in it) every attention call of this thread goes to `handler`.

    Inside another such context, what `handler` lets pass goes to the outer one's handler.
    """
    _install()
    token = _handler.set(_within(_handler.get(), handler))
    try:
        yield
    finally:
        _handler.reset(token)
        _uninstall()


def _within(outer: Handler | None, inner: Handler) -> Handler:
    if outer is None:
        return inner

    def both(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        def compute(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
        ) -> tuple[Tensor, Tensor | None]:
            return outer(AttentionCall(module, query, key, value, mask, options, call.compute))

        return inner(replace(call, compute=compute))

    return both


def joined(call: AttentionCall, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Attention over the prefix and the context together: one softmax over the joint scores.

    `keys` and `values` are `(kv_head, position, dim)`, `bias` is `(kv_head, position)` or None and is added to the
    scaled scores. The prefix is visible to every query, whatever the context's mask says.
    """
    batch = call.query.shape[0]
    key = torch.cat([keys.to(call.key.dtype).expand(batch, *keys.shape), call.key], dim=2)
    value = torch.cat([values.to(call.value.dtype).expand(batch, *values.shape), call.value], dim=2)
    mask = _extended_mask(call, keys.shape[1], bias)
    options = {**call.options, "is_causal": False} if "is_causal" in call.options else call.options
    return call.compute(call.module, call.query, key, value, mask, **options)


def _extended_mask(call: AttentionCall, positions: int, bias: Tensor | None) -> Tensor | None:
    """The call's mask with columns for the prefix in front: visible, with the bias added when there is one."""
    queries, context = call.query.shape[2], call.key.shape[2]
    mask = call.mask
    if call.is_causal:  # torch aligns is_causal at the upper left, and so does this
        mask = torch.ones(queries, context, dtype=torch.bool, device=call.query.device).tril()[None, None]
    if mask is None and bias is None:
        return None
    if mask is None:
        mask = call.query.new_zeros(1, 1, 1, context).expand(1, 1, queries, context)
    if bias is None:
        return nn.functional.pad(mask, (positions, 0), value=True if mask.dtype == torch.bool else 0.0)
    if mask.dtype == torch.bool:  # finfo.min and not -inf: a row that may see nothing stays finite
        mask = torch.zeros_like(mask, dtype=call.query.dtype).masked_fill(~mask, torch.finfo(call.query.dtype).min)
    heads = call.query.shape[1]
    columns = bias.to(mask.dtype).repeat_interleave(heads // bias.shape[0], dim=0)[None, :, None, :]
    mask = mask.expand(mask.shape[0], heads, queries, context)
    return torch.cat([columns.expand(mask.shape[0], heads, queries, positions), mask], dim=-1)


def _wrapped(original: AttentionFunction) -> AttentionFunction:
    def dispatch(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        handler = _handler.get()
        if handler is None:
            return original(module, query, key, value, attention_mask, **options)
        return handler(AttentionCall(module, query, key, value, attention_mask, options, original))

    return dispatch


def _own_eager(module: nn.Module, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """The eager attention of the module's own modelling file: it alone knows its soft caps and sinks."""
    for owner in type(module).__mro__:
        function = getattr(sys.modules.get(owner.__module__), "eager_attention_forward", None)
        if function is not None:
            result: tuple[Tensor, Tensor | None] = function(module, *arguments, **options)
            return result
    raise NotImplementedError(f"{type(module).__name__} has no eager attention function in its modelling file")


def _install() -> None:
    global _installed
    with _lock:
        if _installed == 0:
            registry = AttentionInterface._global_mapping
            for name in IMPLEMENTATIONS:
                _before[name] = registry.get(name)
                AttentionInterface.register(name, _wrapped(_before[name] or _own_eager))
        _installed += 1


def _uninstall() -> None:
    global _installed
    with _lock:
        _installed -= 1
        if _installed == 0:
            registry = AttentionInterface._global_mapping
            for name, function in _before.items():
                if function is None:
                    registry.pop(name, None)
                else:
                    registry[name] = function
            _before.clear()
