"""What stands in the place of a module's forward while a prefix is attached.

It runs in every thread, and several attachments may need it at once and leave in any order: so it is put there once,
counts who needs it, and acts only for the handlers of the running code (`current.py`). A copy of the module, or a
pickle, has its own forward again. A hook would do the same, but for this: `torch.compile` traces a model again when a
hook that must run after a failed pass, too, is registered anew.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from functools import lru_cache
from types import MethodType
from typing import Any, TypeVar

from torch import nn

Key = tuple[nn.Module, type["StandIn"]]
T = TypeVar("T", bound="StandIn")

_lock = threading.Lock()
_standing: dict[Key, StandIn] = {}


class StandIn:
    """Called as `module.forward`; `forward` is what was there before. It acts for as long as it `stands` there."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.users = 0
        self.stands = False

    def take_place(self) -> None:
        """Become the module's forward."""
        self.own, self.forward = vars(self.module).get("forward"), self.module.forward
        self.signature = self.__signature__ = signature_of(self.module)
        code = getattr(self.forward, "__code__", None)
        if code is not None:
            self.__code__ = code  # torch.export names by it where a graph comes from
        self.module.forward = self
        self.stands = True

    def leave_place(self) -> bool:
        """Put back what was there; where somebody has put another forward before this one, that stays, and it is False.

        That forward calls this one for as long as it lives: so it can never take a place again.
        """
        self.stands = False
        if vars(self.module).get("forward") is not self:
            return False
        if self.own is None:
            del self.module.forward  # the instance's attribute; the class's forward is behind it
        else:
            self.module.forward = self.own
        return True

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.act(*arguments, **options) if self.stands else self.forward(*arguments, **options)

    def act(self, *arguments: Any, **options: Any) -> Any:
        """What happens in the place of the module's forward."""
        return self.forward(*arguments, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _as_it_was, (self.module, self.own)


@contextmanager
def standing(module: nn.Module, kind: type[T], kept: MutableMapping[Key, StandIn] | None = None) -> Iterator[T]:
    """Within this context a `kind` stands in for the module's forward: the one that is there, one of `kept`, or a new.

    `torch.compile` uses a graph only as long as the stand-in lives that it was traced with: so a host keeps them.
    """
    key, kept = (module, kind), {} if kept is None else kept
    with _lock:
        if key not in _standing:
            _standing[key] = kept.setdefault(key, kind(module))
            _standing[key].take_place()
        found: Any = _standing[key]
        found.users += 1
    try:
        yield found
    finally:
        with _lock:
            found.users -= 1
            if not found.users:
                del _standing[key]
                if not found.leave_place():
                    kept.pop(key, None)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that `torch.compile(model)` or PEFT's adapters were put around; any other one as it is."""
    whole: Any = model
    while True:
        inside = getattr(whole, "_orig_mod", None)
        if inside is None and hasattr(whole, "peft_config") and callable(getattr(whole, "get_base_model", None)):
            inside = whole.get_base_model()
        if not isinstance(inside, nn.Module) or inside is whole:
            return whole  # type: ignore[no-any-return]
        whole = inside


def signature_of(module: nn.Module) -> inspect.Signature:
    """The signature of the module's forward as it is called; a class's is read once, as reading takes long."""
    own = vars(module).get("forward")
    return _signature(type(module).forward) if own is None else inspect.signature(own)


@lru_cache(maxsize=256)
def _signature(function: Any) -> inspect.Signature:
    whole = inspect.signature(function)
    return whole.replace(parameters=list(whole.parameters.values())[1:])  # without self


def _as_it_was(module: nn.Module, own: Any) -> Any:
    return MethodType(type(module).forward, module) if own is None else own
