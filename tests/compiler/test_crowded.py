"""Crowded keys lie on the sphere, as close as the map says, and reach a pole that an even net does not."""

from __future__ import annotations

import numpy as np
import pytest

from foreword.compiler.charts import chart_of
from foreword.compiler.construction.contract import Request, Sampled
from foreword.compiler.construction.crowded import Crowded, crowded, moved
from foreword.compiler.construction.dense import DenseProblem
from foreword.compiler.construction.even import OnNet
from foreword.compiler.domain import Sphere
from foreword.compiler.target import Target


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_the_map_keeps_the_sphere_and_its_angles_and_the_opposite_pull_undoes_it(dimension: int) -> None:
    rng, step = np.random.default_rng(dimension), 1e-6
    points = Sphere(dimension).sample(50, rng)
    pull = 0.6 * Sphere(dimension).sample(1, rng)[0]
    image = moved(points, pull)
    assert np.allclose(np.linalg.norm(image, axis=1), 1.0, atol=1e-15)
    assert np.allclose(moved(image, -pull), points, atol=1e-14)
    beside = Sphere(dimension).sample(50, rng)
    beside -= (beside * points).sum(axis=1, keepdims=True) * points
    near = points + step * beside / np.linalg.norm(beside, axis=1, keepdims=True)
    near /= np.linalg.norm(near, axis=1, keepdims=True)
    stretched = np.linalg.norm(moved(near, pull) - image, axis=1) / step
    # In whatever direction, as the module's header has it; differences of step 1e-6 are exact to about 1e-5.
    assert np.allclose(stretched, ((image - pull) ** 2).sum(axis=1) / (1 - pull @ pull), rtol=1e-4)


def _problem(domain: Sphere, count: int) -> DenseProblem:
    direction = np.eye(domain.columns)[0]
    target = Target(lambda x: 0.4 / (1.25 + x @ direction), domain=domain, lipschitz=10.0)
    chart, rng = chart_of(domain), np.random.default_rng(0)
    fitted, chosen = (Sampled.at(domain.sample(size, rng), target, chart) for size in (600, 2000))
    return DenseProblem.of(OnNet(domain, chart), Request(count, None), fitted, chosen, most=count)


def test_keys_that_crowd_towards_a_pole_are_worth_a_factor_of_ten() -> None:
    """On the side of the circle on which 1 / (1.25 + x) is steep."""
    problem = _problem(Sphere(1), 14)
    found = crowded(problem, 14)
    assert found is not None
    assert found.error < 0.1 * problem.attempt(14).error
    places = found.head.keys / np.linalg.norm(found.head.keys, axis=1, keepdims=True)
    assert places[:, 0].mean() < -0.1


def test_no_pull_leaves_the_even_net_and_other_domains_are_left_alone() -> None:
    problem = _problem(Sphere(1), 9)
    pulled = Crowded(Sphere(1), np.zeros(2))
    even, other = (place.head(place.points(9), (0.2,), 1) for place in (problem.placement, pulled))
    queries = problem.chosen.queries[:50]
    assert np.allclose(even.weights(queries), other.weights(queries), atol=1e-12)
    assert crowded(_problem(Sphere(2), 8), 8) is None
