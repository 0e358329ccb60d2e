"""Polishing: derivatives that are derivatives, errors that fall, values that keep to their limit."""

from __future__ import annotations

import numpy as np
import pytest

from foreword.compiler.construction.contract import Draft, Request
from foreword.compiler.construction.fitting import Factors, bounded
from foreword.compiler.construction.polish import _moved, _Problem, polished
from foreword.compiler.construction.spectral import Spectral, net_points
from foreword.compiler.domain import Sphere
from foreword.compiler.head import Head
from foreword.compiler.target import target_of


def random_head(positions: int, width: int, outputs: int, *, seed: int = 0) -> Head:
    rng = np.random.default_rng(seed)
    return Head(
        rng.normal(size=(positions, width)), rng.normal(size=positions), 3 * rng.normal(size=(positions, outputs))
    )


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_jacobian_is_the_residuals_derivative(outputs: int) -> None:
    rng = np.random.default_rng(1)
    queries, weights = rng.normal(size=(40, 3)), rng.uniform(0.5, 2.0, 40)
    problem, head = _Problem(queries, rng.normal(size=(40, outputs)), 2.0), random_head(5, 3, outputs)
    jacobian = problem.jacobian(head, weights)
    step = rng.normal(size=jacobian.shape[1])
    size = 1e-6
    ahead, behind = (problem.residuals(_moved(head, sign * size * step), weights) for sign in (-1, 1))
    # The central difference's own error: size^2 times a third derivative of order 100, and 1e-15 / size of rounding.
    assert np.abs((ahead - behind) / (2 * size) - jacobian @ step).max() < 1e-8


def test_a_prefix_that_exists_is_found_again_from_close_by() -> None:
    queries = Sphere(2).spread(600)
    head = random_head(6, 3, 1)
    rng = np.random.default_rng(2)
    near = _moved(head, 0.05 * rng.normal(size=6 * 5))
    wanted = head.evaluate(queries)
    before = np.abs(near.evaluate(queries) - wanted).max()
    found = polished(near, queries, wanted, limit=100.0)
    assert np.abs(found.evaluate(queries) - wanted).max() < 1e-6 * before


@pytest.mark.parametrize(("domain", "positions", "gain"), [(Sphere(1), 12, 30.0), (Sphere(3), 64, 30.0)], ids=str)
def test_a_short_prefix_of_free_keys_beats_an_even_net(domain: Sphere, positions: int, gain: float) -> None:
    # Measured 400 and 300; an even net of three times the length is no better.
    target = target_of("bump", domain)
    draft = Spectral().draft(target, domain, Request(positions, None), rng=np.random.default_rng(0))
    assert isinstance(draft, Draft)
    assert draft.notes["polished"]
    assert np.abs(draft.head.values).max() <= 10.0 * (1 + 1e-9)
    assert draft.sampled * gain < even_error(domain, positions)


def even_error(domain: Sphere, positions: int) -> float:
    """The least error over the sharpness of an even net's solved values."""
    target, net = target_of("bump", domain), net_points(domain, positions)
    fit, other = domain.sample(1500, np.random.default_rng(5)), domain.spread(4000)
    errors = []
    for sharpness in np.geomspace(1, 20, 8):
        head = Head(sharpness * net, np.zeros(positions), np.zeros((positions, 1)))
        values = bounded(Factors.of(head.weights(fit)), target.evaluate(fit), 10.0).values
        errors.append(np.abs(head.weights(other) @ values - target.evaluate(other)).max())
    return float(min(errors))
