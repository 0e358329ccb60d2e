"""The fitting loop: gradient descent on an adaptation alone, with early stopping, best state kept, and resume.

It knows no task and no model: it is given parameters, a loss over examples and a selection score. What a step does
depends on the state and on (seed, step) only, so a fit that was stopped, or killed at any moment, goes on from its last
checkpoint to the same numbers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foreword.engine.batches import halving_told
from foreword.errors import FitError
from foreword.tuning.adaptation import restore, state_of
from foreword.tuning.batching import Batches
from foreword.tuning.checkpoint import Checkpoint, FitState, Moment
from foreword.tuning.devices import Devices, launched_alone
from foreword.tuning.fittable import FitOutcome, Fittable, FitWatch, JudgeStart, Problem, StepTaken
from foreword.tuning.gradient import Gradient
from foreword.tuning.loop_settings import FitSettings

# A learning rate that was halved to less than this has been halved in vain.
SMALLEST_RATE = 1e-9
# Factors of an adaptation's own learning rates that a search tries, and the steps that it gives each.
SEARCHED, SEARCH_STEPS = (1 / 30, 1 / 10, 1 / 3, 1.0, 3.0, 10.0), 8
# A mean loss above so many times the one at the start (and 1 more) has diverged; so often the best state is taken back.
DIVERGED, RESCUES = 3.0, 3
# It is taken back as well after so many steps in a row of which loss or gradient was not finite.
STUCK = 4
# Looks that a fit leaves time for: the one after its last step, and those by which its result is made and scored. They
# may take this share of its seconds: of long looks it would else take no step.
LOOKS_LEFT, MOST_LEFT = 3, 0.5
# Between evaluations the state is saved when this many seconds have passed since it last was. A large state (of a full
# fine-tune) takes seconds to write: saving may take this share of the time, and at an evaluation waits until it does.
SAVE_SECONDS, SAVE_SHARE, QUICK_SAVE_SECONDS = 30.0, 0.1, 0.5


def fit(
    problem: Problem,
    fitted: Fittable,
    settings: FitSettings,
    *,
    seed: int,
    checkpoint: Path | None = None,
    identity: Mapping[str, Any] | None = None,
    watch: FitWatch | None = None,
    devices: Devices | None = None,
    about: Mapping[str, Any] | None = None,
    notices: Sequence[str] = (),
    judge_start: JudgeStart | None = None,
) -> FitOutcome:
    """Fit `fitted` to `problem` and leave the best state in its parameters.

    `about` is what is told of the first values; a fit that goes on tells what was told when it began. `notices` are
    what is to be told of how they were made. `judge_start` is given the first values' score and may find notices.

    With `checkpoint` the state is saved there at every evaluation (one that takes long to write: less often, so that
    saving takes a tenth of the time), every 30 seconds between them, when the fit is interrupted between two steps, and
    at its end, and a fit of the same `identity` goes on from it. FitError when loss or gradient stay
    not finite, when not even one example fits into memory, or the checkpoint is of another fit.
    """
    place = _Place(checkpoint, dict(identity or {}))
    begun = FitState(part=settings.part, about=dict(about or {}))
    loop = _Loop(problem, fitted, settings, seed, place, watch or FitWatch(), devices or Devices(), begun)
    loop.judge_start = judge_start
    for text in (*notices, *filter(None, [launched_alone()])):
        loop.notice_once(text)
    # Without a watch nobody reads the notices, and what is halved stays a warning.
    with nullcontext() if watch is None else halving_told(loop.notice_once):
        reason = loop.run()
    state = loop.state
    restore(loop.parameters, state.best)
    best = next(moment for moment in state.history if moment.step == state.best_at)
    told = tuple(state.notices)
    losses = state.start_loss, loop.best_loss
    return FitOutcome(tuple(state.history), best, state.seconds, reason, told, state.factor, state.about, *losses)


@dataclass
class _Place:
    """Where a fit is saved, as whose, and when it last was."""

    path: Path | None
    identity: dict[str, Any]
    at: float = field(default_factory=time.perf_counter)
    took: float = 0.0

    @property
    def is_due(self) -> bool:
        return self.path is not None and self._rested > SAVE_SECONDS and self.is_cheap

    @property
    def is_cheap(self) -> bool:
        """Whether writing the state now leaves saving within its share of the time."""
        return self.took < QUICK_SAVE_SECONDS or self._rested * SAVE_SHARE >= self.took

    @property
    def _rested(self) -> float:
        return time.perf_counter() - self.at


class _Loop:
    def __init__(
        self,
        problem: Problem,
        fitted: Fittable,
        settings: FitSettings,
        seed: int,
        place: _Place,
        watch: FitWatch,
        devices: Devices,
        begun: FitState,
    ) -> None:
        self.problem, self.fitted, self.settings, self.place = problem, fitted, settings, place
        self.watch, self.devices = watch, devices
        self.judge_start: JudgeStart | None = None
        self.batches = Batches(
            problem.examples, settings.batch_size, seed, problem.lengths if settings.bucketed else None
        )
        self.parameters = fitted.parameters()
        rate = None if settings.learning_rate == "find" else settings.learning_rate
        self.groups = fitted.groups(rate)
        self.rates = [float(group["lr"]) for group in self.groups]
        self.optimizer = self._fresh_optimizer()
        self.gradient = Gradient(problem, list(self.parameters.values()), settings, devices, self._notice)
        self.scaler = self.gradient.scaler
        blank = problem.memory()
        self.state = self._loaded() or begun
        self.state.blank = self.state.blank or blank
        self.gradient.part = self.state.part
        watch.start(self.state.step)

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([dict(group) for group in self.groups], weight_decay=0.0)

    @property
    def best_loss(self) -> float:
        """On the selection split, of the best state."""
        return -self._ordered(*self.state.best_key)[1]

    def run(self) -> str:
        """Step until there is a reason to stop, and return it."""
        state, started, before = self.state, time.perf_counter(), self.state.seconds
        whole = False  # False while a step or an evaluation is half done: what is saved is never half a step
        try:
            self._search()
            while True:
                if self._is_to_be_evaluated():
                    whole, began = False, time.perf_counter()
                    self._evaluate()
                    whole = True
                    now = time.perf_counter()
                    state.seconds, state.look_took = self.devices.told((before + now - started, now - began))
                if (reason := self._reason_to_stop()) is not None:
                    self._settle()
                    if state.seconds > before:  # the last evaluation's time, so that going on from here stops at once
                        self._save()
                    break
                whole, began = False, time.perf_counter()
                state.losses.append(self._step())
                state.step += 1
                whole = True
                now = time.perf_counter()
                state.seconds, state.step_took = self.devices.told((before + now - started, now - began))
                self._tell()
                if self.place.is_due:
                    self._save()
        except KeyboardInterrupt:
            if whole:
                self._save()
            raise
        return reason

    def _tell(self) -> None:
        state, largest = self.state, max(group["lr"] for group in self.optimizer.param_groups)
        best, _ = self._ordered(*state.best_key)
        taken = StepTaken(state.step, self.settings.steps, state.losses[-1], best, largest, state.seconds)
        self.watch.stepped(taken)

    def _is_to_be_evaluated(self) -> bool:
        """At the start, at every so many steps and at the last one, unless that was done before an interruption."""
        state, settings = self.state, self.settings
        if not state.history or state.history[-1].step == state.step:
            return not state.history
        is_last = self._is_out_of_time or state.step >= settings.steps
        return is_last or state.step % settings.evaluate_every == 0

    def _reason_to_stop(self) -> str | None:
        state, settings = self.state, self.settings
        if state.since_best >= settings.patience:
            return "patience"
        if state.step >= settings.steps:
            return "steps"
        return "seconds" if self._is_out_of_time else None

    @property
    def _is_out_of_time(self) -> bool:
        """Whether there is no time left for another step, the look after it, and those at what was fitted in the end.

        By what the last step and the last look took; so that a fit whose looks are long does not outrun its seconds.
        """
        state, seconds = self.state, self.settings.seconds
        return state.seconds + state.step_took + min(LOOKS_LEFT * state.look_took, MOST_LEFT * seconds) >= seconds

    def _step(self) -> float:
        """One step's loss; NaN for a step that was not finite: it changes nothing but halves the learning rates."""
        state = self.state
        self._set_rates(state.factor * self.settings.rate_at(state.step))
        loss, norm = self.gradient.of(self.batches.at(state.step), state.step, self.optimizer)
        if math.isfinite(loss) and math.isfinite(norm):
            self._settle()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            state.stuck = 0
            return loss
        if self.scaler.is_enabled() and math.isfinite(loss) and self.scaler.get_scale() > 1:
            self.scaler.update()  # the gradient left float16's range: its scale is halved, which is not divergence
            return math.nan
        state.factor, state.stuck = state.factor / 2, state.stuck + 1
        if min(self.rates) * state.factor < SMALLEST_RATE:
            raise FitError(
                "The fit diverges: loss or gradient is not finite, however small the learning rate.",
                expected="a finite loss",
                found=f"loss {loss} at step {state.step}",
                fix="Lower learning_rate, or load the model in float32.",
            )
        self._notice(f"step {state.step}: loss or gradient not finite; learning rates halved")
        if state.stuck == STUCK:  # smaller steps from a state like this do not help
            self._rescue(f"{STUCK} such steps in a row")
        return math.nan

    def _set_rates(self, factor: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _evaluate(self) -> None:
        """Score the current state, note when it is the best so far, and save."""
        state = self.state
        with self.gradient.autocast():
            score, nearness = self.devices.told(self.problem.evaluate(state.step))
        is_broken = not math.isfinite(score + nearness)
        # Neither what answers by numbers that are none, nor a state that no step leads away from, is one to go back to:
        # whether one does is known with the next step, and only then is the state kept. The first is kept at once.
        key = (-math.inf, -math.inf) if is_broken or state.stuck else self._ordered(score, nearness)
        finite = [loss for loss in state.losses if math.isfinite(loss)]
        loss = float(np.mean(finite)) if finite else None
        state.losses.clear()
        moment = Moment(state.step, state.seconds, loss, score)
        state.history.append(moment)
        if key > state.best_key or len(state.history) == 1:
            state.untried, state.since_best = (state.step, key), 0
        else:
            state.since_best += 1
        if len(state.history) == 1:
            state.start_loss = 0.0 if is_broken else -nearness
            self._settle()
            self._judge_start(score)
        if is_broken and state.step > 0:
            state.factor /= 2
            self._rescue("the score or the loss that it is told by is not finite; learning rates halved")
        else:
            self._guard(loss, finite)
        self.watch.evaluated(moment)
        if self.place.is_cheap:
            self._save()

    def _ordered(self, first: float, second: float) -> tuple[float, float]:
        """Score and minus loss in the order in which they choose the best state; or that order's, as score and loss."""
        return (second, first) if self.problem.is_kept_by_loss else (first, second)

    def _judge_start(self, score: float) -> None:
        with self.gradient.autocast():
            found = () if self.judge_start is None else self.devices.told(self.judge_start(score))
        for text in found:
            self._notice(text)

    def _settle(self) -> None:
        """Keep the present state as the best one, if it was found to be better than all before."""
        state = self.state
        if state.untried is not None:
            (state.best_at, state.best_key), state.untried = state.untried, None
            state.best = state_of(self.parameters)

    def _guard(self, loss: float | None, losses: list[float]) -> None:
        """Take the best state back when the loss has run away from that at the start.

        `loss` is the mean of `losses`, those of the steps since the last evaluation. The start's is that of step 1, or
        of the selection split where that is larger: the batch of one step may lack the rare examples that cost most.
        """
        state = self.state
        if loss is None:
            return
        if state.first_loss is None:
            state.first_loss = losses[0]  # not the mean: a fit may run away before it is first looked at
        known = max(abs(state.first_loss), state.start_loss)
        if loss <= DIVERGED * known + 1 or state.rescues >= RESCUES:
            return
        state.rescues, state.factor = state.rescues + 1, state.factor / 2
        self._rescue(f"the loss ran away to {loss:.3g}; learning rates halved")

    def _rescue(self, why: str) -> None:
        """Go on from the best state, which is the present one if it was just found to be that and no step failed."""
        state = self.state
        if state.untried is None or state.stuck:
            state.untried = None
            restore(self.parameters, state.best)
        state.stuck = 0
        self.problem.remember(state.blank)  # what it remembers is of the state that ran away
        self.optimizer = self._fresh_optimizer()
        at = state.best_at if state.untried is None else state.untried[0]
        self._notice(f"step {state.step}: {why}; back to the state of step {at}")

    def _search(self) -> None:
        """Find the factor of the learning rates whose first steps lower the loss most, from the start state."""
        state = self.state
        if self.settings.learning_rate != "find" or state.is_searched:
            return
        start, memory, found = state_of(self.parameters), self.problem.memory(), {}
        for factor in SEARCHED:
            self.optimizer = self._fresh_optimizer()
            losses = []
            for step in range(SEARCH_STEPS):
                self._set_rates(factor)
                loss, norm = self.gradient.of(self.batches.at(step), step, self.optimizer)
                losses.append(loss if math.isfinite(norm) else math.inf)
                self.scaler.step(self.optimizer)
                self.scaler.update()
            found[factor] = _or_best(float(np.mean(losses[SEARCH_STEPS // 2 :])))
            restore(self.parameters, start)
            self.problem.remember(memory)
        self.optimizer = self._fresh_optimizer()
        state.factor, state.is_searched = min(found, key=lambda factor: found[factor]), True
        rates = sorted({f"{rate * state.factor:.2g}" for rate in self.rates}, key=float)
        self._notice(f"learning rates found: {' to '.join(dict.fromkeys((rates[0], rates[-1])))}")

    def _notice(self, text: str) -> None:
        self.state.notices.append(text)
        self.watch.notice(text)

    def notice_once(self, text: str) -> None:
        """Tell what happens again and again, or is found again by a fit that goes on, the first time alone."""
        if text not in self.state.notices:
            self._notice(text)

    def _save(self) -> None:
        if self.place.path is None or not self.devices.is_first:
            return
        started, state = time.perf_counter(), self.state
        state.part = self.gradient.part
        # The best state is written once when it is the present one: torch.save knows shared memory.
        is_best = state.best_at == state.step and bool(state.best)
        Checkpoint(
            self.place.identity,
            asdict(self.settings),
            state.best if is_best else state_of(self.parameters),
            self.optimizer.state_dict(),
            self.scaler.state_dict(),
            self.problem.memory(),
            state,
        ).write(self.place.path)
        self.place.at = time.perf_counter()
        self.place.took = self.place.at - started

    def _loaded(self) -> FitState | None:
        """The saved state, put into parameters, optimizer and problem; None when nothing was saved."""
        if self.place.path is None:
            return None
        found = Checkpoint.read(self.place.path, identity=self.place.identity, settings=asdict(self.settings))
        if found is None:
            return None
        restore(self.parameters, found.parameters)
        self.optimizer.load_state_dict(found.optimizer)
        self.scaler.load_state_dict(found.scaler)
        self.problem.remember(found.memory)
        return found.state


def _or_best(loss: float) -> float:
    """A loss that NaN makes the largest of all."""
    return math.inf if math.isnan(loss) else loss
