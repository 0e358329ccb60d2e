"""Where a prefix sits, head by head: what carries it changes, all else computes what the bare model does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import foreword as fw
from foreword.engine.assignment import SiteTensors
from foreword.engine.attach import attached
from foreword.engine.generation import features
from foreword.engine.host import Host
from foreword.engine.interop import occupying, write_peft
from foreword.engine.sites import Site
from foreword.errors import FitError, PrefixError, RunFolderError, TaskError
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidate_settings import PrefixSettings
from foreword.tuning.effective_rank import ranks_of
from foreword.tuning.placement import Placement
from foreword.tuning.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [[7, 21, 33, 8, 40], [50, 6, 9]]
POSITIONS = 4
# Heads of each of the two layers: of GPT-2's and BERT's four, and of the two keys that Llama's four query heads share.
CHOSEN = {"gpt2": {0: (1,), 1: (0, 3)}, "llama": {0: (1,), 1: (0,)}, "bert": {0: (2, 3), 1: (0,)}}
# What reads the outputs of all heads side by side, `(row, token, head x dim)`, and whether they are what it is given.
READS_HEADS = {
    "gpt2": ("h.{}.attn.c_proj", True),
    "llama": ("layers.{}.self_attn.o_proj", True),
    "bert": ("encoder.layer.{}.attention.self", False),
}


@pytest.fixture
def task(write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    return lambda family, *tables: write_task(tmp_path / "task", model_folder(family), list(tables))


@contextmanager
def heads_seen(host: Host, family: str) -> Iterator[dict[int, Tensor]]:
    """By layer, the outputs of attention `(row, token, key head, dims of its query heads)` of the last forward pass."""
    found: dict[int, Tensor] = {}
    path, is_input = READS_HEADS[family]

    def keep(layer: int) -> Callable[..., None]:
        def hook(_: Any, given: tuple[Any, ...], made: Any) -> None:
            told = given[0] if is_input else made[0] if isinstance(made, tuple) else made
            found[layer] = told.detach().unflatten(-1, (host.sites[layer].kv_heads, -1)).clone()

        return hook

    hooks = [
        host.backbone.get_submodule(path.format(layer)).register_forward_hook(keep(layer))
        for layer in range(len(host.sites))
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


# What it changes


@pytest.mark.parametrize("family", CHOSEN)
def test_a_fit_changes_the_outputs_of_the_chosen_heads_alone(
    task: Callable[..., Path], shared_host: Callable[[str], Host], family: str
) -> None:
    """Each layer's part by itself, so that what a layer reads is what the bare model gives it.

    A head that carries nothing has weight 0 on the prefix; what is left is the order in which a longer row is summed.
    """
    host, chosen = shared_host(family), CHOSEN[family]
    options = {"length": POSITIONS, "steps": 8, "batch_size": 6, "start": "vocabulary", "seed": 1}
    made = fw.fit(host, task(family), heads=chosen, **options)
    assert made.prefix.sites == tuple(site.name for site in host.sites)
    with torch.no_grad(), heads_seen(host, family) as seen:
        features(host, ROWS)
        bare = dict(seen)
        for layer, site in enumerate(host.sites):
            with attached(host, made.prefix.select([site.name])):
                features(host, ROWS)
            moved = (seen[layer] - bare[layer]).abs()[0].amax(dim=(0, 2))
            carried = torch.zeros(site.kv_heads, dtype=torch.bool)
            carried[list(chosen[layer])] = True
            assert (moved[carried] > 1e-3).all()
            assert (moved[~carried] < 1e-6 * (1 + float(bare[layer].abs().max()))).all()


@pytest.mark.parametrize("family", CHOSEN)
def test_numbers_of_heads_that_carry_nothing_are_not_read(shared_host: Callable[[str], Host], family: str) -> None:
    """Weight 0 exactly: the same bits come out whatever stands in their keys and values."""
    host = shared_host(family)
    adaptation = FittedPrefix(host, positions=POSITIONS, seed=0, placement=Placement(heads=CHOSEN[family]))
    other: dict[str, SiteTensors] = {}
    for site, found in adaptation.tensors.items():
        bias = found.bias
        assert bias is not None
        absent = (bias < -1e3).all(dim=1)
        assert absent.any()
        assert not absent.all()
        assert not absent[list(CHOSEN[family][len(other)])].any()
        noise = torch.randn(found.keys.shape, generator=torch.Generator().manual_seed(5))
        keys, values = (
            torch.where(absent[:, None, None], size * noise, part.detach())
            for size, part in ((3.0, found.keys), (1e4, found.values))
        )
        other[site] = SiteTensors(keys, values, bias)
    with torch.no_grad():
        with adaptation.active():
            first = features(host, ROWS)
        with attached(host, other):
            assert torch.equal(features(host, ROWS), first)


@pytest.mark.parametrize("family", CHOSEN)
def test_heads_that_carry_nothing_get_no_gradient(shared_host: Callable[[str], Host], family: str) -> None:
    host, chosen = shared_host(family), CHOSEN[family]
    adaptation = FittedPrefix(host, positions=POSITIONS, seed=0, placement=Placement(heads=chosen))
    adaptation.begin(
        {
            site.name: SiteTensors(*torch.randn(2, site.kv_heads, POSITIONS, site.key_dim).mul(0.3).unbind())
            for site in host.sites
        }
    )
    with adaptation.active():
        features(host, ROWS).square().sum().backward()
    for layer, found in enumerate(adaptation.tensors.values()):
        for part in (found.keys, found.values):
            assert part.grad is not None
            has = part.grad.abs().amax(dim=(1, 2)) > 0
            assert [head for head, each in enumerate(has.tolist()) if each] == list(chosen[layer])
    assert adaptation.trainable == sum(map(len, chosen.values())) * POSITIONS * 2 * 8


def test_layers_that_the_table_does_not_name_carry_nothing(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("llama")
    adaptation = FittedPrefix(host, positions=POSITIONS, seed=0, placement=Placement(heads={1: (0,)}))
    assert adaptation.prefix().sites == (host.sites[1].name,)


# How it is said


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ([0, "2-3"], (0, 2, 3)),
        ({"0": [1], "2-3": [0, "2-3"]}, {0: (1,), 2: (0, 2, 3), 3: (0, 2, 3)}),
        ({3: [1], 0: (2,)}, {0: (2,), 3: (1,)}),
    ],
)
def test_heads_are_a_list_or_a_table_of_layers_and_read_back_from_json(said: Any, meant: Any) -> None:
    settings = PrefixSettings(heads=said)
    assert settings.heads == meant
    assert PrefixSettings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("heads = {0-2 = [1], 2 = [0]}", "candidates[0].heads: expected each layer once, found layer 2 twice"),
        ("heads = {0 = []}", "heads: expected for layer 0 a list of whole numbers from 0 and ranges"),
        ("heads = {0 = 1}", "heads: expected for layer 0 a list"),
        ("heads = {}", "heads: expected at least one layer in the table"),
        ("heads = {first = [0]}", "found 'first'"),
        ("heads = {3-1 = [0]}", "found '3-1'"),
        (f'heads = {{0 = ["{"9" * 5000}"]}}', f"found '{'9' * 58}…"),
        (f"heads = {{{'9' * 5000} = [0]}}", f"found '{'9' * 58}…"),
        ('heads = "all"', "a table of the heads of each layer, such as {0 = [1], 4-7 ="),
        ("heads = {0 = [1]}\nlayers = [0]", "expected layers left out beside heads as a table"),
        ("heads = {0 = [1], 0 = [2]}", "is not valid TOML"),
    ],
)
def test_a_table_of_heads_that_makes_no_sense_is_refused(task: Callable[..., Path], table: str, expected: str) -> None:
    path = task("gpt2")
    path.write_text(path.read_text() + f"\n[[candidates]]\nkind = 'prefix'\n{table}\n")
    with pytest.raises(TaskError) as refusal:
        Task.load(path)
    assert expected in str(refusal.value)


def test_a_task_file_and_a_call_say_the_same(task: Callable[..., Path], shared_host: Callable[[str], Host]) -> None:
    path = task("gpt2")
    options = {"length": 2, "steps": 1}
    called = fw.fit(shared_host("gpt2"), path, heads={0: [1], "1": ["2-3"]}, **options)
    path.write_text(path.read_text() + '\n[[candidates]]\nkind = "prefix"\nheads = {0 = [1], 1 = ["2-3"]}\n')
    assert fw.fit(shared_host("gpt2"), path, **options).prefix == called.prefix


# What the model must have


def uneven(*shapes: tuple[int, int]) -> Any:
    """A host whose layers have these numbers of query heads and key heads."""
    sites = [Site(f"layer.{n}", n, "self", heads, keys, 8, 8, True) for n, (heads, keys) in enumerate(shapes)]
    return SimpleNamespace(sites=tuple(sites), reference="uneven")


@pytest.mark.parametrize(
    ("placement", "expected", "found"),
    [
        (Placement(heads={0: (3,), 4: (0,)}), "numbers from 0 to 2", "4, for uneven"),
        (Placement(layers=(3,)), "numbers from 0 to 2", "3, for uneven"),
        (
            Placement(heads={0: (3,), 1: (1, 2, 3)}),
            "key heads 0 to 1 at layer 1, each shared by 2 query heads",
            "2, 3 at layer 1, for uneven",
        ),
        (
            Placement(heads=(0, 2)),
            "key heads 0 to 1 at layer 1, each shared by 2 query heads; key head 0 alone at layer 2, each shared by 4",
            "2 at layer 1; 2 at layer 2",
        ),
        (Placement(layers=(0, 2), heads=(3,)), "key head 0 alone at layer 2", "3 at layer 2, for uneven"),
    ],
)
def test_a_head_is_looked_for_at_its_own_layer(placement: Placement, expected: str, found: str) -> None:
    host = uneven((4, 4), (4, 2), (4, 1))
    with pytest.raises(FitError, match="no such") as refusal:
        placement.check(host, POSITIONS)
    assert (refusal.value.expected or "").startswith(expected)
    assert found in (refusal.value.found or "")


@pytest.mark.parametrize("placement", [Placement(heads={0: (3,), 1: (1,), 2: (0,)}), Placement((0,), (2, 3))])
def test_a_head_that_its_layer_has_is_taken_whatever_other_layers_have(placement: Placement) -> None:
    placement.check(uneven((4, 4), (4, 2), (4, 1)), POSITIONS)


def test_many_layers_or_heads_that_are_not_there_are_counted_and_not_all_told() -> None:
    with pytest.raises(FitError, match="no such heads") as refusal:
        Placement(heads=(7,)).check(uneven(*[(4, 4)] * 30), POSITIONS)
    assert (refusal.value.found or "").startswith("7 at layer 0; 7 at layer 1; 7 at layer 2; and at 27 more layers")
    with pytest.raises(FitError, match="no such layers") as refusal:
        Placement(layers=tuple(range(1000))).check(uneven((4, 4)), POSITIONS)
    assert refusal.value.found == "1, 2, 3, 4, 5, 6, 7, 8 and 991 more, for uneven"


def test_a_head_that_grouped_keys_do_not_have_is_refused_before_a_step(
    task: Callable[..., Path], shared_host: Callable[[str], Host], tmp_path: Path
) -> None:
    """Llama's four query heads share two keys: there is no key head 2."""
    with pytest.raises(FitError, match="no such heads"):
        fw.fit(shared_host("llama"), task("llama"), out=tmp_path / "out", heads={0: [0], 1: [2]})
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


# How it is kept


def test_ranks_are_those_of_heads_that_carry_it(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("gpt2")
    drawn = {
        site.name: SiteTensors(
            torch.eye(POSITIONS, site.key_dim).repeat(site.kv_heads, 1, 1),
            torch.eye(POSITIONS, site.value_dim).repeat(site.kv_heads, 1, 1),
        )
        for site in host.sites
    }
    for found in drawn.values():
        found.values[0] = 0.0
        found.keys[0, 1:] = 0.0
    adaptation = FittedPrefix(host, positions=POSITIONS, seed=0, placement=Placement(heads={0: (1, 2), 1: (0,)}))
    adaptation.begin(drawn)
    ranks = [(each.keys, each.values) for each in ranks_of(adaptation.prefix())]
    assert ranks == [(POSITIONS, POSITIONS), (1, 0)]


@pytest.mark.parametrize("share", [0.08, 1.0])
def test_peft_holds_no_prefix_with_heads_left_out(
    task: Callable[..., Path], shared_host: Callable[[str], Host], tmp_path: Path, share: float
) -> None:
    host = shared_host("llama")
    made = fw.fit(host, task("llama"), heads={0: [1], 1: [0]}, share=share, length=2, steps=1)
    with pytest.raises(PrefixError, match="PEFT cannot hold") as refusal:
        write_peft(tmp_path / "adapter", occupying(made.prefix, host), host)
    assert "share = 1 and at all heads" in (refusal.value.fix or "")
    assert not (tmp_path / "adapter").exists()


def test_the_choice_is_recorded_and_another_one_is_not_gone_on_with(
    task: Callable[..., Path], shared_host: Callable[[str], Host], tmp_path: Path
) -> None:
    from foreword.tuning.fittable import FitWatch, StepTaken

    class Stops(FitWatch):
        def stepped(self, taken: StepTaken) -> None:
            if taken.step == 5:
                raise KeyboardInterrupt

    host, path, out = shared_host("gpt2"), task("gpt2"), tmp_path / "out"
    options = {"length": 3, "steps": 8, "batch_size": 4, "evaluate_every": 4, "start": "text"}
    with pytest.raises(KeyboardInterrupt):
        fw.fit(host, path, heads={0: [1], 1: [0, 3]}, out=out, watch=Stops(), **options)
    for other in ({0: [1], 1: [0, 2]}, {0: [1]}, [0, 3], None):
        with pytest.raises(RunFolderError, match="another fit") as refusal:
            fw.fit(host, path, heads=other, out=out, **options)
        assert "settings.heads" in (refusal.value.found or "")
    resumed = fw.fit.resume(out, host=host)
    whole = fw.fit(host, path, heads={0: [1], 1: [0, 3]}, **options)
    for mine, other_layer in zip(resumed.prefix.layers, whole.prefix.layers, strict=True):
        assert np.array_equal(mine.keys, other_layer.keys)
        assert np.array_equal(mine.values, other_layer.values)
    recorded = json.loads((out / "result.json").read_text())["record"]["settings"]
    assert recorded["settings"]["heads"] == {"0": [1], "1": [0, 3]}
