"""Forged and damaged signatures, keys and policies: refused with a named error, whatever their bytes are."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hostile.liar import file_of, parts_of, refused, sealed

from foreword.bundle import Bundle, load_bundle, sign_bundle
from foreword.errors import BundleError, SigningError
from foreword.signatures import SIGNATURE_LIMIT, SIGNATURES
from foreword.signing import DOMAIN, PublicKey, SigningKey
from foreword.trust import POLICY_LIMIT, TrustPolicy


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.new()


@pytest.fixture(scope="module")
def signed(folder: Path, whole: bytes, key: SigningKey) -> bytes:
    (folder / "signed").write_bytes(whole)
    sign_bundle(folder / "signed", key, signer="alice")
    return (folder / "signed").read_bytes()


Told = list[dict[str, Any]]


def with_signatures(content: bytes, told: object) -> bytes:
    header, _, data = parts_of(content)
    header["__metadata__"][SIGNATURES] = told if isinstance(told, str) else json.dumps(told)
    return file_of(json.dumps(header), data)


def changed(content: bytes, change: Callable[[Told], object]) -> bytes:
    header, _, _ = parts_of(content)
    told = json.loads(header["__metadata__"][SIGNATURES])
    change(told)
    return with_signatures(content, told)


def test_the_signed_bundle_is_taken_as_it_stands(folder: Path, signed: bytes, key: SigningKey) -> None:
    (folder / "same").write_bytes(changed(signed, lambda _: None))
    (found,) = load_bundle(folder / "same").signatures
    assert (found.key, found.signer) == (key.public, "alice")


def twisted(text: str) -> str:
    """Base64 with its first character changed."""
    return ("B" if text[0] == "A" else "A") + text[1:]


FORGERIES: dict[str, Callable[[Told], object]] = {
    "another value": lambda told: told[0].update(signature=twisted(told[0]["signature"])),
    "another name": lambda told: told[0].update(signer="mallory"),
    "no name": lambda told: told[0].update(signer=None),
    "another time": lambda told: told[0].update(time="2020-01-01T00:00:00Z"),
    "another key": lambda told: told[0].update(key=SigningKey.new().public.text),
    "a key of zeros": lambda told: told[0].update(key=base64.b64encode(bytes(32)).decode()),
    "a key that is no point": lambda told: told[0].update(key=base64.b64encode(b"\xff" * 32).decode()),
    "a value of zeros": lambda told: told[0].update(signature=base64.b64encode(bytes(64)).decode()),
    "a key too short": lambda told: told[0].update(key=base64.b64encode(bytes(31)).decode()),
    "a key too long": lambda told: told[0].update(key=base64.b64encode(bytes(33)).decode()),
    "a value too short": lambda told: told[0].update(signature=base64.b64encode(bytes(63)).decode()),
    "a value of a megabyte": lambda told: told[0].update(signature=base64.b64encode(bytes(2**20)).decode()),
    "no base64": lambda told: told[0].update(signature="§" * 88),
    "base64 with a space": lambda told: told[0].update(key=" " + told[0]["key"]),
    "base64 in another form": lambda told: told[0].update(
        key=told[0]["key"][:-2] + chr(ord(told[0]["key"][-2]) + 1) + "="
    ),
    "a key that is a list": lambda told: told[0].update(key=[]),
    "a key that is a number": lambda told: told[0].update(key=7),
    "no key": lambda told: told[0].pop("key"),
    "another algorithm": lambda told: told[0].update(algorithm="none"),
    "an algorithm that is a list": lambda told: told[0].update(algorithm=["ed25519"]),
    "one field more": lambda told: told[0].update(trusted=True),
    "a signer that is a number": lambda told: told[0].update(signer=7),
    "a signer that clears the screen": lambda told: told[0].update(signer="\x1b[2J"),
    "a signer of a megabyte": lambda told: told[0].update(signer="x" * 2**20),
    "a signer of no letters": lambda told: told[0].update(signer=""),
    "a time in words": lambda told: told[0].update(time="today"),
    "a time with a line break": lambda told: told[0].update(time=told[0]["time"] + "\n"),
    "no signature in the list": lambda told: told.clear(),
    "the same one twice": lambda told: told.append(told[0]),
    "a good and a bad one": lambda told: told.append(told[0] | {"key": SigningKey.new().public.text}),
    "thousands": lambda told: told.extend(told * 5000),
    "a number in the list": lambda told: told.append(7),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_signature_is_refused(folder: Path, signed: bytes, name: str) -> None:
    refused(folder, changed(signed, FORGERIES[name]), match="signature")


@pytest.mark.parametrize(
    "told",
    ["", "null", "{}", "7", "[", '"text"', "[" * 100_000, "[" + "[]," * 300_000 + "[]]", "[NaN]", "9" * 10**6, "\0"],
    ids=["empty", "null", "table", "number", "cut off", "text", "deep", "wide", "NaN", "digits", "NUL"],
)
def test_signatures_that_are_no_list_of_signatures_are_refused(folder: Path, signed: bytes, told: str) -> None:
    refused(folder, with_signatures(signed, told))


def test_a_signature_for_another_bundle_is_refused(folder: Path, signed: bytes) -> None:
    other = sealed(signed, lambda manifest: manifest["use"].update(labels=["no", "yes"]))
    refused(folder, other, match="not over these contents")


def test_a_signature_over_the_bare_digest_is_no_signature_of_a_bundle(
    folder: Path, whole: bytes, signed: bytes, key: SigningKey
) -> None:
    """What the key signed for another purpose, without the domain or with other words behind it, counts for nothing."""
    digest = parts_of(whole)[1]["digest"]
    for message in (digest.encode(), bytes.fromhex(digest), DOMAIN + digest.encode()):
        value = base64.b64encode(key._key.sign(message)).decode()
        refused(folder, changed(signed, lambda told, value=value: told[0].update(signature=value)), match="not over")


def test_more_signatures_than_the_limit_are_refused_though_all_are_valid(folder: Path, whole: bytes) -> None:
    path = folder / "many"
    path.write_bytes(whole)
    for _ in range(SIGNATURE_LIMIT):
        sign_bundle(path, SigningKey.new())
    assert len(load_bundle(path).signatures) == SIGNATURE_LIMIT
    content = path.read_bytes()
    with pytest.raises(BundleError, match="no room"):
        sign_bundle(path, SigningKey.new())
    assert path.read_bytes() == content
    one_more = SigningKey.new().sign(parts_of(whole)[1]["digest"]).described()
    refused(folder, changed(content, lambda told: told.append(one_more)), match="1 to 16")


def is_same(found: Bundle, wanted: Bundle) -> bool:
    plain = ("prefix", "reference", "fingerprint", "family", "use", "provenance", "evidence", "version", "signatures")
    return all(getattr(found, name) == getattr(wanted, name) for name in plain)


def test_a_signed_bundle_with_any_byte_changed_is_refused_or_unsigned(folder: Path, signed: bytes) -> None:
    """A byte of the entry's name can be changed: then there is no signature, which is for a policy to refuse."""
    wanted, path = load_bundle(folder / "signed"), folder / "hostile"
    strict = TrustPolicy(require_signature=True, trusted={"alice": wanted.signatures[0].key})
    for position in range(0, len(signed), 3):
        path.write_bytes(signed[:position] + bytes([signed[position] ^ 0x01]) + signed[position + 1 :])
        try:
            found = load_bundle(path, trust=strict)
        except BundleError:
            continue
        assert is_same(found, wanted)


# Structure-aware mutations

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2**66), st.floats(), st.text(max_size=6), st.just([]), st.just({})
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value inside a JSON value stands."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for name, entry in inside for found in places(entry, (*path, name)))]


def mutated(value: Any, place: tuple[Any, ...], kind: str, new: Any) -> Any:
    if not place:
        return new
    copy = json.loads(json.dumps(value))
    parent = copy
    for name in place[:-1]:
        parent = parent[name]
    if kind == "drop":
        del parent[place[-1]]
    elif kind == "double" and isinstance(parent, list):
        parent.append(parent[place[-1]])
    elif kind == "rename" and isinstance(parent, dict):
        parent[str(new)] = parent.pop(place[-1])
    else:
        parent[place[-1]] = new
    return copy


@settings(max_examples=300)
@given(st.data())
def test_a_bundle_of_mutated_structure_is_refused_or_unchanged(
    folder: Path, signed: bytes, data: st.DataObject
) -> None:
    """Values of header, manifest and signatures are replaced, dropped, doubled and renamed, sealed anew or not.

    Sealed anew, a bundle may be taken: it then says something else, and its signature cannot hold.
    """
    header, manifest, tensors = parts_of(signed)
    told = json.loads(header["__metadata__"][SIGNATURES])
    part = data.draw(st.sampled_from(["header", "manifest", "signatures"]))
    target = {"header": header, "manifest": manifest, "signatures": told}[part]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places(target)))
        kind = data.draw(st.sampled_from(["replace", "drop", "double", "rename"]))
        target = mutated(target, place, kind, data.draw(SCALARS))
        if not isinstance(target, dict | list):
            break
    if part == "header":
        content = file_of(json.dumps(target), tensors)
    elif part == "signatures":
        content = with_signatures(signed, target)
    else:
        header["__metadata__"]["foreword"] = json.dumps(target)
        content = file_of(json.dumps(header), tensors)
        if data.draw(st.booleans()) and isinstance(target, dict):
            try:
                content = sealed(content, lambda _: None)
            except (ValueError, UnicodeEncodeError):  # what has no digest
                return
    path = folder / "mutated"
    path.write_bytes(content)
    try:
        found = load_bundle(path)
    except BundleError:
        return
    unsigned = found.signatures == ()
    assert is_same(found, load_bundle(folder / ("whole" if unsigned else "signed")))
    assert not unsigned or part == "header"


# Keys and policies


@settings(max_examples=200)
@given(st.one_of(st.text(max_size=100), st.binary(max_size=60).map(lambda b: base64.b64encode(b).decode())))
def test_any_text_is_a_public_key_or_refused(text: str) -> None:
    try:
        found = PublicKey.parse(text)
    except SigningError:
        return
    assert PublicKey.parse(found.text) == found


POLICIES: dict[str, bytes] = {
    "not TOML": b"[trusted",
    "not UTF-8": b"\xff\xfe",
    "a field twice": b"require-signature = true\nrequire-signature = false",
    "an unknown field": b"require_signature = true",
    "a text for a truth": b'require-signature = "yes"',
    "a number for a truth": b"require-signature = 1",
    "trusted a list": b'trusted = ["x"]',
    "a key that is a number": b"[trusted]\nalice = 7",
    "a key that is a table": b"[trusted]\nalice = {}",
    "a key too short": b'[trusted]\nalice = "AAAA"',
    "a key file that is not there": b'[trusted]\nalice = "none.pub"',
    "a key file that is a device": b'[trusted]\nalice = "/dev/zero"',
    "a key file with a NUL in its name": b'[trusted]\nalice = "a\\u0000b"',
    "a key file of a long name": b'[trusted]\nalice = "' + b"x" * 5000 + b'"',
    "PEM of nothing": b'[trusted]\nalice = "-----BEGIN PUBLIC KEY-----\\n\\n-----END PUBLIC KEY-----"',
    "PEM of a private key": b'[trusted]\nalice = "-----BEGIN PRIVATE KEY-----\\nAAAA\\n-----END PRIVATE KEY-----"',
    "no key at all": b"require-signature = true",
    "only a revoked key": b'require-signature = true\n[revoked]\na = "' + b"00" * 32 + b'"',
    "too large": b"#" * (POLICY_LIMIT + 1),
    "deep": b"a = " + b"[" * 100_000,
}


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_that_is_wrong_is_refused_and_never_left_out(
    tmp_path: Path, folder: Path, signed: bytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trust.toml").write_bytes(POLICIES[name])
    monkeypatch.setenv("FOREWORD_TRUST", str(tmp_path / "trust.toml"))
    with pytest.raises(SigningError, match=r"trust policy .* cannot be used"):
        load_bundle(folder / "signed")


def test_everything_that_is_wrong_with_a_policy_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "p").write_text('a = 1\nrequire-signature = 2\n[trusted]\nb = 3\n[revoked]\nc = "x"', encoding="utf-8")
    with pytest.raises(SigningError) as caught:
        TrustPolicy.load(tmp_path / "p")
    assert all(told in str(caught.value) for told in ("a: no such", "require-signature:", "trusted.b:", "revoked.c:"))
