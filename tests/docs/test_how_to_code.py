"""The code of the page on running prefixes runs, block after block, as a reader would type it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foreword.engine.attach import attached
from foreword.engine.host import Host

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "run-prefixes.md"


def test_every_block_runs_and_says_what_it_does(
    load_host: Callable[[str], Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    host = load_host("llama")
    host.tokenizer.padding_side = "left"
    names = {"model": host.model, "tokenizer": host.tokenizer}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102  the page is the test
    made, weights = names["fitted"], names["prefix"]
    given = host.tokenizer("the cat", return_tensors="pt")
    with attached(host, weights):
        written = host.model.generate(**given, max_new_tokens=8, do_sample=False)
    assert names["streamed"] == host.tokenizer.decode(written[0, given["input_ids"].shape[1] :])
    assert made.sites == weights.sites
    assert made.hash != weights.hash
    assert names["again"].hash == names["interop"].occupying(weights, names["host"]).hash
    text = host.tokenizer("the price of bread and milk rose again this month", add_special_tokens=False)["input_ids"]
    assert names["rules"].positions in (len(text), len(text) + 1)
