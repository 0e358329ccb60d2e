"""Which directions of a query a wanted function depends on, learned from samples without gradient descent.

Kernel ridge regression with the Gaussian kernel exp(-|x - y|_M^2 / 2) gives an estimate f whose gradient is known in
closed form; the mean of grad f grad f' over the samples becomes the next metric M (recursive feature machines,
Radhakrishnan et al., Science 2024). Directions that do not matter lose their weight, so a function of two of 32
coordinates is soon estimated as one of two. A method, not a theorem: judge what it finds on unseen samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh

from foreword.compiler.arrays import Floats

ROUNDS = 6
BANDWIDTHS = (0.1, 0.3, 1.0, 3.0, 10.0)
RIDGES = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
# Samples that one regression uses: its cost grows with their cube.
MOST_SAMPLES = 1000


@dataclass(frozen=True)
class Relevance:
    """A metric `(coordinate, coordinate)` of trace 1, and the estimate that goes with it.

    `unexplained` is the estimate's mean squared error on the samples that judged it, over their variance: no prefix
    learned from these samples can be expected to do much better, however long.
    """

    metric: Floats
    unexplained: float


def relevance(points: Floats, wanted: Floats, unseen: Floats, unseen_wanted: Floats) -> Relevance:
    """The metric of the round that does best on unseen samples; `(sample, coordinate)` and `(sample, output)`."""
    points, wanted = points[:MOST_SAMPLES], wanted[:MOST_SAMPLES]
    unseen, unseen_wanted = unseen[:MOST_SAMPLES], unseen_wanted[:MOST_SAMPLES]
    coordinates = points.shape[1]
    metric = np.eye(coordinates) / coordinates
    best: Relevance | None = None
    middle = wanted.mean(axis=0)
    variance = float(unseen_wanted.var(axis=0).sum())
    for _ in range(ROUNDS):
        error, bandwidth, factors = _regress(points, wanted - middle, unseen, unseen_wanted - middle, metric)
        if best is None or error / variance < best.unexplained:
            best = Relevance(metric, error / variance)
        metric = _gradient_metric(points, factors, metric * bandwidth)
    if best is None:
        raise ValueError("no round was run")
    return best


def _regress(
    points: Floats, wanted: Floats, unseen: Floats, unseen_wanted: Floats, metric: Floats
) -> tuple[float, float, Floats]:
    """Error on unseen samples, bandwidth and kernel factors `(sample, output)` of the best bandwidth and ridge."""
    near, far = _distances(points, points, metric), _distances(unseen, points, metric)
    best = (np.inf, 1.0, np.zeros_like(wanted))
    for bandwidth in BANDWIDTHS:
        values, vectors = eigh(np.exp(-0.5 * bandwidth * near))
        turned = vectors.T @ wanted
        reach = np.exp(-0.5 * bandwidth * far) @ vectors
        for ridge in RIDGES:
            scaled = turned / (np.maximum(values, 0.0) + ridge)[:, None]
            error = float(np.square(reach @ scaled - unseen_wanted).mean(axis=0).sum())
            if error < best[0]:
                best = (error, bandwidth, vectors @ scaled)
    return best


def _gradient_metric(points: Floats, factors: Floats, metric: Floats) -> Floats:
    """The mean of grad f grad f' for f = sum_i factors_i k(., points_i), with grad f = M sum_i a_i k_i (x_i - x)."""
    kernel = np.exp(-0.5 * _distances(points, points, metric))
    found = np.zeros_like(metric)
    for column in factors.T:
        gradients = ((kernel * column) @ points - (kernel @ column)[:, None] * points) @ metric
        found += gradients.T @ gradients
    coordinates = len(metric)
    found = found / max(float(np.trace(found)), np.finfo(np.float64).tiny) + 1e-6 * np.eye(coordinates) / coordinates
    return np.asarray(found / np.trace(found))


def _distances(left: Floats, right: Floats, metric: Floats) -> Floats:
    """Squared distances `(left, right)` in the metric."""
    turned = left @ metric
    own = np.einsum("ij,ij->i", turned, left)
    other = np.einsum("ij,ij->i", right @ metric, right)
    return np.asarray(np.maximum(own[:, None] + other - 2.0 * turned @ right.T, 0.0))
