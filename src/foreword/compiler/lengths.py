"""How the error of a prefix falls with its length: every construction, measured on one target at several lengths.

Errors are at points that no construction has seen; bounds are proved, as far as the time for a proof goes. The bounds
for the target's class beside them are those of `bounds.py`, and need a Lipschitz constant that somebody declared.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foreword.compiler.bounds import LengthBound, prefix_length
from foreword.compiler.domain import Cube, Domain, Sphere
from foreword.compiler.pipeline import CONSTRUCTIONS, Function, compile_function
from foreword.compiler.target import Target, target_of
from foreword.errors import CompileError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTHS = (6, 12, 24, 48, 96, 192)
TOLERANCES = 40  # at which the class bounds are worked out


@dataclass(frozen=True)
class Measured:
    """One prefix: its `error` at unseen points, and the `bound` that was proved on it (None when none was asked for).

    `seconds` is for both.
    """

    method: str
    positions: int
    error: float
    bound: float | None
    seconds: float


@dataclass(frozen=True)
class LengthStudy:
    """What was measured of one target: `rows`, and for each method without any why not. A proof had so many `seconds`.

    `lipschitz` and `supremum` (of |f| at unseen points) are what the class bounds are for; without a constant, or on a
    domain that `prefix_length` does not know, there are no class bounds.
    """

    name: str
    domain: Domain
    lipschitz: float | None
    supremum: float
    outputs: int
    rows: tuple[Measured, ...]
    left_out: dict[str, str]
    seconds: float

    def of(self, method: str) -> list[Measured]:
        """The rows of one method, shortest first."""
        return sorted((row for row in self.rows if row.method == method), key=lambda row: row.positions)

    def class_bounds(self, tolerances: Iterable[float]) -> dict[str, list[tuple[float, LengthBound]]]:
        """By the bound's name: (tolerance, bound) for functions of this domain, Lipschitz constant and supremum."""
        scale = _scale_to_prefix_length(self.domain)
        if self.lipschitz is None or scale is None:
            return {}
        asked: dict[str, Any] = {
            "dimension": self.domain.dimension,
            "domain": "sphere" if isinstance(self.domain, Sphere) else "cube",
            "lipschitz": max(scale * self.lipschitz, 1e-100),
            "supremum": max(self.supremum, 1e-100),
            "outputs": self.outputs,
            "dtype": "float64",
        }
        found: dict[str, list[tuple[float, LengthBound]]] = {}
        for tolerance in tolerances:
            for name, bound in prefix_length(tolerance=tolerance, **asked).rows():
                found.setdefault(name, []).append((tolerance, bound))
        return found

    def plot(self, path: str | Path | None = None) -> Figure:
        """Error against length, log-log, with the class bounds; also written to `path` (.png, .svg, .pdf) where given.

        PictureError for a path that cannot be, before anything is drawn.
        """
        from foreword.compiler.length_picture import plotted_study  # here, because matplotlib is slow to load

        return plotted_study(self, path)


def measure_lengths(
    f: Function,
    domain: Domain | None = None,
    *,
    positions: Sequence[int] = LENGTHS,
    methods: Sequence[str] = tuple(CONSTRUCTIONS),
    lipschitz: float | None = None,
    value_limit: float = 10.0,
    seed: int = 0,
    seconds: float = 2.0,
) -> LengthStudy:
    """The error of every method's prefix of at most each of so many positions, and what was proved of it.

    `f`, `domain`, `lipschitz` and `value_limit` are those of `compile_function`; `seconds` is for each proof, and with
    0 there is none. A method that cannot do the target is left out, and says why. CompileError when all are.

    >>> from foreword.compiler.domain import Sphere
    >>> study = measure_lengths("sin(2*x)", Sphere(1), positions=[6, 12], methods=["spectral"])
    >>> [row.positions for row in study.rows], study.rows[0].error > 10 * study.rows[1].error
    ([6, 12], True)
    """
    if not positions or not methods:
        raise CompileError(
            "There is nothing to measure.", expected="lengths and methods", found="none", fix="Name some."
        )
    facts = {} if lipschitz is None else {"lipschitz": float(lipschitz)}
    target = target_of(f, domain, **facts)
    rows: dict[tuple[str, int], Measured] = {}
    refused: dict[str, CompileError] = {}
    for method in methods:
        for count in sorted(set(positions)):
            try:
                row = _measured(target, method, count, value_limit, seed, seconds)
            except CompileError as error:
                refused.setdefault(method, error)
                continue
            rows.setdefault((method, row.positions), row)
    measured = {method for method, _ in rows}
    if not rows:
        raise next(iter(refused.values()))
    points = target.domain.spread(20_000)
    return LengthStudy(
        target.name or ("" if target.expression is None else target.expression.text),
        target.domain,
        target.lipschitz,
        float(np.abs(target.evaluate(points)).max()),
        target.outputs,
        tuple(rows.values()),
        {method: error.what for method, error in refused.items() if method not in measured},
        seconds,
    )


def _measured(target: Target, method: str, count: int, value_limit: float, seed: int, seconds: float) -> Measured:
    started = time.perf_counter()
    compiled = compile_function(
        target,
        positions=count,
        method=method,
        value_limit=value_limit,
        seed=seed,
        seconds=seconds,
        certify=seconds > 0,
    )
    [tried] = compiled.tried
    claim = compiled.certificate
    error = float("inf") if tried.sampled is None else tried.sampled
    bound = None if claim is None else claim.bound
    return Measured(method, compiled.positions, error, bound, time.perf_counter() - started)


def _scale_to_prefix_length(domain: Domain) -> float | None:
    """What a Lipschitz constant is multiplied by when the domain is moved to S^m or [-1, 1]^d; None when it cannot."""
    if isinstance(domain, Sphere):
        return 1.0
    if not isinstance(domain, Cube):
        return None
    halves = [(upper - lower) / 2 for lower, upper in domain.sides]
    return halves[0] if max(halves) - min(halves) <= 1e-12 * max(halves) else None
