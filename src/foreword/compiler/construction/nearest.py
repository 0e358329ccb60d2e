"""Soft nearest neighbours: a net, the target's values at its points, a temperature from the tolerance.

The error is bounded without any search (statement A.2, docs/theory): for a target with Lipschitz constant L, a net of
covering radius delta and N points, sharpness lambda, and every r > delta,

    |f - g| <= sum_k w_k L d(x, b_k) <= L (r + D N exp(-lambda (C(delta) - C(r)))),

where D is the domain's diameter and C(r) = cos r on the sphere, C(r) = -r^2 / 2 on a cube or table: a point whose
distance is above r has at most that much weight against the nearest one, which is within delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, Flat, chart_of
from foreword.compiler.construction.contract import (
    SELECTED,
    Draft,
    Obstacle,
    Request,
    Sampled,
    gaussian_head,
    out_of_time,
    unseen,
)
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.nets import (
    Net,
    covering_radius,
    cube_net,
    finest_sphere_net,
    net_within,
    positions_for,
    sphere_net,
)
from foreword.compiler.target import Target

LIMIT = 200_000  # positions; beyond, a prefix is of no use and its net takes minutes
MARGIN = 1.001  # what is claimed above what is computed: another choice of r shows it too, as the checker's does
FEWEST = 32  # positions that are tried first for a tolerance, where there is no Lipschitz constant
SPARE = 0.02  # the bound is at most (1 + 2 SPARE) L delta: shorter prefixes need sharper keys, which float32 pays for
SPARED = 0.08  # nor is a prefix longer by more than about that for it: 2 SPARE is cut to SPARED / m
SOFT = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 8.0)  # lambda delta^2 to choose from when no bound is to be had


@dataclass(frozen=True)
class Nearest:
    """Soft nearest neighbours; see the module."""

    name: str = "nearest"
    most: int | None = None  # positions from which on a prefix is of no use: another is as short

    def draft(self, target: Target, domain: Domain, request: Request, *, rng: np.random.Generator) -> Draft | Obstacle:
        """A draft; see `Construction.draft`. With a Lipschitz constant it has an a-priori bound.

        Values are the target's own, so `request.value_limit` plays no part.
        """
        positions, tolerance = request.positions, request.tolerance
        chart = chart_of(domain)
        if target.lipschitz is None:
            return self._by_samples(target, domain, chart, request, rng)
        if positions is not None:
            net = net_of_at_most(domain, positions)
        else:
            found = self._net_for(target, domain, tolerance or math.inf)
            if isinstance(found, Obstacle):
                return found
            net = found
        allowed = None if tolerance is None else 0.998 * tolerance
        return self._with_bound(target, domain, chart, net, allowed)

    def _net_for(self, target: Target, domain: Domain, tolerance: float) -> Net | Obstacle:
        constant = target.lipschitz or 0.0
        radius = radius_for(domain, constant, tolerance)
        if isinstance(domain, FiniteSet):
            return _table_net(domain, radius=radius, limit=LIMIT)
        net = net_within(domain, radius, limit=LIMIT)
        if net is not None:
            return net
        return Obstacle(
            "dimension",
            f"A prefix of about {positions_for(domain, radius):.2g} positions would be needed for every target of this "
            f"class on {domain}.",
            f"Lipschitz constant {constant:g}, tolerance {tolerance:g}, dimension {domain.dimension}",
            f"The nearest feasible tolerance is about {feasible_tolerance(domain, constant, tolerance):.2g}; a smooth "
            "target needs far fewer with method='spectral'.",
        )

    def _with_bound(
        self, target: Target, domain: Domain, chart: Chart, net: Net, allowed: float | None
    ) -> Draft | Obstacle:
        constant = target.lipschitz or 0.0
        count = len(net.points)
        goal = max(_spared(domain) * net.radius, (allowed or 0.0) / max(constant, 1e-300))
        sharpness = sharpness_for(domain, net.radius, count, goal) if net.radius > 0 else apart(net.points)
        head = soft_head(domain, chart, net.points, sharpness, target.evaluate(net.points))
        bound = MARGIN * constant * reach(domain, net.radius, count, sharpness) if net.radius > 0 else None
        notes = {"sharpness": sharpness, "covering_radius": net.radius, "lipschitz": constant}
        return Draft(head, chart, self.name, bound, unseen(target, domain, chart, count).worst(head), notes)

    def _by_samples(
        self, target: Target, domain: Domain, chart: Chart, request: Request, rng: np.random.Generator
    ) -> Draft | Obstacle:
        """Without a Lipschitz constant: sharpness, and for a tolerance the length, by the error at other samples."""
        chosen = Sampled.at(domain.sample(SELECTED // 2, rng), target, chart)
        count, best = request.positions or FEWEST, math.inf
        longest = min(LIMIT // 4, self.most or LIMIT)
        if request.positions is None and count > longest:
            return Obstacle("length", f"Not tried: it begins with {FEWEST} positions, and another has {self.most}.")
        while (count <= longest and not request.is_over()) or request.positions is not None:
            net = net_of_at_most(domain, count)
            values = target.evaluate(net.points)
            heads = {
                sharpness: soft_head(domain, chart, net.points, sharpness, values)
                for sharpness in ([soft / net.radius**2 for soft in SOFT] if net.radius > 0 else [apart(net.points)])
            }
            errors = {sharpness: chosen.worst(head) for sharpness, head in heads.items()}
            sharpness = min(errors, key=lambda key: errors[key])
            best = min(best, errors[sharpness])
            if request.positions is not None or request.is_met_by(errors[sharpness]):
                head = heads[sharpness]
                notes = {"sharpness": sharpness, "covering_radius": net.radius}
                return Draft(
                    head, chart, self.name, None, unseen(target, domain, chart, head.positions).worst(head), notes
                )
            count = math.ceil(count * 1.5)
        if request.is_over():
            return out_of_time(f"Soft nearest neighbours do not meet {request.tolerance:g}", best)
        return Obstacle(
            "length",
            f"Soft nearest neighbours do not meet {request.tolerance:g} within {longest:,} positions.",
            f"largest error {best:.2g}",
            "Use method='spectral' for a smooth target, or declare its kinks.",
        )


def soft_head(domain: Domain, chart: Chart, points: Floats, sharpness: float, values: Floats) -> Head:
    """Weights proportional to exp(sharpness <x, b>) on the sphere, exp(-sharpness |x - b|^2 / 2) elsewhere."""
    if isinstance(domain, Sphere):
        return Head(sharpness * points, np.zeros(len(points)), values)
    scale = np.array(chart.half) if isinstance(chart, Flat) else np.ones(chart.width)
    return gaussian_head(chart(points), sharpness, scale, values)


def reach(domain: Domain, radius: float, count: int, sharpness: float) -> float:
    """The bound of the module's header for L = 1, at the best r, rounded up.

    A key's float64 rounding changes a score by at most `slip`, so a far key's weight by a factor exp(2 slip).
    """
    diameter = _diameter(domain)
    if isinstance(domain, Sphere):
        longest, slip = math.pi, 8 * (domain.columns + 2) * np.finfo(float).eps * sharpness
    else:
        longest, slip = diameter, 8 * (domain.columns + 2) * np.finfo(float).eps * sharpness * diameter**2
    r = np.minimum(radius * (1 + np.geomspace(1e-4, 1e3, 4000)) + 1e-300, longest)
    fall = np.cos(radius) - np.cos(r) if isinstance(domain, Sphere) else (r**2 - radius**2) / 2
    with np.errstate(under="ignore"):
        tail = diameter * count * np.exp(np.minimum(2 * slip - sharpness * fall, 700.0))
    return min(float((r + tail).min()) * (1 + 1e-13), diameter)


def sharpness_for(domain: Domain, radius: float, count: int, goal: float) -> float:
    """The least sharpness whose bound is at most `goal` > radius > 0, within a thousandth.

    >>> round(sharpness_for(Sphere(2), 0.1, 600, 0.104))
    41517
    """
    low, high = -6.0, 16.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if reach(domain, radius, count, 10**middle / radius) <= goal else (middle, high)
    return float(10**high / radius)


def radius_for(domain: Domain, lipschitz: float, tolerance: float) -> float:
    """The covering radius that a tolerance needs, with `SPARE` for the temperature."""
    return min(0.998 * tolerance / (_spared(domain) * max(lipschitz, 1e-300)), _diameter(domain))


def _spared(domain: Domain) -> float:
    """The bound in units of L delta that sharpness is chosen for: (1 + 2 SPARE), less in many dimensions."""
    return 1.0 + min(2.0 * SPARE, SPARED / domain.dimension)


def positions_for_tolerance(domain: Sphere | Cube, lipschitz: float, tolerance: float) -> float:
    """About how many positions that is; infinite where a float cannot say."""
    with np.errstate(all="ignore"):
        return float(positions_for(domain, radius_for(domain, lipschitz, tolerance)))


def feasible_tolerance(domain: Sphere | Cube, lipschitz: float, tolerance: float) -> float:
    """The least tolerance, about, that `LIMIT` positions reach."""
    wanted = positions_for_tolerance(domain, lipschitz, tolerance)
    return float(1.1 * tolerance * (wanted / LIMIT) ** (1.0 / domain.dimension))


def apart(points: Floats) -> float:
    """The sharpness at which every other of the points has a weight below 1e-18 / count at each: a look-up."""
    if len(points) == 1:
        return 1.0
    nearest = float(cKDTree(points).query(points, k=2)[0][:, 1].min())
    return 2.0 * math.log(1e18 * len(points)) / max(nearest, 1e-150) ** 2


def net_of_at_most(domain: Domain, count: int) -> Net:
    """The finest net with at most `count` points."""
    match domain:
        case FiniteSet():
            return _table_net(domain, radius=0.0, limit=count)
        case Cube():
            sides = np.ptp(domain.box, axis=1)
            counts = np.ones(domain.dimension, dtype=np.int64)
            while True:  # the longest cells are cut first, as long as there is room
                order = np.argsort(-sides / counts, kind="stable")
                fits = [axis for axis in order if counts.prod() // counts[axis] * (counts[axis] + 1) <= count]
                if not fits:
                    return cube_net(domain, counts)
                counts[fits[0]] += 1
        case Sphere() if domain.dimension <= 3:
            return finest_sphere_net(domain.dimension, count)
        case Sphere():
            if domain.dimension == 4 and count <= 2_000:
                points = sphere_net(domain.dimension, count)
                return Net(points, covering_radius(points))
            radius = (positions_for(domain, 1.0) / count) ** (1 / domain.dimension)
            for _ in range(40):
                net = net_within(domain, min(radius, math.pi), limit=count)
                if net is not None:
                    return net
                radius *= 1.04
            return Net(sphere_net(domain.dimension, count), math.pi)


def _table_net(domain: FiniteSet, *, radius: float, limit: int) -> Net:
    """Rows of the table, each the furthest from those before it, until all rows are within `radius` of one."""
    points = domain.points
    middle = (points.max(axis=0) + points.min(axis=0)) / 2
    chosen = [int(np.linalg.norm(points - middle, axis=1).argmin())]
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    while distance.max() > radius and len(chosen) < min(limit, len(points)):
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return Net(np.array(points[chosen]), float(distance.max()) * (1 + 1e-14))


def _diameter(domain: Domain) -> float:
    match domain:
        case Sphere():
            return math.pi
        case Cube():
            sides = np.ptp(domain.box, axis=1)
        case FiniteSet():
            sides = np.ptp(domain.points, axis=0)
    return max(float(np.linalg.norm(sides)), 1e-300)
