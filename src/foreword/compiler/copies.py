"""A head several times over, in heads that a model has to spare, so that roundings to bfloat16 average out.

Attention in bfloat16 rounds its weights and its outputs, each to 8 bits: an output of size 1 behind values near 10 is
off by some thousandths, whatever the keys are. Copies that compute the same and round differently do not agree on that
part. In a copy the bias of position k is raised by e_k and its values are multiplied by exp(-e_k): every product of a
weight and a value stays as it was, and the output g becomes g / D. Copies come in pairs with e and -e, |e| <= A, whose
mean is off by at most sinh^2 A of g (statement A4, docs/theory). A only has to move a number over a few of bfloat16's
steps, which are 2^-8 to 2^-7 of it. An output is rounded once more when it is written: a copy writes it several times,
each scaled by a factor of its own near 1, which the reading undoes.
"""

from __future__ import annotations

import math

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.head import Head

MOST_COPIES, MOST_REPEATS = 16, 4
REACH = 2.0**-7  # A: two to four steps of bfloat16 from -A to A


def copies_of(head: Head, factors: Floats) -> list[Head]:
    """Heads whose outputs `(repeat, output)`, divided by `factors` `(copy, repeat)`, are `head`'s on average.

    Up to `change(copies)` of the output, that is.

    >>> head, at = Head(np.array([[2.0], [-1.0]]), np.zeros(2), np.array([[10.0], [-7.0]])), np.array([[0.3]])
    >>> made = np.array([copy.evaluate(at)[0] for copy in copies_of(head, scales(6, 2))]) / scales(6, 2)
    >>> bool(np.abs(made.mean() / head.evaluate(at) - 1) < change(6))
    True
    """
    return [
        Head(head.keys, head.biases + raised, np.concatenate([factor * values for factor in own], axis=1))
        for raised, own in zip(_raises(head.positions, len(factors)), factors, strict=True)
        for values in [np.exp(-raised)[:, None] * head.values]
    ]


def scales(copies: int, repeats: int) -> Floats:
    """The factors of the outputs, `(copy, repeat)`: evenly over one to two of bfloat16's steps around 1."""
    count = copies * repeats
    spread = 1.0 + (np.arange(count) + 0.5 - count / 2) / count * 2.0**-7
    return np.asarray(spread.reshape(repeats, copies).T)


def change(count: int) -> float:
    """How far the mean of `count` copies can be from the head, relative to its output."""
    return math.sinh(REACH) ** 2 if count > 1 else 0.0


def _raises(positions: int, count: int) -> Floats:
    """What is added to the biases, `(copy, position)`: for every position `count` numbers evenly over [-A, A].

    Which copy gets which is drawn, and the last copies are the first ones' negatives; a middle one has nothing added.
    """
    pairs = count // 2
    rng = np.random.default_rng(0)
    sizes = REACH * (2.0 * np.arange(pairs) + 1.0 + count % 2) / count
    drawn = np.argsort(rng.random((pairs, positions)), axis=0)
    first = sizes[drawn] * rng.choice([-1.0, 1.0], size=(pairs, positions))
    return np.concatenate([first, np.zeros((count % 2, positions)), -first[::-1]])
