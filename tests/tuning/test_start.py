"""First values of a fitted prefix: what holds of every start on every role, and what each one promises."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreword.bundle import save_bundle
from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.generation import completion_loss, features
from foreword.engine.host import Host
from foreword.engine.reading import Seen, captured, read
from foreword.engine.rendering import tokens
from foreword.engine.tensors import to_prefix
from foreword.errors import BaseMismatchError, FitError, PrefixError, TaskError
from foreword.prefix import Prefix
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidates import Workbench, candidate_for
from foreword.tuning.closed_form import solve
from foreword.tuning.examples import load_splits
from foreword.tuning.placement import Placement
from foreword.tuning.resize import shares
from foreword.tuning.start import AUTO, FirstValues, first_values, start_for
from foreword.tuning.start_texts import Example, Material
from foreword.tuning.starts import STARTS
from foreword.tuning.task import Task

POSITIONS = 5
FAMILIES = ("bert", "gpt2", "llama", "bart")
TEXT = "the cat sat on the mat and looked at the red bird"
ROWS = [[7, 21, 33, 8, 40], [50, 6, 9]]
EXAMPLES = tuple(
    Example(index=n, read=(5, 9 + n, 20 + n, 31), answer=(40 + n,), told=(5, 9 + n, 20 + n, 31, 40 + n, 12))
    for n in range(4)
)


def encoder_decoder() -> Host:
    """A tiny Bart without a tokenizer: one layer a side."""
    import transformers as hf

    size = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 120, "max_position_embeddings": 64}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = hf.BartConfig(**size, **heads, init_std=0.2, pad_token_id=0, decoder_start_token_id=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Host(hf.BartForConditionalGeneration(config))


@pytest.fixture(scope="module")
def hosts(shared_host: Callable[[str], Host]) -> Callable[[str], Host]:
    bart = encoder_decoder()
    bart.tokenizer = shared_host("gpt2").tokenizer
    bart.model.resize_token_embeddings(len(bart.tokenizer) + 8)
    bart.model.requires_grad_(False)
    return lambda family: bart if family == "bart" else shared_host(family)


def material_of(host: Host, **changes: Any) -> Material:
    given = {"examples": EXAMPLES, "text": TEXT, "prefix": Prefix.random(host, positions=POSITIONS, seed=3, scale=0.3)}
    return Material(**{**given, **changes})


def made(host: Host, start: str, *, positions: int = POSITIONS, seed: int = 0, **changes: Any) -> FirstValues:
    return first_values(host, start, positions=positions, seed=seed, material=material_of(host, **changes))


def output(host: Host, prefix: Any = None) -> torch.Tensor:
    """What the host computes from two short rows, with a prefix or bare."""
    from contextlib import nullcontext

    with torch.no_grad(), nullcontext() if prefix is None else attached(host, prefix):
        return features(host, ROWS)


# Laws of every start


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", STARTS)
def test_it_gives_every_site_finite_numbers_of_its_shape(hosts: Callable[[str], Host], family: str, start: str) -> None:
    host = hosts(family)
    for positions in (2, POSITIONS, 40):
        found = made(host, start, positions=positions)
        assert found.name == (AUTO if start == "auto" else start)
        assert list(found.tensors) == [site.name for site in host.sites]
        for site in host.sites:
            tensors = found.tensors[site.name]
            assert tensors.keys.shape == (site.kv_heads, positions, site.key_dim)
            assert tensors.values.shape == (site.kv_heads, positions, site.value_dim)
            assert tensors.keys.dtype == tensors.values.dtype == torch.float32
        to_prefix(found.tensors)  # which refuses what is not finite
        FittedPrefix(host, positions=positions, seed=0).begin(found.tensors)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("start", STARTS)
def test_its_numbers_follow_from_the_seed(hosts: Callable[[str], Host], family: str, start: str) -> None:
    host = hosts(family)
    first, again, other = (to_prefix(made(host, start, seed=seed).tensors) for seed in (1, 1, 2))
    assert first == again
    drawn = start_for(start) in ("zero", "random", "vocabulary", "closed-form")
    assert (first != other) == drawn


@pytest.mark.parametrize("family", FAMILIES)
def test_making_it_leaves_the_host_as_it_was(hosts: Callable[[str], Host], family: str) -> None:
    host = hosts(family)
    before = host.measure_fingerprint()
    for start in STARTS:
        made(host, start, positions=2)
    assert host.measure_fingerprint() == before
    assert all(parameter.grad is None for parameter in host.model.parameters())
    with attached(host, to_prefix(made(host, "zero").tensors)):  # the host is free
        pass


# Texts


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_text_of_as_many_tokens_computes_what_the_baked_text_does(
    shared_host: Callable[[str], Host], family: str
) -> None:
    """Rotary positions: read at -n to -1, the text stands where the baked one stands, without taking positions."""
    host = shared_host(family)
    length = len(tokens(host, TEXT, special=False))
    found = made(host, "text", positions=length)
    baked = bake(host, TEXT)
    assert baked.occupies == length
    assert torch.allclose(output(host, to_prefix(found.tensors)), output(host, baked), rtol=0, atol=1e-4)
    assert not torch.allclose(output(host), output(host, baked), rtol=0, atol=1e-2)


def test_where_positions_are_learned_a_text_has_the_baked_texts_keys_and_values(
    shared_host: Callable[[str], Host],
) -> None:
    host = shared_host("gpt2")
    baked = bake(host, TEXT)
    found = made(host, "text", positions=baked.positions)
    for layer in baked.layers:
        assert np.array_equal(found.tensors[layer.site].keys.numpy(), layer.keys)
        assert np.array_equal(found.tensors[layer.site].values.numpy(), layer.values)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("copies", [2, 3.5])
def test_a_text_that_is_too_short_is_copied_and_computes_the_same(
    shared_host: Callable[[str], Host], family: str, copies: float
) -> None:
    host = shared_host(family)
    length = sum(len(x.keys[0]) for x in list(made(host, "text", positions=999).tensors.values())[:1])
    assert length == 999
    own = made(host, "text", positions=1).details["tokens"]
    short = to_prefix(made(host, "text", positions=own).tensors)
    long = to_prefix(made(host, "text", positions=int(own * copies)).tensors)
    assert torch.allclose(output(host, short), output(host, long), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_text_that_is_too_long_keeps_its_heaviest_positions(shared_host: Callable[[str], Host], family: str) -> None:
    """By the attention that the examples' queries pay them; a causal model's first position stays in any case."""
    host = shared_host(family)
    own = made(host, "text", positions=1).details["tokens"]
    whole, cut = made(host, "text", positions=own).tensors, made(host, "text", positions=3).tensors
    masses = {site: torch.zeros(found.keys.shape[:2]) for site, found in whole.items()}

    def weigh(seen: Seen) -> None:
        masses[seen.site] += shares(seen, whole[seen.site]).sum(dim=(0, 2, 3))

    rows = [(*x.read, *(x.answer if host.role == "causal" else ())) for x in EXAMPLES]
    read(host, rows, weigh)
    for site, found in cut.items():
        for head, keys in enumerate(found.keys):
            places = [int((whole[site].keys[head] - key).abs().sum(dim=1).argmin()) for key in keys]
            assert torch.equal(whole[site].keys[head][places], keys)
            rest = [place for place in range(own) if place not in places]
            least = min(masses[site][head][place] for place in places if place or host.role != "causal")
            assert all(masses[site][head][place] <= least for place in rest)
            assert host.role != "causal" or places[0] == 0


def test_solving_the_values_of_a_cut_text_brings_it_nearer_to_the_whole(shared_host: Callable[[str], Host]) -> None:
    """On the rows that judge: against the same positions with the values that they had."""
    host = shared_host("llama")
    own = made(host, "text", positions=1).details["tokens"]
    whole, cut = made(host, "text", positions=own).tensors, made(host, "text", positions=3).tensors
    plain = {}
    for site, found in cut.items():
        places = torch.stack(
            [
                torch.stack([(w - k).abs().sum(dim=1).argmin() for k in ks])
                for w, ks in zip(whole[site].keys, found.keys, strict=True)
            ]
        )
        values = whole[site].values.gather(1, places[:, :, None].expand_as(found.values))
        plain[site] = type(found)(found.keys, values)
    first = host.sites[0].name
    errors = {}
    for name, tensors in (("solved", cut), ("plain", plain)):
        squares: list[float] = []

        def compare(seen: Seen, part: Any = tensors, squares: list[float] = squares) -> None:
            if seen.site == first:
                squares.append(_distance(seen, whole[first], part[first]))

        read(host, [(*x.read, *x.answer) for x in EXAMPLES], compare)
        errors[name] = sum(squares)
    assert errors["solved"] < errors["plain"]


def _distance(seen: Seen, whole: Any, part: Any) -> float:
    """Between attention's outputs under the two prefixes at one site, summed squares."""
    outs = []
    for prefix in (whole, part):
        weights = shares(seen, prefix)
        out = torch.einsum("bkgqp,kpv->bkgqv", weights, prefix.values)
        context = seen.out.unflatten(1, (len(prefix.keys), -1))
        outs.append(out + (1 - weights.sum(dim=-1, keepdim=True)) * context)
    return float(((outs[0] - outs[1]) * seen.real[:, None, None, :, None]).square().sum())


def test_an_encoder_decoder_text_reaches_every_kind_of_site(hosts: Callable[[str], Host]) -> None:
    host = hosts("bart")
    found = captured(host, [5, 6, 7, 8], [2, 5, 6])
    lengths = {site.name: found[site.name].keys.shape[1] for site in host.sites}
    assert [lengths[site.name] for site in host.sites] == [
        4 if s.role == "cross" or not s.causal else 3 for s in host.sites
    ]


# Another prefix


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prefix_of_the_same_length_is_taken_as_it_is(hosts: Callable[[str], Host], family: str) -> None:
    host = hosts(family)
    given = Prefix.random(host, positions=POSITIONS, seed=1)
    assert to_prefix(made(host, "prefix", prefix=given).tensors) == given


def test_a_site_that_the_prefix_lacks_starts_from_zero_values(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("bert")
    given = Prefix.random(host, positions=POSITIONS, seed=1).select([host.sites[1].name])
    found = made(host, "prefix", prefix=given).tensors
    assert not found[host.sites[0].name].values.any()
    assert np.array_equal(found[host.sites[1].name].values.numpy(), given.layers[0].values)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("positions", [POSITIONS - 1, POSITIONS, 2 * POSITIONS])
def test_a_head_that_the_prefix_lacks_starts_from_zero_values_and_can_be_fitted(
    shared_host: Callable[[str], Host], family: str, positions: int
) -> None:
    """A left-out head's bias gives it no weight, and would give it no gradient."""
    host = shared_host(family)
    left = FittedPrefix(host, positions=POSITIONS, seed=0, placement=Placement(heads=(0,)))
    left.begin(made(host, "random").tensors)
    given = left.prefix().cast("float16")
    found = made(host, "prefix", prefix=given, positions=positions).tensors
    fitted = FittedPrefix(host, positions=positions, seed=0, placement=Placement(heads=(1,)))
    fitted.begin(found)
    with fitted.active():
        features(host, [[7, 21, 33, 8, 40]]).square().sum().backward()
    for site, part in found.items():
        assert part.values[0].any()
        assert not part.values[1].any()
        assert part.keys[1].any()
        assert part.bias is None or not part.bias[1].any()
        gradient = fitted.tensors[site].values.grad
        assert gradient is not None
        assert gradient[1].any()


# Closed form


Bench = Callable[..., Workbench]


@pytest.fixture(scope="module")
def bench(
    load_host: Callable[[str], Host],
    model_folder: Callable[[str], Path],
    write_task: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    def make(family: str, *, kind: str = "classify", **table: Any) -> Workbench:
        folder = tmp_path_factory.mktemp("task")
        values = {"kind": "prefix", "positions": 3, "steps": 2, "batch_size": 6, **table}
        loaded = Task.load(write_task(folder, model_folder(family), [values], kind=kind))
        return Workbench(load_host(family), loaded, load_splits(loaded))

    return make


@pytest.mark.parametrize(("family", "kind"), [("bert", "classify"), ("llama", "classify"), ("gpt2", "generate")])
def test_a_closed_form_lowers_the_loss_it_was_solved_for(bench: Bench, family: str, kind: str) -> None:
    """Never above the zero start's, whose keys it has; and below it, as something was solved."""
    made = bench(family, kind=kind, start="closed-form", steps=1)
    fitted = candidate_for(made.task.candidates[0]).fit(made, seed=0)
    told = fitted.details["start"]
    assert told["losses"][2] <= min(told["losses"][:2])
    assert len(told["moves"]) == len(told["judged"]) == 5
    # A round costs what a step does, forward and backward; before and after it the loss alone, and 6 texts are read.
    examples = len(made.splits.fit[:16])
    assert (told["forwards"], told["backwards"]) == (7 * examples + examples, 5 * examples)
    # A loss that leaves each example out can have no way down for the others; a likelihood has one.
    assert told["losses"][2] < told["losses"][0] or family == "bert"


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_closed_form_is_solved_in_parts_and_with_layers_computed_twice(bench: Bench, family: str) -> None:
    """As the fit's own steps are, so that what a step has room for has it before the first, too."""
    told = []
    for table in ({}, {"checkpointing": True, "part": 2}):
        made = bench(family, start="closed-form", steps=1, **table)
        told.append(candidate_for(made.task.candidates[0]).fit(made, seed=0).details["start"])
    assert told[0]["moves"] == told[1]["moves"]
    assert told[0]["judged"] == pytest.approx(told[1]["judged"], rel=1e-4)  # sums of floats in another order


class Narrow:
    """The mean of all values, which has a way down for ever; memory holds at most `room` examples at once."""

    examples, lengths = 8, (1,) * 8
    is_kept_by_loss = False

    def __init__(self, adaptation: FittedPrefix, room: int) -> None:
        self.adaptation, self.room, self.widest = adaptation, room, 0

    def loss(self, indices: list[int], step: int) -> torch.Tensor:
        del step
        if len(indices) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        self.widest = max(self.widest, len(indices))
        parts = [each.values.mean() for each in self.adaptation.tensors.values()]
        return torch.stack(parts).mean()

    def weight(self, indices: list[int]) -> float:
        return float(len(indices))

    def evaluate(self, step: int) -> tuple[float, float]:
        raise NotImplementedError

    def memory(self) -> dict[str, torch.Tensor]:
        return {}

    def remember(self, memory: dict[str, torch.Tensor]) -> None:
        del memory


def test_a_closed_form_whose_examples_do_not_fit_into_memory_is_solved_in_parts(
    shared_host: Callable[[str], Host],
) -> None:
    host, found = shared_host("llama"), {}
    for room in (8, 2):
        adaptation = FittedPrefix(host, positions=3, seed=0)
        problem = Narrow(adaptation, room)
        told = solve(adaptation, problem, material_of(host))
        assert told.losses[2] < told.losses[0]
        assert problem.widest == room
        found[room] = torch.cat([each.values.detach().flatten() for each in adaptation.tensors.values()])
    # The mean of four equal parts: rounding of float32 alone, through five solved systems.
    assert torch.allclose(found[8], found[2], rtol=1e-4, atol=1e-5)
    adaptation = FittedPrefix(host, positions=3, seed=0)
    with pytest.raises(FitError, match="Not even one example"):
        solve(adaptation, Narrow(adaptation, 0), material_of(host))


def test_a_loss_that_is_not_finite_leaves_zero_values(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("llama")
    adaptation = FittedPrefix(host, positions=3, seed=0)

    class Broken(Narrow):
        def loss(self, indices: list[int], step: int) -> torch.Tensor:
            return super().loss(indices, step) * float("nan")

    solve(adaptation, Broken(adaptation, 8), material_of(host))
    assert not any(each.values.any() for each in adaptation.tensors.values())


def test_without_a_round_the_closed_form_is_nearer_to_the_bare_model_than_zero_values(
    shared_host: Callable[[str], Host],
) -> None:
    """At the first site, on the rows it was solved on: least squares against one of the candidates, all zeros."""
    host = shared_host("llama")

    class Flat:
        """A loss with no slope."""

        examples, lengths = 4, (1, 1, 1, 1)
        is_kept_by_loss = False

        def loss(self, indices: list[int], step: int) -> torch.Tensor:
            del step
            return 0.0 * sum(found.values.sum() for found in adaptation.tensors.values()) + 0.0 * len(indices)

        def weight(self, indices: list[int]) -> float:
            return float(len(indices))

        def memory(self) -> dict[str, torch.Tensor]:
            return {}

        def remember(self, memory: dict[str, torch.Tensor]) -> None:
            del memory

    adaptation = FittedPrefix(host, positions=3, seed=0)
    zero = {
        site: type(found)(found.keys.clone(), found.values.detach().clone())
        for site, found in adaptation.tensors.items()
    }
    solve(adaptation, Flat(), material_of(host), rounds=1)  # type: ignore[arg-type]
    rows = [(*x.read, *x.answer) for x in EXAMPLES]
    first, damage = host.sites[0].name, {"zero": 0.0, "solved": 0.0}

    def measure(seen: Seen) -> None:
        if seen.site == first:
            for name, tensors in (("zero", zero), ("solved", adaptation.tensors)):
                part = tensors[first]
                weights = shares(seen, part)
                context = seen.out.unflatten(1, (len(part.keys), -1))
                moved = torch.einsum("bkgqp,kpv->bkgqv", weights, part.values) - weights.sum(-1, keepdim=True) * context
                damage[name] += float((moved.detach() * seen.real[:, None, None, :, None]).square().sum())

    read(host, rows, measure)
    assert damage["solved"] < damage["zero"]


# Where it sits, and what of it is fitted


def test_values_alone_are_fitted_when_asked(bench: Bench) -> None:
    made = bench("llama", start="text", train="values")
    before = FittedPrefix(made.host, positions=3, seed=0)
    fitted = candidate_for(made.task.candidates[0]).fit(made, seed=0)
    adaptation = fitted.predictor.adaptation
    assert isinstance(adaptation, FittedPrefix)
    fitted_numbers = [part for group in adaptation.groups(None) for part in group["params"]]
    assert [id(part) for part in fitted_numbers] == [id(found.values) for found in adaptation.tensors.values()]
    assert max(group["lr"] for group in adaptation.groups(0.5)) == 0.5
    assert adaptation.trainable * 2 == before.trainable
    assert not any(found.keys.requires_grad for found in adaptation.tensors.values())


def test_layers_and_heads_that_carry_nothing_compute_what_the_bare_model_does(
    shared_host: Callable[[str], Host],
) -> None:
    host = shared_host("bert")
    bare, values = output(host), made(host, "random").tensors
    seen: dict[str, list[torch.Tensor]] = {}
    for name, placement in (("some", Placement(layers=(1,), heads=(0, 2))), ("none", Placement(heads=()))):
        adaptation = FittedPrefix(host, positions=POSITIONS, seed=0, placement=placement)
        adaptation.begin(values)
        with torch.no_grad(), adaptation.active():
            seen[name] = [features(host, ROWS)]
        assert adaptation.prefix().sites == tuple(site.name for site in host.sites)[-len(adaptation.tensors) :]
    # Weight 0 exactly; what is left is the order in which a longer row of weights is summed.
    assert torch.allclose(seen["none"][0], bare, rtol=0, atol=1e-5)
    assert not torch.allclose(seen["some"][0], bare, rtol=0, atol=1e-3)
    some = FittedPrefix(host, positions=POSITIONS, seed=0, placement=Placement(layers=(1,), heads=(0, 2)))
    assert some.trainable == 2 * POSITIONS * 2 * 8


def test_what_is_not_fitted_gets_no_gradient(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("llama")
    adaptation = FittedPrefix(host, positions=POSITIONS, seed=0, placement=Placement(heads=(1,), sink=True))
    adaptation.begin(made(host, "text").tensors)
    with adaptation.active():
        completion_loss(host, ROWS, [[4], [5]]).backward()
    for found in adaptation.tensors.values():
        for part in (found.keys, found.values):
            assert part.grad is not None
            assert not part.grad[0].any()
            assert not part.grad[1, 0].any()
            assert part.grad[1, 1:].any()
    assert adaptation.trainable == len(host.sites) * 1 * (POSITIONS - 1) * 2 * 8


@pytest.mark.parametrize("start", ["text", "closed-form"])
def test_an_interrupted_fit_goes_on_from_any_start(bench: Bench, tmp_path: Path, start: str) -> None:
    from foreword.tuning.fittable import FitWatch, StepTaken

    class Stops(FitWatch):
        def stepped(self, taken: StepTaken) -> None:
            if taken.step == 1:
                raise KeyboardInterrupt

    made = bench("llama", start=start, positions=40, heads=[0], sink=True, train="values", steps=3)
    candidate = candidate_for(made.task.candidates[0])
    with pytest.raises(KeyboardInterrupt):
        candidate.fit(made, seed=0, checkpoint=tmp_path / "checkpoint", watch=Stops())
    resumed = candidate.fit(made, seed=0, checkpoint=tmp_path / "checkpoint")
    whole = candidate.fit(made, seed=0)
    assert resumed.predictor.adaptation.prefix() == whole.predictor.adaptation.prefix()  # type: ignore[attr-defined]


# Refusals


def test_a_start_that_lacks_its_material_is_refused(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("llama")
    with pytest.raises(FitError, match="no such start"):
        made(host, "xavier")
    with pytest.raises(FitError, match="no text"):
        made(host, "text", text=None)
    with pytest.raises(FitError, match="no text"):
        made(host, "text", text="  ")
    with pytest.raises(FitError, match="lacks"):
        made(host, "demonstrations", examples=())
    with pytest.raises(FitError, match="lacks"):
        made(host, "prefix", prefix=None)
    with pytest.raises(FitError, match="lacks"):
        made(host, "prefix", examples=(), text=None, positions=2)
    with pytest.raises(FitError, match="baked"):
        made(host, "prefix", prefix=bake(host, TEXT))


def test_a_prefix_of_another_base_is_refused(shared_host: Callable[[str], Host], bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(PrefixError):
        made(shared_host("llama"), "prefix", prefix=Prefix.random(shared_host("bert"), positions=3))
    other = shared_host("gpt2")
    path = tmp_path / "other.prefix"
    save_bundle(path, Prefix.random(other, positions=3), host=other)
    task = bench("llama", start="prefix", start_prefix=str(path))
    with pytest.raises(BaseMismatchError):
        candidate_for(task.task.candidates[0]).fit(task, seed=0)


def test_a_layer_or_head_that_is_not_there_is_refused(bench: Bench) -> None:
    for table in ({"layers": [0, 2]}, {"heads": ["1-3"]}):
        made = bench("llama", **table)
        with pytest.raises(FitError, match="no such"):
            candidate_for(made.task.candidates[0]).fit(made, seed=0)


@pytest.mark.parametrize("start", ["zero", "closed-form"])
def test_layers_that_have_no_part_in_the_answers_are_refused(bench: Bench, start: str) -> None:
    """Features are the encoder's: sites of the decoder, which follow the encoder's, never change them."""
    made = bench("t5", start=start, readout="linear", layers=[3])
    with pytest.raises(FitError, match="has a part in the answers"):
        candidate_for(made.task.candidates[0]).fit(made, seed=0)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"start": "zero", "start_text": "a text"}, "start_text"),
        ({"start_prefix": "a.prefix"}, "start_prefix"),
        ({"start": "prefix"}, "start_prefix"),
        ({"start": "ones"}, "start"),
        ({"layers": []}, "layers"),
        ({"layers": ["3-1"]}, "layers"),
        ({"heads": [-1]}, "heads"),
        ({"heads": [True]}, "heads"),
        ({"sink": True, "positions": 1}, "sink"),
        ({"train": "keys"}, "train"),
    ],
)
def test_a_task_file_that_contradicts_itself_is_refused(
    write_task: Callable[..., Path], tmp_path: Path, table: dict[str, Any], expected: str
) -> None:
    with pytest.raises(TaskError, match=expected):
        Task.load(write_task(tmp_path, "x", [{"kind": "prefix", **table}]))


def test_ranges_of_layers_are_numbers_in_order(write_task: Callable[..., Path], tmp_path: Path) -> None:
    task = Task.load(write_task(tmp_path, "x", [{"kind": "prefix", "layers": ["4-6", 1, 5]}]))
    assert task.candidates[0].layers == (1, 4, 5, 6)  # type: ignore[union-attr]
    assert Task.parse(task.settings(), folder=tmp_path).candidates == task.candidates
