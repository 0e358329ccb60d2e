"""What the gradient of a task's loss wants of attention: the same everywhere, the same per example, or neither.

A prefix adds to each head's output a mixture of its value vectors and scales what the head had gathered from the
context; what it cannot do is change the proportions in which a head attends among the context's own tokens (Petrov,
Torr, Bibi, "When Do Prompting and Prefix-Tuning Work?", ICLR 2024). To first order a prefix with one position adds one
bias per head. How much of the wanted change is such a bias is what is measured here, at the bare model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreword.engine.host import Host


@dataclass(frozen=True)
class SiteGradient:
    """The gradient of the loss by what one attention site writes, over examples and tokens.

    `constant`: the share of its squared length that one bias for all tokens of all examples explains, the best one by
    least squares: |mean|^2 / mean of |.|^2. `per_example`: the share that a bias of each example's own explains, so an
    input-dependent one. `agreement`: how alike the examples' summed gradients are: the mean inner product of two
    different ones over their mean squared length; 1 when all want the same bias, 0 when they have nothing in common.
    `energy`: the mean squared length of the summed gradients, by which sites are weighted.
    """

    site: str
    constant: float
    per_example: float
    agreement: float
    energy: float


@dataclass(frozen=True)
class GradientShape:
    """All sites, first to last, and their means weighted by energy."""

    sites: tuple[SiteGradient, ...]

    def mean(self, name: str) -> float:
        """The weighted mean of one of the shares; 0 when there is no gradient at all."""
        total = sum(site.energy for site in self.sites)
        return sum(site.energy * getattr(site, name) for site in self.sites) / total if total > 0 else 0.0


@dataclass
class _Sums:
    """What is added up over examples at one site."""

    summed: list[Tensor] = field(default_factory=list)
    squares: float = 0.0
    tokens: list[int] = field(default_factory=list)


def gradient_shape(host: Host, loss: Callable[[int], Tensor], examples: int) -> GradientShape:
    """The shape of the gradient of `loss(example)` for the first `examples` examples, one backward pass each.

    `loss` must run the host's forward pass with gradients; nothing may be attached that has parameters of its own.
    """
    found = {site.name: _Sums() for site in host.sites}
    with _added(host) as deltas:
        for example in range(examples):
            deltas.clear()
            torch.autograd.backward(loss(example))
            for name, sums in found.items():
                parts = [delta.grad for delta in deltas.get(name, []) if delta.grad is not None]
                rows = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).double().cpu()
                rows = rows[rows.abs().amax(dim=1) > 0]  # padding, and tokens that nothing depends on
                sums.summed.append(rows.sum(dim=0))
                sums.squares += float((rows**2).sum())
                sums.tokens.append(len(rows))
    return GradientShape(tuple(_shares(name, sums) for name, sums in found.items()))


def _shares(name: str, sums: _Sums) -> SiteGradient:
    each, tokens = torch.stack(sums.summed), torch.tensor(sums.tokens).double()
    n, whole, lengths = len(each), each.sum(dim=0), (each**2).sum(dim=1)
    energy = float(lengths.mean())
    if energy == 0 or sums.squares == 0:
        return SiteGradient(name, 0.0, 0.0, 0.0, 0.0)
    # Inner products of different examples only: those with themselves would look like agreement.
    agreement = float(((whole**2).sum() - lengths.sum()) / max(n - 1, 1) / lengths.sum())
    constant = float((whole**2).sum() / tokens.sum()) / sums.squares
    per_example = float((lengths / tokens.clamp(min=1)).sum()) / sums.squares
    return SiteGradient(name, constant, per_example, agreement, energy)


@contextmanager
def _added(host: Host) -> Iterator[dict[str, list[Tensor]]]:
    """Zeros added to what each attention module returns; their gradients are those of its output."""
    deltas: dict[str, list[Tensor]] = {}
    handles = []
    for path in dict.fromkeys(site.name.partition("#")[0] for site in host.sites):
        calls = [site.name for site in host.sites if site.name.partition("#")[0] == path]

        def add(_: Any, __: Any, output: Any, calls: list[str] = calls) -> Any:
            written = output[0] if isinstance(output, tuple) else output
            delta = torch.zeros_like(written, requires_grad=True)
            # A shared module is a site for each of its calls; how often it ran so far says which this one is.
            turn = sum(len(deltas.get(name, ())) for name in calls) % len(calls)
            deltas.setdefault(calls[turn], []).append(delta)
            return (written + delta, *output[1:]) if isinstance(output, tuple) else written + delta

        handles.append(host.backbone.get_submodule(path).register_forward_hook(add))
    try:
        yield deltas
    finally:
        for handle in handles:
            handle.remove()
