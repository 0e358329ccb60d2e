"""The recomputed rounding terms hold for what each dtype does, against balls of 128 bits, and are not vacuous."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from flint import arb

from foreword.compiler.balls import as_balls, precise
from foreword.compiler.domain import Sphere
from foreword.compiler.enclosure import exact_head
from foreword.compiler.floating import rounding_terms
from foreword.compiler.head import Head

Array = np.ndarray


def drawn(seed: int) -> tuple[Head, Array]:
    rng = np.random.default_rng(seed)
    positions, width = int(rng.integers(1, 60)), int(rng.integers(2, 6))
    scale = 10.0 ** rng.uniform(-1, 3)
    head = Head(
        scale * rng.normal(size=(positions, width)),
        scale * rng.normal(size=positions),
        10.0 ** rng.uniform(-2, 2) * rng.normal(size=(positions, 2)),
    )
    return head, Sphere(width - 1).sample(5, rng)


def in_dtype(head: Head, queries: Array, stored: type, carried: type) -> Array:
    """The head with its numbers stored in one dtype and carried in another; weights are rounded to the stored one."""
    keys, biases, values, asked = (
        array.astype(stored).astype(carried) for array in (head.keys, head.biases, head.values, queries)
    )
    scores = asked @ keys.T + biases
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(stored).astype(carried)
    return np.asarray((weights @ values).astype(stored).astype(np.float64))


KINDS = {
    "rounding_float64": (np.float64, np.float64),
    "rounding_float32": (np.float32, np.float32),
    "rounding_bfloat16": (ml_dtypes.bfloat16, np.float32),
}


@pytest.mark.parametrize("name", KINDS)
def test_computed_outputs_stay_within_the_term(name: str) -> None:
    used = []
    for seed in range(40):
        head, queries = drawn(seed)
        with precise(2):
            term = float(rounding_terms(head, norm=arb("1.000000000000001"), query_roundings=0)[name])
            exact = exact_head(head, as_balls(queries)).astype(np.float64)
        computed = in_dtype(head, queries, *KINDS[name])
        # Reading the exact value as a double costs half an ulp of it.
        assert np.abs(computed - exact).max() <= term + 2.0**-53 * np.abs(exact).max()
        used.append(np.abs(computed - exact).max() / term)
    assert max(used) > 0.01  # a worst case over all orders of summation; random errors are a part of it


def test_the_term_grows_with_sharpness_values_and_positions() -> None:
    head, _ = drawn(1)
    with precise(2):
        terms = [
            float(rounding_terms(other, norm=arb(1), query_roundings=0)["rounding_float64"])
            for other in (
                head,
                Head(2 * head.keys, 2 * head.biases, head.values),
                Head(head.keys, head.biases, 2 * head.values),
                Head(*(np.concatenate([array, array]) for array in (head.keys, head.biases, head.values))),
            )
        ]
    assert all(term > terms[0] for term in terms[1:])
