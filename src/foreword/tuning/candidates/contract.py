"""The contract of every candidate: from the workbench to something that answers, with what it took.

All candidates get the same workbench (host, task, the fit and selection splits, the task's metric) and none of them
ever sees the test split. What they give back answers inputs through the same path as `foreword predict`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from foreword.confidence import rate_interval
from foreword.engine.batches import halving_told
from foreword.engine.host import Host
from foreword.engine.rendering import Template
from foreword.errors import TaskError
from foreword.tuning.adaptation import Adaptation
from foreword.tuning.candidate_settings import CandidateSettings, FittedSettings
from foreword.tuning.checkpoint import Moment
from foreword.tuning.examples import Splits
from foreword.tuning.fittable import FitOutcome, FitWatch
from foreword.tuning.loop import fit
from foreword.tuning.named_files import named_files
from foreword.tuning.objective import objective_for
from foreword.tuning.objectives.contract import Objective, targets_of
from foreword.tuning.objectives.lesson_book import LessonBook
from foreword.tuning.predictor import Manner, Predictor, check_texts
from foreword.tuning.readout import (
    Readout,
    best_logistic_regression,
    from_label_texts,
    from_prototypes,
)
from foreword.tuning.recomputed import Recomputed
from foreword.tuning.scoring import value
from foreword.tuning.task import Task

Settings = TypeVar("Settings", bound=CandidateSettings)


@dataclass(frozen=True)
class Workbench:
    """What every candidate is made from. `book` has the lessons that were written for candidates before."""

    host: Host
    task: Task
    splits: Splits
    book: LessonBook = field(default_factory=LessonBook)

    def score(self, targets: Sequence[str], outputs: Sequence[str]) -> float:
        """The task's metric: higher is better."""
        return value(self.task.metric, targets, outputs)

    def manner(self, template: Template | None = None) -> Manner:
        """The task's way from input to answer, with another template when one is given."""
        newline_ends = self.task.kind == "generate" and not any("\n" in x.target for x in self.splits.fit)
        return Manner(
            kind=self.task.kind,
            template=template or self.template,
            labels=self.splits.labels if self.task.kind == "classify" else (),
            max_new_tokens=self.task.model.max_tokens,
            max_input_tokens=self.task.limits.max_input_tokens,
            stop="\n" if newline_ends else None,
        )

    @property
    def template(self) -> Template:
        """The task's template, or the plain one for its kind and base model."""
        if self.task.model.template is not None:
            return self.parsed(self.task.model.template)
        if self.host.role == "encoder":
            return self.parsed("")
        return self.parsed("{input}\nLabel:" if self.task.kind == "classify" else "{input}\n")

    def parsed(self, text: str) -> Template:
        """A template of the task, as a chat message when the task says so."""
        return Template.parse(text, chat=self.task.model.chat, system=self.task.model.system)

    @property
    def default_readout(self) -> str:
        """How a fitted candidate reads labels when the task leaves it open."""
        if self.task.kind == "generate":
            return "generation"
        return "linear" if self.host.role == "encoder" else "likelihood"

    def selection_score(self, predictor: Predictor) -> float:
        """The metric on the selection split."""
        outputs = [answer.output for answer in predictor.answer([x.input for x in self.splits.selection])]
        return self.score([x.target for x in self.splits.selection], outputs)

    def readout(self, kind: str, *, template: Template | None = None, by_name: bool = False) -> Readout | None:
        """A read-out of features made with the bare model; None for likelihoods and generation.

        `by_name`: label texts are the labels themselves and not their descriptions.
        """
        if kind in (*LIKELIHOODS, "generation"):
            return None
        labels = self.splits.labels
        bare = Predictor(self.host, self.manner(template), readout=unset_readout("linear", self))
        if kind == "label-text":
            if self.host.role == "causal":
                raise TaskError(
                    "A causal model has no text similarity to read a label by.",
                    expected='readout "auto" (by the label\'s likelihood), "prototypes" or "linear"',
                    found='"label-text"',
                    fix='Remove the readout, or the objective "similarity" that reads by it, or use an encoder.',
                )
            texts = Predictor(self.host, self.manner(Template("", "")), readout=bare.readout)
            told = [label if by_name else self.task.description(label) for label in labels]
            check_texts(texts, labels, told)
            return from_label_texts(texts.features(told))
        found = bare.features([x.input for x in self.splits.fit])
        targets = targets_of(bare, self.splits.fit)
        if kind == "prototypes":
            return from_prototypes(found, targets, len(labels))
        selection = bare.features([x.input for x in self.splits.selection])
        return best_logistic_regression(
            found, targets, selection, targets_of(bare, self.splits.selection), len(labels)
        )[0]


# How a label is read where the model itself says how likely it is.
LIKELIHOODS = ("likelihood", "calibrated")


def read_by(bench: Workbench, settings: FittedSettings) -> str:
    """How a fitted candidate reads labels, where "auto" depends on the base model and on what is minimised.

    A label's likelihood is calibrated where it is fitted to be the largest: else the fit's first steps go into how
    likely a label is as a text (benchmarks/LOG.md). What makes it likelier as a text, or as a teacher does, takes it as
    it is.
    """
    if settings.objective == "similarity":
        return "label-text"
    if settings.readout != "auto":
        return settings.readout
    kind = bench.default_readout
    return "calibrated" if kind == "likelihood" and settings.objective in ("auto", "labels") else kind


def unset_readout(kind: str, bench: Workbench) -> Readout:
    """All zeros: for a predictor whose features are wanted before its read-out is known."""
    labels = len(bench.splits.labels)
    return Readout(
        "prototypes" if kind == "prototypes" else "linear",
        torch.zeros(labels, bench.host.hidden_size),
        torch.zeros(labels),
        1.0,
    )


@dataclass
class Fitted:
    """A candidate, ready to answer. `selection` is its metric on the selection split; `details` are its settings.

    `apart`: how far a distillation is from its teacher on each lesson of the selection split (`Objective.apart`).
    """

    predictor: Predictor
    selection: float
    trainable: int
    nbytes: int
    history: tuple[Moment, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    apart: tuple[float, ...] = ()

    @property
    def readout(self) -> str | None:
        """label-text, prototypes, linear, likelihood or calibrated; None for generation."""
        return self.predictor.read_by


class Candidate(ABC, Generic[Settings]):
    """One way to do the task. `uses_seed`: whether another seed gives another result."""

    uses_seed: bool = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        """Make it from the fit and selection splits. With `checkpoint` a long fit saves itself and can go on."""


def of_the_teacher(taught: float | None, first: float, required: float, count: int) -> str | None:
    """A notice when a teacher's score on `count` examples is below what chance explains, or below what is required.

    By chance: below the interval of the score `first` that the fit begins with.
    """
    if taught is None or not 0 <= first <= 1:
        return None
    if taught < min(rate_interval(round(first * count), count).low, first):
        why = f"where the fit begins with {first:.3f}"
    elif taught < required:
        why = f"and {required:g} is required"
    else:
        return None
    return (
        f"the teacher itself scores {taught:.3f} on the selection split, {why}: a distillation comes near to its "
        'teacher; give it another text, or fit to the targets (objective = "auto")'
    )


def away_from_the_task(objective: Objective, outcome: FitOutcome) -> str | None:
    """A notice when what is nearest to a teacher does the task worse than chance explains, by the start's interval."""
    first, best, count = outcome.history[0].selection, outcome.best.selection, len(objective.selection)
    if not objective.is_kept_by_loss or not 0 <= first <= 1 or best >= rate_interval(round(first * count), count).low:
        return None
    return (
        f"the state nearest to the teacher scores {best:.3f} on the selection split, where the fit began with "
        f"{first:.3f}: the teacher does the task less well than that; give it another text, or fit without one"
    )


def still_rising(outcome: FitOutcome, count: int) -> str | None:
    """A notice when steps or time ran out as the metric rose: in the last quarter, by more than one of `count`."""
    last, best = outcome.history[-1].step, outcome.best
    looks = [moment for moment in outcome.history if moment.step <= 3 * last / 4]
    earlier = max(moment.selection for moment in looks)
    if outcome.stopped_by == "patience" or best.selection < earlier + 1.5 / count:
        return None
    more = f"steps = {2 * last}" if outcome.stopped_by == "steps" else "more seconds"
    return (
        f"the best score on the selection split came as the {outcome.stopped_by} ran out ({earlier:.3f} up to "
        f"step {looks[-1].step}, {best.selection:.3f} at step {best.step}): {more} may gain"
    )


UNMOVED = (
    "no state after the first step was better on the selection split than the one before it, and that one is kept: "
    "it learned nothing here; try another learning_rate, more steps, or other examples"
)

SOLVED = (
    "the first values are right on all of the selection split, and kept, as no later state was better there; more "
    "or harder examples in that split can tell more"
)
UNBEGUN = (
    "no step was taken: the fit's seconds are hardly enough to read the examples; give it more of them, fewer examples "
    "or fewer positions"
)


def unmoved(outcome: FitOutcome, *, by_loss: bool) -> str | None:
    """A notice when the first values are what is kept, in words for why; `by_loss`: the least loss chose them."""
    best, last = outcome.best, outcome.history[-1].step
    if best.step > 0 or (last == 0 and outcome.stopped_by != "seconds"):
        return None
    if last == 0:
        return UNBEGUN
    return SOLVED if best.selection >= 1 and not by_loss else UNMOVED


def fit_adaptation(
    bench: Workbench,
    adaptation: Adaptation,
    settings: FittedSettings,
    *,
    seed: int,
    checkpoint: Path | None,
    watch: FitWatch | None,
    begin: Callable[[Objective], dict[str, Any]] | None = None,
    judge_start: Callable[[Objective, float], str | None] | None = None,
) -> Fitted:
    """The common way of prefix, soft prompt, LoRA and full fine-tune: same read-outs, same loop, same budget.

    `begin` puts first values into the adaptation, given what they will be fitted to, and tells how they came about; it
    may calibrate the objective, which else is done with the values that it leaves. `judge_start` is given their score
    on the selection split, and may find a notice; so may the score of a teacher, beside theirs and the requirement.
    """
    told: list[str] = []
    kind = read_by(bench, settings)
    # A read-out learned from examples is solved on the adapted features, so it starts empty.
    learns = kind in ("prototypes", "linear")
    with halving_told(told.append):
        readout = unset_readout(kind, bench) if learns else bench.readout(kind)
        predictor = Predictor(bench.host, bench.manner(), adaptation, readout)
        objective = objective_for(
            predictor,
            bench.splits.fit,
            bench.splits.selection,
            bench.score,
            settings=settings,
            texts=[bench.task.description(label) for label in predictor.manner.labels],
            folder=bench.task.folder,
            seed=seed,
            is_calibrated=kind == "calibrated",
            studied=None if watch is None else watch.studied,
            book=bench.book,
        )
        about = None if begin is None else begin(objective)
        if predictor.offsets is None:
            objective.calibrate()
        taught = objective.teacher_score()
    required, count = bench.task.requirement.at_least, len(objective.selection)

    def judged(score: float) -> list[str]:
        found = [None if judge_start is None else judge_start(objective, score)]
        return [text for text in (*found, of_the_teacher(taught, score, required, count)) if text is not None]

    seconds = bench.task.limits.fit_seconds if settings.seconds is None else settings.seconds
    outcome = fit(
        Recomputed(objective, bench.host, adaptation.recomputed) if settings.checkpointing else objective,
        adaptation,
        settings.loop(seconds),
        seed=seed,
        checkpoint=checkpoint,
        identity={
            "settings": settings.model_dump(mode="json"),
            "seed": seed,
            "data": bench.splits.hash,
            "base": bench.host.fingerprint,
            "files": named_files(settings, bench.task.folder),
            **({"readout": kind} if kind == "calibrated" else {}),
            **({"kept_by": "loss"} if objective.is_kept_by_loss else {}),
        },
        watch=watch or FitWatch(),
        about=about,
        notices=told,
        judge_start=judged,
    )
    notices = list(outcome.notices)
    with halving_told(lambda text: None if text in notices else notices.append(text)):
        objective.finish()
        selection, apart = bench.selection_score(predictor), objective.apart()
    notices += filter(None, [unmoved(outcome, by_loss=objective.is_kept_by_loss)])
    if of_the_teacher(taught, outcome.history[0].selection, required, count) is None:
        notices += filter(None, [away_from_the_task(objective, outcome)])
    if not objective.is_kept_by_loss:
        notices += filter(None, [still_rising(outcome, count)])
    for text in notices[len(outcome.notices) :]:
        (watch or FitWatch()).notice(text)
    size = predictor.numbers
    rate = None if settings.learning_rate == "find" else settings.learning_rate
    return Fitted(
        predictor,
        selection=selection,
        trainable=adaptation.trainable + (0 if kind == "label-text" else size),
        nbytes=adaptation.nbytes + size * 4,
        history=outcome.history,
        details={
            "best_step": outcome.best.step,
            "stopped_by": outcome.stopped_by,
            "steps_taken": outcome.history[-1].step,
            "batch_size": settings.batch_size,
            "learning_rates": [group["lr"] * outcome.factor for group in adaptation.groups(rate)],
            "kept_by": "loss" if objective.is_kept_by_loss else "metric",
            "selection_losses": [outcome.start_loss, outcome.best_loss],
            **({} if taught is None else {"teacher_selection": taught}),
            "notices": notices,
            **({} if begin is None else {"start": dict(outcome.about)}),
            **objective.details(),
        },
        apart=tuple(apart),
    )
