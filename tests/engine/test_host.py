"""What a host is: a frozen base model that knows itself, with a fingerprint of everything that it computes with."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.host import Host
from foreword.engine.rendering import tokens
from foreword.errors import AttachError, HostError
from foreword.prefix import Prefix

Folder = Callable[[str], Path]


# What a host is


ROLES = {"bert": "encoder", "roberta": "encoder", "distilbert": "encoder"}


def test_a_loaded_host_is_frozen_and_knows_itself(host: Host, model_folder: Folder) -> None:
    assert host.role == ROLES.get(host.family, "causal")
    assert host.reference == str(model_folder(host.family))
    assert not host.model.training
    assert not any(weight.requires_grad for weight in host.model.parameters())
    assert (host.dtype, host.device) == (torch.float32, torch.device("cpu"))
    assert host.hidden_size == 32
    assert host.parameters == sum(weight.numel() for weight in set(host.model.parameters()))
    assert host.nbytes == 4 * host.parameters
    assert host.max_positions == (64 if host.role == "encoder" else 128)
    assert host.family in repr(host)


def test_a_text_as_long_as_the_model_reads_is_read(host: Host) -> None:
    """And where positions are a table, one more is not: `max_positions` is exact."""
    ids = torch.full((1, host.max_positions), 7)
    with torch.no_grad():
        assert host.model(input_ids=ids)[0].isfinite().all()
        if host.family in ("bert", "roberta", "distilbert", "gpt2"):
            with pytest.raises((IndexError, RuntimeError)):
                host.model(input_ids=torch.full((1, host.max_positions + 1), 7))


# Fingerprint


def test_the_fingerprint_is_the_same_in_every_load(host: Host, load_host: Callable[[str], Host]) -> None:
    """RoBERTa's folder has no pooler, which transformers would draw anew each time."""
    assert load_host(host.family).fingerprint == host.fingerprint


@pytest.mark.slow
def test_the_fingerprint_is_the_same_in_another_process(model_folder: Folder, load_host: Callable[[str], Host]) -> None:
    script = "import sys; from foreword.engine.host import Host; print(Host.load(sys.argv[1]).fingerprint)"
    done = subprocess.run(
        [sys.executable, "-c", script, str(model_folder("llama"))],
        env={**os.environ, "PYTHONHASHSEED": "7", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.strip() == load_host("llama").fingerprint


def test_the_fingerprint_changes_with_every_weight(load_host: Callable[[str], Host]) -> None:
    host = load_host("qwen3")
    found = {host.fingerprint}
    weights = list(host.model.parameters())
    for weight in weights:
        flat = weight.data.view(-1)
        kept = flat[-1].clone()
        flat[-1] = torch.nextafter(kept, torch.tensor(torch.inf))  # the smallest change that there is
        found.add(host.measure_fingerprint())
        flat[-1] = kept
    assert len(found) == 1 + len(weights)
    assert host.measure_fingerprint() == host.fingerprint


def test_the_fingerprint_differs_between_models_dtypes_and_tokenizers(
    host: Host, load_host: Callable[..., Host], shared_host: Callable[[str], Host], copied: Callable[..., Path]
) -> None:
    others = {family: shared_host(family).fingerprint for family in ("bert", "gpt2", "llama") if family != host.family}
    assert host.fingerprint not in others.values()
    assert load_host(host.family, dtype="bfloat16").fingerprint != host.fingerprint
    folder = copied(host.family)
    rules = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = rules["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    assert Host.load(str(folder), device="cpu").fingerprint != host.fingerprint


def test_the_fingerprint_changes_with_a_setting_that_changes_the_output(
    copied: Callable[..., Path], load_host: Callable[[str], Host]
) -> None:
    folder = copied("llama", rms_norm_eps=0.1)
    assert Host.load(str(folder), device="cpu").fingerprint != load_host("llama").fingerprint


def test_weights_that_are_no_tensors_are_refused_by_name(load_host: Callable[[str], Host]) -> None:
    """As those that torch's dynamic quantization packs, or what a module keeps as its extra state."""

    class Packed(torch.nn.Module):
        def get_extra_state(self) -> Any:
            return (1, 2)

    host = load_host("gpt2")
    host.backbone.packed = Packed()
    with pytest.raises(HostError, match=r"a tuple as transformer\.packed\._extra_state"):
        host.measure_fingerprint()


def test_the_fingerprint_does_not_change_with_use(host: Host) -> None:
    before = host.measure_fingerprint()
    host.tokenizer(["one", "two three"], padding=True, truncation=True, max_length=4)
    tokens(host, "the cat sat", special=True)
    with torch.no_grad():
        host.model(input_ids=torch.full((2, 5), 7))
    implementation = host.model.config._attn_implementation
    host.model.set_attn_implementation("eager")
    try:
        assert host.measure_fingerprint() == before
    finally:
        host.model.set_attn_implementation(implementation)
    assert host.fingerprint == before


def test_a_model_made_in_memory_is_a_host(shared_host: Callable[[str], Host]) -> None:
    made = Host(shared_host("gpt2").model)
    assert made.tokenizer is None
    assert made.sites == shared_host("gpt2").sites
    with pytest.raises(HostError, match="no tokenizer"):
        tokens(made, "text", special=True)


def test_a_copy_of_a_host_is_a_host_of_its_own(load_host: Callable[[str], Host]) -> None:
    """Taken while a prefix is attached, it has none, and both can then carry one at once."""
    host = load_host("llama")
    prefix, ids = Prefix.random(host, positions=3, scale=1.0), torch.arange(5, 12)[None]
    with torch.no_grad():
        bare = host.model(input_ids=ids)[0]
        with attached(host, prefix):
            carried, twin = host.model(input_ids=ids)[0], copy.deepcopy(host)
            assert torch.equal(twin.model(input_ids=ids)[0], bare)
            with attached(twin, prefix):
                assert torch.equal(twin.model(input_ids=ids)[0], carried)
    assert twin.model is not host.model
    assert twin.fingerprint == host.fingerprint


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_model_inside_a_compiled_one_or_an_adapter_carries_the_prefixes_of_the_model_itself(
    load_host: Callable[[str], Host],
) -> None:
    host, ids = load_host("llama"), torch.arange(5, 12)[None]
    prefix = Prefix.random(host, positions=3, scale=1.0)
    compiled: Any = torch.compile(copy.deepcopy(host.model), backend="eager")
    adapted: Any = peft.get_peft_model(copy.deepcopy(host.model), peft.LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad(), attached(host, prefix):
        wanted = host.model(input_ids=ids)[0]
    for model in (compiled, adapted):  # a new adapter changes nothing
        around = Host(model, host.tokenizer)
        assert around.sites == host.sites
        with torch.no_grad(), attached(around, prefix):
            assert float((model(input_ids=ids)[0] - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
        assert (around.fingerprint == host.fingerprint) == (model is compiled)


def test_a_model_without_its_weights_is_refused_by_name() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1))
    host = Host(model)
    with pytest.raises(AttachError, match="weights are not loaded"), attached(host, Prefix.random(host, positions=2)):
        pass
    with pytest.raises(AttachError, match="weights are not loaded"):
        bake(host, [5, 6])
