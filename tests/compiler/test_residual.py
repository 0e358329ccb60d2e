"""No bound on a cell is below the truth there; and a prover with a part taken out is caught."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.compiler.problems import Problem, points_in, random_cells, random_problem

from foreword.compiler.charts import chart_of
from foreword.compiler.domain import Cube
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


@pytest.mark.parametrize("start", range(0, 300, 50))
def test_no_error_inside_a_cell_exceeds_its_bound(start: int) -> None:
    counts = np.sum([_violations(seed) for seed in range(start, start + 50)], axis=0)
    assert counts[2] == 0
    assert counts[1] > counts[0] / 8  # interpolation was at work


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
    assert sum(_violations(seed)[2] for seed in range(120)) > 0


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
