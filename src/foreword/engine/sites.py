"""Where attention happens in a model: found by one probing forward pass, never read off a table of architectures.

A site is one attention module that calls the attention interface. Its name is the module's path inside the backbone
(the model without its head), so that the same prefix fits a model loaded with a head and without one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foreword.engine.attention import AttentionCall, intercepted
from foreword.errors import HostError


@dataclass(frozen=True)
class Site:
    """One attention module: its place in the forward pass and the shapes of a prefix for it."""

    name: str
    order: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    causal: bool


def find_sites(backbone: nn.Module) -> tuple[Site, ...]:
    """The attention sites of `backbone`, in the order in which a forward pass over four tokens reaches them.

    HostError when no attention module calls transformers' attention interface, or one is called more than once (a
    shared layer): a prefix there would be a silent no-op or ambiguous.
    """
    names = {module: name for name, module in backbone.named_modules()}
    sites: list[Site] = []

    def record(call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        sites.append(
            Site(
                name=names.get(call.module, ""),
                order=len(sites),
                heads=call.query.shape[1],
                kv_heads=call.key.shape[1],
                key_dim=call.key.shape[3],
                value_dim=call.value.shape[3],
                causal=call.is_causal or call.mask is not None,
            )
        )
        return call.run()

    device = next(backbone.parameters()).device
    was_training = backbone.training
    try:
        backbone.eval()
        with torch.no_grad(), intercepted(record):
            backbone(input_ids=torch.arange(4, device=device)[None])
    except (TypeError, ValueError, AttributeError, RuntimeError, IndexError, NotImplementedError) as error:
        raise HostError(
            f"The model {type(backbone).__name__} could not be probed with a short text.",
            expected="a model that reads input_ids of shape (1, 4)",
            found=f"{type(error).__name__}: {error}",
            fix="Use a text encoder (BERT-like) or a causal language model (GPT-2, Llama, Qwen, ...).",
        ) from error
    finally:
        backbone.train(was_training)
    _check(backbone, sites)
    return tuple(sites)


def _check(backbone: nn.Module, sites: list[Site]) -> None:
    implementation = getattr(getattr(backbone, "config", None), "_attn_implementation", None)
    if not sites:
        raise HostError(
            f"No attention of {type(backbone).__name__} goes through transformers' attention interface, so a prefix "
            "would have no effect.",
            expected="attention by 'sdpa' or 'eager' on the interface",
            found=f"implementation {implementation!r}, no call seen in a forward pass",
            fix="Load the model with attn_implementation='sdpa', or use a family on the interface.",
        )
    counts = Counter(site.name for site in sites)
    shared = [name for name, count in counts.items() if count > 1]
    if shared:
        raise HostError(
            f"{type(backbone).__name__} calls one attention module several times in a forward pass.",
            expected="one call per module",
            found=f"{shared[0]} called {counts[shared[0]]} times",
            fix="Use a family whose layers do not share their attention module.",
        )
