"""Calibrated likelihoods: what a label is as a text is taken off its score, and stays with whatever was fitted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.bundle import load_bundle, save_bundle
from foreword.engine.host import Host
from foreword.engine.rendering import Template
from foreword.errors import BundleError, DataError, HostError
from foreword.tuning.adaptation import Bare
from foreword.tuning.candidates import Fitted, Workbench, candidate_for
from foreword.tuning.examples import load_splits
from foreword.tuning.fittable import FitWatch, StepTaken
from foreword.tuning.objectives import labels as labels_objective
from foreword.tuning.objectives.contract import targets_of
from foreword.tuning.objectives.labels import CALIBRATED_ON, all_label_scores, offsets_of
from foreword.tuning.predictor import Predictor, offsets_in, predictor_from
from foreword.tuning.task import Task

FITTED = {"kind": "prefix", "positions": 4, "steps": 2, "batch_size": 6}
Bench = Callable[..., Workbench]


@pytest.fixture
def bench(
    shared_host: Callable[[str], Host],
    model_folder: Callable[[str], Path],
    write_task: Callable[..., Path],
    tmp_path: Path,
) -> Bench:
    def make(family: str, table: dict[str, Any]) -> Workbench:
        task = Task.load(write_task(tmp_path, model_folder(family), [table]))
        return Workbench(shared_host(family), task, load_splits(task))

    return make


def fit_on(made: Workbench) -> Fitted:
    return candidate_for(made.task.candidates[0]).fit(made, seed=0)


def rows_of(made: Workbench, predictor: Predictor) -> list[list[int]]:
    return predictor.rows([example.input for example in made.splits.fit])


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_over_the_fit_inputs_a_label_is_as_likely_as_it_is_frequent(bench: Bench, family: str) -> None:
    """The mean of each label's scores, once calibrated, is the log of its share: with fewer inputs than are sampled."""
    made = bench(family, FITTED)
    predictor = Predictor(made.host, made.manner())
    rows, targets = rows_of(made, predictor), targets_of(predictor, made.splits.fit)
    assert len(rows) <= CALIBRATED_ON
    before = all_label_scores(predictor, rows).mean(dim=0)
    predictor.offsets = offsets_of(predictor, rows, targets)
    counts = Counter(example.target for example in made.splits.fit)
    labels = made.splits.labels
    shares = torch.tensor([math.log((counts[label] + 1) / (len(rows) + len(labels))) for label in labels])
    assert float((before - before.mean()).abs().max()) > 0.1  # as texts they are not equally likely
    assert torch.allclose(all_label_scores(predictor, rows).mean(dim=0), shares, atol=1e-4)


def test_calibrating_twice_is_calibrating_once(bench: Bench) -> None:
    made = bench("gpt2", FITTED)
    predictor = Predictor(made.host, made.manner())
    rows, targets = rows_of(made, predictor), targets_of(predictor, made.splits.fit)
    predictor.offsets = once = offsets_of(predictor, rows, targets)
    assert torch.equal(offsets_of(predictor, rows, targets), once)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (FITTED, "calibrated"),
        ({**FITTED, "objective": "labels"}, "calibrated"),
        ({**FITTED, "readout": "likelihood"}, "likelihood"),
        ({**FITTED, "objective": "completion"}, "likelihood"),
        ({**FITTED, "objective": "distillation", "teacher_text": "a sunny morning"}, "likelihood"),
        ({"kind": "soft-prompt", "positions": 2, "steps": 1, "batch_size": 6}, "calibrated"),
        ({"kind": "lora", "rank": 1, "steps": 1, "batch_size": 6}, "calibrated"),
        ({"kind": "zero-shot"}, "likelihood"),
        ({"kind": "hard-prompt", "templates": ["{input}\nColour:"]}, "likelihood"),
        ({"kind": "hard-prompt", "templates": ["{input}\nColour:"], "readout": "calibrated"}, "calibrated"),
    ],
)
def test_likelihoods_are_calibrated_where_they_are_fitted_to_be_the_largest(
    bench: Bench, table: dict[str, Any], told: str
) -> None:
    made = bench("gpt2", table)
    fitted = fit_on(made)
    try:
        assert fitted.readout == told
        offsets = fitted.predictor.offsets
        assert (offsets is None) == (told == "likelihood")
        if offsets is not None and table["kind"] != "hard-prompt":
            assert fitted.details["label_offsets"] == dict(zip(made.splits.labels, offsets.tolist(), strict=True))
    finally:
        fitted.predictor.adaptation.close()


def test_offsets_are_those_of_the_state_that_a_fit_begins_with(bench: Bench) -> None:
    """Behind a text the labels are not as likely as behind nothing; a fit of values 0 begins as good as bare."""
    made = bench("gpt2", {**FITTED, "start": "text", "start_text": "red blue green red blue green", "steps": 1})
    predictor = Predictor(made.host, made.manner())
    rows, targets = rows_of(made, predictor), targets_of(predictor, made.splits.fit)
    bare = offsets_of(predictor, rows, targets)
    found = fit_on(made).predictor.offsets
    assert found is not None
    assert float((found - bare).abs().max()) > 0.05
    quiet = fit_on(bench("gpt2", {**FITTED, "steps": 1})).predictor.offsets
    assert quiet is not None
    assert float((quiet - bare).abs().max()) < float((found - bare).abs().max())


def test_the_bare_models_score_is_calibrated_on_the_bare_model(bench: Bench) -> None:
    from foreword.tuning.objective import objective_for

    made = bench("gpt2", FITTED)
    fitted = fit_on(made).predictor
    offsets = fitted.offsets
    parts = (made.splits.fit, made.splits.selection, made.score)
    objective = objective_for(fitted, *parts, is_calibrated=True)
    without = objective_for(Predictor(made.host, made.manner(), Bare()), *parts, is_calibrated=True)
    without.calibrate()
    assert objective.bare_score() == without.evaluate(0)[0]
    assert offsets is not None
    assert fitted.offsets is not None
    assert torch.equal(fitted.offsets, offsets)


def test_a_bundle_whose_offsets_are_not_its_labels_is_refused(bench: Bench, tmp_path: Path) -> None:
    made = bench("gpt2", FITTED)
    predictor = fit_on(made).predictor
    prefix, arrays = predictor.adaptation.prefix(), predictor.arrays()  # type: ignore[attr-defined]
    assert arrays is not None
    path = tmp_path / "found.prefix"
    wrong: list[dict[str, Any]] = [
        {},
        {"offsets": arrays["offsets"][:2]},
        {"offsets": arrays["offsets"][None]},
        {**arrays, "bias": arrays["offsets"]},
        {"bias": arrays["offsets"]},
    ]
    for given in wrong:
        save_bundle(path, prefix, host=made.host, use=predictor.use(), readout=given)
        with pytest.raises(BundleError, match="does not fit its labels"):
            predictor_from(load_bundle(path), made.host)


@pytest.mark.parametrize("readout", ["likelihood", "calibrated"])
def test_an_encoder_has_no_likelihoods(bench: Bench, readout: str) -> None:
    with pytest.raises(HostError, match="An encoder cannot do this task in this way"):
        fit_on(bench("bert", {**FITTED, "readout": readout}))


@pytest.mark.parametrize("number", [math.nan, -math.inf])
@pytest.mark.parametrize(
    "table", [FITTED, {"kind": "hard-prompt", "templates": ["{input}\nColour:"], "readout": "calibrated"}]
)
def test_a_label_without_a_likelihood_is_told_before_any_step(
    bench: Bench, table: dict[str, Any], number: float
) -> None:
    """Not with the bundle that could not be written, after all the steps."""
    made = bench("gpt2", table)
    token = Predictor(made.host, made.manner()).completion("blue")[0]

    def without(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([token]), number)

    handle = made.host.model.get_output_embeddings().register_forward_hook(without)
    try:
        with pytest.raises(DataError, match="labels no likelihood") as told:
            fit_on(made)
    finally:
        handle.remove()
    assert told.value.found is not None
    assert f"'blue' after {len(made.splits.fit)} of {len(made.splits.fit)}" in told.value.found


@pytest.mark.parametrize(("rows", "taken"), [(1, 1), (64, 64), (65, 64), (127, 64), (128, 64), (1000, 64)])
def test_offsets_are_a_mean_over_as_many_inputs_as_are_allowed(rows: int, taken: int) -> None:
    found = [row[0] for row in labels_objective._sampled([[number] for number in range(rows)])]
    assert len(found) == len(set(found)) == taken
    assert found == sorted(found)
    assert found[-1] >= rows - 1 - rows / taken


class Kills(FitWatch):
    def stepped(self, taken: StepTaken) -> None:
        if taken.step == 2:
            raise KeyboardInterrupt


def test_a_fit_that_goes_on_and_is_taken_back_keeps_its_offsets(bench: Bench, tmp_path: Path) -> None:
    """A solved start is solved once: where a fit goes on, offsets of unsolved values are not its own."""
    table = {**FITTED, "start": "closed-form", "steps": 8, "evaluate_every": 1, "learning_rate": 30.0, "patience": 50}
    made = bench("gpt2", table)
    candidate = candidate_for(made.task.candidates[0])
    whole = candidate.fit(made, seed=0)
    with pytest.raises(KeyboardInterrupt):
        candidate.fit(made, seed=0, checkpoint=tmp_path / "fit.pt", watch=Kills())
    again = candidate.fit(made, seed=0, checkpoint=tmp_path / "fit.pt")
    assert any("back to the state" in text for text in again.details["notices"])
    assert again.details["label_offsets"] == whole.details["label_offsets"]
    assert [moment.selection for moment in again.history] == [moment.selection for moment in whole.history]


@pytest.mark.parametrize("readout", ["calibrated", "likelihood"])
def test_a_fit_from_a_bundle_begins_with_what_the_bundle_answers(bench: Bench, tmp_path: Path, readout: str) -> None:
    made = bench("gpt2", {**FITTED, "steps": 20, "learning_rate": 0.3, "readout": readout})
    first = fit_on(made).predictor
    prefix = first.adaptation.prefix()  # type: ignore[attr-defined]
    save_bundle(tmp_path / "first.prefix", prefix, host=made.host, use=first.use(), readout=first.arrays())
    goes_on = {**FITTED, "steps": 1, "start": "prefix", "start_prefix": "first.prefix"}
    found = fit_on(bench("gpt2", goes_on)).predictor.offsets
    assert found is not None
    assert torch.equal(found, torch.zeros(3) if first.offsets is None else first.offsets)
    elsewhere = offsets_in(load_bundle(tmp_path / "first.prefix"), made.manner(Template("", " is")))
    assert elsewhere is None  # in another template a label is not as likely
