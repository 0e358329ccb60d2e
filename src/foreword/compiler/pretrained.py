"""A prefix for one attention head of a *pretrained* model that makes it emit a wanted function of its query.

Nothing of the head is chosen here: only the queries that reach it, and for each of them what attention over its own
context answers (output and log-sum-exp), are given; by the merge's identity that is all that matters. With positions
b_0 = 0, b_1, ... in standardised query coordinates z and a metric M the scores are

    s_k = <z, M b_k> - <b_k, M b_k> / 2 + o          (an affine function of the query, by the engine's logit bias)

so weights fall off with exp(-|z - b_k|_M^2 / 2) exactly. Position 0 has key 0 and score o whatever the query is: the
prefix's log-sum-exp is at least o for *every* input, and a context of log-sum-exp c keeps a share of at most e^(c - o).
A head that must be outweighed by keys alone needs a direction c with <q, c> > 0 for all queries; such a direction
depends on the data and leaks (THEORY's trial: most of its error). Values solve a ridge regression on the weights, the
context's own term included. Which M and b_k do best is judged on rows that neither they nor the values were fitted to;
what is reported, on rows that no choice has seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from foreword.arrays import DTYPES
from foreword.compiler.arrays import Floats
from foreword.compiler.placing import MARGIN, Layout, Problem, chosen, solved
from foreword.compiler.relevance import Relevance, relevance
from foreword.errors import CompileError
from foreword.prefix import Prefix

# The bias that hides a prefix from the other heads of its site: e^-10000 is 0 in every dtype.
HIDDEN = -1.0e4
# Shares of rows that fit, that choose among fits, and (the rest) that only judge.
FIT, CHOOSE = 0.55, 0.2


class Sample(Protocol):
    """What reaches the head, token by token: `foreword.engine.observed.Observed` is one."""

    @property
    def queries(self) -> Floats: ...
    @property
    def outputs(self) -> Floats: ...
    @property
    def log_sums(self) -> Floats: ...
    @property
    def rows(self) -> NDArray[np.int64]: ...
    @property
    def scale(self) -> float: ...


@dataclass(frozen=True)
class HeadReport:
    """How well the head emits the wanted function on rows that were held out, and why not better.

    `explained` is R^2 and `largest_error` the largest error, over all outputs; `deviation` is the wanted function's
    standard deviation. `reachable` is the R^2 of a kernel regression without any limit on positions from the same
    samples (a little optimistic: its metric is chosen on the judging rows), `reachable_from_half` from half of them;
    of a wanted function that jumps the head may explain more.
    `directions` is how many directions of the query the metric weighs (its effective rank), `query_rank` how many the
    queries have. `context_share` is the largest share of weight that a context kept; contexts of a log-sum-exp up to
    `safe_log_sum` keep at most 2^-24. `largest_value` and `rounding` (largest difference between float32 and float64,
    seen) say what execution costs. `limit` is one word, `why` the sentence.
    """

    explained: float
    largest_error: float
    deviation: float
    reachable: float
    reachable_from_half: float
    directions: float
    query_rank: float
    context_share: float
    safe_log_sum: float
    largest_value: float
    rounding: float
    samples: int
    held_out: int
    limit: str
    why: str


@dataclass(frozen=True)
class HeadPrefix:
    """`keys` `(position, dim)`, `biases` `(position,)` in nats, `values` `(position, value_dim)` for one head."""

    keys: Floats
    biases: Floats
    values: Floats
    scale: float
    report: HeadReport

    def evaluate(self, sample: Sample) -> Floats:
        """The head's output `(token, value_dim)` with this prefix before its own context, exactly merged."""
        return np.asarray(_emitted(sample, self.keys, self.biases, self.values))

    def prefix(self, site: str, *, head: int, heads: int, dtype: str = "float32") -> Prefix:
        """The prefix for head number `head` of the `heads` at `site`; the others give it a weight of exactly 0."""
        positions = len(self.keys)
        keys = np.zeros((heads, positions, self.keys.shape[1]))
        values, biases = np.zeros((heads, positions, self.values.shape[1])), np.full((heads, positions), HIDDEN)
        keys[head], values[head], biases[head] = self.keys, self.values, self.biases
        return Prefix.from_arrays({site: tuple(part.astype(DTYPES[dtype]) for part in (keys, values, biases))})


def compile_for_head(
    sample: Sample,
    wanted: Floats,
    *,
    positions: int = 32,
    readout: Floats | None = None,
    value_limit: float = 1e3,
    seed: int = 0,
) -> HeadPrefix:
    """A prefix of `positions` positions that makes a frozen head emit `wanted` of its query.

    `wanted` is `(token,)` or `(token, output)`, at the tokens of `sample`. `readout` `(output, value_dim)`, of full
    rank, says in which directions of the head's output it is to be read (default: its first dims). Rows of the sample
    are split by `seed`: 55% fit, 20% choose, 25% only judge. Values are at most `value_limit`. CompileError for samples
    that do not fit together, are too few or not finite, and for a `wanted` without variance.
    """
    told = np.asarray(wanted, dtype=np.float64)
    told = told[:, None] if told.ndim == 1 else told
    outputs = told.shape[1]
    directions = np.eye(outputs, sample.outputs.shape[1]) if readout is None else np.asarray(readout, dtype=np.float64)
    _check(sample, told, directions, positions)
    problem = _problem(sample, told, sample.outputs @ directions.T, positions, seed)
    learned = relevance(*(part[which] for which in (problem.fit, problem.choose) for part in (problem.z, told)))
    layout, ridge = chosen(problem, learned, positions, value_limit, seed)
    both, spread = np.concatenate([problem.fit, problem.choose]), np.linalg.pinv(directions).T
    values = solved(problem, layout, both, ridge) @ spread
    while np.abs(values).max() > value_limit:  # ends: values go to 0 as the ridge grows
        ridge *= 10.0
        values = solved(problem, layout, both, ridge) @ spread
    turned = layout.b @ layout.metric @ problem.basis.T
    keys = turned / sample.scale
    biases = layout.offset - turned @ problem.mean - 0.5 * np.einsum("kd,de,ke->k", layout.b, layout.metric, layout.b)
    report = _report(problem, layout, learned, sample, (keys, biases, values), directions)
    return HeadPrefix(keys, biases, values, sample.scale, report)


def _check(sample: Sample, wanted: Floats, readout: Floats, positions: int) -> None:
    count = len(sample.queries)
    lengths = {len(part) for part in (sample.queries, sample.outputs, sample.log_sums, sample.rows, wanted)}
    parts: tuple[Any, ...] = (sample.queries, sample.outputs, sample.log_sums, wanted, readout)
    problems = {
        "the same number of tokens in all arrays": lengths == {count},
        "finite numbers": all(np.isfinite(part).all() for part in parts),
        "at least 2 positions": positions >= 2,
        "at least 8 rows, and 4 tokens for each position": len(np.unique(sample.rows)) >= 8 and count >= 4 * positions,
        "a wanted function that is not constant": bool((wanted.std(axis=0) > 0).all()),
        "a readout (output, value_dim) of full rank": readout.shape == (wanted.shape[1], sample.outputs.shape[1])
        and np.linalg.matrix_rank(readout) == len(readout),
    }
    missing = [text for text, holds in problems.items() if not holds]
    if missing:
        raise CompileError(
            "From these samples no prefix can be compiled for the head.",
            expected="; ".join(missing),
            found=f"{count} tokens in {len(np.unique(sample.rows))} rows, {positions} positions",
            fix="Observe the head on more texts (foreword.engine.observed.observe) and give a value for every token.",
        )


def _problem(sample: Sample, wanted: Floats, context: Floats, positions: int, seed: int) -> Problem:
    rows = np.unique(sample.rows)
    order = np.random.default_rng(seed).permutation(rows)
    cuts = (int(FIT * len(rows)), int((FIT + CHOOSE) * len(rows)))
    rng = np.random.default_rng(seed)
    fit, choose, judge = (
        rng.permutation(np.flatnonzero(np.isin(sample.rows, part))) for part in np.split(order, list(cuts))
    )
    seen = sample.queries[np.concatenate([fit, choose])]
    mean = seen.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((seen - mean).T))
    kept = values[::-1] > 1e-6 * values[-1]
    _check_parts(wanted, (fit, choose, judge), positions)
    basis = (vectors[:, ::-1] / np.sqrt(np.maximum(values[::-1], np.finfo(np.float64).tiny)))[:, kept]
    return Problem((sample.queries - mean) @ basis, wanted, context, sample.log_sums, mean, basis, fit, choose, judge)


def _check_parts(wanted: Floats, parts: tuple[NDArray[np.int64], ...], positions: int) -> None:
    if len(parts[0]) < positions:
        raise CompileError(
            "There are fewer samples to fit than positions.",
            expected=f"at least {positions} tokens among the rows that fit ({FIT:.0%} of all rows)",
            found=str(len(parts[0])),
            fix="Observe the head on more texts, or use fewer positions.",
        )
    flat = [
        name for name, part in zip(("fit", "choose", "judge"), parts, strict=True) if not wanted[part].std(axis=0).all()
    ]
    if flat:
        raise CompileError(
            "The wanted function does not vary in every part of the samples.",
            expected="different values among the rows that fit, those that choose and those that judge",
            found=f"one value only among the rows that {', '.join(flat)}",
            fix="Observe the head on more texts, so that a rare value occurs in each part; or use another seed.",
        )


def _emitted(sample: Sample, keys: Any, biases: Any, values: Any) -> Any:
    """Softmax over prefix and context by the merge's identity, in the arrays' own dtype."""
    queries = sample.queries.astype(keys.dtype)
    scores = (queries @ keys.T) * keys.dtype.type(sample.scale) + biases
    peak = scores.max(axis=1)
    weights = np.exp(scores - peak[:, None])
    log_sums = peak + np.log(weights.sum(axis=1))
    share = expit(sample.log_sums - log_sums).astype(keys.dtype)[:, None]
    own = weights @ values / weights.sum(axis=1)[:, None]
    return (1 - share) * own + share * sample.outputs.astype(keys.dtype)


def _report(
    problem: Problem,
    layout: Layout,
    learned: Relevance,
    sample: Sample,
    parts: tuple[Floats, Floats, Floats],
    readout: Floats,
) -> HeadReport:
    judge = problem.judge
    emitted = _emitted(sample, *parts) @ readout.T
    wanted, error = problem.wanted[judge], (emitted - problem.wanted)[judge]
    variance = float(wanted.var(axis=0).sum())
    narrow = _emitted(sample, *(part.astype(np.float32) for part in parts)) @ readout.T
    half = len(problem.fit) // 2
    fewer = relevance(problem.z[problem.fit[:half]], problem.wanted[problem.fit[:half]], problem.z[judge], wanted)
    whole = relevance(problem.z[problem.fit], problem.wanted[problem.fit], problem.z[judge], wanted)
    explained = 1.0 - float(np.square(error).mean(axis=0).sum()) / variance
    reachable, from_half = 1.0 - whole.unexplained, 1.0 - fewer.unexplained
    limit, why = _limit(explained, reachable, from_half)
    covariance = np.cov(sample.queries.T)
    return HeadReport(
        explained=explained,
        largest_error=float(np.abs(error).max()),
        deviation=float(np.sqrt(variance)),
        reachable=reachable,
        reachable_from_half=from_half,
        directions=_rank(learned.metric),
        query_rank=_rank(covariance),
        context_share=float(layout.features(problem, np.arange(len(problem.z)))[1].max()),
        safe_log_sum=layout.offset - MARGIN,
        largest_value=float(np.abs(parts[2]).max()),
        rounding=float(np.abs(narrow - emitted).max()),
        samples=len(problem.fit) + len(problem.choose),
        held_out=len(judge),
        limit=limit,
        why=why,
    )


def _rank(matrix: Floats) -> float:
    """Effective rank: (trace)^2 / trace of the square."""
    return float(np.trace(matrix) ** 2 / np.square(matrix).sum())


def _limit(explained: float, reachable: float, from_half: float) -> tuple[str, str]:
    """What holds the head back; the thresholds are of a report, not of a proof."""
    missing, missing_anyway = 1.0 - explained, 1.0 - reachable
    if missing < 0.01:
        return "none", "The head emits the wanted function to within 1% of its variance."
    if missing > 1.25 * missing_anyway:
        return "positions", "A regression without a limit on positions does better: use more positions."
    if 1.25 * missing < min(missing_anyway, 1.0):
        why = "The head does better than a regression, so the queries allow more than that shows: use more positions."
        return "positions", why
    if reachable - from_half > 0.1 * missing_anyway:
        return "samples", "Half of the samples would have given less: observe the head on more texts."
    why = (
        "A regression from twice the samples does no better: to it, these queries do not determine the wanted function."
    )
    return "queries", why
