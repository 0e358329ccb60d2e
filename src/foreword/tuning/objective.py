"""Which objective a fit minimises: what the task file names, or what suits how the predictor answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from foreword.errors import DataError, FitError
from foreword.regular_file import content_of, found_in
from foreword.tuning.adaptation import Bare, FixedPrefix
from foreword.tuning.candidate_settings import FittedSettings
from foreword.tuning.examples import Example
from foreword.tuning.objectives.completion import CompletionLikelihood
from foreword.tuning.objectives.contract import Ground, Objective, OwnPositions, Score, masked_positions
from foreword.tuning.objectives.distillation import (
    AnswerDistillation,
    FeatureDistillation,
    LabelDistillation,
    lessons_of,
)
from foreword.tuning.objectives.document import EXCERPT_TOKENS, Document, self_study
from foreword.tuning.objectives.labels import ClassContrast, LabelCrossEntropy
from foreword.tuning.objectives.lesson_book import LessonBook
from foreword.tuning.objectives.similarity import TextSimilarity
from foreword.tuning.objectives.teacher import Taught, read_by_teacher, teacher_with
from foreword.tuning.predictor import Predictor

# Of a document's self-study one lesson in so many is kept to choose a state by, and not fitted to.
HELD_OUT = 8
LARGEST_DOCUMENT_BYTES = 10_000_000


def objective_for(
    predictor: Predictor,
    fit: Sequence[Example],
    selection: Sequence[Example],
    score: Score,
    *,
    settings: FittedSettings | None = None,
    texts: Sequence[str] = (),
    own: OwnPositions | None = None,
    folder: Path = Path(),
    seed: int = 0,
    is_calibrated: bool = False,
    studied: Callable[[int, int], None] | None = None,
    book: LessonBook | None = None,
) -> Objective:
    """The objective that `settings` name; without, the one that suits how `predictor` answers.

    `texts` are the labels' texts in the predictor's order, for similarity. `own` maps the index of a fit example to the
    positions of the prefix that were made from it: they are hidden from that example while it is fitted, by
    `settings.leave_one_out` (None: from 4 such examples on). `folder` is where `teacher_file` is found, `seed` that of
    self-study, of which `studied` is told how many lessons are written; `book` has those of fits before.
    `is_calibrated`: labels' likelihoods get offsets once `Objective.calibrate` is called. FitError or DataError when
    objective, predictor and data do not go together.
    """
    settings = settings or FittedSettings(kind="fitted")
    ground = Ground(predictor, fit, selection, score, masked_positions(own, settings.leave_one_out))
    kind = settings.objective
    if kind == "distillation":
        if settings.teacher_file:
            return _document(ground, settings, folder, seed, studied, book)
        return _distillation(ground, settings)
    if kind == "similarity":
        return TextSimilarity(ground, texts=texts or predictor.manner.labels)
    if kind == "completion" and predictor.readout is not None:
        raise FitError(
            "The likelihood of completions is not how this candidate answers.",
            expected="a model that writes, and no read-out of features",
            found=f"read-out {predictor.readout.kind} on {predictor.host.family}",
            fix='Set objective to "labels" or "auto", or remove the readout.',
        )
    if kind == "completion" or predictor.manner.kind == "generate":
        return CompletionLikelihood(ground)
    if predictor.readout is not None and predictor.readout.kind != "label-text":
        return ClassContrast(ground, kind=predictor.readout.kind)
    return LabelCrossEntropy(ground, is_calibrated=is_calibrated)


def _distillation(ground: Ground, settings: FittedSettings) -> Objective:
    """From a text, or from the first examples written out, to what the predictor answers by."""
    predictor = ground.predictor
    found = read_by_teacher(predictor.host, predictor.manner, ground.fit, settings)
    teacher = teacher_with(predictor, found.text)
    shots = {"teacher_shots": {"given": found.given, "used": found.used}} if found.given else {}
    ground = replace(ground, reserve=teacher.reserve, told=shots)
    if predictor.manner.kind == "generate":
        fitted_to, kept = (lessons_of(ground, teacher, split) for split in (ground.fit, ground.selection))
        taught = Taught(teacher.predictor, [lesson.teacher_prompt for lesson in kept])
        return AnswerDistillation(ground, fitted_to, kept, teacher.shelf, taught)
    if predictor.readout is None:
        return LabelDistillation(ground, teacher)
    kind = predictor.readout.kind
    return FeatureDistillation(ground, teacher, kind=None if kind == "label-text" else kind)


def _document(
    ground: Ground,
    settings: FittedSettings,
    folder: Path,
    seed: int,
    studied: Callable[[int, int], None] | None,
    book: LessonBook | None,
) -> Objective:
    """From a document to answers that the model gives with the document in its context."""
    predictor = ground.predictor
    if predictor.host.role == "encoder":
        raise FitError(
            "Only a model that writes can study a document.",
            expected="a causal or an encoder-decoder base model, which writes its own lessons",
            found=f"{predictor.host.reference}, {predictor.host.family}, an encoder",
            fix="Give the document's text as teacher_text, or use a base model that writes.",
        )
    if predictor.readout is not None or predictor.manner.template.chat:
        raise FitError(
            "A document is studied by what the model writes, outside a chat.",
            expected="a causal or an encoder-decoder model without a read-out of features and without chat",
            found="a read-out" if predictor.readout is not None else "chat = true",
            fix="Give the document's text as teacher_text, or remove readout and chat.",
        )
    document = Document.read(predictor.host, _read(folder / str(settings.teacher_file)))
    new_tokens, reserve = _room(predictor, document)
    ground = replace(ground, reserve=reserve, own={})
    prompts = [found.ids for found in ground.read(ground.fit)]
    lessons = self_study(
        document, prompts, count=settings.self_study, new_tokens=new_tokens, seed=seed, studied=studied, book=book
    )
    fitted_to = [lesson for number, lesson in enumerate(lessons) if number % HELD_OUT]
    return AnswerDistillation(ground, fitted_to, lessons[::HELD_OUT], document.shelf, _taught(ground, document))


def _taught(ground: Ground, document: Document) -> Taught | None:
    """The model with the document in its context, at the task; None for a document that takes several contexts."""
    if len(document.pieces) > 1:
        return None
    carried = Bare() if document.shelf is None else FixedPrefix(document.host, document.shelf.prefix(0))
    rows = [document.lesson(found.ids, 0).teacher_prompt for found in ground.read(ground.selection)]
    return Taught(replace(ground.predictor, adaptation=carried), rows)


def _room(predictor: Predictor, document: Document) -> tuple[int, int]:
    """Tokens that an answer about a document may have, and those that are left free beside every prompt.

    A causal model writes behind what it reads; a decoder takes nothing from what the encoder reads. DataError when a
    piece of the document leaves no room for an excerpt of it and, with a causal model, an answer.
    """
    host, manner = predictor.host, predictor.manner
    soft = 0 if predictor.adaptation.soft is None else len(predictor.adaptation.soft)
    room = host.max_positions - max(document.occupies, soft)
    excerpt = EXCERPT_TOKENS[1] + max(1, len(document.before) + len(document.after))
    new_tokens, reserve = manner.max_new_tokens, document.occupies
    if host.role == "encoder-decoder":
        new_tokens, needed = min(new_tokens, host.max_positions), excerpt
    else:
        new_tokens, needed = min(new_tokens, room - excerpt), excerpt + 1
        if manner.kind == "classify":  # a prompt is followed by more than the label that it else leaves room for
            new_tokens = min(new_tokens, room // 2)
            reserve += new_tokens
    if room < needed:
        raise DataError(
            "The base model reads too little to study a document.",
            expected=f"room for {needed} tokens beside a piece of the document",
            found=f"{room} of {host.max_positions}",
            fix="Give the text as teacher_text, or use a base model that reads more.",
        )
    return new_tokens, reserve


def _read(path: Path) -> str:
    try:
        return content_of(path, LARGEST_DOCUMENT_BYTES).decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise DataError(
            f"The document {path} cannot be read.",
            expected=f"a text file in UTF-8 of at most {LARGEST_DOCUMENT_BYTES:,} bytes",
            found=found_in(error)[:200],
            fix="Name a text file in teacher_file, relative to the task file's folder.",
        ) from error
