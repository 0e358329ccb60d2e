"""The families whose attention is not on transformers' interface: one row each, and how their attention is met.

Their modules compute scores, softmax and the weighted values in their own forward. While such a module runs under an
attached prefix, torch's own function hook watches it: it keeps the queries of the first score product, the
log-sum-exp of what goes into the softmax, and merges the prefix into the product of weights and values. The model's
code runs as it is. What a family's row must say is only how its scores are scaled and how its queries are shaped.
Position biases and masks concern the context alone: the prefix's columns carry none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from foreword.engine.merge import Segment, wide


@dataclass(frozen=True)
class Met:
    """What was seen of one watched attention.

    `query` `(batch, head, query, dim)`; `key`, `value` `(batch, kv_head, key, dim)`; `context` is the attention that
    the module computed over them, from `logits` `(batch, head, query, key)`: scaled, position bias and mask included.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    context: Segment
    logits: Tensor
    scale: float


# What was met to the output that takes its place, (batch, head, query, dim)
Meeting = Callable[[Met], Tensor]


@dataclass(frozen=True)
class Family:
    """How one attention class scales its scores, and its number of query and key heads; None: as many as query heads.

    With `scales_keys` it has scaled its keys before it multiplies them with its queries. `products` is how many other
    products it takes before that one. `mixes` says whether a module mixes its heads' scores, which no row can meet.
    `origin` gives, for a position bias that is counted from the *last* key, what brings it to a count from the first,
    `(row or 1, head)`: a prefix stands before the first token, so its share must not depend on how many follow.
    """

    scale: Callable[[Any, int], float]
    heads: Callable[[Any], int]
    kv_heads: Callable[[Any], int] | None = None
    origin: Callable[[Mapping[str, Any], int], Tensor | None] | None = None
    scales_keys: bool = False
    products: int = 0
    mixes: Callable[[Any], bool] | None = None


def _root(module: Any, dim: int) -> float:
    del module
    return 1 / math.sqrt(dim)


def _deberta_scale(module: Any, dim: int) -> float:
    factor = 1 + ("c2p" in module.pos_att_type) + ("p2c" in module.pos_att_type)
    return 1 / math.sqrt(dim * factor)


def _imagegpt_scale(module: Any, dim: int) -> float:
    scale = _root(module, dim) if module.scale_attn_weights else 1.0
    return scale / (module.layer_idx + 1) if module.scale_attn_by_inverse_layer_idx else scale


def _falcon_kv_heads(module: Any) -> int:
    return int(module.num_heads if module.new_decoder_architecture else module.num_kv_heads)


def _mpt_origin(given: Mapping[str, Any], keys: int) -> Tensor | None:
    """The slope times the number of keys from the first real one to the last, `(row or 1, head)`."""
    bias, hidden = given.get("position_bias"), given.get("attention_mask")
    if bias is None:
        return None
    slopes = bias[None, :, 0, -1] - bias[None, :, 0, -2]
    padding = 0 if hidden is None else hidden[:, 0, -1].long().cumprod(dim=-1).sum(dim=-1)[:, None]
    shift: Tensor = slopes * (keys - 1 - padding)
    return shift


def _count(name: str) -> Callable[[Any], int]:
    return lambda module: int(getattr(module, name))


def _stated(name: str) -> Callable[[Any, int], float]:
    def scale(module: Any, dim: int) -> float:
        del dim
        return float(getattr(module, name))

    return scale


def _unscaled(module: Any, dim: int) -> float:
    del module, dim
    return 1.0


# transformers' model types that the conformance table covers: no other model is used before it was tried (trial.py).
CONFORMING = frozenset(
    (
        "albert", "bart", "bert", "bloom", "clip", "codegen", "convbert", "deberta", "deberta-v2", "deepseek_v2",
        "deepseek_v3", "dinov2", "dinov3_vit", "distilbert", "electra", "falcon", "flaubert", "gemma2", "gemma3_text",
        "gpt2", "gpt_neo", "gpt_neox", "gpt_neox_japanese", "gpt_oss", "gptj", "granite", "imagegpt", "llama", "mbart",
        "megatron-bert", "mistral", "mixtral", "modernbert", "mpnet", "mpt", "olmo2", "openai-gpt", "opt", "phi3",
        "qwen2", "qwen3", "qwen3_moe", "rembert", "roberta", "roformer", "stablelm", "starcoder2", "t5", "vit",
        "whisper", "xglm", "xlm",
    )
)  # fmt: skip
# By transformers' own package and class.
FAMILIES: Mapping[str, Family] = {
    "gpt_neo.GPTNeoSelfAttention": Family(_unscaled, _count("num_heads")),
    "gptj.GPTJAttention": Family(_root, _count("num_attention_heads")),
    "falcon.FalconAttention": Family(_root, _count("num_heads"), _falcon_kv_heads),
    "bloom.BloomAttention": Family(_stated("inv_norm_factor"), _count("num_heads")),
    "mpt.MptAttention": Family(_stated("softmax_scale"), _count("n_heads"), origin=_mpt_origin),
    "codegen.CodeGenAttention": Family(_root, _count("num_attention_heads")),
    "openai.Attention": Family(_root, _count("n_head")),
    "xglm.XGLMAttention": Family(_unscaled, _count("num_heads")),
    "mpnet.MPNetSelfAttention": Family(_root, _count("num_attention_heads")),
    "roformer.RoFormerSelfAttention": Family(_root, _count("num_attention_heads")),
    "deberta.DisentangledSelfAttention": Family(
        _unscaled, _count("num_attention_heads"), mixes=lambda module: bool(module.talking_head)
    ),
    "rembert.RemBertSelfAttention": Family(_root, _count("num_attention_heads")),
    "megatron_bert.MegatronBertSelfAttention": Family(_root, _count("num_attention_heads")),
    "convbert.ConvBertSelfAttention": Family(_root, _count("num_attention_heads"), products=1),
    "xlm.MultiHeadAttention": Family(_unscaled, _count("n_heads")),
    "flaubert.MultiHeadAttention": Family(_unscaled, _count("n_heads")),
    "imagegpt.ImageGPTAttention": Family(_imagegpt_scale, _count("num_heads")),
    "gpt_neox_japanese.GPTNeoXJapaneseAttention": Family(_root, _count("num_attention_heads")),
    "deberta_v2.DisentangledSelfAttention": Family(_deberta_scale, _count("num_attention_heads"), scales_keys=True),
}


def family_of(module: nn.Module) -> Family | None:
    """The row of an attention module; None for another library's class of the same name, which may compute otherwise.

    >>> family_of(nn.Linear(1, 1)) is None
    True
    """
    kind = type(module)
    package, _, own = kind.__module__.removeprefix("transformers.models.").partition(".")
    found = FAMILIES.get(f"{package}.{kind.__name__}") if own == f"modeling_{package}" else None
    return None if found is not None and found.mixes is not None and found.mixes(module) else found


_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_ADDED_PRODUCTS = {torch.baddbmm, Tensor.baddbmm}
SOFTMAX = {nn.functional.softmax, torch.softmax, Tensor.softmax}


class Watch(TorchFunctionMode):
    """Watches one forward pass of one attention module, and lets `meet` change what comes out of its attention."""

    def __init__(self, module: nn.Module, family: Family, meet: Meeting, given: Mapping[str, Any]) -> None:
        super().__init__()
        self.module, self.family, self.meet, self.given = module, family, meet, given
        self.query: Tensor | None = None
        self.key: Tensor | None = None
        self.lse: Tensor | None = None
        self.logits: Tensor | None = None
        self.products = 0
        self.met = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.met:
            return func(*args, **kwargs)
        if func is nn.functional.scaled_dot_product_attention:
            return self._whole(func, args, kwargs)
        if func in SOFTMAX and self.query is not None:
            self.lse = torch.logsumexp(wide(args[0]), dim=-1)
            self.logits = args[0]
            origin = None if self.family.origin is None else self.family.origin(self.given, args[0].shape[-1])
            if origin is not None:
                self.lse = self.lse + origin[..., None].to(self.lse.dtype)
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if self.query is None and func in _PRODUCTS and args[1].dim() > 2:  # one with a weight is a projection
            if self.products == self.family.products:
                self.query, self.key = args[0], args[1].transpose(-1, -2)
            self.products += 1
        elif self.query is None and func in _ADDED_PRODUCTS:
            first, second = (kwargs[n] if n in kwargs else args[i] for i, n in ((1, "batch1"), (2, "batch2")))
            self.query, self.key = first, second.transpose(-1, -2)
        elif self.lse is not None and func in _PRODUCTS:
            return self._met(result, args[1])
        return result

    def _met(self, out: Tensor, value: Tensor) -> Tensor:
        """The product of weights and values, merged; in the shape it came in."""
        query, key, lse, logits = self.query, self.key, self.lse, self.logits
        if query is None or key is None or lse is None or logits is None:
            raise RuntimeError("the watch met an output before its scores")
        self.met = True
        heads = self.family.heads(self.module)
        kv_heads = heads if self.family.kv_heads is None else self.family.kv_heads(self.module)
        scale = self.family.scale(self.module, query.shape[-1])
        key = key / scale if self.family.scales_keys else key
        met = Met(
            self.module,
            query.reshape(-1, heads, *query.shape[-2:]),
            key.reshape(-1, kv_heads, *key.shape[-2:]),
            value.reshape(-1, kv_heads, *value.shape[-2:]),
            Segment(out.reshape(-1, heads, *out.shape[-2:]), lse.reshape(-1, heads, lse.shape[-1])),
            logits.reshape(-1, heads, *logits.shape[-2:]),
            scale,
        )
        return self.meet(met).to(out.dtype).reshape(out.shape)

    def _whole(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """A module that calls torch's attention by itself: the context's log-sum-exp is computed beside it."""
        query, key, value = args[:3]
        self.met = True
        out = func(*args, **kwargs)
        groups = query.shape[1] // key.shape[1]
        keys = key.repeat_interleave(groups, dim=1) if groups > 1 else key
        scale = self.family.scale(self.module, query.shape[-1])
        scores = wide(query) @ wide(keys).transpose(-1, -2) * scale
        mask = kwargs.get("attn_mask")
        if kwargs.get("is_causal"):
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None:
            least = torch.finfo(scores.dtype).min
            bias = mask.to(scores.dtype).clamp(min=least) if mask.dtype != torch.bool else 0.0
            scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else scores + bias
        context = Segment(out, torch.logsumexp(scores, dim=-1))
        return self.meet(Met(self.module, query, key, value, context, scores, scale)).to(out.dtype)
