"""The smallest size at which an attempt succeeds, and the best of a few real parameters: small searches, few attempts.

Attempts are dear (each is a least-squares problem) and their errors are not monotone in size, so these searches are
heuristics: what they return was tried and is as good as it says; something smaller may exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart
from foreword.compiler.head import Head

REFINEMENTS = 2  # tries between the last size that failed and the first that succeeded
HOPELESS = 100.0  # an extrapolated error that many times the goal ends a search
OUT_OF_TIME = 1e4  # the logarithm of an error that was not computed: above every one that was


@dataclass(frozen=True)
class Candidate:
    """A head and its largest error at the points of selection; `notes` say how it was made.

    Its queries are those of `chart`, or else of the placement that it is of.
    """

    head: Head
    error: float
    notes: dict[str, Any]
    chart: Chart | None = None


def never() -> bool:
    """False: a search without a clock."""
    return False


def shortest(
    attempt: Callable[[int], Candidate],
    succeeds: Callable[[float], bool],
    sizes: Sequence[int],
    *,
    dimension: int = 1,
    goal: float = 0.0,
    stride: int = 4,
    is_over: Callable[[], bool] = never,
) -> tuple[Candidate | None, float]:
    """The candidate of the smallest of the rising `sizes` that succeeds, and the least error that was met.

    Every fourth size (`stride`) is tried until one succeeds, then the sizes between by bisection, then a few that are
    not listed. With a `goal`, the search is given up when the last errors, falling on exponentially in
    size^(1/dimension), would miss it by far; so it is, after the first try, when `is_over`.
    """
    tried: dict[int, Candidate] = {}

    def works(index: int) -> bool:
        if index not in tried:
            tried[index] = attempt(sizes[index])
        return succeeds(tried[index].error)

    high = None
    for index in [*range(0, len(sizes) - 1, stride), len(sizes) - 1]:
        if tried and is_over():
            break
        if works(index):
            high = index
            break
        if _is_hopeless(
            [(sizes[i] ** (1 / dimension), c.error) for i, c in tried.items()], sizes[-1] ** (1 / dimension), goal
        ):
            break
    if high is not None:
        low = max((index for index in tried if index < high), default=-1)
        while high - low > 1 and not is_over():
            middle = (low + high) // 2
            low, high = (low, middle) if works(middle) else (middle, high)
    least = min(candidate.error for candidate in tried.values())
    if high is None:
        return None, least
    best, size, fails = tried[high], sizes[high], sizes[low] if low >= 0 else sizes[high]
    for _ in range(REFINEMENTS):
        middle = (fails + size) // 2
        if middle in (fails, size) or is_over():
            break
        found = attempt(middle)
        best, size, fails = (found, middle, fails) if succeeds(found.error) else (best, size, middle)
    return best, least


def _is_hopeless(tried: Sequence[tuple[float, float]], last: float, goal: float) -> bool:
    """Whether an exponential fall through the last three (scale, error) misses the goal by far at the last scale.

    Smooth targets' errors fall faster than that, and are not given up; with kinks the fall is slower and slower.
    """
    if goal <= 0 or len(tried) < 5:
        return False
    (before, above), (now, below) = tried[-3], tried[-1]
    fall = max(math.log(above / max(below, 1e-300)), 0.0) / (now - before)
    return math.log(max(below, 1e-300)) - fall * (last - now) > math.log(HOPELESS * goal)


def sizes_between(first: int, last: int, growth: float) -> list[int]:
    """Rising sizes from `first` to `last`, each about `growth` times the one before and at least one more.

    >>> sizes_between(4, 20, 1.3)
    [4, 6, 8, 11, 15, 20]
    """
    found = [first]
    while found[-1] < last:
        found.append(min(last, max(found[-1] + 1, math.ceil(found[-1] * growth))))
    return found


def tuned(
    error: Callable[[Floats], float],
    starts: Sequence[Sequence[float]],
    *,
    steps: int,
    width: float = 0.25,
    is_over: Callable[[], bool] = never,
) -> tuple[Floats, float]:
    """Positive parameters `(parameter,)` of small error: the best start, improved by `steps` tries (Nelder-Mead).

    The search is over logarithms; `width` is its first step there. When `is_over`, it ends with the best so far.
    """
    seen: dict[bytes, float] = {}

    def height(logarithms: Floats) -> float:
        key = logarithms.tobytes()
        if key not in seen:
            if seen and is_over():
                return OUT_OF_TIME
            found = error(np.exp(logarithms))
            seen[key] = math.log(max(found, 1e-300)) if math.isfinite(found) else 1e3
        return seen[key]

    best = min((np.log(np.asarray(start, dtype=np.float64)) for start in starts), key=height)
    if steps > 0:
        corners = np.concatenate([best[None], best + width * np.eye(len(best))])
        options = {"maxfev": steps, "initial_simplex": corners, "xatol": 1e-2, "fatol": 1e-2}
        found = minimize(height, best, method="Nelder-Mead", options=options).x
        best = min((best, np.asarray(found, dtype=np.float64)), key=height)
    return np.exp(best), math.exp(height(best))
