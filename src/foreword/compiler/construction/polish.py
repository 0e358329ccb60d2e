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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

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
BLOCK = 1 << 20  # derivatives in memory at once, 8 MB: they stay in the processor's cache
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

    Parameters are the keys by coordinate, the biases and the values by output, in this order. The derivatives of the
    residuals by them, J, are never held: products with them are made of the attention.
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
        head, (samples, width) = state.head, self.queries.shape
        side = (width + 2) * head.positions
        squares = [np.zeros((side, side), order="F") for _ in range(self.wanted.shape[1])]
        step = max(1, BLOCK // side)
        for start in range(0, samples, step):
            rows = slice(start, start + step)
            for output, square in enumerate(squares):
                derivatives = self._derivatives(state, rows, output)
                squares[output] = dsyrk(1.0, derivatives.T, beta=1.0, c=square, overwrite_c=True)
        slack = self.stiffness * (state.residuals.excess != 0.0)
        normal = _joined(squares, head.positions)
        values = slice(len(normal) - slack.size, len(normal))
        normal[values, values] += np.diag(slack.T.ravel() ** 2)
        return _Near(self, state, normal, slack)

    def _derivatives(self, state: _State, rows: slice, output: int) -> Floats:
        """Those of one output at these samples by the keys, the biases and its own values, `(sample, number)`."""
        queries, values = self.queries[rows], state.head.values[:, output]
        found = np.empty((len(queries), queries.shape[1] + 2, len(values)))
        *_, slopes, attention = np.moveaxis(found, 1, 0)
        np.multiply(state.attention[rows], self.weights[rows, None], out=attention)
        np.multiply(attention, values - state.outputs[rows, output, None], out=slopes)
        np.multiply(slopes[:, None, :], queries[:, :, None], out=found[:, :-2])
        return found.reshape(len(queries), -1)

    @property
    def stiffness(self) -> float:
        """Of what holds values within the limit."""
        return float(STIFFNESS * np.sqrt(len(self.queries)))


@dataclass(frozen=True)
class _Near:
    """The residuals near a state to first order: r + J d, with J^T J `normal` (its upper half).

    `slack` is the derivative of each value's excess, `(position, output)`.
    """

    problem: _Problem
    state: _State
    normal: Floats
    slack: Floats

    @cached_property
    def slope(self) -> Floats:
        """J^T r."""
        return self.back(self.state.residuals)

    def along(self, step: Floats) -> _Residuals:
        """J `step`."""
        keys, biases, values = _parts(self.state.head, step)
        excess = self.slack * values
        turned = self.state.attention * (self.problem.queries @ keys.T + biases)  # what more each is attended to
        change = self.state.attention @ values + turned @ self.state.head.values
        change -= turned.sum(axis=1, keepdims=True) * self.state.outputs
        return _Residuals(change * self.problem.weights[:, None], excess)

    def back(self, residuals: _Residuals) -> Floats:
        """J^T `residuals`."""
        held = self.slack * residuals.excess
        pull = residuals.missed * self.problem.weights[:, None]
        scores = pull @ self.state.head.values.T
        scores -= (pull * self.state.outputs).sum(axis=1, keepdims=True)
        scores *= self.state.attention
        values = self.state.attention.T @ pull + held
        keys = self.problem.queries.T @ scores
        return np.concatenate([keys.ravel(), scores.sum(axis=0), values.T.ravel()])


def _joined(squares: Sequence[Floats], positions: int) -> Floats:
    """J^T J's upper half, from that of each output: outputs share the keys and the biases, and no values."""
    if len(squares) == 1:
        return squares[0]
    shared = len(squares[0]) - positions
    count = shared + len(squares) * positions
    normal = np.zeros((count, count), order="F")
    for output, square in enumerate(squares):
        own = slice(shared + output * positions, shared + (output + 1) * positions)
        normal[:shared, :shared] += square[:shared, :shared]
        normal[:shared, own] = square[:shared, shared:]
        normal[own, own] = square[shared:, shared:]
    return normal


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
    work = wanted.size * parameters(head.positions, head.keys.shape[1], 1) ** 2  # multiplications of a step
    steps = min(FEW_STEPS if sought > 0 else MOST_STEPS, max(least, math.ceil(WORK / work)))
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


def descended(
    head: Head, queries: Floats, wanted: Floats, limit: float, steps: int, damping: float
) -> tuple[Head, float]:
    """The head after so many steps on samples that are not weighted, the first damped so; and the damping then."""
    return _descended(_Problem(queries, wanted, SPARED * limit, np.ones(len(queries))), head, damping, steps)


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
    return step[:keys].reshape(head.keys.T.shape).T, step[keys:biases], step[biases:].reshape(head.values.T.shape).T
