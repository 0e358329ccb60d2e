"""Numbers say what they are: their unit, a rounding that claims no more than was found, a dash for the unknown."""

from __future__ import annotations

from typing import Any

import pytest

from foreword.assessment.quantities import (
    amount,
    byte_size,
    count,
    duration,
    figure,
    milliseconds,
    months,
    percent,
    points,
    printable,
)


def test_bounds_are_never_shown_narrower_than_they_are() -> None:
    for thousandth in range(0, 1001, 7):
        assert percent(thousandth / 1000, bound="low") == percent(thousandth / 1000, bound="high")
    assert (percent(0.69999, bound="low"), percent(0.69991, bound="high")) == ("69.9%", "70.0%")
    assert (points(-0.0001, bound="low"), points(-0.0001), points(0.0001, bound="high")) == ("−0.1", "0.0", "+0.1")


@pytest.mark.parametrize("show", [percent, points, count, figure, amount, byte_size])
def test_what_is_not_known_is_a_dash_and_never_zero(show: Any) -> None:
    assert {show(None), show(float("nan")), show(float("inf"))} == {"—"}


def test_units_fit_the_size_of_the_number() -> None:
    assert [s.replace("\N{NARROW NO-BREAK SPACE}", " ") for s in map(byte_size, (0, 999, 24_576, 3.2e9))] == [
        "0 B", "999 B", "24.6 KB", "3.2 GB",
    ]  # fmt: skip
    assert duration(143.8).endswith("min")
    assert milliseconds(-0.39, added=True).startswith("−0.4")
    assert amount(0.00213) == "0.0021"
    assert months(1.0) == "1 month"


def test_control_characters_do_not_reach_a_terminal() -> None:
    assert "\x1b" not in printable("\x1b[31mred\n")
