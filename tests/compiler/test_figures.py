"""The prefix lengths that are promised, at points no construction has seen, with values of magnitude at most 10."""

from __future__ import annotations

import math

import numpy as np
import pytest

from foreword.compiler.construction.adaptive import Adaptive
from foreword.compiler.construction.contract import Construction, Draft, Request
from foreword.compiler.construction.nearest import Nearest
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.target import Target


def wave(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.sin(3 * x[:, 0]) + 0.5 * np.cos(2 * x[:, 1]) * x[:, -1]


def bump(x: np.ndarray) -> np.ndarray:
    return np.exp(-2 * ((x - np.eye(x.shape[1])[0]) ** 2).sum(axis=1))


def kink(x: np.ndarray) -> np.ndarray:
    return np.abs(x[:, 0])


def oblique(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.6 * x[:, 0] - 0.8 * x[:, 1] - 0.2, 0)


def drafted(construction: Construction, function: object, domain: Domain, **wish: object) -> Draft:
    target = Target(function, domain=domain, lipschitz=1.0 if wish.pop("is_lipschitz", False) else None)  # type: ignore[arg-type]
    asked = Request(**{"positions": None, "tolerance": None, **wish})  # type: ignore[arg-type]
    draft = construction.draft(target, domain, asked, rng=np.random.default_rng(0))
    assert isinstance(draft, Draft), str(draft)
    assert np.abs(draft.head.values).max() <= 10 * (1 + 1e-9)
    return draft


@pytest.mark.parametrize(
    ("function", "domain", "positions", "error"),
    [
        pytest.param(wave, Sphere(1), 24, 1e-7, marks=pytest.mark.slow),
        pytest.param(wave, Sphere(2), 128, 1e-5, marks=pytest.mark.slow),
        (bump, Sphere(2), 128, 1e-5),
        pytest.param(wave, Sphere(2), 192, 1e-6, marks=pytest.mark.slow),
        pytest.param(wave, Cube([(-1, 1)] * 2), 144, 1e-6, marks=pytest.mark.slow),
        pytest.param(wave, Sphere(2), 384, 2e-9, marks=pytest.mark.slow),
        pytest.param(bump, Sphere(2), 384, 2e-9, marks=pytest.mark.slow),
        pytest.param(wave, Sphere(3), 512, 3e-4, marks=pytest.mark.slow),
        pytest.param(bump, Sphere(3), 512, 3e-4, marks=pytest.mark.slow),
        pytest.param(wave, Cube([(-1, 1)] * 3), 1728, 2e-6, marks=pytest.mark.slow),
    ],
)
def test_smooth_targets_take_few_positions(function: object, domain: Domain, positions: int, error: float) -> None:
    draft = drafted(Spectral(), function, domain, positions=positions)
    assert draft.head.positions <= positions
    assert draft.sampled <= error


@pytest.mark.parametrize(("positions", "error"), [(24, 1e-4), pytest.param(61, 1e-6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("function", [kink, oblique])
@pytest.mark.parametrize("domain", [Sphere(1), Sphere(2), Sphere(6)], ids=str)
def test_a_kink_along_a_hyperplane_takes_few_positions_in_any_dimension(
    domain: Domain, function: object, positions: int, error: float
) -> None:
    assert drafted(Adaptive(), function, domain, positions=positions).sampled <= error


def test_61_positions_resolve_a_kink_to_a_millionth() -> None:
    assert drafted(Adaptive(), kink, Sphere(2), positions=61).sampled <= 1e-6


@pytest.mark.parametrize(
    ("dimension", "constant", "tolerance"),
    [
        *[(1, math.pi, tolerance) for tolerance in (0.5, 0.1, 0.01)],
        *[(2, 7.4, tolerance) for tolerance in (0.5, 0.1)],
        (3, 14.5, 0.5),
        *[pytest.param(2, 7.4, tolerance, marks=pytest.mark.slow) for tolerance in (0.3, 0.17, 0.05)],
        *[pytest.param(3, 14.5, tolerance, marks=pytest.mark.slow) for tolerance in (0.3, 0.17)],
    ],
)
def test_lipschitz_targets_take_no_more_than_the_covering_bound(
    dimension: int, constant: float, tolerance: float
) -> None:
    draft = drafted(Nearest(), kink, Sphere(dimension), tolerance=tolerance, is_lipschitz=True)
    assert draft.head.positions <= math.ceil(1.1 * constant / tolerance**dimension)
    assert draft.a_priori is not None
    assert draft.sampled <= draft.a_priori <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [2, 3])
def test_a_hundred_thousand_positions_are_placed(dimension: int) -> None:
    draft = drafted(Nearest(), kink, Sphere(dimension), positions=100_000, is_lipschitz=True)
    assert 99_000 < draft.head.positions <= 100_000  # the best of at most so many: lattices have few sizes
    assert draft.a_priori is not None
    assert draft.sampled <= draft.a_priori
