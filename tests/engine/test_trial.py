"""An untried family carries a prefix only when it reads one as it reads a text; every family of the table does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as t
from tests.conformance.families import BUILDERS, VOCABULARY
from tests.conformance.subject import assert_close, subject
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from foreword.engine import trial
from foreword.engine.attach import attached
from foreword.engine.families import CONFORMING
from foreword.engine.host import Host
from foreword.engine.sites import PROBE_DECODER_TOKENS, PROBE_TOKENS
from foreword.engine.trial import is_known, try_family
from foreword.errors import HostError
from foreword.prefix import Prefix

HEADS, DIM = 4, 8
WIDTH = HEADS * DIM


class ToyConfig(PreTrainedConfig):  # type: ignore[misc]
    model_type = "foreword-toy"


def eager_attention_forward(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """The toy's own eager attention, with what its kind does to scores and weights."""
    scores = scaling * query @ key.transpose(-1, -2)
    if module.kind == "alibi in the function":
        scores = scores + 0.3 * torch.arange(key.shape[2])
    if module.kind == "scores to the third":
        scores = scores**3
    scores = scores if attention_mask is None else scores + attention_mask
    if module.kind == "softmax with one more":
        scores = torch.cat([scores, torch.zeros_like(scores[..., :1])], dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : key.shape[2]]
    if module.kind == "weights by their number":
        weights = weights * key.shape[2] ** 0.5
    if module.kind == "dropout":
        weights = nn.functional.dropout(weights, 0.5, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class ToyAttention(nn.Module):
    """Attention by the interface; `kind` says what it does besides."""

    def __init__(self, config: ToyConfig, kind: str) -> None:
        super().__init__()
        self.config, self.kind, self.is_causal = config, kind, True
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.after = nn.Parameter(torch.ones(WIDTH))

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        query, key, value = (
            part(hidden_states).unflatten(-1, (HEADS, DIM)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        if self.kind == "beside":
            mixed = torch.softmax(query @ key.transpose(-1, -2), dim=-1) @ value
            return self.out(mixed.transpose(1, 2).flatten(2)), None
        function = AttentionInterface().get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, weights = function(self, query, key, value, attention_mask, scaling=DIM**-0.5)
        if self.kind == "twice":
            mixed = mixed + function(self, query, value, key, attention_mask, scaling=DIM**-0.5)[0]
        mixed = mixed.flatten(2)
        if self.kind == "a bias after":
            mixed = mixed + self.after
        if self.kind == "values once more":
            mixed = mixed + value.cumsum(dim=2).transpose(1, 2).flatten(2)
        return self.out(mixed), weights


class ToyModel(PreTrainedModel):  # type: ignore[misc]
    config_class = ToyConfig
    _supports_sdpa = True
    _can_set_attn_implementation = True

    def __init__(self, config: ToyConfig, *kinds: str) -> None:
        super().__init__(config)
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(ToyAttention(config, kind) for kind in kinds)
        self.biased = "alibi in the mask" in kinds

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Tensor) -> Any:
        count = input_ids.shape[1]
        mask = torch.full((count, count), torch.finfo(torch.float32).min).triu(1)[None, None]
        if self.biased:
            mask = mask + 0.3 * torch.arange(count)
        hidden = self.table(input_ids)
        for layer in self.layers:
            hidden = hidden + layer(hidden, attention_mask=mask)[0].view_as(hidden)
        return SimpleNamespace(last_hidden_state=hidden)


def toy(*kinds: str, implementation: str = "eager") -> Host:
    torch.manual_seed(0)
    model = ToyModel(ToyConfig(attn_implementation=implementation), *kinds)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2 if weight.dim() > 1 else 1)
    return Host(model)


RIGHT = (
    "plain",
    "a bias after",
    "softmax with one more",
    "scores to the third",
    "weights by their number",
    "twice",
    "dropout",
)
WRONG = {
    "alibi in the function": r"layers\.1",
    "alibi in the mask": r"layers\.0",
    "values once more": r"layers\.1",
    "beside": r"fails at layers\.1.*\n.*\n.*not on transformers' interface",
}


@pytest.mark.parametrize("kind", RIGHT)
def test_an_unknown_family_that_reads_a_prefix_as_a_text_is_accepted(kind: str) -> None:
    """And it computes with the first tokens as a prefix what it computes with them in the input."""
    for implementation in ("sdpa", "eager"):
        if implementation == "sdpa" and kind in RIGHT[2:]:
            continue  # what these do is in the eager function
        host = toy("plain", kind, implementation=implementation)
        with attached(host, Prefix.random(host, positions=3)):
            assert host.model(torch.tensor([[3, 4]])).last_hidden_state.isfinite().all()
        # One layer, so that the text's keys and values are its embeddings' projections.
        one = toy(kind, implementation=implementation)
        ids, layer = torch.tensor([[5, 9, 31, 2]]), one.backbone.layers[0]  # type: ignore[union-attr,index]
        with torch.no_grad():
            text = one.backbone.table(ids[0, :2])  # type: ignore[union-attr,operator]
            keys, values = (p(text).unflatten(-1, (HEADS, DIM)).transpose(0, 1) for p in (layer.key, layer.value))
            wanted = one.model(ids).last_hidden_state[:, 2:]
            arrays = {"layers.0": (keys.numpy(), values.numpy()), "layers.0#2": (values.numpy(), keys.numpy())}
            with attached(one, Prefix.from_arrays({site.name: arrays[site.name] for site in one.sites})):
                found = one.model(ids[:, 2:]).last_hidden_state
        assert_close(found, wanted, 1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", WRONG)
def test_an_unknown_family_that_does_not_is_refused_with_the_site_and_left_as_it_was(kind: str) -> None:
    host = toy("plain", kind)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = host.model(ids).last_hidden_state
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in host.model.modules()]
    for _ in range(2):  # the refusal is no state that a second try gets past
        with pytest.raises(HostError, match=WRONG[kind]), attached(host, Prefix.random(host, positions=3)):
            pass
    with torch.no_grad():
        assert torch.equal(host.model(ids).last_hidden_state, before)
    assert hooks == [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in host.model.modules()]


@pytest.mark.parametrize("window", [2, 3, 4, 9])
@pytest.mark.parametrize("family", ["Cohere2", "Olmo3"])
def test_an_unknown_family_is_tried_within_its_sliding_window(family: str, window: int) -> None:
    """Behind the window the bare model forgets a text; within it there is no difference, whatever its size."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(t, f"{family}Config")(intermediate_size=64, sliding_window=window, **sizes, **ids)
    model = getattr(t, f"{family}Model")(config).eval()
    assert not is_known(model)
    host = Host(model)
    with attached(host, Prefix.random(host, positions=3)):
        assert model(torch.arange(1, 8)[None]).last_hidden_state.isfinite().all()


def test_windows_of_a_fixed_size_are_refused_as_such_and_not_for_their_padding() -> None:
    """Swin's masks and biases are those of whole windows: half of one cannot stand for a text."""
    from transformers import SwinConfig, SwinModel

    sizes: dict[str, Any] = {"depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
    host = Host(SwinModel(SwinConfig(image_size=32, patch_size=2, embed_dim=16, **sizes)).eval())
    with (
        pytest.raises(
            HostError, match=r"has not been shown to read a prefix as it reads a text: it fails at encoder\.layers"
        ),
        attached(host, Prefix.random(host, positions=3)),
    ):
        pass


def test_a_family_that_ignores_the_interface_everywhere_is_refused_when_the_host_is_made() -> None:
    with pytest.raises(HostError, match="a prefix would have no effect"):
        toy("beside", "beside")


def test_a_family_is_tried_once_and_again_when_a_module_was_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    original: Callable[..., None] = try_family
    monkeypatch.setattr("foreword.engine.host.try_family", lambda *a: (tried.append(1), original(*a)))
    host = toy("plain", "plain")
    assert not tried
    for seed in range(3):
        with attached(host, Prefix.random(host, positions=3, seed=seed)):
            pass
    assert len(tried) == 1
    layers: Any = host.backbone.layers
    wrong = ToyAttention(host.model.config, "values once more")
    layers[0] = wrong
    with pytest.raises(HostError, match=r"layers\.0"), attached(host, Prefix.random(host, positions=3)):
        pass
    with attached(subject("llama").host, subject("llama").prefix):
        pass
    assert len(tried) == 2


@pytest.mark.parametrize("family", BUILDERS)
def test_every_family_of_the_table_is_known_and_passes_the_trial_all_the_same(family: str) -> None:
    host = subject(family).host
    assert is_known(host.model)
    for dtype in (torch.float32, torch.bfloat16):
        copied = Host(copy.deepcopy(host.model).to(dtype))
        try_family(copied.backbone, copied.layout)
    if not host.layout.watched:
        assert trial._record(host.backbone, host.layout).seen


@pytest.mark.parametrize("heads", [PROBE_TOKENS, PROBE_DECODER_TOKENS])
def test_as_many_heads_as_tokens_of_the_trial_are_not_taken_for_tokens(heads: int) -> None:
    """MT5 hands a position bias over, `(1, head, query, key)`."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_layers": 2, "num_heads": heads, "d_kv": 8, "d_ff": 32}
    host = Host(t.MT5ForConditionalGeneration(t.MT5Config(vocab_size=VOCABULARY, **sizes)))
    assert not is_known(host.model)
    with attached(host, Prefix.random(host, positions=3)):
        pass


def test_the_known_families_are_those_of_the_table() -> None:
    assert {subject(family).host.family for family in BUILDERS} == CONFORMING
