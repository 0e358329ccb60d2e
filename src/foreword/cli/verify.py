"""`foreword verify FILE`: check a compiled prefix's certificate with code that shares nothing with the search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli.bars import Bars
from foreword.cli.screen import on_one_screen

if TYPE_CHECKING:
    from foreword.compiler.checker import CheckResult
    from foreword.compiler.compiled import CompiledFunction

MARKS = {True: "holds", False: "WRONG", None: "not checked"}


def verify(
    file: Path = typer.Argument(help="What `foreword compile` wrote."),
    seconds: float = typer.Option(600.0, "--seconds", min=0.0, help="Time limit of the check."),
    plot: list[Path] = typer.Option(
        [], "--plot", help="A picture to write of a claim that holds: .png, .svg or .pdf; may be repeated."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print what was checked as JSON."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bar."),
) -> None:
    """Recompute a certificate's claim in rigorous arithmetic of its own, and say of each part of it whether it holds.

    Exit code 0 when the claim is proved again, 1 when it is not, 2 when the file is damaged, was changed, or cannot be
    read.
    """
    from foreword.certificate import Verdict
    from foreword.cli.compile import check_pictures

    check_pictures(plot)
    try:
        from foreword.compiler.compiled import load_compiled

        compiled = load_compiled(file)
        with Bars(quiet=quiet, in_percent=True) as bars:
            found = compiled.verify(
                seconds=seconds, progress=lambda share: bars.watch("checking", int(100 * share), 100, "")
            )
        if as_json:
            typer.echo(json.dumps(_described(file, compiled, found), indent=2))
        else:
            _report(compiled, found)
        if found.verdict is not Verdict.PROVED:
            raise typer.Exit(1)
        for picture in plot:
            compiled.plot(picture)
    except KeyboardInterrupt as error:
        typer.echo("\ninterrupted: nothing is shown.", err=True)
        raise typer.Exit(130) from error


def _report(compiled: CompiledFunction, found: CheckResult) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    claim = compiled.certificate
    if claim is not None:
        typer.echo(f"claim: the error is at most {claim.bound:.3g}, with {compiled.positions} positions")
    if found.lines:
        table = Table("part", "the certificate says", "found", "", box=SIMPLE_HEAD)
        for line in found.lines:
            cells = (line.what, line.told, line.found, MARKS[line.holds])
            table.add_row(*(Text(on_one_screen(cell)) for cell in cells))
        Console().print(table)
    typer.echo(f"checked: {found.verdict} ({found.cells} cells, {found.seconds:.1f} s)")
    for reason in found.reasons:
        typer.echo(on_one_screen(reason))
    for premise in () if claim is None else claim.assumptions:
        typer.echo(on_one_screen(f"  rests on ({premise.standing}): {premise.text}"))


def _described(file: Path, compiled: CompiledFunction, found: CheckResult) -> dict[str, Any]:
    """The check as plain JSON values."""
    claim = compiled.certificate
    return {
        "file": str(file),
        "verdict": str(found.verdict),
        "reasons": list(found.reasons),
        "checked": [dict(vars(line)) for line in found.lines],
        "cells": found.cells,
        "seconds": found.seconds,
        "bound": None if claim is None else claim.as_dict()["bound"],
        "tolerance": None if claim is None else claim.tolerance,
        "positions": compiled.positions,
        "assumptions": [] if claim is None else [dict(vars(premise)) for premise in claim.assumptions],
    }
