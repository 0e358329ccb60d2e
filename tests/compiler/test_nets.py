"""Nets: how many points they take, and that no point is further away than they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial import cKDTree

from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.nets import COVERING, covering_radius, cube_net, net_within, positions_for, sphere_net


def furthest(points: np.ndarray, domain: Sphere | Cube) -> float:
    """The largest distance that 20,000 random points and hill climbing from the best of them find."""
    found = domain.sample(20_000, np.random.default_rng(0))
    chords = cKDTree(points).query(found)[0]
    chord = float(chords.max())
    return 2 * math.asin(min(chord / 2, 1.0)) if isinstance(domain, Sphere) else chord


@pytest.mark.parametrize(("dimension", "count"), [(1, 2), (1, 50), (2, 4), (2, 300), (3, 5), (3, 200), (4, 100)])
def test_no_point_is_further_than_the_covering_radius(dimension: int, count: int) -> None:
    points = sphere_net(dimension, count)
    assert points.shape == (count, dimension + 1)
    assert np.abs(np.linalg.norm(points, axis=1) - 1).max() < 1e-14
    radius, found = covering_radius(points), furthest(points, Sphere(dimension))
    assert found <= radius
    assert radius <= math.pi


@pytest.mark.parametrize(("dimension", "count"), [(1, 40), (2, 200), (3, 100)])
def test_the_covering_radius_is_exact(dimension: int, count: int) -> None:
    points = sphere_net(dimension, count)
    radius = covering_radius(points)
    # 20,000 points leave the deepest hole by at most their own spacing, about 20,000^(-1/m) of the sphere's size.
    assert furthest(points, Sphere(dimension)) >= radius - 4 * 20_000 ** (-1 / dimension)
    assert dimension > 1 or radius == pytest.approx(math.pi / count, rel=1e-12)


def test_a_net_with_a_hole_is_seen() -> None:
    points = sphere_net(2, 400)
    assert covering_radius(points[points[:, 2] < 0.5]) >= math.pi / 3 - 0.01  # nothing within acos 0.5 of the pole
    assert covering_radius(points[points[:, 2] < 0]) == math.pi  # a half is not covered at all: the bound is trivial
    assert covering_radius(points[:3]) == math.pi


@pytest.mark.parametrize(
    ("dimension", "radius"),
    [(1, 0.03), (2, 0.15), (2, 0.05), (3, 0.3), (4, 0.6), (6, 1.0)],
)
def test_a_net_for_a_radius_keeps_it_and_is_not_much_longer_than_promised(dimension: int, radius: float) -> None:
    net = net_within(Sphere(dimension), radius, limit=100_000)
    assert net is not None
    assert furthest(net.points, Sphere(dimension)) <= net.radius <= radius
    if dimension in COVERING:
        assert len(net.points) <= 1.1 * COVERING[dimension] / radius**dimension + 1
    assert net_within(Sphere(dimension), radius, limit=len(net.points) - 1) is None or dimension in (2, 3)


def test_what_would_be_too_long_is_no_net() -> None:
    assert net_within(Sphere(7), 0.05, limit=200_000) is None
    assert positions_for(Sphere(7), 0.05) > 1e9
    assert math.isfinite(positions_for(Sphere(300), 1e-9))


@pytest.mark.parametrize("sides", [[(0, 1)], [(-1, 1), (0, 5)], [(0, 0.001), (0, 1), (2, 3)]])
def test_a_cubes_net_is_its_cells_middles(sides: list[tuple[float, float]]) -> None:
    domain = Cube(sides)
    net = net_within(domain, 0.2, limit=10_000)
    assert net is not None
    domain.check(net.points)
    assert furthest(net.points, domain) <= net.radius <= 0.2 * (1 + 1e-9)
    corners = domain.box[:, 0][None]
    assert cKDTree(net.points).query(corners)[0][0] == pytest.approx(net.radius, rel=1e-9)
    assert len(cube_net(domain, np.full(len(sides), 2)).points) == 2 ** len(sides)
