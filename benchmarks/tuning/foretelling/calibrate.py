"""Make the rule of foretelling from the calibration pairs, then judge it once on the validation pairs.

    python benchmarks/tuning/foretelling/truth.py --work runs/foretelling
    python benchmarks/tuning/foretelling/calibrate.py --work runs/foretelling             # the rule
    python benchmarks/tuning/foretelling/calibrate.py --work runs/foretelling --validate  # how often it is right

and the same with `--kind classify`, `--role encoder` and a work folder of its own. The first writes the rule into
`results/rule-KIND-ROLE.json` from the calibration pairs alone: features are chosen and weights fitted there, by the
log-loss on the pairs of a base that is left out. The second reads the rule as it is, probes the validation pairs, and
writes rule and counts into `src/foreword/tuning/calibration/foretelling-KIND-ROLE.json`. Probes stay in
`probes/NAME.json` below the work folder. For classification the rule of written answers is tried first, and kept with
few pairs. What a rule may be made from goes with the role of the models (`FORMS`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from labelled import BASES as LABELLED
from labelled import REQUIRED, bases_of, labelled_pairs
from pairs import BASES as WRITTEN
from pairs import ROOT, Pair, chance, pairs
from scipy.optimize import minimize
from seq2seq import BASES as SEQ2SEQ
from seq2seq import seq2seq_pairs

import foreword as fw
from foreword.bundle import write_bytes_atomically
from foreword.confidence import rate_interval
from foreword.errors import FitError
from foreword.record import Stopwatch, command_line
from foreword.tuning.candidates import Workbench
from foreword.tuning.examples import load_splits
from foreword.tuning.foretelling import SCHEMA, Score
from foreword.tuning.gradient_shape import GradientShape, SiteGradient
from foreword.tuning.probes import Probes, probe

ROLES = ("causal", "encoder", "encoder-decoder")
RULES = Path(__file__).parent / "results"
SHIPPED = ROOT / "src" / "foreword" / "tuning" / "calibration"
# What counts as a gain on the metric, and which part of LoRA's gain a prefix must reach to be said to do the task.
GAIN, SHARE = 0.2, 0.5


def base_names(kind: str, role: str, part: str | None = None) -> list[str]:
    """The bases of a role that pairs of a kind are on, or those of a part."""
    bases: Sequence[Any] = ()
    if role == "encoder-decoder":
        bases = [base for base in SEQ2SEQ if base.kind == kind]
    elif kind == "classify":
        bases = [base for base in LABELLED if base.name in bases_of(role)]
    elif role == "causal":
        bases = WRITTEN
    return [base.name for base in bases if part in (None, base.part)]


def pairs_of(
    work: Path, kind: str, role: str, part: str | None = None, bases: Sequence[str] | None = None
) -> tuple[list[Pair], dict[str, str]]:
    """The pairs of a kind of task on models of a role, or those of a part and of some bases.

    Also the bases whose training ended at chance, and how: they have no pairs.
    """
    found, refused = list[Pair](), dict[str, str]()
    for name in base_names(kind, role, part):
        if bases is not None and name not in bases:
            continue
        try:
            if role == "encoder-decoder":
                found += seq2seq_pairs(work, kind, part, [name])
            else:
                found += (labelled_pairs if kind == "classify" else pairs)(work, part, [name])
        except chance.ChanceError as error:
            refused[name] = f"at chance: a held-out loss of {error.found}, expected {error.expected}"
    return found, refused


@dataclass(frozen=True)
class Form:
    """What a rule is made from: the features that either score may use, and the pairs that the second is made from.

    `works` is of "does anything fitted gain?", `prefix` of "does a prefix do it?". `prefix_of`: "working" for the
    chance of a prefix given that anything gains, "all" for its chance on any pair. `enough`: with fewer calibration
    pairs no rule is made anew.
    """

    works: tuple[str, ...]
    prefix: tuple[str, ...]
    prefix_of: Literal["working", "all"]
    enough: int = 40


_LOSSES = ("prefix_gain", "lora_gain", "bare_below_constant", "prefix_below_constant", "lora_below_constant")
_CAUSAL = (*_LOSSES, "agreement", "constant_share", "per_example_share")
_ERRORS = ("prefix_errors_gone", "lora_errors_gone")
# All that tells of losses but the demonstrations', which small models were never trained to read. Of labels the metric
# comes with the probes, and tells more than the losses (benchmarks/LOG.md): a bare encoder-decoder gives the labels
# far less than their frequency, so that learning the frequencies alone lowers its loss by half. What a prefix's loss is
# below that of the frequencies is free of this.
FORMS: Mapping[tuple[str, str], Form] = {
    ("generate", "causal"): Form(_CAUSAL, _CAUSAL, "working"),
    ("classify", "causal"): Form(_CAUSAL, _CAUSAL, "working"),
    ("classify", "encoder"): Form(_ERRORS, _ERRORS, "all"),
    ("generate", "encoder-decoder"): Form(_LOSSES, _LOSSES, "all"),
    ("classify", "encoder-decoder"): Form(_ERRORS, ("prefix_errors_gone", "prefix_below_constant"), "all", 15),
}
# Squared weights count this much: with some twenty pairs an unrestrained fit separates them by chance.
PENALTY, MOST_FEATURES = 0.02, 2


def truth_of(found: Mapping[str, float], kind: str) -> str:
    """prefix, lora, or other base, from what full fits reached on the test split.

    Where answers are written a gain is of the metric, of which the bare model has next to none. A bare classifier has
    much, so that its gain is the share of its errors that are gone.
    """
    room = 1 - found["bare"] if kind == "classify" else 1.0
    prefix, lora = ((found[name] - found["bare"]) / room for name in ("prefix", "lora"))
    if max(prefix, lora) < GAIN:
        return "other base"
    return "prefix" if prefix >= SHARE * max(prefix, lora) else "lora"


@dataclass(frozen=True)
class Case:
    """A pair with what the fits reached, the truth that follows, and the probes."""

    pair: Pair
    reached: Mapping[str, Any]
    truth: str
    probes: Probes

    @property
    def base(self) -> str:
        """The name of the pair's base model."""
        return self.pair.name.partition("-")[0]


def cases_of(work: Path, kind: str, part: str, role: str) -> list[Case]:
    """The measured pairs of a part on such models, but for classifiers that are good enough bare."""
    found = []
    there, refused = pairs_of(work, kind, role, part)
    for name, why in refused.items():
        print(f"{name}: left out, {why}")
    for pair in there:
        place = work / "truth" / f"{pair.name}.json"
        if not place.exists():
            print(f"{pair.name}: left out, not measured")
            continue
        reached = json.loads(place.read_text())
        if kind == "classify" and reached["bare"] >= REQUIRED:
            print(f"{pair.name}: left out, nothing needed: {reached['bare']:.3f} bare")
            continue
        found.append(Case(pair, reached, truth_of(reached, kind), probed(pair, work)))
    return found


def verdict(scores: Sequence[Score], found: Probes) -> tuple[str, float, float]:
    """What a rule says, and its two chances."""
    works, prefix = (score.of(found.features) for score in scores)
    return "other base" if works < 0.5 else "prefix" if prefix >= 0.5 else "lora", works, prefix


def transferred(cases: Sequence[Case]) -> dict[str, int]:
    """How often the rule of written answers is right on these: on the verdict, and on whether a prefix can."""
    rule = json.loads((RULES / "rule-generate-causal.json").read_text())
    scores = [Score.parse(rule[name]) for name in ("works", "prefix")]
    told = [(case.truth, verdict(scores, case.probes)[0]) for case in cases]
    right, of_prefix = sum(a == b for a, b in told), sum((a == "prefix") == (b == "prefix") for a, b in told)
    return {"pairs": len(cases), "right": right, "prefix_right": of_prefix}


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


def check_enough(pairs: int, kind: str, role: str) -> None:
    """FitError when so few pairs are there that no rule can be made, and one that was made from pairs is kept.

    A rule that was taken over from written answers is not lost by taking it over again.
    """
    place, enough = RULES / f"rule-{kind}-{role}.json", FORMS[kind, role].enough
    if pairs >= enough or not place.exists():
        return
    made = json.loads(place.read_text())["calibration"]
    if made.get("from") == "generate":
        return
    raise FitError(
        f"{place.name} is not overwritten: too few calibration pairs are there to make that rule from.",
        expected=f"at least {enough} measured pairs (the rule that is kept was made from {made['works']['pairs']})",
        found=f"{pairs}",
        fix=f"Measure the others (truth.py --kind {kind} --role {role} --part calibration), or move {place} away if "
        "the rule of written answers is to take its place.",
    )


def calibrate(work: Path, kind: str, role: str) -> None:
    """Write the rule from the calibration pairs; with too few of them the rule of written answers stays as it is.

    FitError when there are too few and the role has a rule that was made from pairs, which would be lost.
    """
    cases = cases_of(work, kind, "calibration", role)
    check_enough(len(cases), kind, role)
    for case in cases:
        row = " ".join(f"{name} {value:6.2f}" for name, value in case.probes.features.items())
        print(f"{case.pair.name:<24} {case.truth:<11}", row)
    told: dict[str, Any] = {"schema": SCHEMA}
    if len(cases) < FORMS[kind, role].enough:
        known = json.loads((RULES / "rule-generate-causal.json").read_text())
        told |= {name: known[name] for name in ("works", "prefix", "prefix_of")}
        told["calibration"] = {"from": "generate", "rule_of_generate": transferred(cases)}
    else:
        told["calibration"] = {} if kind == "generate" else {"rule_of_generate": transferred(cases)}
        form = FORMS[kind, role]
        told["prefix_of"] = form.prefix_of
        working = [case for case in cases if case.truth != "other base"]
        parts = (
            ("works", form.works, cases),
            ("prefix", form.prefix, working if form.prefix_of == "working" else cases),
        )
        for name, features, used in parts:
            answers = [case.truth != "other base" if name == "works" else case.truth == "prefix" for case in used]
            rows, bases = [case.probes.features for case in used], [case.base for case in used]
            score, told["calibration"][name] = chosen(rows, answers, features, bases)
            told[name] = asdict(score)
    RULES.mkdir(exist_ok=True)
    write_bytes_atomically(RULES / f"rule-{kind}-{role}.json", json.dumps(told, indent=1).encode())
    print(json.dumps(told["calibration"]))


def validate(work: Path, kind: str, role: str) -> None:
    """Judge the rule as it stands on the validation pairs, and write it with the counts where the package reads it."""
    stopwatch, rule = Stopwatch(command_line()), json.loads((RULES / f"rule-{kind}-{role}.json").read_text())
    scores = [Score.parse(rule[name]) for name in ("works", "prefix")]
    cases, told = cases_of(work, kind, "validation", role), []
    for case in cases:
        said, works, prefix = verdict(scores, case.probes)
        told.append(
            {
                "pair": case.pair.name,
                "truth": case.truth,
                "said": said,
                "chances": {"works": works, "prefix": prefix},
                "reached": {name: case.reached[name] for name in ("bare", "prefix", "lora")},
                "probe_seconds": case.probes.seconds,
                "fit_seconds": case.reached["seconds"],
            }
        )
        print(told[-1])
    right = sum(case["truth"] == case["said"] for case in told)
    prefix_right = sum((case["truth"] == "prefix") == (case["said"] == "prefix") for case in told)
    interval, of_prefix = (rate_interval(count, len(told)) for count in (right, prefix_right))
    seen = {
        "pairs": len(told),
        "right": right,
        "interval": [interval.low, interval.high],
        "prefix_right": prefix_right,
        "prefix_interval": [of_prefix.low, of_prefix.high],
        "gain": GAIN,
        "share": SHARE,
    }
    whole = {
        **rule,
        "validation": seen,
        "domain": {"roles": [role], "kinds": [kind]},
        "record": stopwatch.record({"cases": told}).as_dict(),
    }
    write_bytes_atomically(SHIPPED / f"foretelling-{kind}-{role}.json", json.dumps(whole, indent=1).encode())
    print(json.dumps(whole["validation"]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the rule, or judge it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--kind", choices=("classify", "generate"), default="generate")
    parser.add_argument("--role", choices=ROLES, default="causal", help="of the models whose pairs count")
    parser.add_argument("--validate", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    (validate if options.validate else calibrate)(options.work, options.kind, options.role)


if __name__ == "__main__":
    main()
