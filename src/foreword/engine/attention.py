"""Where a prefix meets a live model: the attention functions that transformers calls, and what stands in their place.

Every family on transformers' attention interface computes its queries, keys and values (after rotation, after the
cache) and hands them to one registered function. While a handler is active in the current context, the registry's own
entries are wrapped, so that the model keeps its implementation's name, its masks and its cache. The few families that
are not on the interface have their attention modules' forward watched instead (`families.py`). Which handler that is
`current.py` knows: another thread, or code after the context, sees the bare model. When the last handler leaves, the
registry and the modules hold exactly what they held before.

`joined` is the plain meaning of a prefix: softmax over the joint scores of [prefix ; context].
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from foreword.engine import current
from foreword.engine.families import Met, Watch, family_of
from foreword.engine.forwards import Key, StandIn, standing

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]

IMPLEMENTATIONS = ("sdpa", "eager")
# Options of an attention call that change nothing in what torch's kernels compute, or only together with a mask.
_HARMLESS = frozenset(
    {
        "scaling",
        "dropout",
        "is_causal",
        "sliding_window",
        "position_ids",
        "cache_position",
        "output_attentions",
        "output_hidden_states",
        "use_cache",
        "return_dict",
        "cu_seq_lens_q",
        "cu_seq_lens_k",
    }
)


class AttentionCall(NamedTuple):
    """One call of the attention function by one module.

    `query` is `(batch, head, query, dim)`; `key`, `value` are `(batch, kv_head, key, dim)`, cached part included;
    `mask` is None, boolean (True = attend) or additive, `(batch or 1, head or 1, query, key)`. `options` are the
    remaining keyword arguments; `compute` is the function that the model would have called, `implementation` its name.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    options: dict[str, Any]
    compute: AttentionFunction
    implementation: str

    def run(self) -> tuple[Tensor, Tensor | None]:
        """What the bare model computes."""
        return self.compute(self.module, self.query, self.key, self.value, self.mask, **self.options)

    @property
    def is_causal(self) -> bool:
        """Whether the implementation would hide later keys by itself: no mask given, and the module is causal."""
        stated = self.options.get("is_causal")
        causal = stated if stated is not None else getattr(self.module, "is_causal", True)
        return self.mask is None and bool(causal) and self.query.shape[2] > 1

    @property
    def is_plain(self) -> bool:
        """Whether it is torch's own attention over these keys and this mask, and nothing besides."""
        options = self.options
        if self.implementation != "sdpa" or options.get("dropout") or options.get("output_attentions"):
            return False
        # Asked for each token in each layer, where every line of ours is fetched anew: weights have filled the cache.
        return _HARMLESS.issuperset(options) or all(
            name in _HARMLESS or asked is None or asked is False for name, asked in options.items()
        )


class Handler(Protocol):
    """What stands in the attention's place."""

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """The result of one call through the attention interface."""
        ...

    def meet(self, met: Met) -> Tensor:
        """The output `(batch, head, query, dim)` of a watched module whose context is already computed."""
        ...

    def frozen(self) -> Handler:
        """The handler as it is at this moment of a forward pass, for a replay of what follows."""
        ...


_lock = threading.Lock()
_installed = 0
_before: dict[str, AttentionFunction | None] = {}


def current_handler() -> Handler | None:
    """The handler that an attention call of the running code goes to."""
    found: Handler | None = None
    for handler in current.handlers:
        found = handler if found is None else _Nested(handler, found)
    return found


def watchable(model: nn.Module) -> list[nn.Module]:
    """The attention modules of `model` that have to be watched because they are not on the interface."""
    return [module for module in model.modules() if family_of(module) is not None]


@contextmanager
def intercepted(
    handler: Handler,
    watched: Iterable[nn.Module] = (),
    *,
    alone: bool = False,
    kept: MutableMapping[Key, StandIn] | None = None,
) -> Iterator[None]:
    """Within this context (and only in it) every attention call of this thread goes to `handler`.

    Inside another such context, what `handler` lets pass goes to the outer one's handler, unless it stands `alone`.
    What stands in for the forwards of `watched` modules is taken from `kept`, or is left there.
    """
    with _installed_functions(), ExitStack() as stack:
        for module in watched:
            if family_of(module) is not None:
                stack.enter_context(standing(module, _Watching, kept))
        with current.entered(handler, alone=alone):
            yield


@dataclass(frozen=True)
class _Nested:
    """Two handlers, of two hosts or one behind the other: what the inner one lets pass goes to the outer one."""

    inner: Handler
    outer: Handler

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        def compute(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
        ) -> tuple[Tensor, Tensor | None]:
            return self.outer.call(
                AttentionCall(module, query, key, value, mask, options, call.compute, call.implementation)
            )

        return self.inner.call(call._replace(compute=compute))

    def meet(self, met: Met) -> Tensor:
        out = self.inner.meet(met)
        return self.outer.meet(met) if out is met.context.out else out

    def frozen(self) -> Handler:
        return _Nested(self.inner.frozen(), self.outer.frozen())


def joined(call: AttentionCall, keys: Tensor, values: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Attention over the prefix and the context together: one softmax over the joint scores.

    `keys` and `values` are `(kv_head, position, dim)`, `bias` is `(kv_head or head, position)` or None and is added to
    the scaled scores. The prefix is visible to every query, whatever the context's mask says.
    """
    batch, heads, queries, _ = call.query.shape
    key = torch.cat([_for_each(keys, batch, call.key.dtype), call.key], dim=2)
    value = torch.cat([_for_each(values, batch, call.value.dtype), call.value], dim=2)
    sees_all = queries == 1 and bias is None and call.mask is None
    mask = None if sees_all else _extended_mask(call, keys.shape[1], bias)
    grouped = heads != keys.shape[0]
    if mask is None and call.is_plain and (not grouped or key.shape[3] == value.shape[3]):
        # Most of decoding: without transformers' way to the same kernel, which takes half as long as joining does.
        scale = call.options.get("scaling")
        out = nn.functional.scaled_dot_product_attention(call.query, key, value, scale=scale, enable_gqa=grouped)
        return out.transpose(1, 2).contiguous(), None
    options = dict(call.options)
    if "is_causal" in options:
        options["is_causal"] = False
    if options.get("position_bias") is not None:  # concerns the context alone
        options["position_bias"] = nn.functional.pad(options["position_bias"], (keys.shape[1], 0))
    return call.compute(call.module, call.query, key, value, mask, **options)


def _for_each(part: Tensor, batch: int, dtype: torch.dtype) -> Tensor:
    """A prefix's keys or values `(kv_head, position, dim)` for every row, without a copy in the usual dtype."""
    rows = part[None] if batch == 1 else part.expand(batch, *part.shape)
    return rows if part.dtype == dtype else rows.to(dtype)


def _extended_mask(call: AttentionCall, positions: int, bias: Tensor | None) -> Tensor | None:
    """The call's mask with columns for the prefix in front: visible, with the bias added when there is one."""
    queries, context = call.query.shape[2], call.key.shape[2]
    mask = call.mask
    if call.is_causal:  # torch aligns is_causal at the upper left, and so does this
        seen = 0 if bias is not None else positions  # columns of the prefix: with a bias, they are added below
        mask = torch.ones(queries, seen + context, dtype=torch.bool, device=call.query.device).tril(seen)[None, None]
        if bias is None:
            return mask
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


def _wrapped(original: AttentionFunction, name: str) -> AttentionFunction:
    def dispatch(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        handler = current_handler()
        if handler is None:
            return original(module, query, key, value, attention_mask, **options)
        return handler.call(AttentionCall(module, query, key, value, attention_mask, options, original, name))

    return dispatch


class _Watching(StandIn):
    """The forward of a watched module."""

    def act(self, *arguments: Any, **options: Any) -> Any:
        handler, family = current_handler(), family_of(self.module)
        if handler is None or family is None:
            return self.forward(*arguments, **options)
        given = self.signature.bind_partial(*arguments, **options).arguments
        with Watch(self.module, family, handler.meet, given):
            return self.forward(*arguments, **options)


def _own_eager(module: nn.Module, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
    """The eager attention of the module's own modelling file: it alone knows its soft caps and sinks."""
    for owner in type(module).__mro__:
        function = getattr(sys.modules.get(owner.__module__), "eager_attention_forward", None)
        if function is not None:
            result: tuple[Tensor, Tensor | None] = function(module, *arguments, **options)
            return result
    raise NotImplementedError(f"{type(module).__name__} has no eager attention function in its modelling file")


def _told(name: str, function: AttentionFunction | None) -> str:
    """An implementation's name; another one for a function that somebody put in its place.

    What stands in for "sdpa" is computed by torch's kernels; in place of anything else, only by what is there.
    """
    return name if function in (None, sdpa_attention_forward) else f"{name}, replaced"


@contextmanager
def _installed_functions() -> Iterator[None]:
    """Within this context the registry's attention functions are wrapped; the last to leave unwraps them."""
    global _installed
    registry = AttentionInterface._global_mapping
    with _lock:
        if _installed == 0:
            for name in IMPLEMENTATIONS:
                _before[name] = registry.get(name)
                AttentionInterface.register(name, _wrapped(_before[name] or _own_eager, _told(name, _before[name])))
        _installed += 1
    try:
        yield
    finally:
        with _lock:
            _installed -= 1
            if _installed == 0:
                for name, function in _before.items():
                    if function is None:
                        registry.pop(name, None)
                    else:
                        registry[name] = function
                _before.clear()
