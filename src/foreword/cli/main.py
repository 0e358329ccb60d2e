"""The command `foreword`: an expected error on one screen, exit code 2 for it; 130 for Ctrl-C, from the first moment.

SIGTERM, which a time limit or a container that stops sends, is met as Ctrl-C is: what was found is kept.

Nothing is imported here but Python's own: what takes time is imported where Ctrl-C is met.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys

INTERRUPTED = 130


def run() -> None:
    """The entry point: an expected error ends with its message, on one screen, and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a character is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        from foreword.cli.application import app
        from foreword.cli.screen import on_one_screen
        from foreword.errors import ForewordError
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    try:
        app(prog_name="foreword")
    except ForewordError as error:
        _tell(on_one_screen(f"error: {error}"))
        sys.exit(2)
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # else Python complains of what is still in the buffer
        _tell("error: The output cannot be written.\n  found:    no space left on its disk")
        sys.exit(2)


def _tell(text: str) -> None:
    import typer

    typer.echo(text, err=True)


if __name__ == "__main__":
    run()
