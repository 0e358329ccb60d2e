"""Branch and bound: cells are halved until each has a bound near the largest error that was found at a point.

A cell is halved along one axis at a time, the one that does most to keep its bound large, so that a function of one
coordinate costs a search in one dimension. What a cell's bound rests on is `residual.py`; here is only the search.

It goes in rounds (`aims.py`): each brings every cell below an aim, and the last one's is the goal. What is proved when
time is up is then the aim of the round before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.aims import Aims
from foreword.compiler.arrays import Floats
from foreword.compiler.construction.crossings import crossings
from foreword.compiler.cover import DEEPEST, Cover
from foreword.compiler.domain import Cube, Sphere, frame_along
from foreword.compiler.probe import Probe
from foreword.compiler.recording import kinks_of
from foreword.compiler.residual import NOISY, Found, Residual
from foreword.compiler.target import Target

Cells = tuple[NDArray[np.int8], NDArray[np.uint64], Floats]

SAMPLES = 4096  # points a search starts from: cells can be dropped only once an error has been seen
BLOCK = 1024  # cells at once
MOST_OPEN = 2_000_000
PARALLEL = 1e-9  # a kink counts as along an axis when its normal's other entries are below this


@dataclass(frozen=True, eq=False)
class Search:
    """Where a branch and bound stands: open cells, finished ones with their bounds, the largest error found.

    It can be handed to `prove` again (`resume`), which goes on where it stopped; `arrays` and `from_arrays` keep it. A
    search is never changed: every step makes the next one, so that whatever interrupts a step loses that step only.
    `done` are the finished cells in parts, older and larger ones first; `highest` is the largest of their bounds.
    `aim` is that of this round, 0 in the last one; `ahead` are this round and those to come, as far as is known;
    `rounds` are how many cells were done at the end of each before it.
    """

    knots: list[Floats]
    frame: Floats | None
    levels: NDArray[np.int8]
    indices: NDArray[np.uint64]
    bounds: Floats
    done: tuple[Cells, ...] = ()
    highest: float = 0.0
    seen: float = 0.0
    seen_at: Floats | None = None
    cells: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    aim: float = 0.0
    ahead: int = 1
    rounds: tuple[int, ...] = ()

    @property
    def upper(self) -> float:
        """The bound that stands proved now, over finished and open cells."""
        return max(self.highest, float(self.bounds.max(initial=0.0)))

    @property
    def closed(self) -> int:
        """How many cells are finished."""
        return sum(len(bounds) for _, _, bounds in self.done)

    @property
    def share(self) -> float:
        """How much of the work is done: the rounds that are over, and of this one the share of the box's volume."""
        still = 0.0
        if len(self.levels):
            block = Cover(self.levels, self.indices, self.knots)
            box = math.prod(float(knots[-1] - knots[0]) for knots in self.knots)
            still = min(float(np.prod(block.upper - block.lower, axis=1).sum()) / box, 1.0)
        return (len(self.rounds) + 1.0 - still) / (len(self.rounds) + self.ahead)

    @property
    def cover(self) -> Cover:
        """All cells, finished and open."""
        levels, indices, _ = self._all
        return Cover(levels, indices, self.knots, self.frame)

    @property
    def _all(self) -> Cells:
        parts = zip(*self.done, (self.levels, self.indices, self.bounds), strict=True)
        levels, indices, bounds = (np.concatenate(part) for part in parts)
        return levels, indices, bounds

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The search as named arrays; `from_arrays` reads them back."""
        levels, indices, bounds = self._all
        cover = Cover(levels, indices, self.knots, self.frame)
        place = np.empty(0) if self.seen_at is None else self.seen_at
        told = [len(self.levels), self.seen, self.cells, self.evaluations, self.seconds, self.aim, self.ahead]
        return {**cover.arrays(), "bounds": bounds, "numbers": np.array([*told, *self.rounds]), "seen_at": place}

    @classmethod
    def from_arrays(cls, named: Mapping[str, NDArray[Any]]) -> Search:
        """The search that `arrays` told; CertificateError, KeyError or ValueError when it is none."""
        cover = Cover.from_arrays({key: named[key] for key in named if key not in ("bounds", "numbers", "seen_at")})
        bounds = np.asarray(named["bounds"], dtype=np.float64)
        numbers = [float(number) for number in named["numbers"]]
        count, seen, cells, evaluations, seconds, aim, ahead, *rounds = numbers
        start = len(cover) - int(count)
        if bounds.shape != (len(cover),) or not 0 <= start <= len(cover) or not np.all(bounds >= 0):
            raise ValueError("the bounds do not belong to the cells")
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ValueError("the numbers are not those of a search")
        done = (cover.levels[:start], cover.indices[:start], bounds[:start])
        place = np.asarray(named["seen_at"], dtype=np.float64)
        return cls(
            list(cover.knots), cover.frame, cover.levels[start:], cover.indices[start:], bounds[start:],
            (done,) if start else (), float(done[2].max(initial=0.0)), seen, place if place.size else None, int(cells),
            int(evaluations), seconds, aim, int(ahead), tuple(int(cells) for cells in rounds),
        )  # fmt: skip

    def noted(self, points: Floats, errors: Floats) -> Search:
        """The search that knows the largest of `errors` `(batch,)`, attained at `points` `(batch, column)`."""
        best = int(np.argmax(errors))
        if not errors[best] > self.seen:
            return self
        return replace(self, seen=float(errors[best]), seen_at=np.array(points[best]))

    def stepped(self, left: slice, finished: Cells, children: Cells) -> Search:
        """The search with the open cells `left` and `children`, and with `finished` ones besides."""
        done = [*self.done, finished] if len(finished[2]) else list(self.done)
        while len(done) > 1 and len(done[-2][2]) <= 2 * len(done[-1][2]):  # few parts, and little copying
            done[-2:] = [_joined(*done[-2:])]
        levels, indices, bounds = _joined((self.levels[left], self.indices[left], self.bounds[left]), children)
        highest = max(self.highest, float(finished[2].max(initial=0.0)))
        return replace(self, levels=levels, indices=indices, bounds=bounds, done=tuple(done), highest=highest)

    def tightened(self, aim: float, ahead: int) -> Search:
        """The next round: finished cells with a bound above `aim` are open again."""
        levels, indices, bounds = self._all
        is_open = bounds > aim
        kept = (levels[~is_open], indices[~is_open], bounds[~is_open])
        return replace(
            self,
            levels=levels[is_open],
            indices=indices[is_open],
            bounds=bounds[is_open],
            done=(kept,) if len(kept[2]) else (),
            highest=float(kept[2].max(initial=0.0)),
            aim=aim,
            ahead=ahead,
            rounds=(*self.rounds, self.cells),
        )

    @property
    def is_between_rounds(self) -> bool:
        """Whether one round has ended and the next has not begun."""
        return bool(self.rounds) and self.cells == self.rounds[-1]

    def next_round(self, growth: float) -> float:
        """Cells that the round to come will take, if it grows on the last as that did on its own, or by `growth`."""
        lengths = np.diff([0, *self.rounds])
        if len(lengths) > 1:
            growth = max(lengths[-1] / max(lengths[-2], 1), 1.0)
        return float(lengths[-1] * growth)


Progress = Callable[[Search], None]


def _joined(one: Cells, other: Cells) -> Cells:
    return (
        np.concatenate([one[0], other[0]]),
        np.concatenate([one[1], other[1]]),
        np.concatenate([one[2], other[2]]),
    )


def begin(target: Target, domain: Sphere | Cube, frame: Floats | None, probe: Probe) -> Search:
    """One cell for each piece between kinks that lie along an axis; on a sphere the frame makes one normal an axis.

    Kinks are the declared ones and those that the expression shows; where they lie is a hint and no more.
    """
    kinks = [(np.asarray(normal), offset) for normal, offset in target.kinks]
    if target.expression is not None:
        outputs = target.expression.outputs
        kinks += [*kinks_of(domain, outputs), *crossings(outputs, domain)]
    if isinstance(domain, Sphere) and frame is None and kinks:
        normal = kinks[0][0]
        if np.abs(normal[1:]).max() > PARALLEL:
            frame = frame_along(normal)
    knots = [np.array(side) for side in domain.box]
    for normal, offset in kinks:
        for axis, place in _places(domain, normal if frame is None else frame.T @ normal, offset):
            low, high = knots[axis][0], knots[axis][-1]
            gap = 1e-9 * (high - low)
            if low + gap < place < high - gap and np.abs(knots[axis] - place).min() > gap:
                knots[axis] = np.sort(np.append(knots[axis], place))
    cover = Cover.whole(knots, frame)
    search = Search(list(cover.knots), cover.frame, cover.levels, cover.indices, np.full(len(cover), np.inf))
    points = domain.spread(SAMPLES)
    errors, slack = probe.look(points)
    return search.noted(points, errors - slack)


def _places(domain: Sphere | Cube, normal: Floats, offset: float) -> list[tuple[int, float]]:
    """Where a hyperplane of the coordinates is a single value of one parameter: `(axis, value)`."""
    axis = int(np.argmax(np.abs(normal)))
    if np.abs(np.delete(normal, axis)).max(initial=0.0) > PARALLEL:
        return []
    place = offset / normal[axis]
    if isinstance(domain, Cube):
        return [(axis, place)]
    if axis != 0 or not -1 < place < 1:
        return []
    angle = math.asin(place)
    # On the circle the angle runs all the way round, and meets the line twice.
    return [(0, angle), (0, math.copysign(math.pi, place) - angle)] if domain.dimension == 1 else [(0, angle)]


def run(
    search: Search,
    residual: Residual,
    probe: Probe,
    *,
    aims: Aims,
    deadline: float,
    progress: Progress | None = None,
) -> Search:
    """The search continued until its aims are reached, or until `deadline` (perf_counter).

    `progress` gets every step's search.
    """
    began, before = time.perf_counter(), search.seconds
    while (left := deadline - time.perf_counter()) > 0 and not aims.is_over(search, left):
        search = _step(search, residual, probe, aims)
        search = replace(search, seconds=before + time.perf_counter() - began)
        while not len(search.levels) and not aims.is_reached(search):
            search = aims.tightened(search)
        if aims.is_reached(search):
            search = replace(search, ahead=1)
        if progress is not None:
            progress(search)
    return search


def _step(search: Search, residual: Residual, probe: Probe, aims: Aims) -> Search:
    """One block of cells bounded, finished or halved."""
    # The oldest cells first, so that all shrink together; the youngest first when there are too many.
    count, is_oldest = len(search.levels), len(search.levels) <= MOST_OPEN
    size = min(BLOCK, residual.most, count)
    taken = slice(0, size) if is_oldest else slice(count - size, None)
    left = slice(size, None) if is_oldest else slice(0, count - size)
    levels, indices, known = search.levels[taken], search.indices[taken], search.bounds[taken]
    block = Cover(levels, indices, search.knots)
    evaluations = residual.evaluations
    found = residual.bound(block.lower, block.upper, aims.at(search))
    search = replace(
        search,
        cells=search.cells + len(levels),
        evaluations=search.evaluations + residual.evaluations - evaluations,
    )
    upper = np.fmin(found.upper, known)
    search = _followed(search, residual, probe, found, block)
    wanted = aims.at(search)
    is_noise = (found.noise > NOISY * wanted) & (upper <= wanted + 2 * found.noise)
    is_done = (upper <= wanted) | is_noise | (levels.max(axis=1) >= DEEPEST - 1) | ~_can_be_halved(block, found.shares)
    children = _halves(levels[~is_done], indices[~is_done], upper[~is_done], found.shares[~is_done])
    return search.stepped(left, (levels[is_done], indices[is_done], upper[is_done]), children)


def _can_be_halved(block: Cover, shares: Floats) -> NDArray[np.bool_]:
    """Whether a double lies inside each cell along its axis of the largest share: else a half is the cell again."""
    rows, axis = np.arange(len(block)), shares.argmax(axis=1)
    lower, upper = block.lower[rows, axis], block.upper[rows, axis]
    found: NDArray[np.bool_] = np.nextafter(lower, upper) < upper
    return found


def _halves(levels: NDArray[np.int8], indices: NDArray[np.uint64], bounds: Floats, shares: Floats) -> Cells:
    """Both halves of every cell along its axis of the largest share."""
    if not len(levels):
        return levels, indices, bounds
    rows, axis = np.arange(len(levels)), shares.argmax(axis=1)
    levels, left = levels.copy(), indices.copy()
    levels[rows, axis] += 1
    left[rows, axis] *= np.uint64(2)
    right = left.copy()
    right[rows, axis] += np.uint64(1)
    both = np.stack([left, right], axis=1).reshape(-1, levels.shape[1])
    return np.repeat(levels, 2, axis=0), both, np.repeat(bounds, 2)


def _followed(search: Search, residual: Residual, probe: Probe, found: Found, block: Cover) -> Search:
    """The search after a look at the places where the block's error seems largest."""
    domain = residual.model.domain
    worth = np.flatnonzero(found.seen > search.seen)
    if not worth.size:
        worth = np.flatnonzero(found.is_sampled & (found.upper > search.seen))
    if not worth.size:
        return search
    worth = worth[np.argsort(-found.upper[worth])[:64]]
    lower, upper = block.lower[worth], block.upper[worth]
    points = domain.embed(lower + (upper - lower) * (found.where[worth] + 1) / 2)
    if isinstance(domain, Sphere):
        points = points if search.frame is None else points @ search.frame.T
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
    errors, slack = probe.look(points)
    return search.noted(points, errors - slack)


def settled(search: Search, residual: Residual, goal: float, deadline: float) -> Search:
    """The search where its open cells have what bounds they have, tried against ever larger goals: time is up.

    It is for a certificate; a search that is to go on goes on from where it was.
    """
    bounds, size = search.bounds.copy(), min(BLOCK, residual.most)
    for factor in (2.0, 6.0, 30.0, 1e3, 1e6):
        waiting = np.flatnonzero(bounds > factor * goal)
        for start in range(0, len(waiting), size):
            if time.perf_counter() > deadline:
                return replace(search, bounds=bounds)
            rows = waiting[start : start + size]
            block = Cover(search.levels[rows], search.indices[rows], search.knots)
            found = residual.bound(block.lower, block.upper, factor * goal)
            bounds[rows] = np.fmin(bounds[rows], found.upper)
    return replace(search, bounds=bounds)
