"""What reaches one attention head of a live model: its queries, and what its own context answers to each.

The compiler needs no more than this to make a prefix for the head (`foreword.compiler.pretrained`): by the merge's
identity (`merge.py`) a context counts through its output and log-sum-exp alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foreword.engine.attention import AttentionCall, intercepted, watchable
from foreword.engine.batches import batches
from foreword.engine.families import Met
from foreword.engine.host import Host
from foreword.engine.rendering import TokenIds, padded
from foreword.errors import HostError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Observed:
    """One head's inputs over all real tokens of some texts, text after text, in float64.

    `queries` `(token, dim)` as attention gets them, `outputs` `(token, value_dim)` and `log_sums` `(token,)` (nats) of
    attention over the context alone, `rows` `(token,)` the text's index; `scale` multiplies query times key.
    """

    queries: Floats
    outputs: Floats
    log_sums: Floats
    rows: NDArray[np.int64]
    scale: float


class _Observer:
    """Keeps what one head sees, and lets every call through."""

    def __init__(self, module: torch.nn.Module, head: int) -> None:
        self.module, self.head = module, head
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self.scale = 1.0

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        if call.module is self.module:
            query = call.query[:, self.head].double()
            shared = self.head // (call.query.shape[1] // call.key.shape[1])
            scaling = call.options.get("scaling")
            self.scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
            scores = self.scale * query @ call.key[:, shared].double().transpose(1, 2)
            scores = scores + _mask(call, self.head)
            values = torch.softmax(scores, dim=-1) @ call.value[:, shared].double()
            self.seen.append((query, values, torch.logsumexp(scores, dim=-1)))
        return call.run()

    def meet(self, met: Met) -> Tensor:
        if met.module is self.module:
            self.scale = met.scale
            found = met.query[:, self.head], met.context.out[:, self.head], met.context.lse[:, self.head]
            self.seen.append((found[0].double(), found[1].double(), found[2].double()))
        return met.context.out

    def frozen(self) -> _Observer:
        return self


def observe(host: Host, site: str, head: int, rows: Sequence[TokenIds], *, batch_size: int = 32) -> Observed:
    """Run `host` on rows of token ids and keep what `head` (counted from 0) of `site` sees of them.

    HostError when there is no such head, or when it shares its keys with other heads: a prefix could not be its own.
    """
    known = {found.name: found for found in host.sites}
    found = known.get(site)
    if found is None or not 0 <= head < found.heads or found.heads != found.kv_heads:
        raise HostError(
            "This attention head cannot be observed for a prefix of its own.",
            expected="a site of host.sites and one of its heads, whose keys no other head shares",
            found=f"head {head} of {site}" + ("" if found is None else f", {found.heads} heads, {found.kv_heads} keys"),
            fix="Choose a site and a head with keys of its own.",
        )
    observer, call = _Observer(host.module(site), head), int(site.partition("#")[2] or 1) - 1
    parts: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    with torch.no_grad(), intercepted(observer, watchable(host.backbone), alone=True):
        for indices in batches([len(row) for row in rows], batch_size):
            given = padded(host, [rows[index] for index in indices])
            observer.seen.clear()
            host.backbone(input_ids=given.ids, attention_mask=given.mask)
            for place, index in enumerate(indices):
                real = given.mask[place].bool()
                query, out, log_sum = (part[place][real].cpu() for part in observer.seen[call])
                parts[index] = (query, out, log_sum)
    whole = [torch.cat([parts[index][axis] for index in range(len(rows))]).numpy() for axis in range(3)]
    counts = [len(parts[index][0]) for index in range(len(rows))]
    return Observed(whole[0], whole[1], whole[2], np.repeat(np.arange(len(rows)), counts), observer.scale)


def _mask(call: AttentionCall, head: int) -> Tensor:
    """The call's mask for one head as numbers to add, `(batch, query, key)`."""
    least = torch.finfo(torch.float64).min
    queries, keys = call.query.shape[2], call.key.shape[2]
    nothing = torch.zeros(1, queries, keys, dtype=torch.float64, device=call.query.device)
    if call.is_causal:
        visible = torch.ones(queries, keys, dtype=torch.bool, device=call.query.device).tril()
        return nothing.masked_fill(~visible, least)
    if call.mask is None:
        return nothing
    mask = call.mask[:, min(head, call.mask.shape[1] - 1)]
    if mask.dtype == torch.bool:
        return nothing.expand(len(mask), queries, keys).masked_fill(~mask, least)
    return mask.double()
