"""Copies of a head mean the same, and round differently (statement A4, docs/theory)."""

from __future__ import annotations

import numpy as np
import pytest

from foreword.arrays import DTYPES
from foreword.compiler.copies import change, copies_of, scales
from foreword.compiler.head import Head


def drawn(seed: int, *, sharp: float) -> Head:
    rng = np.random.default_rng(seed)
    return Head(sharp * rng.normal(size=(30, 3)), rng.normal(size=30), 10 * rng.uniform(-1, 1, size=(30, 2)))


def mean(head: Head, copies: int, repeats: int, points: np.ndarray) -> np.ndarray:
    factors = scales(copies, repeats)
    each = [copy.evaluate(points).reshape(-1, repeats, 2) for copy in copies_of(head, factors)]
    return np.mean([found / own[:, None] for found, own in zip(each, factors, strict=True)], axis=(0, 2))


@pytest.mark.parametrize("sharp", [0.0, 2.0, 30.0])
@pytest.mark.parametrize(("copies", "repeats"), [(1, 1), (1, 4), (2, 3), (3, 1), (12, 4), (16, 1)])
def test_their_mean_is_the_head(sharp: float, copies: int, repeats: int) -> None:
    points = np.random.default_rng(1).normal(size=(200, 3))
    for seed in range(5):
        head = drawn(seed, sharp=sharp)
        wanted = head.evaluate(points)
        rounding = 1e-14 * np.abs(head.values).max()
        assert (
            np.abs(mean(head, copies, repeats, points) - wanted) <= change(copies) * np.abs(wanted) + rounding
        ).all()


@pytest.mark.parametrize(("copies", "repeats"), [(2, 1), (3, 4), (16, 4)])
def test_no_two_of_them_round_alike(copies: int, repeats: int) -> None:
    head = drawn(0, sharp=2.0)
    points = np.random.default_rng(1).normal(size=(50, 3))
    made = copies_of(head, scales(copies, repeats))
    rounded = [
        copy.weights(points).astype(DTYPES["bfloat16"]).astype(np.float64) / copy.weights(points) for copy in made
    ]
    for i, left in enumerate(rounded):
        for right in rounded[:i]:
            assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.3
    assert len(np.unique(scales(copies, repeats))) == copies * repeats


def test_one_copy_is_the_head_itself() -> None:
    head = drawn(3, sharp=1.0)
    (only,) = copies_of(head, scales(1, 1))
    assert (only.biases == head.biases).all()
    assert (only.values == head.values).all()
    assert change(1) == 0.0
