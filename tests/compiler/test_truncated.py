"""Models, in balls and in doubles: a function's values lie within the rest of its polynomial; nothing else passes."""

from __future__ import annotations

import numpy as np
import pytest
from flint import arb
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.compiler.balls import BALLS, as_balls, precise
from foreword.compiler.doubles import DOUBLES
from foreword.compiler.expression import Node
from foreword.compiler.functions import enclose
from foreword.compiler.numbers import System
from foreword.compiler.parser import parse_expression
from foreword.compiler.truncated import Model, space_of
from foreword.errors import CertificateError

FLOAT64 = 1e-12
"""More than the roundings of the float64 evaluations below, on values of at most a few hundred."""

TEXTS = [
    "exp(x*y) + x**3",
    "sin(2*x - y) * cos(x*y)",
    "tan(0.5*x) + tanh(x - y)",
    "arctan(2*x*y) - arcsin(0.3*x) + arccos(0.4*y)",
    "erf(2*x - y) - sinc(x*y) * sinc(3*x + 2)",
    "log(3 + x*y) / (2.5 + x) + sqrt(2.2 + y)",
    "sinh(x) - cosh(y) + (2 + x)**-2 + (x - y)**4",
    "abs(x - 0.1*y) + max(x, y**2) - min(x, 0.2) * pi",
]


SYSTEMS: dict[str, System] = {"balls": BALLS, "doubles": DOUBLES}
both = pytest.mark.parametrize("system", SYSTEMS.values(), ids=SYSTEMS)


def columns(order: int, centres: np.ndarray, halves: np.ndarray, system: System = BALLS) -> list[Model]:
    space = space_of(len(centres), order, system)
    nothing = system.zeros(centres.shape[1])
    pairs = zip(system.exact(centres), system.exact(halves), strict=True)
    return [space.along(axis, [centre, half], nothing) for axis, (centre, half) in enumerate(pairs)]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SYSTEMS)),
    st.sampled_from(TEXTS),
    st.integers(1, 9),
    st.floats(1e-4, 0.4),
    st.integers(0, 10**6),
)
def test_every_value_lies_in_the_model_and_in_its_range(
    name: str, text: str, order: int, half: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    centres, halves = rng.uniform(-1, 1, (2, 3)), rng.uniform(0.1 * half, half, (2, 3))
    expression = parse_expression(text, 2)
    local = np.concatenate([rng.uniform(-1, 1, (60, 2)), [[-1, -1], [-1, 1], [1, -1], [1, 1], [0, 0]]])
    with precise(order):
        model = enclose(expression.outputs, columns(order, centres, halves, SYSTEMS[name]))[0]
        low, high = (end.astype(np.float64) for end in model.range())
        coefficients, rest = model.coefficients.astype(np.float64), model.rest.astype(np.float64)
    for cell in range(3):
        values = expression.evaluate(centres[:, cell] + halves[:, cell] * local)[:, 0]
        if np.isnan(rest[cell]):
            continue  # no claim is made; the next test shows that this does not happen where the cells are small
        monomials = (local[:, None, :] ** model.space.exponents).prod(axis=2)
        assert np.abs(values - monomials @ coefficients[:, cell]).max() <= rest[cell] + FLOAT64
        assert low[cell] - FLOAT64 <= values.min()
        assert values.max() <= high[cell] + FLOAT64


@both
@pytest.mark.parametrize("text", TEXTS[:-1])
def test_the_rest_of_a_smooth_function_shrinks_with_the_order_of_the_cell(text: str, system: System) -> None:
    """Halving a cell divides the rest by 2^order, as Taylor's theorem says; half of that is asked for."""
    outputs, centres = parse_expression(text, 2).outputs, np.array([[0.2], [-0.3]])
    with precise(6):
        rests = [
            float(enclose(outputs, columns(6, centres, np.full((2, 1), half), system))[0].rest[0])
            for half in (0.02, 0.01)
        ]
    assert rests[1] <= rests[0] / 2**5
    assert rests[0] < 1e-6


@both
@pytest.mark.parametrize("text", ["log(x)", "sqrt(x)", "1/x", "tan(x + pi/2)", "arcsin(1 + x)", "x**-3",
                                  "arctan(sqrt(x))", "tanh(log(x))", "sin(log(0.1 + x))", "arctan(1/x)",
                                  "exp(-log(0.1 + x))", "sqrt(sin(x))", "(0.1 + x) * log(0.1 + x)"])  # fmt: skip
def test_a_function_that_does_not_exist_everywhere_has_no_bound(text: str, system: System) -> None:
    """NaN is below nothing: a comparison with it can only fail a cell."""
    known = np.array([[0.0]]), np.array([[0.1]])
    with precise(5), np.errstate(all="ignore"):
        model = enclose(parse_expression(text, 1).outputs, columns(5, *known, system))[0]
        low, high = model.range()
    assert not high[0] <= 1e300
    assert not low[0] >= -1e300


ROOTS = {
    "sqrt(x**2 + y**2)": True,
    "sqrt(x*x + 2*y**2)": True,
    "sqrt(abs(x*y) + cosh(x) * y**4 / (1 + y**2))": True,
    "sqrt(max(x, y**2) * arccos(y))": True,
    "sqrt(x**2 - y**2)": False,
    "sqrt(x * y)": False,
    "sqrt(x**3 + y**2)": False,
    "sqrt(min(x, y**2))": False,
    "sqrt(x**2 / y)": False,
    "sqrt(abs(log(x)))": False,
    "sqrt(0.3 + x) + (0.3 - x)**0.7": True,
    "arccos(1 - (0.3 - y)) + sqrt((0.3 - x) * (0.3 + x))": True,
    "sqrt(1 - cos(y)) + sqrt(sin(0.3 + x))": True,
    "sqrt(exp(0.3 + x) - 1) * sqrt(tan(0.3 - y))": True,
}


@both
@pytest.mark.parametrize(("text", "is_bounded"), ROOTS.items())
def test_a_root_that_touches_0_is_bounded_where_its_argument_is_sure_not_to_be_negative(
    text: str, is_bounded: bool, system: System
) -> None:
    expression, local = parse_expression(text, 2), np.random.default_rng(0).uniform(-0.3, 0.3, (200, 2))
    with precise(5), np.errstate(all="ignore"):
        sides = [(as_balls(np.array([-0.3])), as_balls(np.array([0.3])))] * 2
        model = enclose(expression.outputs, columns(5, np.zeros((2, 1)), np.full((2, 1), 0.3), system), lambda: sides)[
            0
        ]
        low, high = (float(end.astype(np.float64)[0]) for end in model.range())
    if not is_bounded:
        assert not high <= 1e300
        return
    values = expression.evaluate(np.concatenate([local, [[0.0, 0.0], [0.3, 0.3], [-0.3, 0.3]]]))[:, 0]
    assert low <= values.min() <= values.max() <= high <= 2.5 * values.max()
    assert not np.isnan(values).any()


def test_a_sign_that_is_certain_costs_nothing_and_an_uncertain_one_only_its_own_side() -> None:
    with precise(4):
        model = enclose(
            parse_expression("abs(x)", 1).outputs, columns(4, np.array([[0.5, 0.1]]), np.array([[0.4, 0.1]]))
        )[0]
        assert model.rest[0] == 0
        assert float(model.rest[1]) < 1e-9  # the cell ends at the kink, up to Arb's radius
        crossing = enclose(parse_expression("abs(x)", 1).outputs, columns(4, np.array([[0.0]]), np.array([[0.1]])))[0]
    assert float(crossing.rest[0]) == pytest.approx(0.05, rel=1e-6)  # half the best line's gap: h/2


def test_what_the_checker_does_not_know_is_refused() -> None:
    variable = Node("variable", value=0)
    with precise(3):
        known = columns(3, np.array([[0.0]]), np.array([[1.0]]))
        for node in (
            Node("gamma", (variable,)),
            Node("variable", value=1),
            Node("power", (variable,), 10**6),
            Node("add", (variable,)),
        ):
            with pytest.raises(CertificateError):
                enclose([node], known)


def test_precision_is_put_back() -> None:
    from flint import ctx

    before = ctx.prec, ctx.cap
    with precise(30):
        assert ctx.prec > before[0]
    assert (ctx.prec, ctx.cap) == before
    assert arb(1).is_exact()
