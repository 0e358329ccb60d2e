"""The few directions of a target: found where they are, none where there are none, within what is allowed."""

from __future__ import annotations

import numpy as np
import pytest

from foreword.compiler.arrays import Floats
from foreword.compiler.construction.directions import few_directions
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.target import Target, target_of


def few(columns: int, count: int, *, seed: int, outputs: int = 1) -> tuple[Target, Target, Floats]:
    """Sums of plane waves in the span of `count` random directions, on a sphere and in a box, and the projection."""
    rng = np.random.default_rng([seed, columns, count])
    directions = np.linalg.qr(rng.normal(size=(columns, columns)))[0][:count]
    waves = 1.5 * rng.normal(size=(count, outputs, count + 3))
    phases = rng.uniform(0, 6, (outputs, count + 3))

    def function(points: Floats) -> Floats:
        return np.asarray(np.cos(np.tensordot(points @ directions.T, waves, axes=1) + phases).sum(axis=2))

    lower = rng.uniform(-2, 0, columns)
    box = Cube(np.stack([lower, lower + rng.uniform(1, 3, columns)], axis=1).tolist())
    return Target(function, domain=Sphere(columns - 1)), Target(function, domain=box), directions.T @ directions


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
@pytest.mark.parametrize(
    ("columns", "count"), [(columns, count) for columns in (2, 3, 4, 6) for count in range(1, columns)]
)
@pytest.mark.parametrize("outputs", [1, 3])
def test_few_directions_are_found(columns: int, count: int, outputs: int, seed: int) -> None:
    on_sphere, in_box, projection = few(columns, count, seed=seed, outputs=outputs)
    for target in (on_sphere, in_box):
        assert isinstance(target.domain, Sphere | Cube)
        found = few_directions(target, target.domain)
        assert len(found) == 1
        assert np.abs(found[0] @ found[0].T - np.eye(count)).max() < 1e-12
        # Directions that are off by delta change the target by its slope, at most 20, times delta.
        assert np.abs(found[0].T @ found[0] - projection).max() < 1e-10


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_targets_of_all_directions_have_none(columns: int) -> None:
    rng = np.random.default_rng(columns)
    waves, phases = 1.5 * rng.normal(size=(columns, columns + 4)), rng.uniform(0, 6, columns + 4)

    def function(points: Floats) -> Floats:
        return np.asarray(np.cos(points @ waves + phases).sum(axis=1))

    for domain in (Sphere(columns - 1), Cube([(-1, 1)] * columns)):
        assert few_directions(Target(function, domain=domain), domain) == []


def test_axes_are_axes_to_the_last_bit() -> None:
    found = few_directions(target_of("sin(3*x0) * exp(-x3**2)", Cube([(-1, 1)] * 5)), Cube([(-1, 1)] * 5))
    assert [each.tolist() for each in found] == [np.eye(5)[[0, 3]].tolist()]


def test_every_mirror_of_a_sphere_is_found() -> None:
    """x^2 y^2 + z is even in x, in y, in x - y and in x + y; on a sphere each may be left out, as |x| = 1."""
    found = few_directions(target_of("x**2 * y**2 + z", Sphere(2)), Sphere(2))
    mirrors = [np.eye(3) - each.T @ each for each in found]
    for normal in ([1, 0, 0], [0, 1, 0], [0.5**0.5, 0.5**0.5, 0], [0.5**0.5, -(0.5**0.5), 0]):
        assert sum(np.abs(mirror - np.outer(normal, normal)).max() < 1e-9 for mirror in mirrors) <= 1
        assert {len(each) for each in found} == {2}
    assert any(np.abs(mirror - np.diag([1, 0, 0])).max() == 0 for mirror in mirrors)
    assert any(np.abs(mirror - np.diag([0, 1, 0])).max() == 0 for mirror in mirrors)


def test_a_direction_is_left_out_where_the_tolerance_allows_it() -> None:
    target = target_of("x + 1e-4 * sin(y + 2 * z) * cos(z - y * x)", Sphere(2))
    assert few_directions(target, Sphere(2)) == []
    assert few_directions(target, Sphere(2), 1e-3) == []
    assert [len(each) for each in few_directions(target, Sphere(2), 1e-1)] == [1]


@pytest.mark.parametrize("text", ["3", "0 * x"])
def test_a_constant_has_no_directions(text: str) -> None:
    assert few_directions(target_of(text, Sphere(2)), Sphere(2)) == []


def test_many_columns_are_not_looked_into() -> None:
    domain = Cube([(-1, 1)] * 40)
    assert few_directions(target_of("sin(x0)", domain), domain) == []
