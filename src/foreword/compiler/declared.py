"""A callable target over cells, from what its caller declared of it: the checker's own reading.

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
from foreword.compiler.balls import Balls, as_balls, magnitude
from foreword.compiler.domain import Sphere
from foreword.compiler.numbers import Numbers, System
from foreword.compiler.target import Target
from foreword.compiler.truncated import Model, Space

ROUNDINGS = 64
ON_KINK = 1e-12  # how far a cell may reach over a declared kink, since angles, or the checker's doubles, are rounded
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
        space, system = columns[0].space, columns[0].system
        middles = np.array([column.coefficients[0] for column in columns]).astype(np.float64).T
        steps = [column.shifted(-middle) for column, middle in zip(columns, middles.T, strict=True)]
        chord = system.root(system.up(sum((step.largest**2 for step in steps), system.zeros(len(middles)))))
        values, gradient, hessian = self._at(middles)
        over, is_split = self._beyond_kinks(columns)
        target, found = self.target, []
        near = system.up(chord + over)
        is_chord = target.metric == "euclidean" or not isinstance(target.domain, Sphere)
        left = near if is_chord else system.upper(_arcs(system.balls(near)))
        lipschitz = system.upper([arb.nan() if target.lipschitz is None else arb(target.lipschitz)])[0]
        told = (None, target.lipschitz, target.second, target.third)[self.terms]
        constant = arb.nan() if told is None else arb(told) / arb(self.terms).fac()
        beyond = system.upper([constant])[0] * system.power(left if self.terms == 1 else near, max(self.terms, 1))
        for output in range(values.shape[1]):
            model = self._polynomial(space, steps, values[:, output], gradient[:, output], hessian[:, output])
            slope = system.up(_length(system, gradient[:, output]) + near * _length(system, hessian[:, output]))
            bound = beyond
            if self.terms > 1:
                bound = np.where(over > 0, bound + (lipschitz + slope) * over, bound)
                bound = np.where(is_split, lipschitz * left + slope * near, bound)
            size = system.magnitude(system.exact(values[:, output]))
            found.append(model.widened(bound + system.upper([RELATIVE])[0] * (size + slope * (near + 1))))
        return found

    def _polynomial(self, space: Space, steps: Sequence[Model], value: Floats, slopes: Floats, square: Floats) -> Model:
        """The Taylor polynomial of one output, as far as derivatives are declared."""
        model = space.constant(space.system.exact(value))
        for i, step in enumerate(steps if self.terms > 1 else []):
            inner = space.constant(space.system.exact(slopes[:, i]))
            for j, other in enumerate(steps if self.terms > 2 else []):
                inner = inner + other.scaled(square[:, i, j] / 2)
            model = model + inner * step
        return model

    def _at(self, points: Floats) -> tuple[Floats, Floats, Floats]:
        """Values `(cell, output)`, gradients `(cell, output, column)` and Hessians, 0 where they are not declared."""
        target = self.target
        values = target.evaluate(points)
        (cells, outputs), columns = values.shape, points.shape[1]
        gradient = np.zeros((cells, outputs, columns))
        hessian = np.zeros((cells, outputs, columns, columns))
        if self.terms > 1:
            gradient = target.gradient_at(points)
        if self.terms > 2:
            hessian = target.hessian_at(points)
        return values, gradient, hessian

    def _beyond_kinks(self, columns: Sequence[Model]) -> tuple[Numbers, NDArray[np.bool_]]:
        """How far each cell reaches over a declared kink `(cell,)` seen from its middle, where that is rounding only;
        and whether it is more.

        On the sphere a great circle leads from a point to the kink and has the length asin(o + t) - asin(o), t being
        how much <normal, x> exceeds the offset o; in a cube a straight line does, of length t / |normal|.
        """
        system, cells, is_sphere = columns[0].system, len(columns[0].rest), isinstance(self.target.domain, Sphere)
        over, is_split = np.array([arb(0)] * cells, dtype=object), np.zeros(cells, dtype=bool)
        for normal, offset in self.target.kinks if self.terms > 1 else ():
            side = columns[0].scaled(float(normal[0]))
            for weight, column in zip(normal[1:], columns[1:], strict=True):
                side = side + column.scaled(float(weight))
            low, high = (system.balls(end) for end in side.shifted(-float(offset)).range())
            length = sum((arb(float(weight)) ** 2 for weight in normal), arb(0)).sqrt()
            middle = system.balls(side.coefficients[0]) + system.balls(side.rest) * arb(0, 1) - arb(offset)
            for cell in range(cells):
                if low[cell] >= 0 or high[cell] <= 0:
                    continue
                excess = -low[cell] if middle[cell] > 0 else high[cell] if middle[cell] < 0 else arb(1)
                outermost = abs(arb(offset)) + excess
                if not excess < ON_KINK or (is_sphere and not outermost < 1):
                    is_split[cell] = True
                    continue
                path = outermost.asin() - abs(arb(offset)).asin() if is_sphere else excess / length
                over[cell] = over[cell].max(path.upper())
        return system.upper(over), is_split


def _length(system: System, derivatives: Floats) -> Numbers:
    """Upper bounds on the lengths of a derivative's entries `(cell, ...)`."""
    flat = system.magnitude(system.exact(derivatives.reshape(len(derivatives), -1)))
    return system.root(system.up((flat**2).sum(axis=1)))


def _arcs(chords: Balls) -> Balls:
    """The angles of chords of the unit sphere."""
    return np.array([(2 * (c / 2).asin()).upper() if c < 2 else arb.pi().upper() for c in chords], dtype=object)
