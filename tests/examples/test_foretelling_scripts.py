"""The scripts that make the rules of foretelling: no rule is lost to a want of pairs, no base stops the others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from foreword.errors import FitError


@pytest.fixture
def scripts(import_scripts: Callable[..., dict[str, ModuleType]]) -> dict[str, ModuleType]:
    """Of calibration and of truth, by name."""
    return import_scripts("calibrate", "truth", "pairs", folders=("foretelling",))


def test_a_rule_made_from_pairs_is_not_overwritten_when_too_few_pairs_are_there(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate = scripts["calibrate"]
    place = tmp_path / "rule-classify-encoder.json"
    place.write_text(json.dumps({"calibration": {"works": {"pairs": 44}}}))
    before = place.read_bytes()
    monkeypatch.setattr(calibrate, "RULES", tmp_path)
    monkeypatch.setattr(calibrate, "cases_of", lambda *_: [])
    with pytest.raises(FitError, match=r"(?s)at least 40 measured pairs.*from 44.*found: +0.*--role encoder"):
        calibrate.main(["--work", str(tmp_path), "--kind", "classify", "--role", "encoder"])
    assert place.read_bytes() == before


@pytest.mark.parametrize(
    ("kept", "pairs"),
    [({"works": {"pairs": 44}}, 40), ({"from": "generate"}, 0), (None, 0)],
    ids=["enough pairs", "taken over from written answers", "none yet"],
)
def test_a_rule_that_would_not_be_lost_may_be_written(
    scripts: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: dict[str, Any] | None,
    pairs: int,
) -> None:
    calibrate = scripts["calibrate"]
    monkeypatch.setattr(calibrate, "RULES", tmp_path)
    if kept is not None:
        (tmp_path / "rule-classify-encoder.json").write_text(json.dumps({"calibration": kept}))
    calibrate.check_enough(pairs, "classify", "encoder")


def test_a_base_at_chance_is_passed_over_and_told_at_the_end(
    scripts: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate, truth, made = scripts["calibrate"], scripts["truth"], scripts["pairs"]

    def pairs_on(work: Path, kind: str, part: str | None, bases: list[str]) -> list[Any]:
        if bases == ["h1"]:
            raise made.chance.ChanceError("idle", expected="at most 1.5", found="1.6")
        return [made.Pair(f"{bases[0]}-{asked}", "validation", work / "task.toml") for asked in ("last", "first")]

    def measured(pair: Any) -> dict[str, Any]:
        return {"bare": 0.95} if pair.name == "h4-last" else {"bare": 0.5, "prefix": 0.8, "lora": 0.8}

    monkeypatch.setattr(calibrate, "seq2seq_pairs", pairs_on)
    monkeypatch.setattr(truth, "measured", measured)
    role = ["--kind", "classify", "--role", "encoder-decoder"]
    truth.main(["--work", str(tmp_path), *role, "--bases", "h1", "h2", "h4"])
    assert {place.stem for place in (tmp_path / "truth").iterdir()} == {"h2-last", "h2-first", "h4-last", "h4-first"}
    table = capsys.readouterr().out.partition("| left out | why |")[2]
    assert "| h1 | at chance: a held-out loss of 1.6, expected at most 1.5 |" in table
    assert "| h4-last | nothing needed: 0.950 bare |" in table
    assert "h2" not in table


def test_a_base_that_is_not_among_them_is_refused_by_name(
    scripts: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scripts["truth"].main(["--work", str(tmp_path), "--role", "encoder-decoder", "--bases", "e1", "zz"])
    assert "expected some of e1, e2, e4, e5, e6, found zz" in capsys.readouterr().err
