"""From a function to a proved prefix: target, obstacles, drafts, proof. The stages; each has a module of its own."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from foreword.certificate import Certificate, Verdict
from foreword.compiler.a_priori import a_priori_certificate
from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.checker import CheckResult, check_compiled
from foreword.compiler.checks import check
from foreword.compiler.construction.adaptive import Adaptive
from foreword.compiler.construction.contract import BLOCK, Construction, Draft, Obstacle, Request
from foreword.compiler.construction.nearest import LIMIT, Nearest, positions_for_tolerance
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Domain, FiniteSet
from foreword.compiler.expression import Expression
from foreword.compiler.file import CompiledFile, read_compiled, write_compiled
from foreword.compiler.head import Head
from foreword.compiler.hosting import Hosted, host_in
from foreword.compiler.proof import Progress, prove
from foreword.compiler.target import Target, target_of
from foreword.errors import CompileError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Function = Target | Expression | str | Callable[[Floats], ArrayLike] | Floats

CONSTRUCTIONS: dict[str, Construction] = {made.name: made for made in (Adaptive(), Spectral(), Nearest())}
AUTO_NEAREST = 20_000  # positions up to which `auto` tries soft nearest neighbours when another draft is at hand
RETRIES = 2
TIGHTER = 0.7  # a draft whose proof misses the tolerance is made again for so much of it


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
        """Frozen weights and a prefix for an unmodified `GPT2Model` or `LlamaModel` of this configuration."""
        queries = self.chart(self.domain.spread(4000)) if dtype == "bfloat16" else None
        return host_in(self.head, self.chart, config, dtype=dtype, layer=layer, queries=queries)

    def save(self, path: str | Path) -> None:
        """Write prefix, certificate and the proof's cells to one file; `load_compiled` reads it."""
        write_compiled(path, self._file())

    def plot(self, path: str | Path | None = None) -> Figure:
        """A figure of target, head, error and positions; also written to `path` (.png, .svg or .pdf) where given."""
        from foreword.compiler.picture import plotted  # here, because matplotlib is slow to load

        return plotted(self, path)

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


@dataclass(frozen=True)
class _Attempt:
    """A draft with its proof; `outcome` is an obstacle when there is no draft."""

    method: str
    outcome: Draft | Obstacle
    seconds: float
    certificate: Certificate | None = None
    cover: Cover | None = None

    @property
    def row(self) -> Tried:
        """For the table of what was tried."""
        if isinstance(self.outcome, Obstacle):
            return Tried(self.method, None, None, None, "no draft", self.seconds, str(self.outcome))
        proved = self.certificate
        return Tried(
            self.method,
            self.outcome.head.positions,
            self.outcome.sampled,
            None if proved is None else proved.bound if math.isfinite(proved.bound) else None,
            "not proved: another was shorter or better" if proved is None else str(proved.verdict),
            self.seconds,
            _advice(self.outcome),
        )


def compile_function(
    f: Function,
    domain: Domain | None = None,
    *,
    tolerance: float | None = None,
    positions: int | None = None,
    lipschitz: float | None = None,
    method: str = "auto",
    value_limit: float = 10.0,
    seed: int = 0,
    seconds: float = 60.0,
    certify: bool = True,
    progress: Progress | None = None,
) -> CompiledFunction:
    """A prefix for `f`: the shortest that is proved to meet `tolerance`, or the best of at most `positions`.

    `f` is what `target_of` takes: a Target, an expression or its text, a catalogue name, a NumPy function of points
    `(batch, column)`, or samples on a FiniteSet. `lipschitz` (geodesic on a sphere) is the caller's claim. `method` is
    "auto" or the name of one construction. No value's magnitude exceeds `value_limit`, unless twice the target's own
    does. `seconds` is for the proof; without `certify` there is none. CompileError lists every obstacle.

    >>> from foreword.compiler.domain import Sphere
    >>> compiled = compile_function("sin(2*x)", Sphere(1), tolerance=1e-3)
    >>> compiled.certificate.verdict, compiled.positions <= 16
    (<Verdict.PROVED: 'proved'>, True)
    """
    facts = {} if lipschitz is None else {"lipschitz": float(lipschitz)}
    target = target_of(f, domain, **facts)
    domain = _domain_of(target)
    methods = _methods(method)
    obstacles = check(
        target, domain, tolerance=tolerance, positions=positions, method=method, value_limit=float(value_limit)
    )
    if obstacles:
        raise refusal(obstacles)
    wish = _Wish(target, domain, Request(positions, tolerance, float(value_limit)), seed, seconds, certify, progress)
    attempts = _drafts(wish, methods)
    best = _chosen(wish, attempts)
    return CompiledFunction(
        best.outcome.head,
        best.outcome.chart,
        domain,
        target,
        target.as_dict(),
        best.method,
        best.certificate,
        best.cover,
        tuple(attempt.row for attempt in attempts),
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


def refusal(obstacles: Sequence[Obstacle]) -> CompileError:
    """All obstacles as one error."""
    count = len(obstacles)
    return CompileError(
        obstacles[0].what if count == 1 else f"{count} things stand in the way of compiling this target.",
        found=obstacles[0].found if count == 1 else "; ".join(f"{o.what} {o.found}".strip() for o in obstacles),
        fix=" ".join(o.remedy for o in obstacles if o.remedy),
    )


@dataclass(frozen=True)
class _Wish:
    """What the caller asked for, beside the method."""

    target: Target
    domain: Domain
    request: Request
    seed: int
    seconds: float
    is_certified: bool
    progress: Progress | None

    def draft(self, construction: Construction, share: float = 1.0) -> _Attempt:
        """One draft, for a share of the tolerance, with its time."""
        started = time.perf_counter()
        tolerance = self.request.tolerance
        request = replace(self.request, tolerance=None if tolerance is None else share * tolerance)
        outcome = construction.draft(self.target, self.domain, request, rng=np.random.default_rng(self.seed))
        return _Attempt(construction.name, outcome, time.perf_counter() - started)

    def proved(self, attempt: _Attempt) -> _Attempt:
        """The attempt with its certificate: by the a-priori theorem where that suffices, else by search."""
        started, draft = time.perf_counter(), attempt.outcome
        if isinstance(draft, Obstacle):
            return attempt
        bound = draft.a_priori
        if bound is not None and (self.request.tolerance is None or bound <= self.request.tolerance):
            certificate, cover = a_priori_certificate(draft, self.target, self.domain, self.request.tolerance), None
        else:
            proof = prove(
                draft.head,
                draft.chart,
                self.target,
                self.domain,
                tolerance=self.request.tolerance,
                seconds=self.seconds,
                progress=self.progress,
                method=draft.method,
            )
            certificate, cover = proof.certificate, proof.cover
        seconds = attempt.seconds + time.perf_counter() - started
        return replace(attempt, certificate=certificate.sealed(), cover=cover, seconds=seconds)


@dataclass(frozen=True)
class _Best(_Attempt):
    outcome: Draft


def _drafts(wish: _Wish, methods: Sequence[Construction]) -> list[_Attempt]:
    """One attempt for each method; `auto` leaves out what cannot be the shortest."""
    attempts: list[_Attempt] = []
    for construction in methods:
        lengths = [a.outcome.head.positions for a in attempts if isinstance(a.outcome, Draft)]
        if len(methods) > 1 and wish.request.positions is None and isinstance(construction, Nearest):
            skipped = _too_long_for_auto(wish, lengths)
            if skipped is not None:
                attempts.append(_Attempt(construction.name, skipped, 0.0))
                continue
        if lengths and wish.request.positions is None and isinstance(construction, Spectral):
            construction = replace(construction, most=min(lengths))
        attempts.append(wish.draft(construction))
    if not any(isinstance(attempt.outcome, Draft) for attempt in attempts):
        raise refusal([attempt.outcome for attempt in attempts if isinstance(attempt.outcome, Obstacle)])
    return attempts


def _too_long_for_auto(wish: _Wish, lengths: Sequence[int]) -> Obstacle | None:
    """Why `auto` does not try soft nearest neighbours: they would be longer than what is at hand, or far too long."""
    domain, constant = wish.domain, wish.target.lipschitz
    if isinstance(domain, FiniteSet) or wish.request.tolerance is None:
        return None
    if constant is None:
        return Obstacle("length", "Not tried: without a Lipschitz constant it has no bound.") if lengths else None
    wanted = positions_for_tolerance(domain, constant, wish.request.tolerance)
    if (lengths and wanted > min([*lengths, AUTO_NEAREST])) or wanted > 1.5 * LIMIT:
        return Obstacle("length", f"Not tried: it would take about {wanted:.2g} positions.")
    return None


def _chosen(wish: _Wish, attempts: list[_Attempt]) -> _Best:
    """The shortest attempt that is proved, or the best of those that are not; `attempts` get their certificates."""

    def rank(index: int) -> tuple[float, float]:
        draft = attempts[index].outcome
        if isinstance(draft, Obstacle):
            return math.inf, math.inf
        if wish.request.positions is None:
            return float(draft.head.positions), draft.sampled
        return draft.sampled, float(draft.head.positions)

    order = sorted(range(len(attempts)), key=rank)
    drafted = [index for index in order if isinstance(attempts[index].outcome, Draft)]
    if not wish.is_certified:
        return _best(attempts[drafted[0]])
    for index in drafted:
        attempts[index] = _proved_or_longer(wish, attempts[index])
        certificate = attempts[index].certificate
        if certificate is not None and (certificate.verdict is Verdict.PROVED or wish.request.positions is not None):
            return _best(attempts[index])
    bounds = {index: attempts[index].certificate for index in drafted}
    return _best(attempts[min(drafted, key=lambda i: math.inf if (c := bounds[i]) is None else c.bound)])


def _proved_or_longer(wish: _Wish, attempt: _Attempt) -> _Attempt:
    """The attempt proved; where the bound misses the tolerance, a draft for less of it, a few times."""
    best = wish.proved(attempt)
    construction = CONSTRUCTIONS[attempt.method]
    for retry in range(1, RETRIES + 1):
        certificate = best.certificate
        if wish.request.positions is not None or certificate is None or certificate.verdict is not Verdict.NOT_REACHED:
            break
        again = wish.draft(construction, TIGHTER**retry)
        if isinstance(again.outcome, Obstacle):
            break
        again = wish.proved(replace(again, seconds=again.seconds + best.seconds))
        if again.certificate is not None and again.certificate.bound < certificate.bound:
            best = again
    return best


def _best(attempt: _Attempt) -> _Best:
    if isinstance(attempt.outcome, Obstacle):
        raise refusal([attempt.outcome])
    return _Best(attempt.method, attempt.outcome, attempt.seconds, attempt.certificate, attempt.cover)


def _domain_of(target: Target) -> Domain:
    found = target.domain
    if not isinstance(found, Domain):
        raise CompileError(
            "The target's domain is unknown.", expected="Sphere, Cube or FiniteSet", found=type(found).__name__, fix=""
        )
    return found


def _methods(method: str) -> list[Construction]:
    if method == "auto":
        return list(CONSTRUCTIONS.values())
    if method not in CONSTRUCTIONS:
        raise CompileError(
            "The method is unknown.",
            expected=", ".join(["auto", *sorted(CONSTRUCTIONS)]),
            found=repr(method),
            fix="Leave it out for the shortest prefix of all methods.",
        )
    return [CONSTRUCTIONS[method]]


def _advice(draft: Draft) -> str:
    if draft.notes.get("known") == "found by sampling":
        return f"Kinks were found by sampling: declare Target(kinks={draft.notes['kinks']}) to be sure of them."
    return ""
