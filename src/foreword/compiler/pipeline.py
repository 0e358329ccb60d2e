"""From a function to a proved prefix: target, obstacles, drafts, proof. The stages; each has a module of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from numpy.typing import ArrayLike

from foreword.certificate import Verdict
from foreword.compiler.arrays import Floats
from foreword.compiler.attempts import Attempt, Clock, Stage, Wish
from foreword.compiler.checks import check
from foreword.compiler.compiled import CompiledFunction, load_compiled
from foreword.compiler.construction.adaptive import Adaptive
from foreword.compiler.construction.contract import Construction, Draft, Obstacle, Request
from foreword.compiler.construction.nearest import LIMIT, Nearest, positions_for_tolerance
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.domain import Domain, FiniteSet
from foreword.compiler.expression import Expression
from foreword.compiler.target import Target, target_of
from foreword.compiler.unfinished import Identity, Unfinished
from foreword.errors import CompileError

__all__ = ["CONSTRUCTIONS", "CompiledFunction", "Function", "Stage", "compile_function", "load_compiled", "refusal"]

Function = Target | Expression | str | Callable[[Floats], ArrayLike] | Floats

CONSTRUCTIONS: dict[str, Construction] = {made.name: made for made in (Adaptive(), Spectral(), Nearest())}
AUTO_NEAREST = 20_000  # positions up to which `auto` tries soft nearest neighbours when another draft is at hand
LONG = 24  # positions: a shorter draft is not sought to be shorter by an exchange
FEWER = 8.0  # seconds in which fewer evenly placed keys are sought, once there is a draft by an exchange
RETRIES = 2
TIGHTER = 0.7  # a draft whose proof misses the tolerance is made again for so much of it


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
    progress: Callable[[Stage], None] | None = None,
    resume: str | Path | None = None,
    fresh: bool = False,
    save_to: str | Path | None = None,
) -> CompiledFunction:
    """A prefix for `f`: the shortest found that is proved to meet `tolerance`, or the best of at most `positions`.

    `f` is what `target_of` takes: a Target, an expression or its text, a catalogue name, a NumPy function of points
    `(batch, column)`, or samples on a FiniteSet. `lipschitz` (geodesic on a sphere) is the caller's claim. `method` is
    "auto" or the name of one construction. No value's magnitude exceeds `value_limit`, unless twice the target's own
    does. `seconds` is for all proofs together, by the clock, and as many, ten at least, of this thread's work for all
    drafts, on a busy machine up to twice that by the clock: a construction ends with what it has. Without `certify`
    there are no proofs. `progress` is told of every stage, and what it raises ends the compilation. CompileError lists
    every obstacle.

    `resume` names a file for unfinished work. Whatever interrupts the compilation, time that is up included, leaves its
    state there, and the same call goes on from it to the same result; when nothing is left to do the file is removed.
    Work of another request is refused with a CompileError, unless `fresh` discards it. `save_to` names a file to which
    the result is saved before that.

    >>> from foreword.compiler.domain import Sphere
    >>> compiled = compile_function("sin(2*x)", Sphere(1), tolerance=1e-3)
    >>> compiled.certificate.verdict, compiled.positions <= 16
    (<Verdict.PROVED: 'proved'>, True)
    """
    facts = {} if lipschitz is None else {"lipschitz": lipschitz}
    target = target_of(f, domain, **facts)
    domain = _domain_of(target)
    methods = _methods(method)
    obstacles = check(
        target,
        domain,
        tolerance=tolerance,
        positions=positions,
        method=method,
        value_limit=value_limit,
        seconds=seconds,
        seed=seed,
    )
    if obstacles:
        raise refusal(obstacles)
    length, wanted = None if positions is None else int(positions), None if tolerance is None else float(tolerance)
    request, seconds, seed = Request(length, wanted, float(value_limit)), float(seconds), int(seed)
    work = Unfinished()
    if resume is not None:
        identity = Identity.of(target, request, method=method, seed=seed)
        work = Unfinished.at(Path(resume), identity, fresh=fresh)
    wish = Wish(target, domain, request, seed, certify, progress, work, Clock(seconds), Clock.of_drafts(seconds))
    with work.kept():
        attempts = _drafts(wish, methods)
        searched = _chosen(wish, attempts)
        best = _without_search(wish, methods, attempts, searched)
        compiled = CompiledFunction(
            best.outcome.head,
            best.outcome.chart,
            domain,
            target,
            target.as_dict(),
            best.method,
            best.certificate,
            best.cover,
            tuple(attempt.row(is_certified=certify) for attempt in attempts),
        )
        if save_to is not None:
            compiled.save(save_to)
    if wish.is_settled(searched.certificate):
        work.discard()
    else:
        work.write()
    return compiled


def refusal(obstacles: Sequence[Obstacle]) -> CompileError:
    """All obstacles as one error."""
    count = len(obstacles)
    return CompileError(
        obstacles[0].what if count == 1 else f"{count} things stand in the way of compiling this target.",
        found=obstacles[0].found if count == 1 else "; ".join(f"{o.what} {o.found}".strip() for o in obstacles),
        fix=" ".join(dict.fromkeys(o.remedy for o in obstacles if o.remedy)),
    )


@dataclass(frozen=True)
class _Best(Attempt):
    outcome: Draft


def _drafts(wish: Wish, methods: Sequence[Construction]) -> list[Attempt]:
    """One attempt for each method; `auto` leaves out what cannot be the shortest."""
    attempts: list[Attempt] = []
    for row, construction in enumerate(methods):
        drafts = [attempt.outcome for attempt in attempts if isinstance(attempt.outcome, Draft)]
        lengths = [draft.head.positions for draft in drafts]
        if len(methods) > 1 and wish.request.positions is None and isinstance(construction, Nearest):
            skipped = _too_long_for_auto(wish, lengths)
            if skipped is not None:
                attempts.append(Attempt("", construction.name, skipped, 0.0))
                continue
        if lengths and wish.request.positions is None and isinstance(construction, Spectral | Nearest):
            construction = replace(construction, most=min(lengths))
        has_rival = wish.request.positions is not None and drafts
        rival = min(draft.sampled for draft in drafts) if has_rival else math.inf
        moved, most = _moved(wish, construction, lengths), math.inf
        if moved is not None and isinstance(moved.outcome, Draft) and isinstance(construction, Spectral):
            construction, most = replace(construction, most=moved.outcome.head.positions), FEWER
        attempt = wish.draft(construction, is_last=row == len(methods) - 1, rival=rival, most=most)
        attempts.append(attempt if moved is None else _either(moved, attempt))
    if not any(isinstance(attempt.outcome, Draft) for attempt in attempts):
        raise refusal([attempt.outcome for attempt in attempts if isinstance(attempt.outcome, Obstacle)])
    if wish.request.positions is not None and wish.domain.dimension > 1:
        best = min(range(len(attempts)), key=lambda row: _error(attempts[row]))
        attempts[best] = wish.exchanged(attempts[best])
    return attempts


def _moved(wish: Wish, construction: Construction, lengths: Sequence[int]) -> Attempt | None:
    """For a tolerance, a draft by an exchange, which may be far shorter than solved values at even keys.

    None where a short one is at hand, or where another method is asked for.
    """
    is_long = not lengths or min(lengths) > LONG
    if wish.request.positions is not None or not isinstance(construction, Spectral) or not is_long:
        return None
    return wish.moved(fewer_than=min(lengths, default=math.inf)) if wish.domain.dimension > 1 else None


def _either(moved: Attempt, attempt: Attempt) -> Attempt:
    """The attempt, which is shorter if it has a draft, or else the one by an exchange; with the time of both.

    Of two obstacles, the exchange's where it came somewhere near.
    """
    is_none = isinstance(moved.outcome, Obstacle) and not moved.outcome.found
    is_shorter = isinstance(attempt.outcome, Draft) or is_none
    return replace(attempt if is_shorter else moved, seconds=moved.seconds + attempt.seconds)


def _error(attempt: Attempt) -> float:
    return math.inf if isinstance(attempt.outcome, Obstacle) else attempt.outcome.sampled


def _too_long_for_auto(wish: Wish, lengths: Sequence[int]) -> Obstacle | None:
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


def _chosen(wish: Wish, attempts: list[Attempt]) -> _Best:
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
        if wish.clock.left <= 0 and index != drafted[0] and not _is_sure(wish, attempts[index]):
            continue
        attempts[index] = _proved_or_longer(wish, attempts[index])
        certificate = attempts[index].certificate
        if certificate is not None and (certificate.verdict is Verdict.PROVED or wish.request.positions is not None):
            return _best(attempts[index])
    bounds = {index: attempts[index].certificate for index in drafted}
    return _best(attempts[min(drafted, key=lambda i: math.inf if (c := bounds[i]) is None else c.bound)])


def _is_sure(wish: Wish, attempt: Attempt) -> bool:
    """Whether a bound that needs no search meets the tolerance: time that is up does not matter to it."""
    draft, tolerance = attempt.outcome, wish.request.tolerance
    return isinstance(draft, Draft) and draft.a_priori is not None and draft.a_priori <= (tolerance or 0.0)


def _without_search(wish: Wish, methods: Sequence[Construction], attempts: list[Attempt], searched: _Best) -> _Best:
    """What the search found; where it proved nothing, soft nearest neighbours that were left out as too long.

    Their bound needs no search, so a tolerance that they meet in `AUTO_NEAREST` positions is always proved.
    """
    certificate, constant, tolerance = searched.certificate, wish.target.lipschitz, wish.request.tolerance
    is_missed = certificate is not None and certificate.verdict is not Verdict.PROVED
    if not is_missed or len(methods) < 2 or constant is None or tolerance is None or wish.request.positions is not None:
        return searched
    row = next(index for index, attempt in enumerate(attempts) if attempt.method == Nearest.name)
    if isinstance(attempts[row].outcome, Draft) or isinstance(wish.domain, FiniteSet):
        return searched
    if positions_for_tolerance(wish.domain, constant, tolerance) > AUTO_NEAREST:
        return searched
    found = wish.draft(CONSTRUCTIONS[Nearest.name])
    if not _is_sure(wish, found):
        return searched
    attempts[row] = wish.proved(found)
    certificate = attempts[row].certificate
    return _best(attempts[row]) if certificate is not None and certificate.verdict is Verdict.PROVED else searched


def _proved_or_longer(wish: Wish, attempt: Attempt) -> Attempt:
    """The attempt proved; where the bound misses the tolerance, a draft for less of it, a few times."""
    best = wish.proved(attempt)
    construction = CONSTRUCTIONS[attempt.method]
    for retry in range(1, RETRIES + 1):
        certificate = best.certificate
        is_short = certificate is not None and certificate.verdict is Verdict.NOT_REACHED and wish.clock.left > 0
        if wish.request.positions is not None or certificate is None or not is_short:
            break
        is_moved = isinstance(best.outcome, Draft) and "exchanged" in best.outcome.notes
        share = TIGHTER**retry
        again = wish.moved(share, begun=best) if is_moved else wish.draft(construction, share)
        if isinstance(again.outcome, Obstacle):
            break
        again = wish.proved(replace(again, seconds=again.seconds + best.seconds))
        if again.certificate is not None and again.certificate.bound < certificate.bound:
            best = again
    return best


def _best(attempt: Attempt) -> _Best:
    if isinstance(attempt.outcome, Obstacle):
        raise refusal([attempt.outcome])
    return _Best(attempt.name, attempt.method, attempt.outcome, attempt.seconds, attempt.certificate, attempt.cover)


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
    if not isinstance(method, str) or method not in CONSTRUCTIONS:
        raise CompileError(
            "The method is unknown.",
            expected=", ".join(["auto", *sorted(CONSTRUCTIONS)]),
            found=f"{method!r:.60}",
            fix="Leave it out for the shortest prefix of all methods.",
        )
    return [CONSTRUCTIONS[method]]
