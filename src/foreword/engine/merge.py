"""Attention over a shared prefix computed once for all rows, merged with attention over each row's own context.

Softmax over joined scores splits exactly. With out_s and lse_s the attention output and the log-sum-exp of the scaled
scores over segment s (prefix p, context c):

    softmax over [p ; c]  =  w out_p + (1 - w) out_c,      w = exp(lse_p) / (exp(lse_p) + exp(lse_c))
                                                             = sigmoid(lse_p - lse_c).

So a prefix is never copied per row: the queries of all rows that carry it are laid side by side as one long row, and
its keys and values are read once. The gradient needs care: the fused kernels' log-sum-exp carries none. But the
derivative through a score depends on the other segment only by way of the *total* output and the *total* log-sum-exp
(ds = p (dp - <dout, out>) with p = exp(s - lse)), so each segment's own backward kernel, called with the totals, gives
the exact gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
_fused_cuda = torch.ops.aten._scaled_dot_product_efficient_attention


@dataclass(frozen=True)
class Segment:
    """Attention over some of the keys: `out` `(batch, head, query, dim)`, `lse` `(batch, head, query)` in nats."""

    out: Tensor
    lse: Tensor


@dataclass(frozen=True)
class Share:
    """A prefix at one site, and the batch rows that carry it; `rows` `(row,)` or None for every row."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None
    rows: Tensor | None


def wide(numbers: Tensor) -> Tensor:
    """The numbers in float32, or in float64 if they are: what scores and their log-sum-exps are computed in."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def plain_segment(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, *, scale: float) -> Segment:
    """A prefix's segment in plain operations: any device and dtype, differentiable as it stands.

    `query` `(batch, head, query, dim)`; `key`, `value` `(kv_head, position, dim)`; `bias` is None or
    `(kv_head or head, position)`. Scores and softmax are computed in float32 at least.
    """
    batch, heads, queries, _ = query.shape
    folded = wide(fold(query, key.shape[0])[0])
    scores = torch.einsum("hrd,hpd->hrp", folded, key.to(folded.dtype)) * scale
    if bias is not None:
        scores = scores + fold_bias(bias.to(folded.dtype), query, key.shape[0])
    lse = torch.logsumexp(scores, dim=-1)
    out = torch.einsum("hrp,hpd->hrd", torch.exp(scores - lse[..., None]), value.to(folded.dtype))
    return Segment(unfold(out[None].to(query.dtype), batch, heads, queries), unfold(lse[None], batch, heads, queries))


def merged(prefix: Segment, context: Segment) -> Tensor:
    """The output of both segments together."""
    weight = torch.sigmoid(wide(prefix.lse) - wide(context.lse)).unsqueeze(-1).to(context.out.dtype)
    return torch.lerp(context.out, prefix.out.to(context.out.dtype), weight)


def spread(segments: Sequence[tuple[Segment, Tensor | None]], context: Segment) -> Segment:
    """Several prefixes' segments as one over all rows; a row without one gets log-sum-exp -inf, so weight 0 exactly."""
    first, rows = segments[0]
    if rows is None:
        return first
    out, lse = torch.zeros_like(context.out), torch.full_like(context.lse, -torch.inf, dtype=first.lse.dtype)
    for segment, where in segments:
        if where is not None:
            out = out.index_copy(0, where, segment.out.to(out.dtype))
            lse = lse.index_copy(0, where, segment.lse)
    return Segment(out, lse)


def fold(query: Tensor, kv_heads: int) -> Tensor:
    """Queries of all rows side by side, for one prefix: `(batch, head, query, dim)` to `(1, kv_head, rows, dim)`.

    The query heads that share a key head become rows too, so grouped keys need no copy.
    """
    batch, heads, queries, dim = query.shape
    split = query.reshape(batch, kv_heads, heads // kv_heads * queries, dim)
    return split.transpose(0, 1).reshape(1, kv_heads, -1, dim)


def fold_bias(bias: Tensor, query: Tensor, kv_heads: int) -> Tensor:
    """A bias `(kv_head or head, position)` beside folded queries: `(kv_head, rows or 1, position)`."""
    if bias.shape[0] == kv_heads:
        return bias[:, None]
    batch, _, queries, _ = query.shape
    each = bias.reshape(kv_heads, 1, -1, 1, bias.shape[1]).expand(-1, batch, -1, queries, -1)
    return each.reshape(kv_heads, -1, bias.shape[1])


def unfold(found: Tensor, batch: int, heads: int, queries: int) -> Tensor:
    """`fold` undone, for outputs `(1, kv_head, rows, dim)` and, without the last axis, for log-sum-exps."""
    kv_heads, tail = found.shape[1], found.shape[3:]
    split = found.reshape(kv_heads, batch, heads // kv_heads * queries, *tail).transpose(0, 1)
    return split.reshape(batch, heads, queries, *tail)


@dataclass(frozen=True)
class FusedCall:
    """One attention call that the fused kernels can do: `mask` is additive in the query's dtype, finite, or None."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    scale: float


def can_fuse(call: FusedCall, shares: Sequence[Share]) -> bool:
    """Whether kernels that give a log-sum-exp exist for this call on this device, gradients included."""
    query = call.query
    tensors = [query, call.key, call.value, *(part for share in shares for part in (share.keys, share.values))]
    wants_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    same = all(tensor.dtype == query.dtype and tensor.shape[-1] == query.shape[-1] for tensor in tensors)
    learns_bias = any(share.bias is not None and share.bias.requires_grad for share in shares)
    if not same or (learns_bias and wants_gradient):
        return False
    if query.device.type == "cpu":
        return not (call.mask is not None and call.mask.requires_grad)
    return query.device.type == "cuda" and not wants_gradient


def fused(call: FusedCall, shares: Sequence[Share]) -> Tensor:
    """Attention over every row's prefix and context, `(batch, head, query, dim)`, each prefix read once."""
    parts = [part for share in shares for part in (share.keys, share.values)]
    if torch.is_grad_enabled() and any(part.requires_grad for part in (call.query, call.key, call.value, *parts)):
        found: Tensor = _Fused.apply(call, tuple(shares), call.query, call.key, call.value, *parts)  # type: ignore[no-untyped-call]
        return found
    return merged(*_segments(call, shares))


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, *, causal: bool, scale: float) -> Segment:
    """One segment by the device's fused kernel; `key` may have fewer heads than `query`."""
    if query.device.type == "cpu":
        out, lse = _fused(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)
        return Segment(out, lse)
    groups = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) if groups > 1 else part for part in (key, value))
    wide = None if mask is None else mask.expand(query.shape[0], query.shape[1], *mask.shape[2:])
    out, lse, _, _ = _fused_cuda(query, key, value, wide, True, 0.0, causal, scale=scale)
    return Segment(out, lse[..., : query.shape[2]])


def _prefix_segment(query: Tensor, share: Share, scale: float) -> Segment:
    batch, heads, queries, _ = query.shape
    keys, values = share.keys[None], share.values[None]
    bias = None if share.bias is None else fold_bias(share.bias.to(query.dtype), query, len(share.keys))[None]
    found = _attend(fold(query, share.keys.shape[0]), keys, values, bias, causal=False, scale=scale)
    return Segment(unfold(found.out, batch, heads, queries), unfold(found.lse, batch, heads, queries))


def _rows(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None else tensor.index_select(0, rows)


def _segments(call: FusedCall, shares: Sequence[Share]) -> tuple[Segment, Segment]:
    """The prefixes' segment over all rows, and the context's."""
    context = _attend(call.query, call.key, call.value, call.mask, causal=call.causal, scale=call.scale)
    segments = [(_prefix_segment(_rows(call.query, share.rows), share, call.scale), share.rows) for share in shares]
    return spread(segments, context), context


class _Fused(torch.autograd.Function):
    """Forward and exact backward of `fused` on the CPU; see the module's header for why the totals are right."""

    @staticmethod
    def forward(ctx: Any, call: FusedCall, shares: tuple[Share, ...], *tensors: Tensor) -> Tensor:
        prefix, context = _segments(call, shares)
        out, lse = merged(prefix, context), torch.logaddexp(wide(prefix.lse), wide(context.lse))
        ctx.call, ctx.shares = call, shares
        ctx.save_for_backward(*tensors, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, key, value, *parts, out, lse = ctx.saved_tensors
        call: FusedCall = ctx.call
        grad = grad.contiguous()
        by_context = _fused_backward(
            grad, query, key, value, out, lse, 0.0, call.causal, attn_mask=call.mask, scale=call.scale
        )
        by_query, by_parts = by_context[0], []
        for number, share in enumerate(ctx.shares):
            keys, values = parts[2 * number], parts[2 * number + 1]
            kv_heads = keys.shape[0]
            mine, of_out, of_grad, of_lse = (_rows(part, share.rows) for part in (query, out, grad, lse))
            batch, heads, queries, _ = mine.shape
            bias = None if share.bias is None else fold_bias(share.bias.to(query.dtype), mine, kv_heads)[None]
            found = _fused_backward(
                fold(of_grad, kv_heads),
                fold(mine, kv_heads),
                keys[None],
                values[None],
                fold(of_out, kv_heads),
                fold(of_lse[..., None], kv_heads)[..., 0],
                0.0,
                False,
                attn_mask=bias,
                scale=call.scale,
            )
            of_query = unfold(found[0], batch, heads, queries)
            by_query = by_query + of_query if share.rows is None else by_query.index_add(0, share.rows, of_query)
            by_parts += [found[1][0], found[2][0]]
        return None, None, by_query, by_context[1], by_context[2], *by_parts
