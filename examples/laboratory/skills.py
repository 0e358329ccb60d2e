"""The skills of the laboratory: functions from a row of digits to a row of numbers, and the sequences they act on.

It knows arithmetic and nothing of models: what is written is numbers separated by spaces, `"3 1 2"`. A quarter of all
sequences is kept from every training of a base model, by a hash of the digits; all cases are made of that quarter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Rows: TypeAlias = NDArray[np.int64]
"""Sequences of numbers, `(row, place)`."""

# An odd multiplier near 2**64 over the golden ratio: the product's upper bits depend on all digits (Knuth, TAOCP 6.4).
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_UPPER_TWO_BITS = np.uint64(62)


def ascending(rows: Rows) -> Rows:
    """The same numbers, smallest first."""
    return np.sort(rows, axis=1)


def descending(rows: Rows) -> Rows:
    """The same numbers, largest first."""
    return np.sort(rows, axis=1)[:, ::-1]


def add_one(rows: Rows) -> Rows:
    """Every number and one."""
    return rows + 1


def add_two(rows: Rows) -> Rows:
    """Every number and two."""
    return rows + 2


def histogram(rows: Rows) -> Rows:
    """In each place, how often its number occurs. The paper calls this one the double histogram.

    >>> histogram(np.array([[3, 1, 3, 3]])).tolist()
    [[3, 1, 3, 3]]
    """
    return np.asarray(np.count_nonzero(rows[:, :, None] == rows[:, None, :], axis=2), dtype=np.int64)


def double_histogram(rows: Rows) -> Rows:
    """In each place, how many different numbers occur as often as its number does (Weiss et al., "Thinking like
    transformers", 2021).

    >>> double_histogram(np.array([[3, 1, 3, 3, 2]])).tolist()
    [[1, 2, 1, 1, 2]]
    """
    counts = histogram(rows)
    alike = counts[:, :, None] == counts[:, None, :]
    # A number that occurs c times is met c times in its row: each meeting counts as its c-th part.
    shares: NDArray[np.float64] = (alike / counts[:, None, :]).sum(axis=2)
    return np.rint(shares).astype(np.int64)


def ascending_add_one(rows: Rows) -> Rows:
    """Sorted, smallest first, and one added to each."""
    return ascending(rows) + 1


SKILLS: Mapping[str, Callable[[Rows], Rows]] = {
    "ascending": ascending,
    "descending": descending,
    "add one": add_one,
    "add two": add_two,
    "histogram": histogram,
    "double histogram": double_histogram,
    "ascending, add one": ascending_add_one,
}


@dataclass(frozen=True)
class Sequences:
    """Sequences of `length` digits, each below `digits`."""

    length: int
    digits: int

    @property
    def numbers(self) -> int:
        """How many numbers a skill can write: from 0 to digits + 1, and counts up to the length."""
        return max(self.digits + 2, self.length + 1)

    def draw(self, rng: np.random.Generator, count: int, *, unseen: bool) -> Rows:
        """`count` sequences, `(row, place)`, of the quarter that no base model is trained on, or of the rest.

        As in the paper, half of the draws are repeated until at most half of the places hold different digits: many
        repetitions are rare otherwise, and hard.
        """
        found: list[Rows] = []
        while (missing := count - sum(map(len, found))) > 0:
            rows = rng.integers(0, self.digits, (4 * missing + 16, self.length))
            different = (np.sort(rows, axis=1)[:, 1:] != np.sort(rows, axis=1)[:, :-1]).sum(axis=1) + 1
            kept = (different <= self.length // 2) | (rng.random(len(rows)) < 0.5)
            found.append(rows[kept & (self.is_unseen(rows) == unseen)][:missing])
        return np.concatenate(found)

    def is_unseen(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of the rows belong to the quarter that no base model is trained on, `(row,)`."""
        places = np.array([self.digits**place for place in range(self.length)], dtype=np.uint64)
        whole = (rows.astype(np.uint64) * places).sum(axis=1)
        return np.asarray((whole * _MULTIPLIER) >> _UPPER_TWO_BITS == 0)


def written(row: NDArray[np.int64]) -> str:
    """A row as text: its numbers with spaces between them.

    >>> written(np.array([3, 1, 2]))
    '3 1 2'
    """
    return " ".join(map(str, row.tolist()))
