"""What a host does with token ids: embed them, score completions of them, continue them.

All functions run under whatever is attached to the host. A soft prompt, `(position, hidden)`, is put before the tokens
as embeddings and, unlike a prefix, takes positions. Rows of one batch give what each would give alone.

A causal model reads the prompt and goes on with the completion. An encoder-decoder model reads the prompt, soft prompt
included, in its encoder; its decoder begins with the model's own start token and writes the completion.

Nothing here knows a task, a label's meaning or a metric, nor how a text becomes token ids (`rendering.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foreword.engine.batches import in_batches
from foreword.engine.checkpointing import is_recomputed
from foreword.engine.host import Host
from foreword.engine.rendering import Rows, TokenIds, padded
from foreword.errors import HostError

Progress = Callable[[int], None]


def features(host: Host, rows: Sequence[TokenIds], *, soft: Tensor | None = None) -> Tensor:
    """One vector per row, `(row, hidden)`, differentiable: an encoder's pooled tokens, a causal model's last token.

    An encoder's pooling (mean, or its first token) is the one it was published with; a soft prompt's own positions are
    left out of it. Of an encoder-decoder model it is the mean of the encoder's tokens (Ni et al., "Sentence-T5", 2021).
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
    """The last hidden state at the rows' own tokens, `(row, token, hidden)`: the backbone's, or its encoder's."""
    reader: Any = host.backbone
    if host.role == "encoder-decoder":
        reader = reader.get_encoder()
    hidden: Tensor = reader(**_inputs(host, rows, soft)).last_hidden_state
    return hidden if soft is None else hidden[:, soft.shape[0] :]


def _inputs(host: Host, rows: Rows, soft: Tensor | None) -> dict[str, Tensor]:
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

    def computed(indices: list[int]) -> Tensor:
        return features(host, [rows[index] for index in indices], soft=soft).float().cpu()

    with torch.no_grad():
        for indices, part in in_batches([len(row) for row in rows], batch_size, computed):
            parts.append(part)
            order += indices
            if progress is not None:
                progress(len(indices))
    return torch.cat(parts)[torch.argsort(torch.tensor(order))]


def completion_scores(
    host: Host, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], *, soft: Tensor | None = None
) -> Tensor:
    """Log-likelihood of every completion after every prompt, in nats, `(prompt, completion)`, differentiable.

    The sum over the completion's tokens of log p(token | prompt, tokens before). Each prompt is read once; what was
    made of it is shared by all completions, but for layers that are computed again, which can use no cache, and for
    models that keep of a prompt more than keys and values, or nothing.
    """
    if host.role == "encoder-decoder":
        return _decoded_scores(host, prompts, completions, soft)
    longest = max(len(completion) for completion in completions)
    if longest > 1 and (is_recomputed(host.layout) or not host.shares_cache):
        return _uncached_scores(host, prompts, completions, soft)
    rows = padded(host, prompts, left=True)
    inputs = _inputs(host, rows, soft)
    positions = _positions(host, inputs["attention_mask"])
    output = host.model(**inputs, position_ids=positions, use_cache=longest > 1)
    first = torch.log_softmax(output.logits[:, -1].float(), dim=-1)
    heads = torch.tensor([completion[0] for completion in completions], device=first.device)
    scores = first[:, heads]
    if longest == 1:
        return scores
    host.shares_cache = _holds_keys_alone(getattr(output, "past_key_values", None))
    if not host.shares_cache:
        return _uncached_scores(host, prompts, completions, soft)
    return scores + _tail_scores(host, output.past_key_values, inputs["attention_mask"], positions, completions)


def _uncached_scores(
    host: Host, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], soft: Tensor | None
) -> Tensor:
    """The same with each prompt read once for each completion."""
    rows = padded(host, [[*prompt, *completion] for prompt in prompts for completion in completions])
    logits = host.model(**_inputs(host, rows, soft), use_cache=False).logits
    logits = logits if soft is None else logits[:, soft.shape[0] :]
    told = torch.log_softmax(logits[:, :-1].float(), dim=-1).gather(2, rows.ids[:, 1:, None])[:, :, 0]
    starts = torch.tensor([len(prompt) - 1 for prompt in prompts for _ in completions], device=told.device)
    steps = torch.arange(told.shape[1], device=told.device)
    counted = (steps[None] >= starts[:, None]) & (rows.mask[:, 1:] == 1)
    return (told * counted).sum(dim=1).view(len(prompts), len(completions))


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


def _positions(host: Host, mask: Tensor) -> Tensor:
    """Position ids that count the real tokens of each row, so that left padding changes nothing."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0) + host.layout.first_position


def _holds_keys_alone(cache: Any) -> bool:
    """Whether a cache can be repeated for several rows: states of a recurrence or a convolution cannot be."""
    layers = getattr(cache, "layers", ())
    return hasattr(cache, "batch_repeat_interleave") and not any(hasattr(layer, "conv_states") for layer in layers)


def _decoded_scores(
    host: Host, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], soft: Tensor | None
) -> Tensor:
    """`completion_scores` of an encoder-decoder model: the encoder runs once per prompt, the decoder per pair."""
    from transformers.modeling_outputs import BaseModelOutput

    inputs = _inputs(host, padded(host, prompts), soft)
    start = decoder_start(host)
    read = host.model.get_encoder()(**inputs).last_hidden_state
    count, told = len(completions), padded(host, completions)
    shifted = padded(host, [[start, *completion[:-1]] for completion in completions])
    logits = host.model(
        encoder_outputs=BaseModelOutput(last_hidden_state=read.repeat_interleave(count, dim=0)),
        attention_mask=inputs["attention_mask"].repeat_interleave(count, dim=0),
        decoder_input_ids=shifted.ids.repeat(len(prompts), 1),
        use_cache=False,
    ).logits
    ids, seen = told.ids.repeat(len(prompts), 1), told.mask.repeat(len(prompts), 1)
    each = torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, :, None])[:, :, 0]
    return (each * seen).sum(dim=1).view(len(prompts), count)


def completion_logits(
    host: Host, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], *, soft: Tensor | None = None
) -> Tensor:
    """The logits that predict each token of each prompt's own completion, `(token, vocabulary)`, differentiable.

    Tokens of the first completion first, then those of the second, and so on.
    """
    if host.role == "encoder-decoder":
        start = decoder_start(host)
        shifted = padded(host, [[start, *completion[:-1]] for completion in completions])
        inputs = _inputs(host, padded(host, prompts), soft)
        logits = host.model(**inputs, decoder_input_ids=shifted.ids, use_cache=False).logits
        return torch.cat([row[: len(told)] for row, told in zip(logits, completions, strict=True)])
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    logits = host.model(**_inputs(host, padded(host, rows), soft), use_cache=False).logits
    first = (0 if soft is None else soft.shape[0]) - 1
    ends = [first + len(row) for row in rows]
    spans = zip(logits, ends, completions, strict=True)
    return torch.cat([row[end - len(told) : end] for row, end, told in spans])


def completion_loss(
    host: Host, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], *, soft: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood per token of each prompt's own completion, in nats, differentiable (a scalar)."""
    logits = completion_logits(host, prompts, completions, soft=soft)
    told = torch.tensor([token for completion in completions for token in completion], device=logits.device)
    return nn.functional.cross_entropy(logits.float(), told)


def decoder_start(host: Host) -> int:
    """The token that an encoder-decoder model's decoder begins with.

    HostError when the model has no head that writes tokens, or names no such token.
    """
    if not host.model.can_generate():
        raise HostError(
            "This encoder-decoder model cannot write: it was loaded without its language-model head.",
            expected="a model saved with its head, such as T5ForConditionalGeneration",
            found=type(host.model).__name__,
            fix="Load the model class that has the head, or choose a read-out of features.",
        )
    for config in (host.model.generation_config, host.model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            found = getattr(config, name, None)
            if isinstance(found, int):
                return found
    raise HostError(
        "This encoder-decoder model does not say which token its decoder begins with.",
        expected="decoder_start_token_id (or bos_token_id) in its configuration",
        found="neither",
        fix="Set host.model.generation_config.decoder_start_token_id.",
    )


def generate(host: Host, prompts: Sequence[TokenIds], *, max_new_tokens: int, soft: Tensor | None = None) -> list[str]:
    """The greedy continuation of each prompt as text, special tokens left out; at most `max_new_tokens` tokens."""
    found = continuations(host, prompts, max_new_tokens=max_new_tokens, soft=soft)
    return [str(text) for text in host.tokenizer.batch_decode(found, skip_special_tokens=True)]


def continuations(
    host: Host,
    prompts: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    soft: Tensor | None = None,
    seed: int | None = None,
) -> Tensor:
    """Token ids that follow each prompt, `(row, token)`, padded behind the end token; at most `max_new_tokens`.

    The most likely token at each step; with `seed`, tokens drawn from the model's own distribution (temperature 1,
    nothing cut off), the same ones each time.
    """
    from transformers import GenerationConfig

    decodes = host.role == "encoder-decoder"
    rows = padded(host, prompts, left=not decodes)
    ends = getattr(host.model.generation_config, "eos_token_id", None)
    pad = getattr(host.tokenizer, "pad_token_id", None)
    drawn = {} if seed is None else {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=seed is not None,
        num_beams=1,
        eos_token_id=ends if ends is not None else getattr(host.tokenizer, "eos_token_id", None),
        pad_token_id=pad if pad is not None else 0,
        bos_token_id=getattr(host.tokenizer, "bos_token_id", None),
        **drawn,
        **({"decoder_start_token_id": decoder_start(host)} if decodes else {}),
    )
    devices = [host.device] if host.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        found: Tensor = host.model.generate(**_inputs(host, rows, soft), generation_config=settings)
    prompt = 1 if decodes else 0 if soft is not None else rows.ids.shape[1]
    return found[:, prompt:]
