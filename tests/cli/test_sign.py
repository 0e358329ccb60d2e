"""`foreword sign` and what `inspect` and `predict` make of signatures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.hostile.liar import FakeHost

from foreword.bundle import load_bundle, save_bundle
from foreword.prefix import Prefix
from foreword.signing import PublicKey

Run = Callable[..., Any]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    ones = np.ones((1, 2, 3), np.float32)
    save_bundle(tmp_path / "a.prefix", Prefix.from_arrays({"h": (ones, ones)}), host=FakeHost())
    return tmp_path / "a.prefix"


@pytest.fixture
def alice(foreword: Run, tmp_path: Path) -> Path:
    ran = foreword("sign", "--new-key", tmp_path / "alice")
    assert (ran.code, ran.err) == (0, "")
    assert PublicKey.parse(str(tmp_path / "alice.pub")).text in ran.out
    assert "PRIVATE" not in ran.out
    return tmp_path / "alice.key"


def policy(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (folder / "trust.toml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("FOREWORD_TRUST", str(folder / "trust.toml"))


STRICT = 'require-signature = true\n[trusted]\n"Alice of the lab" = "alice.pub"\n'


def test_sign_then_inspect_then_trust(
    foreword: Run, bundle: Path, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = foreword("inspect", bundle)
    assert said.code == 0
    assert "nobody" in said.out
    ran = foreword("sign", bundle, "--key", alice, "--as", "Alice")
    assert (ran.code, ran.err) == (0, "")
    identity = PublicKey.parse(str(tmp_path / "alice.pub")).id
    assert identity in ran.out
    said = " ".join(foreword("inspect", bundle).out.split())
    assert f"unknown key ({identity}, calling itself 'Alice')" in said
    assert "taken (no trust policy)" in said
    policy(tmp_path, monkeypatch, STRICT)
    said = foreword("inspect", bundle)
    assert said.code == 0
    assert f"trusted key of Alice of the lab ({identity}" in " ".join(said.out.split())


def test_what_the_policy_refuses_is_shown_with_exit_code_1_and_not_used(
    foreword: Run, bundle: Path, alice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy(tmp_path, monkeypatch, STRICT)
    said = foreword("inspect", bundle)
    assert (said.code, said.err) == (1, "")
    assert "REFUSED for no signature" in " ".join(said.out.split())
    told = json.loads(foreword("inspect", bundle, "--json").out)
    assert told["signatures"] == []
    assert told["trust"] == {"policy": str(tmp_path / "trust.toml"), "refused for": "no signature"}
    ran = foreword("predict", "--bundle", bundle, stdin=b'"text"\n')
    assert ran.code == 2
    assert "is not trusted here" in ran.err
    assert ran.err.splitlines()[-1].startswith("  to do: ")
    assert foreword("sign", bundle, "--key", alice).code == 0  # signing is how it comes to be trusted
    assert foreword("inspect", bundle).code == 0
    assert json.loads(foreword("inspect", bundle, "--json").out)["signatures"][0]["standing"] == "trusted"


def test_a_key_is_made_and_used_in_one_go_with_a_passphrase(
    foreword: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_KEY_PASSPHRASE", "a long one")
    ran = foreword("sign", bundle, "--new-key", tmp_path / "k", "--encrypt")
    assert (ran.code, ran.err) == (0, "")
    assert b"ENCRYPTED" in (tmp_path / "k.key").read_bytes()
    assert "a long one" not in ran.out
    assert foreword("sign", bundle, "--key", tmp_path / "k.key").code == 0
    assert len(load_bundle(bundle).signatures) == 1
    assert foreword("sign", "--new-key", tmp_path / "other.key").code == 0
    assert {path.name for path in tmp_path.glob("other*")} == {"other.key", "other.pub"}
    monkeypatch.delenv("FOREWORD_KEY_PASSPHRASE")
    ran = foreword("sign", bundle, "--key", tmp_path / "k.key")
    assert ran.code == 2
    assert "FOREWORD_KEY_PASSPHRASE" in ran.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "neither --key nor --new-key"),
        (["BUNDLE"], "neither --key nor --new-key"),
        (["--key", "KEY"], "--key without a bundle"),
        (["BUNDLE", "--key", "KEY", "--new-key", "x"], "--key and --new-key"),
        (["BUNDLE", "--key", "KEY", "--encrypt"], "--key and --encrypt"),
        (["BUNDLE", "--key", "none.key"], "no key file none.key"),
        (["BUNDLE", "--key", "BUNDLE"], "cannot be read"),
        (["KEY", "--key", "KEY"], "not a whole foreword bundle"),
        (["none.prefix", "--key", "KEY"], "No such file"),
        (["BUNDLE", "--key", "KEY", "--as", "\x1b[2J"], "signer's name"),
        (["--new-key", "ALICE"], "File exists"),
        (["--new-key", "/dev/null/k"], "Not a directory"),
        (["--new-key", "NEW", "--encrypt"], "There is no passphrase"),
    ],
)
def test_bad_input_is_one_screen_and_exit_code_2(
    foreword: Run, bundle: Path, alice: Path, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    places = {"BUNDLE": bundle, "KEY": alice, "ALICE": alice.with_suffix(""), "NEW": tmp_path / "new"}
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    ran = foreword("sign", *(places.get(argument, argument) for argument in arguments))
    assert ran.code == 2, ran
    assert ran.out == ""
    assert expected in ran.err
    assert "Traceback" not in ran.err
    assert "\x1b" not in ran.err
    assert ran.err.splitlines()[-1].startswith("  to do: ")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("as_json", [False, True], ids=["plain", "json"])
def test_inspect_lets_no_control_character_through(foreword: Run, tmp_path: Path, as_json: bool) -> None:
    ones, evil = np.ones((1, 2, 3), np.float32), "\x1b[2J\x07\x9b2J\u202ehidden\x7f"
    path = tmp_path / "evil.prefix"
    host = FakeHost(reference=evil, fingerprint=evil, family=evil)
    told = {name: {evil: [evil]} for name in ("use", "provenance", "evidence")}
    save_bundle(path, Prefix.from_arrays({"h": (ones, ones)}), host=host, **told)
    ran = foreword("inspect", path, *(["--json"] if as_json else []))
    assert (ran.code, ran.err) == (0, "")
    assert [c for c in ran.out if not c.isprintable() and c != "\n"] == []
    if as_json:
        assert json.loads(ran.out)["evidence"] == {evil: [evil]}
