"""What a fit gives: a fitted prefix (or a rival of it), ready to answer, with how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foreword.bundle import save_bundle
from foreword.engine.bake import bake
from foreword.errors import FitError
from foreword.prefix import Prefix
from foreword.record import RunRecord
from foreword.tuning.adaptation import FittedPrefix, SoftPrompt
from foreword.tuning.checkpoint import Moment
from foreword.tuning.length_choice import Sweep
from foreword.tuning.predictor import Answer, Predictor


@dataclass(frozen=True)
class Fit:
    """A fitted prefix or rival, ready to answer, with how it came about.

    `selection` is the task's metric on the selection split, of what answers now: the best of the moments in `history`
    (step, seconds, loss, selection), which were judged in the precision of the fit. `stopped_by` is "steps", "seconds"
    or "patience"; `notices` are what the loop did of its own accord. `details` are the settings that were decided on
    the way. `sweep` tells of the other lengths when the length was chosen by one. `apart`, of a distillation: how far
    it is from its teacher on each lesson of the selection split, in nats (where features are matched: 1 - cosine).
    """

    method: str
    predictor: Predictor
    selection: float
    history: tuple[Moment, ...]
    details: Mapping[str, Any]
    record: RunRecord
    folder: Path | None
    seed: int
    sweep: Sweep | None = None
    apart: tuple[float, ...] = ()

    @property
    def best(self) -> Moment:
        """The moment whose state was kept."""
        return next(moment for moment in self.history if moment.step == self.details["best_step"])

    @property
    def stopped_by(self) -> str:
        return str(self.details["stopped_by"])

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(self.details["notices"])

    @property
    def prefix(self) -> Prefix:
        """The fitted keys and values; a soft prompt's are those that it has in its causal model (baked, exact).

        FitError when what was fitted is no prefix.
        """
        adaptation = self.predictor.adaptation
        if isinstance(adaptation, FittedPrefix):
            return adaptation.prefix()
        if isinstance(adaptation, SoftPrompt) and self.predictor.host.role == "causal":
            return bake(self.predictor.host, adaptation.parameters()["soft"].detach())
        raise FitError(
            "What was fitted is not a prefix.",
            expected='method "prefix", or "soft-prompt" on a causal model',
            found=f"{self.method} on {self.predictor.host.role} {self.predictor.host.reference}",
            fix="Use fit.answer(texts); it is not saved as a bundle.",
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values: all but the numbers that were fitted."""
        return {
            "method": self.method,
            "seed": self.seed,
            "selection": self.selection,
            "best": asdict(self.best),
            "details": dict(self.details),
            "history": [asdict(moment) for moment in self.history],
            "record": self.record.as_dict(),
            **({} if self.sweep is None else {"sweep": self.sweep.as_dict()}),
        }

    def answer(self, inputs: Sequence[str]) -> list[Answer]:
        """One answer per input, in order."""
        return self.predictor.answer(inputs)

    def save(self, path: Path | str) -> None:
        """Write the prefix as a bundle that `foreword predict` answers with."""
        save_bundle(
            Path(path),
            self.prefix,
            host=self.predictor.host,
            use=self.predictor.use(),
            readout=self.predictor.arrays(),
            provenance=self.record.as_dict(),
        )

    def close(self) -> None:
        """Let the numbers go that were fitted beside the model (LoRA, a full copy); nothing answers afterwards."""
        self.predictor.adaptation.close()
