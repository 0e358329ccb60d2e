"""From expression graphs to a tape over a cell's parameters.

What is linear in the coordinates is collected into one step, with a bound on the rounding of its coefficients: so a
frame's cancelling terms do cancel, and hyperplanes on which the target has a kink show themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import Node, walk
from foreword.compiler.intervals import ULP
from foreword.compiler.tape import KINKED, Linear, Step, Tape


class _Recorder:
    """Adds nodes of expressions to a tape; each step is made once."""

    def __init__(self, domain: Sphere | Cube, frame: Floats | None) -> None:
        self.steps: list[Step] = []
        self.made: dict[Any, int] = {}
        self.kinks: list[tuple[Floats, float]] = []
        self.nodes: dict[int, tuple[Node, ...]] = {}
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
        form = None if linear is None else (*linear.coefficients, linear.constant, linear.slack)
        key = (operation, arguments, repr(value), form)
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
        if not isinstance(thing, Linear):
            return thing
        used = np.flatnonzero(thing.coefficients)
        if len(used) == 1 and thing.coefficients[used[0]] == 1.0 and thing.constant == 0.0 and thing.slack == 0.0:
            return self.coordinates[int(used[0])]
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
        place = self.add(node.operation, *places, value=node.value or 0)
        self.nodes[place] = (*self.nodes.get(place, ()), node)
        return place

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
                return None  # the divisor's reciprocal overflows
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


def kinks_of(domain: Sphere | Cube, outputs: Sequence[Node]) -> list[tuple[Floats, float]]:
    """Hyperplanes `(normal, offset)` of the columns on which an absolute value or a maximum of linear terms turns.

    >>> x = Node("variable", value=0)
    >>> [(normal.tolist(), offset) for normal, offset in kinks_of(Cube([(-1, 1)]), [Node("absolute", (x,))])]
    [([1.0], -0.0)]
    """
    recorder = _Recorder(domain, None)
    recorder.graph(outputs)
    return recorder.kinks


def tape_of(
    domain: Sphere | Cube, outputs: Sequence[Node], queries: Sequence[Node], frame: Floats | None = None
) -> Tape:
    """The tape of target nodes and query nodes, both over the domain's columns; points are `frame @ coordinates`.

    Without query nodes the coordinates themselves are the queries.
    """
    recorder = _Recorder(domain, frame)
    places = recorder.graph(outputs)
    asked = recorder.graph(queries) if queries else recorder.coordinates
    return Tape(domain.dimension, tuple(recorder.steps), recorder.coordinates, places, asked, recorder.nodes)
