"""PEFT's PrefixTuning and Cartridge on a causal model that writes answers, on the batches that ours reads.

The loss is on the answer only. Cartridge begins with the keys and values of demonstrations, as its documentation
recommends, the first position frozen. AdamW with PEFT's example schedule: linear, after a warm-up of 6%.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup

from foreword.tuning.batching import Batches


@dataclass(frozen=True)
class WriterSettings:
    """`kind`: "prefix" as drawn, "projection" through its network, or "cartridge" from demonstrations."""

    kind: str
    learning_rate: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# The documentation's rates are 1e-2 (sequence to sequence) and 3e-2 (causal); their neighbours are tried too.
GRID = tuple(
    WriterSettings(kind, rate) for kind in ("prefix", "projection", "cartridge") for rate in (3e-3, 1e-2, 3e-2, 1e-1)
)


@dataclass(frozen=True)
class Written:
    """Prompts and answers as token ids of one length each, `(example, token)`; answers end in the end token."""

    prompts: Tensor
    answers: Tensor


@dataclass(frozen=True)
class WriterRun:
    """`curve`: (step, seconds, exact matches on the selection split); `right`: test examples at the best of them."""

    curve: list[tuple[int, float, float]]
    right: list[int]
    best_step: int


def run_writer(
    folder: str,
    splits: Sequence[Written],
    settings: WriterSettings,
    *,
    positions: int,
    steps: int,
    batch: int,
    seed: int,
    every: int,
) -> WriterRun:
    """Fit on the first split, look at the second every few steps, answer the third with the best state."""
    model = _model(folder, settings, splits[0], positions, seed).eval()
    fitted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(fitted, lr=settings.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
    drawn, seconds = Batches(len(splits[0].prompts), batch, seed), 0.0
    curve = [(0, 0.0, _exact(model, splits[1]))]
    best, state = curve[0], [parameter.detach().clone() for parameter in fitted]
    for step in range(steps):
        started = time.perf_counter()
        loss = _loss(model, splits[0], drawn.at(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - started
        if (step + 1) % every == 0 or step + 1 == steps:
            curve.append((step + 1, seconds, _exact(model, splits[1])))
            if curve[-1][2] > best[2]:
                best, state = curve[-1], [parameter.detach().clone() for parameter in fitted]
    with torch.no_grad():
        for parameter, saved in zip(fitted, state, strict=True):
            parameter.copy_(saved)
    return WriterRun(curve, _right(model, splits[2]), best[0])


def _model(folder: str, settings: WriterSettings, fit: Written, positions: int, seed: int) -> nn.Module:
    import peft

    torch.manual_seed(seed)
    body = AutoModelForCausalLM.from_pretrained(folder)
    if settings.kind != "cartridge":
        projects = settings.kind == "projection"
        config = peft.PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=positions,
            prefix_projection=projects,
            encoder_hidden_size=body.config.hidden_size,
        )
        return peft.get_peft_model(body, config)
    told = torch.cat([fit.prompts, fit.answers], dim=1).flatten()[None, :positions]
    with torch.no_grad():
        cache = body(input_ids=told, use_cache=True).past_key_values
    pairs = [(layer.keys, layer.values) for layer in cache.layers]
    model = peft.get_peft_model(body, peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=positions))
    from peft.tuners.cartridge.utils import initialize_kv_prefix_from_past_key_values

    initialize_kv_prefix_from_past_key_values(model, past_key_values=pairs, num_virtual_tokens=positions)
    return model


def _loss(model: nn.Module, split: Written, indices: list[int]) -> Tensor:
    prompts, answers = split.prompts[indices], split.answers[indices]
    ids = torch.cat([prompts, answers], dim=1)
    labels = torch.cat([torch.full_like(prompts, -100), answers], dim=1)
    loss: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
    return loss


def _right(model: nn.Module, split: Written) -> list[int]:
    right: list[int] = []
    with torch.no_grad():
        for start in range(0, len(split.prompts), 128):
            prompts, answers = split.prompts[start : start + 128], split.answers[start : start + 128]
            found = model.generate(
                input_ids=prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=answers.shape[1],
                min_new_tokens=answers.shape[1] - 1,  # as if it never ended too early: to its favour
                do_sample=False,
                pad_token_id=0,
            )
            right += (found[:, -answers.shape[1] :] == answers).all(dim=1).int().tolist()
    return right


def _exact(model: nn.Module, split: Written) -> float:
    right = _right(model, split)
    return sum(right) / len(right)
