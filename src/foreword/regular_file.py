"""Reading a file that anybody may have put there: a regular one, of bounded size, and no more than it held.

It knows nothing of what is in the file, and has no error of its own: whoever reads says what was expected.
"""

from __future__ import annotations

import stat
from pathlib import Path


def size_of(path: Path, most: int | None = None) -> int:
    """The bytes of a regular file. OSError when there is none; ValueError for another kind, or more than `most`."""
    known = path.stat()
    if not stat.S_ISREG(known.st_mode):  # a pipe would be waited for, a device never ends
        raise ValueError("a folder" if stat.S_ISDIR(known.st_mode) else "a pipe or device")
    if most is not None and known.st_size > most:
        raise ValueError(f"{known.st_size:,} bytes, of at most {most:,}")
    return known.st_size


def content_of(path: Path, most: int | None = None) -> bytes:
    """What is in a regular file; errors as `size_of`, before anything is read."""
    size = size_of(path, most)
    with path.open("rb") as file:
        return file.read(size)  # and no more, should it be growing


def found_in(error: Exception) -> str:
    """What an error in reading or writing says was found, without the path that its message names."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
