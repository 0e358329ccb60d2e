"""What prefix and LoRA really reach on every pair, fitted fully: the truth that foretelling is held against.

    python benchmarks/tuning/foretelling/truth.py --work runs/foretelling
    python benchmarks/tuning/foretelling/truth.py --work runs/foretelling-labels --kind classify

Each pair's figures stay in `truth/NAME.json` below the work folder, so that an interrupted run goes on. Bases whose
training ends at chance are passed over; a table at the end says what was left out and why.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from calibrate import ROLES, base_names, pairs_of, probed
from pairs import Pair

import foreword as fw
from foreword.bundle import write_bytes_atomically
from foreword.tuning.candidate_settings import LoraSettings, PrefixSettings
from foreword.tuning.candidates import Fitted, Workbench
from foreword.tuning.candidates.contract import Candidate
from foreword.tuning.candidates.lora import Lora
from foreword.tuning.candidates.prefix import Prefix
from foreword.tuning.examples import load_splits
from foreword.tuning.predictor import Predictor


def adapted(method: str, bench: Workbench, pair: Pair) -> Fitted:
    """A full fit: a prefix of 8 positions with its defaults, or LoRA on every linear layer."""
    candidate: Candidate[Any]
    if method == "prefix":
        candidate = Prefix(PrefixSettings(positions=8, **pair.budget))
    else:
        candidate = Lora(LoraSettings(**pair.lora, **pair.budget))
    return candidate.fit(bench, seed=0)


def measured(pair: Pair) -> dict[str, Any]:
    """The metric on the test split of the bare model, and of each method after a full fit.

    Nothing is fitted where a bare classifier meets the requirement.
    """
    task = fw.Task.load(pair.task)
    host = fw.Host.load(task.reference, device="cpu")
    splits = load_splits(task)
    bench = Workbench(host, task, splits)
    inputs, targets = [x.input for x in splits.test], [x.target for x in splits.test]

    def value(predictor: Predictor) -> float:
        return bench.score(targets, [answer.output for answer in predictor.answer(inputs)])

    bare = Predictor(host, bench.manner(), readout=bench.readout(bench.default_readout))
    found: dict[str, Any] = {"part": pair.part, "bare": value(bare), "seconds": {}, "processor_seconds": {}}
    if task.kind == "classify" and found["bare"] >= task.requirement.at_least:
        return found  # nothing is needed
    for name in ("prefix", "lora"):
        began, busy = time.perf_counter(), time.process_time()
        made = adapted(name, bench, pair)
        found["seconds"][name] = time.perf_counter() - began
        found["processor_seconds"][name] = time.process_time() - busy
        found[name] = value(made.predictor)
        found.setdefault("history", {})[name] = [(moment.step, moment.selection) for moment in made.history]
        made.predictor.adaptation.close()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every pair that is not measured yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kind", choices=("classify", "generate"), default="generate")
    parser.add_argument("--role", choices=ROLES, default="causal", help="of the models whose pairs are measured")
    parser.add_argument("--bases", nargs="+", help="only pairs of these bases, so that processes can share the work")
    parser.add_argument("--pairs", nargs="+", help="only pairs of these names")
    parser.add_argument("--probes", action="store_true", help="take the probes of each pair as well")
    parser.add_argument("--part", choices=("calibration", "validation"), help="left out: both, one after the other")
    options = parser.parse_args(arguments)
    known = base_names(options.kind, options.role, options.part)
    if unknown := sorted(set(options.bases or ()) - set(known)):
        parser.error(f"--bases: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    torch.set_num_threads(1)
    pairs, left_out = pairs_of(options.work, options.kind, options.role, options.part, options.bases)
    for pair in pairs:
        if options.pairs is not None and pair.name not in options.pairs:
            continue
        place = options.work / "truth" / f"{pair.name}.json"
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            found = measured(pair)
            write_bytes_atomically(place, json.dumps(found, indent=1).encode())
            print(pair.name, {name: found.get(name) for name in ("bare", "prefix", "lora")}, flush=True)
        reached = json.loads(place.read_text())
        if "lora" not in reached:
            left_out[pair.name] = f"nothing needed: {reached['bare']:.3f} bare"
        elif options.probes:
            probed(pair, options.work)
    if left_out:
        print("\n| left out | why |\n|---|---|")
        for name, why in left_out.items():
            print(f"| {name} | {why} |")


if __name__ == "__main__":
    main()
