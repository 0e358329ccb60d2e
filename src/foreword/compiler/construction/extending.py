"""A few keys that stand where a target needs them, among many that are evenly placed.

A polish moves a few keys far and many hardly at all, within the same time: 64 positions can be better than 384 for a
target that is steep in one direction. So a polished short prefix is tried as it is, and with the rest of the length
filled by a net. Of sum_k w_k v_k over both, the net's keys get a share of attention that is small in the middle of all
queries; values of all are solved anew.
"""

from __future__ import annotations

import math

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.construction.contract import Sampled
from foreword.compiler.construction.fitting import LAWSON, Factors, bounded, levelled
from foreword.compiler.construction.search import Candidate
from foreword.compiler.head import Head

SHARES = (0.5, 0.1, 0.01)  # of attention for the net, at the median query
POINTS = 6  # samples for each position, to solve for its value


def extended(candidate: Candidate, net: Head, fitted: Sampled, chosen: Sampled, limit: float) -> Candidate:
    """The candidate with the net's keys beside its own, values within `limit`; itself where that is no better.

    Values are solved at points of `fitted`; `chosen` judges.
    """
    own, best = candidate.head, candidate
    rows = slice(0, POINTS * (own.positions + net.positions))
    queries, wanted = fitted.queries[rows], fitted.values[rows]
    offset = float(np.median(_log_sum(own, queries) - _log_sum(net, queries)))
    keys = np.concatenate([own.keys, net.keys])
    for share in SHARES:
        biases = np.concatenate([own.biases, net.biases + offset + math.log(share / (1 - share))])
        head = Head(keys, biases, np.zeros((len(keys), wanted.shape[1])))
        factors = Factors.of(head.weights(queries))
        start = bounded(factors, wanted, limit)
        for values in (start.values, levelled(factors, wanted, limit, start, rounds=LAWSON)):
            made = Head(keys, biases, values)
            error = chosen.worst(made)
            if error < best.error:
                best = Candidate(made, error, {**candidate.notes, "extended": share})
    return best


def _log_sum(head: Head, queries: Floats) -> Floats:
    """log sum_k exp(score), `(query,)`."""
    found: Floats = np.logaddexp.reduce(queries @ head.keys.T + head.biases, axis=1)
    return found
