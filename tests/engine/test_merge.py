"""The fused merge of shared prefixes and context is one softmax over both: outputs and gradients, in random cases."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from foreword.engine.assignment import Assignment, SiteTensors
from foreword.engine.attention import AttentionCall
from foreword.engine.merge import FusedCall, Segment, Share, can_fuse, fused, merged, plain_segment, spread

CASES, BLOCKS, FAST = 2_000, 20, 8
UNIT = torch.finfo(torch.float32).eps / 2


@dataclass(frozen=True)
class Case:
    """One attention call, and the prefixes that its rows carry."""

    call: FusedCall
    shares: tuple[Share, ...]

    @property
    def leaves(self) -> list[Tensor]:
        parts = [part for share in self.shares for part in (share.keys, share.values)]
        return [self.call.query, self.call.key, self.call.value, *parts]


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> Case:
    """Any mix of grouped heads, cached keys, masks, shared or per-row prefixes, value sizes and biases."""
    choice, generator = random.Random(seed), torch.Generator().manual_seed(seed)

    def draw(*shape: int, size: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * size).to(dtype).requires_grad_()

    kv_heads, groups = choice.choice([1, 2, 4]), choice.choice([1, 2, 4])
    batch, queries, dim = choice.choice([1, 2, 5]), choice.choice([1, 3, 7]), choice.choice([8, 16, 64])
    value_dim = dim if choice.random() < 0.8 else choice.choice([4, 12, 32])
    keys = queries + choice.choice([0, 0, 1, 9])
    causal = keys == queries and choice.random() < 0.5
    mask = None
    if not causal and choice.random() < 0.6:
        hidden = torch.rand(choice.choice([1, batch]), 1, queries, keys, generator=generator) < 0.3
        if choice.random() < 0.7:  # else a row may see nothing of its context: the prefix takes all of its weight
            hidden[..., 0] = False
        mask = torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, torch.finfo(torch.float32).min)
    call = FusedCall(
        draw(batch, kv_heads * groups, queries, dim),
        draw(batch, kv_heads, keys, dim),
        draw(batch, kv_heads, keys, value_dim),
        mask,
        causal,
        choice.choice([dim**-0.5, 0.3]),
    )

    def share(rows: list[int] | None) -> Share:
        positions = choice.choice([1, 5, 33])
        biased = choice.choice([kv_heads, kv_heads * groups])
        bias = torch.randn(biased, positions, generator=generator).to(dtype) if choice.random() < 0.4 else None
        own = draw(kv_heads, positions, dim, size=choice.choice([0.1, 1.0, 3.0]))
        return Share(own, draw(kv_heads, positions, value_dim), bias, None if rows is None else torch.tensor(rows))

    if choice.random() < 0.5 or (mask is not None and bool((mask < 0).all(dim=-1).any())):
        return Case(call, (share(None),))
    order = choice.sample(range(batch), batch)
    cuts = sorted(order[: max(1, batch // 2)]), sorted(order[max(1, batch // 2) :][:1])
    return Case(call, tuple(share(rows) for rows in cuts if rows))


def reference(case: Case) -> tuple[Tensor, Tensor]:
    """Row by row, one softmax over the joint scores in float64; and the largest sum of |products| behind a score."""
    call = case.call
    query, key, value = call.query.double(), call.key.double(), call.value.double()
    heads, queries = query.shape[1], query.shape[2]
    groups, keys = heads // key.shape[1], key.shape[2]
    rows, sizes = [], []
    for row in range(query.shape[0]):
        all_keys, all_values = [key[row]], [value[row]]
        extra = torch.zeros(heads, queries, keys, dtype=torch.float64)
        if call.causal:
            extra = extra.masked_fill(torch.ones(queries, keys, dtype=torch.bool).triu(1), -torch.inf)
        if call.mask is not None:
            extra = extra + call.mask.double()[row if call.mask.shape[0] > 1 else 0]
        for share in case.shares:
            if share.rows is None or row in share.rows:
                all_keys.append(share.keys.double())
                all_values.append(share.values.double())
                bias = torch.zeros(share.keys.shape[:2]) if share.bias is None else share.bias
                each = bias.double().repeat_interleave(heads // len(bias), dim=0)[:, None].expand(-1, queries, -1)
                extra = torch.cat([extra, each], dim=-1)
        joint_keys = torch.cat(all_keys, dim=1).repeat_interleave(groups, dim=0)
        joint_values = torch.cat(all_values, dim=1).repeat_interleave(groups, dim=0)
        scores = call.scale * query[row] @ joint_keys.transpose(1, 2)
        rows.append(torch.softmax(scores + extra, dim=-1) @ joint_values)
        sizes.append((call.scale * query[row].detach().abs() @ joint_keys.detach().abs().transpose(1, 2)).amax())
    return torch.stack(rows), torch.stack(sizes).amax()


def answered(case: Case) -> Tensor:
    """The merge; values of another size than the keys have no fused kernel and take the assignment's plain way."""
    if case.call.value.shape[-1] == case.call.query.shape[-1]:
        assert can_fuse(case.call, case.shares)
        return fused(case.call, case.shares)
    context = _plain_context(case.call)
    segments = []
    for share in case.shares:
        mine = case.call.query if share.rows is None else case.call.query[share.rows]
        segments.append((plain_segment(mine, share.keys, share.values, share.bias, scale=case.call.scale), share.rows))
    return merged(spread(segments, context), context)


def _plain_context(call: FusedCall) -> Segment:
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (part.repeat_interleave(groups, dim=1) for part in (call.key, call.value))
    scores = call.scale * call.query @ key.transpose(2, 3)
    if call.causal:
        scores = scores.masked_fill(torch.ones(scores.shape[2:], dtype=torch.bool).triu(1), -torch.inf)
    scores = scores if call.mask is None else (scores + call.mask).clamp(min=torch.finfo(torch.float32).min)
    return Segment(torch.softmax(scores, dim=-1) @ value, torch.logsumexp(scores, dim=-1))


@pytest.mark.parametrize(
    "block", [pytest.param(block, marks=[pytest.mark.slow] if block >= FAST else []) for block in range(BLOCKS)]
)
def test_outputs_and_gradients_are_those_of_one_softmax(block: int, one_thread: None) -> None:
    """2,000 cases in float32 against float64, of which 800 are not slow.

    A score is a sum of `dim` products that together are at most S in size: with rounding errors of random sign its
    error stays below 4 u sqrt(dim) S with overwhelming probability (Higham and Mary, SIAM J. Sci. Comput. 41, 2019,
    theorem 2.4, lambda = 4). A weight exp(score) / sum has twice that as its relative error, plus the rounding of the
    sum over `keys` terms: call it E. The output is a weighted mean of values, so its error is at most E max|v|. In
    a gradient weight, difference and product each carry one E: 3 E, relative to the largest gradient of the case.
    """
    for seed in range(block * CASES // BLOCKS, (block + 1) * CASES // BLOCKS):
        _hold(drawn(seed), seed)


@pytest.mark.parametrize("seed", range(100))
def test_in_float64_outputs_and_gradients_have_the_accuracy_of_float64(seed: int, one_thread: None) -> None:
    """Against a reference that rounds as much: twice the tolerance above, with float64's unit."""
    _hold(drawn(seed, torch.float64), seed, unit=2 * torch.finfo(torch.float64).eps / 2)


def _hold(case: Case, seed: int, unit: float = UNIT) -> None:
    found, (wanted, size) = answered(case), reference(case)
    keys = case.call.key.shape[2] + sum(share.keys.shape[1] for share in case.shares)
    relative = 4 * unit * (2 * math.sqrt(case.call.query.shape[-1]) * float(size) + math.sqrt(keys) + 4)
    largest_value = max(float(part.detach().abs().max()) for part in _values(case))
    assert float((found - wanted).detach().abs().max()) <= relative * largest_value, seed
    grad = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed)).to(found.dtype)
    grads = torch.autograd.grad(found, case.leaves, grad)
    exact = torch.autograd.grad(wanted, case.leaves, grad.double())
    largest = max(float(part.abs().max()) for part in exact)
    for mine, theirs in zip(grads, exact, strict=True):
        assert float((mine - theirs).abs().max()) <= 3 * relative * largest, seed


def _values(case: Case) -> list[Tensor]:
    return [case.call.value, *(share.values for share in case.shares)]


def test_a_row_without_prefix_is_bit_for_bit_the_context_alone() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    call = FusedCall(draw(3, 4, 5, 8), draw(3, 2, 9, 8), draw(3, 2, 9, 8), None, False, 0.3)
    share = Share(draw(2, 6, 8), draw(2, 6, 8), None, torch.tensor([0]))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    alone = kernel(call.query, call.key, call.value, 0.0, False, scale=0.3)[0]
    found = fused(call, [share])
    assert torch.equal(found[1:], alone[1:])
    assert not torch.equal(found[0], alone[0])


@pytest.mark.parametrize("seed", range(40))
def test_the_merge_and_the_plain_joining_are_one(seed: int) -> None:
    """The choice between them is one of cost: an assignment answers the same by either way.

    Scores here are below 30 and values below 5: both are within the tolerance of the test above, 1e-4.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    generator = torch.Generator().manual_seed(seed)
    module = torch.nn.Module()
    module.is_causal, module.num_key_value_groups = seed % 2 == 0, 2  # type: ignore[assignment]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    call = AttentionCall(
        module,
        draw(4, 4, 3, 8),
        draw(4, 2, 3, 8),
        draw(4, 2, 3, 8),
        None if seed % 3 else torch.rand(4, 1, 3, 3, generator=generator) > 0.3,
        {"scaling": 0.3},
        sdpa_attention_forward,
        "sdpa",
    )
    tensors = [{"a": SiteTensors(draw(2, n, 8), draw(2, n, 8), draw(2, n) if seed % 4 else None)} for n in (5, 9)]
    assignment = Assignment(tensors, None if seed % 5 == 0 else [0, 1, 0, 1])
    answers = []
    for merging in (True, False):
        assignment.merging = merging
        answers.append(assignment.answer(call, "a")[0])
    assert float((answers[0] - answers[1]).abs().max()) <= 1e-4


@pytest.mark.parametrize(
    ("rows", "queries", "context", "positions", "causal", "is_merged"),
    [
        (1, 1, 256, 4, False, False),
        (1, 1, 4096, 4, False, True),
        (1, 16, 4096, 4, False, True),
        (1, 511, 511, 4, True, False),
        (1, 512, 512, 4, False, False),
        (1, 512, 512, 4, True, True),
        (2, 1, 40, 64, False, False),
        (16, 1, 40, 256, False, True),
        (16, 32, 32, 64, True, False),
        (16, 32, 32, 512, True, True),
    ],
    ids=[
        "decoding",
        "decoding behind a long context",
        "a chunk behind a long context",
        "a prompt",
        "a long prompt with padding",
        "a long prompt",
        "two rows behind a short prefix",
        "rows behind a long prefix",
        "prompts behind a short prefix",
        "prompts behind a long prefix",
    ],
)
def test_what_moves_less_is_done(
    rows: int,
    queries: int,
    context: int,
    positions: int,
    causal: bool,
    is_merged: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key of 2 heads of 64 and its value are 1 kB. A long prompt is to keep the kernel that leaves out later keys."""
    taken: list[FusedCall] = []

    def noted(call: FusedCall, shares: list[Share]) -> Tensor:
        taken.append(call)
        return fused(call, shares)

    monkeypatch.setattr("foreword.engine.assignment.fused", noted)
    module = torch.nn.Module()
    module.num_key_value_groups = 1  # type: ignore[assignment]
    query, key, value = (torch.zeros(rows, 2, length, 64) for length in (queries, context, context))
    prefix = {"site": SiteTensors(torch.zeros(2, positions, 64), torch.zeros(2, positions, 64))}
    call = AttentionCall(module, query, key, value, None, {"is_causal": causal}, sdpa_attention_forward, "sdpa")
    Assignment([prefix], None).answer(call, "site")
    assert bool(taken) == is_merged
