"""One method's attempt at a compilation: a draft, then its proof; taken from unfinished work where they are there.

Which methods are tried, in what order, and which attempt is the result is `pipeline.py`'s to say.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from foreword.certificate import Certificate, Verdict
from foreword.compiler.a_priori import a_priori_certificate
from foreword.compiler.branching import Search
from foreword.compiler.compiled import Tried
from foreword.compiler.construction.contract import OUT_OF_TIME, Construction, Draft, Instant, Obstacle, Request
from foreword.compiler.construction.exchange import exchanged, met
from foreword.compiler.construction.spectral import Spectral
from foreword.compiler.construction.unit import drafted
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Domain
from foreword.compiler.proof import prove
from foreword.compiler.target import Target
from foreword.compiler.unfinished import Unfinished

LEAST_DRAFTING = 10.0  # seconds for drafts, however few are left for proofs
LEAST_EACH = 3.0  # seconds for a draft, though those before it took more than their share
SHARE = 0.5  # of the time for drafts that is left: so much for the next one, if others are to come
BETWEEN = 0.1  # seconds between two words on a proof's progress


@dataclass(frozen=True)
class Stage:
    """Where a compilation is: "drafting" or "proving" by a method, and how much of that is done (0 to 1).

    Of a proof: the prefix's length, cells that are `open` and `closed`, the `bound` that stands so far, the largest
    error `seen`, and the time that is left for it.
    """

    name: str
    method: str
    share: float
    positions: int | None = None
    open: int = 0
    closed: int = 0
    bound: float = math.inf
    seen: float = 0.0
    seconds_left: float | None = None


@dataclass(frozen=True)
class Attempt:
    """A draft with its proof; `outcome` is an obstacle when there is no draft. `name` is that of its piece of work."""

    name: str
    method: str
    outcome: Draft | Obstacle
    seconds: float
    certificate: Certificate | None = None
    cover: Cover | None = None

    def row(self, *, is_certified: bool) -> Tried:
        """For the table of what was tried; with or without proofs."""
        if isinstance(self.outcome, Obstacle):
            return Tried(self.method, None, None, None, "no draft", self.seconds, str(self.outcome))
        proved = self.certificate
        why = "another was shorter or better, or time was up" if is_certified else "no proof was asked for"
        return Tried(
            self.method,
            self.outcome.head.positions,
            self.outcome.sampled if math.isfinite(self.outcome.sampled) else None,
            None if proved is None else proved.bound if math.isfinite(proved.bound) else None,
            f"not proved: {why}" if proved is None else str(proved.verdict),
            self.seconds,
            _advice(self.outcome),
        )


@dataclass
class Clock:
    """The time for drafts, of this thread's work, or for proofs, by the clock: `left` seconds of it."""

    left: float

    @classmethod
    def of_drafts(cls, seconds: float) -> Clock:
        """As much time as for the proofs, but enough for a short draft: without any there is nothing to prove."""
        return cls(max(seconds, LEAST_DRAFTING))

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is done herein takes from it."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.left -= time.perf_counter() - started


@dataclass(frozen=True)
class Wish:
    """What the caller asked for, beside the method; what was found already; the time left for proofs and drafts."""

    target: Target
    domain: Domain
    request: Request
    seed: int
    is_certified: bool
    progress: Callable[[Stage], None] | None
    work: Unfinished
    clock: Clock
    drafting: Clock

    def draft(
        self,
        construction: Construction,
        share: float = 1.0,
        *,
        is_last: bool = True,
        rival: float = math.inf,
        most: float = math.inf,
    ) -> Attempt:
        """One draft, for a share of the tolerance, with its time; others may follow unless it `is_last`.

        `rival` is the least error of those before it, for a length; `most` are the seconds that it may take.

        What time cut short is kept if it is a draft: its proof goes on from it. No draft for want of time may be one
        the next time.
        """
        name = f"{construction.name} {share:g} {getattr(construction, 'most', None)}"
        left = max(min(self.drafting.left * (1.0 if is_last else SHARE), most), LEAST_EACH)
        request = replace(self._for(share), seconds=left, rival=rival)
        if name not in self.work.drafts:
            self.tell(Stage("drafting", construction.name, 0.0))
        outcome, seconds = self._piece(
            name, request, lambda request, rng: drafted(construction, self.target, self.domain, request, rng)
        )
        length = None if isinstance(outcome, Obstacle) else outcome.head.positions
        self.tell(Stage("drafting", construction.name, 1.0, length))
        return Attempt(name, construction.name, outcome, seconds)

    def exchanged(self, attempt: Attempt) -> Attempt:
        """The attempt with its draft after an exchange, in what time is left for drafts, where that is better."""
        draft = attempt.outcome
        if isinstance(draft, Obstacle):
            return attempt
        name, request = f"{attempt.name} exchanged", replace(self.request, seconds=self.drafting.left)
        outcome, seconds = self._piece(
            name, request, lambda request, rng: exchanged(draft, self.target, self.domain, request, rng)
        )
        return replace(attempt, name=name, outcome=outcome, seconds=attempt.seconds + seconds)

    def moved(self, share: float = 1.0, *, fewer_than: float = math.inf, begun: Attempt | None = None) -> Attempt:
        """A draft by an exchange for a share of the tolerance, of `fewer_than` so many positions.

        It goes on from the draft that was `begun` with, if that is one, too.
        """
        name, request = (
            f"exchange {share:g} {fewer_than:g}",
            replace(self._for(share), seconds=self.drafting.left * SHARE),
        )
        draft = None if begun is None or isinstance(begun.outcome, Obstacle) else begun.outcome
        if name not in self.work.drafts:
            self.tell(Stage("drafting", Spectral.name, 0.0))
        outcome, seconds = self._piece(
            name,
            request,
            lambda request, rng: met(self.target, self.domain, request, rng, fewer_than=fewer_than, begun=draft),
        )
        return Attempt(name, Spectral.name, outcome, seconds)

    def _for(self, share: float) -> Request:
        """The request with a share of its tolerance."""
        tolerance = self.request.tolerance
        return self.request if tolerance is None else replace(self.request, tolerance=share * tolerance)

    def _piece(
        self, name: str, request: Request, make: Callable[[Request, np.random.Generator], Draft | Obstacle]
    ) -> tuple[Draft | Obstacle, float]:
        """A piece of drafting and its seconds: what is kept, or made now; kept but where time alone ended it."""
        if name in self.work.drafts:
            return self.work.drafts[name]
        started, request = time.perf_counter(), replace(request, made=Instant())
        outcome = make(request, np.random.default_rng(self.seed))
        self.drafting.left -= request.made.since()
        seconds = time.perf_counter() - started
        if isinstance(outcome, Draft) or outcome.code != OUT_OF_TIME:
            self.work.drafts[name] = (outcome, seconds)
            self.work.write_if_due()
        return outcome, seconds

    def proved(self, attempt: Attempt) -> Attempt:
        """The attempt with its certificate: by the a-priori theorem where that suffices, else by search."""
        started, draft, kept = time.perf_counter(), attempt.outcome, self.work.proofs.get(attempt.name)
        if isinstance(draft, Obstacle):
            return attempt
        bound = draft.a_priori
        if kept is not None:
            certificate, cover = kept
        elif bound is not None and (self.request.tolerance is None or bound <= self.request.tolerance):
            certificate, cover = a_priori_certificate(draft, self.target, self.domain, self.request.tolerance), None
        else:
            with self.clock.running():
                certificate, cover = self._searched(attempt.name, draft)
        seconds = attempt.seconds + time.perf_counter() - started
        return replace(attempt, certificate=certificate.sealed(), cover=cover, seconds=seconds)

    def _searched(self, name: str, draft: Draft) -> tuple[Certificate, Cover | None]:
        """What branch and bound proves in the time that is left, going on where it stopped."""
        ends, shown = time.perf_counter() + max(self.clock.left, 0.0), -math.inf

        def step(search: Search) -> None:
            nonlocal shown
            self.work.keep(name, search)
            now = time.perf_counter()
            if self.progress is not None and (now >= shown + BETWEEN or not len(search.levels)):
                shown = now
                left, closed = max(ends - now, 0.0), search.closed
                length, still = draft.head.positions, len(search.levels)
                self.tell(
                    Stage("proving", draft.method, search.share, length, still, closed, search.upper, search.seen, left)
                )

        proof = prove(
            draft.head,
            draft.chart,
            self.target,
            self.domain,
            tolerance=self.request.tolerance,
            seconds=max(self.clock.left, 0.0),
            progress=step,
            resume=self.work.searches.get(name),
            method=draft.method,
        )
        if proof.search is not None and len(proof.search.levels):
            self.work.searches[name] = proof.search
        elif proof.search is not None:
            self.work.finish(name, proof.certificate, proof.cover)
        return proof.certificate, proof.cover

    def is_settled(self, certificate: Certificate | None) -> bool:
        """Whether more time could not make the result better: no search is open, or the tolerance is proved."""
        is_reached = certificate is not None and certificate.verdict is Verdict.PROVED
        return not self.work.searches or (is_reached and self.request.tolerance is not None)

    def tell(self, stage: Stage) -> None:
        if self.progress is not None:
            self.progress(stage)


def _advice(draft: Draft) -> str:
    if draft.notes.get("known") == "found by sampling":
        return f"Kinks were found by sampling: declare Target(kinks={draft.notes['kinks']}) to be sure of them."
    return ""
