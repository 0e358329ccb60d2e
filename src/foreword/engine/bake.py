"""Baking: a text that stands in front of every request is run once, and its keys and values are kept as a prefix.

In a causal model the keys and values of a text depend on nothing that follows. So what they are after one forward pass
they are in every later one: generation under the baked prefix is that of the text in the prompt, and the prefill of the
text is paid once. The context must then stand where it would stand behind the text, which is what `occupies` says:
position ids are shifted by it (rotary and learned positions), and under linear position biases (ALiBi) the text's own
share is kept as a logit bias per position and, where query heads share a key, per query head.

A layer with a sliding window would, with the text in the prompt, forget the text's beginning as generation goes on; a
prefix is never forgotten. There the two are equal as long as text and context fit into the window. Falcon rounds its
linear bias to bfloat16, which tells positions beyond 256 badly apart: there the text in the prompt moves the context to
biases that are rounded otherwise, by at most 1/256 of their size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foreword.arrays import Array
from foreword.engine.admission import check_host, check_prefix, check_soft, check_tokens
from foreword.engine.assignment import SiteTensors
from foreword.engine.attach import attached, is_attached
from foreword.engine.attention import AttentionCall, intercepted
from foreword.engine.families import Met
from foreword.engine.layout import Layout
from foreword.engine.sites import in_evaluation
from foreword.engine.tensors import to_prefix
from foreword.errors import AttachError, PrefixError
from foreword.prefix import Prefix

if TYPE_CHECKING:
    from foreword.engine.host import Host

Message = Mapping[str, str]


class _Capture:
    """Keeps the keys and values that each attention computes in one pass, and lets the attention pass."""

    def __init__(self, layout: Layout) -> None:
        self.sites = layout.sites
        self.calls: Counter[nn.Module] = Counter()
        self.found: dict[str, SiteTensors] = {}

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        self._keep(call.module, SiteTensors(call.key[0], call.value[0]))
        return call.run()

    def meet(self, met: Met) -> Tensor:
        self._keep(met.module, SiteTensors(met.key[0], met.value[0], _position_bias(met)))
        return met.context.out

    def frozen(self) -> _Capture:
        return self

    def _keep(self, module: nn.Module, found: SiteTensors) -> None:
        if module in self.sites:
            self.found[self.sites[module][self.calls[module]]] = found
            self.calls[module] += 1


def _position_bias(met: Met) -> Tensor | None:
    """What the last query's logits hold beside its scaled scores, `(head, key)`; None when that is rounding.

    A score is one product over `dim` terms: computed in float32 it is off by dim * eps of the largest, and rounding the
    logits to their dtype adds eps of that (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1).
    """
    groups = met.query.shape[1] // met.key.shape[1]
    keys = met.key[0].repeat_interleave(groups, dim=0)
    scores = torch.einsum("hd,hkd->hk", met.query[0, :, -1].float(), keys.float()) * met.scale
    sizes = torch.einsum("hd,hkd->hk", met.query[0, :, -1].float().abs(), keys.float().abs()) * met.scale
    bias = met.logits[0, :, -1].float() - scores
    rounding = keys.shape[-1] * torch.finfo(torch.float32).eps + torch.finfo(met.logits.dtype).eps
    return bias if bool((bias - bias[:, :1]).abs().amax() > 2 * rounding * sizes.amax()) else None


def bake(
    host: Host, content: str | Sequence[Message] | Sequence[int] | Tensor, *, after: Prefix | None = None
) -> Prefix:
    """The keys and values of a text as a prefix that occupies its tokens' positions.

    `content` is a text, chat messages (by the tokenizer's chat template), token ids, or embeddings `(token, hidden)`
    such as a soft prompt. With `after`, the text is read behind that prefix, and the result is both together. A text
    gets the beginning token that the tokenizer puts before a prompt, unless it stands behind another prefix. Layers
    with a sliding window never forget it: there it is the text in the prompt as long as both fit into the window.

    PrefixError for a host that is not a causal model or has been shown not to read a baked text as the text in the
    prompt, for what is no text, for an empty one, or one that is longer than the model reads; AttachError inside
    `attached(host, ...)`, where the text would be read behind what is attached.
    """
    check_host(host)
    if after is not None:
        check_prefix(after)
    if is_attached(host):
        raise AttachError(
            "A prefix is attached to this host, so the text would be read behind it.",
            expected="bake(...) outside of attached(...)",
            found="a call inside",
            fix="Bake the text first; bake(host, text, after=prefix) reads it behind a prefix.",
        )
    if host.role != "causal":
        raise PrefixError(
            "Only a causal model can bake a text.",
            expected="a causal base model, where what follows does not change a text's keys and values",
            found=f"{host.reference}, {host.family}",
            fix="Use a causal model, or fit a prefix for the encoder.",
        )
    inputs, length = _inputs(host, content, first=after is None)
    start = 0 if after is None else after.occupies
    if not 0 < length <= host.max_positions - start - 1:
        raise PrefixError(
            "This text cannot be baked.",
            expected=f"1 to {host.max_positions - start - 1} tokens",
            found=str(length),
            fix="Shorten the text." if length else "Give a text that is not empty.",
        )
    layout = host.layout
    host.ensure_moved()
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(in_evaluation(host.backbone))
        if after is not None:
            stack.enter_context(attached(host, after))
        capture = _Capture(layout)
        stack.enter_context(intercepted(capture, layout.watched))
        host.backbone(**inputs, use_cache=False)
    # Of a model that reads pictures or sound too, a text reaches those sites alone that are the language model's.
    tensors = {site.name: _kept(capture.found[site.name], length) for site in host.sites if site.name in capture.found}
    baked = to_prefix(tensors, occupies=length)
    if after is None:
        return baked
    whole = _moved_back(after, baked).merge(baked)
    return replace(whole, reads=(*after.read_to, start + length) if after.occupies else ())


def position_biases(host: Host, length: int) -> dict[str, Array]:
    """What linear position biases (ALiBi) add to the logits of `length` keys that stand before the context, by site.

    `(head or kv_head, position)`; they are the same whatever the keys are, so a text of so many tokens shows them.
    Sites without such a bias are left out. PrefixError for a host or a length that cannot be baked.
    """
    if host.role != "causal" or not host.layout.watched:  # on transformers' interface a prefix's columns carry no bias
        return {}
    return {layer.site: layer.bias for layer in bake(host, [1] * length).layers if layer.bias is not None}


def _moved_back(after: Prefix, baked: Prefix) -> Prefix:
    """`after` as it is with `baked` between it and the context: under linear biases its positions lie further back.

    A position j of n gets s (j - n), so a baked text's first bias is what its length costs everything before it.
    """
    layers = []
    for layer in after.layers:
        behind = baked.layer(layer.site).bias
        if behind is not None:
            layer = replace(layer, bias=layer.bias_for(len(behind)) + behind[:, :1].astype(layer.keys.dtype))
        layers.append(layer)
    return Prefix(tuple(layers), after.occupies, after.reads)


def _inputs(host: Host, content: Any, *, first: bool) -> tuple[dict[str, Tensor], int]:
    """What the backbone reads: the content and, behind it, one more token that shows the slope of a position bias."""
    if isinstance(content, Tensor) and content.is_floating_point():
        check_soft(host, content)
        embeds = content.to(device=host.device, dtype=host.dtype)[None]
        return {"inputs_embeds": torch.cat([embeds, embeds[:, -1:]], dim=1)}, content.shape[0]
    if isinstance(content, str):
        from foreword.engine.rendering import tokens

        ids = tokens(host, content, special=False)
        begin = getattr(host.tokenizer, "bos_token_id", None)
        if first and begin is not None and tokens(host, "", special=True)[:1] == [begin]:
            ids = [begin, *ids]
    elif isinstance(content, Sequence) and len(content) and all(isinstance(part, Mapping) for part in content):
        from foreword.engine.rendering import message_tokens

        ids = message_tokens(host, content)
    else:
        ids = check_tokens(host, content)
    return {"input_ids": torch.tensor([[*ids, *ids[-1:]]], device=host.device)}, len(ids)


def _kept(found: SiteTensors, length: int) -> SiteTensors:
    """The text's part, with its position bias counted from where the context begins; None where heads have none.

    Keys that the model has widened for its scores, as GPT-J does, are kept in the dtype of its values.
    """
    keys, values = found.keys[:, :length].to(found.values.dtype, copy=True), found.values[:, :length].clone()
    if found.bias is None:
        return SiteTensors(keys, values)
    bias = found.bias[:, :length] - found.bias[:, length:]
    return SiteTensors(keys, values, bias.to(keys.dtype))
