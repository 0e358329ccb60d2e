"""A prefix for a head that is given: made-up queries with a known answer, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from foreword.compiler.pretrained import HIDDEN, HeadPrefix, _limit, compile_for_head
from foreword.compiler.relevance import relevance
from foreword.errors import CompileError


@dataclass(frozen=True)
class Seen:
    queries: Any
    outputs: Any
    log_sums: Any
    rows: Any
    scale: float = 0.5


@pytest.fixture(scope="module")
def seen() -> Seen:
    """600 queries of 6 dims in 40 rows, off-centre and stretched, as a pretrained head has them."""
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(600, 6)) * np.array([3.0, 2.0, 1.5, 1.0, 0.7, 0.5]) + 2.0
    return Seen(queries, rng.normal(size=(600, 4)), rng.uniform(1, 6, size=600), np.repeat(np.arange(40), 15))


def product(seen: Seen) -> Any:
    return (seen.queries[:, 0] - 2) * (seen.queries[:, 1] - 2) / 6


@pytest.fixture(scope="module")
def eight(seen: Seen) -> HeadPrefix:
    """Eight positions for the product."""
    return compile_for_head(seen, product(seen), positions=8)


def test_eight_positions_give_a_product_of_two_coordinates(seen: Seen, eight: HeadPrefix) -> None:
    emitted = eight.evaluate(seen)[:, 0]
    unexplained = np.square(emitted - product(seen)).mean() / product(seen).var()
    assert eight.keys.shape == (8, 6)
    assert unexplained < 0.01
    assert eight.report.explained > 0.99
    assert eight.report.limit == "none"
    assert np.abs(eight.values).max() == eight.report.largest_value <= 1e3


def test_the_prefix_outweighs_the_context_for_every_query_whatever(eight: HeadPrefix) -> None:
    """Position 0 has key 0, so also for queries far from all that were seen."""
    far = 50.0 * np.random.default_rng(1).normal(size=(2000, 6))
    scores = eight.scale * far @ eight.keys.T + eight.biases
    log_sums = scores.max(axis=1) + np.log(np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1))
    assert (log_sums >= eight.report.safe_log_sum + 16.6 - 1e-9).all()
    assert eight.report.context_share <= 2.0**-23


def test_values_stay_within_the_limit(seen: Seen) -> None:
    found = compile_for_head(seen, product(seen), positions=8, value_limit=3.0)
    assert np.abs(found.values).max() <= 3.0
    assert found.report.explained > 0.5


def test_two_outputs_are_read_in_the_directions_that_were_asked_for(seen: Seen) -> None:
    readout = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, -1.0]])
    wanted = np.stack([product(seen), np.sin(seen.queries[:, 0] / 3)], axis=1)
    found = compile_for_head(seen, wanted, positions=24, readout=readout)
    assert (1 - np.square(found.evaluate(seen) @ readout.T - wanted).mean(axis=0) / wanted.var(axis=0) > 0.95).all()


def test_a_function_that_queries_do_not_determine_is_said_to_be_one(seen: Seen) -> None:
    noise = np.random.default_rng(2).normal(size=600)
    report = compile_for_head(seen, noise, positions=8).report
    assert report.explained < 0.2
    assert report.limit in ("queries", "samples")


def test_too_few_positions_are_named_as_the_limit(seen: Seen) -> None:
    wiggly = np.sin(1.2 * (seen.queries[:, 0] - 2))
    report = compile_for_head(seen, wiggly, positions=3).report
    assert report.explained < 0.5
    assert report.reachable > 0.9
    assert report.limit == "positions"


@pytest.mark.parametrize(
    ("explained", "reachable", "limit"),
    [(0.979, 0.925, "positions"), (0.91, 0.92, "queries"), (-0.02, -0.4, "queries")],
)
def test_queries_are_not_the_limit_where_the_head_does_better_than_the_regression(
    explained: float, reachable: float, limit: str
) -> None:
    """The first numbers are those of a threshold of a trained model's query: a regression smooths a step."""
    assert _limit(explained, reachable, reachable)[0] == limit


def test_the_metric_finds_the_directions_that_matter() -> None:
    rng = np.random.default_rng(3)
    points, unseen = rng.normal(size=(400, 10)), rng.normal(size=(200, 10))
    along = np.zeros(10)
    along[:2] = 0.6, 0.8
    found = relevance(points, np.sin(2 * points @ along)[:, None], unseen, np.sin(2 * unseen @ along)[:, None])
    assert along @ found.metric @ along > 0.95  # of a trace of 1
    assert found.unexplained < 0.01


def test_the_other_heads_of_the_site_are_hidden_from_the_prefix(eight: HeadPrefix) -> None:
    prefix = eight.prefix("h.0.attn", head=1, heads=3)
    layer = prefix.layer("h.0.attn")
    assert layer.bias is not None
    assert (layer.bias[[0, 2]] == HIDDEN).all()
    assert (layer.keys[[0, 2]] == 0).all()
    assert (layer.bias[1] > HIDDEN / 2).all()


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({"queries": np.full((600, 6), np.nan)}, {}, "finite"),
        ({"log_sums": np.zeros(10)}, {}, "same number of tokens"),
        ({"rows": np.zeros(600, dtype=int)}, {}, "at least 8 rows"),
        ({}, {"positions": 1}, "at least 2 positions"),
        ({}, {"positions": 200}, "4 tokens for each position"),
        (
            {"rows": np.repeat(np.arange(40), [570, *[0] * 9, *[1] * 30])},
            {"positions": 100, "seed": 1},
            "fewer samples to fit",
        ),
        ({}, {"readout": np.zeros((1, 4))}, "full rank"),
        ({}, {"value_limit": 1e-9}, "within the limit"),
    ],
)
def test_samples_that_cannot_serve_are_refused(seen: Seen, change: Any, options: Any, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        compile_for_head(replace(seen, **change), product(seen), **options)


def test_a_wanted_function_without_variance_is_refused(seen: Seen) -> None:
    with pytest.raises(CompileError, match="not constant"):
        compile_for_head(seen, np.ones(600))
    with pytest.raises(CompileError, match="does not vary"):
        compile_for_head(seen, np.arange(600) == 0)
