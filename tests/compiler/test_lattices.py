"""Lattices around S^2 and S^3: the points that they promise, spread as theory says, covering better than spirals."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from scipy.spatial import cKDTree

from foreword.compiler.construction.nearest import net_of_at_most
from foreword.compiler.domain import Sphere
from foreword.compiler.lattices import icosahedral, points_of, regular, size_of, tori, triangle_numbers
from foreword.compiler.nets import covering_radius, finest_sphere_net, net_within, sphere_net_of


@pytest.mark.parametrize(("h", "k"), [(1, 0), (1, 1), (2, 1), (3, 3), (7, 2)])
def test_an_icosahedral_lattice_is_whole_and_has_no_point_twice(h: int, k: int) -> None:
    points = icosahedral(h, k)
    count = 10 * (h * h + h * k + k * k) + 2
    assert points.shape == (count, 3)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0, atol=1e-15)
    # An equal share of the sphere for each would leave neighbours sqrt(8 pi / (sqrt 3 count)) apart.
    nearest = cKDTree(points).query(points, k=2)[0][:, 1]
    assert nearest.min() > 0.8 * math.sqrt(8 * math.pi / (math.sqrt(3) * count))
    np.testing.assert_allclose(points.mean(axis=0), 0.0, atol=1e-14)  # the icosahedron's own symmetry


def test_every_number_of_triangles_is_told_once() -> None:
    every = {h * h + h * k + k * k for h in range(1, 20) for k in range(20)}
    found = triangle_numbers(300)
    assert [entry[0] for entry in found] == sorted(number for number in every if number <= 300)
    assert all(h * h + h * k + k * k == number for number, h, k in found)


@pytest.mark.parametrize("radius", [0.7, 0.3, 0.1])
def test_a_stack_of_tori_covers_about_as_finely_as_it_is_made_for(radius: float) -> None:
    """The flat distances bound the sphere's, so nothing is left out; what is spare is whole rows."""
    stack = tori(radius)
    points = points_of(stack)
    assert len(points) == size_of(stack)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0, atol=1e-15)
    assert 0.8 * radius < covering_radius(points) <= radius


@pytest.mark.parametrize(
    ("dimension", "plane"), [(2, 8 * math.pi / (3 * math.sqrt(3))), pytest.param(3, math.pi**2, marks=pytest.mark.slow)]
)
def test_a_fine_net_needs_little_more_than_its_flat_lattice(dimension: int, plane: float) -> None:
    """In the plane triangles, in space layers of them; curvature, whole rows and the stack's ends cost up to 12%."""
    net = net_within(Sphere(dimension), 0.08 if dimension == 2 else 0.15, limit=100_000)
    assert net is not None
    assert 0.99 * plane <= len(net.points) * net.radius**dimension <= 1.12 * plane


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_the_finest_net_has_at_most_so_many_points_and_is_no_coarser_than_a_spiral(dimension: int) -> None:
    for count in (1, 3, 11, 12, 17, 60, 250, 900):
        net = finest_sphere_net(dimension, count)
        assert 1 <= len(net.points) <= count
        assert net.radius <= sphere_net_of(dimension, count).radius
        assert net.radius == covering_radius(net.points)


@pytest.mark.parametrize("dimension", [1, 2, 3, 5, 8])
def test_few_points_are_a_regular_body_s_corners_and_cover_as_it_does(dimension: int) -> None:
    seen = Sphere(dimension).sample(20_000, np.random.default_rng(2))
    cross = math.acos((dimension + 1) ** -0.5)
    bodies = {1: math.pi, 2: math.pi / 2, dimension + 2: math.acos(1 / (dimension + 1)), 2 * (dimension + 1): cross}
    for count, radius in bodies.items():
        found = regular(dimension, radius + 1e-9)
        assert found is not None
        points, covered = found
        assert len(points) == count
        np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0, atol=1e-15)
        assert np.arccos((seen @ points.T).max(axis=1).min()) <= covered <= radius + 1e-9
        if count > dimension + 1 and dimension <= 3:
            assert covered == pytest.approx(covering_radius(points), rel=1e-9)
    assert regular(dimension, cross - 1e-9) is None


@pytest.mark.parametrize(("dimension", "count"), [(5, 60), (6, 24), (8, 100)])
def test_few_points_on_a_sphere_of_many_dimensions_are_found_at_once(dimension: int, count: int) -> None:
    started = time.process_time()
    net = net_of_at_most(Sphere(dimension), count)
    assert time.process_time() - started < 5.0  # 0.2 s; 200 s when every layer's net was searched for to the last
    assert dimension + 2 <= len(net.points) <= count
    seen = Sphere(dimension).sample(20_000, np.random.default_rng(3))
    assert np.arccos((seen @ net.points.T).max(axis=1).min()) <= net.radius < math.pi / 2
