"""Prefix: keys and values at every attention site, fitted by gradient descent; no weight of the model changes."""

from __future__ import annotations

from pathlib import Path

from foreword.tuning.adaptation import FittedPrefix as Adapted
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench, fit_adaptation
from foreword.tuning.fittable import FitWatch
from foreword.tuning.sections import PrefixSettings


class Prefix(Candidate[PrefixSettings]):
    """All sites, `positions` positions each; values start at zero, so the fit starts near the bare read-out."""

    uses_seed = True

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        drawn = self.settings.longest or self.settings.positions
        adaptation = Adapted(bench.host, positions=drawn, seed=seed)
        adaptation.shorten(self.settings.positions)
        try:
            fitted = fit_adaptation(bench, adaptation, self.settings, seed=seed, checkpoint=checkpoint, watch=watch)
        except BaseException:
            adaptation.close()
            raise
        fitted.details["positions"] = self.settings.positions
        return fitted
