"""Linear probe: multinomial logistic regression on the frozen model's feature of the input."""

from __future__ import annotations

from pathlib import Path

from foreword.tuning.candidate_settings import ProbeSettings
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench
from foreword.tuning.fittable import FitWatch
from foreword.tuning.predictor import Predictor


class Probe(Candidate[ProbeSettings]):
    """Solved to convergence; the penalty is chosen on the selection split."""

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        del seed, checkpoint, watch
        readout = bench.readout("linear")
        size = 0 if readout is None else readout.size
        predictor = Predictor(bench.host, bench.manner(), readout=readout)
        return Fitted(predictor, bench.selection_score(predictor), trainable=size, nbytes=size * 4)
