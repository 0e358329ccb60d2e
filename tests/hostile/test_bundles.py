"""Damaged and malicious bundles: each is refused with a BundleError, quickly, whatever its bytes are.

The property behind all of them: `load_bundle` gives either a BundleError or exactly the bundle that was written.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hostile.liar import FakeHost, file_of, parts_of, refused, sealed

from foreword.bundle import Bundle, load_bundle
from foreword.errors import BaseMismatchError, BundleError


def read(folder: Path, content: bytes) -> Bundle:
    path = folder / "hostile"
    path.write_bytes(content)
    return load_bundle(path)


def is_same(found: Bundle, wanted: Bundle) -> bool:
    same_readout = found.readout.keys() == wanted.readout.keys() and all(
        np.array_equal(found.readout[name], wanted.readout[name]) for name in found.readout
    )
    plain = ("prefix", "reference", "fingerprint", "family", "use", "provenance", "evidence", "version")
    return same_readout and all(getattr(found, name) == getattr(wanted, name) for name in plain)


# Damage


def test_the_undamaged_file_is_read(folder: Path, whole: bytes) -> None:
    assert is_same(read(folder, whole), load_bundle(folder / "whole"))


def test_a_bundle_truncated_anywhere_is_refused(folder: Path, whole: bytes) -> None:
    for length in [*range(64), *range(64, len(whole), 7), *range(len(whole) - 64, len(whole))]:
        refused(folder, whole[:length])


@pytest.mark.parametrize(("mask", "every"), [(0x01, 1), (0x80, 11), (0xFF, 7)])
def test_a_bundle_with_any_byte_changed_is_refused(folder: Path, whole: bytes, mask: int, every: int) -> None:
    for position in range(0, len(whole), every):
        changed = bytearray(whole)
        changed[position] ^= mask
        with pytest.raises(BundleError):
            read(folder, bytes(changed))


def test_a_bundle_with_something_behind_it_is_refused(folder: Path, whole: bytes) -> None:
    for more in (b"\0", b"x" * 100, whole):
        refused(folder, whole + more)


def test_two_tensors_that_change_places_are_noticed(folder: Path, whole: bytes) -> None:
    with pytest.raises(BundleError):
        read(folder, whole.replace(b'"prefix/h.0.attn/keys"', b'"prefix/h.9.attn/keys"'))
    swapped = whole.replace(b'"prefix/h.0.attn/keys"', b'"#"').replace(
        b'"prefix/h.0.attn/values"', b'"prefix/h.0.attn/keys"'
    )
    swapped = swapped.replace(b'"#"', b'"prefix/h.0.attn/values"')
    assert len(swapped) == len(whole)
    assert swapped != whole
    with pytest.raises(BundleError):
        read(folder, swapped)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_mutated_bundle_is_refused_or_unchanged(folder: Path, whole: bytes, data: st.DataObject) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        kind = data.draw(st.sampled_from(["set", "insert", "delete", "copy"]))
        some = data.draw(st.binary(min_size=1, max_size=8))
        if kind == "set":
            changed[at : at + len(some)] = some[: len(changed) - at]
        elif kind == "insert":
            changed[at:at] = some
        elif kind == "delete" and len(changed) > 20:
            del changed[at : at + len(some)]
        else:
            start = data.draw(st.integers(0, len(changed) - 1))
            changed[at : at + 16] = changed[start : start + 16]
    try:
        found = read(folder, bytes(changed))
    except BundleError:
        return
    assert is_same(found, load_bundle(folder / "whole"))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.integers(0, 400))
def test_random_bytes_are_refused(folder: Path, content: bytes, length: int) -> None:
    for hostile in (content, length.to_bytes(8, "little") + content):
        with pytest.raises(BundleError):
            read(folder, hostile)


# Lies


def test_sealing_anew_without_a_change_gives_a_readable_bundle(folder: Path, whole: bytes) -> None:
    """Otherwise the next test would only show that the digest is wrong."""
    assert is_same(read(folder, sealed(whole, lambda _: None)), load_bundle(folder / "whole"))


LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "unknown schema": lambda m: m.update(schema="foreword.bundle/2"),
    "schema of another type": lambda m: m.update(schema=["foreword.bundle/1"]),
    "no schema": lambda m: m.pop("schema"),
    "no digest": lambda m: m.pop("digest"),
    "no prefix": lambda m: m.pop("prefix"),
    "prefix a list": lambda m: m.update(prefix=[]),
    "base a text": lambda m: m.update(base="some/model"),
    "no fingerprint": lambda m: m["base"].pop("fingerprint"),
    "fingerprint a number": lambda m: m["base"].update(fingerprint=7),
    "reference null": lambda m: m["base"].update(reference=None),
    "other hash": lambda m: m["prefix"].update(hash="0" * 64),
    "no hash": lambda m: m["prefix"].pop("hash"),
    "sites missing one": lambda m: m["prefix"]["sites"].pop(),
    "sites in another order": lambda m: m["prefix"]["sites"].reverse(),
    "sites a text": lambda m: m["prefix"].update(sites="h.0.attn"),
    "sites null": lambda m: m["prefix"].update(sites=None),
    "no site": lambda m: m["prefix"].update(sites=[]),
    "a site twice": lambda m: m["prefix"].update(sites=["h.0.attn", "h.0.attn", "h.1.attn"]),
    "a site without tensors": lambda m: m["prefix"]["sites"].append("h.2.attn"),
    "a site that is a number": lambda m: m["prefix"]["sites"].append(3),
    "a site that is nested": lambda m: m["prefix"]["sites"].append(["h.0.attn"]),
    "occupies something else": lambda m: m["prefix"].update(occupies=5),
    "occupies a fraction": lambda m: m["prefix"].update(occupies=0.5),
    "occupies a text": lambda m: m["prefix"].update(occupies="0"),
    "occupies less than nothing": lambda m: m["prefix"].update(occupies=-1),
    "reads a text": lambda m: m["prefix"].update(reads="12"),
    "reads a number": lambda m: m["prefix"].update(reads=2),
    "reads more than it occupies": lambda m: m["prefix"].update(reads=[1]),
    "use a list": lambda m: m.update(use=[]),
    "use null": lambda m: m.update(use=None),
    "evidence a text": lambda m: m.update(evidence="good"),
    "no provenance": lambda m: m.pop("provenance"),
    "version a number": lambda m: m.update(version=1),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_sealed_manifest_that_does_not_fit_is_refused(folder: Path, whole: bytes, lie: str) -> None:
    refused(folder, sealed(whole, LIES[lie]))


def test_a_bundle_that_names_another_base_is_refused_by_the_host(folder: Path, whole: bytes) -> None:
    """Whole and sealed, so it can be read; but not for this host, nor for one that only has the same name."""
    read(folder, sealed(whole, lambda manifest: manifest["base"].update(fingerprint="0" * 64)))
    with pytest.raises(BaseMismatchError, match="another base model"):
        load_bundle(folder / "hostile", host=FakeHost())
    assert load_bundle(folder / "whole", host=FakeHost(reference="another/name"))


def with_metadata(content: bytes, text: object) -> bytes:
    header, _, data = parts_of(content)
    header["__metadata__"]["foreword"] = text
    return file_of(json.dumps(header), data)


def test_a_manifest_that_is_not_plain_json_is_refused_quickly(folder: Path, whole: bytes) -> None:
    _, manifest, _ = parts_of(whole)
    text = json.dumps(manifest)
    deep = 200_000
    manifests = [
        "", "null", "[]", "7", '"text"', "{}", "{", text[:-1], text + "}",
        text.replace('"use": {', '"use": {"value": NaN, '),
        text.replace('"use": {', '"use": {"value": -Infinity, '),
        text.replace('"use": {', '"use": {"value": 1e999, '),
        text.replace('"use": {', '"use": {"value": "\\ud800", '),
        text.replace('"use": {', '"use": {"value": ' + "9" * 5000 + ", "),
        text.replace('"use": {', '"use": {"value": ' + "[" * deep + "]" * deep + ", "),
        text.replace('"use": {', '"use": {"value": ' + "[" * 900 + "]" * 900 + ", "),
        text.replace('"use": {', '"use": {"labels": ["no", "yes"], '),
        text.replace('"schema"', '"schema": "foreword.bundle/1", "schema"'),
        "[" * deep, '{"a":' * deep,
    ]  # fmt: skip
    for hostile in manifests:
        refused(folder, with_metadata(whole, hostile))
    for other_type in (None, 7, ["x"], {"foreword": {}}):
        refused(folder, with_metadata(whole, other_type))


def test_a_header_that_lies_is_refused_quickly(folder: Path, whole: bytes) -> None:
    header, _, data = parts_of(whole)
    text = json.dumps(header)
    name = '"prefix/h.0.attn/keys": '
    assert name in text
    entry = json.dumps(header["prefix/h.0.attn/keys"])
    start, end = header["prefix/h.0.attn/keys"]["data_offsets"]

    def changed(**values: Any) -> str:
        return text.replace(name + entry, name + json.dumps({**header["prefix/h.0.attn/keys"], **values}))

    headers = [
        "", "{}", "[]", "null", '{"__metadata__": {}}', "[" * 100_000, '{"a":' * 100_000,
        text.replace("{", '{"prefix/h.0.attn/keys": ' + entry + ", ", 1),  # a tensor twice
        text.replace('"__metadata__"', '"__metadata__": {"foreword": "{}"}, "__metadata__"'),
        text.replace(name + entry, name + "null"),
        text.replace(name + entry + ", ", ""),
        changed(shape=[1, 2, 4]), changed(shape=[1, 2, -3]), changed(shape=[2**62, 2**62]), changed(shape=[]),
        changed(shape=[1, 2, 3.0]), changed(shape="1,2,3"), changed(dtype="F64"), changed(dtype="I32"),
        changed(dtype="F4"), changed(dtype="F99"), changed(dtype=None),
        changed(data_offsets=[start, end + 4]), changed(data_offsets=[end, start]), changed(data_offsets=[-1, end]),
        changed(data_offsets=[start, 2**70]), changed(data_offsets=[start]), changed(data_offsets=None),
        changed(data_offsets=[start, end]).replace(f"[{start}, {end}]", f"[{start}, 1e999]", 1),
        changed(data_offsets=[0, len(data)]),
    ]  # fmt: skip
    for hostile in headers:
        refused(folder, file_of(hostile, data))


def test_a_header_length_that_lies_allocates_nothing(folder: Path, whole: bytes) -> None:
    for length in (0, 1, len(whole) - 8, len(whole) - 7, len(whole), 2**24 + 1, 2**31, 2**63, 2**64 - 1):
        refused(folder, length.to_bytes(8, "little") + whole[8:], match="header")


def test_a_tensor_that_belongs_to_nothing_is_refused(folder: Path, whole: bytes) -> None:
    header, _, data = parts_of(whole)
    header["stowaway"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    more = file_of(json.dumps(header), data + b"\0\0\0\0")
    with pytest.raises(BundleError, match="digest"):
        read(folder, more)
    with pytest.raises(BundleError, match="stowaway"):
        read(folder, sealed(more, lambda _: None))


# Other files


def test_an_empty_file_is_refused(folder: Path) -> None:
    with pytest.raises(BundleError):
        read(folder, b"")


@pytest.mark.parametrize("kind", ["pickle", "zip", "text", "safetensors"])
def test_another_kind_of_file_is_refused(folder: Path, kind: str) -> None:
    import io
    import pickle
    import zipfile

    from safetensors.numpy import save

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", b"x" * 100)
    contents = {
        "pickle": pickle.dumps({"weights": list(range(100))}),
        "zip": buffer.getvalue(),
        "text": b'{"schema": "foreword.bundle/1"}' * 20,
        "safetensors": save({"prefix/h.0.attn/keys": np.ones((1, 2, 3), np.float32)}, metadata={"format": "pt"}),
    }
    with pytest.raises(BundleError):
        read(folder, contents[kind])
