"""The keys and values that a host's attention is seen to compute are those that a prefix would need."""

from __future__ import annotations

import torch
import transformers as t

from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.engine.reading import captured


def test_the_keys_of_a_module_that_scales_them_by_itself_are_read_unscaled() -> None:
    """A DeBERTa of one layer that knows no positions: there a text's own keys and values do all that the text does."""
    torch.manual_seed(0)
    config = t.DebertaV2Config(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        pos_att_type=[],
        position_biased_input=False,
    )
    host = Host(t.DebertaV2Model(config))
    with torch.no_grad():
        for weight in host.model.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)
        wanted = host.model(input_ids=torch.tensor([[11, 5, 42, 7, 19]])).last_hidden_state[:, 3:]
        with attached(host, captured(host, [11, 5, 42])):
            found = host.model(input_ids=torch.tensor([[7, 19]])).last_hidden_state
    # 8 products in a row over at most 64 terms, as in the conformance table.
    assert float((found - wanted).abs().max()) <= 8 * 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
