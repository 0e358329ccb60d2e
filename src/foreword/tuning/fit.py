"""The fitting loop: gradient descent on an adaptation alone, with early stopping, best state kept, and resume.

It knows no task and no model: it is given parameters, a loss over examples and a selection score. Every step draws its
batch from (seed, step) only, so a resumed fit takes the same steps as one that was never stopped.
"""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from foreword.bundle import write_bytes_atomically
from foreword.errors import FitError
from foreword.tuning.adaptation import ParameterGroup, restore, state_of

# (step, steps, loss, best selection score so far)
FitProgress = Callable[[int, int, float, float], None]
# A learning rate that was halved to less than this has been halved in vain.
SMALLEST_RATE = 1e-9


@dataclass(frozen=True)
class FitSettings:
    """At most `steps` steps of `batch_size` examples, within `seconds` of wall time over all resumes.

    The selection score is taken every `evaluate_every` steps and at the start; after `patience` of them without a
    better one the fit stops. `clip` bounds the gradient's norm.
    """

    steps: int
    batch_size: int
    seconds: float
    evaluate_every: int = 8
    patience: int = 6
    learning_rate: float | None = None
    clip: float = 1.0


@dataclass(frozen=True)
class Moment:
    """State after `step` steps: seconds spent, mean loss since the last moment, score on the selection split."""

    step: int
    seconds: float
    loss: float | None
    selection: float


@dataclass(frozen=True)
class FitOutcome:
    """How a fit went; the parameters hold the best state. `stopped_by` is "steps", "seconds" or "patience"."""

    history: tuple[Moment, ...]
    best: Moment
    seconds: float
    stopped_by: str


class Problem(Protocol):
    """What an adaptation is fitted to."""

    examples: int

    def loss(self, indices: list[int], step: int) -> Tensor:
        """Loss of these examples at this step, a scalar with gradients."""
        ...

    def evaluate(self, step: int) -> tuple[float, float]:
        """After `step` steps: score on the selection split (higher is better), and the tie-breaker of equal scores."""
        ...

    def memory(self) -> dict[str, Tensor]:
        """What later losses depend on besides the parameters; saved with a checkpoint."""
        ...

    def remember(self, memory: dict[str, Tensor]) -> None:
        """Take up the memory of a checkpoint."""
        ...


class Fittable(Protocol):
    """What a fit changes: an adaptation's parameters."""

    def parameters(self) -> dict[str, nn.Parameter]:
        """By name."""
        ...

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        """The same parameters with their learning rates."""
        ...


@dataclass
class _State:
    step: int = 0
    seconds: float = 0.0
    since_best: int = 0
    best_key: tuple[float, float] = (-math.inf, -math.inf)
    best_at: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[Moment] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def is_to_be_evaluated(self, settings: FitSettings) -> bool:
        """At the start, at every so many steps and at the last one, unless that was done before an interruption."""
        if not self.history or self.history[-1].step == self.step:
            return not self.history
        is_last = self.seconds >= settings.seconds or self.step >= settings.steps
        return is_last or self.step % settings.evaluate_every == 0

    def reason_to_stop(self, settings: FitSettings) -> str | None:
        if self.since_best >= settings.patience:
            return "patience"
        if self.step >= settings.steps:
            return "steps"
        return "seconds" if self.seconds >= settings.seconds else None


def fit(
    problem: Problem,
    fitted: Fittable,
    settings: FitSettings,
    *,
    seed: int,
    checkpoint: Path | None = None,
    identity: str = "",
    progress: FitProgress | None = None,
) -> FitOutcome:
    """Fit `fitted` to `problem` and leave the best state in its parameters.

    With `checkpoint` the state is saved there at every evaluation and when the fit is interrupted between two steps,
    and a fit of the same `identity` goes on from it. FitError when loss or gradient stay not finite, or the checkpoint
    is of another fit.
    """
    loop = _Loop(problem, fitted, settings, seed, checkpoint, identity)
    reason = loop.run(progress)
    restore(loop.parameters, loop.state.best)
    best = next(moment for moment in loop.state.history if moment.step == loop.state.best_at)
    return FitOutcome(tuple(loop.state.history), best, loop.state.seconds, reason)


class _Loop:
    def __init__(
        self,
        problem: Problem,
        fitted: Fittable,
        settings: FitSettings,
        seed: int,
        checkpoint: Path | None,
        identity: str,
    ) -> None:
        self.problem, self.settings, self.seed = problem, settings, seed
        self.checkpoint, self.identity = checkpoint, identity
        self.parameters = fitted.parameters()
        self.optimizer = torch.optim.AdamW(fitted.groups(settings.learning_rate), weight_decay=0.0)
        self.state = self._loaded() or _State()

    def run(self, progress: FitProgress | None) -> str:
        """Step until there is a reason to stop, and return it."""
        state, started, before = self.state, time.perf_counter(), self.state.seconds
        whole = True  # False while a step or an evaluation is half done: what is saved is never half a step
        try:
            while True:
                if state.is_to_be_evaluated(self.settings):
                    whole = False
                    self._evaluate()
                    whole = True
                    state.seconds = before + time.perf_counter() - started
                if (reason := state.reason_to_stop(self.settings)) is not None:
                    if state.seconds > before:  # the last evaluation's time, so that going on from here stops at once
                        self._save()
                    break
                whole = False
                state.losses.append(self._step())
                state.step += 1
                whole = True
                state.seconds = before + time.perf_counter() - started
                if progress is not None:
                    progress(state.step, self.settings.steps, state.losses[-1], state.best_key[0])
        except KeyboardInterrupt:
            if whole:
                self._save()
            raise
        return reason

    def _step(self) -> float:
        """One step's loss; NaN for a step that was not finite: it changes nothing but halves the learning rates."""
        rng = np.random.default_rng((self.seed, self.state.step))
        size = min(self.settings.batch_size, self.problem.examples)
        indices = rng.choice(self.problem.examples, size=size, replace=False).tolist()
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.problem.loss(indices, self.state.step)
        torch.autograd.backward(loss)
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.clip)
        if torch.isfinite(loss) and torch.isfinite(norm):
            self.optimizer.step()
            return float(loss.detach())
        for group in self.optimizer.param_groups:
            group["lr"] /= 2
            if group["lr"] < SMALLEST_RATE:
                raise FitError(
                    "The fit diverges: loss or gradient is not finite, however small the learning rate.",
                    expected="a finite loss",
                    found=f"loss {float(loss.detach())} at step {self.state.step}",
                    fix="Lower learning_rate, or load the model in float32.",
                )
        return math.nan

    def _evaluate(self) -> None:
        """Score the current state, keep it when it is the best so far, and save."""
        state = self.state
        score, tie_breaker = self.problem.evaluate(state.step)
        key = (_or_worst(score), _or_worst(tie_breaker))
        finite = [loss for loss in state.losses if math.isfinite(loss)]
        loss = float(np.mean(finite)) if finite else None
        state.losses.clear()
        state.history.append(Moment(state.step, state.seconds, loss, score))
        if key > state.best_key or len(state.history) == 1:
            state.best_key, state.best_at, state.since_best = key, state.step, 0
            state.best = state_of(self.parameters)
        else:
            state.since_best += 1
        self._save()

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        content = {
            "identity": self.identity,
            "settings": asdict(self.settings),
            "parameters": state_of(self.parameters),
            "optimizer": self.optimizer.state_dict(),
            "memory": self.problem.memory(),
            "state": {**asdict(replace(self.state, best={})), "best": self.state.best},
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        written = buffer.getvalue()
        write_bytes_atomically(self.checkpoint, hashlib.sha256(written).digest() + written)

    def _loaded(self) -> _State | None:
        """The saved state, put into parameters, optimizer and problem; None when nothing was saved."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        try:
            whole = self.checkpoint.read_bytes()
            digest, written = whole[:32], whole[32:]
            if hashlib.sha256(written).digest() != digest:  # torch.load itself lets changed numbers pass
                raise ValueError("truncated or changed since it was written")
            content: dict[str, Any] = torch.load(io.BytesIO(written), weights_only=True)
            identity, settings, told = content["identity"], content["settings"], content["state"]
            history = [Moment(**moment) for moment in told["history"]]
            state = _State(**{**told, "history": history, "best_key": tuple(told["best_key"])})
            parts = content["parameters"], content["optimizer"], content["memory"]
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, UnpicklingError) as error:
            raise FitError(
                f"The checkpoint {self.checkpoint} cannot be read.",
                expected="a checkpoint written by this version of foreword",
                found=f"{type(error).__name__}: {error}".splitlines()[0][:200],
                fix="Remove the file; the fit then starts again.",
            ) from error
        if (identity, settings) != (self.identity, asdict(self.settings)):
            raise FitError(
                f"The checkpoint {self.checkpoint} is of another fit.",
                expected=f"{self.identity}, {asdict(self.settings)}",
                found=f"{identity}, {settings}",
                fix="Use another run folder, or remove the file to start again.",
            )
        restore(self.parameters, parts[0])
        self.optimizer.load_state_dict(parts[1])
        self.problem.remember(parts[2])
        return state


def _or_worst(score: float) -> float:
    """NaN compares as neither better nor worse than anything; here it is worse than everything."""
    return -math.inf if math.isnan(score) else score
