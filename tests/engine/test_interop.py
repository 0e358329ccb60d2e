"""Adapters of PEFT: what is written runs there, and what is read gives the logits that PEFT gives."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conformance.subject import Subject, assert_close, assert_tokens, is_windowed, subject
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PersimmonConfig,
)

from foreword.engine.adapter import CONFIG, WEIGHTS
from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.host import Host
from foreword.engine.interop import (
    encoded_prompt,
    occupying,
    prompt_embeddings,
    read_peft,
    write_peft,
    write_prompt_embeddings,
)
from foreword.engine.rendering import tokens
from foreword.errors import BundleError, PrefixError
from foreword.prefix import Prefix

# PEFT still asks for the old name of activation checkpointing.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

# Families that PEFT's own prefix tuning runs on, with grouped keys and without, rotary and learned positions.
ROTARY = ("gptj", "llama", "qwen2", "qwen3", "phi3", "olmo2", "granite", "stablelm")
RUNNING = ("gpt2", *ROTARY)
SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
IDS = torch.tensor([[7, 19, 3, 44, 50, 8], [9, 9, 61, 5, 23, 12]])


def by_peft(one: Subject, folder: Path) -> Tensor:
    """The logits at the real tokens, by the peer library on a copy of the model."""
    model: Any = peft.PeftModel.from_pretrained(copy.deepcopy(one.model), str(folder)).eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found[:, -IDS.shape[1] :]


def by_us(one: Subject, prefix: Prefix) -> Tensor:
    with torch.no_grad(), attached(one.host, prefix):
        found: Tensor = one.model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


def cached(one: Subject) -> Prefix:
    """The subject's prefix in the form that PEFT can hold: at positions of its own."""
    return Prefix(one.prefix.layers, occupies=one.prefix.positions)


@pytest.mark.parametrize("cartridge", [False, True], ids=["prefix tuning", "cartridge"])
@pytest.mark.parametrize("family", RUNNING)
def test_what_is_written_computes_the_same_in_peft_and_comes_back(family: str, cartridge: bool, tmp_path: Path) -> None:
    one = subject(family)
    write_peft(tmp_path, cached(one), one.host, cartridge=cartridge)
    assert json.loads((tmp_path / CONFIG).read_text())["peft_type"] == ("CARTRIDGE" if cartridge else "PREFIX_TUNING")
    again = read_peft(tmp_path, one.host)
    assert again == cached(one)
    wanted = by_peft(one, tmp_path)
    assert_close(by_us(one, again), wanted, one.tolerance(float(wanted.abs().max())))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_peft_saves_is_read(family: str, tmp_path: Path) -> None:
    one = subject(family)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(one.model), config).eval()
    with torch.no_grad():
        wanted = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]
    model.save_pretrained(str(tmp_path))
    found = read_peft(tmp_path, one.host)
    assert isinstance(found, Prefix)
    assert (found.positions, found.occupies) == (5, 5)
    assert_close(by_us(one, found), wanted, one.tolerance(float(wanted.abs().max())))


def test_linear_position_biases_are_read_with_a_prefix_and_left_to_peft_when_it_is_written(tmp_path: Path) -> None:
    """PEFT's prefix stands in the cache, where BLOOM biases it by its distance from the query."""
    one = subject("bloom")
    torch.manual_seed(0)
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    model = peft.get_peft_model(copy.deepcopy(one.model), config).eval()
    model.save_pretrained(str(tmp_path / "theirs"))
    with torch.no_grad():
        wanted = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits[:, -IDS.shape[1] :]
    found = read_peft(tmp_path / "theirs", one.host)
    assert isinstance(found, Prefix)
    allowed = one.tolerance(float(wanted.abs().max()))
    assert_close(by_us(one, found), wanted, allowed)
    for number, made in enumerate((found, bake(one.host, [7, 19, 3]))):
        write_peft(tmp_path / str(number), made, one.host)
        assert_close(by_peft(one, tmp_path / str(number)), by_us(one, made), allowed)
    unbiased = Prefix.from_arrays({layer.site: (layer.keys, layer.values) for layer in found.layers})
    with pytest.raises(PrefixError, match="PEFT cannot hold"):
        write_peft(tmp_path / "other", Prefix(unbiased.layers, occupies=5), one.host)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_what_peft_saves_for_an_encoder_computes_the_same_behind_positions_of_its_own(
    family: str, tmp_path: Path
) -> None:
    one = subject(family)
    config = peft.PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=5)
    torch.manual_seed(0)
    model = peft.get_peft_model(copy.deepcopy(one.model), config).eval()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        wanted = model(input_ids=IDS, attention_mask=mask).last_hidden_state[mask > 0]
    model.save_pretrained(str(tmp_path))
    found = read_peft(tmp_path, one.host)
    assert isinstance(found, Prefix)
    with torch.no_grad(), attached(one.host, found):
        ours = one.model(input_ids=IDS, attention_mask=mask).last_hidden_state[mask > 0]
    assert_close(ours, wanted, one.tolerance(float(wanted.abs().max())))


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_soft_prompt_computes_the_same_in_peft_and_comes_back(family: str, tmp_path: Path) -> None:
    one = subject(family)
    soft = torch.randn(5, one.host.hidden_size, generator=torch.Generator().manual_seed(1))
    write_peft(tmp_path, soft, one.host)
    again = read_peft(tmp_path, one.host)
    assert isinstance(again, Tensor)
    assert torch.equal(again, soft)
    wanted = by_peft(one, tmp_path)
    assert_close(by_us(one, bake(one.host, again)), wanted, one.tolerance(float(wanted.abs().max())))


@pytest.mark.parametrize("family", ROTARY)
def test_turned_keys_compute_the_same_where_the_prefix_takes_positions(family: str, tmp_path: Path) -> None:
    """The turn is solved for by least squares in float64 from float32 keys: one more rounding of each key."""
    one = subject(family)
    turned = occupying(one.prefix, one.host)
    assert turned.occupies == one.prefix.positions
    wanted = by_us(one, one.prefix)
    allowed = 2 * one.tolerance(float(wanted.abs().max()))
    assert_close(by_us(one, turned), wanted, allowed)
    write_peft(tmp_path, turned, one.host)
    assert_close(by_peft(one, tmp_path), wanted, allowed)
    assert occupying(turned, one.host) is turned


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "mpt"])
def test_keys_that_do_not_turn_with_position_are_refused(family: str) -> None:
    """Nor under linear biases, where the keys stay as they are but an engine would give the prefix biases."""
    with pytest.raises(PrefixError, match="do not turn with position"):
        occupying(subject(family).prefix, subject(family).host)


@pytest.mark.parametrize(
    "config",
    [
        PersimmonConfig(**SMALL, num_hidden_layers=2, pad_token_id=0),
        CohereConfig(**SMALL, num_hidden_layers=2, pad_token_id=0, use_qk_norm=True),
    ],
    ids=["persimmon", "cohere"],
)
def test_keys_out_of_a_layer_norm_turn_too_though_they_show_one_direction_less(config: Any) -> None:
    """The prefix's own keys are out of no layer norm, so a turn that was wrong along that direction would show."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)
    host = Host(model)
    prefix = Prefix.random(host, positions=5, seed=1, scale=1.0)

    def output(prefix: Prefix | None) -> Tensor:
        with torch.no_grad(), nullcontext() if prefix is None else attached(host, prefix):
            found: Tensor = host.backbone(input_ids=IDS).last_hidden_state
        return found

    wanted = output(prefix)
    # As in test_attach.py, twice: 8 products in a row in each layer over at most 64 terms, in float32.
    allowed = 2 * 8 * config.num_hidden_layers * 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
    assert_close(output(occupying(prefix, host)), wanted, allowed)
    assert float((wanted - output(None)).abs().max()) > 100 * allowed


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_decoder_models_prefix_takes_no_positions(family: str) -> None:
    with pytest.raises(PrefixError, match="cannot be turned"):
        occupying(subject(family).prefix, subject(family).host)


def test_a_prefix_as_long_as_where_the_keys_turn_otherwise_is_refused() -> None:
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0}
    parameters = {**rope, "rope_theta": 10000.0, "original_max_position_embeddings": 8}
    host = Host(LlamaForCausalLM(LlamaConfig(**SMALL, num_hidden_layers=1, rope_parameters=parameters)))
    assert occupying(Prefix.random(host, positions=7), host).occupies == 7
    with pytest.raises(PrefixError, match="other frequencies"):
        occupying(Prefix.random(host, positions=8), host)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "gemma2", "gemma3", "opt", "bloom", "granite"])
def test_prompt_embeddings_generate_in_the_peer_what_the_baked_soft_prompt_generates_here(
    family: str, tmp_path: Path
) -> None:
    """The peer is transformers' own generation from embeddings; under a window of six within it."""
    one = subject(family)
    positions, ids, steps = (2, [7, 19], 3) if is_windowed(one) else (4, [7, 19, 3], 8)
    table = one.model.get_input_embeddings()
    with torch.no_grad():  # of the size that the layer gives, which Gemma scales
        size = table(torch.arange(one.model.config.vocab_size)).std()
    soft = torch.randn(positions, one.host.hidden_size, generator=torch.Generator().manual_seed(0)) * size
    write_prompt_embeddings(tmp_path / "prompt.safetensors", prompt_embeddings(one.host, soft, ids))
    found = load_file(tmp_path / "prompt.safetensors")["prompt_embeds"]
    assert found.shape == (positions + len(ids), one.host.hidden_size)
    config = GenerationConfig(max_new_tokens=steps, do_sample=False, pad_token_id=0, eos_token_id=None)
    wanted = one.model.generate(
        inputs_embeds=found[None], attention_mask=torch.ones(1, len(found)), generation_config=config
    )
    with attached(one.host, bake(one.host, soft)):
        assert_tokens(one.generate({"input_ids": torch.tensor([ids])}, steps), wanted)
    # What a server reads, and what an engine that scales by itself is to be given.
    served = torch.load(io.BytesIO(base64.b64decode(encoded_prompt(found), validate=True)), weights_only=True)
    assert torch.equal(served, found)
    unscaled = prompt_embeddings(one.host, soft, ids, scaled=False)
    assert torch.allclose(unscaled[positions:], table.weight[ids], rtol=1e-6)
    assert torch.equal(unscaled, found) == (not family.startswith("gemma"))


def test_prompt_embeddings_of_a_text_begin_as_a_fit_does(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("llama")
    soft = torch.randn(2, host.hidden_size, generator=torch.Generator().manual_seed(0))
    found = prompt_embeddings(host, soft.requires_grad_(), "the cat")
    assert torch.equal(found, prompt_embeddings(host, soft, tokens(host, "the cat", special=True)))
    assert not found.requires_grad
    assert len(encoded_prompt(found[:1])) < len(encoded_prompt(found))
    with pytest.raises(PrefixError, match=r"found:    \(2, 31\)"):
        prompt_embeddings(host, soft[:, 1:], "the cat")


def test_a_prefix_that_peft_cannot_hold_is_refused(tmp_path: Path) -> None:
    one = subject("llama")
    sites = [site.name for site in one.host.sites]
    bias = np.zeros(one.prefix.layers[0].keys.shape[:2], np.float32)
    biased = Prefix.from_arrays({x.site: (x.keys, x.values, bias) for x in one.prefix.layers}, occupies=7)
    for wrong in (one.prefix, cached(one).select(sites[:1]), biased):
        with pytest.raises(PrefixError, match="PEFT cannot hold"):
            write_peft(tmp_path, wrong, one.host)
    assert not list(tmp_path.iterdir())


def test_peft_gets_nothing_for_an_encoder_decoder(tmp_path: Path) -> None:
    one = subject("t5")
    for wrong in (one.prefix, torch.zeros(2, one.host.hidden_size)):
        with pytest.raises(PrefixError, match="encoder-decoder"):
            write_peft(tmp_path, wrong, one.host)
    assert not list(tmp_path.iterdir())


def test_a_trained_classifier_beside_a_prefix_is_never_left_out(tmp_path: Path) -> None:
    """PEFT keeps it in the same file: read into a model with another one, the answers would be another adapter's."""
    torch.manual_seed(0)
    base = LlamaForSequenceClassification(LlamaConfig(**SMALL, num_hidden_layers=1, pad_token_id=0)).eval()
    config = peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    with torch.no_grad():
        model.base_model.score.modules_to_save["default"].weight.add_(1.0)
        wanted = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    model.save_pretrained(str(tmp_path))
    with pytest.raises(BundleError, match="weights of the model itself"):
        read_peft(tmp_path, Host(base))
    base.load_state_dict({"score.weight": load_file(tmp_path / WEIGHTS)["base_model.score.weight"]}, strict=False)
    host = Host(base)
    with torch.no_grad(), attached(host, read_peft(tmp_path, host)):
        found = base(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    assert torch.allclose(found, wanted, atol=1e-5)  # logits of size 1, a layer of products of 16 terms


def test_a_soft_prompt_of_an_encoder_decoder_is_the_half_that_peft_reads(tmp_path: Path) -> None:
    one = subject("t5")
    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    model = peft.get_peft_model(copy.deepcopy(one.model), config).eval()
    model.save_pretrained(str(tmp_path))
    whole = load_file(tmp_path / WEIGHTS)["prompt_embeddings"]
    assert len(whole) == 6
    found = read_peft(tmp_path, one.host)
    assert isinstance(found, Tensor)
    assert torch.equal(found, whole[:3])


Spoil = Callable[[dict[str, Any], Tensor], Any]
# What to do with a good folder's configuration, and the tensor to write instead of its numbers.
HOSTILE: dict[str, Spoil] = {
    "NaN": lambda _, numbers: numbers.index_fill(0, torch.tensor([1]), torch.nan),
    "infinity": lambda _, numbers: numbers.index_fill(0, torch.tensor([1]), torch.inf),
    "integers": lambda _, numbers: numbers.long(),
    "no positions": lambda config, numbers: config.update(num_virtual_tokens=0) or numbers[:0],
    "an axis more": lambda _, numbers: numbers[None],
    "another number of positions": lambda config, numbers: config.update(num_virtual_tokens=8) or numbers,
    "another number of heads": lambda config, numbers: config.update(num_attention_heads=1) or numbers,
    "a kind that is a list": lambda config, numbers: config.update(peft_type=[]) or numbers,
    "no kind": lambda config, numbers: config.pop("peft_type") and numbers,
}


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "prefix") for name in HOSTILE), ("NaN", "soft prompt"), ("integers", "soft prompt")]
)
def test_an_adapter_whose_parts_do_not_fit_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    one = subject("llama")
    write_peft(tmp_path, cached(one) if kind == "prefix" else torch.ones(7, one.host.hidden_size), one.host)
    config = json.loads((tmp_path / CONFIG).read_text())
    numbers = HOSTILE[name](config, load_file(tmp_path / WEIGHTS)["prompt_embeddings"])
    save_file({"prompt_embeddings": numbers.contiguous()}, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(BundleError) as caught:
        read_peft(tmp_path, one.host)
    assert caught.value.expected
    assert caught.value.found
    assert caught.value.fix


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' + "9" * 10**6 + "}", '{"peft_type": 1, "peft_type": 2}', "[1]"]
)
def test_a_configuration_that_is_a_bomb_is_refused(text: str, tmp_path: Path) -> None:
    one = subject("llama")
    write_peft(tmp_path, cached(one), one.host)
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(BundleError, match="not a PEFT adapter"):
        read_peft(tmp_path, one.host)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("kind", ["a terabyte", "a pipe", "a folder"])
def test_a_file_that_would_be_waited_for_or_fill_the_memory_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    one = subject("llama")
    write_peft(tmp_path, cached(one), one.host)
    path = tmp_path / name
    if kind == "a terabyte":
        with path.open("r+b") as file:
            file.truncate(2**40)  # sparse: it takes no place on the disk
    else:
        path.unlink()
        os.mkfifo(path) if kind == "a pipe" else path.mkdir()
    with pytest.raises(BundleError, match="not a PEFT adapter"):
        read_peft(tmp_path, one.host)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_adapter_in_another_dtype_keeps_its_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    one = subject("llama")
    write_peft(tmp_path, cached(one), one.host)
    numbers = load_file(tmp_path / WEIGHTS)["prompt_embeddings"]
    save_file({"prompt_embeddings": numbers.to(dtype)}, tmp_path / WEIGHTS)
    assert read_peft(tmp_path, one.host) == cached(one).cast(str(dtype).removeprefix("torch."))


def test_what_does_not_fit_the_host_is_not_written(tmp_path: Path) -> None:
    one = subject("llama")
    width = one.host.hidden_size
    softs = [torch.zeros(3, width - 1), torch.zeros(width), torch.zeros(0, width), torch.zeros(3, width).long()]
    wrong = [*softs, torch.full((3, width), torch.nan), np.zeros((3, width)), cached(subject("gpt2"))]
    for found in wrong:
        with pytest.raises(PrefixError):
            write_peft(tmp_path, found, one.host)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_such_adapter_is_refused(tmp_path: Path) -> None:
    one = subject("llama")
    with pytest.raises(BundleError, match="not a PEFT adapter"):
        read_peft(tmp_path, one.host)
    write_peft(tmp_path, cached(one), one.host)
    with pytest.raises(BundleError, match="does not fit"):
        read_peft(tmp_path, subject("gpt2").host)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, "peft_type": "LORA"}))
    with pytest.raises(BundleError, match="does not fit"):
        read_peft(tmp_path, one.host)
    (tmp_path / CONFIG).write_text(json.dumps(config))
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-9])
    with pytest.raises(BundleError, match="not a PEFT adapter"):
        read_peft(tmp_path, one.host)
