"""Zero-shot: the base model as it is, told the task by the template and the labels' names or descriptions only."""

from __future__ import annotations

from pathlib import Path

from foreword.tuning.candidate_settings import ZeroShotSettings
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench
from foreword.tuning.fittable import FitWatch
from foreword.tuning.predictor import Predictor


class ZeroShot(Candidate[ZeroShotSettings]):
    """Similarity to the label's text (encoder), likelihood of the label (causal model), or plain generation."""

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        del seed, checkpoint, watch
        predictor = self.predictor(bench)
        return Fitted(predictor, bench.selection_score(predictor), trainable=0, nbytes=0)

    def predictor(self, bench: Workbench) -> Predictor:
        """What answers, before it is judged; HostError when the base model cannot do the task in this way."""
        kind = "label-text" if bench.host.role == "encoder" else bench.default_readout
        readout = bench.readout(kind, by_name=self.settings.label_text == "name")
        return Predictor(bench.host, bench.manner(), readout=readout)
