"""Piecewise smooth targets: each branch its own prefix, shared where a linear function tells its region."""

from __future__ import annotations

import numpy as np
import pytest

from foreword.certificate import Verdict
from foreword.compiler.charts import Flat, Paraboloid, chart_of
from foreword.compiler.construction.adaptive import Adaptive
from foreword.compiler.construction.branches import GENTLEST, Branches
from foreword.compiler.construction.contract import Draft, Request, Sampled
from foreword.compiler.construction.crossings import rounds
from foreword.compiler.construction.gates import SHARPEST
from foreword.compiler.construction.kinks import kinks_of, near_kinks
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.pipeline import compile_function
from foreword.compiler.target import Target, target_of

SQUARE, CUBE = Cube([(-1, 1)] * 2), Cube([(-1, 1)] * 3)


def branches_of(text: str, domain: Sphere | Cube) -> tuple[Target, Branches | None]:
    target, chart = target_of(text, domain), chart_of(domain)
    kinks = kinks_of(target, domain, np.random.default_rng(0))[0]
    rng = np.random.default_rng(1)
    points = near_kinks(domain, domain.sample(4_000, rng), kinks, rng)
    return target, Branches.of(target, domain, chart, kinks, Sampled.at(points, target, chart))


@pytest.mark.parametrize(
    ("text", "domain", "texts"),
    [
        ("abs(x)*exp(y)", SQUARE, {"x * exp(y)", "-x * exp(y)"}),
        ("max(x, y, z)", CUBE, {"x", "y", "z"}),  # six sectors, three regions
        ("abs(x) + abs(y)", SQUARE, {"x + y", "x + -y", "-x + y", "-x + -y"}),
        ("max(x*y, 0)", SQUARE, {"x * y", "0"}),  # no linear function tells two quadrants from the others
        ("max(1 - abs(x) - abs(y), 0)", SQUARE, None),
        ("min(abs(x), 0.5)", Cube([(-1, 1)]), {"-x", "x", "0.5"}),
        ("abs(z - 0.5)*x", Sphere(2), {"(z - 0.5) * x", "-(z - 0.5) * x"}),
    ],
)
def test_branches_are_smooth_and_the_target_in_their_own_sectors(
    text: str, domain: Sphere | Cube, texts: set[str] | None
) -> None:
    target, found = branches_of(text, domain)
    assert found is not None
    told = {branch.target.expression.text for branch in found.branches if branch.target.expression is not None}
    assert texts is None or told == texts
    queries = found.chart(found.samples)
    heights = np.stack([queries @ branch.gate[0] + branch.offset for branch in found.branches], axis=1)
    covered = np.zeros(len(found.samples), dtype=int)
    for row, branch in enumerate(found.branches):
        inside = found.samples[branch.rows]
        branch.domain.check(inside)
        assert branch.target.evaluate(inside) == pytest.approx(target.evaluate(inside), abs=1e-12)
        own = heights[branch.rows]
        assert (own[:, row] >= own.max(axis=1) - 1e-9).all()
        covered += branch.rows
    assert (covered == 1).mean() > 0.99


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("max(x**2 + y**2, x)", 1),
        ("abs((x - 0.2)**2 + (y + 0.1)**2 - 0.25) * y", 1),
        ("abs(sin(6*(x**2 + y**2)))", 3),
        ("abs(x**2 + 2*y**2 - 0.5)", 0),  # an ellipse is no plane over these queries
        ("abs(x**2 - y**2 - 0.5)", 0),
        ("abs(x**2 + y**2 + 1)", 0),  # it does not vanish
    ],
)
def test_a_circle_is_a_plane_over_curved_queries(text: str, places: int) -> None:
    target = target_of(text, SQUARE)
    assert target.expression is not None
    found = list(rounds(target.expression.outputs, SQUARE))
    assert len(found) == places
    points = SQUARE.sample(4_000, np.random.default_rng(0))
    queries = Paraboloid.of(Flat((0.0, 0.0), (1.0, 1.0)))(points)
    for each in found:
        heights = queries @ each.slopes + each.shift
        assert (heights > 0).any()
        assert (heights < 0).any()
        near = each.near(SQUARE, points, np.random.default_rng(1))
        over = Paraboloid.of(Flat((0.0, 0.0), (1.0, 1.0)))(near) @ each.slopes + each.shift
        assert np.quantile(np.abs(over[1::2]), 0.25) < 1e-3  # of some the circle is out of reach


def test_a_kink_along_a_circle_takes_the_positions_of_its_two_sides() -> None:
    """Refused before, with 1,600 positions 5e-3 away."""
    made = compile_function("max(x**2 + y**2, x)", SQUARE, tolerance=1e-2, seconds=20)
    assert made.certificate is not None
    assert made.certificate.verdict is Verdict.PROVED
    assert made.positions <= 16


def test_as_many_as_regions_not_sectors() -> None:
    _, shared = branches_of("max(x, y, z)", CUBE)
    _, apart = branches_of("max(x*y, 0)", SQUARE)
    assert shared is not None
    assert apart is not None
    assert (len(shared.branches), len(apart.branches)) == (3, 4)


@pytest.mark.parametrize("text", ["abs(x*y - 0.2)", "sin(x)", "abs(sin(20*x))", "max(abs(x) - exp(y), 0.1*y)"])
def test_what_has_no_branches_along_hyperplanes_has_none_here(text: str) -> None:
    assert branches_of(text, SQUARE)[1] is None


@pytest.mark.parametrize(
    ("text", "domain", "tolerance", "positions"),
    [
        ("max(x, y)", SQUARE, 1e-3, 6),
        ("max(1 - abs(x) - abs(y), 0)", SQUARE, 1e-3, 20),
        ("abs(z - 0.5)*x", Sphere(2), 1e-3, 16),
        pytest.param("abs(x)*exp(y)*cos(z)", CUBE, 1e-3, 60, marks=pytest.mark.slow),
        pytest.param("max(sin(3*x), 0)*exp(y)", SQUARE, 1e-4, 80, marks=pytest.mark.slow),
    ],
)
def test_kinks_take_little_more_than_their_smooth_branches(
    text: str, domain: Sphere | Cube, tolerance: float, positions: int
) -> None:
    """32, 128, 50, none and 242 positions with gates beside one net for all branches."""
    made = compile_function(text, domain, tolerance=tolerance, seconds=20)
    assert made.certificate is not None
    assert made.certificate.verdict is Verdict.PROVED
    assert made.positions <= positions


def test_a_branch_without_values_beyond_its_sector_is_left_to_other_ways() -> None:
    """Below the diagonal x - y is negative, and every sector's box holds points on either side."""
    target, found = branches_of("abs(x - y)*log(abs(x - y) + 0.1)", SQUARE)
    assert found is not None
    assert found.candidate(Request(None, 1e-2, seconds=5.0), GENTLEST, SHARPEST, np.random.default_rng(0)) is None
    draft = Adaptive().draft(target, SQUARE, Request(48, None, seconds=5.0), rng=np.random.default_rng(0))
    assert isinstance(draft, Draft)


def test_gates_are_no_steeper_than_is_as_good() -> None:
    _, found = branches_of("abs(x) + 0.01*y", SQUARE)
    assert found is not None
    made = found.candidate(Request(None, 1e-2, seconds=5.0), GENTLEST, SHARPEST, np.random.default_rng(0))
    assert made is not None
    assert np.abs(made.head.keys).max() < 2_000
