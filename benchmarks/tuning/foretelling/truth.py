"""What prefix and LoRA really reach on every pair, fitted fully: the truth that foretelling is held against.

    python benchmarks/tuning/foretelling/truth.py --work runs/foretelling

Each pair's figures stay in `truth/NAME.json` below the work folder, so that an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pairs import Pair, pairs

import foreword as fw
from foreword.bundle import write_bytes_atomically
from foreword.tuning.candidate_settings import LoraSettings, PrefixSettings
from foreword.tuning.candidates import Fitted, Workbench
from foreword.tuning.candidates.contract import Candidate
from foreword.tuning.candidates.lora import Lora
from foreword.tuning.candidates.prefix import Prefix
from foreword.tuning.examples import load_splits
from foreword.tuning.predictor import Predictor

BUDGET: dict[str, Any] = {"steps": 1500, "batch_size": 16, "evaluate_every": 50, "patience": 10}


def adapted(method: str, bench: Workbench) -> Fitted:
    """A full fit: a prefix of 8 positions with its defaults, or LoRA of rank 2 on every linear layer."""
    candidate: Candidate[Any]
    if method == "prefix":
        candidate = Prefix(PrefixSettings(positions=8, **BUDGET))
    else:
        candidate = Lora(LoraSettings(rank=2, targets="all-linear", learning_rate=1e-2, schedule="cosine", **BUDGET))
    return candidate.fit(bench, seed=0)


def measured(pair: Pair) -> dict[str, Any]:
    """The metric on the test split of the bare model, and of each method after a full fit."""
    task = fw.Task.load(pair.task)
    host = fw.Host.load(task.reference, device="cpu")
    splits = load_splits(task)
    bench = Workbench(host, task, splits)
    inputs, targets = [x.input for x in splits.test], [x.target for x in splits.test]

    def value(predictor: Predictor) -> float:
        return bench.score(targets, [answer.output for answer in predictor.answer(inputs)])

    found: dict[str, Any] = {"part": pair.part, "bare": value(Predictor(host, bench.manner())), "seconds": {}}
    for name in ("prefix", "lora"):
        began = time.perf_counter()
        made = adapted(name, bench)
        found["seconds"][name] = time.perf_counter() - began
        found[name] = value(made.predictor)
        made.predictor.adaptation.close()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every pair that is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--part", choices=("calibration", "validation"), help="left out: both, one after the other")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for pair in pairs(options.work, options.part):
        place = options.work / "truth" / f"{pair.name}.json"
        if place.exists():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        found = measured(pair)
        write_bytes_atomically(place, json.dumps(found, indent=1).encode())
        print(pair.name, {name: found[name] for name in ("bare", "prefix", "lora")}, flush=True)


if __name__ == "__main__":
    main()
