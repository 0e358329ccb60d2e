"""Many rows in batches that fit into memory: a batch that does not is computed in halves.

It knows lengths, and the errors by which an allocation fails; it does not know what is computed. That a batch was
halved is told to whoever asked for it (`halving_told`), and is a Python warning where nobody did.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch

from foreword.errors import HostError

T = TypeVar("T")
_told: ContextVar[Callable[[str], None] | None] = ContextVar("foreword_halving_told", default=None)


@contextmanager
def halving_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Within this context `tell` is given a sentence for every batch that is halved; nobody else is."""
    token = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(token)


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Indices in batches of rows of like length, longest first, so that little is padding and memory peaks at once."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def in_batches(lengths: Sequence[int], size: int, computed: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Each batch of `batches` with what `computed` gives for its indices.

    `computed` may be called again for a part of the indices, so it must leave nothing behind when it fails. HostError
    when not even one row fits into memory.
    """
    waiting = list(batches(lengths, size))[::-1]
    while waiting:
        part, failed = waiting.pop(), None
        try:
            found = computed(part)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            failed = str(error)
        if failed is None:
            yield part, found
        else:  # no longer within `except`, whose traceback holds on to what was computed so far
            waiting += _halves(part, failed)[::-1]


def _halves(part: list[int], why: str) -> list[list[int]]:
    """The two halves of a batch that did not fit into memory, as `why` says. HostError when it was a single row."""
    if len(part) == 1:
        raise HostError(
            "Not even one text fits into memory.",
            expected="memory for one forward pass",
            found=why.splitlines()[0][:200],
            fix="Shorten the inputs (max_input_tokens), or use a smaller base model.",
        )
    text, tell = f"a batch of {len(part)} texts does not fit into memory: read in halves", _told.get()
    if tell is None:
        warnings.warn(text, RuntimeWarning, stacklevel=2)
    else:
        tell(text)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(part) // 2
    return [part[:middle], part[middle:]]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: CUDA has a class for it, the CPU's allocator a sentence."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
