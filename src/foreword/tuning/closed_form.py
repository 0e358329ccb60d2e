"""Values of a prefix solved for, not descended to: attention's output moves where the loss wants it.

Statement. At one site let p_q be the weights that query q gives the prefix's positions, g_q the slope of the loss in
the output at q, and G the slope of the loss in the values, so that G = sum_q p_q g_q. The change D of the values that
minimises sum_q | p_q D + step g_q |^2 + ridge |D|^2 is

    D = -step (sum_q p_q p_q^T + ridge)^-1 G:

one pass gives the sums, one backward pass gives G at all sites. The values that D is added to are solved likewise, to
leave the output as it is without the prefix: sum_q | p_q V - m_q o_q |^2 with m_q the prefix's share and o_q the
context's own output, so that the start is near the bare model and not a damped one. The step is found by trying.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.engine.assignment import SiteTensors
from foreword.engine.reading import Seen
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.fittable import Problem
from foreword.tuning.resize import Sums, context_out, shares
from foreword.tuning.start import Material, judges

ROUNDS = 2
# Steps tried in a round: the first moves the output of the site that moves most by this share of its own size.
FIRST_MOVE, GROWTH, TRIALS = 0.05, 2.0, 6
# Examples whose loss is differentiated and tried; and how many are read at once.
EXAMPLES, PART = 96, 16


@dataclass(frozen=True)
class Solved:
    """The mean loss before and after each round, the steps taken, and forward and backward passes over an example."""

    losses: tuple[float, ...]
    moves: tuple[float, ...]
    forwards: int
    backwards: int
    solve_seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def solve(adaptation: FittedPrefix, problem: Problem, material: Material, *, rounds: int = ROUNDS) -> Solved:
    """Put solved values beside the keys that `adaptation` has, and tell how the loss went.

    The keys stay. A round that finds no step with a lower loss ends the search and leaves the values as they were.
    """
    began = time.perf_counter()
    host, texts = adaptation.host, judges(adaptation.host, material)
    sums = Sums.over(host, texts, adaptation.tensors, lambda seen: _own_share(seen, adaptation.tensors[seen.site]))
    trial = _Trial(adaptation, problem)
    zero = trial.loss(trial.indices)
    with torch.no_grad():
        before = {site: found.values.clone() for site, found in adaptation.tensors.items()}
        for site, found in adaptation.tensors.items():
            found.values.copy_(sums[site].values(anchor=torch.zeros_like(found.values)))
    losses, moves = [zero, trial.loss(trial.indices)], []
    if losses[1] > zero:
        trial.put(before)
        losses[1] = zero
    for number in range(rounds):
        move, loss = _round(trial, sums, trial.halves(number))
        losses.append(loss)
        moves.append(move)
    seconds = time.perf_counter() - began
    return Solved(tuple(losses), tuple(moves), trial.forwards + len(texts.rows), trial.backwards, seconds)


def _own_share(seen: Seen, prefix: SiteTensors) -> Tensor:
    """What the prefix must give so that the output stays the context's own."""
    return shares(seen, prefix, masked=False).sum(dim=-1, keepdim=True) * context_out(seen)


def _round(trial: _Trial, sums: Mapping[str, Sums], halves: tuple[list[int], list[int]]) -> tuple[float, float]:
    """One refreshed gradient, of one half of the examples, and the best step along its solution for the other half.

    (relative move of the site that moves most, loss of the other half)
    """
    mine, others = halves
    start, slopes, loss = trial.values(), trial.slopes(mine), trial.loss(others)
    ways = {site: -sums[site].solved(slope) for site, slope in slopes.items()}
    size = max(_relative_move(sums[site], way, start[site]) for site, way in ways.items())
    if not size > 0:
        return 0.0, loss
    best, step = (loss, 0.0), FIRST_MOVE / size
    for _ in range(TRIALS):
        trial.put({site: start[site] + step * way for site, way in ways.items()})
        found = trial.loss(others)
        if not found < best[0]:
            break
        best, step = (found, step), step * GROWTH
    trial.put({site: start[site] + best[1] * way for site, way in ways.items()})
    return best[1] * size, best[0]


def _relative_move(sums: Sums, way: Tensor, values: Tensor) -> float:
    """How much the output moves along `way`, as a share of what the prefix gives it now (root mean squares)."""
    moved = torch.einsum("kpv,kpr,krv->", way, sums.gram, way)
    given = torch.einsum("kpv,kpr,krv->", values, sums.gram, values).clamp(min=1e-12)
    return float((moved / given).sqrt())


class _Trial:
    """The loss at the values that are in the adaptation, counted."""

    def __init__(self, adaptation: FittedPrefix, problem: Problem) -> None:
        self.adaptation, self.problem = adaptation, problem
        stride = max(1, problem.examples // EXAMPLES)
        self.indices = list(range(0, problem.examples, stride))[:EXAMPLES]
        self.memory = problem.memory()
        self.forwards = self.backwards = 0

    def halves(self, number: int) -> tuple[list[int], list[int]]:
        """The examples that round `number` differentiates, and those that judge its step; they change places."""
        first, second = self.indices[number % 2 :: 2], self.indices[1 - number % 2 :: 2]
        return (first, second) if second else (first, first)

    def loss(self, indices: list[int]) -> float:
        with torch.no_grad():
            return sum(float(part) for part in self._parts(indices))

    def slopes(self, indices: list[int]) -> dict[str, Tensor]:
        """The loss's gradient in the values at every site."""
        tensors = self.adaptation.tensors
        found = {site: torch.zeros_like(each.values) for site, each in tensors.items()}
        for part in self._parts(indices):
            gradients = torch.autograd.grad(part, [each.values for each in tensors.values()])
            for site, gradient in zip(tensors, gradients, strict=True):
                found[site] += gradient
        self.backwards += len(indices)
        return found

    def _parts(self, indices: list[int]) -> Iterator[Tensor]:
        """The parts of the mean loss; what an objective remembers of other values is forgotten first."""
        self.problem.remember(self.memory)
        whole = self.problem.weight(indices)
        for start in range(0, len(indices), PART):
            part = indices[start : start + PART]
            yield self.problem.loss(part, 0) * (self.problem.weight(part) / whole)
        self.forwards += len(indices)

    def values(self) -> dict[str, Tensor]:
        return {site: found.values.detach().clone() for site, found in self.adaptation.tensors.items()}

    def put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for site, found in self.adaptation.tensors.items():
                found.values.copy_(values[site])
