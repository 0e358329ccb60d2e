"""Memory and latency: what is measured is what happened, warm-up and earlier memory left out."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable

import pytest

from foreword.tuning import measurement
from foreword.tuning.measurement import PeakMemory, measure_latency

MIB = 2**20


def _fresh(size: int) -> mmap.mmap:
    """So many bytes in use, of pages that the process did not have: an allocator may hand out what it kept."""
    held = mmap.mmap(-1, size)
    for _ in range(size // MIB):
        held.write(b"\1" * MIB)
    return held


def test_the_peak_holds_memory_that_is_in_use() -> None:
    with PeakMemory() as memory:
        held = _fresh(64 * MIB)
    # Up to a page table's worth is counted besides, and a page that was resident before may be given back.
    assert 60 * MIB <= memory.bytes < 160 * MIB
    assert len(held) == 64 * MIB


def test_the_peak_holds_memory_that_was_given_back_within_the_block() -> None:
    with PeakMemory() as memory:
        held = _fresh(96 * MIB)
        time.sleep(10 * measurement.SAMPLE_SECONDS)
        del held
    assert memory.bytes >= 90 * MIB


def test_memory_from_before_the_block_is_not_counted() -> None:
    held = _fresh(64 * MIB)
    with PeakMemory() as memory:
        time.sleep(2 * measurement.SAMPLE_SECONDS)
    assert 0 <= memory.bytes < 30 * MIB
    assert len(held) == 64 * MIB


def test_the_watching_ends_with_the_block() -> None:
    with pytest.raises(KeyboardInterrupt), PeakMemory() as memory:
        raise KeyboardInterrupt
    assert not memory._thread.is_alive()


class Clock:
    """A clock that only the timed functions move."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def takes(self, *milliseconds: float) -> Callable[[str], None]:
        """A function that takes these times in turn, the last of them again and again."""
        calls = iter(milliseconds)

        def work(_: str) -> None:
            self.now += next(calls, milliseconds[-1]) / 1000

        return work


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(measurement, "time", found)
    return found


def test_latency_is_the_median_and_the_first_call_is_not_counted(clock: Clock) -> None:
    found = measure_latency(clock.takes(900, 3, 5, 40), clock.takes(700, 1, 2, 9), ["a", "b", "c"])
    assert (found.rounds, found.latency_ms, found.bare_ms) == (3, pytest.approx(5), pytest.approx(2))


def test_what_is_added_is_the_median_of_the_differences(clock: Clock) -> None:
    # Differences 2, 3, -1, of which the median is 2; the difference of the medians would be 5 - 6 = -1.
    found = measure_latency(clock.takes(1, 3, 10, 5), clock.takes(1, 1, 7, 6), ["a", "b", "c"])
    assert found.added_ms == pytest.approx(2)


def test_every_text_is_asked_once_after_the_warm_up(clock: Clock) -> None:
    asked: list[str] = []
    measure_latency(asked.append, clock.takes(1), ["a", "b", "c", "d"])
    assert asked == ["a", "a", "b", "c", "d"]


@pytest.mark.parametrize(("seconds", "rounds"), [(4.0, 20), (0.1, 11), (0.0, 3)])
def test_it_ends_within_its_time_but_not_before_three_rounds(clock: Clock, seconds: float, rounds: int) -> None:
    # A round takes 10 ms. The time is looked at before a round, so the last one may end after it.
    found = measure_latency(clock.takes(6), clock.takes(4), ["a"] * 20, seconds=seconds + 1e-9)
    assert found.rounds == rounds


def test_fewer_texts_than_three_are_enough(clock: Clock) -> None:
    assert measure_latency(clock.takes(2), clock.takes(1), ["a"]).rounds == 1
