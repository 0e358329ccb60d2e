"""The covering radius and the a-priori bound that the checker recomputes hold, and are tight where theory says so."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.compiler.proofs import certificate_for

from foreword.certificate import Assumption, Verdict
from foreword.compiler.balls import precise
from foreword.compiler.charts import Flat, Identity, chart_of
from foreword.compiler.checker import check, check_compiled
from foreword.compiler.covering import covering_cosine, nearest_bound
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.head import Head
from foreword.compiler.nets import sphere_net
from foreword.compiler.pipeline import compile_function
from foreword.compiler.target import Target


def radius_of(keys: np.ndarray) -> float | None:
    with precise(2):
        cosine = covering_cosine(keys)
        return None if cosine is None else float(cosine.acos())


@pytest.mark.parametrize(("dimension", "count"), [(1, 7), (1, 100), (2, 12), (2, 300), (3, 200)])
def test_no_point_is_farther_than_the_covering_radius_and_some_are_nearly_so(dimension: int, count: int) -> None:
    net = sphere_net(dimension, count)
    radius = radius_of(17.0 * net)
    assert radius is not None
    points = Sphere(dimension).sample(100_000, np.random.default_rng(0))
    farthest = float(np.arccos(np.clip((points @ net.T).max(axis=1), -1, 1)).max())
    assert 0.9 * radius < farthest <= radius + 1e-9


def test_the_octahedron_is_at_the_angle_that_geometry_gives() -> None:
    """The middle of a face, (1, 1, 1) / sqrt 3, has the cosine 1 / sqrt 3 to its corners."""
    octahedron = np.concatenate([np.eye(3), -np.eye(3)])
    assert radius_of(octahedron) == pytest.approx(np.arccos(1 / np.sqrt(3)), abs=1e-12)


@pytest.mark.parametrize("dimension", [1, 2, 3])
def test_a_net_with_a_hole_has_no_small_radius(dimension: int) -> None:
    """Half a sphere is nobody's neighbourhood: the hull leaves the origin out, or a gap of half a turn."""
    net = sphere_net(dimension, 200)
    half = net[net[:, 0] > 0.05]
    radius = radius_of(half)
    assert radius is None or radius > np.pi / 2 - 0.2
    missing = net[np.linalg.norm(net - net[50], axis=1) > 0.7]
    found = radius_of(missing)
    reach = float(np.arccos((missing @ net[50]).max()))
    assert found is None or found >= reach - 1e-9


def soft_neighbours(dimension: int, count: int, share: float) -> tuple[Head, float]:
    """Keys of the sharpness of statement A.2 for a function that is 0 at the net; and the covering radius."""
    net = sphere_net(dimension, count)
    radius = radius_of(net)
    assert radius is not None
    sharpness = np.log(np.pi * count / (share * radius)) / (share * radius * np.sin(radius))
    return Head(sharpness * net, np.zeros(count), np.zeros((count, 1))), radius


@pytest.mark.parametrize(("dimension", "count"), [(1, 60), (2, 200), (3, 300)])
def test_the_a_priori_bound_is_what_statement_a2_says(dimension: int, count: int) -> None:
    """(1 + 2 eta) L delta at the statement's sharpness, and never below L delta, which the worst function attains."""
    head, radius = soft_neighbours(dimension, count, 0.1)
    with precise(2):
        bound = nearest_bound(head, 3.0, domain=Sphere(dimension), chart=Identity(dimension + 1))
    assert bound is not None
    assert 3.0 * radius <= float(bound.error) <= 3.0 * radius * 1.2


def test_a_lipschitz_certificate_is_confirmed_or_says_what_is_missing() -> None:
    domain = Sphere(2)
    head, radius = soft_neighbours(2, 200, 0.1)
    chart = chart_of(domain)

    def verdict(
        approximation: float,
        lipschitz: Any,
        told: Head = head,
        *,
        function: Callable[[np.ndarray], np.ndarray] | None = zero,
        named: str = "lipschitz",
    ) -> Verdict:
        target = None
        if function is not None:
            target = Target(function, domain=domain, lipschitz=lipschitz)
        certificate = replace(
            certificate_for(told, chart, None, domain, None, approximation, 0.0),
            target={"expression": None, "lipschitz": lipschitz} if target is None else target.as_dict(),
            assumptions=(Assumption(named, f"Lipschitz constant {lipschitz!r} (geodesic)", "declared"),),
        )
        return check(told, chart, None, domain, certificate.sealed(), target=target).verdict

    assert verdict(1.2 * radius, 1.0) is Verdict.PROVED
    assert verdict(1.2 * radius, 1.0, named="luck") is Verdict.NOT_REACHED
    assert verdict(1.2 * radius, 1.0, function=None) is Verdict.ASSUMPTION_UNVERIFIED
    assert verdict(1.2 * radius, 1.0, function=lambda points: zero(points) + 1.0) is Verdict.ASSUMPTION_UNVERIFIED
    assert verdict(1.2 * radius, 1.1) is Verdict.ASSUMPTION_UNVERIFIED
    assert verdict(0.9 * radius, 1.0) is Verdict.ASSUMPTION_UNVERIFIED
    assert verdict(1.2 * radius, None) is Verdict.ASSUMPTION_UNVERIFIED
    assert verdict(1.2 * radius, "1", function=None) is Verdict.ASSUMPTION_UNVERIFIED
    mirrored = head.keys * np.where(np.arange(200) == 3, -1, 1)[:, None]
    for changed in (
        Head(mirrored, head.biases, head.values),
        Head(head.keys / 50, head.biases, head.values),
        Head(head.keys, head.biases, head.values + 0.1 * radius * (np.arange(200) == 5)[:, None]),
    ):
        assert verdict(1.2 * radius, 1.0, changed) is not Verdict.PROVED


def zero(points: np.ndarray) -> np.ndarray:
    return np.zeros((len(points), 1))


def test_twenty_thousand_positions_are_covered_in_seconds() -> None:
    net = sphere_net(2, 20_000)
    started = time.process_time()
    radius = radius_of(net)
    assert radius is not None
    assert radius < 2.8 / np.sqrt(20_000)
    assert time.process_time() - started < 10  # 0.5 s here on a quiet machine; the cost grows with the count


def test_a_grid_of_gaussians_on_a_cube_is_bounded_as_statement_a2_says() -> None:
    """Cells of 0.5 by 0.25 have a half-diagonal of 0.28; the worst function, the distance to the net, attains it."""
    domain = Cube([(0, 3), (-1, 1)])
    chart = chart_of(domain)
    assert isinstance(chart, Flat)
    net = np.stack(np.meshgrid(np.arange(0.25, 3, 0.5), np.arange(-0.875, 1, 0.25), indexing="ij"), -1).reshape(-1, 2)
    radius, half = float(np.hypot(0.25, 0.125)), np.array(chart.half)
    sharpness = 2 * np.log(3.6 * len(net) / (0.1 * radius)) / ((1.1 * radius) ** 2 - radius**2)
    placed = chart(net)
    head = Head(
        sharpness * half**2 * placed, -sharpness * ((half * placed) ** 2).sum(axis=1) / 2, np.zeros((len(net), 1))
    )
    with precise(2):
        bound = nearest_bound(head, 2.0, domain=domain, chart=chart)
        assert bound is not None
        assert 2 * radius <= float(bound.error) <= 2 * 1.25 * radius
        broken = Head(head.keys[1:], head.biases[1:], head.values[1:])
        assert nearest_bound(broken, 2.0, domain=domain, chart=chart) is None
        tilted = Head(head.keys, head.biases * np.linspace(1, 1.01, len(net)), head.values)
        worse = nearest_bound(tilted, 2.0, domain=domain, chart=chart)
        assert worse is None or worse.error > bound.error


@pytest.mark.parametrize(
    ("domain", "count"),
    [(Sphere(1), 1), (Sphere(1), 2), (Sphere(2), 2), (Sphere(3), 5), (Sphere(3), 9), (Cube([(29, 85)] * 3), 1)],
)
def test_prefixes_of_very_few_positions_are_checked_too(domain: Sphere | Cube, count: int) -> None:
    """Where a net is too coarse for the statement, an average of values is never off by more than L times the size."""
    compiled = compile_function("abs", domain, positions=count, lipschitz=1.0, method="nearest")
    assert compiled.positions <= count
    assert compiled.verify().verdict is compiled.certificate.verdict is Verdict.PROVED  # type: ignore[union-attr]


def test_the_check_of_a_long_net_keeps_to_its_time() -> None:
    compiled = compile_function("abs", Sphere(3), positions=1_200, lipschitz=1.0, method="nearest")
    assert "ran out of time" in compiled.verify(seconds=0.0).reasons[0]
    shares: list[float] = []
    assert compiled.verify(progress=shares.append).verdict is Verdict.PROVED
    assert shares == sorted(shares)
    assert len(shares) > 10


def test_a_smaller_constant_than_the_certificate_says_is_refused() -> None:
    compiled = compile_function("x*y", Sphere(1), tolerance=0.2, lipschitz=1.0, method="nearest")
    file = compiled._file()
    target = {**file.target, "lipschitz": 0.5}
    assert file.certificate is not None
    terms = {**file.certificate.terms, "approximation": 0.11}
    bound = (0.11 + terms["rounding_float64"]) * (1 + 2.0**-51)
    forged = replace(file.certificate, target=target, terms=terms, bound=bound, seen=0.05).sealed()
    found = check_compiled(replace(file, target=target, certificate=forged))
    assert found.verdict is Verdict.NOT_REACHED
    assert any("not the number" in reason for reason in found.reasons)
