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

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.engine.assignment import SiteTensors
from foreword.engine.reading import Seen
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.fittable import Problem
from foreword.tuning.resize import Sums, context_out, shares
from foreword.tuning.start_texts import Material, judges

ROUNDS = 2
# Steps tried in a round: the first moves the output of the site that moves most by this share of the size of what the
# values that change least give there. Then longer ones as long as they are better, or shorter ones until one is.
FIRST_MOVE, GROWTH, SHRINKING, TRIALS = 0.1, 2.0, 1 / 8, 4
# Examples whose loss is differentiated and tried: with twice as many the start is better, and the same time spent on
# steps better still (benchmarks/tuning/starts). And how many are read at once.
EXAMPLES, PART = 48, 16


@dataclass(frozen=True)
class Solved:
    """How it went. `losses`: mean loss of the zero values, of those that change least, and at the end.

    `moves` are the steps of the rounds, as relative moves of the output of the site that moves most, and `judged` the
    losses of the examples that judged them. `forwards` and `backwards` count passes over one example. Times are
    left out: what is told of a fit is the same each time that it is made.
    """

    losses: tuple[float, float, float]
    moves: tuple[float, ...]
    judged: tuple[float, ...]
    forwards: int
    backwards: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def solve(adaptation: FittedPrefix, problem: Problem, material: Material, *, rounds: int = ROUNDS) -> Solved:
    """Put solved values beside the keys that `adaptation` has, and tell how the loss went: it never ends higher.

    What the problem remembers is afterwards what it was before.
    """
    host, texts = adaptation.host, judges(adaptation.host, material)
    sums = Sums.over(host, texts, adaptation.tensors, lambda seen: _own_share(seen, adaptation.tensors[seen.site]))
    trial = _Trial(adaptation, problem)
    best, losses = trial.values(), [trial.loss(trial.indices)]
    neutral = {site: sums[site].values(anchor=torch.zeros_like(values)) for site, values in best.items()}
    sizes = {site: _size(sums[site], values) for site, values in neutral.items()}
    trial.put(neutral)
    best, loss = trial.better(best, losses[-1])
    losses.append(loss)
    found = [_round(trial, sums, sizes, trial.halves(number)) for number in range(rounds)]
    best, loss = trial.better(best, losses[-1])
    losses.append(loss)
    problem.remember(trial.memory)
    return Solved(
        (losses[0], losses[1], losses[2]),
        tuple(move for move, _ in found),
        tuple(loss for _, loss in found),
        trial.forwards + len(texts.rows),
        trial.backwards,
    )


def _own_share(seen: Seen, prefix: SiteTensors) -> Tensor:
    """What the prefix must give so that the output stays the context's own."""
    return shares(seen, prefix).sum(dim=-1, keepdim=True) * context_out(seen)


def _round(
    trial: _Trial, sums: Mapping[str, Sums], sizes: Mapping[str, float], halves: tuple[list[int], list[int]]
) -> tuple[float, float]:
    """One refreshed gradient, of one half of the examples, and the best step along its solution for the other half.

    (relative move of the site that moves most, loss of the other half)
    """
    mine, others = halves
    start, slopes, loss = trial.values(), trial.slopes(mine), trial.loss(others)
    ways = {site: -sums[site].solved(slope) for site, slope in slopes.items()}
    fastest = max(_size(sums[site], way) / sizes[site] for site, way in ways.items())
    if not fastest > 0:
        return 0.0, loss

    def tried(move: float) -> float:
        trial.put({site: start[site] + move / fastest * way for site, way in ways.items()})
        return trial.loss(others)

    move, loss = _best_move(tried, loss)
    trial.put({site: start[site] + move / fastest * way for site, way in ways.items()})
    return move, loss


def _best_move(tried: Callable[[float], float], loss: float) -> tuple[float, float]:
    """The move with the lowest loss of at most TRIALS, and that loss; (0, `loss`) when none is below `loss`."""
    best, move = 0.0, FIRST_MOVE
    for _ in range(TRIALS):
        found = tried(move)
        if found < loss:
            best, loss = move, found
            if move < FIRST_MOVE:  # longer ones were worse
                break
            move *= GROWTH
        elif best:
            break
        else:
            move *= SHRINKING
    return best, loss


def _size(sums: Sums, values: Tensor) -> float:
    """Root mean square, up to the number of queries, of what these values give attention's output at a site."""
    return float(torch.einsum("kpv,kpr,krv->", values, sums.gram, values).clamp(min=1e-12).sqrt())


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
            # Features alone never reach a decoder's sites: these have no slope.
            gradients = torch.autograd.grad(part, [each.values for each in tensors.values()], allow_unused=True)
            for site, gradient in zip(tensors, gradients, strict=True):
                if gradient is not None:
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

    def better(self, before: dict[str, Tensor], loss: float) -> tuple[dict[str, Tensor], float]:
        """The present values and their loss; those of before, put back, when they had a lower one."""
        found = self.loss(self.indices)
        if found <= loss:
            return self.values(), found
        self.put(before)
        return before, loss

    def values(self) -> dict[str, Tensor]:
        return {site: found.values.detach().clone() for site, found in self.adaptation.tensors.items()}

    def put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for site, found in self.adaptation.tensors.items():
                found.values.copy_(values[site])
