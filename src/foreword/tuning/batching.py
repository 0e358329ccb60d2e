"""Which examples a step of a fit reads: drawn from (seed, step) alone, so that a resumed fit reads the same ones.

An epoch is a permutation of all examples, cut into batches; what is left over is another few examples each time. With
token counts, batches are made of examples of like length, so that little of them is padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Batches' worth of examples that are sorted by length together: enough to save most of the padding, few enough that
# what is in a batch stays mostly a matter of chance.
POOL = 8


class Batches:
    """Batches of `size` out of `examples`; `lengths`, the examples' numbers of tokens, makes them of like length."""

    def __init__(self, examples: int, size: int, seed: int, lengths: Sequence[int] | None = None) -> None:
        self.examples, self.size, self.seed = examples, min(size, examples), seed
        self.lengths = None if lengths is None else np.asarray(lengths)
        self._epoch, self._drawn = -1, np.empty((0, 0), dtype=np.int64)

    def at(self, step: int) -> list[int]:
        """Indices of the step's examples, all different."""
        epoch, turn = divmod(step, self.examples // self.size)
        if epoch != self._epoch:
            self._epoch, self._drawn = epoch, self._epoch_of(epoch)
        return [int(index) for index in self._drawn[turn]]

    def _epoch_of(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, epoch))
        count = self.examples // self.size
        order = rng.permutation(self.examples)[: count * self.size]
        if self.lengths is not None:
            pool = POOL * self.size
            parts = [order[start : start + pool] for start in range(0, len(order), pool)]
            order = np.concatenate([part[np.argsort(self.lengths[part], kind="stable")] for part in parts])
        batches = order.reshape(count, self.size)
        return batches if self.lengths is None else rng.permutation(batches)
