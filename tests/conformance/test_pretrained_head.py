"""A compiled prefix in one head of a model as it comes: what the model emits is what was compiled, and only there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import CORPUS

from foreword.compiler.pretrained import HeadPrefix, compile_for_head
from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.engine.observed import Observed, observe
from foreword.engine.rendering import tokens
from foreword.errors import HostError

pytestmark = pytest.mark.usefixtures("one_thread")


def texts(count: int) -> list[str]:
    """Sentences of words drawn from the corpus, none like another."""
    words = sorted({word for text in CORPUS for word in text.lower().replace(":", " ").split()})
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, size=int(rng.integers(6, 14)))) for _ in range(count)]


def standardised(seen: Observed) -> Any:
    """The queries' leading principal components, `(token, 3)`."""
    values, vectors = np.linalg.eigh(np.cov(seen.queries.T))
    return ((seen.queries - seen.queries.mean(axis=0)) @ vectors[:, ::-1] / np.sqrt(values[::-1]))[:, :3]


def head_outputs(host: Host, layer: int, rows: list[list[int]], attention: Any = None) -> Any:
    """What the heads of a BERT layer give before they are mixed, `(token, head, dim)`, row after row."""
    caught: list[torch.Tensor] = []
    module = host.backbone.encoder.layer[layer].attention.output
    hook = module.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        with torch.no_grad():
            for row in rows:
                host.backbone(input_ids=torch.tensor([row]))
    finally:
        hook.remove()
    heads = host.sites[layer].heads
    return torch.cat([part[0].view(part.shape[1], heads, -1) for part in caught]).double().numpy()


def check_in_the_model(host: Host, layer: int, head: int, found: HeadPrefix, seen: Observed, rows: Any) -> None:
    site = host.sites[layer]
    bare = head_outputs(host, layer, rows)
    with attached(host, found.prefix(site.name, head=head, heads=site.heads)):
        inside = head_outputs(host, layer, rows)
    # Twice what float32 arithmetic was seen to lose on this head, and 1e-5 for queries that batches round otherwise.
    assert np.abs(inside[:, head] - found.evaluate(seen)).max() <= 2 * found.report.rounding + 1e-5 * (
        1 + found.report.largest_value
    )
    others = [number for number in range(site.heads) if number != head]
    # The prefix's weight there is exactly 0; the joined call may sum in another order: a few roundings of float32.
    assert np.abs(inside[:, others] - bare[:, others]).max() <= 16 * 2.0**-24 * np.abs(bare).max()
    assert np.abs(inside[:, head] - bare[:, head]).max() > 0.1


@pytest.fixture
def bert(shared_host: Callable[[str], Host]) -> Host:
    return shared_host("bert")


def test_a_head_of_a_tiny_encoder_emits_a_function_of_its_query(bert: Host) -> None:
    rows = [tokens(bert, text, special=True) for text in texts(40)]
    seen = observe(bert, bert.sites[1].name, 2, rows)
    found = compile_for_head(seen, np.sin(2 * standardised(seen)[:, 0]), positions=16)
    assert found.report.explained > 0.95
    check_in_the_model(bert, 1, 2, found, seen, rows)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_what_is_observed_is_what_the_head_computes(shared_host: Callable[[str], Host], family: str) -> None:
    """Softmax over the observed queries' scores gives the observed outputs: held against the model's own output."""
    host = shared_host(family)
    rows = [tokens(host, text, special=True) for text in texts(7)]
    site = host.sites[0]
    together = observe(host, site.name, 1, rows, batch_size=4)
    alone = [observe(host, site.name, 1, [row]) for row in rows]
    for name in ("queries", "outputs", "log_sums"):
        apart = np.concatenate([getattr(part, name) for part in alone])
        # Padding changes nothing but the order of float32 sums, on numbers of size 10 at most.
        assert np.abs(getattr(together, name) - apart).max() <= 1e-4
    assert together.rows.tolist() == [index for index, row in enumerate(rows) for _ in row]
    if family == "bert":
        assert np.abs(head_outputs(host, 0, rows)[:, 1] - together.outputs).max() <= 1e-4


def test_heads_that_share_their_keys_are_refused(shared_host: Callable[[str], Host]) -> None:
    llama, bert = shared_host("llama"), shared_host("bert")
    with pytest.raises(HostError, match="no other head shares"):
        observe(llama, llama.sites[0].name, 0, [[1, 2]])
    with pytest.raises(HostError, match="head 9"):
        observe(bert, bert.sites[0].name, 9, [[1, 2]])


@pytest.mark.slow
def test_heads_of_a_real_encoder_emit_functions_of_their_queries(minilm: Host) -> None:
    """At least what the trial reached by keys alone on as many sentences, in the unmodified model."""
    rows = [tokens(minilm, text, special=True) for text in texts(120)]
    seen = observe(minilm, minilm.sites[2].name, 5, rows)
    pc = standardised(seen)
    cases = (
        (pc[:, 0] * pc[:, 1], 8, 0.995),
        (np.sin(2 * pc[:, 0]), 32, 0.99),
        (np.exp(-0.5 * np.square(pc).sum(axis=1)), 128, 0.955),
    )
    for wanted, positions, explained in cases:
        found = compile_for_head(seen, wanted, positions=positions)
        assert found.report.explained >= explained
        check_in_the_model(minilm, 2, 5, found, seen, rows)
