"""Do prefixes forget less than LoRA, or more? Each candidate's effect on other text, at matched steps and accuracy.

    .venv/bin/python benchmarks/tuning/forgetting/run.py                 # each run that is not there yet
    .venv/bin/python benchmarks/tuning/forgetting/run.py --minutes 30    # start no further run after so long
    .venv/bin/python benchmarks/tuning/forgetting/run.py --table         # only the tables of what is there

The small causal model of `small_causal.py`, tasks of `text_tasks.py`, and 32 passages of Python's reference manual,
which is of the model's kind of text and in no task. A prefix of 16 positions and LoRA of rank 8 have the same 9,216
numbers here. Every method is fitted with its own learning rates, a third and three times of them, with the same seed
and batches; every ten steps its accuracy on the test split and its effect on the other text are taken. So methods can
be compared after the same steps, and, what matters, at the same accuracy: `--table` takes, for each run, the first
moment that reaches it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from small_causal import MODEL, trained  # noqa: E402
from text_tasks import task_named  # noqa: E402

from foreword.assessment.forgetting import measure_forgetting  # noqa: E402
from foreword.assessment.other_text import other_text  # noqa: E402
from foreword.engine.host import Host  # noqa: E402
from foreword.record import Stopwatch, command_line  # noqa: E402
from foreword.tuning.adaptation import Adaptation, FittedPrefix, SoftPrompt  # noqa: E402
from foreword.tuning.candidate_settings import FittedSettings, PrefixSettings  # noqa: E402
from foreword.tuning.candidates import Workbench  # noqa: E402
from foreword.tuning.candidates.contract import fit_adaptation  # noqa: E402
from foreword.tuning.candidates.prefix import put_first_values  # noqa: E402
from foreword.tuning.checkpoint import Moment  # noqa: E402
from foreword.tuning.examples import load_splits  # noqa: E402
from foreword.tuning.fittable import FitWatch  # noqa: E402
from foreword.tuning.full_weights import FullWeights  # noqa: E402
from foreword.tuning.low_rank import Lora  # noqa: E402
from foreword.tuning.objectives.contract import Objective  # noqa: E402
from foreword.tuning.predictor import Predictor  # noqa: E402
from foreword.tuning.scoring import value  # noqa: E402
from foreword.tuning.sections import ForgettingSettings  # noqa: E402

RESULTS = HERE / "results" / "runs.jsonl"
STEPS, EVERY, BATCH, TEXTS, POSITIONS, RANK = 100, 10, 16, 32, 16, 8
FACTORS = (1 / 3, 1.0, 3.0)
PROBLEMS = (("kinds", "auto"), ("kinds", "completion"))
SEEDS = (0, 1, 2)


# A prefix as it begins by default; without the bias that makes it quiet; and as the keys and values of real text.
PREFIXES: dict[str, dict[str, Any]] = {
    "prefix": {},
    "prefix, loud": {"share": 1.0},
    "prefix, text": {"start": "text", "start_text": "The following section describes the parameters of each function."},
}
METHODS = (*PREFIXES, "soft prompt", "LoRA", "full")


def made(method: str, host: Host, seed: int) -> tuple[Adaptation, dict[str, Any]]:
    """What is fitted, and the settings that are its own."""
    if method in PREFIXES:
        return FittedPrefix(host, positions=POSITIONS, seed=seed), {**PREFIXES[method], "positions": POSITIONS}
    if method == "soft prompt":
        return SoftPrompt(host, positions=POSITIONS, seed=seed), {}
    return (Lora(host, rank=RANK, seed=seed) if method == "LoRA" else FullWeights(host)), {}


def scale_rates(adaptation: Any, factor: float) -> None:
    """Its learning rates times a factor, those that are measured when it begins included."""
    own = adaptation.groups
    adaptation.groups = lambda rate: [{**group, "lr": group["lr"] * factor} for group in own(rate)]


class Looks(FitWatch):
    """Takes accuracy on the test split and the effect on other text at every evaluation."""

    def __init__(self, bench: Workbench, adaptation: Adaptation, texts: tuple[str, ...]) -> None:
        self.bench, self.adaptation, self.texts = bench, adaptation, texts
        self.predictor = Predictor(bench.host, bench.manner(), adaptation)
        self.curve: list[dict[str, Any]] = []

    def evaluated(self, moment: Moment) -> None:
        test = self.bench.splits.test
        outputs = [answer.output for answer in self.predictor.answer([example.input for example in test])]
        found = measure_forgetting(self.bench.host, self.adaptation, self.texts)
        accuracy = value("accuracy", [example.target for example in test], outputs)
        told = found.model_dump(mode="json")
        self.curve.append({"step": moment.step, "loss": moment.loss, "accuracy": accuracy, "forgetting": told})


def plan() -> Iterator[tuple[str, str, str, float, int]]:
    """(task, objective, method, factor of its rates, seed), the first seed of everything first."""
    for seed in SEEDS:
        for task, objective in PROBLEMS:
            for method in METHODS:
                for factor in FACTORS:
                    yield task, objective, method, factor, seed


def run(minutes: float) -> None:
    known = {json.dumps(row["key"], sort_keys=True) for row in rows()}
    deadline, host = time.perf_counter() + 60 * minutes, trained()
    sample = other_text(ForgettingSettings(texts=TEXTS), Path())
    if sample is None:
        raise SystemExit("this Python brings no reference manual")
    with tempfile.TemporaryDirectory() as scratch:
        for task_name, objective, method, factor, seed in plan():
            key = {"task": task_name, "objective": objective, "method": method, "rates": factor, "seed": seed}
            if json.dumps(key, sort_keys=True) in known:
                continue
            if time.perf_counter() > deadline:
                return
            task = task_named(task_name, Path(scratch) / task_name, base=str(MODEL))
            bench = Workbench(host, task, load_splits(task))
            watch = Stopwatch(command_line(), seeds=(seed,))
            adaptation, own = made(method, host, seed)
            scale_rates(adaptation, factor)
            loop = {"steps": STEPS, "evaluate_every": EVERY, "patience": 99, "batch_size": BATCH}
            given = {"objective": objective, "seconds": 3600.0, **loop, **own}
            kind = PrefixSettings if method in PREFIXES else FittedSettings
            settings = kind.model_validate({**given, "kind": "prefix"})
            looks = Looks(bench, adaptation, sample.passages)

            def begin(to_fit: Objective, bench: Workbench = bench, settings: Any = settings, seed: int = seed) -> None:
                if isinstance(settings, PrefixSettings):
                    put_first_values(bench, to_fit, settings, seed=seed)

            fit_adaptation(bench, adaptation, settings, seed=seed, checkpoint=None, watch=looks, begin=begin)
            numbers = adaptation.trainable
            adaptation.close()
            settled = {**key, "settings": given, "texts": sample.sha256, "fingerprint": host.fingerprint}
            row = {"key": key, "trainable": numbers, "curve": looks.curve, "record": watch.record(settled).as_dict()}
            RESULTS.parent.mkdir(exist_ok=True)
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            last = looks.curve[-1]
            print(f"{key}: {last['accuracy']:.3f}, {last['forgetting']['loss_change']['value']:+.3f} nats", flush=True)


def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.exists() else []


def table() -> None:
    """By problem: each method's best accuracy, and the nats it adds where it first reaches a given accuracy.

    Of a method's rates the one that forgets least at that accuracy is taken, by seed; the median over seeds is shown
    with the number of seeds that got there. Marks: what the weakest method reaches, and half of the methods.
    """
    problems: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows():
        problems.setdefault((row["key"]["task"], row["key"]["objective"]), []).append(row)
    for (task, objective), found in problems.items():
        best = {method: best_accuracy(found, method) for method in METHODS if best_accuracy(found, method) is not None}
        ranked = sorted(best.values())
        bare = found[0]["curve"][0]["forgetting"]["loss_bare"]
        marks = [ranked[0], median(ranked)]
        print(f"\n{task}, objective {objective}; bare model: {bare:.3f} nats a token on other text\n")
        heads = [f"nats (KL) at {mark:.3f}" for mark in marks]
        print(f"| method | numbers | best accuracy | {' | '.join(heads)} | nats (KL) at its best |")
        print("|---|---|---|---|---|---|")
        for method in best:
            numbers = next(row["trainable"] for row in found if row["key"]["method"] == method)
            cells = [cell(found, method, mark) for mark in [*marks, None]]
            print(f"| {method} | {numbers:,} | {best[method]:.3f} | {' | '.join(cells)} |")


def best_accuracy(found: list[dict[str, Any]], method: str) -> float | None:
    """The mean over seeds of the best accuracy that any rate and moment has."""
    by_seed: dict[int, float] = {}
    for row in found:
        if row["key"]["method"] == method:
            top = max(moment["accuracy"] for moment in row["curve"])
            by_seed[row["key"]["seed"]] = max(by_seed.get(row["key"]["seed"], 0.0), top)
    return sum(by_seed.values()) / len(by_seed) if by_seed else None


def cell(found: list[dict[str, Any]], method: str, mark: float | None) -> str:
    """Nats added, and the divergence, where an accuracy is first reached (None: at the method's best)."""
    least: dict[int, tuple[float, float]] = {}
    seeds = sorted({row["key"]["seed"] for row in found if row["key"]["method"] == method})
    for seed in seeds:
        runs = [row["curve"] for row in found if row["key"]["method"] == method and row["key"]["seed"] == seed]
        goal = max(moment["accuracy"] for curve in runs for moment in curve) if mark is None else mark
        for curve in runs:
            moment = next((moment for moment in curve if moment["accuracy"] >= goal), None)
            if moment is not None:
                told = moment["forgetting"]
                pair = (told["loss_change"]["value"], told["divergence"]["value"])
                least[seed] = min(least.get(seed, pair), pair, key=lambda each: each[1])
    if not least:
        return "not reached"
    nats, apart = (median(pair[part] for pair in least.values()) for part in (0, 1))
    return f"{nats:+.3f} ({apart:.3f}), {len(least)} of {len(seeds)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if not arguments.table:
        run(arguments.minutes)
    table()


if __name__ == "__main__":
    main()
