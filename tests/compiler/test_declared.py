"""A Python function that no expression stands for: what its caller declared is enough for the checker, and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from foreword.certificate import Certificate, Verdict
from foreword.compiler.balls import precise
from foreword.compiler.declared import Declared
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.enclosure import Problem
from foreword.compiler.head import Head
from foreword.compiler.pipeline import CompiledFunction, compile_function, load_compiled
from foreword.compiler.target import Target
from foreword.compiler.truncated import space_of


def black(function: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """The function where tracing cannot follow: through Python numbers."""
    return lambda x: function(np.array(x.tolist()))


def values(x: np.ndarray) -> np.ndarray:
    return np.sin(2 * x[:, 0]) + 0.5 * x[:, 1] ** 2


def gradient(x: np.ndarray) -> np.ndarray:
    found = np.zeros(x.shape)
    found[:, 0], found[:, 1] = 2 * np.cos(2 * x[:, 0]), x[:, 1]
    return found


def hessian(x: np.ndarray) -> np.ndarray:
    found = np.zeros((*x.shape, x.shape[1]))
    found[:, 0, 0], found[:, 1, 1] = -4 * np.sin(2 * x[:, 0]), 1.0
    return found


FACTS = {
    1: {"lipschitz": 2.3},
    2: {"gradient": gradient, "second": 4.0},
    3: {"gradient": gradient, "hessian": hessian, "third": 8.0},
}
"""|gradient| is at most |(2, 1)|, the second derivative at most 4, the third at most 8, on [-1, 1]^n."""


def declared(domain: Domain, terms: int) -> Target:
    return Target(black(values), domain=domain, **FACTS[terms])  # type: ignore[arg-type]


@pytest.mark.parametrize("terms", [1, 2, 3])
@pytest.mark.parametrize("domain", [Sphere(1), Sphere(2), Cube([(-1, 1), (-0.5, 1)])])
def test_the_function_lies_within_its_enclosure_on_every_cell(domain: Sphere | Cube, terms: int) -> None:
    rng = np.random.default_rng(terms)
    reading = Declared(declared(domain, terms))
    assert reading.terms == terms
    problem = Problem(Head(np.zeros((1, domain.columns)), np.zeros(1), np.zeros((1, 1))), (), reading.enclose,
                      isinstance(domain, Sphere))  # fmt: skip
    low, high = domain.box.T
    half = rng.uniform(0.001, 0.3, (20, domain.dimension))
    middle = rng.uniform(low + half, high - half)
    with precise(4):
        model = reading.enclose(problem.points(space_of(domain.dimension, 4), middle - half, middle + half))[0]
        lower, upper = (ends.astype(np.float64) for ends in model.range())
    for cell in range(20):
        points = domain.embed(rng.uniform(middle[cell] - half[cell], middle[cell] + half[cell], (400, len(low))))
        found = values(points)
        assert lower[cell] - 1e-12 <= found.min() <= found.max() <= upper[cell] + 1e-12
        assert upper[cell] - lower[cell] <= np.ptp(found) + 20 * half[cell].max()


def steep(x: np.ndarray) -> np.ndarray:
    return np.abs(x[:, 0] - 0.3) + x[:, 1]


def slope(x: np.ndarray) -> np.ndarray:
    found = np.zeros(x.shape)
    found[:, 0], found[:, 1] = np.sign(x[:, 0] - 0.3), 1.0
    return found


@pytest.mark.parametrize("domain", [Sphere(2), Cube([(-1, 1), (-0.5, 1)])])
def test_no_side_of_a_declared_kink_is_taken_for_the_other(domain: Sphere | Cube) -> None:
    """Cells that the kink divides, that end at it up to rounding, and that end a little beyond it."""
    kink = ((1.0, *[0.0] * (domain.columns - 1)), 0.3)
    reading = Declared(
        Target(
            black(steep), domain=domain, gradient=slope, second=0.0, lipschitz=2.0, kinks=(kink,), metric="euclidean"
        )
    )
    problem = Problem(Head(np.zeros((1, domain.columns)), np.zeros(1), np.zeros((1, 1))), (), reading.enclose,
                      isinstance(domain, Sphere))  # fmt: skip
    place = np.arcsin(0.3) if isinstance(domain, Sphere) else 0.3
    lower = np.array([[place - left, 0.1] for left in (0.2, 0.1, 0.1, 0.1, 1e-13, 1e-13)])
    upper = np.array([[place + right, 0.3] for right in (0.1, 2e-16, 1e-14, 1e-9, 0.2, 1e-13)])
    rng = np.random.default_rng(0)
    with precise(4):
        model = reading.enclose(problem.points(space_of(2, 4), lower, upper))[0]
        low, high = (ends.astype(np.float64) for ends in model.range())
    for cell in range(len(lower)):
        points = domain.embed(rng.uniform(lower[cell], upper[cell], (2_000, 2)))
        found = steep(points)
        assert low[cell] - 1e-12 <= found.min() <= found.max() <= high[cell] + 1e-12
        assert high[cell] - low[cell] <= np.ptp(found) + 8 * (upper - lower)[cell].max()


@pytest.mark.parametrize(
    ("domain", "tolerance", "terms", "premises"),
    [
        (Sphere(1), 0.05, 1, {"lipschitz"}),
        (Sphere(1), 1e-4, 3, {"gradient", "hessian", "third"}),
        pytest.param(Cube([(-1, 1), (-0.5, 1)]), 0.02, 2, {"gradient", "second"}, marks=pytest.mark.slow),
    ],
)
def test_a_proof_by_cells_from_declared_facts_is_confirmed_in_memory(
    domain: Domain, tolerance: float, terms: int, premises: set[str]
) -> None:
    compiled = compile_function(declared(domain, terms), tolerance=tolerance, method="spectral", seconds=20)
    told = proved(compiled)
    assert compiled.target is not None
    assert compiled.target.expression is None
    assert compiled.cover is not None
    assert {premise.code for premise in told.assumptions if premise.standing == "declared"} >= premises
    assert compiled.verify().verdict is Verdict.PROVED


def proved(compiled: CompiledFunction) -> Certificate:
    assert compiled.certificate is not None
    assert compiled.certificate.verdict is Verdict.PROVED
    return compiled.certificate


def test_a_certificate_that_hides_a_declared_fact_is_refused() -> None:
    compiled = compile_function(declared(Sphere(1), 1), tolerance=0.05, method="spectral")
    told = proved(compiled)
    hidden = replace(compiled, certificate=replace(told, assumptions=told.assumptions[1:]).sealed())
    assert told.assumptions[0].code == "lipschitz"
    result = hidden.verify()
    assert result.verdict is Verdict.NOT_REACHED
    assert "lipschitz" in result.reasons[0]


def test_another_function_than_the_certified_one_is_not_confirmed() -> None:
    """The same facts are declared of it, so only its values tell."""
    compiled = compile_function(declared(Sphere(1), 1), tolerance=0.05, method="spectral")
    assert compiled.target is not None
    other = replace(compiled.target, function=black(lambda x: values(x) + 0.06))
    assert replace(compiled, target=other).verify().verdict is not Verdict.PROVED
    renamed = replace(compiled.target, name="another")
    assert "target" in replace(compiled, target=renamed).verify().reasons[0]


def test_cells_that_a_declared_kink_divides_rest_on_the_lipschitz_constant() -> None:
    """|x0| with its kink declared: a proof by search, and its check, in memory."""

    def peak(x: np.ndarray) -> np.ndarray:
        return np.abs(x[:, 0])

    def sign(x: np.ndarray) -> np.ndarray:
        found = np.zeros(x.shape)
        found[:, 0] = np.sign(x[:, 0])
        return found

    for domain in (Sphere(2), Cube([(-1, 1)] * 2)):
        kink = ((1.0, *[0.0] * (domain.columns - 1)), 0.0)
        target = Target(
            black(peak), domain=domain, gradient=sign, second=0.0, lipschitz=1.0, kinks=(kink,), metric="euclidean"
        )
        compiled = compile_function(target, tolerance=0.02, method="adaptive", seconds=20)
        assert "lipschitz" in {premise.code for premise in proved(compiled).assumptions}
        assert compiled.verify().verdict is Verdict.PROVED


@pytest.mark.parametrize("domain", [Sphere(2), Cube([(0, 3), (-1, 1)]), Cube([(5, 5.5)])])
def test_soft_neighbours_of_a_black_box_are_confirmed_in_memory_but_not_from_a_file(
    domain: Domain, tmp_path: Path
) -> None:
    target = Target(black(lambda x: np.abs(x[:, 0] - 0.3)), domain=domain, lipschitz=1.0)
    compiled = compile_function(target, tolerance=0.2, method="nearest")
    told = proved(compiled)
    assert told.cover is None
    assert (told.assumptions[0].code, told.assumptions[0].standing) == ("lipschitz", "declared")
    assert compiled.verify().verdict is Verdict.PROVED
    compiled.save(tmp_path / "near.prefix")
    result = load_compiled(tmp_path / "near.prefix").verify()
    assert result.verdict is Verdict.ASSUMPTION_UNVERIFIED
    assert "nor at hand" in result.reasons[0]
