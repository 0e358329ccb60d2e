"""`foreword verify FILE`: check a compiled prefix's certificate with code that shares nothing with the search."""

from __future__ import annotations

from pathlib import Path

import typer


def verify(
    file: Path = typer.Argument(help="What `foreword compile` wrote."),
    seconds: float = typer.Option(600.0, "--seconds", help="Time limit of the check."),
    plot: list[Path] = typer.Option(
        [], "--plot", help="A picture to write of a claim that holds: .png, .svg or .pdf; may be repeated."
    ),
) -> None:
    """Recompute a certificate's claim in ball arithmetic. Exit code 0 when it holds, 1 otherwise.

    A damaged or changed file is refused.
    """
    from foreword.certificate import Verdict
    from foreword.cli.compile import check_pictures
    from foreword.cli.screen import on_one_screen
    from foreword.compiler.pipeline import load_compiled

    check_pictures(plot)
    compiled = load_compiled(file)
    found = compiled.verify(seconds=seconds)
    claim = compiled.certificate
    if claim is not None:
        typer.echo(f"claim: the error is at most {claim.bound:.3g}, with {compiled.positions} positions")
    typer.echo(f"checked: {found.verdict} ({found.cells} cells, {found.seconds:.1f} s)")
    for reason in found.reasons:
        typer.echo(on_one_screen(reason))
    if found.verdict is not Verdict.PROVED:
        raise typer.Exit(1)
    for picture in plot:
        compiled.plot(picture)
