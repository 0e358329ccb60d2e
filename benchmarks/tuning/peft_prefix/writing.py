"""The same question for a causal model that writes: ours, PEFT's PrefixTuning and Cartridge, on the laboratory.

    .venv/bin/python benchmarks/tuning/peft_prefix/writing.py --models runs/laboratory/models

256 sequences to fit, 128 to select by, 256 unseen; exact matches. PEFT's kind and rate are chosen on the selection
split; ours runs with its defaults. Lines go to results/written.jsonl, or the file that `--results` names; `summary.py
--file written` makes the table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from causal_bench import CausalBench
from runs import DOCUMENTED, METHODS, Fixed, Ledger

from foreword.engine.host import Host
from foreword.tuning.examples import load_splits
from foreword.tuning.task import Task

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "examples" / "laboratory"))
from cases import CASES, Case, write_case  # noqa: E402  it lies beside the package, not in it

ELICITED = tuple(case for case in CASES if case.prefix_can)
LIMIT = 256


def bench_of(case: Case, models: Path, folder: Path) -> CausalBench:
    """One case on its base model."""
    task = Task.load(write_case(case, models, folder))
    host, splits = Host.load(task.reference, device="cpu"), load_splits(task, limit=LIMIT)
    return CausalBench(case.name, host, task, splits, Fixed(positions=8, batch=32, every=4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("runs/laboratory/models"))
    parser.add_argument("--cases", nargs="+", default=[case.name for case in ELICITED])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--methods", nargs="+", default=[*METHODS, *DOCUMENTED], choices=(*METHODS, *DOCUMENTED))
    parser.add_argument("--results", default="written", help="name of the file of lines; one base, one file")
    arguments = parser.parse_args()
    ledger = Ledger(HERE / "results" / f"{arguments.results}.jsonl", search_steps=160)
    for case in (case for case in ELICITED if case.name in arguments.cases):
        with tempfile.TemporaryDirectory() as scratch:
            bench = bench_of(case, arguments.models, Path(scratch))
            ledger.compare(bench, steps=arguments.steps, seeds=arguments.seeds, methods=arguments.methods)


if __name__ == "__main__":
    main()
