"""The command `foreword`: one file per verb, an expected error on one screen, exit code 2 for it.

Nothing heavy is imported here, so that `foreword --help` answers at once.
"""

from __future__ import annotations

import errno
import inspect as inspection
import io
import os
import sys
from collections.abc import Callable
from typing import Any

import typer

from foreword.cli import compile as compiling
from foreword.cli import doctor, fit, foretell, init, inspect, pilot, predict, sign, verify
from foreword.cli.screen import on_one_screen
from foreword.errors import ForewordError
from foreword.version import __version__

app = typer.Typer(
    name="foreword",
    help="Program a frozen pretrained transformer with a prefix, and know how far it can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    """Verbs on a task (init, foretell, fit, pilot), a bundle (predict, inspect, sign), a function (compile, verify)."""
    del version


def _help(verb: Callable[..., Any]) -> str:
    """A verb's docstring as its help: a paragraph is one line, which the terminal's width breaks and not ours."""
    paragraphs = (inspection.getdoc(verb) or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


_VERBS: dict[str, Callable[..., None]] = {
    "init": init.init,
    "pilot": pilot.pilot,
    "fit": fit.fit,
    "foretell": foretell.foretell,
    "predict": predict.predict,
    "inspect": inspect.inspect,
    "sign": sign.sign,
    "compile": compiling.compile_expression,
    "verify": verify.verify,
    "doctor": doctor.doctor,
}
for _name, _verb in _VERBS.items():
    _class = compiling.ExpressionCommand if _verb is compiling.compile_expression else None
    app.command(_name, cls=_class, help=_help(_verb))(_verb)


def run() -> None:
    """The entry point: an expected error ends with its message, on one screen, and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="foreword")
    except ForewordError as error:
        typer.echo(on_one_screen(f"error: {error}"), err=True)
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains of what is still in the buffer
        typer.echo("error: The output cannot be written.\n  found:    no space left on its disk", err=True)
        sys.exit(2)


if __name__ == "__main__":
    run()
