"""A baked text is the text in the prompt, and baked texts compose."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as t
from tests.conformance.families import BUILDERS, CAUSAL, WINDOWED, not_applicable
from tests.conformance.subject import assert_close, subject
from torch import Tensor

from foreword.bundle import load_bundle, save_bundle
from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.host import Host
from foreword.engine.rendering import tokens
from foreword.errors import AttachError, PrefixError
from foreword.prefix import Prefix

BAKED = [family for family in CAUSAL if not_applicable(family, "baked text") is None]
# Position biases that are not rotary or learned: there a composed text moves the one in front of it further back.
ALIBI = ("bloom", "mpt", "falcon-alibi")


def logits(host: Host, ids: list[int]) -> Tensor:
    with torch.no_grad():
        found: Tensor = host.model(input_ids=torch.tensor([ids])).logits[0]
    return found


@pytest.mark.parametrize("family", BAKED)
def test_a_text_baked_behind_another_is_both_in_the_prompt(family: str) -> None:
    one = subject(family)
    first, second, context = [11, 5], [42, 23], [7, 19]
    wanted = logits(one.host, [*first, *second, *context])[4:]
    both = bake(one.host, second, after=bake(one.host, first))
    assert (both.positions, both.occupies) == (4, 4)
    assert (both.layers[0].bias is not None) == (family in ALIBI)
    with attached(one.host, both):
        assert_close(logits(one.host, context), wanted, one.tolerance(float(wanted.abs().max())))


@pytest.mark.parametrize("family", [family for family in BAKED if family not in WINDOWED])
def test_a_soft_prompt_is_baked_as_the_embeddings_in_front(family: str) -> None:
    one = subject(family)
    table = one.model.get_input_embeddings()
    soft = torch.randn(4, one.host.hidden_size, generator=torch.Generator().manual_seed(0)) * table.weight.std()
    context = torch.tensor([[7, 19, 3]])
    with torch.no_grad():
        # Gemma scales what it looks up, so the tokens' own embeddings are what its embedding layer gives.
        joined = torch.cat([soft[None], table(context)], dim=1)
        wanted = one.model(inputs_embeds=joined).logits[:, 4:]
        with attached(one.host, bake(one.host, soft)):
            found = one.model(input_ids=context).logits
    assert_close(found, wanted, one.tolerance(float(wanted.abs().max())))


@pytest.mark.parametrize(
    ("family", "implementation"),
    [("bloom", "eager"), ("mpt", "eager"), ("falcon-alibi", "eager"), ("falcon-alibi", "sdpa")],
)
def test_linear_biases_of_any_slope_are_kept_for_rows_of_any_padding(family: str, implementation: str) -> None:
    """Six heads, so that slopes are not one row of powers; the eager Falcon adds its bias twice."""
    sizes = {"vocab_size": 97, "n_head": 6, "n_layer": 2, "hidden_size": 48}
    config = {
        "bloom": lambda: t.BloomConfig(**sizes),
        "mpt": lambda: t.MptConfig(vocab_size=97, d_model=48, n_layers=2, n_heads=6, max_seq_len=128),
        "falcon-alibi": lambda: t.FalconConfig(
            vocab_size=97, hidden_size=48, num_hidden_layers=2, num_attention_heads=6, alibi=True
        ),
    }[family]()
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)
    host = Host(model)
    text, rows = [5, 9, 31, 2, 60, 11, 7, 7], ([8, 15, 33], [21, 4])
    ids, mask = torch.tensor([rows[0], [0, *rows[1]]]), torch.tensor([[1, 1, 1], [0, 1, 1]])
    with torch.no_grad(), attached(host, bake(host, text)):
        found = host.model(input_ids=ids, attention_mask=mask).logits
    for row, own in enumerate(rows):
        wanted = logits(host, [*text, *own])[len(text) :]
        assert_close(found[row, 3 - len(own) :], wanted, subject(family).tolerance(float(wanted.abs().max())))


def test_a_text_gets_the_beginning_that_a_prompt_gets(causal: Host) -> None:
    special = tokens(causal, "the cat", special=True)
    assert bake(causal, "the cat") == bake(causal, special)
    later = bake(causal, "the cat", after=bake(causal, special))
    assert later.positions == len(special) + len(tokens(causal, "the cat", special=False))


def test_messages_are_baked_by_the_chat_template(load_host: Callable[[str], Host]) -> None:
    host = load_host("llama")
    host.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    messages = [{"role": "system", "content": "the cat"}, {"role": "user", "content": "a dog"}]
    assert bake(host, messages) == bake(host, tokens(host, "system: the cat\nuser: a dog\n", special=False))


def test_only_a_causal_model_bakes(encoder: Host) -> None:
    with pytest.raises(PrefixError, match="Only a causal model"):
        bake(encoder, "the cat")
    with pytest.raises(PrefixError, match="Only a causal model"):
        bake(subject("t5").host, [5, 6])


def test_a_text_that_is_empty_or_longer_than_the_model_reads_is_refused(causal: Host) -> None:
    longest = causal.max_positions - 1
    assert bake(causal, [5] * longest).positions == longest
    with pytest.raises(PrefixError, match="not empty"):
        bake(causal, [])
    with pytest.raises(PrefixError, match=f"1 to {longest} tokens"):
        bake(causal, [5] * (longest + 1))
    with pytest.raises(PrefixError, match=f"1 to {longest - 2} tokens"):
        bake(causal, [5] * (longest - 1), after=bake(causal, [5, 6]))


def test_every_family_of_the_matrix_is_tried() -> None:
    assert set(BAKED) == set(CAUSAL)
    assert set(CAUSAL) <= set(BUILDERS)


# Causal models outside the matrix, or of another class or dtype than there.
SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = {**SMALL, "num_key_value_heads": 2}
SEQUENCE = {"vocab_size": 97, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "decoder_attention_heads": 4}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1000.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0}


def turning(kind: str) -> Host:
    """A model that reads nine tokens with other rotary frequencies than eight."""
    if kind == "dynamic":
        return made(t.LlamaConfig(**SMALL, max_position_embeddings=8, rope_parameters=dict(DYNAMIC)))
    sizes = {"max_position_embeddings": 64, "original_max_position_embeddings": 8, "pad_token_id": 0}
    return made(t.Phi3Config(**SMALL, **sizes, rope_parameters=dict(LONGROPE)))


def made(config: t.PreTrainedConfig, dtype: torch.dtype = torch.float32) -> Host:
    """A causal model with seeded weights, its matrices five times as large as drawn, so that a wrong position shows."""
    torch.manual_seed(0)
    model = t.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)
    return Host(model.to(dtype))


def off(host: Host, text: list[int], context: list[int]) -> float:
    """How far a baked text is from the text in the prompt, relative to the largest logit."""
    wanted = logits(host, [*text, *context])[len(text) :]
    with attached(host, bake(host, text)):
        found = logits(host, context)
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["gptj", "gpt_neo", "llama"])
def test_a_text_is_baked_in_every_dtype(family: str, dtype: torch.dtype) -> None:
    """GPT-J and GPT-Neo compute their scores in float32, whatever their values are in."""
    host = Host(copy.deepcopy(subject(family).model).to(dtype))
    allowed = subject(family).tolerance(1.0, dtype if dtype != torch.float64 else torch.float32)
    assert off(host, [11, 5], [42, 23]) <= allowed
    assert bake(host, [11, 5]).dtype == str(dtype).removeprefix("torch.")


def test_a_causal_model_that_counts_from_its_padding_index_reads_a_baked_text_and_padding() -> None:
    host = made(t.RobertaConfig(**SMALL, is_decoder=True, max_position_embeddings=64))
    assert off(host, [11, 5, 42], [23, 7, 19]) <= 1e-5
    ids, mask = torch.tensor([[0, 0, 7, 19], [23, 7, 19, 3]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    for prefix in (Prefix.random(host, positions=3, scale=1.0), bake(host, [11, 5, 42])):
        with torch.no_grad(), attached(host, prefix):
            found = host.model(input_ids=ids, attention_mask=mask).logits
            assert_close(found[0, 2:], logits(host, [7, 19]), 1e-5 * float(found.abs().max()))
            assert_close(found[1], logits(host, [23, 7, 19, 3]), 1e-5 * float(found.abs().max()))


def test_a_layer_that_attends_twice_keeps_both_of_its_readings() -> None:
    host = made(t.DiffLlamaConfig(**GROUPED))
    assert [site.name for site in host.sites] == [f"layers.{n}.self_attn{call}" for n in (0, 1) for call in ("", "#2")]
    assert off(host, [11, 5, 42], [23, 7, 19]) <= 1e-5


@pytest.mark.parametrize(
    "config",
    [
        t.BartConfig(**SEQUENCE),
        t.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
        t.Qwen3NextConfig(
            **GROUPED,
            layer_types=["linear_attention", "full_attention"],
            num_experts=2,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=16,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            head_dim=8,
        ),
    ],
    ids=["positions of its own", "a convolution", "a recurrent state"],
)
def test_a_model_that_needs_more_than_keys_and_values_of_a_text_bakes_none(config: t.PreTrainedConfig) -> None:
    """A fitted prefix it carries: that asks for no position."""
    host = made(config)
    prefix = Prefix.random(host, positions=3)
    for _ in range(2):
        with pytest.raises(PrefixError, match="cannot move its context behind a baked text"):
            bake(host, [11, 5, 42])
        with (
            pytest.raises(PrefixError, match="cannot move its context behind a baked text"),
            attached(host, dataclasses.replace(prefix, occupies=3)),
        ):
            pass
        with attached(host, prefix):
            assert logits(host, [7, 19]).isfinite().all()


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_context_that_would_turn_the_keys_of_a_baked_text_anew_is_refused(kind: str) -> None:
    """A row without a prefix, too, stays what it is alone; a fitted prefix turns nothing."""
    host = turning(kind)
    assert off(host, [11, 5, 42], [23, 7, 19, 3, 8]) <= 1e-5
    short = bake(host, [11, 5, 42])
    with attached(host, short), pytest.raises(AttachError, match="turn this model's keys otherwise"):
        logits(host, [23, 7, 19, 3, 8, 9])
    ids = torch.arange(12).reshape(2, 6)
    with attached(host, [short], rows=[0, None]), pytest.raises(AttachError, match="turn this model's keys otherwise"):
        host.model(input_ids=ids)
    with attached(host, Prefix.random(host, positions=3)):
        assert logits(host, [23, 7, 19, 3, 8, 9, 10]).isfinite().all()


def test_a_text_longer_than_where_the_keys_turn_is_read_with_every_context() -> None:
    host = turning("longrope")
    assert off(host, [11, 5, 42, 1, 2, 3, 4, 5, 6], [23, 7]) <= 1e-5
    with pytest.raises(AttachError, match="turn this model's keys otherwise"):  # two of which each stays below
        bake(host, [11, 5, 42, 1, 2], after=bake(host, [3, 4, 5, 6]))


@pytest.mark.parametrize("lengths", [(5, 5), (9, 3)], ids=["short and short", "long and short"])
def test_merged_texts_whose_keys_were_turned_otherwise_are_refused(lengths: tuple[int, int], tmp_path: Path) -> None:
    """Together they reach the eight tokens from which keys turn otherwise; one of them alone does not."""
    host = turning("longrope")
    first, second = (bake(host, list(range(3, 3 + length))) for length in lengths)
    whole = first.merge(second)
    assert whole.read_to == lengths
    save_bundle(tmp_path / "whole.prefix", whole, host=host)
    for each in (whole, whole.cast("float64"), load_bundle(tmp_path / "whole.prefix").prefix):
        with pytest.raises(PrefixError, match="of merged texts"), attached(host, each):
            pass
    with attached(host, bake(host, [3]).merge(bake(host, [4, 5]))):
        assert logits(host, [7, 19]).isfinite().all()


def test_a_model_in_training_mode_bakes_without_dropout_and_stays_in_it() -> None:
    host = made(t.LlamaConfig(**GROUPED, attention_dropout=0.5))
    wanted = bake(host, [11, 5, 42])
    host.model.train()
    host.model.lm_head.eval()
    assert bake(host, [11, 5, 42]) == wanted
    assert host.model.training
    assert host.model.model.layers[0].self_attn.training
    assert not host.model.lm_head.training


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_model_that_peft_has_wrapped_is_moved_behind_a_baked_text() -> None:
    import peft

    model = made(t.LlamaConfig(**GROUPED)).model
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    assert off(Host(wrapped), [11, 5, 42], [23, 7, 19]) <= 1e-5


def test_a_copy_made_while_a_prefix_is_attached_is_the_bare_model() -> None:
    host = made(t.LlamaConfig(**GROUPED))
    bare = logits(host, [23, 7, 19])
    with attached(host, bake(host, [11, 5])):
        copied = Host(copy.deepcopy(host.model))
        assert torch.equal(logits(copied, [23, 7, 19]), bare)
    assert torch.equal(logits(copied, [23, 7, 19]), bare)


@pytest.mark.parametrize("family", ["gpt2", "opt", "roberta"])
def test_a_context_longer_than_the_positions_behind_a_baked_text_is_refused_by_name(family: str) -> None:
    """Up to the last position it is read; one token more was torch's failure on an index."""
    configs = {
        "gpt2": t.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=16),
        "opt": t.OPTConfig(**SMALL, ffn_dim=32, word_embed_proj_dim=32, max_position_embeddings=16),
        "roberta": t.RobertaConfig(**SMALL, is_decoder=True, max_position_embeddings=18, pad_token_id=1),
    }
    host = made(configs[family])
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [0, 6, 7, 8, 9, 10, 11, 12]])
    with torch.no_grad(), attached(host, bake(host, [11, 5, 42, 23, 9, 8, 7, 6])):
        assert host.model(ids).logits.isfinite().all()
        longer = torch.cat([ids, ids[:, :1]], dim=1)
        mask = torch.tensor([[1] * 9, [0] + [1] * 8])
        assert host.model(longer[1:], attention_mask=mask[1:]).logits.isfinite().all()
        with pytest.raises(AttachError, match="at most 16 tokens, baked text and context together"):
            host.model(longer, attention_mask=mask)
