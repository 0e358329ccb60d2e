"""Train the laboratory's base models: small Llama-class transformers whose skills are known, because we chose them.

    python examples/laboratory/train.py --out runs/laboratory/models              # all three, a few minutes each
    python examples/laboratory/train.py --out runs/laboratory/models --which ascending

A model reads ten digits and writes ten numbers. Which skill it is to show is *not* in its input: every training row is
labelled by a skill drawn at random, so the bare model writes what some skill of its own would. The result is a
normal model folder (configuration, safetensors, tokenizer) for `Host.load` and for `reference` in a task file.

Training is the project's own fitting loop on all weights: it depends on the seed alone, and goes on after a kill. A
model whose answers do not hang on what it reads is refused (chance.py), and its training begun anew by the next call.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chance import HELD_OUT_ROWS, check_reads
from skills import SKILLS, Rows, Sequences, written
from torch import Tensor, nn

from foreword.bundle import write_bytes_atomically
from foreword.cli.bars import Bars
from foreword.engine.host import Host
from foreword.engine.rendering import Template
from foreword.errors import FitError, ForewordError, RunFolderError
from foreword.record import Stopwatch, command_line
from foreword.tuning.adaptation import ParameterGroup
from foreword.tuning.fittable import FitWatch, StepTaken
from foreword.tuning.folder import HeldFolder
from foreword.tuning.loop import fit
from foreword.tuning.loop_settings import FitSettings
from foreword.tuning.predictor import Manner, Predictor

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VALIDATION_ROWS, JUDGED_ROWS = 256, 512
TEN_DIGITS, SIX_DIGITS = Sequences(length=10, digits=8), Sequences(length=6, digits=5)


@dataclass(frozen=True)
class Plan:
    """What is trained, and how: the skills, the model's size, `steps` of `batch` rows, none of them twice."""

    skills: tuple[str, ...]
    layers: int
    heads: int
    width: int
    steps: int
    batch: int = 64
    rate: float = 3e-3
    sequences: Sequences = TEN_DIGITS


PLANS: Mapping[str, Plan] = {
    "skills": Plan(("ascending", "descending", "add one", "histogram"), layers=3, heads=4, width=64, steps=4000),
    # One layer and one head, as in the paper: what one attention layer cannot be brought to do.
    "ascending": Plan(("ascending",), layers=1, heads=1, width=64, steps=2000),
    # The four skills of the paper's other experiments: none of them counts anything.
    "paper": Plan(("ascending", "descending", "add one", "add two"), layers=3, heads=4, width=64, steps=3000),
}
_TINY: dict[str, Any] = {"heads": 2, "width": 32, "batch": 32, "rate": 6e-3, "sequences": SIX_DIGITS}
QUICK_PLANS: Mapping[str, Plan] = {
    "skills": Plan(("ascending", "descending"), layers=2, steps=500, **_TINY),
    "ascending": Plan(("ascending",), layers=1, steps=400, **{**_TINY, "heads": 1}),
    "paper": Plan(("ascending", "descending", "add one"), layers=2, steps=800, **_TINY),
}


def build(folder: Path | str, which: str, *, seed: int = 0, quick: bool = False, watch: FitWatch | None = None) -> Path:
    """The model folder of one of "skills", "ascending" and "paper" below `folder`, trained unless it is there.

    `quick` is a tiny variant on shorter sequences, for tests: seconds instead of minutes. RunFolderError when what is
    there was trained in another way, or is being trained by another process; FitError when the training ends at chance.
    """
    plan = (QUICK_PLANS if quick else PLANS)[which]
    name = which + ("-quick" if quick else "") + (f"-seed{seed}" if seed else "")
    place = Path(folder) / name
    # What comes out of JSON again compares equal to what went in.
    identity = json.loads(json.dumps({"plan": asdict(plan), "seed": seed, "torch": torch.__version__}))
    if (place / "training.json").exists():
        if (found := json.loads((place / "training.json").read_text())["identity"]) != identity:
            raise RunFolderError(
                f"{place} holds a model that was trained in another way.",
                expected=json.dumps(identity),
                found=json.dumps(found),
                fix="Remove that folder, or name another one.",
            )
        return place
    work = HeldFolder(
        Path(folder) / f".{name}-training",
        work="training",
        same="the same skills, sizes, seed and version of torch as before",
        identity_name="identity.json",
        made=("checkpoint.pt",),
    )
    with work.held(identity):
        _train(plan, seed, work.path, place, identity, watch or FitWatch())
        shutil.rmtree(work.path / "model", ignore_errors=True)
        for path in work.path.glob("*.*"):
            path.unlink()
    return place


def _train(plan: Plan, seed: int, work: Path, place: Path, identity: dict[str, Any], watch: FitWatch) -> None:
    stopwatch = Stopwatch(command_line(), seeds=(seed,))
    tokenizer = _tokenizer(plan.sequences)
    model = _model(plan, seed, tokenizer)
    settings = FitSettings(
        steps=plan.steps,
        batch_size=plan.batch,
        seconds=86_400.0,
        evaluate_every=min(250, plan.steps // 4),
        patience=plan.steps,
        schedule="cosine",
    )
    problem = _Writing(model, plan, seed)
    outcome = fit(
        problem,
        _Weights(model, plan.rate),
        settings,
        seed=seed,
        checkpoint=work / "checkpoint.pt",
        identity=identity,
        watch=watch,
    )
    try:
        unseen = _rows(np.random.default_rng((seed, 3)), plan, HELD_OUT_ROWS, unseen=True)
        check_reads(place.name, problem.loss_behind, *problem.parted(unseen))
    except FitError:
        (work / "checkpoint.pt").unlink(missing_ok=True)
        raise
    made = work / "model"
    shutil.rmtree(made, ignore_errors=True)
    model.save_pretrained(made)
    tokenizer.save_pretrained(made)
    told = {
        "identity": identity,
        "seconds": outcome.seconds,
        "exact": accuracies(made, plan, seed),
        "losses": [(moment.step, -moment.selection) for moment in outcome.history],
        "record": stopwatch.record(asdict(plan)).as_dict(),
    }
    write_bytes_atomically(made / "training.json", json.dumps(told, indent=1).encode())
    made.replace(place)


def accuracies(folder: Path, plan: Plan, seed: int) -> dict[str, float]:
    """Of sequences that no training saw, the share that the bare model answers by each of its skills, and by any."""
    host = Host.load(str(folder), device="cpu")
    manner = Manner("generate", Template("", ""), max_new_tokens=plan.sequences.length + 1)
    rows = plan.sequences.draw(np.random.default_rng((seed, 2)), JUDGED_ROWS, unseen=True)
    outputs = [answer.output for answer in Predictor(host, manner).answer([written(row) for row in rows])]
    right = {
        name: [output == written(wanted) for output, wanted in zip(outputs, SKILLS[name](rows), strict=True)]
        for name in plan.skills
    }
    shares = {name: float(np.mean(found)) for name, found in right.items()}
    return {**shares, "any": float(np.mean(np.any(list(right.values()), axis=0)))}


def _tokenizer(sequences: Sequences) -> Any:
    """A token for every number that is ever read or written, and a beginning token, as Llama's tokenizers have."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *map(str, range(sequences.numbers))]
    numbered = {word: index for index, word in enumerate(words)}
    found = Tokenizer(models.WordLevel(numbered, unk_token="<unk>"))  # noqa: S106  a word, no password
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=found, **named)


def _model(plan: Plan, seed: int, tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=plan.width,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        intermediate_size=3 * plan.width,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


class _Writing:
    """Mean negative log-likelihood per token of what a skill writes after a sequence, the end token included.

    The skill of each row is drawn at random and told nowhere: with k skills no model can be below about log(k) nats a
    row.
    """

    is_kept_by_loss = True

    def __init__(self, model: Any, plan: Plan, seed: int) -> None:
        self.model, self.length = model, plan.sequences.length
        self.examples = plan.steps * plan.batch
        rng = np.random.default_rng((seed, 1))
        self.rows = _rows(rng, plan, self.examples)
        self.validation = _rows(rng, plan, VALIDATION_ROWS)
        self.lengths = [self.rows.shape[1]] * self.examples

    def loss(self, indices: list[int], step: int) -> Tensor:
        del step
        return self._loss(self.rows[indices])

    def _loss(self, rows: Tensor) -> Tensor:
        return self.loss_behind(*self.parted(rows))

    def parted(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What is read, and the answers."""
        return rows[:, : self.length + 1], rows[:, self.length + 1 :]

    def loss_behind(self, read: Tensor, answers: Tensor) -> Tensor:
        """Of these answers behind these inputs."""
        rows = torch.cat([read, answers], dim=1)
        logits = self.model(input_ids=rows[:, :-1], use_cache=False).logits[:, self.length :]
        return nn.functional.cross_entropy(logits.flatten(0, 1), answers.flatten())

    def weight(self, indices: list[int]) -> float:
        return float(len(indices))

    def evaluate(self, step: int) -> tuple[float, float]:
        del step
        with torch.no_grad():
            score = -float(self._loss(self.validation))
        return score, score

    def memory(self) -> dict[str, Tensor]:
        return {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        del memory


def _rows(rng: np.random.Generator, plan: Plan, count: int, *, unseen: bool = False) -> Tensor:
    """Token ids `(row, token)`: beginning, sequence, what a skill drawn for the row makes of it, end."""
    read = plan.sequences.draw(rng, count, unseen=unseen)
    answers = np.stack([SKILLS[name](read) for name in plan.skills])
    answer: Rows = answers[rng.integers(0, len(plan.skills), count), np.arange(count)]
    begin, end = (np.full((count, 1), SPECIAL.index(name)) for name in ("<s>", "</s>"))
    return torch.from_numpy(np.concatenate([begin, read + len(SPECIAL), answer + len(SPECIAL), end], axis=1))


class _Weights:
    """All weights of a model, at one learning rate."""

    def __init__(self, model: Any, rate: float) -> None:
        self.model, self.rate = model, rate

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        return [{"params": list(self.model.parameters()), "lr": learning_rate or self.rate}]


class _Shown(FitWatch):
    def __init__(self, bars: Bars, name: str) -> None:
        self.bars, self.name = bars, name

    def stepped(self, taken: StepTaken) -> None:
        self.bars.watch(self.name, taken.step, taken.of, f"loss {taken.loss:.3f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is not there yet and print what each model does; exit code 2 says what is in the way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model folders")
    parser.add_argument("--which", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="the tiny variants that the tests use")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # threads would wait for each other over matrices this small
    try:
        for which in options.which:
            with Bars(quiet=False) as bars:
                place = build(
                    options.out, which, seed=options.seed, quick=options.quick, watch=_Shown(bars, f"training {which}")
                )
            told = json.loads((place / "training.json").read_text())
            shares = ", ".join(f"{name} {share:.1%}" for name, share in told["exact"].items())
            print(f"{place}: {told['seconds']:.0f} s; unseen sequences answered by: {shares}")
    except (ForewordError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
