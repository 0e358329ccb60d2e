"""What a bar shows on a terminal of the usual width."""

from __future__ import annotations

import re

import pytest

from foreword.cli.bars import Bars


def test_elapsed_and_remaining_time_are_whole_on_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"COLUMNS": "80", "TERM": "xterm", "FORCE_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    with Bars(quiet=False) as bars:
        bars.watch("fit few-shot, seed 0", 1234, 2000, "loss 1.076, best 0.316, rate 2.3e-05")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"1234/2000 \d:\d\d:\d\d (-:--:--|\d:\d\d:\d\d) loss", shown)
