"""What a candidate costs the machine: peak memory while it works, and seconds from request to answer.

Memory is the process's resident set, sampled; on CUDA the allocator's own peak is added. Latency is measured on one
request at a time, in turn with the bare model, so that a busy machine slows both alike.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil
import torch

SAMPLE_SECONDS = 0.01


class PeakMemory:
    """The highest memory of this process within a `with` block, above that at its start, in bytes.

    Resident memory sampled every 10 ms plus CUDA's own peak. Memory that the allocator kept from before is not counted
    again, so a later candidate can look cheaper than it would alone: a lower bound.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._peak = self._start = 0
        self._cuda = 0

    def __enter__(self) -> Self:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            self._cuda = torch.cuda.memory_allocated()
        self._start = self._peak = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            self._look()
            self._stop.wait(SAMPLE_SECONDS)

    def _look(self) -> None:
        self._peak = max(self._peak, self._process.memory_info().rss)

    @property
    def bytes(self) -> int:
        self._look()
        on_cuda = torch.cuda.max_memory_allocated() - self._cuda if torch.cuda.is_available() else 0
        return self._peak - self._start + on_cuda


@dataclass(frozen=True)
class Latency:
    """Median milliseconds for one request: by the candidate, by the bare model in the same rounds, and the difference.

    `added_ms` is the median of the paired differences, not the difference of the medians.
    """

    latency_ms: float
    bare_ms: float
    added_ms: float
    rounds: int


def measure_latency(
    answer: Callable[[str], object],
    bare: Callable[[str], object],
    texts: Sequence[str],
    *,
    seconds: float = 4.0,
) -> Latency:
    """Time `answer` and `bare` in turn on the texts, one at a time, after a warm-up: each text once, within `seconds`.

    At least three rounds are timed however long they take.
    """
    answer(texts[0])
    bare(texts[0])
    mine: list[float] = []
    theirs: list[float] = []
    started = time.perf_counter()
    for text in texts:
        if len(mine) >= 3 and time.perf_counter() - started > seconds:
            break
        mine.append(_milliseconds(answer, text))
        theirs.append(_milliseconds(bare, text))
    added = statistics.median(a - b for a, b in zip(mine, theirs, strict=True))
    return Latency(statistics.median(mine), statistics.median(theirs), added, len(mine))


def _milliseconds(answer: Callable[[str], object], text: str) -> float:
    started = time.perf_counter()
    answer(text)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) * 1000
