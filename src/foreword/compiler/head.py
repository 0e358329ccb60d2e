"""What one attention head computes from a prefix, in float64: this is what a compiled prefix means.

    g(q) = sum_k w_k(q) v_k,    w(q) = softmax(<q, u_k> + c_k),

q the query `(batch, q)`, u keys `(position, q)`, c biases `(position,)`, v values `(position, output)`. A head in a
model also attends to the tokens of its input; `context.py` says what they change.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from foreword.compiler.arrays import Floats


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

    def weights(self, queries: Floats, *, log_mass: float = -math.inf) -> Floats:
        """Attention weights `(batch, position)`; each row sums to 1.

        With `log_mass`, context tokens of that total mass (log of the sum of e^score over them, the same for every
        query) take their share, and a row sums to less: solving for values with these weights makes a prefix exact at
        one known number of tokens whose scores do not depend on the query.
        """
        weights: Floats = queries @ self.keys.T  # and from here on in place: memory is what takes the time
        weights += self.biases
        highest = np.maximum(weights.max(axis=1, keepdims=True), log_mass)
        weights -= highest
        np.exp(weights, out=weights)
        weights /= weights.sum(axis=1, keepdims=True) + np.exp(log_mass - highest)
        return weights

    def evaluate(self, queries: Floats, *, block: int = 4096) -> Floats:
        """The head's output `(batch, output)` at `queries` `(batch, q)`, a block of rows at a time."""
        parts = [self.weights(queries[start : start + block]) @ self.values for start in range(0, len(queries), block)]
        return np.concatenate(parts) if parts else np.empty((0, self.values.shape[1]))

    def lengthened(self, positions: int) -> Head:
        """The same function with at least so many positions: some stand several times, each with its share of weight.

        >>> head = Head(np.array([[1.0], [-1.0]]), np.zeros(2), np.array([[2.0], [0.0]]))
        >>> head.lengthened(5).positions, head.lengthened(5).evaluate(np.zeros((1, 1)))
        (5, array([[1.]]))
        """
        places = np.arange(max(positions, self.positions)) % self.positions
        shares = self.biases - np.log(np.bincount(places))
        return Head(self.keys[places], shares[places], self.values[places])

    @property
    def digest(self) -> str:
        """SHA-256 of the exact numbers."""
        digest = hashlib.sha256()
        for array in (self.keys, self.biases, self.values):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()
