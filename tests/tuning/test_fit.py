"""`fw.fit`: what it gives, that a kill loses nothing, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foreword as fw
from foreword.engine.host import Host
from foreword.errors import FitError, RunFolderError
from foreword.tuning.fittable import FitWatch, StepTaken

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = {"length": 4, "steps": 12, "batch_size": 4, "evaluate_every": 4}


@pytest.fixture
def task(write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    def made(family: str = "bert", **options: Any) -> Path:
        return write_task(tmp_path / "task", model_folder(family), [], **options)

    return made


class StopsAt(FitWatch):
    def __init__(self, step: int) -> None:
        self.step = step

    def stepped(self, taken: StepTaken) -> None:
        if taken.step == self.step:
            raise KeyboardInterrupt


def numbers(fit: fw.Fit) -> list[np.ndarray]:
    return [array for layer in fit.prefix.layers for array in (layer.keys, layer.values)]


def is_the_same(first: fw.Fit, second: fw.Fit) -> bool:
    equal = all(np.array_equal(a, b) for a, b in zip(numbers(first), numbers(second), strict=True))
    return equal and without_time(first) == without_time(second)


def without_time(fit: fw.Fit) -> list[tuple[int, float | None, float]]:
    return [(moment.step, moment.loss, moment.selection) for moment in fit.history]


# What it gives


@pytest.mark.parametrize(("start", "bare", "told"), [("vocabulary", 1.0, 1), ("vocabulary", 0.4, 0), ("zero", 1.0, 0)])
def test_a_start_far_behind_the_bare_model_is_told_with_another_one(
    task: Callable[..., Path],
    shared_host: Callable[[str], Host],
    monkeypatch: pytest.MonkeyPatch,
    start: str,
    bare: float,
    told: int,
) -> None:
    """Of twelve examples the tiny model has four right, as it answers all alike; 12 of 12 are at least 0.735."""
    monkeypatch.setattr("foreword.tuning.objectives.contract.Objective.bare_score", lambda _: bare)
    options = OPTIONS | {"steps": 1, "readout": "likelihood"}
    made = fw.fit(shared_host("gpt2"), task("gpt2"), start=start, **options)
    found = [text for text in made.notices if "the bare model has 1.000 (at least 0.735" in text]
    assert len(found) == len(made.notices) == told
    assert all("'zero'" in text for text in found)


def test_texts_scored_in_halves_are_told_in_the_fits_notices_and_its_log(
    task: Callable[..., Path], load_host: Callable[[str], Host], tmp_path: Path
) -> None:
    """More than twelve texts do not get past the last layer: not the 18 that labels are calibrated on, and not six with
    three labels each; a step's twelve do.
    """
    host, out = load_host("gpt2"), tmp_path / "out"

    def fill(_: Any, arguments: tuple[Any, ...]) -> None:
        if len(arguments[0]) > 12:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    host.backbone.h[-1].register_forward_pre_hook(fill)
    made = fw.fit(host, task("gpt2"), out=out, **(OPTIONS | {"steps": 1}))
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert made.notices[0] == "a batch of 18 texts does not fit into memory: read in halves"
    assert tuple(row["notice"] for row in rows if "notice" in row) == made.notices


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_fit_leaves_a_bundle_that_answers_as_it_does(task: Callable[..., Path], tmp_path: Path, family: str) -> None:
    made = fw.fit(None, task(family), out=tmp_path / "out", **OPTIONS)
    bundle = fw.load_bundle(tmp_path / "out" / "best.prefix")
    assert bundle.prefix.hash == made.prefix.hash
    texts = ["rose brick ruby", "sky ink", "frog lime moss"]
    again = fw.predictor_from(bundle, made.predictor.host).answer(texts)
    assert [answer.output for answer in again] == [answer.output for answer in made.answer(texts)]
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["selection"] == made.selection
    assert result["record"]["settings"]["seed"] == 0
    assert made.best.selection == max(moment.selection for moment in made.history)


def test_the_log_has_each_step_and_evaluation_once(task: Callable[..., Path], tmp_path: Path) -> None:
    path, out = task(), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        fw.fit(None, path, out=out, watch=StopsAt(6), **OPTIONS)
    fw.fit.resume(out)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert [row["step"] for row in rows if "evaluation" in row] == [0, 4, 8, 12]


def test_tensorboard_shows_the_loss_of_every_step(task: Callable[..., Path], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fw.fit(None, task(), out=tmp_path / "out", tensorboard=True, **OPTIONS)
    found = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == list(range(1, 13))
    assert [event.step for event in found.Scalars("selection")] == [0, 4, 8, 12]


def test_a_fit_that_is_refused_before_its_first_step_says_why_with_a_tensorboard_too(
    task: Callable[..., Path], tmp_path: Path, shared_host: Callable[[str], Host]
) -> None:
    with pytest.raises(FitError, match="no such layers"):
        fw.fit(shared_host("bert"), task(), out=tmp_path / "out", tensorboard=True, layers=[7], **OPTIONS)


def test_an_encoder_is_fitted_to_labels_that_its_tokenizer_has_no_token_for(
    task: Callable[..., Path], colours: Callable[[int], list[dict[str, str]]]
) -> None:
    """Its read-out tells labels by number; a tokenizer that drops control characters makes nothing of this one."""
    first = colours(3)[0]["label"]
    rows = [{**row, "label": "\u200b" if row["label"] == first else row["label"]} for row in colours(60)]
    made = fw.fit(None, task("bert", rows=rows, labels=None), **(OPTIONS | {"steps": 1}))
    assert "\u200b" in made.predictor.manner.labels


def test_a_soft_prompt_of_a_causal_model_is_given_as_a_prefix(task: Callable[..., Path]) -> None:
    """Baked: the same label scores as with the soft prompt before the tokens, up to float32 rounding."""
    made = fw.fit(None, task("gpt2"), method="soft-prompt", **OPTIONS)
    texts = ["rose brick ruby", "sky ink"]
    rows, prefix = made.predictor.rows(texts), made.prefix
    with torch.no_grad():
        expected = made.predictor.label_scores(rows)
        made.predictor.adaptation.soft = None
        with fw.attached(made.predictor.host, prefix):
            found = made.predictor.label_scores(rows)
    assert torch.allclose(expected, found, rtol=1e-4, atol=1e-4)


def test_options_that_cost_no_accuracy_change_only_rounding(task: Callable[..., Path], shared_host: Any) -> None:
    """Parts of a batch and recomputed layers are the same sums in another order.

    Adam divides by the gradient's own size, so a rounding error of 1e-6 in a gradient that is nearly zero can move a
    number by a whole step; two steps on the first gradients keep that rare, and losses are compared instead.
    """
    path = task("gpt2")
    host = shared_host("gpt2")
    options = OPTIONS | {"steps": 2, "evaluate_every": 1}
    plain = fw.fit(host, path, **options)
    for other in ({"part": 1}, {"part": 3}):
        changed = fw.fit(host, path, **options, **other)
        assert [m.loss for m in changed.history[1:2]] == pytest.approx([m.loss for m in plain.history[1:2]], rel=1e-5)


def test_layers_are_computed_again_instead_of_being_kept(task: Callable[..., Path], shared_host: Any) -> None:
    host, path = shared_host("bert"), task("bert")
    plain = fw.fit(host, path, **OPTIONS)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = host.backbone.encoder.layer[0].attention.register_forward_hook(count)
    fw.fit(host, path, **OPTIONS)
    once = calls
    again = fw.fit(host, path, checkpointing=True, **OPTIONS)
    hook.remove()
    assert calls - once == once + OPTIONS["steps"]  # once more in each backward pass
    assert is_the_same(plain, again)
    assert not any(module.training for module in host.model.modules())


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_lower_precision_fits_too_and_leaves_float32(task: Callable[..., Path], precision: str) -> None:
    made = fw.fit(None, task(), precision=precision, **OPTIONS)
    assert {array.dtype for array in numbers(made)} == {np.dtype(np.float32)}
    assert made.history[-1].loss is not None


# That a kill loses nothing


@pytest.mark.parametrize(("family", "start"), [("bert", "auto"), ("gpt2", "closed-form")])
def test_a_fit_stopped_anywhere_goes_on_to_the_same_numbers(
    task: Callable[..., Path], tmp_path: Path, family: str, start: str
) -> None:
    path = task(family)
    whole = fw.fit(None, path, start=start, **OPTIONS)
    out = tmp_path / "out"
    for stop in (1, 4, 7, 12):
        with pytest.raises(KeyboardInterrupt):
            fw.fit(None, path, start=start, out=out, watch=StopsAt(stop), **OPTIONS)
    for _ in range(2):  # the second time a finished one is only loaded
        made = fw.fit.resume(out)
        assert is_the_same(whole, made)
        assert made.details == whole.details  # how a closed form went is told though it was not solved again


# A process that is killed a moment after it took a step: in the next one, while it looks or writes, or at its very end.
KILLED = """
import os, signal, sys, threading
import foreword as fw
from foreword.tuning.fittable import FitWatch
path, out, options, more, after = sys.argv[1], sys.argv[2], eval(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
class Killed(FitWatch):
    def start(self, step):
        self.at = step + more
        print(step, flush=True)
    def stepped(self, taken):
        if taken.step == self.at:
            threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
fw.fit(None, path, out=out, watch=Killed(), **options)
threading.Event().wait(after + 60)  # the fit was quicker than the timer
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fit_killed_twenty_times_at_random_is_the_same_fit(task: Callable[..., Path], tmp_path: Path) -> None:
    """A real SIGKILL at a random step, and a moment of up to 50 ms after it, twenty times in a row."""
    path, out = task(), tmp_path / "out"
    options = {"length": 4, "batch_size": 4, "evaluate_every": 2, "steps": 300, "patience": 300}
    whole = fw.fit(None, path, out=tmp_path / "whole", **options)
    rng, begun = np.random.default_rng(0), []
    for _ in range(20):
        more, after = int(rng.integers(1, 4)), rng.uniform(0.0, 0.05)
        ran = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(out), repr(options), str(more), str(after)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == -signal.SIGKILL, ran.stderr
        begun.append(int(ran.stdout))
    assert begun == sorted(begun)
    assert 10 < begun[-1] < 300
    assert is_the_same(whole, fw.fit.resume(out))
    log = [[json.loads(line) for line in (f / "log.jsonl").read_text().splitlines()] for f in (tmp_path / "whole", out)]
    losses = [[(row["step"], row["loss"]) for row in rows if "loss" in row] for rows in log]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_two_processes_fit_as_one(task: Callable[..., Path], tmp_path: Path) -> None:
    """Each computes half of every batch; the sum is the batch's gradient up to rounding, and only the first writes."""
    path = task()
    whole = fw.fit(None, path, **(OPTIONS | {"steps": 1, "evaluate_every": 1}))
    code = (
        "import sys, foreword as fw\n"
        "made = fw.fit(None, sys.argv[1], out=sys.argv[2], length=4, steps=1, batch_size=4, evaluate_every=1)\n"
    )
    script = tmp_path / "two.py"
    script.write_text(code)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone"]
    subprocess.run(
        [sys.executable, *launch, str(script), str(path), str(tmp_path / "out")],
        check=True,
        capture_output=True,
        env=environment,
        timeout=180,
    )
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["history"][-1]["loss"] == pytest.approx(whole.history[-1].loss, rel=1e-5)


# What it refuses


def test_another_fit_in_the_folder_is_refused_showing_the_difference(task: Callable[..., Path], tmp_path: Path) -> None:
    path, out = task(), tmp_path / "out"
    fw.fit(None, path, out=out, **OPTIONS)
    before = (out / "best.prefix").read_bytes()
    for change, said in (({"steps": 13}, "settings.steps was 12, is 13"), ({"seed": 1}, "seed was 0, is 1")):
        with pytest.raises(RunFolderError, match=said):
            fw.fit(None, path, out=out, **(OPTIONS | change))
    data = path.parent / "data.jsonl"
    lines = data.read_text().splitlines()
    data.write_text("\n".join(lines[:-1]))
    with pytest.raises(RunFolderError, match="data was"):
        fw.fit.resume(out)
    data.write_text("\n".join(lines))
    assert (out / "best.prefix").read_bytes() == before


def test_another_base_is_refused(task: Callable[..., Path], tmp_path: Path, load_host: Callable[[str], Host]) -> None:
    path, out = task(), tmp_path / "out"
    fw.fit(None, path, out=out, **OPTIONS)
    other = load_host("bert")
    with torch.no_grad():
        next(iter(other.model.parameters())).add_(0.01)
    with pytest.raises(RunFolderError, match="base was"):
        fw.fit.resume(out, host=other)


def test_a_prefix_to_start_from_that_has_become_another_is_refused(
    task: Callable[..., Path], tmp_path: Path, shared_host: Callable[[str], Host]
) -> None:
    """Its biases and the rates that follow from it are made anew on going on: they are no part of a checkpoint."""
    path, host, out = task(), shared_host("bert"), tmp_path / "out"
    brief = OPTIONS | {"steps": 1}
    fw.fit(host, path, **brief).save(path.parent / "first.prefix")
    with pytest.raises(KeyboardInterrupt):
        fw.fit(host, path, out=out, start="prefix", start_prefix="first.prefix", watch=StopsAt(6), **OPTIONS)
    (path.parent / "first.prefix").unlink()
    with pytest.raises(RunFolderError, match=r"files was .*, is null"):
        fw.fit.resume(out, host=host)
    fw.fit(host, path, seed=1, **brief).save(path.parent / "first.prefix")
    with pytest.raises(RunFolderError, match=r"files\.start_prefix was"):
        fw.fit.resume(out, host=host)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "method": ({"method": "prefiks"}, "did you mean 'prefix'"),
    "option": ({"stepz": 3}, "did you mean 'steps'"),
    "value": ({"steps": 0}, "greater than or equal to 1"),
    "rate": ({"learning_rate": "fast"}, "find"),
    "length": ({"length": -2}, "greater than or equal to 1"),
    "length and positions": ({"length": 2, "positions": 3}, "said twice"),
    "kind": ({"kind": "lora"}, "no option 'kind'"),
    "switch": ({"sink": "yes"}, "sink: expected true or false, found 'yes'"),
    "start": ({"start": "zeros"}, "did you mean 'zero'"),
    "nothing to hide": ({"start": "zero", "leave_one_out": True}, 'start = "demonstrations" beside leave_one_out'),
    "nothing to hide in LoRA": ({"method": "lora", "leave_one_out": True}, "a prefix with start"),
    "events without a folder": ({"tensorboard": True}, "no folder"),
    "together": ({"start": "prefix"}, "start_prefix, a bundle's path"),
}


@pytest.mark.parametrize(("options", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_option_is_refused_before_any_model_is_loaded(
    task: Callable[..., Path], options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "load", None)
    with pytest.raises(FitError, match=said):
        fw.fit(None, task(), **options)


@pytest.mark.parametrize(
    "options", [{"objective": "labels"}, {"objective": "similarity"}, {"readout": "linear"}], ids=str
)
def test_options_for_labels_are_refused_for_a_task_without_any(
    task: Callable[..., Path], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "load", None)
    with pytest.raises(FitError, match="as the kind is 'generate'"):
        fw.fit(None, task("gpt2", kind="generate"), **options)


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.5, "0", None])
def test_a_seed_that_is_none_is_refused_before_any_model_is_loaded(
    task: Callable[..., Path], seed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "load", None)
    for verb in (fw.fit, fw.foretell):
        with pytest.raises(FitError, match="from 0 to 4294967295"):
            verb(None, task(), seed=seed)


def test_all_that_is_wrong_with_the_options_is_said_at_once(task: Callable[..., Path]) -> None:
    with pytest.raises(FitError) as caught:
        fw.fit(None, task(), length=0, steps=-1, share=2.0, learning_rate="fast")
    for name in ("positions", "steps", "share", "learning_rate"):
        assert f"  - {name}: expected" in str(caught.value)


@pytest.mark.parametrize("options", [{"length": 10**15}, {"length": 2, "longest": 10**15}, {"method": "lora"}], ids=str)
def test_what_no_memory_can_hold_is_refused_before_it_is_made(
    task: Callable[..., Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    """10^15 positions or ranks of 8 numbers or more would take petabytes."""
    with pytest.raises(FitError, match="does not fit into memory"):
        fw.fit(None, task(), out=tmp_path / "out", **{"length": 10**15, **options})
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_a_finished_fit_is_left_as_it_is_with_its_record_and_its_signatures(
    task: Callable[..., Path], tmp_path: Path
) -> None:
    path, out = task(), tmp_path / "out"
    first = fw.fit(None, path, out=out, **OPTIONS)
    fw.sign_bundle(out / "best.prefix", fw.SigningKey.new())
    before = {name: (out / name).read_bytes() for name in ("best.prefix", "result.json")}
    again = fw.fit.resume(out)
    assert is_the_same(again, first)
    assert {name: (out / name).read_bytes() for name in before} == before
    (out / "best.prefix").write_bytes(b"damaged")
    fw.fit.resume(out)
    assert fw.load_bundle(out / "best.prefix").prefix.hash == first.prefix.hash


@pytest.mark.parametrize("options", [{}, {"length": "auto", "lengths": [2]}, {"method": "lora"}], ids=str)
def test_a_finished_fit_is_loaded_from_a_folder_that_cannot_be_written(
    task: Callable[..., Path],
    shared_host: Callable[[str], Host],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
) -> None:
    """The folder is one of another mount, which the tests cannot make: what asks the system for leave is told no."""
    host, out = shared_host("gpt2"), tmp_path / "out"
    first = fw.fit(host, task("gpt2"), out=out, **(OPTIONS | {"steps": 1, **options}))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("foreword.tuning.folder.os.access", lambda *_: False)
    monkeypatch.setattr("foreword.tuning.folder.FileLock.acquire", refused)
    again = fw.fit.resume(out, host=host)
    assert without_time(again) == without_time(first)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(RunFolderError, match=r"seed was 0, is 1"):
        fw.fit(host, task("gpt2"), out=out, seed=1, **(OPTIONS | {"steps": 1, **options}))
    (out / "result.json").unlink()  # the last file of a fit
    with pytest.raises(RunFolderError, match="cannot be written"):
        fw.fit.resume(out, host=host)
    first.close()
    again.close()


def test_a_folder_without_a_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fit.json").write_text('{"task": 3}')
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(RunFolderError, match="holds no fit"):
            fw.fit.resume(folder)


def test_lora_has_no_prefix_and_leaves_the_model_when_closed(task: Callable[..., Path], tmp_path: Path) -> None:
    made = fw.fit(None, task("gpt2"), method="lora", out=tmp_path / "out", **(OPTIONS | {"length": 2}))
    assert made.details["rank"] == 2
    assert (tmp_path / "out" / "lora" / "adapter_model.safetensors").exists()
    with pytest.raises(FitError, match="not a prefix"):
        _ = made.prefix
    before = made.predictor.host.fingerprint
    made.close()
    assert made.predictor.host.measure_fingerprint() == before


@pytest.mark.parametrize(("family", "kind"), [("bert", "classify"), ("gpt2", "generate"), ("t5", "generate")])
def test_a_length_that_leaves_no_time_for_a_step_is_refused_before_anything_of_it_is_made(
    task: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, family: str, kind: str
) -> None:
    monkeypatch.setattr("foreword.tuning.room.TIMED", (8, 512))
    monkeypatch.setattr("foreword.tuning.candidates.prefix.Adapted.__init__", None)  # it would be called with positions
    with pytest.raises(FitError, match="200,000 positions takes longer") as refused:
        fw.fit(None, task(family, kind=kind), length=200_000, seconds=0.01, out=tmp_path / "fit")
    assert "fewer positions" in refused.value.fix


def test_a_fit_whose_seconds_end_before_a_step_says_so(task: Callable[..., Path]) -> None:
    made = fw.fit(None, task(), **{**OPTIONS, "seconds": 1e-6})
    assert made.history[-1].step == 0
    assert any("no step was taken" in text for text in made.notices)


def test_texts_that_the_adapted_model_reads_too_are_fitted_at_the_full_pace(task: Callable[..., Path]) -> None:
    """A third of it is for read-outs that are solved on the bare or the adapted model's features."""
    options, path = {**OPTIONS, "steps": 1}, task()
    compared = fw.fit(None, path, objective="similarity", **options).details["learning_rates"]
    fixed = fw.fit(None, path, readout="label-text", **options).details["learning_rates"]
    assert compared == pytest.approx([3 * rate for rate in fixed])
