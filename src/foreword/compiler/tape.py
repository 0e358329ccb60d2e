"""Target and query coordinates as one list of steps over a cell's parameters, evaluated in three ways.

* at points, in float64;
* on real cells: range, gradient, the rounding error of the evaluation at points, and the rest: how far the steps'
  *smooth stand-ins* are from the functions themselves. |w| is w or -w where its sign is sure; elsewhere the line through
  its ends on the cell stands in for it, and the gap is the rest. Maximum and minimum are treated in the same way;
* on complex rectangles: ranges of the stand-ins, which are analytic.

What is linear in the coordinates is first collected into one step, so that a frame's cancelling terms do cancel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.compiler import rectangles
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import OPERATIONS, Node, walk
from foreword.compiler.intervals import LIBRARY, ULP, Interval, point
from foreword.compiler.rectangles import Rectangle

Floats = NDArray[np.float64]
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
    """On a cell: one * first + other * second + shift replaces |first|, or the larger or smaller of the two."""

    one: Floats
    other: Floats
    shift: Floats


@dataclass
class Known:
    """What a real pass knows of one step, arrays `(cell,)`; `slopes` one rectangle for each parameter, None for 0."""

    range: Rectangle
    slopes: list[Rectangle | None]
    error: Floats
    rest: Floats


@dataclass(frozen=True)
class Tape:
    """Steps in order; `outputs` and `queries` are indices of steps; `kinks` are hyperplanes seen in the graph."""

    parameters: int
    steps: tuple[Step, ...]
    coordinates: tuple[int, ...]
    outputs: tuple[int, ...]
    queries: tuple[int, ...]
    kinks: tuple[tuple[Floats, float], ...]

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
            elif step.operation in KINKED and index in stand_ins:
                stand = stand_ins[index]
                second = given[1] if len(given) == 2 else 0.0
                found.append(stand.one[:, None] * given[0] + stand.other[:, None] * second + stand.shift[:, None])
            else:
                found.append(_at_point(step, given))
        return found

    def on_cells(self, lower: Floats, upper: Floats) -> tuple[list[Known], dict[int, StandIn]]:
        """What is known of every step on the cells from `lower` to `upper` `(cell, parameter)`, and the stand-ins."""
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
                found.append(_on_cell(step, given, cells, self.parameters))
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
                start = Rectangle(point(step.linear.constant).widened(step.linear.slack))
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


class _Builder:
    """Adds nodes of expressions to a tape; each step is made once."""

    def __init__(self, domain: Sphere | Cube, frame: Floats | None) -> None:
        self.steps: list[Step] = []
        self.made: dict[Any, int] = {}
        self.kinks: list[tuple[Floats, float]] = []
        parameters = [self.add("parameter", value=axis) for axis in range(domain.dimension)]
        if isinstance(domain, Cube):
            self.coordinates = tuple(parameters)
            self.reach = np.abs(domain.box).max(axis=1)
        else:
            self.coordinates = self._on_sphere(parameters)
            self.reach = np.ones(domain.columns)
        matrix = np.eye(len(self.coordinates)) if frame is None else frame
        # The nearest orthogonal matrix is the frame that is meant; it is within this of the frame given.
        gap = 0.0 if frame is None else float(np.linalg.norm(frame.T @ frame - np.eye(len(frame)))) + 1e-14
        self.columns = [self._tidy(Linear(row.copy(), 0.0, gap * math.sqrt(len(row)))) for row in matrix]

    def _on_sphere(self, angles: list[int]) -> tuple[int, ...]:
        found, radius = [], None
        for angle in angles:
            sine, cosine = self.add("sin", angle), self.add("cos", angle)
            found.append(sine if radius is None else self.add("multiply", radius, sine))
            radius = cosine if radius is None else self.add("multiply", radius, cosine)
        return (*found, *([] if radius is None else [radius]))

    def add(self, operation: str, *arguments: int, value: float | int = 0, linear: Linear | None = None) -> int:
        key = (operation, arguments, repr(value), None if linear is None else (*linear.coefficients, linear.constant))
        if key not in self.made:
            self.steps.append(Step(operation, arguments, value, linear))
            self.made[key] = len(self.steps) - 1
        return self.made[key]

    def graph(self, nodes: Sequence[Node]) -> tuple[int, ...]:
        """The steps of the nodes."""
        found = walk(nodes, self._node)
        return tuple(self.place(found[id(node)]) for node in nodes)

    def place(self, thing: int | Linear) -> int:
        """The step of a linear form: a coordinate itself where it is one."""
        if isinstance(thing, int):
            return thing
        used = np.flatnonzero(thing.coefficients)
        if len(used) == 1 and thing.coefficients[used[0]] == 1.0 and thing.constant == 0.0 and thing.slack == 0.0:
            return self.coordinates[used[0]]
        return self.add("linear", linear=thing)

    def _node(self, node: Node, given: list[int | Linear]) -> int | Linear:
        if node.operation == "variable":
            return self.columns[int(node.value or 0)]
        if node.operation == "constant":
            return Linear(np.zeros(len(self.coordinates)), float(node.value or 0.0), 0.0)
        if node.operation == "pi":
            return self.add("pi")
        joined = self._joined(node.operation, given)
        if joined is not None:
            return self._tidy(joined)
        self._note_kink(node.operation, given)
        places = tuple(self.place(thing) for thing in given)
        return self.add(node.operation, *places, value=node.value or 0)

    def _joined(self, operation: str, given: list[int | Linear]) -> Linear | None:
        """The linear form of an operation on linear forms, where it is one."""
        forms = [thing for thing in given if isinstance(thing, Linear)]
        if len(forms) < len(given) or not given:
            return None
        one, other = forms[0], forms[-1]
        if operation == "negative":
            return Linear(-one.coefficients, -one.constant, one.slack)
        if operation in ("add", "subtract"):
            sign = 1.0 if operation == "add" else -1.0
            return Linear(
                one.coefficients + sign * other.coefficients, one.constant + sign * other.constant,
                one.slack + other.slack + self._rounding(one) + self._rounding(other),
            )  # fmt: skip
        if operation == "multiply" and not (one.coefficients.any() and other.coefficients.any()):
            form, number = (one, other) if not other.coefficients.any() else (other, one)
            return self._scaled(form, number.constant, number.slack)
        if operation == "divide" and not other.coefficients.any() and abs(other.constant) > 2 * other.slack:
            factor = 1.0 / other.constant
            if not math.isfinite(factor):
                return None
            return self._scaled(one, factor, abs(factor) * (4 * ULP + 2 * abs(factor) * other.slack))
        return None

    def _scaled(self, form: Linear, factor: float, slack: float) -> Linear:
        size = self._size(form)
        scaled = Linear(form.coefficients * factor, form.constant * factor, 0.0)
        return Linear(
            scaled.coefficients,
            scaled.constant,
            (form.slack * (abs(factor) + slack) + size * slack + self._rounding(scaled)) * (1 + 8 * ULP),
        )

    def _size(self, form: Linear) -> float:
        return float(np.abs(form.coefficients) @ self.reach + abs(form.constant)) * (1 + 16 * ULP)

    def _rounding(self, form: Linear) -> float:
        return 0.0 if self._size(form) == 0 else 2 * ULP * self._size(form)

    def _tidy(self, form: Linear) -> Linear:
        """Without the coefficients that are no more than rounding: they go into the slack."""
        tiny = np.abs(form.coefficients) * self.reach <= form.slack
        dropped = float(np.abs(form.coefficients[tiny]) @ self.reach[tiny])
        return Linear(np.where(tiny, 0.0, form.coefficients), form.constant, form.slack + dropped)

    def _note_kink(self, operation: str, given: list[int | Linear]) -> None:
        if operation not in KINKED or not all(isinstance(thing, Linear) for thing in given):
            return
        forms = [thing for thing in given if isinstance(thing, Linear)]
        normal, constant = forms[0].coefficients, forms[0].constant
        if len(forms) == 2:
            normal, constant = normal - forms[1].coefficients, constant - forms[1].constant
        length = float(np.linalg.norm(normal))
        if length > 0:
            self.kinks.append((normal / length, -constant / length))


def tape_of(
    domain: Sphere | Cube, outputs: Sequence[Node], queries: Sequence[Node], frame: Floats | None = None
) -> Tape:
    """The tape of target nodes and query nodes, both over the domain's columns; points are `frame @ coordinates`.

    Kinks are hyperplanes of the coordinates `(normal, offset)` on which an absolute value or a maximum of linear terms
    turns.
    """
    builder = _Builder(domain, frame)
    places = builder.graph(outputs)
    kinks = tuple(builder.kinks)
    asked = builder.coordinates if not queries else builder.graph(queries)
    return Tape(domain.dimension, tuple(builder.steps), builder.coordinates, places, asked, kinks)


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


_ONE = rectangles.constant(1.0)


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
    return [
        _sum([(w, slope[axis]) for w, slope in zip(form.coefficients, slopes, strict=True)]) for axis in axes
    ]


def _linear_on_cell(form: Linear, given: list[Known], cells: int) -> Known:
    ranges = _sum([(w, known.range) for w, known in zip(form.coefficients, given, strict=True)])
    value = Rectangle(point(np.full(cells, form.constant)))
    value = value if ranges is None else value + ranges
    weights = np.abs(form.coefficients)
    error = sum((w * known.error for w, known in zip(weights, given, strict=True) if w), np.zeros(cells))
    size = sum((w * known.range.size() for w, known in zip(weights, given, strict=True) if w), np.zeros(cells))
    error = (error + (len(given) + 2) * ULP * (size + abs(form.constant)) + form.slack) * (1 + 16 * ULP)
    slopes = _linear_slopes(form, [known.slopes for known in given])
    return Known(Rectangle(value.re.widened(error)), slopes, error, np.zeros(cells))


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
    else:
        rounding = LIBRARY * ULP * size
    error, rest = (error + rounding) * (1 + 16 * ULP), rest * (1 + 16 * ULP)
    value = Rectangle(value.re.widened(rounding * 2))
    return Known(value, _chain(parameters, partials, [known.slopes for known in given]), error, rest)


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
    if operation == "absolute":
        stand = StandIn(slope, np.zeros_like(slope), lift)
        low_end, high_end = first.least(), first.size()
    else:
        sign = 1.0 if operation == "maximum" else -1.0
        stand = StandIn((1 + sign * slope) / 2, (1 - sign * slope) / 2, sign * lift / 2)
        extra = extra / 2
        second, pick = given[1].range.re, np.maximum if operation == "maximum" else np.minimum
        low_end, high_end = pick(first.lo, second.lo), pick(first.hi, second.hi)
    error = np.max([known.error for known in given], axis=0)
    rest = np.max([known.rest for known in given], axis=0) + extra
    rounding = np.where(is_split, 8 * ULP * np.max([known.range.size() for known in given], axis=0), 0.0)
    value = Rectangle(Interval(low_end, high_end).widened(extra * 2 + rounding))
    weights = [Rectangle(point(stand.one)), Rectangle(point(stand.other))][: len(given)]
    slopes = _chain(len(given[0].slopes), weights, [known.slopes for known in given])
    return Known(value, slopes, (error + rounding) * (1 + 16 * ULP), rest * (1 + 16 * ULP)), stand
