"""A prefix in a live model computes what the plain statement says, and leaves the model as it was."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    BloomConfig,
    BloomForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    ViTConfig,
    ViTModel,
)

from foreword.engine.assignment import Assignment, SiteTensors
from foreword.engine.attach import attached
from foreword.engine.attention import AttentionCall, joined
from foreword.engine.bake import bake
from foreword.engine.host import Host
from foreword.engine.tensors import to_prefix, to_tensors
from foreword.errors import AttachError, PrefixError
from foreword.prefix import Prefix

LENGTHS = (12, 7, 3)


def tolerance(dtype: torch.dtype, largest: float) -> float:
    """What rounding may add between two correct computations of a tiny model's output.

    Between input and output lie 17 matrix products in a row (8 in each of two layers, and the head), each over at most
    64 terms: 17 * 64 * eps relative to the largest number, to first order (Higham, Accuracy and Stability of Numerical
    Algorithms, 2002, section 3.5). 1.3e-4 relative in float32, 2.4e-13 in float64.
    """
    return 17 * 64 * torch.finfo(dtype).eps * largest


def a_prefix(host: Host, *, positions: int = 3, seed: int = 1, bias: bool = False) -> Prefix:
    """Keys and values as large as a real context's, so that a wrong one changes the output by whole numbers."""
    made = Prefix.random(host, positions=positions, seed=seed, scale=1.0)
    rng = np.random.default_rng(seed)
    if not bias:
        return made
    return Prefix.from_arrays(
        {x.site: (x.keys, x.values, rng.normal(size=x.keys.shape[:2]).astype(np.float32)) for x in made.layers}
    )


def inputs(host: Host, *, left: bool = False) -> dict[str, Tensor]:
    """Three rows of 12, 7 and 3 tokens, padded at one side; position ids count real tokens."""
    ids = torch.randint(4, 60, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    for row, length in enumerate(LENGTHS):
        mask[row, slice(0, 12 - length) if left else slice(length, 12)] = 0
    positions = {} if host.role == "encoder" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    return {"input_ids": ids, "attention_mask": mask, **positions}


def output(model: Any, given: dict[str, Tensor]) -> Tensor:
    """Logits, or the last hidden state of an encoder, at the real tokens."""
    with torch.no_grad():
        found: Tensor = model(**given)[0]
    return found[given["attention_mask"].bool()]


def with_implementation(host: Host, name: str, dtype: torch.dtype) -> Host:
    model = copy.deepcopy(host.model).to(dtype)
    model.set_attn_implementation(name)
    return Host(model, host.tokenizer, reference=host.reference)


@pytest.fixture(autouse=True)
def registry_is_untouched() -> Iterator[None]:
    """Every test here leaves transformers' registry of attention functions with the very objects it held before."""
    before = dict(AttentionInterface._global_mapping)
    yield
    after = AttentionInterface._global_mapping
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


# What it computes


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("sdpa", torch.float32), ("eager", torch.float32), ("sdpa", torch.float64)], ids=str
)
def test_a_prefix_is_one_softmax_over_prefix_and_context(
    host: Host, oracle: Callable[..., Any], name: str, dtype: torch.dtype, left: bool, bias: bool
) -> None:
    live, prefix, given = with_implementation(host, name, dtype), a_prefix(host, bias=bias), inputs(host, left=left)
    wanted, bare = output(oracle(live, prefix), given), output(oracle(live, None), given)
    with attached(live, prefix):
        found = output(live.model, given)
    # Root-mean-square norms and rotations compute in float32 whatever the model's dtype is.
    exact = dtype if host.family in ("bert", "roberta", "distilbert", "gpt2") else torch.float32
    allowed = tolerance(exact, float(wanted.abs().max()))
    assert float((found - wanted).abs().max()) <= allowed
    assert float((wanted - bare).abs().max()) > 1000 * allowed  # so that a lost or misplaced prefix would show


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_a_prefix_at_some_sites_only_is_read_at_those_only(host: Host, oracle: Callable[..., Any], left: bool) -> None:
    given = inputs(host, left=left)
    for site in host.sites:
        prefix = a_prefix(host).select([site.name])
        wanted = output(oracle(host, prefix), given)
        with attached(host, prefix):
            found = output(host.model, given)
        assert float((found - wanted).abs().max()) <= tolerance(torch.float32, float(wanted.abs().max()))


def test_a_row_with_padding_gives_what_it_gives_alone(host: Host) -> None:
    prefix = a_prefix(host, bias=True)
    for left in (False, True) if host.role == "causal" else (False,):  # an encoder counts positions from the left edge
        given = inputs(host, left=left)
        with attached(host, prefix):
            together = output(host.model, given).split(LENGTHS)
            for row, length in enumerate(LENGTHS):
                ids = given["input_ids"][row : row + 1, slice(12 - length, 12) if left else slice(0, length)]
                alone = output(host.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
                largest = float(alone.abs().max())
                assert float((alone - together[row]).abs().max()) <= tolerance(torch.float32, largest)


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_row_without_a_prefix_is_the_bare_models_with_its_padding(
    host: Host, implementation: str, left: bool
) -> None:
    """Every number of it, at padding too: where the caller states no positions, they are the bare model's in that row.

    A row with a prefix beside it counts its real tokens, so a causal model gives it what it gives alone.
    """
    live, prefix = with_implementation(host, implementation, torch.float32), a_prefix(host)
    given = inputs(host, left=left)
    given.pop("position_ids", None)
    with torch.no_grad():
        bare = live.model(**given)[0]
        with attached(live, [prefix], rows=[None, 0, None]):
            found = live.model(**given)[0]
        with attached(live, [prefix], rows=[None, None, None]):
            assert torch.equal(live.model(**given)[0], bare)
    assert torch.equal(found[0], bare[0])
    assert torch.equal(found[2], bare[2])
    real = given["attention_mask"][1].bool()
    if host.role == "causal" or not left:  # an encoder counts positions from the left edge
        with attached(live, prefix):
            alone = output(live.model, {name: part[1:2, real] for name, part in given.items()})
        assert float((found[1, real] - alone).abs().max()) <= tolerance(torch.float32, float(alone.abs().max()))


@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_a_row_without_a_prefix_is_counted_by_its_mask_where_the_bare_model_does(left: bool) -> None:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=32,
    )
    host = Host(OPTForCausalLM(config))
    given = inputs(host, left=left)
    given.pop("position_ids")
    with torch.no_grad():
        bare = host.model(**given).logits
        with attached(host, [a_prefix(host), bake(host, [5, 9])], rows=[0, None, 1]):
            assert torch.equal(host.model(**given).logits[1], bare[1])


def test_a_prefix_takes_no_position(causal: Host) -> None:
    """Positions that nothing attends to (a bias of -1e4: exp(-1e4) is 0 in float32) change nothing, so no token moved.

    And the cache holds the context only.
    """
    made = a_prefix(causal)
    unseen = Prefix.from_arrays(
        {x.site: (x.keys, x.values, np.full(x.keys.shape[:2], -1e4, np.float32)) for x in made.layers}
    )
    given = inputs(causal)
    given.pop("position_ids")
    bare = output(causal.model, given)
    with attached(causal, unseen):
        found = output(causal.model, given)
        cache = causal.model(**given, use_cache=True).past_key_values
    assert float((found - bare).abs().max()) <= tolerance(torch.float32, float(bare.abs().max()))
    assert cache.get_seq_length() == 12


def test_a_prefix_that_occupies_positions_is_read_as_the_text_in_the_prompt(causal: Host) -> None:
    """The context's position ids start behind it: every row's, with padding at either side.

    Under mistral's sliding window of six a row is compared as long as the window has not left the text.
    """
    text = torch.randint(4, 60, (3,), generator=torch.Generator().manual_seed(5))
    baked = bake(causal, text.tolist())
    assert baked.occupies == len(text)
    window = getattr(causal.model.config, "sliding_window", None)
    for left in (False, True):
        given = inputs(causal, left=left)
        given.pop("position_ids")
        with torch.no_grad(), attached(causal, baked):
            found = causal.model(**given).logits
        for row, length in enumerate(LENGTHS):
            start = 12 - length if left else 0
            read = length if window is None else min(length, window - len(text))
            own = given["input_ids"][row, start : start + read]
            with torch.no_grad():
                wanted = causal.model(input_ids=torch.cat([text, own])[None]).logits[0, len(text) :]
            allowed = tolerance(torch.float32, float(wanted.abs().max()))
            assert float((found[row, start : start + read] - wanted).abs().max()) <= allowed


def test_chunks_through_the_cache_give_what_one_pass_gives(causal: Host) -> None:
    given = {"input_ids": inputs(causal)["input_ids"]}
    with torch.no_grad(), attached(causal, a_prefix(causal, bias=True)):
        whole = causal.model(**given).logits
        cache, parts = None, []
        for chunk in given["input_ids"].split([5, 4, 1, 1, 1], dim=1):
            done = causal.model(input_ids=chunk, past_key_values=cache, use_cache=True)
            cache = done.past_key_values
            parts.append(done.logits)
    largest = float(whole.abs().max())
    assert float((torch.cat(parts, dim=1) - whole).abs().max()) <= tolerance(torch.float32, largest)


def test_two_merged_prefixes_are_one_prefix_of_both(host: Host) -> None:
    first, second = a_prefix(host, seed=1), a_prefix(host, seed=2, bias=True)
    given = inputs(host)
    with attached(host, first.merge(second)):
        found = output(host.model, given)
    with attached(host, second.merge(first)):  # softmax does not know an order
        turned = output(host.model, given)
    assert float((found - turned).abs().max()) <= tolerance(torch.float32, float(found.abs().max()))


MASKS: dict[str, Callable[[int, int], Tensor | None]] = {
    "none": lambda *_: None,
    "boolean": lambda q, k: torch.rand(2, 1, q, k, generator=torch.Generator().manual_seed(1)) > 0.4,
    "additive": lambda q, k: torch.randn(2, 1, q, k, generator=torch.Generator().manual_seed(1)),
    "one for all rows": lambda q, k: torch.randn(1, 1, q, k, generator=torch.Generator().manual_seed(1)),
    "one for each head": lambda q, k: torch.randn(2, 4, q, k, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("causal_module", [False, True], ids=["sees all", "causal"])
@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("mask", MASKS)
def test_every_kind_of_mask_keeps_its_meaning(mask: str, queries: int, causal_module: bool, bias: bool) -> None:
    """Against an explicit double loop over rows and heads in float64; nothing here has more than 15 terms to add."""
    heads, kv_heads, keys, dim, positions = 4, 2, 5, 8, 3
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = causal_module, heads // kv_heads  # type: ignore[assignment]
    query, key, value = draw(2, heads, queries, dim), draw(2, kv_heads, keys, dim), draw(2, kv_heads, keys, dim)
    own_keys, own_values = draw(kv_heads, positions, dim), draw(kv_heads, positions, dim)
    own_bias = draw(kv_heads, positions) if bias else None
    given = MASKS[mask](queries, keys)
    given = given.double() if given is not None and given.dtype != torch.bool else given
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    call = AttentionCall(module, query, key, value, given, {"scaling": 0.3}, sdpa_attention_forward, "sdpa")
    found = joined(call, own_keys, own_values, own_bias)[0]
    hides_later_keys = given is None and causal_module and queries > 1
    for row in range(2):
        for head in range(heads):
            shared = head // 2
            scores = 0.3 * query[row, head] @ key[row, shared].T
            if given is not None:
                seen = given[min(row, len(given) - 1), min(head, given.shape[1] - 1)]
                scores = scores.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else scores + seen
            if hides_later_keys:
                scores = scores + torch.full((queries, keys), -torch.inf, dtype=torch.float64).triu(1)
            own = 0.3 * query[row, head] @ own_keys[shared].T + (0 if own_bias is None else own_bias[shared])
            weights = torch.cat([own, scores], dim=1).exp()
            weights = weights / weights.sum(dim=1, keepdim=True)
            wanted = weights @ torch.cat([own_values[shared], value[row, shared]])
            # Numbers below 5, sums of at most 8 terms, exponentials below e^10 divided by their sum: 1e3 eps.
            assert torch.allclose(found[row, :, head], wanted, rtol=0, atol=1e3 * torch.finfo(torch.float64).eps)


# Leaving


def test_leaving_restores_identical_output(host: Host) -> None:
    given = inputs(host)
    before = host.model(**given)[0]
    fingerprint = host.measure_fingerprint()
    hooks = len(host.backbone._forward_hooks)
    with attached(host, a_prefix(host)):
        inside = host.model(**given)[0]
    assert not torch.equal(inside, before)
    assert torch.equal(host.model(**given)[0], before)
    assert host.measure_fingerprint() == fingerprint
    assert len(host.backbone._forward_hooks) == hooks


def test_an_exception_inside_restores_the_model(host: Host) -> None:
    given = inputs(host)
    before = host.model(**given)[0]
    with pytest.raises(ZeroDivisionError), attached(host, a_prefix(host)):
        raise ZeroDivisionError
    with pytest.raises(RuntimeError, match="at least"), attached(host, a_prefix(host)):
        raise RuntimeError("at least one site was not reached, but this error is the one to see")
    assert torch.equal(host.model(**given)[0], before)
    with attached(host, a_prefix(host)):  # and it can be attached again
        assert not torch.equal(host.model(**given)[0], before)


def test_a_pass_that_fails_and_is_caught_inside_is_no_second_error(host: Host) -> None:
    prefix = Prefix.random(host, positions=3)
    with attached(host, prefix), pytest.raises(IndexError):
        host.backbone(input_ids=torch.tensor([[10**6]]))
    with attached(host, [prefix], rows=[0, None]), pytest.raises(AttachError, match="does not have the rows"):
        host.backbone(input_ids=torch.tensor([[3, 4]]))


def test_a_second_attach_is_refused_and_leaves_the_first(host: Host) -> None:
    given = inputs(host)
    with attached(host, a_prefix(host)):
        inside = output(host.model, given)
        with pytest.raises(AttachError, match="already attached"), attached(host, a_prefix(host, seed=2)):
            pass
        assert torch.equal(output(host.model, given), inside)
    with attached(host, a_prefix(host)):
        assert torch.equal(output(host.model, given), inside)


def in_a_thread(work: Callable[[], Any]) -> Any:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001  handed to the test
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return results[0]


def test_another_thread_sees_the_bare_model_and_one_that_was_started_inside_is_told(host: Host) -> None:
    """Of a thread that was there before, nobody can expect that it reads the prefix."""
    given = inputs(host)
    before = output(host.model, given)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with attached(host, a_prefix(host)):
            inside = output(host.model, given)
            assert torch.equal(pool.submit(output, host.model, given).result(), before)

    def both() -> Tensor:
        output(host.model, given)
        found: Tensor = in_a_thread(lambda: output(host.model, given))
        return found

    with pytest.warns(UserWarning, match="was started while a prefix was attached"), attached(host, a_prefix(host)):
        elsewhere = both()
    with attached(host, a_prefix(host)):
        told = in_a_thread(partial(copy_context().run, output, host.model, given))
    assert torch.equal(told, inside)
    assert torch.equal(elsewhere, before)
    assert not torch.equal(inside, before)


def test_another_thread_cannot_attach_to_the_same_host(host: Host) -> None:
    def attach() -> None:
        with attached(host, a_prefix(host)):
            pass

    with attached(host, a_prefix(host)):
        assert isinstance(in_a_thread(attach), AttachError)


def test_prefixes_in_two_threads_do_not_mix(shared_host: Callable[[str], Host]) -> None:
    """Both are attached at the same time, and the first to come is the first to leave."""
    hosts = [shared_host("bert"), shared_host("gpt2")]
    alone = []
    for host in hosts:
        with attached(host, a_prefix(host)):
            alone.append(output(host.model, inputs(host)))
    both, first_left = threading.Barrier(2, timeout=30), threading.Event()

    def work(number: int) -> list[Tensor]:
        host = hosts[number]
        with attached(host, a_prefix(host)):
            both.wait()
            found = [output(host.model, inputs(host))]
            both.wait()
            if number == 1:
                assert first_left.wait(30)
                found.append(output(host.model, inputs(host)))
        if number == 0:
            first_left.set()
        return found

    results: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda n=n: results.update({n: work(n)})) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(results[0]), len(results[1])] == [1, 2]
    for number in range(2):
        assert all(torch.equal(found, alone[number]) for found in results[number])


def test_prefixes_of_two_hosts_act_in_nested_contexts(shared_host: Callable[[str], Host]) -> None:
    outer, inner = shared_host("bert"), shared_host("gpt2")
    with attached(outer, a_prefix(outer)):
        wanted = output(outer.model, inputs(outer))
    with attached(inner, a_prefix(inner)):
        wanted_inner = output(inner.model, inputs(inner))
    with attached(outer, a_prefix(outer)):
        with attached(inner, a_prefix(inner)):
            assert torch.equal(output(outer.model, inputs(outer)), wanted)
            assert torch.equal(output(inner.model, inputs(inner)), wanted_inner)
        assert torch.equal(output(outer.model, inputs(outer)), wanted)


def test_a_host_can_be_made_while_another_has_a_prefix(
    shared_host: Callable[[str], Host], load_host: Callable[[str], Host]
) -> None:
    host = shared_host("bert")
    with attached(host, a_prefix(host)):
        inside = output(host.model, inputs(host))
        assert load_host("gpt2").sites == shared_host("gpt2").sites
        assert torch.equal(output(host.model, inputs(host)), inside)


# Gradients


def test_gradients_reach_keys_and_values_and_nothing_else(host: Host) -> None:
    fingerprint = host.measure_fingerprint()
    tensors = {
        name: SiteTensors(x.keys.requires_grad_(), x.values.requires_grad_(), x.bias.requires_grad_())  # type: ignore[union-attr]
        for name, x in to_tensors(a_prefix(host, bias=True), device=host.device, dtype=host.dtype).items()
    }
    with attached(host, tensors):
        loss = host.model(**inputs(host))[0].square().mean()
    loss.backward()
    for found in tensors.values():
        for part in (found.keys, found.values, found.bias):
            assert part is not None
            assert part.grad is not None
            assert part.grad.isfinite().all()
            assert (part.grad.abs().amax(dim=-1) > 0).all()  # every position of every head is read
    assert all(weight.grad is None and not weight.requires_grad for weight in host.model.parameters())
    assert host.measure_fingerprint() == fingerprint


def test_a_gradient_is_the_slope_of_the_loss(host: Host) -> None:
    """Central differences in float64: the error of (f(x+h) - f(x-h)) / 2h is of order h^2 = 1e-10 here.

    Where norms compute in float32 the loss itself carries 1e-7 of noise, so h is 1e-2 and the tolerance 1e-3.
    """
    live = with_implementation(host, "sdpa", torch.float64)
    exact = host.family in ("bert", "roberta", "distilbert", "gpt2")
    step, allowed = (1e-5, 1e-6) if exact else (1e-2, 1e-3)
    tensors = to_tensors(a_prefix(host), device=live.device, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def loss() -> Tensor:
        with attached(live, tensors):
            found: Tensor = live.model(**inputs(live))[0]
        return found[0].double().sin().mean()

    for name in tensors:
        for part in (tensors[name].keys, tensors[name].values):
            direction = torch.randn(part.shape, generator=generator, dtype=torch.float64)
            direction /= direction.norm()
            part.requires_grad_()
            (slope,) = torch.autograd.grad(loss(), part)
            part.requires_grad_(False)
            with torch.no_grad():
                part += step * direction
                above = loss()
                part -= 2 * step * direction
                below = loss()
                part += step * direction
            assert abs(float((above - below) / (2 * step) - (slope * direction).sum())) <= allowed


# Refusals


def test_an_unknown_site_is_refused_naming_it(host: Host) -> None:
    made = a_prefix(host)
    other = Prefix.from_arrays({"h.77.attn": (made.layers[0].keys, made.layers[0].values)})
    with pytest.raises(PrefixError, match=r"h\.77\.attn") as caught, attached(host, other):
        pass
    assert host.sites[0].name in str(caught.value)


@pytest.mark.parametrize("part", ["heads", "key_dim", "value_dim"])
def test_other_head_shapes_are_refused_naming_both(host: Host, part: str) -> None:
    site = host.sites[-1]
    heads = site.kv_heads + (part == "heads")
    keys = np.zeros((heads, 2, site.key_dim + (part == "key_dim")), np.float32)
    values = np.zeros((heads, 2, site.value_dim + (part == "value_dim")), np.float32)
    with (
        pytest.raises(PrefixError) as caught,
        attached(host, Prefix.from_arrays({site.name: (keys, values)})),
    ):
        pass
    message = str(caught.value)
    assert site.name in message
    assert str((site.kv_heads, site.key_dim)) in message
    assert str((heads, keys.shape[2])) in message
    assert str((heads, values.shape[2])) in message


def test_a_prefix_that_does_not_fit_the_hosts_dtype_is_refused(load_host: Callable[..., Host]) -> None:
    host = load_host("bert", dtype="float16")
    large = Prefix.random(host, positions=2, scale=1e6)
    with pytest.raises(PrefixError, match="not all finite"), attached(host, large):
        pass


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_prefix_is_converted_to_the_hosts_dtype(load_host: Callable[..., Host], dtype: torch.dtype) -> None:
    host = load_host("llama", dtype=str(dtype).removeprefix("torch."))
    prefix = a_prefix(host)
    for name, found in to_tensors(prefix, device=host.device, dtype=dtype).items():
        assert found.keys.dtype == found.values.dtype == dtype
        assert torch.equal(found.keys, torch.from_numpy(prefix.layer(name).keys.copy()).to(dtype))
    given = inputs(host)
    bare = output(host.model, given)
    with attached(host, prefix):
        inside = output(host.model, given)
    assert inside.dtype == dtype
    assert inside.isfinite().all()
    assert not torch.equal(inside, bare)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prefix_survives_the_way_to_torch_and_back(
    shared_host: Callable[[str], Host], dtype: str, bias: bool
) -> None:
    host = shared_host("gpt2")
    prefix = a_prefix(host, bias=bias).cast(dtype)
    assert to_prefix(to_tensors(prefix, device=host.device, dtype=getattr(torch, dtype))) == prefix


@pytest.mark.parametrize("passes", [0, 1])
def test_a_switch_to_attention_that_cannot_read_a_prefix_fails_loudly(
    load_host: Callable[..., Host], oracle: object, passes: int
) -> None:
    """Before any pass has read the prefix, and after one: then every site was reached, and nothing else would tell."""
    host = load_host("gpt2")

    def go_round() -> None:
        """An implementation that was registered by somebody else, so its function is not wrapped."""
        for _ in range(passes):
            host.model(**inputs(host))
        host.model.set_attn_implementation("foreword_test_oracle")
        host.model(**inputs(host))

    with pytest.raises(AttachError, match="has been switched") as caught, attached(host, a_prefix(host)):
        go_round()
    assert "foreword_test_oracle" in str(caught.value)
    host.model.set_attn_implementation("sdpa")
    with attached(host, a_prefix(host)):  # the refusal left the host fit for use
        host.model(**inputs(host))


def test_a_prefix_that_was_first_read_in_inference_mode_lets_gradients_through_later() -> None:
    """In a family whose attention is merged in plain operations, which keep the prefix for the backward pass."""
    sizes = BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2)
    host = Host(BloomForCausalLM(sizes))
    prefix, ids = a_prefix(host), torch.tensor([[5, 9, 4]])
    with torch.inference_mode(), attached(host, prefix):
        host.model(input_ids=ids)
    embedded = host.model.get_input_embeddings()(ids).detach().requires_grad_()
    with attached(host, prefix):
        host.model(inputs_embeds=embedded)[0].sum().backward()
    assert embedded.grad is not None


def test_passes_in_another_thread_only_fail_loudly(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("gpt2")
    with pytest.raises(AttachError, match="in the thread that attached"), attached(host, a_prefix(host)):
        in_a_thread(lambda: output(host.model, inputs(host)))


def test_attaching_without_a_forward_pass_is_no_error(host: Host) -> None:
    with attached(host, a_prefix(host)):
        pass


def test_a_row_index_out_of_range_is_refused_and_the_host_left_free(host: Host) -> None:
    prefixes = [a_prefix(host), a_prefix(host, seed=2)]
    for rows, wrong in (([0, 2, None], "2"), ([-1, 0, 0], "-1"), ([0, 1.0, 0], "1.0")):
        with pytest.raises(AttachError, match="out of range") as caught, attached(host, prefixes, rows=rows):
            pass
        assert f"found:    {wrong}\n" in str(caught.value)
    with pytest.raises(AttachError, match="not said which row"), attached(host, prefixes):
        pass
    with pytest.raises(AttachError, match="not said which row"), attached(host, [], rows=[]):
        pass
    with attached(host, prefixes, rows=[0, 1, None]):
        host.model(**inputs(host))


def test_a_batch_of_another_size_is_refused_saying_both(host: Host) -> None:
    before = output(host.model, inputs(host))
    with pytest.raises(AttachError) as caught, attached(host, [a_prefix(host)], rows=[0, None]):
        host.model(**inputs(host))
    assert "2 rows, or a multiple of it" in str(caught.value)
    assert "3 rows" in str(caught.value)
    assert torch.equal(output(host.model, inputs(host)), before)


def test_rows_in_passes_of_another_thread_only_fail_loudly(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("gpt2")
    with (
        pytest.raises(AttachError, match="in the thread that attached"),
        attached(host, [a_prefix(host)], rows=[0, None, 0]),
    ):
        in_a_thread(lambda: output(host.model, inputs(host)))


def test_a_bias_that_fits_neither_key_nor_query_heads_is_refused(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("llama")
    found = a_prefix(host)
    for heads in (2, 4, 6):
        bias = np.zeros((heads, found.positions), np.float32)
        biased = Prefix.from_arrays({x.site: (x.keys, x.values, bias) for x in found.layers})
        if heads == 6:
            with pytest.raises(PrefixError, match="a bias for 4 or 2 heads"), attached(host, biased):
                pass
        else:
            with attached(host, biased):
                assert output(host.model, inputs(host)).isfinite().all()


# Residency


def test_a_resident_prefix_is_held_once_and_found_by_its_hash(load_host: Callable[..., Host]) -> None:
    host = load_host("gpt2")
    first = host.resident(a_prefix(host))
    assert host.resident(a_prefix(host)) is first
    assert host.resident(a_prefix(host, seed=2)) is not first


def test_the_least_recently_used_prefix_is_let_go_under_the_byte_budget(load_host: Callable[..., Host]) -> None:
    host = load_host("gpt2")
    prefixes = [a_prefix(host, seed=seed) for seed in (1, 2, 3)]
    host.resident_limit = 2 * prefixes[0].nbytes
    kept = [host.resident(prefix) for prefix in prefixes[:2]]
    assert host.resident(prefixes[0]) is kept[0]  # so the second is now the one not used for longest
    host.resident(prefixes[2])
    assert host.resident(prefixes[0]) is kept[0]
    assert host.resident(prefixes[1]) is not kept[1]


def test_a_prefix_beyond_the_budget_is_refused_and_nothing_let_go(load_host: Callable[..., Host]) -> None:
    host = load_host("gpt2")
    small, large = a_prefix(host), a_prefix(host, positions=4)
    host.resident_limit = small.nbytes
    kept = host.resident(small)
    with pytest.raises(PrefixError, match="resident_limit") as caught, attached(host, large):
        pass
    assert f"{large.nbytes:,} bytes" in str(caught.value)
    assert host.resident(small) is kept


def test_a_prefix_that_occupies_positions_is_refused_where_the_context_cannot_move() -> None:
    host = Host(ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32)))
    baked = Prefix(Prefix.random(host, positions=2).layers, occupies=2)
    with pytest.raises(PrefixError, match="cannot move its context"), attached(host, baked):
        pass


def test_an_encoder_with_a_table_of_positions_reads_its_context_behind_what_occupies_some(encoder: Host) -> None:
    """Each row's tokens stand where its own prefix ends; a row without one is bit for bit the bare model's."""
    fitted = a_prefix(encoder)
    baked = Prefix(fitted.layers, occupies=2)
    ids = torch.tensor([[5, 9, 4, 11], [8, 6, 3, 12], [7, 5, 6, 9]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]])
    where = torch.arange(2, 6)[None] + encoder.layout.first_position
    with torch.no_grad():
        bare = encoder.backbone(input_ids=ids, attention_mask=mask)[0]
        with attached(encoder, fitted):
            wanted = encoder.backbone(input_ids=ids, attention_mask=mask, position_ids=where)[0]
        with attached(encoder, [baked], rows=[0, None, 0]):
            found = encoder.backbone(input_ids=ids, attention_mask=mask)[0]
    assert torch.equal(found[1], bare[1])
    # The same numbers as part of a batch: some twenty products of at most 64 terms in a row.
    allowed = 20 * 64 * torch.finfo(torch.float32).eps * float(wanted.abs().max())
    assert float((found - wanted)[[0, 2], :3].abs().max()) <= allowed
    assert not torch.equal(wanted[0], bare[0])


def test_what_attention_gives_can_be_viewed_as_the_models_own_output_can() -> None:
    """JetMoE looks at its experts' heads through `view`, which takes memory in the order of the axes."""
    import transformers

    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "kv_channels": 8, "intermediate_size": 32}
    config = transformers.JetMoeConfig(**sizes, num_key_value_heads=2, num_local_experts=2, num_experts_per_tok=2)
    host = Host(transformers.JetMoeForCausalLM(config))
    prefix = Prefix.random(host, positions=5)
    ids, mask = torch.tensor([[7, 9, 11, 13], [8, 6, 4, 2]]), torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    with torch.no_grad():
        with attached(host, prefix):
            alone = host.model(ids, attention_mask=mask).logits
        with attached(host, [prefix], rows=[0, None]):
            mixed = host.model(ids, attention_mask=mask).logits
    torch.testing.assert_close(mixed[0], alone[0], rtol=0, atol=1e-5 * float(alone.abs().max()))


@pytest.mark.parametrize("form", ["fitted", "baked"])
def test_a_mask_over_all_places_of_a_static_cache_counts_the_tokens_that_are_read(
    shared_host: Callable[[str], Host], form: str
) -> None:
    """Such a mask goes on behind the tokens: a graph that decodes step by step is given one of a constant size."""
    from transformers import StaticCache

    host = shared_host("llama")
    prefix = Prefix.random(host, positions=5, scale=1.0) if form == "fitted" else bake(host, [9, 8, 7])
    ids = torch.tensor([[0, 0, 5, 6, 7, 8], [5, 6, 7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    whole = torch.nn.functional.pad(mask, (0, 10))
    cache = StaticCache(config=host.model.config, max_cache_len=16)
    with torch.no_grad(), attached(host, prefix):
        wanted = host.model(ids, attention_mask=mask).logits
        found = []
        for start, end in ((0, 4), (4, 5), (5, 6)):
            seen = whole * (torch.arange(16) < end).long()
            step = host.model(ids[:, start:end], attention_mask=seen, past_key_values=cache, use_cache=True)
            found.append(step.logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(found, dim=1)[real], wanted[real], rtol=0, atol=1e-4)


def test_a_layer_on_another_device_reads_its_part_of_the_prefix_there() -> None:
    """As where `device_map` spreads a model; the device meta stands for any other, and computes shapes alone."""
    module = torch.nn.Linear(1, 1)
    query, key = torch.zeros(2, 4, 3, 8, device="meta"), torch.zeros(2, 2, 3, 8, device="meta")
    call = AttentionCall(module, query, key, key, None, {"scaling": 1.0}, joined_by_torch, "sdpa")
    tensors = SiteTensors(torch.zeros(2, 5, 8), torch.zeros(2, 5, 8), torch.zeros(2, 5))
    for rows in (None, [0, None]):
        out, _ = Assignment([{"": tensors}], rows).answer(call, "")
        assert (out.device.type, tuple(out.shape)) == ("meta", (2, 3, 4, 8))


def joined_by_torch(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2), None


def test_live_tensors_are_copied_anew_to_another_device_as_a_step_changes_them() -> None:
    live = SiteTensors(torch.zeros(2, 5, 8, requires_grad=True), torch.zeros(2, 5, 8, requires_grad=True))
    fixed = SiteTensors(live.keys.detach(), live.values.detach())
    for tensors, is_kept in ((live, False), (fixed, True)):
        assignment = Assignment([{"": tensors}], None)
        first, again = (assignment._carried("", 1, torch.device("meta"))[1][0].keys for _ in range(2))
        assert (first is again) == is_kept


@pytest.mark.parametrize("pad", [-1, 1000])
def test_a_padding_token_that_is_none_of_the_vocabulary_is_not_read(pad: int) -> None:
    """LLaMA's first configurations say -1; a model of several parts may name a token that only its tokenizer has."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=32)).eval()
    model.config.pad_token_id = pad
    ids, mask = torch.tensor([[0, 5, 6], [0, 5, 6]]), torch.tensor([[0, 1, 1], [0, 1, 1]])
    host = Host(model)
    with torch.no_grad():
        bare = model(ids, attention_mask=mask).logits
        with attached(host, [Prefix.random(host, positions=3)], rows=[None, 0]):
            found = model(ids, attention_mask=mask).logits
    assert torch.equal(found[0], bare[0])
