"""The contract of every candidate, one suite run against all of them, on an encoder and on causal models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.bundle import load_bundle, save_bundle
from foreword.engine.attach import attached
from foreword.engine.generation import completion_loss, completion_scores, features
from foreword.engine.host import Host
from foreword.errors import BaseMismatchError, BundleError, DataError, FitError, HostError, TaskError
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidates import CANDIDATES, Fitted, Workbench, candidate_for
from foreword.tuning.candidates.contract import still_rising, unmoved
from foreword.tuning.checkpoint import Moment
from foreword.tuning.examples import load_splits
from foreword.tuning.fittable import FitOutcome, FitWatch, StepTaken
from foreword.tuning.predictor import Predictor, predictor_from
from foreword.tuning.scoring import value
from foreword.tuning.task import Task

POSITIONS, RANK, STEPS = 3, 2, 5
# The table of each kind, small enough for many fits.
FITTED = {"steps": STEPS, "batch_size": 6}
TABLES: dict[str, dict[str, Any]] = {
    "zero-shot": {},
    "hard-prompt": {"templates": ["{input}", "the colour of {input} is"]},
    "few-shot": {"shots": 2},
    "probe": {},
    "soft-prompt": {"positions": POSITIONS, **FITTED},
    "prefix": {"positions": POSITIONS, **FITTED},
    "lora": {"rank": RANK, **FITTED},
    "full": FITTED,
}
BY_DESCENT = ("soft-prompt", "prefix", "lora", "full")
PROBE_ROWS = ([7, 21, 33, 8, 40], [50, 6, 9])


Bench = Callable[..., Workbench]


@pytest.fixture(scope="module")
def bench(
    load_host: Callable[[str], Host],
    model_folder: Callable[[str], Path],
    write_task: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bench:
    """A workbench on a fresh host: three colours to tell apart, 6 examples each to fit and 4 to select by."""

    def make(family: str, kind: str, table: dict[str, Any], *, task: str = "classify") -> Workbench:
        folder = tmp_path_factory.mktemp("task")
        loaded = Task.load(write_task(folder, model_folder(family), [{"kind": kind, **table}], kind=task))
        return Workbench(load_host(family), loaded, load_splits(loaded))

    return make


def fit_on(made: Workbench, **options: Any) -> Fitted:
    return candidate_for(made.task.candidates[0]).fit(made, **{"seed": 0, **options})


def texts(made: Workbench) -> list[str]:
    return [example.input for example in made.splits.test][:12]


def outcome(made: Workbench, fitted: Fitted) -> list[tuple[str, float | None]]:
    return [(answer.output, answer.confidence) for answer in fitted.predictor.answer(texts(made))]


def probe(host: Host) -> torch.Tensor:
    with torch.no_grad():
        return features(host, PROBE_ROWS)


@dataclass
class Case:
    """A fitted candidate with what the bare host gave before."""

    family: str
    kind: str
    bench: Workbench
    bare: torch.Tensor
    fitted: Fitted


CASES = [(family, kind) for family in ("bert", "llama", "t5") for kind in TABLES]
# For laws that take many fits: what is fitted to T5 otherwise than by a prefix is fitted to two more families.
MANY_FITS = [
    pytest.param(
        *case, marks=[pytest.mark.slow] if case in [("t5", k) for k in ("soft-prompt", "lora", "full")] else []
    )
    for case in CASES
]
MANY_DESCENTS = [case for case in MANY_FITS if case.values[1] in BY_DESCENT]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest, bench: Bench) -> Iterator[Case]:
    family, kind = request.param
    made = bench(family, kind, TABLES[kind])
    bare = probe(made.host)
    fitted = fit_on(made)
    yield Case(family, kind, made, bare, fitted)
    fitted.predictor.adaptation.close()


# Laws


def test_there_is_a_table_for_every_kind() -> None:
    assert TABLES.keys() == CANDIDATES.keys()


def test_it_answers_every_input_with_a_label_and_its_probability(case: Case) -> None:
    answers = case.fitted.predictor.answer(texts(case.bench))
    assert len(answers) == 12
    labels = case.bench.splits.labels
    assert all(answer.output in labels for answer in answers)
    # The most likely of three has at least a third of the probability.
    assert all(1 / 3 - 1e-6 <= (answer.confidence or 0.0) <= 1 for answer in answers)
    assert case.fitted.predictor.answer([]) == []


def test_one_input_alone_is_answered_as_in_a_batch(case: Case) -> None:
    """The label may only differ where two are as good as equal, to what padding costs in float32 (1e-4 of log-odds)."""
    together = case.fitted.predictor.answer(texts(case.bench))
    for text, answer in zip(texts(case.bench), together, strict=True):
        (alone,) = case.fitted.predictor.answer([text])
        assert alone.confidence == pytest.approx(answer.confidence, abs=1e-3)
        assert alone.output == answer.output or (answer.confidence or 1.0) < 0.501


def test_outside_the_adaptation_the_host_computes_what_it_did(case: Case) -> None:
    assert torch.equal(probe(case.bench.host), case.bare)
    case.fitted.predictor.answer(texts(case.bench))
    assert torch.equal(probe(case.bench.host), case.bare)


def test_fitted_ones_change_what_the_host_computes(case: Case) -> None:
    """The other way round: inside it, what is fitted acts. (A soft prompt acts through what it is handed to.)"""
    adaptation = case.fitted.predictor.adaptation
    if case.kind in BY_DESCENT:
        with torch.no_grad(), adaptation.active():
            inside = features(case.bench.host, PROBE_ROWS, soft=adaptation.soft)
        assert float((inside - case.bare).abs().max()) > 1e-4  # rounding is below 1e-6
    else:
        with adaptation.active():
            assert torch.equal(probe(case.bench.host), case.bare)


def test_the_selection_score_is_that_of_its_answers(case: Case) -> None:
    outputs = [a.output for a in case.fitted.predictor.answer([x.input for x in case.bench.splits.selection])]
    found = value("accuracy", [x.target for x in case.bench.splits.selection], outputs)
    assert case.fitted.selection == pytest.approx(found)


def expected_numbers(case: Case) -> tuple[int, int]:
    """(numbers that were fitted, bytes that are stored), counted from the shapes in tests/conftest.py."""
    encoder, labels, hidden = case.family == "bert", 3, 32
    line = labels * (hidden + 1)
    # T5's sites: two layers of its encoder, two of its decoder, and as many where its decoder reads its encoder.
    kv_heads, dim, sites = {"bert": (4, 8, 2), "llama": (2, 8, 2), "t5": (4, 8, 6)}[case.family]
    # peft's choice for all families is the query and the value projection; llama's keys and values are 16 wide.
    lora = sites * RANK * ((hidden + 32) + (hidden + kv_heads * dim))
    descent = {
        "prefix": 2 * sites * kv_heads * POSITIONS * dim,
        "soft-prompt": POSITIONS * hidden,
        "lora": lora,
        "full": case.bench.host.parameters,
    }
    if case.kind in descent:  # an encoder's label is read by a line, a causal model's by its calibrated likelihood
        numbers = descent[case.kind] + (line if encoder else labels)
        biases = sites * kv_heads * POSITIONS if case.kind == "prefix" else 0  # stored, not fitted
        return numbers, 4 * (numbers + biases)
    if case.kind == "probe":
        return line, 4 * line
    if case.kind == "few-shot" and encoder:
        return labels * hidden, 4 * labels * hidden
    if case.kind == "hard-prompt":
        return 0, len(case.fitted.details["template"].encode())
    if case.kind == "few-shot":
        return 0, len(case.fitted.predictor.manner.template.before.encode())
    return 0, 0


def test_the_numbers_it_fitted_and_the_bytes_it_takes_are_as_counted(case: Case) -> None:
    assert (case.fitted.trainable, case.fitted.nbytes) == expected_numbers(case)


def test_its_history_tells_how_it_was_fitted(case: Case) -> None:
    history = case.fitted.history
    if case.kind not in BY_DESCENT:
        assert history == ()
        return
    assert [moment.step for moment in history] == [0, STEPS]
    assert case.fitted.details["steps_taken"] == STEPS


def test_no_weight_of_the_base_model_was_touched(case: Case) -> None:
    own = {id(parameter) for parameter in case.fitted.predictor.adaptation.parameters().values()}
    for parameter in case.bench.host.model.parameters():
        if id(parameter) not in own:
            assert not parameter.requires_grad
            assert parameter.grad is None
    assert not case.bench.host.model.training


@pytest.mark.parametrize(("family", "kind"), MANY_FITS)
def test_closing_it_leaves_the_base_model_as_it_was_loaded(
    bench: Bench, shared_host: Callable[[str], Host], family: str, kind: str
) -> None:
    """The host's own fingerprint too, though it is first asked for while the candidate is in the model."""
    made = bench(family, kind, TABLES[kind])
    bare = probe(made.host)
    fitted = fit_on(made)
    told = made.host.fingerprint
    fitted.predictor.adaptation.close()
    fresh = shared_host(family)
    assert made.host.measure_fingerprint() == told == fresh.fingerprint
    assert torch.equal(probe(made.host), bare)
    assert [name for name, _ in made.host.model.named_modules()] == [name for name, _ in fresh.model.named_modules()]
    again = fit_on(made)  # and the host can be used for the next candidate
    again.predictor.adaptation.close()
    assert made.host.measure_fingerprint() == told


@pytest.mark.parametrize(("family", "kind"), MANY_FITS)
def test_the_same_seed_gives_the_same_answers_without_seeing_the_test_split(
    bench: Bench, family: str, kind: str
) -> None:
    """Bit-equal confidences. The second bench has no test split at all, so nothing can have been taken from it."""
    made = bench(family, kind, TABLES[kind])
    inputs = texts(made)
    results = []
    for splits, seed in ((made.splits, 3), (replace(made.splits, test=()), 3), (made.splits, 4)):
        fitted = fit_on(replace(made, splits=splits), seed=seed)
        results.append([(answer.output, answer.confidence) for answer in fitted.predictor.answer(inputs)])
        fitted.predictor.adaptation.close()
    assert results[0] == results[1]
    assert (results[0] != results[2]) == CANDIDATES[kind].uses_seed


@dataclass
class StopsAfter(FitWatch):
    """Interrupts a fit after so many steps."""

    steps: int

    def stepped(self, taken: StepTaken) -> None:
        if taken.step == self.steps:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("family", "kind"), MANY_DESCENTS)
def test_a_fit_interrupted_anywhere_goes_on_to_the_same_answers(
    bench: Bench, tmp_path: Path, family: str, kind: str
) -> None:
    made = bench(family, kind, TABLES[kind])
    before = probe(made.host)
    whole = fit_on(made)
    wanted = outcome(made, whole)
    whole.predictor.adaptation.close()
    kept = tmp_path / "checkpoint"
    for stops in (1, 3, STEPS):  # each time going on from the last stop
        with pytest.raises(KeyboardInterrupt):
            fit_on(made, checkpoint=kept, watch=StopsAfter(stops))
        assert torch.equal(probe(made.host), before)  # the interrupted one took itself out of the model
    resumed = fit_on(made, checkpoint=kept)
    assert outcome(made, resumed) == wanted
    assert [m.selection for m in resumed.history] == [m.selection for m in whole.history]
    resumed.predictor.adaptation.close()


@pytest.mark.parametrize(("family", "kind"), MANY_DESCENTS)
def test_a_checkpoint_of_other_settings_is_refused_and_the_model_left_alone(
    bench: Bench, tmp_path: Path, family: str, kind: str
) -> None:
    made = bench(family, kind, TABLES[kind])
    before = probe(made.host)
    fit_on(made, checkpoint=tmp_path / "checkpoint").predictor.adaptation.close()
    with pytest.raises(FitError, match="of another fit"):
        fit_on(made, checkpoint=tmp_path / "checkpoint", seed=1)
    assert torch.equal(probe(made.host), before)
    assert made.host.measure_fingerprint() == made.host.fingerprint


# Fitting helps


@pytest.mark.parametrize("kind", BY_DESCENT)
@pytest.mark.parametrize(
    "family",
    ["gpt2", pytest.param("qwen3", marks=pytest.mark.slow), "t5", pytest.param("bart", marks=pytest.mark.slow)],
)
def test_fitting_makes_the_fit_examples_more_likely(bench: Bench, family: str, kind: str) -> None:
    """Twelve steps on eighteen examples: their likelihood must rise, whatever the tiny model can do in general.

    It is what is minimised here: cross-entropy over the labels can fall while every label's text gets less likely.
    """
    made = bench(family, kind, {**TABLES[kind], "steps": 12, "batch_size": 18, "objective": "completion"})
    # The best state is chosen on the selection split: here that is the fit split, so the last loss is the best one.
    made = replace(made, splits=replace(made.splits, selection=made.splits.fit))
    fitted = fit_on(made)
    predictor, examples = fitted.predictor, made.splits.fit
    rows = predictor.rows([x.input for x in examples])
    wanted = [predictor.completion(x.target) for x in examples]
    with torch.no_grad():
        before = float(completion_loss(made.host, rows, wanted))
        with predictor.adaptation.active():
            after = float(completion_loss(made.host, rows, wanted, soft=predictor.adaptation.soft))
    fitted.predictor.adaptation.close()
    assert fitted.selection >= fitted.history[0].selection
    assert after < before


@pytest.mark.parametrize(
    ("scores", "stopped_by", "told"),
    [
        ([0.0, 0.3, 0.5, 0.5, 0.7], "steps", "(0.500 up to step 24, 0.700 at step 32): steps = 64 may gain"),
        ([0.0, 0.3, 0.5, 0.5, 0.7], "seconds", "(0.500 up to step 24, 0.700 at step 32): more seconds may gain"),
        ([0.0, 0.3, 0.5, 0.5, 0.7], "patience", None),
        ([0.0, 0.3, 0.5, 0.7, 0.7], "steps", None),
        ([0.0, 0.3, 0.5, 0.5, 0.6], "steps", None),  # one example of ten
    ],
)
def test_a_fit_that_ends_while_its_score_rises_says_so(scores: list[float], stopped_by: str, told: str | None) -> None:
    history = tuple(Moment(8 * number, 1.0, None, score) for number, score in enumerate(scores))
    best = max(history, key=lambda moment: moment.selection)
    found = still_rising(FitOutcome(history, best, 1.0, stopped_by), 10)
    assert (found is None) == (told is None)
    assert told is None or told in str(found)


@pytest.mark.parametrize(
    ("score", "by_loss", "told"),
    [
        (1.0, False, "right on all of the selection split"),
        (1.0, True, "learned nothing"),
        (0.9, False, "learned nothing"),
    ],
)
def test_perfect_first_values_are_not_said_to_have_learned_nothing(score: float, by_loss: bool, told: str) -> None:
    history = (Moment(0, 0.0, None, score), Moment(8, 1.0, None, 0.5))
    assert told in str(unmoved(FitOutcome(history, history[0], 1.0, "steps"), by_loss=by_loss))


def test_what_rose_late_is_compared_with_the_last_look_before() -> None:
    """Looks at 0 and at 8, the last step: nobody looked at step 6, three quarters of it."""
    history = (Moment(0, 0.0, None, 0.5), Moment(8, 1.0, None, 0.9))
    assert "(0.500 up to step 0, 0.900 at step 8)" in str(
        still_rising(FitOutcome(history, history[1], 1.0, "steps"), 10)
    )


def test_a_prefix_learns_what_a_real_encoder_can_tell(minilm: Host, bench: Bench) -> None:
    """Colours by their objects, six examples each: the fitted prefix is right on most of what it has not seen.

    144 unseen texts of words that were all seen: chance is 0.33, and three standard errors above it 0.45.
    """
    made = replace(bench("bert", "prefix", {"positions": 4, "steps": 8, "batch_size": 9}), host=minilm)
    fingerprint = minilm.measure_fingerprint()
    fitted = fit_on(made)
    answers = fitted.predictor.answer([x.input for x in made.splits.test])
    assert value("accuracy", [x.target for x in made.splits.test], [answer.output for answer in answers]) > 0.9
    assert minilm.measure_fingerprint() == fingerprint


# Bundles


READOUTS = [
    ("bert", "linear"),
    ("bert", "prototypes"),
    ("bert", "label-text"),
    ("llama", "auto"),
    ("llama", "likelihood"),
    ("llama", "linear"),
    ("t5", "auto"),
    ("bart", "linear"),
]


@pytest.mark.parametrize(("family", "readout"), READOUTS)
def test_a_prefix_out_of_its_bundle_answers_identically(
    bench: Bench, load_host: Callable[[str], Host], tmp_path: Path, family: str, readout: str
) -> None:
    """On a host loaded anew, down to the last bit of every confidence."""
    made = bench(family, "prefix", {**TABLES["prefix"], "readout": readout})
    fitted = fit_on(made)
    adaptation, predictor = fitted.predictor.adaptation, fitted.predictor
    assert isinstance(adaptation, FittedPrefix)
    path = tmp_path / "best.prefix"
    save_bundle(path, adaptation.prefix(), host=made.host, use=predictor.use(), readout=predictor.arrays())
    host = load_host(family)
    loaded = predictor_from(load_bundle(path, host=host), host)
    assert loaded.answer(texts(made)) == predictor.answer(texts(made))
    assert loaded.manner == predictor.manner
    assert fitted.readout == ("calibrated" if readout == "auto" else readout)
    assert loaded.adaptation.trainable == 0
    assert loaded.adaptation.nbytes == adaptation.nbytes
    with attached(host, load_bundle(path).prefix):  # the prefix alone is that of the candidate, too
        inside = probe(host)
    with torch.no_grad(), adaptation.active():
        assert torch.equal(inside, features(made.host, PROBE_ROWS))


def test_a_bundle_for_another_base_or_without_its_use_is_refused(
    bench: Bench, load_host: Callable[[str], Host], tmp_path: Path
) -> None:
    made = bench("bert", "prefix", TABLES["prefix"])
    fitted = fit_on(made)
    prefix, readout = fitted.predictor.adaptation.prefix(), fitted.predictor.readout.arrays()  # type: ignore[attr-defined, union-attr]
    path = tmp_path / "best.prefix"
    save_bundle(path, prefix, host=made.host, use=fitted.predictor.use(), readout=readout)
    with pytest.raises(BaseMismatchError):
        predictor_from(load_bundle(path), load_host("roberta"))
    use = fitted.predictor.use()
    damaged: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, readout),
        ({"manner": use["manner"]}, readout),
        ({**use, "manner": {**use["manner"], "unknown": 1}}, readout),
        ({**use, "manner": {**use["manner"], "template": None}}, readout),
        ({**use, "readout": {"kind": "linear"}}, readout),
        ({**use, "readout": {"kind": "linear", "scale": "wide"}}, readout),
        (use, {}),
        (use, {**readout, "weights": readout["weights"][:2]}),
    ]
    for told, arrays in damaged:
        save_bundle(path, prefix, host=made.host, use=told, readout=arrays)
        found = load_bundle(path)
        with pytest.raises(BundleError):
            predictor_from(found, made.host)


# Generation


GENERATED = [kind for kind in TABLES if kind != "probe"]


@pytest.mark.parametrize("family", ["gpt2", "bart"])
@pytest.mark.parametrize("kind", GENERATED)
def test_a_model_that_writes_answers_in_every_way(bench: Bench, family: str, kind: str) -> None:
    made = bench(family, kind, TABLES[kind], task="generate")
    bare = probe(made.host)
    fitted = fit_on(made)
    answers = fitted.predictor.answer(texts(made))
    assert len(answers) == 12
    assert all(answer.confidence is None and isinstance(answer.output, str) for answer in answers)
    assert all("\n" not in answer.output for answer in answers)  # as no target of the task has one
    assert fitted.readout is None
    assert [answer.output for answer in fitted.predictor.answer(texts(made))] == [a.output for a in answers]
    fitted.predictor.adaptation.close()
    assert torch.equal(probe(made.host), bare)
    assert made.host.measure_fingerprint() == made.host.fingerprint


def test_a_prefix_for_generation_survives_its_bundle(
    bench: Bench, load_host: Callable[[str], Host], tmp_path: Path
) -> None:
    made = bench("gpt2", "prefix", {**TABLES["prefix"], "steps": 20, "learning_rate": 0.2}, task="generate")
    fitted = fit_on(made)
    path = tmp_path / "best.prefix"
    save_bundle(path, fitted.predictor.adaptation.prefix(), host=made.host, use=fitted.predictor.use())  # type: ignore[attr-defined]
    host = load_host("gpt2")
    loaded = predictor_from(load_bundle(path, host=host), host)
    outputs = [answer.output for answer in fitted.predictor.answer(texts(made))]
    assert [answer.output for answer in loaded.answer(texts(made))] == outputs
    bare = [answer.output for answer in Predictor(host, fitted.predictor.manner).answer(texts(made))]
    assert outputs != bare


def test_a_prompt_begins_as_the_base_models_tokenizer_begins_a_text(bench: Bench) -> None:
    """And an answer does not: it stands behind the prompt."""
    from tokenizers.processors import TemplateProcessing

    made = bench("llama", "zero-shot", {})
    ends = [("<s>", 1), ("</s>", 2)]
    made.host.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    predictor = fit_on(made).predictor
    assert all(row[0] == 1 and 2 not in row for row in predictor.rows(texts(made)))
    assert all(not {1, 2} & set(predictor.completion(label)) for label in made.splits.labels)


# Refusals


def test_an_answer_longer_than_the_decoder_reads_is_refused(bench: Bench) -> None:
    """BART's decoder has a table of 128 positions; T5's counts by distance and has none."""
    made = bench("bart", "zero-shot", {}, task="generate")
    manner = replace(made.manner(), max_new_tokens=129)
    with pytest.raises(HostError, match="decoder"):
        Predictor(made.host, manner)
    assert Predictor(bench("t5", "zero-shot", {}, task="generate").host, manner).answer([]) == []


def test_an_encoder_cannot_write(bench: Bench) -> None:
    made = bench("bert", "zero-shot", {}, task="generate")
    with pytest.raises(HostError, match="encoder"):
        fit_on(made)


def test_a_causal_model_has_no_text_similarity(bench: Bench) -> None:
    made = bench("gpt2", "prefix", {**TABLES["prefix"], "readout": "label-text"})
    with pytest.raises(TaskError, match="label-text"):
        fit_on(made)


def test_a_soft_prompt_that_leaves_no_room_is_refused(bench: Bench) -> None:
    made = bench("bert", "soft-prompt", {**TABLES["soft-prompt"], "positions": 64})
    with pytest.raises(FitError, match="no room"):
        fit_on(made)


def test_a_prefix_longer_than_the_model_reads_is_no_problem(bench: Bench) -> None:
    made = bench("bert", "prefix", {**TABLES["prefix"], "positions": 100, "steps": 1})
    assert len(outcome(made, fit_on(made))) == 12


# Chats, and labels that cannot be told apart


def test_a_chat_is_kept_by_the_bundle(bench: Bench, load_host: Callable[[str], Host], tmp_path: Path) -> None:
    made = bench("llama", "prefix", TABLES["prefix"])
    told = made.task.model.model_copy(update={"chat": True, "system": "name the colour"})
    made = replace(made, task=made.task.model_copy(update={"model": told}))
    with pytest.raises(HostError, match="no chat template"):
        fit_on(made)
    form = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}[answer]"
    made.host.tokenizer.chat_template = form
    fitted = fit_on(made)
    predictor = fitted.predictor
    prompt = made.host.tokenizer.decode(predictor.rows(["sky"])[0])
    assert prompt == "[system] name the colour[user] sky\nLabel:[answer]"
    assert made.host.tokenizer.decode(predictor.completion("red")) == " red"
    path = tmp_path / "chat.prefix"
    prefix = predictor.adaptation.prefix()  # type: ignore[attr-defined]
    save_bundle(path, prefix, host=made.host, use=predictor.use(), readout=predictor.arrays())
    host = load_host("llama")
    with pytest.raises(HostError, match="no chat template"):
        predictor_from(load_bundle(path), host)
    host.tokenizer.chat_template = form
    assert predictor_from(load_bundle(path), host).answer(texts(made)) == predictor.answer(texts(made))


def labelled(made: Workbench, *labels: str) -> Predictor:
    return Predictor(made.host, replace(made.manner(), labels=labels))


def test_labels_that_the_tokenizer_spells_alike_are_refused(bench: Bench) -> None:
    from tokenizers import normalizers

    made = bench("gpt2", "zero-shot", {})
    made.host.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(DataError, match="'Red' and 'red' have the same tokens"):
        labelled(made, "Red", "blue", "red")


def test_labels_that_are_longer_than_the_decoder_reads_are_refused(bench: Bench) -> None:
    made = bench("bart", "zero-shot", {})
    long = " ".join(["red"] * made.host.max_positions)
    with pytest.raises(HostError, match="readout"):
        labelled(made, long, "blue")


def test_labels_with_parts_that_the_tokenizer_does_not_know_are_refused(
    bench: Bench, load_host: Callable[[str], Host]
) -> None:
    made = bench("gpt2", "zero-shot", {})
    made.host.tokenizer = load_host("bert").tokenizer  # byte pairs spell everything, word pieces do not
    with pytest.raises(DataError, match="'☃' has parts that the tokenizer does not know"):
        labelled(made, "☃", "sun")


def test_a_label_that_another_one_begins_with_can_still_be_answered(bench: Bench) -> None:
    """Without an end, "the cat" could never be likelier than "the": its probability is a factor of the other's."""
    made = bench("gpt2", "zero-shot", {})
    predictor = labelled(made, "the", "the cat")
    rows = predictor.rows(texts(made))
    end = made.host.tokenizer.eos_token_id
    with torch.no_grad():
        found = predictor.label_scores(rows)
        wanted = completion_scores(
            made.host, rows, [[*predictor.completion(label), end] for label in ("the", "the cat")]
        )
    assert torch.equal(found, wanted)
    made.host.tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end token"):
        labelled(made, "the", "the cat")


def test_label_texts_that_the_tokenizer_reads_alike_are_refused(bench: Bench) -> None:
    made = bench("bert", "zero-shot", {})
    made = replace(made, task=made.task.model_copy(update={"labels": {"red": "Warm", "blue": "cold", "green": "warm"}}))
    with pytest.raises(DataError, match="the same tokens for 'red' and 'green'"):
        fit_on(made)
