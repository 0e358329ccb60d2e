"""As much of a text as one line of a message, a title or a table has room for."""

VALUE = 60  # characters of one value in a message


def excerpt(text: str, length: int = VALUE) -> str:
    """The text on one line, of at most so many characters, none of them a control character.

    >>> excerpt("sin(x)\\n+ cos(y)", 10)
    'sin(x) + …'
    """
    line = "".join(letter if letter.isprintable() else " " for letter in text[: length + 1])
    return line if len(line) <= length else line[: length - 1] + "…"
