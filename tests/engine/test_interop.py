"""Adapters of PEFT: what is written runs there, and what is read gives the logits that PEFT gives."""

from __future__ import annotations

import base64
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.conformance.subject import Subject, assert_close, assert_tokens, is_windowed, subject
from torch import Tensor
from transformers import GenerationConfig

from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.host import Host
from foreword.engine.interop import (
    CONFIG,
    WEIGHTS,
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


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_keys_that_do_not_turn_with_position_are_refused(family: str) -> None:
    with pytest.raises(PrefixError, match="do not turn with position"):
        occupying(subject(family).prefix, subject(family).host)


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
