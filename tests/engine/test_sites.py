"""Where attention happens is found by running the model, and what cannot carry a prefix is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.engine.sites import Site, probed
from foreword.errors import HostError, PrefixError
from foreword.prefix import Prefix

# name of the first site, query heads, key heads, dim: read off the configurations in tests/conftest.py
EXPECTED = {
    "bert": ("encoder.layer.0.attention.self", 4, 4, 8),
    "roberta": ("encoder.layer.0.attention.self", 4, 4, 8),
    "distilbert": ("transformer.layer.0.attention", 4, 4, 8),
    "gpt2": ("h.0.attn", 4, 4, 8),
    "llama": ("layers.0.self_attn", 4, 2, 8),
    "qwen2": ("layers.0.self_attn", 4, 2, 8),
    "qwen3": ("layers.0.self_attn", 4, 2, 16),
    "mistral": ("layers.0.self_attn", 4, 2, 8),
}


def test_every_layer_is_found_in_order_with_its_shapes(host: Host) -> None:
    name, heads, kv_heads, dim = EXPECTED[host.family]
    assert host.sites == tuple(
        Site(name.replace("0", str(layer)), layer, "self", heads, kv_heads, dim, dim, causal=host.role == "causal")
        for layer in range(2)
    )
    assert [type(host.module(site.name)).__name__.lower().count("attention") for site in host.sites] == [1, 1]


@pytest.mark.parametrize("family", EXPECTED)
def test_eager_and_sdpa_have_the_same_sites(shared_host: Callable[[str], Host], load_host: Any, family: str) -> None:
    eager = load_host(family)
    eager.model.set_attn_implementation("eager")
    assert probed(eager.backbone).sites == shared_host(family).sites


def test_a_model_with_and_without_its_head_has_the_same_sites(causal: Host) -> None:
    assert Host(causal.backbone, causal.tokenizer).sites == causal.sites


def test_a_real_encoder_has_a_site_in_each_layer(minilm: Host) -> None:
    assert [site.name for site in minilm.sites] == [f"encoder.layer.{n}.attention.self" for n in range(6)]
    assert {(x.heads, x.kv_heads, x.key_dim, x.value_dim, x.causal) for x in minilm.sites} == {(12, 12, 32, 32, False)}


def test_probing_leaves_mode_and_weights_alone(load_host: Callable[[str], Host]) -> None:
    host = load_host("gpt2")
    before = host.measure_fingerprint()
    for training in (True, False):
        host.backbone.train(training)
        probed(host.backbone)
        assert host.backbone.training is training
    assert host.measure_fingerprint() == before


def test_a_site_is_named_from_the_innermost_model_that_reads_pictures() -> None:
    """DINOv3's own base model is the stack of its layers, which reads hidden states."""
    import transformers

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.DINOv3ViTConfig(**sizes, image_size=8, patch_size=4)
    host = Host(transformers.DINOv3ViTModel(config))
    assert host.backbone is host.model
    assert [site.name for site in host.sites] == ["model.layer.0.attention"]


def test_an_unknown_site_is_refused(host: Host) -> None:
    with pytest.raises(PrefixError, match=r"layer\.99"):
        host.module("layer.99")


def tiny(name: str, **more: Any) -> nn.Module:
    import transformers

    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(**sizes, intermediate_size=32, **more)
    model: nn.Module = getattr(transformers, f"{name}Model")(config)
    return model


def test_a_family_that_does_not_use_the_attention_interface_is_refused() -> None:
    """FNet mixes tokens by Fourier transforms: it has no attention at all."""
    with pytest.raises(HostError, match="a prefix would have no effect"):
        probed(tiny("FNet"))


def test_a_class_of_a_listed_name_in_another_family_is_not_taken_for_it() -> None:
    """FSMT's attention has the name of OpenAI GPT's, and is another one."""
    import transformers

    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "src_vocab_size": 50, "tgt_vocab_size": 50}
    config = transformers.FSMTConfig(langs=["en", "de"], **sizes, **heads)
    with pytest.raises(HostError, match="a prefix would have no effect"):
        Host(transformers.FSMTModel(config))


def test_heads_that_mix_their_scores_are_refused() -> None:
    """DeBERTa's talking heads: no prefix can be merged into weights of which each is of several heads' scores."""
    with pytest.raises(HostError, match="a prefix would have no effect"):
        Host(tiny("Deberta", talking_head=True))


def test_layers_that_share_their_attention_have_a_site_for_each_call() -> None:
    host = Host(tiny("Albert", embedding_size=16))
    path = "encoder.albert_layer_groups.0.albert_layers.0.attention"
    assert [site.name for site in host.sites] == [path, f"{path}#2"]
    assert host.module(f"{path}#2") is host.module(path)


def test_a_cross_attention_is_told_from_a_self_attention() -> None:
    import transformers

    sizes = {"vocab_size": 50, "d_model": 16, "num_heads": 2, "d_kv": 8, "d_ff": 32, "num_layers": 1}
    model = transformers.T5Model(transformers.T5Config(**sizes, decoder_start_token_id=0))
    assert [(site.name.partition(".")[0], site.role) for site in probed(model).sites] == [
        ("encoder", "self"),
        ("decoder", "self"),
        ("decoder", "cross"),
    ]


def test_a_cross_attention_that_is_watched_is_told_from_a_self_attention() -> None:
    import transformers

    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    part = transformers.RemBertConfig(**sizes, intermediate_size=32, input_embedding_size=16, pad_token_id=0)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(part, part)
    model = transformers.EncoderDecoderModel(config)
    assert [(site.name.partition(".")[0], site.role) for site in probed(model).sites] == [
        ("encoder", "self"),
        ("decoder", "self"),
        ("decoder", "cross"),
    ]


class NotText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels


def test_a_model_that_does_not_read_text_is_refused_and_left_in_its_mode() -> None:
    model = NotText().train()
    with pytest.raises(HostError, match="could not be probed"):
        probed(model)
    assert model.training


def sound_model(name: str) -> tuple[Any, torch.Tensor]:
    """A small model that reads sound, with three inputs: of samples, or of a spectrogram's frames."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    draw = torch.Generator().manual_seed(0)
    if name == "spectrogram":
        config = transformers.ASTConfig(**sizes, max_length=40, num_mel_bins=32, patch_size=16)
        return transformers.ASTModel(config).eval(), torch.randn(3, 40, 32, generator=draw)
    layers = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    places = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
    config = transformers.Wav2Vec2Config(**sizes, **layers, **places)
    return transformers.Wav2Vec2Model(config).eval(), torch.randn(3, 400, generator=draw)


@pytest.mark.parametrize("name", ["samples", "spectrogram"])
def test_a_model_of_sound_carries_prefixes_row_by_row(name: str) -> None:
    torch.manual_seed(0)
    model, sound = sound_model(name)
    host = Host(model)
    assert [site.role for site in host.sites] == ["self", "self"]
    prefixes = [Prefix.random(host, positions=count, seed=count) for count in (2, 3)]
    with torch.no_grad():
        bare = model(sound)[0]
        with attached(host, prefixes, rows=[0, None, 1]):
            mixed = model(sound)[0]
        assert torch.equal(mixed[1], bare[1])
        with attached(host, prefixes[1]):
            torch.testing.assert_close(mixed[2:], model(sound[2:])[0], rtol=0, atol=1e-5)
    assert (mixed[0] - bare[0]).abs().max() > 1e-4


def test_a_vocabulary_too_small_to_probe_with_is_refused() -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=2, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=1)
    with pytest.raises(HostError, match="could not be probed"):
        probed(transformers.GPT2Model(config))


def read_states(found: Any) -> torch.Tensor:
    states: torch.Tensor = found.last_hidden_state
    return states


@pytest.mark.parametrize("name", ["videos", "samples behind other convolutions"])
def test_a_model_of_other_inputs_is_probed_with_those_that_are_given(name: str) -> None:
    """Without them it is refused with what to give; with them it carries prefixes row by row."""
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    inputs: dict[str, torch.Tensor]
    if name == "videos":
        config = transformers.VideoMAEConfig(**sizes, num_hidden_layers=2, image_size=16, patch_size=8, num_frames=4)
        model, inputs = transformers.VideoMAEModel(config), {"pixel_values": torch.randn(2, 4, 3, 16, 16)}
    else:
        layers = {f"{part}_num_{what}": 2 for part in ("encoder", "decoder") for what in ("hidden_layers",)}
        heads = {f"{part}_num_attention_heads": 4 for part in ("encoder", "decoder")}
        config = transformers.MoonshineConfig(vocab_size=50, hidden_size=32, intermediate_size=64, **layers, **heads)
        model = transformers.MoonshineModel(config)
        inputs = {"input_values": torch.randn(2, 2500), "decoder_input_ids": torch.tensor([[1, 5], [1, 7]])}
    with pytest.raises(HostError, match=r"Host\(model, probe=inputs\)"):
        Host(model)
    host = Host(model, probe={name: part[:1] for name, part in inputs.items()})
    prefixes = [Prefix.random(host, positions=count, seed=count) for count in (2, 3)]
    with torch.no_grad():
        bare = read_states(model(**inputs))
        with attached(host, prefixes, rows=[None, 1]):
            mixed = read_states(model(**inputs))
        assert torch.equal(mixed[0], bare[0])
        with attached(host, prefixes[1]):
            alone = read_states(model(**{name: part[1:] for name, part in inputs.items()}))
    torch.testing.assert_close(mixed[1:], alone, rtol=0, atol=1e-5)
    assert (mixed[1] - bare[1]).abs().max() > 1e-4


def test_a_model_that_can_do_without_pictures_is_probed_with_text_alone() -> None:
    import transformers

    text = {"model_type": "llama", "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
    text |= {"num_attention_heads": 2, "intermediate_size": 32}
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    config = transformers.Idefics3Config(text_config=text, vision_config=vision, image_token_id=49)
    host = Host(transformers.Idefics3ForConditionalGeneration(config))
    assert [site.name for site in host.sites] == [f"text_model.layers.{n}.self_attn" for n in range(2)]
