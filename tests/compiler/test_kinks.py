"""Kinks: found where they are, and not where there are none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from foreword.certificate import Verdict
from foreword.compiler.construction import adaptive, gates
from foreword.compiler.construction.adaptive import Adaptive
from foreword.compiler.construction.contract import Draft, Obstacle, Request
from foreword.compiler.construction.gates import SHARPEST
from foreword.compiler.construction.kinks import (
    expression_kinks,
    kinks_of,
    near_kinks,
    range_along,
    rooted_planes,
    sampled_kinks,
)
from foreword.compiler.construction.tensor import graded, graded_axis, grid_output, grid_values
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.parser import parse_expression
from foreword.compiler.pipeline import compile_function
from foreword.compiler.target import Target, target_of

NORMAL = np.array([0.48, -0.6, 0.64])
CASES = {
    "axis": (Sphere(2), lambda x: np.abs(x[:, 0]), [([1, 0, 0], 0.0)]),
    "oblique": (Sphere(2), lambda x: np.maximum(x @ NORMAL - 0.2, 0) * np.cos(x[:, 2]), [(NORMAL, 0.2)]),
    "five dimensions": (Sphere(5), lambda x: np.abs(x[:, 3] - 0.1) + x[:, 0], [(np.eye(6)[3], 0.1)]),
    "circle": (Sphere(1), lambda x: np.abs(x[:, 1] + 0.3), [([0, 1], -0.3)]),
    "line": (Cube([(0, 3)]), lambda x: np.abs(x[:, 0] - 1.23456789), [([1], 1.23456789)]),
    "square": (Cube([(-1, 1)] * 2), lambda x: np.abs(x[:, 0] + x[:, 1]), [([0.5**0.5, 0.5**0.5], 0.0)]),
}


@pytest.mark.parametrize("name", CASES)
def test_a_kink_along_a_hyperplane_is_found_from_values_alone(name: str) -> None:
    domain, function, wanted = CASES[name]
    found = sampled_kinks(lambda x: function(x)[:, None], domain, np.random.default_rng(0))
    assert len(found) == len(wanted)
    for (normal, offset), (true_normal, true_offset) in zip(found, wanted, strict=True):
        sign = np.sign(normal @ np.asarray(true_normal))
        # Each place is known to about 1e-10; the graded keys go down to 1e-6.
        assert np.abs(sign * normal - true_normal).max() < 1e-7
        assert abs(sign * offset - true_offset) < 1e-7


def test_three_kinks_of_a_maximum_are_found() -> None:
    found = sampled_kinks(lambda x: x.max(axis=1, keepdims=True), Sphere(2), np.random.default_rng(0))
    assert len(found) == 3


@pytest.mark.parametrize(
    "function",
    [
        lambda x: np.sin(5 * x[:, 0]) * x[:, 1],
        lambda x: np.exp(-100 * (x[:, 0] - 0.3) ** 2),
        lambda x: 0 * x[:, 0],
        lambda x: np.abs(np.linalg.norm(x[:, :2], axis=1) - 0.5),  # a kink, but not along a hyperplane
    ],
)
@pytest.mark.parametrize("domain", [Sphere(2), Cube([(-1, 1)] * 2)], ids=str)
def test_no_hyperplane_is_found_where_there_is_none(domain: Sphere | Cube, function: object) -> None:
    found = sampled_kinks(lambda x: function(x)[:, None], domain, np.random.default_rng(0))  # type: ignore[operator]
    is_ring = isinstance(domain, Sphere)  # on the sphere |(x, y)| = 1/2 is two circles of latitude: z = +-0.866
    for normal, offset in found:
        assert is_ring
        assert abs(abs(normal[2]) - 1) < 1e-5
        assert abs(abs(offset) - 0.75**0.5) < 1e-5


def test_kinks_are_read_off_an_expression() -> None:
    expression = parse_expression("abs(2*x - 1) + max(y, z/2) * min(x, 3) + abs(x*y)", 3)
    found = expression_kinks(expression.outputs, 3)
    assert len(found) == 3  # x*y is not affine
    assert [round(offset / normal[np.abs(normal).argmax()], 12) for normal, offset in found] == [0.5, 0.0, 3.0]
    target = Target(expression=expression, domain=Cube([(-1, 1)] * 3))
    kinks, known = kinks_of(target, target.domain, np.random.default_rng(0))
    assert known == "read from the expression"
    assert len(kinks) == 4  # x = 3 is outside, and x*y changes its sign at x = 0 and y = 0


@pytest.mark.parametrize(
    ("text", "planes"),
    [
        ("max(x, y, z)", [(1, -1, 0, 0), (1, 0, -1, 0), (0, 1, -1, 0)]),
        ("min(max(x, y), z/2)", [(1, -1, 0, 0), (1, 0, -0.5, 0), (0, 1, -0.5, 0)]),
        ("abs(abs(x) - 0.5)*z", [(1, 0, 0, 0), (1, 0, 0, 0.5), (1, 0, 0, -0.5)]),
        ("max(0, 1 - 2*abs(x - y))", [(1, -1, 0, 0), (1, -1, 0, 0.5), (1, -1, 0, -0.5)]),
        ("max(x*y, z)", []),
        ("abs(1e308*10*x)", []),  # its slope overflows
    ],
)
def test_kinks_of_nested_maxima_and_absolute_values_are_read(text: str, planes: list[tuple[float, ...]]) -> None:
    found = expression_kinks(parse_expression(text, 3).outputs, 3)
    assert len(found) == len(planes)
    wanted = np.array(planes).reshape(-1, 4) / np.linalg.norm(np.array(planes).reshape(-1, 4)[:, :3], axis=1)[:, None]
    for normal, offset in found:
        told = np.append(normal, offset)
        apart = [min(np.abs(told - plane).max(), np.abs(told + plane).max()) for plane in wanted]
        assert min(apart) < 1e-12
        wanted = np.delete(wanted, int(np.argmin(apart)), axis=0)


def test_parts_of_too_many_pieces_have_no_kinks_and_take_no_time() -> None:
    text = "0"
    for step in range(40):
        text = f"abs({text} + {step + 1}*x - y)"
    found = expression_kinks(parse_expression(text, 3).outputs, 3)
    assert 1 <= len(found) <= 1 + 2 + 4 + 8 + 16


def test_a_nested_maximum_is_proved_with_few_keys_for_each_sector() -> None:
    compiled = compile_function("max(x, y, z)", Sphere(2), tolerance=3e-2, method="adaptive")
    assert compiled.certificate is not None
    assert compiled.certificate.verdict is Verdict.PROVED
    assert compiled.positions <= 6 * 8  # three planes make six sectors, and linear functions need few keys


def test_thirty_kinks_are_refused_before_their_sectors_are_listed() -> None:
    """2^30 patterns of sides would fill the memory; of 30 great circles at most 30 * 29 + 2 regions are there."""
    angles = np.random.default_rng(0).normal(size=(30, 3))
    kinks = tuple((tuple(row), 0.0) for row in angles.tolist())
    target = Target(lambda x: np.abs(x @ angles.T).sum(axis=1), domain=Sphere(2), kinks=kinks)
    drafted = Adaptive().draft(target, Sphere(2), Request(None, 1e-2, 10.0), rng=np.random.default_rng(0))
    assert isinstance(drafted, Obstacle)
    assert "30 kinks" in drafted.what


def test_declared_kinks_are_taken_at_their_word() -> None:
    target = Target(lambda x: x[:, 0], domain=Sphere(2), kinks=(((2.0, 0.0, 0.0), 1.0),))
    kinks, known = kinks_of(target, Sphere(2), np.random.default_rng(0))
    assert known == "declared"
    assert kinks[0][1] == 0.5


@pytest.mark.parametrize("domain", [Sphere(1), Sphere(4), Cube([(-1, 2)] * 2)], ids=str)
def test_points_near_a_kink_lie_in_the_domain_and_come_close(domain: Sphere | Cube) -> None:
    rng = np.random.default_rng(1)
    kink = (np.eye(domain.columns)[0], 0.25)
    points = near_kinks(domain, domain.sample(2_000, rng), [kink], rng)
    domain.check(points)
    distance = np.abs(points[:, 0] - 0.25)
    for exponent in range(-8, -1):  # every decade is visited on purpose: 2,000 uniform points would not come to 1e-6
        assert ((distance > 10.0**exponent) & (distance < 10.0 ** (exponent + 1))).sum() > 20


def test_points_beside_a_kink_reach_the_corners_of_a_cube_of_many_dimensions() -> None:
    domain, normal = Cube([(-1, 1), (0, 3), (-2, 0), (0, 1), (5, 6)]), np.ones(5) / 5**0.5
    rng, (low, high) = np.random.default_rng(1), range_along(domain, normal)
    drawn = domain.sample(2_000, rng)
    points = near_kinks(domain, drawn, [(normal, (low + high) / 2)], rng)
    domain.check(points)
    edge = 0.02 * (high - low)

    def at_ends(found: np.ndarray) -> int:
        along = found @ normal
        return int(min((along < low + edge).sum(), (along > high - edge).sum()))

    assert at_ends(drawn) <= 2
    assert at_ends(points) > 20


@pytest.mark.slow
def test_more_positions_are_never_worse_across_one_kink() -> None:
    """Down to the gate's own part, which no position changes."""
    errors = []
    for positions in (2, 4, 6, 8, 12, 16):
        made = compile_function(
            "max(0.6*x - 0.8*y - 0.2, 0)", Sphere(2), positions=positions, method="adaptive", certify=False
        )
        errors.append(max(made.tried[0].sampled or math.inf, 0.14 / SHARPEST))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0.14 / SHARPEST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("request_", "longest", "error"), [(Request(None, 1e-2), 50, 1e-2), (Request(72, None), 72, 3e-4)]
)
def test_a_table_of_24_knots_takes_two_or_three_keys_for_each_piece(
    request_: Request, longest: int, error: float
) -> None:
    """As a ReLU network takes a unit: over all of the line, keys for steep pieces would need values out of reach."""
    knots, values = np.linspace(-1, 1, 24), np.random.default_rng(24).standard_normal(24)
    target = target_of(lambda x: np.interp(x[:, 0], knots, values), Cube([(-1, 1)]))
    draft = Adaptive().draft(target, Cube([(-1, 1)]), request_, rng=np.random.default_rng(0))
    assert isinstance(draft, Draft)
    assert draft.sampled <= error
    assert draft.head.positions <= longest


def test_neighbouring_pieces_weigh_the_same_at_the_kink_between_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """However unlike their lengths are: else the gates would turn beside the kink."""
    monkeypatch.setattr(adaptive.Branches, "of", lambda *_: None)
    places = (-0.9, -0.89, 0.3)
    text = " + ".join(f"abs(x - {place})" for place in places)
    draft = Adaptive().draft(
        target_of(text, Cube([(-1, 1)])), Cube([(-1, 1)]), Request(12, None), rng=np.random.default_rng(0)
    )
    assert isinstance(draft, Draft)
    assert draft.notes["beside"] == "parts"
    for row, place in enumerate(places):
        weights = draft.head.weights(np.array([[place]]))[0]
        groups = np.sort([group.sum() for group in weights.reshape(4, 3)])  # keys of a group stand together
        assert groups[-1] - groups[-2] < 1e-6, row
        assert groups[-2] > 0.4999


def test_a_gate_costs_at_most_a_seventh_of_the_jump_over_its_sharpness() -> None:
    # |t| from its two sides, t and -t: the far side's weight times the gap 2 |t|, where the jump of the slope is 2.
    t = np.concatenate([-np.geomspace(1e-9, 1, 4000), np.geomspace(1e-9, 1, 4000)])
    for sharpness in (30.0, 1e3, 1e5):
        near = 1 / (1 + np.exp(-2 * sharpness * np.abs(t)))
        given = near * np.abs(t) - (1 - near) * np.abs(t)
        assert (np.abs(t) - given).max() <= 0.14 * 2 / sharpness


@pytest.mark.parametrize(
    ("text", "domain", "jump"),
    [
        pytest.param("50*abs(x - 0.3) + y", Cube([(-1, 1)] * 2), 100.0, marks=pytest.mark.slow),
        ("8*max(0.6*x + 0.8*y - 0.2, 0) + sin(z)", Sphere(2), 8.0),
    ],
)
def test_gates_are_as_steep_as_the_slope_jumps(text: str, domain: Sphere | Cube, jump: float) -> None:
    target, tolerance = target_of(text, domain), 1e-2 * jump / 8
    kinks, _ = kinks_of(target, domain, np.random.default_rng(0))
    assert abs(gates.jump_of_slope(target, domain, kinks) - jump) <= 0.05 * jump  # beside it the target is smooth
    draft = Adaptive().draft(target, domain, Request(None, tolerance), rng=np.random.default_rng(0))
    assert isinstance(draft, Draft)
    assert draft.sampled <= tolerance


@pytest.mark.parametrize(
    ("text", "domain", "tolerance", "longest"),
    [
        ("abs(0.6*x + 0.8*y - 0.3)", Sphere(2), 1e-4, 10),
        ("exp(-abs(0.6*x - 0.8*y))", Cube([(-1, 1)] * 2), 1e-4, 20),
        pytest.param("abs(0.6*x + 0.8*y - 0.3) * sin(2*z + x)", Sphere(2), 1e-3, 160, marks=pytest.mark.slow),
        pytest.param("max", Sphere(2), 1e-3, 96, marks=pytest.mark.slow),
    ],
)
def test_a_kink_costs_about_twice_the_keys_of_a_smooth_target(
    text: str, domain: Sphere | Cube, tolerance: float, longest: int
) -> None:
    target = target_of(text, domain)
    draft = Adaptive().draft(target, domain, Request(None, tolerance), rng=np.random.default_rng(0))
    assert isinstance(draft, Draft)
    assert draft.head.positions <= longest
    points = near_kinks(
        domain,
        domain.sample(4_000, np.random.default_rng(4)),
        kinks_of(target, domain, np.random.default_rng(0))[0],
        np.random.default_rng(5),
    )
    error = np.abs(draft.head.evaluate(draft.chart(points)) - target.evaluate(points)).max()
    assert error <= tolerance


@pytest.mark.parametrize(
    ("text", "domain", "wanted"),
    [
        ("sqrt(x)", Cube([(0, 1)]), [(0, 0.0)]),
        ("arccos(x)", Cube([(-1, 1)]), [(0, -1.0), (0, 1.0)]),
        ("x**1.5 + exp(x)", Cube([(0, 2)]), [(0, 0.0)]),
        ("exp(y)*sqrt(3 - x)", Cube([(-1, 3), (-1, 1)]), [(0, 3.0)]),
        ("x**0.3 * (1 - y)**0.5", Cube([(0, 1)] * 2), [(0, 0.0), (1, 1.0)]),
        ("sqrt(x + y)", Cube([(0, 1)] * 2), []),  # at a corner alone
        ("sqrt(0.001 + x)", Cube([(0, 1)]), [(0, 0.0)]),  # as good as one
        ("sqrt(0.1 + x)", Cube([(0, 1)]), []),
        ("1 + 1e-9*x", Cube([(0, 1)]), []),
        ("exp(-50*x) + x**3", Cube([(0, 1)]), []),
        ("7", Cube([(0, 1)]), []),
    ],
)
def test_sides_at_which_a_target_is_like_a_root_are_found(
    text: str, domain: Cube, wanted: list[tuple[int, float]]
) -> None:
    target = target_of(text, domain)
    found = rooted_planes(target.evaluate, domain, [], np.random.default_rng(0))
    assert [(int(normal.argmax()), side) for normal, side in found] == wanted


@pytest.mark.parametrize(
    ("text", "is_rooted"), [("sqrt(abs(x - 0.3))", True), ("abs(x - 0.3)", False), ("abs(x - 0.3)*exp(x)", False)]
)
def test_a_kink_may_be_a_root_on_both_sides(text: str, is_rooted: bool) -> None:
    target, kinks = target_of(text, Cube([(-1, 1)])), [(np.ones(1), 0.3)]
    found = rooted_planes(target.evaluate, Cube([(-1, 1)]), kinks, np.random.default_rng(0))
    assert found == (kinks if is_rooted else [])


def test_keys_graded_towards_a_side_follow_a_root_exponentially() -> None:
    near = np.concatenate([np.geomspace(1e-12, 2, 2_000) - 1, np.linspace(-1, 1, 2_000)])
    errors = []
    for count, scale in ((8, 1e-4), (16, 1e-6), (32, 1e-9)):
        axis = graded_axis(count, 1.5, (-1.0,), scale, 0.3, 400)
        values = grid_values([axis], np.sqrt(axis.nodes + 1)[:, None], 10.0)
        errors.append(np.abs(grid_output([axis], values, near[:, None])[:, 0] - np.sqrt(near + 1)).max())
    assert errors[0] < 2e-2
    assert errors[1] < errors[0] / 10
    assert errors[2] < errors[1] / 10
    assert np.abs(axis.keys[-1]) < 100  # far from the side scores are small, and so is their rounding


def test_samples_crowd_towards_sides_too() -> None:
    nodes = graded(100, (-1.0, 0.5, 1.0))
    assert nodes[0] == -1.0
    assert nodes[-1] == 1.0
    for place in (-1.0, 0.5, 1.0):
        assert 0 < np.sort(np.abs(nodes - place))[1] < 1e-8


def test_a_root_at_a_side_is_proved_with_few_positions() -> None:
    made = compile_function("sqrt(x)", Cube([(0, 1)]), tolerance=1e-5, method="adaptive")
    assert made.certificate is not None
    assert made.certificate.verdict is Verdict.PROVED
    assert made.positions <= 32
    assert made.verify().verdict is Verdict.PROVED


def test_gates_for_a_length_are_no_steeper_than_its_error_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """What float64 bears at most, 4e5, would lose the head in float32, whose scores it would round by 0.02."""
    sphere = Sphere(2)
    target = target_of("abs(x) + y*z", sphere)
    request = Request(positions=24, tolerance=None)
    monkeypatch.setattr(adaptive.Branches, "of", lambda *_: None)
    gentle = Adaptive().draft(target, sphere, request, rng=np.random.default_rng(0))
    monkeypatch.setattr(gates, "GENTLER", ())
    steep = Adaptive().draft(target, sphere, request, rng=np.random.default_rng(0))
    assert isinstance(gentle, Draft)
    assert isinstance(steep, Draft)
    assert gentle.sampled <= 1.2 * steep.sampled
    assert np.abs(gentle.head.keys).max() < np.abs(steep.head.keys).max() / 100


@pytest.mark.parametrize(
    ("text", "domain", "planes"),
    [
        ("abs(x**2 - 0.25)", Cube([(-1, 1)]), [(1.0, -0.5), (1.0, 0.5)]),
        ("max(exp(x), 1) * y", Cube([(-1, 1)] * 2), [(1.0, 0.0, 0.0)]),
        ("abs(sin(x - y))", Cube([(0, 2)] * 2), [(0.5**0.5, -(0.5**0.5), 0.0)]),
        ("min(tanh(3*x0 + 4*x2), 0.5)", Sphere(3), [(0.6, 0.0, 0.8, 0.0, math.atanh(0.5) / 5)]),
        ("max(x*y, x)", Cube([(-1, 2)] * 2), [(1.0, 0.0, 0.0), (0.0, 1.0, 1.0)]),
        ("abs(x**2 - y**2)", Cube([(-1, 1)] * 2), [(0.5**0.5, 0.5**0.5, 0.0), (0.5**0.5, -(0.5**0.5), 0.0)]),
        ("abs(x**2)", Cube([(-1, 1)]), []),  # it vanishes, and does not change its sign
        ("abs(sin(200*x))", Cube([(-1, 1)]), []),  # too many for gates
        ("abs(x*y - 0.2)", Cube([(-1, 1)] * 2), []),
    ],
)
def test_what_vanishes_along_one_direction_is_a_kink(
    text: str, domain: Sphere | Cube, planes: list[tuple[float, ...]]
) -> None:
    found, known = kinks_of(target_of(text, domain), domain, np.random.default_rng(0))
    told = [np.array([*normal, offset]) for normal, offset in found]
    assert len(told) == len(planes)
    for plane in planes:  # a hyperplane has two normals
        assert min(np.abs(sign * one - plane).max() for one in told for sign in (1, -1)) < 1e-10
    assert known == ("read from the expression" if planes else "none")


def test_kinks_that_are_not_affine_take_gates() -> None:
    """Thousands of soft nearest neighbours, and no proof, before such kinks were seen."""
    made = compile_function("max(0.6 - exp(x), 0)", Cube([(-1, 1)]), tolerance=1e-3)
    assert made.certificate is not None
    assert made.certificate.verdict is Verdict.PROVED
    assert made.positions <= 16
