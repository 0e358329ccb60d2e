"""What a compilation has found so far, and its file, so that one that was interrupted goes on where it stopped.

Every piece of work has a name: a draft by its method and share of the tolerance, a proof by its draft. Compiling again
asks for the same pieces in the same order; those that are here are taken, a search that stopped goes on, and the result
is the one that an uninterrupted compilation gives. The file (`foreword.unfinished/1`, safetensors) says whose work it
is: target, domain, request, version, the target's values at some points, and what a function that hides what it
computes is made of, as what is proved of its values holds between those points too. Work of another request is refused.

A search is taken as it was written: whether the certificate that comes of it is true is the checker's to say, as ever.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from foreword.bundle import write_bytes_atomically
from foreword.certificate import Certificate
from foreword.compiler.arrays import Floats
from foreword.compiler.branching import Search
from foreword.compiler.charts import chart_from_dict
from foreword.compiler.construction.contract import Draft, Obstacle, Request
from foreword.compiler.cover import Cover
from foreword.compiler.domain import FiniteSet
from foreword.compiler.file import DTYPES
from foreword.compiler.head import Head
from foreword.compiler.makeup import makeup_of
from foreword.compiler.target import Target
from foreword.errors import CompileError, ForewordError
from foreword.excerpt import excerpt
from foreword.regular_file import found_in
from foreword.tensorfile import MANIFEST, content_digest, decoded, parsed, read_content
from foreword.version import __version__

SCHEMA = "foreword.unfinished/1"
PERIOD = 10.0  # seconds between two writes, or twenty times what one takes
COMPARED = 2_000  # points at which a target is told from another of the same description
AGREEMENT = 1e-9  # in units of the largest value: a batch of another size may sum in another order


@dataclass(frozen=True, eq=False)
class Identity:
    """Whose work it is: `told` are plain JSON values, `values` `(number,)` the target's at some points.

    `makeup` is what a target is made of that only its function tells; None where nothing can be said of that.
    """

    told: dict[str, Any]
    values: Floats
    makeup: str | None = None

    @classmethod
    def of(cls, target: Target, request: Request, *, method: str, seed: int) -> Identity:
        """The identity of one request; what may change between two runs (time limits) is no part of it."""
        points = target.domain.sample(COMPARED, np.random.default_rng(1))
        before = _makeup(target)
        told_of = [function(points) for function in (target.gradient, target.hessian) if function is not None]
        values = [np.asarray(found, dtype=np.float64).ravel() for found in (target.evaluate(points), *told_of)]
        domain = target.domain.as_dict()
        if isinstance(target.domain, FiniteSet):
            domain = {"kind": "finite", "points": _digest(target.domain.points)}
            values.append(target.evaluate(target.domain.points).ravel())
        told = {
            "version": __version__,
            "target": target.as_dict(),
            "domain": domain,
            "positions": request.positions,
            "tolerance": request.tolerance,
            "value_limit": request.value_limit,
            "method": method,
            "seed": seed,
        }
        is_same = before == _makeup(target)  # what a function counts or remembers from call to call says nothing of it
        return cls(json.loads(json.dumps(told)), np.concatenate(values), before if is_same else None)

    def differences(self, other: Identity) -> list[str]:
        """What the other one has otherwise, in words: of targets their names, where these tell them apart."""
        mine, theirs = (which.told.get("target") for which in (self, other))
        if isinstance(mine, dict) and isinstance(theirs, dict) and mine.get("name") != theirs.get("name"):
            me, it = (
                replace(which, told={**which.told, "target": told.get("name")})
                for which, told in ((self, mine), (other, theirs))
            )
            return me.differences(it)
        keys = [key for key in {**self.told, **other.told} if self.told.get(key) != other.told.get(key)]
        was, now = ({key: excerpt(json.dumps(which.told.get(key)), 120) for key in keys} for which in (other, self))
        found = [f"{key} {was[key]}, not {now[key]}" for key in keys]
        if not found and not _agree(self.values, other.values):
            found.append("a target of this name with other values")
        if not found and None not in (self.makeup, other.makeup) and self.makeup != other.makeup:
            found.append("a target of this name whose function has other code, or refers to other numbers")
        return found


@dataclass
class Unfinished:
    """The pieces of one compilation by name, whose they are, and the file that keeps them (None: they are not kept).

    `drafts` with the seconds that each took; `proofs` are finished ones, `searches` those that are not.
    """

    path: Path | None = None
    identity: Identity | None = None
    drafts: dict[str, tuple[Draft | Obstacle, float]] = field(default_factory=dict)
    proofs: dict[str, tuple[Certificate, Cover | None]] = field(default_factory=dict)
    searches: dict[str, Search] = field(default_factory=dict)
    due: float = field(default_factory=lambda: time.perf_counter() + PERIOD)

    @classmethod
    def at(cls, path: Path, identity: Identity, *, fresh: bool) -> Unfinished:
        """The work that is kept at `path`, or none yet; `fresh` discards it.

        CompileError when it is another request's, or cannot be read.
        """
        begun = cls(path, identity)
        if not path.exists():
            return begun
        if fresh:
            begun.discard()
            return begun
        found, kept = _read(path)
        different = identity.differences(found)
        if different:
            raise CompileError(
                f"{path} keeps the unfinished work of another request.",
                expected="the same target, domain, tolerance or positions, value limit, method, seed and version",
                found="; ".join(different[:4]),
                fix="Ask for the same again, name another output, or discard that work with --fresh (fresh=True).",
            )
        begun.drafts, begun.proofs, begun.searches = kept
        return begun

    def keep(self, name: str, search: Search) -> None:
        """Remember where a search stands; it is written now and then."""
        self.searches[name] = search
        self.write_if_due()

    def finish(self, name: str, certificate: Certificate, cover: Cover | None) -> None:
        """Remember a finished proof in place of its search."""
        self.proofs[name] = (certificate, cover)
        self.searches.pop(name, None)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Whatever interrupts the work within leaves it in the file, but for an error that would come again.

        After such an error there is nothing to go on with, and a corrected request would find the file in its way.
        """
        try:
            yield
        except CompileError:
            self.discard()
            raise
        except BaseException:
            self.write()
            raise

    def write_if_due(self) -> None:
        """Write the file when the last time was a while ago."""
        started = time.perf_counter()
        if self.path is not None and started >= self.due:
            self.write()
            now = time.perf_counter()
            self.due = now + max(PERIOD, 20 * (now - started))

    def write(self) -> None:
        """Write the file, if there is a path and anything to keep; BundleError when the folder cannot be written."""
        if self.path is not None and self.identity is not None and self.drafts:
            write_bytes_atomically(self.path, _content(self, self.identity))

    def discard(self) -> None:
        """Remove the file; CompileError when it cannot be removed."""
        try:
            if self.path is not None:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise CompileError(
                f"The unfinished work {self.path} cannot be removed.",
                expected="a file in a writable folder",
                found=found_in(error),
                fix="Remove it by hand.",
            ) from error


Pieces = tuple[
    dict[str, tuple[Draft | Obstacle, float]], dict[str, tuple[Certificate, Cover | None]], dict[str, Search]
]


def _content(work: Unfinished, identity: Identity) -> bytes:
    """The file's bytes."""
    tensors: dict[str, NDArray[Any]] = {"values": identity.values}
    drafts: list[dict[str, Any]] = []
    proofs: list[dict[str, Any]] = []
    for name, (outcome, seconds) in work.drafts.items():
        row: dict[str, Any] = {"name": name, "seconds": seconds}
        if isinstance(outcome, Obstacle):
            drafts.append({**row, "obstacle": asdict(outcome)})
            continue
        head = outcome.head
        tensors |= _placed(f"draft/{len(drafts)}", {"keys": head.keys, "biases": head.biases, "values": head.values})
        sampled = outcome.sampled if math.isfinite(outcome.sampled) else None
        told = {"method": outcome.method, "a_priori": outcome.a_priori, "sampled": sampled, "notes": outcome.notes}
        drafts.append({**row, **told, "chart": outcome.chart.as_dict()})
    for name, (certificate, cover) in work.proofs.items():
        tensors |= {} if cover is None else _placed(f"proof/{len(proofs)}", cover.arrays())
        proofs.append({"name": name, "certificate": certificate.as_dict()})
    for index, search in enumerate(work.searches.values()):
        tensors |= _placed(f"search/{index}", search.arrays())
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    manifest = {
        "schema": SCHEMA,
        "request": identity.told,
        "makeup": identity.makeup,
        "drafts": drafts,
        "proofs": proofs,
        "searches": list(work.searches),
    }
    manifest = parsed(json.dumps(manifest, allow_nan=False))
    text = json.dumps({**manifest, "digest": content_digest(manifest, tensors)}, ensure_ascii=False, allow_nan=False)
    return bytes(save(tensors, metadata={MANIFEST: text}))


def _read(path: Path) -> tuple[Identity, Pieces]:
    """Whose work the file keeps, and the work; CompileError when it is no whole file of this kind."""
    try:
        file = decoded(path, read_content(path), dtypes=DTYPES)
        manifest = parsed(file.texts[MANIFEST])
        if manifest["schema"] != SCHEMA or manifest["digest"] != content_digest(manifest, file.tensors):
            raise ValueError("contents that do not match their digest, or another format")
        identity = Identity(dict(manifest["request"]), np.array(file.tensors["values"]), manifest["makeup"])
        drafts = {
            str(row["name"]): (_draft(row, _within(file.tensors, f"draft/{index}")), float(row["seconds"]))
            for index, row in enumerate(manifest["drafts"])
        }
        proofs = {}
        for index, row in enumerate(manifest["proofs"]):
            cover = _within(file.tensors, f"proof/{index}")
            certificate = Certificate.from_dict(row["certificate"])
            proofs[str(row["name"])] = (certificate, Cover.from_arrays(cover) if cover else None)
        searches = {
            str(name): Search.from_arrays(_within(file.tensors, f"search/{index}"))
            for index, name in enumerate(manifest["searches"])
        }
    except (ForewordError, KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise CompileError(
            f"The unfinished work in {path} cannot be read.",
            expected=f"a file of schema {SCHEMA}, as it was written",
            found=f"{type(error).__name__}: {error}".splitlines()[0][:300],
            fix="Discard it with --fresh (fresh=True), or remove the file.",
        ) from error
    return identity, (drafts, proofs, searches)


def _draft(row: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Draft | Obstacle:
    if "obstacle" in row:
        return Obstacle(**row["obstacle"])
    head = Head(*(np.array(tensors[name], dtype=np.float64) for name in ("keys", "biases", "values")))
    sampled = math.inf if row["sampled"] is None else float(row["sampled"])
    return Draft(head, chart_from_dict(row["chart"]), str(row["method"]), row["a_priori"], sampled, dict(row["notes"]))


def _makeup(target: Target) -> str | None:
    """Of a target that is known by its function alone: of any other, an expression or a table says all."""
    if target.function is None or target.expression is not None:
        return None
    return makeup_of(target.function, target.gradient, target.hessian)


def _placed(place: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{place}/{name}": array for name, array in arrays.items()}


def _within(tensors: Mapping[str, NDArray[Any]], place: str) -> dict[str, NDArray[Any]]:
    return {
        name.removeprefix(f"{place}/"): array.copy() for name, array in tensors.items() if name.startswith(f"{place}/")
    }


def _agree(one: Floats, other: Floats) -> bool:
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=0, atol=AGREEMENT * np.abs(one).max()))


def _digest(array: Floats) -> str:
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).hexdigest()
