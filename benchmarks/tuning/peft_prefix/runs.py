"""What both comparisons with PEFT share: a ledger of runs that is never run twice, and our side of a run.

A run has two curves: (step, seconds, score on the selection split), by which each keeps its best state, and (step,
score on unseen examples), which nobody keeps or chooses anything by. Seconds are those of steps (and of solving first
values), without looks.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from foreword.engine.host import Host
from foreword.record import Stopwatch, command_line
from foreword.tuning.adaptation import Adaptation, FittedPrefix
from foreword.tuning.candidate_settings import LoraSettings, PrefixSettings
from foreword.tuning.candidates import Workbench
from foreword.tuning.candidates.contract import fit_adaptation
from foreword.tuning.candidates.prefix import put_first_values
from foreword.tuning.checkpoint import Moment
from foreword.tuning.examples import Example, Splits
from foreword.tuning.fittable import FitWatch, StepTaken
from foreword.tuning.low_rank import Lora
from foreword.tuning.objectives.contract import Objective
from foreword.tuning.objectives.labels import adapted_features
from foreword.tuning.objectives.similarity import TextSimilarity
from foreword.tuning.readout import Readout, from_label_texts
from foreword.tuning.task import Task

Run = dict[str, Any]
# Ours by name of a method: a prefix from each of these starts.
STARTS = {"prefix": "zero", "prefix, closed form": "closed-form"}
METHODS = ("prefix", "prefix, closed form", "peft", "lora")
# PEFT's prefixes at settings as they stand in its documentation, by the names that `Bench.documented` gives them.
DOCUMENTED = ("peft, example", "peft, guide", "cartridge, example")
# PEFT's example, but for a classifier that begins solved, as our read-out does.
SOLVED = ("peft, example, solved classifier", "peft, example, our read-out")
# Share of PEFT's steps in which its rate rises: that of the documentation's example of sequence classification.
WARM_UP = 0.06
# Looks without a better score after which ours stops. PEFT has no early stopping and goes to the end.
PATIENCE = 25
# Settings of PEFT that are tried with a second seed.
FINALISTS = 3
# Looks at unseen examples: all of the first steps', then one in so many steps, as they take longer than the steps.
UNSEEN_UNTIL, UNSEEN_EVERY = 40, 20


def is_unseen_look(step: int) -> bool:
    """Are the unseen examples looked at after so many steps?"""
    return step <= UNSEEN_UNTIL or step % UNSEEN_EVERY == 0


@dataclass(frozen=True)
class Fixed:
    """What a comparison fixes for all: positions, examples in a step, and steps between two looks."""

    positions: int
    batch: int
    every: int


@dataclass(frozen=True)
class Documented:
    """Settings that PEFT's documentation names, with the warm-up of the same place, and where that is."""

    settings: Any
    warm_up: float
    where: str


class Bench(ABC):
    """One task on one host: what PEFT's settings are chosen from, and a run of either side."""

    grid: Sequence[Any]
    documented: Mapping[str, Documented]
    fixed: Fixed
    options: Mapping[str, Any] = {}
    """What of our candidates' settings is the comparison's, beside what is fixed."""

    def __init__(self, name: str, host: Host, task: Task, splits: Splits) -> None:
        self.name, self.host, self.task, self.splits = name, host, task, splits

    @abstractmethod
    def peft(
        self,
        settings: Any,
        *,
        steps: int,
        seed: int,
        warm_up: float = WARM_UP,
        looks_at_unseen: bool = True,
    ) -> Run:
        """PEFT's prefix with these settings."""

    def ours(self, method: str, *, steps: int, seed: int) -> Run:
        """Ours with its defaults for all that is not fixed: a prefix from some start, or LoRA."""
        fixed = self.fixed
        given = {"steps": steps, "batch_size": fixed.batch, "evaluate_every": fixed.every, "patience": PATIENCE}
        given |= self.options
        bench, looks = Workbench(self.host, self.task, self.splits), _Looks(self.splits.test)
        started = dict[str, Any]()
        settings: PrefixSettings | LoraSettings
        adaptation: Adaptation
        if method == "lora":
            settings = LoraSettings.model_validate(given)
            adaptation = Lora(self.host, rank=settings.rank, seed=seed)
        else:
            settings = PrefixSettings.model_validate({**given, "positions": fixed.positions, "start": STARTS[method]})
            adaptation = FittedPrefix(self.host, positions=fixed.positions, seed=seed)

        def begin(objective: Objective) -> None:
            looks.objective = objective
            if isinstance(settings, PrefixSettings):
                before = time.perf_counter()
                started.update(put_first_values(bench, objective, settings, seed=seed))
                looks.seconds = time.perf_counter() - before

        try:
            fitted = fit_adaptation(bench, adaptation, settings, seed=seed, checkpoint=None, watch=looks, begin=begin)
            answers = fitted.predictor.answer([example.input for example in self.splits.test])
        finally:
            adaptation.close()
        return {
            "curve": looks.curve,
            "unseen": looks.unseen,
            "right": [int(a.output == x.target) for a, x in zip(answers, self.splits.test, strict=True)],
            "best_step": fitted.details["best_step"],
            "settings": {**fitted.details, "start": started},
        }


class Ledger:
    """The lines of a file, one for each run."""

    def __init__(self, path: Path, *, search_steps: int) -> None:
        self.path, self.search_steps = path, search_steps
        path.parent.mkdir(exist_ok=True)
        self.rows: list[Run] = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        )

    def compare(self, bench: Bench, *, steps: int, seeds: Iterable[int], methods: Sequence[str] = METHODS) -> None:
        """These methods with every seed, interleaved: the machine's moods fall on all alike."""
        self._check_base(bench)
        settings = self._searched(bench) if "peft" in methods else None
        for seed in seeds:
            for method in methods:
                key = {"task": bench.name, "method": method, "seed": seed, "steps": steps}
                if method == "peft":
                    key["settings"] = settings.as_dict()
                    self._once(bench, key, lambda seed=seed: bench.peft(settings, steps=steps, seed=seed))
                elif (told := bench.documented.get(method)) is not None:
                    key["settings"] = told.settings.as_dict()
                    self._once(
                        bench,
                        key,
                        lambda seed=seed, told=told: bench.peft(
                            told.settings, steps=steps, seed=seed, warm_up=told.warm_up
                        ),
                    )
                elif method not in (*DOCUMENTED, *SOLVED):
                    self._once(bench, key, lambda seed=seed, method=method: bench.ours(method, steps=steps, seed=seed))

    def _check_base(self, bench: Bench) -> None:
        """Runs of one task are compared only on one base: a model that was trained anew may be another."""
        others = {row["base"] for row in self.rows if row["task"] == bench.name and "base" in row}
        if others - {bench.host.fingerprint}:
            raise SystemExit(
                f"{self.path}: runs of {bench.name} on another base; move them away, or bring that base back"
            )

    def _searched(self, bench: Bench) -> Any:
        """PEFT's best settings on the selection split: of the FINALISTS with seed 0, the best over two seeds.

        Some settings learn with one seed and not with the next.
        """
        scores = {settings: self._late(bench, settings, seed=0) for settings in bench.grid}
        finalists = sorted(scores, key=lambda settings: -scores[settings])[:FINALISTS]
        return max(finalists, key=lambda settings: scores[settings] + self._late(bench, settings, seed=1))

    def _late(self, bench: Bench, settings: Any, *, seed: int) -> float:
        """Mean selection score of the last quarter of a shorter run's looks."""
        key = {"task": bench.name, "method": "peft-search", "seed": seed, "settings": settings.as_dict()}
        row = self._once(
            bench, key, lambda: bench.peft(settings, steps=self.search_steps, seed=seed, looks_at_unseen=False)
        )
        looks = [score for _, _, score in row["curve"]]
        late = looks[-(len(looks) // 4) :]
        return float(sum(late) / len(late))

    def _once(self, bench: Bench, key: Run, run: Callable[[], Run]) -> Run:
        found = next((row for row in self.rows if all(row.get(name) == value for name, value in key.items())), None)
        if found is not None:
            return found
        watch = Stopwatch(command_line(), seeds=(key["seed"],))
        row = {**run(), **key, "base": bench.host.fingerprint}
        row["record"] = watch.record(key).as_dict()
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        shown = f"{row['task']} {row['method']} seed {row['seed']} {key.get('settings', '')}"
        best = max(score for _, _, score in row["curve"])
        test = f", test {sum(row['right']) / len(row['right']):.3f}" if row["right"] else ""
        print(f"{shown}: selection {best:.3f}{test}, best at step {row['best_step']}", flush=True)
        return row


@dataclass
class _Looks(FitWatch):
    """Looks at unseen examples whenever the fit looks at its selection split, and counts the seconds of steps."""

    test: Sequence[Example]
    objective: Objective | None = None
    seconds: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)
    unseen: list[tuple[int, float]] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)

    def stepped(self, taken: StepTaken) -> None:
        del taken
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now

    def evaluated(self, moment: Moment) -> None:
        self.curve.append((moment.step, self.seconds, moment.selection))
        if is_unseen_look(moment.step):
            self.unseen.append((moment.step, self._score()))
        self._since = time.perf_counter()

    def _score(self) -> float:
        if self.objective is None:
            raise RuntimeError("the fit looked at its selection split before it began")
        memory, predictor = self.objective.memory(), self.objective.predictor
        if "weights" in memory:  # a read-out that is solved on the adapted features, as the look has just done
            readout = Readout("linear", memory["weights"], memory["bias"], 1.0)
            predictor = replace(predictor, readout=readout)
        elif isinstance(self.objective, TextSimilarity):  # the labels' texts, as the model reads them by now
            readout = from_label_texts(adapted_features(predictor, self.objective.text_rows))
            predictor = replace(predictor, readout=readout)
        answers = predictor.answer([example.input for example in self.test])
        return sum(a.output == x.target for a, x in zip(answers, self.test, strict=True)) / len(answers)
