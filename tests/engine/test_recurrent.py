"""MiniMax: layers that keep a recurrent state beside layers that attend, so a prefix is in the latter alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import MiniMaxConfig, MiniMaxForCausalLM

from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.errors import AttachError
from foreword.prefix import Prefix

ALONE = torch.tensor([[11, 12, 13, 14]])
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [0, 0, 11, 12, 13, 14]])
MASK = (IDS != 0).long()


@pytest.fixture(scope="module")
def host() -> Host:
    torch.manual_seed(0)
    sizes = MiniMaxConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=32, num_local_experts=2, num_experts_per_tok=1, layer_types=["linear_attention", "full_attention"],
        block_size=4, head_dim=8, pad_token_id=0,
    )  # fmt: skip
    return Host(MiniMaxForCausalLM(sizes))


def tokens(host: Host, ids: Tensor, mask: Tensor, *, use_cache: bool) -> list[list[int]]:
    with torch.no_grad():
        found = host.model.generate(
            ids, attention_mask=mask, max_new_tokens=4, do_sample=False, use_cache=use_cache, eos_token_id=None
        )
    listed: list[list[int]] = found[:, ids.shape[1] :].tolist()
    return listed


def test_a_row_padded_at_the_left_gives_what_it_gives_alone_or_is_refused(host: Host) -> None:
    """Going on from the cache, MiniMax makes a mask of one column, so the bare model reads the padding, too."""
    with attached(host, Prefix.random(host, positions=3, seed=1, scale=1.0)):
        alone = tokens(host, ALONE, torch.ones_like(ALONE), use_cache=True)[0]
        assert tokens(host, IDS, MASK, use_cache=False)[1] == alone
        with pytest.raises(AttachError, match="which of its keys are padding"):
            tokens(host, IDS, MASK, use_cache=True)
