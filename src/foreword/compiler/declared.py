"""A callable target over cells, from what its caller declared of it, in ball arithmetic: the checker's own reading.

f is its Taylor polynomial at the cell's middle, as far as derivatives are declared, and what is left is at most the
declared constant's: C d^p / p! at distance d (statement C.5, docs/theory). What the callables return is taken as exact
up to `ROUNDINGS` units in the last place. No code of it is the search's (`taylor.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from flint import arb
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.balls import Balls, Model, as_balls, magnitude
from foreword.compiler.domain import Sphere
from foreword.compiler.target import Target

ROUNDINGS = 64
ON_KINK = 1e-12  # how far a cell of a sphere may reach over a declared kink, since angles are rounded
RELATIVE = arb(ROUNDINGS) * arb(2) ** -52


@dataclass(frozen=True, eq=False)
class Declared:
    """f as far as its caller declared it; `premises` are the codes of the assumptions that this rests on."""

    target: Target

    @cached_property
    def terms(self) -> int:
        """How many Taylor terms there are: value, gradient, Hessian; 0 when nothing bounds what is left."""
        target = self.target
        if target.gradient is not None and target.hessian is not None and target.third is not None:
            return 3
        if target.gradient is not None and target.second is not None:
            return 2
        return 0 if target.lipschitz is None else 1

    @property
    def premises(self) -> tuple[str, ...]:
        """The declared facts that bound f between points."""
        kinked = ("lipschitz",) if self.target.kinks and self.target.lipschitz is not None else ()
        return ((), ("lipschitz",), ("gradient", "second", *kinked), ("gradient", "hessian", "third", *kinked))[
            self.terms
        ]

    def values(self, points: Floats) -> Balls:
        """Balls around f `(batch, output)` at points `(batch, column)`."""
        values = as_balls(self.target.evaluate(points))
        return np.asarray(values + magnitude(values) * RELATIVE * arb(0, 1))

    def enclose(self, columns: Sequence[Model]) -> list[Model]:
        """A model of each output from models of the columns; its rest is not a number where nothing is declared."""
        space, cells = columns[0].space, len(columns[0].rest)
        middles = np.array([column.coefficients[0] for column in columns]).astype(np.float64).T
        steps = [column.shifted(as_balls(-middle)) for column, middle in zip(columns, middles.T, strict=True)]
        chord = _root(sum((magnitude(step.size + step.rest) ** 2 for step in steps), as_balls(np.zeros(cells))))
        values, gradient, hessian = self._at(middles)
        over, is_split = self._beyond_kinks(columns)
        target, found = self.target, []
        near = magnitude(chord + over)
        left = near if target.metric == "euclidean" or not isinstance(target.domain, Sphere) else _arcs(near)
        lipschitz = arb.nan() if target.lipschitz is None else arb(target.lipschitz)
        constant = (arb.nan(), lipschitz, target.second, target.third)[self.terms]
        for output in range(values.shape[1]):
            slopes, square = gradient[:, output], hessian[:, output]
            model = space.constant(as_balls(values[:, output]))
            size = magnitude(as_balls(values[:, output]))
            slope = _root((magnitude(as_balls(slopes)) ** 2).sum(axis=1)) + near * _root(
                (magnitude(as_balls(square)) ** 2).sum(axis=(1, 2))
            )
            for i, step in enumerate(steps if self.terms > 1 else []):
                inner = space.constant(as_balls(slopes[:, i]))
                for j, other in enumerate(steps if self.terms > 2 else []):
                    inner = inner + other.scaled(as_balls(square[:, i, j]) / 2)
                model = model + inner * step
            bound = lipschitz * left if self.terms == 1 else arb(constant) * near**self.terms / arb(self.terms).fac()
            if self.terms > 1:
                bound = np.where(over > 0, bound + (lipschitz + slope) * over, bound)
                bound = np.where(is_split, lipschitz * left + slope * near, bound)
            rest = model.rest + magnitude(bound) + RELATIVE * (size + slope * (near + 1))
            found.append(Model(space, model.coefficients, np.asarray(rest)))
        return found

    def _at(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        """Values `(cell, output)`, gradients `(cell, output, column)` and Hessians, 0 where they are not declared."""
        target = self.target
        values = target.evaluate(points)
        (cells, outputs), columns = values.shape, points.shape[1]
        gradient = np.zeros((cells, outputs, columns))
        hessian = np.zeros((cells, outputs, columns, columns))
        if self.terms > 1 and target.gradient is not None:
            gradient = np.asarray(target.gradient(points), dtype=np.float64).reshape(gradient.shape)
        if self.terms > 2 and target.hessian is not None:
            told = np.asarray(target.hessian(points), dtype=np.float64).reshape(hessian.shape)
            hessian = (told + told.transpose(0, 1, 3, 2)) / 2
        return values, gradient, hessian

    def _beyond_kinks(self, columns: Sequence[Model]) -> tuple[Balls, NDArray[np.bool_]]:
        """How far each cell reaches over a declared kink `(cell,)` seen from its middle, where that is rounding only;
        and whether it is more.

        On the sphere a great circle leads from a point to the kink and has the length asin(o + t) - asin(o), t being
        how much <normal, x> exceeds the offset o. A cube's cells end at a kink exactly or are divided by it.
        """
        cells = len(columns[0].rest)
        over, is_split = as_balls(np.zeros(cells)), np.zeros(cells, dtype=bool)
        for normal, offset in self.target.kinks if self.terms > 1 else ():
            side = columns[0].scaled(arb(normal[0]))
            for weight, column in zip(normal[1:], columns[1:], strict=True):
                side = side + column.scaled(arb(weight))
            low, high = side.shifted(arb(-offset)).range()
            for cell in range(cells):
                if low[cell] >= 0 or high[cell] <= 0:
                    continue
                middle = (side.coefficients[0, cell] + side.rest[cell] * arb(0, 1)) - arb(offset)
                excess = -low[cell] if middle > 0 else high[cell] if middle < 0 else arb(1)
                outermost = abs(arb(offset)) + excess
                if isinstance(self.target.domain, Sphere) and excess < ON_KINK and outermost < 1:
                    arc = (outermost.asin() - abs(arb(offset)).asin()).upper()
                    over[cell] = over[cell].max(arc)
                else:
                    is_split[cell] = True
        return over, is_split


def _root(squares: Balls) -> Balls:
    return np.array([entry.sqrt().upper() for entry in squares], dtype=object)


def _arcs(chords: Balls) -> Balls:
    """The angles of chords of the unit sphere."""
    return np.array([(2 * (c / 2).asin()).upper() if c < 2 else arb.pi().upper() for c in chords], dtype=object)
