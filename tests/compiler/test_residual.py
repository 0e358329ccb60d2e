"""No bound on a cell is below the truth there; and a prover with a part taken out is caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.compiler.problems import Problem, points_in, random_cells, random_problem

from foreword.compiler.charts import chart_of
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.head import Head
from foreword.compiler.model import Model
from foreword.compiler.parser import parse_expression
from foreword.compiler.proof import OVERSAMPLING, POINTS
from foreword.compiler.residual import Residual
from foreword.compiler.target import Target

CELLS, INSIDE = 8, 200


def _slack(problem: Problem, values: np.ndarray) -> float:
    """What evaluating f and g in float64 may be off by: scores of size 1e3 carry 1e-13 each."""
    sharpness = float(np.abs(problem.head.keys).max() + np.abs(problem.head.biases).max())
    return 1e-12 * (1 + sharpness) * float(np.abs(problem.head.values).max() + np.abs(values).max())


def _violations(seed: int) -> tuple[int, int, int]:
    """Of one random problem: cells, bounds that interpolation gave, bounds below an error inside."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    model = Model(problem.head, problem.chart, problem.target, problem.domain, problem.frame)
    axes = problem.domain.dimension
    residual = Residual(model, POINTS[axes], OVERSAMPLING[axes])
    lower, upper = random_cells(problem.domain, CELLS, rng)
    inside = points_in(lower, upper, INSIDE, rng)
    errors = problem.errors(inside.reshape(-1, axes)).reshape(CELLS, INSIDE).max(axis=1)
    found = residual.bound(lower, upper, float(np.median(errors)) * 10 ** rng.uniform(-3, 1))
    assert not np.isnan(found.upper).any()
    slack = _slack(problem, errors)
    wrong = (errors > found.upper + slack) | (found.seen > found.upper)
    return CELLS, int(found.is_sampled.sum()), int(wrong.sum())


@pytest.mark.parametrize("start", range(0, 150, 50))
def test_no_error_inside_a_cell_exceeds_its_bound(start: int) -> None:
    counts = np.sum([_violations(seed) for seed in range(start, start + 50)], axis=0)
    assert counts[2] == 0
    assert counts[1] > counts[0] / 8  # interpolation was at work


UNIT, SQUARE = Cube([(0, 1)]), Cube([(0, 1)] * 2)
TOUCHING: dict[str, Cube | Sphere] = {
    "sqrt(x) - x**1.5": UNIT,
    "x**0.3 * cos(3*x)": UNIT,
    "arccos(1 - x) + arcsin(x)": UNIT,
    "sqrt(exp(x) - 1) / (1 + sqrt(sin(3*x)))": UNIT,
    "sqrt(x) * exp(y) + sin(3*y)": SQUARE,
    "[sqrt(x*y), sqrt(1 - (x - 1)**2) * y]": SQUARE,
    "abs(sqrt(x) - y) + sqrt(abs(y - 0.3))": SQUARE,
    "sqrt(1 - z) + arccos(z) * x": Sphere(2),
    "sqrt(abs(y)) + sqrt(1 + y)": Sphere(1),
}


@pytest.mark.parametrize(("text", "domain"), TOUCHING.items())
def test_cells_at_an_end_of_a_root_have_bounds_and_none_is_below_the_truth(text: str, domain: Cube | Sphere) -> None:
    """Cells of all sizes at the sides of the box: a Hoelder function is bounded there by its range."""
    rng = np.random.default_rng(len(text))
    low, high = domain.box.T
    width = (high - low) * 10 ** rng.uniform(-9, 0, (CELLS, len(low)))
    lower = np.where(rng.random(width.shape) < 0.5, low, high - width)
    target, chart = Target(domain=domain, expression=parse_expression(text, domain.columns)), chart_of(domain)
    head = Head(
        rng.normal(size=(9, chart.width)) * 10 ** rng.uniform(0, 2),
        rng.normal(size=9),
        rng.normal(size=(9, target.outputs)),
    )
    problem = Problem(head, chart, target, domain, None)
    inside = points_in(lower, lower + width, INSIDE, rng)
    inside = np.clip(inside, low, high).reshape(-1, len(low))
    if isinstance(domain, Sphere):  # the box is an ulp wider than the sphere, and floating point sees it
        inside = inside * (1 - 1e-9)
    errors = problem.errors(inside).reshape(CELLS, INSIDE).max(axis=1)
    residual = Residual(Model(head, chart, target, domain, None), POINTS[len(low)], OVERSAMPLING[len(low)])
    for goal in (errors.max(), 0.3 * np.median(errors)):
        found = residual.bound(lower, lower + width, float(goal))
        assert np.isfinite(found.upper).all()
        assert np.all(errors <= found.upper + _slack(problem, errors))
        assert np.all(found.seen <= found.upper)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 5000, 500))
def test_no_error_inside_a_cell_exceeds_its_bound_at_length(start: int) -> None:
    assert np.sum([_violations(seed) for seed in range(start, start + 500)], axis=0)[2] == 0


@pytest.mark.parametrize("part", ["remainder", "swing"])
def test_a_prover_that_leaves_a_part_out_is_caught(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpolation error a thousandth of what it is; half of what f may differ from its value at the middle."""
    remainders, surface = Residual._remainders, Model.surface

    def half_a_swing(self: Model, centre: np.ndarray, half: np.ndarray) -> Any:
        found = surface(self, centre, half)
        found.swing = found.swing * 0.5
        return found

    if part == "remainder":
        monkeypatch.setattr(Residual, "_remainders", lambda *given: remainders(*given) * 1e-3)
    else:
        monkeypatch.setattr(Model, "surface", half_a_swing)
    assert any(_violations(seed)[2] for seed in range(120))


@pytest.mark.parametrize("is_whole", [True, False])
def test_the_gap_between_a_kink_and_its_stand_in_counts(is_whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """|x - 0.01| on one cell, against 0: the line that stands in for it is half the size; the rest makes up for it."""
    surface = Model.surface

    def without_rest(self: Model, centre: np.ndarray, half: np.ndarray) -> Any:
        found = surface(self, centre, half)
        found.rest = found.rest * 0
        return found

    if not is_whole:
        monkeypatch.setattr(Model, "surface", without_rest)
    line = Cube([(-1, 1)])
    target = Target(domain=line, expression=parse_expression("abs(x - 0.01)", 1))
    nothing = Head(np.ones((1, 1)), np.zeros(1), np.zeros((1, 1)))
    residual = Residual(Model(nothing, chart_of(line), target, line, None), POINTS[1], OVERSAMPLING[1])
    found = residual.bound(np.array([[-1.0]]), np.array([[1.0]]), 0.95)
    assert (found.upper[0] >= 1.01) == is_whole
