"""`fit(host, task)`: from a frozen model and a task to a prefix (or a rival of it), by gradient descent on it alone.

It puts the pieces together: splits, first values, objective, loop, folder, bundle. What each does stands in its module.
Only the fit and selection splits are used; the test split is for `foreword.run_pilot`, which judges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreword.bundle import load_bundle
from foreword.engine.host import Host
from foreword.errors import BundleError
from foreword.record import Stopwatch
from foreword.trust import TrustPolicy
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidate_settings import FittedSettings, PrefixSettings
from foreword.tuning.candidates import Fitted, Workbench, candidate_for
from foreword.tuning.devices import Devices
from foreword.tuning.examples import Splits, load_splits
from foreword.tuning.fit_folder import begun_in, held_folder, told_result
from foreword.tuning.fit_log import FitLog
from foreword.tuning.fit_request import check_seed, check_tensorboard, settings_for, sweeps
from foreword.tuning.fit_result import Fit
from foreword.tuning.fittable import FitWatch
from foreword.tuning.full_weights import FullWeights
from foreword.tuning.length import Length, checked_lengths, sweep, usual_lengths
from foreword.tuning.low_rank import Lora
from foreword.tuning.named_files import named_files
from foreword.tuning.objectives.lesson_book import LESSONS, LessonBook
from foreword.tuning.task import Task
from foreword.version import __version__

# What of a task a fit depends on; prices and the other candidates may change between a kill and the resume.
_PARTS = ("task", "data", "labels", "model", "splits")


class _Verb:
    """`fit(...)`, and `fit.resume(folder)` beside it."""

    def __call__(
        self,
        host: Host | str | None,
        task: Task | Path | str,
        *,
        method: str = "prefix",
        length: Length = None,
        lengths: Sequence[int] | None = None,
        seed: int = 0,
        out: Path | str | None = None,
        fresh: bool = False,
        limit: int | None = None,
        tensorboard: bool = False,
        watch: FitWatch | None = None,
        command: str = "foreword.fit",
        **options: Any,
    ) -> Fit:
        """Fit a prefix to a task on a frozen host, or a rival of it, and keep the best state on the selection split.

        `host` is a Host, a reference, or None for the task's own. `method` is "prefix", "soft-prompt", "lora" or
        "full"; `length` its number of positions (of LoRA: its rank), and "auto" fits a prefix of each of `lengths`
        (left out: 1, 2, 4 up to 64, as far as that makes sense) and takes the shortest that is statistically as good as
        the best on the selection split (`foreword.tuning.length_choice` says how, and what it does not guarantee).
        `options` are the other fields of that candidate in a task file (`start`, `steps`, `learning_rate`, `seconds`,
        ...); fields that the task's own candidate of this kind sets are the defaults.

        With `out` everything is kept in that folder (checkpoint, log.jsonl, bundle, record), and the same call, or
        `fit.resume(out)`, goes on after an interruption or a kill, to the same numbers on the same machine. FitError
        says which option is wrong; RunFolderError what the folder holds instead.
        """
        task = task if isinstance(task, Task) else Task.load(task)
        check_seed(seed)
        check_tensorboard(tensorboard, out)
        is_swept = sweeps(method, length, lengths)
        settings = settings_for(task, method, None if length == "auto" else length, options)
        lengths = checked_lengths(lengths)
        devices = Devices()
        splits = load_splits(task, limit=limit)
        if not isinstance(host, Host):
            device = task.model.device if devices.device is None else devices.device
            host = Host.load(host or task.reference, dtype=task.model.dtype, device=device)
        folder = None if out is None else Path(out)
        book = LessonBook(None if folder is None else folder / LESSONS)
        work = _Work(host, task, splits, settings, seed, limit, folder, command, book)
        if is_swept and isinstance(settings, PrefixSettings):
            several = _Sweeping(work, lengths or usual_lengths(host, splits), tensorboard=tensorboard)
            return several.run(devices, watch or FitWatch(), fresh=fresh)
        return work.run(devices, watch or FitWatch(), fresh=fresh, tensorboard=tensorboard)

    def resume(
        self,
        folder: Path | str,
        *,
        host: Host | None = None,
        tensorboard: bool = False,
        watch: FitWatch | None = None,
        command: str = "foreword.fit.resume",
    ) -> Fit:
        """Go on with the fit of a folder that `fit(..., out=folder)` left, to the same numbers; or load its result.

        RunFolderError when the folder holds no fit; FitError and others as in `fit`.
        """
        begun = begun_in(Path(folder))
        return self(
            host or begun.reference,
            begun.task,
            method=begun.method,
            length=None if begun.lengths is None else "auto",
            lengths=begun.lengths,
            seed=begun.seed,
            out=folder,
            limit=begun.limit,
            tensorboard=tensorboard,
            watch=watch,
            command=command,
        )


fit = _Verb()


@dataclass(frozen=True)
class _Work:
    """One fit that is about to run."""

    host: Host
    task: Task
    splits: Splits
    settings: FittedSettings
    seed: int
    limit: int | None
    folder: Path | None
    command: str
    book: LessonBook

    @property
    def bench(self) -> Workbench:
        return Workbench(self.host, self.task, self.splits, self.book)

    def run(self, devices: Devices, watch: FitWatch, *, fresh: bool, tensorboard: bool) -> Fit:
        stopwatch = Stopwatch(self.command, seeds=(self.seed,))
        with ExitStack() as stack:
            checkpoint, writes = None, False
            if self.folder is not None:
                checkpoint = self.folder / "checkpoint.pt"
                if devices.is_first:
                    writes = stack.enter_context(self.held(self.folder, self.identity(), fresh=fresh))
                self.book.writes |= writes
                if writes:
                    log = FitLog(self.folder, watch, tensorboard=tensorboard)
                    stack.callback(log.close)
                    watch = log
            fitted = candidate_for(self.settings).fit(self.bench, seed=self.seed, checkpoint=checkpoint, watch=watch)
            made = self._made(fitted, stopwatch)
            if writes:
                keep(made)
        return made

    def held(self, folder: Path, identity: Mapping[str, Any], *, fresh: bool) -> AbstractContextManager[bool]:
        """The folder for this work alone; gives whether it may be written, which a finished fit does not need."""
        is_finished = told_result(folder) is not None
        return held_folder(folder).held(identity, fresh=fresh, aside=self.aside(), is_finished=is_finished)

    def _made(self, fitted: Fitted, stopwatch: Stopwatch) -> Fit:
        record = stopwatch.record({"method": self.settings.kind, **self.identity()})
        return Fit(
            self.settings.kind,
            fitted.predictor,
            fitted.selection,
            fitted.history,
            fitted.details,
            record,
            self.folder,
            self.seed,
            apart=fitted.apart,
        )

    def identity(self) -> dict[str, Any]:
        settings = self.task.settings()
        files = named_files(self.settings, self.task.folder)
        return {
            "settings": self.settings.model_dump(mode="json"),
            "task": {name: settings[name] for name in _PARTS} | {"limits": settings["limits"]},
            "seed": self.seed,
            "limit": self.limit,
            "data": self.splits.hash,
            "base": self.host.fingerprint,
            **({"files": files} if files else {}),
            "foreword": __version__,
        }

    def aside(self) -> dict[str, Any]:
        return {"task_folder": str(self.task.folder.resolve()), "reference": self.host.reference}


@dataclass(frozen=True)
class _Sweeping:
    """Fits of several lengths in folders below one, each a fit of its own, and the chosen one's result in that one."""

    work: _Work
    lengths: tuple[int, ...]
    tensorboard: bool

    def run(self, devices: Devices, watch: FitWatch, *, fresh: bool) -> Fit:
        work, folder = self.work, self.work.folder
        stopwatch = Stopwatch(work.command, seeds=(work.seed,))
        identity = {**work.identity(), "lengths": list(self.lengths)}
        writes = False
        with ExitStack() as stack:
            if folder is not None and devices.is_first:
                writes = stack.enter_context(work.held(folder, identity, fresh=fresh))
                work.book.writes = writes

            def fit_of(length: int, place: Path | None) -> Fit:
                sized = {"positions": length, "longest": max(self.lengths)}
                one = replace(work, settings=work.settings.model_copy(update=sized), folder=place)
                watch.notice(f"length {length} of {', '.join(map(str, self.lengths))}")
                return one.run(devices, watch, fresh=False, tensorboard=self.tensorboard)

            chosen, found = sweep(work.bench, self.lengths, fit_of, folder=folder, devices=devices, writes=writes)
            record = stopwatch.record({"method": work.settings.kind, **identity})
            made = replace(chosen, record=record, folder=folder, sweep=found)
            if writes:
                keep(made)
        return made


def keep(made: Fit) -> None:
    """Write the result into the folder: record, and the bundle or the library's own format.

    A fit that was finished before leaves both as they are: the record tells of the fit that was run, and the bundle may
    have been signed since.
    """
    folder = held_folder(made.folder or Path())
    result, bundle = folder.path / "result.json", folder.path / "best.prefix"
    adaptation = made.predictor.adaptation
    if isinstance(adaptation, Lora | FullWeights):
        adaptation.save(folder.path / made.method)
    elif isinstance(adaptation, FittedPrefix) or made.predictor.host.role == "causal":
        if _is_kept(made, folder.path, bundle):
            return
        made.save(bundle)
    folder.write(result, json.dumps(made.as_dict(), indent=1, ensure_ascii=False))


def _is_kept(made: Fit, folder: Path, bundle: Path) -> bool:
    """Whether result and bundle are there, whole, and of this very fit, which its history of seconds tells."""
    told = told_result(folder)
    try:
        found = load_bundle(bundle, trust=TrustPolicy())
    except BundleError:
        return False
    mine = json.loads(json.dumps(made.as_dict()))
    is_same = told is not None and all(told.get(name) == mine[name] for name in ("method", "seed", "history"))
    return is_same and found.prefix.hash == made.prefix.hash
