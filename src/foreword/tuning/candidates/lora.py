"""LoRA: low-rank updates of the attention weights through the peft library (Hu et al., 2021)."""

from __future__ import annotations

from pathlib import Path

from foreword.tuning.adaptation import Lora as Adapted
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench, fit_adaptation
from foreword.tuning.fittable import FitWatch
from foreword.tuning.sections import LoraSettings


class Lora(Candidate[LoraSettings]):
    """Rank and targets as peft has them for the family; taken out of the model when the candidate is closed."""

    uses_seed = True

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        adaptation = Adapted(bench.host, rank=self.settings.rank, seed=seed, targets=self.settings.targets)
        try:
            fitted = fit_adaptation(bench, adaptation, self.settings, seed=seed, checkpoint=checkpoint, watch=watch)
        except BaseException:
            adaptation.close()
            raise
        fitted.details["rank"] = self.settings.rank
        return fitted
