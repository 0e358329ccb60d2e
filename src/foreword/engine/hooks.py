"""Hooks that stand on a model while a prefix is attached, and leave one that does nothing in a copy of the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Hook:
    """Calls `run`; in a copy or a pickle of its module there is a function in its place that changes nothing."""

    run: Callable[..., Any]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.run(*arguments, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert, ()


def _inert() -> Callable[..., None]:
    return _nothing


def _nothing(*_: Any, **__: Any) -> None:
    pass
