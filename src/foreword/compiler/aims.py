"""What the rounds of a branch and bound bring its bound to: what was asked for, and then what is near the truth.

A bound of high order needs few cells more for a goal a thousand times smaller. One that rests on a Lipschitz constant
halves with its cells: those would be billions near an error of 1e-9, and nothing would be proved on the way to that
goal if it were the first. Which of the two it is, `proof.py` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foreword.compiler.branching import Search

NEAR = 1.5  # times the goal: an aim below is not worth a round of its own
FEW = 50_000  # cells that a round beyond what was asked for may take in any case: some seconds


@dataclass(frozen=True)
class Aims:
    """What the rounds of a search bring its bound to: `first`, fractions of it, then `tightness` times the error seen.

    What is `asked` for is one of them where it lies between, and is tried whatever it takes. A round beyond it is not
    begun if it would not end in time, or take more cells than all before it. Infinite: nothing is asked for. Bounds of
    high order go on to what is asked for where the usual goal would miss it by little, unless the error seen is closer.
    """

    tightness: float
    floor: float
    asked: float
    first: float
    fraction: float
    closest: float = math.inf  # times the error seen

    def goal(self, seen: float) -> float:
        """The last round's aim, when so large an error has been seen."""
        usual = self.tightness * seen + self.floor
        return min(usual, self.asked) if self.closest * seen + self.floor <= self.asked else usual

    def at(self, search: Search) -> float:
        """The aim of the search's round."""
        return max(self.goal(search.seen), search.aim)

    def begun(self, search: Search) -> Search:
        """A search that has not begun, in its first round."""
        aim = self._unless_near_goal(self.first, search)
        return replace(search, aim=aim, ahead=1 + self._rounds_after(aim, search))

    def is_reached(self, search: Search) -> bool:
        """Whether the last round has ended."""
        return not len(search.levels) and search.aim <= self.goal(search.seen)

    def is_over(self, search: Search, left: float) -> bool:
        """Whether the goal is reached, or the next round would take more than the seconds that are `left`."""
        if self.is_reached(search):
            return True
        if not search.is_between_rounds or search.upper > self.asked:
            return False
        cells = search.next_round(self.fraction ** -len(search.knots) if self.fraction else 1.0)
        is_long = math.isfinite(self.asked) and cells > max(search.cells, FEW)
        return is_long or cells * search.seconds > left * search.cells

    def tightened(self, search: Search) -> Search:
        """The search in its next round."""
        aim = self._next(search.aim, search)
        return search.tightened(aim, 1 + self._rounds_after(aim, search))

    def _next(self, aim: float, search: Search) -> float:
        smaller = self.fraction * aim
        return self._unless_near_goal(self.asked if smaller < self.asked < aim else smaller, search)

    def _rounds_after(self, aim: float, search: Search) -> int:
        count = 0
        while aim > self.goal(search.seen):
            aim, count = self._next(aim, search), count + 1
        return count

    def _unless_near_goal(self, aim: float, search: Search) -> float:
        return aim if aim > NEAR * self.goal(search.seen) else 0.0
