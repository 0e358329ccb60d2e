"""Where a prefix for a pretrained head puts its positions, by which metric, with which values; judged on other rows.

A candidate is a metric (the queries' own leading directions, or learned ones), a bandwidth, and positions at samples
that lie far apart or are drawn at random. Its values solve one ridge regression. What is chosen does best on rows that
took no part in the fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from foreword.compiler.arrays import Floats
from foreword.compiler.relevance import Relevance
from foreword.errors import CompileError

Indices = NDArray[np.int64]

# log(1 / unit roundoff) of float32: a context of the largest log-sum-exp seen keeps a share that rounds away.
MARGIN = 16.6
# Samples on which candidates are compared; the chosen one is solved again on all.
COMPARED = 2000
RIDGES = 10.0 ** np.arange(-10.0, 0.0)
BANDWIDTHS = 10.0 ** np.arange(-1.0, 2.6, 0.5)


@dataclass(frozen=True)
class Problem:
    """Samples in standardised coordinates z = (q - mean) @ basis, with who fits, who chooses, who judges."""

    z: Floats
    wanted: Floats
    context: Floats
    log_sums: Floats
    mean: Floats
    basis: Floats
    fit: Indices
    choose: Indices
    judge: Indices


@dataclass(frozen=True)
class Layout:
    """Positions `b` `(position, coordinate)` and a metric; `offset` as in the module's header."""

    b: Floats
    metric: Floats
    offset: float

    def features(self, problem: Problem, which: Indices) -> tuple[Floats, Floats]:
        """Weights of the positions `(token, position)`, the context's share left out, and that share `(token,)`."""
        turned = self.b @ self.metric
        scores = problem.z[which] @ turned.T - 0.5 * np.einsum("kd,kd->k", turned, self.b)
        peak = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - peak)
        total = weights.sum(axis=1)
        share = expit(problem.log_sums[which] - self.offset - peak[:, 0] - np.log(total))
        return weights / total[:, None] * (1.0 - share)[:, None], share


def _metrics(learned: Relevance) -> Iterator[Floats]:
    """Metrics of trace 1: the queries' own leading directions, and the learned ones, cut and tempered."""
    coordinates = len(learned.metric)
    for rank in (1, 2, 3, 4, 8):
        if rank <= coordinates:
            yield np.diag(np.arange(coordinates) < rank) / rank
    values, vectors = np.linalg.eigh(learned.metric)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    for rank in (1, 2, 3, 6, coordinates):
        for power in (0.5, 1.0):
            weights = values[:rank] ** power
            yield (vectors[:, :rank] * (weights / weights.sum())) @ vectors[:, :rank].T


def chosen(problem: Problem, learned: Relevance, positions: int, value_limit: float, seed: int) -> tuple[Layout, float]:
    """The layout and ridge with the least error on the choosing rows, with values within the limit."""
    offset = float(problem.log_sums[np.concatenate([problem.fit, problem.choose])].max()) + MARGIN
    rng = np.random.default_rng(seed)
    fit, choose = problem.fit[: max(COMPARED, 2 * positions)], problem.choose[:COMPARED]
    best: tuple[float, Layout, float] | None = None
    for metric in _metrics(learned):
        spread = problem.z[_farthest(problem.z[fit], metric, positions - 1, fit)]
        for picked in (spread, problem.z[rng.permutation(fit)[: positions - 1]]):
            b = np.concatenate([np.zeros((1, problem.z.shape[1])), picked])
            for bandwidth in BANDWIDTHS:
                layout = Layout(b, metric * bandwidth, offset)
                for error, ridge, largest in _judged(problem, layout, fit, choose):
                    if largest <= value_limit and (best is None or error < best[0]):
                        best = (error, layout, ridge)
    if best is None:
        raise CompileError(
            "No prefix with values within the limit was found.",
            expected=f"values of at most {value_limit:g}",
            found="larger ones in every layout",
            fix="Raise value_limit, or scale the wanted function down.",
        )
    return best[1], best[2]


def _farthest(points: Floats, metric: Floats, count: int, which: Indices) -> Indices:
    """Of the samples `which`, at `points`, `count` that lie far from each other and from 0 in the metric."""
    values, vectors = np.linalg.eigh(metric)
    turned = points @ (vectors * np.sqrt(np.maximum(values, 0.0)))
    distance = np.square(turned).sum(axis=1)
    found = []
    for _ in range(count):
        found.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(turned - turned[found[-1]]).sum(axis=1))
    return which[found]


def _judged(problem: Problem, layout: Layout, fit: Indices, choose: Indices) -> Iterator[tuple[float, float, float]]:
    """Error on the choosing rows, ridge and largest value, for every ridge."""
    features, wanted = _system(problem, layout, fit)
    unseen, unseen_wanted = _system(problem, layout, choose)
    values, vectors = np.linalg.eigh(features.T @ features)
    turned, reach = vectors.T @ (features.T @ wanted), unseen @ vectors
    for ridge in RIDGES:
        scaled = turned / (np.maximum(values, 0.0) + ridge * values[-1])[:, None]
        error = float(np.square(reach @ scaled - unseen_wanted).mean(axis=0).sum())
        yield error, float(ridge), float(np.abs(vectors @ scaled).max())


def _system(problem: Problem, layout: Layout, which: Indices) -> tuple[Floats, Floats]:
    """Features, and what they must give: the wanted function less what the context adds by itself."""
    features, share = layout.features(problem, which)
    return features, problem.wanted[which] - share[:, None] * problem.context[which]


def solved(problem: Problem, layout: Layout, which: Indices, ridge: float) -> Floats:
    """Values `(position, output)` of the ridge regression on the samples `which`."""
    features, wanted = _system(problem, layout, which)
    left, singular, right = np.linalg.svd(features, full_matrices=False)
    damped = singular / (singular**2 + ridge * singular[0] ** 2)
    return np.asarray(right.T @ (damped[:, None] * (left.T @ wanted)))
