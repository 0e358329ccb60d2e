"""How many steps does a prefix need, and how good does it get? Ours, PEFT's PrefixTuning and LoRA on the same batches.

    make bench-fit            # or: .venv/bin/python benchmarks/tuning/peft_prefix/run.py --tasks modules --seeds 0 1 2

Same frozen encoder, same length, same examples in the same order. PEFT's rate, reparametrisation and head are chosen on
the selection split out of a grid around its documented setting; ours runs with its defaults, from zero
values and from the closed form. Each run is a line of results/runs.jsonl; what is there is not run again. `summary.py`
makes the table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from peft_rival import DOCUMENTED_HERE, GRID, SOLVED_HERE, PeftSettings, run_peft
from runs import METHODS, WARM_UP, Bench, Fixed, Ledger, Run

from foreword.engine.host import Host
from foreword.tuning.candidates import Workbench
from foreword.tuning.candidates.contract import unset_readout
from foreword.tuning.examples import load_splits
from foreword.tuning.objectives.contract import targets_of
from foreword.tuning.predictor import Predictor
from foreword.tuning.task import Task

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from text_tasks import BASE, TASKS, task_named  # noqa: E402  it lies one folder up


class TextBench(Bench):
    """One task on the encoder: the rows and targets of its three splits; by default of classification."""

    grid, documented = GRID, {**DOCUMENTED_HERE, **SOLVED_HERE}
    fixed = Fixed(positions=16, batch=16, every=4)

    def __init__(self, name: str, host: Host, task: Task) -> None:
        super().__init__(name, host, task, load_splits(task))
        bench = Workbench(host, self.task, self.splits)
        self.predictor = Predictor(host, bench.manner(), readout=unset_readout("linear", bench))
        parts = (self.splits.fit, self.splits.selection, self.splits.test)
        self.rows = [self.predictor.rows([example.input for example in part]) for part in parts]
        self.targets = [targets_of(self.predictor, part) for part in parts]

    def peft(
        self,
        settings: PeftSettings,
        *,
        steps: int,
        seed: int,
        warm_up: float = WARM_UP,
        looks_at_unseen: bool = True,
    ) -> Run:
        return run_peft(
            self.host,
            self.rows,
            self.targets,
            settings,
            fixed=self.fixed,
            steps=steps,
            seed=seed,
            warm_up=warm_up,
            looks_at_unseen=looks_at_unseen,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=200)
    methods = (*METHODS, *DOCUMENTED_HERE, *SOLVED_HERE)
    parser.add_argument("--methods", nargs="+", default=list(methods), choices=methods)
    arguments = parser.parse_args()
    ledger = Ledger(HERE / "results" / "runs.jsonl", search_steps=120)
    host = Host.load(BASE, device="cpu")
    for name in arguments.tasks:
        with tempfile.TemporaryDirectory() as scratch:
            bench = TextBench(name, host, task_named(name, Path(scratch)))
            ledger.compare(bench, steps=arguments.steps, seeds=arguments.seeds, methods=arguments.methods)


if __name__ == "__main__":
    main()
