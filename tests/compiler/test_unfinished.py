"""An interrupted compilation goes on to the same result, and never takes another request's work for its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foreword.certificate import Certificate, Verdict
from foreword.compiler import attempts, branching, unfinished
from foreword.compiler.compiled import CompiledFunction, load_compiled
from foreword.compiler.domain import Cube, FiniteSet, Sphere
from foreword.compiler.pipeline import Stage, compile_function
from foreword.compiler.target import Target
from foreword.compiler.unfinished import Unfinished
from foreword.errors import CertificateError, CompileError

pytestmark = pytest.mark.usefixtures("hardly_polished")

# On a circle, as cells of a sphere take three times as long; so does looking for the shortest prefix.
WAVE = "0.5*sin(3*x) + 0.5*cos(2*y)*x"
REQUEST: dict[str, Any] = {"f": WAVE, "domain": Sphere(1), "tolerance": 1e-2, "positions": 10}
SHORTEST = {**REQUEST, "positions": None}


class StoppedError(BaseException):
    """As a KeyboardInterrupt: nothing that the compiler handles."""


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 2 cells, each of them told: there are many places to stop at."""
    monkeypatch.setattr(branching, "BLOCK", 2)
    monkeypatch.setattr(attempts, "BETWEEN", 0.0)


def stopping_after(count: int, name: str = "proving") -> Callable[[Stage], None]:
    seen: list[Stage] = []

    def progress(stage: Stage) -> None:
        seen.append(stage)
        if sum(each.name == name for each in seen) == count:
            raise StoppedError

    return progress


def timeless(compiled: CompiledFunction) -> Certificate:
    """The certificate, sealed, without the one thing that no two runs share."""
    assert compiled.certificate is not None
    effort = {**compiled.certificate.effort, "seconds": 0.0}
    return replace(compiled.certificate, effort=effort).sealed()


@pytest.fixture(scope="module")
def whole(hardly_polished: None) -> CompiledFunction:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branching, "BLOCK", 2)
        return compile_function(**REQUEST)


@pytest.fixture(scope="module")
def begun(hardly_polished: None, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What the request's compilation left when it was interrupted in its proof."""
    kept = tmp_path_factory.mktemp("begun") / "f.partial"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branching, "BLOCK", 2)
        patch.setattr(attempts, "BETWEEN", 0.0)
        with pytest.raises(StoppedError):
            compile_function(**REQUEST, progress=stopping_after(2), resume=kept)
    return kept.read_bytes()


@pytest.mark.parametrize("stops", [(1,), (3,), (2, 5, 1), (1, 1, 1, 1)])
def test_interrupted_at_any_step_it_ends_with_the_same_prefix_and_certificate(
    whole: CompiledFunction, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    kept = tmp_path / "f.partial"
    for count in stops:
        with pytest.raises(StoppedError):
            compile_function(**REQUEST, progress=stopping_after(count), resume=kept)
        assert kept.exists()
    compiled = compile_function(**REQUEST, resume=kept)
    assert compiled.head.digest == whole.head.digest
    assert timeless(compiled) == timeless(whole)
    assert compiled.certificate is not None
    assert compiled.certificate.verdict is Verdict.PROVED
    assert not kept.exists()


def test_interrupted_while_drafting_the_finished_drafts_are_not_made_again(tmp_path: Path) -> None:
    kept = tmp_path / "f.partial"
    with pytest.raises(StoppedError):
        compile_function(**SHORTEST, progress=stopping_after(2, "drafting"), resume=kept)
    stages: list[Stage] = []
    compile_function(**SHORTEST, progress=stages.append, resume=kept)
    begun = [stage.method for stage in stages if stage.name == "drafting" and stage.share == 0.0]
    assert begun == ["spectral"]  # not "adaptive", and "nearest" is not tried


def test_the_stages_are_told_with_cells_bound_and_time_left() -> None:
    stages: list[Stage] = []
    compiled = compile_function(**REQUEST, progress=stages.append)
    proving = [stage for stage in stages if stage.name == "proving"]
    shares = [stage.share for stage in proving]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert compiled.certificate is not None
    assert proving[-1].bound == compiled.certificate.terms["approximation"]
    assert (proving[-1].open, proving[-1].positions) == (0, compiled.positions)
    assert compiled.cover is not None
    assert proving[-1].closed == len(compiled.cover)
    assert all(stage.seconds_left is not None and 0 <= stage.seconds_left <= 60 for stage in proving)
    assert all(stage.open > 0 and stage.bound >= stage.seen for stage in proving[:-1])


def test_time_that_is_up_keeps_the_state_and_more_time_ends_as_one_long_run(
    whole: CompiledFunction, tmp_path: Path
) -> None:
    kept = tmp_path / "f.partial"
    short = compile_function(**REQUEST, seconds=0.0, resume=kept)
    assert short.certificate is not None
    assert short.certificate.verdict is Verdict.NOT_REACHED
    assert kept.exists()
    assert timeless(compile_function(**REQUEST, resume=kept)) == timeless(whole)
    assert not kept.exists()


def test_what_more_time_cannot_change_is_not_kept(tmp_path: Path) -> None:
    kept = tmp_path / "f.partial"
    rough = Target(lambda x: np.array(np.sign(x.tolist()))[:, 0] * 3, domain=Cube([(-1, 1)]))
    told = compile_function(rough, positions=8, method="nearest", resume=kept).certificate
    assert told is not None
    assert told.verdict is Verdict.ASSUMPTION_UNVERIFIED
    assert not kept.exists()
    with pytest.raises(CompileError):
        compile_function("sign_of_nothing", Sphere(1), tolerance=0.1, resume=kept)
    assert not kept.exists()


OTHERS: list[tuple[str, dict[str, Any]]] = [
    ("target", {"f": WAVE + " + x"}),
    ("target", {"lipschitz": 2.5}),
    ("domain", {"domain": Sphere(2)}),
    ("tolerance", {"tolerance": 2e-4}),
    ("positions", {"positions": 40, "tolerance": None}),
    ("value_limit", {"value_limit": 9.0}),
    ("method", {"method": "spectral"}),
    ("seed", {"seed": 1}),
]


@pytest.mark.parametrize(("what", "change"), OTHERS)
def test_a_changed_request_is_refused_by_name_and_the_work_stays(
    what: str, change: dict[str, Any], begun: bytes, tmp_path: Path
) -> None:
    kept = tmp_path / "f.partial"
    kept.write_bytes(begun)
    with pytest.raises(CompileError, match="another request") as refused:
        compile_function(**{**REQUEST, **change}, resume=kept)
    assert what in refused.value.found
    assert "--fresh" in refused.value.fix
    assert kept.read_bytes() == begun


def test_another_function_is_told_by_its_name(begun: bytes, tmp_path: Path) -> None:
    kept = tmp_path / "f.partial"
    kept.write_bytes(begun)
    with pytest.raises(CompileError) as refused:
        compile_function(**{**REQUEST, "f": "x*y"}, resume=kept)
    assert refused.value.found == f'target "{WAVE}", not "x*y"'


def test_unfinished_work_in_place_of_a_prefix_is_told_as_that(begun: bytes, tmp_path: Path) -> None:
    kept = tmp_path / "f.partial"
    kept.write_bytes(begun)
    with pytest.raises(CertificateError, match="unfinished work of a compilation") as refused:
        load_compiled(kept)
    assert "goes on from there" in refused.value.fix


def test_another_version_is_refused(begun: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "f.partial"
    kept.write_bytes(begun)
    monkeypatch.setattr(unfinished, "__version__", "9.9")
    with pytest.raises(CompileError, match="version"):
        compile_function(**REQUEST, resume=kept)


def test_fresh_discards_the_work_of_another_request(whole: CompiledFunction, tmp_path: Path) -> None:
    kept = tmp_path / "f.partial"
    with pytest.raises(StoppedError):
        compile_function(**{**REQUEST, "seed": 5}, progress=stopping_after(1), resume=kept)
    assert timeless(compile_function(**REQUEST, resume=kept, fresh=True)) == timeless(whole)
    assert not kept.exists()


@pytest.mark.slow
def test_a_python_function_of_the_same_name_with_other_values_is_refused(tmp_path: Path) -> None:
    def black(scale: float) -> Target:
        return Target(lambda x: scale * np.sin(np.array(x.tolist()))[:, 0], domain=Cube([(-1, 1)]), lipschitz=2.0)

    kept = tmp_path / "f.partial"
    with pytest.raises(StoppedError):
        compile_function(black(1.0), method="spectral", tolerance=0.1, progress=stopping_after(1), resume=kept)
    with pytest.raises(CompileError, match="other values"):
        compile_function(black(1.5), method="spectral", tolerance=0.1, resume=kept)
    assert (
        compile_function(black(1.0), method="spectral", tolerance=0.1, resume=kept).verify().verdict is Verdict.PROVED
    )


def looked_up(changed: float) -> Target:
    """A sine off a table of 40,000 numbers, one of which is changed: no formula, and no point drawn is near it."""
    table = np.sin(2 * np.linspace(-1, 1, 40001))
    table[20001] += changed

    def between(x: np.ndarray) -> np.ndarray:
        row = np.clip(((x[:, 0] + 1) * 20000).astype(int), 0, 39999)
        part = (x[:, 0] + 1) * 20000 - row
        return np.asarray(table[row] * (1 - part) + table[row + 1] * part)

    return Target(between, domain=Cube([(-1, 1)]), lipschitz=3e3)


def test_a_function_that_differs_between_the_points_that_are_compared_is_refused(tmp_path: Path) -> None:
    request: dict[str, Any] = {"positions": 4, "resume": tmp_path / "f.partial", "method": "spectral"}
    with pytest.raises(StoppedError):
        compile_function(looked_up(0.0), **request, progress=stopping_after(2))
    with pytest.raises(CompileError, match="other code, or refers to other numbers"):
        compile_function(looked_up(0.1), **request, seconds=0.1)
    assert compile_function(looked_up(0.0), **request, seconds=0.1).positions == 4


def test_what_a_function_counts_from_call_to_call_does_not_stand_in_its_way(tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(x: np.ndarray) -> np.ndarray:
        calls.append(len(x))
        return np.array([float(np.sin(number)) for number in x[:, 0]])

    request: dict[str, Any] = {"positions": 4, "resume": tmp_path / "f.partial", "method": "spectral"}
    target = Target(counted, domain=Cube([(-1, 1)]), lipschitz=1.0)
    with pytest.raises(StoppedError):
        compile_function(target, **request, progress=stopping_after(2))
    assert compile_function(target, **request, seconds=0.1).positions == 4


def test_a_table_with_one_other_sample_is_refused(tmp_path: Path) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    values = np.sin(points[:, :1])
    kept = tmp_path / "f.partial"
    with pytest.raises(StoppedError):
        compile_function(values, FiniteSet(points), tolerance=1e-3, progress=stopping_after(2, "drafting"), resume=kept)
    other = values.copy()
    other[211] += 1e-3
    with pytest.raises(CompileError, match="other values"):
        compile_function(other, FiniteSet(points), tolerance=1e-3, resume=kept)
    assert compile_function(values, FiniteSet(points), tolerance=1e-3, resume=kept).certificate is not None


@pytest.mark.parametrize("change", ["cut", "bit", "empty", "other"])
def test_a_damaged_file_is_refused_and_fresh_starts_anew(change: str, begun: bytes, tmp_path: Path) -> None:
    kept, content = tmp_path / "f.partial", bytearray(begun)
    content[-40] ^= 1
    damaged = {"cut": bytes(content[:-9]), "bit": bytes(content), "empty": b"", "other": b"{}" * 40}[change]
    kept.write_bytes(damaged)
    with pytest.raises(CompileError, match="cannot be read") as refused:
        compile_function(**REQUEST, resume=kept)
    assert "--fresh" in refused.value.fix
    compile_function(**REQUEST, resume=kept, fresh=True)


def test_an_error_that_would_come_again_leaves_no_file_in_the_way_of_a_corrected_request(tmp_path: Path) -> None:
    kept = tmp_path / "f.partial"
    kept.write_bytes(b"written a while ago")
    with pytest.raises(CompileError, match="not finite"), Unfinished(kept).kept():
        raise CompileError("The target has a value that is not finite.")
    assert not kept.exists()


def test_a_step_that_is_cut_off_in_the_middle_leaves_the_state_before_it(
    whole: CompiledFunction, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "f.partial"
    steps = 0
    original = branching.Search.stepped

    def cut(self: branching.Search, *parts: Any) -> branching.Search:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise StoppedError
        return original(self, *parts)

    with monkeypatch.context() as patch:
        patch.setattr(branching.Search, "stepped", cut)
        with pytest.raises(StoppedError):
            compile_function(**REQUEST, resume=kept)
    assert timeless(compile_function(**REQUEST, resume=kept)) == timeless(whole)


SLOW = """
import sys, time
from foreword.compiler import branching, unfinished
from foreword.compiler.construction import polish
from foreword.compiler.domain import Sphere
from foreword.compiler.pipeline import compile_function
branching.BLOCK, unfinished.PERIOD, polish.MOST_STEPS = 2, 0.0, 20
compile_function(
    "sin(2*x)*y", Sphere(1), tolerance=1e-2, method="spectral", resume=sys.argv[1],
    progress=lambda stage: time.sleep(0 if stage.name == "drafting" else 2),
)
"""


def test_a_killed_process_leaves_what_it_had_written_last(tmp_path: Path) -> None:
    """SIGKILL: nothing can be done then; the file is whole, and the compilation goes on from it."""
    kept = tmp_path / "f.partial"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(kept)], env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        ends = time.monotonic() + 100
        while not (kept.exists() and b"search/0/levels" in kept.read_bytes()) and time.monotonic() < ends:
            time.sleep(0.05)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    stages: list[Stage] = []
    request: dict[str, Any] = {"f": "sin(2*x)*y", "domain": Sphere(1), "tolerance": 1e-2, "method": "spectral"}
    compiled = compile_function(**request, resume=kept, progress=stages.append)
    assert not [stage for stage in stages if stage.name == "drafting" and stage.share == 0.0]
    assert timeless(compiled) == timeless(compile_function(**request))
