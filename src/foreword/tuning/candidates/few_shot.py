"""Few-shot: labelled examples shown to the model, in the prompt (causal) or as class prototypes (encoder)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from foreword.tuning.candidate_settings import FewShotSettings
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench
from foreword.tuning.demonstrations import demonstrations, first_examples
from foreword.tuning.examples import Example
from foreword.tuning.fittable import FitWatch
from foreword.tuning.objectives.contract import targets_of
from foreword.tuning.predictor import Predictor
from foreword.tuning.readout import from_prototypes


class FewShot(Candidate[FewShotSettings]):
    """Demonstrations in turn over the labels, in the order of the split: as many as asked for, or as fit."""

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        del seed, checkpoint, watch
        labels = bench.splits.labels if bench.task.kind == "classify" else ()
        shown = first_examples(bench.splits.fit, labels, self.settings.shots)
        if bench.host.role == "encoder":
            return self._prototypes(bench, shown)
        return self._demonstrations(bench, shown)

    def _prototypes(self, bench: Workbench, shown: list[Example]) -> Fitted:
        predictor = Predictor(bench.host, bench.manner(), readout=bench.readout("prototypes"))
        found = predictor.features([x.input for x in shown])
        readout = from_prototypes(found, targets_of(predictor, shown), len(bench.splits.labels))
        predictor.readout = readout
        return Fitted(
            predictor,
            bench.selection_score(predictor),
            trainable=readout.size,
            nbytes=readout.size * 4,
            details={"shots": len(shown)},
        )

    def _demonstrations(self, bench: Workbench, shown: list[Example]) -> Fitted:
        template = bench.template
        found = demonstrations(bench.host, template, shown)
        predictor = Predictor(bench.host, bench.manner(replace(template, before=found.text + template.before)))
        return Fitted(
            predictor,
            bench.selection_score(predictor),
            trainable=0,
            nbytes=len(found.text.encode()),
            details={"shots": found.used, "asked": self.settings.shots},
        )
