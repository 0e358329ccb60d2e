"""The same question for a small causal model of real text: by the likelihood of labels, and where it writes.

    .venv/bin/python benchmarks/tuning/peft_prefix/texts.py                  # trains the model first, in minutes

`kinds` of `text_tasks.py`, `raises` and `closings` of `code_tasks.py`, on the model of `small_causal.py`. PEFT's kind
and rate are chosen on the selection split, and it runs at its documented settings as well; ours runs with its defaults.
Lines go to results/texts.jsonl; `summary.py --file texts` makes the table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from causal_bench import CausalBench
from runs import DOCUMENTED, STARTS, Fixed, Ledger

from foreword.engine.host import Host
from foreword.tuning.examples import load_splits
from foreword.tuning.task import Task

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
import code_tasks  # noqa: E402  it lies one folder up
import text_tasks  # noqa: E402
from small_causal import MODEL, trained  # noqa: E402

TASKS = ("kinds", *code_tasks.TASKS)
FIXED = Fixed(positions=16, batch=16, every=4)


def task_of(name: str, folder: Path, *, base: str = str(MODEL)) -> Task:
    """The task, with its data written into `folder`."""
    if name in code_tasks.TASKS:
        return code_tasks.code_task(name, folder, base=base)
    return text_tasks.task_named(name, folder, base=base)


def bench_of(name: str, host: Host, folder: Path) -> CausalBench:
    """One task on the small causal model."""
    task = task_of(name, folder)
    return CausalBench(name, host, task, load_splits(task), FIXED)


def main() -> None:
    every = ("prefix", "peft", *DOCUMENTED, "lora")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--methods", nargs="+", default=list(every), choices=dict.fromkeys((*every, *STARTS)))
    arguments = parser.parse_args()
    ledger = Ledger(HERE / "results" / "texts.jsonl", search_steps=50)
    host = trained()
    for name in arguments.tasks:
        with tempfile.TemporaryDirectory() as scratch:
            bench = bench_of(name, host, Path(scratch))
            ledger.compare(bench, steps=arguments.steps, seeds=arguments.seeds, methods=arguments.methods)


if __name__ == "__main__":
    main()
