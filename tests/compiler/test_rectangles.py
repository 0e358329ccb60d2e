"""Every enclosure contains what 60-digit arithmetic gives, for every operation, real and complex."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest

from foreword.compiler import intervals, rectangles
from foreword.compiler.intervals import Interval, point
from foreword.compiler.rectangles import OPERATIONS, Rectangle

NAMES = {"arctan": "atan", "arcsin": "asin", "arccos": "acos", "sinc": "sincpi"}
CASES = 60


def _rectangles(rng: np.random.Generator, is_real: bool) -> Rectangle:
    scale = 10 ** rng.uniform(-4, 0.7, CASES)
    low = rng.normal(size=CASES) * 10 ** rng.uniform(-1, 0.5, CASES)
    re = Interval(low, low + scale * rng.random(CASES))
    if is_real:
        return Rectangle(re)
    below = rng.normal(size=CASES) * 10 ** rng.uniform(-2, 0, CASES)
    return Rectangle(re, Interval(below, below + scale * rng.random(CASES)))


def _inside(box: Rectangle, rng: np.random.Generator) -> list[Any]:
    """A corner or a point of each rectangle."""
    share = np.where(rng.random((2, CASES)) < 0.4, rng.integers(0, 2, (2, CASES)), rng.random((2, CASES)))
    x = np.clip(box.re.lo + (box.re.hi - box.re.lo) * share[0], box.re.lo, box.re.hi)
    if box.im is None:
        return [mpmath.mpf(float(a)) for a in x]
    y = np.clip(box.im.lo + (box.im.hi - box.im.lo) * share[1], box.im.lo, box.im.hi)
    return [mpmath.mpc(float(a), float(b)) for a, b in zip(x, y, strict=True)]


def _misses(found: Rectangle, values: list[Any]) -> int:
    misses = 0
    for index, value in enumerate(values):
        lo, hi = np.broadcast_to(found.re.lo, CASES)[index], np.broadcast_to(found.re.hi, CASES)[index]
        misses += not (np.isneginf(lo) or lo <= value.real) or not (np.isposinf(hi) or value.real <= hi)
        if found.im is not None:
            lo, hi = np.broadcast_to(found.im.lo, CASES)[index], np.broadcast_to(found.im.hi, CASES)[index]
            misses += not (np.isneginf(lo) or lo <= value.imag) or not (np.isposinf(hi) or value.imag <= hi)
    return misses


def _domain(name: str, value: Any) -> bool:
    """Whether a real function is defined there."""
    if isinstance(value, mpmath.mpc):
        return True
    return {"log": value > 0, "sqrt": value >= 0, "arcsin": abs(value) <= 1, "arccos": abs(value) <= 1}.get(name, True)


@pytest.mark.parametrize("is_real", [True, False])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_functions_and_their_derivatives_are_enclosed(name: str, is_real: bool) -> None:
    function, derivative = OPERATIONS[name]
    exact = getattr(mpmath, NAMES.get(name, name))
    finite = 0
    with mpmath.workdps(60), np.errstate(all="ignore"):
        for seed in range(4):
            rng = np.random.default_rng(seed)
            box = _rectangles(rng, is_real)
            value = function(box)
            slope = derivative(box, value)
            inside = _inside(box, rng)
            known = [z if _domain(name, z) else None for z in inside]
            values = [mpmath.mpf(0) if z is None else exact(z) for z in known]
            slopes = [mpmath.mpf(0) if z is None or abs(z) == 1 else mpmath.diff(exact, z) for z in known]
            is_known = np.array([z is not None and abs(z) != 1 for z in known])
            everywhere = np.where(is_known, np.zeros(CASES), np.inf)
            assert _misses(_widened(value, everywhere), values) == 0
            assert _misses(_widened(slope, everywhere), slopes) == 0
            finite += int(np.isfinite(value.size()[is_known]).sum())
    assert finite > CASES  # the enclosure says something


def _widened(box: Rectangle, margin: Any) -> Rectangle:
    """Everything where the function is not defined."""
    im = None if box.im is None else Interval(box.im.lo - margin, box.im.hi + margin)
    return Rectangle(Interval(box.re.lo - margin, box.re.hi + margin), im)


@pytest.mark.parametrize("is_real", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_four_operations_and_powers_are_enclosed(seed: int, is_real: bool) -> None:
    rng = np.random.default_rng(seed)
    one, other = _rectangles(rng, is_real), _rectangles(rng, is_real)
    a, b = _inside(one, rng), _inside(other, rng)
    with mpmath.workdps(60), np.errstate(all="ignore"):
        pairs = list(zip(a, b, strict=True))
        assert _misses(one + other, [x + y for x, y in pairs]) == 0
        assert _misses(one - other, [x - y for x, y in pairs]) == 0
        assert _misses(one * other, [x * y for x, y in pairs]) == 0
        assert _misses(one * other.reciprocal(), [x / y for x, y in pairs]) == 0
        assert _misses(one.square(), [x * x for x in a]) == 0
        for exponent in (0, 1, 2, 3, 5, 8, -2):
            assert _misses(rectangles.power(one, exponent), [x**exponent for x in a]) == 0
        assert all(one.least()[i] <= abs(x) <= one.size()[i] for i, x in enumerate(a))


def test_what_cannot_be_bounded_is_infinite_and_never_nan() -> None:
    whole = Interval(np.array([-1.0, -np.inf, 0.0]), np.array([1.0, np.inf, np.inf]))
    with np.errstate(all="ignore"):
        for z in (Rectangle(whole), Rectangle(whole, whole)):
            for function, derivative in OPERATIONS.values():
                found = function(z)
                for box in (found, derivative(z, found), found * found, found.reciprocal(), found - found):
                    for part in (box.re, box.im):
                        assert part is None or not (np.isnan(part.lo).any() or np.isnan(part.hi).any())
        assert np.isinf(Rectangle(whole).reciprocal().size()).all()
        assert np.isinf(intervals.log(whole).lo).all()


def test_what_has_no_negative_factor_is_not_negative_and_an_underflow_hides_no_sign() -> None:
    size = Interval(np.array([0.0, 1e-200, -1e-200]), np.array([2.0, 3.0, 1.0]))
    assert (size * size).lo.tolist()[:2] == [0.0, 0.0]
    assert (size * size).lo[2] < 0
    assert (size.scaled(2.0).lo >= 0.0).tolist() == [True, True, False]
    assert (-size).scaled(-2.0).lo[0] == 0.0
    product = size * Interval(np.full(3, 1e-200), np.full(3, 1e-200))
    assert product.lo[2] < 0  # -1e-400, which rounds to -0.0


def test_the_sine_finds_its_turning_points_and_gives_up_on_huge_arguments() -> None:
    found = intervals.sin(Interval(np.array([1.5, 1.6, 0.0, 1e9]), np.array([1.6, 1.7, 10.0, 1e9])))
    assert found.hi[0] == 1.0 > found.hi[1] > found.lo[1] > 0.99
    assert (found.lo[2:].tolist(), found.hi[2:].tolist()) == ([-1.0, -1.0], [1.0, 1.0])


def test_rounding_is_outward_by_more_than_an_ulp() -> None:
    third = point(np.array([1.0])) * point(np.array([3.0])).reciprocal()
    with mpmath.workdps(40):
        assert mpmath.mpf(float(third.lo[0])) < mpmath.mpf(1) / 3 < mpmath.mpf(float(third.hi[0]))
    assert third.hi[0] - third.lo[0] < 1e-14
