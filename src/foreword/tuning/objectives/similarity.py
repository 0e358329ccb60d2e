"""Nearness of an input to its target's text, both read by the adapted model: for labels told by texts, and for pairs.

Where cross-entropy over fixed label texts moves only the inputs, here the texts move as well. Targets may be labels
with a description each, or texts paired with their inputs (every target then is a label of its own).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from foreword.engine.generation import features
from foreword.engine.rendering import Template
from foreword.tuning.objectives.contract import Ground, Objective, judged, targets_of
from foreword.tuning.objectives.labels import adapted_features
from foreword.tuning.predictor import check_texts
from foreword.tuning.readout import COSINE_SCALE, from_label_texts

# Texts that a step compares its inputs with. Up to so many, all texts take part in every step; beyond, those of the
# batch's own examples (van den Oord et al., "Representation learning with contrastive predictive coding", 2018).
MOST_TEXTS = 64


class TextSimilarity(Objective):
    """Cross-entropy over cosines between an input's feature and the features of the targets' texts, times 20.

    `texts` are the labels' texts in the labels' order. What answers in the end compares with the texts as the adapted
    model reads them, so its read-out is of kind "label-text".
    """

    def __init__(self, ground: Ground, *, texts: Sequence[str]) -> None:
        super().__init__(ground)
        manner = replace(self.predictor.manner, template=Template("", ""))
        plain = replace(self.predictor, manner=manner)
        check_texts(plain, manner.labels, texts)
        self.text_rows = plain.rows(texts)
        self.targets = targets_of(self.predictor, ground.fit)
        self.selection_targets = targets_of(self.predictor, ground.selection)

    def loss(self, indices: list[int], step: int) -> Tensor:
        del step
        targets = self.targets[indices]
        shown = torch.arange(len(self.text_rows)) if len(self.text_rows) <= MOST_TEXTS else torch.unique(targets)
        host, soft = self.predictor.host, self.predictor.adaptation.soft
        with self.active(indices):
            found = features(host, [self.rows[index] for index in indices], soft=soft)
        with self.predictor.adaptation.active():
            texts = features(host, [self.text_rows[index] for index in shown.tolist()], soft=soft)
        unit, near = (nn.functional.normalize(x.float(), dim=1) for x in (found, texts))
        where = torch.searchsorted(shown, targets).to(unit.device)
        return nn.functional.cross_entropy(COSINE_SCALE * unit @ near.T, where)

    def evaluate(self, step: int) -> tuple[float, float]:
        del step
        readout = from_label_texts(adapted_features(self.predictor, self.text_rows))
        scores = readout.scores(adapted_features(self.predictor, self.selection_rows))
        return judged(scores, self.selection_targets, self.predictor, self.score)

    def finish(self) -> None:
        self.predictor.readout = from_label_texts(adapted_features(self.predictor, self.text_rows))

    def details(self) -> dict[str, Any]:
        return {**super().details(), "texts": len(self.text_rows)}
