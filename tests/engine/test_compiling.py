"""Under `torch.compile`: whole graphs, used again where they serve, and never where another prefix or none is attached.

A column of the conformance matrix holds every family to it; here is what may happen between two calls of one graph.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from foreword.engine.assignment import SiteTensors
from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.host import Host
from foreword.errors import AttachError
from foreword.prefix import Prefix

IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 10]])


@pytest.fixture(scope="module")
def host() -> Host:
    torch.manual_seed(0)
    sizes = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=32, bos_token_id=0, eos_token_id=1)
    return Host(GPT2LMHeadModel(sizes))


class Traced:
    """The host's model compiled, every graph counted; a break in a graph is an error."""

    def __init__(self, host: Host) -> None:
        self.graphs = 0
        self.model = torch.compile(host.model, backend=self.keep, fullgraph=True)

    def keep(self, graph: Any, _: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def traced(host: Host) -> Iterator[Traced]:
    torch._dynamo.reset()
    yield Traced(host)
    torch._dynamo.reset()


def a_prefix(host: Host, positions: int = 3, seed: int = 1) -> Prefix:
    return Prefix.random(host, positions=positions, seed=seed, scale=1.0)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def agree(host: Host, traced: Traced) -> Tensor:
    """What the model computes here, whose graph computes the same by the same operations."""
    wanted = logits(host.model)
    assert torch.equal(logits(traced.model), wanted)
    return wanted


@pytest.mark.filterwarnings("ignore:a thread that was started:UserWarning")
def test_a_graph_serves_every_prefix_of_its_length_and_no_other_call(host: Host, traced: Traced) -> None:
    elsewhere: list[Tensor] = []
    earlier = copy_context()  # what a task of asyncio has that was started by now
    bare = agree(host, traced)
    with attached(host, a_prefix(host)):
        first = agree(host, traced)
        assert traced.graphs == 2
        thread = threading.Thread(target=lambda: elsewhere.append(agree(host, traced)))
        thread.start()
        thread.join()
        assert torch.equal(elsewhere[0], bare)
        assert torch.equal(earlier.run(agree, host, traced), bare)
        assert torch.equal(agree(host, traced), first)
    with attached(host, a_prefix(host, seed=2)):
        assert not torch.equal(agree(host, traced), first)
    assert torch.equal(agree(host, traced), bare)
    assert traced.graphs == 3  # bare, with a prefix, and bare where it is attached elsewhere


@pytest.mark.slow
def test_one_more_graph_serves_all_other_lengths(host: Host, traced: Traced) -> None:
    for positions in (3, 5, 7, 9):
        with attached(host, a_prefix(host, positions)):
            agree(host, traced)
    assert traced.graphs == 2


@pytest.mark.slow
def test_one_graph_serves_every_order_of_the_rows(host: Host, traced: Traced) -> None:
    prefixes = [a_prefix(host), a_prefix(host, 5, seed=2)]
    for rows in ([0, 1], [1, 0]):
        with attached(host, prefixes, rows=rows):
            agree(host, traced)
    assert traced.graphs == 1


@pytest.mark.slow
def test_a_baked_text_moves_the_tokens_in_a_graph_too(host: Host, traced: Traced) -> None:
    for text in ([5, 6, 7], [9, 5, 6]):
        with attached(host, bake(host, text)):
            agree(host, traced)
    assert traced.graphs == 1


# torch.compile itself instantiates the autograd function that the merge is made of, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("merging", [pytest.param(False, marks=pytest.mark.slow), True], ids=["joined", "merged"])
def test_gradients_go_through_a_graph_to_the_prefix(
    host: Host, traced: Traced, merging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foreword.engine.assignment.is_worth_merging", lambda *_: merging)

    def gradients(model: Any, seed: int) -> list[Tensor]:
        resident = host.resident(a_prefix(host, seed=seed))
        live = {
            site: SiteTensors(x.keys.clone().requires_grad_(), x.values.clone().requires_grad_())
            for site, x in resident.items()
        }
        with attached(host, live):
            loss = model(input_ids=IDS).logits.square().sum()
        parts = [part for found in live.values() for part in (found.keys, found.values)]
        return list(torch.autograd.grad(loss, parts))

    for seed in (1, 2):
        for found, wanted in zip(gradients(traced.model, seed), gradients(host.model, seed), strict=True):
            assert torch.equal(found, wanted)
            assert bool((wanted != 0).any())
    assert traced.graphs == 1


@pytest.mark.slow
@pytest.mark.skipif(torch.__version__ < "2.13", reason="there the compiler ends in an error of its own instead")
def test_a_batch_without_the_rows_is_refused_by_its_name(host: Host) -> None:
    torch._dynamo.reset()
    model = torch.compile(host.model, backend="eager")
    with (
        attached(host, [a_prefix(host)], rows=[0, None, 0]),
        pytest.raises(AttachError, match="does not have the rows"),
    ):
        model(input_ids=IDS)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_an_exported_program_has_the_prefix_that_was_attached(host: Host) -> None:
    """To rounding, as the program does its operations by others: sums of at most 32 terms below 10, in float32."""
    with torch.no_grad(), attached(host, a_prefix(host)):
        wanted = logits(host.model)
        program = torch.export.export(host.model, (), {"input_ids": IDS, "use_cache": False}, strict=False)
    found = program.module()(input_ids=IDS, use_cache=False).logits.detach()
    assert torch.allclose(found, wanted, rtol=0, atol=32 * 10 * torch.finfo(torch.float32).eps)
    assert not torch.allclose(found, logits(host.model), rtol=0, atol=1e-3)
