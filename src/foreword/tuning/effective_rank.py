"""How many directions the keys and values of a prefix really use, layer by layer.

It knows matrices of keys and values; it knows no model and no task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.prefix import LayerPrefix, Prefix


@dataclass(frozen=True)
class LayerRank:
    """Effective ranks of one site's keys and values, means over the heads that carry it; at most positions and dims."""

    site: str
    keys: float
    values: float


def effective_rank(matrix: NDArray[Any]) -> float:
    """The exponential of the entropy of the normalised singular values: between 1 and the rank, 0 for a zero matrix.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007. Equal singular values
    give the rank itself; one that outweighs all others gives 1. It does not change with the matrix's scale.

    >>> effective_rank(np.diag([2.0, 2.0, 0.0]))
    2.0
    """
    found = np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)
    if found.size == 0 or found[0] == 0:
        return 0.0
    shares = found[found > 0] / found.sum()
    return round(float(np.exp(-(shares * np.log(shares)).sum())), 12)


def ranks_of(prefix: Prefix) -> tuple[LayerRank, ...]:
    """The effective ranks of every layer of a prefix, as `(position, dim)` matrices head by head."""
    return tuple(_rank_of(layer) for layer in prefix.layers)


def _rank_of(layer: LayerPrefix) -> LayerRank:
    """Of the heads that carry the prefix; 0 where none does."""

    def mean(array: NDArray[Any]) -> float:
        found = [effective_rank(np.asarray(array[head], dtype=np.float64)) for head in layer.carrying]
        return float(np.mean(found)) if found else 0.0

    return LayerRank(layer.site, mean(layer.keys), mean(layer.values))
