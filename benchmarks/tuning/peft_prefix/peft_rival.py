"""PEFT's PrefixTuning on a sentence encoder, fitted as its documentation does, on the batches that ours reads.

Two heads, as users build them: `sequence` is transformers' own sequence classifier (pooler and linear layer, what
PEFT's SEQ_CLS task type fits along); `mean` is a linear layer on the mean of the tokens, what this encoder was
published with. A third, `unit mean`, reads that mean at unit length, as our read-out does.

A head's linear layer begins drawn, as in PEFT's documentation, or `solved`: with the logistic regression that our
read-out is, by the same code, on what the layer reads of the fit examples behind the prefix's first values. No
documentation of PEFT's does so; it is there to tell the prefix's part in a comparison from the read-out's.
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
from foreword.tuning.readout import best_logistic_regression

# Tokens, padding included, that are read at once: rows of like length together, so that little of it is padding.
TOKENS = 384


@dataclass(frozen=True)
class PeftSettings:
    """What of PEFT's prefix tuning is chosen: rate, reparametrisation by a network (`projection`), head, first values.

    `start` is "drawn", PEFT's default, or "zero"; `classifier`, of the head's linear layer, "drawn" or "solved".
    """

    learning_rate: float
    projection: bool
    head: str
    start: str = "drawn"
    classifier: str = "drawn"

    def as_dict(self) -> dict[str, Any]:
        """What a run is known by: what begins otherwise than by PEFT's default is named."""
        drawn = {"start": "drawn", "classifier": "drawn"}
        return {name: value for name, value in asdict(self).items() if drawn.get(name) != value}


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

# Its example, but for a classifier that begins solved: on what its own head reads, and on what our read-out reads.
_NOWHERE = "nowhere: its example, but for the classifier"
SOLVED_HERE = {
    "peft, example, solved classifier": Documented(
        PeftSettings(1e-2, False, "sequence", classifier="solved"), 0.06, _NOWHERE
    ),
    "peft, example, our read-out": Documented(
        PeftSettings(1e-2, False, "unit mean", classifier="solved"), 0.06, _NOWHERE
    ),
}


class _MeanHead(nn.Module):
    def __init__(self, body: nn.Module, hidden: int, labels: int, *, is_unit: bool) -> None:
        super().__init__()
        self.body, self.line, self.is_unit = body, nn.Linear(hidden, labels), is_unit

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return self.line(nn.functional.normalize(mean, dim=1) if self.is_unit else mean)


class _SequenceHead(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    @property
    def line(self) -> nn.Module:
        """The linear layer that is fitted along; PEFT keeps the untouched one beside it."""
        return self.body.base_model.classifier.modules_to_save["default"]

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
    is_unit = settings.head == "unit mean"
    return _MeanHead(get_peft_model(body, config), body.config.hidden_size, labels, is_unit=is_unit)


def solve_classifier(model: nn.Module, host: Host, rows: Sequence[list[list[int]]], targets: Sequence[Tensor]) -> None:
    """Let the line of `model`'s head begin with the read-out that ours would begin with, on what this line reads.

    Solved on `rows[0]`, its penalty chosen on `rows[1]`. The read-out's scores are W x/|x| + b. A line does not divide
    by the length of what it reads, so that W is divided by its mean over the fit examples: exact for unit lengths.
    """
    read = [_read_by(model.line, model, host, part) for part in rows[:2]]
    labels = int(targets[0].max()) + 1
    readout, _ = best_logistic_regression(read[0], targets[0], read[1], targets[1], labels)
    with torch.no_grad():
        model.line.weight.copy_(readout.weights / read[0].norm(dim=1).mean())
        model.line.bias.copy_(readout.bias)


def _read_by(line: nn.Module, model: nn.Module, host: Host, rows: Sequence[list[int]]) -> Tensor:
    """What a layer of `model` reads `(row, hidden)`."""
    found = torch.empty(len(rows), line.in_features)
    with torch.no_grad():
        for indices in reading_parts([len(row) for row in rows]):
            part = padded(host, [rows[index] for index in indices])
            given = list[Tensor]()
            hook = line.register_forward_pre_hook(lambda _, inputs, given=given: given.append(inputs[0]))
            try:
                model(part.ids, part.mask)
            finally:
                hook.remove()
            (found[indices],) = given
    return found


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
    if settings.classifier == "solved":
        solve_classifier(model, host, rows, targets)

    def losses(indices: list[int]) -> Iterator[Tensor]:
        for part in reading_parts([len(rows[0][index]) for index in indices]):
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
        for indices in reading_parts([len(row) for row in rows]):
            found = padded(host, [rows[index] for index in indices])
            for index, label in zip(indices, model(found.ids, found.mask).argmax(dim=1).tolist(), strict=True):
                answers[index] = label
    return answers


def reading_parts(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows, longest first, in parts of at most TOKENS tokens when padded to their longest."""
    part = list[int]()
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if part and (len(part) + 1) * lengths[part[0]] > TOKENS:
            yield part
            part = []
        part.append(place)
    if part:
        yield part
