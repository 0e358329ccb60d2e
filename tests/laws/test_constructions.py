"""Laws that every construction keeps, whatever the target and the domain."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest

from foreword.compiler.arrays import Floats
from foreword.compiler.construction.adaptive import Adaptive
from foreword.compiler.construction.contract import OUT_OF_TIME, Construction, Draft, Obstacle, Request
from foreword.compiler.construction.nearest import Nearest, reach, sharpness_for
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.target import Target

pytestmark = pytest.mark.usefixtures("hardly_polished")

CONSTRUCTIONS: list[Construction] = [Nearest(), Spectral(), Adaptive()]
TABLE = FiniteSet(np.random.default_rng(0).normal(size=(60, 2)))
DOMAINS: list[Domain] = [Sphere(1), Sphere(2), Sphere(3), Cube([(-1, 1)]), Cube([(0, 2), (-3, -1)]), TABLE]


def smooth(seed: int, columns: int, outputs: int = 1) -> Callable[[Floats], Floats]:
    """A random smooth function with a kink of a random size across x0 = 0.1."""
    rng = np.random.default_rng(seed)
    waves, phases = rng.normal(size=(columns, 4, outputs)), rng.uniform(0, 6, (4, outputs))
    slopes = rng.uniform(0.2, 1.0, outputs)

    def function(points: Floats) -> Floats:
        waved = np.sin(np.tensordot(points, waves, axes=1) + phases).sum(axis=1) / 4
        return waved + slopes * np.abs(points[:, :1] - 0.1)

    return function


def drafted(construction: Construction, target: Target, **wish: object) -> Draft:
    asked = Request(**{"positions": None, "tolerance": None, **wish})  # type: ignore[arg-type]
    found = construction.draft(target, target.domain, asked, rng=np.random.default_rng(1))
    assert isinstance(found, Draft), str(found)
    return found


@pytest.mark.parametrize("construction", CONSTRUCTIONS, ids=lambda construction: construction.name)
@pytest.mark.parametrize("kinks", [(), [((1.0, 0.0), 0.1)]])
def test_a_draft_ends_after_its_first_tries_when_time_is_up(
    construction: Construction, kinks: list[tuple[tuple[float, ...], float]]
) -> None:
    evaluated = 0

    def jumping(points: Floats) -> Floats:
        nonlocal evaluated
        evaluated += len(points)
        return np.where(points[:, 0] > 0.1, 1.0, 0.0)

    target, rng = Target(jumping, domain=Cube([(-1, 1)] * 2), kinks=tuple(kinks)), np.random.default_rng(1)
    started = time.process_time()
    found = construction.draft(target, target.domain, Request(None, 1e-3, seconds=0.0), rng=rng)
    assert isinstance(found, Obstacle)
    assert found.code == (OUT_OF_TIME if kinks or construction.name != "adaptive" else "kinks")
    assert found.remedy or found.code == "kinks"
    assert time.process_time() - started < 4  # 0.2 s; 9 s where the polish has no clock
    short = construction.draft(target, target.domain, Request(30, None, seconds=0.0), rng=rng)
    assert isinstance(short, Draft) or found.code == "kinks"


def test_a_table_has_no_kinks_to_adapt_to() -> None:
    target = Target(smooth(3, 2), domain=TABLE)
    asked = Request(positions=24, tolerance=None)
    assert isinstance(Adaptive().draft(target, TABLE, asked, rng=np.random.default_rng(1)), Obstacle)


@pytest.mark.parametrize(
    ("construction", "domain"),
    [
        (construction, domain)
        for construction in CONSTRUCTIONS
        for domain in DOMAINS
        if not (isinstance(domain, FiniteSet) and isinstance(construction, Adaptive))
    ],
    ids=str,
)
def test_a_draft_is_as_short_and_as_good_as_it_says(construction: Construction, domain: Domain) -> None:
    target = Target(smooth(3, domain.columns), domain=domain, kinks=kinks_for(domain))
    draft = drafted(construction, target, positions=24)
    assert 1 <= draft.head.positions <= 24
    limit = max(10.0, 2 * np.abs(target.evaluate(domain.spread(2_000))).max())
    assert np.abs(draft.head.values).max() <= limit * (1 + 1e-9)
    # The error at 500 other points exceeds that at 20,000 only where the largest error is more peaked than the samples
    # are dense; a factor of 1.5 is above what 24 positions leave between them.
    points = domain.sample(500, np.random.default_rng(99))
    error = np.abs(draft.head.evaluate(draft.chart(points)) - target.evaluate(points)).max()
    assert error <= 1.5 * draft.sampled + 1e-12


@pytest.mark.parametrize("construction", CONSTRUCTIONS, ids=lambda made: made.name)
def test_the_output_lies_in_the_hull_of_the_values_and_positions_have_no_order(construction: Construction) -> None:
    target = Target(smooth(4, 3, 2), domain=Sphere(2), kinks=kinks_for(Sphere(2)))
    head = drafted(construction, target, positions=24).head
    queries = Sphere(2).sample(500, np.random.default_rng(2))
    found = head.evaluate(queries)
    # 24 products and sums of numbers within the values' size: 30 roundings.
    slack = 30 * np.finfo(float).eps * np.abs(head.values).max()
    assert (found >= head.values.min(axis=0) - slack).all()
    assert (found <= head.values.max(axis=0) + slack).all()
    order = np.random.default_rng(3).permutation(head.positions)
    shuffled = Head(head.keys[order], head.biases[order], head.values[order])
    assert np.abs(shuffled.evaluate(queries) - found).max() <= 2 * slack


@pytest.mark.parametrize("domain", [Sphere(1), Sphere(2), Cube([(-1, 1)] * 2)], ids=str)
def test_refining_never_raises_the_a_priori_error(domain: Domain) -> None:
    target = Target(smooth(5, domain.columns), domain=domain, lipschitz=20.0)
    bounds = [drafted(Nearest(), target, positions=count).a_priori for count in (8, 16, 32, 64, 128)]
    assert all(later is not None and earlier is not None for earlier, later in itertools.pairwise(bounds))
    assert all(later <= earlier for earlier, later in itertools.pairwise(bounds))  # type: ignore[operator]


def test_sharper_never_raises_the_a_priori_error() -> None:
    reached = [reach(Sphere(2), 0.1, 700, sharpness) for sharpness in np.geomspace(10, 1e7, 60)]
    assert (np.diff(reached) <= 0).all()
    assert reach(Sphere(2), 0.1, 700, sharpness_for(Sphere(2), 0.1, 700, 0.104)) <= 0.104


@pytest.mark.parametrize(
    "method", [Nearest(), pytest.param(Spectral(), marks=pytest.mark.slow)], ids=lambda made: made.name
)
def test_outputs_are_compiled_as_if_each_were_alone(method: Construction) -> None:
    function = smooth(6, 2, 3)
    whole = Target(function, domain=Sphere(1), lipschitz=20.0)
    together = drafted(method, whole, positions=20)
    for output in range(3):
        alone = drafted(
            method, Target(lambda x, j=output: function(x)[:, j], domain=Sphere(1), lipschitz=20.0), positions=20
        )
        if isinstance(method, Nearest):  # the net and the temperature do not depend on the values
            assert np.array_equal(alone.head.keys, together.head.keys)
            assert np.array_equal(alone.head.values[:, 0], together.head.values[:, output])
        else:  # outputs share their keys, so each does as well as the worst of the three at most
            assert alone.sampled <= 3 * together.sampled


@pytest.mark.parametrize("construction", CONSTRUCTIONS, ids=lambda made: made.name)
def test_a_draft_depends_on_its_seed_alone(construction: Construction) -> None:
    target = Target(smooth(7, 3), domain=Sphere(2), kinks=kinks_for(Sphere(2)))
    heads = [drafted(construction, target, positions=20).head for _ in range(2)]
    assert heads[0].digest == heads[1].digest


def kinks_for(domain: Domain) -> tuple[tuple[tuple[float, ...], float], ...]:
    return () if isinstance(domain, FiniteSet) else (((1.0, *[0.0] * (domain.columns - 1)), 0.1),)
