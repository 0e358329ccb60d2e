"""Attaching a prefix to a host: enter a context, and leave the model bit for bit as it was.

The model's modules, masks, cache and position ids are never touched; only the attention function sees the prefix, and
only in the context (and thread) that entered. A fitted prefix takes no positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from foreword.engine.attention import AttentionCall, intercepted, joined
from foreword.errors import AttachError, PrefixError
from foreword.prefix import Array, Prefix

if TYPE_CHECKING:
    from foreword.engine.host import Host


@dataclass(frozen=True)
class SiteTensors:
    """A prefix at one site as torch tensors: keys, values `(kv_head, position, dim)`, bias `(kv_head, position)`."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None


PrefixTensors = Mapping[str, SiteTensors]


@contextmanager
def attached(host: Host, prefix: Prefix | PrefixTensors) -> Iterator[None]:
    """Within this context every forward pass of `host.model` in this thread reads `prefix` before its input.

    `prefix` is a `Prefix`, or live tensors by site (for fitting: gradients flow to them). PrefixError when it does not
    fit the host; AttachError when another prefix is attached in this context, or when forward passes ran and one of
    the prefix's sites was never reached: a prefix is never a silent no-op.
    """
    tensors = prefix if not isinstance(prefix, Prefix) else to_tensors(prefix, device=host.device, dtype=host.dtype)
    _check_fit(host, tensors)
    modules = {host.module(site): (site, found) for site, found in tensors.items()}
    reached: set[str] = set()
    passes = 0

    def with_prefix(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        site, found = modules.get(call.module, (None, None))
        if site is None or found is None:
            return call.run()
        reached.add(site)
        return joined(call, found.keys, found.values, found.bias)

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1

    if getattr(host, "_attached", False):
        raise AttachError(
            "A prefix is already attached to this host.",
            expected="one attached(...) at a time on one host",
            found="a second one inside the first, or in another thread",
            fix="Leave the first context, or merge the prefixes with first.merge(second).",
        )
    hook = host.backbone.register_forward_hook(count)
    host._attached = True
    try:
        with intercepted(with_prefix):
            yield
    finally:
        host._attached = False
        hook.remove()
    missed = set(tensors) - reached
    if passes and missed:
        raise AttachError(
            "The model ran without reading the whole prefix.",
            expected=f"attention at all of its {len(tensors)} sites to go through the attention interface",
            found=f"never reached: {', '.join(sorted(missed)[:3])}",
            fix="Do not change the model's attention implementation while a prefix is attached, and run it in the "
            "thread that attached the prefix.",
        )


def to_tensors(prefix: Prefix, *, device: torch.device, dtype: torch.dtype) -> dict[str, SiteTensors]:
    """The prefix as torch tensors by site on `device`; numbers are converted to the model's `dtype`.

    PrefixError when a number does not fit into that dtype, or the prefix occupies positions: nothing shifts the
    context's position ids yet, so the context would stand on the prefix's own places.
    """
    if prefix.occupies:
        raise PrefixError(
            "A prefix that occupies positions of the context cannot be attached yet.",
            expected="a fitted or compiled prefix, which occupies 0",
            found=f"occupies {prefix.occupies}",
            fix="Fit a prefix for the task instead of baking a text.",
        )
    fitting = prefix.cast(str(dtype).removeprefix("torch."))
    return {
        layer.site: SiteTensors(**{name: _to_torch(array).to(device) for name, array in layer.arrays().items()})
        for layer in fitting.layers
    }


def to_prefix(tensors: PrefixTensors) -> Prefix:
    """The current numbers of live tensors as a Prefix (a copy)."""
    arrays: dict[str, tuple[Array, ...]] = {}
    for site, found in tensors.items():
        parts = (found.keys, found.values) if found.bias is None else (found.keys, found.values, found.bias)
        arrays[site] = tuple(_to_numpy(part) for part in parts)
    return Prefix.from_arrays(arrays)


def _to_torch(array: Array) -> Tensor:
    if array.dtype == np.dtype(ml_dtypes.bfloat16):
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def _to_numpy(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())


def _check_fit(host: Host, tensors: PrefixTensors) -> None:
    known = {site.name: site for site in host.sites}
    unknown = [name for name in tensors if name not in known]
    if unknown:
        raise PrefixError(
            "The prefix has a site that this base model does not have.",
            expected=f"some of {', '.join(list(known)[:3])}, … ({len(known)} sites; see host.sites)",
            found=unknown[0],
            fix="Use a prefix that was made for this base model.",
        )
    for name, found in tensors.items():
        site = known[name]
        wanted = ((site.kv_heads, site.key_dim), (site.kv_heads, site.value_dim))
        shapes = tuple((part.shape[0], part.shape[2]) for part in (found.keys, found.values))
        if shapes != wanted:
            raise PrefixError(
                f"The prefix does not fit the heads at {name}.",
                expected=f"(kv_head, dim) = {wanted[0]} for keys and {wanted[1]} for values",
                found=f"{shapes[0]} and {shapes[1]}",
                fix="Use a prefix that was made for this base model.",
            )
