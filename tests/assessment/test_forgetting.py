"""What a candidate does to other text: nothing is exactly nothing, and what is done is measured as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foreword as fw
from foreword.assessment.evidence import Estimate
from foreword.assessment.forgetting import estimate, measure_forgetting
from foreword.assessment.other_text import LONGEST, SHORTEST, other_text, passages
from foreword.engine.host import Host
from foreword.engine.rendering import Template
from foreword.errors import DataError
from foreword.prefix import Prefix
from foreword.tuning.adaptation import Adaptation, Bare, FittedPrefix, FixedPrefix, SoftPrompt
from foreword.tuning.full_weights import FullWeights
from foreword.tuning.low_rank import Lora
from foreword.tuning.predictor import Manner, Predictor
from foreword.tuning.sections import ForgettingSettings

TEXTS = (
    "the cat sat on the mat and looked at the red bird",
    "rain fell on the town while the boats stayed in the harbour",
    "she opened the letter and read the first line twice",
    "the price of bread and milk rose again this month",
)
FAMILIES = ("bert", "gpt2", "t5")


def changes(host: Host, adaptation: Adaptation) -> dict[str, Estimate]:
    found = measure_forgetting(host, adaptation, TEXTS)
    assert found.texts == len(TEXTS)
    named = {"loss": found.loss_change, "divergence": found.divergence, "turned": found.turned}
    return {name: value for name, value in {**named, "changed": found.changed}.items() if value is not None}


@pytest.fixture(params=FAMILIES)
def host(request: pytest.FixtureRequest, load_host: Callable[[str], Host]) -> Host:
    return load_host(request.param)


def test_the_bare_model_forgets_exactly_nothing(host: Host) -> None:
    found = changes(host, Bare())
    assert {name: (x.value, x.low, x.high) for name, x in found.items()} == dict.fromkeys(found, (0.0, 0.0, 0.0))
    assert set(found) == ({"turned", "changed"} if host.role == "encoder" else {"loss", "divergence", "changed"})


@pytest.mark.parametrize("make", [FullWeights, lambda host: Lora(host, rank=2, seed=0)], ids=["full", "lora"])
def test_what_starts_as_the_bare_model_forgets_exactly_nothing(
    load_host: Callable[[str], Host], make: Callable[[Host], Adaptation]
) -> None:
    """A copy of the weights, and LoRA, whose second factor starts at zero (x + 0 = x in floating point, too)."""
    host = load_host("gpt2")
    adaptation = make(host)
    assert all(found.value == 0 for found in changes(host, adaptation).values())
    adaptation.close()


def test_a_prefix_that_nothing_attends_to_forgets_nothing(host: Host) -> None:
    """Weight exp(-100) is below half of float32's resolution; two ways of adding up attention differ by 1e-6."""
    sites = {
        site.name: (
            np.zeros((site.kv_heads, 3, site.key_dim), dtype=np.float32),
            np.ones((site.kv_heads, 3, site.value_dim), dtype=np.float32),
            np.full((site.kv_heads, 3), -100.0, dtype=np.float32),
        )
        for site in host.sites
    }
    found = changes(host, FixedPrefix(host, Prefix.from_arrays(sites)))
    assert all(abs(value.value) < 1e-4 for value in found.values())


def test_a_strong_change_shows_and_the_host_is_as_before(host: Host) -> None:
    before = host.measure_fingerprint()
    adaptation = FittedPrefix(host, positions=4, seed=0)
    with torch.no_grad():
        for parameter in adaptation.parameters().values():
            parameter.mul_(0).add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 3)
    found = changes(host, adaptation)
    apart = found["turned" if host.role == "encoder" else "divergence"]
    assert apart.low > 1e-3  # a thousand times what rounding leaves
    assert 0 <= found["changed"].value <= 1
    assert host.measure_fingerprint() == before
    assert all(value.low <= value.value <= value.high for value in found.values())


def test_the_loss_added_is_the_difference_of_the_two_losses_by_hand(load_host: Callable[[str], Host]) -> None:
    host = load_host("gpt2")
    adaptation = SoftPrompt(host, positions=2, seed=0)
    soft = adaptation.parameters()["soft"].detach()
    differences, counts = [], []
    for text in TEXTS:
        ids = torch.tensor([host.tokenizer(text)["input_ids"]])
        embedded = torch.cat([soft[None], host.model.get_input_embeddings()(ids)], dim=1)
        with torch.no_grad():
            logits = [host.model(input_ids=ids).logits, host.model(inputs_embeds=embedded).logits[:, 2:]]
        losses = [torch.nn.functional.cross_entropy(x[0, :-1], ids[0, 1:], reduction="sum") for x in logits]
        differences.append(float(losses[1] - losses[0]))
        counts.append(ids.shape[1] - 1)
    found = measure_forgetting(host, adaptation, TEXTS)
    assert found.tokens == sum(counts)
    assert found.loss_change is not None
    # float32 sums of 60 tokens' losses of about 6 nats.
    assert found.loss_change.value == pytest.approx(sum(differences) / sum(counts), abs=1e-5)


def test_the_interval_covers_a_ratio_of_sums_about_as_often_as_it_says() -> None:
    """200 samples of 40 texts; an estimate: the mark is 0.95 minus 4 standard errors of 200 draws and 2 points."""
    rng = np.random.default_rng(0)
    hit = 0
    for _ in range(200):
        weights = rng.integers(50, 128, size=40).astype(float)
        found = estimate((weights * rng.normal(0.1, 0.2, size=40)).tolist(), weights)
        hit += found.low <= 0.1 <= found.high
    assert hit / 200 > 0.95 - 4 * (0.95 * 0.05 / 200) ** 0.5 - 0.02


@pytest.mark.parametrize("texts", [None, list(TEXTS)], ids=["the manual's", "own"])
def test_a_fits_predictor_is_measured_on_the_manual_or_on_texts_of_ones_own(
    shared_host: Callable[[str], Host], texts: list[str] | None
) -> None:
    host = shared_host("gpt2")
    predictor = Predictor(host, Manner("generate", Template("", "")), FittedPrefix(host, positions=2, seed=0))
    found = fw.forgetting_of(predictor, texts)
    passages = TEXTS if texts is not None else other_text(ForgettingSettings(), Path()).passages  # type: ignore[union-attr]
    assert found == measure_forgetting(host, predictor.adaptation, passages)


@pytest.mark.parametrize("texts", [[], ["a", "one text alone"], "one text, not a list", [3, 4]], ids=str)
def test_what_is_no_list_of_texts_is_refused(shared_host: Callable[[str], Host], texts: Any) -> None:
    predictor = Predictor(shared_host("gpt2"), Manner("generate", Template("", "")))
    with pytest.raises(DataError, match="two texts or more"):
        fw.forgetting_of(predictor, texts)


# The sample


def test_the_built_in_sample_is_the_same_each_time_and_of_the_stated_lengths() -> None:
    first, again = (other_text(ForgettingSettings(), Path()) for _ in range(2))
    assert first is not None
    assert first == again
    assert len(first.passages) == len(set(first.passages)) == 64
    assert all(SHORTEST <= len(passage) <= LONGEST for passage in first.passages)
    fewer = other_text(ForgettingSettings(texts=3), Path())
    assert fewer is not None
    assert fewer.sha256 != first.sha256


def test_none_is_asked_for_with_zero_texts() -> None:
    assert other_text(ForgettingSettings(texts=0), Path()) is None


def test_a_python_without_its_manual_has_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreword.assessment.other_text.BUILT_IN", "no.such.module")
    assert other_text(ForgettingSettings(), Path()) is None


def test_one_s_own_files_are_read_beside_the_task_file(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("\n\n".join(f"paragraph {n} " + "word " * 60 for n in range(5)), encoding="utf-8")
    found = other_text(ForgettingSettings(files=("own.txt",), texts=9), tmp_path)
    assert found is not None
    assert len(found.passages) == 5
    assert found.sources == ("own.txt",)


@pytest.mark.parametrize(
    ("content", "said"), [(None, "cannot be read"), (b"\xff\xfe\xff", "cannot be read"), (b"a", "no text")]
)
def test_files_without_text_are_refused(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / "own.txt").write_bytes(content)
    with pytest.raises(DataError, match=said):
        other_text(ForgettingSettings(files=("own.txt",)), tmp_path)


def test_passages_are_neighbouring_paragraphs_and_lose_none_that_are_long_enough() -> None:
    found = list(passages("\n\n".join(["x" * 100, "y" * 100, "z" * 100, "w" * 2000, "short"])))
    assert found == ["x" * 100 + "\n\n" + "y" * 100 + "\n\n" + "z" * 100, "w" * LONGEST]


# LoRA's layers


def test_lora_that_is_not_active_leaves_the_very_modules_of_the_bare_model(load_host: Callable[[str], Host]) -> None:
    host: Any = load_host("llama")
    names = {name: id(module) for name, module in host.model.named_modules()}
    adaptation = Lora(host, rank=2, seed=0)
    assert {name: id(module) for name, module in host.model.named_modules()} == names
    with adaptation.active():
        assert any("lora" in name for name, _ in host.model.named_modules())
    assert {name: id(module) for name, module in host.model.named_modules()} == names
