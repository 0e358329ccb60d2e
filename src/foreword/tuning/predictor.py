"""From an input's text to an answer: the one path that judging, `foreword predict` and the Python API share.

A predictor is a host, an adaptation of it, the template around the input, and how the answer is read: by a read-out of
features, by the likelihood of the labels' names (calibrated or as it is), or by generation. What is measured in a
pilot is therefore what later runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from foreword.bundle import Bundle
from foreword.engine.batches import in_batches
from foreword.engine.generation import completion_scores, decoder_start, embed, features, generate
from foreword.engine.host import Host
from foreword.engine.rendering import (
    Rendered,
    Template,
    chat_text,
    rendered,
    targets,
    tokens,
)
from foreword.errors import BundleError, DataError, HostError
from foreword.tuning.adaptation import Adaptation, Bare, FixedPrefix
from foreword.tuning.readout import Readout

Progress = Callable[[int], None]
Kind = Literal["classify", "generate"]
# A single input of more characters than this is a mistake (a file instead of a text), not something to answer.
LONGEST_INPUT = 1_000_000


@dataclass(frozen=True)
class Answer:
    """What came back for one input. `confidence` is the probability of the label, None for generation."""

    output: str
    confidence: float | None = None


@dataclass(frozen=True)
class Manner:
    """How an input becomes an answer, apart from the model: saved with a candidate, language-free.

    `stop` ends a generated answer (a newline when no target of the fit split has one). `max_input_tokens` cuts inputs.
    """

    kind: Kind
    template: Template
    labels: tuple[str, ...] = ()
    max_new_tokens: int = 64
    max_input_tokens: int | None = None
    stop: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "template": asdict(self.template),
            "labels": list(self.labels),
            "max_new_tokens": self.max_new_tokens,
            "max_input_tokens": self.max_input_tokens,
            "stop": self.stop,
        }

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Manner:
        """Read `as_dict` back; KeyError or TypeError when a part is missing or unknown."""
        return cls(**{**told, "template": Template(**told["template"]), "labels": tuple(told["labels"])})


@dataclass
class Predictor:
    """Answers inputs with a host under an adaptation.

    `readout` None means: by likelihood of the label (classify, no encoder) or generation. A readout that a fit is still
    changing is seen as it is at the time of the call. `offsets` `(label,)`, in nats, are added to the labels'
    log-likelihoods: how likely a label is as a text says nothing about the input (`objectives.labels.offsets_of`).
    """

    host: Host
    manner: Manner
    adaptation: Adaptation = field(default_factory=Bare)
    readout: Readout | None = None
    offsets: Tensor | None = None

    def __post_init__(self) -> None:
        if self.host.role == "encoder" and (self.manner.kind == "generate" or self.readout is None):
            raise HostError(
                "An encoder cannot do this task in this way.",
                expected="a causal model for generation or label likelihood, or a read-out of features",
                found=f"{self.host.reference}, an encoder, for kind {self.manner.kind}",
                fix="Name a causal base model in [model] reference, or choose a read-out.",
            )
        if self.manner.template.chat:
            _ = self._space  # HostError when the tokenizer has no chat template
        self._completions: list[list[int]] = []
        if self.manner.kind == "classify" and self.readout is None:
            spelled = [self.completion(label) for label in self.manner.labels]
            self._completions = told_apart(self.host, self.manner.labels, spelled)
        if self.host.role == "encoder-decoder" and self.readout is None:
            self._check_decoder()

    def rows(self, inputs: Sequence[str]) -> list[list[int]]:
        """Token ids of the inputs in their template, cut to what the model reads with the answer behind them."""
        return [found.ids for found in self.rendered(inputs)]

    def rendered(self, inputs: Sequence[str], *, reserve: int = 0) -> list[Rendered]:
        """The same, and which of the inputs had to be cut; `reserve` more tokens are left free."""
        reserve += 0 if self.adaptation.soft is None else self.adaptation.soft.shape[0]
        if self.host.role == "causal" and self.readout is None:
            reserve += self._longest_answer
        limit, template = self.manner.max_input_tokens, self.manner.template
        return [rendered(self.host, template, text, max_tokens=limit, reserve=reserve) for text in inputs]

    @property
    def _longest_answer(self) -> int:
        return self.manner.max_new_tokens if self.manner.kind == "generate" else max(map(len, self._completions))

    def _check_decoder(self) -> None:
        """HostError when the decoder cannot write, or an answer would be longer than it reads."""
        decoder_start(self.host)
        if self._longest_answer > self.host.max_positions:
            raise HostError(
                "The answers are longer than this model's decoder reads.",
                expected=f"at most {self.host.max_positions} tokens",
                found=str(self._longest_answer),
                fix="Lower max_tokens in [model]."
                if self.manner.kind == "generate"
                else "Give the labels shorter names, or let every candidate read them from features: probe, or "
                'readout = "prototypes" or "linear".',
            )

    def completion(self, text: str) -> list[int]:
        """Token ids of an answer behind the prompt: with a space before it unless the prompt ends in one.

        What an encoder-decoder model writes stands by itself: what its tokenizer makes of a target, end included.
        """
        if self.host.role == "encoder-decoder":
            found = targets(self.host, text)
            special = set(self.host.tokenizer.all_special_ids) - {self.host.tokenizer.unk_token_id}
            is_empty = set(found) <= special
        else:
            found = tokens(self.host, self._space + text, special=False)
            is_empty = not found
        if is_empty:
            raise DataError(
                "The tokenizer has no token for an answer.",
                expected="at least one token",
                found=repr(text),
                fix="Give the label a name that the base model's tokenizer can spell.",
            )
        return found

    @cached_property
    def _space(self) -> str:
        """What parts an answer from the prompt."""
        template = self.manner.template
        end = chat_text(self.host, "", template.system) if template.chat else template.after
        return "" if not end or end[-1].isspace() else " "

    def label_scores(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Unnormalised log-probabilities `(row, label)`, differentiable; the adaptation must be active."""
        if self.readout is None:
            scores = completion_scores(self.host, rows, self._completions, soft=self.adaptation.soft)
            return scores if self.offsets is None else scores + self.offsets.to(scores)
        return self.readout.scores(features(self.host, rows, soft=self.adaptation.soft))

    def features(self, inputs: Sequence[str], *, batch_size: int = 32, progress: Progress | None = None) -> Tensor:
        """Feature vectors `(input, hidden)` under the adaptation, without gradients."""
        with self.adaptation.active():
            soft = None if self.adaptation.soft is None else self.adaptation.soft.detach()
            return embed(self.host, self.rows(inputs), soft=soft, batch_size=batch_size, progress=progress)

    def answer(self, inputs: Sequence[str], *, batch_size: int = 32, progress: Progress | None = None) -> list[Answer]:
        """One answer per input, in order. DataError for an input that cannot be read."""
        for number, text in enumerate(inputs, start=1):
            _check_input(number, text)
        return self.answers_to(self.rows(inputs), batch_size=batch_size, progress=progress)

    def answers_to(
        self, rows: Sequence[list[int]], *, batch_size: int = 32, progress: Progress | None = None
    ) -> list[Answer]:
        """One answer per prompt, given as token ids, in order."""
        found: list[Answer | None] = [None] * len(rows)

        def computed(indices: list[int]) -> list[Answer]:
            return self._answer_batch([rows[index] for index in indices])

        with torch.no_grad(), self.adaptation.active():
            for indices, answers in in_batches([len(row) for row in rows], batch_size, computed):
                for index, answer in zip(indices, answers, strict=True):
                    found[index] = answer
                if progress is not None:
                    progress(len(indices))
        return [answer for answer in found if answer is not None]

    def _answer_batch(self, rows: list[list[int]]) -> list[Answer]:
        if self.manner.kind == "generate":
            longest = self.manner.max_new_tokens
            texts = generate(self.host, rows, max_new_tokens=longest, soft=self.adaptation.soft)
            return [Answer(self._cut(text)) for text in texts]
        probabilities = torch.softmax(self.label_scores(rows).float(), dim=1)
        best = probabilities.max(dim=1)
        return [
            Answer(self.manner.labels[label], confidence)
            for label, confidence in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _cut(self, text: str) -> str:
        text = text.strip()
        return text if self.manner.stop is None else text.partition(self.manner.stop)[0].strip()

    @property
    def read_by(self) -> str | None:
        """How a label is read: a read-out's kind, "calibrated" or "likelihood"; None where the answer is written."""
        if self.manner.kind == "generate":
            return None
        if self.readout is not None:
            return self.readout.kind
        return "likelihood" if self.offsets is None else "calibrated"

    @property
    def numbers(self) -> int:
        """Numbers, beside the adaptation's, that answering takes."""
        if self.readout is not None:
            return self.readout.size
        return 0 if self.offsets is None else self.offsets.numel()

    def use(self) -> dict[str, Any]:
        """How a bundle says that its prefix is applied."""
        readout = None
        if self.readout is not None or self.offsets is not None:
            readout = {"kind": self.read_by, "scale": 1.0 if self.readout is None else self.readout.scale}
        return {"manner": self.manner.as_dict(), "readout": readout}

    def arrays(self) -> dict[str, Any] | None:
        """What a bundle keeps of the read-out; None where there is nothing."""
        if self.readout is not None:
            return self.readout.arrays()
        return None if self.offsets is None else {"offsets": self.offsets.detach().cpu().numpy()}


def predictor_from(bundle: Bundle, host: Host) -> Predictor:
    """The predictor that a bundle was saved from, on `host`.

    BaseMismatchError when the bundle is for another base; BundleError when it does not say how it is applied.
    """
    bundle.check_base(host)
    try:
        manner = Manner.from_dict(bundle.use["manner"])
        told = bundle.use["readout"]
        readout = offsets = None
        if told is not None and told["kind"] == "calibrated":
            offsets = _offsets_from(bundle, len(manner.labels))
        elif told is not None:
            readout = Readout.from_arrays(told["kind"], float(told["scale"]), bundle.readout, len(manner.labels))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(
            "The bundle does not say how its prefix is applied to a text.",
            expected="a bundle written by `foreword pilot`, with template, labels and read-out",
            found=f"{type(error).__name__}: {error}",
            fix="Attach its prefix from Python: with fw.attached(host, bundle.prefix): ...",
        ) from error
    return Predictor(host, manner, FixedPrefix(host, bundle.prefix), readout, offsets)


def offsets_in(bundle: Bundle, manner: Manner) -> Tensor | None:
    """What the prefix of a bundle was fitted with, in nats `(label,)`: 0 where it reads plain likelihoods.

    None where it does something else than `manner`: other labels, another template, a read-out of features.
    BundleError when there are offsets, but not those of its labels.
    """
    told, readout, mine = bundle.use.get("manner"), bundle.use.get("readout"), manner.as_dict()
    parts = ("kind", "labels", "template")
    if not isinstance(told, dict) or any(told.get(part) != mine[part] for part in parts) or not manner.labels:
        return None
    if readout is None:
        return torch.zeros(len(manner.labels))
    is_calibrated = isinstance(readout, dict) and readout.get("kind") == "calibrated"
    return _offsets_from(bundle, len(manner.labels)) if is_calibrated else None


def _offsets_from(bundle: Bundle, labels: int) -> Tensor:
    """The offsets of a bundle's labels; BundleError when there are none, or of other labels."""
    shapes = {name: array.shape for name, array in bundle.readout.items()}
    if shapes != {"offsets": (labels,)}:
        raise BundleError(
            "The bundle's read-out does not fit its labels.",
            expected=f"offsets ({labels},), one for each label",
            found=", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "nothing",
            fix="Fit the prefix again.",
        )
    return torch.from_numpy(np.array(bundle.readout["offsets"], dtype=np.float32))


def told_apart(host: Host, labels: Sequence[str], spelled: Sequence[Sequence[int]]) -> list[list[int]]:
    """The labels' tokens, so that each can be the likeliest: with an end token when one label begins another.

    Of two labels of which one begins the other, the shorter is at least as likely after every prompt. DataError when
    two labels have the same tokens, a label has the token for what the tokenizer does not know, or an end is needed and
    there is none.
    """
    unknown = getattr(host.tokenizer, "unk_token_id", None)
    problems = [
        f"{label!r} has parts that the tokenizer does not know"
        for label, found in zip(labels, spelled, strict=True)
        if unknown is not None and unknown in found
    ]
    first: dict[tuple[int, ...], str] = {}
    for label, found in zip(labels, spelled, strict=True):
        other = first.setdefault(tuple(found), label)
        if other != label:
            problems.append(f"{other!r} and {label!r} have the same tokens")
    begins = any(a != b and b[: len(a)] == a for a in first for b in first)
    end = getattr(host.tokenizer, "eos_token_id", None)
    if begins and end is None:
        problems.append("one label begins another, and the tokenizer has no end token to tell them apart")
    if problems:
        raise DataError(
            "The base model cannot tell the labels apart." + "".join(f"\n  - {line}" for line in problems),
            expected="labels that differ in this tokenizer's tokens",
            fix="Give these labels other names, or let every candidate read them from features: probe, "
            'or readout = "prototypes" or "linear".',
        )
    return [[*found, end] if begins and end is not None else list(found) for found in spelled]


def check_texts(predictor: Predictor, labels: Sequence[str], texts: Sequence[str]) -> None:
    """DataError when two labels' texts are the same to the tokenizer, so that nothing could tell the labels apart."""
    first: dict[tuple[int, ...], str] = {}
    for label, row in zip(labels, predictor.rows(texts), strict=True):
        other = first.setdefault(tuple(row), label)
        if other != label:
            raise DataError(
                "The base model cannot tell two labels apart by their texts.",
                expected="texts that differ in this tokenizer's tokens",
                found=f"the same tokens for {other!r} and {label!r}",
                fix="Describe each label in words of its own in [labels], or let every candidate read them from "
                'features: probe, or readout = "prototypes" or "linear".',
            )


def _check_input(number: int, text: object) -> None:
    if not isinstance(text, str) or len(text) > LONGEST_INPUT:
        raise DataError(
            f"Input {number} cannot be answered.",
            expected=f"text of at most {LONGEST_INPUT:,} characters",
            found=f"{len(text):,} characters" if isinstance(text, str) else type(text).__name__,
            fix="Give one text per line, not a whole file.",
        )
