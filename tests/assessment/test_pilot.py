"""The pilot end to end, on tiny models built from configurations: evidence, protocol, resume, failures, bundle."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.assessment import judging as module
from foreword.assessment import stress
from foreword.assessment.evidence import Evidence, read_evidence
from foreword.assessment.folder import RunFolder
from foreword.assessment.pilot import PilotResult, run_pilot
from foreword.assessment.summary import span
from foreword.bundle import load_bundle, sign_bundle
from foreword.engine.host import Host
from foreword.errors import DataError, HostError, RunFolderError, TaskError
from foreword.signing import SigningKey
from foreword.tuning.candidates import CANDIDATES, candidate_for
from foreword.tuning.examples import Splits, load_splits
from foreword.tuning.predictor import predictor_from
from foreword.tuning.task import Task

# The fixture `pilot`, made before what belongs to one test, has its pictures.
pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

# Ten steps: the selection split is looked at before the first step, after the eighth, and after the last one.
STEPS = 10
FITTED: list[dict[str, Any]] = [
    {"kind": "soft-prompt", "positions": 3, "steps": STEPS},
    {"kind": "prefix", "positions": 3, "steps": STEPS},
    {"kind": "lora", "rank": 2, "steps": STEPS},
    {"kind": "full", "steps": STEPS},
]
ALL: list[dict[str, Any]] = [
    {"kind": "zero-shot"},
    {"kind": "hard-prompt", "templates": ["{input}", "{input} is"]},
    {"kind": "few-shot", "shots": 2},
    {"kind": "probe"},
    *FITTED,
]
QUICK: list[dict[str, Any]] = [{"kind": "zero-shot"}, {"kind": "probe"}]
PREFIX: list[dict[str, Any]] = [{"kind": "zero-shot"}, {"kind": "prefix", "positions": 2, "steps": 2}]
SEEDS = [0, 1]


@dataclass(frozen=True)
class Pilot:
    """A task that was run to its end without a pause."""

    task: Path
    result: PilotResult
    stages: list[str]

    @property
    def evidence(self) -> Evidence:
        return self.result.evidence

    @property
    def splits(self) -> Splits:
        return load_splits(Task.load(self.task))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("bert", "classify"), id="bert-classify"),
        pytest.param(("gpt2", "classify"), id="gpt2-classify", marks=pytest.mark.slow),
        pytest.param(("gpt2", "generate"), id="gpt2-generate", marks=pytest.mark.slow),
    ],
)
def pilot(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    model_folder: Callable[[str], Path],
    write_task: Callable[..., Path],
) -> Pilot:
    """Every kind of candidate with two seeds: an encoder, and a causal model that classifies or generates."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    family, kind = request.param
    candidates = [found for found in ALL if kind == "classify" or found["kind"] != "probe"]
    folder = tmp_path_factory.mktemp("pilot")
    task = write_task(folder, model_folder(family), candidates, kind=kind, run={"seeds": SEEDS})
    stages: list[str] = []
    result = run_pilot(task, out=folder / "run", watch=lambda stage, *_: stages.append(stage), command="a test")
    torch.set_num_threads(threads)
    return Pilot(task, result, stages)


@pytest.fixture
def quick(tmp_path: Path, model_folder: Callable[[str], Path], write_task: Callable[..., Path]) -> Callable[..., Path]:
    """A task of the tiny BERT with the candidates given."""
    return lambda candidates=QUICK, **more: write_task(tmp_path / "task", model_folder("bert"), candidates, **more)


def stopping_at(stage: str, times: int) -> Callable[..., None]:
    seen: list[str] = []

    def watch(name: str, *_: object) -> None:
        seen.append(name)
        if name == stage and seen.count(stage) == times:
            raise KeyboardInterrupt

    return watch


def run_to_the_judgements(task: Path, out: Path) -> None:
    """Run a pilot until every candidate is judged, and leave out the stress probes and the report."""
    with pytest.raises(KeyboardInterrupt):
        run_pilot(task, out=out, watch=stopping_at("stress in-task", 1))


def judged(folder: Path) -> dict[str, dict[str, Any]]:
    """What is on disk of each fit, but for the times and the memory, which no two runs share."""
    found = {}
    for path in sorted(folder.glob("candidates/*/seed-*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        for name in ("fit_seconds", "peak_memory_bytes", "bare_latency_ms", "latency_added_ms"):
            del told[name]
        told["history"] = [(m["step"], m["loss"], m["selection"]) for m in told["history"]]
        found[f"{path.parent.name} {path.stem}"] = told
    return found


def test_every_kind_is_judged_with_every_seed_that_matters_to_it(pilot: Pilot) -> None:
    kinds = {found["kind"] for found in ALL} - ({"probe"} if pilot.evidence.task.kind == "generate" else set())
    assert {found.kind for found in pilot.evidence.candidates} == kinds
    assert pilot.evidence.failed == []
    for found in pilot.evidence.candidates:
        assert [result.seed for result in found.seeds] == (SEEDS if CANDIDATES[found.kind].uses_seed else SEEDS[:1])
        assert [result.judged for result in found.seeds].count(True) == 1
        # Seeds matter to what is fitted by descent, and only that changes what the model makes of other text.
        assert (found.forgetting is not None) == CANDIDATES[found.kind].uses_seed
        if found.forgetting is not None:
            assert found.forgetting.texts == 4
            assert (found.forgetting.loss_change is None) == (pilot.evidence.base.family == "bert")


def test_the_evidence_has_every_field_that_is_promised(pilot: Pilot) -> None:
    told = json.loads((pilot.result.folder / "evidence.json").read_text(encoding="utf-8"))
    promised = {
        "": ("schema", "task", "base", "data", "candidates", "stress", "cost", "decision", "provenance"),
        "task": ("name", "kind", "requirement"),
        "base": ("reference", "fingerprint_before", "fingerprint_after"),
        "data": ("hash", "counts"),
        "decision": ("verdict", "reasons", "chosen"),
        "provenance": ("command", "commit", "dirty", "seeds", "versions", "machine"),
    }
    for section, fields in promised.items():
        assert set(fields) <= set(told[section] if section else told)
    for candidate in told["candidates"]:
        measured = ("trainable", "bytes", "fit_seconds", "peak_memory_bytes", "latency_ms")
        assert {"name", "kind", "metric", "difference", *measured} <= set(candidate)
        assert {"name", "value", "low", "high"} <= set(candidate["metric"])
        assert all({"low", "high"} <= set(candidate["difference"][rival]) for rival in ("baseline", "best"))
    assert set(told["data"]["counts"]) == {"fit", "selection", "test"}
    assert told["provenance"]["command"] == "a test"
    assert told["provenance"]["seeds"] == SEEDS


def test_the_file_is_read_back_as_the_evidence_that_was_returned(pilot: Pilot) -> None:
    assert read_evidence(pilot.result.folder / "evidence.json") == pilot.evidence


def test_the_base_model_is_the_same_after_the_run(pilot: Pilot) -> None:
    base = pilot.evidence.base
    assert base.fingerprint_before == base.fingerprint_after == Host.load(base.reference).fingerprint
    assert "base-unchanged" in {reason.code for reason in pilot.evidence.decision.reasons}


def test_the_numbers_of_a_candidate_follow_from_its_answers(pilot: Pilot) -> None:
    targets = [example.target for example in pilot.splits.test]
    for found in pilot.evidence.candidates:
        seed = next(result.seed for result in found.seeds if result.judged)
        path = pilot.result.folder / "candidates" / found.name / f"seed-{seed}.json"
        told = json.loads(path.read_text(encoding="utf-8"))
        assert len(told["outputs"]) == len(targets) == found.metric.n
        assert found.selection == max(result.selection for result in found.seeds) == told["selection"]
        assert found.metric.low <= found.metric.value <= found.metric.high
        if pilot.evidence.task.kind == "classify":
            right = sum(a == b for a, b in zip(told["outputs"], targets, strict=True))
            assert found.metric.value == pytest.approx(right / len(targets))
            assert sum(label.wrong for label in found.failures.values()) == len(targets) - right
            assert sum(label.n for label in found.failures.values()) == len(targets)


def test_differences_are_those_of_the_values(pilot: Pilot) -> None:
    values = {found.name: found.metric.value for found in pilot.evidence.candidates}
    for found in pilot.evidence.candidates:
        for difference in (found.difference.baseline, found.difference.best):
            assert difference is not None
            assert difference.value == pytest.approx(values[found.name] - values[difference.to])
            assert difference.low <= difference.value <= difference.high
        assert found.difference.baseline is not None
        assert found.difference.baseline.to == "zero-shot"


def test_the_choice_is_made_on_the_selection_split(pilot: Pilot) -> None:
    chosen = pilot.evidence.candidate(str(pilot.evidence.decision.chosen))
    assert chosen.selection == max(found.selection for found in pilot.evidence.candidates)
    assert pilot.evidence.stress is not None
    assert pilot.evidence.stress.candidate == chosen.name


def test_cost_and_candidates_tell_the_same_latency_and_size(pilot: Pilot) -> None:
    rows = {row.candidate: row for row in pilot.evidence.cost.rows}
    assert list(rows) == [found.name for found in pilot.evidence.candidates]
    for found in pilot.evidence.candidates:
        row = rows[found.name]
        assert (row.latency_ms, row.bytes) == (found.latency_ms, found.bytes)


def test_the_counts_are_those_of_the_splits(pilot: Pilot) -> None:
    data, splits = pilot.evidence.data, pilot.splits
    assert data.counts == splits.counts
    assert data.hash == splits.hash
    assert sum(data.counts["test"].values()) == pilot.evidence.candidates[0].metric.n


def test_the_report_shows_the_evidence_s_intervals_and_provenance(pilot: Pilot) -> None:
    page = pilot.result.report.read_text(encoding="utf-8")
    assert all(span(found.metric) in page for found in pilot.evidence.candidates)
    for told in (pilot.evidence.data.hash, pilot.evidence.base.fingerprint_before, pilot.evidence.decision.verdict):
        assert told in page


def test_the_bundle_answers_as_it_was_judged(pilot: Pilot) -> None:
    assert pilot.result.bundle is not None
    bundle = load_bundle(pilot.result.bundle)
    predictor = predictor_from(bundle, Host.load(bundle.reference))
    outputs = [answer.output for answer in predictor.answer([example.input for example in pilot.splits.test])]
    seed = next(result.seed for result in pilot.evidence.candidate("prefix").seeds if result.judged)
    assert outputs == judged(pilot.result.folder)[f"prefix seed-{seed}"]["outputs"]
    assert bundle.evidence is not None
    assert bundle.evidence["candidate"] == pilot.evidence.candidate("prefix").model_dump(mode="json")
    assert bundle.provenance == pilot.evidence.provenance.model_dump(mode="json")


def without_the_test_split(settings: Any) -> Any:
    """The candidate, with a workbench from which the test split is gone."""
    found = candidate_for(settings)
    fit = found.fit
    found.fit = lambda bench, **more: fit(replace(bench, splits=replace(bench.splits, test=())), **more)  # type: ignore[method-assign]
    return found


def test_no_candidate_reads_the_test_split(pilot: Pilot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "candidate_for", without_the_test_split)
    run_to_the_judgements(pilot.task, tmp_path / "run")
    assert judged(tmp_path / "run") == judged(pilot.result.folder)


# Where a pilot is stopped, each time after going on from the last stop: (stage, how many reports of it were seen).
STOPS = [
    ("base model", 2),
    ("zero-shot", 2),  # judged, and on disk
    ("judge few-shot", 1),
    ("soft-prompt", 4),  # between two steps
    ("prefix", 9),  # after the eighth step, before the look at the selection split that is due
    ("prefix", 4),  # after the last step, before the last look
    ("judge prefix", 1),
    ("lora", 5),
    ("judge lora", 2),
    ("full", 6),
    ("stress in-task", 1),
    ("stress very-long", 2),
]


def test_a_pilot_that_was_stopped_many_times_ends_like_one_that_never_was(pilot: Pilot, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for stage, times in STOPS:
        with pytest.raises(KeyboardInterrupt):
            run_pilot(pilot.task, out=out, watch=stopping_at(stage, times))
        assert not (out / "evidence.json").exists()
    result = run_pilot(pilot.task, out=out)
    assert judged(out) == judged(pilot.result.folder)
    assert [found.metric for found in result.evidence.candidates] == [
        found.metric for found in pilot.evidence.candidates
    ]
    assert result.evidence.stress == pilot.evidence.stress
    assert result.bundle is not None
    assert pilot.result.bundle is not None
    assert load_bundle(result.bundle).prefix.hash == load_bundle(pilot.result.bundle).prefix.hash


def test_what_is_finished_is_not_made_again(pilot: Pilot) -> None:
    files = {path: path.read_bytes() for path in pilot.result.folder.glob("candidates/*/*")}
    stages: list[str] = []
    result = run_pilot(pilot.task, out=pilot.result.folder, watch=lambda stage, *_: stages.append(stage))
    assert [stage for stage in stages if stage.startswith("judge")] == []
    assert {path: path.read_bytes() for path in pilot.result.folder.glob("candidates/*/*")} == files
    assert result.evidence.candidates == pilot.evidence.candidates


def test_a_bundle_that_was_signed_stays_signed(quick: Callable[..., Path], tmp_path: Path) -> None:
    task = quick([{"kind": "prefix", "positions": 2, "steps": 2}])
    bundle = run_pilot(task, out=tmp_path / "run").bundle
    assert bundle is not None
    sign_bundle(bundle, SigningKey.new())
    signed = bundle.read_bytes()
    run_pilot(task, out=tmp_path / "run")
    assert bundle.read_bytes() == signed
    bundle.write_bytes(signed[:-1])
    run_pilot(task, out=tmp_path / "run")
    assert not load_bundle(bundle).signatures


def test_only_runs_the_candidates_named_by_name_or_kind(quick: Callable[..., Path], tmp_path: Path) -> None:
    task = quick([*QUICK, {"kind": "few-shot", "name": "shown"}])
    found = run_pilot(task, out=tmp_path / "run", only=["probe", "few-shot"]).evidence
    assert [candidate.name for candidate in found.candidates] == ["probe", "shown"]
    assert [candidate.difference.baseline for candidate in found.candidates] == [None, None]
    whole = run_pilot(task, out=tmp_path / "run").evidence
    assert [candidate.name for candidate in whole.candidates] == ["zero-shot", "probe", "shown"]
    assert whole.candidates[1].metric == found.candidates[0].metric


def test_an_unknown_name_is_refused_before_the_model_is_loaded(quick: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="did you mean 'probe'"):
        run_pilot(quick(model={"reference": "/nowhere"}), out=tmp_path / "run", only=["prob"])
    assert not (tmp_path / "run").exists()


def test_seeds_take_the_place_of_the_task_s_and_count_once(quick: Callable[..., Path], tmp_path: Path) -> None:
    found = run_pilot(quick(PREFIX), out=tmp_path / "run", seeds=[7, 3, 7], only=["prefix"]).evidence
    assert [result.seed for result in found.candidates[0].seeds] == [7, 3]
    assert found.provenance.seeds == [7, 3]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(quick: Callable[..., Path], tmp_path: Path, seed: int) -> None:
    with pytest.raises(TaskError, match="out of range"):
        run_pilot(quick(), out=tmp_path / "run", seeds=[seed])


@pytest.mark.parametrize("limit", [1, 5])
def test_a_limit_caps_every_split_and_is_told(quick: Callable[..., Path], tmp_path: Path, limit: int) -> None:
    task = quick([found | ({"steps": 2} if "steps" in found else {}) for found in ALL if found["kind"] != "full"])
    result = run_pilot(task, out=tmp_path / "run", limit=limit)
    assert {sum(counts.values()) for counts in result.evidence.data.counts.values()} == {limit}
    assert result.evidence.failed == []
    assert "limited-run" in {reason.code for reason in result.evidence.decision.reasons}


def test_a_candidate_that_fails_is_recorded_and_the_others_go_on(quick: Callable[..., Path], tmp_path: Path) -> None:
    positions = 2**40  # of a prefix: more memory than there is; of a soft prompt: more than the 64 that BERT reads
    task = quick(
        [
            {"kind": "soft-prompt", "positions": 64},
            {"kind": "prefix", "positions": positions},
            {"kind": "hard-prompt", "templates": ["word " * 100 + "{input}"]},
            *QUICK,
        ]
    )
    result = run_pilot(task, out=tmp_path / "run")
    assert [found.name for found in result.evidence.candidates] == ["zero-shot", "probe"]
    assert {found.name: found.code for found in result.evidence.failed} == {
        "soft-prompt": "FitError",
        "prefix": "FitError",
        "hard-prompt": "DataError",
    }
    assert "fewer than 64 positions" in result.evidence.failed[0].message
    assert result.bundle is None
    assert not (tmp_path / "run" / "best.prefix").exists()
    assert "fewer than 64 positions" in result.report.read_text(encoding="utf-8")
    told = [
        reason.parameters["name"] for reason in result.evidence.decision.reasons if reason.code == "candidate-failed"
    ]
    assert told == ["soft-prompt", "prefix", "hard-prompt"]


def test_when_every_candidate_fails_that_is_the_finding(quick: Callable[..., Path], tmp_path: Path) -> None:
    found = run_pilot(quick([{"kind": "soft-prompt", "positions": 64}]), out=tmp_path / "run").evidence
    assert (found.candidates, found.decision.chosen, found.stress) == ([], None, None)
    assert found.decision.verdict == "NOT ENOUGH EVIDENCE"
    assert found.decision.reasons[0].code == "none-fitted"


def test_a_failure_of_the_folder_is_not_put_down_to_a_candidate(
    quick: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunFolderError("The disk is full.")

    monkeypatch.setattr(RunFolder, "finish", full)
    with pytest.raises(RunFolderError, match="full"):
        run_pilot(quick(), out=tmp_path / "run")


@pytest.mark.parametrize("kind", [pytest.param("classify", marks=pytest.mark.slow), "generate"])
def test_an_encoder_decoder_model_is_judged_like_any_other(
    tmp_path: Path,
    model_folder: Callable[[str], Path],
    write_task: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    # To each of these an answer is written, one by one; T5 has no longest input of its own.
    monkeypatch.setattr(stress, "OFF_TOPIC", stress.OFF_TOPIC[:4])
    task = write_task(tmp_path, model_folder("t5"), PREFIX, kind=kind, limits={"max_input_tokens": 64})
    found = run_pilot(task, out=tmp_path / "run").evidence
    assert found.failed == []
    assert {candidate.kind for candidate in found.candidates} == {"zero-shot", "prefix"}


def test_a_task_that_the_base_model_cannot_do_is_refused_before_anything_is_written(
    tmp_path: Path, model_folder: Callable[[str], Path], write_task: Callable[..., Path]
) -> None:
    task = write_task(tmp_path, model_folder("bert"), [{"kind": "zero-shot"}], kind="generate")
    with pytest.raises(HostError, match="An encoder cannot do this task"):
        run_pilot(task, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_answer_longer_than_what_the_model_reads_is_told(
    tmp_path: Path, model_folder: Callable[[str], Path], write_task: Callable[..., Path]
) -> None:
    task = write_task(
        tmp_path, model_folder("gpt2"), [{"kind": "zero-shot"}], kind="generate", model={"max_tokens": 500}
    )
    (failed,) = run_pilot(task, out=tmp_path / "run").evidence.failed
    assert "The answer leaves the prompt no room" in failed.message
    assert "500 tokens" in failed.message


@pytest.fixture
def judged_prefix(quick: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A task whose prefix is judged and chosen, and the checkpoint of its fit."""
    task, out = quick(PREFIX), tmp_path / "run"
    run_pilot(task, out=out, only=["prefix"])
    return task, out / "candidates" / "prefix" / "seed-0.pt"


def test_a_prefix_is_not_bundled_from_another_fit_than_the_one_judged(
    judged_prefix: tuple[Path, Path],
) -> None:
    task, checkpoint = judged_prefix
    checkpoint.unlink()
    with pytest.raises(RunFolderError, match="not that of the fit that was judged") as caught:
        run_pilot(task, out=checkpoint.parents[2])
    assert str(checkpoint.parent) in caught.value.fix
    for path in checkpoint.parent.iterdir():
        path.unlink()
    assert run_pilot(task, out=checkpoint.parents[2]).bundle is not None


def test_a_broken_checkpoint_of_a_fit_under_way_is_recorded_as_its_failure(
    judged_prefix: tuple[Path, Path],
) -> None:
    task, checkpoint = judged_prefix
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    checkpoint.with_suffix(".json").unlink()
    (failed,) = run_pilot(task, out=checkpoint.parents[2]).evidence.failed
    assert (failed.name, failed.code) == ("prefix", "FitError")
    assert "Remove the file; the fit then starts again." in failed.message


def test_a_result_that_was_changed_by_hand_is_made_again(quick: Callable[..., Path], tmp_path: Path) -> None:
    task, out = quick(), tmp_path / "run"
    run_to_the_judgements(task, out)
    path, whole = out / "candidates" / "probe" / "seed-0.json", judged(out)
    told = json.loads(path.read_text(encoding="utf-8"))
    changes: Sequence[dict[str, Any]] = (
        {"outputs": ["red"]},
        {"bare_latency_ms": 0.0},
        {"selection": float("nan")},
        {"history": [{"step": 1}]},
        {"seed": 5},
        {"more": 1},
    )
    for change in changes:
        path.write_text(json.dumps({**told, **change}), encoding="utf-8")
        run_to_the_judgements(task, out)
        assert judged(out) == whole


@pytest.mark.parametrize(
    ("name", "folder"),
    [("a/b", "a-b"), ("../..", "pilot"), ("日本語 task", "日本語-task"), (".hidden", "hidden"), ("x" * 300, "x" * 60)],
)
def test_the_default_run_folder_is_one_folder_below_runs(
    quick: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    task = quick(QUICK[:1], task={"name": name})
    with pytest.raises(KeyboardInterrupt):
        run_pilot(task, watch=stopping_at("zero-shot", 1))
    assert [*Path("runs").iterdir()] == [Path("runs", folder)]
    if name == "a/b":
        result = run_pilot(task)
        assert (result.folder, result.evidence.task.name) == (Path("runs", folder), name)


def test_labels_that_the_tokenizer_cannot_spell_are_read_from_features(
    write_task: Callable[..., Path], model_folder: Callable[[str], Path], colours: Callable[[int], Any], tmp_path: Path
) -> None:
    """All of these labels are the unknown token; a candidate that needs their texts is refused before anything is."""
    named = dict(zip(dict.fromkeys(row["label"] for row in colours(60)), "赤緑青", strict=True))
    rows = [{**row, "label": named[row["label"]]} for row in colours(60)]
    prefix = {"kind": "prefix", "positions": 2, "steps": 2}
    folder, out = tmp_path / "task", tmp_path / "out"

    def pilot(*candidates: dict[str, Any]) -> PilotResult:
        return run_pilot(write_task(folder, model_folder("bert"), [*candidates], rows=rows, labels=None), out=out)

    with pytest.raises(DataError, match="tell two labels apart"):
        pilot({"kind": "probe"}, {"kind": "zero-shot"})
    assert not out.exists()
    found = pilot({"kind": "probe"}, {**prefix, "readout": "linear"}).evidence
    assert ([each.name for each in found.candidates], found.failed) == (["probe", "prefix"], [])
