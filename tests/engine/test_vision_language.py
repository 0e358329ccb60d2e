"""Models that read images and text: the language model carries a prefix; a baked text is the text in the prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

import foreword as fw

TEXT: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def _llava() -> Any:
    vision, text = transformers.CLIPVisionConfig(**VISION), transformers.LlamaConfig(**TEXT)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=98)
    return transformers.LlavaForConditionalGeneration(config)


def _qwen2_vl() -> Any:
    rope = {"type": "mrope", "mrope_section": [1, 1, 2], "rope_type": "default"}
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8}
    tokens = dict(zip(("image_token_id", "video_token_id", "vision_start_token_id"), (98, 97, 96), strict=True))
    text = {**TEXT, "rope_scaling": rope}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, vision_end_token_id=95, **tokens)
    return transformers.Qwen2VLForConditionalGeneration(config)


def _gemma3() -> Any:
    text = {**TEXT, "head_dim": 8, "sliding_window": 16}
    tokens = {"image_token_id": 98, "boi_token_id": 97, "eoi_token_id": 96}
    config = transformers.Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=4, **tokens)
    return transformers.Gemma3ForConditionalGeneration(config)


def _internvl() -> Any:
    vision = {**VISION, "image_size": [16, 16], "patch_size": [8, 8]}
    config = transformers.InternVLConfig(
        text_config=transformers.Qwen2Config(**TEXT), vision_config=vision, image_token_id=98
    )
    return transformers.InternVLForConditionalGeneration(config)


@pytest.mark.parametrize("make", [_llava, _qwen2_vl, _gemma3, _internvl])
def test_a_baked_text_is_the_text_in_the_prompt_and_generation_is_forward(make: Callable[[], Any]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    host = fw.Host(model)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        whole, plain = model(input_ids=ids).logits[:, 3:], model(input_ids=ids[:, 3:]).logits
        with fw.attached(host, fw.bake(host, ids[0, :3])):
            behind = model(input_ids=ids[:, 3:]).logits
        with fw.attached(host, fw.Prefix.random(host, positions=4, seed=0)):
            written = model.generate(input_ids=ids, max_new_tokens=4, do_sample=False, eos_token_id=None)
            again = ids
            for _ in range(4):
                again = torch.cat([again, model(input_ids=again).logits[:, -1:].argmax(-1)], dim=1)
        left = model(input_ids=ids[:, 3:]).logits
    torch.testing.assert_close(behind, whole, rtol=1e-5, atol=1e-5)
    assert (behind - plain).abs().max() > 1e-2
    assert torch.equal(written, again)
    assert torch.equal(left, plain)


def test_a_host_that_was_probed_with_a_picture_bakes_text() -> None:
    """The language model's sites alone are reached; the picture's were looked up, and missed."""
    torch.manual_seed(0)
    model = _llava().eval()
    ids = torch.tensor([[5, 98, 98, 98, 98, 6, 7]])
    host = fw.Host(model, probe={"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16)})
    baked = fw.bake(host, torch.tensor([5, 6, 7]))
    assert 0 < len(baked.sites) < len(host.sites)
    text = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        whole = model(input_ids=text).logits[:, 3:]
        with fw.attached(host, baked):
            behind = model(input_ids=text[:, 3:]).logits
    torch.testing.assert_close(behind, whole, rtol=1e-5, atol=1e-5)


def test_a_language_model_behind_others_is_told_its_positions_on_left_padded_rows() -> None:
    """InstructBLIP takes no position ids itself: a left-padded row was off by a quarter of the output."""
    torch.manual_seed(0)
    former = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.InstructBlipConfig(
        vision_config={**VISION},
        qformer_config={**former, "intermediate_size": 64, "encoder_hidden_size": 32},
        text_config={**TEXT, "model_type": "llama"},
        num_query_tokens=4,
        image_token_index=98,
    )
    model = transformers.InstructBlipForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    inputs = {
        "pixel_values": torch.randn(1, 3, 16, 16),
        "input_ids": torch.tensor([[98, 98, 98, 98, 5, 6, 7, 8]]),
        "qformer_input_ids": torch.tensor([[5, 6, 7]]),
    }
    host = fw.Host(model, probe=inputs)
    pad = torch.zeros(1, 2, dtype=torch.long)
    padded = {**inputs, "input_ids": torch.cat([pad, inputs["input_ids"]], dim=1)}
    padded["attention_mask"] = torch.cat([pad, torch.ones(1, 8, dtype=torch.long)], dim=1)
    with torch.no_grad(), fw.attached(host, fw.Prefix.random(host, positions=3, seed=0, scale=1.0)):
        alone, row = model(**inputs).logits, model(**padded).logits[:, -8:]
    torch.testing.assert_close(row, alone, rtol=1e-4, atol=1e-4)
