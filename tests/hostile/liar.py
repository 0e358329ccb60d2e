"""A liar who knows the format: takes a bundle apart, changes it, and seals it with the digest of what it now says."""

from __future__ import annotations

import hashlib
import json
import re
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.bundle import load_bundle
from foreword.errors import BundleError
from foreword.tensorfile import MARKS_LIMIT

# What a refusal may take. Bytes of the file, its text, what JSON makes of it, and one copy: 4 times the file. Of all
# that fits into the limit on commas and brackets, dicts of one entry take most: two marks and 240 bytes for each.
SECONDS = 1.0
TIMES_THE_FILE, BESIDES = 4, 120 * MARKS_LIMIT


@dataclass(frozen=True)
class FakeHost:
    reference: str = "some/model"
    fingerprint: str = "f" * 64
    family: str = "bert"


def parts_of(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, manifest, and the tensors' bytes."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["foreword"]), content[8 + length :]


def file_of(header: str | bytes, data: bytes) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return len(header).to_bytes(8, "little") + header + data


def sealed(content: bytes, change: Callable[[dict[str, Any]], object], *, dtype: str = "float32") -> bytes:
    """The bundle with a changed manifest and the digest of what it now says: a liar who knows the format."""
    header, manifest, data = parts_of(content)
    change(manifest)
    told = {key: value for key, value in manifest.items() if key != "digest"}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, ensure_ascii=False).encode())
    for name in sorted(name for name in header if name != "__metadata__"):
        start, end = header[name]["data_offsets"]
        digest.update(f"\n{name}\0{dtype}\0{tuple(header[name]['shape'])}\0".encode() + data[start:end])
    if "digest" in manifest:
        manifest["digest"] = digest.hexdigest()
    header["__metadata__"]["foreword"] = json.dumps(manifest, ensure_ascii=False)
    return file_of(json.dumps(header), data)


def refused(folder: Path, content: bytes, match: str = "") -> str:
    """The message of the refusal that `content` gets as a bundle: in a second, and without much memory."""
    path = folder / "hostile"
    path.write_bytes(content)
    return refused_path(path, match)


def refused_path(path: Path, match: str = "", *, besides: int = 0) -> str:
    """The same for what lies at `path`, with `besides` more bytes allowed than its size justifies."""
    message, seconds = _timed_refusal(path)
    for _ in range(4):  # the machine may be busy with something else: what it can do is the least of a few
        seconds = seconds if seconds < SECONDS else _timed_refusal(path)[1]
    size = path.stat().st_blocks * 512 if path.exists() else 0  # a sparse file justifies what it takes on the disk
    tracemalloc.start()
    try:
        _refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert re.search(match, message), message
    assert seconds < SECONDS
    assert peak < TIMES_THE_FILE * size + BESIDES + besides
    return message


def _timed_refusal(path: Path) -> tuple[str, float]:
    started = time.process_time()
    message = _refusal(path)
    return message, time.process_time() - started


def _refusal(path: Path) -> str:
    try:
        load_bundle(path)
    except BundleError as error:
        return str(error)
    raise AssertionError("the bundle was taken")
