"""Keys, biases and values moved together, by Levenberg and Marquardt's method: a better prefix of the same length.

The derivatives of g = sum w v are closed: dg/dv_k = w_k, dg/dc_k = w_k (v_k - g), dg/du_k = w_k (v_k - g) q. Between
steps the samples are weighted by their errors (Lawson), so that the largest error falls and not only the mean. It pays
for short prefixes, whose evenly placed keys are far from the best ones; a long one has too many parameters for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from foreword.compiler.construction.search import never
from foreword.compiler.head import Head

Floats = NDArray[np.float64]

MOST_STEPS = 1_500  # two seconds of a very short prefix; on S^1 the error still falls then
FEW_STEPS = 160  # where a goal is asked for: another length is as good
WORK = 2.5e10  # multiplications of all steps: a second or two of a longer one
FIRST_DAMPING, MOST_DAMPING = 1e-3, 1e9
SWEEPS = 4  # times that the samples are weighted anew
PARTS = 5  # of a sweep, after each of which the goal may be reached
SPARED = 0.97  # of the limit on values: what holds them is not quite stiff
STIFFNESS = 1e-3  # of what holds values within the limit, in units of the samples' share each


@dataclass(frozen=True)
class _Problem:
    """Weighted samples and the limit that values keep to."""

    queries: Floats
    wanted: Floats
    limit: float

    def residuals(self, head: Head, weights: Floats) -> Floats:
        """Of the samples, `(sample * output,)`, then of the values that exceed the limit `(position * output,)`."""
        found = (head.evaluate(self.queries, block=len(self.queries)) - self.wanted) * weights[:, None]
        return np.concatenate([found.ravel(), self._stiffness * self._excess(head).ravel()])

    def jacobian(self, head: Head, weights: Floats) -> Floats:
        """Their derivatives by keys, biases and values, in this order."""
        attention = head.weights(self.queries)
        outputs = attention @ head.values
        by_value = attention * weights[:, None]
        by_score = by_value[:, None, :] * (head.values.T[None] - outputs[:, :, None])  # (sample, output, position)
        samples, columns, positions = by_score.shape
        by_key = by_score[..., None] * self.queries[:, None, None, :]
        values = by_value[:, None, :, None] * np.eye(columns)[None, :, None, :]
        parts = [by_key, by_score[..., None], values]
        fitted = np.concatenate([part.reshape(samples * columns, -1) for part in parts], axis=1)
        held = np.zeros((positions * columns, fitted.shape[1]))
        slack = self._stiffness * (self._excess(head) != 0.0).ravel()
        held[:, -positions * columns :] = np.diag(slack)
        return np.concatenate([fitted, held])

    def _excess(self, head: Head) -> Floats:
        found: Floats = head.values - np.clip(head.values, -self.limit, self.limit)
        return found

    @property
    def _stiffness(self) -> float:
        return float(STIFFNESS * np.sqrt(len(self.queries)))


def parameters(positions: int, width: int, outputs: int) -> int:
    """The numbers of a prefix with keys of that width: what is moved."""
    return positions * (width + 1 + outputs)


def polished(
    head: Head,
    queries: Floats,
    wanted: Floats,
    limit: float,
    goal: float = 0.0,
    *,
    is_over: Callable[[], bool] = never,
) -> Head:
    """A head of a smaller error at the samples `queries` `(sample, q)`, `wanted` `(sample, output)`, as a rule.

    It is as good as it gets in its steps, or before time `is_over`, or has an error below `goal`. Values may exceed the
    limit slightly: solve for them again, at these keys and biases.
    """
    problem = _Problem(queries, wanted, SPARED * limit)
    weights = np.ones(len(queries))
    count = parameters(head.positions, head.keys.shape[1], wanted.shape[1])
    steps = min(FEW_STEPS if goal > 0 else MOST_STEPS, math.ceil(WORK / (wanted.size * count**2)))
    damping = FIRST_DAMPING
    for sweep in range(SWEEPS * PARTS):
        head, damping = _descended(problem, head, weights, damping, math.ceil(steps / (SWEEPS * PARTS)))
        error = np.abs(head.evaluate(queries, block=len(queries)) - wanted).max(axis=1)
        if error.max() < goal and np.abs(head.values).max() <= limit:
            break
        if is_over():
            break
        if sweep % PARTS < PARTS - 1:
            continue
        weights = weights * np.sqrt(error / max(float(error.mean()), 1e-300) + 1e-2)
        weights /= np.sqrt((weights**2).mean())
    return head


def _descended(problem: _Problem, head: Head, weights: Floats, damping: float, steps: int) -> tuple[Head, float]:
    """The head after so many steps, each of which lowers the sum of squares; and the damping then."""
    residuals = problem.residuals(head, weights)
    for _ in range(steps):
        jacobian = problem.jacobian(head, weights)
        normal, slope = jacobian.T @ jacobian, jacobian.T @ residuals
        scale = normal.diagonal() + 1e-10 * normal.diagonal().max()
        while damping < MOST_DAMPING:
            try:
                step = cho_solve(cho_factor(normal + np.diag(damping * scale), check_finite=False), slope)
            except LinAlgError:
                damping *= 4
                continue
            tried = _moved(head, step)
            found = problem.residuals(tried, weights)
            if found @ found < residuals @ residuals:
                head, residuals, damping = tried, found, max(damping / 5, 1e-15)
                break
            damping *= 4
        else:
            return head, FIRST_DAMPING
    return head, damping


def _moved(head: Head, step: Floats) -> Head:
    keys, biases, values = np.split(step, np.cumsum([head.keys.size, head.biases.size]))
    return Head(
        head.keys - keys.reshape(head.keys.shape), head.biases - biases, head.values - values.reshape(head.values.shape)
    )
