"""Hard prompt: the best of the given templates, chosen on the selection split."""

from __future__ import annotations

from pathlib import Path

from foreword.tuning.candidate_settings import HardPromptSettings
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench
from foreword.tuning.fittable import FitWatch
from foreword.tuning.objectives.contract import targets_of
from foreword.tuning.objectives.labels import offsets_of
from foreword.tuning.predictor import Predictor


class HardPrompt(Candidate[HardPromptSettings]):
    """Each template is tried as it stands; ties go to the one that was given first."""

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        del seed, checkpoint
        kind = self.settings.readout
        if kind == "auto":
            kind = "label-text" if bench.host.role == "encoder" else "auto"
        tried: list[tuple[float, str, Predictor]] = []
        for number, text in enumerate(self.settings.templates, start=1):
            template = bench.parsed(text)
            readout = bench.readout(bench.default_readout if kind == "auto" else kind, template=template)
            predictor = Predictor(bench.host, bench.manner(template), readout=readout)
            if kind == "calibrated":
                rows = predictor.rows([example.input for example in bench.splits.fit])
                predictor.offsets = offsets_of(predictor, rows, targets_of(predictor, bench.splits.fit))
            tried.append((bench.selection_score(predictor), text, predictor))
            if watch is not None:
                watch.tried(number, len(self.settings.templates), max(found[0] for found in tried))
        score, chosen, predictor = max(tried, key=lambda found: found[0])
        numbers = 0 if predictor.read_by == "label-text" else predictor.numbers
        return Fitted(
            predictor,
            score,
            trainable=numbers,
            nbytes=len(chosen.encode()) + numbers * 4,
            details={"template": chosen, "tried": {text: found for found, text, _ in tried}},
        )
