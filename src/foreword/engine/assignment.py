"""Which row of a batch carries which prefix, and what attention becomes for it.

An assignment holds each prefix once, whatever the number of rows. Given one attention call it answers with the
attention over [prefix ; context] for every row: by the fused merge where kernels for it exist and the copies that it
saves are worth its extra calls, by joining prefix and context otherwise. Both mean the same; `merge.py` has the proof.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from foreword.engine.attention import AttentionCall, joined
from foreword.engine.families import Met
from foreword.engine.merge import FusedCall, Share, can_fuse, fused, merged, plain_segment, spread
from foreword.errors import AttachError


@dataclass(frozen=True)
class SiteTensors:
    """A prefix at one site as torch tensors: keys, values `(kv_head, position, dim)`.

    `bias` is `(kv_head, position)`, or `(head, position)` where query heads that share a key have biases of their own.
    """

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None

    def on(self, device: torch.device) -> SiteTensors:
        """The same on a device, as that of a layer of a model that is spread over several."""
        if self.keys.device == device:
            return self
        bias = None if self.bias is None else self.bias.to(device)
        return SiteTensors(self.keys.to(device), self.values.to(device), bias)


PrefixTensors = Mapping[str, SiteTensors]
# At one site: a prefix's tensors (None: no prefix) and the rows that carry it (None: all).
_Carried = list[tuple[SiteTensors | None, Tensor | None]]

# Merging takes more kernel calls, and moves the queries and two outputs where joining moves prefix and context: so it
# is worth it from so many bytes joined on, and so many sizes of the queries more. Measured on two cores, forwards alone
# and with gradients, for 1 to 32 rows of 1 to 128 queries: near this line the two are level.
WORTH_MERGING_BYTES = 2_400_000
WORTH_MERGING_QUERIES = 3.2
# Query heads that share a key head have it repeated where they are joined and there are several queries.
WORTH_MERGING_GROUPED_BYTES = 400_000
# From so many queries on the causal kernel, which leaves out later keys, outweighs everything: a prefix that is joined
# on takes it away (at 1,024 queries joining takes 1.3 to 1.7 times as long).
WORTH_MERGING_CAUSAL = 512


class Assignment:
    """Prefixes, and for each row of a batch the index of its prefix or None; `rows` None: every row the first prefix.

    A batch whose size is a multiple of the number of rows has each row repeated in place, as beam search does. Where
    the merge can be done, sizes decide between it and joining; `merging` decides it for all calls.
    """

    def __init__(
        self, prefixes: Sequence[PrefixTensors], rows: Sequence[int | None] | None, *, merging: bool | None = None
    ) -> None:
        self.prefixes, self.merging = tuple(prefixes), merging
        self.rows = None if rows is None else tuple(rows)
        self.sites = frozenset(site for prefix in self.prefixes for site in prefix)
        self._at_site: dict[tuple[str, int, torch.device], tuple[_Carried, list[Share], int]] = {}
        self._groups: dict[tuple[int, torch.device], list[tuple[int | None, Tensor | None]]] = {}
        # A compiled graph serves every order of the rows: it reads how many there are, and their numbers as tensors.
        whose = () if self.rows is None else self.rows
        self._count = None if self.rows is None else len(whose)
        self._where = {
            prefix: torch.tensor([row for row, carried in enumerate(whose) if carried == prefix])
            for prefix in sorted(set(whose), key=lambda found: (found is None, found))
        }

    def groups(self, batch: int, device: torch.device) -> list[tuple[int | None, Tensor | None]]:
        """(prefix, rows) pairs that cover a batch of this size; rows None: all of them."""
        if torch.compiler.is_compiling():  # a graph that had read what is kept would be traced again once it grows
            return self._grouped(batch, device)
        key = (batch, device)
        if key not in self._groups:
            self._groups[key] = self._grouped(batch, device)
        return self._groups[key]

    def _grouped(self, batch: int, device: torch.device) -> list[tuple[int | None, Tensor | None]]:
        if self._count is None:
            return [(0, None)]
        if not self._count or batch % self._count:
            raise AttachError(
                "The batch does not have the rows that the prefixes were attached for.",
                expected=f"{self._count} rows, or a multiple of it (beams)",
                found=f"{batch} rows",
                fix="Attach with one entry of `rows` for each row of the batch.",
            )
        if len(self._where) == 1:
            return [(prefix, None) for prefix in self._where]
        beams = torch.arange(batch // self._count, device=device)
        return [
            (prefix, (where.to(device)[:, None] * len(beams) + beams).flatten())
            for prefix, where in self._where.items()
        ]

    def answer(self, call: AttentionCall, site: str) -> tuple[Tensor, Tensor | None]:
        """What the attention call gives with every row's prefix in front of its context."""
        batch = call.query.shape[0]
        carried, shares, copied = self._carried(site, batch, call.query.device)
        if not shares:
            return call.run()
        if call.mask is not None:
            _check_mask(call, call.mask)
        merging = self.merging
        if merging is None:  # rows apart take as many calls either way
            merging = len(carried) > 1 or is_worth_merging(call, copied)
        if merging:
            plan = _fused_plan(call)
            cast = [_cast(share, call.query.dtype) for share in shares]
            if plan is not None and can_fuse(plan, cast):
                return _silenced(fused(plan, cast), call.mask, carried).transpose(1, 2).contiguous(), None
        if len(carried) == 1:
            return joined(call, shares[0].keys, shares[0].values, shares[0].bias)
        return self._row_by_row(call, carried)

    def _carried(self, site: str, batch: int, device: torch.device) -> tuple[_Carried, list[Share], int]:
        """Which tensors which rows carry at a site; those without the rows that carry none; bytes if joined to all."""
        if torch.compiler.is_compiling():
            return self._carried_now(site, batch, device)
        key = (site, batch, device)
        if key in self._at_site:
            return self._at_site[key]
        found = self._carried_now(site, batch, device)
        if not self._is_copied_live(site, device):
            self._at_site[key] = found
        return found

    def _is_copied_live(self, site: str, device: torch.device) -> bool:
        """Whether tensors that a step may change are read from copies on another device: such are made anew."""
        there = [prefix[site] for prefix in self.prefixes if site in prefix]
        return any(x.keys.device != device and (x.keys.requires_grad or x.values.requires_grad) for x in there)

    def _carried_now(self, site: str, batch: int, device: torch.device) -> tuple[_Carried, list[Share], int]:
        carried = [(self._at(prefix, site, device), rows) for prefix, rows in self.groups(batch, device)]
        shares = [Share(x.keys, x.values, x.bias, rows) for x, rows in carried if x is not None]
        return carried, shares, batch * (_bytes(shares[0].keys) + _bytes(shares[0].values)) if shares else 0

    def merge(self, met: Met, site: str) -> Tensor:
        """Attention that the model's own code has computed, merged with every row's prefix, in plain operations."""
        query, context, segments = met.query, met.context, []
        for prefix, rows in self.groups(query.shape[0], query.device):
            found = self._at(prefix, site, query.device)
            if found is not None:
                mine = query if rows is None else query.index_select(0, rows)
                segments.append((plain_segment(mine, found.keys, found.values, found.bias, scale=met.scale), rows))
        return merged(spread(segments, context), context) if segments else context.out

    def _at(self, prefix: int | None, site: str, device: torch.device) -> SiteTensors | None:
        found = None if prefix is None else self.prefixes[prefix].get(site)
        return None if found is None else found.on(device)

    def _row_by_row(self, call: AttentionCall, carried: _Carried) -> tuple[Tensor, Tensor | None]:
        """The plain way for a mixed batch: each group of rows on its own, put back in place.

        Rows without a prefix are taken from the bare call for all rows: for fewer, products may be summed otherwise.
        """
        out: Tensor | None = None
        for found, rows in carried:
            if found is None:
                mine = call.run()[0]
                mine = mine if rows is None else mine.index_select(0, rows)
            else:
                part = call if rows is None else _rows_of(call, rows)
                mine = joined(part, found.keys, found.values, found.bias)[0]
            if rows is None:
                return mine, None
            out = mine.new_zeros(call.query.shape[0], *mine.shape[1:]) if out is None else out
            out = out.index_copy(0, rows, mine)
        if out is None:
            raise AttachError("An attention call had no rows.", expected="one row or more", found="an empty batch")
        return out, None


def _check_mask(call: AttentionCall, mask: Tensor) -> None:
    """AttachError for a mask with other columns than there are keys: one that is spread over all keys hides no padding.

    Models whose first layers keep a recurrent state, and no keys, make such a mask when they go on from their cache.
    """
    if mask.shape[-1] != call.key.shape[2]:
        raise AttachError(
            "The model's own mask does not say which of its keys are padding.",
            expected=f"a mask of {call.key.shape[2]} columns, one for each key",
            found=f"{mask.shape[-1]} columns, at a {type(call.module).__name__}",
            fix="Run padded rows with use_cache=False, or each row by itself without padding.",
        )


def is_worth_merging(call: AttentionCall, copied: int) -> bool:
    """Whether merging costs less than joining, which copies so many bytes of a prefix to all rows, and the context."""
    query, key = call.query, call.key
    if query.shape[2] >= WORTH_MERGING_CAUSAL and call.is_causal:
        return True
    size = key.element_size()
    moved = copied + (key.numel() + call.value.numel()) * size
    if query.shape[2] == 1:
        return moved >= WORTH_MERGING_BYTES
    groups = query.shape[1] // key.shape[1]
    least = WORTH_MERGING_BYTES if groups == 1 else WORTH_MERGING_GROUPED_BYTES
    return groups * moved >= least + WORTH_MERGING_QUERIES * query.numel() * size


def _silenced(out: Tensor, mask: Tensor | None, carried: _Carried) -> Tensor:
    """`out` `(batch, head, query, dim)`, 0 where a row without a prefix sees nothing, as torch's own attention is."""
    bare = [rows for found, rows in carried if found is None and rows is not None]
    if mask is None or not bare or out.shape[2] == 1:
        return out
    is_bare = torch.zeros(len(out), 1, 1, 1, dtype=torch.bool, device=out.device)
    sees = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    return out.masked_fill(is_bare.index_fill(0, bare[0], True) & ~sees.any(dim=-1, keepdim=True), 0)


def _cast(share: Share, dtype: torch.dtype) -> Share:
    if share.keys.dtype == dtype and share.values.dtype == dtype:
        return share
    return replace(share, keys=share.keys.to(dtype), values=share.values.to(dtype))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()  # as `nbytes`, but of a size that a graph leaves open, too


def _fused_plan(call: AttentionCall) -> FusedCall | None:
    """The call as the fused kernels take it; None when it asks for something that they do not do."""
    if not call.is_plain:
        return None
    mask = call.mask
    if mask is not None:
        # -inf is made finite: a row that may see nothing in its context must give the prefix all of its weight.
        least = torch.finfo(call.query.dtype).min
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=call.query.dtype, device=mask.device).masked_fill(~mask, least)
        else:
            mask = mask.to(call.query.dtype).clamp(min=least)
    scale = call.options.get("scaling")
    key, value = call.key, call.value
    if call.is_causal and key.shape[2] > call.query.shape[2]:  # an empty static cache behind: never seen
        key, value = key[:, :, : call.query.shape[2]], value[:, :, : call.query.shape[2]]
    return FusedCall(
        call.query,
        key,
        value,
        mask,
        causal=call.is_causal,
        scale=call.query.shape[-1] ** -0.5 if scale is None else float(scale),
    )


def _rows_of(call: AttentionCall, rows: Tensor) -> AttentionCall:
    batch = call.query.shape[0]

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() >= 2 and value.shape[0] == batch:
            return value.index_select(0, rows)
        return value

    return call._replace(
        query=call.query.index_select(0, rows),
        key=call.key.index_select(0, rows),
        value=call.value.index_select(0, rows),
        mask=cut(call.mask),
        options={name: cut(value) for name, value in call.options.items()},
    )
