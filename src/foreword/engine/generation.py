"""What a host does with text: embed it, score completions of it, continue it.

All functions run under whatever is attached to the host. A soft prompt, `(position, hidden)`, is put before the tokens
as embeddings and, unlike a prefix, takes positions. Rows are padded here, not by the tokenizer, so that calls leave no
trace in it; rows of one batch give what each would give alone.

Nothing here knows a task, a label's meaning or a metric, nor encoder-decoder models: they carry prefixes, but what they
do with text is left to their own `generate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.engine.host import Host
from foreword.errors import DataError, HostError

TokenIds = Sequence[int]
Progress = Callable[[int], None]

# A prompt must keep at least this many tokens of its input when it is cut to what the model reads.
SHORTEST_INPUT = 8


# No token of a real tokenizer stands for more characters than this: longer inputs are cut before they are tokenized.
LONGEST_TOKEN = 64


@dataclass(frozen=True)
class Template:
    """What stands before and after an input; kept in halves, so that braces in either are never mistaken for a field.

    >>> Template.parse("Text: {input}\\nLabel:")
    Template(before='Text: ', after='\\nLabel:')
    """

    before: str
    after: str

    @classmethod
    def parse(cls, text: str) -> Template:
        """From text with `{input}` in it; without it, the input goes to the end."""
        before, _, after = text.partition("{input}")
        return cls(before, after)


@dataclass(frozen=True)
class Rows:
    """Padded token ids and their mask, both `(row, token)`; mask 1 = a real token."""

    ids: Tensor
    mask: Tensor


def render(
    host: Host, template: Template, text: str, *, max_tokens: int | None = None, reserve: int = 0, special: bool = True
) -> list[int]:
    """Token ids of `text` between the two halves of `template`.

    When that is longer than the model reads (less `reserve` tokens), or than `max_tokens`, the end of the *input* is
    cut, never the template around it. DataError when the template alone does not fit, or there is nothing to read.
    """
    limit = min(max_tokens or host.max_positions, host.max_positions - reserve)
    if limit < 1:
        raise DataError(
            "The answer leaves the prompt no room in what the model reads.",
            expected=f"fewer than {host.max_positions} tokens for the answer and a soft prompt",
            found=f"{reserve} tokens",
            fix="Let the answer have fewer tokens (max_tokens, shorter labels), or use a base model that reads more.",
        )
    kept = text[: limit * LONGEST_TOKEN]
    ids = tokens(host, template.before + kept + template.after, special=special)
    while len(ids) > limit:
        count = len(tokens(host, kept, special=False))
        keep = count - (len(ids) - limit)
        if keep < min(SHORTEST_INPUT, count):
            raise DataError(
                "The prompt does not fit into the model, even with its input cut short.",
                expected=f"at most {limit} tokens with at least {SHORTEST_INPUT} of the input",
                found=f"{len(ids)} tokens, {len(ids) - count} of them without the input",
                fix="Shorten the template or the demonstrations, or use a base model that reads more.",
            )
        kept = _cut(host, kept, keep)
        ids = tokens(host, template.before + kept + template.after, special=special)
    if not ids:
        raise DataError(
            "There is no token to read: the input is empty, and so is the template around it.",
            expected="at least one token",
            found=repr(text[:40]),
            fix="Leave empty inputs out, or put some text into the template.",
        )
    return ids


def tokens(host: Host, text: str, *, special: bool) -> list[int]:
    """Token ids of `text`, with the tokenizer's own beginning and end tokens when `special`.

    A causal model gets no end token: it continues the text. Its beginning token it needs (Llama, Gemma).
    """
    if host.tokenizer is None:
        raise HostError(
            "This host has no tokenizer, so it cannot read text.",
            expected="a tokenizer",
            found="None",
            fix="Host(model, tokenizer), or Host.load(reference).",
        )
    ids = list(host.tokenizer(text, add_special_tokens=special, truncation=False, verbose=False)["input_ids"])
    ends = special and host.role == "causal" and len(ids) > 1 and ids[-1] == host.tokenizer.eos_token_id
    return ids[:-1] if ends else ids


def _cut(host: Host, text: str, count: int) -> str:
    """`text` up to the end of its token number `count`, always shorter than before."""
    if not getattr(host.tokenizer, "is_fast", False):  # tells no character offsets: cut in proportion
        return text[: min(len(text) * count // max(len(tokens(host, text, special=False)), 1), len(text) - 1)]
    found = host.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    end = found["offset_mapping"][max(count, 1) - 1][1]
    return text[: min(end, len(text) - 1)]


def padded(host: Host, rows: Sequence[TokenIds], *, left: bool = False) -> Rows:
    """Rows of token ids padded to one length, on the host's device; every row needs at least one token."""
    width = max(len(row) for row in rows)
    pad = getattr(host.tokenizer, "pad_token_id", None) or 0
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, where] = torch.tensor(list(row), dtype=torch.long)
        mask[index, where] = 1
    return Rows(ids.to(host.device), mask.to(host.device))


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of rows of like length, longest first, so that little is padding and memory peaks at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def features(host: Host, rows: Sequence[TokenIds], *, soft: Tensor | None = None) -> Tensor:
    """One vector per row, `(row, hidden)`, differentiable: an encoder's pooled tokens, a causal model's last token.

    An encoder's pooling (mean, or its first token) is the one it was published with; a soft prompt's own positions are
    left out of it.
    """
    found = padded(host, rows)
    hidden = _hidden(host, found, soft)
    if host.role == "causal":
        last = found.mask.sum(dim=1) - 1
        return hidden[torch.arange(len(rows), device=hidden.device), last]
    if host.pooling == "cls":
        return hidden[:, 0]
    weights = found.mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def _hidden(host: Host, rows: Rows, soft: Tensor | None) -> Tensor:
    """The backbone's last hidden state at the rows' own tokens, `(row, token, hidden)`."""
    inputs = _inputs(host, rows, soft)
    output = host.backbone(**inputs)
    hidden: Tensor = output.last_hidden_state
    return hidden if soft is None else hidden[:, soft.shape[0] :]


def _inputs(host: Host, rows: Rows, soft: Tensor | None) -> dict[str, Tensor]:
    if host.role == "encoder-decoder":
        raise HostError(
            "An encoder-decoder model cannot be used in this way yet.",
            expected="a text encoder or a causal language model",
            found=f"{host.reference}, {host.family}",
            fix="Call host.model.generate within attached(...), or use an encoder or a causal model.",
        )
    if soft is None:
        return {"input_ids": rows.ids, "attention_mask": rows.mask}
    tokens = host.model.get_input_embeddings()(rows.ids)
    soft_rows = soft.to(tokens.dtype)[None].expand(len(tokens), -1, -1)
    seen = rows.mask.new_ones(len(tokens), soft.shape[0])
    # Padding on the left goes before the soft prompt: between it and the tokens it would use up a sliding window.
    order = torch.cat([seen, (rows.mask.cumsum(dim=1) > 0).to(seen.dtype)], dim=1).argsort(dim=1, stable=True)
    embedded = torch.cat([soft_rows, tokens], dim=1)
    return {
        "inputs_embeds": embedded.gather(1, order[:, :, None].expand_as(embedded)),
        "attention_mask": torch.cat([seen, rows.mask], dim=1).gather(1, order),
    }


def embed(
    host: Host,
    rows: Sequence[TokenIds],
    *,
    soft: Tensor | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Tensor:
    """`features` of many rows without gradients, `(row, hidden)` in the rows' order."""
    if not rows:
        return torch.empty(0, host.hidden_size)
    parts: list[Tensor] = []
    order: list[int] = []
    with torch.no_grad():
        for indices in batches([len(row) for row in rows], batch_size):
            parts.append(features(host, [rows[index] for index in indices], soft=soft).float().cpu())
            order += indices
            if progress is not None:
                progress(len(indices))
    return torch.cat(parts)[torch.argsort(torch.tensor(order))]


def completion_scores(
    host: Host, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], *, soft: Tensor | None = None
) -> Tensor:
    """Log-likelihood of every completion after every prompt, in nats, `(prompt, completion)`, differentiable.

    The sum over the completion's tokens of log p(token | prompt, tokens before). Each prompt is read once; its keys and
    values are shared by all completions.
    """
    rows = padded(host, prompts, left=True)
    inputs = _inputs(host, rows, soft)
    positions = _positions(inputs["attention_mask"])
    longest = max(len(completion) for completion in completions)
    output = host.model(**inputs, position_ids=positions, use_cache=longest > 1)
    first = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
    heads = torch.tensor([completion[0] for completion in completions], device=first.device)
    scores = first[:, heads]
    if longest == 1:
        return scores
    return scores + _tail_scores(host, output.past_key_values, inputs["attention_mask"], positions, completions)


def _tail_scores(host: Host, cache: Any, mask: Tensor, positions: Tensor, completions: Sequence[TokenIds]) -> Tensor:
    """Log-likelihood of the completions' second and later tokens, given the prompts' cache."""
    prompts, count = mask.shape[0], len(completions)
    tails = padded(host, completions)
    cache.batch_repeat_interleave(count)
    ids = tails.ids.repeat(prompts, 1)
    seen = tails.mask.repeat(prompts, 1)
    steps = torch.arange(ids.shape[1] - 1, device=ids.device)
    logits = host.model(
        input_ids=ids[:, :-1],
        attention_mask=torch.cat([mask.repeat_interleave(count, dim=0), seen[:, :-1]], dim=1),
        position_ids=positions[:, -1:].repeat_interleave(count, dim=0) + 1 + steps,
        past_key_values=cache,
        use_cache=True,
    ).logits
    told = torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None])[:, :, 0]
    return (told * seen[:, 1:]).sum(dim=1).view(prompts, count)


def _positions(mask: Tensor) -> Tensor:
    """Position ids that count the real tokens of each row, so that left padding changes nothing."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def completion_loss(
    host: Host, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], *, soft: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood per token of each prompt's own completion, in nats, differentiable (a scalar)."""
    rows = padded(host, [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)])
    inputs = _inputs(host, rows, soft)
    logits = host.model(**inputs, use_cache=False).logits
    logits = logits if soft is None else logits[:, soft.shape[0] :]
    told = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, rows.ids[:, 1:, None])[:, :, 0]
    starts = torch.tensor([len(prompt) - 1 for prompt in prompts], device=told.device)
    steps = torch.arange(told.shape[1], device=told.device)
    counted = (steps[None] >= starts[:, None]) & (rows.mask[:, 1:] == 1)
    return -(told * counted).sum() / counted.sum()


def generate(host: Host, prompts: Sequence[TokenIds], *, max_new_tokens: int, soft: Tensor | None = None) -> list[str]:
    """The greedy continuation of each prompt as text, special tokens left out; at most `max_new_tokens` tokens."""
    from transformers import GenerationConfig

    rows = padded(host, prompts, left=True)
    ends = getattr(host.model.generation_config, "eos_token_id", None)
    pad = getattr(host.tokenizer, "pad_token_id", None)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        eos_token_id=ends if ends is not None else getattr(host.tokenizer, "eos_token_id", None),
        pad_token_id=pad if pad is not None else 0,
        bos_token_id=getattr(host.tokenizer, "bos_token_id", None),
    )
    with torch.no_grad():
        found = host.model.generate(**_inputs(host, rows, soft), generation_config=settings)
    new = found if soft is not None else found[:, rows.ids.shape[1] :]
    return [str(text) for text in host.tokenizer.batch_decode(new, skip_special_tokens=True)]
