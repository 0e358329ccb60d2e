"""Cheap looks at a task and a base model before a fit: gradients, demonstrations, and short fits.

It measures and does not decide; `foreword.tuning.foretelling` does. All of it is on the fit and selection splits.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foreword.engine.generation import completion_loss
from foreword.errors import FitError
from foreword.tuning.adaptation import Adaptation, Bare, FittedPrefix
from foreword.tuning.candidate_settings import FittedSettings, PrefixSettings
from foreword.tuning.candidates import Workbench
from foreword.tuning.candidates.contract import unset_readout
from foreword.tuning.candidates.prefix import put_first_values
from foreword.tuning.demonstrations import demonstrations, first_examples
from foreword.tuning.examples import Example
from foreword.tuning.fittable import Problem
from foreword.tuning.gradient_shape import GradientShape, gradient_shape
from foreword.tuning.loop import fit
from foreword.tuning.loop_settings import FitSettings, Schedule
from foreword.tuning.low_rank import Lora, Targets, linear_layers
from foreword.tuning.objective import objective_for
from foreword.tuning.objectives.contract import Objective
from foreword.tuning.objectives.teacher import read_by_teacher
from foreword.tuning.predictor import Predictor
from foreword.tuning.selection_outcomes import losses_of

# Steps of 16 examples. A prefix gets three times as many as LoRA: what it has after 40 steps tells less of what it
# comes to than after 120 (benchmarks/LOG.md), while LoRA's probe only tells whether the task can be learned at all.
STEPS, LORA_STEPS, BATCH, POSITIONS, LORA_RATE = 120, 40, 16, 8, 1e-2
JUDGED, LEARNED, GRADIENTS, SHOWN = 64, 1000, 24, 4


@dataclass(frozen=True)
class Probes:
    """What was measured. Losses are means in nats on the same `judged` examples of the selection split.

    `bare` is the model as it is (with the task's read-out); `constant` what an answer that ignores the input reaches,
    from how often the fit split's answers and their tokens occur. `demonstrations` is with a few examples in the
    context, None where the model reads no examples or they do not fit. `prefix`, `lora_attention` and `lora_mlp` are
    after short fits (120 and 40 steps); None where the model has no such layers. `metric` is the bare model's;
    `prefix_metric` and `lora_metric` (the better of two) are after the same short fits, and None where answers are
    written: there a metric would take generating, which costs more than the fit. `teacher` and `teacher_metric` are
    those of the bare model behind the text of the task's first distillation, None where no candidate names one.
    """

    bare: float
    constant: float
    demonstrations: float | None
    prefix: float
    lora_attention: float | None
    lora_mlp: float | None
    metric: float
    judged: int
    gradient: GradientShape
    prefix_metric: float | None = None
    lora_metric: float | None = None
    teacher: float | None = None
    teacher_metric: float | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def lora(self) -> float | None:
        """The better of the two LoRA probes' losses."""
        return min((loss for loss in (self.lora_attention, self.lora_mlp) if loss is not None), default=None)

    @property
    def features(self) -> dict[str, float]:
        """What decisions are made from: shares without a unit, losses as what is gone of another loss, from -1 to 1.

        Of metrics it is what is gone of the bare model's errors; 0 where no metric was taken.
        """
        return {
            "prefix_gain": _gone(self.prefix, self.bare),
            "lora_gain": _gone(self.lora, self.bare),
            "demonstrations_gain": _gone(self.demonstrations, self.bare),
            "bare_below_constant": _gone(self.bare, self.constant),
            "prefix_below_constant": _gone(self.prefix, self.constant),
            "lora_below_constant": _gone(self.lora, self.constant),
            "agreement": self.gradient.mean("agreement"),
            "constant_share": self.gradient.mean("constant"),
            "per_example_share": self.gradient.mean("per_example"),
            "prefix_errors_gone": self._errors_gone(self.prefix_metric),
            "lora_errors_gone": self._errors_gone(self.lora_metric),
        }

    @property
    def teacher_is_behind(self) -> bool:
        """Whether a teacher does the task less well than the short fit of a prefix to the targets does.

        By the metric where there is one, which labels' lengths do not blur; by the loss where answers are written.
        """
        if self.teacher is None:
            return False
        if self.teacher_metric is not None and self.prefix_metric is not None:
            return self.teacher_metric < self.prefix_metric
        return self.teacher > self.prefix

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, the features included."""
        return {**asdict(self), "features": self.features}

    def _errors_gone(self, metric: float | None) -> float:
        return 0.0 if metric is None else _gone(1 - metric, 1 - self.metric)


def _gone(loss: float | None, of: float) -> float:
    """Which share of a loss is gone; 0 when it was not measured. A loss that doubled or worse is -1."""
    return 0.0 if loss is None or of <= 0 else max(-1.0, 1 - loss / of)


def probe(bench: Workbench, *, seed: int = 0, watch: Callable[[str], None] | None = None) -> Probes:
    """Take all probes on a part of the fit and selection splits. What is put into the model is taken out again."""
    told, seconds = watch or (lambda _: None), dict[str, float]()
    judged = bench.splits.selection[:JUDGED]
    labels = bench.splits.labels if bench.task.kind == "classify" else ()
    learned = tuple(first_examples(bench.splits.fit, labels, None)[:LEARNED])
    small = replace(bench, splits=replace(bench.splits, fit=learned, selection=judged))

    def timed(name: str, work: Callable[[], Any]) -> Any:
        told(name)
        began = time.perf_counter()
        found = work()
        seconds[name] = time.perf_counter() - began
        return found

    bare = timed("bare model", lambda: _bare(small))
    asked, taught = _taught_by(bench), None
    if asked is not None:
        taught = timed("teacher", lambda: _teacher(small, bench.splits.fit, asked))
    shape = timed("gradients", lambda: _shape(small))
    shown = timed("demonstrations", lambda: _with_demonstrations(small))
    prefix: _Reached = timed("prefix", lambda: _prefix(small, seed))
    of_attention: _Reached | None = timed("lora_attention", partial(_lora, small, "attention", seed))
    of_mlp: _Reached | None = timed("lora_mlp", partial(_lora, small, "mlp", seed))
    metrics = (found.metric for found in (of_attention, of_mlp) if found is not None)
    return Probes(
        bare[0],
        _constant(small),
        shown,
        prefix.loss,
        None if of_attention is None else of_attention.loss,
        None if of_mlp is None else of_mlp.loss,
        bare[1],
        len(judged),
        shape,
        prefix.metric,
        max((metric for metric in metrics if metric is not None), default=None),
        None if taught is None else taught.loss,
        None if taught is None else taught.metric,
        seconds,
    )


@dataclass(frozen=True)
class _Reached:
    """Of a short fit, or a teacher: the loss on the judged examples, and the metric where labels are asked for."""

    loss: float
    metric: float | None


def _problem(bench: Workbench, adaptation: Adaptation) -> tuple[Predictor, Objective]:
    kind = bench.default_readout
    learns = kind in ("prototypes", "linear")
    predictor = Predictor(
        bench.host, bench.manner(), adaptation, unset_readout(kind, bench) if learns else bench.readout(kind)
    )
    return predictor, objective_for(predictor, bench.splits.fit, bench.splits.selection, bench.score)


def _bare(bench: Workbench) -> tuple[float, float]:
    """Loss and metric of the base model as it is, with the task's read-out; likelihoods as they are."""
    predictor, objective = _problem(bench, Bare())
    objective.finish()
    return _mean_loss(predictor, bench.splits.selection), bench.selection_score(predictor)


def _mean_loss(predictor: Predictor, examples: Sequence[Example]) -> float:
    """The mean loss of the targets: of labels over examples, of written answers over their tokens."""
    if predictor.manner.kind != "generate":
        losses = losses_of(predictor, examples)
        return sum(losses) / len(losses)
    rows, answers = predictor.rows([x.input for x in examples]), [predictor.completion(x.target) for x in examples]
    order, total = sorted(range(len(rows)), key=lambda index: len(rows[index])), 0.0
    with torch.no_grad(), predictor.adaptation.active():
        for start in range(0, len(order), BATCH):
            told = [answers[index][: predictor.manner.max_new_tokens] for index in order[start : start + BATCH]]
            read = [rows[index] for index in order[start : start + BATCH]]
            loss = completion_loss(predictor.host, read, told, soft=predictor.adaptation.soft)
            total += float(loss) * sum(map(len, told))
    return total / sum(len(answer[: predictor.manner.max_new_tokens]) for answer in answers)


def _constant(bench: Workbench) -> float:
    """The loss of answers by frequency alone: of labels, or of tokens each by itself; add-one smoothing."""
    splits = (bench.splits.fit, bench.splits.selection)
    predictor = Predictor(bench.host, bench.manner()) if bench.task.kind == "generate" else None
    answers: list[list[list[Hashable]]] = [
        [[x.target] if predictor is None else list(predictor.completion(x.target)) for x in split] for split in splits
    ]
    counts = Counter(token for answer in answers[0] for token in answer)
    total = counts.total() + len(counts) + 1
    judged = [token for answer in answers[1] for token in answer]
    return -sum(math.log((counts[token] + 1) / total) for token in judged) / len(judged)


def _shape(bench: Workbench) -> GradientShape:
    _, objective = _problem(bench, Bare())
    return gradient_shape(bench.host, lambda index: objective.loss([index], 0), min(GRADIENTS, objective.examples))


def _with_demonstrations(bench: Workbench) -> float | None:
    """The loss with a few fit examples written before each input; None but for a causal model, or when none fits."""
    if bench.host.role != "causal":
        return None
    labels = bench.splits.labels if bench.task.kind == "classify" else ()
    shown = first_examples(bench.splits.fit, labels, None)[: max(SHOWN, len(labels))]
    found = demonstrations(bench.host, bench.template, shown)
    if not found.used:
        return None
    return _mean_loss(_behind(bench, found.text), bench.splits.selection)


def _behind(bench: Workbench, text: str) -> Predictor:
    """The bare model with a text before every prompt."""
    return Predictor(bench.host, bench.manner(replace(bench.template, before=text + bench.template.before)))


def _taught_by(bench: Workbench) -> FittedSettings | None:
    """The task's first distillation of a text, on a model that writes.

    A document is read in pieces; an encoder reads labels off features, and its teacher is not asked for labels.
    """
    fitted = [x for x in bench.task.candidates if isinstance(x, FittedSettings) and bench.host.role != "encoder"]
    return next((x for x in fitted if x.objective == "distillation" and x.teacher_file is None), None)


def _teacher(bench: Workbench, fit: Sequence[Example], settings: FittedSettings) -> _Reached:
    manner = bench.manner()
    predictor = _behind(bench, read_by_teacher(bench.host, manner, fit, settings).text)
    metric = bench.selection_score(predictor) if manner.labels else None
    return _Reached(_mean_loss(predictor, bench.splits.selection), metric)


def _prefix(bench: Workbench, seed: int) -> _Reached:
    """What a short fit of a prefix reaches, with its defaults but from zero values: the rule was made with these."""
    settings = PrefixSettings(positions=POSITIONS, start="zero")
    adaptation = FittedPrefix(bench.host, positions=POSITIONS, seed=seed)
    try:
        predictor, objective = _problem(bench, adaptation)
        put_first_values(bench, objective, settings, seed=seed)
        return _after(predictor, objective, bench, seed, steps=STEPS, schedule=settings.schedule)
    finally:
        adaptation.close()


def _lora(bench: Workbench, targets: Targets, seed: int) -> _Reached | None:
    """What a short fit of rank 1 reaches; None when the model has no such layers."""
    try:
        linear_layers(bench.host, targets)
    except FitError:
        return None
    adaptation = Lora(bench.host, rank=1, seed=seed, targets=targets)
    try:
        return _after(*_problem(bench, adaptation), bench, seed, steps=LORA_STEPS, rate=LORA_RATE)
    finally:
        adaptation.close()


def _after(
    predictor: Predictor,
    objective: Objective,
    bench: Workbench,
    seed: int,
    *,
    steps: int,
    rate: float | None = None,
    schedule: Schedule = "constant",
) -> _Reached:
    """The lowest loss on the judged examples at a short fit's start, middle and end, and of labels the metric there."""
    problem, every = _ByLoss(objective, predictor, bench), max(1, steps // 2)
    settings = FitSettings(steps, BATCH, 3600.0, evaluate_every=every, learning_rate=rate, schedule=schedule)
    best = fit(problem, predictor.adaptation, settings, seed=seed).best
    return _Reached(-best.selection, problem.metrics.get(best.step))


class _ByLoss:
    """A problem that is judged by its loss on the judged examples, so that nothing need be generated."""

    def __init__(self, objective: Problem, predictor: Predictor, bench: Workbench) -> None:
        self.objective, self.predictor, self.bench = objective, predictor, bench
        self.examples, self.lengths = objective.examples, list(objective.lengths)
        self.is_kept_by_loss = True
        self.metrics: dict[int, float] = {}

    def loss(self, indices: list[int], step: int) -> Tensor:
        return self.objective.loss(indices, step)

    def weight(self, indices: list[int]) -> float:
        return self.objective.weight(indices)

    def evaluate(self, step: int) -> tuple[float, float]:
        if self.predictor.manner.kind == "classify":
            self.metrics[step], score = self.objective.evaluate(step)
        else:
            score = -_mean_loss(self.predictor, self.bench.splits.selection)
        return score, score

    def memory(self) -> dict[str, Tensor]:
        return self.objective.memory()

    def remember(self, memory: dict[str, Tensor]) -> None:
        self.objective.remember(memory)
