"""A fit on disk between two steps: written whole or not at all, and never taken up by another fit.

The file is the SHA-256 of what follows, then what `torch.save` makes of tensors and plain values. It is read with
`weights_only`, so that nothing in it is ever executed.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from foreword.bundle import write_bytes_atomically
from foreword.errors import FitError
from foreword.tuning.folder import differences

_DIGEST_BYTES = 32


@dataclass(frozen=True)
class Moment:
    """State after `step` steps: seconds spent, mean loss since the last moment, score on the selection split."""

    step: int
    seconds: float
    loss: float | None
    selection: float


@dataclass
class FitState:
    """How far a fit has come, but for parameters and optimizer.

    `factor` scales all learning rates: what the search found, halved by every guard that acted. `part` is how many
    examples are computed at once, None for the whole batch. `first_loss` is that of the first step, `start_loss` the
    selection split's before it. `stuck` counts the last steps that were not finite. `best` are the parameters of the
    best moment. `untried` are step and key of a better one: its state is the present one, and becomes the best with the
    first finite step from it. `about`: what was told of the first values, plain values. `blank`: what the problem
    remembered before the fit, of no state of the parameters. `step_took` and `look_took`: seconds of the last of each.
    """

    step: int = 0
    seconds: float = 0.0
    since_best: int = 0
    best_key: tuple[float, float] = (float("-inf"), float("-inf"))
    best_at: int = 0
    factor: float = 1.0
    part: int | None = None
    is_searched: bool = False
    first_loss: float | None = None
    start_loss: float = 0.0
    rescues: int = 0
    stuck: int = 0
    untried: tuple[int, tuple[float, float]] | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    history: list[Moment] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    blank: dict[str, Tensor] = field(default_factory=dict)
    step_took: float = 0.0
    look_took: float = 0.0


@dataclass(frozen=True)
class Checkpoint:
    """What a fit needs to go on, and whose it is: `identity` and `settings` must be those of the fit that reads it."""

    identity: dict[str, Any]
    settings: dict[str, Any]
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    memory: dict[str, Tensor]
    state: FitState

    def write(self, path: Path) -> None:
        """Write atomically; BundleError when that fails."""
        state = {**asdict(replace(self.state, best={})), "best": self.state.best}
        parts = {name: getattr(self, name) for name in ("identity", "settings", "parameters", "optimizer", "scaler")}
        buffer = io.BytesIO()
        buffer.write(bytes(_DIGEST_BYTES))  # room for the digest: what is written may be large, and is not copied
        torch.save({**parts, "memory": self.memory, "state": state}, buffer)
        whole = buffer.getbuffer()
        whole[:_DIGEST_BYTES] = hashlib.sha256(whole[_DIGEST_BYTES:]).digest()
        write_bytes_atomically(path, whole)

    @classmethod
    def read(cls, path: Path, *, identity: dict[str, Any], settings: dict[str, Any]) -> Checkpoint | None:
        """The checkpoint at `path`; None when there is none. FitError when it is damaged, or another fit's."""
        if not path.exists():
            return None
        try:
            whole = path.read_bytes()
            digest, written = whole[:_DIGEST_BYTES], whole[_DIGEST_BYTES:]
            if hashlib.sha256(written).digest() != digest:  # torch.load itself lets changed numbers pass
                raise ValueError("truncated or changed since it was written")
            told: dict[str, Any] = torch.load(io.BytesIO(written), weights_only=True)
            history = [Moment(**moment) for moment in told["state"]["history"]]
            best_key = tuple(told["state"]["best_key"])
            state = FitState(**{**told["state"], "history": history, "best_key": best_key})
            found = cls(**{**told, "state": state})
        except (OSError, RuntimeError, LookupError, TypeError, ValueError, UnpicklingError) as error:
            raise FitError(
                f"The checkpoint {path} cannot be read.",
                expected="a checkpoint written by this version of foreword",
                found=f"{type(error).__name__}: {error}".splitlines()[0][:200],
                fix="Remove the file; the fit then starts again.",
            ) from error
        parts = (found.identity, identity), (found.settings, settings)
        if changed := [line for was, now in parts for line in differences(was, now)]:
            raise FitError(
                f"The checkpoint {path} is of another fit.",
                expected="the settings, data, base model and files that it was saved with",
                found="changed: " + "; ".join(dict.fromkeys(changed[:6])),
                fix="Use another run folder, or remove the file to start again.",
            )
        return found
