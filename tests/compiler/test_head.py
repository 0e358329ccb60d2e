"""A head's output is a mean of its values, whatever order its positions come in and whatever its scores are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.compiler.head import Head

QUERIES = np.random.default_rng(0).normal(size=(50, 3))


def random_head(seed: int, sharpness: float = 3.0) -> Head:
    rng = np.random.default_rng(seed)
    return Head(sharpness * rng.normal(size=(20, 3)), rng.normal(size=20), rng.normal(size=(20, 2)))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-3, 1e150))
def test_the_output_lies_in_the_hull_of_the_values_at_any_temperature(seed: int, sharpness: float) -> None:
    head = random_head(seed, sharpness)
    found = head.evaluate(QUERIES)
    slack = 64 * 2.0**-53 * np.abs(head.values).max()  # the weights of 20 positions sum to 1 within 20 roundings
    assert (found >= head.values.min(axis=0) - slack).all()
    assert (found <= head.values.max(axis=0) + slack).all()


def test_the_order_of_the_positions_changes_nothing() -> None:
    head, order = random_head(1), np.random.default_rng(2).permutation(20)
    shuffled = Head(head.keys[order], head.biases[order], head.values[order])
    assert np.allclose(shuffled.evaluate(QUERIES), head.evaluate(QUERIES), rtol=0, atol=1e-14)
    assert shuffled.digest != head.digest


def test_a_bias_common_to_all_positions_changes_nothing() -> None:
    head = random_head(1)
    moved = Head(head.keys, head.biases + 7.0, head.values)
    # Scores up to 40 round by 40 * 2^-53 each, in the exponent.
    assert np.allclose(moved.evaluate(QUERIES), head.evaluate(QUERIES), rtol=0, atol=1e-13)


def test_a_batch_is_evaluated_alike_in_blocks_of_any_size() -> None:
    head = random_head(1)
    whole = head.evaluate(QUERIES)
    assert np.allclose(head.evaluate(QUERIES, block=7), whole, rtol=0, atol=1e-15 * 20)
    assert head.evaluate(QUERIES[:0]).shape == (0, 2)


def test_context_of_a_known_mass_takes_its_share_of_the_weights() -> None:
    head = random_head(1)
    plain, beside = head.weights(QUERIES), head.weights(QUERIES, log_mass=3.0)
    mass = np.exp(QUERIES @ head.keys.T + head.biases).sum(axis=1, keepdims=True)
    assert np.allclose(beside, plain * mass / (mass + np.exp(3.0)), rtol=1e-12)
    assert np.allclose(head.weights(QUERIES, log_mass=5_000.0), 0.0)


@pytest.mark.parametrize("part", ["keys", "biases", "values"])
def test_the_digest_changes_with_the_last_bit_of_any_number(part: str) -> None:
    head = random_head(1)
    changed = {name: getattr(head, name).copy() for name in ("keys", "biases", "values")}
    flat = changed[part].reshape(-1)
    flat[-1] = np.nextafter(flat[-1], np.inf)
    assert Head(**changed).digest != head.digest
