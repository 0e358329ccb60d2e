"""What runs beside the code that attached a prefix: tasks of asyncio, and the threads that they hand work to.

A task that was started inside `attached` reads the prefix as long as it is attached; one that was started before, or by
somebody else, never does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from foreword.engine.assignment import SiteTensors
from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.checkpointing import checkpointed
from foreword.engine.host import Host
from foreword.errors import AttachError
from foreword.prefix import Prefix

IDS = torch.tensor([[5, 9, 4, 11], [8, 6, 3, 9]])


def logits(host: Host) -> Tensor:
    with torch.no_grad():
        found: Tensor = host.model(input_ids=IDS).logits
    return found


@pytest.fixture
def host(shared_host: Callable[[str], Host]) -> Host:
    return shared_host("gpt2")


def test_a_task_reads_the_prefix_inside_of_which_it_was_started(host: Host) -> None:
    bare = logits(host)

    async def when(event: asyncio.Event) -> Tensor:
        await event.wait()
        return logits(host)

    async def work() -> None:
        inside, left = asyncio.Event(), asyncio.Event()
        earlier = asyncio.create_task(when(inside))
        with attached(host, Prefix.random(host, positions=3, seed=1, scale=1.0)):
            own = logits(host)
            started, surviving = asyncio.create_task(when(inside)), asyncio.create_task(when(left))
            inside.set()
            assert torch.equal(await earlier, bare)
            assert torch.equal(await started, own)
            assert torch.equal(await asyncio.to_thread(logits, host), own)
        left.set()
        assert torch.equal(await surviving, bare)
        assert not torch.equal(own, bare)

    asyncio.run(work())


def test_a_second_task_that_attaches_is_refused_and_the_first_is_undisturbed(host: Host) -> None:
    prefix = Prefix.random(host, positions=3, seed=1, scale=1.0)

    async def other() -> None:
        with pytest.raises(AttachError, match="already attached"), attached(host, prefix):
            pass

    async def work() -> None:
        later = asyncio.create_task(other())
        with attached(host, prefix):
            own = logits(host)
            await later
            assert torch.equal(logits(host), own)

    asyncio.run(work())


def test_passes_that_a_task_hands_to_two_threads_at_once_do_not_mix(host: Host) -> None:
    """Both are inside the model at the same time, and each still moves its tokens behind the baked text."""
    both = threading.Barrier(2, timeout=30)

    def meet(*_: Any) -> None:
        both.wait()

    async def work() -> list[Tensor]:
        with attached(host, bake(host, [9, 8, 7])):
            own = logits(host)
            hook = host.model.register_forward_pre_hook(meet)
            inner = host.backbone.register_forward_pre_hook(meet)
            try:
                return [own, *await asyncio.gather(*(asyncio.to_thread(logits, host) for _ in range(2)))]
            finally:
                hook.remove()
                inner.remove()

    own, *found = asyncio.run(work())
    assert all(torch.equal(part, own) for part in found)


def test_an_attention_that_two_layers_share_is_computed_again_in_another_thread_as_it_was() -> None:
    """As a backward pass on a GPU does: the second layer reads its own part of the prefix again, not the first's."""
    torch.manual_seed(0)
    sizes = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4, vocab_size=16, pad_token_id=0
    )
    model = LlamaForCausalLM(sizes)
    model.model.layers[1].self_attn = model.model.layers[0].self_attn
    host = Host(model)
    assert len(host.sites) == 2
    prefix = Prefix.random(host, positions=3, seed=1, scale=1.0)

    def gradients(*, again: bool) -> list[Tensor]:
        live = {
            site: SiteTensors(x.keys.clone().requires_grad_(), x.values.clone().requires_grad_())
            for site, x in host.resident(prefix).items()
        }
        parts = [part for found in live.values() for part in (found.keys, found.values)]
        with attached(host, live), checkpointed(host.model) if again else nullcontext():
            loss = host.model(input_ids=IDS % 16, use_cache=False).logits.square().sum()
            thread = threading.Thread(target=loss.backward)
            thread.start()
            thread.join()
        return [part.grad for part in parts if part.grad is not None]

    wanted = gradients(again=False)
    assert len(wanted) == 4
    for part, found in zip(wanted, gradients(again=True), strict=True):
        assert torch.equal(part, found)


@pytest.mark.parametrize("is_attached_first", [True, False])
def test_an_encoder_alone_is_computed_again_in_another_thread_after_the_context(*, is_attached_first: bool) -> None:
    """Its forward pass is none of the whole model's, and checkpointing may be switched on before or after."""
    torch.manual_seed(0)
    sizes = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2, vocab_size=16, decoder_start_token_id=0)
    host = Host(T5ForConditionalGeneration(sizes))
    inside = [site.name for site in host.sites if site.name.startswith("encoder")]
    prefix = Prefix.random(host, positions=3, seed=1, scale=1.0).select(inside)

    def gradients(*, again: bool) -> list[Tensor]:
        live = {
            site: SiteTensors(x.keys.clone().requires_grad_(), x.values.clone().requires_grad_())
            for site, x in host.resident(prefix).items()
        }
        contexts = [attached(host, live), checkpointed(host.model) if again else nullcontext()]
        with contexts[not is_attached_first], contexts[is_attached_first]:
            loss = host.model.get_encoder()(input_ids=IDS % 16).last_hidden_state.square().sum()
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
        return [part.grad for x in live.values() for part in (x.keys, x.values) if part.grad is not None]

    wanted = gradients(again=False)
    assert len(wanted) == 4
    for part, found in zip(wanted, gradients(again=True), strict=True):
        assert torch.equal(part, found)
