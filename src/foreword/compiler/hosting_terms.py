"""What hosting adds to a compiled head's error, each as a named bound; and the offset that keeps the context out.

The prefix must outweigh the context by itself: the keys' constant coordinate carries an offset. With all queries in a
ball of radius R, scores s_k(q) = <q, u_k> + c_k and L(q) = log sum_k e^{s_k(q)}, which is convex, for every q0

    L(q) >= L(q0) + <grad L(q0), q - q0> >= L(q0) - <grad L(q0), q0> - R |grad L(q0)|,

so a floor of L is found and proved by one descent. With every context score at most s and context values 0, an offset
of s + margin - floor leaves the context a share of at most T e^-margin (statement A2, docs/theory).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from foreword.compiler.arrays import Floats
from foreword.compiler.frozen import ROUNDOFF, SLACK, Frozen
from foreword.compiler.head import Head

# Tried where values are to be smaller, if there are so many queries for each position: factors of the scores, and
# Gaussians' widths in units of how far a point is from the next centre at most.
DENSE = 8
SHARPER = (1.4, 2.0, 2.8, 4.0)
WIDTHS = (2.8, 2.0, 1.4, 1.0, 0.7)
# Of the roundoff, what one rounding is taken for where heads are chosen. A heuristic: its root mean square over even
# mantissas is 0.74 of it, with which the same head or, once in three trials, a worse one was chosen.
TYPICAL = 0.5
WORTH_DRAFTING = 0.5  # of an output's roundoff: what must be lost for a head to be drafted anew


def context_score(frozen: Frozen) -> float:
    """The largest score between two tokens: scaling * sum over lanes of (sum |a_i|) |x| |x'|.

    The x of the lanes that hold limbs of one coordinate are added up as if each were the whole of it.
    """
    spent = [
        (lane.number == frozen.width, sum(map(abs, turns)))
        for lane, turns in zip(frozen.lanes, frozen.turns, strict=True)
    ]
    lanes_each = (len(spent) - sum(is_bias for is_bias, _ in spent)) / frozen.width
    own = max(turns for is_bias, turns in spent if not is_bias) * lanes_each * SLACK * frozen.radius**2
    return frozen.sizes.scaling * (own + sum(turns for is_bias, turns in spent if is_bias))


def context_value(frozen: Frozen) -> float:
    """The largest value of a context token: 0 but for LayerNorm's mean, whose rounding the output's lanes get.

    Each is then at most what `rounding` takes LayerNorm for; an output is the sum of its limbs' lanes.
    """
    if not frozen.sizes.is_mirrored:
        return 0.0
    roundings = math.log2(frozen.sizes.hidden) + 4
    return frozen.value_limbs * roundings * ROUNDOFF[frozen.dtype] * max(1.0, frozen.gain)


def score_floor(head: Head, radius: float) -> float:
    """A lower bound of log sum_k exp(<q, u_k> + c_k) over |q| <= radius, by convexity (the module's header).

    >>> head = Head(np.zeros((4, 2)), np.zeros(4), np.zeros((4, 1)))
    >>> bool(abs(score_floor(head, 1.0) - np.log(4)) < 1e-12)
    True
    """
    best = -math.inf

    def floor(query: Floats) -> tuple[float, Floats]:
        nonlocal best
        scores = head.keys @ query + head.biases
        peak = float(scores.max())
        total = np.exp(scores - peak)
        value = peak + math.log(float(total.sum()))
        slope = total @ head.keys / total.sum()
        best = max(best, value - float(slope @ query) - radius * float(np.linalg.norm(slope)))
        return value, slope

    start = np.zeros(head.keys.shape[1])
    ball = {"type": "ineq", "fun": lambda q: radius**2 - q @ q, "jac": lambda q: -2.0 * q}
    minimize(floor, start, jac=True, method="SLSQP", constraints=[ball], options={"maxiter": 50})
    return best


def numbers(head: Head, offset: float) -> Floats:
    """A key's numbers `(position, width + 1)`: u and c + offset."""
    return np.concatenate([head.keys, (head.biases + offset)[:, None]], axis=1)


def _spread(head: Head) -> float:
    """The largest distance between two values of one output: no weighted mean of |v - g| exceeds it."""
    return float(np.ptp(head.values, axis=0).max())


def rounding(frozen: Frozen, head: Head, offset: float, stored: float) -> float:
    """Statement C.4 (docs/theory), for the head as it is hosted: |fl(g) - g| for every output.

    A score loses, with one product for each dim: its own arithmetic, what storage lost (`stored`), what a token's limbs
    lost, what LayerNorm adds (taken as log2(hidden) + 4 roundings of numbers of its gain's size; the other norm is
    exact), and the exponential's 4 units in the last place. bfloat16: scores are sums of exact products in float32;
    weights, outputs and their sum are rounded. That is how torch's fused attention computes. Where the configuration
    says "eager", scores are rounded to bfloat16 three times (the product, its scaling, the mask), and the share that
    they leave a whole context grows by e^2 eta; a Llama's softmax is computed in float32.
    """
    is_narrow, is_eager = frozen.dtype == "bfloat16", frozen.sizes.is_eager
    unit, narrow = ROUNDOFF["float32" if is_narrow else frozen.dtype], ROUNDOFF[frozen.dtype]
    of_weights = max(unit, ROUNDOFF["float32"]) if is_eager and not frozen.sizes.is_mirrored else unit
    turned = max(sum(map(abs, turns)) for turns in frozen.turns)
    products = sum(map(len, frozen.dims))
    keys, biases = np.abs(head.keys).sum(axis=1), np.abs(head.biases + offset)
    largest = turned * float((frozen.radius * np.linalg.norm(head.keys, axis=1) + biases).max())
    score = ((products + 4) * unit + of_weights - unit) * largest + 8 * of_weights + stored
    left_out = 2.0 if is_narrow else 1.0  # products with a third limb, and of two second ones
    score += left_out * ROUNDOFF[frozen.carrier] ** frozen.token_limbs * frozen.radius * float(keys.max())
    if frozen.sizes.is_mirrored and not is_narrow:
        score += (math.log2(frozen.sizes.hidden) + 4) * unit * max(1.0, frozen.gain) * float((keys + biases).max())
    worst = float(np.abs(head.values).max())
    summed = (head.positions + 4) * of_weights * worst + (3.0 * narrow * worst if is_narrow else 0.0)
    if is_eager and is_narrow:
        score += 3.1 * narrow * largest  # (1 + u)^3 - 1 < 3.1 u
        summed += (worst + context_value(frozen)) * min(narrow * math.expm1(min(2 * score, 100.0)), 1.0)
    return _spread(head) * math.tanh(score / 2) + summed


def rotation(frozen: Frozen, head: Head, offset: float, error: Floats, margin: float) -> float:
    """What rotation adds at natural positions, by statements C.4 and A2 (docs/theory).

    The prefix's scores move by at most eta, its own output by spread * tanh(eta / 2): a part that is common to all keys
    cancels in the softmax, so numbers count from the middle of their range. Beside the context it does not: where the
    scores fall by as much as `fall`, the share of a whole context grows to T e^(fall - margin).
    """
    if not error.any():
        return 0.0
    told = numbers(head, offset)
    centred = told - (told.max(axis=0) + told.min(axis=0)) / 2
    per_number = np.zeros(frozen.width + 1)
    for lane, lane_error in zip(frozen.lanes, error, strict=True):
        per_number[lane.number] = max(per_number[lane.number], lane_error)
    reach = np.array([*[frozen.radius] * frozen.width, 1.0])
    eta, fall = (float(np.max((np.abs(found) * reach) @ per_number)) for found in (centred, told))
    share = math.exp(min(math.log(frozen.sizes.positions) + fall - margin, 0.0))
    return _spread(head) * math.tanh(eta / 2) + (float(np.abs(head.values).max()) + context_value(frozen)) * share


def linear_reading(frozen: Frozen, copies: list[Head]) -> float:
    """How much the final norm shrinks an output of the largest size, relative to an output of 0."""
    worst = sum(float(np.square(copy.values).sum(axis=1).max()) for copy in copies)
    whole = frozen.sizes.hidden * frozen.gain**2 / (2.0 if frozen.sizes.is_mirrored else 1.0)
    return 1.0 - 1.0 / math.sqrt(1.0 + worst / whole)


def smaller_values(
    head: Head, queries: Floats, *, copies: int = 1, drafted: Callable[[], Head | None] | None = None
) -> tuple[Head, float]:
    """A head of that length that does the same and loses least in bfloat16, and the largest change at `queries`.

    Weights are rounded to bfloat16 before they meet the values, independently: that moves the output by about
    TYPICAL 2^-8 sqrt(sum w^2 v^2 / 3), and values that were solved for a tiny error are large where weights overlap. Of
    some keys (`_less_overlapping`), and of the values that minimise |W v - W_0 v_0|^2 + ridge |v|^2 at half of the
    queries, those with the smallest sum of change and rounding are taken, the latter averaged over `copies`. Where this
    is still more than half of what an output loses when it is written, a head `drafted` anew may be better. A heuristic
    for what is typical; the bound is the `rounding` term.
    """
    weights = head.weights(queries)
    exact = weights @ head.values
    found = _Loss(head, 0.0, _typical_rounding(weights, head.values, copies))
    for tried in _less_overlapping(head, queries):
        found = _damped(tried, queries, exact, copies, found)
    if drafted is not None and found.whole > WORTH_DRAFTING * ROUNDOFF["bfloat16"] * np.abs(exact).max():
        other = drafted()
        found = found if other is None else _damped(other.lengthened(head.positions), queries, exact, copies, found)
    return found.head, found.change


@dataclass(frozen=True)
class _Loss:
    """What a head changes of another's outputs, and that with what it typically loses in bfloat16."""

    head: Head
    change: float
    whole: float


def _damped(tried: Head, queries: Floats, exact: Floats, copies: int, best: _Loss) -> _Loss:
    """The best so far, or these keys with values for the outputs `exact` that lose less."""
    weights = tried.weights(queries)
    seen = slice(None, None, 2 if is_dense(len(queries), tried.positions) else 1)  # the others tell what that is worth
    left, singular, right = np.linalg.svd(weights[seen], full_matrices=False)
    coordinates = left.T @ exact[seen]
    for ridge in np.geomspace(1e-6, 1e-1, 26) * singular[0]:
        values = right.T @ (coordinates * (singular / (singular**2 + ridge**2))[:, None])
        change = float(np.abs(weights @ values - exact).max())
        whole = change + _typical_rounding(weights, values, copies)
        if whole < best.whole:
            best = _Loss(Head(tried.keys, tried.biases, values), change, whole)
    return best


def is_dense(queries: int, positions: int) -> bool:
    """Whether so many queries tell of other keys' errors between them."""
    return queries >= DENSE * positions


def _less_overlapping(head: Head, queries: Floats) -> Iterator[Head]:
    """The head; where there are queries enough, also its scores multiplied, and Gaussians about even places."""
    yield head
    if not is_dense(len(queries), head.positions):
        return
    for sharper in SHARPER:
        yield Head(sharper * head.keys, sharper * head.biases, head.values)
    centres, spacing = _far_apart(queries, head.positions)
    for width in WIDTHS:
        keys = centres / (width * spacing) ** 2
        yield Head(keys, -0.5 * (keys * centres).sum(axis=1), head.values)


def _far_apart(queries: Floats, count: int) -> tuple[Floats, float]:
    """So many of the queries, each the farthest from those before it, and how far all others are at most from them."""
    chosen, away = [0], np.linalg.norm(queries - queries[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(away.argmax()))
        away = np.minimum(away, np.linalg.norm(queries - queries[chosen[-1]], axis=1))
    return queries[chosen], max(float(away.max()), 1e-9)


def _typical_rounding(weights: Floats, values: Floats, copies: int) -> float:
    """Three standard deviations of the mean over copies of sum_k w_k delta_k v_k, delta within bfloat16's roundoff."""
    deviation = np.sqrt((weights**2) @ (values**2)).max() * TYPICAL * ROUNDOFF["bfloat16"] / math.sqrt(3.0 * copies)
    return float(3.0 * deviation)
