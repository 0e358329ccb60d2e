"""`foreword compile EXPRESSION`: from a function to a prefix, with a certificate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

from foreword.cli.bars import Bars
from foreword.cli.paths import named
from foreword.cli.screen import on_one_screen

if TYPE_CHECKING:
    from foreword.compiler.attempts import Stage
    from foreword.compiler.compiled import CompiledFunction
    from foreword.compiler.domain import Cube, Sphere
    from foreword.compiler.target import Target

_SIDE = r"\[\s*([^,\[\]]+)\s*,\s*([^,\[\]]+)\s*\](?:\s*\^\s*(\d{1,2}))?"


class ExpressionCommand(TyperCommand):
    """A command whose argument may begin with a minus: "-x" is an expression here, and no option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with what can only be an expression behind "--"."""
        if "--" in args:
            return super().parse_args(ctx, args)
        takes_value = {
            name: not getattr(option, "is_flag", False)
            for option in self.get_params(ctx)
            for name in (*option.opts, *option.secondary_opts)
        }
        told: list[str] = []
        expressions: list[str] = []
        for before, argument in zip(["", *args], args, strict=False):
            is_value = takes_value.get(before, False)
            is_short = re.match("-[^-]", argument) is not None and argument not in takes_value
            (expressions if is_short and not is_value else told).append(argument)
        return super().parse_args(ctx, [*told, *(["--"] if expressions else []), *expressions])


def compile_expression(
    expression: str | None = typer.Argument(
        None, help='A function such as "sin(3*x)*exp(-y**2)", or a name of the catalogue.'
    ),
    domain: str | None = typer.Option(
        None, "--domain", help='"[-1,1]^2", "[0,1]x[-2,2]", or a sphere: "S1" (the circle), "S2", "S3".'
    ),
    samples: Path | None = typer.Option(
        None,
        "--samples",
        help="Instead of a function, a table: .csv (columns x0, x1, ..., y0, ...), .npz (x and y), .npy (y last).",
    ),
    tolerance: float | None = typer.Option(
        None, "--tolerance", help="The error to stay below, in the function's unit."
    ),
    positions: int | None = typer.Option(None, "--positions", help="The most positions, instead of a tolerance."),
    lipschitz: float | None = typer.Option(
        None, "--lipschitz", help="How steep the function is at most, if you know it."
    ),
    method: str = typer.Option("auto", "--method", help="auto, adaptive, nearest or spectral."),
    value_limit: float = typer.Option(
        10.0, "--value-limit", help="The largest magnitude of a value, or twice the function's own if that is larger."
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="Another seed gives another prefix."),
    seconds: float = typer.Option(
        60.0,
        "--seconds",
        min=0.0,
        help="Time limit of all proofs together, and of all drafts (of work: up to twice that by the clock).",
    ),
    certify: bool = typer.Option(True, "--certify/--no-certify", help="Without a proof nothing is claimed."),
    out: Path | None = typer.Option(
        None, "--out", parser=named, metavar="PATH", help="The file to write, such as f.prefix."
    ),
    plot: list[Path] = typer.Option([], "--plot", help="A picture to write: .png, .svg or .pdf; may be repeated."),
    fresh: bool = typer.Option(False, "--fresh", help="Discard what an unfinished run left beside --out."),
    as_json: bool = typer.Option(False, "--json", help="Print the result as JSON."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bars."),
    catalogue: bool = typer.Option(False, "--list", help="Print the built-in targets, one line each, and end."),
) -> None:
    """Compile a function into a prefix for an attention head, and prove how far it is from the function.

    Exit code 0 when the tolerance is proved (or no proof was asked for), 1 when it is not: the prefix is written either
    way. Ctrl-C, or time that is up, loses nothing: the state is kept in OUT.partial, and the same command goes on from
    there.
    """
    if catalogue:
        _show_catalogue(as_json=as_json)
        return
    target, where, file = _asked(expression, domain, samples, out)
    check_pictures(plot)
    _check_out(file, plot)
    partial = _partial_of(file)
    try:
        from foreword.compiler.pipeline import compile_function

        with Bars(quiet=quiet, in_percent=True) as bars:
            going_on = partial if partial.exists() and not fresh else None
            compiled = compile_function(
                target,
                where,
                tolerance=tolerance,
                positions=positions,
                lipschitz=lipschitz,
                method=method,
                value_limit=value_limit,
                seed=seed,
                seconds=seconds,
                certify=certify,
                progress=_watch(bars, going_on),
                resume=partial,
                fresh=fresh,
                save_to=file,
            )
        for picture in plot:
            compiled.plot(picture)
    except KeyboardInterrupt as error:
        kept = ": what was found is kept; the same command goes on from there" if partial.exists() else ""
        typer.echo(f"\ninterrupted{kept}.", err=True)
        raise typer.Exit(130) from error
    unfinished = partial if partial.exists() else None
    if as_json:
        typer.echo(json.dumps(_described(file, compiled, unfinished), indent=2))
    else:
        _report(file, compiled, unfinished)
    if certify and not _is_proved(compiled):
        raise typer.Exit(1)


def _asked(
    expression: str | None, domain: str | None, samples: Path | None, out: Path | None
) -> tuple[str | Target, Cube | Sphere | None, Path]:
    """What is to be compiled, where, and the file to write; CompileError unless all of it is there."""
    from foreword.compiler.samples import read_samples
    from foreword.errors import CompileError

    if out is None or (expression is None) == (samples is None) or (domain is None) != (expression is None):
        told = {"EXPRESSION": expression, "--domain": domain, "--samples": samples, "--out": out}
        given = [name for name, value in told.items() if value is not None]
        source = ["--samples"] if samples is not None else ["EXPRESSION", "--domain"]
        lacking = [name for name in (*source, "--out") if told[name] is None]
        raise CompileError(
            "What to compile is not clear.",
            expected="EXPRESSION --domain DOMAIN --out FILE, or --samples TABLE --out FILE",
            found=", ".join(given) + (f"; no {' or '.join(lacking)}" if lacking else "") if given else "none of these",
            fix='Say foreword compile "sin(3*x)" --domain "[-1,1]" --tolerance 1e-4 --out f.prefix, for example. A '
            "table's points are its domain. Built-in targets: foreword compile --list.",
        )
    if samples is not None:
        return read_samples(samples), None, out
    return str(expression), domain_from_text(str(domain)), out


def _check_out(out: Path, pictures: Sequence[Path]) -> None:
    """CompileError, before any work, when the file or that of unfinished work beside it could not be written."""
    from foreword.errors import CompileError
    from foreword.regular_file import found_in

    found, partial = "", _partial_of(out)
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    try:
        other = next((path for path in (out, partial) if path.exists() and not path.is_file()), None)
        if other is not None:
            found = f"{other}, {'a folder' if other.is_dir() else 'a pipe or device'}"
        elif any(picture.resolve() == path.resolve() for picture in pictures for path in (out, partial)):
            found = "a picture of the same name"
        else:  # permissions alone do not tell: the file system may be read-only, or the name too long
            with NamedTemporaryFile(dir=folder, prefix=f".{partial.name}.", suffix=".part"):
                pass
    except OSError as error:
        found = f"{folder}, which is no writable folder for that name: {found_in(error)}"
    if found:
        raise CompileError(
            f"{out if len(str(out)) < 200 else 'The file'} cannot be written.",
            expected="a file of its own in a writable folder",
            found=found,
            fix="Name another file with --out.",
        )


def _partial_of(out: Path) -> Path:
    """Where unfinished work is kept."""
    return out.parent / f"{out.name}.partial"


def _watch(bars: Bars, going_on: Path | None) -> Callable[[Stage], None]:
    """Progress as bars; the first stage also says that work in the file `going_on` was taken up."""

    def shown(stage: Stage) -> None:
        nonlocal going_on
        if going_on is not None:  # only now: unfinished work of another request is refused before any stage
            bars.say(f"going on from {going_on}")
            going_on = None
        note = "" if stage.positions is None else f"{stage.positions:,} positions"
        if stage.name == "proving":
            note = f"{stage.open:,} open, {stage.closed:,} closed, bound {stage.bound:.2g}"
            note += "" if stage.seconds_left is None else f", {stage.seconds_left:.0f} s left"
        bars.watch(f"{stage.name} {stage.method}", int(100 * stage.share), 100, note)

    return shown


def _is_proved(compiled: CompiledFunction) -> bool:
    from foreword.certificate import Verdict

    return compiled.certificate is not None and compiled.certificate.verdict is Verdict.PROVED


def _report(file: Path, compiled: CompiledFunction, unfinished: Path | None) -> None:
    for row in compiled.tried:
        outcome = "no prefix" if row.positions is None else f"{row.positions} positions, {row.verdict}"
        typer.echo(on_one_screen(f"{row.method}: {outcome}. {row.note}" if row.note else f"{row.method}: {outcome}"))
    typer.echo(f"{file}: {compiled.positions} positions by {compiled.method}")
    proved = compiled.certificate
    if proved is None:
        sampled = next(row.sampled for row in compiled.tried if row.method == compiled.method)
        typer.echo(f"no proof was asked for; the largest error at unseen points is {sampled:.3g}")
        return
    typer.echo(f"verdict: {proved.verdict}; the error is between {proved.seen:.3g} and {proved.bound:.3g}")
    for name, term in proved.terms.items():
        typer.echo(f"  {name}: {term:.3g}")
    for assumption in proved.assumptions:
        typer.echo(on_one_screen(f"  assumed ({assumption.standing}): {assumption.text}"))
    if proved.remedy:
        typer.echo(on_one_screen(proved.remedy))
    if unfinished is not None:
        typer.echo(f"{unfinished}: the unfinished proof; the same command goes on from there")


def _described(file: Path, compiled: CompiledFunction, unfinished: Path | None) -> dict[str, Any]:
    """The result as plain JSON values: everything but the numbers of prefix, cells and table."""
    claim = None if compiled.certificate is None else compiled.certificate.as_dict()
    domain = compiled.domain.as_dict()
    if "points" in domain:
        domain = {"kind": "finite", "count": len(domain["points"]), "columns": compiled.domain.columns}
    return {
        "file": str(file),
        "positions": compiled.positions,
        "method": compiled.method,
        "domain": domain,
        "certificate": None if claim is None else {**claim, "domain": domain},
        "tried": [row.as_dict() for row in compiled.tried],
        "unfinished": None if unfinished is None else str(unfinished),
    }


def _show_catalogue(*, as_json: bool) -> None:
    from foreword.cli.catalogue import as_lines, listed

    rows = listed()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for line in as_lines(rows):
        typer.echo(line)
    typer.echo("\nLipschitz constants are those for the fewest coordinates, but at least two.")


def check_pictures(paths: list[Path]) -> None:
    """PictureError, before any work, when one of the pictures could not be written."""
    if paths:
        from foreword.compiler.canvas import check_picture_path

        for path in paths:
            check_picture_path(path)


def domain_from_text(text: str) -> Cube | Sphere:
    """ "[-1,1]^2", "[0,2*pi]x[-2,2]" or "S2"; CompileError for anything else."""
    from foreword.compiler.domain import Cube, Sphere
    from foreword.errors import CompileError

    told = text.strip()
    if (sphere := re.fullmatch(r"[sS]\^?(\d{1,3})", told)) is not None:
        return Sphere(int(sphere[1]))
    try:
        if re.fullmatch(rf"{_SIDE}(?:\s*[x×*]\s*{_SIDE})*", told) is None:
            raise ValueError(told)
        sides = [
            (_number(low), _number(high))
            for low, high, power in re.findall(_SIDE, told)
            for _ in range(int(power or 1))
        ]
    except (CompileError, ValueError) as error:
        raise CompileError(
            "The domain cannot be read.",
            expected='"[-1,1]^2", "[0,2*pi]x[-2,2]" or "S2"',
            found=repr(text[:80]),
            fix="Write each side as [lower,upper].",
        ) from error
    return Cube(sides)


def _number(text: str) -> float:
    """A side's end: a number, or an expression of none such as 2*pi; CompileError for anything else."""
    import numpy as np

    from foreword.compiler.parser import parse_expression

    try:
        return float(text)
    except ValueError:
        return float(parse_expression(text, 0).evaluate(np.zeros((1, 0))).item())
