"""PEFT's PrefixTuning and Cartridge on a causal model that writes answers, on the batches that ours reads.

The loss is on the answer only. Cartridge begins with the keys and values of demonstrations, as its documentation
recommends, the first position frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft_steps import peft_run
from runs import Fixed
from torch import Tensor, nn
from transformers import AutoModelForCausalLM


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


def run_writer(
    folder: str,
    splits: Sequence[Written],
    settings: WriterSettings,
    *,
    fixed: Fixed,
    steps: int,
    seed: int,
) -> dict[str, Any]:
    """Fit on the first split, look at the second and, without choosing by it, at the third every few steps."""
    model = _model(folder, settings, splits[0], fixed.positions, seed).eval()
    return peft_run(
        model,
        lambda indices: _loss(model, splits[0], indices),
        lambda split: _right(model, splits[split]),
        settings.as_dict(),
        examples=len(splits[0].prompts),
        fixed=fixed,
        steps=steps,
        seed=seed,
    )


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
