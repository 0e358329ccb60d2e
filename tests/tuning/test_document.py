"""A document that encoder-decoder models study: in the encoder's input for the teacher, and not there for the student.

What holds of causal models stands in test_objectives.py, with the laws of all objectives.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foreword as fw
from foreword.engine.host import Host
from foreword.engine.rendering import tokens
from foreword.errors import DataError, FitError, HostError
from foreword.tuning.adaptation import Bare
from foreword.tuning.candidate_settings import PrefixSettings
from foreword.tuning.candidates import Workbench
from foreword.tuning.candidates.contract import UNMOVED
from foreword.tuning.examples import load_splits
from foreword.tuning.fittable import FitWatch, StepTaken
from foreword.tuning.objective import objective_for
from foreword.tuning.objectives.distillation import AnswerDistillation
from foreword.tuning.objectives.document import Document, self_study
from foreword.tuning.predictor import Predictor
from foreword.tuning.task import Task

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("t5", "bart")
TEXT = "the price of bread and milk rose again this month"
STUDY = {"objective": "distillation", "teacher_file": "text.txt", "self_study": 16}
OPTIONS: dict[str, Any] = {"length": 3, "steps": 6, "batch_size": 7, "evaluate_every": 3}


@pytest.fixture(scope="module")
def folder(model_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's tiny model; T5 drawn wider, as two texts move the other tests' one by 1e-5 nats only."""
    import transformers as hf

    place = tmp_path_factory.mktemp("wide-t5")
    config = hf.AutoConfig.from_pretrained(model_folder("t5"))
    config.initializer_factor = 1.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        hf.T5ForConditionalGeneration(config).save_pretrained(place)
    hf.AutoTokenizer.from_pretrained(model_folder("t5")).save_pretrained(place)
    return lambda family: place if family == "t5" else model_folder(family)


@pytest.fixture(scope="module")
def hosts(folder: Callable[[str], Path]) -> Callable[[str], Host]:
    made = {family: Host.load(str(folder(family)), device="cpu") for family in FAMILIES}
    return lambda family: made[family]


@pytest.fixture
def task(write_task: Callable[..., Path], folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A task that writes (unless another kind is named), with a document beside it."""

    def made(family: str, text: str = TEXT, kind: str = "generate", **sections: Any) -> Path:
        path = write_task(tmp_path / "task", folder(family), [], kind=kind, **sections)
        (path.parent / "text.txt").write_text(text, encoding="utf-8")
        return path

    return made


def studied(host: Host, path: Path, **settings: Any) -> tuple[Workbench, AnswerDistillation]:
    """The objective of the bare model as the student."""
    loaded = Task.load(path)
    bench = Workbench(host, loaded, load_splits(loaded))
    objective = objective_for(
        Predictor(host, bench.manner(), Bare()), bench.splits.fit, bench.splits.selection, bench.score,
        settings=PrefixSettings(**{**STUDY, **settings}), folder=path.parent, seed=3,
    )  # fmt: skip
    assert isinstance(objective, AnswerDistillation)
    return bench, objective


# What teacher and student read


@pytest.mark.parametrize("family", FAMILIES)
def test_the_teacher_reads_the_document_before_the_prompt_and_the_student_the_prompt(
    hosts: Callable[[str], Host], task: Callable[..., Path], family: str
) -> None:
    """As the tokenizer writes both in one text, parted by an empty line, with its own tokens around them once."""
    host = hosts(family)
    bench, objective = studied(host, task(family))
    prompts = [tokens(host, f"{example.input}\n", special=True) for example in bench.splits.fit]
    behind = [tokens(host, f"{TEXT}\n\n{example.input}\n", special=True) for example in bench.splits.fit]
    lessons = objective.lessons + objective.selection_lessons
    assert objective.shelf is None
    asked = [lesson for lesson in lessons if lesson.prompt in prompts]
    assert len(asked) == len(lessons) // 2
    for lesson in asked:
        assert lesson.teacher_prompt == behind[prompts.index(lesson.prompt)]
    inside = tokens(host, TEXT, special=False)
    for lesson in lessons:
        if lesson not in asked:
            excerpt = lesson.prompt[1:-1] if family == "bart" else lesson.prompt[:-1]
            assert excerpt in (inside[at : at + len(excerpt)] for at in range(len(inside)))
            assert lesson.teacher_prompt.count(host.tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_divergence_over_the_decoders_answer(
    hosts: Callable[[str], Host], task: Callable[..., Path], family: str
) -> None:
    """Computed plainly: the model by itself, on each lesson alone, teacher first, a mean over the answer's tokens."""
    host = hosts(family)
    _, objective = studied(host, task(family))
    start = int(host.model.config.decoder_start_token_id)
    for index, lesson in enumerate(objective.lessons[:4]):
        decoder = torch.tensor([[start, *lesson.answer[:-1]]])
        with torch.no_grad():
            told, said = (
                torch.log_softmax(
                    host.model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoder).logits[0].double(), dim=1
                )
                for prompt in (lesson.teacher_prompt, lesson.prompt)
            )
            found = float(objective.loss([index], 0))
        wanted = float((told.exp() * (told - said)).sum() / len(lesson.answer))
        assert wanted > 1e-3
        assert found == pytest.approx(wanted, abs=1e-4)


def test_each_piece_of_a_long_document_is_read_with_room_for_the_prompt(
    hosts: Callable[[str], Host], task: Callable[..., Path]
) -> None:
    """BART reads 128 tokens; its decoder writes answers of any length up to that, which take nothing from a prompt."""
    host = hosts("bart")
    text = " ".join(f"line {number} of the letter" for number in range(15))
    _, objective = studied(host, task("bart", text, model={"max_tokens": 120}), self_study=24)
    document = Document.read(host, text)
    assert [token for piece in document.pieces for token in piece] == tokens(host, text, special=False)
    lessons = objective.lessons + objective.selection_lessons
    assert len({lesson.source for lesson in lessons}) == len(document.pieces) > 1
    for lesson in lessons:
        piece = document.pieces[lesson.source]
        assert lesson.teacher_prompt[1 : 1 + len(piece)] == piece
        assert len(lesson.teacher_prompt) <= host.max_positions
    assert max(len(lesson.answer) for lesson in lessons) > host.max_positions // 2


@pytest.mark.parametrize("family", FAMILIES)
def test_self_study_is_the_same_for_the_same_seed_and_its_answers_end_once(
    hosts: Callable[[str], Host], family: str
) -> None:
    document = Document.read(hosts(family), TEXT)
    found = [self_study(document, [[7, 9, 2]], count=20, new_tokens=5, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]
    assert sum(lesson.prompt == [7, 9, 2] for lesson in found[0]) == 10
    for lesson in found[0]:
        assert 1 <= len(lesson.answer) <= 5
        assert document.host.tokenizer.eos_token_id not in lesson.answer[:-1]


# Fits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fit_comes_nearer_to_the_model_with_the_document(
    hosts: Callable[[str], Host], task: Callable[..., Path], family: str
) -> None:
    """On lessons that were not fitted to as well: one in eight."""
    host, path = hosts(family), task(family)
    _, bare = studied(host, path, self_study=64)
    options = {**STUDY, "self_study": 64, "length": 6, "steps": 48, "batch_size": 28, "evaluate_every": 12}
    made = fw.fit(host, path, seed=3, **options)
    bare.predictor.adaptation = made.predictor.adaptation
    everything = list(range(bare.examples))
    with torch.no_grad():
        fitted = float(bare.loss(everything, 0))
        held_out = -bare.evaluate(0)[1]
        bare.predictor.adaptation = Bare()
        without, held_out_without = float(bare.loss(everything, 0)), -bare.evaluate(0)[1]
    assert fitted < without / 4
    assert held_out < held_out_without / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interrupted_fit_goes_on_to_the_same_numbers(
    hosts: Callable[[str], Host], task: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    class Stops(FitWatch):
        def stepped(self, taken: StepTaken) -> None:
            if taken.step == 4:
                raise KeyboardInterrupt

    host, path, out = hosts(family), task(family), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        fw.fit(host, path, out=out, watch=Stops(), **STUDY, **OPTIONS)
    resumed, whole = fw.fit.resume(out, host=host), fw.fit(host, path, **STUDY, **OPTIONS)
    for mine, other in zip(resumed.prefix.layers, whole.prefix.layers, strict=True):
        assert np.array_equal(mine.keys, other.keys)
        assert np.array_equal(mine.values, other.values)
    assert [moment.loss for moment in resumed.history] == [moment.loss for moment in whole.history]
    assert json.loads((out / "result.json").read_text())["record"]["settings"]["settings"]["teacher_file"] == "text.txt"


@pytest.mark.parametrize(("rate", "is_kept"), [(1e4, False), (1e-2, True)])
def test_a_fit_that_keeps_its_first_values_says_so(
    hosts: Callable[[str], Host], task: Callable[..., Path], tmp_path: Path, rate: float, is_kept: bool
) -> None:
    """Also when the finished fit is loaded again, once each time."""
    host, out = hosts("bart"), tmp_path / "out"
    made = fw.fit(host, task("bart"), out=out, learning_rate=rate, **STUDY, **OPTIONS)
    assert (made.best.step > 0) is is_kept
    assert made.notices.count(UNMOVED) == (not is_kept)
    assert fw.fit.resume(out, host=host).notices.count(UNMOVED) == (not is_kept)


def test_a_mark_of_byte_order_is_no_part_of_a_document(hosts: Callable[[str], Host], task: Callable[..., Path]) -> None:
    plain = studied(hosts("bart"), task("bart"))[1].lessons
    assert studied(hosts("bart"), task("bart", f"\ufeff{TEXT}"))[1].lessons == plain


class Counts(FitWatch):
    """How often all lessons of a document were written."""

    def __init__(self) -> None:
        self.times = 0

    def studied(self, number: int, of: int) -> None:
        self.times += number == of


def test_the_lengths_of_a_sweep_share_their_lessons(
    hosts: Callable[[str], Host], task: Callable[..., Path], without_pictures: None
) -> None:
    counts, options = Counts(), {**OPTIONS, "length": "auto", "lengths": (1, 3), "steps": 2}
    made = fw.fit(hosts("bart"), task("bart"), watch=counts, **STUDY, **options)
    assert made.sweep is not None
    assert (len(made.sweep.trials), counts.times) == (2, 1)


@pytest.mark.parametrize("lessons", ["kept", "of other drafts", "beyond the vocabulary", "cut off", "none"])
def test_a_fit_that_goes_on_reads_its_lessons_and_writes_only_what_is_not_whole(
    hosts: Callable[[str], Host], task: Callable[..., Path], tmp_path: Path, lessons: str
) -> None:
    out, options = tmp_path / "out", {**OPTIONS, "steps": 2}
    made = fw.fit(hosts("bart"), task("bart"), out=out, **STUDY, **options)
    path, counts = out / "lessons.json", Counts()
    whole = path.read_text()
    told = json.loads(whole)
    changed = {
        "kept": whole,
        "of other drafts": json.dumps({**told, "of": "another"}),
        "beyond the vocabulary": json.dumps({**told, "answers": [[10**6]] * len(told["answers"])}),
        "cut off": whole[:-9],
    }
    path.write_text(changed[lessons]) if lessons in changed else path.unlink()
    again = fw.fit.resume(out, host=hosts("bart"), watch=counts)
    assert counts.times == (lessons != "kept")
    assert path.read_text() == whole
    assert again.prefix.hash == made.prefix.hash


def test_how_many_lessons_are_written_is_told_before_the_first_step(
    hosts: Callable[[str], Host], task: Callable[..., Path], tmp_path: Path
) -> None:
    """In batches of 32, also through the log of a fit with a folder."""
    told: list[Any] = []

    class Shown(FitWatch):
        def studied(self, number: int, of: int) -> None:
            told.append((number, of))

        def stepped(self, taken: StepTaken) -> None:
            told.append(taken.step)

    options = {**STUDY, **OPTIONS, "self_study": 40, "steps": 2}
    fw.fit(hosts("bart"), task("bart"), out=tmp_path / "out", watch=Shown(), **options)
    assert told == [(32, 40), (40, 40), 1, 2]


# Refusals


def test_an_encoder_does_not_study_a_document(shared_host: Callable[[str], Host], task: Callable[..., Path]) -> None:
    """Said of the encoder, and not of a read-out, which nobody named."""
    with pytest.raises(FitError, match="Only a model that writes can study a document") as refusal:
        fw.fit(shared_host("bert"), task("bert", kind="classify"), **STUDY, **OPTIONS)
    assert "an encoder" in (refusal.value.found or "")


def test_an_encoder_decoder_that_is_asked_for_features_does_not_study_a_document(
    hosts: Callable[[str], Host], task: Callable[..., Path]
) -> None:
    with pytest.raises(FitError, match="A document is studied by what the model writes") as refusal:
        fw.fit(hosts("bart"), task("bart", kind="classify"), readout="linear", **STUDY, **OPTIONS)
    assert "encoder-decoder" in (refusal.value.expected or "")


def test_an_encoder_decoder_without_its_head_does_not_study_a_document(
    hosts: Callable[[str], Host], task: Callable[..., Path]
) -> None:
    whole = hosts("bart")
    with pytest.raises(HostError, match="without its language-model head"):
        fw.fit(Host(whole.model.model, whole.tokenizer), task("bart"), **STUDY, **OPTIONS)


@pytest.mark.parametrize(("positions", "fits"), [(38, False), (40, True)])
def test_a_model_that_reads_too_little_is_refused(
    hosts: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch, task: Callable[..., Path], positions: int, fits: bool
) -> None:
    """Half is a piece's; beside it two tokens part it from an excerpt of 16, with one token on each side: 20."""
    host = hosts("bart")
    text = host.tokenizer.decode(tokens(host, TEXT * 3, special=False)[: positions // 2])
    assert len(tokens(host, text, special=False)) == positions // 2
    path = task("bart", text)
    monkeypatch.setattr(Host, "max_positions", property(lambda _: positions))
    if fits:
        studied(host, path)
    else:
        with pytest.raises(DataError, match="reads too little to study a document"):
            studied(host, path)
