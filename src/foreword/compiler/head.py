"""What one attention head computes from a prefix, in float64: this is what a compiled prefix means.

    g(q) = sum_k w_k(q) v_k,    w(q) = softmax(<q, u_k> + c_k),

q the query `(batch, q)`, u keys `(position, q)`, c biases `(position,)`, v values `(position, output)`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Head:
    """A core head: `keys` `(position, q)`, `biases` `(position,)` in nats, `values` `(position, output)`; float64."""

    keys: Floats
    biases: Floats
    values: Floats

    @property
    def positions(self) -> int:
        """The prefix's length."""
        return int(self.keys.shape[0])

    def weights(self, queries: Floats) -> Floats:
        """Attention weights `(batch, position)`; each row sums to 1."""
        scores = queries @ self.keys.T + self.biases
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights: Floats = scores / scores.sum(axis=1, keepdims=True)
        return weights

    def evaluate(self, queries: Floats, *, block: int = 4096) -> Floats:
        """The head's output `(batch, output)` at `queries` `(batch, q)`, a block of rows at a time."""
        parts = [self.weights(queries[start : start + block]) @ self.values for start in range(0, len(queries), block)]
        return np.concatenate(parts) if parts else np.empty((0, self.values.shape[1]))

    @property
    def digest(self) -> str:
        """SHA-256 of the exact numbers."""
        digest = hashlib.sha256()
        for array in (self.keys, self.biases, self.values):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()
