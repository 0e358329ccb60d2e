"""What every objective keeps to: means over parts, exact masks, a teacher that is the model with a text before it."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from foreword.bundle import load_bundle, save_bundle
from foreword.engine.attach import attached
from foreword.engine.bake import bake
from foreword.engine.generation import completion_logits, features
from foreword.engine.host import Host
from foreword.engine.rendering import tokens
from foreword.errors import DataError, FitError, TaskError
from foreword.tuning.adaptation import Adaptation, Bare, FittedPrefix, FixedPrefix, SoftPrompt
from foreword.tuning.candidate_settings import PrefixSettings
from foreword.tuning.candidates import Fitted, Workbench, candidate_for
from foreword.tuning.candidates.contract import of_the_teacher, unset_readout
from foreword.tuning.examples import Example, load_splits
from foreword.tuning.objective import objective_for
from foreword.tuning.objectives.contract import Objective, check_metric, masked_positions
from foreword.tuning.objectives.distillation import AnswerDistillation, FeatureDistillation, LabelDistillation
from foreword.tuning.objectives.document import Document, self_study
from foreword.tuning.objectives.teacher import Shelf, teacher_with, told
from foreword.tuning.predictor import Predictor, predictor_from
from foreword.tuning.scoring import value
from foreword.tuning.task import Task

POSITIONS = 6
FILE = "text.txt"
TEXT = "the price of bread and milk rose again this month"
TOLD = {"objective": "distillation", "teacher_text": TEXT}
STUDIED = {"objective": "distillation", "teacher_file": FILE, "self_study": 12}
# (base, kind of task, objective's fields, read-out): every objective on every role that it is for.
CASES: dict[str, tuple[str, str, dict[str, Any], str | None]] = {
    "labels-encoder": ("bert", "classify", {"objective": "labels"}, "label-text"),
    "labels-causal": ("llama", "classify", {"objective": "labels"}, None),
    "labels-both": ("t5", "classify", {"objective": "labels"}, None),
    "completion": ("gpt2", "generate", {"objective": "completion"}, None),
    "completion-label": ("qwen3", "classify", {"objective": "completion"}, None),
    "completion-both": ("bart", "generate", {"objective": "completion"}, None),
    "similarity": ("bert", "classify", {"objective": "similarity"}, "label-text"),
    "similarity-both": ("t5", "classify", {"objective": "similarity"}, "label-text"),
    "labels-told": ("llama", "classify", TOLD, None),
    "labels-shown": ("gpt2", "classify", {"objective": "distillation", "teacher_shots": 1}, None),
    "labels-both-told": ("bart", "classify", TOLD, None),
    "features-told": ("bert", "classify", TOLD, "label-text"),
    "features-causal": ("llama", "classify", TOLD, "linear"),
    "answers-told": ("gpt2", "generate", TOLD, None),
    "answers-both": ("bart", "generate", TOLD, None),
    "document": ("llama", "generate", STUDIED, None),
    "document-labels": ("gpt2", "classify", STUDIED, None),
    "document-both": ("bart", "generate", STUDIED, None),
    "document-labels-both": ("bart", "classify", STUDIED, None),
}
TAUGHT = [name for name, case in CASES.items() if "distillation" in case[2].values()]
Make = Callable[..., tuple[Workbench, Objective]]


@pytest.fixture
def make(
    shared_host: Callable[[str], Host],
    model_folder: Callable[[str], Path],
    write_task: Callable[..., Path],
    tmp_path: Path,
) -> Make:
    """The workbench and the objective of a case; `adaptation` is made on the host, a small prefix unless given."""

    def made(
        name: str, adaptation: Callable[[Host], Adaptation] | None = None, max_tokens: int = 4, **options: Any
    ) -> tuple[Workbench, Objective]:
        family, kind, fields, readout = CASES[name]
        model = {"max_tokens": max_tokens}
        task = Task.load(write_task(tmp_path, model_folder(family), [{"kind": "zero-shot"}], kind=kind, model=model))
        bench = Workbench(shared_host(family), task, load_splits(task))
        (tmp_path / "text.txt").write_text((TEXT + ". ") * 20, encoding="utf-8")
        made_with = adaptation or (lambda host: FittedPrefix(host, positions=POSITIONS, seed=1))
        read = None if readout is None else bench.readout(readout)
        predictor = Predictor(bench.host, bench.manner(), made_with(bench.host), read)
        settings = PrefixSettings(**{**fields, **options.pop("settings", {})})
        objective = objective_for(
            predictor, bench.splits.fit, bench.splits.selection, bench.score,
            settings=settings, folder=tmp_path, seed=3, **options,
        )  # fmt: skip
        return bench, objective

    return made


def slopes(objective: Objective, indices: list[int]) -> dict[str, Tensor]:
    parameters = objective.predictor.adaptation.parameters()
    found = torch.autograd.grad(objective.loss(indices, 0), list(parameters.values()), allow_unused=True)
    return {name: slope for name, slope in zip(parameters, found, strict=True) if slope is not None}


# Laws of all


@pytest.mark.parametrize("name", CASES)
def test_the_loss_of_a_batch_is_the_mean_of_its_examples_losses_by_their_weights(make: Make, name: str) -> None:
    """Each of at most 8 losses is off by the rounding of the logits behind it: 1e-3 at most (test_generation.py)."""
    _, objective = make(name)
    indices = list(range(min(8, objective.examples)))
    with torch.no_grad():
        whole = float(objective.loss(indices, 0))
        each = [float(objective.loss([index], 0)) for index in indices]
    weights = [objective.weight([index]) for index in indices]
    mean = math.fsum(loss * weight for loss, weight in zip(each, weights, strict=True)) / sum(weights)
    assert sum(weights) == objective.weight(indices)
    assert whole == pytest.approx(mean, abs=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_gradients_reach_the_prefix_and_a_step_down_them_lowers_the_loss(make: Make, name: str) -> None:
    _, objective = make(name)
    indices = list(range(objective.examples))
    parameters = objective.predictor.adaptation.parameters()
    found = slopes(objective, indices)
    assert found
    assert all(slope.isfinite().all() for slope in found.values())
    norm = math.sqrt(sum(float((slope**2).sum()) for slope in found.values()))
    assert norm > 0
    with torch.no_grad():
        before = float(objective.loss(indices, 0))
        for path, slope in found.items():
            parameters[path] -= 0.01 * slope / norm
        after = float(objective.loss(indices, 0))
    assert after < before


@pytest.mark.parametrize("name", CASES)
def test_the_judgement_is_a_score_and_minus_a_loss_and_changes_nothing(make: Make, name: str) -> None:
    _, objective = make(name)
    first, second = objective.evaluate(0), objective.evaluate(0)
    assert first == second
    assert 0 <= first[0] <= 1
    assert math.isfinite(first[1])
    assert first[1] <= 1e-6
    assert len(objective.lengths) == objective.examples


@pytest.mark.parametrize("name", CASES)
def test_how_far_each_lesson_is_from_the_teacher_adds_up_to_the_judged_loss(make: Make, name: str) -> None:
    """By the tokens of the lessons' answers, where these are what is matched."""
    _, objective = make(name)
    found = objective.apart()
    assert bool(found) == (name in TAUGHT)
    if not found:
        return
    each = [1] * len(found)
    if isinstance(objective, AnswerDistillation):
        each = [len(lesson.answer) for lesson in objective.selection_lessons]
    mean = math.fsum(loss * weight for loss, weight in zip(found, each, strict=True)) / sum(each)
    assert -objective.evaluate(0)[1] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_what_it_tells_of_itself_can_be_written_down(make: Make, name: str) -> None:
    _, objective = make(name)
    told = json.loads(json.dumps(objective.details()))
    assert told["inputs_cut"] == {"fit": 0, "selection": 0}
    assert told["objective"] == type(objective).__name__


# Distillation


@pytest.mark.parametrize("name", ["labels-told", "features-causal", "answers-told"])
def test_a_prefix_that_is_the_baked_text_has_nothing_to_learn(make: Make, name: str) -> None:
    """Exactly what the teacher carries: both sides are the same computation on the same rows."""
    text = TEXT + "\n\n"
    _, objective = make(name, lambda host: FixedPrefix(host, bake(host, text)))
    with torch.no_grad():
        assert float(objective.loss(list(range(objective.examples)), 0)) == pytest.approx(0, abs=1e-6)
    assert objective.evaluate(0)[1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", TAUGHT)
def test_the_bare_model_has_something_to_learn(make: Make, name: str) -> None:
    _, objective = make(name, lambda _: Bare())
    with torch.no_grad():
        assert float(objective.loss(list(range(objective.examples)), 0)) > 1e-4


@pytest.mark.parametrize("name", ["labels-causal", "features-causal", "completion"])
def test_the_bare_models_score_is_that_of_no_prefix_and_leaves_nothing_behind(make: Make, name: str) -> None:
    _, without = make(name, lambda _: Bare())
    _, objective = make(name)
    before = objective.evaluate(0)
    assert objective.bare_score() == without.evaluate(0)[0]
    assert objective.evaluate(0) == before
    assert isinstance(objective.predictor.adaptation, FittedPrefix)


@pytest.mark.parametrize("name", ["labels-told", "labels-both-told", "features-told", "answers-told", "answers-both"])
def test_a_teachers_score_is_that_of_the_model_with_the_text_in_the_prompt(make: Make, name: str) -> None:
    bench, objective = make(name)
    manner, readout = bench.manner(), objective.predictor.readout
    manner = replace(manner, template=replace(manner.template, before=f"{TEXT}\n\n{manner.template.before}"))
    outputs = [
        x.output for x in Predictor(bench.host, manner, Bare(), readout).answer([x.input for x in objective.selection])
    ]
    assert objective.teacher_score() == bench.score([x.target for x in objective.selection], outputs)


def test_examples_that_a_teacher_has_no_room_for_are_counted_and_none_at_all_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, objective = make("labels-shown", settings={"teacher_shots": 6})
    shots = objective.details()["teacher_shots"]
    assert 0 < shots["used"] < shots["given"] == 18
    monkeypatch.setattr("foreword.tuning.demonstrations.PROMPT_SHARE", 0.0)
    with pytest.raises(DataError, match="no room for a single example"):
        make("labels-shown")


def test_only_a_document_that_is_read_whole_has_a_score_of_its_own(make: Make, tmp_path: Path) -> None:
    _, pieces = make("document-labels")
    (tmp_path / "short.txt").write_text(TEXT, encoding="utf-8")
    _, whole = make("document-labels", settings={"teacher_file": "short.txt"})
    _, told = make("labels-shown")
    assert pieces.teacher_score() is None
    assert 0 <= (whole.teacher_score() or 0) <= 1
    assert 0 <= (told.teacher_score() or 0) <= 1
    assert make("labels-causal")[1].teacher_score() is None


def test_the_teacher_of_answers_is_the_model_with_the_text_before_the_prompt(make: Make) -> None:
    """Its divergence from the bare model, computed plainly: whole rows, nothing baked."""
    bench, objective = make("answers-told", lambda _: Bare())
    assert isinstance(objective, AnswerDistillation)
    host, lesson = bench.host, objective.lessons[0]
    before = tokens(host, TEXT + "\n\n", special=True)
    with torch.no_grad():
        told = torch.log_softmax(completion_logits(host, [before + lesson.prompt], [lesson.answer]).double(), dim=1)
        said = torch.log_softmax(completion_logits(host, [lesson.prompt], [lesson.answer]).double(), dim=1)
        found = float(objective.loss([0], 0))
    wanted = float((told.exp() * (told - said)).sum() / len(lesson.answer))
    assert found == pytest.approx(wanted, abs=1e-3)


def test_behind_a_baked_text_the_teacher_reads_no_second_beginning(make: Make, shared_host: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    host = shared_host("llama")
    plain = host.tokenizer.backend_tokenizer.post_processor
    host.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    try:
        _, objective = make("labels-told")
        _, answers = make("document")
        assert isinstance(objective, LabelDistillation)
        assert isinstance(answers, AnswerDistillation)
        assert all(lesson.prompt[0] == 1 != lesson.teacher_prompt[0] for lesson in answers.lessons)
        assert all(lesson.prompt[1:] == lesson.teacher_prompt for lesson in answers.lessons)
    finally:
        host.tokenizer.backend_tokenizer.post_processor = plain


def test_an_encoders_teacher_reads_the_text_before_the_input(make: Make) -> None:
    bench, objective = make("features-told", lambda _: Bare())
    assert isinstance(objective, FeatureDistillation)
    inputs = [example.input for example in bench.splits.fit]
    with torch.no_grad():
        own = features(bench.host, [tokens(bench.host, text, special=True) for text in inputs])
        behind = features(bench.host, [tokens(bench.host, f"{TEXT}\n\n{text}", special=True) for text in inputs])
        found = float(objective.loss(list(range(len(inputs))), 0))
    wanted = 1 - float(torch.nn.functional.cosine_similarity(own, behind).mean())
    assert found == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("name", ["answers-told", "document"])
def test_a_teacher_that_is_asked_anew_says_what_was_kept(
    make: Make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, kept = make(name)
    monkeypatch.setattr("foreword.tuning.objectives.distillation.KEPT_BYTES", 0)
    _, asked = make(name)
    with torch.no_grad():
        for indices in ([0, 1, 2], [3]):
            assert float(kept.loss(indices, 0)) == pytest.approx(float(asked.loss(indices, 0)), abs=1e-4)
    assert kept.evaluate(0)[1] == pytest.approx(asked.evaluate(0)[1], abs=1e-4)


def test_a_limit_on_inputs_does_not_count_the_teachers_text(make: Make) -> None:
    bench, _ = make("features-told")
    manner = replace(bench.manner(), max_input_tokens=8)
    teacher = teacher_with(Predictor(bench.host, manner, Bare(), unset_readout("linear", bench)), f"{TEXT}\n\n")
    (row,) = teacher.rows(["apple rose"], [])
    assert row == tokens(bench.host, f"{TEXT}\n\napple rose", special=True)
    assert len(row) > 8


# Self-study of a document


def test_a_document_is_studied_piece_by_piece_and_none_of_it_is_left_out(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("gpt2")
    text = " ".join(f"line {number} of the letter" for number in range(60))
    document = Document.read(host, text)
    sizes = [len(piece) for piece in document.pieces]
    assert [token for piece in document.pieces for token in piece] == tokens(host, text, special=False)
    assert max(sizes) <= host.max_positions // 2
    assert max(sizes) - min(sizes) <= 1
    assert document.shelf is not None
    assert [document.shelf.prefix(number).occupies for number in range(len(sizes))] == sizes
    assert document.occupies == max(sizes)


@pytest.mark.parametrize(("name", "tokens"), [("document", 54), ("document-labels", 64)])
def test_a_lesson_fits_into_what_the_model_reads_behind_a_piece_of_the_document(
    make: Make, name: str, tokens: int
) -> None:
    """A piece takes up to half of the 128 tokens that these models read, so that not all answers may be this long."""
    bench, objective = make(name, max_tokens=tokens)
    assert isinstance(objective, AnswerDistillation)
    assert objective.shelf is not None
    lessons = objective.lessons + objective.selection_lessons
    for lesson in lessons:
        read = objective.shelf.prefix(lesson.source).occupies + len(lesson.teacher_prompt) + len(lesson.answer)
        assert read <= bench.host.max_positions


def test_self_study_is_the_same_for_the_same_seed_and_its_answers_end_once(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("llama")
    document = Document.read(host, (TEXT + ". ") * 20)
    assert len(document.pieces) > 1
    studied = [self_study(document, [[7, 9, 11]], count=40, new_tokens=5, seed=seed) for seed in (1, 1, 2)]
    assert studied[0] == studied[1] != studied[2]
    end = host.tokenizer.eos_token_id
    for lesson in studied[0]:
        assert 1 <= len(lesson.answer) <= 5
        assert end not in lesson.answer[:-1]
    assert {lesson.source for lesson in studied[0]} == set(range(len(document.pieces)))
    assert sum(lesson.prompt == [7, 9, 11] for lesson in studied[0]) == 20
    for lesson in studied[0][::2]:  # an excerpt of the piece that the teacher has in its context
        inside = document.pieces[lesson.source]
        spans = (inside[at : at + len(lesson.prompt)] for at in range(len(inside)))
        assert lesson.prompt in spans


def test_a_study_that_the_teacher_gave_with_each_piece_is_told_with_that_piece(make: Make) -> None:
    """Each lesson's loss under the bare student, computed alone with its own piece attached."""
    bench, objective = make("document", lambda _: Bare())
    assert isinstance(objective, AnswerDistillation)
    assert objective.shelf is not None
    for index, lesson in enumerate(objective.lessons[:4]):
        with torch.no_grad():
            said = torch.log_softmax(completion_logits(bench.host, [lesson.prompt], [lesson.answer]).double(), dim=1)
            with attached(bench.host, objective.shelf.prefix(lesson.source)):
                logits = completion_logits(bench.host, [lesson.teacher_prompt], [lesson.answer])
            told = torch.log_softmax(logits.double(), dim=1)
            wanted = float((told.exp() * (told - said)).sum() / len(lesson.answer))
            assert float(objective.loss([index], 0)) == pytest.approx(wanted, abs=1e-3)


def test_pieces_are_read_when_a_lesson_needs_them_and_let_go_beyond_a_limit(
    shared_host: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a document of many pieces a few lessons read a few; what was let go is the same when it is read again."""
    host, read = shared_host("gpt2"), list[int]()
    document = Document.read(host, " ".join(f"line {number} of the letter" for number in range(400)))
    shelf = document.shelf
    assert shelf is not None
    counted = Shelf(host, lambda source: read.append(source) or shelf.read(source))  # type: ignore[func-returns-value]
    lessons = self_study(replace(document, shelf=counted), [], count=6, new_tokens=3, seed=0)
    sources = {lesson.source for lesson in lessons}
    assert sorted(read) == sorted(sources)
    assert len(sources) < len(document.pieces) / 2
    whole = told(host, lessons, counted)
    assert len(read) == len(sources)
    monkeypatch.setattr("foreword.tuning.objectives.teacher.READ_BYTES", 0)
    for lesson, wanted in zip(lessons, whole.split([len(lesson.answer) for lesson in lessons]), strict=True):
        assert torch.allclose(told(host, [lesson], counted), wanted, rtol=0, atol=1e-5)
        assert list(counted.kept) == [lesson.source]
    assert len(read) > len(sources)


# Leave one out


@pytest.mark.parametrize(
    "name", ["labels-causal", "labels-encoder", "labels-both", "completion", "labels-told", "features-causal"]
)
def test_no_gradient_of_an_example_reaches_the_positions_made_from_it(make: Make, name: str) -> None:
    own: dict[int, Any] = {0: slice(0, 2), 1: slice(2, 3), 2: [3, 5]}
    _, objective = make(name)
    objective.hide(own)
    for index, hidden in own.items():
        for slope in slopes(objective, [index]).values():
            assert torch.equal(slope[:, hidden], torch.zeros_like(slope[:, hidden]))
        own_positions = range(POSITIONS)[hidden] if isinstance(hidden, slice) else hidden
        rest = [at for at in range(POSITIONS) if at not in own_positions]
        # At the start all values are zero, and keys have no slope where positions are alike; values always have.
        # Values at the start are zero, so that keys have no slope yet; values always have.
        moved = [slope for path, slope in slopes(objective, [index]).items() if path.endswith("values")]
        assert any((slope[:, rest].abs().sum(dim=(0, 2)) > 0).all() for slope in moved)
    assert objective.details()["leave_one_out"] == 3


def test_in_a_batch_each_example_is_blind_to_its_own_positions_only(make: Make) -> None:
    """The batch's gradient is the mean of the examples' own; one without positions of its own sees them all."""
    own = {0: slice(0, 2), 1: slice(2, 4)}
    _, objective = make("labels-causal", own=own, settings={"start": "demonstrations", "leave_one_out": True})
    whole = slopes(objective, [1, 5, 0])
    alone = [slopes(objective, [index]) for index in (1, 5, 0)]
    for path, slope in whole.items():
        mean = sum(found[path] for found in alone) / 3
        assert float((slope - mean).abs().max()) <= 1e-4 * max(1.0, float(mean.abs().max()))


def test_masking_is_off_below_four_demonstrations_unless_it_is_asked_for() -> None:
    few, enough = ({index: slice(index, index + 1) for index in range(count)} for count in (3, 4))
    assert masked_positions(few, None) == {}
    assert masked_positions(few, True) == few
    assert masked_positions(enough, None) == enough
    assert masked_positions(enough, False) == {}
    assert masked_positions(None, True) == {}


def test_an_example_that_would_see_nothing_or_has_no_prefix_is_refused(make: Make) -> None:
    everything = {0: slice(0, POSITIONS)}
    _, objective = make("labels-causal", own=everything, settings={"start": "demonstrations", "leave_one_out": True})
    with pytest.raises(FitError, match="see nothing"):
        objective.loss([0, 1], 0)
    with pytest.raises(FitError, match="positions that can be hidden"):
        make("labels-causal", lambda host: SoftPrompt(host, positions=2, seed=0), own=everything,
             settings={"start": "demonstrations", "leave_one_out": True})  # fmt: skip


# Bad input


def test_inputs_that_were_cut_are_counted(make: Make, shared_host: Callable[[str], Host]) -> None:
    bench, _ = make("labels-causal")
    long = replace(bench.splits.fit[0], input="apple rose brick " * 100)
    predictor = Predictor(bench.host, bench.manner(), FittedPrefix(bench.host, positions=2, seed=0))
    objective = objective_for(predictor, [long, *bench.splits.fit[1:]], [*bench.splits.selection, long], bench.score)
    assert objective.details()["inputs_cut"] == {"fit": 1, "selection": 1}


def test_answers_that_were_cut_are_counted(make: Make) -> None:
    bench, _ = make("completion")
    manner = replace(bench.manner(), max_new_tokens=3)
    predictor = Predictor(bench.host, manner, FittedPrefix(bench.host, positions=2, seed=0))
    short, long = (replace(bench.splits.fit[0], target=target) for target in ("the", "the cat sat on the mat"))
    objective = objective_for(predictor, [short, long, long], bench.splits.selection, bench.score)
    assert objective.details()["answers_cut"] == 2


def test_answers_that_the_tokenizer_cannot_spell_are_counted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizers of these tests know all bytes; one that takes "é" for unknown has "é"'s token for that."""
    bench, objective = make("completion")
    assert objective.details()["answers_unknown"] == 0
    odd = replace(bench.splits.fit[0], target="the café")
    predictor = Predictor(bench.host, bench.manner(), FittedPrefix(bench.host, positions=2, seed=0))
    unknown = bench.host.tokenizer.convert_ids_to_tokens(predictor.completion("the café")[-1])
    tokenizer = copy.deepcopy(bench.host.tokenizer)
    tokenizer.unk_token = unknown
    monkeypatch.setattr(bench.host, "tokenizer", tokenizer)
    objective = objective_for(predictor, [odd, *bench.splits.fit[1:]], bench.splits.selection, bench.score)
    assert objective.details()["answers_unknown"] == 1


@pytest.mark.parametrize("found", ["empty", "undefined"])
def test_a_metric_without_a_value_on_the_selection_split_is_refused(make: Make, found: str) -> None:
    bench, _ = make("labels-causal")
    predictor = Predictor(bench.host, bench.manner(), FittedPrefix(bench.host, positions=2, seed=0))
    selection = () if found == "empty" else bench.splits.selection
    with pytest.raises(DataError, match="undefined on the selection split"):
        objective_for(predictor, bench.splits.fit, selection, lambda *_: math.nan)


@pytest.mark.parametrize(("metric", "target"), [("token-f1", "..."), ("rouge-l", "🙂"), ("json-valid", "no JSON")])
def test_a_metric_that_rates_empty_answers_as_high_as_right_ones_is_refused(metric: str, target: str) -> None:
    selection = [Example(str(number), "text", target) for number in range(3)]
    with pytest.raises(DataError, match="cannot tell right answers from empty ones"):
        check_metric(selection, lambda targets, outputs: value(metric, targets, outputs))


def test_objectives_that_do_not_suit_how_a_candidate_answers_are_refused(make: Make) -> None:
    bench, _ = make("labels-encoder")
    predictor = Predictor(bench.host, bench.manner(), Bare(), unset_readout("linear", bench))
    given = (predictor, bench.splits.fit, bench.splits.selection, bench.score)
    with pytest.raises(FitError, match="not how this candidate answers"):
        objective_for(*given, settings=PrefixSettings(objective="completion"))
    with pytest.raises(FitError, match="Only a model that writes can study a document"):
        objective_for(*given, settings=PrefixSettings(objective="distillation", teacher_file="text.txt"))


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "No such file"), (b"", "too short"), (b"\xff\xfe", "can't decode byte 0xff"), (b"ab", "too short")],
)
def test_a_document_that_cannot_be_studied_is_refused(
    make: Make, tmp_path: Path, content: bytes | None, told: str
) -> None:
    path = tmp_path / "other.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        make("document", settings={"teacher_file": "other.txt"})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"objective": "distillation"}, "one of teacher_text, teacher_shots, teacher_file"),
        (
            {"objective": "distillation", "teacher_text": "a", "teacher_shots": 2},
            "found teacher_text and teacher_shots",
        ),
        ({"teacher_text": "a"}, 'objective = "distillation" beside teacher_text'),
        ({"objective": "similarity", "readout": "linear"}, 'readout "label-text" for objective "similarity"'),
        ({"objective": "completion", "readout": "linear"}, 'readout "auto" for objective "completion"'),
        ({**TOLD, "readout": "calibrated"}, 'another readout than "calibrated" for objective "distillation"'),
        ({"objective": "fastest"}, "objective"),
        ({"self_study": 1}, "self_study"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(
    write_task: Callable[..., Path], tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(TaskError, match=told):
        Task.load(write_task(tmp_path, "base", [{"kind": "prefix", **fields}]))


@pytest.mark.parametrize("objective", ["labels", "similarity"])
def test_objectives_over_labels_are_not_for_generation(
    write_task: Callable[..., Path], tmp_path: Path, objective: str
) -> None:
    with pytest.raises(TaskError, match=f"another objective than '{objective}'"):
        Task.load(write_task(tmp_path, "base", [{"kind": "prefix", "objective": objective}], kind="generate"))


# Through the candidates


def fitted_with(
    bench: tuple[Callable[..., Path], Callable[[str], Path], Callable[[str], Host], Path],
    family: str,
    table: dict[str, Any],
    kind: str = "classify",
) -> tuple[Workbench, Fitted]:
    write, folder, load, path = bench
    task = Task.load(write(path, folder(family), [{"kind": "prefix", "positions": 3, **table}], kind=kind))
    made = Workbench(load(family), task, load_splits(task))
    return made, candidate_for(task.candidates[0]).fit(made, seed=0)


@pytest.fixture
def parts(
    write_task: Callable[..., Path],
    model_folder: Callable[[str], Path],
    load_host: Callable[[str], Host],
    tmp_path: Path,
) -> Any:
    (tmp_path / "text.txt").write_text((TEXT + ". ") * 20, encoding="utf-8")
    return write_task, model_folder, load_host, tmp_path


@pytest.mark.parametrize("name", CASES)
def test_a_task_file_can_ask_for_it_and_the_bundle_answers_as_the_fit_did(parts: Any, name: str) -> None:
    family, kind, fields, readout = CASES[name]
    table = {**fields, "steps": 2, "batch_size": 4, **({} if readout is None else {"readout": readout})}
    made, fitted = fitted_with(parts, family, table, kind)
    inputs = [example.input for example in made.splits.test][:4]
    predictor, path = fitted.predictor, parts[3] / "one.prefix"
    prefix = predictor.adaptation.prefix()  # type: ignore[attr-defined]
    save_bundle(path, prefix, host=made.host, use=predictor.use(), readout=predictor.arrays())
    assert predictor_from(load_bundle(path), made.host).answer(inputs) == predictor.answer(inputs)
    assert fitted.details["inputs_cut"] == {"fit": 0, "selection": 0}


@pytest.mark.parametrize("name", ["answers-told", "document", "document-both", "labels-told", "features-causal"])
def test_a_distillation_keeps_what_is_nearest_to_its_teacher_whatever_the_metric_says(
    parts: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a metric that falls with every look, which kept the untouched start before."""
    family, kind, fields, readout = CASES[name]
    table = {**fields, "steps": 24, "batch_size": 8, "evaluate_every": 4, "learning_rate": 0.03, "patience": 3}
    looks = iter(range(100))
    monkeypatch.setattr(Workbench, "score", lambda *_: 1 / (1 + next(looks)))
    monkeypatch.setattr("foreword.tuning.objectives.contract.check_metric", lambda *_: None)
    _, fitted = fitted_with(parts, family, {**table, **({} if readout is None else {"readout": readout})}, kind)
    start, kept = fitted.details["selection_losses"]
    assert fitted.details["kept_by"] == "loss"
    assert fitted.details["best_step"] > 0
    assert 0 <= kept < start


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        (0.0, "the teacher itself scores 0.000 on the selection split, where the fit begins with 1.000"),
        (0.99, None),
        (1.0, "scores 0.000 on the selection split, where the fit began with 1.000"),
    ],
)
def test_a_teacher_that_does_the_task_worse_than_the_start_is_told(
    parts: Any, monkeypatch: pytest.MonkeyPatch, teacher: float, told: str | None
) -> None:
    """Told once, and before the first step where the teacher's own answers show it: 0 is below every interval of 1."""
    looks = iter([teacher, *([1.0] * 100 if teacher == 0.99 else [1.0, *[0.0] * 100])])
    monkeypatch.setattr(Workbench, "score", lambda *_: next(looks))
    monkeypatch.setattr("foreword.tuning.objectives.contract.check_metric", lambda *_: None)
    table = {**CASES["answers-told"][2], "steps": 8, "batch_size": 8, "evaluate_every": 4, "learning_rate": 0.03}
    _, fitted = fitted_with(parts, "gpt2", table, "generate")
    assert fitted.details["teacher_selection"] == teacher
    found = [text for text in fitted.details["notices"] if "teacher" in text]
    assert len(found) == (told is not None)
    assert told is None or told in found[0]


def test_a_teacher_that_does_not_meet_the_requirement_is_told() -> None:
    """Of 40 examples; 0.1 begins within chance of 0.09, and 0.7 is required."""
    assert of_the_teacher(None, 0.1, 0.7, 40) is None
    assert of_the_teacher(0.8, 0.1, 0.7, 40) is None
    assert "scores 0.090 on the selection split, and 0.7 is required" in str(of_the_teacher(0.09, 0.1, 0.7, 40))


def test_a_shorter_prefix_comes_close_to_the_prompt_that_it_distils(parts: Any) -> None:
    """Three positions for a prompt of ten tokens and more: most of the divergence is gone after 60 steps."""
    table = {"objective": "distillation", "teacher_text": TEXT, "steps": 60, "batch_size": 18, "learning_rate": 0.1}
    _, fitted = fitted_with(parts, "llama", table)
    losses = [moment.loss for moment in fitted.history if moment.loss is not None]
    assert losses[-1] < losses[0] / 2
