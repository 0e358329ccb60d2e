"""What every construction gets and gives.

A construction turns a target into a `Draft`: a head and how good it looks on points that the construction has not seen.
It proves nothing, but for the a-priori bound of `nearest`; that is `proof.py`. What cannot be done is an `Obstacle`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.construction.kinks import Kink, near_kinks
from foreword.compiler.domain import Cube, Domain
from foreword.compiler.head import Head
from foreword.compiler.target import Target

HEADROOM = 1.25  # a proved bound is up to so much above the largest error that sampling finds
UNSEEN = 20_000  # points at which a draft's error is reported
SELECTED = 4_000  # other points, at which a construction chooses among its candidates
WORK = 200_000_000  # weights that one report of an error may take: fewer points for a very long prefix
BLOCK = 1 << 23  # weights in memory at once, 64 MB
OUT_OF_TIME = "time"  # the code of the obstacle that no more time was left
FAR = 1e3  # times the error of a rival: polish gains less where another construction is in its place, as at a kink
WAITING = 2.0  # seconds of waiting that count as one of work


@dataclass(frozen=True)
class Obstacle:
    """What stands in the way: `what`, what was `found`, and the `remedy`, sentences of the user's language."""

    code: str
    what: str
    found: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.found and f"Found: {self.found}.", self.remedy) if part)


@dataclass(frozen=True)
class Draft:
    """A head, not yet proved.

    `sampled` is its largest error at unseen points, `a_priori` a theorem's bound on the error where there is one;
    `notes` says what was chosen: plain JSON values.
    """

    head: Head
    chart: Chart
    method: str
    a_priori: float | None
    sampled: float
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Instant:
    """A moment, by the clock and by how long this thread has worked.

    What a draft becomes should not hang on who else uses the machine, so that its time is the thread's work. But nobody
    waits for ever: a target that asks another process works little here, and half of the waiting counts.
    """

    clock: float = field(default_factory=time.perf_counter)
    work: float = field(default_factory=time.thread_time)

    def since(self) -> float:
        """Seconds that this thread has worked since then, or half of those that have gone by, whichever is more."""
        return max(time.thread_time() - self.work, (time.perf_counter() - self.clock) / WAITING)


@dataclass(frozen=True)
class Request:
    """What a draft should be: at most `positions` long and as good as possible, or as short as `tolerance` allows.

    Of both, `positions` is the length and `tolerance` tells when there is no use in doing better. No value's magnitude
    is above `value_limit`, except where the target itself comes near to it: then twice the target's. `seconds` after it
    was `made` a draft is to end with what it has. `rival` is the least error of other drafts of that length: what is
    far above it need not be made better. Queries are to be flat where it `is_flat`; curved ones have the square of the
    coordinates in units of `arms`, unless told otherwise in those of half the cube's sides.
    """

    positions: int | None
    tolerance: float | None
    value_limit: float = 10.0
    seconds: float = math.inf
    made: Instant = field(default_factory=Instant)
    rival: float = math.inf
    is_flat: bool = False
    arms: tuple[float, ...] | None = None

    def limit_for(self, wanted: Floats) -> float:
        """The largest magnitude of a value, given the target's values `(batch, output)`."""
        return max(self.value_limit, 2.0 * float(np.abs(wanted).max()))

    def is_over(self) -> bool:
        """Whether the time for drafts is up: then nothing more is tried."""
        return self.made.since() >= self.seconds

    def is_outdone(self, error: float) -> bool:
        """Whether no polish brings so large an error near to the rival's."""
        return error > FAR * self.rival

    def is_met_by(self, sampled: float) -> bool:
        """Whether so small an error at sampled points leaves room for a proof of the tolerance."""
        return self.tolerance is not None and HEADROOM * sampled <= self.tolerance


def out_of_time(what: str, least: float) -> Obstacle:
    """A draft that ended for want of time: what it did not reach so far, and the least error that was met."""
    return Obstacle(
        OUT_OF_TIME,
        f"{what} in the time for drafts.",
        f"largest error {least:.2g}",
        "Give it more seconds, or ask for a tolerance above the error that was found.",
    )


class Construction(Protocol):
    """One way of making a prefix; final, one file each. It looks at the request's clock between any two tries."""

    @property
    def name(self) -> str: ...

    def draft(self, target: Target, domain: Domain, request: Request, *, rng: np.random.Generator) -> Draft | Obstacle:
        """A draft as requested: the best of at most so many positions, or the shortest that seems good enough."""
        ...


@dataclass(frozen=True)
class Sampled:
    """The target's values `(batch, output)` at points `(batch, column)`, their queries beside them."""

    points: Floats
    queries: Floats
    values: Floats

    @classmethod
    def at(cls, points: Floats, target: Target, chart: Chart) -> Sampled:
        """Evaluate the target once, for all candidates."""
        return cls(points, chart(points), target.evaluate(points))

    def worst(self, head: Head) -> float:
        """The head's largest error here, over all outputs; infinite where it is not a number."""
        if not len(self.values):
            return 0.0
        block = max(1, BLOCK // head.positions)
        error = float(np.abs(head.evaluate(self.queries, block=block) - self.values).max())
        return error if np.isfinite(error) else float("inf")


def unseen(target: Target, domain: Domain, chart: Chart, positions: int, *, kinks: Sequence[Kink] = ()) -> Sampled:
    """The points at which a draft of that many positions is judged: no construction fits or chooses on them.

    Half of them are close to a kink where there are any, at distances down to 1e-9.
    """
    points = domain.spread(max(1_000, min(UNSEEN, WORK // positions)))
    return Sampled.at(near_kinks(domain, points, list(kinks), np.random.default_rng(UNSEEN)), target, chart)


def near_sides(domain: Domain, points: Floats, rng: np.random.Generator) -> Floats:
    """The points of a cube, each coordinate moved to one of its two sides with probability 0.1; others unchanged."""
    if not isinstance(domain, Cube):
        return points
    sides = np.where(rng.random(points.shape) < 0.5, domain.box[:, 0], domain.box[:, 1])
    return np.where(rng.random(points.shape) < 0.1, sides, points)


def gaussian_head(centres: Floats, sharpness: float, scale: Floats, values: Floats) -> Head:
    """Weights proportional to exp(-sharpness |scale (q - b)|^2 / 2), from keys and biases alone (statement A3).

    `centres` b `(position, q)` are queries, `scale` `(q,)` is the length of a unit of each query coordinate.
    """
    stretch = sharpness * scale**2
    keys = centres * stretch
    return Head(keys, -0.5 * np.einsum("kq,kq->k", keys, centres), values)
