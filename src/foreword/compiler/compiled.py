"""A compiled function: the prefix, what is proved of it, what was tried on the way; evaluated, checked, hosted, kept.

How it came to be is `pipeline.py`'s, what its file looks like `file.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from foreword.certificate import Certificate
from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.checker import CheckResult, check_compiled
from foreword.compiler.construction.contract import BLOCK, Draft, Request
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Domain, FiniteSet
from foreword.compiler.file import CompiledFile, read_compiled, write_compiled
from foreword.compiler.head import Head
from foreword.compiler.hosting import Hosted, host_in
from foreword.compiler.hosting_terms import is_dense
from foreword.compiler.target import Target, target_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# At so many queries smaller values are looked for. With fewer for each position than `is_dense` what they
# change elsewhere was up to thousands of times the `damping` that was seen at the queries.
QUERIES = 4000
# What a head of smaller values may differ by, of the outputs' size: far less than bfloat16's steps. Seconds for it.
ALIKE, LONGEST_DRAFT = 2e-4, 10.0


@dataclass(frozen=True)
class Tried:
    """One method that was tried: how long, how good at unseen points, what was proved, and what stood in its way."""

    method: str
    positions: int | None
    sampled: float | None
    bound: float | None
    verdict: str
    seconds: float
    note: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self))


@dataclass(frozen=True, eq=False)
class CompiledFunction:
    """A target as a prefix: g(x) = softmax(chart(x) @ keys.T + biases) @ values, and what is proved about |f - g|.

    `target` is None when it was loaded from a file and was neither an expression nor a table; `told` is what the file
    and the certificate say of it. `certificate` is None when none was asked for.
    """

    head: Head
    chart: Chart
    domain: Domain
    target: Target | None
    told: dict[str, Any]
    method: str
    certificate: Certificate | None
    cover: Cover | None
    tried: tuple[Tried, ...]

    def __repr__(self) -> str:
        """One line, as of a prefix: the numbers are in `keys`, `biases` and `values`."""
        claim = "without a certificate"
        if self.certificate is not None:
            claim = f"{self.certificate.verdict}, error at most {self.certificate.bound:.3g}"
        name = self.told.get("expression") or self.told.get("name") or "a function"
        return f"CompiledFunction({name!s:.60}: {self.positions} positions by {self.method}, {claim})"

    @property
    def positions(self) -> int:
        """The prefix's length."""
        return self.head.positions

    @property
    def keys(self) -> Floats:
        """Keys `(position, q)`."""
        return self.head.keys

    @property
    def biases(self) -> Floats:
        """Score biases `(position,)`, in nats."""
        return self.head.biases

    @property
    def values(self) -> Floats:
        """Values `(position, output)`."""
        return self.head.values

    def evaluate(self, points: ArrayLike) -> Floats:
        """The head's output `(batch, output)` in float64 at points `(batch, column)` of the domain."""
        found = self.domain.check(points)
        return self.head.evaluate(self.chart(found), block=max(1, BLOCK // self.positions))

    def verify(self, *, seconds: float = 600.0, progress: Callable[[float], None] | None = None) -> CheckResult:
        """What the independent checker says of the certificate.

        A target that is a Python function is handed to it: a file alone does not hold one. `progress` gets the share
        that is done.
        """
        target = self.target if self.target is not None and self.target.function is not None else None
        return check_compiled(self._file(), target=target, seconds=seconds, progress=progress)

    def host_in(self, config: Any, *, dtype: str = "float64", layer: int = 0) -> Hosted:
        """Frozen weights and a prefix for an unmodified `GPT2Model` or `LlamaModel` of this configuration.

        In bfloat16 keys and values may be replaced by smaller ones that do the same on the domain, which takes some
        seconds where they are drafted anew; those of more than 500 positions stay, unless the domain is a finite set of
        at most 4,000 points.
        """
        queries = self._queries(dtype)
        return host_in(
            self.head, self.chart, config, dtype=dtype, layer=layer, queries=queries, drafted=self._of_small_values
        )

    def save(self, path: str | Path) -> None:
        """Write prefix, certificate and the proof's cells to one file; `load_compiled` reads it."""
        write_compiled(path, self._file())

    def plot(self, path: str | Path | None = None) -> Figure:
        """A figure of target, head, error and positions; also written to `path` (.png, .svg or .pdf) where given."""
        from foreword.compiler.picture import plotted  # here, because matplotlib is slow to load

        return plotted(self, path)

    def _queries(self, dtype: str) -> Floats | None:
        """Queries that tell what other values do on the domain: all of them, or many for each position."""
        if dtype != "bfloat16":
            return None
        if isinstance(self.domain, FiniteSet) and len(self.domain.points) <= QUERIES:
            return self.chart(self.domain.points)
        return self.chart(self.domain.spread(QUERIES)) if is_dense(QUERIES, self.positions) else None

    def _of_small_values(self) -> Head | None:
        """A head of at most this length with values up to twice the outputs', and nearly the same outputs."""
        if isinstance(self.domain, FiniteSet):
            return None
        largest = float(np.abs(self.evaluate(self.domain.spread(QUERIES))).max())
        request = Request(self.positions, ALIKE * largest, 0.0, seconds=LONGEST_DRAFT)
        wanted = Target(self.evaluate, domain=self.domain)
        draft = Spectral().draft(wanted, self.domain, request, rng=np.random.default_rng(0))
        return draft.head if isinstance(draft, Draft) and draft.chart == self.chart else None

    def _file(self) -> CompiledFile:
        samples = None
        if isinstance(self.domain, FiniteSet) and self.target is not None:
            samples = self.target.evaluate(self.domain.points)
        return CompiledFile(
            self.head,
            self.chart,
            self.domain,
            self.told,
            self.method,
            self.certificate,
            self.cover,
            samples,
            [row.as_dict() for row in self.tried],
        )


def load_compiled(path: str | Path) -> CompiledFunction:
    """What `CompiledFunction.save` wrote; CertificateError when the file is damaged or changed."""
    file = read_compiled(path)
    text = file.target.get("expression")
    target = None
    if text is not None:
        target = target_of(str(text), file.domain)
    elif file.samples is not None:
        target = target_of(file.samples, file.domain)
    tried = tuple(Tried(**row) for row in file.tried)
    return CompiledFunction(
        file.head, file.chart, file.domain, target, file.target, file.method, file.certificate, file.cover, tried
    )
