"""The verbs of the command `foreword`: one file each.

Nothing heavy is imported here, so that `foreword --help` answers at once.
"""

from __future__ import annotations

import inspect as inspection
from collections.abc import Callable
from typing import Any

import typer

from foreword.cli import compile as compiling
from foreword.cli import doctor, fit, foretell, init, inspect, pilot, predict, sign, verify
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
