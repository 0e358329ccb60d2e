"""`foreword compile EXPRESSION`: from a function to a prefix, with a certificate."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from foreword.compiler.domain import Cube, Sphere

_SIDE = r"\[\s*([^,\[\]]+)\s*,\s*([^,\[\]]+)\s*\](?:\s*\^\s*(\d{1,2}))?"


def compile_expression(
    expression: str = typer.Argument(help='A function such as "sin(3*x)*exp(-y**2)", or a name of the catalogue.'),
    domain: str = typer.Option(..., "--domain", help='"[-1,1]^2", "[0,1]x[-2,2]" or "S2" (the sphere in 3-space).'),
    tolerance: float | None = typer.Option(
        None, "--tolerance", help="The error to stay below, in the function's unit."
    ),
    positions: int | None = typer.Option(None, "--positions", help="The prefix's length, instead of a tolerance."),
    lipschitz: float | None = typer.Option(None, "--lipschitz", help="A Lipschitz constant of the function."),
    method: str = typer.Option("auto", "--method", help="auto, adaptive, nearest or spectral."),
    value_limit: float = typer.Option(10.0, "--value-limit", help="The largest magnitude of a value."),
    seconds: float = typer.Option(60.0, "--seconds", help="Time limit of the proof."),
    out: Path = typer.Option(..., "--out", help="The file to write, such as f.prefix."),
    plot: list[Path] = typer.Option([], "--plot", help="A picture to write: .png, .svg or .pdf; may be repeated."),
) -> None:
    """Compile a function into a prefix for an attention head, and prove how far it is from the function.

    Exit code 0 when the tolerance is proved, 1 when it is not: the prefix is written either way.
    """
    from foreword.certificate import Verdict
    from foreword.cli.screen import on_one_screen
    from foreword.compiler.pipeline import compile_function

    check_pictures(plot)
    compiled = compile_function(
        expression,
        domain_from_text(domain),
        tolerance=tolerance,
        positions=positions,
        lipschitz=lipschitz,
        method=method,
        value_limit=value_limit,
        seconds=seconds,
    )
    compiled.save(out)
    for picture in plot:
        compiled.plot(picture)
    for row in compiled.tried:
        length = "no prefix" if row.positions is None else f"{row.positions} positions"
        typer.echo(on_one_screen(f"{row.method}: {length}, {row.verdict} {row.note}".rstrip()))
    proved = compiled.certificate
    if proved is None:
        return
    typer.echo(f"{out}: {compiled.positions} positions by {compiled.method}")
    typer.echo(f"verdict: {proved.verdict}; the error is between {proved.seen:.3g} and {proved.bound:.3g}")
    for name, term in proved.terms.items():
        typer.echo(f"  {name}: {term:.3g}")
    for assumption in proved.assumptions:
        typer.echo(on_one_screen(f"  assumed ({assumption.standing}): {assumption.text}"))
    if proved.remedy:
        typer.echo(on_one_screen(proved.remedy))
    if proved.verdict is not Verdict.PROVED:
        raise typer.Exit(1)


def check_pictures(paths: list[Path]) -> None:
    """PictureError, before any work, when one of the pictures could not be written."""
    if paths:
        from foreword.compiler.canvas import check_picture_path

        for path in paths:
            check_picture_path(path)


def domain_from_text(text: str) -> Cube | Sphere:
    """ "[-1,1]^2", "[0,1]x[-2,2]" or "S2"; CompileError for anything else."""
    from foreword.compiler.domain import Cube, Sphere
    from foreword.errors import CompileError

    told = text.strip()
    if (sphere := re.fullmatch(r"[sS]\^?(\d{1,3})", told)) is not None:
        return Sphere(int(sphere[1]))
    try:
        if re.fullmatch(rf"{_SIDE}(?:\s*[x×*]\s*{_SIDE})*", told) is None:
            raise ValueError(told)
        sides = [
            (float(low), float(high)) for low, high, power in re.findall(_SIDE, told) for _ in range(int(power or 1))
        ]
    except ValueError as error:
        raise CompileError(
            "The domain cannot be read.",
            expected='"[-1,1]^2", "[0,1]x[-2,2]" or "S2"',
            found=repr(text[:80]),
            fix="Write each side as [lower,upper].",
        ) from error
    return Cube(sides)
