"""`foreword compile` as people use it: interrupted and gone on with, from tables, as JSON, from the catalogue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreword.certificate import Certificate
from foreword.cli import compile as compiling
from foreword.compiler import attempts, branching
from foreword.compiler.attempts import Stage
from foreword.compiler.catalogue import CATALOGUE
from foreword.compiler.checker import CheckResult
from foreword.compiler.compiled import CompiledFunction, load_compiled
from foreword.compiler.domain import FiniteSet, Sphere

pytestmark = pytest.mark.usefixtures("hardly_polished")

WAVE = ["compile", "sin(2*x)*y", "--domain", "S1", "--tolerance", "1e-2", "--method", "spectral"]

Run = Callable[..., Any]


def timeless(file: Path) -> Certificate:
    claim = load_compiled(file).certificate
    assert claim is not None
    return replace(claim, effort={**claim.effort, "seconds": 0.0}).sealed()


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branching, "BLOCK", 1)
    monkeypatch.setattr(attempts, "BETWEEN", 0.0)


def interrupting_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Ctrl-C at the so-manieth word on the proof."""

    def watch(*_: object) -> Callable[[Stage], None]:
        told: list[Stage] = []

        def shown(stage: Stage) -> None:
            told.append(stage)
            if sum(each.name == "proving" for each in told) == count:
                raise KeyboardInterrupt

        return shown

    monkeypatch.setattr(compiling, "_watch", watch)


@pytest.mark.usefixtures("small_steps")
def test_ctrl_c_ends_with_130_and_the_same_command_ends_as_if_nothing_had_been(
    foreword: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, partial = tmp_path / "f.prefix", tmp_path / "f.prefix.partial"
    for count in (1, 3):
        with monkeypatch.context() as patch:
            interrupting_after(patch, count)
            ran = foreword(*WAVE, "--out", file)
        assert ran.code == 130
        assert ran.out == ""
        assert "the same command goes on from there" in ran.err
        assert partial.exists()
        assert not file.exists()
    ran = foreword(*WAVE, "--out", file)
    assert ran.code == 0, ran
    assert f"going on from {partial}" in ran.err.replace("\n", "")
    assert "drafting spectral: 0%" not in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["f.prefix"]
    assert foreword(*WAVE, "--out", tmp_path / "whole.prefix", "-q").code == 0
    assert timeless(file) == timeless(tmp_path / "whole.prefix")
    assert load_compiled(file).head.digest == load_compiled(tmp_path / "whole.prefix").head.digest


@pytest.mark.usefixtures("small_steps")
def test_another_request_beside_unfinished_work_is_refused_unless_fresh(
    foreword: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, partial = tmp_path / "f.prefix", tmp_path / "f.prefix.partial"
    with monkeypatch.context() as patch:
        interrupting_after(patch, 1)
        foreword(*WAVE, "--out", file)
    kept = partial.read_bytes()
    ran = foreword(*WAVE, "--seed", 1, "--out", file)
    assert (ran.code, ran.out) == (2, "")
    assert "seed 0, not 1" in ran.err
    assert "going on" not in ran.err
    assert "--fresh" in ran.err
    assert partial.read_bytes() == kept
    assert foreword(*WAVE, "--seed", 1, "--out", file, "--fresh").code == 0
    assert not partial.exists()


def test_time_that_is_up_keeps_the_proof_and_more_time_finishes_it(foreword: Run, tmp_path: Path) -> None:
    file, partial = tmp_path / "f.prefix", tmp_path / "f.prefix.partial"
    ran = foreword(*WAVE, "--seconds", 0, "--out", file, "--json", "-q")
    assert ran.code == 1
    told = json.loads(ran.out)
    assert told["certificate"]["verdict"] == "not reached"
    assert told["unfinished"] == str(partial)
    assert partial.exists()
    ran = foreword(*WAVE, "--seconds", 60, "--out", file)
    assert ran.code == 0
    assert "unfinished" not in ran.out
    assert not partial.exists()


# A shell's background jobs ignore SIGINT, and what they start inherits that: the handler is set anew.
INTERRUPTED = """
import signal, time
from foreword.compiler import attempts, branching
signal.signal(signal.SIGINT, signal.default_int_handler)
branching.BLOCK, attempts.BETWEEN, step = 1, 0.0, branching._step
def slow(*parts):
    time.sleep(0.3)
    return step(*parts)
branching._step = slow
from foreword.cli.main import run
run()
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_real_interrupt_of_a_real_process_loses_nothing(foreword: Run, tmp_path: Path, sent: signal.Signals) -> None:
    file, partial = tmp_path / "f.prefix", tmp_path / "f.prefix.partial"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *WAVE, "--out", str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    while not process.stderr.readline().startswith("proving"):
        assert process.poll() is None
    process.send_signal(sent)
    said, errors = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    assert "Traceback" not in errors
    assert partial.exists()
    assert foreword(*WAVE, "--out", file).code == 0
    assert not partial.exists()


def test_progress_stays_off_stdout_and_quiet_says_nothing(foreword: Run, tmp_path: Path) -> None:
    loud = foreword(*WAVE, "--out", tmp_path / "f.prefix")
    assert "drafting spectral: 0%" in loud.err
    assert "proving spectral: 100% 0 open," in loud.err
    assert "s left" in loud.err
    assert "drafting" not in loud.out
    assert foreword(*WAVE, "--out", tmp_path / "f.prefix", "--quiet").err == ""


def test_json_is_all_that_stands_on_stdout_and_says_what_the_text_does(foreword: Run, tmp_path: Path) -> None:
    file = tmp_path / "f.prefix"
    ran = foreword(*WAVE, "--out", file, "--json")
    told = json.loads(ran.out)
    compiled = load_compiled(file)
    assert compiled.certificate is not None
    assert told["positions"] == compiled.positions
    assert told["certificate"]["bound"] == compiled.certificate.bound
    assert told["certificate"]["seal"] == compiled.certificate.seal
    assert told["unfinished"] is None
    assert [row["method"] for row in told["tried"]] == ["spectral"]


def test_without_a_proof_nothing_is_claimed_and_another_seed_gives_another_prefix(
    foreword: Run, tmp_path: Path
) -> None:
    for seed in (0, 1):
        wanted = ["--positions", 5, "--no-certify", "--seed", seed, "--out", tmp_path / f"{seed}.prefix", "-q"]
        ran = foreword("compile", "exp(x*y*z) + sin(2*x + y)", "--domain", "S2", "--method", "spectral", *wanted)
        assert ran.code == 0, ran
        assert "no proof was asked for" in ran.out
    one, other = (load_compiled(tmp_path / f"{seed}.prefix") for seed in (0, 1))
    assert one.certificate is other.certificate is None
    assert one.head.digest != other.head.digest
    ran = foreword("verify", tmp_path / "0.prefix", "-q")
    assert ran.code == 1
    assert "no certificate" in ran.out


def test_the_catalogue_is_listed_with_one_line_each(foreword: Run) -> None:
    ran = foreword("compile", "--list")
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert lines[0].split() == ["name", "coordinates", "domain", "regularity", "about"]
    assert [line.split()[0] for line in lines[1 : 1 + len(CATALOGUE)]] == list(CATALOGUE)
    assert "cubes in [0, 1] only" in next(line for line in lines if line.startswith("corner"))
    assert "kinks, Lipschitz 1" in next(line for line in lines if line.startswith("abs"))
    assert "smooth, Lipschitz 7.34 in [0, 1]" in next(line for line in lines if line.startswith("franke"))
    told = json.loads(foreword("compile", "--list", "--json").out)
    assert [row["name"] for row in told] == list(CATALOGUE)


def test_a_table_is_compiled_and_checked_point_by_point(foreword: Run, tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (80, 2))
    table = np.column_stack([points, np.sin(2 * points[:, 0]), points[:, 1] ** 2])
    source, file = tmp_path / "f.csv", tmp_path / "f.prefix"
    np.savetxt(source, table, delimiter=",", header="x0,x1,y0,y1", comments="")
    ran = foreword("compile", "--samples", source, "--tolerance", "1e-2", "--out", file, "-q", "--json")
    assert ran.code == 0, ran
    told = json.loads(ran.out)
    assert told["domain"] == told["certificate"]["domain"] == {"kind": "finite", "count": 80, "columns": 2}
    compiled = load_compiled(file)
    assert np.abs(compiled.evaluate(compiled.domain.points) - table[:, 2:]).max() <= told["certificate"]["bound"]  # type: ignore[union-attr]
    ran = foreword("verify", file, "-q")
    assert ran.code == 0
    assert "shown at all 80 points" in " ".join(ran.out.split())


REFUSED: list[tuple[list[str], str]] = [
    ([], "none of these"),
    (["sin(x)"], "EXPRESSION"),
    (["sin(x)", "--out", "f.prefix"], "EXPRESSION, --out"),
    (["sin(x)", "--domain", "S1"], "EXPRESSION, --domain; no --out"),
    (["sin(x)", "--samples", "f.csv", "--domain", "S1", "--out", "f.prefix"], "--samples"),
    (["--samples", "f.csv", "--domain", "S1", "--out", "f.prefix"], "--samples"),
    (["--samples", "missing.csv", "--tolerance", "1", "--out", "f.prefix"], "No such file"),
    (["--samples", "f.parquet", "--tolerance", "1", "--out", "f.prefix"], ".parquet"),
    (["sin(x)", "--domain", "S1", "--out", "f.prefix"], "a tolerance, such as 1e-3, or the most positions"),
    (["sin(x)", "--domain", "S1", "--tolerance", "1e-3", "--out", "."], "a folder"),
    (["sin(x)", "--domain", "S1", "--tolerance", "1e-3", "--out", "file/f.prefix"], "no writable folder"),
    (["sin(x)", "--domain", "S1", "--tolerance", "1e-3", "--out", "f.prefix", "--seconds", "nan"], "seconds"),
    (["sin(x)", "--domain", "S1", "--tolerance", "1e-3", "--out", "f.prefix", "--seed", "-1"], "seed"),
]


@pytest.mark.parametrize(("arguments", "told"), REFUSED)
def test_requests_that_are_not_clear_are_refused_before_any_work(
    foreword: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    ran = foreword("compile", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert told in " ".join(ran.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_verify_says_of_each_part_whether_it_holds(foreword: Run, tmp_path: Path) -> None:
    file = tmp_path / "f.prefix"
    foreword("compile", "sin(2*x)", "--domain", "S1", "--tolerance", "1e-3", "--out", file, "-q")
    ran = foreword("verify", file)
    assert ran.code == 0
    assert "checking: 100%" in ran.err
    assert ran.out.count("holds") >= 9
    assert "rests on (sampled)" in ran.out
    told = json.loads(foreword("verify", file, "--json", "-q").out)
    parts = [line["what"] for line in told["checked"]]
    assert parts == [
        "parts", "bound", "cells", "rounding_float64", "rounding_float32", "rounding_bfloat16", "context", "seen",
        "approximation",
    ]  # fmt: skip
    assert {line["holds"] for line in told["checked"]} == {True}
    assert (told["verdict"], told["reasons"]) == ("proved", [])


def test_verify_names_what_is_wrong_or_was_not_checked(foreword: Run, tmp_path: Path) -> None:
    file = tmp_path / "f.prefix"
    foreword("compile", "sin(2*x)", "--domain", "S1", "--tolerance", "1e-3", "--out", file, "-q")
    ran = foreword("verify", file, "--seconds", 0, "-q", "--json")
    assert ran.code == 1
    told = json.loads(ran.out)
    assert told["verdict"] == "assumption unverified"
    assert [line["what"] for line in told["checked"] if line["holds"] is None] == ["approximation"]
    compiled = load_compiled(file)
    claim = compiled.certificate
    assert claim is not None
    terms = {**claim.terms, "rounding_float32": claim.terms["rounding_float32"] / 2}
    replace(compiled, certificate=replace(claim, terms=terms).sealed()).save(file)
    ran = foreword("verify", file, "-q")
    assert ran.code == 1
    assert "WRONG" in next(line for line in ran.out.splitlines() if "rounding_float32" in line)


def test_ctrl_c_ends_a_check_with_130(foreword: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "f.prefix"
    foreword("compile", "sin(2*x)", "--domain", "S1", "--tolerance", "1e-3", "--out", file, "-q")

    def interrupted(*_: object, **__: object) -> CheckResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(CompiledFunction, "verify", interrupted)
    ran = foreword("verify", file)
    assert (ran.code, ran.out) == (130, "")
    assert "interrupted" in ran.err


def test_a_table_cannot_have_one_point_with_two_values_in_memory_either() -> None:
    from foreword.compiler.pipeline import compile_function
    from foreword.errors import CompileError

    points = np.array([[0.0], [1.0], [-0.0]])
    with pytest.raises(CompileError, match="two values") as refused:
        compile_function(np.array([1.0, 2.0, 3.0]), FiniteSet(points), tolerance=0.1)
    assert "row 0" in refused.value.found
    assert "row 2" in refused.value.found
    compiled = compile_function(np.array([1.0, 2.0, 1.0]), FiniteSet(points), tolerance=0.1)
    assert compiled.certificate is not None
    assert not isinstance(compiled.domain, Sphere)
