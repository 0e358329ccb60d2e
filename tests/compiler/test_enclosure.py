"""Bounds over cells are never below the error that sampling finds in them, for any head, chart, order and dimension."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.compiler.balls import BALLS, precise
from foreword.compiler.charts import Chart, Flat, Identity, Paraboloid
from foreword.compiler.domain import Cube, Sphere, frame_along
from foreword.compiler.doubles import DOUBLES
from foreword.compiler.enclosure import Problem
from foreword.compiler.functions import enclose
from foreword.compiler.head import Head
from foreword.compiler.numbers import System
from foreword.compiler.parser import parse_expression

TEXTS = {2: "[sin(2*x) - x*y, exp(y)]", 3: "[x*y + cos(3*z), abs(x - 0.2)]"}


def subjects(seed: int) -> tuple[Problem, Sphere | Cube, Chart, str]:
    rng = np.random.default_rng(seed)
    columns = int(rng.integers(2, 4))
    kind = seed % 4
    domain: Sphere | Cube = Sphere(columns - 1) if kind < 2 else Cube([(-1.0, 2.0)] * columns)
    charts: list[Chart] = [
        Identity(columns), Identity(columns), Flat((0.5,) * columns, (1.5,) * columns),
        Paraboloid.of(Flat((0.5,) * columns, (1.5,) * columns)),
    ]  # fmt: skip
    chart = charts[kind]
    positions, sharpness = int(rng.integers(1, 30)), 10.0 ** rng.uniform(-1, 2.5)
    keys = sharpness * rng.normal(size=(positions, chart.width))
    if seed % 5 == 0:  # along one direction
        keys = np.outer(keys[:, 0], rng.normal(size=chart.width))
    head = Head(
        keys, sharpness * rng.normal(size=positions), 10.0 ** rng.uniform(-1, 2) * rng.normal(size=(positions, 2))
    )
    frame = frame_along(rng.normal(size=columns)) if kind == 1 else None
    wanted = partial(enclose, parse_expression(TEXTS[columns], columns).outputs)
    return Problem(head, chart.expressions(columns), wanted, kind < 2, frame), domain, chart, TEXTS[columns]


@settings(max_examples=80, deadline=None)
@given(st.sampled_from([BALLS, DOUBLES]), st.integers(0, 10**6), st.integers(1, 7), st.floats(-3, -0.5))
def test_no_sampled_error_exceeds_the_bound_of_its_cell(system: System, seed: int, order: int, size: float) -> None:
    problem, domain, chart, text = subjects(seed)
    rng = np.random.default_rng(seed + 1)
    low, high = domain.box.T
    half = 10.0**size * rng.uniform(0.1, 1, (3, domain.dimension))
    middle = rng.uniform(low + half.max(), high - half.max()) + rng.uniform(-1, 1, half.shape) * half
    lower, upper = middle - half, middle + half
    with precise(max(order, 2)):
        bounds = problem.bounds(lower, upper, order, system)
    for cell in range(3):
        parameters = rng.uniform(lower[cell], upper[cell], (200, domain.dimension))
        parameters = np.concatenate([parameters, [lower[cell], upper[cell], (lower[cell] + upper[cell]) / 2]])
        points = domain.embed(parameters)
        points = points if problem.frame is None else points @ problem.frame.T
        values = problem.head.evaluate(chart(points))
        errors = np.abs(parse_expression(text, domain.columns).evaluate(points) - values).max(axis=1)
        # The float64 evaluation's own roundings: scores up to 1e3, values up to 1e3.
        slack = 1e-12 * (1 + np.abs(problem.head.keys).max()) * (1 + np.abs(problem.head.values).max())
        assert not float(bounds.error[cell]) < errors.max() - slack
        assert float(bounds.least[cell]) <= errors[-1] + slack


@pytest.mark.parametrize("system", [BALLS, DOUBLES], ids=["balls", "doubles"])
def test_the_bound_of_a_small_cell_is_the_error_itself(system: System) -> None:
    """Otherwise the test above would be passed by infinity."""
    ratios = []
    for seed in range(40):
        problem, domain, chart, text = subjects(seed)
        sharpness = np.abs(problem.head.keys).max()
        middle = domain.box.mean(axis=1) + 0.1
        half = 1e-3 / sharpness * np.ones(domain.dimension)
        with precise(4):
            bounds = problem.bounds((middle - half)[None], (middle + half)[None], 4, system)
        points = domain.embed(middle[None])
        points = points if problem.frame is None else points @ problem.frame.T
        error = np.abs(parse_expression(text, domain.columns).evaluate(points) - problem.head.evaluate(chart(points)))
        ratios.append(float(bounds.error[0]) / error.max())
    assert max(ratios) < 1.1
