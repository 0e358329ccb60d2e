"""A tape computes what its graph does, and what it says of ranges, slopes and rounding is true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
from tests.compiler.problems import Problem, points_in, random_cells, random_problem

from foreword.compiler.domain import Cube, Sphere, frame_along
from foreword.compiler.expression import Node
from foreword.compiler.parser import parse_expression
from foreword.compiler.recording import kinks_of, tape_of
from foreword.compiler.tape import Tape

LINE = Cube([(-1, 1)])


def _tape(problem: Problem) -> Tape:
    assert problem.target.expression is not None
    queries = problem.chart.expressions(problem.domain.columns)
    return tape_of(problem.domain, problem.target.expression.outputs, queries, problem.frame)


@pytest.mark.parametrize("seed", range(40))
def test_values_lie_in_ranges_near_the_graphs_and_slopes_bound_differences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = random_problem(rng)
    tape = _tape(problem)
    lower, upper = random_cells(problem.domain, 6, rng)
    inside = points_in(lower, upper, 40, rng)
    with np.errstate(all="ignore"):
        known, stand_ins = tape.on_cells(lower, upper)
        found = tape.at_points(inside, stand_ins)
    flat = problem.domain.embed(inside.reshape(-1, inside.shape[2]))
    points = flat if problem.frame is None else flat @ problem.frame.T
    assert problem.target.expression is not None
    values = problem.target.expression.evaluate(points)
    for place, graph in zip((*tape.outputs, *tape.queries), (*values.T, *problem.chart(points).T), strict=True):
        step = known[place]
        graph = graph.reshape(6, 40)
        here = np.broadcast_to(found[place], (6, 40))
        assert np.all((step.range.re.lo[..., None] <= graph) & (graph <= step.range.re.hi[..., None]))
        # The graph's own evaluation rounds as much as the tape's; frames in another order a little more.
        slack = (2 * step.error + step.rest)[..., None] + 1e-13 * (1 + np.abs(graph))
        assert np.all(np.abs(here - graph) <= slack)
        for axis, slope in enumerate(step.slopes):
            moved = inside.copy()
            moved[:, :, axis] = rng.uniform(lower[:, axis], upper[:, axis], (40, 6)).T
            with np.errstate(all="ignore"):
                there = np.broadcast_to(tape.at_points(moved, stand_ins)[place], (6, 40))
            most = 0.0 if slope is None else slope.size()[..., None] * np.abs(moved - inside)[:, :, axis]
            assert np.all(np.abs(there - here) <= most * (1 + 1e-12) + 2 * step.error[..., None])


EXACT: dict[str, Callable[[Any, Any], Any]] = {
    "sin(3*x)*exp(-y**2)/(1.5+x*y)": lambda x, y: mpmath.sin(3 * x) * mpmath.exp(-(y**2)) / (1.5 + x * y),
    "sqrt(x**2+y**2+0.01)-log(2+x)": lambda x, y: mpmath.sqrt(x**2 + y**2 + mpmath.mpf(0.01)) - mpmath.log(2 + x),
    "tanh(5*x-y)**3": lambda x, y: mpmath.tanh(5 * x - y) ** 3,
    "erf(2*x)*sinc(3*x-4*y)": lambda x, y: mpmath.erf(2 * x) * mpmath.sincpi(3 * x - 4 * y),
}


@pytest.mark.parametrize("text", EXACT)
def test_the_rounding_of_values_at_points_is_bounded(text: str) -> None:
    domain = Cube([(-1, 1), (-1, 1)])
    tape = tape_of(domain, parse_expression(text, 2).outputs, ())
    rng = np.random.default_rng(0)
    lower, upper = random_cells(domain, 40, rng)
    inside = points_in(lower, upper, 4, rng)
    known, stand_ins = tape.on_cells(lower, upper)
    found = np.broadcast_to(tape.at_points(inside, stand_ins)[tape.outputs[0]], (40, 4))
    # The tape's linear forms may differ from the graph's by their slack, which is the rest here.
    error = known[tape.outputs[0]].error + known[tape.outputs[0]].rest
    assert error.max() < 1e-12
    with mpmath.workdps(50):
        for cell in range(40):
            for point in range(4):
                x, y = (mpmath.mpf(float(a)) for a in inside[cell, point])
                assert abs(EXACT[text](x, y) - mpmath.mpf(float(found[cell, point]))) <= error[cell]


@pytest.mark.parametrize(
    "text", ["sqrt(max(x, 0))", "sqrt(-min(x, 0))**3", "sqrt(3*max(x, 0))", "sqrt(abs(min(x, 0)))"]
)
def test_a_root_of_what_is_0_on_one_side_is_known_there(text: str) -> None:
    """No rounding turns 0 into a number without a root: neither max's choice nor a sign moves it."""
    tape = tape_of(LINE, parse_expression(text, 1).outputs, ())
    points = np.array([[-0.7], [-1e-9], [1e-9], [0.3]])
    with np.errstate(all="ignore"):
        known, _ = tape.on_cells(points, points)
    root = known[tape.outputs[0]]
    values = parse_expression(text, 1).evaluate(points)[:, 0]
    assert np.all((root.range.re.lo <= values) & (values <= root.range.re.hi))
    assert np.all(root.error + root.rest <= 1e-14)


def test_a_frame_that_undoes_a_rotation_leaves_one_coordinate() -> None:
    """|<n, x>| in a frame along n is |y0| up to rounding: no other angle matters."""
    normal = np.array([1.0, 2.0, 3.0]) / np.sqrt(14)
    text = "abs(" + "+".join(f"{float(a)!r}*{name}" for a, name in zip(normal, "xyz", strict=True)) + ")"
    tape = tape_of(Sphere(2), parse_expression(text, 3).outputs, (), frame_along(normal))
    assert tape.depends()[tape.outputs[0]].tolist() == [True, False]


def test_kinks_of_linear_terms_are_found() -> None:
    square = Cube([(-1, 1), (-1, 1)])
    found = kinks_of(square, parse_expression("abs(2*x - 1) + max(y, 0.25) + abs(x*y)", 2).outputs)
    assert sorted((normal.tolist(), round(offset, 12)) for normal, offset in found) == [([0, 1], 0.25), ([1, 0], 0.5)]


def test_linear_forms_with_other_slack_are_other_steps() -> None:
    x = Node("variable", value=0)
    third = Node("divide", (x, Node("constant", value=3.0)))
    thrice = Node("multiply", (third, Node("constant", value=3.0)))
    tape = tape_of(Cube([(-1, 1)]), (Node("multiply", (x, Node("constant", value=1.0))), thrice), ())
    known, _ = tape.on_cells(np.array([[0.5]]), np.array([[0.75]]))
    assert known[tape.outputs[1]].rest[0] > 0
