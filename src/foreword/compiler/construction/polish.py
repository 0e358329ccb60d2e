"""Keys, biases and values moved together, by Levenberg and Marquardt's method: a better prefix of the same length.

The derivatives of g = sum w v are closed: dg/dv_k = w_k, dg/dc_k = w_k (v_k - g), dg/du_k = w_k (v_k - g) q. Between
steps the samples are weighted by their errors (Lawson), so that the largest error falls and not only the mean. The work
of a step grows with the cube of the length: a short prefix is polished to its end, a long one (`growing.py`) a few
steps far.

The sum of squares lies along a narrow valley that turns, and a straight step leaves it at once. So each step follows a
parabola (geodesic acceleration: Transtrum and Sethna 2012, "Improvements to the Levenberg-Marquardt algorithm"). On the
path p - s d + s^2 b from parameters p along the usual step d, the residuals are r - s J d + s^2 (J b + c), where c is
half of their second derivative along d, told by one more evaluation at a small s: b is to J and c as d is to J and -r,
so the residuals bend as little as they can. The same factors give it, and a step that is bent too far is not taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.blas import dsyrk

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
BLOCK = 1 << 22  # derivatives in memory at once, 32 MB
SWEEPS = 4  # times that the samples are weighted anew
PARTS = 5  # of a sweep, after each of which the goal may be reached
WITHIN_REACH = 2.0  # times the goal: what the errors so far foretell must be below, or the rest is not worth its time
HARDLY = 0.9  # times the least error before a sweep: where the least in it is above, the rest is not worth its time
FEWEST_EACH = 5  # steps of a part from which on this is told: the first few hardly lower an error that falls later
SPARED = 0.97  # of the limit on values: what holds them is not quite stiff
STIFFNESS = 1e-3  # of what holds values within the limit, in units of the samples' share each


@dataclass(frozen=True)
class _Residuals:
    """What the sum of squares is of: weighted errors of the samples `(sample, output)`, and excess of the values."""

    missed: Floats
    excess: Floats

    @property
    def height(self) -> float:
        """The sum of squares."""
        return float((self.missed**2).sum() + (self.excess**2).sum())

    def plus(self, factor: float, other: _Residuals) -> _Residuals:
        """These and `factor` times the others."""
        return _Residuals(self.missed + factor * other.missed, self.excess + factor * other.excess)


@dataclass(frozen=True)
class _State:
    """A head, its attention `(sample, position)`, its outputs and its residuals."""

    head: Head
    attention: Floats
    outputs: Floats
    residuals: _Residuals

    @property
    def height(self) -> float:
        """The sum of squares."""
        return self.residuals.height


@dataclass(frozen=True)
class _Problem:
    """Weighted samples and the limit that values keep to.

    Parameters are the keys, the biases and the values, in this order. The residuals' derivatives by them, J, are held
    for a block of samples at a time: of a long prefix they are hundreds of megabytes.
    """

    queries: Floats
    wanted: Floats
    limit: float
    weights: Floats

    def state(self, head: Head) -> _State:
        """The head and what it misses."""
        attention = head.weights(self.queries)
        outputs = attention @ head.values
        missed = (outputs - self.wanted) * self.weights[:, None]
        excess = head.values - np.clip(head.values, -self.limit, self.limit)
        return _State(head, attention, outputs, _Residuals(missed, self.stiffness * excess))

    def near(self, state: _State) -> _Near:
        """The residuals near a state."""
        count = state.head.keys.size + state.head.biases.size + state.head.values.size
        normal, slope = np.zeros((count, count), order="F"), np.zeros(count)
        step = max(1, BLOCK // (count * self.wanted.shape[1]))
        jacobian = np.empty((0, count))
        for start in range(0, len(self.queries), step):
            rows = slice(start, start + step)
            jacobian = self._jacobian(state, rows)
            normal = dsyrk(1.0, jacobian.T, beta=1.0, c=normal, overwrite_c=True)
            slope += jacobian.T @ state.residuals.missed[rows].ravel()
        slack = self.stiffness * (state.residuals.excess != 0.0)
        values = slice(count - slack.size, count)
        normal[values, values] += np.diag(slack.ravel() ** 2)
        slope[values] += (slack * state.residuals.excess).ravel()
        return _Near(self, state, normal, slope, slack, jacobian if step >= len(self.queries) else None)

    def _jacobian(self, state: _State, rows: slice) -> Floats:
        """J of these samples, `(sample * output, parameter)`."""
        head, queries = state.head, self.queries[rows]
        by_value = state.attention[rows] * self.weights[rows, None]
        by_score = by_value[:, None, :] * (head.values.T[None] - state.outputs[rows][:, :, None])
        samples, columns = by_score.shape[:2]  # (sample, output, position)
        by_key = by_score[..., None] * queries[:, None, None, :]
        values = by_value[:, None, :, None] * np.eye(columns)[None, :, None, :]
        parts = [by_key, by_score[..., None], values]
        return np.concatenate([part.reshape(samples * columns, -1) for part in parts], axis=1)

    @property
    def stiffness(self) -> float:
        """Of what holds values within the limit."""
        return float(STIFFNESS * np.sqrt(len(self.queries)))


@dataclass(frozen=True)
class _Near:
    """The residuals near a state to first order: r + J d, with J^T J `normal` (its upper half) and J^T r `slope`.

    `slack` is the derivative of each value's excess, `(position, output)`. The samples' part of J is `jacobian`, where
    it fits in a block; of a long prefix only products with it are made.
    """

    problem: _Problem
    state: _State
    normal: Floats
    slope: Floats
    slack: Floats
    jacobian: Floats | None

    def along(self, step: Floats) -> _Residuals:
        """J `step`."""
        keys, biases, values = _parts(self.state.head, step)
        excess = self.slack * values
        if self.jacobian is not None:
            return _Residuals((self.jacobian @ step).reshape(self.state.outputs.shape), excess)
        turned = self.state.attention * (self.problem.queries @ keys.T + biases)  # what more each is attended to
        change = self.state.attention @ values + turned @ self.state.head.values
        change -= turned.sum(axis=1, keepdims=True) * self.state.outputs
        return _Residuals(change * self.problem.weights[:, None], excess)

    def back(self, residuals: _Residuals) -> Floats:
        """J^T `residuals`."""
        held = self.slack * residuals.excess
        if self.jacobian is not None:
            found: Floats = self.jacobian.T @ residuals.missed.ravel()
            found[-held.size :] += held.ravel()
            return found
        pull = residuals.missed * self.problem.weights[:, None]
        scores = pull @ self.state.head.values.T
        scores -= (pull * self.state.outputs).sum(axis=1, keepdims=True)
        scores *= self.state.attention
        values = self.state.attention.T @ pull + held
        return np.concatenate([(scores.T @ self.problem.queries).ravel(), scores.sum(axis=0), values.ravel()])


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
    least: int = 1,
    damping: float = FIRST_DAMPING,
    is_over: Callable[[], bool] = never,
    is_good: Callable[[Head], bool] | None = None,
) -> Head:
    """A head of a smaller error at the samples `queries` `(sample, q)`, `wanted` `(sample, output)`, as a rule.

    It is as good as it gets in its steps, or before time `is_over`, or has an error below `goal` and `is_good`; where
    the goal seems out of reach, it is what it was then, unless it `is_only` this length that is asked for. Values may
    exceed the limit slightly: solve for them again, at these keys and biases. There are as many steps as its length
    allows, but at `least` so many; the first is damped by `damping`.
    """
    problem = _Problem(queries, wanted, SPARED * limit, np.ones(len(queries)))
    sought = 0.0 if is_only else goal  # what there are other lengths to reach it with
    count = parameters(head.positions, head.keys.shape[1], wanted.shape[1])
    steps = min(FEW_STEPS if sought > 0 else MOST_STEPS, max(least, math.ceil(WORK / (wanted.size * count**2))))
    each = math.ceil(steps / (SWEEPS * PARTS))
    errors = list[float]()
    for sweep in range(SWEEPS * PARTS):
        head, damping = _descended(problem, head, damping, each)
        error = np.abs(head.evaluate(queries, block=len(queries)) - wanted).max(axis=1)
        if error.max() < goal and np.abs(head.values).max() <= limit and (is_good is None or is_good(head)):
            break
        errors.append(float(error.max()))
        if is_over() or _is_hopeless(errors, sought, each):
            break
        if sweep % PARTS < PARTS - 1:
            continue
        weights = problem.weights * np.sqrt(error / max(float(error.mean()), 1e-300) + 1e-2)
        problem = replace(problem, weights=weights / np.sqrt((weights**2).mean()))
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


def _descended(problem: _Problem, head: Head, damping: float, steps: int) -> tuple[Head, float]:
    """The head after so many steps, each of which lowers the sum of squares; and the damping then."""
    here = problem.state(head)
    for _ in range(steps):
        around = problem.near(here)
        usual = around.normal.diagonal().copy()
        scale = usual + 1e-10 * usual.max()
        while damping < MOST_DAMPING:
            np.fill_diagonal(around.normal, usual + damping * scale)
            try:
                factor = cho_factor(around.normal, check_finite=False)
            except LinAlgError:
                damping *= STIFFER
                continue
            step = cho_solve(factor, around.slope, check_finite=False)
            near = problem.state(_moved(here.head, ARM * step)).residuals
            bend = near.plus(-1.0, here.residuals).plus(ARM, around.along(step))
            bent = cho_solve(factor, around.back(bend), check_finite=False) / ARM**2
            if scale @ bent**2 < MOST_BENT**2 * (scale @ step**2):
                tried = problem.state(_moved(here.head, step + bent))
                if tried.height < here.height:
                    here, damping = tried, max(damping / LOOSER, 1e-15)
                    break
            damping *= STIFFER
        else:
            return here.head, FIRST_DAMPING
    return here.head, damping


def _moved(head: Head, step: Floats) -> Head:
    keys, biases, values = _parts(head, step)
    return Head(head.keys - keys, head.biases - biases, head.values - values)


def _parts(head: Head, step: Floats) -> tuple[Floats, Floats, Floats]:
    """What a step `(parameter,)` is for the keys, the biases and the values, in their shapes."""
    keys, biases = head.keys.size, head.keys.size + head.biases.size
    return step[:keys].reshape(head.keys.shape), step[keys:biases], step[biases:].reshape(head.values.shape)
