"""What cannot be attached: a named error that says what to do, and a host that is as it was.

After every refusal the bare model's output is bit-identical, and a prefix that fits gives what it gave before.
"""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.conformance.families import built
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel, AttentionInterface, BloomConfig, BloomForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from foreword.engine import assignment
from foreword.engine.assignment import SiteTensors
from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.host import Host
from foreword.engine.tensors import to_tensors
from foreword.errors import AttachError, ForewordError, HostError, PrefixError
from foreword.prefix import Prefix

IDS = torch.tensor([[5, 9, 4, 11, 7], [8, 6, 3, 9, 12]])

Live = dict[str, SiteTensors]


def output(host: Host) -> Tensor:
    with torch.no_grad():
        found: Tensor = host.model(input_ids=IDS)[0]
    return found


@dataclass(frozen=True)
class Kept:
    """A host, a prefix that fits, and what the model gives without and with it."""

    host: Host
    good: Prefix
    bare: Tensor
    inside: Tensor

    @classmethod
    def of(cls, host: Host) -> Kept:
        good = Prefix.random(host, positions=3, seed=1, scale=1.0)
        bare = output(host)
        with attached(host, good):
            inside = output(host)
        assert not torch.equal(bare, inside)
        return cls(host, good, bare, inside)

    def live(self) -> Live:
        return to_tensors(self.good, device=self.host.device, dtype=self.host.dtype)

    def refuses(self, error: type[ForewordError], match: str, prefixes: Any, rows: Any = None) -> None:
        """The error comes before anything has run, tells all that it must, and leaves the host as it was."""
        entered = False
        with pytest.raises(error, match=match) as caught, attached(self.host, prefixes, rows=rows):
            entered = True
        assert not entered
        assert caught.value.expected
        assert caught.value.found
        assert caught.value.fix
        self.is_as_it_was()

    def is_as_it_was(self) -> None:
        assert torch.equal(output(self.host), self.bare)
        with attached(self.host, self.good):
            assert torch.equal(output(self.host), self.inside)
        assert torch.equal(output(self.host), self.bare)


@pytest.fixture(scope="module", params=["bert", "gpt2", "llama", "bloom"])
def kept(request: pytest.FixtureRequest, load_host: Callable[[str], Host]) -> Kept:
    """An encoder, two causal models on the interface, and one whose attention is watched; each for all tests.

    What a refused call left behind would show in its own test, which computes anew what the model gave before.
    """
    return Kept.of(bloom() if request.param == "bloom" else load_host(request.param))


def bloom() -> Host:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Host(BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)))


# The prefix

Change = Callable[[Kept], Any]


def each(change: Callable[[SiteTensors], Any]) -> Change:
    """The live tensors of a good prefix, changed at the last site only: the first ones fit."""

    def made(kept: Kept) -> Any:
        live = kept.live()
        last = list(live)[-1]
        return {**live, last: change(live[last])}

    return made


def parts(change: Callable[[Tensor], Any]) -> Change:
    return each(lambda site: SiteTensors(change(site.keys), change(site.values)))


def bias(shape: tuple[int, ...], value: float = 0.0) -> Change:
    return each(lambda site: SiteTensors(site.keys, site.values, torch.full(shape, value)))


def spoilt(where: str, value: float) -> Change:
    def change(site: SiteTensors) -> SiteTensors:
        copies = {"keys": site.keys.clone(), "values": site.values.clone()}
        copies[where][0, 0, 0] = value
        return SiteTensors(**copies)

    return each(change)


def reshaped(keys: tuple[int, int, int], values: tuple[int, int, int]) -> Change:
    """A prefix of other heads, dims or value dims: each number is added to that axis of a fitting one."""

    def made(kept: Kept) -> Prefix:
        arrays = {}
        for layer in kept.good.layers:
            shapes = [np.add(layer.keys.shape, keys), np.add(layer.values.shape, values)]
            arrays[layer.site] = tuple(np.zeros(tuple(shape), np.float32) for shape in shapes)
        return Prefix.from_arrays(arrays)

    return made


def one_layer_more(kept: Kept) -> Prefix:
    arrays = {layer.site: (layer.keys, layer.values) for layer in kept.good.layers}
    last = kept.good.layers[-1]
    return Prefix.from_arrays({**arrays, last.site.replace("1", "2", 1): (last.keys, last.values)})


def names_without_layers(kept: Kept) -> Prefix:
    return Prefix.from_arrays({"attention": (kept.good.layers[0].keys, kept.good.layers[0].values)})


PREFIXES: dict[str, tuple[Change, str]] = {
    "a layer more than the model has": (one_layer_more, "does not have"),
    "another model's names": (names_without_layers, "does not have"),
    "a head more": (reshaped((1, 0, 0), (1, 0, 0)), "does not fit the heads"),
    "another dim of keys": (reshaped((0, 0, 1), (0, 0, 0)), "does not fit the heads"),
    "another dim of values": (reshaped((0, 0, 0), (0, 0, 1)), "does not fit the heads"),
    "no site": (lambda _: {}, "no site"),
    "integers": (parts(lambda part: part.long()), "another dtype"),
    "truths": (parts(lambda part: part > 0), "another dtype"),
    "complex numbers": (parts(lambda part: part.to(torch.complex64)), "another dtype"),
    "eight bits": (parts(lambda part: part.to(torch.float8_e4m3fn)), "float8"),
    "an integer bias": (
        each(lambda site: SiteTensors(site.keys, site.values, torch.zeros(site.keys.shape[:2], dtype=torch.int32))),
        "int32",
    ),
    "another device": (parts(lambda part: part.to("meta")), "on meta"),
    "values on another device": (each(lambda site: SiteTensors(site.keys, site.values.to("meta"))), "on meta"),
    "NaN in keys": (spoilt("keys", np.nan), "keys at .* not all finite"),
    "NaN in values": (spoilt("values", np.nan), "values at .* not all finite"),
    "infinity in values": (spoilt("values", -np.inf), "values at .* not all finite"),
    "NaN in the bias": (
        each(lambda site: SiteTensors(site.keys, site.values, torch.full(site.keys.shape[:2], np.nan))),
        "bias at .* not all finite",
    ),
    "an axis less": (parts(lambda part: part[0]), "wrong axes"),
    "an axis more": (parts(lambda part: part[None]), "wrong axes"),
    "no positions": (parts(lambda part: part[:, :0]), "wrong axes"),
    "fewer values than keys": (each(lambda site: SiteTensors(site.keys, site.values[:, 1:])), "disagree"),
    "a bias of other positions": (bias((4, 2)), "disagree"),
    "a bias of an axis more": (bias((4, 3, 1)), "disagree"),
    "NumPy arrays": (parts(lambda part: part.numpy()), "not made of tensors"),
    "sparse tensors": (parts(lambda part: part.to_sparse()), "not made of tensors"),
    "a pair of tensors": (each(lambda site: (site.keys, site.values)), "not made of tensors"),
    "nothing at a site": (each(lambda _: None), "not made of tensors"),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_a_prefix_that_does_not_fit_is_refused(kept: Kept, name: str) -> None:
    change, match = PREFIXES[name]
    kept.refuses(PrefixError, match, change(kept))
    kept.refuses(PrefixError, match, [kept.good, change(kept)], rows=[0, 0])  # also when no row carries it


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_live_tensors_of_another_floating_dtype_are_read_in_the_models(kept: Kept, dtype: torch.dtype) -> None:
    """A fit keeps float32 numbers before a bfloat16 model: what is read is the conversion, not a mixture."""
    live = {name: SiteTensors(x.keys.to(dtype), x.values.to(dtype)) for name, x in kept.live().items()}
    same = {name: SiteTensors(x.keys.to(kept.host.dtype), x.values.to(kept.host.dtype)) for name, x in live.items()}
    with attached(kept.host, same):
        wanted = output(kept.host)
    with attached(kept.host, live):
        assert torch.equal(output(kept.host), wanted)
    kept.is_as_it_was()


@pytest.mark.parametrize("given", [None, "a.prefix", 7, [None], ["a.prefix", "b.prefix"], [[]]], ids=repr)
def test_what_is_no_prefix_is_refused(kept: Kept, given: object) -> None:
    kept.refuses(AttachError, "not a prefix", given, rows=[0, 0])


def test_a_prefix_longer_than_the_budget_is_refused_and_evicts_nothing(kept: Kept) -> None:
    kept.host.resident_limit = 2 * kept.good.nbytes
    resident = kept.host.resident(kept.good)
    long = Prefix.random(kept.host, positions=7, seed=2)
    kept.refuses(PrefixError, "larger than the memory set aside", long)
    assert kept.host.resident(kept.good) is resident


@pytest.mark.parametrize(
    "rows",
    [[0, 2], [-1, 0], [0, 1.0], [True, 0], ["0", 0], [0, [1]], [], "01", 0, torch.tensor([0, 1]), np.array([0, 1])],
    ids=repr,
)
def test_rows_that_name_no_prefix_are_refused(kept: Kept, rows: object) -> None:
    kept.refuses(AttachError, "row", [kept.good, kept.good.slice(0, 1)], rows=rows)


@pytest.mark.parametrize("rows", [[0, 0, 0], [0] * 4], ids=len)
def test_a_batch_of_other_rows_is_refused_when_it_runs(kept: Kept, rows: list[int | None]) -> None:
    with pytest.raises(AttachError, match="does not have the rows"), attached(kept.host, kept.good, rows=rows):
        output(kept.host)
    kept.is_as_it_was()


@pytest.mark.filterwarnings("ignore:a thread that was started:UserWarning")
def test_a_second_attach_from_another_thread_is_refused_and_leaves_both_threads_right(kept: Kept) -> None:
    found: list[Any] = []

    def attach() -> None:
        try:
            with attached(kept.host, kept.good):
                found.append("entered")
        except AttachError as error:
            found.append(error)
        found.append(output(kept.host))

    with attached(kept.host, kept.good):
        thread = threading.Thread(target=attach)
        thread.start()
        thread.join()
        assert torch.equal(output(kept.host), kept.inside)
    refusal, elsewhere = found
    assert isinstance(refusal, AttachError)
    assert "already attached" in str(refusal)
    assert refusal.fix
    assert torch.equal(elsewhere, kept.bare)
    kept.is_as_it_was()


# Contexts that are left otherwise than they were entered


def opened(host: Host, prefix: Prefix) -> Iterator[None]:
    """A generator that holds a prefix attached for as long as it is open."""
    with attached(host, prefix):
        yield


def test_contexts_left_in_another_order_leave_each_host_as_it_was(kept: Kept) -> None:
    other = Kept.of(bloom())
    first, second = opened(kept.host, kept.good), opened(other.host, other.good)
    next(first)
    next(second)
    first.close()  # type: ignore[attr-defined]
    assert torch.equal(output(kept.host), kept.bare)
    assert torch.equal(output(other.host), other.inside)
    second.close()  # type: ignore[attr-defined]
    kept.is_as_it_was()
    other.is_as_it_was()


def test_a_context_that_another_thread_leaves_is_left(kept: Kept) -> None:
    before = dict(AttentionInterface._global_mapping)
    held = opened(kept.host, kept.good)
    next(held)
    thread = threading.Thread(target=held.close)  # type: ignore[attr-defined]
    thread.start()
    thread.join()
    assert AttentionInterface._global_mapping == before
    kept.is_as_it_was()


@pytest.mark.filterwarnings("ignore:a thread that was started:UserWarning")
def test_a_pass_of_the_bare_model_in_another_thread_does_not_disturb_one_under_a_prefix() -> None:
    """Amid its pass, between the calls of a shared module: calls are counted for one thread alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
        kept = Kept.of(Host(AlbertModel(AlbertConfig(**small, num_hidden_layers=2, embedding_size=16))))
    found: list[Tensor] = []

    def elsewhere(*_: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=lambda: found.append(output(kept.host)))
            thread.start()
            thread.join()

    shared = kept.host.module(kept.host.sites[0].name)
    handle = shared.register_forward_hook(elsewhere)
    with attached(kept.host, kept.good):
        assert torch.equal(output(kept.host), kept.inside)
    handle.remove()
    assert len(found) == 2
    assert all(torch.equal(each, kept.bare) for each in found)


@pytest.mark.filterwarnings("ignore:a thread that was started:UserWarning")
def test_a_baked_text_moves_no_context_of_another_thread(load_host: Callable[[str], Host]) -> None:
    kept = Kept.of(load_host("llama"))
    found: list[Tensor] = []
    with attached(kept.host, bake(kept.host, [5, 9, 4])):
        output(kept.host)
        thread = threading.Thread(target=lambda: found.append(output(kept.host)))
        thread.start()
        thread.join()
    assert torch.equal(found[0], kept.bare)


def test_a_copy_made_inside_is_a_bare_model_of_its_own_and_a_pickle_holds_no_prefix(kept: Kept) -> None:
    with attached(kept.host, kept.good):
        made = copy.deepcopy(kept.host.model)
        assert b"_Carrier" not in pickle.dumps(kept.host.model)
    with torch.no_grad():
        assert torch.equal(made(input_ids=IDS)[0], kept.bare)
        for weight in made.parameters():
            weight.zero_()
        assert not made(input_ids=IDS)[0].any()
    kept.is_as_it_was()


# What is neither a host nor a model, and what cannot be baked


def test_what_is_no_host_is_refused_by_name(load_host: Callable[[str], Host]) -> None:
    kept = Kept.of(load_host("llama"))
    for wrong in (kept.host.model, None, "llama"):
        with pytest.raises(AttachError, match="not a host"), attached(wrong, kept.good):  # type: ignore[arg-type]
            pass
        with pytest.raises(AttachError, match="not a host"):
            bake(wrong, [5, 6])  # type: ignore[arg-type]
        with pytest.raises(PrefixError, match="host"):
            Prefix.random(wrong, positions=2)  # type: ignore[arg-type]
    for no_model in (None, "llama", nn.Linear(2, 2)):
        with pytest.raises(HostError, match="not a transformers model"):
            Host(no_model)  # type: ignore[arg-type]
    model = kept.host.model
    kept.host.model = None
    with pytest.raises(AttachError, match="taken away"), attached(kept.host, kept.good):
        pass
    kept.host.model = model
    kept.is_as_it_was()


def test_a_second_host_of_the_same_model_is_not_attached_inside_the_first(kept: Kept) -> None:
    second = Host(kept.host.model)
    with attached(kept.host, kept.good):
        with pytest.raises(AttachError, match="already attached"), attached(second, kept.good):
            pass
        assert torch.equal(output(kept.host), kept.inside)
    kept.is_as_it_was()


def test_nothing_is_baked_behind_what_is_attached(load_host: Callable[[str], Host]) -> None:
    kept = Kept.of(load_host("llama"))
    with attached(kept.host, kept.good), pytest.raises(AttachError, match="read behind it"):
        bake(kept.host, [5, 6])
    kept.is_as_it_was()


UNBAKED: dict[str, Any] = {
    "nothing": None,
    "a number": 7,
    "a truth": True,
    "bytes": b"abc",
    "a set": {5, 6},
    "a table": {"role": "user"},
    "texts": ["a", "b"],
    "fractions": [1.5, 2.0],
    "no ids": [None],
    "a negative id": [5, -1],
    "an id beyond the vocabulary": [5, 10**6],
    "a batch of ids": torch.tensor([[5, 6]]),
    "embeddings of another width": torch.zeros(3, 5),
    "one embedding without its axis": torch.zeros(32),
    "a batch of embeddings": torch.zeros(1, 3, 32),
    "no embeddings": torch.zeros(0, 32),
    "NaN": torch.full((3, 32), torch.nan),
    "complex numbers": torch.zeros(2, 32, dtype=torch.complex64),
}


@pytest.mark.parametrize("name", UNBAKED)
def test_what_is_no_text_is_not_baked(load_host: Callable[[str], Host], name: str) -> None:
    host = load_host("llama")
    with pytest.raises(PrefixError) as caught:
        bake(host, UNBAKED[name])
    assert caught.value.expected
    assert caught.value.found
    assert caught.value.fix


def test_ids_are_baked_from_lists_arrays_and_tensors_alike(load_host: Callable[[str], Host]) -> None:
    host = load_host("llama")
    wanted = bake(host, [5, 6])
    assert bake(host, torch.tensor([5, 6])) == bake(host, np.array([5, 6])) == wanted


def test_the_budget_counts_bytes_as_the_model_holds_them_and_may_be_lowered(load_host: Callable[[str], Host]) -> None:
    kept = Kept.of(load_host("llama"))
    half = kept.good.cast("bfloat16")
    kept.host.resident_limit = kept.good.nbytes - 1
    for each in (kept.good, half):  # the first is resident already
        with pytest.raises(PrefixError, match="larger than the memory"), attached(kept.host, each):
            pass


# A model that was changed between `Host(...)` and `attached(...)`

OTHER = "foreword_test_other"


@pytest.fixture
def other_attention() -> Iterator[None]:
    """An attention function of somebody else's, as flash or flex attention is."""
    AttentionInterface.register(OTHER, sdpa_attention_forward)
    AttentionMaskInterface.register(OTHER, eager_mask)
    yield
    AttentionInterface._global_mapping.pop(OTHER)
    AttentionMaskInterface._global_mapping.pop(OTHER)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_model_switched_to_other_attention_is_refused_before_it_runs(
    load_host: Callable[[str], Host], other_attention: None, family: str
) -> None:
    kept = Kept.of(load_host(family))
    kept.host.model.set_attn_implementation(OTHER)
    switched = output(kept.host)
    with pytest.raises(AttachError, match="switched") as caught, attached(kept.host, kept.good):
        raise AssertionError("entered")
    assert OTHER in caught.value.found
    assert "set_attn_implementation('sdpa')" in caught.value.fix
    assert torch.equal(output(kept.host), switched)
    kept.host.model.set_attn_implementation("sdpa")  # what the error says
    kept.is_as_it_was()


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_a_model_switched_to_eager_reads_the_same_prefix(load_host: Callable[[str], Host], family: str) -> None:
    kept = Kept.of(load_host(family))
    kept.host.model.set_attn_implementation("eager")
    with attached(kept.host, kept.good):
        found = output(kept.host)
    # The same sums in another order: some twenty products of at most 64 terms in a row, as in test_attach.py.
    largest = float(kept.inside.abs().max())
    assert float((found - kept.inside).abs().max()) <= 20 * 64 * torch.finfo(torch.float32).eps * largest


@pytest.mark.parametrize("merges", [False, True], ids=["small", "large enough to merge"])
def test_a_function_in_the_place_of_sdpa_is_the_one_that_computes(
    load_host: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch, merges: bool
) -> None:
    """Merging would go past it to torch's kernels: half of an attention that somebody has doubled would be lost."""
    kept = Kept.of(load_host("gpt2"))
    registry, calls = AttentionInterface._global_mapping, []

    def doubled(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        calls.append(module)
        out, weights = sdpa_attention_forward(module, *arguments, **options)
        return 2 * out, weights

    with attached(kept.host, kept.good), torch.no_grad():
        hidden = kept.host.model.transformer.h[0].attn.c_proj
        seen: list[Tensor] = []
        handle = hidden.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        kept.host.model(input_ids=IDS)
    monkeypatch.setattr(assignment, "is_worth_merging", lambda *_: merges)
    monkeypatch.setitem(registry, "sdpa", doubled)
    with attached(kept.host, kept.good), torch.no_grad():
        kept.host.model(input_ids=IDS)
    handle.remove()
    assert len(calls) == len(kept.host.sites)
    assert torch.equal(seen[1], 2 * seen[0])
    assert registry["sdpa"] is doubled  # and it is still theirs


def test_a_forward_that_somebody_put_on_a_module_is_kept_and_runs(kept: Kept) -> None:
    module = kept.host.module(kept.host.sites[0].name)
    inner, calls = module.forward, []

    def forward(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return inner(*arguments, **options)

    module.forward = forward
    kept.is_as_it_was()
    assert vars(module)["forward"] is forward
    assert len(calls) == 3


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_forward_that_somebody_put_on_a_module_inside_is_kept_and_runs_once_more_behind_it(
    load_host: Callable[[str], Host], family: str
) -> None:
    """As accelerate's hooks are. What stood in for the forward that it calls does nothing from then on."""
    host = Host(built(family)) if family == "gptj" else load_host(family)
    prefix = Prefix.random(host, positions=3, scale=1.0)
    calls: list[nn.Module] = []

    def put_before(module: nn.Module) -> Callable[..., Any]:
        inner = module.forward

        def forward(*arguments: Any, **options: Any) -> Any:
            calls.append(module)
            return inner(*arguments, **options)

        return forward

    modules = [host.model, host.backbone, host.module(host.sites[0].name)]
    with torch.no_grad():
        bare = host.model(IDS).logits
        with attached(host, prefix):
            wanted = host.model(IDS).logits
        try:
            with attached(host, prefix):
                for module in modules:
                    module.forward = put_before(module)
                assert torch.equal(host.model(IDS).logits, wanted)
            for _ in range(2):
                assert torch.equal(host.model(IDS).logits, bare)
                with attached(host, prefix):
                    assert torch.equal(host.model(IDS).logits, wanted)
            assert calls == modules * 5
        finally:
            for module in modules:
                del module.forward
        with attached(host, prefix):
            assert torch.equal(host.model(IDS).logits, wanted)


def test_a_forward_that_goes_past_attention_fails_loudly(kept: Kept) -> None:
    module = kept.host.module(kept.host.sites[0].name)
    inner = module.forward
    with torch.no_grad():  # what it gave to the bare model, whatever it is asked now
        given: list[Any] = []
        module.forward = lambda *a, **k: given.append(inner(*a, **k)) or given[-1]
        output(kept.host)
    module.forward = lambda *_, **__: given[0]
    with pytest.raises(AttachError, match="never reached"), attached(kept.host, kept.good):
        output(kept.host)
    assert torch.equal(output(kept.host), kept.bare)
    del module.forward
    kept.is_as_it_was()


def test_a_layer_that_was_cut_off_is_refused(load_host: Callable[[str], Host]) -> None:
    kept = Kept.of(load_host("llama"))
    layers = kept.host.backbone.layers
    kept.host.backbone.layers = nn.ModuleList(layers[:1])
    with pytest.raises(PrefixError, match="no such attention site"), attached(kept.host, kept.good):
        raise AssertionError("entered")
    kept.host.backbone.layers = layers
    kept.is_as_it_was()


def test_a_copied_module_in_the_place_of_the_first_reads_the_prefix(load_host: Callable[[str], Host]) -> None:
    kept = Kept.of(load_host("llama"))
    layer = kept.host.backbone.layers[0]
    layer.self_attn = copy.deepcopy(layer.self_attn)
    kept.is_as_it_was()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_model_wrapped_by_peft_reads_the_prefix_and_is_let_go_unchanged(load_host: Callable[[str], Host]) -> None:
    """LoRA layers that start at zero change nothing, so the output with the prefix must be what it was."""
    from peft import LoraConfig, get_peft_model

    kept = Kept.of(load_host("llama"))
    wrapped = get_peft_model(kept.host.model, LoraConfig(target_modules=["q_proj", "v_proj"]))
    wrapped.eval()
    with attached(kept.host, kept.good), torch.no_grad():
        assert torch.equal(wrapped(input_ids=IDS).logits, kept.inside)
    kept.is_as_it_was()


def test_a_model_converted_after_a_prefix_was_resident_reads_it_in_full(load_host: Callable[..., Host]) -> None:
    """What was rounded for bfloat16 is not what a float32 model reads."""
    host = load_host("llama", dtype="bfloat16")
    good = Prefix.random(host, positions=3, seed=1, scale=1.0)
    with attached(host, good):
        output(host)
    host.model.float()
    with attached(host, to_tensors(good, device=host.device, dtype=torch.float32)):
        wanted = output(host)
    with attached(host, good):
        assert torch.equal(output(host), wanted)
    assert {part.dtype for x in host.resident(good).values() for part in (x.keys, x.values)} == {torch.float32}


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_model_whose_weights_come_as_they_are_needed_is_the_same_host(
    load_host: Callable[[str], Host], family: str
) -> None:
    """accelerate keeps weights of a model that is larger than its device elsewhere, and meta tensors in their place."""
    from accelerate import cpu_offload

    host = Host(built(family)) if family == "gptj" else load_host(family)
    prefix = Prefix.random(host, positions=3, scale=1.0)
    with torch.no_grad(), attached(host, prefix):
        wanted = host.model(IDS).logits
    fingerprint = host.measure_fingerprint()
    cpu_offload(host.model, execution_device="cpu")
    assert next(host.model.parameters()).device.type == "meta"
    offloaded = Host(host.model, host.tokenizer)
    assert (offloaded.device.type, offloaded.measure_fingerprint()) == ("cpu", fingerprint)
    with torch.no_grad(), attached(offloaded, prefix):
        assert torch.equal(offloaded.model(IDS).logits, wanted)


def test_a_stream_whose_steps_are_run_in_copies_of_a_context_fails_loudly(kept: Kept) -> None:
    """As web frameworks run a generator in threads of a pool: what its first step attached, the second does not see."""

    def stream() -> Iterator[Tensor]:
        with attached(kept.host, kept.good):
            for _ in range(3):
                yield output(kept.host)

    steps = stream()
    assert torch.equal(copy_context().run(next, steps), kept.inside)
    for _ in range(2):
        assert torch.equal(copy_context().run(next, steps), kept.bare)
    with pytest.raises(AttachError, match="in one context and let go in another"):
        copy_context().run(next, steps)
    kept.is_as_it_was()
    steps = stream()  # in one context, whoever runs it, all is well
    assert all(torch.equal(found, kept.inside) for found in copy_context().run(list, steps))
