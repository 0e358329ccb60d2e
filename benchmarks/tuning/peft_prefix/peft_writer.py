"""PEFT's PrefixTuning and Cartridge on a causal model that writes answers or chooses labels, on the batches of ours.

The loss is on the answer only, as in PEFT's example; where labels are told by their likelihood it can also be the
cross-entropy over the labels, which is what ours minimises there. Prompts are never padded on the left: PEFT gives a
row's tokens positions that count the padding, which a prefix would have to make up for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft_steps import peft_run
from runs import WARM_UP, Documented, Fixed
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

ROWS = 128


@dataclass(frozen=True)
class WriterSettings:
    """`kind`: how PEFT's prefix is parametrised and begins.

    "prefix" as drawn, "zero" with zeros, "projection" through its network, "text" with the keys and values of
    demonstrations, "cartridge" with these and the first position frozen. `loss` is "completion" or "labels".
    """

    kind: str
    learning_rate: float
    loss: str = "completion"

    def as_dict(self) -> dict[str, Any]:
        """What a run is known by: a loss that is not the documentation's is named."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("loss", "completion")}


# The documentation's rates are 1e-2 (sequence to sequence) and 3e-2 (causal); their neighbours are tried too.
KINDS, RATES = ("prefix", "projection", "cartridge", "zero"), (3e-3, 1e-2, 3e-2, 1e-1)
GRID = tuple(WriterSettings(kind, rate) for kind in KINDS for rate in RATES)
LABEL_GRID = tuple(WriterSettings(kind, rate, "labels") for kind in KINDS for rate in RATES[1:])
DOCUMENTED_HERE = {
    "peft, example": Documented(
        WriterSettings("prefix", 3e-2), 0.0, "examples/causal_language_modeling/peft_prefix_tuning_clm.ipynb"
    ),
    "peft, guide": Documented(
        WriterSettings("text", 5e-3),
        0.0,
        "docs/source/package_reference/prefix_tuning.md, rate of method_comparison's experiments with it",
    ),
    "cartridge, example": Documented(
        WriterSettings("cartridge", 1e-3), 0.0, "examples/cartridge_self_study/train_distill.py, but for its loss"
    ),
}


@dataclass(frozen=True)
class Written:
    """Prompts and answers as token ids; answers that are written end in the end token.

    `texts` are the answers that count as right; `choices` the labels' token ids where one of them is chosen.
    """

    prompts: Sequence[Sequence[int]]
    answers: Sequence[Sequence[int]]
    texts: Sequence[str]
    choices: Sequence[Sequence[int]] = ()


def run_writer(
    folder: str,
    splits: Sequence[Written],
    settings: WriterSettings,
    read: Callable[[Tensor], str],
    *,
    fixed: Fixed,
    steps: int,
    seed: int,
    warm_up: float = WARM_UP,
    looks_at_unseen: bool = True,
) -> dict[str, Any]:
    """Fit on the first split, look at the second and, without choosing by it, at the third every few steps.

    `read` makes of the tokens written the text that is compared.
    """
    model = causal_model(folder, settings, splits[0], fixed.positions, seed).eval()
    fit = splits[0]
    targets = torch.tensor([list(fit.choices).index(answer) for answer in fit.answers]) if fit.choices else None

    def losses(indices: list[int]) -> Iterator[Tensor]:
        if settings.loss == "labels" and targets is not None:
            scores = label_scores(model, [fit.prompts[i] for i in indices], fit.choices)
            yield nn.functional.cross_entropy(scores, targets[indices])
        else:
            yield _completion_loss(model, fit, indices)

    def right(split: int) -> list[int]:
        return _chosen(model, splits[split]) if fit.choices else _right(model, splits[split], read)

    return peft_run(
        model,
        losses,
        right,
        settings.as_dict(),
        examples=len(fit.prompts),
        fixed=fixed,
        steps=steps,
        seed=seed,
        warm_up=warm_up,
        looks_at_unseen=looks_at_unseen,
    )


def causal_model(folder: str, settings: WriterSettings, fit: Written, positions: int, seed: int) -> nn.Module:
    """The base model with PEFT's adapter of that kind; demonstrations are the first fit examples, told one by one."""
    import peft

    torch.manual_seed(seed)
    body = AutoModelForCausalLM.from_pretrained(folder)
    if settings.kind == "cartridge":
        config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=positions)
    else:
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=positions,
            prefix_projection=settings.kind == "projection",
            encoder_hidden_size=body.config.hidden_size,
            init_weights="zero" if settings.kind == "zero" else None,
        )
    if settings.kind not in ("cartridge", "text"):
        return peft.get_peft_model(body, config)
    told = [token for pair in zip(fit.prompts, fit.answers, strict=True) for part in pair for token in part]
    with torch.no_grad():
        cache = body(input_ids=torch.tensor([told[:positions]]), use_cache=True).past_key_values
    pairs = [(layer.keys, layer.values) for layer in cache.layers]
    model = peft.get_peft_model(body, config)
    from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values

    initialize_kv_prefix_from_past_key_values(model, past_key_values=pairs, num_virtual_tokens=positions)
    return model


def label_scores(model: nn.Module, prompts: Sequence[Sequence[int]], choices: Sequence[Sequence[int]]) -> Tensor:
    """Log-likelihood of every label after every prompt, `(prompt, label)`, differentiable.

    Each prompt is read once; the labels go on from its cache, behind the padding, at the positions they would have.
    """
    ids, mask = _padded(prompts)
    read = model(input_ids=ids, attention_mask=mask, use_cache=True)
    ends = mask.sum(dim=1)
    first = torch.log_softmax(read.logits[torch.arange(len(ids)), ends - 1], dim=-1)
    scores = first[:, [choice[0] for choice in choices]]
    tails, told = _padded(choices)
    if tails.shape[1] == 1:
        return scores
    count, cache = len(choices), read.past_key_values
    before = cache.get_seq_length() - ids.shape[1]
    cache.batch_repeat_interleave(count)
    prefix = torch.ones(len(ids), before, dtype=mask.dtype)
    seen = torch.cat([prefix, mask], dim=1).repeat_interleave(count, dim=0)
    again, told = tails.repeat(len(ids), 1), told.repeat(len(ids), 1)
    logits = model.get_base_model()(
        input_ids=again[:, :-1],
        attention_mask=torch.cat([seen, told[:, :-1]], dim=1),
        position_ids=(before + ends).repeat_interleave(count)[:, None] + torch.arange(again.shape[1] - 1),
        past_key_values=cache,
        use_cache=True,
    ).logits
    each = torch.log_softmax(logits, dim=-1).gather(2, again[:, 1:, None])[:, :, 0]
    return scores + (each * told[:, 1:]).sum(dim=1).view(len(ids), count)


def _completion_loss(model: nn.Module, split: Written, indices: list[int]) -> Tensor:
    ids, mask = _padded([[*split.prompts[i], *split.answers[i]] for i in indices])
    labels = torch.full_like(ids, -100)
    for row, i in enumerate(indices):
        start = len(split.prompts[i])
        labels[row, start : start + len(split.answers[i])] = torch.tensor(split.answers[i])
    loss: Tensor = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    return loss


def _chosen(model: nn.Module, split: Written) -> list[int]:
    right = [0] * len(split.prompts)
    with torch.no_grad():
        for part in _by_length(split.prompts, ROWS // 4):
            scores = label_scores(model, [split.prompts[i] for i in part], split.choices)
            for i, label in zip(part, scores.argmax(dim=1).tolist(), strict=True):
                right[i] = int(split.choices[label] == split.answers[i])
    return right


def _right(model: nn.Module, split: Written, read: Callable[[Tensor], str]) -> list[int]:
    right = [0] * len(split.prompts)
    lengths = {len(answer) for answer in split.answers}
    # Where all answers are of one length, they end there, as if PEFT's never ended too early: to its favour.
    earliest = max(lengths) if len(lengths) == 1 else 1
    for part in _by_length(split.prompts, ROWS):
        prompts = [split.prompts[i] for i in part]
        written = continuations(model, prompts, most=max(lengths), earliest=earliest, end=split.answers[0][-1])
        for i, tokens in zip(part, written, strict=True):
            right[i] = int(read(tokens) == split.texts[i])
    return right


@torch.no_grad()
def continuations(
    model: nn.Module, prompts: Sequence[Sequence[int]], *, most: int, earliest: int, end: int
) -> Sequence[Tensor]:
    """The likeliest tokens behind each prompt, at most `most`, up to its end token, not before the `earliest`."""
    ids, mask = _padded(prompts)
    read = model(input_ids=ids, attention_mask=mask, use_cache=True)
    cache, ends = read.past_key_values, mask.sum(dim=1)
    before = cache.get_seq_length() - ids.shape[1]
    seen = torch.cat([torch.ones(len(ids), before, dtype=mask.dtype), mask], dim=1)
    logits, written = read.logits[torch.arange(len(ids)), ends - 1], list[Tensor]()
    for number in range(most):
        if number:
            seen = torch.cat([seen, torch.ones(len(ids), 1, dtype=mask.dtype)], dim=1)
            logits = (
                model.get_base_model()(
                    input_ids=written[-1][:, None],
                    attention_mask=seen,
                    position_ids=(before + ends + number - 1)[:, None],
                    past_key_values=cache,
                    use_cache=True,
                )
                .logits[:, -1]
                .clone()
            )
        if number + 1 < earliest:
            logits[:, end] = -torch.inf
        written.append(logits.argmax(dim=-1))
    found = torch.stack(written, dim=1)
    return [row[: (row == end).int().argmax()] if bool((row == end).any()) else row for row in found]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids padded on the right, and their mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def _by_length(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Indices of at most `size` rows of like length."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    yield from (order[start : start + size] for start in range(0, len(order), size))
