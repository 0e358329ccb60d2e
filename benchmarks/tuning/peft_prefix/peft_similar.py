"""PEFT's PrefixTuning on a sentence encoder that compares texts, with the loss and on the batches that ours reads.

Inputs and the labels' texts are read by the same adapted model, at the mean of their tokens and unit length; the loss
is the cross-entropy over their cosines times 20. There is no head, so that nothing but the prefix is fitted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft_rival import reading_parts
from peft_steps import peft_run
from runs import WARM_UP, Documented, Fixed
from torch import Tensor, nn
from transformers import AutoModel

from foreword.engine.host import Host
from foreword.engine.loading import load_model
from foreword.engine.rendering import padded
from foreword.tuning.objectives.similarity import MOST_TEXTS
from foreword.tuning.readout import COSINE_SCALE


@dataclass(frozen=True)
class SimilarSettings:
    """What of PEFT's prefix tuning is chosen where there is no head; `start` is "drawn", PEFT's default, or "zero"."""

    learning_rate: float
    projection: bool = False
    start: str = "drawn"

    def as_dict(self) -> dict[str, Any]:
        """What a run is known by."""
        return asdict(self)


# Around the documentation's 1e-2, as for labels; a network has no zero start.
GRID = tuple(
    SimilarSettings(rate, projection, start)
    for projection, start in ((False, "drawn"), (False, "zero"), (True, "drawn"))
    for rate in (3e-3, 1e-2, 3e-2)
)

# As they stand there; neither place has an example that compares texts, and the loss is ours.
DOCUMENTED_HERE = {
    "peft, example": Documented(SimilarSettings(1e-2), 0.06, "examples/sequence_classification/prefix_tuning.ipynb"),
    "peft, guide": Documented(
        SimilarSettings(5e-3, start="zero"),
        0.06,
        "docs/source/package_reference/prefix_tuning.md, rate of method_comparison's experiments with it",
    ),
}


def run_similar(
    host: Host,
    rows: Sequence[list[list[int]]],
    targets: Sequence[Tensor],
    texts: list[list[int]],
    settings: SimilarSettings,
    *,
    fixed: Fixed,
    steps: int,
    seed: int,
    warm_up: float = WARM_UP,
    looks_at_unseen: bool = True,
) -> dict[str, Any]:
    """Fit on `rows[0]`, look at `rows[1]` and, without choosing by it, at `rows[2]` every few steps.

    `texts` are the labels', as token ids.
    """
    model = _model(host, settings, fixed.positions, seed)

    def losses(indices: list[int]) -> Iterator[Tensor]:
        wanted = targets[0][indices]
        shown = torch.arange(len(texts)) if len(texts) <= MOST_TEXTS else torch.unique(wanted)
        near = _read(model, host, [texts[index] for index in shown.tolist()])
        found = _read(model, host, [rows[0][index] for index in indices])
        yield nn.functional.cross_entropy(COSINE_SCALE * found @ near.T, torch.searchsorted(shown, wanted))

    def right(split: int) -> list[int]:
        with torch.no_grad():
            answers = (_read(model, host, rows[split]) @ _read(model, host, texts).T).argmax(dim=1)
        return (answers == targets[split]).int().tolist()

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


def _model(host: Host, settings: SimilarSettings, positions: int, seed: int) -> nn.Module:
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    folder = load_model(host.reference, dtype="float32", device="cpu").model.name_or_path
    torch.manual_seed(seed)
    config = PrefixTuningConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        num_virtual_tokens=positions,
        prefix_projection=settings.projection,
        encoder_hidden_size=384,
        init_weights="zero" if settings.start == "zero" else None,
    )
    return get_peft_model(AutoModel.from_pretrained(folder), config).eval()


def _read(model: nn.Module, host: Host, rows: list[list[int]]) -> Tensor:
    """Features `(row, hidden)` of unit length, rows of like length being read together."""
    found: dict[int, Tensor] = {}
    for indices in reading_parts([len(row) for row in rows]):
        part = padded(host, [rows[index] for index in indices])
        hidden = model(input_ids=part.ids, attention_mask=part.mask).last_hidden_state
        weights = part.mask[:, :, None].to(hidden.dtype)
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        found.update(zip(indices, nn.functional.normalize(mean, dim=1), strict=True))
    return torch.stack([found[index] for index in range(len(rows))])
