"""The same question where a fit compares texts: an encoder that answers by the label whose text is nearest.

    .venv/bin/python benchmarks/tuning/peft_prefix/similar.py --tasks countries --seeds 0 1 2

`countries`, `tongues` and `errors` of `similarity_tasks.py`, on MiniLM. Inputs and labels' texts are read by the same
adapted model, ours and PEFT's alike, with the same loss. Lines go to results/similar.jsonl; `summary.py --file similar`
makes the table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

from peft_similar import DOCUMENTED_HERE, GRID, SimilarSettings, run_similar
from run import TextBench
from runs import METHODS, WARM_UP, Ledger, Run

from foreword.engine.host import Host
from foreword.engine.rendering import Template
from foreword.tuning.candidates import Workbench
from foreword.tuning.predictor import Predictor
from foreword.tuning.task import Task

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from similarity_tasks import TASKS, similarity_task  # noqa: E402  it lies one folder up
from text_tasks import BASE  # noqa: E402


class SimilarBench(TextBench):
    """One task of similarity: the rows and targets of its three splits, and the labels' texts."""

    grid, documented = GRID, DOCUMENTED_HERE
    options: ClassVar[dict[str, str]] = {"objective": "similarity"}

    def __init__(self, name: str, host: Host, task: Task) -> None:
        super().__init__(name, host, task)
        manner = Workbench(host, self.task, self.splits).manner(Template("", ""))
        plain = Predictor(host, manner, readout=self.predictor.readout)
        self.texts = plain.rows([task.description(label) for label in self.splits.labels])

    def peft(
        self,
        settings: SimilarSettings,
        *,
        steps: int,
        seed: int,
        warm_up: float = WARM_UP,
        looks_at_unseen: bool = True,
    ) -> Run:
        return run_similar(
            self.host,
            self.rows,
            self.targets,
            self.texts,
            settings,
            fixed=self.fixed,
            steps=steps,
            seed=seed,
            warm_up=warm_up,
            looks_at_unseen=looks_at_unseen,
        )


def main() -> None:
    every = (*METHODS, *DOCUMENTED_HERE)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--methods", nargs="+", default=["prefix", "peft", *DOCUMENTED_HERE, "lora"], choices=every)
    arguments = parser.parse_args()
    ledger = Ledger(HERE / "results" / "similar.jsonl", search_steps=60)
    host = Host.load(BASE, device="cpu")
    for name in arguments.tasks:
        with tempfile.TemporaryDirectory() as scratch:
            bench = SimilarBench(name, host, similarity_task(name, Path(scratch)))
            ledger.compare(bench, steps=arguments.steps, seeds=arguments.seeds, methods=arguments.methods)


if __name__ == "__main__":
    main()
