"""The eight cases with a known answer: a base model, a skill it is to show, and whether a prefix can bring it to that.

    python examples/laboratory/cases.py --models runs/laboratory/models --out runs/laboratory/cases

Each case becomes a folder with `data.jsonl` and `task.toml` for `foreword fit` and `foreword pilot`. The data is drawn
anew by seed, from the quarter of all sequences that no training of a base model saw; no sequence occurs twice.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from skills import SKILLS, written
from train import PLANS, QUICK_PLANS, build

from foreword.bundle import write_bytes_atomically
from foreword.errors import ForewordError


@dataclass(frozen=True)
class Case:
    """`prefix_can`: the known answer. `paper`: the share of right sequences that it rests on, where there is one.

    "When Do Prompting and Prefix-Tuning Work?" (Petrov, Torr, Bibi, ICLR 2024, arXiv 2310.19698).
    """

    name: str
    base: str
    skill: str
    prefix_can: bool
    paper: str


CASES = (
    Case("elicit-ascending", "skills", "ascending", True, "prefix 94.1%"),
    Case("elicit-descending", "skills", "descending", True, "prefix 83.7%"),
    Case("elicit-add-one", "skills", "add one", True, "elicited"),
    Case("elicit-histogram", "skills", "histogram", True, "not tried"),
    Case("teach-descending", "ascending", "descending", False, "prefix 0.0%, fine-tuned 84.9%"),
    Case("teach-histogram", "paper", "histogram", False, "prefix 0.3 to 0.6%, rank-1 LoRA 92.4%"),
    Case("teach-double-histogram", "skills", "double histogram", False, "not tried"),
    Case("compose-ascending-add-one", "paper", "ascending, add one", True, "prefix 71.6% from 0%"),
)


@dataclass(frozen=True)
class Amounts:
    """How many sequences each split has."""

    fit: int
    selection: int
    test: int


FULL, QUICK = Amounts(8000, 128, 1000), Amounts(600, 64, 200)


def write_case(case: Case, models: Path, out: Path, *, seed: int = 0, quick: bool = False) -> Path:
    """Write the data and the task file of a case into `out/NAME`, train its base model if need be; the task file."""
    base = build(models, case.base, quick=quick).resolve()
    amounts, plan = (QUICK, QUICK_PLANS[case.base]) if quick else (FULL, PLANS[case.base])
    wanted = amounts.fit + amounts.selection + amounts.test
    rng = np.random.default_rng((seed, CASES.index(case)))
    rows = np.empty((0, plan.sequences.length), dtype=np.int64)
    while len(rows) < wanted:
        drawn = np.concatenate([rows, plan.sequences.draw(rng, wanted, unseen=True)])
        first = np.sort(np.unique(drawn, axis=0, return_index=True)[1])
        rows = drawn[first][:wanted]
    lines = [
        json.dumps({"sequence": written(row), "answer": written(answer)}) + "\n"
        for row, answer in zip(rows, SKILLS[case.skill](rows), strict=True)
    ]
    folder = out / case.name
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(folder / "data.jsonl", "".join(lines).encode())
    task = folder / "task.toml"
    write_bytes_atomically(task, _task(case, base, amounts, plan.sequences.length).encode())
    return task


def _task(case: Case, base: Path, amounts: Amounts, length: int) -> str:
    return f"""\
# Written by examples/laboratory/cases.py. The base model: {", ".join(PLANS[case.base].skills)}.
[task]
name = {json.dumps(case.name)}
kind = "generate"
requirement = "exact-match at least 0.70 with 95% confidence"

[data]
file = "data.jsonl"
input = "sequence"
target = "answer"

[model]
reference = {json.dumps(str(base))}
template = "{{input}}"
max_tokens = {length + 1}
device = "cpu"

[splits]
fit = {amounts.fit}
selection = {amounts.selection}
test = {amounts.test}

[limits]
fit_seconds = 3600.0

[[candidates]]
kind = "zero-shot"

[[candidates]]
kind = "prefix"
positions = 6
steps = 600
batch_size = 32
evaluate_every = 50
patience = 12

# Rank 1 on the layers behind the attention: as many numbers as a prefix of 6 positions.
[[candidates]]
kind = "lora"
rank = 1
targets = "mlp"
learning_rate = 0.02
steps = 2000
batch_size = 32
evaluate_every = 100
patience = 12
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write all cases and print their task files; exit code 2 says what is in the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of the model folders; trained when missing")
    parser.add_argument("--out", type=Path, required=True, help="folder for the cases")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        for case in CASES:
            print(write_case(case, options.models, options.out, seed=options.seed))
    except (ForewordError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
