"""Make the rule of foretelling from the calibration pairs, then judge it once on the validation pairs.

    python benchmarks/tuning/foretelling/truth.py --work runs/foretelling
    python benchmarks/tuning/foretelling/calibrate.py --work runs/foretelling             # the rule
    python benchmarks/tuning/foretelling/calibrate.py --work runs/foretelling --validate  # how often it is right

The first writes the rule into `results/rule.json` from the calibration pairs alone: features are chosen and weights
fitted there, by the log-loss on the pairs of a base that is left out. The second reads the rule as it is, probes the
validation pairs, and writes rule and counts into `src/foreword/tuning/calibration/foretelling.json`. Probes stay in
`probes/NAME.json` below the work folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pairs import ROOT, Pair, pairs
from scipy.optimize import minimize

import foreword as fw
from foreword.bundle import write_bytes_atomically
from foreword.confidence import rate_interval
from foreword.record import Stopwatch, command_line
from foreword.tuning.candidates import Workbench
from foreword.tuning.examples import load_splits
from foreword.tuning.foretelling import SCHEMA, Score
from foreword.tuning.gradient_shape import GradientShape, SiteGradient
from foreword.tuning.probes import Probes, probe

RULE = Path(__file__).parent / "results" / "rule.json"
SHIPPED = ROOT / "src" / "foreword" / "tuning" / "calibration" / "foretelling.json"
# What counts as a gain on the metric, and which part of LoRA's gain a prefix must reach to be said to do the task.
GAIN, SHARE = 0.2, 0.5
# Features that a rule may use: all but the demonstrations', which small models were never trained to read.
CANDIDATES = (
    "prefix_gain",
    "lora_gain",
    "bare_below_constant",
    "prefix_below_constant",
    "lora_below_constant",
    "agreement",
    "constant_share",
    "per_example_share",
)
# Squared weights count this much: with some twenty pairs an unrestrained fit separates them by chance.
PENALTY, MOST_FEATURES = 0.02, 2


def truth_of(found: Mapping[str, float]) -> str:
    """prefix, lora, or other base, from what full fits reached on the test split."""
    prefix, lora = found["prefix"] - found["bare"], found["lora"] - found["bare"]
    if max(prefix, lora) < GAIN:
        return "other base"
    return "prefix" if prefix >= SHARE * max(prefix, lora) else "lora"


def probed(pair: Pair, work: Path) -> Probes:
    """The probes of a pair; taken once."""
    place = work / "probes" / f"{pair.name}.json"
    if not place.exists():
        task = fw.Task.load(pair.task)
        bench = Workbench(fw.Host.load(task.reference, device="cpu"), task, load_splits(task))
        place.parent.mkdir(parents=True, exist_ok=True)
        write_bytes_atomically(place, json.dumps(probe(bench).as_dict(), indent=1).encode())
    told = json.loads(place.read_text())
    shape = GradientShape(tuple(SiteGradient(**site) for site in told["gradient"]["sites"]))
    return Probes(**{field.name: told[field.name] for field in fields(Probes)} | {"gradient": shape})


def fitted(rows: Sequence[Mapping[str, float]], answers: Sequence[bool], names: Sequence[str]) -> Score:
    """A logistic regression with penalised weights on standardised features."""
    table = np.array([[row[name] for name in names] for row in rows])
    means, scales = table.mean(axis=0), np.maximum(table.std(axis=0), 1e-6)
    table, signs = (table - means) / scales, np.where(answers, 1.0, -1.0)

    def loss(weights: np.ndarray) -> float:
        margins = signs * (weights[0] + table @ weights[1:])
        return float(np.logaddexp(0, -margins).mean() + PENALTY * (weights[1:] ** 2).mean())

    found = minimize(loss, np.zeros(1 + len(names)), method="BFGS").x
    return Score(tuple(names), tuple(means), tuple(scales), tuple(map(float, found[1:])), float(found[0]))


def left_out(
    rows: Sequence[Mapping[str, float]], answers: Sequence[bool], names: Sequence[str], bases: Sequence[str]
) -> tuple[float, int]:
    """Mean log-loss, and how many are right, of the pairs of each base by a rule fitted to those of the others."""
    total, right = 0.0, 0
    for base in sorted(set(bases)):
        others = [i for i in range(len(rows)) if bases[i] != base]
        rule = fitted([rows[i] for i in others], [answers[i] for i in others], names)
        for index in (i for i in range(len(rows)) if bases[i] == base):
            chance = rule.of(rows[index])
            total -= math.log(max(chance if answers[index] else 1 - chance, 1e-12))
            right += (chance >= 0.5) == answers[index]
    return total / len(rows), right


def chosen(
    rows: Sequence[Mapping[str, float]], answers: Sequence[bool], candidates: Sequence[str], bases: Sequence[str]
) -> tuple[Score, dict[str, Any]]:
    """The few features with the least log-loss on bases that were left out, and a rule on them from all pairs."""
    sets = [names for size in range(1, MOST_FEATURES + 1) for names in itertools.combinations(candidates, size)]
    found = sorted((*left_out(rows, answers, names, bases), names) for names in sets)
    for loss, right, names in found[:4]:
        print(f"left out: log-loss {loss:.3f}, right {right} of {len(rows)}: {', '.join(names)}")
    loss, right, names = found[0]
    told = {"pairs": len(rows), "right_left_out": right, "log_loss_left_out": loss}
    return fitted(rows, answers, names), told


def calibrate(work: Path) -> None:
    """Write the rule from the calibration pairs."""
    used = pairs(work, "calibration")
    rows, bases = [probed(pair, work).features for pair in used], [pair.name.partition("-")[0] for pair in used]
    truths = [truth_of(json.loads((work / "truth" / f"{pair.name}.json").read_text())) for pair in used]
    for pair, truth, row in zip(used, truths, rows, strict=True):
        print(f"{pair.name:<24} {truth:<11}", " ".join(f"{name} {value:6.2f}" for name, value in row.items()))
    works, about_works = chosen(rows, [truth != "other base" for truth in truths], CANDIDATES, bases)
    can = [index for index, truth in enumerate(truths) if truth != "other base"]
    prefix, about_prefix = chosen(
        [rows[i] for i in can], [truths[i] == "prefix" for i in can], CANDIDATES, [bases[i] for i in can]
    )
    told = {
        "schema": SCHEMA,
        "works": asdict(works),
        "prefix": asdict(prefix),
        "calibration": {"works": about_works, "prefix": about_prefix},
    }
    RULE.parent.mkdir(exist_ok=True)
    write_bytes_atomically(RULE, json.dumps(told, indent=1).encode())
    print(json.dumps(told["calibration"]), works.features, prefix.features)


def validate(work: Path) -> None:
    """Judge the rule as it stands on the validation pairs, and write it with the counts where the package reads it."""
    stopwatch, rule = Stopwatch(command_line()), json.loads(RULE.read_text())
    scores = [Score.parse(rule[name]) for name in ("works", "prefix")]
    cases = []
    for pair in pairs(work, "validation"):
        found = probed(pair, work)
        truth = truth_of(measured := json.loads((work / "truth" / f"{pair.name}.json").read_text()))
        works, prefix = (score.of(found.features) for score in scores)
        said = "other base" if works < 0.5 else "prefix" if prefix >= 0.5 else "lora"
        cases.append(
            {
                "pair": pair.name,
                "truth": truth,
                "said": said,
                "chances": {"works": works, "prefix": prefix},
                "reached": {name: measured[name] for name in ("bare", "prefix", "lora")},
                "probe_seconds": found.seconds,
                "fit_seconds": measured["seconds"],
            }
        )
        print(cases[-1])
    right = sum(case["truth"] == case["said"] for case in cases)
    prefix_right = sum((case["truth"] == "prefix") == (case["said"] == "prefix") for case in cases)
    interval, of_prefix = (rate_interval(count, len(cases)) for count in (right, prefix_right))
    told = {
        **rule,
        "validation": {
            "pairs": len(cases),
            "right": right,
            "interval": [interval.low, interval.high],
            "prefix_right": prefix_right,
            "prefix_interval": [of_prefix.low, of_prefix.high],
            "gain": GAIN,
            "share": SHARE,
        },
        "domain": {"roles": ["causal"], "kinds": ["generate"]},
        "record": stopwatch.record({"cases": cases}).as_dict(),
    }
    write_bytes_atomically(SHIPPED, json.dumps(told, indent=1).encode())
    print(json.dumps(told["validation"]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rule, or judge it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--validate", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    (validate if options.validate else calibrate)(options.work)


if __name__ == "__main__":
    main()
