"""A compiled file gives back exactly what was written, and the checker confirms what was read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.compiler.proofs import CIRCLE, Proof, certificate_for, proof_of

from foreword.certificate import Verdict
from foreword.compiler.charts import Flat, Identity
from foreword.compiler.checker import check_compiled
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Cube, FiniteSet, Sphere
from foreword.compiler.file import CompiledFile, read_compiled, write_compiled
from foreword.compiler.head import Head
from foreword.errors import BundleError, CertificateError


@pytest.fixture(scope="module")
def circle() -> Proof:
    return proof_of(CIRCLE, Sphere(1), positions=16, sharpness=5.0, level=4, order=10, slack=1.5)


def file_of(proof: Proof) -> CompiledFile:
    return CompiledFile(
        head=proof.head,
        chart=proof.chart,
        domain=proof.domain,
        target=proof.certificate.target,
        method=proof.certificate.method,
        certificate=proof.certificate,
        cover=proof.cover,
        tried=({"name": "by hand", "positions": 16, "seconds": None},),
    )


def test_what_is_written_is_read_back_exactly_and_confirmed(circle: Proof, tmp_path: Path) -> None:
    written = file_of(circle)
    write_compiled(tmp_path / "f.prefix", written)
    found = read_compiled(tmp_path / "f.prefix")
    for name in ("keys", "biases", "values"):
        assert np.array_equal(getattr(found.head, name), getattr(circle.head, name))
    assert found.cover is not None
    assert found.cover.digest == circle.cover.digest
    plain = ("chart", "domain", "target", "method", "certificate", "tried", "version")
    assert all(getattr(found, name) == getattr(written, name) for name in plain)
    result = check_compiled(found)
    assert (result.verdict, result.reasons) == (Verdict.PROVED, ())


def test_a_file_says_no_more_than_its_certificate(circle: Proof, tmp_path: Path) -> None:
    bare = replace(file_of(circle), certificate=None, cover=None)
    write_compiled(tmp_path / "bare", bare)
    found = read_compiled(tmp_path / "bare")
    assert found.certificate is None
    assert check_compiled(found).verdict is Verdict.ASSUMPTION_UNVERIFIED
    for other in ({"method": "another"}, {"target": {"expression": "x"}}):
        assert check_compiled(replace(file_of(circle), **other)).verdict is Verdict.NOT_REACHED
    wrong = {"expression": "__import__('os')"}
    changed = replace(file_of(circle), target=wrong, certificate=replace(circle.certificate, target=wrong).sealed())
    assert check_compiled(changed).verdict is Verdict.NOT_REACHED


def test_a_table_is_kept_in_tensors_and_confirmed(tmp_path: Path) -> None:
    """A hundred thousand points in JSON would be more than a header may hold."""
    points = np.random.default_rng(0).normal(size=(300, 2))
    domain, chart = FiniteSet(points), Flat((0.0, 0.0), (1.0, 1.0))
    head = Head(np.zeros((1, 2)), np.zeros(1), np.array([[0.25]]))
    samples = np.full((300, 1), 0.25 + 1e-9)
    certificate = certificate_for(head, chart, None, domain, None, 1.1e-9, 1e-9)
    compiled = CompiledFile(head, chart, domain, certificate.target, "by hand", certificate, samples=samples)
    write_compiled(tmp_path / "table", compiled)
    found = read_compiled(tmp_path / "table")
    assert found.domain == domain
    assert found.certificate == certificate
    assert b'points": [' not in (tmp_path / "table").read_bytes()
    assert check_compiled(found).verdict is Verdict.PROVED


def test_an_unreached_bound_is_kept(circle: Proof, tmp_path: Path) -> None:
    terms = {**circle.certificate.terms, "approximation": float("inf")}
    told = circle.told(verdict=Verdict.NOT_REACHED, bound=float("inf"), terms=terms, tolerance=1e-9)
    write_compiled(tmp_path / "open", file_of(told))
    found = read_compiled(tmp_path / "open")
    assert found.certificate == told.certificate
    assert check_compiled(found).verdict is Verdict.ASSUMPTION_UNVERIFIED


@pytest.mark.parametrize(
    "change",
    [
        {"chart": Identity(3)},
        {"head": Head(np.zeros((2, 2)), np.zeros(3), np.zeros((2, 1)))},
        {"head": Head(np.zeros((0, 2)), np.zeros(0), np.zeros((0, 1)))},
        {"head": Head(np.full((2, 2), np.nan), np.zeros(2), np.zeros((2, 1)))},
        {"head": Head(np.zeros((2, 2), np.float32), np.zeros(2), np.zeros((2, 1)))},
        {"samples": np.zeros((4, 1))},
        {"certificate": None},
    ],
)
def test_parts_that_do_not_fit_are_refused(circle: Proof, change: dict[str, object]) -> None:
    with pytest.raises(CertificateError):
        replace(file_of(circle), **change)


def test_what_json_cannot_hold_is_refused_before_a_file_is_touched(circle: Proof, tmp_path: Path) -> None:
    for tried in ({"seconds": float("nan")}, {"array": np.zeros(2)}, {"much": [[]] * 300_000}):
        with pytest.raises(CertificateError):
            write_compiled(tmp_path / "bad", replace(file_of(circle), tried=(tried,)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleError):
        write_compiled(tmp_path, file_of(circle))


def test_a_cube_of_many_cells_is_small_on_disk(tmp_path: Path) -> None:
    """9 bytes a cell and parameter."""
    proof = proof_of("x*y", Cube([(-1, 1)] * 2), positions=16, sharpness=2.0, level=6)
    write_compiled(tmp_path / "cube", file_of(proof))
    assert (tmp_path / "cube").stat().st_size < 4096 * 2 * 9 + 6000
    assert isinstance(read_compiled(tmp_path / "cube").cover, Cover)
