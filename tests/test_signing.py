"""Keys and signatures: what is signed is what was saved, keys stay private and are never overwritten."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from foreword.bundle import load_bundle, save_bundle, sign_bundle
from foreword.errors import BundleError, SigningError, UntrustedBundleError
from foreword.prefix import Prefix
from foreword.signing import PublicKey, SigningKey
from foreword.trust import TrustPolicy


@dataclass(frozen=True)
class FakeHost:
    reference: str = "some/model"
    fingerprint: str = "f" * 64
    family: str = "bert"


ONES = np.ones((1, 2, 3), np.float32)
PREFIX = Prefix.from_arrays({"h.0.attn": (ONES, ONES)})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_bundle(tmp_path / "a.prefix", PREFIX, host=FakeHost())
    return tmp_path / "a.prefix"


# Signatures


def test_the_signature_is_that_of_rfc_8032() -> None:
    """Its first test vector (section 7.1): the library is asked for plain Ed25519."""
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = SigningKey(ed25519.Ed25519PrivateKey.from_private_bytes(secret))
    assert key.public.raw.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key._key.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")


def test_a_bundle_is_signed_when_it_is_saved_or_later(path: Path, tmp_path: Path) -> None:
    key = SigningKey.new()
    saved = save_bundle(tmp_path / "b", PREFIX, host=FakeHost(), sign_with=key, signer="Alice 日本")
    later = sign_bundle(path, key)
    assert [(x.key, x.signer) for x in load_bundle(tmp_path / "b").signatures] == [(key.public, "Alice 日本")]
    assert load_bundle(tmp_path / "b").signatures == saved.signatures
    assert load_bundle(path).signatures == later.signatures
    assert load_bundle(path).prefix == PREFIX


def test_signing_changes_no_tensor_and_no_digest(path: Path) -> None:
    from safetensors import safe_open

    before = path.read_bytes()
    sign_bundle(path, SigningKey.new())
    after = path.read_bytes()
    start = [8 + int.from_bytes(content[:8], "little") for content in (before, after)]
    assert before[start[0] :] == after[start[1] :]
    assert start[1] % 8 == 0  # tensors are aligned as safetensors aligns them
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["foreword"] in before.decode("latin-1").replace('\\"', '"')
        assert np.array_equal(file.get_tensor("prefix/h.0.attn/keys"), ONES)


def test_several_keys_sign_and_one_key_signs_once(path: Path) -> None:
    first, second = SigningKey.new(), SigningKey.new()
    for key, name in ((first, "old name"), (second, None), (first, "new name")):
        sign_bundle(path, key, signer=name)
    found = load_bundle(path).signatures
    assert [(x.key, x.signer) for x in found] == [(second.public, None), (first.public, "new name")]


def test_a_damaged_bundle_is_not_signed(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\1")
    with pytest.raises(BundleError, match="digest"):
        sign_bundle(path, SigningKey.new())
    assert path.read_bytes() == content[:-1] + b"\1"


@pytest.mark.parametrize("name", ["", "x" * 201, "\x1b[2J", "two\nlines"])
def test_a_signer_by_a_name_that_a_terminal_obeys_is_refused(path: Path, name: str) -> None:
    with pytest.raises(SigningError, match="signer's name"):
        sign_bundle(path, SigningKey.new(), signer=name)


# Keys


@pytest.mark.parametrize("passphrase", [None, "a long one, 日本"])
def test_a_key_that_is_written_is_the_key_that_is_read(tmp_path: Path, passphrase: str | None) -> None:
    key = SigningKey.new()
    private, public = key.write(tmp_path / "alice", passphrase=passphrase)
    assert private.stat().st_mode & 0o777 == 0o600
    assert SigningKey.read(private, passphrase=passphrase).public == key.public
    assert (b"ENCRYPTED" in private.read_bytes()) == (passphrase is not None)
    pem = public.read_text(encoding="ascii")
    forms = (pem, str(public), "alice.pub", key.public.text, key.public.raw.hex(), key.public.raw.hex().upper())
    assert {PublicKey.parse(form, folder=tmp_path) for form in forms} == {key.public}


def test_a_public_key_is_what_other_tools_read(tmp_path: Path) -> None:
    key = SigningKey.new()
    read = serialization.load_pem_public_key(key.write(tmp_path / "k")[1].read_bytes())
    assert isinstance(read, ed25519.Ed25519PublicKey)
    assert read.public_bytes_raw() == key.public.raw


@pytest.mark.parametrize("there", ["k.key", "k.pub"])
def test_a_key_is_never_overwritten_and_nothing_half_written_stays(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("mine")
    with pytest.raises(SigningError, match=f"File exists: .*{there}"):
        SigningKey.new().write(tmp_path / "k")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(there, "mine")]


def test_a_key_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SigningError, match="No such file"):
        SigningKey.new().write(tmp_path / "none" / "k")


def test_a_private_key_is_not_shown() -> None:
    key = SigningKey.new()
    raw = key._key.private_bytes_raw()
    assert raw.hex() not in repr(key)
    assert repr(key) == "SigningKey()"


def pem_of(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "0 characters"),
        (bytes(range(256)) * 8, "something else"),
        (b"x" * 10_000_000, "10,000,000 bytes, of at most 65,536"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "PEM with PRIVATE KEY"),
        (pem_of(ed25519.Ed25519PrivateKey.generate())[:60], "PEM with PRIVATE KEY"),
        (pem_of(ec.generate_private_key(ec.SECP256R1())), "ECPrivateKey|EllipticCurvePrivateKey"),
    ],
    ids=["empty", "binary", "10 MB", "no key", "cut off", "another curve"],
)
def test_what_is_no_private_key_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "k.key").write_bytes(content)
    with pytest.raises(SigningError, match=found):
        SigningKey.read(tmp_path / "k.key")


def test_a_public_key_is_no_private_key_nor_the_other_way_round(tmp_path: Path) -> None:
    private, public = SigningKey.new().write(tmp_path / "k")
    with pytest.raises(SigningError, match="PEM with PUBLIC KEY"):
        SigningKey.read(public)
    with pytest.raises(SigningError, match="PEM with PRIVATE KEY") as caught:
        PublicKey.parse(str(private))
    secret = private.read_text().splitlines()[1]
    assert secret not in str(caught.value)


def test_a_wrong_a_missing_and_a_needless_passphrase_are_told_apart(tmp_path: Path) -> None:
    locked = SigningKey.new().write(tmp_path / "locked", passphrase="right")[0]
    free = SigningKey.new().write(tmp_path / "free")[0]
    with pytest.raises(SigningError, match="needs a passphrase"):
        SigningKey.read(locked)
    with pytest.raises(SigningError, match="another passphrase"):
        SigningKey.read(locked, passphrase="wrong")
    with pytest.raises(SigningError, match="has no passphrase"):
        SigningKey.read(free, passphrase="right")


def test_what_is_no_file_is_no_key_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("", "none", "pipe", "loop", "/dev/zero", "a\0b"):
        with pytest.raises(SigningError):
            SigningKey.read(tmp_path / name)


# Trust


def keys(**named: SigningKey) -> dict[str, PublicKey]:
    return {name: key.public for name, key in named.items()}


def test_only_a_trusted_signature_opens_a_strict_policy(path: Path) -> None:
    alice, bob = SigningKey.new(), SigningKey.new()
    strict = TrustPolicy(require_signature=True, trusted=keys(alice=alice))
    with pytest.raises(UntrustedBundleError, match="no signature"):
        load_bundle(path, trust=strict)
    sign_bundle(path, bob, signer="alice")  # a name is a claim
    with pytest.raises(UntrustedBundleError, match=f"unknown key {bob.public.id}"):
        load_bundle(path, trust=strict)
    assert load_bundle(path, trust=TrustPolicy()).signatures[0].signer == "alice"
    sign_bundle(path, alice)
    assert len(load_bundle(path, trust=strict).signatures) == 2


def test_a_revoked_key_is_refused_under_every_policy_and_outweighs_trust(path: Path) -> None:
    alice, bob = SigningKey.new(), SigningKey.new()
    sign_bundle(path, alice)
    for policy in (TrustPolicy(revoked=keys(old=alice)), TrustPolicy(trusted=keys(a=alice), revoked=keys(a=alice))):
        with pytest.raises(UntrustedBundleError, match="revoked"):
            load_bundle(path, trust=policy)
    sign_bundle(path, bob)
    assert load_bundle(path, trust=TrustPolicy(trusted=keys(bob=bob), revoked=keys(old=alice)))


def test_the_policy_in_force_is_that_of_the_variable_then_of_the_user_then_none(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert TrustPolicy.in_force() == TrustPolicy(source="no trust policy")
    (tmp_path / "foreword").mkdir()
    (tmp_path / "foreword" / "trust.toml").write_text(
        f'require-signature = true\n[trusted]\nalice = "{SigningKey.new().public.text}"\n'
    )
    with pytest.raises(UntrustedBundleError, match="a signature by alice"):
        load_bundle(path)
    (tmp_path / "lenient.toml").write_text("require-signature = false\n")
    monkeypatch.setenv("FOREWORD_TRUST", str(tmp_path / "lenient.toml"))
    assert load_bundle(path)
    monkeypatch.setenv("FOREWORD_TRUST", str(tmp_path / "none.toml"))
    with pytest.raises(SigningError, match=r"none\.toml"):
        load_bundle(path)
    assert load_bundle(path, trust=TrustPolicy())  # what a program says goes before


def test_a_policy_that_is_a_dangling_link_is_not_left_out(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "foreword").mkdir()
    (tmp_path / "foreword" / "trust.toml").symlink_to(tmp_path / "gone")
    with pytest.raises(SigningError, match="cannot be used"):
        load_bundle(path)


# Without the library

SCRIPT = """
import sys
sys.modules["cryptography"] = None
from foreword.bundle import load_bundle
from foreword.signing import SigningKey
from foreword.errors import ForewordError
for act in (lambda: load_bundle(sys.argv[1]), lambda: load_bundle(sys.argv[2]), SigningKey.new,
            lambda: SigningKey.read(sys.argv[3])):
    try:
        print(type(act()).__name__)
    except ForewordError as error:
        print(type(error).__name__, error.fix)
"""


def test_without_the_library_unsigned_bundles_are_read_and_the_rest_says_what_to_install(
    path: Path, tmp_path: Path
) -> None:
    key = SigningKey.new()
    save_bundle(tmp_path / "signed", PREFIX, host=FakeHost(), sign_with=key)
    arguments = [str(path), str(tmp_path / "signed"), str(key.write(tmp_path / "k")[0])]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    install = "pip install 'foreword[sign]'"
    assert done.stdout.splitlines() == ["Bundle", f"BundleError {install}", *[f"SigningError {install}"] * 2]


def test_reading_an_unsigned_bundle_loads_neither_torch_nor_the_library(path: Path) -> None:
    script = f"import sys; from foreword import load_bundle; load_bundle({str(path)!r}); print(*sys.modules)"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert not {"torch", "cryptography"} & set(done.stdout.split())


def test_base64_that_decodes_to_another_length_is_no_key() -> None:
    for length in (0, 31, 33, 64):
        with pytest.raises(SigningError):
            PublicKey.parse(base64.b64encode(bytes(length)).decode() or "=")
        with pytest.raises(SigningError, match="32 bytes"):
            PublicKey(bytes(length))
