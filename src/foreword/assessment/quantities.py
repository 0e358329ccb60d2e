"""Numbers for a reader: percent, points, money, bytes and times, each with its unit and an honest rounding.

It knows how a number is written, the same for page, picture and terminal. It deliberately knows no code, no sentence
and no language: `foreword.assessment.wording` puts the numbers into words. What is not known is a dash, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

UNKNOWN = "—"
MINUS = "\N{MINUS SIGN}"
NARROW = "\N{NARROW NO-BREAK SPACE}"


def percent(value: float | None, *, bound: Literal["low", "high"] | None = None) -> str:
    """A fraction as percent with one decimal; the bounds of an interval are rounded outward, so never too narrow.

    >>> percent(0.7049), percent(0.7049, bound="low"), percent(0.7041, bound="high"), percent(None)
    ('70.5%', '70.4%', '70.5%', '—')
    """
    return _signed(None if value is None else 100 * value, bound, "%", sign="")


def points(value: float | None, *, bound: Literal["low", "high"] | None = None) -> str:
    """A difference of two fractions in percentage points, with its sign.

    >>> points(0.0421), points(-0.0421, bound="low")
    ('+4.2', '−4.3')
    """
    return _signed(None if value is None else 100 * value, bound, "", sign="+")


def count(value: float | str | None) -> str:
    """A whole number with thousands separated; a text stays as it is."""
    if isinstance(value, str):
        return value
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:,.0f}".replace("-", MINUS)


def figure(value: float | None) -> str:
    """Any number in three significant digits or, from a thousand on, in whole ones: for what has no unit of its own."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return count(value) if abs(value) >= 1000 or value == int(value) else f"{value:.3g}".replace("-", MINUS)


def nats(value: float | None) -> str:
    """A change in nats, with its sign and three decimals.

    >>> nats(0.0503), nats(-1.2), nats(0.0), nats(None)
    ('+0.050', '−1.200', '0.000', '—')
    """
    return _signed(value, None, "", sign="+", digits=3)


def amount(value: float | None) -> str:
    """Money without its currency: whole from 100 on, two decimals from 1 on, two significant digits below.

    >>> amount(21600.4), amount(3.456), amount(0.00213), amount(0)
    ('21,600', '3.46', '0.0021', '0')
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    decimals = 0 if size >= 100 or size == 0 else 2 if size >= 1 else min(9, 1 - math.floor(math.log10(size)))
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def byte_size(value: float | None) -> str:
    """Bytes in the decimal unit that keeps the number below a thousand: `12.3 KB`."""
    return _scaled(value, (("B", 1.0), ("KB", 1e3), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)))


def duration(seconds: float | None) -> str:
    """A time span in the unit that a person would use: `8.4 s`, `3.2 min`, `1.5 h`."""
    return _scaled(seconds, (("s", 1.0), ("min", 60.0), ("h", 3600.0)))


def milliseconds(value: float | None, *, added: bool = False) -> str:
    """Milliseconds with one decimal below a hundred; `added` shows the sign."""
    digits = 1 if value is not None and abs(value) < 100 else 0
    return _signed(value, None, f"{NARROW}ms", sign="+" if added else "", digits=digits)


def months(value: float | None) -> str:
    """A number of months: `2.1 months`."""
    return UNKNOWN if value is None else f"{figure(round(value, 1))} month{'' if round(value, 1) == 1 else 's'}"


def printable(text: str, limit: int | None = None) -> str:
    """A text without control characters, and shortened in the middle to `limit` characters.

    Terminals obey control characters and SVG forbids them; names and labels come from the task's author.

    >>> printable("a" * 9 + chr(27) + "b" * 9, 9)
    'aaaa…bbbb'
    """
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    if limit is None or len(clean) <= limit:
        return clean
    head = limit // 2
    return f"{clean[:head]}…{clean[len(clean) - (limit - head - 1) :]}"


def _signed(value: float | None, bound: Literal["low", "high"] | None, unit: str, *, sign: str, digits: int = 1) -> str:
    if value is None or not math.isfinite(value):
        return UNKNOWN
    steps = value * 10**digits
    # A float such as 57.0 that lies a rounding error beside its decimal must not be pushed to the next one.
    whole = math.floor(steps + 1e-6) if bound == "low" else math.ceil(steps - 1e-6) if bound == "high" else round(steps)
    shown = f"{whole / 10**digits:{sign if whole else ''},.{digits}f}".replace("-", MINUS)
    return f"{shown}{unit}"


def _scaled(value: float | None, units: Sequence[tuple[str, float]]) -> str:
    if value is None or not math.isfinite(value):
        return UNKNOWN
    unit, size = next(((u, s) for u, s in reversed(units) if abs(value) >= s), units[0])
    scaled = value / size
    digits = 0 if abs(scaled) >= 100 or scaled == int(scaled) else 1 if abs(scaled) >= 1 else 2
    return f"{scaled:,.{digits}f}{NARROW}{unit}".replace("-", MINUS)
