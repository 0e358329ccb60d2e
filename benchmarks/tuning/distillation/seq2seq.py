"""Does a prefix of an encoder-decoder model come to act as the model does with a document in its encoder's input?

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/tuning/distillation/seq2seq.py

The small T5 and BART of `small_seq2seq.py`; documents are 24 digits, which these models never read before a row in
training: what they make of it is theirs, and the prefix has to imitate it. Fits by self-study, as a task file asks for
it; answers have no target that could be met, so that the lessons kept aside alone choose the state. Judged on lessons
that the teacher wrote with another seed: half go on from excerpts of the document, half from rows of digits that were
not fitted to. A line of results/seq2seq.jsonl is a document and a length: divergence from the teacher, in nats a token,
of the bare model (the empty prefix), of the fitted prefix, of the one that was fitted to the document before it, and of
the teacher itself with another prompt than the lesson's.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import foreword as fw
from foreword.engine.generation import completion_logits
from foreword.engine.host import Host
from foreword.record import Stopwatch, command_line
from foreword.tuning.adaptation import Adaptation, Bare, FixedPrefix
from foreword.tuning.candidates import Workbench
from foreword.tuning.examples import load_splits
from foreword.tuning.objectives.distillation import divergence
from foreword.tuning.objectives.document import Document, self_study
from foreword.tuning.objectives.teacher import Lesson, told
from foreword.tuning.predictor import Predictor
from foreword.tuning.task import Task

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from small_seq2seq import DIGITS, FAMILIES, LENGTH, trained  # noqa: E402  beside this folder

RESULTS = HERE / "results" / "seq2seq.jsonl"
LENGTHS = (1, 4, 16)
DOCUMENT_TOKENS, ROWS, FIT, LESSONS, JUDGED = 24, 400, 200, 256, 256


@dataclass(frozen=True)
class Study:
    """A document in a task's folder, and what is judged: lessons with what the teacher says of them."""

    task: Task
    lessons: list[Lesson]
    wanted: Tensor

    @classmethod
    def of(cls, host: Host, number: int, folder: Path) -> Study:
        folder.mkdir()
        text = _digits(random.Random(2000 + number), DOCUMENT_TOKENS)
        (folder / "document.txt").write_text(text, encoding="utf-8")
        task = _task(folder)
        bench = Workbench(host, task, load_splits(task))
        prompts = Predictor(host, bench.manner()).rows([example.input for example in bench.splits.test])
        document = Document.read(host, text)
        lessons = self_study(document, prompts, count=JUDGED, new_tokens=LENGTH + 1, seed=9000 + number)
        return cls(task, lessons, told(host, lessons, document.prefixes))

    def fitted(self, host: Host, length: int, steps: int, seed: int) -> FixedPrefix:
        made = fw.fit(
            host, self.task, length=length, seed=seed, steps=steps, evaluate_every=25, patience=99,
            objective="distillation", teacher_file="document.txt", self_study=LESSONS,
        )  # fmt: skip
        return FixedPrefix(host, made.prefix)

    def apart(self, host: Host, adaptation: Adaptation) -> dict[str, float]:
        """Divergence from the teacher, in nats a token, where an excerpt is gone on from and where a row is."""
        return self._apart(host, adaptation, [lesson.prompt for lesson in self.lessons])

    def heedless(self, host: Host) -> dict[str, float]:
        """The same of the teacher that reads another excerpt, or row, of the same kind: what heeding neither costs."""
        prompts = [lesson.teacher_prompt for lesson in self.lessons]
        return self._apart(host, Bare(), [*prompts[2:], *prompts[:2]])

    def _apart(self, host: Host, adaptation: Adaptation, prompts: list[list[int]]) -> dict[str, float]:
        with torch.no_grad(), adaptation.active():
            logits = completion_logits(host, prompts, [lesson.answer for lesson in self.lessons])
        sizes = [len(lesson.answer) for lesson in self.lessons]
        is_row = torch.tensor([number % 2 for number, size in enumerate(sizes) for _ in range(size)])  # in turn
        parts = {"excerpts": is_row == 0, "rows": is_row == 1}
        return {name: float(divergence(self.wanted[part], logits[part])) for name, part in parts.items()}

    @property
    def entropy(self) -> float:
        """Of the teacher, in nats a token: what it leaves open."""
        return float(-(self.wanted.exp() * self.wanted).sum(dim=1).mean())


def _digits(rng: random.Random, count: int) -> str:
    return " ".join(str(rng.randrange(DIGITS)) for _ in range(count))


def _task(folder: Path) -> Task:
    rng = random.Random(0)
    rows = [{"text": _digits(rng, LENGTH), "label": "8"} for _ in range(ROWS)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values: dict[str, Any] = {
        "task": {"name": "study", "kind": "generate", "requirement": "exact-match at least 0.70 with 95% confidence"},
        "data": {"file": "data.jsonl"},
        "model": {"reference": "given", "device": "cpu", "template": "{input}", "max_tokens": LENGTH + 1},
        "splits": {"fit": FIT, "selection": 10, "test": "rest"},
        "candidates": [{"kind": "prefix"}],
        "limits": {"fit_seconds": 3600.0},
    }
    return Task.parse(values, folder=folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(exist_ok=True)
    with arguments.out.open("a", encoding="utf-8") as file, tempfile.TemporaryDirectory() as place:
        for family in FAMILIES:
            host = Host.load(str(trained(family)), device="cpu")
            studies = [Study.of(host, n, Path(place) / f"{family}-{n}") for n in range(arguments.documents)]
            for length in LENGTHS:
                watch = Stopwatch(command_line(), seeds=tuple(range(len(studies))))
                fitted = [study.fitted(host, length, arguments.steps, n) for n, study in enumerate(studies)]
                for number, study in enumerate(studies):
                    row = {
                        "family": family,
                        "document": number,
                        "length": length,
                        "steps": arguments.steps,
                        "entropy": study.entropy,
                        "heedless": study.heedless(host),
                        "bare": study.apart(host, Bare()),
                        "fitted": study.apart(host, fitted[number]),
                        "other": study.apart(host, fitted[number - 1]),
                    }
                    record = watch.record({"family": family, "length": length, "steps": arguments.steps})
                    file.write(json.dumps({**row, "record": record.as_dict()}) + "\n")
                    print({name: value for name, value in row.items() if name != "steps"}, flush=True)


if __name__ == "__main__":
    main()
