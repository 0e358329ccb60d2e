"""`foreword predict --bundle FILE`: apply a bundle to new inputs, from a file or stdin, one JSON line per answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import typer

CHUNK = 256


def predict(
    bundle: Path = typer.Option(..., "--bundle", help="The bundle that `foreword pilot` wrote (best.prefix)."),
    source: str = typer.Option("-", "--input", help="JSONL file with the inputs, or - for stdin."),
    column: str = typer.Option("text", "--column", help="The field of each line that holds the input."),
    out: Path | None = typer.Option(None, "--out", help="Write answers to this file instead of stdout."),
    model: str | None = typer.Option(None, "--model", help="Base model, when it lies elsewhere than the bundle says."),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda or cuda:N."),
) -> None:
    """Answer each input with the prefix attached to its base model.

    Each line out is the line in with `output` (and, for labels, `confidence`) added. A line may also be a bare text.
    """
    from foreword.bundle import load_bundle

    found = load_bundle(bundle)

    from transformers.utils import logging

    from foreword.engine.host import Host
    from foreword.tuning.predictor import predictor_from

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    told = found.provenance.get("settings", {}).get("task", {}).get("model", {})
    host = Host.load(model or found.reference, dtype=told.get("dtype", "float32"), device=device)
    predictor = predictor_from(found, host)
    if out is None:
        for chunk in _chunks(source, column):
            _write(chunk, predictor, sys.stdout, column)
    else:
        _write_file(out, source, column, predictor)


def _write_file(out: Path, source: str, column: str, predictor: Any) -> None:
    """All answers or no file: written beside `out` first."""
    import io

    from foreword.bundle import write_bytes_atomically

    buffer = io.StringIO()
    for chunk in _chunks(source, column):
        _write(chunk, predictor, buffer, column)
    write_bytes_atomically(out, buffer.getvalue().encode("utf-8"))


def _write(chunk: list[dict[str, Any]], predictor: Any, stream: TextIO, column: str) -> None:
    for row, answer in zip(chunk, predictor.answer([row[column] for row in chunk]), strict=True):
        told = {"output": answer.output}
        if answer.confidence is not None:
            told["confidence"] = round(answer.confidence, 6)
        stream.write(json.dumps({**row, **told}, ensure_ascii=False) + "\n")
    stream.flush()


def _chunks(source: str, column: str) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for row in _rows(source, column):
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _rows(source: str, column: str) -> Iterator[dict[str, Any]]:
    from foreword.errors import DataError

    try:
        stream = sys.stdin.buffer if source == "-" else Path(source).open("rb")  # noqa: SIM115  closed below
    except OSError as error:
        raise DataError(
            f"The input {source} cannot be read.",
            expected="a JSONL file, or - for stdin",
            found=error.strerror or str(error),
            fix="Check the path.",
        ) from error
    with stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _row(number, line, column)


def _row(number: int, line: bytes, column: str) -> dict[str, Any]:
    from foreword.errors import DataError

    found: object = None
    try:
        found = json.loads(line.decode("utf-8-sig"))
        reason = "" if isinstance(found, str | dict) else type(found).__name__
    except (ValueError, RecursionError) as error:
        reason = str(error)
    if isinstance(found, str):
        return {column: found}
    if isinstance(found, dict) and isinstance(found.get(column), str):
        return found
    raise DataError(
        f"Line {number} of the input is not an input.",
        expected=f'UTF-8 JSON: an object with text in "{column}", or a text in quotes',
        found=reason or f"fields {', '.join(map(str, found)) if isinstance(found, dict) else found}",
        fix="Correct the line, or name the field with --column.",
    )
