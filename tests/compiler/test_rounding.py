"""Rounding terms hold against 50-digit arithmetic and agree with the checker's own."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from flint import arb

from foreword.compiler import floating
from foreword.compiler.balls import precise
from foreword.compiler.head import Head
from foreword.compiler.rounding import rounding_terms

Draw = tuple[Head, np.ndarray]


def _draw(seed: int) -> Draw:
    rng = np.random.default_rng(seed)
    width, positions = int(rng.integers(1, 5)), int(rng.integers(1, 40))
    scale = 10 ** rng.uniform(-1, 6)
    head = Head(
        scale * rng.normal(size=(positions, width)),
        scale * rng.normal(size=positions) * rng.integers(0, 2),
        rng.normal(size=(positions, 2)) * 10 ** rng.uniform(-2, 2),
    )
    queries = rng.normal(size=(4, width))
    return head, queries / np.linalg.norm(queries, axis=1, keepdims=True)


def _exact(head: Head, query: np.ndarray) -> list[mpmath.mpf]:
    scores = [
        mpmath.fsum([mpmath.mpf(float(a)) * mpmath.mpf(float(b)) for a, b in zip(query, key, strict=True)])
        + float(bias)
        for key, bias in zip(head.keys, head.biases, strict=True)
    ]
    top = max(scores)
    weights = [mpmath.exp(score - top) for score in scores]
    total = mpmath.fsum(weights)
    return [
        mpmath.fsum([w * float(v) for w, v in zip(weights, column, strict=True)]) / total for column in head.values.T
    ]


@pytest.mark.parametrize("seed", range(25))
def test_float64_evaluation_is_within_its_term(seed: int) -> None:
    head, queries = _draw(seed)
    term = rounding_terms(head, norm=1.0 + 1e-15)["rounding_float64"]
    computed = head.evaluate(queries)
    with mpmath.workdps(50):
        for query, row in zip(queries, computed, strict=True):
            gaps = [abs(mpmath.mpf(float(a)) - b) for a, b in zip(row, _exact(head, query), strict=True)]
            assert max(gaps) <= term


@pytest.mark.parametrize("seed", range(25))
def test_float32_storage_and_arithmetic_are_within_their_term(seed: int) -> None:
    head, queries = _draw(seed)
    term = rounding_terms(head, norm=1.0 + 1e-15)["rounding_float32"]
    keys, biases, values, rows = (a.astype(np.float32) for a in (head.keys, head.biases, head.values, queries))
    scores = rows @ keys.T + biases
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    computed = weights @ values
    assert computed.dtype == np.float32
    assert np.abs(computed - head.evaluate(queries)).max() <= term


@pytest.mark.parametrize("seed", range(12))
def test_no_term_is_below_the_checkers_own_and_none_far_above(seed: int) -> None:
    head, _ = _draw(seed)
    mine = rounding_terms(head, norm=1.0, query_roundings=2)
    with precise(2):
        theirs = floating.rounding_terms(head, norm=arb(1), query_roundings=2)
    for name, term in mine.items():
        least = float(theirs[name])
        assert arb(term) >= theirs[name]
        assert term <= 1.5 * least


def test_a_term_that_would_overflow_is_infinite() -> None:
    head = Head(np.full((2, 1), 1e200), np.zeros(2), np.array([[1e308], [-1e308]]))
    terms = rounding_terms(head, norm=1e200)
    assert all(term == np.inf for term in terms.values())
