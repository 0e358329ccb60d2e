"""The checker's doubles: what is called a bound is one, seen from Arb's balls of 200 bits and from exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx

from foreword.compiler.doubles import DOUBLES, LARGEST, SMALLEST, TINY, UNIT


def test_the_exponential_is_within_its_unit() -> None:
    """Also where x is near a multiple of half of log 2, where the reduction changes, and where it would overflow."""
    rng = np.random.default_rng(0)
    borders = (np.arange(-900, 900) + 0.5) * np.log(2)
    points = np.concatenate([
        rng.uniform(-1, 1, 2000), rng.uniform(SMALLEST, LARGEST, 4000), borders, np.nextafter(borders, 0),
        [0.0, SMALLEST, LARGEST, 1e-320, -1e-320],
    ])  # fmt: skip
    points = points[(points >= SMALLEST) & (points <= LARGEST)]
    with ctx.workprec(200):
        for point, found in zip(points.tolist(), DOUBLES.exp(points).tolist(), strict=True):
            exact = arb(point).exp()
            assert abs(arb(found) - exact) <= exact * DOUBLES.exp_unit


def test_the_exponential_is_nothing_below_infinite_above_and_no_number_of_none() -> None:
    found = DOUBLES.exp(np.array([np.nextafter(SMALLEST, -np.inf), -np.inf, np.nextafter(LARGEST, np.inf), np.inf]))
    assert found.tolist() == [0.0, 0.0, np.inf, np.inf]
    assert np.isnan(DOUBLES.exp(np.array([np.nan])))[0]
    with ctx.workprec(200):
        assert arb(SMALLEST).exp() < arb(TINY)
        assert arb(float(DOUBLES.exp_above(np.array([-1e300]))[0])) > arb(-1e4).exp()


def test_sums_of_bounds_are_rounded_up() -> None:
    """2^15 numbers of very different sizes, added one after the other: an ordinary sum loses the small ones."""
    rng = np.random.default_rng(1)
    numbers = np.concatenate([[1.0], 10.0 ** rng.uniform(-17, -16, 2**15)])
    total = np.cumsum(numbers)[-1]
    exact = sum(map(Fraction, numbers.tolist()), Fraction(0))
    assert Fraction(float(total)) < exact <= Fraction(float(DOUBLES.up(total)))


def test_what_a_product_of_matrices_loses_is_below_what_is_said_of_it() -> None:
    """With cancellation: entries of about 1 whose products add up to almost nothing."""
    rng = np.random.default_rng(2)
    left = rng.normal(size=(4, 300))
    right = np.concatenate([rng.normal(size=(299, 3)), np.zeros((1, 3))])
    right[-1] = -(left[0, :299] @ right[:299]) / left[0, 299]
    said = DOUBLES.lost(np.abs(left) @ np.abs(right), 300)
    for (row, column), found in np.ndenumerate(left @ right):
        pairs = zip(left[row].tolist(), right[:, column].tolist(), strict=True)
        exact = sum((Fraction(a) * Fraction(b) for a, b in pairs), Fraction(0))
        assert abs(Fraction(float(found)) - exact) <= Fraction(float(said[row, column]))
    assert said.max() < 300 * 4 * 300 * UNIT  # and not much more than that


@pytest.mark.parametrize("text", ["0.1", "1e-300", "123456.789", "-3.3"])
def test_a_ball_is_within_the_error_of_the_double_that_it_is_split_into(text: str) -> None:
    with ctx.workprec(128):
        ball = arb(text) + arb(0, 1e-30)
        value, error = DOUBLES.split([ball])
        assert abs(ball - arb(float(value[0]))) <= arb(float(error[0]))
        assert DOUBLES.upper([ball])[0] >= value[0]
        assert arb(float(DOUBLES.upper([ball])[0])) >= ball
