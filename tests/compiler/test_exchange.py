"""Samples where a head misses most: local errors fall, and nothing else is touched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from foreword.compiler.construction.contract import Draft, Request, unseen
from foreword.compiler.construction.exchange import exchanged
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.head import Head
from foreword.compiler.target import Target, target_of

SQUARE = Cube([(-1, 1)] * 2)


def drafted(text: str, domain: Domain, positions: int) -> tuple[Draft, Target]:
    target = target_of(text, domain)
    request = Request(positions, None, seconds=0.5)
    found = Spectral().draft(target, domain, request, rng=np.random.default_rng(0))
    assert isinstance(found, Draft)
    return found, target


def again(draft: Draft, target: Target, domain: Domain, seconds: float = 2.0) -> Draft:
    request = Request(draft.head.positions, None, seconds=seconds)
    return exchanged(draft, target, domain, request, np.random.default_rng(0))


@pytest.mark.slow
def test_a_cone_s_tip_is_met() -> None:
    draft, target = drafted("sqrt(x**2 + y**2)", SQUARE, 16)
    made = again(draft, target, SQUARE, seconds=3.0)
    assert made.sampled < 0.9 * draft.sampled
    assert made.notes["exchanged"]
    assert made.head.positions == draft.head.positions
    assert np.abs(made.head.values).max() <= Request(16, None).value_limit
    points = SQUARE.sample(20_000, np.random.default_rng(99))  # of no round
    errors = [
        np.abs(found.head.evaluate(found.chart(points)) - target.evaluate(points)).max() for found in (made, draft)
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("text", "domain"), [("sin(x + y)", SQUARE), ("sin(8*x)*cos(8*y)", SQUARE), ("x*y*z", Sphere(2))]
)
def test_errors_that_lie_everywhere_are_left(text: str, domain: Domain) -> None:
    """A smooth target that is met, one that so few positions miss all over the domain, and a polynomial."""
    draft, target = drafted(text, domain, 12)
    assert again(draft, target, domain) is draft


def test_a_draft_of_gates_and_one_without_time_are_left() -> None:
    draft, target = drafted("sqrt(x**2 + y**2)", SQUARE, 16)
    assert again(draft, target, SQUARE, seconds=0.0) is draft
    gated = replace(draft, method="adaptive")
    assert again(gated, target, SQUARE) is gated


def test_it_is_never_worse_than_it_was() -> None:
    """From a head that is right all over but for one narrow bump, in hardly any time."""
    draft, target = drafted("min(exp(-20*(x - 0.3)**2), 0.5)", Cube([(-1, 1)]), 8)
    made = again(draft, target, Cube([(-1, 1)]), seconds=0.1)
    assert made.sampled <= draft.sampled
    assert made.sampled == unseen(target, Cube([(-1, 1)]), made.chart, 8).worst(
        Head(made.head.keys, made.head.biases, made.head.values)
    )
