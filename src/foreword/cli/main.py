"""The command `foreword`: one file per verb, an expected error on one screen, exit code 2 for it.

Nothing heavy is imported here, so that `foreword --help` answers at once.
"""

from __future__ import annotations

import sys

import typer

from foreword.cli import doctor, init, inspect, pilot, predict
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
    """Verbs work on a task file (init, pilot) or on a bundle (predict, inspect)."""
    del version


app.command("init")(init.init)
app.command("pilot")(pilot.pilot)
app.command("predict")(predict.predict)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)


def run() -> None:
    """The entry point: expected errors end with their message and exit code 2, an interruption with 130."""
    try:
        app()
    except ForewordError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted: what was finished is kept; the same command goes on from there.", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        sys.exit(0)


if __name__ == "__main__":
    run()
