"""The families of the conformance matrix, each built from a small configuration with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers as t

VOCABULARY = 97
_PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
_GROUPED = {**_PLAIN, "num_key_value_heads": 2}
_LATENT = {
    **_PLAIN,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "topk_group": 1,
}
_SEQUENCE = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
_SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
_EXPERTS = {"num_experts_per_tok": 1}
_WINDOW = {"sliding_window": 6}

BUILDERS: Mapping[str, Callable[[], Any]] = {
    "gpt2": lambda: t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    ),
    "gpt_neo": lambda: t.GPTNeoForCausalLM(
        t.GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            attention_types=[[["global", "local"], 1]],
            window_size=6,
            max_position_embeddings=128,
        )
    ),
    "gptj": lambda: t.GPTJForCausalLM(
        t.GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_positions=128)
    ),
    "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**_PLAIN)),
    "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**_GROUPED)),
    "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**_GROUPED, **_WINDOW)),
    "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**_GROUPED, num_local_experts=2)),
    "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**_GROUPED)),
    "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**_GROUPED, head_dim=8)),
    "qwen3_moe": lambda: t.Qwen3MoeForCausalLM(
        t.Qwen3MoeConfig(**_GROUPED, **_EXPERTS, head_dim=8, num_experts=2, moe_intermediate_size=32)
    ),
    "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**_GROUPED, **_WINDOW, head_dim=8)),
    "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**_GROUPED, **_WINDOW, head_dim=8)),
    "gpt_oss": lambda: t.GptOssForCausalLM(
        t.GptOssConfig(**_GROUPED, **_WINDOW, **_EXPERTS, head_dim=8, num_local_experts=2)
    ),
    "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**_GROUPED, pad_token_id=0)),
    "falcon": lambda: t.FalconForCausalLM(t.FalconConfig(vocab_size=VOCABULARY, **_SMALL)),
    "falcon-new": lambda: t.FalconForCausalLM(
        t.FalconConfig(vocab_size=VOCABULARY, **_SMALL, new_decoder_architecture=True, num_kv_heads=2)
    ),
    "falcon-alibi": lambda: t.FalconForCausalLM(t.FalconConfig(vocab_size=VOCABULARY, **_SMALL, alibi=True)),
    "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)),
    "opt": lambda: t.OPTForCausalLM(
        t.OPTConfig(vocab_size=VOCABULARY, **_SMALL, ffn_dim=64, max_position_embeddings=128, word_embed_proj_dim=32)
    ),
    "mpt": lambda: t.MptForCausalLM(
        t.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=128)
    ),
    "olmo2": lambda: t.Olmo2ForCausalLM(t.Olmo2Config(**_GROUPED)),
    "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**_GROUPED)),
    "stablelm": lambda: t.StableLmForCausalLM(t.StableLmConfig(**_GROUPED)),
    "starcoder2": lambda: t.Starcoder2ForCausalLM(t.Starcoder2Config(**_GROUPED, **_WINDOW)),
    "deepseek_v2": lambda: t.DeepseekV2ForCausalLM(
        t.DeepseekV2Config(**_LATENT, **_EXPERTS, head_dim=8, n_routed_experts=2, n_group=1)
    ),
    "deepseek_v3": lambda: t.DeepseekV3ForCausalLM(
        t.DeepseekV3Config(**_LATENT, num_experts_per_tok=2, n_routed_experts=4, n_group=2)
    ),
    "codegen": lambda: t.CodeGenForCausalLM(
        t.CodeGenConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, n_ctx=128, rotary_dim=4)
    ),
    "xglm": lambda: t.XGLMForCausalLM(
        t.XGLMConfig(
            vocab_size=VOCABULARY,
            d_model=32,
            ffn_dim=64,
            num_layers=2,
            attention_heads=4,
            max_position_embeddings=128,
            init_std=0.02,
        )
    ),
    "openai-gpt": lambda: t.OpenAIGPTLMHeadModel(
        t.OpenAIGPTConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    ),
    "gpt_neox_japanese": lambda: t.GPTNeoXJapaneseForCausalLM(
        t.GPTNeoXJapaneseConfig(
            vocab_size=VOCABULARY, **_SMALL, intermediate_multiple_size=2, max_position_embeddings=128
        )
    ),
    "imagegpt": lambda: t.ImageGPTForCausalImageModeling(
        t.ImageGPTConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    ),
    "imagegpt-upcast": lambda: t.ImageGPTForCausalImageModeling(
        t.ImageGPTConfig(
            vocab_size=VOCABULARY,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            scale_attn_by_inverse_layer_idx=True,
            reorder_and_upcast_attn=True,
        )
    ),
    "bert": lambda: t.BertModel(t.BertConfig(**_PLAIN)),
    "roberta": lambda: t.RobertaModel(t.RobertaConfig(**_PLAIN)),
    "distilbert": lambda: t.DistilBertModel(
        t.DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=128
        )
    ),
    "electra": lambda: t.ElectraModel(t.ElectraConfig(**_PLAIN, embedding_size=32)),
    "albert": lambda: t.AlbertModel(t.AlbertConfig(**_PLAIN, embedding_size=16)),
    "deberta": lambda: t.DebertaModel(t.DebertaConfig(**_PLAIN, relative_attention=True, pos_att_type=["c2p", "p2c"])),
    "deberta_v2": lambda: t.DebertaV2Model(
        t.DebertaV2Config(**_PLAIN, relative_attention=True, pos_att_type=["c2p", "p2c"])
    ),
    "mpnet": lambda: t.MPNetModel(t.MPNetConfig(**_PLAIN)),
    "roformer": lambda: t.RoFormerModel(t.RoFormerConfig(**_PLAIN, embedding_size=32)),
    "rembert": lambda: t.RemBertModel(t.RemBertConfig(**_PLAIN, input_embedding_size=16)),
    "megatron_bert": lambda: t.MegatronBertModel(t.MegatronBertConfig(**_PLAIN)),
    "convbert": lambda: t.ConvBertModel(t.ConvBertConfig(**_PLAIN, embedding_size=16, conv_kernel_size=3)),
    "xlm": lambda: t.XLMModel(
        t.XLMConfig(vocab_size=VOCABULARY, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=128)
    ),
    "flaubert": lambda: t.FlaubertModel(
        t.FlaubertConfig(vocab_size=VOCABULARY, emb_dim=32, n_layers=2, n_heads=4, max_position_embeddings=128)
    ),
    "modernbert": lambda: t.ModernBertModel(
        t.ModernBertConfig(
            **_PLAIN,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
            local_attention=6,
            global_attn_every_n_layers=2,
        )
    ),
    "t5": lambda: t.T5ForConditionalGeneration(
        t.T5Config(
            vocab_size=VOCABULARY, d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=64, decoder_start_token_id=0
        )
    ),
    "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**_SEQUENCE, max_position_embeddings=128)),
    "mbart": lambda: t.MBartForConditionalGeneration(t.MBartConfig(**_SEQUENCE, max_position_embeddings=128)),
    "whisper": lambda: t.WhisperForConditionalGeneration(
        t.WhisperConfig(
            **_SEQUENCE,
            max_source_positions=12,
            max_target_positions=64,
            num_mel_bins=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    ),
    "vit": lambda: t.ViTModel(t.ViTConfig(**_SMALL, intermediate_size=64, image_size=16, patch_size=8)),
    "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**_SMALL, image_size=14, patch_size=7)),
    "dinov3": lambda: t.DINOv3ViTModel(
        t.DINOv3ViTConfig(
            **_SMALL,
            intermediate_size=64,
            image_size=16,
            patch_size=8,
            num_register_tokens=2,
            pos_embed_rescale=None,  # places that are drawn anew in training
        )
    ),
    "clip": lambda: t.CLIPModel(
        t.CLIPConfig(
            text_config={**_SMALL, "vocab_size": VOCABULARY, "intermediate_size": 64, "eos_token_id": 2},
            vision_config={**_SMALL, "intermediate_size": 64, "image_size": 16, "patch_size": 8},
            projection_dim=16,
        )
    ),
}

UNCHECKPOINTED_FAMILIES = ("albert", "mpnet", "openai-gpt", "gpt_neox_japanese", "xlm", "flaubert")
UNCHECKPOINTED = "transformers refuses activation checkpointing for this family"
# Why a cell does not apply: the bare model itself cannot do it, or the thing does not exist for the family.
NOT_APPLICABLE: Mapping[tuple[str, str], str] = {
    **{(family, "checkpointing"): UNCHECKPOINTED for family in UNCHECKPOINTED_FAMILIES},
    ("openai-gpt", "chunked prefill"): "the bare model keeps no cache",
    ("gpt_neo", "static cache"): "the bare model goes wrong: its local layers count their window from the cache's end",
    **{
        (family, "static cache"): "the bare model goes wrong: its causal mask counts from the cache's end"
        for family in ("imagegpt", "imagegpt-upcast")
    },
    ("convbert", "right padding"): "the bare model's convolutions read the padding",
    ("falcon-alibi", "static cache"): "the bare model fails with a static cache",
}
_TEXT_ENCODERS = (
    *("bert", "roberta", "distilbert", "electra", "albert", "deberta", "deberta_v2", "mpnet", "roformer", "rembert"),
    *("megatron_bert", "convbert", "xlm", "flaubert", "modernbert"),
)
ENCODERS = (*_TEXT_ENCODERS, "vit", "dinov2", "dinov3", "clip")
SEQUENCE = ("t5", "bart", "mbart", "whisper")
CAUSAL = tuple(name for name in BUILDERS if name not in (*ENCODERS, *SEQUENCE))
WINDOWED = ("mistral", "starcoder2", "gemma2", "gemma3", "gpt_oss", "gpt_neo")
MIXED_EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss", "deepseek_v2", "deepseek_v3")


def built(family: str) -> Any:
    """The family's small model with seeded weights, in evaluation mode, dropout off.

    Matrices are five times as large as the families draw them, so that attention is far from uniform, generated
    tokens vary, and a wrong key, mask or position shows.
    """
    torch.manual_seed(0)
    model = BUILDERS[family]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(5)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in name or "layerdrop" in name or name.endswith("pdrop")):
                setattr(module, name, 0.0)
    return model


_NO_GENERATION = ("generation", "cache", "chunked prefill", "static cache", "beam search")
_PICTURES = ("vit", "dinov2", "dinov3")
# Positions are learned and counted from the left edge of the row, padding included: padding at the left moves a row
# in the bare model, too.
_FROM_THE_LEFT_EDGE = (*(name for name in _TEXT_ENCODERS if name != "modernbert"), "clip", "bart", "mbart")


def not_applicable(family: str, column: str) -> str | None:
    """Why this cell does not exist; None for one that must be right."""
    stated = NOT_APPLICABLE.get((family, column))
    if stated is not None:
        return stated
    if family in ENCODERS and column in _NO_GENERATION:
        return "an encoder does not generate"
    if family not in CAUSAL and column == "baked text":
        return "a text's keys depend on what follows it in an encoder"
    if family in (*_PICTURES, "whisper") and column.endswith("padding"):
        return "reads pictures or audio of one size: nothing is padded"
    if family in _FROM_THE_LEFT_EDGE and column == "left padding":
        return "the bare model counts positions from the left edge, padding included"
    return None
