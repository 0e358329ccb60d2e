"""The verbs `compile` and `verify`: a prefix with a proof, checked again, and refused when it was changed."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from foreword.cli.compile import domain_from_text
from foreword.cli.main import app
from foreword.compiler.domain import Cube, Sphere
from foreword.errors import CertificateError, CompileError


def test_a_function_is_compiled_proved_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "f.prefix"
    made = CliRunner().invoke(app, ["compile", "sin(2*x)", "--domain", "S1", "--tolerance", "1e-4", "--out", str(file)])
    assert made.exit_code == 0, made.output
    assert "verdict: proved" in made.output
    checked = CliRunner().invoke(app, ["verify", str(file)])
    assert checked.exit_code == 0, checked.output
    assert "checked: proved" in checked.output


def test_a_changed_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "f.prefix"
    CliRunner().invoke(app, ["compile", "sin(2*x)", "--domain", "S1", "--tolerance", "1e-3", "--out", str(file)])
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(bytes(content))
    assert isinstance(CliRunner().invoke(app, ["verify", str(file)]).exception, CertificateError)


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ("[-1,1]^2", Cube([(-1.0, 1.0)] * 2)),
        (" [0, 1] x [-2, 2] ", Cube([(0.0, 1.0), (-2.0, 2.0)])),
        ("S2", Sphere(2)),
    ],
)
def test_domains_are_read(text: str, domain: Cube | Sphere) -> None:
    assert domain_from_text(text) == domain


@pytest.mark.parametrize("text", ["", "[-1,1", "[a,b]", "[1,-1]", "[0,0]^2", "[0,nan]", "T2", "[0,1]^99;"])
def test_other_domains_are_refused(text: str) -> None:
    with pytest.raises(CompileError):
        domain_from_text(text)
