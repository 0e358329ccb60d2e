"""From a function to a proved prefix, and what is refused on the way."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreword.certificate import Verdict
from foreword.compiler.charts import chart_of
from foreword.compiler.checks import check
from foreword.compiler.construction.contract import Instant, Obstacle, Request
from foreword.compiler.construction.grid import GridProblem
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.pipeline import compile_function, load_compiled, refusal
from foreword.compiler.target import Target, target_of
from foreword.errors import CompileError

TABLE = FiniteSet([[0.0, 0.5], [1.0, 0.0], [0.5, -1.0]])


def wave(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.sin(3 * x[:, 0]) + 0.5 * np.cos(2 * x[:, 1]) * x[:, -1]


def in_single(x: np.ndarray) -> np.ndarray:
    return np.sin(x[:, 0].astype(np.float32))


@pytest.mark.parametrize(
    ("function", "domain", "tolerance", "longest"),
    [
        (wave, Sphere(1), 1e-7, 26),
        pytest.param(wave, Sphere(2), 1e-3, 80, marks=pytest.mark.slow),
        (wave, Cube([(-1, 1)] * 2), 1e-3, 64),
        (lambda x: np.abs(x[:, 0]), Sphere(2), 1e-4, 24),
        ("[sin(x) * y, x - y]", Cube([(0, 1), (2, 3)]), 1e-4, 49),
    ],
)
def test_a_target_is_compiled_and_proved(
    function: str | Callable[[np.ndarray], np.ndarray], domain: Domain, tolerance: float, longest: int
) -> None:
    compiled = compile_function(function, domain, tolerance=tolerance)
    assert compiled.certificate is not None
    assert compiled.certificate.verdict is Verdict.PROVED
    assert compiled.certificate.bound <= tolerance
    assert compiled.positions <= longest
    assert np.abs(compiled.values).max() <= 10 * (1 + 1e-9)
    points = domain.sample(2_000, np.random.default_rng(9))
    assert compiled.target is not None
    error = np.abs(compiled.evaluate(points) - compiled.target.evaluate(points)).max()
    assert error <= compiled.certificate.bound
    scores = compiled.chart(points) @ compiled.keys.T + compiled.biases
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    assert np.allclose(weights @ compiled.values / weights.sum(axis=1, keepdims=True), compiled.evaluate(points))
    assert {row.method for row in compiled.tried} == {"adaptive", "spectral", "nearest"}


def test_a_lipschitz_constant_alone_is_proved_without_search() -> None:
    ticks = itertools.count()

    def untraceable(x: np.ndarray) -> np.ndarray:
        next(ticks)
        return np.abs(np.asarray(x, dtype=np.float64)[:, 0])

    compiled = compile_function(untraceable, Sphere(2), tolerance=0.2, lipschitz=1.0, method="nearest")
    assert compiled.certificate is not None
    assert compiled.certificate.verdict is Verdict.PROVED
    assert [premise.code for premise in compiled.certificate.assumptions] == ["lipschitz", "net-values"]
    assert compiled.positions <= 1.1 * 7.4 / 0.2**2
    assert not compiled.verify().is_refused


def test_what_no_search_proves_in_time_is_proved_by_the_theorem_that_needs_none() -> None:
    """Four gated keys are shorter, but their proof by a Lipschitz constant alone is out of reach."""

    def untraceable(x: np.ndarray) -> np.ndarray:
        return np.abs(np.array(x[:, 0].tolist()))

    compiled = compile_function(untraceable, Sphere(2), tolerance=0.2, lipschitz=1.0, seconds=0.0)
    assert compiled.certificate is not None
    assert compiled.certificate.verdict is Verdict.PROVED
    assert compiled.method == "nearest"
    shorter = [row for row in compiled.tried if row.positions is not None and row.positions < compiled.positions]
    assert shorter
    assert all(row.verdict != "proved" for row in shorter)


@pytest.mark.slow
@pytest.mark.usefixtures("hardly_polished")
def test_positions_give_the_best_of_so_many() -> None:
    errors = [
        compile_function(wave, Sphere(2), positions=count, method="spectral", certify=False).tried[0].sampled
        for count in (12, 30, 64)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]  # type: ignore[operator]


def test_a_table_of_samples_is_compiled_and_its_error_is_exact() -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (80, 2))
    compiled = compile_function(wave(points), FiniteSet(points), tolerance=1e-3)
    assert compiled.certificate is not None
    assert compiled.certificate.verdict is Verdict.PROVED
    assert np.abs(compiled.evaluate(points)[:, 0] - wave(points)).max() <= compiled.certificate.bound <= 1e-3


def test_of_a_short_table_nearest_neighbours_are_said_to_be_not_tried() -> None:
    compiled = compile_function(np.array([1.0, 3.0, 2.0]), TABLE, tolerance=1e-3)
    notes = {row.method: row.note for row in compiled.tried}
    assert notes["nearest"] == "Not tried: it begins with 32 positions, and another has 3."


def test_a_saved_prefix_is_the_same_and_can_be_verified(tmp_path: Path) -> None:
    compiled = compile_function(wave, Sphere(1), tolerance=1e-4)
    compiled.save(tmp_path / "wave.prefix")
    loaded = load_compiled(tmp_path / "wave.prefix")
    assert loaded.head.digest == compiled.head.digest
    assert loaded.certificate == compiled.certificate
    assert loaded.tried == compiled.tried
    assert not loaded.verify().is_refused


@pytest.mark.parametrize("size", [1e-280, 1e140])
def test_targets_of_extreme_size_are_compiled_as_those_of_size_one(size: float) -> None:
    other = compile_function(f"{size!r} * (exp(0.7*x) + x)", Cube([(-1, 1)]), tolerance=2e-2 * size)
    assert other.positions == 3  # as for size 1
    assert other.certificate is not None
    assert other.certificate.verdict is Verdict.PROVED
    assert not other.verify().is_refused


@pytest.mark.parametrize("domain", [Sphere(2), Cube([(-1, 1)] * 2), TABLE])
def test_a_target_within_the_tolerance_of_a_constant_takes_one_position(domain: Domain) -> None:
    compiled = compile_function("[7, 3 + 1e-3*x]", domain, tolerance=2e-3)
    assert compiled.positions == 1
    assert compiled.certificate is not None
    assert compiled.certificate.verdict is Verdict.PROVED
    assert not compiled.verify().is_refused


def test_without_a_certificate_nothing_is_claimed() -> None:
    compiled = compile_function("x", Sphere(1), positions=8, certify=False)
    assert compiled.certificate is None
    assert {row.verdict for row in compiled.tried} == {"no draft", "not proved: no proof was asked for"}


def counting() -> Callable[[np.ndarray], np.ndarray]:
    ticks = itertools.count()
    return lambda x: np.asarray(x, dtype=np.float64)[:, 0] + 1e-3 * next(ticks)


@pytest.mark.parametrize(
    ("function", "domain", "wish", "told"),
    [
        (wave, Sphere(2), {}, "Neither a tolerance nor"),
        (wave, Sphere(2), {"tolerance": -1.0}, "not a positive number"),
        (wave, Sphere(2), {"tolerance": 1e-18}, "below what float64 bears"),
        (in_single, Sphere(2), {"tolerance": 1e-9}, "computes in float32"),
        (in_single, Cube([(-1, 1)]), {"tolerance": 1e-3, "lipschitz": 1.0}, "(?s)contradict.*computes in float32"),
        (lambda x: wave(x).astype(np.float16), Sphere(2), {"tolerance": 1e-5}, "computes in float16"),
        (wave, Sphere(2), {"positions": 0}, "that many positions"),
        (wave, Sphere(2), {"positions": 10**9}, "that many positions"),
        (wave, Sphere(2), {"positions": 5.5}, "that many positions"),
        (wave, Sphere(2), {"positions": True}, "that many positions"),
        (wave, Sphere(2), {"positions": "5"}, "that many positions"),
        (wave, Sphere(2), {"tolerance": "1e-3"}, "not a positive number"),
        (wave, Sphere(2), {"tolerance": np.array([1e-3])}, "not a positive number"),
        (wave, Sphere(2), {"tolerance": 10**400}, "not a positive number"),
        (wave, Sphere(2), {"tolerance": 1e-3, "seconds": 10**400}, "number of seconds"),
        (wave, Sphere(2), {"tolerance": 1e-3, "value_limit": None}, "limit"),
        (wave, Sphere(2), {"tolerance": 1e-3, "seconds": None}, "number of seconds"),
        (wave, Sphere(2), {"tolerance": 1e-3, "seconds": math.nan}, "number of seconds"),
        (wave, Sphere(2), {"tolerance": 1e-3, "seed": -1}, "seed"),
        (wave, Sphere(2), {"tolerance": 1e-3, "seed": 1.5}, "seed"),
        (wave, Sphere(2), {"tolerance": 1e-3, "lipschitz": "3"}, "'lipschitz' cannot be"),
        (wave, Sphere(2), {"tolerance": 1e-3, "method": ["nearest"]}, "method is unknown"),
        (wave, Sphere(2), {"tolerance": 1e-3, "value_limit": 0.0}, "limit"),
        (wave, Sphere(2), {"tolerance": 1e-3, "method": "magic"}, "method is unknown"),
        (wave, Sphere(2), {"tolerance": 1e-3, "lipschitz": 0.5}, "contradict the Lipschitz constant 0.5"),
        (wave, Sphere(9), {"tolerance": 1e-2, "lipschitz": 3.0, "method": "nearest"}, "nearest feasible tolerance"),
        (lambda x: x[:, :1] / 0, Sphere(2), {"tolerance": 1e-3}, "not finite"),
        (lambda x: x[:5, 0], Sphere(2), {"tolerance": 1e-3}, "wrong shape"),
        (counting(), Sphere(2), {"tolerance": 1e-3}, "each point alone"),
        (wave, None, {"tolerance": 1e-3}, "domain is missing"),
        ("1e200 * x", Sphere(1), {"tolerance": 1e198}, "too large to compute with"),
    ],
)
def test_what_cannot_be_compiled_is_refused_with_a_remedy(
    function: object, domain: Domain | None, wish: dict[str, object], told: str
) -> None:
    with pytest.raises(CompileError, match=told) as refused:
        compile_function(function, domain, **wish)  # type: ignore[arg-type]
    assert refused.value.fix


def test_what_lies_above_the_steps_of_single_precision_is_compiled() -> None:
    """And a few numbers, or a table's, that float32 happens to have, are no sign of it."""
    assert compile_function(in_single, Sphere(1), tolerance=1e-3).positions < 10
    line = np.linspace(-1, 1, 200)
    seen: list[tuple[Any, Domain]] = [
        (lambda x: np.floor(4 * x[:, 0]) / 4, Cube([(-1, 1)])),
        (line.astype(np.float32) * 1.0, FiniteSet(line[:, None])),
    ]
    for given, domain in seen:
        wish: dict[str, Any] = {"tolerance": 1e-9, "positions": 4, "method": "auto", "value_limit": 10.0}
        assert not check(target_of(given, domain), domain, **wish)


def test_numbers_of_numpy_are_as_good_as_python_s(tmp_path: Path) -> None:
    told = {"tolerance": np.float32(1e-2), "value_limit": np.int64(10), "seed": np.int64(1), "seconds": np.float32(9)}
    compiled = compile_function("sin(2*x)", Sphere(np.int64(1)), lipschitz=np.float32(2), **told)  # type: ignore[arg-type]
    compiled.save(tmp_path / "wave.prefix")
    assert load_compiled(tmp_path / "wave.prefix").verify().verdict is Verdict.PROVED
    assert compile_function("x", Cube([(0, 1)]), positions=np.int64(2), certify=False).positions == 2  # type: ignore[arg-type]


def test_all_obstacles_are_told_not_the_first() -> None:
    target = Target(wave, domain=Sphere(2), lipschitz=0.1)
    found = check(target, Sphere(2), tolerance=1e-18, positions=-3, method="auto", value_limit=10.0)
    assert [obstacle.code for obstacle in found] == ["positions", "precision", "lipschitz"]
    assert "ratio" in found[-1].found


def test_a_contradicting_pair_of_points_is_named_and_true_constants_pass() -> None:
    def steep(x: np.ndarray) -> np.ndarray:
        return np.tanh(50 * (x[:, 0] - 0.3))

    def obstacles(constant: float) -> list[str]:
        target = Target(steep, domain=Cube([(0, 1)]), lipschitz=constant)
        found = check(target, Cube([(0, 1)]), tolerance=0.1, positions=None, method="auto", value_limit=10.0)
        return [obstacle.code for obstacle in found]

    assert obstacles(45.0) == ["lipschitz"]  # the largest slope is 50
    assert obstacles(50.0) == []


def test_a_draft_s_time_is_the_thread_s_work_and_half_of_its_waiting() -> None:
    made = Instant()
    time.sleep(0.2)
    assert 0.1 <= made.since() <= (time.perf_counter() - made.clock) / 2
    while time.thread_time() - made.work < 0.2:
        sum(range(1_000))
    assert made.since() >= 0.2
    assert Request(None, 1e-3, seconds=0.15, made=made).is_over()
    assert not Request(None, 1e-3, seconds=1_000.0, made=made).is_over()


def test_a_compiled_function_is_shown_on_one_line_and_a_domain_must_be_one() -> None:
    compiled = compile_function("x + 1", FiniteSet(np.array([[0.0], [1.0]])), positions=2)
    assert repr(compiled).startswith("CompiledFunction(x + 1: 2 positions by ")
    assert len(repr(compiled)) < 150
    with pytest.raises(CompileError, match="This is no domain") as refused:
        compile_function("x + 1", "S2", tolerance=1e-3)  # type: ignore[arg-type]
    assert refused.value.found == "str 'S2'"


def test_what_another_construction_outdoes_by_far_is_not_polished() -> None:
    asked = Request(24, None, rival=1e-7)
    assert asked.is_outdone(2e-4)
    assert not asked.is_outdone(5e-5)
    assert not Request(24, None).is_outdone(1e300)
    started = time.process_time()
    compiled = compile_function("abs(0.6*x - 0.8*y - 0.2)", Sphere(2), positions=24, certify=False)
    assert time.process_time() - started < 5.0  # 1.4 s; 9 s with a polish of keys that know no kink
    assert compiled.method == "adaptive"
    [by_kinks, smooth, _] = compiled.tried
    assert by_kinks.sampled is not None
    assert smooth.sampled is not None
    assert by_kinks.sampled < 1e-6 < 1e-3 < smooth.sampled


def test_a_domain_of_more_dimensions_than_arrays_have_is_refused() -> None:
    with pytest.raises(CompileError, match=r"too many dimensions(.|\n)*70, of at most 60"):
        compile_function("sin(2*x3)", Cube([(-1, 1)] * 70), tolerance=1e-3)


def test_a_remedy_of_several_obstacles_is_said_once() -> None:
    told = [Obstacle(code, f"{code} is too rough.", "1", "Give it more seconds.") for code in ("one", "other")]
    assert str(refusal(told).fix) == "Give it more seconds."
    assert "one is too rough. 1; other is too rough. 1" in refusal(told).found


@pytest.mark.parametrize(
    ("slope", "second", "is_true"), [(1.0, 1.75, True), (1.1, 1.75, False), (1.0, 0.1, False), (-1.0, 9.0, False)]
)
def test_declared_derivatives_that_samples_contradict_are_refused(slope: float, second: float, is_true: bool) -> None:
    def hidden(x: np.ndarray) -> np.ndarray:
        return np.array([float(np.sin(row[0]) * row[1]) for row in x])

    def gradient(x: np.ndarray) -> np.ndarray:
        return slope * np.stack([np.cos(x[:, 0]) * x[:, 1], np.sin(x[:, 0])], axis=1)

    square = Cube([(-1, 1)] * 2)
    target = Target(hidden, domain=square, gradient=gradient, second=second)
    found = check(target, square, tolerance=1e-3, positions=None, method="auto", value_limit=10.0)
    assert [obstacle.code for obstacle in found] == ([] if is_true else ["derivatives"])


@pytest.mark.parametrize(
    ("gradient", "told"),
    [
        (lambda x: x[:, 5], "raised an error"),
        (lambda x: x[:5], "wrong shape"),
        (lambda x: x.T, "wrong shape"),
        (lambda x: np.where(x > 0.5, np.nan, 1.0), "not finite"),
        (lambda x: x.shape[0] * "?", "raised an error"),
    ],
)
@pytest.mark.parametrize("kinks", [(), [((1.0, 0.0), 0.0)]])
def test_a_declared_gradient_that_is_none_is_refused(
    gradient: Callable[[np.ndarray], np.ndarray], told: str, kinks: list[tuple[tuple[float, float], float]]
) -> None:
    def hidden(x: np.ndarray) -> np.ndarray:
        return np.array([float(row[0] + row[1]) for row in x])

    target = Target(hidden, domain=Cube([(-1, 1)] * 2), gradient=gradient, second=1.0, kinks=tuple(kinks))
    with pytest.raises(CompileError, match=f"gradient.*{told}") as refused:
        compile_function(target, tolerance=1e-2)
    assert refused.value.fix


def test_an_oscillation_that_few_keys_miss_is_followed_by_more() -> None:
    """What suits nine keys best is no keys at all; from there the search for more does not find its way."""
    square = Cube([(-1, 1)] * 2)
    target = target_of("cos(6*x) * cos(6*y)", square)
    problem = GridProblem.of(target, square, chart_of(square), Request(None, 1e-2), np.random.default_rng(0), kinks=[])
    assert problem.attempt(9).error > 0.5
    assert problem.attempt(121).error < 0.05  # 11 along an axis, of which a period takes 6
