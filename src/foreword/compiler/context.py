"""A head among the tokens of its input: the split head, the classical head in three layouts, and what context costs.

The input is a sequence of T points; every position attends to the prefix and to all tokens (or, causal, to those up to
itself), and so computes g at its own point, up to the context term. The forms and statements are A.1, A1 and A2 of
docs/theory. It knows nothing of models: `hosting.py` builds these forms into one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from foreword.compiler.arrays import Floats
from foreword.compiler.head import Head
from foreword.compiler.nets import Net, sphere_net_of
from foreword.errors import CompileError

Region = Literal["sphere", "cube"]

NET_POINTS = 2_000  # of the net on which the least mass over a sphere is looked for
NET_SCORES = 2e7  # and at most so many scores in all
UNIT = float(np.finfo(np.float64).eps)


class Layout(StrEnum):
    """How a classical head's one vector a position holds a key and a value; `w` query coordinates, `n` outputs.

    BLOCKS, L0 of statement A.1: width 2w + n, token (x, 0, 0), prefix (0, u, v); context logits are exactly 0.
    MINIMAL, L1: width w + n, token (x, 0), prefix (u, v); context logits are <x, x'>. No form with free keys is
    narrower (statement A1). BIASED, L2: width w + 1 + n, token (x, 1, 0), prefix (u, c + offset, v); context logits are
    <x, x'> + 1, and the offset stands in the prefix only, so it can make them as small as wanted.
    """

    BLOCKS = "L0"
    MINIMAL = "L1"
    BIASED = "L2"


@dataclass(frozen=True)
class SplitHead:
    """A core head with free keys and values for the prefix (what `past_key_values` gives), among tokens.

    A token at query q is q~ = (q, 1): its score for the position at q' is `<q'~, scores q~>`, its value `reading q~`;
    `scores` `(w + 1, w + 1)`, `reading` `(output, w + 1)`, `offset` in nats is added to every prefix position's bias.
    """

    head: Head
    scores: Floats
    reading: Floats
    offset: float = 0.0

    def evaluate(self, queries: Floats, *, causal: bool = False) -> Floats:
        """The output `(..., token, output)` at every position of sequences of queries `(..., token, w)`."""
        tokens = _with_one(queries)
        return attend(
            queries @ self.head.keys.T + (self.head.biases + self.offset),
            self.head.values,
            tokens @ self.scores @ np.swapaxes(tokens, -1, -2),
            tokens @ self.reading.T,
            causal=causal,
        )


@dataclass(frozen=True)
class ClassicalHead:
    """One vector a position: h(x~) = softmax over prefix and tokens of x~' `form` p, of the values `reading` p.

    `form` `(d, d)` and `reading` `(output, d)` are frozen and know nothing of the target, which is in `prefix`
    `(position, d)` alone.
    """

    layout: Layout
    form: Floats
    reading: Floats
    prefix: Floats
    coordinates: int

    @property
    def width(self) -> int:
        """d, the dimension of a token."""
        return int(self.form.shape[0])

    def tokens(self, queries: Floats) -> Floats:
        """Tokens `(..., d)` at queries `(..., w)`: zeros in the prefix's own blocks, and 1 in the constant one."""
        tokens = np.zeros((*queries.shape[:-1], self.width))
        tokens[..., : self.coordinates] = queries
        if self.layout is Layout.BIASED:
            tokens[..., self.coordinates] = 1.0
        return tokens

    def evaluate(self, queries: Floats, *, causal: bool = False) -> Floats:
        """The output `(..., token, output)` at every position of sequences of queries `(..., token, w)`."""
        tokens = self.tokens(queries)
        turned = tokens @ self.form
        return attend(
            turned @ self.prefix.T,
            self.prefix @ self.reading.T,
            turned @ np.swapaxes(tokens, -1, -2),
            tokens @ self.reading.T,
            causal=causal,
        )


def classical_head(head: Head, layout: Layout | str = Layout.BIASED, *, offset: float = 0.0) -> ClassicalHead:
    """The classical head that computes `head` from its prefix in this layout.

    CompileError when the layout cannot: only BIASED has a place for an offset, and for biases that are not all equal
    (equal ones change no weight among the prefix).

    >>> core = Head(np.eye(2), np.zeros(2), np.array([[1.0], [-1.0]]))
    >>> classical_head(core, "L1").width, classical_head(core).width, classical_head(core, "L0").width
    (3, 4, 5)
    """
    layout = Layout(layout)
    count, w = head.keys.shape
    n = head.values.shape[1]
    if layout is not Layout.BIASED and (offset or np.ptp(head.biases)):
        raise CompileError(
            f"The layout {layout} has no constant coordinate.",
            expected="no offset, and biases that are all equal",
            found=f"offset {offset:g}, biases from {head.biases.min():g} to {head.biases.max():g}",
            fix="Use layout L2, whose tokens carry a 1.",
        )
    if layout is Layout.BIASED:
        form = np.zeros((w + 1 + n, w + 1 + n))
        form[: w + 1, : w + 1] = np.eye(w + 1)
        prefix = np.concatenate([head.keys, head.biases[:, None] + offset, head.values], axis=1)
    elif layout is Layout.MINIMAL:
        form = np.zeros((w + n, w + n))
        form[:w, :w] = np.eye(w)
        prefix = np.concatenate([head.keys, head.values], axis=1)
    else:
        form = np.zeros((2 * w + n, 2 * w + n))
        form[:w, w : 2 * w] = np.eye(w)
        prefix = np.concatenate([np.zeros((count, w)), head.keys, head.values], axis=1)
    reading = np.zeros((n, len(form)))
    reading[:, -n:] = np.eye(n)
    return ClassicalHead(layout, form, reading, prefix, w)


def attend(
    prefix_scores: Floats, prefix_values: Floats, token_scores: Floats, token_values: Floats, *, causal: bool = False
) -> Floats:
    """Softmax over prefix and tokens together, in float64: `(..., token, output)`.

    Scores are `(..., token, position)` and `(..., token, token)`, values `(position, output)` and `(..., token,
    output)`; causal, a token attends to itself and to those before it.
    """
    if causal:
        later = np.triu(np.ones(token_scores.shape[-2:], dtype=bool), 1)
        token_scores = np.where(later, -np.inf, token_scores)
    highest = np.maximum(prefix_scores.max(axis=-1), token_scores.max(axis=-1))[..., None]
    prefix_weights, token_weights = np.exp(prefix_scores - highest), np.exp(token_scores - highest)
    mass = prefix_weights.sum(axis=-1, keepdims=True) + token_weights.sum(axis=-1, keepdims=True)
    found: Floats = (prefix_weights @ prefix_values + token_weights @ token_values) / mass
    return found


def context_logit(layout: Layout | str, *, radius: float = 1.0) -> float:
    """The largest score s_c of one token for another when queries have norm at most `radius` (statement A.1)."""
    squared = radius * radius
    return {Layout.BLOCKS: 0.0, Layout.MINIMAL: squared, Layout.BIASED: squared + 1.0}[Layout(layout)]


def context_term(
    head: Head,
    *,
    tokens: int,
    logit: float,
    offset: float = 0.0,
    value: float = 0.0,
    output: float | None = None,
    log_floor: float | None = None,
    region: Region = "sphere",
) -> float:
    """A bound on |h - g|, the change that up to `tokens` tokens make to any output at any query (statement A2).

    With r = T e^(s_c - o) / Z_min it is (|g| + B_c) r/(1 + r): the output is a mean of g and of the context's values,
    and the context's share Z_c/(Z_c + Z) grows with Z_c/Z <= r. `logit` is s_c, `value` is B_c, `output` the largest
    |g| (default: the largest value, since g lies in their hull), `log_floor` is log Z_min (default: `log_mass_floor` on
    the queries' `region`).

    >>> unit = Head(np.eye(2), np.zeros(2), np.array([[1.0], [-1.0]]))
    >>> context_term(unit, tokens=2000, logit=2.0, offset=45.0) < 1e-12
    True
    """
    if tokens < 0 or math.isnan(logit) or value < 0 or (output is not None and output < 0):
        raise CompileError(
            "The context cannot be so.",
            expected="a number of tokens and bounds that are not negative",
            found=f"tokens={tokens}, logit={logit}, value={value}, output={output}",
        )
    floor = log_mass_floor(head, region) if log_floor is None else log_floor
    reach = (float(np.abs(head.values).max()) if output is None else output) + value
    share = math.log(tokens) + logit - offset - floor if tokens else -math.inf
    weight = 1.0 / (1.0 + math.exp(-share)) if share > -700 else math.exp(share)
    return reach * weight * (1 + 1e-12)


def log_mass_floor(head: Head, region: Region = "sphere") -> float:
    """A lower bound of log Z(q) = log sum_k e^(<q, u_k> + c_k) over the sphere |q| = 1 or the cube max |q_i| <= 1.

    log Z is convex with gradient u(q) = sum_k w_k(q) u_k. On the sphere it therefore lies above its tangent at the
    nearest point q of a net, x = cos(r) q + sin(r) t with an angle r up to the net's covering radius:
    log Z(x) >= log Z(q) - (1 - cos r) max(<q, u>, 0) - sin(r) |u - <q, u> q|, which loses little where log Z is least.
    The bound over the whole ball or cube, by `_convex_floor`, holds too, and is taken where it is better (or where the
    dimension is too high for a net). Less the rounding of scores and sums.

    >>> log_mass_floor(Head(2.0 * np.eye(2), np.zeros(2), np.ones((2, 1)))) > -1.0
    True
    """
    floor, width = _convex_floor(head, region), int(head.keys.shape[1])
    if region == "sphere" and 2 <= width <= 4:
        points = int(np.clip(NET_SCORES / head.positions, 64, NET_POINTS))
        floor = max(floor, _sphere_floor(head, sphere_net_of(width - 1, points)))
    reach = math.sqrt(width) if region == "cube" else 1.0
    scale = 1.0 + reach * float(np.linalg.norm(head.keys, axis=1).max()) + float(np.abs(head.biases).max())
    return floor - (head.positions + width + 16) * UNIT * scale


def _sphere_floor(head: Head, net: Net) -> float:
    mass = logsumexp(net.points @ head.keys.T + head.biases, axis=1)
    gradient = head.weights(net.points) @ head.keys
    along = np.sum(gradient * net.points, axis=1)
    across = np.linalg.norm(gradient - along[:, None] * net.points, axis=1)
    radius = min(net.radius, math.pi / 2)
    if radius < net.radius:
        return -math.inf
    return float(np.min(mass - (1 - math.cos(radius)) * np.maximum(along, 0.0) - math.sin(radius) * across))


def _convex_floor(head: Head, region: Region) -> float:
    """A lower bound of log Z over the unit ball or the cube.

    For any weights p that sum to 1, Jensen gives log Z(q) >= H(p) + <p, c> + <q, u_p> with u_p = sum_k p_k u_k, so
    log Z >= H(p) + <p, c> - |u_p|, |.| the dual norm. That holds whatever p is; it is tight for the weights at the
    minimiser, which convex minimisation looks for.
    """
    found = _least_mass(head, region)
    best = -math.inf
    for weights in (np.full(head.positions, 1 / head.positions), head.weights(found[None])[0]):
        kept = weights > 0
        entropy = -float(np.sum(weights[kept] * np.log(weights[kept])))
        mean = weights @ head.keys
        dual = float(np.abs(mean).sum() if region == "cube" else np.linalg.norm(mean))
        best = max(best, entropy + float(weights @ head.biases) - dual)
    return best


def _least_mass(head: Head, region: Region) -> Floats:
    """A query of nearly the least mass; only the tightness of the floor depends on how nearly."""
    scale = max(float(np.linalg.norm(head.keys, axis=1).max()), 1e-300)

    def mass(query: Floats) -> tuple[float, Floats]:
        gradient = head.weights(query[None])[0] @ head.keys
        return float(logsumexp(head.keys @ query + head.biases)) / scale, gradient / scale

    start = -head.keys.mean(axis=0) / (2 * scale)
    if region == "cube":
        found = minimize(mass, start, jac=True, method="L-BFGS-B", bounds=[(-1, 1)] * len(start)).x
    else:
        inside = {"type": "ineq", "fun": lambda q: 1 - q @ q, "jac": lambda q: -2 * q}
        found = minimize(mass, start, jac=True, method="SLSQP", constraints=[inside], options={"ftol": 1e-12}).x
    return np.nan_to_num(np.asarray(found, dtype=np.float64))


def _with_one(queries: Floats) -> Floats:
    return np.concatenate([queries, np.ones((*queries.shape[:-1], 1))], axis=-1)
