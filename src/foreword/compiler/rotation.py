"""Rotary positions, cancelled by the frozen weights as far as the head's dims allow.

A Llama model turns pair i of a query at position p by the angle p theta_i, so a number x in the pair's first dim
reaches a fixed key as x cos(p theta_i). At position 0 that is x. At natural positions a number is given to several
slow pairs with weights a_i that add up to 1, chosen once from the configuration by least squares so that

    sum_i a_i cos(p theta_i) ~ 1        for p = 0 ... max_position_embeddings - 1.

J pairs cancel the first J - 1 even powers of p. What is left is measured at every position and stated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.arrays import DTYPES
from foreword.compiler.arrays import Floats
from foreword.compiler.frozen import ROUNDOFF

# Pairs per number: more gain nothing in float32, in which transformers computes the cosines.
MOST_PAIRS = 8
# Positions at which weights are fitted; the error is measured at all of them.
FITTED_POSITIONS = 512
# Units of float32 by which libraries may differ in a frequency, and in a cosine.
ROUNDINGS, COSINES = 4, 2


@dataclass(frozen=True)
class Turning:
    """Dims and weights of each number of a query, and the largest |sum_i a_i cos(p theta_i) - 1| of each.

    In bfloat16 it is of the number as it is rounded once it was turned. `error` is for natural positions. With all
    `position_ids` at 0 nothing turns, and the weights add up to 1 within the dtype's rounding.
    """

    dims: tuple[tuple[int, ...], ...]
    turns: tuple[tuple[float, ...], ...]
    error: Floats


def turning(rotation: Mapping[str, Any], *, head_dim: int, numbers: int, positions: int, dtype: str) -> Turning:
    """The best sharing of a head's `head_dim / 2` pairs among `numbers` numbers, the slowest pairs first."""
    pairs = head_dim // 2
    best: Turning | None = None
    angles = np.arange(positions, dtype=np.float32)[:, None] * _frequencies(rotation, pairs)
    cosines = np.cos(angles.astype(np.float64)).astype(np.float32).astype(np.float64)
    most = 1 if dtype == "bfloat16" else MOST_PAIRS  # weights of three digits would cost more than they gain
    for count in range(1, min(most, pairs // numbers) + 1):
        dims, turns = _shared(pairs, numbers, count, cosines)
        turns = tuple(tuple(float(x) for x in np.array(each).astype(DTYPES[dtype])) for each in turns)
        error = np.array([_error(angles, cosines, *each, dtype) for each in zip(dims, turns, strict=True)])
        if best is None or error.max() < best.error.max():
            best = Turning(dims, turns, error)
    if best is None:
        raise ValueError(f"{pairs} pairs cannot hold {numbers} numbers")
    return best


def _frequencies(rotation: Mapping[str, Any], pairs: int) -> NDArray[np.float32]:
    """Radians per position of each pair, in float32 as transformers computes them.

    "linear" divides all by a factor. "llama3" divides those of wavelengths above one bound, leaves those below another,
    and blends between the two. "dynamic" changes them for texts longer than the model's positions only.
    """
    exponents = np.arange(0, 2 * pairs, 2, dtype=np.float32) / np.float32(2 * pairs)
    found = (np.float32(1.0) / np.power(np.float32(rotation["rope_theta"]), exponents)).astype(np.float32)
    factor = np.float32(rotation.get("factor") or 1.0)
    if rotation["rope_type"] == "linear":
        return np.asarray(found / factor)
    if rotation["rope_type"] != "llama3":
        return np.asarray(found)
    low, high = float(rotation["low_freq_factor"]), float(rotation["high_freq_factor"])
    turns = np.float32(rotation["original_max_position_embeddings"]) * found / np.float32(2 * np.pi)  # in the old text
    blend = np.clip((turns - np.float32(low)) / np.float32(high - low), 0.0, 1.0).astype(np.float32)
    return np.asarray((1 - blend) * found / factor + blend * found)


def _shared(
    pairs: int, numbers: int, count: int, cosines: Floats
) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[float, ...], ...]]:
    """Number j takes pairs j, j + numbers, ... counted from the slowest."""
    dims = tuple(tuple(pairs - 1 - (j + numbers * i) for i in range(count)) for j in range(numbers))
    if count == 1:
        return dims, tuple((1.0,) * count for _ in dims)
    return dims, tuple(_weights(cosines[:, list(where)]) for where in dims)


def _weights(cosines: Floats) -> tuple[float, ...]:
    """Weights that add up to 1 and make the sum of cosines as constant as rounding of the cosines allows."""
    rows = cosines[np.unique(np.linspace(0, len(cosines) - 1, FITTED_POSITIONS).astype(int))]
    # With a_0 = 1 - sum of the others: minimise |rows_0 - 1 + (rows_i - rows_0) a|^2 + noise^2 |a|^2.
    others, wanted = rows[:, 1:] - rows[:, :1], 1.0 - rows[:, 0]
    noise = 2.0**-24 * np.sqrt(len(rows))
    system = np.vstack([others, noise * np.eye(others.shape[1])])
    found = np.linalg.lstsq(system, np.concatenate([wanted, np.zeros(others.shape[1])]), rcond=None)[0]
    return (float(1.0 - found.sum()), *(float(weight) for weight in found))


def _error(
    angles: NDArray[np.float32], cosines: Floats, where: tuple[int, ...], weights: tuple[float, ...], dtype: str
) -> float:
    """How far from 1 the weighted cosines can be, by whatever library they are computed.

    In bfloat16 there is one pair. Its cosine is rounded, and so is a number times it, unless the cosine becomes 1.
    """
    doubt = (ROUNDINGS * np.abs(angles[:, list(where)]) + COSINES) * 2.0**-24
    off = np.abs(cosines[:, list(where)] @ np.array(weights) - 1.0) + doubt @ np.abs(weights)
    if dtype == "bfloat16":
        unit = ROUNDOFF[dtype]  # below 1 numbers stand that far apart
        off = np.where(off < unit / 2, 0.0, off + 1.5 * unit)
    return float(off.max())
