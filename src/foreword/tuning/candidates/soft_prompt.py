"""Soft prompt: embeddings before the tokens, fitted by gradient descent (Lester et al., 2021)."""

from __future__ import annotations

from pathlib import Path

from foreword.engine.rendering import tokens
from foreword.errors import FitError, TaskError
from foreword.tuning.adaptation import SoftPrompt as Adapted
from foreword.tuning.candidate_settings import SoftPromptSettings
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench, fit_adaptation
from foreword.tuning.fittable import FitWatch


class SoftPrompt(Candidate[SoftPromptSettings]):
    """`positions` embeddings, started as tokens; they take positions of the context."""

    uses_seed = True

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        first = self._first_tokens(bench)
        adaptation = Adapted(bench.host, positions=self.settings.positions, seed=seed, ids=first)
        try:
            fitted = fit_adaptation(bench, adaptation, self.settings, seed=seed, checkpoint=checkpoint, watch=watch)
        except BaseException:
            adaptation.close()
            raise
        fitted.details |= {"positions": self.settings.positions, "start": self.settings.start}
        return fitted

    def _first_tokens(self, bench: Workbench) -> list[int]:
        """The tokens to start as; none where they are to be drawn."""
        text = self.settings.start_text or ""
        if self.settings.start == "labels":
            if bench.task.kind != "classify":
                raise TaskError(
                    "A soft prompt cannot start as the labels of a task that has none.",
                    expected='start "vocabulary" or "text", as the kind is \'generate\'',
                    found='"labels"',
                    fix="Choose another start for the soft prompt.",
                )
            text = "\n".join(map(bench.task.description, bench.splits.labels))
        found = tokens(bench.host, text, special=False)
        if text and not found:
            raise FitError(
                "The tokenizer has no token for the text that the soft prompt is to start as.",
                expected="at least one token",
                found=repr(text)[:60],
                fix='Choose another start_text, or start = "vocabulary".',
            )
        return found
