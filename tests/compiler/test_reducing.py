"""Targets of few directions: what is compiled in fewer coordinates is the same prefix over the domain's own queries."""

from __future__ import annotations

import numpy as np
import pytest

import foreword as fw
from foreword.certificate import Verdict
from foreword.compiler.charts import chart_of
from foreword.compiler.construction.adaptive import Adaptive
from foreword.compiler.construction.contract import Draft, Obstacle, Request
from foreword.compiler.construction.even import GENERATORS, OnLattice
from foreword.compiler.construction.reducing import Reduction
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.target import Target, target_of

SQUARE, BOX = Cube([(-1, 1)] * 2), Cube([(0, 1), (2, 5), (-3, -1)])


def drafted(
    text: str,
    domain: Domain,
    positions: int | None,
    tolerance: float | None = None,
    *,
    kinked: bool = False,
    hidden: bool = False,
) -> Draft:
    """Of an expression, or `hidden`: of a function of which only values are known."""
    construction = Adaptive() if kinked else Spectral()
    target, asked = target_of(text, domain), Request(positions, tolerance)
    target = Target(target.evaluate, domain=domain) if hidden else target
    found = construction.draft(target, domain, asked, rng=np.random.default_rng(0))
    assert isinstance(found, Draft), str(found)
    return found


def error(draft: Draft, text: str, domain: Domain) -> float:
    points = domain.sample(3_000, np.random.default_rng(31))
    wanted = target_of(text, domain).evaluate(points)
    return float(np.abs(draft.head.evaluate(draft.chart(points)) - wanted).max())


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("1 / (1 + 25 * (0.6*x - 0.8*y)**2)", Sphere(2)),  # without: 6e-4 and worse, at any length
        pytest.param("1 / (1 + 25 * (0.6*x - 0.8*y)**2)", SQUARE, marks=pytest.mark.slow),
        ("cos(1.5*x0 - 2*x1 + 0.3*x2 + x3)", Sphere(3)),
        ("exp(sin(4*x + y - z))", BOX),
        ("[sin(3*x), x**2]", Sphere(2)),
    ],
)
def test_one_direction_is_a_function_on_an_interval(text: str, domain: Sphere | Cube) -> None:
    draft = drafted(text, domain, 128, hidden=True)
    assert len(draft.notes["directions"]) == 1
    assert draft.head.positions <= 128
    assert np.linalg.matrix_rank(draft.head.keys, tol=1e-9 * np.abs(draft.head.keys).max()) == 1
    assert error(draft, text, domain) < 1e-9
    assert draft.sampled < 1e-9


@pytest.mark.parametrize(
    ("text", "domain", "positions", "most"),
    [
        # Measured 1.7e-9, 2.5e-14 and 1.3e-7; keys over all of the domain leave 5e-6, 2e-5 and 5e-6.
        ("sin(3*x) * exp(-y**2)", Sphere(2), 128, 1e-7),
        pytest.param("sin(3*x0) * exp(-x1**2)", Sphere(3), 400, 1e-9, marks=pytest.mark.slow),
        pytest.param(
            "1 / (1 + (1.2*x + 0.3*y + 0.2*z)**2) - 1 / (2 + (0.4*x + 1.3*y - 0.5*z)**2)",
            Cube([(-1, 1)] * 3),
            400,
            2e-6,
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.usefixtures("hardly_polished")
def test_two_directions_are_a_lattice_in_a_disc_or_a_polygon(
    text: str, domain: Sphere | Cube, positions: int, most: float
) -> None:
    draft = drafted(text, domain, positions)
    assert len(draft.notes["directions"]) == 2
    assert np.abs(draft.head.values).max() <= 10.0 * (1 + 1e-9)
    assert error(draft, text, domain) <= 1.5 * draft.sampled < most


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_polished")
def test_axes_of_a_cube_are_a_cube_of_fewer_sides() -> None:
    """Nine positions for each of six coordinates would be half a million."""
    domain = Cube([(-1, 1), (0, 2), (-1, 1), (3, 4), (-2, 2), (0, 1)])
    text = "sin(3*x1) * x3"
    draft = drafted(text, domain, 80)
    assert np.array(draft.notes["directions"]).argmax(axis=1).tolist() == [1, 3]
    assert error(draft, text, domain) < 1e-4
    assert not draft.head.keys[:, [0, 2, 4, 5]].any()


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_polished")
def test_a_net_is_kept_where_it_does_better() -> None:
    """A polynomial on S^2 with two mirrors; with keys in the plane of two coordinates 128 positions leave 5e-6."""
    draft = drafted("x**3 - 3*x*y**2", Sphere(2), 96)
    assert "directions" not in draft.notes
    assert draft.sampled < 2e-6


@pytest.mark.parametrize("domain", [Sphere(2), pytest.param(BOX, marks=pytest.mark.slow)], ids=str)
def test_parallel_kinks_are_an_interval_s(domain: Sphere | Cube) -> None:
    text = "abs(x - 0.3) + abs(x - 0.5) * cos(9*x)"
    draft = drafted(text, domain, 64, kinked=True)
    assert draft.notes["along"] if isinstance(domain, Sphere) else len(draft.notes["directions"]) == 1
    assert len(draft.notes["kinks"]) == 2
    assert error(draft, text, domain) < 1e-4


def test_a_kink_across_other_directions_is_left_to_gates() -> None:
    """The target varies with x alone, but the declared kink is across y."""
    target = target_of("sin(x)", Sphere(2), kinks=[((0, 1, 0), 0.0)])
    found = Adaptive().draft(target, Sphere(2), Request(24, None), rng=np.random.default_rng(0))
    assert isinstance(found, Draft)
    assert "directions" not in found.notes


@pytest.mark.slow
def test_an_interval_that_is_too_rough_is_an_obstacle() -> None:
    target = target_of("sin(4000*x)", Sphere(2))
    found = Spectral().draft(target, Sphere(2), Request(None, 1e-6), rng=np.random.default_rng(0))
    assert isinstance(found, Obstacle)


@pytest.mark.slow
def test_a_tolerance_gets_a_short_prefix_and_its_proof() -> None:
    """A peak of width 0.05 along a slanting line of S^3; with keys all over it no length was enough."""
    compiled = fw.compile_function("1 / (1 + 400 * (0.6*x0 - 0.8*x2)**2)", fw.Sphere(3), tolerance=1e-2, seconds=250)
    assert compiled.certificate.verdict is Verdict.PROVED
    assert compiled.positions <= 40


def test_a_circle_keeps_the_better_of_both() -> None:
    draft = drafted("bump", Sphere(1), 12)
    assert draft.sampled < 1e-5  # on the interval alone 4e-5


@pytest.mark.parametrize("domain", [Sphere(3), Cube([(-1, 1), (0, 4), (-2, 0)])], ids=str)
def test_a_lifted_head_is_the_head_over_fewer_coordinates(domain: Sphere | Cube) -> None:
    """Scores are linear in the point: 1e-12 is a few thousand roundings of sums of four products."""
    directions = np.linalg.qr(np.random.default_rng(2).normal(size=(domain.columns, domain.columns)))[0][:2]
    reduction = Reduction(target_of("x0" if domain.columns > 3 else "x", domain), domain, directions)
    placement = OnLattice(domain, directions)
    head = placement.head(placement.points(30), (1.5, 0.4), 1)
    head = type(head)(head.keys, head.biases, np.random.default_rng(3).normal(size=(30, 1)))
    points = domain.sample(200, np.random.default_rng(4))
    middle = np.zeros(2) if isinstance(domain, Sphere) else directions @ domain.box.mean(axis=1)
    lifted = reduction.lifted(head)
    found = lifted.evaluate(chart_of(domain)(points))
    assert np.abs(found - head.evaluate(points @ directions.T - middle)).max() < 1e-12


@pytest.mark.parametrize("count", [1, 2, 7, 30, 200])
@pytest.mark.parametrize("dimension", sorted(GENERATORS))
def test_a_lattice_has_as_many_points_as_asked_within_the_image(dimension: int, count: int) -> None:
    points = OnLattice(Sphere(3), np.eye(4)[:dimension]).points(count)
    assert points.shape == (count, dimension)
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1.0)
    assert len(np.unique(points.round(9), axis=0)) == count
