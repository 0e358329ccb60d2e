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
class Paraboloid:
    """q = (p, 2 |t|^2 / k - 1), p the flat queries and t = slopes p + offsets `(k,)`, in [-1, 1]^k: with a square.

    Keys beside a prefix's own can be as narrow as is wanted over it (statement B.3).

    >>> Paraboloid.of(Flat((0.0,), (2.0,)))(np.array([[2.0], [1.0]]))
    array([[ 1. ,  1. ],
           [ 0.5, -0.5]])
    """

    base: Flat
    slopes: tuple[tuple[float, ...], ...]
    offsets: tuple[float, ...]
    name: str = "paraboloid"

    @classmethod
    def of(cls, base: Flat) -> Paraboloid:
        """The one whose t is p."""
        return cls(base, tuple(map(tuple, np.eye(base.width).tolist())), (0.0,) * base.width)

    @property
    def width(self) -> int:
        """One more than the coordinates."""
        return self.base.width + 1

    def __call__(self, points: Floats) -> Floats:
        """Queries `(batch, width)`."""
        queries = self.base(points)
        t = self.places(queries)
        square = (t**2).sum(axis=1, keepdims=True) * (2.0 / len(self.offsets)) - 1.0
        return np.concatenate([queries, square], axis=1)

    def places(self, queries: Floats) -> Floats:
        """t `(batch, k)` of queries, flat or these."""
        found: Floats = queries[:, : self.base.width] @ np.array(self.slopes).T + np.array(self.offsets)
        return found

    def expressions(self, columns: int) -> tuple[Node, ...]:
        """The flat ones, and the sum of squares."""
        base, total = self.base.expressions(columns), _constant(0.0)
        for row, offset in zip(self.slopes, self.offsets, strict=True):
            place = _constant(offset)
            for slope, node in zip(row, base, strict=True):
                if slope:
                    place = Node("add", (place, Node("multiply", (_constant(slope), node))))
            total = Node("add", (total, Node("power", (place,), 2)))
        scaled = Node("multiply", (_constant(2.0 / len(self.offsets)), total))
        return (*base, Node("subtract", (scaled, _constant(1.0))))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        slopes = [list(row) for row in self.slopes]
        return {"name": self.name, "base": self.base.as_dict(), "slopes": slopes, "offsets": list(self.offsets)}


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
            case {
                "name": "paraboloid",
                "base": {"name": "identity" | "flat"} as base,
                "slopes": slopes,
                "offsets": offsets,
            }:
                return _paraboloid(chart_from_dict(base), tuple(_numbers(row) for row in slopes), _numbers(offsets))
    except (KeyError, TypeError, ValueError):
        pass
    raise CompileError(
        "This is no chart.", expected="identity, flat or paraboloid", found=repr(told)[:200], fix="Write as_dict()."
    )


def _paraboloid(base: Chart, slopes: tuple[tuple[float, ...], ...], offsets: tuple[float, ...]) -> Paraboloid:
    """Of parts that were read; ValueError where they do not fit."""
    fits = bool(offsets) and len(slopes) == len(offsets)
    if not isinstance(base, Flat) or not fits or any(len(row) != base.width for row in slopes):
        raise ValueError("slopes (k, query coordinate) and offsets (k,) over a flat chart")
    return Paraboloid(base, slopes, offsets)


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
