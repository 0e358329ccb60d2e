"""A baked text is the text in the prompt, and baked texts compose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as t
from tests.conformance.families import BUILDERS, CAUSAL, WINDOWED, not_applicable
from tests.conformance.subject import assert_close, subject
from torch import Tensor

from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.host import Host
from foreword.engine.rendering import tokens
from foreword.errors import PrefixError

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
