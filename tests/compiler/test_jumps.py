"""A function that jumps is told so before any work; one that is only steep is not taken for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from foreword.compiler.checks import check
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.jumps import jump_of
from foreword.compiler.pipeline import compile_function
from foreword.compiler.target import target_of
from foreword.errors import CompileError

LINE, SQUARE = Cube([(-1, 1)]), Cube([(-1, 1)] * 2)


def hidden(of_row: Callable[..., float]) -> Callable[[np.ndarray], np.ndarray]:
    """A function that no tracing follows."""
    return lambda x: np.array([float(of_row(*map(float, row))) for row in x])


@pytest.mark.parametrize(
    ("function", "domain", "size"),
    [
        (lambda x: np.sign(x[:, 0]), LINE, 2.0),
        (lambda x: np.floor(2 * x[:, 0]) + x[:, 1], SQUARE, 1.0),
        (lambda x: np.sign(x[:, 0] + x[:, 2]), Sphere(3), 2.0),
        (lambda x: np.arctan2(x[:, 1], x[:, 0]), Sphere(1), 2 * np.pi),
        (lambda x: np.stack([x[:, 0], ((x**2).sum(axis=1) < 0.5) * 3.0], axis=1), SQUARE, 3.0),
        (hidden(lambda x: 0.1 * (x > 1e6 + 0.25)), Cube([(1e6, 1e6 + 1)]), None),
        (lambda x: np.round(3 * x[:, 0]).astype(int), Cube([(0, 1)]), 1.0),
    ],
)
def test_a_jump_is_found_with_its_size(
    function: Callable[[np.ndarray], np.ndarray], domain: Sphere | Cube, size: float | None
) -> None:
    target, points = target_of(function, domain), domain.sample(2_000, np.random.default_rng(0))
    jump = jump_of(target, domain, points, target.evaluate(points), 2e-2)
    if size is None:  # doubles are too far apart there to tell a jump from a slope
        assert jump is None
        return
    assert jump is not None
    assert jump.size == pytest.approx(size, rel=1e-6)
    ends = target.evaluate(np.stack([jump.one, jump.other]))
    assert np.abs(ends[0] - ends[1]).max() == jump.size
    assert np.linalg.norm(jump.one - jump.other) < 1e-12


@pytest.mark.parametrize(
    ("function", "domain", "at"),
    [
        (lambda x: np.select([x[:, 0] < 0, x[:, 0] > 0], [1 + x[:, 0], 1 - x[:, 0]]), LINE, [0.0]),
        (lambda x: np.select([x[:, 0] < x[:, 1], x[:, 0] > x[:, 1]], [x[:, 1], x[:, 0]], 9), SQUARE, None),
        (hidden(lambda x, y: 9.0 if x == y else max(x, y)), SQUARE, None),
    ],
)
def test_a_value_of_its_own_where_conditions_turn_is_a_jump(
    function: Callable[[np.ndarray], np.ndarray], domain: Cube, at: list[float] | None
) -> None:
    with pytest.raises(CompileError, match="jumps") as caught:
        compile_function(function, domain, tolerance=1e-2)
    assert at is None or str(at) in str(caught.value)


@pytest.mark.parametrize(
    "function",
    [
        np.cbrt,
        abs,
        lambda x: np.sqrt(abs(x)),
        lambda x: np.tanh(1e6 * x),
        lambda x: 1 / np.log(1e-30 + abs(x) / 4),
        lambda x: np.sin(5 * x),
    ],
)
def test_what_is_only_steep_is_no_jump(function: Callable[[float], float]) -> None:
    target, points = target_of(hidden(function), LINE), LINE.sample(2_000, np.random.default_rng(0))
    assert jump_of(target, LINE, points, target.evaluate(points), 1e-9) is None


def test_a_jump_stands_in_the_way_of_a_tolerance_below_half_of_it() -> None:
    def step(x: np.ndarray) -> np.ndarray:
        return np.where(x[:, 0] > 0.3, 1.0, 0.0)

    with pytest.raises(CompileError, match=r"The target jumps(.|\n)*a change of 1 between(.|\n)*above 0.5"):
        compile_function(step, LINE, tolerance=0.1)
    target = target_of(step, LINE)
    asked = {"method": "auto", "value_limit": 10.0}
    assert check(target, LINE, tolerance=0.6, positions=None, **asked) == []  # type: ignore[arg-type]
    assert check(target, LINE, tolerance=None, positions=4, **asked) == []  # type: ignore[arg-type]
