"""A piecewise smooth target, compiled piece by piece: each branch's own prefix, behind gates at the kinks.

Between its kinks an expression has no absolute value or maximum left: which side each takes is the same all over a
sector. What is left is smooth, far beyond the sector too as a rule, and so takes a short prefix with moved keys
(`spectral.py`). Sectors of the same branch share one where they are the region of a linear function that is the largest
of all branches' there: h_b with h_b - h_b' a positive multiple of t across every kink t = 0 between b and b'. Then
H = h_b on the sectors of b is continuous and convex, hence the largest of all, and

    keys u + kappa grad h_b,  biases c + kappa h_b(0)

weigh the branches as a softmax of kappa h_b does (statement B.5): max(x, y, z) has three. Where there are no such h_b,
as for |x y|, every sector has its own, h being the sum of +-t over all kinks.

Branches whose weights' sums differ by a factor e^a turn at t = a / (2 kappa), not at 0; kappa is as large as that asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.special import logsumexp

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, Flat, Identity, Paraboloid
from foreword.compiler.construction import reducing
from foreword.compiler.construction.contract import HEADROOM, Draft, Instant, Request, Sampled
from foreword.compiler.construction.crossings import Round
from foreword.compiler.construction.growing import widened
from foreword.compiler.construction.kinks import Kink
from foreword.compiler.construction.search import Candidate
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import Node, Nodes, expression_of, value_of, walk
from foreword.compiler.head import Head
from foreword.compiler.target import Target
from foreword.errors import CompileError

SAMPLED = 20_000  # points by which sectors and the sides that they take are told
OPPOSITE = 200  # points at which two branches are compared
FEWEST = 8  # of them in a sector
MOST_KINKS, MOST_SECTORS = 8, 32
SHARE = 0.7  # of the tolerance for each branch
STEEPER = 4.0  # times as steep: the next gates that are tried
GENTLEST = 20.0  # kappa that is tried first, where there is no tolerance
AS_GOOD = 1.15  # times the error of the best gates: gentler ones are as good

Sides = NDArray[np.float64]


@dataclass(frozen=True)
class Branch:
    """A smooth expression, the box where it is the target in some sector, and its part of the gates."""

    target: Target
    domain: Sphere | Cube
    gate: Floats  # (1, q)
    offset: float
    rows: NDArray[np.bool_]  # of the samples, those of its sectors


@dataclass
class Branches:
    """The branches of a target over `chart`'s queries, and points near the kinks at which gates are chosen."""

    branches: list[Branch]
    chart: Identity | Flat
    samples: Floats
    chosen: Sampled

    @classmethod
    def of(
        cls,
        target: Target,
        domain: Sphere | Cube,
        chart: Identity | Flat,
        kinks: Sequence[Kink],
        chosen: Sampled,
        rounds: Sequence[Round] = (),
    ) -> Branches | None:
        """Those of an expression; None where a side is not the same all over a sector, or sectors are too many."""
        if target.expression is None or not 0 < len(kinks) + len(rounds) <= MOST_KINKS:
            return None
        points = np.concatenate([domain.sample(SAMPLED, np.random.default_rng(0)), domain.spread(SAMPLED)])
        over = Paraboloid.of(chart) if rounds and isinstance(chart, Flat) else chart
        planes = _planes(chart, kinks, rounds, over.width)
        sides = np.where(over(points) @ planes[:, :-1].T + planes[:, -1] >= 0, 1.0, -1.0)
        sectors, which, counts = np.unique(sides, axis=0, return_inverse=True, return_counts=True)
        if np.count_nonzero(counts >= FEWEST) > MOST_SECTORS:
            return None
        outputs: list[tuple[Node, ...]] = []
        kept = [index for index in range(len(sectors)) if counts[index] >= FEWEST]
        nodes = Nodes()
        for index in kept:
            found = _smooth(nodes, target.expression.outputs, points[which.ravel() == index])
            if found is None:
                return None
            outputs.append(found)
        columns = domain.columns
        made = []
        for members, gate in _gates(sectors[kept], outputs, planes):
            region = [sectors[kept[member]] for member in members]
            box = _box(domain, kinks, region)
            branch = Target(domain=box, expression=expression_of(outputs[members[0]], columns))
            rows = np.isin(which.ravel(), [kept[member] for member in members])
            made.append(Branch(branch, box, gate[None, :-1], float(gate[-1]), rows))
        return cls(made, chart, points, chosen)

    def candidate(self, request: Request, sharpness: float, most: float, rng: np.random.Generator) -> Candidate | None:
        """The head for the request, gates of at least `sharpness` and at most `most`; None where a branch has none."""
        heads = list[Head]()
        for index, branch in enumerate(self.branches):
            if (mirrored := self._mirrored(heads, branch)) is not None:
                heads.append(mirrored)
                continue
            left = (request.seconds - request.made.since()) / (len(self.branches) - index)
            tolerance = None if request.tolerance is None else SHARE * request.tolerance
            count = None if request.positions is None else request.positions // len(self.branches)
            if left <= 0 or count == 0:
                return None
            arms = self.chart.half if isinstance(self.chart, Flat) else None
            own = replace(request, positions=count, tolerance=tolerance, seconds=left, made=Instant(), arms=arms)
            try:
                found = Spectral().draft(branch.target, branch.domain, own, rng=rng)
            except CompileError:  # it has no value somewhere in the box
                return None
            if not isinstance(found, Draft) or (made := self._over_domain(found.head, found.chart, branch)) is None:
                return None
            heads.append(made)
        width = max(part.shape[1] for part in (*(head.keys for head in heads), self.branches[0].gate))
        heads = [widened(head, width) for head in heads]
        ladder = [
            min(sharpness * STEEPER**step, most) for step in range(12) if sharpness * STEEPER ** (step - 1) < most
        ]
        chart = self._chart_for(heads[0])
        chosen = replace(self.chosen, queries=chart(self.chosen.points))
        tried = [(chosen.worst(head), head) for head in (self._gated(heads, kappa) for kappa in ladder)]
        best = min(error for error, _ in tried)
        wanted = AS_GOOD * best
        if request.tolerance is not None and HEADROOM * best <= request.tolerance:
            wanted = max(wanted, request.tolerance / HEADROOM)
        error, head = next((error, head) for error, head in tried if error <= wanted)
        return Candidate(head, error, {"beside": "branches", "groups": len(self.branches)}, chart)

    def _mirrored(self, heads: Sequence[Head], branch: Branch) -> Head | None:
        """The head of a branch before it on the same box that is this one's opposite, as an absolute value's are."""
        points = branch.domain.sample(OPPOSITE, np.random.default_rng(0))
        for head, other in zip(heads, self.branches, strict=False):
            if other.domain == branch.domain:
                try:
                    one, two = (each.target.evaluate(points) for each in (other, branch))
                except CompileError:
                    return None
                if np.array_equal(one, -two):
                    return replace(head, values=-head.values)
        return None

    def _over_domain(self, head: Head, chart: Chart, branch: Branch) -> Head | None:
        """The branch's head over queries of the domain, its weights' sum about 1 in its sectors; None over others."""
        keys, biases, over = head.keys, head.biases, self.chart
        if isinstance(over, Flat):
            flat = chart.base if isinstance(chart, Paraboloid) else chart
            if not isinstance(flat, Flat):
                return None
            half, middle = np.array(flat.half), np.array(flat.middle)
            away, wider = (np.array(over.middle) - middle) / np.array(over.half), np.array(over.half) / half
            keys = keys[:, : flat.width] * wider
            biases = biases + keys @ away
            if isinstance(chart, Paraboloid):  # 2 |t|^2 / k - 1 with t = (p + away) / c, p the domain's flat queries
                if not np.allclose(np.array(chart.slopes), np.diag(1 / wider) / (1 / wider).max()) or any(
                    chart.offsets
                ):
                    return None
                c, k, last = float((1 / wider).max()), flat.width, head.keys[:, -1:]
                keys = np.concatenate([keys + last * 4 * away / (k * c**2), last / c**2], axis=1)
                biases = biases + last[:, 0] * ((2 * away @ away / k + 1) / c**2 - 1)
        made = Head(keys, biases, head.values)
        queries = self._chart_for(made)(self.samples[branch.rows])
        sums = logsumexp(queries @ keys.T + biases, axis=1)
        return replace(made, biases=biases - float(np.median(sums)))

    def _chart_for(self, head: Head) -> Chart:
        """The chart whose queries a head is over: the domain's, or a curved one above it."""
        is_curved = isinstance(self.chart, Flat) and head.keys.shape[1] > self.chart.width
        return Paraboloid.of(self.chart) if is_curved and isinstance(self.chart, Flat) else self.chart

    def _gated(self, heads: Sequence[Head], sharpness: float) -> Head:
        room = heads[0].keys.shape[1] - self.branches[0].gate.shape[1]
        gates = [np.pad(branch.gate, ((0, 0), (0, room))) for branch in self.branches]
        keys = [head.keys + sharpness * gate for head, gate in zip(heads, gates, strict=True)]
        biases = [head.biases + sharpness * branch.offset for head, branch in zip(heads, self.branches, strict=True)]
        joined = np.concatenate(biases)
        return Head(np.concatenate(keys), joined - joined.max(), np.concatenate([head.values for head in heads]))


def _smooth(nodes: Nodes, outputs: Sequence[Node], points: Floats) -> tuple[Node, ...] | None:
    """The outputs without absolute values and extremes, by the sides that they take at points; None if not of one."""

    def visit(node: Node, given: list[tuple[Floats, Node | None]]) -> tuple[Floats, Node | None]:
        values = np.broadcast_to(value_of(node, [value for value, _ in given], points), points.shape[:1])
        parts = [part for _, part in given]
        if node.operation not in ("absolute", "maximum", "minimum"):
            whole = [part for part in parts if part is not None]
            made = nodes(node.operation, *whole, value=node.value) if len(whole) == len(parts) else None
            return values, made
        gap = given[0][0] - (given[1][0] if len(given) > 1 else 0.0)
        if not ((gap >= 0).all() or (gap <= 0).all()):
            return values, None
        is_first = bool((gap >= 0).all()) != (node.operation == "minimum")
        if node.operation != "absolute":
            return values, parts[0 if is_first else 1]
        return values, parts[0] if is_first or parts[0] is None else nodes.negative(parts[0])

    with np.errstate(all="ignore"):
        found = walk(outputs, visit)
    made = [found[id(output)][1] for output in outputs]
    smooth = tuple(node for node in made if node is not None)
    return smooth if len(smooth) == len(made) else None


def _planes(chart: Identity | Flat, kinks: Sequence[Kink], rounds: Sequence[Round], width: int) -> Floats:
    """Each kink as where a linear function of the queries vanishes, `(kink, width + 1)`: slopes, and the constant."""
    found = np.zeros((len(kinks) + len(rounds), width + 1))
    for row, (normal, offset) in enumerate(kinks):
        keys, biases = reducing.along(chart, normal[None], np.array([offset]), np.ones((1, 1)))
        found[row, : chart.width], found[row, -1] = keys[0], biases[0]
    for row, each in enumerate(rounds, start=len(kinks)):
        found[row] = [*each.slopes, each.shift]
    return found


def _gates(sectors: Sides, outputs: Sequence[tuple[Node, ...]], planes: Floats) -> Iterator[tuple[list[int], Floats]]:
    """The sectors of each branch, and its h over queries as `(width + 1,)`: slopes, and the constant."""
    labels = [tuple(id(node) for node in found) for found in outputs]
    names = list(dict.fromkeys(labels))
    members = [[index for index, label in enumerate(labels) if label == name] for name in names]
    shared = _shared(sectors, [names.index(label) for label in labels], planes, len(names))
    if shared is not None:
        yield from zip(members, shared, strict=True)
        return
    for index, sides in enumerate(sectors):
        yield [index], sides @ planes


def _shared(sectors: Sides, labels: Sequence[int], planes: Floats, count: int) -> Floats | None:
    """h of each branch, `(branch, column + 1)`, by a linear programme; None where there is none."""
    width = planes.shape[1]
    facets = list[tuple[int, int, Floats]]()  # a branch, the one beyond, and what rises into the first's side
    for index, one in enumerate(sectors):
        for other in range(index):
            changed = np.flatnonzero(one != sectors[other])
            if len(changed) == 1 and labels[index] != labels[other]:
                facets.append((labels[index], labels[other], one[changed[0]] * planes[changed[0]]))
    if not facets:
        return None
    equal = np.zeros((len(facets), width, count * width + len(facets)))
    for row, (a, b, rising) in enumerate(facets):
        equal[row, :, a * width : (a + 1) * width] = np.eye(width)
        equal[row, :, b * width : (b + 1) * width] = -np.eye(width)
        equal[row, :, count * width + row] = -2.0 * rising
    equal = equal.reshape(len(facets) * width, -1)
    cost = np.concatenate([np.zeros(count * width), np.ones(len(facets))])
    bounds = [(None, None)] * (count * width) + [(1.0, None)] * len(facets)
    found = linprog(cost, A_eq=equal, b_eq=np.zeros(len(equal)), bounds=bounds)
    if not found.success:
        return None
    h: Floats = found.x[: count * width].reshape(count, width)
    h -= h.mean(axis=0)
    return h


def _box(domain: Sphere | Cube, kinks: Sequence[Kink], region: Sequence[Sides]) -> Sphere | Cube:
    """The least box of a cube that holds the sectors; the whole sphere."""
    if isinstance(domain, Sphere) or not kinks:
        return domain
    low, high = domain.box[:, 1].copy(), domain.box[:, 0].copy()
    for sides in region:
        flat = sides[: len(kinks)]  # a round kink bounds nothing here
        normals = -np.array([side * normal for side, (normal, _) in zip(flat, kinks, strict=True)])
        offsets = -np.array([side * offset for side, (_, offset) in zip(flat, kinks, strict=True)])
        for column in range(domain.columns):
            for sign, ends, outer in ((1.0, low, np.minimum), (-1.0, high, np.maximum)):
                cost = np.zeros(domain.columns)
                cost[column] = sign
                found = linprog(cost, A_ub=normals, b_ub=offsets, bounds=domain.sides)
                ends[column] = outer(
                    ends[column], found.x[column] if found.success else domain.box[column, int(sign < 0)]
                )
    box = [
        (lower, upper) if lower < upper else side for lower, upper, side in zip(low, high, domain.sides, strict=True)
    ]
    return Cube([(float(lower), float(upper)) for lower, upper in box])
