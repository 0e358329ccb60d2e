"""Sharp ranges hold every value, move no end that is exact, and know nothing of what may not exist."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foreword.compiler.domain import Cube, Sphere, frame_along
from foreword.compiler.intervals import Interval, point
from foreword.compiler.parser import parse_expression
from foreword.compiler.sharp import SharpRanges, add, divide, multiply, power

NUMBERS = st.floats(-1e100, 1e100) | st.floats(-4, 4) | st.integers(-64, 64).map(lambda n: n / 16)


@settings(max_examples=150, deadline=None)
@given(NUMBERS, NUMBERS, st.integers(0, 9))
@example(6.5980930324135574e-127, 0.0, 2)  # a square whose rounding is not known exactly
def test_an_end_is_the_exact_result_or_next_to_it(a: float, b: float, exponent: int) -> None:
    x, y = Fraction(a), Fraction(b)
    with np.errstate(all="ignore"):
        found = [(add(point(a), point(b)), x + y, True), (multiply(point(a), point(b)), x * y, True)]
        found += [(divide(point(a), point(b)), x / y, True)] if b else []
        found += [(power(point(a), exponent), x**exponent, exponent < 3)]
    for interval, exact, is_one_operation in found:
        low, high = float(interval.lo), float(interval.hi)
        assert (Fraction(low) if np.isfinite(low) else -np.inf) <= exact
        assert exact <= (Fraction(high) if np.isfinite(high) else np.inf)
        is_double = abs(exact) < 1e290 and Fraction(float(exact)) == exact
        if is_one_operation and is_double and all(n == 0 or abs(n) > 1e-240 for n in (x, y, exact)):
            assert low == high
        if is_one_operation and np.isfinite([low, high]).all():
            assert high <= np.nextafter(np.nextafter(low, np.inf), np.inf)


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_products_and_quotients_of_intervals_hold_those_of_their_ends(a: float, b: float, c: float, d: float) -> None:
    one, other = (Interval(np.array(min(p)), np.array(max(p))) for p in ((a, b), (c, d)))
    with np.errstate(all="ignore"):
        product, quotient = multiply(one, other), divide(one, other)
    for x in (Fraction(a), Fraction(b)):
        for y in (Fraction(c), Fraction(d)):
            assert Fraction(float(product.lo)) <= x * y <= Fraction(float(product.hi))
            if not np.isnan(quotient.lo):
                assert float(quotient.lo) <= x / y <= float(quotient.hi)
    assert np.isnan(quotient.lo) == (other.lo <= 0 <= other.hi)


TOUCHING = {
    "sqrt(1 - x**2) + arccos(x)": Cube([(-1, 1)]),
    "sqrt((x/3 + 1) * (1 - x/3))": Cube([(-3, 3)]),
    "sqrt(x*(1 - x)) + x**0.7 + x**1.5": Cube([(0, 1)]),
    "sqrt(sin(x)) + sqrt(1 - cos(x)) + sqrt(exp(x) - 1)": Cube([(0, 3)]),
    "arcsin(0.5*x + 0.5) + sqrt(log(2 + x))": Cube([(-1, 1)]),
    "sqrt(1 - z) + arccos(y) + sqrt(abs(x))": Sphere(2),
    "sqrt(max(x - 0.3, 0)) + sqrt(tanh(abs(y)))": Cube([(-1, 1)] * 2),
}


@pytest.mark.parametrize(("text", "domain"), TOUCHING.items())
def test_a_function_whose_roots_touch_0_has_a_range_up_to_the_sides(text: str, domain: Cube | Sphere) -> None:
    """Widths of one cell: the whole box, and cells of all sizes at each side of it."""
    node, (low, high) = parse_expression(text, domain.columns).outputs[0], domain.box.T
    share = np.concatenate([np.geomspace(1e-16, 1, 9)])[:, None]
    lower = np.concatenate([np.repeat(low[None], 9, axis=0), high - share * (high - low)])
    upper = np.concatenate([low + share * (high - low), np.repeat(high[None], 9, axis=0)])
    with np.errstate(all="ignore"):
        found = SharpRanges(domain, None, lower, upper).of(node)
    assert np.isfinite(found.lo).all()
    assert np.isfinite(found.hi).all()
    inside = lower[:, None] + np.linspace(0, 1, 20)[:, None] * (upper - lower)[:, None]
    points = domain.embed(np.clip(inside, lower[:, None], upper[:, None]).reshape(-1, domain.dimension))
    values = parse_expression(text, domain.columns).evaluate(points).reshape(18, 20)
    assert np.all((found.lo[:, None] - 1e-7 <= values) & (values <= found.hi[:, None] + 1e-7))


@pytest.mark.parametrize(
    "text",
    ["sqrt(x - 1e-300)", "arctan(sqrt(x**2 - 1e-300))", "tanh(log(-x))", "sin(log(x))", "arctan(1/x)", "x*log(x)",
     "arccos(1 + x**2)", "max(0, sqrt(x - y))", "exp(-log(x)*y)"],
)  # fmt: skip
def test_what_may_not_exist_on_a_cell_has_no_range(text: str) -> None:
    node = parse_expression(text, 2).outputs[0]
    cells = np.array([[0.0, 0.0]]), np.array([[0.25, 0.25]])
    with np.errstate(all="ignore"):
        found = SharpRanges(Cube([(0, 1)] * 2), None, *cells).of(node)
    assert not np.isfinite(found.lo + found.hi).any()


def test_a_frame_keeps_columns_between_minus_1_and_1() -> None:
    frame = frame_along([1.0, 2.0, 3.0])
    low, high = Sphere(2).box.T
    found = SharpRanges(Sphere(2), frame, low[None], high[None]).of(parse_expression("sqrt(1 + y)", 3).outputs[0])
    assert found.lo[0] == 0.0
    assert np.sqrt(2) <= found.hi[0] < np.sqrt(2) + 1e-15
