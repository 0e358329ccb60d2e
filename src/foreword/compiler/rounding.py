"""What computing and storing a head in float64, float32 or bfloat16 adds to its error (statement C.4, docs/theory).

    |computed g - g| <= R tanh(eta / 2) + V ((1 + u)^(N + 2) (1 + s)^3 / (1 - u)^(N - 1) - 1)

R the range of an output's values, V their largest size, N positions, u the unit roundoff of arithmetic, s that of
storage (0 where float64 numbers are what is meant). eta bounds the change of a score: scores are sums of q products and
a bias, of size at most S; the largest score is subtracted; exp is within 4 units in the last place. Weights that change
by factors e^t, |t| <= eta, move an average by at most R tanh(eta / 2): the largest change of the weight of a set A is
that of w e^eta / (w e^eta + (1 - w) e^-eta), and an average is an integral over sets {v > t}. What follows the weights
changes each term w_k v_k by a factor near 1, the same for the sum and the division.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from foreword.compiler.head import Head

UP = 1 + 1e-9  # outward: covers the rounding of the few operations below


@dataclass(frozen=True)
class Arithmetic:
    """`unit` and `storage`: largest relative rounding of an operation and of a stored number; `smallest` normal."""

    unit: float
    storage: float
    smallest: float


# In bfloat16 keys, queries, weights, values and outputs are stored; sums are carried in float32, as matrix units do.
ARITHMETIC = {
    "rounding_float64": Arithmetic(2.0**-53, 0.0, 2.0**-1022),
    "rounding_float32": Arithmetic(2.0**-24, 2.0**-24, 2.0**-126),
    "rounding_bfloat16": Arithmetic(2.0**-24, 2.0**-8, 2.0**-126),
}


def rounding_terms(head: Head, *, norm: float, query_roundings: int = 0) -> dict[str, float]:
    """Bounds on |computed g - g| (largest output) by name, for queries of length at most `norm`.

    `query_roundings` operations stand behind a query coordinate. A bound is infinite where it would overflow.

    >>> head = Head(np.array([[2.0], [-2.0]]), np.zeros(2), np.array([[1.0], [-1.0]]))
    >>> terms = rounding_terms(head, norm=1.0)
    >>> terms["rounding_float64"] < 1e-14 < terms["rounding_float32"] < 1e-5 < terms["rounding_bfloat16"] < 0.1
    True
    """
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(head.keys, axis=1)
        score = float((norm * lengths + np.abs(head.biases)).max()) * UP
        widest = float((head.values.max(axis=0) - head.values.min(axis=0)).max()) * UP
        largest = float(np.abs(head.values).max())
    terms = {name: _term(kind, head.keys.shape, score, widest, largest, query_roundings)
             for name, kind in ARITHMETIC.items()}  # fmt: skip
    return {name: math.inf if math.isnan(term) else term for name, term in terms.items()}


def _term(
    kind: Arithmetic, shape: tuple[int, ...], score: float, widest: float, largest: float, query_roundings: int
) -> float:
    positions, width = shape
    unit, stored = kind.unit, kind.storage
    if positions * unit > 0.25:
        return math.inf
    scores = math.expm1(2 * math.log1p(stored) + (width + 2 + query_roundings) * math.log1p(unit))
    eta = score * (scores + 2 * (1 + scores) * unit) - math.log1p(-8 * unit)
    factor = math.expm1((positions + 3) * math.log1p(unit) + 3 * math.log1p(stored) - positions * math.log1p(-unit))
    nothing = (2 * positions + 8) * kind.smallest * (1 + largest)
    average = widest * math.tanh(eta / 2 * UP) if widest > 0 else 0.0
    return (average + largest * factor + nothing) * UP
