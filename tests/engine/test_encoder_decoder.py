"""What an encoder-decoder model does with text, against transformers' own loss and against decoding without a cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor

from foreword.engine.attach import attached
from foreword.engine.generation import (
    completion_logits,
    completion_loss,
    completion_scores,
    continuations,
    decoder_start,
    features,
    generate,
)
from foreword.engine.host import Host
from foreword.errors import HostError
from foreword.prefix import Prefix

ROWS = ([7, 21, 33, 8, 40, 15, 9, 30, 11], [50, 6], [12, 19, 44, 3, 27])
COMPLETIONS = ([14, 2], [14, 41, 22, 2], [35, 10, 2])
FORMS = ("bare", "prefix", "soft", "prefix and soft")


def tolerance(largest: float) -> float:
    """As in test_generation.py, with three attentions in place of one: 3 * 17 products over at most 64 terms."""
    return 3 * 17 * 64 * torch.finfo(torch.float32).eps * largest


def under(host: Host, form: str) -> tuple[AbstractContextManager[None], Tensor | None]:
    soft = None
    if "soft" in form:
        soft = torch.randn(3, host.hidden_size, generator=torch.Generator().manual_seed(5))
    if "prefix" not in form:
        return nullcontext(), soft
    return attached(host, Prefix.random(host, positions=4, seed=2, scale=1.0)), soft


def read(host: Host, row: list[int], soft: Tensor | None) -> dict[str, Tensor]:
    """One unpadded row as transformers' own forward takes it."""
    if soft is None:
        return {"input_ids": torch.tensor([row])}
    own = host.model.get_input_embeddings()(torch.tensor([row]))
    return {"inputs_embeds": torch.cat([soft[None].to(own.dtype), own], dim=1)}


def own_loss(host: Host, row: list[int], completion: list[int], soft: Tensor | None) -> float:
    """The mean loss per token that the model itself computes when it is given labels."""
    return float(host.model(**read(host, row, soft), labels=torch.tensor([completion])).loss)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_models_own_weighted_by_tokens(sequence: Host, form: str) -> None:
    context, soft = under(sequence, form)
    with torch.no_grad(), context:
        found = float(completion_loss(sequence, ROWS, COMPLETIONS, soft=soft))
        each = [own_loss(sequence, row, told, soft) for row, told in zip(ROWS, COMPLETIONS, strict=True)]
    lengths = [len(told) for told in COMPLETIONS]
    wanted = sum(loss * length for loss, length in zip(each, lengths, strict=True)) / sum(lengths)
    assert abs(found - wanted) <= 2 * tolerance(50)


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_the_models_own_losses_of_each_pair_alone(sequence: Host, form: str) -> None:
    context, soft = under(sequence, form)
    with torch.no_grad(), context:
        found = completion_scores(sequence, ROWS, COMPLETIONS, soft=soft)
        wanted = [[-own_loss(sequence, row, told, soft) * len(told) for told in COMPLETIONS] for row in ROWS]
    assert found.shape == (3, 3)
    assert float((found - torch.tensor(wanted)).abs().max()) <= 4 * 2 * tolerance(50)


def greedy(host: Host, row: list[int], count: int, soft: Tensor | None) -> list[int]:
    """The most likely next token, over and over, the decoder run from its start each time."""
    made = [decoder_start(host)]
    while len(made) <= count:
        logits = host.model(**read(host, row, soft), decoder_input_ids=torch.tensor([made]), use_cache=False).logits
        made.append(int(logits[0, -1].argmax()))
        if made[-1] == host.model.generation_config.eos_token_id:
            break
    return made[1:]


@pytest.mark.parametrize("form", FORMS)
def test_generation_with_a_cache_is_greedy_decoding_without_one(sequence: Host, form: str) -> None:
    context, soft = under(sequence, form)
    with torch.no_grad(), context:
        found = generate(sequence, ROWS, max_new_tokens=8, soft=soft)
        wanted = [greedy(sequence, row, 8, soft) for row in ROWS]
    assert found == sequence.tokenizer.batch_decode(wanted, skip_special_tokens=True)


@pytest.mark.parametrize("form", FORMS)
def test_features_of_a_batch_are_the_mean_of_each_rows_own_tokens(sequence: Host, form: str) -> None:
    context, soft = under(sequence, form)
    with torch.no_grad(), context:
        found = features(sequence, ROWS, soft=soft)
        hidden = [sequence.model.get_encoder()(**read(sequence, row, soft)).last_hidden_state[0] for row in ROWS]
    wanted = torch.stack([x[0 if soft is None else 3 :].mean(dim=0) for x in hidden])
    assert float((found - wanted).abs().max()) <= tolerance(float(wanted.abs().max()))


def test_rows_may_carry_different_prefixes(sequence: Host) -> None:
    """Each encoder row has as many decoder rows as there are completions; all of them carry its prefix."""
    prefixes = [Prefix.random(sequence, positions=4, seed=seed, scale=1.0) for seed in (2, 3)]
    with torch.no_grad():
        with attached(sequence, prefixes, rows=[0, None, 1]):
            found = completion_scores(sequence, ROWS, COMPLETIONS)
        for index, carried in ((0, prefixes[0]), (2, prefixes[1])):
            with attached(sequence, carried):
                alone = completion_scores(sequence, [ROWS[index]], COMPLETIONS)[0]
            assert float((found[index] - alone).abs().max()) <= 8 * tolerance(50)
        bare = completion_scores(sequence, [ROWS[1]], COMPLETIONS)[0]
    assert float((found[1] - bare).abs().max()) <= 8 * tolerance(50)


def test_gradients_reach_a_soft_prompt(sequence: Host) -> None:
    soft = torch.randn(3, sequence.hidden_size, generator=torch.Generator().manual_seed(5), requires_grad=True)
    for made in (
        completion_scores(sequence, ROWS, COMPLETIONS, soft=soft).sum(),
        completion_loss(sequence, ROWS, COMPLETIONS, soft=soft),
    ):
        (slope,) = torch.autograd.grad(made, soft)
        assert (slope.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_sampling_draws_from_the_models_own_distribution(shared_host: Callable[[str], Host], family: str) -> None:
    """4,000 draws of one token: total variation of frequencies over 5 bins is below 5 sigma of a multinomial."""
    host, count = shared_host(family), 4000
    drawn = continuations(host, [ROWS[1]] * count, max_new_tokens=1, seed=1)[:, 0]
    with torch.no_grad():
        expected = torch.softmax(completion_logits(host, [ROWS[1]], [[14]])[0].double(), dim=0)
    best = expected.topk(5)
    for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True):
        deviation = (probability * (1 - probability) / count) ** 0.5
        assert abs(float((drawn == token).double().mean()) - probability) <= 5 * deviation


def test_sampling_is_the_same_for_the_same_seed_and_leaves_the_generator_alone(sequence: Host) -> None:
    before = torch.get_rng_state()
    first, second, other = (continuations(sequence, ROWS, max_new_tokens=6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_without_a_head_that_writes_is_refused() -> None:
    import transformers

    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    host = Host(transformers.T5Model(config))
    with pytest.raises(HostError, match="cannot write"):
        completion_scores(host, ROWS[:1], COMPLETIONS[:1])


def test_a_decoder_without_a_first_token_is_refused(load_host: Callable[[str], Host]) -> None:
    host = load_host("t5")
    host.model.generation_config.decoder_start_token_id = host.model.config.decoder_start_token_id = None
    host.model.generation_config.bos_token_id = host.model.config.bos_token_id = None
    with pytest.raises(HostError, match="begins with"):
        completion_loss(host, ROWS, COMPLETIONS)
