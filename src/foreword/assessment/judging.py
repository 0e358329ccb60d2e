"""Making and judging the candidates of one pilot: each fit answers the test split once, and what it took is measured.

What an earlier run of the same pilot has finished is read from the run folder and not made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from foreword.assessment.evidence import (
    FailedCandidate,
    ForgettingEvidence,
    HistoryPoint,
)
from foreword.assessment.folder import Judged, RunFolder
from foreword.assessment.forgetting import measure_forgetting
from foreword.assessment.other_text import OtherText
from foreword.errors import BundleError, ForewordError, RunFolderError
from foreword.record import Stopwatch
from foreword.tuning.candidate_settings import AnyCandidate
from foreword.tuning.candidates import Fitted, Workbench, candidate_for
from foreword.tuning.examples import Splits
from foreword.tuning.fittable import FitWatch, StepTaken
from foreword.tuning.measurement import PeakMemory, measure_latency
from foreword.tuning.predictor import Predictor
from foreword.tuning.task import Task

# (stage, done, of, note): for progress bars. A stage is a candidate's name, "judge NAME", "stress", ...
Watch = Callable[[str, int, int, str], None]
# Requests timed for a latency, at most.
LATENCY_TEXTS = 40


@dataclass(frozen=True)
class Run:
    """One pilot under way."""

    task: Task
    candidates: Sequence[AnyCandidate]
    seeds: tuple[int, ...]
    limit: int | None
    bench: Workbench
    bare: Predictor
    folder: RunFolder
    other_text: OtherText | None
    watch: Watch

    @property
    def splits(self) -> Splits:
        return self.bench.splits

    @property
    def targets(self) -> list[str]:
        return [example.target for example in self.splits.test]

    @property
    def inputs(self) -> list[str]:
        return [example.input for example in self.splits.test]


def make_candidates(run: Run) -> tuple[dict[str, list[Judged]], list[FailedCandidate]]:
    """Make and judge every candidate with every seed that matters to it; what an earlier run finished is not redone."""
    results: dict[str, list[Judged]] = {}
    failed: list[FailedCandidate] = []
    for settings in run.candidates:
        seeds = run.seeds if candidate_for(settings).uses_seed else run.seeds[:1]
        try:
            for seed in seeds:
                judged = run.folder.finished(settings.name, seed, answers=len(run.targets))
                if judged is None:
                    judged = _judge(run, settings, seed)
                    run.folder.finish(settings.name, judged)
                results.setdefault(settings.name, []).append(judged)
                run.watch(settings.name, 1, 1, f"selection {judged.selection:.3f}")
        except (RunFolderError, BundleError):  # the folder's failure or the disk's, not the candidate's
            raise
        except (ForewordError, MemoryError, RuntimeError) as error:  # torch has no finer class for most of its own
            results.pop(settings.name, None)
            failed.append(
                FailedCandidate(
                    name=settings.name, kind=settings.kind, code=type(error).__name__, message=str(error)[:2000]
                )
            )
            run.watch(settings.name, 1, 1, f"failed: {str(error).partition(chr(10))[0]}")
    return results, failed


def _fit(run: Run, settings: AnyCandidate, seed: int) -> Fitted:
    checkpoint = run.folder.checkpoint(settings.name, seed)
    return candidate_for(settings).fit(
        run.bench,
        seed=seed,
        checkpoint=checkpoint,
        watch=_Shown(run, settings.name),
    )


class _Shown(FitWatch):
    """A fit's steps as a stage of the pilot."""

    def __init__(self, run: Run, stage: str) -> None:
        self.run, self.stage = run, stage

    def stepped(self, taken: StepTaken) -> None:
        self.run.watch(self.stage, taken.step, taken.of, f"loss {taken.loss:.3f}, best {taken.best:.3f}")

    def studied(self, number: int, of: int) -> None:
        self.run.watch(f"{self.stage} lessons", number, of, "")

    def tried(self, number: int, of: int, best: float) -> None:
        self.run.watch(self.stage, number, of, f"best {best:.3f}")


def _judge(run: Run, settings: AnyCandidate, seed: int) -> Judged:
    """Make one candidate, answer the test split once, and measure what it took."""
    run.watch(settings.name, 0, 1, "starting")
    clock = Stopwatch(settings.name)
    with PeakMemory() as memory:
        fitted = _fit(run, settings, seed)
        seconds = max(clock.seconds, fitted.history[-1].seconds if fitted.history else 0.0)
        try:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                run.watch(f"judge {settings.name}", done, len(run.inputs), "")

            outputs = [answer.output for answer in fitted.predictor.answer(run.inputs, progress=advance)]
            latency = measure_latency(
                lambda text: fitted.predictor.answer([text]),
                lambda text: run.bare.answer([text]),
                run.inputs[:LATENCY_TEXTS],
            )
            forgetting = _forgetting(run, fitted)
        finally:
            fitted.predictor.adaptation.close()
    return Judged(
        seed=seed,
        readout=fitted.readout,
        selection=fitted.selection,
        outputs=outputs,
        trainable=fitted.trainable,
        bytes=fitted.nbytes,
        fit_seconds=seconds,
        peak_memory_bytes=memory.bytes,
        bare_latency_ms=latency.bare_ms,
        latency_added_ms=latency.added_ms,
        history=_history(fitted),
        details=fitted.details,
        forgetting=forgetting,
    )


def _forgetting(run: Run, fitted: Fitted) -> ForgettingEvidence | None:
    """What it does to other text; None for a candidate that puts nothing into the model, or without such text."""
    adaptation = fitted.predictor.adaptation
    if run.other_text is None or not adaptation.parameters():
        return None
    return measure_forgetting(run.bench.host, adaptation, run.other_text.passages)


def _history(fitted: Fitted) -> list[HistoryPoint]:
    return [HistoryPoint(step=m.step, seconds=m.seconds, loss=m.loss, selection=m.selection) for m in fitted.history]


def best_seed(results: Sequence[Judged]) -> Judged:
    """The fit that is judged: the best on the selection split, of equals the one run first."""
    return max(results, key=lambda found: found.selection)


def revived(run: Run, name: str, results: dict[str, list[Judged]]) -> Fitted:
    """A judged candidate again, ready to answer: a fit goes on from its final checkpoint, which is at once.

    RunFolderError when that is not the fit that was judged, which its history of seconds tells.
    """
    settings, judged = next(found for found in run.candidates if found.name == name), best_seed(results[name])
    fitted = _fit(run, settings, judged.seed)
    if _history(fitted) != judged.history:
        fitted.predictor.adaptation.close()
        checkpoint = run.folder.checkpoint(name, judged.seed)
        raise RunFolderError(
            f"The checkpoint of {name!r} is not that of the fit that was judged.",
            expected=f"{checkpoint} as the pilot left it",
            found="another fit, or none",
            fix=f"Remove {checkpoint.parent} and run the same command again: it is then fitted and judged anew.",
        )
    return fitted
