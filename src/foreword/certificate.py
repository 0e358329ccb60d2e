"""A claim about a compiled prefix: its error on a domain is at most a bound; what the bound is made of; under what.

A certificate is data. `compiler/proof.py` makes it, `compiler/checker.py` checks it with code of its own.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
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
    largest error that was found at a point: the truth lies between `seen` and `bound`.
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

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return {**asdict(self), "verdict": str(self.verdict)}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Certificate:
        """The certificate that `as_dict` wrote; TypeError, KeyError or ValueError when it is not one."""
        assumptions = tuple(Assumption(**entry) for entry in told["assumptions"])
        return cls(**{**told, "verdict": Verdict(told["verdict"]), "assumptions": assumptions})
