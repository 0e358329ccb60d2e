"""`foreword predict --bundle FILE`: apply a bundle to new inputs, from a file or stdin, one JSON line per answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import typer

from foreword.cli.paths import named

if TYPE_CHECKING:
    from foreword.bundle import Bundle
    from foreword.tuning.predictor import Predictor

CHUNK = 256
ANSWERED = ("output", "confidence")  # the fields that an answer adds to its line


def predict(
    bundle: Path = typer.Option(
        ..., "--bundle", help="The bundle that `foreword fit` or `foreword pilot` wrote (best.prefix)."
    ),
    source: str = typer.Option("-", "--input", help="JSONL file with the inputs, or - for stdin."),
    column: str = typer.Option("text", "--column", help="The field of each line that holds the input."),
    out: Path | None = typer.Option(
        None, "--out", parser=named, metavar="PATH", help="Write answers to this file instead of stdout."
    ),
    model: str | None = typer.Option(None, "--model", help="Base model, when it lies elsewhere than the bundle says."),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda or cuda:N."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bar."),
) -> None:
    """Answer each input with the prefix attached to its base model.

    Each line out is the line in with `output` (and, for labels, `confidence`) added. A line may also be one JSON text,
    in quotes. With --out all lines are read first, and all answers are written, or none; without it, those before a
    line that is wrong are.
    """
    from foreword.bundle import load_bundle
    from foreword.errors import ForewordError

    found = load_bundle(bundle)
    if out is not None:
        _refuse_to_replace(out, source, bundle)
    if _is_typed(source):
        typer.echo('one input a line, such as "a text in quotes"; Ctrl-D ends, then come the answers', err=True)
    rows = _rows(source, column)
    read = None if out is None else list(rows)  # a wrong line is told of before the work

    from transformers.utils import logging

    from foreword.engine.host import Host
    from foreword.tuning.predictor import predictor_from

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    predictor = predictor_from(found, Host.load(model or found.reference, dtype=_dtype(found), device=device))
    if out is not None and read is not None:
        _write_file(out, read, predictor, column, quiet=quiet)
    elif sys.stdout is None:
        raise ForewordError("There is no output to write to.", found="a closed stdout", fix="Name a file with --out.")
    else:
        for chunk in _chunks(rows):
            _write(chunk, predictor, sys.stdout.buffer, column)


def _refuse_to_replace(out: Path, source: str, bundle: Path) -> None:
    """ForewordError where the answers would take the place of what they are made from."""
    from foreword.errors import ForewordError

    kept = {"the bundle": bundle, **({} if source == "-" else {"the inputs": Path(source)})}
    for what, path in kept.items():
        if out.exists() and path.exists() and out.samefile(path):
            raise ForewordError(
                f"The answers would replace {what}.",
                expected=f"another file than {path}",
                found=f"--out {out}",
                fix="Name another file with --out.",
            )


def _is_typed(source: str) -> bool:
    """Whether the inputs come from somebody at a terminal, who would wait for a word as the command waits for them."""
    return source == "-" and sys.stdin is not None and sys.stdin.isatty()


def _dtype(bundle: Bundle) -> str:
    """The format of the weights that the bundle was made with, which its provenance tells when a pilot wrote it."""
    told: Any = bundle.provenance
    for name in ("settings", "task", "model", "dtype"):
        told = told.get(name) if isinstance(told, dict) else None
    return told if isinstance(told, str) else "float32"


def _write_file(out: Path, rows: list[dict[str, Any]], predictor: Predictor, column: str, *, quiet: bool) -> None:
    """All answers or no file: written beside `out` first."""
    import io

    from foreword.bundle import write_bytes_atomically
    from foreword.cli.bars import Bars

    buffer, done = io.BytesIO(), 0
    with Bars(quiet=quiet) as bars:
        for chunk in _chunks(rows):
            bars.watch("answering", done, len(rows), "")
            _write(chunk, predictor, buffer, column)
            done += len(chunk)
        bars.watch("answering", done, len(rows), "")
    write_bytes_atomically(out, buffer.getvalue())


def _write(chunk: list[dict[str, Any]], predictor: Predictor, stream: BinaryIO, column: str) -> None:
    for row, answer in zip(chunk, predictor.answer([row[column] for row in chunk]), strict=True):
        told: dict[str, Any] = {"output": answer.output}
        if answer.confidence is not None:
            told["confidence"] = round(answer.confidence, 6)
        stream.write(json.dumps({**row, **told}, ensure_ascii=False).encode() + b"\n")
    stream.flush()


def _chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """So many rows at a time; those before a row that cannot be read come before its error does."""
    from foreword.errors import DataError

    chunk: list[dict[str, Any]] = []
    try:
        for row in rows:
            chunk.append(row)
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
    except DataError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def _rows(source: str, column: str) -> Iterator[dict[str, Any]]:
    from foreword.errors import DataError
    from foreword.regular_file import found_in

    try:
        stream = sys.stdin.buffer if source == "-" else Path(source).open("rb")  # noqa: SIM115  closed below
    except (OSError, AttributeError) as error:  # AttributeError: stdin is closed, so there is none
        raise DataError(
            f"The input {source} cannot be read.",
            expected="a JSONL file, or - for stdin",
            found="a closed stdin" if isinstance(error, AttributeError) else found_in(error),
            fix="Check the path.",
        ) from error
    is_empty = True
    with stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                is_empty = False
                yield _row(number, line, column)
    if is_empty:
        raise DataError("The input is empty.", expected="one input a line", fix="Name the file that holds the inputs.")


def _row(number: int, line: bytes, column: str) -> dict[str, Any]:
    from foreword.errors import DataError
    from foreword.tuning.predictor import LONGEST_INPUT

    try:
        found = json.loads(line.decode("utf-8-sig"))
        row = {column: found} if isinstance(found, str) else found
        json.dumps(row, ensure_ascii=False).encode()  # ValueError for half a surrogate pair, which UTF-8 cannot write
        reason = _reason(row, column)
    except (ValueError, RecursionError) as error:
        reason = f"what is no JSON ({error})"
    if not reason and len(row[column]) <= LONGEST_INPUT:
        return dict(row)
    raise DataError(
        f"Line {number} of the input cannot be answered.",
        expected=f'JSON in UTF-8: an object with text in "{column}", or a text in quotes, of at most '
        f"{LONGEST_INPUT:,} characters",
        found=reason or f"{len(row[column]):,} characters",
        fix="Correct the line, put a bare text in quotes, or name the field with --column.",
    )


def _reason(row: object, column: str) -> str:
    """Why a line's value is not an input; "" when it is one."""
    if not isinstance(row, dict):
        return type(row).__name__
    if column not in row:
        return f"an object with {', '.join(list(row)[:10]) or 'nothing in it'}" + (", ..." if len(row) > 10 else "")
    if taken := [name for name in ANSWERED if name in row]:
        return f"{taken[0]!r} in the line, which the answer would replace: rename it"
    return "" if isinstance(row[column], str) else f"{type(row[column]).__name__} in {column!r}"
