"""LoRA: low-rank updates of weights through the peft library (Hu et al., 2021)."""

from __future__ import annotations

from pathlib import Path

from foreword.tuning.candidate_settings import LoraSettings
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench, fit_adaptation
from foreword.tuning.fittable import FitWatch
from foreword.tuning.low_rank import Lora as Adapted


class Lora(Candidate[LoraSettings]):
    """Rank, scale and targets as the settings say."""

    uses_seed = True

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        settings = self.settings
        adaptation = Adapted(
            bench.host,
            rank=settings.rank,
            seed=seed,
            alpha=settings.alpha,
            rank_stabilized=settings.rank_stabilized,
            targets=settings.targets,
        )
        try:
            fitted = fit_adaptation(bench, adaptation, settings, seed=seed, checkpoint=checkpoint, watch=watch)
        except BaseException:
            adaptation.close()
            raise
        fitted.details |= {"rank": settings.rank, "targets": settings.targets}
        return fitted
