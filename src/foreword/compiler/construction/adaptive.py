"""Keys that crowd towards kinks: root-exponential rates where evenly placed keys have algebraic ones.

Keys u_i n with biases c_i see only t = <n, x>, and crowd towards a kink t = b (`tensor.graded_axis`). Scores add, so
keys u_i n + lambda b_j have weights that are products: a ridge axis times a net resolves a target smooth on either
side of the kink. With one net point the prefix serves a target of t alone, in any dimension. On a cube, kinks at right
angles to an axis are graded axes of the grid. Kinks that nobody declared are looked for (`kinks.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, Flat, chart_of
from foreword.compiler.construction.contract import (
    SELECTED,
    Draft,
    Obstacle,
    Request,
    Sampled,
    near_sides,
    unseen,
)
from foreword.compiler.construction.fitting import Factors, bounded, levelled
from foreword.compiler.construction.grid import GRADED, GridProblem, is_along_axis
from foreword.compiler.construction.kinks import Kink, kinks_of, near_kinks, range_along
from foreword.compiler.construction.nearest import soft_head
from foreword.compiler.construction.search import Candidate, shortest, sizes_between, tuned
from foreword.compiler.construction.spectral import (
    DENSE_LIMIT,
    LAWSON,
    LEVELLED_OUTPUTS,
    net_points,
    spacing,
    too_rough,
)
from foreword.compiler.construction.tensor import NODES, gaussian_axis, graded_axis
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.target import Target

NETS = (1, 4, 8, 12, 24, 48, 90, 160)  # net points beside the ridge axis
# Up to so many, on a sphere, they lie at right angles to the normals; more are spread over all of it (seen: few do
# better beside the ridge, many do better everywhere).
BESIDE = 12
LEAST_RIDGE, MOST_RIDGE = 6, 96  # keys across a kink
FEWER = (4, 8, 16, 32)  # numbers of keys across a kink that are tried where more are allowed
STEPS = 60  # tries when a ridge is tuned for the first time; 20 afterwards


@dataclass(frozen=True)
class Adaptive:
    """Ridge keys across kinks; see the module."""

    name: str = "adaptive"

    def draft(self, target: Target, domain: Domain, request: Request, *, rng: np.random.Generator) -> Draft | Obstacle:
        """A draft; see `Construction.draft`. An obstacle when there is no kink to crowd towards."""
        chart = chart_of(domain)
        kinks, known = kinks_of(target, domain, rng)
        if not kinks or isinstance(domain, FiniteSet):
            return Obstacle("kinks", f"No kink along a hyperplane is known or was found on {domain}.")
        if (
            isinstance(domain, Cube)
            and domain.dimension in NODES
            and all(is_along_axis(n) is not None for n, _ in kinks)
        ):
            ridge = _Ridges.of(target, domain, chart, request, kinks, rng)
            grid = GridProblem.of(target, domain, chart, request, rng, kinks=kinks)
            candidate = self._on_grid(grid, ridge, request)
        else:
            candidate = _Ridges.of(target, domain, chart, request, kinks, rng).found()
        if isinstance(candidate, Obstacle):
            return candidate
        judged = unseen(target, domain, chart, candidate.head.positions, kinks=kinks)
        notes = {**candidate.notes, "kinks": [[normal.tolist(), offset] for normal, offset in kinks], "known": known}
        return Draft(candidate.head, chart, self.name, None, judged.worst(candidate.head), notes)

    def _on_grid(self, grid: GridProblem, ridge: _Ridges, request: Request) -> Candidate | Obstacle:
        """One ridge where the target needs no more, else a grid."""
        is_single = len(ridge.kinks) == 1
        alone = ridge.found(nets=(1,)) if is_single else None
        if request.positions is not None:
            best = grid.best_of(request.positions)
            return alone if isinstance(alone, Candidate) and alone.error < best.error else best
        if isinstance(alone, Candidate):
            return alone
        found, least = shortest(
            grid.attempt, request.is_met_by, grid.sizes, dimension=grid.dimension, goal=request.tolerance or 0.0
        )
        return too_rough(request, grid.sizes[-1], least) if found is None else grid.trimmed(found)


@dataclass
class _Ridges:
    """One ridge axis for each kink, times a net, by dense least squares."""

    domain: Domain
    chart: Chart
    request: Request
    kinks: list[Kink]
    fitted: Sampled
    chosen: Sampled
    limit: float
    shape: Sequence[float] | None = None
    least: float = field(default=math.inf)

    @classmethod
    def of(
        cls, target: Target, domain: Domain, chart: Chart, request: Request, kinks: list[Kink], rng: np.random.Generator
    ) -> _Ridges:
        draws = [
            near_kinks(domain, near_sides(domain, domain.sample(count, rng), rng), kinks, rng)
            for count in (6_000, SELECTED)
        ]
        fitted, chosen = (Sampled.at(points, target, chart) for points in draws)
        return cls(domain, chart, request, kinks, fitted, chosen, request.limit_for(fitted.values))

    def found(self, nets: Sequence[int] = NETS) -> Candidate | Obstacle:
        """The best of so many positions, or the shortest for the tolerance: over the net's size, then the ridge's."""
        if self.request.positions is not None:
            return self._best_of(self.request.positions, nets)
        tolerance = self.request.tolerance or 0.0
        across = min(MOST_RIDGE, max(LEAST_RIDGE, math.ceil(0.3 * math.log(min(tolerance, 0.5)) ** 2) + 4))
        for net in nets:
            if across ** len(self.kinks) * net > (DENSE_LIMIT if len(self.kinks) < 3 else DENSE_LIMIT // 3):
                break
            first = self._with(across, net)
            if first.error < 4 * tolerance and not self.request.is_met_by(first.error):
                first = self._with(min(MOST_RIDGE, math.ceil(1.3 * across)), net)
            if self.request.is_met_by(first.error):
                return self._shorter(first, first.notes["across"], net)
        return too_rough(self.request, DENSE_LIMIT, self.least)

    def _shorter(self, candidate: Candidate, across: int, net: int) -> Candidate:
        """Fewer keys across the kinks, as long as the tolerance is met."""
        if across <= LEAST_RIDGE:
            return candidate
        sizes = sizes_between(LEAST_RIDGE, across - 1, 1.08)
        return shortest(lambda count: self._with(count, net), self.request.is_met_by, sizes)[0] or candidate

    def _best_of(self, positions: int, nets: Sequence[int]) -> Candidate | Obstacle:
        best: Candidate | None = None
        for net in nets:
            across = min(MOST_RIDGE, int((min(positions, DENSE_LIMIT) / net) ** (1 / len(self.kinks)) + 1e-9))
            if across < (3 if net == 1 else LEAST_RIDGE):
                break
            # Fewer can be better: four keys at the right places make one ridge, and more are harder to place.
            fewer = [count for count in FEWER if count < across] if net == 1 else []
            for count in (across, *fewer):
                self.shape = None
                candidate = self._with(count, net)
                best = candidate if best is None or candidate.error < best.error else best
        if best is None:
            return Obstacle(
                "length", f"{positions} positions are too few for {len(self.kinks)} kinks.", "", "Allow more."
            )
        return best

    def _with(self, across: int, net: int) -> Candidate:
        free, dense = (3 if net == 1 else 4), across ** len(self.kinks) * net > 200
        starts: list[Sequence[float]] = [self.shape] if self.shape is not None else []
        if not starts or not dense:
            edges = GRADED[1:3] if dense else GRADED
            softs = (0.3,) if dense or net == 1 else (0.15, 0.6)
            starts += [(*edge, soft) for edge in edges for soft in softs]
        seen: dict[bytes, Candidate] = {}

        def error(shape: Floats) -> float:
            seen[shape.tobytes()] = candidate = self._solve(across, net, shape)
            return candidate.error

        steps = (6 if dense else STEPS) if self.shape is None else (3 if dense else 20)
        best, _ = tuned(error, [start[:free] for start in starts], steps=steps)
        self.shape = [*best.tolist(), 0.3][:4]
        found = min(seen.values(), key=lambda candidate: candidate.error)
        self.least = min(self.least, found.error)
        return found

    def _solve(self, across: int, net: int, shape: Floats) -> Candidate:
        scale, overlap, reach, *soft = shape.tolist()
        keys, biases = self._keys(across, net, scale, overlap, reach, soft[0] if soft else 0.3)
        head = Head(keys, biases, np.zeros((len(keys), 1)))
        notes = {"across": across, "net": net, "kink_scale": scale, "kink_overlap": overlap, "kink_reach": reach}
        if not (1e-9 <= scale <= 1.0 and 1e-3 <= overlap <= 20.0 and 0.2 < reach < 20.0):
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

    def _keys(
        self, across: int, net: int, scale: float, overlap: float, reach: float, soft: float
    ) -> tuple[Floats, Floats]:
        """Keys `(position, q)` and biases of the product of the ridges and the net."""
        parts = [self._ridge(across, kink, scale, overlap, reach) for kink in self.kinks]
        if net > 1:
            parts.append(self._beside(net, soft))
        keys, biases = parts[0]
        for more_keys, more_biases in parts[1:]:
            keys = (keys[:, None] + more_keys[None]).reshape(-1, keys.shape[1])
            biases = (biases[:, None] + more_biases[None]).ravel()
        return keys, biases

    def _beside(self, net: int, soft: float) -> tuple[Floats, Floats]:
        """Keys and biases of the net; few points on a sphere lie at right angles to the normals."""
        if not isinstance(self.domain, Sphere) or net > BESIDE:
            points = net_points(self.domain, net)
            sharpness = soft / spacing(self.domain, points) ** 2
            head = soft_head(self.domain, self.chart, points, sharpness, np.zeros((len(points), 1)))
            return head.keys, head.biases
        normals = np.stack([normal for normal, _ in self.kinks])
        basis = np.linalg.svd(normals)[2][np.linalg.matrix_rank(normals, tol=1e-9) :]
        if len(basis) == 0:
            return np.zeros((1, self.domain.columns)), np.zeros(1)
        if len(basis) == 1:  # a line: Gaussians along it
            line = gaussian_axis(net, 1.8, max(soft, 0.01), 2)
            return np.outer(line.keys, basis[0]), line.biases
        sphere = Sphere(len(basis) - 1)
        points = net_points(sphere, net)
        return soft / spacing(sphere, points) ** 2 * points @ basis, np.zeros(len(points))

    def _ridge(self, across: int, kink: Kink, scale: float, overlap: float, reach: float) -> tuple[Floats, Floats]:
        """Keys and biases along one normal: the axis' own coordinate is (<n, x> - middle) / half over the domain."""
        normal, offset = kink
        low, high = range_along(self.domain, normal)
        middle, half = (low + high) / 2, (high - low) / 2
        axis = graded_axis(across, reach, [(offset - middle) / half], scale, overlap, 16)
        if isinstance(self.chart, Flat):  # <n, x> = sum n_j (half_j q_j + middle_j)
            direction = normal * np.array(self.chart.half)
            middle = middle - float(normal @ np.array(self.chart.middle))
        else:
            direction = normal
        return np.outer(axis.keys / half, direction), axis.biases - axis.keys * (middle / half)
