"""Models that read pictures among their tokens work out positions by themselves; a prefix goes by those."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.host import Host
from foreword.prefix import Prefix

PICTURE, VIDEO, BEGIN, END = 40, 41, 42, 43
TEXT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
# A picture of four by four patches is four tokens, which stand in a square: two of them at each height and width.
IDS = torch.tensor([[5, 6, BEGIN, PICTURE, PICTURE, PICTURE, PICTURE, END, 7, 8]])


@cache
def qwen(name: str) -> Host:
    """A small model with matrices so large that a wrong position shows."""
    torch.manual_seed(0)
    turning = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision: dict[str, Any] = {"depth": 1, "hidden_size": 32, "num_heads": 4, "patch_size": 4, "temporal_patch_size": 2}
    if name == "Qwen2VL":
        vision |= {"embed_dim": 32, "mlp_ratio": 2}
    else:
        vision |= {"out_hidden_size": 32, "intermediate_size": 64, "fullatt_block_indexes": [0], "window_size": 16}
    tokens = {"image_token_id": PICTURE, "video_token_id": VIDEO}
    tokens |= {"vision_start_token_id": BEGIN, "vision_end_token_id": END}
    text = {**TEXT, "num_key_value_heads": 2, "rope_parameters": turning}
    config = getattr(t, f"{name}Config")(text_config=text, vision_config=vision, **tokens)
    model = getattr(t, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(5)
    return Host(model)


def logits(host: Host, ids: Tensor, mask: Tensor | None = None) -> Tensor:
    """Of rows that have the same picture."""
    pixels = torch.randn(16, 96, generator=torch.Generator().manual_seed(0)).repeat(len(ids), 1)
    grid, kinds = torch.tensor([[1, 4, 4]]).repeat(len(ids), 1), (ids == PICTURE).long()
    with torch.no_grad():
        found = host.model(ids, attention_mask=mask, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds)
    out: Tensor = found.logits
    return out


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5_VL"])
def test_a_text_baked_before_a_picture_is_the_text_in_the_prompt(name: str) -> None:
    host, text = qwen(name), torch.tensor([[11, 12, 13]])
    wanted = logits(host, torch.cat([text, IDS], dim=1))[:, 3:]
    with attached(host, bake(host, text[0].tolist())):
        assert_close(logits(host, IDS), wanted)


@pytest.mark.parametrize("name", ["Qwen2VL", "Qwen2_5_VL"])
def test_a_row_with_a_picture_and_padding_gives_what_it_gives_alone(name: str) -> None:
    host, prefix = qwen(name), Prefix.random(qwen(name), positions=5, scale=1.0)
    baked = bake(host, [11, 12])
    padded = torch.nn.functional.pad(IDS, (3, 0))
    full = torch.cat([torch.tensor([[9, 4, 3]]), IDS], dim=1)
    rows, mask = torch.cat([padded, full, padded, padded]), torch.ones(4, padded.shape[1], dtype=torch.long)
    mask[[0, 2, 3], :3] = 0
    bare = logits(host, rows, mask)
    with attached(host, [prefix, baked], rows=[0, 0, None, 1]):
        found = logits(host, rows, mask)
    with attached(host, prefix):
        assert_close(found[0, 3:], logits(host, IDS)[0])
        assert_close(found[1], logits(host, full)[0])
    with attached(host, baked):
        assert_close(found[3, 3:], logits(host, IDS)[0])
    assert torch.equal(found[2], bare[2])


def test_positions_are_counted_from_where_the_model_begins_to_count() -> None:
    """PaliGemma's first token stands at position 1, and keys of a prefix are turned against that."""
    torch.manual_seed(0)
    text = {"model_type": "gemma", **TEXT, "num_key_value_heads": 2, "head_dim": 8}
    vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32}
    vision |= {"num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    config = t.PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=49, projection_dim=32)
    host = Host(t.PaliGemmaForConditionalGeneration(config))
    ids, kinds = torch.tensor([[7, 9, 11, 13]]), torch.zeros(1, 6, dtype=torch.long)
    padded, mask = torch.nn.functional.pad(ids, (2, 0)), torch.tensor([[0, 0, 1, 1, 1, 1]])
    with torch.no_grad(), attached(host, Prefix.random(host, positions=5, scale=3.0)):
        alone = host.model(ids, token_type_ids=kinds[:, 2:]).logits
        found = host.model(padded, attention_mask=mask, token_type_ids=kinds).logits[:, 2:]
    assert_close(found, alone)
