"""Can a short prefix stand for a document? By the likelihood of its facts, or by what the model says with it there.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/tuning/distillation/run.py

The model of `recaller.py`, documents of 8 facts (16 tokens), prefixes of 1 to 8 positions from zero values. Three
objectives, same steps, batch and rate: likelihood of every fact's value; distillation over the same answers with the
document in the teacher's context; distillation from self-study, which is told no answers. Each run is a line of
results/runs.jsonl: accuracy over all facts, and the mean divergence from the teacher over the 8 questions.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
from recaller import document, told, trained

from foreword.engine.bake import bake
from foreword.engine.generation import completion_logits
from foreword.engine.host import Host
from foreword.engine.rendering import Template
from foreword.record import Stopwatch, command_line
from foreword.tuning.adaptation import Adaptation, Bare, FittedPrefix, FixedPrefix
from foreword.tuning.candidate_settings import PrefixSettings
from foreword.tuning.examples import Example
from foreword.tuning.loop import fit
from foreword.tuning.loop_settings import FitSettings
from foreword.tuning.objective import objective_for
from foreword.tuning.objectives.distillation import divergence
from foreword.tuning.predictor import Manner, Predictor
from foreword.tuning.scoring import value

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "runs.jsonl"
MODEL = HERE.parents[2] / "runs" / "distillation" / "model"
LENGTHS = (1, 2, 4, 8)
MANNER = Manner("generate", Template("", ""), max_new_tokens=1)


def measured(host: Host, adaptation: Adaptation, facts: list[tuple[str, str]]) -> dict[str, float]:
    """Accuracy over all facts of a document, and the divergence of the answers from the teacher's."""
    predictor = Predictor(host, MANNER, adaptation)
    outputs = [answer.output for answer in predictor.answer([key for key, _ in facts])]
    rows, answers = predictor.rows([key for key, _ in facts]), [predictor.completion(found) for _, found in facts]
    with torch.no_grad():
        with FixedPrefix(host, bake(host, told(facts))).active():
            wanted = torch.log_softmax(completion_logits(host, rows, answers).float(), dim=-1)
        with adaptation.active():
            apart = float(divergence(wanted, completion_logits(host, rows, answers)))
    return {"accuracy": value("exact-match", [found for _, found in facts], outputs), "nats": apart}


def run(host: Host, facts: list[tuple[str, str]], options: dict[str, Any], length: int, seed: int, steps: int) -> Any:
    """One fit, with the document's facts as fit and selection examples: how well can they be held at all?"""
    examples = [Example(key, key, found) for key, found in facts]
    adaptation = FittedPrefix(host, positions=length, seed=seed)
    predictor = Predictor(host, MANNER, adaptation)
    began = time.perf_counter()
    objective = objective_for(
        predictor, examples, examples, lambda a, b: value("exact-match", a, b),
        settings=PrefixSettings(**options), folder=MODEL.parent, seed=seed,
    )  # fmt: skip
    settings = FitSettings(steps=steps, batch_size=8, seconds=600.0, evaluate_every=steps // 10, patience=99)
    outcome = fit(objective, adaptation, settings, seed=seed)
    seconds = time.perf_counter() - began
    return {**measured(host, adaptation, facts), "best_step": outcome.best.step, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    RESULTS.parent.mkdir(exist_ok=True)
    host = trained(MODEL)
    with RESULTS.open("a", encoding="utf-8") as file:
        for number in range(arguments.documents):
            facts = document(random.Random(1000 + number))
            text = told(facts)
            (MODEL.parent / "document.txt").write_text(text, encoding="utf-8")
            ends = {"bare": Bare(), "document in context": FixedPrefix(host, bake(host, text))}
            rows = [{"objective": name, "length": 0, **measured(host, kept, facts)} for name, kept in ends.items()]
            ways: dict[str, dict[str, Any]] = {
                "completion": {"objective": "completion"},
                "distillation": {"objective": "distillation", "teacher_text": text + " "},
                "self-study": {"objective": "distillation", "teacher_file": "document.txt", "self_study": 256},
            }
            for length in LENGTHS:
                for name, options in ways.items():
                    watch = Stopwatch(command_line(), seeds=(number,))
                    found = run(host, facts, options, length, number, arguments.steps)
                    key = {"objective": name, "length": length, "document": number, "steps": arguments.steps}
                    rows.append({**found, **key, "record": watch.record(key).as_dict()})
            for row in rows:
                file.write(json.dumps({**row, "document": number}) + "\n")
                kept = f"accuracy {row['accuracy']:.2f}, {row['nats']:.3f} nats"
                print(f"document {number}, {row['objective']}, {row['length']} positions: {kept}", flush=True)


if __name__ == "__main__":
    main()
