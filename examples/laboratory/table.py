"""Judge every case of the laboratory, and write the table of README.md from what was found.

    python examples/laboratory/table.py --models runs/laboratory/models --work runs/laboratory   # what is missing
    python examples/laboratory/table.py --show                                                   # the table alone

Each way is fitted on a case's fit split, keeps its best state on the selection split, and answers the test split once:
1,000 sequences that no training and no fit has seen. `results/CASE.json` has the figures, each with the record of its
run. Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case, write_case

from foreword.bundle import write_bytes_atomically
from foreword.cli.bars import Bars
from foreword.confidence import rate_interval
from foreword.engine.host import Host
from foreword.errors import ForewordError
from foreword.record import Stopwatch, command_line
from foreword.tuning.candidate_settings import (
    CandidateSettings,
    FullSettings,
    LoraSettings,
    PrefixSettings,
    ZeroShotSettings,
)
from foreword.tuning.candidates import Workbench, candidate_for
from foreword.tuning.examples import load_splits
from foreword.tuning.fittable import FitWatch, StepTaken
from foreword.tuning.task import Task

HERE = Path(__file__).resolve().parent
README, RESULTS = HERE / "README.md", HERE / "results"
BEGIN, END = "<!-- table.py writes from here -->", "<!-- to here -->"

# Steps of prefixes, steps of LoRA and LoRA's rate, by how a case's name begins: the first that fits. A histogram takes
# LoRA a lower rate and more steps (benchmarks/LOG.md); the prefixes that fail at it get as many.
BUDGETS = {
    "elicit": (500, 500, 2e-2),
    "teach-descending": (3000, 3000, 2e-2),
    "teach": (8000, 8000, 1e-2),
    "compose": (3000, 3000, 2e-2),
}
# A prefix can do a case when at least this share of the test sequences is right: with 1,000 of them its interval is
# well clear of what chance and partial answers give, and of the shares that the paper calls failure.
CAN = 0.5


def ways(case: Case) -> dict[str, CandidateSettings]:
    """What is tried on a case, by name.

    In each layer rank 1 on all linear layers has as many numbers as 10 positions of a prefix, and on the MLP alone as
    many as 6; the paper's own prefixes have 1, 10 and 12.
    """
    prefix_steps, lora_steps, rate = next(found for name, found in BUDGETS.items() if case.name.startswith(name))
    looks = {"batch_size": 32, "evaluate_every": 250, "patience": 1000}
    budget = {"schedule": "cosine", **looks}
    found: dict[str, CandidateSettings] = {"bare model": ZeroShotSettings()}
    for positions in (1, 10, 64):
        found[f"prefix of {positions}"] = PrefixSettings.model_validate(
            {"positions": positions, "steps": prefix_steps, **looks}
        )
    rank_one = {"rank": 1, "learning_rate": rate, "steps": lora_steps, **budget}
    found["LoRA, all linear"] = LoraSettings.model_validate({"targets": "all-linear", **rank_one})
    if not case.name.startswith("elicit"):
        found["LoRA, MLP"] = LoraSettings.model_validate({"targets": "mlp", **rank_one})
        found["all weights"] = FullSettings.model_validate({"learning_rate": 1e-3, "steps": 1500, **budget})
    return found


@dataclass(frozen=True)
class Judged:
    """How many of `trials` test sequences a way answered exactly, and what it was.

    `trainable` are the numbers that were fitted, `selection` the share of right answers on the selection split at the
    best step.
    """

    right: int
    trials: int
    selection: float
    trainable: int
    best_step: int | None
    settings: dict[str, Any]

    @property
    def text(self) -> str:
        """Percent, with the exact 95% interval."""
        found = rate_interval(self.right, self.trials)
        return f"{100 * self.right / self.trials:.1f} ({100 * found.low:.1f}–{100 * found.high:.1f})"


def judge(
    bench: Workbench,
    settings: CandidateSettings,
    *,
    seed: int,
    checkpoint: Path | None = None,
    watch: FitWatch | None = None,
) -> Judged:
    """Fit one way on the fit split and let it answer the test split."""
    fitted = candidate_for(settings).fit(bench, seed=seed, checkpoint=checkpoint, watch=watch)
    try:
        outputs = [answer.output for answer in fitted.predictor.answer([x.input for x in bench.splits.test])]
    finally:
        fitted.predictor.adaptation.close()
    return Judged(
        right=sum(output == x.target for output, x in zip(outputs, bench.splits.test, strict=True)),
        trials=len(outputs),
        selection=fitted.selection,
        trainable=fitted.trainable,
        best_step=fitted.details.get("best_step"),
        settings=settings.model_dump(mode="json"),
    )


def run_case(case: Case, models: Path, work: Path, *, seed: int, bars: Bars) -> None:
    """Judge all ways of a case that were not judged yet; what is found is kept in `work` after each of them."""
    task = Task.load(write_case(case, models, work / "cases", seed=seed))
    splits, place = load_splits(task), work / "results" / f"{case.name}.json"
    identity = {"base": Host.load(task.reference).fingerprint, "data": splits.hash, "seed": seed}
    told = read(place) or read(RESULTS / place.name)
    known = told["ways"] if told is not None and told["identity"] == identity else {}
    for way, settings in ways(case).items():
        if way in known and known[way]["settings"] == settings.model_dump(mode="json"):
            continue
        stopwatch = Stopwatch(command_line(), seeds=(seed,))
        checkpoint = work / "checkpoints" / f"{case.name}, {way}.pt"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        judged = judge(
            Workbench(Host.load(task.reference), task, splits),
            settings,
            seed=seed,
            checkpoint=checkpoint,
            watch=_Shown(bars, f"{case.name}: {way}"),
        )
        record = stopwatch.record({"case": case.name, "way": way}).as_dict()
        known = {**known, way: {**asdict(judged), "record": record}}
        place.parent.mkdir(parents=True, exist_ok=True)
        written = json.dumps({"identity": identity, "ways": known}, indent=1)
        write_bytes_atomically(place, (written + "\n").encode())
        checkpoint.unlink(missing_ok=True)
        bars.say(f"{case.name}: {way}: {judged.text}")


def read(place: Path) -> dict[str, Any] | None:
    """What was found for a case; None when it was not run yet."""
    return json.loads(place.read_text(encoding="utf-8")) if place.exists() else None


def judged_ways(case: Case) -> dict[str, Judged]:
    """The figures of a case, by way; empty when it was not run yet."""
    told: Mapping[str, Any] = read(RESULTS / f"{case.name}.json") or {"ways": {}}
    return {
        way: Judged(**{name: value for name, value in found.items() if name != "record"})
        for way, found in told["ways"].items()
    }


def table() -> str:
    """All cases as a Markdown table: percent of the test sequences right, with exact 95% intervals."""
    columns = list(ways(CASES[-1]))
    lines = [
        f"| model knows | wanted | {' | '.join(columns)} | can a prefix? | paper |",
        "|---|---|" + "---|" * (len(columns) + 2),
    ]
    for case in CASES:
        found = judged_ways(case)
        cells = [found[way].text if way in found else "" for way in columns]
        lines.append(f"| {case.base} | {case.skill} | {' | '.join(cells)} | {verdict(found)} | {case.paper} |")
    return "\n".join(lines)


def verdict(found: Mapping[str, Judged]) -> str:
    """ "yes" when the best prefix by the selection split is right on at least half of the test sequences."""
    prefixes = [judged for way, judged in found.items() if way.startswith("prefix")]
    if not prefixes:
        return "not run"
    best = max(prefixes, key=lambda judged: judged.selection)
    return "yes" if best.right >= CAN * best.trials else "no"


def publish(work: Path) -> None:
    """Copy what was found into `results`, all at once: until then the checkout stays as the records say it is."""
    RESULTS.mkdir(exist_ok=True)
    for place in sorted((work / "results").glob("*.json")):
        write_bytes_atomically(RESULTS / place.name, place.read_bytes())


def write_readme() -> None:
    """Put the table between its two marks in README.md."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    write_bytes_atomically(README, f"{before}{BEGIN}\n{table()}\n{END}{after}".encode())


class _Shown(FitWatch):
    def __init__(self, bars: Bars, name: str) -> None:
        self.bars, self.name = bars, name

    def stepped(self, taken: StepTaken) -> None:
        self.bars.watch(self.name, taken.step, taken.of, f"loss {taken.loss:.3f}, best {taken.best:.1%}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge what is missing, write the table and print it; exit code 2 says what is in the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="folder of the model folders; trained when missing")
    parser.add_argument("--work", type=Path, default=Path("runs/laboratory"), help="folder for data and checkpoints")
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="only these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", action="store_true", help="run nothing: write and print the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads would wait for each other over matrices this small
    try:
        if not options.show:
            with Bars(quiet=False) as bars:
                for case in CASES:
                    if options.cases is None or case.name in options.cases:
                        models = options.models or options.work / "models"
                        run_case(case, models, options.work, seed=options.seed, bars=bars)
            publish(options.work)
        write_readme()
    except (ForewordError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
