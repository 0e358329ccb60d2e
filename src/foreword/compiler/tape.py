"""Target and query coordinates as one list of steps over a cell's parameters, evaluated in three ways.

* at points, in float64;
* on real cells: range, gradient, the rounding error of the evaluation at points, and the rest: how far the steps'
  *smooth stand-ins* are from the functions themselves. |w| is w or -w where its sign is sure; elsewhere the line
  through its ends on the cell stands in for it, and the gap is the rest. Maximum and minimum are treated alike. Where
  a function has no bounded slope but a range, as a root does at 0, the constant in the range's middle stands in for it;
* on complex rectangles: ranges of the stand-ins, which are analytic.

How graphs become tapes is `recording.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.compiler import rectangles
from foreword.compiler.arrays import Floats
from foreword.compiler.expression import OPERATIONS, Node
from foreword.compiler.intervals import LIBRARY, ULP, Interval, point
from foreword.compiler.rectangles import Rectangle
from foreword.compiler.sharp import SharpRanges

KINKED = ("absolute", "maximum", "minimum")


@dataclass(frozen=True)
class Linear:
    """`coefficients` over the coordinates, a constant, and a bound on the error of both together."""

    coefficients: Floats
    constant: float
    slack: float


@dataclass(frozen=True)
class Step:
    """One operation on earlier steps; `linear` steps take all coordinates."""

    operation: str
    arguments: tuple[int, ...] = ()
    value: float | int = 0
    linear: Linear | None = None


@dataclass(frozen=True)
class StandIn:
    """On the cells `applies`, one * first + other * second + shift replaces what the step does with the two."""

    one: Floats
    other: Floats
    shift: Floats
    applies: NDArray[np.bool_]

    def rows(self, rows: NDArray[np.intp]) -> StandIn:
        """The same for some of the cells."""
        return StandIn(self.one[rows], self.other[rows], self.shift[rows], self.applies[rows])


@dataclass
class Known:
    """What a real pass knows of one step, arrays `(cell,)`; `slopes` one rectangle for each parameter, None for 0."""

    range: Rectangle
    slopes: list[Rectangle | None]
    error: Floats
    rest: Floats


@dataclass(frozen=True)
class Tape:
    """Steps in order; `coordinates`, `outputs` and `queries` are indices of steps.

    `nodes` are what a step is taken for: more than one where their linear parts differ by rounding only.
    """

    parameters: int
    steps: tuple[Step, ...]
    coordinates: tuple[int, ...]
    outputs: tuple[int, ...]
    queries: tuple[int, ...]
    nodes: dict[int, tuple[Node, ...]]

    def at_points(self, parameters: Floats, stand_ins: dict[int, StandIn]) -> list[Any]:
        """Every step's values `(cell, point)` at `parameters` `(cell, point, parameter)`, with stand-ins."""
        found: list[Any] = []
        for index, step in enumerate(self.steps):
            given = [found[argument] for argument in step.arguments]
            if step.operation == "parameter":
                found.append(parameters[..., int(step.value)])
            elif step.linear is not None:
                total: Any = step.linear.constant
                for place, weight in zip(self.coordinates, step.linear.coefficients, strict=True):
                    total = total + weight * found[place] if weight else total
                found.append(total)
            elif index not in stand_ins:
                found.append(_at_point(step, given))
            else:
                stand = stand_ins[index]
                value: Any = stand.shift[:, None]
                if step.operation in KINKED:
                    second = given[1] if len(given) == 2 else 0.0
                    value = stand.one[:, None] * given[0] + stand.other[:, None] * second + value
                is_all = stand.applies.all()
                found.append(value if is_all else np.where(stand.applies[:, None], value, _at_point(step, given)))
        return found

    def on_cells(
        self, lower: Floats, upper: Floats, sharp: SharpRanges | None = None
    ) -> tuple[list[Known], dict[int, StandIn]]:
        """What is known of every step on the cells from `lower` to `upper` `(cell, parameter)`, and the stand-ins.

        With the cells' `sharp` ranges constants stand in too; what is known then holds for evaluations with stand-ins.
        """
        found: list[Known] = []
        stand_ins: dict[int, StandIn] = {}
        cells = len(lower)
        for index, step in enumerate(self.steps):
            given = [found[argument] for argument in step.arguments]
            if step.operation == "parameter":
                axis = int(step.value)
                error = 8 * ULP * np.maximum(np.abs(lower[:, axis]), np.abs(upper[:, axis]))
                slopes: list[Rectangle | None] = [None] * self.parameters
                slopes[axis] = Rectangle(point(np.ones(cells)))
                span = Interval(lower[:, axis], upper[:, axis]).widened(error)
                found.append(Known(Rectangle(span), slopes, error, np.zeros(cells)))
            elif step.linear is not None:
                found.append(_linear_on_cell(step.linear, [found[place] for place in self.coordinates], cells))
            elif step.operation in KINKED:
                known, stand_ins[index] = _kinked_on_cell(step.operation, given)
                found.append(known)
            else:
                known = _on_cell(step, given, cells, self.parameters)
                if sharp is not None and index in self.nodes:
                    known, stand = _or_constant(known, self.nodes[index], sharp)
                    stand_ins |= {} if stand is None else {index: stand}
                found.append(known)
        return found, stand_ins

    def on_rectangles(
        self, parameters: Sequence[Rectangle], stand_ins: dict[int, StandIn]
    ) -> list[tuple[Rectangle, list[Rectangle | None]]]:
        """Range and slopes of every step on complex rectangles; slopes only of what the queries are made of."""
        found: list[tuple[Rectangle, list[Rectangle | None]]] = []
        wanted = self._under_queries
        for index, step in enumerate(self.steps):
            given = [found[argument] for argument in step.arguments]
            slopes: list[Rectangle | None] = [None] * self.parameters
            if step.operation == "parameter":
                slopes[int(step.value)] = rectangles.constant(1.0)
                found.append((parameters[int(step.value)], slopes))
                continue
            if step.linear is not None:
                pairs = [found[place] for place in self.coordinates]
                value = _sum([(w, pair[0]) for w, pair in zip(step.linear.coefficients, pairs, strict=True)])
                start = rectangles.constant(step.linear.constant)
                value = start if value is None else value + start
                if index in wanted:
                    slopes = _linear_slopes(step.linear, [pair[1] for pair in pairs])
            elif step.operation in KINKED:
                stand = stand_ins[index]
                value = given[0][0].scaled(stand.one) + Rectangle(point(stand.shift))
                if len(given) == 2:
                    value = value + given[1][0].scaled(stand.other)
            else:
                value, partials = _value_and_partials(step, [pair[0] for pair in given])
                if index in wanted:
                    slopes = _chain(self.parameters, partials, [pair[1] for pair in given])
                if index in stand_ins:
                    applies, shift = stand_ins[index].applies, stand_ins[index].shift
                    value = rectangles.where(applies, Rectangle(point(shift)), value)
                    slopes = [None if slope is None else rectangles.where(applies, _ZERO, slope) for slope in slopes]
            found.append((value, slopes))
        return found

    def depends(self) -> NDArray[np.bool_]:
        """Whether a step may depend on a parameter: `(step, parameter)`."""
        found = np.zeros((len(self.steps), self.parameters), dtype=bool)
        for index, step in enumerate(self.steps):
            if step.operation == "parameter":
                found[index, int(step.value)] = True
            elif step.linear is not None:
                places = [p for p, w in zip(self.coordinates, step.linear.coefficients, strict=True) if w]
                found[index] = found[places].any(axis=0)
            else:
                found[index] = found[list(step.arguments)].any(axis=0)
        return found

    @property
    def _under_queries(self) -> set[int]:
        wanted = set(self.queries)
        for index in range(len(self.steps) - 1, -1, -1):
            if index in wanted:
                step = self.steps[index]
                wanted.update(self.coordinates if step.linear is not None else step.arguments)
        return wanted


def _at_point(step: Step, given: list[Any]) -> Any:
    if step.operation == "pi":
        return np.float64(math.pi)
    if step.operation == "power":
        return given[0] ** int(step.value)
    return OPERATIONS[step.operation](*given)


def _value_and_partials(step: Step, given: list[Rectangle]) -> tuple[Rectangle, list[Rectangle]]:
    """The range, and the partial derivative by each argument."""
    name = step.operation
    if name == "pi":
        return rectangles.PI, []
    if name == "add":
        return given[0] + given[1], [_ONE, _ONE]
    if name == "subtract":
        return given[0] - given[1], [_ONE, -_ONE]
    if name == "negative":
        return -given[0], [-_ONE]
    if name == "multiply":
        if step.arguments[0] == step.arguments[1]:
            return given[0].square(), [given[0], given[0]]
        return given[0] * given[1], [given[1], given[0]]
    if name == "divide":
        over = given[1].reciprocal()
        value = given[0] * over
        return value, [over, -(value * over)]
    if name == "power":
        exponent = int(step.value)
        slope = rectangles.power(given[0], exponent - 1).scaled(float(exponent)) if exponent else _ONE.scaled(0.0)
        return rectangles.power(given[0], exponent), [slope]
    function, derivative = rectangles.OPERATIONS[name]
    value = function(given[0])
    return value, [derivative(given[0], value)]


_ONE, _ZERO = rectangles.constant(1.0), rectangles.constant(0.0)


def _sum(terms: Sequence[tuple[float, Rectangle | None]]) -> Rectangle | None:
    total: Rectangle | None = None
    for weight, term in terms:
        if weight and term is not None:
            part = term if weight == 1.0 else term.scaled(weight)
            total = part if total is None else total + part
    return total


def _chain(
    parameters: int, partials: list[Rectangle], slopes: Sequence[Sequence[Rectangle | None]]
) -> list[Rectangle | None]:
    """The chain rule, one rectangle for each parameter."""
    found: list[Rectangle | None] = []
    for axis in range(parameters):
        total: Rectangle | None = None
        for partial, slope in zip(partials, slopes, strict=True):
            inner = slope[axis]
            if inner is not None:
                total = partial * inner if total is None else total + partial * inner
        found.append(total)
    return found


def _linear_slopes(form: Linear, slopes: Sequence[Sequence[Rectangle | None]]) -> list[Rectangle | None]:
    axes = range(len(slopes[0]))
    return [_sum([(w, slope[axis]) for w, slope in zip(form.coefficients, slopes, strict=True)]) for axis in axes]


def _linear_on_cell(form: Linear, given: list[Known], cells: int) -> Known:
    """The form with exactly these coefficients is the stand-in; what they are off by is part of the rest."""
    terms = [(abs(w), known) for w, known in zip(form.coefficients, given, strict=True) if w]
    ranges = _sum([(w, known.range) for w, known in zip(form.coefficients, given, strict=True)])
    value = Rectangle(point(np.full(cells, form.constant)))
    value = value if ranges is None else value + ranges
    size = sum((w * known.range.size() for w, known in terms), np.full(cells, abs(form.constant)))
    rounding = (len(given) + 2) * ULP * size if terms else np.zeros(cells)
    error = (sum((w * known.error for w, known in terms), np.zeros(cells)) + rounding) * (1 + 16 * ULP)
    rest = np.full(cells, form.slack)
    slopes = _linear_slopes(form, [known.slopes for known in given])
    # No rounding in a sum of numbers that are 0 or more is below 0, or above 0 where all are 0 or less.
    is_up = np.full(cells, form.constant >= 0 and form.slack == 0)
    is_down = np.full(cells, form.constant <= 0 and form.slack == 0)
    for w, known in zip(form.coefficients, given, strict=True):
        if w:
            above, below = known.range.re.lo >= 0, known.range.re.hi <= 0
            is_up, is_down = is_up & (above if w > 0 else below), is_down & (below if w > 0 else above)
    span = value.re.widened(rounding + rest).from_zero(is_up).to_zero(is_down)
    return Known(Rectangle(span), slopes, error, rest)


def _on_cell(step: Step, given: list[Known], cells: int, parameters: int) -> Known:
    value, partials = _value_and_partials(step, [known.range for known in given])
    error, rest = np.zeros(cells), np.zeros(cells)
    for partial, known in zip(partials, given, strict=True):
        size = partial.size()
        error = error + _times(size, known.error)
        rest = rest + _times(size, known.rest)
    if step.operation == "sqrt":  # |sqrt a - sqrt b| <= sqrt |a - b|, where the slope is unbounded
        error = np.minimum(error, np.sqrt(given[0].error))
        rest = np.minimum(rest, np.sqrt(given[0].rest))
    size = value.size()
    if step.operation in ("sin", "cos"):
        rounding = LIBRARY * ULP * np.minimum(1.0, np.maximum(size, given[0].range.size()))
    elif step.operation == "sinc":
        rounding = LIBRARY * ULP * np.ones(cells)
    else:
        rounding = LIBRARY * ULP * size
    error, rest = (error + rounding) * (1 + 16 * ULP), rest * (1 + 16 * ULP)
    # No rounding of a number that is 0 or more is below 0: roots of sums of squares keep their domain.
    span = value.re.widened(rounding * 2).from_zero(value.re.lo >= 0).to_zero(value.re.hi <= 0)
    return Known(Rectangle(span), _chain(parameters, partials, [known.slopes for known in given]), error, rest)


def _or_constant(known: Known, nodes: Sequence[Node], sharp: SharpRanges) -> tuple[Known, StandIn | None]:
    """The middle of the range, with the rest of it as rest, on cells where more is not known but the range is."""
    is_lost = ~np.isfinite(known.range.size() + known.error + known.rest)
    for slope in known.slopes:
        is_lost = is_lost if slope is None else is_lost | ~np.isfinite(slope.size())
    if not is_lost.any():
        return known, None
    span = sharp.of(*nodes)
    applies = is_lost & np.isfinite(span.lo) & np.isfinite(span.hi)
    if not applies.any():
        return known, None
    nothing = np.zeros(len(applies))
    still = Rectangle(point(nothing))
    found = Known(
        rectangles.where(applies, Rectangle(span), known.range),
        [None if slope is None else rectangles.where(applies, still, slope) for slope in known.slopes],
        np.where(applies, 0.0, known.error),
        np.where(applies, span.radius(), known.rest),
    )
    return found, StandIn(nothing, nothing, span.middle(), applies)


def _times(size: Floats, amount: Floats) -> Floats:
    """The product, with 0 where the amount is 0 although the size is infinite."""
    with np.errstate(invalid="ignore"):
        return np.where(amount == 0, 0.0, size * amount)


def _kinked_on_cell(operation: str, given: list[Known]) -> tuple[Known, StandIn]:
    """|w| from the range of w; the larger and the smaller of two from the range of their difference."""
    first = given[0].range.re
    gap = first if operation == "absolute" else first - given[1].range.re
    low, high = np.minimum(gap.lo, 0.0), np.maximum(gap.hi, 0.0)
    is_lost = ~(np.isfinite(low) & np.isfinite(high))
    low, high = np.where(is_lost, 0.0, low), np.where(is_lost, 0.0, high)
    is_split = (low < 0) & (high > 0)
    width = np.where(is_split, high - low, 1.0)
    slope = np.where(is_split, np.clip((high + low) / width, -1.0, 1.0), np.where(high > 0, 1.0, -1.0))
    lift = np.where(is_split, -low * (high / width), 0.0)
    extra = np.where(is_split, lift * (1 + 32 * ULP) + 8 * ULP * np.maximum(high, -low), 0.0)
    extra = np.where(is_lost, np.inf, extra)
    always = np.ones(slope.shape, dtype=bool)
    if operation == "absolute":
        stand = StandIn(slope, np.zeros_like(slope), lift, always)
        low_end, high_end = first.least(), first.size()
    else:
        sign = 1.0 if operation == "maximum" else -1.0
        stand = StandIn((1 + sign * slope) / 2, (1 - sign * slope) / 2, sign * lift / 2, always)
        extra = extra / 2
        second, pick = given[1].range.re, np.maximum if operation == "maximum" else np.minimum
        low_end, high_end = pick(first.lo, second.lo), pick(first.hi, second.hi)
    picks = [stand.one != 0, stand.other != 0][: len(given)]
    taken = [(np.where(pick, k.error, 0.0), np.where(pick, k.rest, 0.0)) for pick, k in zip(picks, given, strict=True)]
    error, rest = (np.max(parts, axis=0) for parts in zip(*taken, strict=True))
    rest = rest + extra
    rounding = np.where(is_split, 8 * ULP * np.max([known.range.size() for known in given], axis=0), 0.0)
    wide = Interval(low_end, high_end).widened(extra * 2 + rounding)
    # Where one side is taken throughout nothing is rounded: the root of max(x, 0) keeps its domain.
    span = Interval(np.where(is_split, wide.lo, low_end), np.where(is_split, wide.hi, high_end))
    weights = [Rectangle(point(stand.one)), Rectangle(point(stand.other))][: len(given)]
    slopes = _chain(len(given[0].slopes), weights, [known.slopes for known in given])
    return Known(Rectangle(span), slopes, (error + rounding) * (1 + 16 * ULP), rest * (1 + 16 * ULP)), stand
