"""A full fine-tune's copy of the weights: in the model's place while active, never in its memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import foreword as fw
from foreword.engine.generation import features
from foreword.engine.host import Host
from foreword.errors import FitError
from foreword.tuning import room
from foreword.tuning.adaptation import Adaptation
from foreword.tuning.full_weights import FullWeights
from foreword.tuning.loop import fit as loop
from foreword.tuning.loop_settings import FitSettings
from foreword.tuning.low_rank import Lora
from foreword.tuning.recomputed import Recomputed

ROWS = ([7, 21, 33, 8, 40], [50, 6, 9])
OPTIONS: dict[str, Any] = {"steps": 4, "batch_size": 6, "evaluate_every": 2}


@pytest.fixture
def task(tmp_path: Path, model_folder: Callable[[str], Path], write_task: Callable[..., Path]) -> Path:
    return write_task(tmp_path / "task", model_folder("gpt2"), [{"kind": "full"}])


def nudged(adaptation: FullWeights) -> None:
    with torch.no_grad():
        for parameter in adaptation.parameters().values():
            parameter.add_(0.01)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_before_the_first_step_the_copy_computes_what_the_model_does(
    load_host: Callable[[str], Host], family: str
) -> None:
    host = load_host(family)
    with torch.no_grad():
        bare = features(host, ROWS)
        with FullWeights(host).active():
            assert torch.equal(features(host, ROWS), bare)


def test_the_model_gets_its_very_tensors_back_even_from_nested_contexts_and_after_an_error(
    load_host: Callable[[str], Host],
) -> None:
    host = load_host("gpt2")
    own = {name: id(parameter) for name, parameter in host.model.named_parameters(remove_duplicate=False)}
    before = host.measure_fingerprint()
    adaptation = FullWeights(host)
    nudged(adaptation)
    inside = []

    def fails() -> None:
        with adaptation.active():
            with adaptation.active():
                inside.append(host.measure_fingerprint())
            inside.append(host.measure_fingerprint())  # the inner one was not the one to put them back
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert before not in inside
    assert len(set(inside)) == 1
    assert host.measure_fingerprint() == host.fingerprint == before
    assert {name: id(parameter) for name, parameter in host.model.named_parameters(remove_duplicate=False)} == own


def test_a_weight_that_is_used_twice_stays_one_weight(load_host: Callable[[str], Host]) -> None:
    """GPT-2 reads tokens and writes them with one matrix."""
    host = load_host("gpt2")
    adaptation = FullWeights(host)
    assert adaptation.trainable == host.parameters
    with adaptation.active():
        assert host.model.lm_head.weight is host.model.transformer.wte.weight


def test_half_precision_is_fitted_in_float32(model_folder: Callable[[str], Path]) -> None:
    host = Host.load(str(model_folder("llama")), dtype="bfloat16", device="cpu")
    adaptation = FullWeights(host)
    assert {parameter.dtype for parameter in adaptation.parameters().values()} == {torch.float32}
    with torch.no_grad(), adaptation.active():
        assert features(host, ROWS).dtype == torch.float32
    assert host.dtype == torch.bfloat16


def test_what_does_not_fit_into_memory_is_refused_before_it_is_made(
    load_host: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU 40 bytes a weight; one byte less is too little."""
    host = load_host("bert")
    monkeypatch.setattr(room, "free_bytes", lambda _: 40 * host.parameters)
    FullWeights(host).close()
    monkeypatch.setattr(room, "free_bytes", lambda _: 40 * host.parameters - 1)
    with pytest.raises(FitError, match="does not fit into memory"):
        FullWeights(host)


class Squares:
    """A problem with the model's own forward pass: the mean square of its features of two rows."""

    examples, lengths = 2, [5, 3]
    is_kept_by_loss = False

    def __init__(self, host: Host, adaptation: Adaptation) -> None:
        self.host, self.adaptation = host, adaptation

    def loss(self, indices: list[int], step: int) -> torch.Tensor:
        with self.adaptation.active():
            return features(self.host, [ROWS[index] for index in indices]).square().mean()

    def weight(self, indices: list[int]) -> float:
        return float(len(indices))

    def evaluate(self, step: int) -> tuple[float, float]:
        return float(step), 0.0

    def memory(self) -> dict[str, torch.Tensor]:
        return {}

    def remember(self, memory: dict[str, torch.Tensor]) -> None:
        del memory


@pytest.mark.parametrize("make", [FullWeights, lambda host: Lora(host, rank=2, seed=0)], ids=["full", "lora"])
def test_layers_computed_again_after_the_context_was_left_are_the_adapted_ones(
    load_host: Callable[[str], Host], make: Callable[[Host], Adaptation]
) -> None:
    """Same operations on the same numbers in the same order: equal to the last bit."""
    found = []
    for again in (False, True):
        host = load_host("bert")
        adaptation = make(host)
        problem = Squares(host, adaptation)
        settings = FitSettings(steps=3, batch_size=2, seconds=60.0, learning_rate=1e-2)
        loop(Recomputed(problem, host, adaptation.recomputed) if again else problem, adaptation, settings, seed=0)
        found.append({name: parameter.detach() for name, parameter in adaptation.parameters().items()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_fitted_model_is_left_in_a_folder_that_loads(task: Path, tmp_path: Path) -> None:
    made = fw.fit(None, task, method="full", out=tmp_path / "out", learning_rate=1e-3, **OPTIONS)
    host = made.predictor.host
    with torch.no_grad(), made.predictor.adaptation.active():
        fitted = features(host, ROWS)
    loaded = Host.load(str(tmp_path / "out" / "full"), device="cpu")
    with torch.no_grad():
        assert torch.equal(features(loaded, ROWS), fitted)
        assert not torch.equal(features(host, ROWS), fitted)
    with pytest.raises(FitError, match="not a prefix"):
        _ = made.prefix


def test_its_checkpoint_has_at_most_sixteen_bytes_a_weight(task: Path, tmp_path: Path) -> None:
    """State, two moments and best state, 4 bytes each; and no more than 64 KB and half a KB a tensor around them."""
    made = fw.fit(None, task, method="full", out=tmp_path / "out", **OPTIONS)
    tensors = len(made.predictor.adaptation.parameters())
    size = (tmp_path / "out" / "checkpoint.pt").stat().st_size
    assert size <= 16 * made.predictor.adaptation.trainable + 65_536 + 4 * 512 * tensors


def test_it_has_no_length(task: Path) -> None:
    with pytest.raises(FitError, match="The method full has no length"):
        fw.fit(None, task, method="full", length=3)
