"""PEFT's PrefixTuning on a sentence encoder, fitted as its documentation does, on the batches that ours reads.

Two heads, as users build them: `sequence` is transformers' own sequence classifier (pooler and linear layer, what
PEFT's SEQ_CLS task type fits along); `mean` is a linear layer on the mean of the tokens, what this encoder was
published with. AdamW, and PEFT's own schedule in its sequence-classification example: linear, after a warm-up of 6%.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification, get_linear_schedule_with_warmup

from foreword.engine.host import Host
from foreword.engine.loading import load_model
from foreword.engine.rendering import batches, padded
from foreword.tuning.batching import Batches


@dataclass(frozen=True)
class PeftSettings:
    """What of PEFT's prefix tuning is chosen: rate, reparametrisation by a network (`projection`), head."""

    learning_rate: float
    projection: bool
    head: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# The documentation's rate is 1e-2; its neighbours are tried so that the peer is at its best.
GRID = tuple(
    PeftSettings(rate, projection, head)
    for head in ("sequence", "mean")
    for projection in (False, True)
    for rate in (3e-3, 1e-2, 3e-2)
)


class _MeanHead(nn.Module):
    def __init__(self, body: nn.Module, hidden: int, labels: int) -> None:
        super().__init__()
        self.body, self.line = body, nn.Linear(hidden, labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[:, :, None].to(hidden.dtype)
        return self.line((hidden * weights).sum(dim=1) / weights.sum(dim=1))


class _SequenceHead(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.body(input_ids=input_ids, attention_mask=attention_mask).logits


def _model(reference: str, labels: int, settings: PeftSettings, positions: int, seed: int) -> nn.Module:
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    folder = load_model(reference, dtype="float32", device="cpu").model.name_or_path
    torch.manual_seed(seed)
    is_sequence = settings.head == "sequence"
    kind = TaskType.SEQ_CLS if is_sequence else TaskType.FEATURE_EXTRACTION
    config = PrefixTuningConfig(
        task_type=kind, num_virtual_tokens=positions, prefix_projection=settings.projection, encoder_hidden_size=384
    )
    if is_sequence:
        body = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
        return _SequenceHead(get_peft_model(body, config))
    body = AutoModel.from_pretrained(folder)
    return _MeanHead(get_peft_model(body, config), body.config.hidden_size, labels)


@dataclass(frozen=True)
class PeftRun:
    """`curve`: (step, seconds, accuracy on the selection split); `outputs`: test labels at the best of these steps."""

    curve: list[tuple[int, float, float]]
    outputs: list[int]
    best_step: int


def run_peft(
    host: Host,
    rows: Sequence[list[list[int]]],
    targets: Sequence[Tensor],
    settings: PeftSettings,
    *,
    positions: int,
    steps: int,
    seed: int,
    every: int,
) -> PeftRun:
    """Fit on `rows[0]`, look at `rows[1]` every few steps, answer `rows[2]` with the best state."""
    labels = int(targets[0].max()) + 1
    model = _model(host.reference, labels, settings, positions, seed).eval()
    fitted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(fitted, lr=settings.learning_rate)
    schedule = get_linear_schedule_with_warmup(optimizer, int(0.06 * steps), steps)
    drawn, seconds = Batches(len(rows[0]), 16, seed), 0.0
    curve = [(0, 0.0, _accuracy(model, host, rows[1], targets[1]))]
    best, state = curve[0], _state(fitted)
    for step in range(steps):
        started = time.perf_counter()
        indices = drawn.at(step)
        found = padded(host, [rows[0][index] for index in indices])
        loss = nn.functional.cross_entropy(model(found.ids, found.mask), targets[0][indices])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        seconds += time.perf_counter() - started
        if (step + 1) % every == 0 or step + 1 == steps:
            curve.append((step + 1, seconds, _accuracy(model, host, rows[1], targets[1])))
            if curve[-1][2] > best[2]:
                best, state = curve[-1], _state(fitted)
    with torch.no_grad():
        for parameter, saved in zip(fitted, state, strict=True):
            parameter.copy_(saved)
    return PeftRun(curve, _answers(model, host, rows[2]), best[0])


def _state(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


def _answers(model: nn.Module, host: Host, rows: Sequence[list[int]]) -> list[int]:
    answers = [0] * len(rows)
    with torch.no_grad():
        for indices in batches([len(row) for row in rows], 32):
            found = padded(host, [rows[index] for index in indices])
            for index, label in zip(indices, model(found.ids, found.mask).argmax(dim=1).tolist(), strict=True):
                answers[index] = label
    return answers


def _accuracy(model: nn.Module, host: Host, rows: Sequence[list[int]], targets: Tensor) -> float:
    answers = _answers(model, host, rows)
    return sum(a == b for a, b in zip(answers, targets.tolist(), strict=True)) / len(answers)
