"""What every attention site computes while a host reads: the keys and values of a text, the queries of many.

`captured` keeps a text's keys and values at all sites, as they stand right before a context that follows. Where keys
turn with position (rotary) the text is read at positions -n to -1, so that it takes none of the context's; elsewhere it
is read from position 0 on, as if the context stood beside it. It suits every role: an encoder's text is read alone, and
an encoder-decoder model's text reaches cross-attention through the encoder's states.

`watching` shows each attention call of the forward passes inside it to a function: queries, output and log-sum-exp over
the bare context. What to make of them is the caller's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foreword.engine.assignment import SiteTensors
from foreword.engine.attention import AttentionCall, intercepted
from foreword.engine.batches import in_batches
from foreword.engine.families import Met
from foreword.engine.rendering import padded

if TYPE_CHECKING:
    from foreword.engine.host import Host


@dataclass(frozen=True)
class Seen:
    """One attention call at one site, over the bare context.

    `query` `(batch, head, query, dim)`, `key` and `value` `(batch, kv_head, key, dim)`, `out` `(batch, head, query,
    value_dim)`, `lse` `(batch, head, query)` in nats; `real` `(batch, query)` is False where a query is padding.
    `scale` multiplies query times key.
    """

    site: str
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    lse: Tensor
    real: Tensor
    scale: float


class _Reader:
    """Shows every attention call of a host to `see`, and lets it through."""

    def __init__(self, host: Host, see: Callable[[Seen], None]) -> None:
        self.sites = host.layout.sites
        self.crossing = {site.name for site in host.sites if site.role == "cross"}
        self.see = see
        self.calls: Counter[nn.Module] = Counter()

    def start(self, *_: Any) -> None:
        """A forward pass begins: calls of a shared module are counted anew."""
        self.calls.clear()

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        result = call.run()
        site = self._site(call.module)
        if site is not None:
            scale, mask = _scale(call), _mask(call)
            real = _real(call, None if site in self.crossing else mask)
            lse = _log_sum_exp(call.query, call.key, mask, scale)
            self.see(Seen(site, call.query, call.key, call.value, result[0].transpose(1, 2), lse, real, scale))
        return result

    def meet(self, met: Met) -> Tensor:
        site = self._site(met.module)
        if site is not None:
            real = torch.ones(met.query.shape[0], met.query.shape[2], dtype=torch.bool, device=met.query.device)
            context = met.context
            self.see(Seen(site, met.query, met.key, met.value, context.out, context.lse, real, met.scale))
        return met.context.out

    def frozen(self) -> _Reader:
        return self

    def _site(self, module: nn.Module) -> str | None:
        if module not in self.sites:
            return None
        number = self.calls[module]
        self.calls[module] += 1
        return self.sites[module][number % len(self.sites[module])]


@contextmanager
def watching(host: Host, see: Callable[[Seen], None]) -> Iterator[None]:
    """Within this context `see` is shown every attention call of `host`; no prefix may be attached meanwhile."""
    reader = _Reader(host, see)
    with ExitStack() as stack:
        for module in dict.fromkeys((host.model, host.backbone)):
            stack.callback(module.register_forward_pre_hook(reader.start).remove)
        stack.enter_context(intercepted(reader, host.layout.watched, alone=True))
        yield


def captured(host: Host, ids: Sequence[int], decoder_ids: Sequence[int] = ()) -> dict[str, SiteTensors]:
    """The keys and values of one text at every site, `(kv_head, token, dim)`, without gradients.

    An encoder-decoder model reads `ids` with its encoder and `decoder_ids` with its decoder, so that sites differ in
    their number of tokens. Position biases are left out: only `bake` keeps them.
    """
    found: dict[str, SiteTensors] = {}

    def keep(seen: Seen) -> None:
        value = seen.value[0].detach().clone()
        found[seen.site] = SiteTensors(seen.key[0].detach().to(value.dtype, copy=True), value)

    inputs: dict[str, Any] = {"input_ids": torch.tensor([list(ids)], device=host.device)}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if host.role == "encoder-decoder":
        inputs["decoder_input_ids"] = torch.tensor([list(decoder_ids)], device=host.device)
    elif host.layout.is_rotary:
        inputs["position_ids"] = torch.arange(-len(ids), 0, device=host.device)[None]
    with torch.no_grad(), watching(host, keep):
        host.backbone(**inputs, **({} if host.role == "encoder" else {"use_cache": False}))
    return {site.name: found[site.name] for site in host.sites}


def read(
    host: Host,
    rows: Sequence[Sequence[int]],
    see: Callable[[Seen], None],
    *,
    answers: Sequence[Sequence[int]] = (),
    batch_size: int = 16,
) -> None:
    """Let the bare host read rows of token ids, without gradients, and show what every site sees of them to `see`.

    `answers` are what the decoder of an encoder-decoder model reads for each row. A batch that does not fit into memory
    is read in halves, and `see` is not shown again what it has seen of the whole: it must either take a call in or fail
    and leave nothing behind.
    """
    shown: list[set[str]] = [set() for _ in rows]  # sites that were shown of each row, before its batch failed
    part: list[int] = []
    before: frozenset[str] = frozenset()

    def once(seen: Seen) -> None:
        if seen.site not in before:
            see(seen)
            for index in part:
                shown[index].add(seen.site)

    def computed(indices: list[int]) -> None:
        nonlocal part, before
        part, before = indices, frozenset(shown[indices[0]])
        _read(host, [rows[index] for index in part], [answers[index] for index in part if answers])

    with torch.no_grad(), watching(host, once):
        for _ in in_batches([len(row) for row in rows], batch_size, computed):
            pass


def _read(host: Host, rows: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> None:
    given = padded(host, rows)
    inputs: dict[str, Any] = {"input_ids": given.ids, "attention_mask": given.mask}
    if host.role == "encoder-decoder":
        inputs["decoder_input_ids"] = padded(host, answers).ids
    host.backbone(**inputs)


def _scale(call: AttentionCall) -> float:
    stated = call.options.get("scaling")
    return float(call.query.shape[-1] ** -0.5 if stated is None else stated)


def _mask(call: AttentionCall) -> Tensor | None:
    """What is added to the scaled scores, `(batch or 1, head or 1, query, key)`, in float32; None for nothing."""
    queries, keys = call.query.shape[2], call.key.shape[2]
    hidden = torch.finfo(torch.float32).min
    mask = call.mask
    if call.is_causal:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=call.query.device).tril()[None, None]
    if mask is not None:
        nothing = torch.zeros(mask.shape, device=mask.device)
        mask = nothing.masked_fill(~mask, hidden) if mask.dtype == torch.bool else mask.float().clamp(min=hidden)
        mask = mask.expand(-1, -1, queries, keys)
    bias = call.options.get("position_bias")
    if not isinstance(bias, Tensor):
        return mask
    return bias.float() if mask is None else (mask + bias.float()).clamp(min=hidden)


def _real(call: AttentionCall, mask: Tensor | None) -> Tensor:
    """A token that may not see itself is padding: its query counts for nothing."""
    batch, _, queries, _ = call.query.shape
    ones = torch.ones(batch, queries, dtype=torch.bool, device=call.query.device)
    if mask is None:
        return ones
    own = mask[:, 0].diagonal(call.key.shape[2] - queries, dim1=1, dim2=2)
    return ones & (own > torch.finfo(torch.float32).min / 2)


def _log_sum_exp(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = query.float() @ keys.float().transpose(-1, -2) * scale
    return torch.logsumexp(scores if mask is None else scores + mask, dim=-1)
