"""The bundle: one prefix on disk with its identity, the base model it is for, and how it came to be.

One safetensors file. Tensors are `prefix/<site>/keys`, `.../values`, `.../bias`, and `readout/<name>`; the header's
metadata has the manifest as JSON in `foreword` and, when the bundle is signed, the signatures in `foreword.signatures`.
The manifest's `digest` covers every tensor and every other line of the manifest, so that a truncated or changed file is
told from a whole one; a signature covers the digest and says who vouches for it. Nothing is unpickled, and nothing is
allocated before the sizes are checked (`tensorfile.py`).
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors.numpy import save

from foreword.arrays import Array, is_finite
from foreword.errors import BaseMismatchError, BundleError, ForewordError, SigningError
from foreword.prefix import LayerPrefix, Prefix
from foreword.regular_file import found_in
from foreword.signatures import SIGNATURE_LIMIT, SIGNATURES, signatures_in, with_signatures
from foreword.signing import Signature, SigningKey
from foreword.tensorfile import (
    HEADER_LIMIT,
    MANIFEST,
    NAMES,
    broken,
    content_digest,
    decoded,
    file_path,
    is_plain,
    parsed,
    read_content,
    schema_of,
)
from foreword.trust import TrustPolicy
from foreword.version import __version__

SCHEMA = "foreword.bundle/1"
SUFFIX = ".prefix"

_PARTS = ("keys", "values", "bias")


class HasIdentity(Protocol):
    """A base model as a bundle knows it."""

    @property
    def reference(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def family(self) -> str: ...


@dataclass(frozen=True)
class Bundle:
    """A prefix with what is needed to use it and to judge it.

    `reference`, `fingerprint` and `family` identify the base model. `use` says how it is applied (kind, labels,
    template, read-out); `readout` holds the read-out's arrays. `provenance` and `evidence` are plain JSON values: who
    made it from what, and what was measured. `signatures` have been checked against the contents; whether their keys
    are trusted is for a `TrustPolicy` to say.
    """

    prefix: Prefix
    reference: str
    fingerprint: str
    family: str
    use: dict[str, Any] = field(default_factory=dict)
    readout: dict[str, Array] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] | None = None
    version: str = __version__
    signatures: tuple[Signature, ...] = ()

    def check_base(self, host: HasIdentity) -> None:
        """BaseMismatchError unless `host` is the base model that this bundle was made for."""
        _check_identity(host)
        if host.fingerprint != self.fingerprint:
            raise BaseMismatchError(
                "This bundle was made for another base model.",
                expected=f"{self.reference} with fingerprint {self.fingerprint[:16]}…",
                found=f"{host.reference} with fingerprint {host.fingerprint[:16]}…",
                fix="Load the base model that the bundle names, or fit a prefix for this one.",
            )


def save_bundle(
    path: str | Path,
    prefix: Prefix,
    *,
    host: HasIdentity,
    use: Mapping[str, Any] | None = None,
    readout: Mapping[str, Array] | None = None,
    provenance: Mapping[str, Any] | None = None,
    evidence: Mapping[str, Any] | None = None,
    sign_with: SigningKey | None = None,
    signer: str | None = None,
) -> Bundle:
    """Write `prefix` for `host` to `path`, atomically: the old file stays whole until the new one is complete.

    With `sign_with` it is signed, under the name `signer` when that is given. BundleError when the folder cannot be
    written or the disk is full, and for what is no prefix, host or table; nothing half-written stays behind.
    """
    _check_identity(host)
    if not isinstance(prefix, Prefix):
        raise BundleError(
            "What is to be saved is not a prefix.",
            expected="a Prefix",
            found=type(prefix).__name__,
            fix="Make one with Prefix.from_arrays(...).",
        )
    tables = {"use": use, "readout": readout, "provenance": provenance, "evidence": evidence}
    for name, table in tables.items():
        if table is not None and not isinstance(table, Mapping):
            raise BundleError(
                f"The bundle's {name} is not a table.",
                expected="a dict, or None",
                found=type(table).__name__,
                fix=f"Put it under a name of its own: {name}={{'name': ...}}.",
            )
    path = file_path(path)
    if sign_with is not None:
        _check_key(sign_with)
    bundle = Bundle(
        prefix=prefix,
        reference=host.reference,
        fingerprint=host.fingerprint,
        family=host.family,
        use=dict(use or {}),
        readout={name: np.ascontiguousarray(array) for name, array in (readout or {}).items()},
        provenance=dict(provenance or {}),
        evidence=None if evidence is None else dict(evidence),
    )
    content, digest = _encode(bundle)
    if sign_with is not None:
        bundle = replace(bundle, signatures=(sign_with.sign(digest, signer=signer),))
        content = with_signatures(path, content, bundle.signatures)
    write_bytes_atomically(path, content)
    return bundle


def _check_key(key: object) -> None:
    """SigningError unless `key` can sign."""
    if not isinstance(key, SigningKey):
        raise SigningError(
            "This is not a key to sign with.",
            expected="a SigningKey",
            found=type(key).__name__,
            fix="Read one from its file with foreword.SigningKey.read(path), or make one: SigningKey.new().",
        )


def _check_identity(host: object) -> None:
    """BundleError unless `host` says which base model it is."""
    if not all(isinstance(getattr(host, name, None), str) for name in ("reference", "family", "fingerprint")):
        raise BundleError(
            "This is not a host, so it is not known which base model the bundle is for.",
            expected="a Host, made by Host(model) or Host.load(reference)",
            found=type(host).__name__,
            fix="Make one: host = foreword.Host(model).",
        )


def load_bundle(path: str | Path, *, host: HasIdentity | None = None, trust: TrustPolicy | None = None) -> Bundle:
    """Read a bundle and check that it is whole; with `host`, also that it was made for that base model.

    `trust` says whose bundles are taken; without it, the policy of this user does (`TrustPolicy.in_force`).

    BundleError when the file is missing, truncated, changed, wrongly signed or of another format; UntrustedBundleError
    when the policy refuses it; BaseMismatchError for another base; SigningError when the policy cannot be read.
    """
    path = file_path(path)
    if trust is not None and not isinstance(trust, TrustPolicy):
        raise BundleError(
            "This is not a trust policy.",
            expected="a TrustPolicy, or None for this user's own",
            found=type(trust).__name__,
            fix="Read one from its file: trust=foreword.TrustPolicy.load(path).",
        )
    policy = TrustPolicy.in_force() if trust is None else trust
    bundle, _ = _decode(path, read_content(path))
    policy.check(path, bundle.signatures)
    if host is not None:
        bundle.check_base(host)
    return bundle


def sign_bundle(path: str | Path, key: SigningKey, *, signer: str | None = None) -> Bundle:
    """Add a signature to the bundle at `path`, atomically, in place of an older one by the same key.

    The bundle is read and checked first, whoever else has signed it. BundleError when it is not whole, or has sixteen
    signatures already.
    """
    path = file_path(path)
    _check_key(key)
    content = read_content(path)
    bundle, digest = _decode(path, content)
    others = [found for found in bundle.signatures if found.key != key.public]
    if len(others) >= SIGNATURE_LIMIT:
        raise BundleError(
            f"The bundle {path} has no room for another signature.",
            expected=f"at most {SIGNATURE_LIMIT} signatures",
            found=f"{len(others)} by other keys",
            fix="Save the bundle anew and let fewer keys sign it.",
        )
    bundle = replace(bundle, signatures=(*others, key.sign(digest, signer=signer)))
    write_bytes_atomically(path, with_signatures(path, content, bundle.signatures))
    return bundle


def write_bytes_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` through a temporary file beside it; on failure BundleError, and `path` as it was."""
    # It is named before it is made, so that an interrupt at any moment leaves none behind.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        if path.exists() and not path.is_file():  # a device of the system would be gone
            raise OSError("a folder of that name" if path.is_dir() else "a pipe or device of that name")
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        raise BundleError(
            f"{path} could not be written; what was there before is unchanged.",
            expected=f"a writable folder with {len(content):,} free bytes",
            found=found_in(error),
            fix="Free some space or name another folder.",
        ) from error
    finally:
        with suppress(OSError, ValueError):  # what is no path has no file to be removed
            temporary.unlink(missing_ok=True)


def _encode(bundle: Bundle) -> tuple[bytes, str]:
    """The file's bytes, unsigned, and its digest."""
    tensors = {
        f"prefix/{layer.site}/{part}": array for layer in bundle.prefix.layers for part, array in layer.arrays().items()
    }
    tensors |= {f"readout/{name}": array for name, array in bundle.readout.items()}
    for name in (*bundle.prefix.sites, *bundle.readout):
        if not (isinstance(name, str) and is_plain(name)):
            raise BundleError(
                "A site or a part of the read-out has a name that a bundle does not hold.",
                expected="printable text without / and \\",
                found=repr(name)[:100],
                fix="Rename it; a site is the dotted path of a module.",
            )
    for name, array in tensors.items():
        if str(array.dtype) not in NAMES:
            raise BundleError(
                f"The tensor {name} has a dtype that a bundle does not hold.",
                expected=", ".join(NAMES),
                found=str(array.dtype),
                fix="Convert it to float32.",
            )
        if not is_finite(array):
            raise BundleError(
                f"The tensor {name} is not all finite.",
                expected="finite numbers",
                found="NaN or infinite entries",
                fix="Find where the read-out diverged; it could answer nothing with them.",
            )
    manifest: dict[str, Any] = {
        "schema": SCHEMA,
        "version": bundle.version,
        "prefix": {
            "hash": bundle.prefix.hash,
            "sites": list(bundle.prefix.sites),
            "positions": bundle.prefix.positions,
            "occupies": bundle.prefix.occupies,
            "dtype": bundle.prefix.dtype,
            "nbytes": bundle.prefix.nbytes,
            **({"reads": list(bundle.prefix.reads)} if bundle.prefix.reads else {}),
        },
        "base": {"reference": bundle.reference, "fingerprint": bundle.fingerprint, "family": bundle.family},
        "use": bundle.use,
        "provenance": bundle.provenance,
        "evidence": bundle.evidence,
    }
    try:
        # As it will be read: JSON turns keys into text, and the digest depends on their order.
        read_back = parsed(json.dumps(manifest, allow_nan=False))
        digest = content_digest(read_back, tensors)
        text = json.dumps({**read_back, "digest": digest}, ensure_ascii=False, allow_nan=False)
        content = bytes(save(tensors, metadata={MANIFEST: text}))
        parsed(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(
            "The bundle's manifest is not plain JSON.",
            expected="use, provenance and evidence of dicts, lists, texts, finite numbers, booleans and None",
            found=f"{type(error).__name__}: {error}",
            fix="Convert the values; what is undefined is None, not NaN. Keep large evidence in a file of its own.",
        ) from error
    if (length := int.from_bytes(content[:8], "little")) > HEADER_LIMIT:
        raise BundleError(
            "The bundle's manifest is too large.",
            expected=f"at most {HEADER_LIMIT:,} bytes of header",
            found=f"{length:,}",
            fix="Keep large evidence in a file of its own.",
        )
    return content, digest


def _manifest(path: Path, texts: Mapping[str, str]) -> dict[str, Any]:
    try:
        manifest = parsed(texts[MANIFEST])
    except (KeyError, ValueError, RecursionError) as error:
        raise broken(path, f"a header without a readable manifest ({type(error).__name__}: {error})") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise broken(path, f"a manifest of schema {str(found)[:80]!r}, not {SCHEMA}")
    return manifest


def _decode(path: Path, content: bytes) -> tuple[Bundle, str]:
    """The bundle in bytes that `read_content` gave, and its digest."""
    try:
        file = decoded(path, content)
        manifest, tensors = _manifest(path, file.texts), file.tensors
    except BundleError as error:
        if not (schema_of(path, content) or "").startswith("foreword.compiled/"):
            raise
        raise BundleError(
            f"{path} is a compiled function, not a fitted prefix.",
            expected="a bundle, as `foreword fit`, `foreword pilot` and fw.save_bundle write it",
            found="what `foreword compile` writes",
            fix="Check it with `foreword verify`, or read it with fw.load_compiled.",
        ) from error
    try:
        digest = content_digest(manifest, tensors)
    except (ValueError, RecursionError) as error:  # an infinity, half a surrogate pair, or nested too deep
        raise broken(path, f"a manifest that foreword does not write ({type(error).__name__}: {error})") from error
    if digest != manifest.get("digest"):
        raise broken(path, "contents that do not match the digest in the manifest: the file was changed")
    try:
        _check_types(manifest, tensors)
        told, base = manifest["prefix"], manifest["base"]
        layers = tuple(
            LayerPrefix(site, *(tensors[f"prefix/{site}/{p}"] for p in _PARTS if f"prefix/{site}/{p}" in tensors))
            for site in told["sites"]
        )
        prefix = Prefix(layers, told["occupies"], tuple(told.get("reads", ())))
        bundle = Bundle(
            prefix=prefix,
            reference=base["reference"],
            fingerprint=base["fingerprint"],
            family=base["family"],
            use=manifest["use"],
            readout={name.removeprefix("readout/"): a for name, a in tensors.items() if name.startswith("readout/")},
            provenance=manifest["provenance"],
            evidence=manifest["evidence"],
            version=manifest["version"],
            signatures=signatures_in(path, file.texts.get(SIGNATURES), digest),
        )
    except BundleError:
        raise
    except (KeyError, TypeError, ForewordError) as error:
        raise broken(path, f"a manifest that does not fit its tensors ({type(error).__name__}: {error})") from error
    if prefix.hash != told.get("hash"):
        raise broken(path, f"prefix {prefix.hash[:12]} where the manifest promises {str(told.get('hash'))[:12]}")
    wrong = [name for name, array in bundle.readout.items() if not is_finite(array)]
    if wrong:
        raise broken(path, f"a read-out that is not all finite ({wrong[0][:80]})")
    return bundle, digest


def _check_types(manifest: dict[str, Any], tensors: Mapping[str, Array]) -> None:
    """TypeError when an entry is not of its type, or a tensor belongs to nothing; KeyError when an entry is missing."""
    told, base = manifest["prefix"], manifest["base"]
    texts = [manifest["version"], *(base[name] for name in ("reference", "fingerprint", "family")), *told["sites"]]
    tables = [manifest["use"], manifest["provenance"], manifest["evidence"] or {}]
    if not (isinstance(told["sites"], list) and all(isinstance(text, str) for text in texts)):
        raise TypeError("a name that is not text")
    if not all(isinstance(table, dict) for table in tables) or type(told["occupies"]) is not int:
        raise TypeError("use, provenance, evidence or occupies of another type")
    known = {f"prefix/{site}/{part}" for site in told["sites"] for part in _PARTS}
    for name in tensors:
        if name not in known and not name.startswith("readout/"):
            raise TypeError(f"tensor {name} belongs to no site")
