"""The choices of LoRA and of the soft prompt: which layers, which scale, which first tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.engine.generation import features
from foreword.engine.host import Host
from foreword.engine.rendering import tokens
from foreword.errors import FitError, TaskError
from foreword.tuning.adaptation import Adaptation, SoftPrompt
from foreword.tuning.candidates import Workbench, candidate_for
from foreword.tuning.examples import load_splits
from foreword.tuning.full_weights import FullWeights
from foreword.tuning.low_rank import Lora, Targets, linear_layers
from foreword.tuning.task import Task

ATTENTION = {
    "bert": {"query", "key", "value", "attention.output.dense"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj"},
    "gpt2": {"attn.c_attn", "attn.c_proj"},
}
MLP = {
    "bert": {"intermediate.dense", "0.output.dense", "1.output.dense"},
    "llama": {"gate_proj", "up_proj", "down_proj"},
    "gpt2": {"mlp.c_fc", "mlp.c_proj"},
}


def end_in(names: list[str], endings: set[str]) -> bool:
    """Each name ends in one of these, and each ending is some name's."""
    hit = {name: {end for end in endings if name.endswith(f".{end}") or f".{end}" in name} for name in names}
    return all(hit.values()) and set().union(*hit.values()) == endings


@pytest.mark.parametrize("family", ATTENTION)
def test_targets_are_the_layers_linear_parts_and_never_head_or_pooler(
    shared_host: Callable[[str], Host], family: str
) -> None:
    host = shared_host(family)
    attention, mlp = linear_layers(host, "attention"), linear_layers(host, "mlp")
    assert end_in(attention, ATTENTION[family])
    assert end_in(mlp, MLP[family])
    assert set(linear_layers(host, "all-linear")) == {*attention, *mlp}
    assert not {*attention} & {*mlp}


@pytest.mark.parametrize("targets", ["attention", "mlp", "all-linear"])
def test_lora_changes_exactly_the_layers_that_it_names(load_host: Callable[[str], Host], targets: Targets) -> None:
    host = load_host("llama")
    wanted = linear_layers(host, targets)
    adaptation = Lora(host, rank=2, seed=0, targets=targets)
    assert len(adaptation.parameters()) == 2 * len(wanted)
    assert all(any(f".{name}.lora_" in own for name in wanted) for own in adaptation.parameters())
    adaptation.close()
    assert host.measure_fingerprint() == host.fingerprint


def test_the_scale_is_alpha_over_the_rank_or_over_its_root(load_host: Callable[[str], Host]) -> None:
    for options, scale in (({}, 2.0), ({"alpha": 12.0}, 3.0), ({"alpha": 12.0, "rank_stabilized": True}, 6.0)):
        adaptation = Lora(load_host("bert"), rank=4, seed=0, **options)  # type: ignore[arg-type]
        with adaptation.active():
            found = {
                module.scaling["default"]
                for module in adaptation.host.model.modules()
                if hasattr(module, "scaling") and isinstance(module.scaling, dict)
            }
        assert found == {scale}
        adaptation.close()


def test_fits_on_one_host_are_those_of_hosts_of_their_own(load_host: Callable[[str], Host]) -> None:
    """Outside `active` nothing of one is in the model that another one finds."""
    host, rows = load_host("gpt2"), [[5, 6, 7], [8, 9]]

    def answers(of: Host, make: Callable[[Host], Adaptation]) -> tuple[Adaptation, torch.Tensor]:
        adaptation = make(of)
        with torch.no_grad(), adaptation.active():
            for seed, parameter in enumerate(adaptation.parameters().values()):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.1)
            return adaptation, features(of, rows)

    makes: list[Callable[[Host], Adaptation]] = [
        lambda of: Lora(of, rank=2, seed=0),
        lambda of: Lora(of, rank=3, seed=1, targets="mlp"),
        FullWeights,
    ]
    together = [answers(host, make) for make in makes]
    for (adaptation, found), make in zip(together, makes, strict=True):
        alone, wanted = answers(load_host("gpt2"), make)
        assert list(adaptation.parameters()) == list(alone.parameters())
        assert torch.equal(found, wanted)
        with torch.no_grad(), adaptation.active():
            assert torch.equal(features(host, rows), wanted)


Bench = Callable[..., Workbench]


@pytest.fixture
def bench(tmp_path: Path, shared_host: Any, model_folder: Callable[[str], Path], write_task: Any) -> Bench:
    def make(table: dict[str, Any], *, kind: str = "classify") -> Workbench:
        family = "gpt2"
        path = write_task(tmp_path / "task", model_folder(family), [{"kind": "soft-prompt", **table}], kind=kind)
        task = Task.load(path)
        return Workbench(shared_host(family), task, load_splits(task))

    return make


FIT = {"steps": 1, "positions": 9, "batch_size": 4, "learning_rate": 1e-30}


def first_vectors(made: Workbench) -> torch.Tensor:
    """What a soft prompt starts as: steps of this size are none in float32."""
    fitted = candidate_for(made.task.candidates[0]).fit(made, seed=0)
    adaptation = fitted.predictor.adaptation
    assert isinstance(adaptation, SoftPrompt)
    return adaptation.parameters()["soft"].detach()


@pytest.mark.parametrize("table", [{"start": "labels"}, {"start": "text", "start_text": "the colour is"}])
def test_a_soft_prompt_starts_as_the_tokens_of_its_text_over_and_over(bench: Bench, table: dict[str, str]) -> None:
    made = bench({**FIT, **table})
    text = table.get("start_text", "\n".join(map(made.task.description, made.splits.labels)))
    ids = tokens(made.host, text, special=False)
    expected = made.host.model.get_input_embeddings().weight[[ids[place % len(ids)] for place in range(9)]]
    assert torch.equal(first_vectors(made), expected)


def test_labels_to_start_from_need_a_task_with_labels(bench: Bench) -> None:
    with pytest.raises(TaskError, match="a task that has none"):
        first_vectors(bench({**FIT, "start": "labels"}, kind="generate"))


@pytest.mark.parametrize("table", [{"start": "text"}, {"start_text": "a text"}])
def test_a_start_text_and_its_start_belong_together(bench: Bench, table: dict[str, str]) -> None:
    with pytest.raises(TaskError, match="start_text together"):
        bench({**FIT, **table})


def test_a_start_text_without_tokens_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foreword.tuning.candidates.soft_prompt.tokens", lambda *_, **__: [])
    with pytest.raises(FitError, match="no token for the text"):
        first_vectors(bench({**FIT, "start": "text", "start_text": "?"}))
