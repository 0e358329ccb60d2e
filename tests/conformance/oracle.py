"""What a prefix means, stated once more: an explicit float64 softmax over [prefix ; context] in the attention's place.

It shares no code with the engine's merge, nor with its plain concatenation. It reads only what the model hands to its
attention, and knows by itself how the families off the interface scale their scores and count their biases.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from foreword.engine.assignment import SiteTensors
from foreword.engine.attention import AttentionCall
from foreword.engine.families import Met
from foreword.engine.host import Host


class Oracle:
    """A handler for one forward pass: every attention is computed anew, in float64, with the prefix in front."""

    def __init__(self, host: Host, prefix: Mapping[str, SiteTensors]) -> None:
        self.paths = {module: path for path, module in host.backbone.named_modules()}
        self.prefix = prefix
        self.calls: Counter[nn.Module] = Counter()

    def call(self, call: AttentionCall) -> tuple[Tensor, None]:
        options, query, keys = call.options, call.query.double(), call.key.shape[2]
        scaling = options.get("scaling")
        scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)

        def score(key: Tensor) -> Tensor:
            found = scale * torch.einsum("bhqd,bhkd->bhqk", query, key.double())
            cap = options.get("softcap")
            return found if cap is None else cap * torch.tanh(found / cap)

        logits = score(_for_each_head(call.key, query.shape[1]))
        if options.get("position_bias") is not None:
            logits = logits + options["position_bias"].double()
        if call.mask is not None:
            seen = call.mask[..., :keys]
            logits = logits.masked_fill(~seen, -1e300) if seen.dtype == torch.bool else logits + seen.double()
        elif options.get("is_causal", getattr(call.module, "is_causal", True)) is not False and query.shape[2] > 1:
            later = torch.ones(query.shape[2], keys, dtype=torch.bool).triu(1)
            logits = logits.masked_fill(later, -1e300)
        sinks = options.get("s_aux")
        out = self._joint(call.module, logits, call.value, score, sinks)
        return out.transpose(1, 2).to(call.query.dtype), None

    def meet(self, met: Met) -> Tensor:
        name, dim = type(met.module).__name__, met.query.shape[-1]
        # GPT-Neo does not scale; XGLM, XLM, Flaubert and DeBERTa have scaled their queries; DeBERTa-v2's scores are one
        # of three terms; all others follow the square root, and ImageGPT can be told to divide by the layer's number.
        unscaled = ("gpt_neo", "xglm", "xlm", "flaubert", "deberta")
        family = type(met.module).__module__.split(".")[-2]
        scale = 1.0 if family in unscaled else (3 * dim if family == "deberta_v2" else dim) ** -0.5
        if name == "ImageGPTAttention" and met.module.scale_attn_by_inverse_layer_idx:
            scale = scale / (1 + int(self.paths[met.module].split(".")[1]))
        logits = met.logits.double()
        if name == "MptAttention":  # its bias is slope * (key - last key); a prefix stands where the first key does
            heads = logits.shape[1]
            slopes = 2.0 ** (-8.0 * torch.arange(1, heads + 1, dtype=torch.float64) / heads)
            logits = logits + slopes[:, None, None] * (logits.shape[-1] - 1)

        def score(key: Tensor) -> Tensor:
            return scale * torch.einsum("bhqd,bhkd->bhqk", met.query.double(), key.double())

        return self._joint(met.module, logits, met.value, score, None).to(met.context.out.dtype)

    def frozen(self) -> Oracle:
        return self

    def _joint(self, module: nn.Module, logits: Tensor, value: Tensor, score: Any, sinks: Tensor | None) -> Tensor:
        self.calls[module] += 1
        number, path = self.calls[module], self.paths.get(module, "")
        layer = self.prefix.get(path if number == 1 else f"{path}#{number}")
        batch, heads, queries, _ = logits.shape
        values = _for_each_head(value, heads).double()
        values = values.expand(batch, *values.shape[1:])
        if layer is not None:
            own_keys, own_values = (_for_each_head(part[None], heads) for part in (layer.keys, layer.values))
            own = score(own_keys.expand(batch, *own_keys.shape[1:]))
            logits = torch.cat([own, logits], dim=-1)
            values = torch.cat([own_values.double().expand(batch, *own_values.shape[1:]), values], dim=2)
        if sinks is not None:  # a logit that takes weight and gives nothing
            logits = torch.cat([logits, sinks.double()[None, :, None, None].expand(batch, heads, queries, 1)], dim=-1)
            values = torch.cat([values, torch.zeros_like(values[:, :, :1])], dim=2)
        weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True).detach())
        return torch.einsum("bhqk,bhkd->bhqd", weights / weights.sum(dim=-1, keepdim=True), values)


def _for_each_head(part: Tensor, heads: int) -> Tensor:
    """Grouped keys or values, one for each query head: head h reads group h // (heads / groups)."""
    groups = part.shape[1]
    return part[:, [head * groups // heads for head in range(heads)]]
