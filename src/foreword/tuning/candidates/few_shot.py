"""Few-shot: labelled examples shown to the model, in the prompt (causal) or as class prototypes (encoder)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from foreword.engine.rendering import tokens
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench, first_examples
from foreword.tuning.examples import Example
from foreword.tuning.fittable import FitWatch
from foreword.tuning.objective import targets_of
from foreword.tuning.predictor import Predictor
from foreword.tuning.readout import from_prototypes
from foreword.tuning.sections import FewShotSettings

# Demonstrations may fill at most this share of what the model reads, so that room is left for the input.
PROMPT_SHARE = 0.5


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
        space = "" if not template.after or template.after[-1].isspace() else " "
        room = int(PROMPT_SHARE * bench.host.max_positions)
        text, used = "", 0
        for example in shown:
            longer = f"{text}{template.before}{example.input}{template.after}{space}{example.target}\n\n"
            if len(tokens(bench.host, longer, special=False)) > room:
                break
            text, used = longer, used + 1
        predictor = Predictor(bench.host, bench.manner(replace(template, before=text + template.before)))
        return Fitted(
            predictor,
            bench.selection_score(predictor),
            trainable=0,
            nbytes=len(text.encode()),
            details={"shots": used, "asked": self.settings.shots},
        )
