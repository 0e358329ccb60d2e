"""The bundle: one prefix on disk with its identity, the base model it is for, and how it came to be.

One safetensors file. Tensors are `prefix/<site>/keys`, `.../values`, `.../bias`, and `readout/<name>`; the header's
metadata has one entry, `foreword`, with the manifest as JSON. The manifest's `digest` covers every tensor and every
other line of the manifest, so that a truncated or changed file is told from a whole one. A digest is not a signature:
it shows damage, not who wrote the file. Nothing is unpickled, and nothing is allocated before the sizes are checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from foreword.errors import BaseMismatchError, BundleError, ForewordError
from foreword.prefix import Array, LayerPrefix, Prefix
from foreword.version import __version__

SCHEMA = "foreword.bundle/1"
HEADER_LIMIT = 16 * 2**20
SUFFIX = ".prefix"

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
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
    made it from what, and what was measured.
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

    def check_base(self, host: HasIdentity) -> None:
        """BaseMismatchError unless `host` is the base model that this bundle was made for."""
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
) -> Bundle:
    """Write `prefix` for `host` to `path`, atomically: the old file stays whole until the new one is complete.

    BundleError when the folder cannot be written or the disk is full; nothing half-written stays behind.
    """
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
    write_bytes_atomically(Path(path), _encode(bundle))
    return bundle


def load_bundle(path: str | Path, *, host: HasIdentity | None = None) -> Bundle:
    """Read a bundle and check that it is whole; with `host`, also that it was made for that base model.

    BundleError when the file is missing, truncated, changed or of another format; BaseMismatchError for another base.
    """
    path = Path(path)
    try:
        known = path.stat()
        if not stat.S_ISREG(known.st_mode):  # a pipe would be waited for, a device never ends
            raise _broken(path, "a folder, pipe or device")
        with path.open("rb") as file:
            manifest = _read_manifest(path, file.read(8), file, known.st_size)
            file.seek(0)
            tensors = _read_tensors(path, file.read())
    except OSError as error:
        raise BundleError(
            f"The bundle {path} cannot be read.",
            expected="a file written by foreword",
            found=error.strerror or str(error),
            fix="Check the path and the permissions.",
        ) from error
    bundle = _decode(path, manifest, tensors)
    if host is not None:
        bundle.check_base(host)
    return bundle


def write_bytes_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file beside it; on failure BundleError, and `path` as it was."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(_new_file_mode())  # mkstemp makes private files
        Path(temporary).replace(path)
    except OSError as error:
        raise BundleError(
            f"{path} could not be written; what was there before is unchanged.",
            expected=f"a writable folder with {len(content):,} free bytes",
            found=error.strerror or str(error),
            fix="Free some space or name another folder.",
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _new_file_mode() -> int:
    """The mode that an ordinary new file gets."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _encode(bundle: Bundle) -> bytes:
    tensors = {
        f"prefix/{layer.site}/{part}": array for layer in bundle.prefix.layers for part, array in layer.arrays().items()
    }
    tensors |= {f"readout/{name}": array for name, array in bundle.readout.items()}
    for name, array in tensors.items():
        if str(array.dtype) not in _NAMES:
            raise BundleError(
                f"The tensor {name} has a dtype that a bundle does not hold.",
                expected=", ".join(_NAMES),
                found=str(array.dtype),
                fix="Convert it to float32.",
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
        },
        "base": {"reference": bundle.reference, "fingerprint": bundle.fingerprint, "family": bundle.family},
        "use": bundle.use,
        "provenance": bundle.provenance,
        "evidence": bundle.evidence,
    }
    try:
        # As it will be read: JSON turns keys into text, and the digest depends on their order.
        read_back = json.loads(json.dumps(manifest, allow_nan=False), object_pairs_hook=_without_duplicates)
        manifest = {**read_back, "digest": _digest(read_back, tensors)}
    except (TypeError, ValueError, RecursionError) as error:
        raise BundleError(
            "The bundle's manifest is not plain JSON.",
            expected="use, provenance and evidence of dicts, lists, texts, finite numbers, booleans and None",
            found=f"{type(error).__name__}: {error}",
            fix="Convert the values; what is undefined is None, not NaN.",
        ) from error
    content = bytes(save(tensors, metadata={"foreword": json.dumps(manifest, ensure_ascii=False, allow_nan=False)}))
    if (length := int.from_bytes(content[:8], "little")) > HEADER_LIMIT:
        raise BundleError(
            "The bundle's manifest is too large.",
            expected=f"at most {HEADER_LIMIT:,} bytes of header",
            found=f"{length:,}",
            fix="Keep large evidence in a file of its own.",
        )
    return content


def _digest(manifest: Mapping[str, Any], tensors: Mapping[str, Array]) -> str:
    told = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False, allow_nan=False).encode())
    for name in sorted(tensors):
        digest.update(f"\n{name}\0{tensors[name].dtype}\0{tensors[name].shape}\0".encode())
        digest.update(tensors[name].tobytes())
    return digest.hexdigest()


def _broken(path: Path, found: str) -> BundleError:
    return BundleError(
        f"{path} is not a whole foreword bundle.",
        expected=f"a safetensors file with a {SCHEMA} manifest, as it was written",
        found=found,
        fix="Copy it again from where it was made, or fit the prefix again.",
    )


def _read_manifest(path: Path, start: bytes, file: Any, size: int) -> dict[str, Any]:
    """The manifest out of the header, before any tensor is read."""
    length = int.from_bytes(start, "little") if len(start) == 8 else -1
    if not 2 <= length <= min(HEADER_LIMIT, size - 8):
        raise _broken(path, f"a header of {length:,} bytes in a file of {size:,}")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        text = header["__metadata__"]["foreword"]
        promised = max((int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"))
        manifest = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise _broken(path, f"a header without a readable manifest ({type(error).__name__}: {error})") from error
    if promised != size - 8 - length:
        raise _broken(path, f"{size - 8 - length:,} bytes of tensors where the header promises {promised:,}")
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise _broken(path, f"a manifest of schema {found!r}")
    return manifest


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in the JSON")
    return found


def _read_tensors(path: Path, content: bytes) -> dict[str, Array]:
    try:
        found: list[tuple[str, dict[str, Any]]] = deserialize(content)  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError) as error:
        raise _broken(path, str(error)) from error
    tensors: dict[str, Array] = {}
    for name, entry in found:
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None:
            raise _broken(path, f"tensor {name} of dtype {entry['dtype']}")
        tensors[name] = np.frombuffer(entry["data"], dtype=dtype).reshape(entry["shape"])
    return tensors


def _decode(path: Path, manifest: dict[str, Any], tensors: dict[str, Array]) -> Bundle:
    try:
        digest = _digest(manifest, tensors)
    except (ValueError, RecursionError) as error:  # NaN, half a surrogate pair, or nested too deep
        raise _broken(path, f"a manifest that foreword does not write ({type(error).__name__}: {error})") from error
    if digest != manifest.get("digest"):
        raise _broken(path, "contents that do not match the digest in the manifest: the file was changed")
    try:
        _check_types(manifest, tensors)
        told, base = manifest["prefix"], manifest["base"]
        layers = tuple(
            LayerPrefix(site, *(tensors[f"prefix/{site}/{p}"] for p in _PARTS if f"prefix/{site}/{p}" in tensors))
            for site in told["sites"]
        )
        prefix = Prefix(layers, occupies=told["occupies"])
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
        )
    except (KeyError, TypeError, ForewordError) as error:
        raise _broken(path, f"a manifest that does not fit its tensors ({type(error).__name__}: {error})") from error
    if prefix.hash != told.get("hash"):
        raise _broken(path, f"prefix {prefix.hash[:12]} where the manifest promises {str(told.get('hash'))[:12]}")
    return bundle


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
