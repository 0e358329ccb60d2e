"""Values of a prefix solved for, not descended to: attention's output moves where the loss wants it.

Statement. At one site let p_q be the weights that query q gives the prefix's positions, g_q the slope of the loss in
the output at q, and G the slope of the loss in the values, so that G = sum_q p_q g_q. The change D of the values that
minimises sum_q | p_q D + step g_q |^2 + ridge |D|^2 is

    D = -step (sum_q p_q p_q^T + ridge)^-1 G:

one pass gives the sums, one backward pass gives G at all sites. The values that D is added to are solved likewise, to
leave the output as it is without the prefix: sum_q | p_q V - m_q o_q |^2 with m_q the prefix's share and o_q the
context's own output, so that the start is near the bare model and not a damped one. The step is found on the way: each
round's pass judges the move of the round before, so that a round costs what a step of the fit does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from foreword.engine.assignment import SiteTensors
from foreword.engine.batches import is_out_of_memory
from foreword.engine.reading import Seen
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.fittable import Problem
from foreword.tuning.gradient import halved_part
from foreword.tuning.resize import Sums, Texts, context_out, shares
from foreword.tuning.start_texts import Material, judges

T = TypeVar("T")

# Examples that are differentiated and judged by, the same in each round, and tokens of each that the sums are over.
EXAMPLES, TOKENS = 16, 1024
# The first move shifts the output of the site that moves most by this share of the size of what the values that change
# least give there. A move that lowers the loss is followed by one so many times as long; one that does not is taken
# back, and tried again at a quarter. All were chosen on small models' tasks (benchmarks/LOG.md).
ROUNDS, FIRST_MOVE, GROWTH, SHRINKING = 5, 0.2, 2.0, 1 / 4


@dataclass(frozen=True)
class Solved:
    """How it went. `losses`: mean loss of the zero values, of those that change least, and at the end.

    `moves` are the steps of the rounds, as relative moves of the output of the site that moves most, and `judged` the
    losses after each. `forwards` and `backwards` count passes over one example. Times are left out: what is told of a
    fit is the same each time that it is made.
    """

    losses: tuple[float, float, float]
    moves: tuple[float, ...]
    judged: tuple[float, ...]
    forwards: int
    backwards: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def solve(
    adaptation: FittedPrefix,
    problem: Problem,
    material: Material,
    *,
    rounds: int = ROUNDS,
    part: int | None = None,
) -> Solved:
    """Put solved values beside the keys that `adaptation` has, and tell how the loss went: it never ends higher.

    `part` is how many examples are computed at once, None for all; it is halved when they do not fit into memory. What
    the problem remembers is afterwards what it was before. FitError when not even one example fits.
    """
    host, texts = adaptation.host, _shortened(judges(adaptation.host, material))
    sums = Sums.over(host, texts, adaptation.tensors, lambda seen: _own_share(seen, adaptation.tensors[seen.site]))
    trial = _Trial(adaptation, problem, part or EXAMPLES)
    zero = trial.values()
    before = trial.loss()
    neutral = {site: sums[site].values(anchor=torch.zeros_like(values)) for site, values in zero.items()}
    sizes = {site: _size(sums[site], values) for site, values in neutral.items()}
    trial.put(neutral)
    moves, judged = _descend(trial, sums, sizes, rounds)
    after = min(judged)
    if not after <= before:
        trial.put(zero)
        after = before
    problem.remember(trial.memory)
    forwards = trial.forwards + len(texts.rows)
    return Solved((before, judged[0], after), moves, judged[1:], forwards, trial.backwards)


def _shortened(texts: Texts) -> Texts:
    """As many texts as there are examples, each cut to TOKENS."""
    rows, answers = ([row[:TOKENS] for row in part[:EXAMPLES]] for part in (texts.rows, texts.answers))
    return Texts(rows, answers)


def _own_share(seen: Seen, prefix: SiteTensors) -> Tensor:
    """What the prefix must give so that the output stays the context's own."""
    return shares(seen, prefix).sum(dim=-1, keepdim=True) * context_out(seen)


def _descend(
    trial: _Trial, sums: Mapping[str, Sums], sizes: Mapping[str, float], rounds: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The moves of the rounds, and the loss before the first and after each; the best values stay."""
    loss, slopes = trial.slopes()
    best, way = trial.values(), _way(sums, sizes, slopes)
    move, moves, judged = FIRST_MOVE, list[float](), [loss]
    while way and len(moves) < rounds:
        trial.put({site: best[site] + move * way[site] for site in best})
        moves.append(move)
        is_last = len(moves) == rounds
        found, slopes = (trial.loss(), {}) if is_last else trial.slopes()
        judged.append(found)
        if found < loss:
            best, loss, move = trial.values(), found, move * GROWTH
            way = _way(sums, sizes, slopes)
        else:
            move *= SHRINKING
    trial.put(best)
    return tuple(moves), tuple(judged)


def _way(sums: Mapping[str, Sums], sizes: Mapping[str, float], slopes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The solved change of the values whose site that moves most moves by its size; empty when there is no slope."""
    ways = {site: -sums[site].solved(slope) for site, slope in slopes.items()}
    fastest = max((_size(sums[site], way) / sizes[site] for site, way in ways.items()), default=0.0)
    return {site: way / fastest for site, way in ways.items()} if fastest > 0 else {}


def _size(sums: Sums, values: Tensor) -> float:
    """Root mean square, up to the number of queries, of what these values give attention's output at a site."""
    return float(torch.einsum("kpv,kpr,krv->", values, sums.gram, values).clamp(min=1e-12).sqrt())


class _Trial:
    """The loss at the values that are in the adaptation, counted."""

    def __init__(self, adaptation: FittedPrefix, problem: Problem, part: int) -> None:
        self.adaptation, self.problem, self.part = adaptation, problem, part
        stride = max(1, problem.examples // EXAMPLES)
        self.indices = list(range(0, problem.examples, stride))[:EXAMPLES]
        self.memory = problem.memory()
        self.forwards = self.backwards = 0

    def loss(self) -> float:
        return self._in_parts(self._loss)

    def slopes(self) -> tuple[float, dict[str, Tensor]]:
        """The loss, and its gradient in the values at every site."""
        return self._in_parts(self._slopes)

    def _in_parts(self, computed: Callable[[], T]) -> T:
        """What `computed` gives, in parts that fit into memory."""
        while True:
            try:
                return computed()
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.part = halved_part(min(self.part, len(self.indices)), error)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _loss(self) -> float:
        with torch.no_grad():
            return sum(float(loss) for loss in self._losses())

    def _slopes(self) -> tuple[float, dict[str, Tensor]]:
        values = {site: each.values for site, each in self.adaptation.tensors.items()}
        found, total = {site: torch.zeros_like(value) for site, value in values.items()}, 0.0
        for loss in self._losses():
            # Features alone never reach a decoder's sites: these have no slope.
            total += float(loss.detach())
            if not loss.requires_grad:  # none of the sites has a part in the loss: the fit itself will say so
                continue
            gradients = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
            for site, gradient in zip(values, gradients, strict=True):
                if gradient is not None:
                    found[site] += gradient
        self.backwards += len(self.indices)
        return total, found

    def _losses(self) -> Iterator[Tensor]:
        """The parts of the mean loss; what an objective remembers of other values is forgotten first."""
        self.problem.remember(self.memory)
        whole = self.problem.weight(self.indices)
        for start in range(0, len(self.indices), self.part):
            part = self.indices[start : start + self.part]
            yield self.problem.loss(part, 0) * (self.problem.weight(part) / whole)
        self.forwards += len(self.indices)

    def values(self) -> dict[str, Tensor]:
        return {site: found.values.detach().clone() for site, found in self.adaptation.tensors.items()}

    def put(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for site, found in self.adaptation.tensors.items():
                found.values.copy_(values[site])
