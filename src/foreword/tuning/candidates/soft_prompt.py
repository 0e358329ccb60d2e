"""Soft prompt: embeddings before the tokens, fitted by gradient descent (Lester et al., 2021)."""

from __future__ import annotations

from pathlib import Path

from foreword.tuning.adaptation import SoftPrompt as Adapted
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench, fit_adaptation
from foreword.tuning.fittable import FitWatch
from foreword.tuning.sections import SoftPromptSettings


class SoftPrompt(Candidate[SoftPromptSettings]):
    """`positions` embeddings, started as random tokens; they take positions of the context."""

    uses_seed = True

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        adaptation = Adapted(bench.host, positions=self.settings.positions, seed=seed)
        try:
            fitted = fit_adaptation(bench, adaptation, self.settings, seed=seed, checkpoint=checkpoint, watch=watch)
        except BaseException:
            adaptation.close()
            raise
        fitted.details["positions"] = self.settings.positions
        return fitted
