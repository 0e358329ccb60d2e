"""Keys, biases and values moved together, by Levenberg and Marquardt's method: a better prefix of the same length.

The derivatives of g = sum w v are closed: dg/dv_k = w_k, dg/dc_k = w_k (v_k - g), dg/du_k = w_k (v_k - g) q. Between
steps the samples are weighted by their errors (Lawson), so that the largest error falls and not only the mean. It pays
for short prefixes, whose evenly placed keys are far from the best ones; a long one has too many parameters for it.

The sum of squares lies along a narrow valley that turns, and a straight step leaves it at once. So each step follows a
parabola (geodesic acceleration: Transtrum and Sethna 2012, "Improvements to the Levenberg-Marquardt algorithm"). On the
path p - s d + s^2 b from parameters p along the usual step d, the residuals are r - s J d + s^2 (J b + c), where c is
half of their second derivative along d, told by one more evaluation at a small s: b is to J and c as d is to J and -r,
so the residuals bend as little as they can. The same factors give it, and a step that is bent too far is not taken.
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
WORK = 6e10  # multiplications of all steps: some seconds of a longer one, most of which end before
FIRST_DAMPING, MOST_DAMPING = 1e-3, 1e9
LOOSER, STIFFER = 3.0, 2.0  # the damping's factors after a step that was taken, and after one that was not
ARM = 0.1  # of a step, where the bend is looked for
MOST_BENT = 0.375  # of the step's length, in the damping's own measure: beyond, no parabola is a likeness
SWEEPS = 4  # times that the samples are weighted anew
PARTS = 5  # of a sweep, after each of which the goal may be reached
WITHIN_REACH = 2.0  # times the goal: what the errors so far foretell must be below, or the rest is not worth its time
HARDLY = 0.9  # times the least error before a sweep: where the least in it is above, the rest is not worth its time
FEWEST_EACH = 5  # steps of a part from which on this is told: the first few hardly lower an error that falls later
SPARED = 0.97  # of the limit on values: what holds them is not quite stiff
STIFFNESS = 1e-3  # of what holds values within the limit, in units of the samples' share each


@dataclass(frozen=True)
class _State:
    """A head, its attention `(sample, position)`, its outputs and its residuals."""

    head: Head
    attention: Floats
    outputs: Floats
    residuals: Floats

    @property
    def height(self) -> float:
        """The sum of squares."""
        return float(self.residuals @ self.residuals)


@dataclass(frozen=True)
class _Problem:
    """Weighted samples and the limit that values keep to."""

    queries: Floats
    wanted: Floats
    limit: float

    def state(self, head: Head, weights: Floats) -> _State:
        """Residuals of the samples, `(sample * output,)`, then of the values that exceed the limit."""
        attention = head.weights(self.queries)
        outputs = attention @ head.values
        missed = ((outputs - self.wanted) * weights[:, None]).ravel()
        return _State(head, attention, outputs, np.concatenate([missed, self._stiffness * self._excess(head).ravel()]))

    def jacobian(self, state: _State, weights: Floats) -> Floats:
        """The residuals' derivatives by keys, biases and values, in this order."""
        head, attention, outputs = state.head, state.attention, state.outputs
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
    is_only: bool = False,
    is_over: Callable[[], bool] = never,
) -> Head:
    """A head of a smaller error at the samples `queries` `(sample, q)`, `wanted` `(sample, output)`, as a rule.

    It is as good as it gets in its steps, or before time `is_over`, or has an error below `goal`; where the goal seems
    out of reach, it is what it was then, unless it `is_only` this length that is asked for. Values may exceed the limit
    slightly: solve for them again, at these keys and biases.
    """
    problem = _Problem(queries, wanted, SPARED * limit)
    weights = np.ones(len(queries))
    count = parameters(head.positions, head.keys.shape[1], wanted.shape[1])
    sought = 0.0 if is_only else goal  # what there are other lengths to reach it with
    steps = min(FEW_STEPS if sought > 0 else MOST_STEPS, math.ceil(WORK / (wanted.size * count**2)))
    each = math.ceil(steps / (SWEEPS * PARTS))
    damping, errors = FIRST_DAMPING, list[float]()
    for sweep in range(SWEEPS * PARTS):
        head, damping = _descended(problem, head, weights, damping, each)
        error = np.abs(head.evaluate(queries, block=len(queries)) - wanted).max(axis=1)
        if error.max() < goal and np.abs(head.values).max() <= limit:
            break
        errors.append(float(error.max()))
        if is_over() or _is_hopeless(errors, sought, each):
            break
        if sweep % PARTS < PARTS - 1:
            continue
        weights = weights * np.sqrt(error / max(float(error.mean()), 1e-300) + 1e-2)
        weights /= np.sqrt((weights**2).mean())
    return head


def _is_hopeless(errors: list[float], goal: float, each: int) -> bool:
    """Whether errors that go on falling as in the last sweep miss the goal: they fall slower and slower, as a rule.

    Without a goal, whether they have hardly fallen in the last sweep, if its parts had more than a few steps `each`.
    """
    if len(errors) <= PARTS or min(errors) <= 0:
        return False
    if not goal > 0:
        return each >= FEWEST_EACH and min(errors[-PARTS:]) > HARDLY * min(errors[:-PARTS])
    fall = max(0.0, math.log(errors[-1 - PARTS] / errors[-1])) / PARTS
    return math.log(min(errors) / (WITHIN_REACH * goal)) > fall * (SWEEPS * PARTS - len(errors))


def _descended(problem: _Problem, head: Head, weights: Floats, damping: float, steps: int) -> tuple[Head, float]:
    """The head after so many steps, each of which lowers the sum of squares; and the damping then."""
    here = problem.state(head, weights)
    for _ in range(steps):
        jacobian = problem.jacobian(here, weights)
        normal, slope = jacobian.T @ jacobian, jacobian.T @ here.residuals
        scale = normal.diagonal() + 1e-10 * normal.diagonal().max()
        while damping < MOST_DAMPING:
            try:
                factor = cho_factor(normal + np.diag(damping * scale), check_finite=False)
            except LinAlgError:
                damping *= STIFFER
                continue
            step = cho_solve(factor, slope, check_finite=False)
            near = problem.state(_moved(here.head, ARM * step), weights).residuals
            bend = (near - here.residuals + ARM * (jacobian @ step)) / ARM**2
            bent = cho_solve(factor, jacobian.T @ bend, check_finite=False)
            if scale @ bent**2 < MOST_BENT**2 * (scale @ step**2):
                tried = problem.state(_moved(here.head, step + bent), weights)
                if tried.height < here.height:
                    here, damping = tried, max(damping / LOOSER, 1e-15)
                    break
            damping *= STIFFER
        else:
            return here.head, FIRST_DAMPING
    return here.head, damping


def _moved(head: Head, step: Floats) -> Head:
    keys, biases, values = np.split(step, np.cumsum([head.keys.size, head.biases.size]))
    return Head(
        head.keys - keys.reshape(head.keys.shape), head.biases - biases, head.values - values.reshape(head.values.shape)
    )
