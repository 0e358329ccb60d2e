"""From points of the domain to queries of the head.

A chart is a fixed map, the same for every target. Each gives its query coordinates as expression graphs too, so that
the prover and the checker treat the head as a softmax over scores that are linear in the query.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.expression import Node
from foreword.errors import CompileError


class Chart(Protocol):
    """What every chart gives. `width` is the number of query coordinates."""

    @property
    def name(self) -> str: ...

    @property
    def width(self) -> int: ...

    def __call__(self, points: Floats) -> Floats:
        """Queries `(batch, width)` of points `(batch, column)`."""
        ...

    def expressions(self, columns: int) -> tuple[Node, ...]:
        """The query coordinates as graphs over `columns` variables."""
        ...

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `chart_from_dict` reads them back."""
        ...


@dataclass(frozen=True)
class Identity:
    """The point is the query: for the sphere.

    >>> Identity(3)(np.array([[0.0, 0.6, 0.8]]))
    array([[0. , 0.6, 0.8]])
    """

    width: int
    name: str = "identity"

    def __call__(self, points: Floats) -> Floats:
        """Queries `(batch, width)`: the points."""
        return np.asarray(points, dtype=np.float64)

    def expressions(self, columns: int) -> tuple[Node, ...]:
        """One variable for each coordinate."""
        return _variables(columns, self.width)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "width": self.width}


@dataclass(frozen=True)
class Flat:
    """q = (x - middle) / half: a cube as [-1, 1]^d. Biases turn its keys into exact Gaussians (statement A3).

    >>> Flat((1.0,), (2.0,))(np.array([[3.0]]))
    array([[1.]])
    """

    middle: tuple[float, ...]
    half: tuple[float, ...]
    name: str = "flat"

    @property
    def width(self) -> int:
        """The number of coordinates."""
        return len(self.middle)

    def __call__(self, points: Floats) -> Floats:
        """Queries `(batch, width)`."""
        queries: Floats = (np.asarray(points, dtype=np.float64) - np.array(self.middle)) / np.array(self.half)
        return queries

    def expressions(self, columns: int) -> tuple[Node, ...]:
        """(x_j - middle_j) / half_j."""
        return tuple(
            Node("divide", (Node("subtract", (variable, _constant(middle))), _constant(half)))
            for variable, middle, half in zip(_variables(columns, self.width), self.middle, self.half, strict=True)
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "middle": list(self.middle), "half": list(self.half)}


@dataclass(frozen=True)
class Gnomonic:
    """q = (scale * t, 1) / |(scale * t, 1)|, t the flat coordinates: for a host whose norm puts tokens on a sphere.

    >>> float(np.linalg.norm(Gnomonic((0.0,), (1.0,), 0.7)(np.array([[1.0]]))).round(12))
    1.0
    """

    middle: tuple[float, ...]
    half: tuple[float, ...]
    scale: float
    name: str = "gnomonic"

    @property
    def width(self) -> int:
        """One more than the number of coordinates."""
        return len(self.middle) + 1

    def __call__(self, points: Floats) -> Floats:
        """Queries `(batch, width)`, of norm 1."""
        flat = self.scale * Flat(self.middle, self.half)(points)
        lifted = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
        queries: Floats = lifted / np.linalg.norm(lifted, axis=1, keepdims=True)
        return queries

    def expressions(self, columns: int) -> tuple[Node, ...]:
        """(scale t_j) / sqrt(1 + sum (scale t_i)^2), and 1 over that root."""
        flat = [
            Node("multiply", (_constant(self.scale), node))
            for node in Flat(self.middle, self.half).expressions(columns)
        ]
        total = _constant(1.0)
        for node in flat:
            total = Node("add", (total, Node("power", (node,), 2)))
        root = Node("sqrt", (total,))
        return tuple(Node("divide", (node, root)) for node in [*flat, _constant(1.0)])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "middle": list(self.middle), "half": list(self.half), "scale": self.scale}


def chart_of(domain: Domain) -> Identity | Flat:
    """The chart that constructions use: the sphere as it is, everything else flat.

    >>> chart_of(Cube([(0, 4)]))
    Flat(middle=(2.0,), half=(2.0,), name='flat')
    """
    match domain:
        case Sphere():
            return Identity(domain.columns)
        case Cube():
            lower, upper = domain.box.T
        case FiniteSet():
            lower, upper = domain.points.min(axis=0), domain.points.max(axis=0)
    half = upper / 2 - lower / 2
    return Flat(tuple((lower / 2 + upper / 2).tolist()), tuple(np.where(half > 0, half, 1.0).tolist()))


def chart_from_dict(told: dict[str, Any]) -> Chart:
    """The chart that `as_dict` wrote; CompileError when it is none.

    >>> chart_from_dict(Identity(3).as_dict())
    Identity(width=3, name='identity')
    """
    try:
        match told:
            case {"name": "identity", "width": width}:
                return Identity(int(width))
            case {"name": "flat", "middle": middle, "half": half}:
                return Flat(_numbers(middle), _numbers(half))
            case {"name": "gnomonic", "middle": middle, "half": half, "scale": scale}:
                return Gnomonic(_numbers(middle), _numbers(half), float(scale))
    except (TypeError, ValueError):
        pass
    raise CompileError(
        "This is no chart.", expected="identity, flat or gnomonic", found=repr(told)[:200], fix="Write as_dict()."
    )


def _numbers(told: Any) -> tuple[float, ...]:
    return tuple(float(number) for number in told)


def _constant(value: float) -> Node:
    return Node("constant", value=float(value))


def _variables(columns: int, width: int) -> tuple[Node, ...]:
    if columns != width:
        raise CompileError(
            "The chart is for another domain.", expected=f"{width} columns", found=str(columns), fix="Use its own."
        )
    return tuple(Node("variable", value=column) for column in range(columns))
