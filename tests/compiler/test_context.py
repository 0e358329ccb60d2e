"""A head among tokens computes its function at every position, and context never changes it by more than its term."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp

from foreword.compiler.context import (
    Layout,
    SplitHead,
    classical_head,
    context_logit,
    context_term,
    log_mass_floor,
)
from foreword.compiler.head import Head
from foreword.compiler.nets import sphere_net_of
from foreword.errors import CompileError

ROUNDING = 1e-13  # values of size 1, a few hundred positions and tokens: some hundred roundings of 1e-16


def unit(count: int, columns: int, seed: int) -> np.ndarray:
    points = np.random.default_rng(seed).normal(size=(count, columns))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def random_head(
    count: int, columns: int, outputs: int, seed: int, *, sharpness: float = 5.0, bias: float = 0.0
) -> Head:
    rng = np.random.default_rng(seed)
    return Head(
        sharpness * unit(count, columns, seed), bias * rng.normal(size=count), rng.uniform(-1, 1, (count, outputs))
    )


def plainly(head, tokens: np.ndarray, at: int, seen: int) -> np.ndarray:
    """The classical head's definition, one query at a time: softmax over prefix and tokens of x~' H p."""
    rows = [*head.prefix, *tokens[:seen]]
    scores = [tokens[at] @ head.form @ row for row in rows]
    weights = np.exp(np.array(scores) - max(scores))
    return sum(w * (head.reading @ row) for w, row in zip(weights, rows, strict=True)) / weights.sum()


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("causal", [False, True])
def test_a_classical_head_is_its_definition_at_every_position(layout: Layout, causal: bool) -> None:
    head = classical_head(random_head(12, 3, 2, 0), layout)
    points = unit(7, 3, 1)
    found = head.evaluate(points, causal=causal)
    tokens = head.tokens(points)
    expected = [plainly(head, tokens, at, at + 1 if causal else 7) for at in range(7)]
    assert np.allclose(found, expected, rtol=0, atol=ROUNDING)


def test_the_widths_of_the_layouts_are_those_of_statement_a1() -> None:
    core = random_head(12, 4, 5, 0)
    assert {layout: classical_head(core, layout).width for layout in Layout} == {"L0": 13, "L1": 9, "L2": 10}


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("length", [1, 2, 300])
@pytest.mark.parametrize("causal", [False, True])
def test_context_changes_no_position_by_more_than_its_term(layout: Layout, length: int, causal: bool) -> None:
    core = random_head(64, 3, 2, 0)
    points = unit(length, 3, 1)
    offset = 12.0 if layout is Layout.BIASED else 0.0
    alone = core.evaluate(points)
    among = classical_head(core, layout, offset=offset).evaluate(points, causal=causal)
    term = context_term(
        core, tokens=length, logit=context_logit(layout), offset=offset, output=float(np.abs(alone).max())
    )
    assert np.abs(among - alone).max() <= term + ROUNDING
    if offset == 0 and length == 300:
        assert np.abs(among - alone).max() > term / 20  # the term is a bound on something


def test_two_thousand_tokens_change_nothing_beyond_rounding_at_an_offset_of_45() -> None:
    core = random_head(256, 3, 1, 0, sharpness=6.9)
    points = unit(2_000, 3, 1)
    gap = np.abs(classical_head(core, offset=45.0).evaluate(points) - core.evaluate(points)).max()
    assert gap < ROUNDING
    assert context_term(core, tokens=2_000, logit=context_logit("L2"), offset=45.0) < 1e-15


def test_the_same_prefix_serves_sequences_of_any_length_and_any_batch() -> None:
    core = random_head(32, 3, 2, 0, bias=1.0)
    head = classical_head(core, offset=45.0)
    points = unit(24, 3, 1)
    expected = core.evaluate(points)
    for shape in ((24,), (1, 24), (24, 1), (4, 6), (2, 3, 4)):
        found = head.evaluate(points.reshape(*shape, 3))
        assert found.shape == (*shape, 2)
        assert np.allclose(found.reshape(24, 2), expected, rtol=0, atol=ROUNDING)


def test_a_split_head_with_the_classical_scores_is_the_classical_head() -> None:
    core = random_head(32, 3, 2, 0, bias=1.0)
    split = SplitHead(core, np.eye(4), np.zeros((2, 4)), offset=3.0)
    points = unit(50, 3, 1)
    for causal in (False, True):
        expected = classical_head(core, offset=3.0).evaluate(points, causal=causal)
        assert np.allclose(split.evaluate(points, causal=causal), expected, rtol=0, atol=ROUNDING)


def test_a_split_heads_context_with_values_of_its_own_stays_within_the_term() -> None:
    core, rng = random_head(32, 3, 2, 0), np.random.default_rng(5)
    scores, reading = rng.normal(size=(4, 4)), rng.normal(size=(2, 4))
    points = unit(100, 3, 1)
    alone = core.evaluate(points)
    tokens = np.concatenate([points, np.ones((100, 1))], axis=1)
    term = context_term(
        core,
        tokens=100,
        logit=float((tokens @ scores @ tokens.T).max()),
        value=float(np.abs(tokens @ reading.T).max()),
        output=float(np.abs(alone).max()),
        offset=10.0,
    )
    among = SplitHead(core, scores, reading, offset=10.0).evaluate(points)
    assert 0 < np.abs(among - alone).max() <= term


def test_values_solved_for_one_number_of_tokens_are_exact_there() -> None:
    core, points = random_head(24, 3, 1, 0), unit(400, 3, 1)
    wanted = core.evaluate(points)
    beside = core.weights(points, log_mass=np.log(100.0))  # L0: each of 100 tokens has a score of 0
    assert (beside.sum(axis=1) < 1).all()
    solved = np.linalg.lstsq(beside, wanted, rcond=None)[0]
    among = classical_head(Head(core.keys, core.biases, solved), "L0").evaluate(points.reshape(4, 100, 3))
    assert np.allclose(among.reshape(400, 1), beside @ solved, rtol=0, atol=1e-11)  # solved values are of size 10
    naive = classical_head(core, "L0").evaluate(points.reshape(4, 100, 3)).reshape(400, 1)
    assert np.abs(beside @ solved - wanted).max() < np.abs(naive - wanted).max() / 3


@pytest.mark.parametrize("layout", ["L0", "L1"])
def test_a_layout_without_a_constant_coordinate_takes_no_biases_and_no_offset(layout: str) -> None:
    with pytest.raises(CompileError, match="no constant coordinate"):
        classical_head(random_head(8, 3, 1, 0, bias=1.0), layout)
    with pytest.raises(CompileError, match="no constant coordinate"):
        classical_head(random_head(8, 3, 1, 0), layout, offset=1.0)
    equal = Head(random_head(8, 3, 1, 0).keys, np.full(8, 7.0), np.ones((8, 1)))
    assert classical_head(equal, layout).prefix.shape[0] == 8


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(2, 4),
    st.floats(0.01, 2_000.0),
    st.floats(0.0, 20.0),
    st.sampled_from(["sphere", "cube"]),
    st.integers(0, 2**31),
)
def test_no_query_has_less_mass_than_the_floor(
    count: int, columns: int, sharpness: float, bias: float, region: str, seed: int
) -> None:
    head = random_head(count, columns, 1, seed, sharpness=sharpness, bias=bias)
    rng = np.random.default_rng(seed)
    queries = rng.uniform(-1, 1, (3_000, columns)) if region == "cube" else unit(3_000, columns, seed)
    low = queries[np.argmin(logsumexp(queries @ head.keys.T + head.biases, axis=1))]
    near = low + 0.05 * rng.normal(size=(2_000, columns))  # look again about the least of them
    near = np.clip(near, -1, 1) if region == "cube" else near / np.linalg.norm(near, axis=1, keepdims=True)
    seen = logsumexp(np.concatenate([queries, near]) @ head.keys.T + head.biases, axis=1).min()
    assert log_mass_floor(head, region) <= seen + 1e-9


@pytest.mark.parametrize(("dimension", "count", "sharpness"), [(1, 24, 5.0), (2, 128, 5.0), (3, 512, 6.0)])
def test_the_floor_of_a_net_is_close_to_what_is_seen(dimension: int, count: int, sharpness: float) -> None:
    head = Head(sharpness * sphere_net_of(dimension, count).points, np.zeros(count), np.ones((count, 1)))
    seen = logsumexp(unit(5_000, dimension + 1, 0) @ head.keys.T, axis=1).min()
    assert seen - 0.15 < log_mass_floor(head) <= seen


@pytest.mark.parametrize(
    "context",
    [{"tokens": -1, "logit": 0.0}, {"tokens": 1, "logit": np.nan}, {"tokens": 1, "logit": 0.0, "value": -1.0}],
)
def test_a_context_that_cannot_be_is_refused(context: dict[str, float]) -> None:
    with pytest.raises(CompileError, match="context"):
        context_term(random_head(4, 3, 1, 0), **context)  # type: ignore[arg-type]


def test_no_context_has_no_term_and_endless_context_has_the_whole_reach() -> None:
    core = random_head(8, 3, 1, 0)
    assert context_term(core, tokens=0, logit=2.0) == 0.0
    assert context_term(core, tokens=10**300, logit=700.0, output=1.0) == pytest.approx(1.0)
    assert context_term(core, tokens=1, logit=-2_000.0) == 0.0 < context_term(core, tokens=1, logit=-600.0)
