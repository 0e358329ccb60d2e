"""A target says what is known of it, gives values that can be trusted, and refuses what is no function of a point."""

from __future__ import annotations

import itertools
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from foreword.compiler.catalogue import CATALOGUE
from foreword.compiler.domain import Cube, FiniteSet, Sphere
from foreword.compiler.parser import parse_expression
from foreword.compiler.target import Target, target_of
from foreword.errors import CompileError

SPHERE = Sphere(2)
RNG = np.random.default_rng(0)
POINTS = SPHERE.sample(100, np.random.default_rng(1))


def test_every_way_to_name_a_target_gives_the_same_values() -> None:
    expected = np.sin(POINTS[:, :1]) * POINTS[:, 1:2]
    found = [
        target_of("sin(x) * y", SPHERE),
        target_of(parse_expression("sin(x) * y", 3), SPHERE),
        target_of(lambda x: np.sin(x[:, 0]) * x[:, 1], SPHERE),
        target_of(Target(expression=parse_expression("sin(x) * y", 3), domain=SPHERE)),
        Target(expression="sin(x) * y", domain=SPHERE),  # type: ignore[arg-type]
    ]
    for target in found:
        assert np.array_equal(target.evaluate(POINTS), expected)
        assert target.outputs == 1
        assert target.expression is not None


def test_a_batch_of_numbers_and_a_batch_of_rows_are_both_values() -> None:
    assert Target(lambda x: x[:, 0], domain=SPHERE).evaluate(POINTS).shape == (100, 1)
    assert Target(lambda x: x[:, :2], domain=SPHERE).evaluate(POINTS).shape == (100, 2)
    assert Target(lambda x: (x[:, 0] > 0).tolist(), domain=SPHERE).evaluate(POINTS).dtype == np.float64
    assert Target(lambda x: x[:, :2], domain=SPHERE).outputs == 2


def test_a_function_cannot_change_the_points_it_is_given() -> None:
    def greedy(x: Any) -> Any:
        x[:] = 0.0
        return x[:, 0]

    points = POINTS.copy()
    Target(greedy, domain=SPHERE).evaluate(points)
    assert np.array_equal(points, POINTS)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: x[:, 0] / 0.0, "not finite"),
        (lambda x: np.where(x[:, 0] > 0, np.nan, 0.0), "not finite"),
        (lambda x: np.log(x[:, 0]), "not finite"),
        (lambda x: np.ma.masked_where(x[:, 0] > 0.5, x[:, 0]), "not finite"),
        (lambda _: 1.0, "wrong shape"),
        (lambda x: x.sum(axis=0), "wrong shape"),
        (lambda x: x[:, :, None], "wrong shape"),
        (lambda x: x[:, :0], "wrong shape"),
        (lambda x: x[1:, 0], "wrong shape"),
        (lambda x: x[:, 0] + 1j, "real numbers"),
        (lambda x: ["a"] * len(x), "real numbers"),
        (lambda _: [[1.0], [2.0, 3.0]], "real numbers"),
        (lambda _: None, "real numbers"),
        (lambda x: torch.tensor(x[:, 0], requires_grad=True), "real numbers"),
        (lambda x: x[:, 7], "raised an error"),
        (lambda x, y: x + y, "raised an error"),
        (lambda x: np.random.default_rng().random(len(x)), "not a function of each point"),
        (lambda x: x[:, 0] - x[:, 0].mean(), "not a function of each point"),
        (lambda x: np.arange(len(x)), "not a function of each point"),
    ],
)
def test_a_function_that_gives_no_values_is_refused_by_what_it_gave(function: Any, what: str) -> None:
    for call in (lambda: target_of(function, SPHERE), lambda: Target(function, domain=SPHERE).evaluate(POINTS)):
        with pytest.raises(CompileError) as caught:
            call()
        assert what in caught.value.what
        assert caught.value.found


def test_a_function_with_state_is_refused() -> None:
    count = itertools.count()
    with pytest.raises(CompileError, match="not a function of each point"):
        target_of(lambda x: x[:, 0] + next(count), SPHERE)


def test_rounding_that_depends_on_the_batch_is_borne_and_noise_of_that_size_is_not() -> None:
    assert target_of(lambda x: x[:, 0] + 1e-7 * (len(x) > 50), SPHERE).outputs == 1
    count = itertools.count()
    with pytest.raises(CompileError, match="not a function of each point"):
        target_of(lambda x: x[:, 0] + 1e-7 * math.sin(next(count)), SPHERE)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 4), (2, 3, 1)])
def test_points_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CompileError, match="wrong shape"):
        target_of("x", SPHERE).evaluate(np.zeros(shape))


def test_a_value_that_is_not_finite_is_named_with_its_point() -> None:
    with pytest.raises(CompileError, match=r"inf.* at \[0\.0, 1\.0\]"):
        target_of("1 / x", Cube([(-1, 1)] * 2)).evaluate(np.array([[0.5, 0.5], [0.0, 1.0]]))


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({}, "needs values"),
        ({"expression": "x", "lipschitz": -1.0}, "'lipschitz' cannot be"),
        ({"expression": "x", "lipschitz": float("nan")}, "'lipschitz' cannot be"),
        ({"expression": "x", "second": float("inf")}, "'second' cannot be"),
        ({"expression": "x", "metric": "taxi"}, "metric is unknown"),
        ({"expression": parse_expression("x", 2)}, "another number of coordinates"),
        ({"expression": "x + w"}, 'no name "w"'),
        ({"expression": "x", "kinks": [((0, 0, 0), 0)]}, "hyperplane"),
        ({"expression": "x", "kinks": [((1, 0), 0)]}, "hyperplane"),
        ({"expression": "x", "kinks": [((1, 0, np.nan), 0)]}, "hyperplane"),
        ({"expression": "x", "kinks": [3]}, "hyperplane"),
        ({"expression": "x", "lipschitz": "1"}, "'lipschitz' cannot be"),
        ({"expression": "x", "lipschitz": True}, "'lipschitz' cannot be"),
        ({"expression": "x", "kinks": None}, "not a list"),
        ({"expression": "x", "gradient": 5}, "gradient is no function"),
        ({"function": 5}, "The target.s function is no function"),
        ({"expression": "x", "domain": None}, "domain is none"),
        ({"expression": "x", "domain": "S2"}, "domain is none"),
        ({"samples": np.zeros(3)}, "values at the points of a table"),
    ],
)
def test_facts_that_cannot_be_are_refused_when_the_target_is_made(facts: dict[str, Any], what: str) -> None:
    with pytest.raises(CompileError, match=what):
        Target(**{"domain": SPHERE, **facts})


def test_constants_of_numpy_are_constants_and_stand_in_a_claim_as_numbers() -> None:
    target = Target(expression="x", domain=SPHERE, lipschitz=np.int64(2), second=np.float32(0.5))  # type: ignore[arg-type]
    assert json.loads(json.dumps(target.as_dict()))["lipschitz"] == 2.0
    assert (type(target.lipschitz), type(target.second)) == (float, float)


@pytest.mark.parametrize("thing", [3, None, object(), ["x"]])
def test_what_is_no_target_is_refused(thing: Any) -> None:
    with pytest.raises(CompileError, match="no target"):
        target_of(thing, SPHERE)


def test_a_domain_is_needed_unless_the_target_has_one() -> None:
    with pytest.raises(CompileError, match="domain is missing"):
        target_of("x")
    target = Target(expression="x", domain=SPHERE)  # type: ignore[arg-type]
    assert target_of(target).domain is SPHERE
    assert target_of(target, lipschitz=2.0).lipschitz == 2.0


def test_a_given_expression_that_is_not_the_function_is_refused_at_the_worst_point() -> None:
    with pytest.raises(CompileError, match="are not the same"):
        target_of(lambda x: x[:, 0], SPHERE, expression="y")
    target = target_of(lambda x: x[:, 0], SPHERE, expression="x")
    assert not target.is_traced
    assert [(entry.code, entry.standing) for entry in target.assumptions] == [("expression", "declared")]


def test_a_table_gives_its_own_values_and_no_others() -> None:
    points = np.array([[0.0, 1.0], [2.0, 3.0], [-0.0, 4.0]])
    target = target_of(np.array([5.0, 6.0, 7.0]), FiniteSet(points))
    assert target.evaluate(points[::-1]).tolist() == [[7.0], [6.0], [5.0]]
    assert target.evaluate(np.array([[0.0, 4.0]])).tolist() == [[7.0]]
    assert target.outputs == 1
    with pytest.raises(CompileError, match="does not hold"):
        target.evaluate(np.array([[0.5, 1.0]]))
    with pytest.raises(CompileError, match="wrong shape"):
        target_of(np.zeros(4), FiniteSet(points))
    with pytest.raises(CompileError, match="not finite"):
        target_of(np.array([0.0, np.nan, 0.0]), FiniteSet(points))


def test_what_is_only_assumed_is_named_with_its_standing() -> None:
    traced = target_of(lambda x: x[:, 0], SPHERE, lipschitz=1.0)
    assert [(entry.code, entry.standing) for entry in traced.assumptions] == [
        ("expression", "sampled"),
        ("lipschitz", "declared"),
    ]
    assert target_of("x", SPHERE).assumptions == ()
    black = Target(lambda x: x[:, 0], domain=SPHERE, second=1.0, third=2.0, gradient=np.ones_like, hessian=np.ones_like)
    assert [entry.code for entry in black.assumptions] == ["gradient", "hessian", "second", "third"]


def test_what_is_known_is_told_in_a_line_and_in_json() -> None:
    target = target_of("abs", SPHERE)
    assert target.regularity == "expression, Lipschitz constant 1 (euclidean), smooth off 1 hyperplane"
    assert Target(lambda x: x[:, 0], domain=SPHERE).regularity == "values only"
    told = json.loads(json.dumps(target.as_dict()))
    assert told["expression"] == "abs(x)"
    assert told["kinks"] == [[[1.0, 0.0, 0.0], 0.0]]


def test_kinks_are_stored_with_unit_normals() -> None:
    target = Target(expression="abs(3*x - 1)", domain=SPHERE, kinks=(((3, 0, 0), 1),))  # type: ignore[arg-type]
    assert target.kinks == (((1.0, 0.0, 0.0), 1 / 3),)


DOMAINS = (
    Sphere(1), Sphere(2), Sphere(3), Cube([(-1, 1)]), Cube([(-1, 1)] * 2), Cube([(0, 1)] * 2), Cube([(-3, 1)] * 3)
)  # fmt: skip


def listed(name: str, domain: Any) -> Target | None:
    """The catalogue's target, or None where it says that it does not exist on the domain."""
    entry = CATALOGUE[name]
    if not entry.least <= domain.columns <= (entry.most or domain.columns):
        with pytest.raises(CompileError, match="does not exist on this domain"):
            target_of(name, domain)
        return None
    if entry.has_poles and domain != Cube([(0, 1)] * 2):
        with pytest.raises(CompileError, match="does not exist on this domain"):
            target_of(name, domain)
        return None
    return target_of(name, domain)


@pytest.mark.parametrize("name", CATALOGUE)
def test_no_two_points_contradict_a_catalogues_lipschitz_constant(name: str) -> None:
    found = 0
    for domain in DOMAINS:
        target = listed(name, domain)
        if target is None:
            continue
        rng = np.random.default_rng(0)
        points = domain.sample(4_000, rng)
        if target.lipschitz is not None:
            near = points + 1e-4 * rng.normal(size=points.shape)  # off the domain by 1e-4, hence the 1%
            assert target.expression is not None
            gap = np.abs(target.expression.evaluate(near) - target.evaluate(points)).max(axis=1)
            steepest = (gap / np.linalg.norm(near - points, axis=1)).max()
            assert steepest <= 1.01 * target.lipschitz
            found += 1
        extremes = CATALOGUE[name].extremes(domain.columns)
        if isinstance(domain, Sphere) and extremes is not None:
            values = target.evaluate(points)
            assert extremes[0] - 1e-12 <= values.min() < extremes[0] + 0.35
            assert extremes[1] - 0.35 < values.max() <= extremes[1] + 1e-12
    assert found >= 1


@pytest.mark.parametrize("name", ["abs", "max", "continuous"])
def test_a_catalogues_target_is_smooth_off_its_kinks(name: str) -> None:
    target = target_of(name, SPHERE)
    points = SPHERE.sample(4_000, np.random.default_rng(0))
    step = 1e-3
    distance = np.min([np.abs(points @ np.array(normal) - offset) for normal, offset in target.kinks], axis=0)
    away = points[distance > 2 * step]
    assert target.expression is not None
    for axis in np.eye(3) * step:
        bend = (
            target.expression.evaluate(away + axis)
            - 2 * target.expression.evaluate(away)
            + target.expression.evaluate(away - axis)
        )
        # A second difference is at most 9 step^2 by the second derivative of exp(-3|t|); a kink leaves order step.
        assert np.abs(bend).max() < 10 * step**2


def test_a_constant_is_not_given_where_it_is_not_proved() -> None:
    assert target_of("franke", Cube([(0, 1)] * 2)).lipschitz == 7.34
    assert target_of("franke", Cube([(-1, 1)] * 2)).lipschitz is None
    assert target_of("harm", Sphere(2)).lipschitz == 3.0
    assert target_of("harm", Cube([(-1, 1)] * 2)).lipschitz == 6.0
    with pytest.raises(CompileError, match="does not exist"):
        target_of("corner", SPHERE)
