"""Hooks that stand on a model while a prefix is attached: for one thread, and for one model.

A hook on a module runs in every thread, and goes along when the module is copied or pickled. These act only where
`is_active` says so, and leave one that does nothing in a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Hook:
    """Calls `run` where `is_active()`; None otherwise, as a hook that changes nothing gives."""

    run: Callable[..., Any]
    is_active: Callable[[], bool]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.run(*arguments, **options) if self.is_active() else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert, ()


def _inert() -> Callable[..., None]:
    return _nothing


def _nothing(*_: Any, **__: Any) -> None:
    pass
