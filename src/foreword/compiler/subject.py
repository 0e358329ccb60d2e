"""What one picture of a compiled function shows, each number computed once: head, target, error, and the positions.

It knows no colours and no axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from foreword.certificate import Certificate, Verdict
from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.construction.contract import BLOCK, unseen
from foreword.compiler.domain import Domain, FiniteSet
from foreword.compiler.head import Head
from foreword.compiler.target import Target
from foreword.compiler.view import View, known_kinks, view_of

WORK = 200_000_000  # weights that one picture may take: a few seconds
OUTPUTS = 3  # outputs that are drawn: the first ones
SATURATED = 1 - 1e-9  # a weight above which the next best score tells more than the weight
CURVES = 100  # positions whose weights are kept at every point: as curves, more of them cannot be told apart


class Compiled(Protocol):
    """A compiled function, as far as it is drawn: see `CompiledFunction`."""

    @property
    def head(self) -> Head: ...

    @property
    def chart(self) -> Chart: ...

    @property
    def domain(self) -> Domain: ...

    @property
    def target(self) -> Target | None: ...

    @property
    def told(self) -> dict[str, Any]: ...

    @property
    def certificate(self) -> Certificate | None: ...

    @property
    def method(self) -> str: ...


@dataclass(frozen=True)
class Subject:
    """What is drawn of `compiled`, at the points of `view`: fewer, the longer the prefix."""

    compiled: Compiled

    @cached_property
    def view(self) -> View:
        """Where the domain is looked at."""
        return view_of(self.compiled.domain, self.compiled.target, WORK // self.compiled.head.positions)

    @cached_property
    def seen(self) -> Seen:
        """The head there."""
        return Seen.at(self.compiled.head, self.compiled.chart(self.view.points))

    @cached_property
    def wanted(self) -> Floats | None:
        """The target there `(batch, output)`; None where nobody knows it."""
        target = self.compiled.target
        return None if target is None else target.evaluate(self.view.points)

    @cached_property
    def errors(self) -> Floats | None:
        """Head minus target there `(batch, output)`."""
        return None if self.wanted is None else self.seen.outputs - self.wanted

    @cached_property
    def gaps(self) -> Floats | None:
        """The largest error of any output, sorted, at points that no construction fits or chooses on."""
        head, chart, target, domain = (getattr(self.compiled, part) for part in ("head", "chart", "target", "domain"))
        if target is None:
            return None
        judged = unseen(target, domain, chart, head.positions, kinks=known_kinks(target, domain))
        found = head.evaluate(judged.queries, block=max(1, BLOCK // head.positions))
        return np.sort(np.abs(found - judged.values).max(axis=1))

    @property
    def bound(self) -> float | None:
        """The certificate's bound, None without a finite one."""
        claim = self.compiled.certificate
        return claim.bound if claim is not None and math.isfinite(claim.bound) else None

    @property
    def is_estimate(self) -> bool:
        """Whether the bound is none: nothing but samples stands behind it."""
        claim = self.compiled.certificate
        return claim is not None and claim.verdict is Verdict.ASSUMPTION_UNVERIFIED

    @property
    def outputs(self) -> int:
        """Outputs that are drawn."""
        return min(OUTPUTS, int(self.compiled.head.values.shape[1]))

    @property
    def is_whole(self) -> bool:
        """Whether the points are all that there are."""
        domain = self.compiled.domain
        return isinstance(domain, FiniteSet) and len(domain.points) == len(self.view.points)


@dataclass(frozen=True)
class Seen:
    """A head at a batch of points: `outputs` `(batch, output)`, and of every position its largest weight and where.

    `peaks` and `places` (rows of the batch) are `(position,)`; `weights` `(batch, position)` only of a short prefix.
    """

    outputs: Floats
    peaks: Floats
    places: NDArray[np.intp]
    weights: Floats | None

    @classmethod
    def at(cls, head: Head, queries: Floats) -> Seen:
        """One pass over the batch, a block of rows at a time."""
        rows = max(1, BLOCK // head.positions)
        outputs, kept, all_positions = [], [], np.arange(head.positions)
        highest, peaks = np.full(head.positions, -1.0), np.zeros(head.positions)
        places = np.zeros(head.positions, dtype=np.intp)
        for start in range(0, len(queries), rows):
            block = queries[start : start + rows]
            weights = head.weights(block)
            outputs.append(weights @ head.values)
            ranks = _ranks(head, block, weights)
            best = ranks.argmax(axis=0)
            is_higher = ranks[best, all_positions] > highest
            highest = np.where(is_higher, ranks[best, all_positions], highest)
            peaks = np.where(is_higher, weights[best, all_positions], peaks)
            places = np.where(is_higher, start + best, places)
            kept += [weights] if head.positions <= CURVES else []
        return cls(np.concatenate(outputs), peaks, places, np.concatenate(kept) if kept else None)


def _ranks(head: Head, queries: Floats, weights: Floats) -> Floats:
    """Numbers `(batch, position)` that grow with the weights, and still do where a weight is 1 to many digits.

    There it is the lead of the score over the second one: of a sharp head, a whole cell has weight 1.
    """
    rows = np.flatnonzero(weights.max(axis=1) > SATURATED)
    if head.positions == 1 or not len(rows):
        return weights
    scores = queries[rows] @ head.keys.T + head.biases
    top, at = scores.argmax(axis=1), np.arange(len(rows))
    first = scores[at, top]
    scores[at, top] = -math.inf
    ranks = weights.copy()
    ranks[rows, top] = 1.0 + first - scores.max(axis=1)
    return ranks
