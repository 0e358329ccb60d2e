"""A message as a terminal may show it: without control characters, and no longer than one screen."""

from __future__ import annotations

# What a message may take up: rows of a terminal of so many columns, and characters of one line of it.
SCREEN_ROWS, COLUMNS, LONGEST_LINE = 24, 80, 400


def on_one_screen(message: str) -> str:
    """The message cut to a screen. Its last line, which says what to do, is kept.

    >>> print(on_one_screen("The row is wrong.\\x1b[2J"))
    The row is wrong.�[2J
    """
    from foreword.assessment.quantities import printable

    *lines, last = (printable(line, LONGEST_LINE) for line in message.split("\n"))
    room = SCREEN_ROWS - _rows(last)
    if sum(map(_rows, lines)) > room:
        kept, room = list[str](), room - 1
        for line in lines:
            room -= _rows(line)
            if room < 0:
                break
            kept.append(line)
        lines = [*kept, f"  … and {len(lines) - len(kept)} more lines"]
    return "\n".join([*lines, last])


def _rows(line: str) -> int:
    """Rows of a terminal that a line takes; an empty one takes one as well."""
    return max(1, -(-len(line) // COLUMNS))
