"""Full fine-tune: every weight of a copy of the base model, fitted by gradient descent (Devlin et al., 2019)."""

from __future__ import annotations

from pathlib import Path

from foreword.tuning.candidate_settings import FullSettings
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench, fit_adaptation
from foreword.tuning.fittable import FitWatch
from foreword.tuning.full_weights import FullWeights


class Full(Candidate[FullSettings]):
    """The most intrusive and most costly rival: a model of its own for each task. The host keeps its weights."""

    uses_seed = True

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        adaptation = FullWeights(bench.host)
        try:
            return fit_adaptation(bench, adaptation, self.settings, seed=seed, checkpoint=checkpoint, watch=watch)
        except BaseException:
            adaptation.close()
            raise
