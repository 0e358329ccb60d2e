"""What attaching knows of a model's modules is kept, and noticed when it is no longer so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from tests.conformance.families import BUILDERS
from tests.conformance.subject import subject
from torch import Tensor, nn

from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.errors import AttachError, PrefixError
from foreword.prefix import Prefix

IDS = torch.tensor([[7, 19, 3, 44]])


def output(host: Host, prefix: Prefix | None = None) -> Tensor:
    with torch.no_grad():
        if prefix is None:
            return host.backbone(input_ids=IDS).last_hidden_state  # type: ignore[no-any-return]
        with attached(host, prefix):
            return host.backbone(input_ids=IDS).last_hidden_state  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", BUILDERS)
def test_a_resident_prefix_is_attached_without_a_walk_through_the_modules(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = subject(family)
    layout = one.host.layout
    one.host.resident(one.prefix)

    named_modules = nn.Module.named_modules

    def walk(module: nn.Module, *given: Any, **options: Any) -> Iterator[tuple[str, nn.Module]]:
        for count, found in enumerate(named_modules(module, *given, **options)):
            if count > 4:  # finding the first weight, for device and dtype, takes a few
                raise AssertionError("the modules are walked")
            yield found

    monkeypatch.setattr(nn.Module, "named_modules", walk)
    with attached(one.host, one.prefix):
        pass
    assert one.host.layout is layout


@pytest.mark.parametrize("family", ["gpt2", "bloom", "llama"])
def test_a_replaced_attention_module_or_layer_is_noticed(family: str, load_subject: Callable[[str], Host]) -> None:
    """The copies compute what the originals did, so only one that the carrier does not know changes the output."""
    host = load_subject(family)
    prefix = Prefix.random(host, positions=3, seed=1, scale=1.0)
    wanted, before = output(host, prefix), host.layout
    for path in (host.sites[0].name, host.sites[1].name.rpartition(".")[0]):
        parent, _, name = path.rpartition(".")
        setattr(host.backbone.get_submodule(parent), name, copy.deepcopy(host.backbone.get_submodule(path)))
        assert torch.equal(output(host, prefix), wanted)
        assert host.layout is not before
        before = host.layout


@pytest.fixture
def load_subject() -> Callable[[str], Host]:
    return lambda family: Host(copy.deepcopy(subject(family).model))


def test_updates_that_peft_puts_in_and_takes_out_leave_the_layout_as_it_is(load_host: Callable[[str], Host]) -> None:
    from foreword.tuning.low_rank import Lora

    host = load_host("gpt2")
    prefix = Prefix.random(host, positions=3, seed=1, scale=1.0)
    wanted, before = output(host, prefix), host.layout
    lora = Lora(host, rank=2, seed=0)
    for parameter in lora.parameters().values():
        parameter.data.fill_(0.1)
    assert host.layout is before
    with lora.active():
        adapted, both = output(host), output(host, prefix)
    lora.close()
    assert host.layout is before
    assert torch.equal(output(host, prefix), wanted)
    assert not torch.equal(both, wanted)
    assert not torch.equal(both, adapted)


def test_a_module_that_is_gone_or_not_attention_any_more_is_refused(load_host: Callable[[str], Host]) -> None:
    host = load_host("gpt2")
    prefix = Prefix.random(host, positions=3)
    kept = host.backbone.h[0].attn  # type: ignore[union-attr,index]
    del host.backbone.h[0].attn  # type: ignore[union-attr,index]
    with pytest.raises(PrefixError, match="no such attention site"), attached(host, prefix):
        pass

    class Other(nn.Module):
        def forward(self, hidden: Tensor, **_: object) -> tuple[Tensor, None]:
            return hidden, None

    host.backbone.h[0].attn = Other()  # type: ignore[union-attr,index]
    with pytest.raises(AttachError, match=r"never reached: h\.0\.attn"):
        output(host, prefix)
    host.backbone.h[0].attn = kept  # type: ignore[union-attr,index]
    assert output(host, prefix).isfinite().all()
