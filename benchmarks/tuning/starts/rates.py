"""Which rates suit the steps after a closed form: a third of the measured ones, or all of them? And what would tell?

    .venv/bin/python benchmarks/tuning/starts/rates.py --part chosen     # the tasks that a rule may be made from
    .venv/bin/python benchmarks/tuning/starts/rates.py --part judged     # the others

Each task is fitted from zero values, and from the closed form at a third and at full rates. Beside the curves it keeps
what a rule could choose between the two by: the losses and moves of the closed form, and the loss on its own sixteen
examples after four steps at each of the rates. One line a run in results/rates.jsonl; what is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import run as looks
import torch
from run import Looked

from foreword.engine.host import Host
from foreword.record import Stopwatch, command_line
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidate_settings import PrefixSettings
from foreword.tuning.candidates import Workbench
from foreword.tuning.candidates.prefix import put_first_values
from foreword.tuning.closed_form import EXAMPLES
from foreword.tuning.examples import load_splits
from foreword.tuning.loop import fit
from foreword.tuning.loudness import GENTLE
from foreword.tuning.objective import objective_for
from foreword.tuning.objectives.contract import Objective
from foreword.tuning.predictor import Predictor
from foreword.tuning.task import Task

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "foretelling")]
from code_tasks import sources  # noqa: E402
from pairs import SHORT, SKILLS, laboratory, train  # noqa: E402
from seq2seq_bases import Seq2SeqRecipe  # noqa: E402
from seq2seq_bases import trained as trained_seq2seq  # noqa: E402
from small_causal import trained as trained_causal  # noqa: E402

STEPS, LOOKS, TRIAL, POSITIONS, BATCH = 80, (0, 4, 8, 12, 16, 24, 40, 80), 4, 8, 16
FIT, SELECTION, HELD = 320, 10, 200
METHODS = ("called", "get", "join", "write", "append", "startswith", "format", "strip", "split", "read", "close")
HANDLED = ("ValueError", "KeyError", "AttributeError", "OSError", "TypeError", "ImportError", "IndexError")
PREPOSITIONS = ("of", "to", "in", "for", "is", "with", "from", "by")
Row = tuple[str, str]


def _lines() -> Iterator[list[str]]:
    for text in sources():
        yield text.splitlines()


def called() -> list[Row]:
    """A line with the name of its one called method hidden: which is it?"""
    found = []
    for line in (line.strip() for lines in _lines() for line in lines):
        told = re.findall(r"\.(\w+)\(", line)
        if len(told) == 1 and told[0] in METHODS and 12 <= len(line) <= 70:
            found.append((line.replace(f".{told[0]}(", ".?("), told[0]))
    return found


def handled() -> list[Row]:
    """The lines before an `except`: which exception is handled?"""
    found = []
    for lines in _lines():
        for number, line in enumerate(lines):
            told = re.match(r"\s+except (\w+)\b", line)
            if told is not None and told[1] in HANDLED:
                before = "\n".join(part.strip() for part in lines[max(0, number - 3) : number])
                found.append((before[-90:], told[1]))
    return found


def loop_names() -> list[Row]:
    """A `for` line with its one variable hidden: which name is it?"""
    found = []
    for line in (line.strip() for lines in _lines() for line in lines):
        told = re.match(r"for ([a-z_]+) in (.{4,60}:)$", line)
        if told is not None:
            found.append((f"for ? in {told[2]}", told[1]))
    return found


def small_words() -> list[Row]:
    """A comment with one of eight small words hidden: which?"""
    rng, found = random.Random(51), []
    for line in (line.strip() for lines in _lines() for line in lines):
        words = line.removeprefix("#").split()
        places = [place for place, word in enumerate(words) if word in PREPOSITIONS]
        if line.startswith("# ") and len(words) >= 6 and places:
            place = rng.choice(places)
            found.append((" ".join([*words[:place], "?", *words[place + 1 :]]), words[place]))
    return found


TEXTS: Mapping[str, Callable[[], list[Row]]] = {
    "called": called, "handled": handled, "loop names": loop_names, "small words": small_words,
}  # fmt: skip


def _laboratory(which: str, seed: int) -> Path:
    return train.build(looks.HERE / "../../../runs/rates", which, seed=seed, quick=True).resolve()


def _seq2seq(family: str, *skills: str, seed: int) -> Path:
    place = looks.HERE / "../../../runs/rates" / f"{family}-{seed}"
    return trained_seq2seq(Seq2SeqRecipe(family, "sequences", skills), place.resolve(), seed=seed).resolve()


def _causal() -> Path:
    return Path(trained_causal().reference)


Part = Literal["chosen", "judged"]
# Written down before any fit of them; the models have seeds that no benchmark uses.
TASKS: Mapping[Part, tuple[tuple[str, str, Callable[[], Path], str], ...]] = {
    "chosen": (
        ("laboratory", "quick paper 60", lambda: _laboratory("paper", 60), "descending"),
        ("laboratory", "quick paper 60", lambda: _laboratory("paper", 60), "add one"),
        ("encoder-decoder", "umt5 81", lambda: _seq2seq("umt5", "descending", "shift", "add one", seed=81), "shift"),
        ("text", "small causal", _causal, "called"),
        ("text", "small causal", _causal, "handled"),
    ),
    "judged": (
        ("laboratory", "quick paper 61", lambda: _laboratory("paper", 61), "ascending"),
        ("laboratory", "quick skills 62", lambda: _laboratory("skills", 62), "descending"),
        ("encoder-decoder", "bart 82", lambda: _seq2seq("bart", "ascending", "mirror", "copy", seed=82), "mirror"),
        ("text", "small causal", _causal, "loop names"),
        ("text", "small causal", _causal, "small words"),
    ),
}


def task_of(base: Path, asked: str, folder: Path) -> Task:
    """The task with its data in `folder`."""
    rows, tokens = _rows(asked)
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in rows]
    (folder / "data.jsonl").write_text("".join(lines), encoding="utf-8")
    model = {"reference": str(base), "device": "cpu", "template": "{input}", "max_tokens": tokens}
    if asked in TEXTS:
        model["template"] = "{input}\n? = "
    values = {
        "task": {"name": "rates", "kind": "generate", "requirement": "exact-match at least 0.70 with 95% confidence"},
        "data": {"file": "data.jsonl"},
        "model": model,
        "splits": {"fit": FIT, "selection": SELECTION, "test": "rest"},
        "candidates": [{"kind": "prefix"}],
        "limits": {"fit_seconds": 3600.0},
    }
    return Task.parse(values, folder=folder)


def _rows(asked: str) -> tuple[list[Row], int]:
    """The rows of a task, none twice, and how many tokens an answer may have."""
    count = FIT + SELECTION + HELD
    if asked in SKILLS:
        drawn = SHORT.draw(np.random.default_rng(52), 4 * count, unseen=True)
        drawn = np.unique(drawn, axis=0)[np.random.default_rng(53).permutation(len(np.unique(drawn, axis=0)))][:count]
        answers = SKILLS[asked](drawn)
        written = laboratory.written
        return [(written(row), written(answer)) for row, answer in zip(drawn, answers, strict=True)], SHORT.length + 1
    rows = sorted(dict(TEXTS[asked]()).items())
    return random.Random(54).sample(rows, min(count, len(rows))), 8


def fitted(bench: Workbench, start: str, pace: float, *, seed: int, steps: int) -> dict[str, Any]:
    """One fit: its curve, how the closed form went, and the loss on that one's examples after `TRIAL` steps."""
    settings = PrefixSettings(start=start, positions=POSITIONS, steps=STEPS, batch_size=BATCH)  # type: ignore[arg-type]
    adaptation = FittedPrefix(bench.host, positions=POSITIONS, seed=seed)
    predictor = Predictor(bench.host, bench.manner(), adaptation)
    held = (bench.splits.selection + bench.splits.test)[:HELD]
    objective = objective_for(predictor, bench.splits.fit, held, bench.score, settings=settings)
    problem, told = Looked(objective), put_first_values(bench, objective, settings, seed=seed)
    if start == "closed-form":
        factor = pace / GENTLE
        adaptation._rates = {
            site: (keys * factor, values * factor) for site, (keys, values) in adaptation._rates.items()
        }
    kept = {name: parameter.detach().clone() for name, parameter in adaptation.parameters().items()}
    loop = replace(settings.loop(1e6), evaluate_every=4, patience=10**6)
    tried = replace(loop, steps=TRIAL, evaluate_every=10**6)
    fit(_Unjudged(objective), adaptation, tried, seed=seed)
    after = _own_loss(objective)
    with torch.no_grad():
        for name, parameter in adaptation.parameters().items():
            parameter.copy_(kept[name])
    fit(problem, adaptation, replace(loop, steps=steps), seed=seed)
    adaptation.close()
    return {"curve": problem.curve, "started": told, "after_trial": after}


class _Unjudged(Looked):
    """A problem whose last state counts as its best: a trial is judged elsewhere."""

    def evaluate(self, step: int) -> tuple[float, float]:
        return float(step), float(step)


def _own_loss(objective: Objective) -> float:
    """The mean loss of the examples that the closed form is solved on."""
    stride = max(1, objective.examples // EXAMPLES)
    with torch.no_grad():
        return float(objective.loss(list(range(0, objective.examples, stride))[:EXAMPLES], 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=sorted(TASKS), required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "rates.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    looks.LOOKS = LOOKS
    done = [json.loads(line)["key"] for line in options.out.read_text().splitlines()] if options.out.exists() else []
    for sort, base, made, asked in TASKS[options.part]:
        with tempfile.TemporaryDirectory() as scratch:
            place = made()
            task = task_of(place, asked, Path(scratch))
            bench = Workbench(Host.load(str(place), device="cpu"), task, load_splits(task))
            for seed in options.seeds:
                for start, pace in (("zero", 1.0), ("closed-form", GENTLE), ("closed-form", 1.0)):
                    key = {"part": options.part, "sort": sort, "base": base, "task": asked, "start": start}
                    key |= {"pace": round(pace, 3), "seed": seed, "positions": POSITIONS, "steps": STEPS}
                    if key in done:
                        continue
                    watch = Stopwatch(command_line(), seeds=(seed,))
                    row = {"key": key, **fitted(bench, start, pace, seed=seed, steps=STEPS)}
                    row["record"] = watch.record(key).as_dict()
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(row) + "\n")
                    shown = [(x["step"], round(x["score"], 2), round(x["loss"], 2)) for x in row["curve"]]
                    print(sort, asked, start, round(pace, 2), seed, shown, flush=True)


if __name__ == "__main__":
    main()
