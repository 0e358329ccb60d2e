"""A compiled prefix on disk: the head, what it was compiled for, and the proof with its cells.

One safetensors file. Tensors are `keys`, `biases`, `values`, the cover's arrays under `cover/`, and for a finite
domain `points` and `samples`; the header's metadata has one text, `foreword`, with the manifest as JSON. Its digest
covers every tensor and every other line. What must hold before anything is allocated is `tensorfile.py`'s.

It knows no proofs: that the claim is true is the checker's to say. A file that is read here is whole, no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from foreword.bundle import write_bytes_atomically
from foreword.certificate import Certificate
from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, chart_from_dict
from foreword.compiler.cover import Cover
from foreword.compiler.domain import Domain, FiniteSet, domain_from_dict
from foreword.compiler.head import Head
from foreword.errors import BundleError, CertificateError, CompileError, ForewordError
from foreword.tensorfile import HEADER_LIMIT, MANIFEST, content_digest, decoded, parsed, read_content, schema_of
from foreword.version import __version__

SCHEMA = "foreword.compiled/1"
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
}
HEAD = ("keys", "biases", "values")
TABLE = ("points", "samples")
COVER = "cover/"


@dataclass(frozen=True, eq=False)
class CompiledFile:
    """What one file holds. `target` is what a certificate says of the target (its expression's text, constants).

    `tried` are the methods that were tried, a row of plain values each. `samples` `(count, output)` are a finite
    domain's values. CertificateError when the parts do not fit together.
    """

    head: Head
    chart: Chart
    domain: Domain
    target: dict[str, Any]
    method: str
    certificate: Certificate | None = None
    cover: Cover | None = None
    samples: Floats | None = None
    tried: Sequence[dict[str, Any]] = field(default_factory=tuple)
    version: str = __version__

    def __post_init__(self) -> None:
        try:
            self.chart.expressions(self.domain.columns)
        except CompileError as error:
            raise _misfit(f"a chart of the domain; {error.expected}", error.found) from error
        keys, biases, values = (np.asarray(getattr(self.head, name)) for name in HEAD)
        fits = keys.ndim == values.ndim == 2 and biases.ndim == 1 and len(keys) == len(biases) == len(values)
        if not fits or not keys.size or not values.size or keys.shape[1] != self.chart.width:
            shapes = f"{keys.shape}, {biases.shape} and {values.shape}"
            raise _misfit(f"keys (position, {self.chart.width}), biases (position,), values (position, output)", shapes)
        if not all(array.dtype == np.float64 and np.isfinite(array).all() for array in (keys, biases, values)):
            raise _misfit("finite float64 numbers in the head", "others")
        if self.samples is not None:
            count = len(self.domain.points) if isinstance(self.domain, FiniteSet) else 0
            if self.samples.shape != (count, values.shape[1]) or not np.isfinite(self.samples).all():
                raise _misfit(f"finite samples ({count}, {values.shape[1]})", f"{self.samples.shape}")
        if (self.cover is not None) > (self.certificate is not None):
            raise _misfit("cells with the certificate that they belong to", "cells without a certificate")


def write_compiled(path: str | Path, compiled: CompiledFile) -> None:
    """Write the file atomically; BundleError when the folder cannot be written, CertificateError for other contents."""
    head = compiled.head
    tensors: dict[str, NDArray[Any]] = {"keys": head.keys, "biases": head.biases, "values": head.values}
    if compiled.cover is not None:
        tensors |= {f"{COVER}{name}": array for name, array in compiled.cover.arrays().items()}
    if isinstance(compiled.domain, FiniteSet):
        tensors["points"] = compiled.domain.points
    if compiled.samples is not None:
        tensors["samples"] = compiled.samples
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    certificate = compiled.certificate
    manifest = {
        "schema": SCHEMA,
        "version": compiled.version,
        "chart": compiled.chart.as_dict(),
        "domain": _without_points(compiled.domain.as_dict()),
        "target": compiled.target,
        "method": compiled.method,
        "tried": list(compiled.tried),
        "certificate": None if certificate is None else _without_table(certificate.as_dict()),
    }
    try:
        # As it will be read: JSON turns keys into text, and the digest depends on their order.
        read_back = parsed(json.dumps(manifest, allow_nan=False))
        text = json.dumps(
            {**read_back, "digest": content_digest(read_back, tensors)}, ensure_ascii=False, allow_nan=False
        )
        content = bytes(save(tensors, metadata={MANIFEST: text}))
        length = int.from_bytes(content[:8], "little")
        parsed(content[8 : 8 + length])
        if length > HEADER_LIMIT:
            raise ValueError(f"a header of {length:,} bytes, of at most {HEADER_LIMIT:,}")
    except (TypeError, ValueError, RecursionError) as error:
        raise CertificateError(
            "The compiled prefix cannot be written: its description is not plain JSON of moderate size.",
            expected="dicts, lists, texts, finite numbers, booleans and None",
            found=f"{type(error).__name__}: {error}",
            fix="Convert what stands in target, tried or the certificate's effort.",
        ) from error
    write_bytes_atomically(Path(path), content)


def read_compiled(path: str | Path) -> CompiledFile:
    """The file's contents; CertificateError when it is missing, truncated, changed or of another format."""
    path = Path(path)
    try:
        content = read_content(path)
    except BundleError as error:
        if not isinstance(error.__cause__, OSError):
            raise _broken(path, error.found or error.what) from error
        raise CertificateError(
            f"The compiled prefix {path} cannot be read.", expected=error.expected, found=error.found, fix=error.fix
        ) from error
    try:
        file = decoded(path, content, dtypes=DTYPES)
        manifest = _manifest(path, file.texts, file.tensors)
    except (BundleError, CertificateError) as error:
        schema = schema_of(path, content) or ""
        if schema.startswith("foreword.unfinished/"):
            raise CertificateError(
                f"{path} is the unfinished work of a compilation, not a compiled prefix.",
                expected="what `foreword compile` or save() of a compiled function wrote",
                found="a state that a compilation goes on from",
                fix="Give the command that was interrupted again: it goes on from there.",
            ) from error
        if not schema.startswith("foreword.bundle/"):
            raise _broken(path, error.found or error.what) from error
        raise CertificateError(
            f"{path} is a fitted prefix, not a compiled one: it has no certificate.",
            expected="what `foreword compile` or save() of a compiled function wrote",
            found="a bundle, as `foreword fit` and `foreword pilot` write it",
            fix="See what it is with `foreword inspect`, or read it with fw.load_bundle.",
        ) from error
    del content
    try:
        compiled = _decode(manifest, file.tensors)
    except CertificateError as error:
        raise _broken(path, error.found or error.what) from error
    except (ForewordError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise _broken(
            path, f"a manifest that does not fit its tensors ({type(error).__name__}: {error})"[:400]
        ) from error
    return compiled


def _manifest(path: Path, texts: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    try:
        manifest = parsed(texts[MANIFEST])
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise ValueError(f"not of schema {SCHEMA}")
        digest = content_digest(manifest, tensors)
    except (KeyError, ValueError, RecursionError) as error:
        raise _broken(path, f"a header without a readable manifest ({type(error).__name__}: {error})"[:400]) from error
    if digest != manifest.get("digest"):
        raise _broken(path, "contents that do not match the digest in the manifest: the file was changed")
    return manifest


def _decode(manifest: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> CompiledFile:
    """The parts from a manifest whose digest fits; any error that a wrong type makes."""
    told = dict(manifest)
    for name, kind in (("target", dict), ("domain", dict), ("chart", dict), ("tried", list), ("method", str)):
        if not isinstance(told[name], kind):
            raise TypeError(f"{name} is not of its type")
    if not isinstance(told["version"], str) or not all(isinstance(row, dict) for row in told["tried"]):
        raise TypeError("version or a row of tried is not of its type")
    cover = {name.removeprefix(COVER): array for name, array in tensors.items() if name.startswith(COVER)}
    is_table = told["domain"].get("kind") == "finite"
    known = {*HEAD, *(TABLE if is_table else ()), *(f"{COVER}{name}" for name in cover)}
    if set(tensors) - known:
        raise TypeError(f"tensor {sorted(set(tensors) - known)[0][:80]} belongs to nothing")
    domain = FiniteSet(tensors["points"]) if is_table else domain_from_dict(told["domain"])
    certificate = None if told["certificate"] is None else Certificate.from_dict(told["certificate"])
    if certificate is not None and is_table:
        certificate = replace(certificate, domain=domain.as_dict())
    return CompiledFile(
        head=Head(*(tensors[name].copy() for name in HEAD)),
        chart=chart_from_dict(told["chart"]),
        domain=domain,
        target=told["target"],
        method=told["method"],
        certificate=certificate,
        cover=Cover.from_arrays(cover) if cover else None,
        samples=tensors.get("samples"),
        tried=tuple(told["tried"]),
        version=told["version"],
    )


def _without_points(domain: dict[str, Any]) -> dict[str, Any]:
    """A table's points stand in a tensor, not in JSON."""
    return {key: value for key, value in domain.items() if key != "points"}


def _without_table(certificate: dict[str, Any]) -> dict[str, Any]:
    return {**certificate, "domain": _without_points(certificate["domain"])}


def _broken(path: Path, found: str) -> CertificateError:
    return CertificateError(
        f"{path} is not a whole compiled prefix.",
        expected=f"a safetensors file with a {SCHEMA} manifest, as it was written",
        found=found,
        fix="Copy it again from where it was made, or compile the target again.",
    )


def _misfit(expected: str, found: str) -> CertificateError:
    return CertificateError(
        "The parts of the compiled prefix do not fit together.",
        expected=expected,
        found=found,
        fix="Compile the target again.",
    )
