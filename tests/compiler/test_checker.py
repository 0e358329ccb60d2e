"""The checker confirms what is true by a margin, and refuses whatever is false or was changed, sealed anew or not."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.compiler.proofs import CIRCLE, SPHERE, Proof, certificate_for, fitted, proof_of, uniform

from foreword.certificate import Certificate, Verdict
from foreword.compiler.charts import Flat, chart_of
from foreword.compiler.checker import check
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Cube, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.parser import parse_expression
from foreword.compiler.pipeline import compile_function
from foreword.compiler.proof import prove
from foreword.compiler.target import Target


@pytest.fixture(scope="module")
def circle() -> Proof:
    """24 positions on S^1, an error of 1e-7."""
    return proof_of(CIRCLE, Sphere(1), positions=24, sharpness=5.0, level=4, order=12, cutoff=1e-11, slack=1.3)


def test_the_proof_on_the_circle_is_confirmed_within_two_seconds(circle: Proof) -> None:
    """The issue's speed is for a quiet machine; here it may be shared by eight, so best of three."""
    results = [check(*circle.parts) for _ in range(3)]
    assert all(result.verdict is Verdict.PROVED and not result.is_refused for result in results)
    assert circle.true < 1.2e-7
    assert min(result.seconds for result in results) < 2


def test_a_certificate_survives_json(circle: Proof) -> None:
    told = json.loads(json.dumps(circle.certificate.as_dict()))
    assert Certificate.from_dict(told) == circle.certificate
    endless = replace(circle.certificate, bound=np.inf, tolerance=None).sealed()
    assert Certificate.from_dict(json.loads(json.dumps(endless.as_dict(), allow_nan=False))) == endless


@pytest.mark.parametrize(
    ("text", "domain", "positions", "knots", "level"),
    [
        ("sin(3*x) * exp(-y**2)", Cube([(-1, 1), (0, 2)]), 49, None, 3),
        ("tanh(x - y) * sqrt(3 + x) / (2.5 + y)", Cube([(-1, 1)] * 2), 49, None, 2),
        ("max(x, 0.3) + y", Cube([(-1, 1)] * 2), 49, {0: 0.3}, 2),
        ("abs(x) + y*z", Sphere(2), 49, {0: 0.0}, 2),
        ("[exp(x), x*y]", Sphere(1), 14, None, 3),
    ],
)
def test_honest_proofs_are_confirmed_and_lowered_ones_are_not(
    text: str, domain: Sphere | Cube, positions: int, knots: dict[int, float] | None, level: int
) -> None:
    proof = proof_of(text, domain, positions=positions, sharpness=2.0, level=level, order=6, slack=2.0, knots=knots)
    assert check(*proof.parts).verdict is Verdict.PROVED
    low = with_approximation(proof, 0.97 * proof.true)
    result = check(*low.parts)
    assert result.verdict is Verdict.NOT_REACHED
    assert result.is_refused


def test_three_angles_are_bounded_too() -> None:
    """S^3 with a wide margin: a narrow one takes thousands of cells."""
    proof = proof_of("0.5*x0 + x3", Sphere(3), positions=12, sharpness=1.0, level=0, order=5, slack=8.0)
    assert check(*proof.parts).verdict is Verdict.PROVED
    assert check(*with_approximation(proof, 0.3 * proof.true).parts).verdict is Verdict.NOT_REACHED


def with_approximation(proof: Proof, approximation: float) -> Proof:
    """A consistent, sealed certificate with another approximation term."""
    terms = {**proof.certificate.terms, "approximation": approximation}
    bound = approximation + terms["rounding_float64"]
    return proof.told(terms=terms, bound=bound, tolerance=2 * bound, seen=0.0)


@pytest.mark.parametrize(
    ("text", "domain", "positions"),
    [
        (CIRCLE, Sphere(1), 24),
        ("sin(2*x) * exp(-y**2)", Cube([(-1, 1)] * 2), 36),
        ("sqrt(x*x + 2*y**2)", Cube([(-1, 1)] * 2), 16),  # a cone: the root touches 0
        ("sqrt(x) - arccos(x)", Cube([(0, 1)]), 12),  # no slope at either side
        ("x**0.7 * sqrt(1 - x/3)", Cube([(0, 3)]), 12),
        ("sqrt(1 + y)", Sphere(1), 12),
        ("sqrt(max(x, 0))**3 - sqrt(-min(x, 0))**3", Cube([(-1, 1)]), 12),  # one of two roots is of 0 everywhere
    ],
)
def test_what_the_search_proves_the_checker_confirms(text: str, domain: Sphere | Cube, positions: int) -> None:
    """Two arithmetics that share no code, and opposite ways to bound: interpolation there, Taylor moments here."""
    expression, chart = parse_expression(text, domain.columns), chart_of(domain)
    head = fitted(domain, expression, positions, 4.0, 1e-9)
    proof = prove(head, chart, Target(domain=domain, expression=expression), domain)
    result = check(head, chart, expression, domain, proof.certificate.sealed(), proof.cover)
    assert (result.verdict, result.reasons) == (Verdict.PROVED, ())


# Changes by somebody who cannot seal


def leaves(told: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all numbers and texts in JSON values."""
    if isinstance(told, dict | list):
        for key in told if isinstance(told, dict) else range(len(told)):
            yield from leaves(told[key], (*path, key))
    elif told is not None:
        yield path


def changed_at(told: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """One number by its last bit, one text by a letter."""
    changed = copy.deepcopy(told)
    at = changed
    for key in path[:-1]:
        at = at[key]
    value = at[path[-1]]
    if isinstance(value, bool):
        at[path[-1]] = not value
    elif isinstance(value, int):
        at[path[-1]] = value + 1
    else:
        at[path[-1]] = float(np.nextafter(value, 2 * value + 1)) if isinstance(value, float) else value + "0"
    return changed


def test_a_certificate_with_any_entry_changed_by_its_last_bit_is_refused(circle: Proof) -> None:
    told = circle.told(
        effort={"seconds": 1.5, "cells": 32, "done": True}, remedy="none", tolerance=1.0
    ).certificate.as_dict()
    told = json.loads(json.dumps(told))
    paths = list(leaves(told))
    assert len(paths) > 20
    for path in paths:
        if path == ("verdict",):
            continue  # no other word reads as a verdict
        changed = Certificate.from_dict(changed_at(told, path))
        result = check(*replace(circle, certificate=changed).parts)
        assert result.verdict is Verdict.NOT_REACHED, path


@pytest.mark.parametrize("name", ["keys", "biases", "values"])
def test_a_head_with_any_number_changed_by_its_last_bit_is_refused(circle: Proof, name: str) -> None:
    array = getattr(circle.head, name)
    for place in np.ndindex(array.shape):
        other = array.copy()
        other[place] = np.nextafter(other[place], np.inf)
        changed = replace(circle, head=replace(circle.head, **{name: other}))
        assert check(*changed.parts).verdict is Verdict.NOT_REACHED


def test_a_cover_with_any_number_changed_is_refused(circle: Proof) -> None:
    cover = circle.cover
    for cell in range(len(cover)):
        levels, indices = cover.levels.copy(), cover.indices.copy()
        levels[cell] += 1
        indices[cell] ^= np.uint64(1)
        for other in (Cover(levels, cover.indices, cover.knots), Cover(cover.levels, indices, cover.knots)):
            assert check(*replace(circle, cover=other).parts).verdict is Verdict.NOT_REACHED
    for end in range(2):
        knots = [axis.copy() for axis in cover.knots]
        knots[0][end] = np.nextafter(knots[0][end], 0)
        assert check(*replace(circle, cover=Cover(cover.levels, cover.indices, knots)).parts).is_refused


# Lies by somebody who can: only the mathematics is left. (A change that leaves the claim true is not a lie.)


def reseal(proof: Proof, **parts: Any) -> Proof:
    """Other parts, with every digest in the certificate computed anew."""
    changed = replace(proof, **parts)
    cover = {**(changed.certificate.cover or {}), "digest": changed.cover.digest, "cells": len(changed.cover)}
    return changed.told(head=changed.head.digest, cover=cover, domain=changed.domain.as_dict())


def without(cover: Cover, cell: int) -> Cover:
    return Cover(np.delete(cover.levels, cell, 0), np.delete(cover.indices, cell, 0), cover.knots)


def term(name: str, factor: float) -> Callable[[Proof], Proof]:
    def lie(proof: Proof) -> Proof:
        terms = {**proof.certificate.terms}
        terms[name] *= factor
        bound = terms["approximation"] + terms["context"] + terms["rounding_float64"]
        return proof.told(terms=terms, bound=bound)

    return lie


def moved(name: str, by: float) -> Callable[[Proof], Proof]:
    def lie(proof: Proof) -> Proof:
        array = getattr(proof.head, name).copy()
        array[7 % len(array)] += by
        return reseal(proof, head=replace(proof.head, **{name: array}))

    return lie


def narrowed(end: int) -> Callable[[Proof], Proof]:
    def lie(proof: Proof) -> Proof:
        knots = [axis.copy() for axis in proof.cover.knots]
        knots[0][end] = np.nextafter(knots[0][end], 0)
        knots[0][end] = np.nextafter(knots[0][end], 0)
        return reseal(proof, cover=Cover(proof.cover.levels, proof.cover.indices, knots))

    return lie


LIES: dict[str, Callable[[Proof], Proof]] = {
    "bound below the truth": lambda p: with_approximation(p, 0.97 * p.true),
    "bound of nothing": lambda p: with_approximation(p, 0.0),
    "bound lowered alone": lambda p: p.told(bound=0.9 * p.certificate.bound),
    "bound raised alone": lambda p: p.told(bound=1.1 * p.certificate.bound),
    "bound not a number": lambda p: p.told(bound=float("nan"), terms={**p.certificate.terms, "context": float("nan")}),
    "negative bound": lambda p: p.told(bound=-p.certificate.bound),
    "negative context pays for the rest": lambda p: p.told(terms={**p.certificate.terms, "context": -1e-9}),
    "seen above the bound": lambda p: p.told(seen=2 * p.certificate.bound),
    "seen elsewhere": lambda p: p.told(effort={"seen_at": [0.6, 0.8]}, seen=0.99 * p.certificate.bound),
    "tolerance below the bound": lambda p: p.told(tolerance=0.9 * p.certificate.bound),
    "tolerance of nothing": lambda p: p.told(tolerance=0.0),
    "verdict too modest": lambda p: p.told(verdict=Verdict.NOT_REACHED),
    "rounding_float64 too small": term("rounding_float64", 0.5),
    "rounding_float32 too small": term("rounding_float32", 0.5),
    "rounding_bfloat16 too small": term("rounding_bfloat16", 0.5),
    "no rounding term": lambda p: p.told(
        terms={"approximation": p.certificate.bound, "context": 0.0, "rounding_float64": 0.0}
    ),
    "a value moved": moved("values", 1e-5),
    "a key moved": moved("keys", 1e-4),
    "a bias moved": moved("biases", 1e-5),
    "a value not a number": moved("values", float("nan")),
    "a position left out": lambda p: reseal(
        p, head=Head(p.head.keys[1:], p.head.biases[1:], p.head.values[1:])
    ),
    "a cell left out": lambda p: reseal(p, cover=without(p.cover, 5)),
    "the last cell left out": lambda p: reseal(p, cover=without(p.cover, len(p.cover) - 1)),
    "box starts late": narrowed(0),
    "box ends early": narrowed(1),
    "another expression": lambda p: replace(
        p.told(target={**p.certificate.target, "expression": "0.5*sin(3*x) + 0.5*cos(2*y)*y + 0.000001"}),
        expression=parse_expression("0.5*sin(3*x) + 0.5*cos(2*y)*y + 0.000001", 2),
    ),
    "more outputs than the head has": lambda p: replace(
        p.told(target={**p.certificate.target, "expression": "[x, y]"}), expression=parse_expression("[x, y]", 2)
    ),
    "another chart": lambda p: replace(p, chart=Flat((0.0, 0.0), (1.0001, 1.0))),
    "an order that is none": lambda p: p.told(cover={**(p.certificate.cover or {}), "order": 10**9}),
    "an order that is a text": lambda p: p.told(cover={**(p.certificate.cover or {}), "order": "12"}),
    "a cover that is a list": lambda p: p.told(cover=[1]),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_sealed_lie_is_refused(circle: Proof, lie: str) -> None:
    result = check(*LIES[lie](circle).parts)
    assert result.verdict is Verdict.NOT_REACHED
    assert result.reasons


def test_sealing_anew_without_a_lie_is_confirmed(circle: Proof) -> None:
    """Otherwise the test above would only show that the seal is wrong."""
    assert check(*reseal(circle).parts).verdict is Verdict.PROVED
    assert check(*with_approximation(circle, 1.31 * circle.true).parts).verdict is Verdict.PROVED
    fewer = circle.told(cover={**(circle.certificate.cover or {}), "order": 6})
    assert check(*fewer.parts).verdict is Verdict.PROVED  # another order is a slower way to the same truth


def test_a_needle_between_any_samples_is_found() -> None:
    """A hundred thousandth wide and a hundred high where the certificate says 1e-3: no sampling would see it."""
    text = "0.001*x + 100*exp(-((x - 0.123456789)*100000)**2)"
    domain, expression = Cube([(-1, 1)]), parse_expression(text, 1)
    head = Head(np.zeros((1, 1)), np.zeros(1), np.zeros((1, 1)))
    cover = uniform(domain, 3)
    certificate = certificate_for(head, chart_of(domain), expression, domain, cover, 1.01e-3, 1e-3)
    result = check(head, chart_of(domain), expression, domain, certificate, cover)
    assert result.verdict is Verdict.NOT_REACHED


def test_without_time_nothing_is_proved(circle: Proof) -> None:
    result = check(*circle.parts, seconds=0.0)
    assert result.verdict is Verdict.ASSUMPTION_UNVERIFIED
    assert "ran out of time" in result.reasons[0]


def test_progress_ends_at_the_whole(circle: Proof) -> None:
    seen: list[float] = []
    check(*circle.parts, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_what_cannot_be_checked_is_named(circle: Proof) -> None:
    unknown = replace(circle.told(target={"expression": None}, cover=None), expression=None, cover=None)
    result = check(*unknown.parts)
    assert result.verdict is Verdict.ASSUMPTION_UNVERIFIED
    assert "no expression" in result.reasons[0]
    estimate = circle.told(verdict=Verdict.ASSUMPTION_UNVERIFIED)
    assert check(*estimate.parts).verdict is Verdict.ASSUMPTION_UNVERIFIED
    context = circle.certificate.terms | {"context": 1e-9}
    told = circle.told(terms=context, bound=circle.certificate.bound + 1e-9)
    assert "context" in check(*told.parts).reasons[0]


def test_a_turned_frame_covers_the_sphere_all_the_same() -> None:
    """The kink of |x + y| lies on the first angle's knot when the frame's first column is its normal."""
    from foreword.compiler.domain import frame_along

    domain, text = Sphere(2), "abs(x + y) + z"
    proof = proof_of(text, domain, positions=40, sharpness=4.0, level=2, knots={0: 0.0})
    cover = Cover(proof.cover.levels, proof.cover.indices, proof.cover.knots, frame_along([1.0, 1.0, 0.0]))
    assert check(*reseal(proof, cover=cover).parts).verdict is Verdict.PROVED
    low = reseal(with_approximation(proof, 0.97 * proof.true), cover=cover)
    assert check(*low.parts).verdict is Verdict.NOT_REACHED


def test_a_table_is_checked_at_every_point() -> None:
    rng = np.random.default_rng(3)
    domain = FiniteSet(rng.normal(size=(40, 2)))
    samples = rng.normal(size=(40, 1))
    chart = chart_of(domain)
    net = chart(domain.points)
    head = Head(200 * net, -100 * (net**2).sum(axis=1), samples + 1e-6 * rng.normal(size=(40, 1)))
    true = float(np.abs(head.evaluate(net) - samples).max())
    certificate = certificate_for(head, chart, None, domain, None, 1.01 * true, true)
    assert check(head, chart, None, domain, certificate, samples=samples).verdict is Verdict.PROVED
    other = samples.copy()
    other[17] += 2.1 * true
    assert check(head, chart, None, domain, certificate, samples=other).verdict is Verdict.NOT_REACHED
    assert check(head, chart, None, domain, certificate).verdict is Verdict.ASSUMPTION_UNVERIFIED


@pytest.mark.slow
def test_the_sphere_with_128_positions_is_confirmed_within_a_minute() -> None:
    proof = proof_of(SPHERE, Sphere(2), positions=128, sharpness=4.0, level=5, order=8, cutoff=1e-10, slack=1.3)
    result = check(*proof.parts, seconds=120)
    assert result.verdict is Verdict.PROVED
    assert result.seconds < 60


@pytest.mark.parametrize("dimension", [2, 3])
def test_a_kink_across_all_axes_is_checked_in_few_cells(dimension: int) -> None:
    names = "xyz" if dimension == 2 else ("x0", "x1", "x2")
    text = "abs(0.345*{} - 0.213*{} + 0.9*{} + 0.1)".format(*names)
    compiled = compile_function(text, Sphere(dimension), tolerance=0.02, method="adaptive")
    found = compiled.verify(seconds=20)
    assert found.verdict is Verdict.PROVED
    assert found.cells < 20_000  # 198 on S^2; cells that were halved along one angle alone did not end
