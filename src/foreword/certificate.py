"""A claim about a compiled prefix: its error on a domain is at most a bound; what the bound is made of; under what.

A certificate is data. `compiler/proof.py` makes it, `compiler/checker.py` checks it with code of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """PROVED: bound <= tolerance under the named assumptions, which the caller declared or code has checked.

    NOT_REACHED: no such bound was found; `remedy` says what would be needed. ASSUMPTION_UNVERIFIED: an assumption that
    nobody declared and no code could check stands behind the figure, so it is an estimate, not a proof.
    """

    PROVED = "proved"
    NOT_REACHED = "not reached"
    ASSUMPTION_UNVERIFIED = "assumption unverified"


@dataclass(frozen=True)
class Assumption:
    """One premise. `standing` is "checked" (code has proved it), "declared" (the caller says so) or "sampled"."""

    code: str
    text: str
    standing: str


@dataclass(frozen=True)
class Certificate:
    """sup |f - g| over the domain is at most `bound` (largest output's error), in exact terms of the float64 prefix.

    `terms` are named summands of `bound` (approximation, context, rounding_float64) and, beside it, what storage and
    arithmetic in a lesser dtype would add (rounding_float32, rounding_bfloat16; not part of `bound`). `seen` is the
    largest error that was found at a point: the truth lies between `seen` and `bound`. `seal` is the digest of
    everything else, as `sealed` sets it: it shows that a number was changed, not who changed it.
    """

    verdict: Verdict
    tolerance: float | None
    bound: float
    seen: float
    terms: dict[str, float]
    assumptions: tuple[Assumption, ...]
    remedy: str
    method: str
    domain: dict[str, Any]
    target: dict[str, Any]
    head: str
    cover: dict[str, Any] | None = None
    effort: dict[str, Any] = field(default_factory=dict)
    seal: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 of everything but the seal, as it reads from JSON."""
        told = {**self.as_dict(), "seal": ""}
        return hashlib.sha256(json.dumps(told, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def sealed(self) -> Certificate:
        """The same certificate with its digest as the seal; whoever changes a number must seal it again."""
        return replace(self, seal=self.digest)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, infinite ones as text; `from_dict` reads them back."""
        told = {**asdict(self), "verdict": str(self.verdict)}
        numbers = {name: _plain(told[name]) for name in ("tolerance", "bound", "seen")}
        return {**told, **numbers, "terms": {name: _plain(term) for name, term in self.terms.items()}}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Certificate:
        """The certificate that `as_dict` wrote; TypeError, KeyError or ValueError when it is not one."""
        assumptions = tuple(Assumption(**entry) for entry in told["assumptions"])
        tolerance = None if told["tolerance"] is None else float(told["tolerance"])
        numbers = {"tolerance": tolerance, "bound": float(told["bound"]), "seen": float(told["seen"])}
        terms = {str(name): float(term) for name, term in told["terms"].items()}
        verdict = Verdict(told["verdict"])
        tables = [told["domain"], told["target"], told["effort"], told["cover"] or {}]
        texts = [told[name] for name in ("remedy", "method", "head", "seal")]
        if not (all(isinstance(table, dict) for table in tables) and all(isinstance(text, str) for text in texts)):
            raise TypeError("an entry of the certificate is not of its type")
        return cls(**{**told, **numbers, "terms": terms, "verdict": verdict, "assumptions": assumptions})


def _plain(number: float | None) -> float | str | None:
    """A number as JSON can hold it."""
    return number if number is None or math.isfinite(number) else str(float(number))
