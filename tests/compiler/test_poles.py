"""Poles between the samples are found before any work; what only looks like one is not."""

from __future__ import annotations

import numpy as np
import pytest

from foreword.compiler.checks import check
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.pipeline import compile_function
from foreword.compiler.poles import pole_of
from foreword.compiler.target import target_of
from foreword.errors import CompileError

LINE, SQUARE = Cube([(-1, 1.25)]), Cube([(-1, 1), (-2, 1)])


@pytest.mark.parametrize(
    ("text", "domain", "divisor", "where"),
    [
        ("1/x", LINE, "x", [0.0]),
        ("2 + x**-2", LINE, "x", [0.0]),
        ("exp(x) / (x - 0.3)**3", LINE, "x - 0.3", [0.3]),
        ("tan(2*x)", Cube([(0, 1)]), "cos(2 * x)", [np.pi / 4]),
        ("[x, 1 / abs(y)]", SQUARE, "y", [None, 0.0]),
        ("x / (x + 0.5*z)", Sphere(2), "x + 0.5 * z", None),
        ("1 / sin(3*x0)", Sphere(3), "sin(3 * x0)", [0.0, None, None, None]),
    ],
)
def test_a_divisor_of_both_signs_beside_which_a_target_grows_is_a_pole(
    text: str, domain: Sphere | Cube, divisor: str, where: list[float | None] | None
) -> None:
    check_pole(text, domain, divisor, where, within=1e-9)


@pytest.mark.parametrize(
    ("text", "domain", "divisor", "where"),
    [
        ("1 / (x**2 + (y + 0.5)**2)", SQUARE, "x**2 + (y + 0.5)**2", [0.0, -0.5]),
        ("1 / (2 + 4*x**2 + y)", SQUARE, "2 + 4 * x**2 + y", [0.0, -2.0]),
        ("3 / sqrt(x**2 + y**2)", SQUARE, "x**2 + y**2", [0.0, 0.0]),
        ("x / (1 - z)", Sphere(2), "1 - z", [0.0, 0.0, 1.0]),
    ],
)
def test_so_is_one_of_one_sign_that_touches_zero(
    text: str, domain: Sphere | Cube, divisor: str, where: list[float | None]
) -> None:
    """Where a square is 0 in doubles, its root is known to half of their digits."""
    check_pole(text, domain, divisor, where, within=1e-7)


def check_pole(
    text: str, domain: Sphere | Cube, divisor: str, where: list[float | None] | None, *, within: float
) -> None:
    target = target_of(text, domain)
    assert target.expression is not None
    pole = pole_of(target.expression, domain, domain.sample(2_000, np.random.default_rng(0)))
    assert pole is not None
    assert pole.divisor == divisor
    assert pole.magnitude > 1e6
    domain.check(pole.at[None])
    for found, wanted in zip(pole.at, where or [], strict=where is not None):
        assert wanted is None or found == pytest.approx(wanted, abs=within)


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("sin(x) / x", LINE),
        ("(1 - cos(x)) / x**2", LINE),
        ("(exp(y) - 1) / y", SQUARE),
        ("x / (x**2 + 0.01)", LINE),
        ("1 / (1.5 + x)", LINE),
        ("tan(x)", LINE),
        ("x / 3", Sphere(2)),
        ("x**2 / (x**2 + y**2 + 1e-6)", SQUARE),
        ("(x**4 + y**4) / (x**2 + y**2)", SQUARE),
        ("1 / (2.001 + 4*x**2 + y)", SQUARE),
        ("x**2 / (1.0001 - z)", Sphere(2)),
        ("x * z / (x + 2)", Sphere(2)),
    ],
)
def test_a_divisor_that_keeps_its_sign_or_is_made_up_for_is_none(text: str, domain: Sphere | Cube) -> None:
    target = target_of(text, domain)
    assert target.expression is not None
    assert pole_of(target.expression, domain, domain.sample(2_000, np.random.default_rng(0))) is None
    assert check(target, domain, tolerance=1e-3, positions=None, method="auto", value_limit=10.0) == []


def test_a_pole_is_refused_with_its_place_before_any_draft() -> None:
    stages: list[object] = []
    with pytest.raises(CompileError, match=r"it divides by x - 0\.25, which is 0 there") as refused:
        compile_function("y / (x - 0.25)", SQUARE, tolerance=1e-2, progress=stages.append)
    assert "beside [0.25, " in refused.value.found
    assert stages == []
