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
    host: Host,
    texts: Texts,
    whole: Mapping[str, SiteTensors],
    positions: int,
    *,
    owners: Mapping[str, Tensor],
    keep_first: bool,
) -> tuple[dict[str, SiteTensors], Tensor]:
    """At most `positions` of `whole`'s positions at each site, chosen by attention mass; values solved again.

    `owners` says for each position of a site which example it was made from, `(position,)`. An example gets the same
    places at every site and head, in proportion to its mass; the second result has each place's owner. Within an
    example each head keeps what it attends to most. `keep_first` keeps position 0 whatever its mass: causal models rest
    much of their attention there (a sink).
    """
    masses = {site: torch.zeros(found.keys.shape[:2], device=host.device) for site, found in whole.items()}

    def weigh(seen: Seen) -> None:
        if seen.site in masses:
            masses[seen.site] += shares(seen, whole[seen.site]).sum(dim=(0, 2, 3))

    read(host, texts.rows, weigh, answers=texts.answers)
    places = _places(owners, masses, positions, keep_first=keep_first)
    chosen = {site: _chosen(owners[site], masses[site].cpu(), places, keep_first=keep_first) for site in whole}
    kept = {site: _kept(found, chosen[site].to(found.keys.device)) for site, found in whole.items()}
    if all(kept[site].keys.shape == found.keys.shape for site, found in whole.items()):
        return kept, places

    def wanted(seen: Seen) -> Tensor:
        with_whole = shares(seen, whole[seen.site])
        missing = shares(seen, kept[seen.site]).sum(dim=-1, keepdim=True) - with_whole.sum(dim=-1, keepdim=True)
        given = torch.einsum("bkgqp,kpv->bkgqv", with_whole, whole[seen.site].values.float())
        return given + missing * context_out(seen)

    sums = Sums.over(host, texts, kept, wanted)
    solved = {
        site: SiteTensors(part.keys, sums[site].values(anchor=part.values), part.bias) for site, part in kept.items()
    }
    return solved, places


def _places(owners: Mapping[str, Tensor], masses: Mapping[str, Tensor], positions: int, *, keep_first: bool) -> Tensor:
    """The owner of each place: places in proportion to an owner's share of the mass, as far as it has tokens."""
    count = 1 + max(int(each.max()) for each in owners.values())
    room = torch.stack([torch.bincount(each, minlength=count) for each in owners.values()]).amin(dim=0)
    share = torch.zeros(count)
    for site, mass in masses.items():
        heads = mass.sum(dim=0).cpu()
        share += torch.zeros(count).index_add_(0, owners[site], heads / heads.sum().clamp(min=1e-12))
    given = torch.zeros(count, dtype=torch.long)
    if keep_first:
        given[next(iter(owners.values()))[0]] = 1
    for _ in range(min(positions, int(room.sum())) - int(given.sum())):
        # The next place to whom one more is worth most (Sainte-Lague), among those with tokens left.
        given[torch.where(given < room, share / (2 * given + 1), -1.0).argmax()] += 1
    return torch.repeat_interleave(torch.arange(count), given)


def _chosen(owners: Tensor, mass: Tensor, places: Tensor, *, keep_first: bool) -> Tensor:
    """For each key head the positions that fill the places, `(kv_head, place)`, each owner's in their order."""
    mass = mass.clone()
    if keep_first:
        mass[:, 0] = math.inf
    parts = []
    for owner, count in enumerate(torch.bincount(places).tolist()):
        own = (owners == owner).nonzero()[:, 0]
        parts.append(own[mass[:, own].topk(count, dim=1).indices.sort(dim=1).values])
    return torch.cat(parts, dim=1)


def _kept(found: SiteTensors, chosen: Tensor) -> SiteTensors:
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


def _scores(seen: Seen, prefix: SiteTensors) -> Tensor:
    """The logit of each prefix position, `(batch, kv_head, group, query, position)`."""
    kv_heads = seen.key.shape[1]
    scores = torch.einsum("bkgqd,kpd->bkgqp", grouped(seen.query, kv_heads), prefix.keys.float()) * seen.scale
    if prefix.bias is not None:
        heads = seen.query.shape[1]
        bias = prefix.bias.float().repeat_interleave(heads // len(prefix.bias), dim=0)
        scores = scores + bias.reshape(1, kv_heads, -1, 1, bias.shape[1])
    return scores


def log_odds(seen: Seen, prefix: SiteTensors) -> Tensor:
    """Log of the prefix's attention over the context's, `(batch, kv_head, group, query)`."""
    return torch.logsumexp(_scores(seen, prefix), dim=-1) - grouped(seen.lse, seen.key.shape[1])


def shares(seen: Seen, prefix: SiteTensors) -> Tensor:
    """The attention weight of each prefix position, `(batch, kv_head, group, query, position)`; 0 for padding."""
    scores, context = _scores(seen, prefix), grouped(seen.lse, seen.key.shape[1])
    total = torch.logaddexp(context, torch.logsumexp(scores, dim=-1))
    return torch.exp(scores - total[..., None]) * seen.real[:, None, None, :, None]


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
                gram = torch.einsum("bkgqp,bkgqr->kpr", weights, weights)
                product = torch.einsum("bkgqp,bkgqv->kpv", weights, wanted(seen))
                found[seen.site].gram += gram  # both or none: what fails on the way is read again
                found[seen.site].product += product

        read(host, texts.rows, add, answers=texts.answers)
        return found

    def solved(self, product: Tensor) -> Tensor:
        """(gram + ridge)^-1 product, with a ridge of RIDGE of the gram's mean eigenvalue."""
        positions = self.gram.shape[-1]
        level = self.gram.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-12)
        ridge = RIDGE * level[:, None, None] * torch.eye(positions, device=self.gram.device)
        found: Tensor = torch.linalg.solve((self.gram + ridge).double(), product.double()).float()
        return found

    def values(self, *, anchor: Tensor) -> Tensor:
        """The values that give what is wanted, drawn towards `anchor` where the queries leave them open."""
        return anchor.float() + self.solved(self.product - self.gram @ anchor.float())
