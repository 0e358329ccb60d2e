"""The checker's way over the cells of a proof: each is bounded anew, and halved where its bound is not small enough.

In doubles first, which are fast; cells where their rounding is in the way are bounded in balls.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.balls import BALLS
from foreword.compiler.claim import Claim, Findings
from foreword.compiler.declared import Declared
from foreword.compiler.domain import Domain, Sphere
from foreword.compiler.doubles import DOUBLES
from foreword.compiler.enclosure import Bounds, Problem
from foreword.compiler.expression import Node, ordered
from foreword.compiler.functions import enclose
from foreword.compiler.head import Head
from foreword.compiler.numbers import System
from foreword.compiler.spans import Sides
from foreword.compiler.truncated import Model
from foreword.errors import CertificateError

Progress = Callable[[float], None]
Cells = tuple[Floats, Floats]  # lower and upper corners `(cell, parameter)`

LARGEST_BLOCK = 512  # cells at once in doubles; more do not go faster
LARGEST_BLOCK_OF_BALLS = 32  # half a second's work: no longer between two looks at the clock
MOST_FEATURES = 2_000_000  # numbers of a block: cells times positions times monomials
DEEPEST = 40  # halvings of a stored cell before the check gives up
MOST_CELLS = 20_000_000
LOOK_EVERY = 4  # halvings between two looks at all open cells for what rounding adds


class _OutOfTimeError(Exception):
    """The time, or the number of cells, that the check may take is used up."""


@dataclass
class Sweep:
    """One check by cells: |f - g| <= `allowed` over every cell of the claim's cover, until `deadline`.

    Functions are expanded to `order`.
    """

    claim: Claim
    found: Findings
    allowed: float
    order: int
    deadline: float
    progress: Progress | None = None

    def __post_init__(self) -> None:
        self.problem = _problem(self.claim)
        self.whole, self.shown, self.depth = 1.0, 0.0, 0

    def run(self) -> str:
        """What the line of the check says; what is wrong or could not be shown is among the findings.

        A cell that fails is halved along its worst axis.
        """
        cover = self.claim.cover
        cells = (np.empty((0, 0)),) * 2 if cover is None else (cover.lower, cover.upper)
        self.whole = float(_volumes(*cells).sum())
        try:
            left = self._show(self._show(cells, DOUBLES), BALLS)
        except _OutOfTimeError:
            self.found.unchecked.append(
                f"ran out of time or cells after {min(self.shown / self.whole, 1.0):.0%} of the cover, "
                f"{self.depth} halvings deep"
            )
            return ""
        if self.found.wrong:
            return ""
        if len(left[0]):
            count = len(left[0])
            self.found.wrong.append(
                f"the error could not be shown to stay below the approximation term in {count} cells"
            )
            return ""
        if self.progress is not None:
            self.progress(1.0)
        return f"shown on {self.found.cells:,} cells, {self.depth} halvings deep"

    def _show(self, cells: Cells, system: System) -> Cells:
        """Show it over cells in one system's numbers; returned are those that it cannot do, a hopeless one ends it."""
        hopeless: list[Cells] = []
        for depth in range(DEEPEST + 1):
            if not len(cells[0]) or self.found.wrong:
                break
            self.depth, halved = max(self.depth, depth), []
            for block in self._blocks(cells, system):
                failed, bounds = self._examine(block, system)
                is_lost = self._is_lost(failed, bounds, system, look_at_all=depth % LOOK_EVERY == LOOK_EVERY - 1)
                if self.found.wrong:
                    return cells
                hopeless.append((failed[0][is_lost], failed[1][is_lost]))
                swing = np.where(np.isfinite(bounds.swing[~is_lost]), bounds.swing[~is_lost], 0.0)
                halved.append(_halved(failed[0][~is_lost], failed[1][~is_lost], swing))
            cells = _joined(halved)
        return _joined([*hopeless, cells])

    def _examine(self, block: Cells, system: System) -> tuple[Cells, Bounds]:
        """The cells of a block for which it is not shown, and their bounds."""
        if time.perf_counter() > self.deadline or self.found.cells > MOST_CELLS:
            raise _OutOfTimeError
        bounds = self.problem.bounds(*block, self.order, system)
        self.found.cells += len(block[0])
        self._refuse_above(bounds.least, (block[0] + block[1]) / 2)
        failed = ~(bounds.error <= self.allowed)
        self.shown += float(_volumes(block[0][~failed], block[1][~failed]).sum())
        if self.progress is not None:
            self.progress(min(self.shown / self.whole, 1.0))
        open_bounds = Bounds(bounds.error[failed], bounds.least[failed], bounds.swing[failed])
        return (block[0][failed], block[1][failed]), open_bounds

    def _refuse_above(self, least: Floats, middle: Floats) -> None:
        """What is wrong, if the error at any of the cells' middles is above what is allowed."""
        if (least > self.allowed).any() and not self.found.wrong:
            found = middle[int(np.argmax(least > self.allowed))].tolist()
            self.found.wrong.append(f"the error exceeds the approximation term at the parameters {found}")

    def _is_lost(self, failed: Cells, bounds: Bounds, system: System, *, look_at_all: bool) -> NDArray[np.bool_]:
        """Which cells no halving would help, since at their middle alone rounding takes too much of what is allowed."""
        lost = np.zeros(len(failed[0]), dtype=bool)
        if not system.unit:
            return lost
        gap = bounds.error - bounds.least
        looked = np.flatnonzero(look_at_all | (gap < self.allowed / 4))
        if len(looked):
            middle = (failed[0][looked] + failed[1][looked]) / 2
            point = self.problem.bounds(middle, middle, self.order, system)
            self._refuse_above(point.least, middle)
            noise = point.error - point.least
            lost[looked] = ~(point.error <= self.allowed) | (noise >= gap[looked] / 2)
        return lost

    def _blocks(self, cells: Cells, system: System) -> Iterator[Cells]:
        """Cells in blocks of neighbours."""
        head = self.problem.head
        basis = self.problem.basis(system)
        count = head.keys.shape[1] if basis is None else len(basis)
        features = head.positions * math.comb(self.order - 1 + count, count)
        most = LARGEST_BLOCK if system.unit else LARGEST_BLOCK_OF_BALLS
        size = max(1, min(most, MOST_FEATURES // features))
        for rows in _neighbours(*cells, size):
            yield cells[0][rows], cells[1][rows]


def _problem(claim: Claim) -> Problem:
    """The problem; CertificateError when f has another number of outputs than the head."""
    expression, domain, wanted = claim.expression, claim.domain, claim.head.values.shape[1]
    nodes: Sequence[Node] = ()
    if claim.declared is not None:
        outputs, reading = claim.declared.target.outputs, partial(_declared, claim.declared)
    else:
        nodes = () if expression is None else expression.outputs
        outputs, reading = len(nodes), partial(enclose, nodes)
    if outputs != wanted:
        raise CertificateError(
            "The target has another number of outputs than the head.",
            expected=str(wanted),
            found=str(outputs),
            fix="Check the prefix with the target that it was compiled for.",
        )
    frame = None if claim.cover is None else claim.cover.frame
    head, queries = _without_idle(claim.head, claim.chart.expressions(domain.columns))
    axes = None if claim.declared is not None or frame is not None else _axes(domain, [*nodes, *queries])
    return Problem(head, queries, reading, isinstance(domain, Sphere), frame, axes)


def _axes(domain: Domain, nodes: Sequence[Node]) -> tuple[int, ...]:
    """The parameters that the nodes depend on: a cube's columns, or the angles behind a sphere's; one at least."""
    columns = {int(node.value or 0) for node in ordered(nodes) if node.operation == "variable"} or {0}
    if isinstance(domain, Sphere):
        return tuple(range(min(max(columns) + 1, domain.dimension)))
    return tuple(sorted(columns))


def _without_idle(head: Head, queries: Sequence[Node]) -> tuple[Head, list[Node]]:
    """The head without the query's coordinates of which all keys are 0, exactly; one is left at least."""
    used = np.flatnonzero(head.keys.any(axis=0)).tolist() or [0]
    return Head(head.keys[:, used], head.biases, head.values), [queries[column] for column in used]


def _declared(declared: Declared, columns: Sequence[Model], _: Callable[[], Sides]) -> list[Model]:
    return declared.enclose(columns)


def _neighbours(lower: Floats, upper: Floats, size: int) -> Iterator[NDArray[np.intp]]:
    """Rows in blocks, by interleaving the bits of their places: cells of one block are near each other."""
    middle = (lower + upper) / 2
    low, high = middle.min(axis=0), middle.max(axis=0)
    grid = ((middle - low) / np.where(high > low, high - low, 1.0) * 1023).astype(np.int64)
    code = np.zeros(len(middle), dtype=np.int64)
    for bit in range(9, -1, -1):
        for axis in range(min(grid.shape[1], 6)):
            code = 2 * code + ((grid[:, axis] >> bit) & 1)
    order = np.argsort(code, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]


def _joined(cells: list[Cells]) -> Cells:
    lower, upper = (np.concatenate(ends) for ends in zip(*cells, strict=True))
    return lower, upper


def _volumes(lower: Floats, upper: Floats) -> Floats:
    volumes: Floats = np.prod(upper - lower, axis=1)
    return volumes


def _halved(lower: Floats, upper: Floats, swing: Floats) -> Cells:
    """Both halves of each cell, along the axis of the largest swing; the widest where nothing is known."""
    width = upper - lower
    axis = np.where(swing.max(axis=1) > 0, (swing * (width > 0)).argmax(axis=1), width.argmax(axis=1))
    rows = np.arange(len(lower))
    middle = (lower[rows, axis] + upper[rows, axis]) / 2
    left, right = upper.copy(), lower.copy()
    left[rows, axis], right[rows, axis] = middle, middle
    return np.concatenate([lower, right]), np.concatenate([left, upper])
