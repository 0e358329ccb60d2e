"""What a Python function is made of, as a digest: its code, and the numbers, arrays and functions that it refers to.

Two functions of one name that agree at thousands of points may differ between them, as two tables do that differ in one
entry; then they are made of other things. Modules, classes, and functions of other modules are told by their names.
"""

from __future__ import annotations

import hashlib
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

MOST = 100_000
"""Things that are looked at: a function that refers to more has no digest."""

PLAIN = (int, float, complex, str, bytes, type(None), type(Ellipsis), np.generic, np.dtype)
NAMED = (ModuleType, type, BuiltinFunctionType, np.ufunc)


def makeup_of(*functions: Any) -> str | None:
    """The digest, the same in another process of this Python; None where what they refer to does not end.

    >>> makeup_of(lambda x: x + 1) == makeup_of(lambda x: x + 1), makeup_of(lambda x: x + 1) == makeup_of(lambda x: x)
    (True, False)
    """
    look = _Look()
    try:
        for function in functions:
            look.at(function)
            if callable(function):
                look.at(type(function).__call__)  # of an object that is called as a function
    except (RecursionError, _EndlessError):
        return None
    return look.digest.hexdigest()


class _EndlessError(Exception):
    """More things than are looked at."""


class _Look:
    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}  # by id; the thing itself too, so that its id stays its own

    def at(self, thing: Any) -> None:
        """Add what a thing is made of to the digest; of one that was seen before, its number."""
        if isinstance(thing, PLAIN):
            self._say("plain", type(thing).__name__, repr(thing))
            return
        if id(thing) in self.seen:
            self._say("again", self.seen[id(thing)][0])
            return
        if len(self.seen) >= MOST:
            raise _EndlessError
        self.seen[id(thing)] = (len(self.seen), thing)
        self._say(type(thing).__qualname__)
        match thing:
            case np.ndarray() if thing.dtype.hasobject:
                self.at(thing.tolist())
            case np.ndarray():
                self._say(thing.dtype.str, thing.shape)
                self.digest.update(np.ascontiguousarray(thing).tobytes())
            case CodeType():
                self._say(thing.co_code.hex(), thing.co_names)
                self.at(thing.co_consts)
            case FunctionType():
                self._at_function(thing)
            case MethodType():
                self.at(thing.__func__)
                self.at(thing.__self__)
            case tuple() | list():
                self._say(len(thing))
                for entry in thing:
                    self.at(entry)
            case dict():
                self.at(list(thing.items()))
            case set() | frozenset():
                self._say(sorted(map(repr, thing)))
            case _ if isinstance(thing, NAMED):
                self._say(_name_of(thing))
            case _:
                self._at_state(thing)

    def _at_function(self, function: FunctionType) -> None:
        self.at(function.__code__)
        self.at(function.__defaults__)
        self.at(function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.at(cell.cell_contents)
            except ValueError:  # a name that has no value yet
                self._say("empty")
        for name in _names(function.__code__):
            if name in function.__globals__:
                found = function.__globals__[name]
                is_own = not isinstance(found, FunctionType) or found.__globals__ is function.__globals__
                self._say(name)
                self.at(found if is_own else _name_of(found))

    def _at_state(self, thing: Any) -> None:
        """An object by what a copy of it would be made from; one that cannot be copied by its class alone."""
        try:
            reduced = thing.__reduce_ex__(2)
        except Exception:  # noqa: BLE001 - whatever a foreign class raises
            self._say(_name_of(type(thing)))
            return
        self.at(reduced[1:3] if isinstance(reduced, tuple) else reduced)

    def _say(self, *words: object) -> None:
        self.digest.update(repr(words).encode())


def _name_of(thing: Any) -> str:
    return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', getattr(thing, '__name__', ''))}"


def _names(code: CodeType) -> list[str]:
    """The names that a function's code, and that of the functions within it, may mean globals by."""
    inner = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _names(constant)]
    return list(dict.fromkeys([*code.co_names, *inner]))
