"""The checker's way over the cells of a proof: each is bounded anew, and halved where its bound is not small enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from flint import arb
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.claim import Claim, Findings
from foreword.compiler.domain import Sphere
from foreword.compiler.enclosure import Problem
from foreword.compiler.functions import enclose
from foreword.errors import CertificateError

Progress = Callable[[float], None]

BLOCK = 32  # cells at once; near each other, since they share one shift of the keys
DEEPEST = 40  # halvings of a stored cell before the check gives up
MOST_CELLS = 5_000_000


def sweep(
    claim: Claim, found: Findings, allowed: arb, *, order: int, deadline: float, progress: Progress | None
) -> str:
    """|f - g| <= allowed over every cell; a cell that fails is halved along its worst axis, up to `DEEPEST` times.

    `progress` gets the share of the cells' volume. The result is for the line of the check.
    """
    problem, cover = _problem(claim), claim.cover
    lower, upper = (np.empty((0, 0)),) * 2 if cover is None else (cover.lower, cover.upper)
    whole, shown = float(_volumes(lower, upper).sum()), 0.0
    for depth in range(DEEPEST + 1):
        open_cells: list[tuple[Floats, Floats]] = []
        for rows in _blocks(lower, upper):
            if time.perf_counter() > deadline or found.cells > MOST_CELLS:
                share = min(shown / whole, 1.0)
                found.unchecked.append(
                    f"ran out of time or cells after {share:.0%} of the cover, {depth} halvings deep"
                )
                return ""
            bounds = problem.bounds(lower[rows], upper[rows], order)
            found.cells += len(rows)
            if any(least > allowed for least in bounds.least):
                row = rows[next(i for i, least in enumerate(bounds.least) if least > allowed)]
                middle = ((lower[row] + upper[row]) / 2).tolist()
                found.wrong.append(f"the error exceeds the approximation term at the parameters {middle}")
                return ""
            failed = np.array([not error <= allowed for error in bounds.error])
            if failed.any():
                swing = np.where(np.isfinite(bounds.swing[failed]), bounds.swing[failed], 0.0)
                open_cells.append(_halved(lower[rows[failed]], upper[rows[failed]], swing))
            shown += float(_volumes(lower[rows[~failed]], upper[rows[~failed]]).sum())
            if progress is not None:
                progress(min(shown / whole, 1.0))
        if not open_cells:
            if progress is not None:
                progress(1.0)
            return f"shown on {found.cells:,} cells, {depth} halvings deep"
        lower, upper = (np.concatenate(ends) for ends in zip(*open_cells, strict=True))
    found.wrong.append(f"the error could not be shown to stay below the approximation term in {len(lower)} cells")
    return ""


def _problem(claim: Claim) -> Problem:
    """The problem; CertificateError when f has another number of outputs than the head."""
    expression, domain, wanted = claim.expression, claim.domain, claim.head.values.shape[1]
    if claim.declared is not None:
        outputs, reading = claim.declared.target.outputs, claim.declared.enclose
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
    return Problem(claim.head, claim.chart.expressions(domain.columns), reading, isinstance(domain, Sphere), frame)


def _blocks(lower: Floats, upper: Floats) -> Iterator[NDArray[np.intp]]:
    """Rows in blocks of neighbours, by interleaving the bits of their places."""
    middle = (lower + upper) / 2
    low, high = middle.min(axis=0), middle.max(axis=0)
    grid = ((middle - low) / np.where(high > low, high - low, 1.0) * 1023).astype(np.int64)
    code = np.zeros(len(middle), dtype=np.int64)
    for bit in range(9, -1, -1):
        for axis in range(min(grid.shape[1], 6)):
            code = 2 * code + ((grid[:, axis] >> bit) & 1)
    order = np.argsort(code, kind="stable")
    for start in range(0, len(order), BLOCK):
        yield order[start : start + BLOCK]


def _volumes(lower: Floats, upper: Floats) -> Floats:
    volumes: Floats = np.prod(upper - lower, axis=1)
    return volumes


def _halved(lower: Floats, upper: Floats, swing: Floats) -> tuple[Floats, Floats]:
    """Both halves of each cell, along the axis of the largest swing; the widest where nothing is known."""
    width = upper - lower
    axis = np.where(swing.max(axis=1) > 0, (swing * (width > 0)).argmax(axis=1), width.argmax(axis=1))
    rows = np.arange(len(lower))
    middle = (lower[rows, axis] + upper[rows, axis]) / 2
    left, right = upper.copy(), lower.copy()
    left[rows, axis], right[rows, axis] = middle, middle
    return np.concatenate([lower, right]), np.concatenate([left, upper])
