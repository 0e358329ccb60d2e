"""PEFT's PrefixTuning on a sentence encoder, fitted as its documentation does, on the batches that ours reads.

Two heads, as users build them: `sequence` is transformers' own sequence classifier (pooler and linear layer, what
PEFT's SEQ_CLS task type fits along); `mean` is a linear layer on the mean of the tokens, what this encoder was
published with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft_steps import peft_run
from runs import WARM_UP, Documented, Fixed
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForSequenceClassification

from foreword.engine.host import Host
from foreword.engine.loading import load_model
from foreword.engine.rendering import padded

# Tokens, padding included, that are read at once: rows of like length together, so that little of it is padding.
TOKENS = 384


@dataclass(frozen=True)
class PeftSettings:
    """What of PEFT's prefix tuning is chosen: rate, reparametrisation by a network (`projection`), head, first values.

    `start` is "drawn", PEFT's default, or "zero".
    """

    learning_rate: float
    projection: bool
    head: str
    start: str = "drawn"

    def as_dict(self) -> dict[str, Any]:
        """What a run is known by: a start that is not the default's is named."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("start", "drawn")}


# The documentation's rate is 1e-2; its neighbours are tried so that the peer is at its best.
GRID = tuple(
    PeftSettings(rate, projection, head)
    for head in ("sequence", "mean")
    for projection in (False, True)
    for rate in (3e-3, 1e-2, 3e-2)
)

# As they stand there. An encoder keeps no cache of a text, so that of the guide's starts only zero is left to it.
DOCUMENTED_HERE = {
    "peft, example": Documented(
        PeftSettings(1e-2, False, "sequence"), 0.06, "examples/sequence_classification/prefix_tuning.ipynb"
    ),
    "peft, guide": Documented(
        PeftSettings(5e-3, False, "sequence", "zero"),
        0.06,
        "docs/source/package_reference/prefix_tuning.md, rate of method_comparison's experiments with it",
    ),
}


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
        task_type=kind,
        num_virtual_tokens=positions,
        prefix_projection=settings.projection,
        encoder_hidden_size=384,
        init_weights="zero" if settings.start == "zero" else None,
    )
    if is_sequence:
        body = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=labels)
        return _SequenceHead(get_peft_model(body, config))
    body = AutoModel.from_pretrained(folder)
    return _MeanHead(get_peft_model(body, config), body.config.hidden_size, labels)


def run_peft(
    host: Host,
    rows: Sequence[list[list[int]]],
    targets: Sequence[Tensor],
    settings: PeftSettings,
    *,
    fixed: Fixed,
    steps: int,
    seed: int,
    warm_up: float = WARM_UP,
    looks_at_unseen: bool = True,
) -> dict[str, Any]:
    """Fit on `rows[0]`, look at `rows[1]` and, without choosing by it, at `rows[2]` every few steps."""
    model = _model(host.reference, int(targets[0].max()) + 1, settings, fixed.positions, seed).eval()

    def losses(indices: list[int]) -> Iterator[Tensor]:
        for part in _of_like_length([len(rows[0][index]) for index in indices]):
            told = [indices[place] for place in part]
            found = padded(host, [rows[0][index] for index in told])
            each = nn.functional.cross_entropy(model(found.ids, found.mask), targets[0][told], reduction="sum")
            yield each / len(indices)

    def right(split: int) -> list[int]:
        answers = _answers(model, host, rows[split])
        return [int(a == b) for a, b in zip(answers, targets[split].tolist(), strict=True)]

    return peft_run(
        model,
        losses,
        right,
        settings.as_dict(),
        examples=len(rows[0]),
        fixed=fixed,
        steps=steps,
        seed=seed,
        warm_up=warm_up,
        looks_at_unseen=looks_at_unseen,
    )


def _answers(model: nn.Module, host: Host, rows: Sequence[list[int]]) -> list[int]:
    answers = [0] * len(rows)
    with torch.no_grad():
        for indices in _of_like_length([len(row) for row in rows]):
            found = padded(host, [rows[index] for index in indices])
            for index, label in zip(indices, model(found.ids, found.mask).argmax(dim=1).tolist(), strict=True):
                answers[index] = label
    return answers


def _of_like_length(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows, longest first, in parts of at most TOKENS tokens when padded to their longest."""
    part = list[int]()
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if part and (len(part) + 1) * lengths[part[0]] > TOKENS:
            yield part
            part = []
        part.append(place)
    if part:
        yield part
