"""Domains: what they hold, what they refuse, and that the parameters cover them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from foreword.compiler.charts import Chart, Flat, Identity, Paraboloid, chart_from_dict, chart_of
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere, domain_from_dict, frame_along
from foreword.compiler.expression import Expression
from foreword.errors import CompileError

DOMAINS = [Sphere(1), Sphere(2), Sphere(4), Cube([(-1, 1)]), Cube([(0, 3), (-2, -1.5), (10, 11)])]
TABLE = FiniteSet(np.array([[0.0, 1.0], [2.0, 3.0], [2.0, -1.0]]))


@pytest.mark.parametrize("domain", [*DOMAINS, TABLE], ids=str)
def test_drawn_and_spread_points_lie_in_the_domain(domain: Domain) -> None:
    rng = np.random.default_rng(0)
    for points in (domain.sample(200, rng), domain.spread(200)):
        assert domain.check(points).shape[1] == domain.columns


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
def test_every_point_has_parameters_in_the_box(domain: Domain) -> None:
    points = domain.sample(500, np.random.default_rng(1))
    parameters = points
    if isinstance(domain, Sphere):
        m = domain.dimension
        tails = np.sqrt(np.cumsum(points[:, ::-1] ** 2, axis=1)[:, ::-1])
        angles = [np.arctan2(points[:, j], tails[:, j + 1]) for j in range(m - 1)]
        parameters = np.stack([*angles, np.arctan2(points[:, m - 1], points[:, m])], axis=1)
    lower, upper = domain.box.T
    assert ((parameters >= lower) & (parameters <= upper)).all()
    # A dozen roundings of numbers of at most 1 in the angles and as many on the way back.
    assert np.abs(domain.embed(parameters) - points).max() < 50 * np.finfo(float).eps * np.abs(points).max()


def test_the_angles_reach_beyond_their_exact_ends() -> None:
    # float64's pi/2 and pi lie below the numbers they stand for, so the next ones lie above.
    assert np.all(Sphere(2).box[:, 1] > np.array([math.pi / 2, math.pi]))
    assert math.cos(math.pi / 2) > 0 > math.cos(float(Sphere(2).box[0, 1]))


@pytest.mark.parametrize("domain", DOMAINS[1:], ids=str)
def test_spread_points_are_spread(domain: Domain) -> None:
    points, rng = domain.spread(2048), np.random.default_rng(2)
    assert np.array_equal(points, domain.spread(2048))
    if isinstance(domain, Sphere):  # the mean of 2,048 random points has a norm of 0.022 on average
        assert np.linalg.norm(points.mean(axis=0)) < 0.02
    else:  # each corner region is visited: sides, edges and corners are part of the domain
        assert np.array_equal(points.min(axis=0), domain.box[:, 0])
        assert np.array_equal(points.max(axis=0), domain.box[:, 1])
    # A nearest spread point of a random point is about 2048^(-1/m) away; 4 times that is never needed.
    size = np.ptp(domain.box, axis=1).max() if isinstance(domain, Cube) else math.pi
    nearest = [np.linalg.norm(points - point, axis=1).min() for point in domain.sample(50, rng)]
    assert max(nearest) < 4 * size * 2048 ** (-1 / domain.dimension)


@pytest.mark.parametrize("domain", [*DOMAINS, TABLE], ids=str)
def test_a_domain_reads_back(domain: Domain) -> None:
    assert domain_from_dict(domain.as_dict()) == domain


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sphere(0),
        lambda: Sphere(True),
        lambda: Cube([]),
        lambda: Cube([(1, 1)]),
        lambda: Cube([(2, 1)]),
        lambda: Cube([(0, math.inf)]),
        lambda: Cube([(1.0, 1.0 + 1e-15)]),
        lambda: Cube([(-1.7e308, 1.7e308)]),
        lambda: Cube([(0, 1, 2)]),
        lambda: FiniteSet(np.empty((0, 2))),
        lambda: FiniteSet(np.array([[np.nan]])),
        lambda: Sphere(2).check(np.array([[1.0, 1.0, 0.0]])),
        lambda: Sphere(2).check(np.array([[1.0, 0.0]])),
        lambda: Cube([(0, 1)]).check(np.array([[2.0]])),
        lambda: Cube([(0, 1)]).check(np.array([0.5])),
        lambda: Cube([(0, 1)]).check("abc"),
        lambda: TABLE.check(np.array([[0.5, 0.5]])),
        lambda: TABLE.embed(np.zeros((1, 2))),
        lambda: domain_from_dict({"kind": "torus"}),
        lambda: chart_from_dict({"name": "polar"}),
        lambda: chart_from_dict({"name": "flat", "middle": ["a"], "half": [1]}),
    ],
)
def test_what_is_no_domain_point_or_chart_is_refused(make: object) -> None:
    with pytest.raises(CompileError):
        make()  # type: ignore[operator]


FLAT = Flat((1.0, 2.0), (0.5, 3.0))
CHARTS = [Identity(2), FLAT, Paraboloid.of(FLAT), Paraboloid(FLAT, ((0.6, 0.0),), (0.3,))]


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_equals_its_expressions_and_reads_back(chart: Chart) -> None:
    points = np.random.default_rng(3).normal(size=(50, 2))
    graph = Expression(chart.expressions(2), ("x0", "x1"), "")
    # The same operations, but for the order of the paraboloid's sum: three roundings.
    assert np.abs(graph.evaluate(points) - chart(points)).max() <= 4 * np.finfo(float).eps * np.abs(chart(points)).max()
    assert chart_from_dict(chart.as_dict()) == chart
    assert chart(points).shape == (50, chart.width)


def test_a_cube_and_a_table_become_the_unit_cube() -> None:
    assert np.array_equal(chart_of(Cube([(0, 4), (-1, 1)]))(np.array([[0.0, 1.0], [4.0, 0.0]])), [[-1, 1], [1, 0]])
    assert np.abs(chart_of(TABLE)(TABLE.points)).max() == 1.0
    assert chart_of(FiniteSet(np.ones((3, 1))))(np.ones((1, 1))) == 0.0


@pytest.mark.parametrize("normal", [(1.0, 0.0, 0.0), (-1.0, 0.0, 0.0), (0.3, -2.0, 0.5)])
def test_a_frame_is_orthogonal_and_starts_with_the_normal(normal: tuple[float, ...]) -> None:
    frame = frame_along(normal)
    assert np.allclose(frame.T @ frame, np.eye(3), atol=1e-15)
    assert np.allclose(frame[:, 0], np.array(normal) / np.linalg.norm(normal), atol=1e-15)
