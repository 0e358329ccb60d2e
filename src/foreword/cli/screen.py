"""A message as a terminal may show it: without control characters, and no longer than one screen."""

from __future__ import annotations

# What a message may take up: lines of a terminal, and characters of a line.
SCREEN_LINES, LONGEST_LINE = 24, 400


def on_one_screen(message: str) -> str:
    """The message cut to a screen. Its last line, which says what to do, is kept.

    >>> print(on_one_screen("The row is wrong.\\x1b[2J"))
    The row is wrong.�[2J
    """
    from foreword.assessment.quantities import printable

    lines = [printable(line, LONGEST_LINE) for line in message.split("\n")]
    if len(lines) > SCREEN_LINES:
        left_out = len(lines) - SCREEN_LINES + 1
        lines = [*lines[: SCREEN_LINES - 2], f"  … and {left_out} more lines", lines[-1]]
    return "\n".join(lines)
