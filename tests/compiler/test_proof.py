"""What is proved is true, near the truth, and quick; what cannot be proved is said to be so."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from tests.compiler.problems import random_problem, ridge, solved

from foreword.certificate import Verdict
from foreword.compiler.branching import Search
from foreword.compiler.charts import Flat, Identity, chart_of
from foreword.compiler.checker import check
from foreword.compiler.construction.tensor import gaussian_axis, graded_axis, grid_head, grid_points, grid_values
from foreword.compiler.domain import Cube, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.nets import sphere_net
from foreword.compiler.parser import parse_expression
from foreword.compiler.probe import Probe
from foreword.compiler.proof import Proof, prove
from foreword.compiler.target import Target
from foreword.errors import CompileError

TRIG = {1: "0.5*sin(3*x) + 0.5*cos(2*y)*y", 2: "0.5*sin(3*x) + 0.5*cos(2*y)*z", 3: "0.5*sin(3*x0) + 0.5*cos(2*x1)*x3"}
LINE = Cube([(-1, 1)])


def _target(domain: Sphere | Cube, text: str) -> Target:
    return Target(domain=domain, expression=parse_expression(text, domain.columns))


def _constant(value: float, width: int = 1) -> Head:
    return Head(np.ones((2, width)), np.zeros(2), np.full((2, 1), value))


def _trig(dimension: int, positions: int, cutoff: float) -> tuple[Head, Target, Sphere]:
    domain = Sphere(dimension)
    target = _target(domain, TRIG[dimension])
    keys = 4.0 * sphere_net(dimension, positions)
    return solved(domain, target, keys, np.zeros(len(keys)), cutoff=cutoff), target, domain


def _largest_error(head: Head, target: Target, domain: Sphere | Cube, count: int = 40_000) -> float:
    points = domain.sample(count, np.random.default_rng(11))
    return float(np.abs(target.evaluate(points) - head.evaluate(chart_of(domain)(points))).max())


@pytest.mark.parametrize(
    ("dimension", "positions", "cutoff", "seconds", "ratio"),
    [(1, 24, 1e-11, 1.0, 1.25), (2, 128, 1e-9, 10.0, 1.25), (3, 80, 1e-5, 30.0, 1.5)],
)
def test_smooth_targets_are_certified_near_the_truth_in_time(
    dimension: int, positions: int, cutoff: float, seconds: float, ratio: float
) -> None:
    head, target, domain = _trig(dimension, positions, cutoff)
    started = time.process_time()
    told = prove(head, chart_of(domain), target, domain).certificate
    assert time.process_time() - started < seconds
    truth = _largest_error(head, target, domain)
    assert truth <= told.bound <= 1.001 * ratio * told.seen
    assert told.seen >= 0.95 * truth
    assert told.bound == pytest.approx(
        told.terms["approximation"] + told.terms["context"] + told.terms["rounding_float64"], rel=1e-14
    )


def test_the_independent_checker_confirms_a_proof() -> None:
    head, target, domain = _trig(1, 24, 1e-11)
    proof = prove(head, chart_of(domain), target, domain, tolerance=1e-6, method="spectral")
    result = check(head, chart_of(domain), target.expression, domain, proof.certificate.sealed(), proof.cover)
    assert (result.verdict, result.reasons) == (Verdict.PROVED, ())


@pytest.mark.parametrize("text", ["sin(3*x)*exp(-y**2)", "1/(1+4*x**2+y**2)"])
def test_squares_are_certified(text: str) -> None:
    square = Cube([(-1, 1), (-1, 1)])
    target = _target(square, text)
    side = np.linspace(-1.2, 1.2, 12)
    net = np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(-1, 2)
    head = solved(square, target, 9.0 * net, -4.5 * (net**2).sum(axis=1), cutoff=1e-9)
    told = prove(head, chart_of(square), target, square).certificate
    assert _largest_error(head, target, square) <= told.bound <= 1.26 * told.seen


@pytest.mark.parametrize("dimension", [1, 2, 3])
@pytest.mark.parametrize("is_tilted", [False, True])
@pytest.mark.parametrize(("positions", "core", "error"), [(24, 3e-5, 1e-4), (61, 3e-6, 1e-6)])
def test_kinks_are_certified_in_any_dimension_and_direction(
    dimension: int, is_tilted: bool, positions: int, core: float, error: float
) -> None:
    domain = Sphere(dimension)
    normal = np.arange(1.0, dimension + 2) if is_tilted else np.eye(dimension + 1)[0]
    normal = normal / np.linalg.norm(normal)
    names = ("x", "y", "z") if dimension < 3 else ("x0", "x1", "x2", "x3")
    terms = [f"{float(weight)!r}*{name}" for weight, name in zip(normal, names, strict=False) if weight]
    target = _target(domain, f"abs({' + '.join(terms)})")
    head = ridge(positions, core, normal, cutoff=1e-10)
    proof = prove(head, Identity(dimension + 1), target, domain, seconds=20, tolerance=error)
    assert proof.certificate.verdict is Verdict.PROVED
    assert proof.certificate.bound <= 1.5 * proof.certificate.seen
    assert proof.certificate.effort["cells"] < 2000  # a function of one coordinate costs a search in one dimension


@pytest.mark.parametrize(
    ("domain", "axis"), [(Cube([(-1, 1)] * 5), 1), (Cube([(-1, 3)] * 24), 20), (Sphere(7), 0)], ids=str
)
def test_a_function_of_one_coordinate_of_many_is_proved_and_checked_as_one_of_a_line(
    domain: Sphere | Cube, axis: int
) -> None:
    """Three points along each of five axes left every cell open; polynomials in 24 variables have no end."""
    line = Cube([domain.box[axis]] if isinstance(domain, Cube) else [(-1, 1)])
    inner = solved(line, _target(line, "sin(2*x)"), np.linspace(-3.0, 3.0, 6)[:, None], np.zeros(6), cutoff=1e-9)
    keys = np.zeros((6, domain.columns))
    keys[:, axis] = inner.keys[:, 0]
    head, chart = Head(keys, inner.biases, inner.values), chart_of(domain)
    target = _target(domain, f"sin(2*x{axis})")
    proof = prove(head, chart, target, domain, seconds=10)
    assert proof.certificate.verdict is Verdict.PROVED
    truth = np.linspace(*line.sides[0], 100_001)[:, None]
    error = float(np.abs(inner.evaluate(chart_of(line)(truth)) - np.sin(2 * truth)).max())
    assert error <= proof.certificate.bound <= 1.51 * error
    assert proof.certificate.effort["cells"] < 100
    told = check(head, chart, target.expression, domain, proof.certificate.sealed(), proof.cover, seconds=20)
    assert (told.verdict, told.reasons) == (Verdict.PROVED, ())


def test_a_function_of_too_many_coordinates_is_refused_with_a_way_out() -> None:
    cube = Cube([(-1, 1)] * 9)
    sum_of_all = _target(cube, "+".join(f"sin({axis + 1}*x{axis})" for axis in range(9)))
    with pytest.raises(CompileError, match=r"at most 8(.|\n)*9 of 9(.|\n)*certify=False"):
        prove(_constant(0.0, 9), chart_of(cube), sum_of_all, cube)


@pytest.mark.parametrize("sharpness", [200.0, 2e4, 1e7])
def test_sharp_heads_are_bounded_by_the_values_that_matter(sharpness: float) -> None:
    domain = Sphere(2)
    target = _target(domain, "abs(x)")
    net = sphere_net(2, 100)
    head = Head(sharpness * net, np.zeros(100), target.evaluate(net))
    told = prove(head, chart_of(domain), target, domain, seconds=30).certificate
    assert _largest_error(head, target, domain) <= told.bound <= 1.26 * told.seen


def _seen_by_its_constant() -> tuple[Head, Target]:
    """A head within 1e-9 of a function of which only a Lipschitz constant is known."""
    target = Target(lambda x: np.sin(2 * x[:, 0]), domain=LINE, lipschitz=2.0)
    keys = 4.0 * np.linspace(-1.2, 1.2, 16)[:, None]
    return solved(LINE, target, keys, -2.0 * keys[:, 0] ** 2 / 4.0, cutoff=1e-10), target


def test_a_tolerance_far_above_the_error_is_proved_from_a_lipschitz_constant_in_few_cells() -> None:
    """Near the error itself, 1e-9, cells of length 1e-9 would be needed: two billion."""
    head, target = _seen_by_its_constant()
    told = prove(head, chart_of(LINE), target, LINE, tolerance=1e-2).certificate
    assert told.verdict is Verdict.PROVED
    assert _largest_error(head, target, LINE) < 1e-6 < told.bound <= 1e-2
    assert told.effort["cells"] < 300_000


@pytest.mark.parametrize("tolerance", [None, 1e-7])
def test_what_stands_proved_when_time_is_up_is_what_the_last_round_aimed_at(tolerance: float | None) -> None:
    head, target = _seen_by_its_constant()
    told = prove(head, chart_of(LINE), target, LINE, tolerance=tolerance, seconds=1.0).certificate
    assert told.verdict is (Verdict.PROVED if tolerance is None else Verdict.NOT_REACHED)
    assert told.effort["open"]
    assert _largest_error(head, target, LINE) < told.bound < 0.1  # the values reach 10: without rounds, 10


def test_a_search_knows_its_round_again() -> None:
    head, target = _seen_by_its_constant()
    kept = prove(head, chart_of(LINE), target, LINE, seconds=0.2).search
    assert kept is not None
    again = Search.from_arrays(kept.arrays())
    assert (again.aim, again.ahead, again.rounds, again.upper) == (kept.aim, kept.ahead, kept.rounds, kept.upper)
    assert again.rounds


def test_declared_derivatives_give_proofs_that_improve_with_their_order() -> None:
    def value(points: np.ndarray) -> np.ndarray:
        return np.sin(2 * points[:, 0]) * points[:, 1]

    def gradient(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        return np.stack([2 * np.cos(2 * x) * y, np.sin(2 * x)], axis=1)

    def hessian(points: np.ndarray) -> np.ndarray:
        x, y = points.T
        mixed = 2 * np.cos(2 * x)
        return np.stack([np.stack([-4 * np.sin(2 * x) * y, mixed], 1), np.stack([mixed, 0 * x], 1)], 1)

    square = Cube([(-1, 1), (-1, 1)])
    facts = [
        {"lipschitz": 3.0},
        {"gradient": gradient, "second": 7.0},
        {"gradient": gradient, "hessian": hessian, "third": 17.0},
    ]
    net = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, 3)] * 2, indexing="ij"), axis=-1).reshape(-1, 2)
    cells = []
    for known in facts:
        target = Target(value, domain=square, **known)  # type: ignore[arg-type]
        head = solved(square, target, 3.0 * net, -1.5 * (net**2).sum(axis=1), cutoff=1e-6)
        told = prove(head, chart_of(square), target, square).certificate
        assert _largest_error(head, target, square) <= told.bound <= 1.26 * told.seen
        assert {fact.code for fact in told.assumptions} >= set(known)
        cells.append(told.effort["cells"])
    assert cells[0] > 4 * cells[1] > 4 * cells[2]


def test_derivatives_are_not_trusted_across_a_declared_kink() -> None:
    """|x - y|: its gradient and a second derivative of 0 hold off the diagonal, which no axis follows."""
    square = Cube([(0, 1), (0, 1)])

    def gradient(points: np.ndarray) -> np.ndarray:
        sign = np.sign(points[:, 0] - points[:, 1])
        return np.stack([sign, -sign], axis=1)

    told = {"gradient": gradient, "second": 0.0, "kinks": (((1.0, -1.0), 0.0),)}
    for lipschitz in (1.5, None):
        target = Target(lambda points: np.abs(points[:, 0] - points[:, 1]), domain=square, lipschitz=lipschitz, **told)  # type: ignore[arg-type]
        found = prove(_constant(0.3, 2), chart_of(square), target, square, seconds=0.7).certificate
        assert found.bound >= 0.7
        assert math.isfinite(found.bound) == (lipschitz is not None)


@pytest.mark.parametrize("place", [0.1234567, -0.7071, 1 / 3])
def test_a_needle_between_the_samples_is_not_overlooked(place: float) -> None:
    needle = _target(LINE, f"exp(-1000000000*(x-({place!r}))**2)")
    told = prove(_constant(0.0), chart_of(LINE), needle, LINE).certificate
    assert 1.0 <= told.bound <= 1.3
    assert told.seen > 0.7


@pytest.mark.parametrize("text", ["abs(x)", "abs(x - 0.3333333333333333)", "max(x, 2*x - 0.1)", "abs(x**2 - 0.25)"])
def test_kinks_on_and_off_cell_borders_are_bounded(text: str) -> None:
    target = _target(LINE, text)
    told = prove(_constant(0.2), chart_of(LINE), target, LINE).certificate
    truth = np.abs(target.evaluate(np.linspace(-1, 1, 20_001)[:, None]) - 0.2).max()
    assert truth <= told.bound <= 1.26 * truth


@pytest.mark.parametrize("sharpness", [1e4, 1e6, 1e9])
def test_huge_temperatures_are_bounded(sharpness: float) -> None:
    """A step at 0.1234: the head is within 1 of the target, and is so just beside the step."""
    step = Head(
        sharpness * np.array([[1.0], [-1.0]]), -0.1234 * sharpness * np.array([1.0, -1.0]), np.array([[1.0], [0.0]])
    )
    target = _target(LINE, "0.5 + 0*x")
    told = prove(step, Flat((0.0,), (1.0,)), target, LINE).certificate
    assert 0.5 <= told.bound <= 0.5 * 1.26


@pytest.mark.parametrize("scale", [1e-290, 1e-150, 1e100, 1e149])
def test_sizes_near_the_ends_of_float64_are_bounded_or_said_not_to_be(scale: float) -> None:
    target = _target(LINE, f"{scale!r}*x")
    told = prove(_constant(0.0), chart_of(LINE), target, LINE).certificate
    assert told.bound >= scale
    assert told.seen <= scale


@pytest.mark.parametrize("value", [1e300, np.inf, np.nan])
def test_values_that_would_overflow_are_refused(value: float) -> None:
    with pytest.raises(CompileError, match="too large to compute with"):
        prove(_constant(value), chart_of(LINE), _target(LINE, "x"), LINE)


def test_a_target_that_overflows_inside_proves_nothing() -> None:
    target = _target(LINE, "1/(1 + exp(-800*x)*exp(-800*x))")
    told = prove(_constant(0.5), chart_of(LINE), target, LINE, seconds=0.7).certificate
    assert told.bound >= 0.5


def test_equal_functions_are_equal_up_to_rounding() -> None:
    for head, text in (
        (_constant(0.75), "0.75 + 0*x"),
        (Head(np.array([[1.0], [-1.0]]), np.zeros(2), np.array([[1.0], [-1.0]])), "tanh(x)"),
    ):
        told = prove(head, Flat((0.0,), (1.0,)), _target(LINE, text), LINE, tolerance=1e-12).certificate
        assert (told.verdict, told.seen) == (Verdict.PROVED, 0.0)
        assert told.bound < 1e-12  # a few times the rounding of scores up to 1 and sums of two


def test_a_tolerance_below_rounding_is_not_reached_and_says_why() -> None:
    told = prove(_constant(0.75), chart_of(LINE), _target(LINE, "0.75 + 0*x"), LINE, tolerance=1e-18).certificate
    assert told.verdict is Verdict.NOT_REACHED
    assert "Rounding" in told.remedy


def test_where_a_formula_has_no_value_no_bound_is_named() -> None:
    told = prove(_constant(1.0), chart_of(LINE), _target(LINE, "sin(x) / x"), LINE, tolerance=0.5).certificate
    assert told.verdict is Verdict.NOT_REACHED
    assert "0 / 0" in told.remedy
    assert "inf" not in told.remedy


def test_a_tolerance_below_the_error_is_not_reached_and_a_larger_one_is_named() -> None:
    told = prove(_constant(0.0), chart_of(LINE), _target(LINE, "x"), LINE, tolerance=0.5).certificate
    assert told.verdict is Verdict.NOT_REACHED
    assert "more positions" in told.remedy


def test_roots_and_logarithms_without_slope_are_bounded() -> None:
    square = Cube([(-1, 1), (-1, 1)])
    told = prove(_constant(0.7, 2), chart_of(square), _target(square, "sqrt(x**2 + y**2)"), square).certificate
    assert math.sqrt(2) - 0.7 <= told.bound <= 1.26 * (math.sqrt(2) - 0.7)


def test_a_root_along_one_side_of_a_square_takes_few_cells() -> None:
    square = Cube([(-1, 1), (-1, 1)])
    x, y = graded_axis(12, 1.5, (1.0,), 1e-5, 0.6, 200), gaussian_axis(5, 2.0, 0.5, 100)
    points = grid_points([x, y])
    wanted = (np.sqrt(1 - points[:, 0]) * np.exp(points[:, 1])).reshape(len(x.nodes), len(y.nodes), 1)
    head = grid_head([x, y], grid_values([x, y], wanted, 10.0))
    proof = prove(head, chart_of(square), _target(square, "sqrt(1 - x)*exp(y)"), square)
    told = proof.certificate
    assert told.bound <= 1.3 * told.seen
    # Where a cell reaches the side, only its halves along x are closer to a root's constant stand-in.
    assert told.effort["cells"] < 2_000


def test_a_root_that_stays_at_0_over_a_side_of_a_line_takes_few_cells() -> None:
    # sign(x) |x|^(3/2), as a traced function has it: at every point one of the roots has no slope.
    target = _target(LINE, "sqrt(max(x, 0))**3 - sqrt(-min(x, 0))**3")
    told = prove(_constant(0.0), chart_of(LINE), target, LINE).certificate
    assert told.seen == pytest.approx(1.0, rel=1e-9)
    assert told.bound <= 1.26 * told.seen
    assert told.effort["cells"] < 100


def test_a_cell_without_a_double_inside_is_not_halved() -> None:
    # 4.5 million doubles lie in [1, 1 + 1e-9], and the bound cannot come within 1e-9 of the error on their spacing.
    narrow = Cube([(1, 1 + 1e-9)])
    goal = 1 + 1e-9
    told = prove(_constant(0.0), chart_of(narrow), _target(narrow, "sqrt(x - 1)"), narrow, tightness=goal).certificate
    assert told.effort["open"] == 0
    assert told.effort["cells"] < 500
    assert told.seen * goal < told.bound < 1.001 * told.seen


def test_what_a_distant_key_may_round_to_does_not_hide_an_error() -> None:
    # Two keys make the output; a third has a score of -1e9 on most of the domain, and a rounding of 1e-7 there.
    head = Head(np.array([[1.0], [-1.0], [-1e9]]), np.array([0.0, 0.0, -1e9]), np.array([[1.0], [-1.0], [0.0]]))
    points = np.linspace(-0.9, 0.9, 7)[:, None]
    target = _target(LINE, "tanh(x)")
    errors, slack = Probe(head, Flat((0.0,), (1.0,)), target, LINE).look(points)
    assert errors.max() < 1e-15
    assert slack.max() < 1e-13
    near = np.array([[-1 + 1e-10]])
    errors, slack = Probe(head, Flat((0.0,), (1.0,)), target, LINE).look(near)
    assert slack[0] > 1e-8  # there it matters


def test_steep_keys_whose_values_are_near_each_other_hide_no_error_from_a_search() -> None:
    # A score is off by 5 roundings of |key q| + |bias|, about 2 |key| here. Times the range of all values that would be
    # a slack above the error; but within 1e-9 of the side, values with weight differ by about 1e-9^(1/2) = 3e-5 each.
    unit = Cube([(0, 1)])
    axis = graded_axis(30, 1.5, (-1.0,), 1e-10, 0.3, 400)
    head = grid_head([axis], grid_values([axis], np.sqrt((axis.nodes + 1) / 2)[:, None], 10.0))
    points = np.geomspace(1e-12, 1e-9, 50)[:, None]
    errors, slack = Probe(head, chart_of(unit), _target(unit, "sqrt(x)"), unit).look(points)
    by_range = 10 * 2.0**-53 * np.abs(head.keys).max() * float(np.ptp(head.values))
    assert slack.max() < 0.01 * by_range
    assert 10 * slack.max() < errors.max() < by_range


def test_a_finite_domain_is_evaluated_at_every_point() -> None:
    points = np.array([[0.0], [0.5], [2.0]])
    table = FiniteSet(points)
    target = Target(domain=table, samples=np.array([[0.0], [1.0], [5.0]]))
    told = prove(_constant(1.0), Flat((0.0,), (1.0,)), target, table, tolerance=5.0).certificate
    assert (told.verdict, told.seen) == (Verdict.PROVED, pytest.approx(4.0, rel=1e-12))
    assert 4.0 <= told.bound < 4.0 + 1e-12
    assert told.cover is None


def test_a_black_box_is_estimated_and_never_called_proved() -> None:
    target = Target(lambda points: points[:, 0] ** 2, domain=LINE)
    told = prove(_constant(0.0), chart_of(LINE), target, LINE, tolerance=2.0).certificate
    assert told.verdict is Verdict.ASSUMPTION_UNVERIFIED
    assert "Lipschitz" in told.remedy


def _claims(proof: Proof) -> tuple[float, float, int]:
    told = proof.certificate
    return told.bound, told.seen, int(told.effort["open"])


def test_a_search_that_ran_out_of_time_bounds_what_it_has_and_resumes() -> None:
    head, target, domain = _trig(2, 96, 1e-7)
    chart = chart_of(domain)
    shares: list[float] = []
    stopped = prove(head, chart, target, domain, seconds=0.0, progress=lambda search: shares.append(search.share))
    assert stopped.search is not None
    assert stopped.certificate.effort["open"] > 0
    truth = _largest_error(head, target, domain)
    assert stopped.certificate.bound >= truth
    kept = Search.from_arrays(stopped.search.arrays())
    whole = prove(head, chart, target, domain, resume=kept, progress=lambda search: shares.append(search.share))
    assert whole.certificate.effort["open"] == 0
    assert truth <= whole.certificate.bound <= 1.26 * truth
    assert shares[-1] == 1.0
    assert whole.cover is not None
    assert whole.cover.find_hole() == ""


def test_a_context_term_is_part_of_the_bound() -> None:
    target = _target(LINE, "x")
    plain = prove(_constant(0.0), chart_of(LINE), target, LINE).certificate
    told = prove(_constant(0.0), chart_of(LINE), target, LINE, context=0.25).certificate
    assert told.terms["context"] == 0.25
    assert told.bound == pytest.approx(plain.bound + 0.25, rel=1e-12)


def test_a_head_for_another_number_of_outputs_is_refused() -> None:
    with pytest.raises(CompileError, match="number of outputs"):
        prove(_constant(0.0), chart_of(LINE), _target(LINE, "[x, x]"), LINE)


@pytest.mark.parametrize("seed", range(30))
def test_whole_proofs_of_random_problems_are_true(seed: int) -> None:
    """The search ends, covers everything, and many random points do not exceed its bound."""
    rng = np.random.default_rng(700 + seed)
    problem = random_problem(rng)
    head = replace(problem.head, keys=problem.head.keys / max(1.0, np.abs(problem.head.keys).max() / 30))
    proof = prove(head, problem.chart, problem.target, problem.domain, seconds=1.0, frame=problem.frame)
    points = problem.domain.sample(20_000, rng)
    assert problem.target.expression is not None
    values = problem.target.expression.evaluate(points)
    truth = np.abs(values - head.evaluate(problem.chart(points))).max()
    assert truth <= proof.certificate.bound
    assert proof.cover is not None
    assert proof.cover.find_hole() == ""


def test_a_proof_goes_on_to_what_is_asked_for_where_its_usual_goal_would_miss_it() -> None:
    """The error is 0.01: a bound of 1.25 times that, good enough as a rule, is above what is asked for here."""
    line = Cube([(-1, 1)])
    head = Head(np.array([[1.0], [-1.0]]), np.zeros(2), np.array([[1.0], [-1.0]]))  # this head is tanh
    close = Target(domain=line, expression=parse_expression("tanh(x) + 0.01*sin(9*x)", 1))
    told = prove(head, Flat((0.0,), (1.0,)), close, line, tolerance=0.0105).certificate
    assert told.verdict is Verdict.PROVED
    assert 0.00999 < told.seen <= told.bound <= 0.0105
