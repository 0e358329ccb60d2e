"""What rounding adds to a head, recomputed for the checker in ball arithmetic from the standard model (statement C.4).

Standard model: a stored number is off by a factor 1 + d, |d| <= storage; each operation's result by 1 + d,
|d| <= unit; exp is within 4 ulp (a premise about libm); sums in any order, fused or not.

With exact scores s_k changed by at most eta each, weights change so that every output moves by at most
R tanh(eta / 2), R = max v - min v: for one set of keys A, w(A) goes to w(A) e^a / (w(A) e^a + (1 - w(A)) e^b) with
|a|, |b| <= eta, whose largest change is tanh(eta / 2); an output is an integral over sets {v > t}. Everything after the
weights (their sum, the division, products, the sum over keys) changes each term w_k v_k by a common factor near 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from flint import arb

from foreword.compiler.head import Head

ULPS_OF_EXP = 4


@dataclass(frozen=True)
class Arithmetic:
    """`unit` and `storage` are exponents of 2 of the largest relative rounding; `smallest` of the smallest normal."""

    unit: int
    storage: int | None
    smallest: int


# bfloat16 is stored, and weights and outputs are rounded to it; sums are carried in float32, as matrix units do.
ARITHMETIC = {
    "rounding_float64": Arithmetic(-53, None, -1022),
    "rounding_float32": Arithmetic(-24, -24, -126),
    "rounding_bfloat16": Arithmetic(-24, -8, -126),
}


def rounding_terms(head: Head, *, norm: arb, query_roundings: int) -> dict[str, arb]:
    """Bounds on |computed g - g|, largest output, by name; `norm` bounds a query's length.

    `query_roundings` is the number of operations behind each query coordinate: 0 when a point is its own query.
    """
    lengths = [sum((arb(x) ** 2 for x in key), arb(0)).sqrt() for key in np.abs(head.keys).tolist()]
    score = arb(0)
    for length, bias in zip(lengths, head.biases.tolist(), strict=True):
        score = score.max(norm * length + abs(arb(bias)))
    largest = arb(float(np.abs(head.values).max()))
    widest = max((arb(float(high)) - arb(float(low)) for low, high in _ends(head)), key=float)
    return {
        name: _term(kind, head.keys.shape, score, largest, widest, query_roundings).abs_upper()
        for name, kind in ARITHMETIC.items()
    }


def _ends(head: Head) -> list[tuple[float, float]]:
    return list(zip(head.values.min(axis=0).tolist(), head.values.max(axis=0).tolist(), strict=True))


def _term(kind: Arithmetic, shape: tuple[int, ...], score: arb, largest: arb, widest: arb, query_roundings: int) -> arb:
    positions, width = shape
    unit = arb(2) ** kind.unit
    stored = arb(0) if kind.storage is None else arb(2) ** kind.storage
    # Key, query and bias as stored; the query as computed; `width` products and additions, the bias, the maximum off.
    scores = (1 + stored) ** 2 * (1 + unit) ** (width + 1 + query_roundings) - 1
    shifted = 2 * (1 + scores) * unit
    exponential = -(1 - 2 * ULPS_OF_EXP * unit).log()
    eta = score * (scores + shifted) + exponential
    if not positions * unit < arb(0.5):
        return arb("inf")
    # The sum of the weights, one division, the weight as stored, the value as stored, the product, the sum; the output.
    factor = (1 + unit) ** (positions + 2) * (1 + stored) ** 3 / (1 - unit) ** (positions - 1) - 1
    nothing = (2 * positions + 4) * arb(2) ** kind.smallest * (1 + largest)
    return widest * (eta / 2).tanh() + largest * factor + nothing
