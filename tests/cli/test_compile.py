"""The verbs `compile` and `verify`: a prefix with a proof, checked again, and refused when it was changed."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foreword.cli.application import app
from foreword.cli.compile import domain_from_text
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.pipeline import compile_function
from foreword.errors import CertificateError, CompileError

pytestmark = pytest.mark.usefixtures("hardly_polished")


def test_a_function_is_compiled_proved_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "f.prefix"
    made = CliRunner().invoke(app, ["compile", "sin(2*x)", "--domain", "S1", "--tolerance", "1e-4", "--out", str(file)])
    assert made.exit_code == 0, made.output
    assert "verdict: proved" in made.output
    checked = CliRunner().invoke(app, ["verify", str(file)])
    assert checked.exit_code == 0, checked.output
    assert "checked: proved" in checked.output


@pytest.mark.parametrize("expression", ["-x", "-cosh(x)", "-q*x", "-2"])
@pytest.mark.parametrize("place", ["first", "last", "behind two dashes"])
def test_an_expression_may_begin_with_a_minus(tmp_path: Path, expression: str, place: str, foreword: Any) -> None:
    told = ["--domain", "[-1,1]", "--tolerance", "0.1", "--out", tmp_path / "f.prefix", "-q"]
    orders = {"first": [expression, *told], "last": [*told, expression], "behind two dashes": [*told, "--", expression]}
    made = foreword("compile", *orders[place])
    if "q" in expression:
        assert made.code == 2
        assert 'There is no name "q"' in made.err
    else:
        assert made.code == 0, made.err


def test_a_number_behind_an_option_is_its_value_and_a_wrong_option_is_told() -> None:
    told = ["compile", "x", "--domain", "[-1,1]", "--out", "f.prefix"]
    assert isinstance(CliRunner().invoke(app, [*told, "--tolerance", "-1"]).exception, CompileError)
    wrong = CliRunner().invoke(app, [*told, "--tolerence", "1"])
    assert wrong.exit_code == 2
    assert "No such option" in wrong.output


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
        ("[-pi, 2*pi/3]^2", Cube([(-math.pi, 2 * math.pi / 3)] * 2)),
        ("[-sqrt(2),e**2]", Cube([(-math.sqrt(2), math.e**2)])),
    ],
)
def test_domains_are_read(text: str, domain: Cube | Sphere) -> None:
    assert domain_from_text(text) == domain


@pytest.mark.parametrize(
    "text", ["", "[-1,1", "[a,b]", "[1,-1]", "[0,0]^2", "[0,nan]", "T2", "[0,1]^99;", "[0,1/0]", "[x,1]", "[0,2pi]"]
)
def test_other_domains_are_refused(text: str) -> None:
    with pytest.raises(CompileError):
        domain_from_text(text)


def test_pictures_are_written_beside_the_prefix_and_of_a_claim_that_holds(tmp_path: Path, foreword: Any) -> None:
    file, pictures = tmp_path / "f.prefix", [tmp_path / "f.png", tmp_path / "new" / "f.svg"]
    wanted = ["--domain", "S1", "--tolerance", "1e-3", "--out", file]
    made = foreword("compile", "sin(2*x)", *wanted, "--plot", pictures[0], "--plot", pictures[1])
    assert made.code == 0, made.err
    assert all(picture.stat().st_size > 10_000 for picture in pictures)
    assert foreword("verify", file, "--plot", tmp_path / "again.png").code == 0
    assert (tmp_path / "again.png").read_bytes() == pictures[0].read_bytes()


@pytest.mark.parametrize("name", ["f.jpg", "f", "file/f.png"])
def test_a_picture_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path, foreword: Any, name: str) -> None:
    (tmp_path / "file").write_text("")
    wanted = ["--domain", "S1", "--tolerance", "1e-3", "--out", tmp_path / "f.prefix"]
    for verb in (["compile", "sin(2*x)", *wanted], ["verify", tmp_path / "missing.prefix"]):
        refused = foreword(*verb, "--plot", tmp_path / name)
        assert refused.code == 2
        assert refused.out == ""
        assert "to do:" in refused.err
        assert "missing.prefix" not in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_claim_that_does_not_hold_gets_no_picture(tmp_path: Path, foreword: Any) -> None:
    file = tmp_path / "f.prefix"
    compile_function("sin(2*x)", Sphere(1), positions=8, certify=False).save(file)
    assert foreword("verify", file, "--plot", tmp_path / "f.png").code == 1
    assert not (tmp_path / "f.png").exists()


def test_an_output_that_would_destroy_another_file_or_cannot_be_is_refused_before_any_work(
    tmp_path: Path, foreword: Any
) -> None:
    pipe, png, folder = tmp_path / "pipe", tmp_path / "f.png", tmp_path / "g.prefix.partial"
    os.mkfifo(pipe)
    folder.mkdir()
    told = ["compile", "x", "--domain", "[-1,1]", "--tolerance", "0.1", "-q", "--plot", png, "--out"]
    for out, found in (
        (pipe, "a pipe or device"),
        (png, "a picture of the same name"),
        (tmp_path / "g.prefix", "g.prefix.partial, a folder"),
        (tmp_path / ("long" * 62), "name too long"),  # 248 letters: too many with what is kept beside it
    ):
        made = foreword(*told, out)
        assert made.code == 2, made.err
        assert found in made.err
        assert "Traceback" not in made.err
    assert pipe.is_fifo()
    assert sorted(tmp_path.iterdir()) == [folder, pipe]
