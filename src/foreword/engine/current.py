"""Which handlers the attention calls of the running code reach, told so that a compiled graph notices a change.

They are kept in a context variable: another thread has none of them, nor has a task that was started before them.
`torch.compile` can neither trace a context variable nor notice that it has changed. But it can read an attribute of a
module, and before it uses a graph again it reads the attribute again and compares what the graph relies on. So the
handlers are told as `current.handlers`, an attribute that is looked up anew each time it is read (`__getattr__` of a
module, PEP 562), and a graph that was traced under one prefix is never used where there is another or none.

Read it as `current.handlers`, never by `from ... import handlers`, which would keep what was there at the import.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

# As they were given, outermost first.
handlers: tuple[Any, ...]


@dataclass(eq=False)
class _Entry:
    """One `entered` context: its handler, whether it shuts out those around it, and whether it was left."""

    handler: Any
    alone: bool
    is_open: bool = True


# Outermost first. Contexts may be left in another order than entered, or in another thread: only `is_open` then counts.
_entries: ContextVar[tuple[_Entry, ...]] = ContextVar("foreword_attention_entries", default=())


def __getattr__(name: str) -> tuple[Any, ...]:
    if name != "handlers":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found: tuple[Any, ...] = ()
    for entry in _entries.get():
        if entry.is_open:
            found = (entry.handler,) if entry.alone else (*found, entry.handler)
    return found


@contextmanager
def entered(handler: Any, *, alone: bool) -> Iterator[None]:
    """Within this context `handler` is the innermost of the handlers; with `alone` the only one."""
    entry = _Entry(handler, alone)
    _entries.set((*_entries.get(), entry))
    try:
        yield
    finally:
        entry.is_open = False
        _entries.set(tuple(entry for entry in _entries.get() if entry.is_open))
