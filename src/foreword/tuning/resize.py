"""A prefix made longer or shorter without changing what it does more than it must.

Longer: positions become copies that share the weight of the one they are copies of, which changes nothing. Shorter: the
positions that get most attention are kept, head by head, and their values are solved again by least squares, so that
attention's output on given queries stays as near as it can to what it was (the idea of Attention Matching,
arXiv 2602.16284). With p the weights that the kept positions get, m their sum, o_c the context's own output and o the
output under the whole text, the values V minimise, per key head and over all queries,

    sum_q | p_q V - (o_q - (1 - m_q) o_cq) |^2  +  ridge |V - V_before|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.engine.assignment import SiteTensors
from foreword.engine.host import Host
from foreword.engine.reading import Seen, read

# Ridge of a least-squares solution for values, as a share of the mean eigenvalue of its matrix.
RIDGE = 1e-2
# Values of copies differ by this share of the values' own spread: equal copies would get equal gradients for ever.
APART = 0.1


@dataclass(frozen=True)
class Texts:
    """Rows of token ids whose queries judge positions; `answers` are what a decoder reads beside an encoder."""

    rows: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]] = ()


def lengthened(found: SiteTensors, positions: int, generator: torch.Generator) -> SiteTensors:
    """Copies of `found`'s positions up to `positions` of them: what attention gives stays the same.

    c copies of a position get the logit bias -log c each, so that together they weigh what it weighed; what one copy's
    value is more, the others' are less.
    """
    own = found.keys.shape[1]
    if positions <= own:
        return found
    whose = torch.arange(positions) % own
    counts = torch.bincount(whose, minlength=own)
    bias = found.keys.new_zeros(found.keys.shape[0], own) if found.bias is None else found.bias
    bias = (bias - counts.to(bias).log())[:, whose]
    values = found.values[:, whose]
    noise = torch.randn(values.shape, generator=generator) * APART * float(found.values.float().std())
    means = torch.zeros_like(noise[:, :own]).index_add_(1, whose, noise) / counts[None, :, None]
    return SiteTensors(found.keys[:, whose], values + (noise - means[:, whose]).to(values), bias)


def shortened(
    host: Host, texts: Texts, whole: Mapping[str, SiteTensors], positions: int, *, keep_first: bool
) -> dict[str, SiteTensors]:
    """`positions` of `whole`'s positions at each site that has more, chosen by attention mass; values solved again.

    `keep_first` keeps position 0 whatever its mass: causal models rest much of their attention there (a sink).
    """
    long = {site: found for site, found in whole.items() if found.keys.shape[1] > positions}
    if not long:
        return dict(whole)
    masses = {site: torch.zeros(found.keys.shape[:2], device=host.device) for site, found in long.items()}

    def weigh(seen: Seen) -> None:
        if seen.site in long:
            masses[seen.site] += shares(seen, long[seen.site]).sum(dim=(0, 2, 3))

    read(host, texts.rows, weigh, answers=texts.answers)
    kept = {site: _kept(found, masses[site], positions, keep_first=keep_first) for site, found in long.items()}

    def wanted(seen: Seen) -> Tensor:
        full, part = long[seen.site], kept[seen.site]
        with_whole = shares(seen, full, masked=False)
        out = context_out(seen) * (1 - with_whole.sum(dim=-1, keepdim=True))
        out = out + torch.einsum("bkgqp,kpv->bkgqv", with_whole, full.values.float())
        return out - (1 - shares(seen, part, masked=False).sum(dim=-1, keepdim=True)) * context_out(seen)

    sums = Sums.over(host, texts, kept, wanted)
    solved = {
        site: SiteTensors(part.keys, sums[site].values(anchor=part.values), part.bias) for site, part in kept.items()
    }
    return {site: solved.get(site, found) for site, found in whole.items()}


def _kept(found: SiteTensors, mass: Tensor, positions: int, *, keep_first: bool) -> SiteTensors:
    """Each key head's heaviest positions, in their order."""
    if keep_first:
        mass = mass.clone()
        mass[:, 0] = math.inf
    chosen = mass.topk(positions, dim=1).indices.sort(dim=1).values

    def of(part: Tensor) -> Tensor:
        return part.gather(1, chosen[:, :, None].expand(-1, -1, part.shape[2]))

    bias = found.bias
    if bias is not None:
        bias = bias.gather(1, chosen.repeat_interleave(len(bias) // len(chosen), dim=0))
    return SiteTensors(of(found.keys).float(), of(found.values).float(), bias)


# What a prefix gets of each query's attention


def grouped(part: Tensor, kv_heads: int) -> Tensor:
    """`(batch, head, ...)` as `(batch, kv_head, group, ...)` in float32: query heads that share a key side by side."""
    return part.float().reshape(part.shape[0], kv_heads, -1, *part.shape[2:])


def context_out(seen: Seen) -> Tensor:
    """The context's own output, `(batch, kv_head, group, query, value_dim)`."""
    return grouped(seen.out, seen.key.shape[1])


def shares(seen: Seen, prefix: SiteTensors, *, masked: bool = True) -> Tensor:
    """The attention weight of each prefix position, `(batch, kv_head, group, query, position)`; 0 for padding."""
    kv_heads = seen.key.shape[1]
    scores = torch.einsum("bkgqd,kpd->bkgqp", grouped(seen.query, kv_heads), prefix.keys.float()) * seen.scale
    if prefix.bias is not None:
        heads = seen.query.shape[1]
        bias = prefix.bias.float().repeat_interleave(heads // len(prefix.bias), dim=0)
        scores = scores + bias.reshape(kv_heads, heads // kv_heads, -1)[None, :, :, None]
    context = grouped(seen.lse, kv_heads)
    total = torch.logaddexp(context, torch.logsumexp(scores, dim=-1))
    weights = torch.exp(scores - total[..., None])
    return weights * seen.real[:, None, None, :, None] if masked else weights


@dataclass
class Sums:
    """The normal equations of values at one site: weights times weights, weights times what is wanted.

    `gram` `(kv_head, position, position)`, `product` `(kv_head, position, value_dim)`; over `count` queries.
    """

    gram: Tensor
    product: Tensor

    @classmethod
    def over(
        cls, host: Host, texts: Texts, prefix: Mapping[str, SiteTensors], wanted: Callable[[Seen], Tensor]
    ) -> dict[str, Sums]:
        """The sums at every site of `prefix` over the queries of `texts`; `wanted` is the prefix's part of the output.

        That is `(batch, kv_head, group, query, value_dim)`; the bare host reads the texts.
        """
        found: dict[str, Sums] = {}
        for site, part in prefix.items():
            heads, positions, _ = part.keys.shape
            zeros = torch.zeros(heads, positions, positions + part.values.shape[2], device=host.device)
            found[site] = cls(zeros[..., :positions].clone(), zeros[..., positions:].clone())

        def add(seen: Seen) -> None:
            if seen.site in found:
                weights = shares(seen, prefix[seen.site])
                found[seen.site].gram += torch.einsum("bkgqp,bkgqr->kpr", weights, weights)
                found[seen.site].product += torch.einsum("bkgqp,bkgqv->kpv", weights, wanted(seen))

        read(host, texts.rows, add, answers=texts.answers)
        return found

    def solved(self, product: Tensor) -> Tensor:
        """(gram + ridge)^-1 product, with a ridge of RIDGE of the gram's mean eigenvalue."""
        positions = self.gram.shape[-1]
        level = self.gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-12)
        ridge = RIDGE * level[:, None, None] * torch.eye(positions, device=self.gram.device)
        solved: Tensor = torch.linalg.solve((self.gram + ridge).double(), product.double())
        return solved.float()

    def values(self, *, anchor: Tensor) -> Tensor:
        """The values that give what is wanted, drawn towards `anchor` where the queries leave them open."""
        return anchor.float() + self.solved(self.product - self.gram @ anchor.float())
