"""Targets and heads that hang on one polynomial of the coordinates: read exactly, proved on an interval, checked."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from foreword.certificate import Verdict
from foreword.compiler.charts import Chart, chart_of
from foreword.compiler.checker import check
from foreword.compiler.construction.along import Along
from foreword.compiler.construction.contract import Draft, Request
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.head import Head
from foreword.compiler.parser import parse_expression
from foreword.compiler.pipeline import compile_function
from foreword.compiler.profile import Profile
from foreword.compiler.proof import Proof, prove
from foreword.compiler.target import Target, target_of

SQUARE = Cube([(-1, 1)] * 2)
OBLONG = Cube([(-1, 2), (0, 0.5), (-3, 1)])


@pytest.mark.parametrize(
    ("text", "domain", "along", "inner"),
    [
        ("abs(0.6*x - 0.8*y - 0.2)", SQUARE, "0.6 * x - 0.8 * y - 0.2", "abs(x)"),
        ("exp(-(0.6*x - 0.8*y)**2)", SQUARE, "0.6 * x - 0.8 * y", "exp(-x**2)"),
        ("sqrt(x**2 + y**2) + cos(3*x**2 + 3*y**2)", SQUARE, "x**2 + y**2", "sqrt(x) + cos(3 * x)"),
        ("exp(z + x) / (2 + sin(2*x + 2*z))", OBLONG, "2 * x + 2 * z", None),
        ("sqrt((x - 1)**2 + y**2 + z**2)", Sphere(2), "(x - 1)**2 + y**2 + z**2", "sqrt(x)"),
        ("[x + y, (x + y)**3]", SQUARE, "x + y", None),
        ("sin(x) * y", SQUARE, None, None),
        ("abs(x*y - 0.2)", SQUARE, None, None),  # a product of two coordinates has no range that is exact here
        ("exp(x + y) + x", SQUARE, None, None),
        ("exp(x + y) + exp(x + 1.0000000000000002*y)", SQUARE, None, None),
        ("sin(2*x)", SQUARE, None, None),  # of one coordinate, which the search sees by itself
        ("x**2 + 2*y**2", Sphere(2), None, None),
        ("sin(x + y)", Cube([(0, 1e308)] * 2), None, None),
    ],
)
def test_a_polynomial_is_found_only_where_all_hangs_on_it(
    text: str, domain: Sphere | Cube, along: str | None, inner: str | None
) -> None:
    expression = parse_expression(text, domain.columns)
    found = Profile.of(expression, domain)
    assert (None if found is None else found.text) == along
    if found is None:
        return
    assert inner is None or found.expression.text == inner
    points = domain.sample(500, np.random.default_rng(0))
    places = parse_expression(found.text, domain.columns).evaluate(points)
    values = expression.evaluate(points)
    assert found.expression.evaluate(places) == pytest.approx(values, rel=1e-12, abs=1e-12)
    low, high = found.span.sides[0]
    assert low <= places.min()
    assert places.max() <= high
    for place in np.linspace(low, high, 7):
        point = found.point(float(place))
        domain.check(point)
        assert found.at(point[0]) == pytest.approx(place, abs=1e-9 * (high - low))


@pytest.mark.parametrize("seed", range(8))
def test_all_values_of_a_quadratic_lie_in_its_span(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, c, d = rng.normal(size=4).round(3)
    text = f"tanh({a}*(x - {abs(b)})**2 + {c}*y**2 + {d}*y + {b}*z)"
    found = Profile.of(parse_expression(text, 3), OBLONG)
    assert found is not None
    corners = np.stack(np.meshgrid(*(np.linspace(*side, 25) for side in OBLONG.sides)), axis=-1).reshape(-1, 3)
    values = [sum(part * _product(point, m) for m, part in found.along.items()) for point in _exact(corners[::37])]
    low, high = (Fraction(end) for end in found.span.sides[0])
    assert all(low <= value <= high for value in values)
    places = np.array([found.at(corner) for corner in corners])
    margin = float(high - low) / 20
    assert places.min() - float(low) < margin
    assert float(high) - places.max() < margin


def _exact(points: np.ndarray) -> list[list[Fraction]]:
    return [[Fraction(entry) for entry in point] for point in points.tolist()]


def _product(point: list[Fraction], columns: tuple[int, ...]) -> Fraction:
    found = Fraction(1)
    for column in columns:
        found *= point[column]
    return found


def _ridge(domain: Sphere | Cube, text: str, tolerance: float, **options: Any) -> tuple[Head, Chart, Target, Proof]:
    target = target_of(text, domain)
    made = compile_function(text, domain, tolerance=tolerance, certify=False, seconds=10, **options)
    head = Head(made.keys, made.biases, made.values)
    return head, made.chart, target, prove(head, made.chart, target, domain, tolerance=tolerance, seconds=20)


@pytest.mark.parametrize(
    ("text", "domain", "tolerance", "positions"),
    [
        ("abs(0.6*x0 - 0.8*x1 - 0.2 + x3 + 0.3*x9)", Cube([(-1, 1)] * 10), 1e-3, 24),
        ("abs(0.6*x0 - 0.8*x1 - 0.2 + x3 + 0.3*x6)", Sphere(6), 1e-4, 24),
        ("abs(x**2 + y**2 - 0.5)", SQUARE, 1e-5, 24),
        ("exp(-4*x**2 - (y - 0.5)**2)", OBLONG, 1e-4, 12),
        pytest.param("sqrt(x**2 + y**2 + z**2)", Cube([(-1, 1)] * 3), 1e-3, 24, marks=pytest.mark.slow),
        pytest.param("sin(4*x**2 + 3*y)", SQUARE, 1e-3, 12, marks=pytest.mark.slow),
        pytest.param("max(0.6 - sqrt((x - 0.2)**2 + (y + 0.1)**2), 0)", SQUARE, 1e-2, 40, marks=pytest.mark.slow),
    ],
)
def test_ridges_and_rounds_are_short_proved_with_few_cells_and_confirmed(
    text: str, domain: Sphere | Cube, tolerance: float, positions: int
) -> None:
    head, chart, target, proof = _ridge(domain, text, tolerance)
    told = proof.certificate.sealed()
    points = domain.sample(40_000, np.random.default_rng(1))
    worst = float(np.abs(head.evaluate(chart(points)) - target.evaluate(points)).max())
    assert head.positions <= positions
    assert told.verdict is Verdict.PROVED
    assert worst <= told.bound <= tolerance
    assert told.effort["cells"] < 2_000
    assert told.cover is not None
    assert told.cover["along"]
    assert told.bound <= 1.3 * told.seen + 1e-12
    found = check(head, chart, target.expression, domain, told, proof.cover, seconds=20)
    assert (found.verdict, found.reasons) == (Verdict.PROVED, ())


@pytest.mark.parametrize("seed", range(12))
def test_no_bound_along_a_polynomial_is_below_the_truth(seed: int) -> None:
    """Heads of random keys along P, with rounding that is not small, and needles: the error at the worst of a line."""
    rng = np.random.default_rng(seed)
    domain = [SQUARE, OBLONG, Sphere(2), Sphere(4)][seed % 4]
    normal = rng.normal(size=domain.columns)
    names = ("x", "y", "z") if domain.columns < 4 else tuple(f"x{column}" for column in range(domain.columns))
    plane = " + ".join(f"({slope!r})*{name}" for slope, name in zip(normal.tolist(), names, strict=False))
    text = f"abs({plane} - {rng.normal()!r}) + 0.1*exp(-1000*({plane})**2)"
    target = target_of(text, domain)
    slopes = rng.normal(size=7) * 10 ** rng.uniform(0, 3)
    chart = chart_of(domain)
    half = np.array(getattr(chart, "half", np.ones(domain.columns)))
    middle = np.array(getattr(chart, "middle", np.zeros(domain.columns)))
    keys = np.outer(slopes, normal * half)
    head = Head(keys, slopes * (normal @ middle) + rng.normal(size=7), rng.normal(size=(7, 1)))
    told = prove(head, chart, target, domain, seconds=10).certificate
    assert told.cover is not None
    assert "along" in told.cover
    profile = Profile.of(target.expression, domain)
    assert profile is not None
    places = np.linspace(*profile.span.sides[0], 201)
    points = np.concatenate([profile.point(float(place)) for place in places])
    points = np.concatenate([points, domain.sample(20_000, rng)])
    worst = float(np.abs(head.evaluate(chart(points)) - target.evaluate(points)).max())
    assert worst <= told.bound <= 1.3 * told.seen + 1e-9
    assert told.seen <= worst * (1 + 1e-3)


def test_a_head_that_varies_otherwise_is_proved_over_the_domain() -> None:
    target = target_of("abs(x + y)", SQUARE)
    keys = np.array([[3.0, 3.0], [-3.0, -3.0], [3.0, 2.9]])
    head = Head(keys, np.zeros(3), np.arange(3.0)[:, None])
    told = prove(head, chart_of(SQUARE), target, SQUARE, seconds=2).certificate
    assert told.cover is not None
    assert "along" not in told.cover


def test_an_interrupted_proof_along_a_polynomial_goes_on_from_its_cells() -> None:
    head, chart, target, whole = _ridge(SQUARE, "abs(x - y)", 1e-4)
    begun = prove(head, chart, target, SQUARE, tolerance=1e-4, seconds=0.0)
    assert begun.search is not None
    assert len(begun.search.knots) == 1
    again = prove(head, chart, target, SQUARE, tolerance=1e-4, resume=begun.search)
    assert again.certificate.bound == whole.certificate.bound


@pytest.fixture(scope="module")
def oblique() -> tuple[Head, Chart, Target, Proof]:
    return _ridge(SQUARE, "abs(0.6*x - 0.8*y - 0.2)", 1e-3)


@pytest.mark.parametrize(
    ("along", "reason"),
    [
        ("0.6*x - 0.8*y", "could not be shown|exceeds|all values"),  # the right one but for a constant
        ("0.6*x - 0.7*y - 0.2", "hangs on more"),
        ("x", "hangs on more"),
        ("x*y", "all values"),
        ("sin(x + y)", "degree 1 or 2"),
        ("[x, y]", "degree 1 or 2"),
        ("7", "degree 1 or 2"),
        ("x +", "cannot be followed"),
        ("(" * 60 + "3" + ")**2" * 60 + " + x", "degree 1 or 2"),  # a number of 2^60 digits is not computed
        (7, "a polynomial of at most"),
        (None, "margin"),
    ],
)
def test_a_certificate_along_another_polynomial_is_refused(
    oblique: tuple[Head, Chart, Target, Proof], along: object, reason: str
) -> None:
    head, chart, target, proof = oblique
    told = replace(proof.certificate, cover={**(proof.certificate.cover or {}), "along": along}).sealed()
    found = check(head, chart, target.expression, SQUARE, told, proof.cover, seconds=10)
    assert found.verdict is Verdict.NOT_REACHED
    assert re.search(reason, " ".join(found.reasons)), found.reasons


def test_cells_that_leave_out_values_of_the_polynomial_and_turned_keys_are_refused(
    oblique: tuple[Head, Chart, Target, Proof],
) -> None:
    head, chart, target, proof = oblique
    cover, told = proof.cover, proof.certificate
    assert cover is not None
    assert told.cover is not None
    knots = [np.array([cover.knots[0][0] + 1e-9, *cover.knots[0][1:]])]
    short = Cover(cover.levels, cover.indices, knots)
    claim = replace(told, cover={**told.cover, "digest": short.digest}).sealed()
    found = check(head, chart, target.expression, SQUARE, claim, short, seconds=10)
    assert found.verdict is Verdict.NOT_REACHED
    assert "all values" in " ".join(found.reasons)
    turned = Head(head.keys + np.array([0.0, 1e-3]), head.biases, head.values)
    claim = replace(told, head=turned.digest).sealed()
    found = check(turned, chart, target.expression, SQUARE, claim, cover, seconds=10)
    assert found.verdict is Verdict.NOT_REACHED


def test_a_round_target_is_one_of_an_interval_in_the_construction() -> None:
    domain = Cube([(-1, 3), (0, 1)])
    target = target_of("1/(1 + (x - 1)**2 + 4*(y - 0.3)**2)", domain)
    found = Along.of(target, domain)
    assert found is not None
    draft = found.drafted(Spectral(), Request(None, 1e-3), np.random.default_rng(0))
    assert isinstance(draft, Draft)
    assert draft.head.positions <= 8
    points = domain.sample(20_000, np.random.default_rng(1))
    error = np.abs(draft.head.evaluate(draft.chart(points)) - target.evaluate(points)).max()
    assert error <= 1.0001 * draft.sampled <= 1e-3
    assert Along.of(target_of("sin(x) + y", domain), domain) is None
    assert Along.of(target_of("exp(x**2 - y**2)", domain), domain) is None  # no sum of squares
