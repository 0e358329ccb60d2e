"""The shortest prefix found that meets a tolerance, on the placements that are possible for a target.

Evenly placed keys tell how long a prefix may have to be. Fewer do once they leave their places, which is first tried
from there downwards: each polish is ended as soon as its goal seems out of reach. Far fewer may do: very few are
polished to their end, which takes ten times as long, over curved queries too where flat ones do not suffice, and a few
more grow from them, each time some more than before (`_Ladder`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from foreword.compiler.construction.contract import Instant, Request
from foreword.compiler.construction.placed import Placed, best_even, best_polished
from foreword.compiler.construction.search import Candidate, shortest

CHEAP = 600  # positions that a second solves for
FIRST = {1: 6, 2: 12}  # positions of the ladder's first try, by dimension
FIRST_BEYOND = 27
MORE = 1.4  # times the positions of the last try
HALF = 0.5  # of a try's positions: it grows from the longest that has at most so many
PATIENCE = {"line": 5.0, "grid": 10.0, "net": 4.5}  # seconds of the ladder
CLOSE = 10.0  # times the tolerance: twice as long, where the last error is below that
REACH = 300.0  # times the tolerance: a net's try with a larger error, in more than one dimension, is the ladder's last
NEARER = 0.08  # of the positions: a gap between the last length that failed and the one that did not that is tried


def shortest_on(
    placements: Sequence[Placed], request: Request, fewer_than: int | None
) -> tuple[Candidate | None, float]:
    """The shortest prefix found that meets the tolerance, or None; and the least error of evenly placed keys.

    Keys that leave their places are tried before more of them in even ones; those may be fewer once they grow from a
    few, which is tried before very many, as they take long. On a grid, whose values are cheap, all lengths are tried
    at once.
    """
    on = best_polished(placements)
    sought, is_grid = _Sought(on, request, fewer_than), on.is_grid
    made = sought.moved(sought.even(0, math.inf if is_grid else on.off_net.most))
    climbed = _Ladder(on, request).climbed(sought.below(made))
    if climbed is not None:
        return climbed, sought.least
    if made is not None or is_grid:
        return None if made is None else on.lifted(made), sought.least
    longer = _Sought(best_even(placements), request, fewer_than, sought.least)
    made = longer.even(on.off_net.most, CHEAP)
    grown = on.lengthened(request, longer.below(made))
    if grown is not None:
        return grown, longer.least
    made = longer.even(max(on.off_net.most, CHEAP), math.inf) if made is None else made
    return None if made is None else longer.on.lifted(made), longer.least


@dataclass
class _Ladder:
    """Tries of more and more positions, each polished to its end."""

    on: Placed
    request: Request
    tried: list[Candidate] = field(default_factory=list)
    begun: Instant = field(default_factory=Instant)

    def climbed(self, fewer_than: int) -> Candidate | None:
        """The first that meets the tolerance, or one between it and the last that does not; None beyond its reach."""
        ground, dimension = self.on.ground, self.on.problem.dimension
        most = ground.most_grown if ground is not None and self.on.off_net.most else self.on.off_net.most
        count, last = min(FIRST.get(dimension, FIRST_BEYOND), most), 0  # of a short table, fewer can be polished
        while 0 < count < min(fewer_than, most + 1) and not self._is_over():
            made = self._try(count)
            if self.request.is_met_by(made.error):
                return self._between(last, made)
            if dimension > 1 and not self.on.is_grid and made.error > REACH * (self.request.tolerance or 0.0):
                break
            count, last = math.ceil(MORE * count), count
        return None

    def _between(self, last: int, made: Candidate) -> Candidate:
        """`made`, or one in the middle between it and the last that failed, if that meets the tolerance."""
        count = (last + made.head.positions) // 2
        is_near = count - last <= NEARER * made.head.positions or count >= made.head.positions
        if is_near or self._is_over(times=1.0):
            return made
        nearer = self._try(count)
        return nearer if self.request.is_met_by(nearer.error) else made

    def _try(self, count: int) -> Candidate:
        seeds = [each for each in self.tried if each.head.positions <= HALF * count]
        if seeds and self.on.ground is not None:
            made = self.on.ground.grown(max(seeds, key=lambda each: each.head.positions), count, is_only=True)
        else:
            made = self._begun(count)
        self.tried.append(made)
        return made

    def _begun(self, count: int) -> Candidate:
        """So many positions polished from their places; over curved queries too, where flat ones do not suffice."""
        made, ground = self.on.small(count, is_only=True), self.on.ground
        is_curved = ground is not None and ground is not self.on.off_net and self.on.reduction is None
        if ground is None or not is_curved or self.request.is_met_by(made.error):
            return made
        return ground.again(made)

    def _is_over(self, times: float = 2.0) -> bool:
        """Whether time is up: for tries that come closer to the tolerance, so many times as late."""
        on = self.on
        patience = PATIENCE["line" if on.problem.dimension == 1 else "grid" if on.is_grid else "net"]
        if self.tried and self.tried[-1].error <= CLOSE * (self.request.tolerance or 0.0):
            patience *= times
        return self.request.is_over() or self.begun.since() >= patience


@dataclass
class _Sought:
    """The search on one placement: of fewer than so many positions, if not None."""

    on: Placed
    request: Request
    fewer_than: int | None
    least: float = math.inf  # error that evenly placed keys had

    @property
    def sizes(self) -> Sequence[int]:
        """The lengths that may be tried; one at least."""
        sizes, most = self.on.problem.sizes, self.fewer_than
        return [size for size in sizes if most is None or size < most] or sizes[:1]

    def below(self, made: Candidate | None) -> int:
        """The length below which another is worth a try."""
        return self.sizes[-1] + 1 if made is None else made.head.positions

    def even(self, above: float, most: float) -> Candidate | None:
        """Evenly placed keys, more than `above` and at most `most`."""
        problem, sizes = self.on.problem, [size for size in self.sizes if above < size <= most]
        if not sizes or (self.request.is_over() and math.isfinite(self.least)):
            return None
        found, least = shortest(
            problem.attempt,
            self.request.is_met_by,
            sizes,
            dimension=problem.dimension,
            goal=self.request.tolerance or 0.0,
            is_over=self.request.is_over,
        )
        self.least = min(self.least, least)
        return None if found is None else problem.trimmed(found)

    def moved(self, even: Candidate | None) -> Candidate | None:
        """The fewest keys off their places that are found to meet the tolerance; else the even ones."""
        return self.on.off_net.shortest(self.request, self.below(even)) or even
