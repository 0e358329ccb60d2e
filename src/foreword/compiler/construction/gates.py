"""Gates at kinks: each side of a kink has keys of its own, so that solved values need only be smooth on either side.

Across a kink <n, x> = c every key of a net is doubled, to u + kappa n with bias -kappa c and u - kappa n with bias
+kappa c. Scores add, so weights are products: the two groups weigh sigmoid(+-2 kappa (<n, x> - c)), and within a group
the net's own softmax is left. With g+ and g- what the groups give, g = s g+ + (1 - s) g-, and

    |f - g| <= s |f - g+| + (1 - s) |f - g-|.

Where f is f+ on one side and f- on the other, both smooth beyond the kink and equal on it, the far group's part is at
most |jump of the slope| |t| sigmoid(-2 kappa |t|), t = <n, x> - c: at most 0.14 jump / kappa. So a kink costs twice the
keys of a smooth target, whatever the tolerance; kappa only costs score precision, and is derived from the tolerance.
Several kinks make sectors, one group each. Beside the gates lies a line of keys along the normal where one kink is
all there is to a target (any dimension), else a net or a grid; on an interval each group may have its own part of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter

import numpy as np
from scipy.special import logsumexp

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.construction import reducing
from foreword.compiler.construction.contract import (
    SELECTED,
    Obstacle,
    Request,
    Sampled,
    near_sides,
)
from foreword.compiler.construction.dense import DENSE_LIMIT, LEVELLED_OUTPUTS
from foreword.compiler.construction.even import OnNet
from foreword.compiler.construction.fitting import LAWSON, Factors, bounded, levelled
from foreword.compiler.construction.kinks import Kink, near_kinks, range_along
from foreword.compiler.construction.search import Candidate, shortest, sizes_between, tuned
from foreword.compiler.construction.spectral import too_rough
from foreword.compiler.construction.tensor import NODES, gaussian_axis, grid_head
from foreword.compiler.domain import Cube, Domain, FiniteSet
from foreword.compiler.head import Head
from foreword.compiler.target import Target

Keys = tuple[Floats, Floats]

FEWEST = 4  # keys in each group to begin with
LONGEST_LINE = 40  # keys along the normal in each group; beyond, a target is not one of <n, x> alone
LINES = ((1.2, 0.5), (1.8, 0.5), (2.5, 0.6), (3.2, 0.7))  # (reach, overlap) to begin with
STRAIGHT = (3.0, 2.8)  # three keys give a straight line to the fifth order: sinh(z) / (2 + cosh(z)), as 2 log 4 = 2.8
STRIDES = {2: 2, 3: 1}  # by dimension, of the search over a grid's sizes, which grow fast
NETS = ((0.1,), (0.2,), (0.4,), (0.8,))  # lambda spacing^2
GATE = 0.7  # kappa times the tolerance, where slopes jump by 2: the gate then takes at most 0.4 of it
USUAL_JUMP = 2.0
# Points of a kink at which that is looked at, how they get there, and of the domain's size, how far to either side.
ON_KINKS, PROJECTIONS, STEP = 200, 20, 1e-3
SHARPEST = 4e5  # where there is no tolerance; beyond, proofs and float64's scores lose what the gate gains
# Of an error that was reached, what gentler gates are made for in turn; and times that error, what is as good.
GENTLER, AS_GOOD = (0.5, 0.1), 1.15
# Seen: a proof loses 3e-13 kappa |v| at an oblique kink. So much of the tolerance, as 1 / (3 * 3e-13), is left for it.
PROVABLE = 1e12


def gridded(domain: Domain) -> Cube | None:
    """The domain, where it is a cube of so few dimensions that keys may lie on a grid."""
    return domain if isinstance(domain, Cube) and domain.dimension in NODES else None


def jump_of_slope(target: Target, domain: Domain, kinks: Sequence[Kink]) -> float:
    """How much the slope across one of the kinks jumps at most, as second differences at points of it tell."""
    if isinstance(domain, FiniteSet):
        return 0.0
    drawn, largest = domain.sample(ON_KINKS, np.random.default_rng(0)), 0.0
    for normal, offset in kinks:
        step, on = STEP * float(np.ptp(drawn @ normal)), drawn
        for _ in range(PROJECTIONS):
            on = domain.nearest(on - np.outer(on @ normal - offset, normal))
        moved = [domain.nearest(on + side * step * normal) for side in (-1, 0, 1)]
        off = [np.abs(points @ normal - offset - side * step) for side, points in zip((-1, 0, 1), moved, strict=True)]
        inside = np.max(off, axis=0) < step / 10
        if inside.any():
            below, middle, above = (target.evaluate(points[inside]) for points in moved)
            largest = max(largest, float(np.abs(below - 2 * middle + above).max()) / step)
    return largest


def sharpness_for(target: Target, domain: Domain, tolerance: float, kinks: Sequence[Kink]) -> float:
    """kappa for a tolerance: the steeper the more the slope jumps."""
    steeper = max(1.0, jump_of_slope(target, domain, kinks) / USUAL_JUMP)
    return min(steeper * GATE / tolerance, SHARPEST)


@dataclass
class Gates:
    """Dense least squares on groups of keys, one for each sector between the kinks."""

    domain: Domain
    chart: Chart
    request: Request
    kinks: list[Kink]
    sectors: Floats  # (sector, kink): the side of each kink, -1 or 1
    fitted: Sampled
    chosen: Sampled
    limit: float
    sharpness: float  # kappa
    shapes: dict[str, Sequence[float]] = field(default_factory=dict)  # the best of the last attempt, by what is beside

    @classmethod
    def of(
        cls, target: Target, domain: Domain, chart: Chart, request: Request, kinks: list[Kink], rng: np.random.Generator
    ) -> Gates:
        draws = [
            near_kinks(domain, near_sides(domain, domain.sample(count, rng), rng), kinks, rng)
            for count in (6_000, SELECTED)
        ]
        fitted, chosen = (Sampled.at(points, target, chart) for points in draws)
        normals, offsets = np.stack([normal for normal, _ in kinks]), np.array([offset for _, offset in kinks])
        sides = np.where(fitted.points @ normals.T >= offsets, 1.0, -1.0)
        sectors = np.unique(sides, axis=0)
        limit, tolerance = request.limit_for(fitted.values), request.tolerance or math.inf
        sharpness = SHARPEST
        if request.tolerance is not None:
            sharpness = sharpness_for(target, domain, request.tolerance, kinks)
        limit = min(limit, max(2.0 * float(np.abs(fitted.values).max()), PROVABLE * tolerance / sharpness))
        return cls(domain, chart, request, kinks, sectors, fitted, chosen, limit, sharpness)

    def found(self, longest: int = DENSE_LIMIT) -> Candidate | Obstacle:
        """The best of so many positions, or the shortest for the tolerance: beside a line, else beside a net."""
        length = min(longest, self.request.positions or DENSE_LIMIT)
        most = length // len(self.sectors)
        fewest = 1 if self.request.positions is not None else 2 if self._has_parts else FEWEST
        if most < fewest:
            return Obstacle(
                "length",
                f"{length:,} positions are too few for {len(self.kinks)} kinks.",
                f"{len(self.sectors)} sectors between them",
                "Allow more, or declare only the kinks that matter.",
            )
        if self.request.positions is not None:
            tries = [self._with(most, "net")]
            if len(self.kinks) == 1:
                tries.append(self._with(min(most, LONGEST_LINE), "line"))
            elif self._has_parts:
                tries.append(self._with(min(most, LONGEST_LINE), "parts"))
            return self._gentler(min(tries, key=lambda candidate: candidate.error))
        if len(self.kinks) == 1:
            line = self._with(LONGEST_LINE // 2, "line")
            if self.request.is_met_by(line.error):
                counts = range(2, LONGEST_LINE // 2 + 1)
                found, _ = shortest(
                    lambda count: self._with(count, "line"),
                    self.request.is_met_by,
                    counts,
                    is_over=self.request.is_over,
                )
                return found or line
        d = self.domain.dimension
        sizes = sizes_between(FEWEST, most, 1.07 if d == 1 else 1.16)
        if self._has_grid:
            sizes = [side**d for side in sizes_between(2, max(2, int(most ** (1 / d) + 1e-9)), 1.08)]
        in_parts = self._shortest_parts(most) if self._has_parts else None
        sizes = sizes if most >= FEWEST else []
        if in_parts is not None:
            sizes = [size for size in sizes if size * len(self.sectors) < in_parts.head.positions]
        if not sizes:
            return in_parts or too_rough(self.request, length, math.inf)
        goal = self.request.tolerance or 0.0
        found, least = shortest(
            lambda count: self._with(count, "net"),
            self.request.is_met_by,
            sizes,
            dimension=d,
            goal=goal,
            stride=STRIDES.get(d, 4) if self._has_grid else 4,
            is_over=self.request.is_over,
        )
        found = in_parts if found is None else found
        return too_rough(self.request, DENSE_LIMIT, least) if found is None else found

    def _shortest_parts(self, most: int) -> Candidate | None:
        """The shortest for the tolerance with each group's keys along its own part of the line."""
        found, _ = shortest(
            lambda count: self._with(count, "parts"),
            self.request.is_met_by,
            range(2, min(most, LONGEST_LINE) + 1),
            is_over=self.request.is_over,
        )
        return found

    def _gentler(self, best: Candidate) -> Candidate:
        """The same behind gates no steeper than its error asks for, where that costs nothing.

        The steepest that float64 bears ruin a head in any lower precision, which rounds their scores.
        """
        count = best.head.positions // len(self.sectors)
        for share in GENTLER:
            if share * best.error * self.sharpness <= GATE:  # its own gates are what it asks for
                break
            sharpness = GATE / (share * best.error)
            found = replace(self, sharpness=sharpness, shapes={})._with(count, best.notes["beside"])
            if found.error <= AS_GOOD * best.error:
                return found
        return best

    @property
    def _has_grid(self) -> bool:
        return gridded(self.domain) is not None

    @property
    def _has_parts(self) -> bool:
        """Whether sectors are intervals, in which keys may lie: of a table of many knots all other keys are too few."""
        return isinstance(self.domain, Cube) and self.domain.dimension == 1 and len(self.kinks) > 1

    def _with(self, count: int, beside: str) -> Candidate:
        """The best of a few shapes, `count` keys in each group."""
        is_long = count * len(self.sectors) > 200
        is_net = beside == "net" and not self._has_grid
        starts: list[Sequence[float]] = list(NETS if is_net else LINES if beside == "line" else (*LINES, STRAIGHT))
        if is_long and beside in self.shapes:
            starts = [self.shapes[beside]]
        seen: dict[bytes, Candidate] = {}

        def error(shape: Floats) -> float:
            seen[shape.tobytes()] = candidate = self._solve(count, beside, shape)
            return candidate.error

        steps = 4 if is_long else 24 if len(starts[0]) > 1 else 8
        self.shapes[beside] = tuned(error, starts, steps=steps, is_over=self.request.is_over)[0].tolist()
        return min(seen.values(), key=lambda candidate: candidate.error)

    def _solve(self, count: int, beside: str, shape: Floats) -> Candidate:
        ways: dict[str, Callable[..., Keys]] = {"line": self._line, "net": self._net, "parts": self._parts}
        keys, biases = self._gated(ways[beside](count, *shape))
        head = Head(keys, biases, np.zeros((len(keys), 1)))
        notes = {"beside": beside, "groups": len(self.sectors), "shape": shape.tolist()}
        if shape.min() < 1e-3 or shape.max() > 20.0:
            return Candidate(head, math.inf, notes)
        rows = slice(0, max(1_500, 4 * len(keys)))
        wanted = self.fitted.values[rows]
        factors = Factors.of(head.weights(self.fitted.queries[rows]))
        start = bounded(factors, wanted, self.limit)
        found = [start.values]
        if wanted.shape[1] <= LEVELLED_OUTPUTS:
            found.append(levelled(factors, wanted, self.limit, start, rounds=LAWSON))
        heads = [Head(keys, biases, values) for values in found]
        errors = [self.chosen.worst(made) for made in heads]
        best = int(np.argmin(errors))
        return Candidate(heads[best], errors[best], notes)

    def _gated(self, beside: Keys) -> Keys:
        """The keys `(position, q)` and biases of all groups."""
        gates = [self._along(kink, np.array([1.0])) for kink in self.kinks]
        directions = np.concatenate([direction for direction, _ in gates])
        shifts = np.concatenate([shift for _, shift in gates])
        keys = (self.sharpness * self.sectors @ directions)[:, None] + beside[0]
        biases = (self.sharpness * self.sectors @ shifts)[:, None] + beside[1]
        return keys.reshape(-1, keys.shape[2]), biases.ravel() - biases.max()

    def _parts(self, count: int, reach: float, overlap: float) -> Keys:
        """Gaussians along each sector, which is an interval: keys `(sector, key, q)` and biases `(sector, key)`.

        What neighbours weigh in all is the same at the kink between them, so that the gates turn there.
        """
        axis, line = gaussian_axis(count, reach, overlap, 2), np.array([1.0])
        made: dict[int, Keys] = {}
        level, before = 0.0, 0.0
        for row, low, high in sorted(self._intervals, key=itemgetter(1)):
            keys, shifts = self._along((line, (low + high) / 2), axis.keys / ((high - low) / 2))
            biases = axis.biases + shifts
            start, end = (float(logsumexp(keys @ query + biases)) for query in self.chart(np.array([[low], [high]])))
            level += before - start if made else 0.0
            made[row], before = (keys, biases + level), end
        keys, biases = (np.stack([made[row][part] for row in range(len(made))]) for part in (0, 1))
        return keys, biases

    @cached_property
    def _intervals(self) -> list[tuple[int, float, float]]:
        """Each sector's number and ends, on a line."""
        [[low, high]] = self.domain.box
        places = np.array([offset * float(normal[0]) for normal, offset in self.kinks])  # normals are 1 or -1
        above = self.sectors * np.array([float(normal[0]) for normal, _ in self.kinks]) > 0
        lows, highs = np.where(above, places, low).max(axis=1), np.where(above, high, places).min(axis=1)
        return [(row, float(lows[row]), float(highs[row])) for row in range(len(self.sectors))]

    def _line(self, count: int, reach: float, overlap: float) -> Keys:
        """Gaussians along the normal, evenly spaced in its coordinate over the domain."""
        normal = self.kinks[0][0]
        low, high = range_along(self.domain, normal)
        middle, half = (low + high) / 2, (high - low) / 2
        axis = gaussian_axis(count, reach, overlap, 2)
        keys, shifts = self._along((normal, middle), axis.keys / half)
        return keys, axis.biases + shifts

    def _net(self, count: int, *shape: float) -> Keys:
        """A net with a softness; in a cube of few dimensions a grid of at most so many, with reach and overlap."""
        if len(shape) > 1:
            side = int(count ** (1 / self.domain.dimension) + 1e-9)
            axis = gaussian_axis(side, shape[0], shape[1], 2)
            grid = grid_head([axis] * self.domain.dimension, np.zeros((side**self.domain.dimension, 1)))
            return grid.keys, grid.biases
        net = OnNet(self.domain, self.chart)
        head = net.head(net.points(count), shape, 1)
        return head.keys, head.biases

    def _along(self, kink: Kink, slopes: Floats) -> Keys:
        """Keys and biases whose scores are slopes * (<n, x> - c)."""
        return reducing.along(self.chart, kink[0][None], np.array([kink[1]]), slopes[:, None])
