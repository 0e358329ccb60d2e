"""Traces a NumPy function to the expression that it computes, by calling it once with a stand-in for its array.

The stand-in (`traced.py`) has one row of symbols. The function runs as a copy, in which the NumPy of its module makes
stand-ins too, so that it may convert its argument and fill arrays of its own; nothing outside the copy is changed.
What cannot be written as a graph (a comparison that decides, a table look-up, a special function) gives None, never an
error: the function then stays a black box. A graph is a guess until it is compared with the function: `target.py` does
so, and drops it otherwise.
"""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import special

from foreword.compiler.arrays import Floats
from foreword.compiler.expression import Expression, expression_of
from foreword.compiler.shifts import without_shifts
from foreword.compiler.symbols import Symbol, Tape
from foreword.compiler.traced import Traced, unwrap

FEW = 256  # points at which formulas that are chosen between must meet
CONVERTERS = ("array", "asarray", "asanyarray", "ascontiguousarray")
MAKERS = (*CONVERTERS, "zeros", "ones", "empty", "full")


class StandInNumPy:
    """NumPy as a function under trace sees it: arrays that it makes of floats can hold symbols; the rest is NumPy."""

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        for name in MAKERS:
            make = self._converted if name in CONVERTERS else self._made
            setattr(self, name, partial(make, getattr(np, name)))

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def _converted(self, convert: Callable[..., Any], a: Any, dtype: Any = None, **options: Any) -> Any:
        found = convert(a.symbols if isinstance(a, Traced) else a)
        if found.dtype != object:
            return convert(a, dtype=dtype, **options)
        return Traced(found, self.tape).astype(np.float64 if dtype is None else dtype)

    def _made(self, make: Callable[..., Any], shape: Any, *rest: Any, **options: Any) -> Any:
        """A new array: floats, and a fill that is a symbol, can hold symbols; indices and masks stay NumPy's."""
        if rest and isinstance(rest[0], (Traced, Symbol)):
            return Traced(np.broadcast_to(unwrap(rest[0], self.tape), shape).copy(), self.tape)
        found = make(shape, *rest, **options)
        return Traced(found.astype(object), self.tape) if found.dtype == np.float64 else found


class StandInMath:
    """`math` as a function under trace sees it: NumPy's functions for symbols, its own for numbers."""

    def __getattr__(self, name: str) -> Any:
        plain = getattr(math, name)
        if not callable(plain):
            return plain
        of_symbols = getattr(np, {"pow": "power"}.get(name, name), None)

        def call(*numbers: Any) -> Any:
            has_symbols = any(isinstance(number, (Traced, Symbol)) for number in numbers)
            return of_symbols(*numbers) if of_symbols is not None and has_symbols else plain(*numbers)

        return call


class StandInSpecial:
    """`scipy.special` as a function under trace sees it: sums of exponentials are written out for symbols."""

    def __getattr__(self, name: str) -> Any:
        plain = getattr(special, name)
        written_out = SPECIAL.get(name)
        if written_out is None:
            return plain

        def call(a: Any, axis: Any = None, **options: Any) -> Any:
            return written_out(a, axis, **options) if isinstance(a, Traced) else plain(a, axis=axis, **options)

        return call


def _log_sum_exp(a: Traced, axis: int, *, b: Any = 1.0, keepdims: bool = False) -> Any:
    return np.log(np.sum(np.exp(a) * b, axis=operator.index(axis), keepdims=keepdims))


SPECIAL: dict[str, Callable[..., Any]] = {
    "logsumexp": _log_sum_exp,
    "log_softmax": lambda a, axis: a - _log_sum_exp(a, axis, keepdims=True),
    "softmax": lambda a, axis: np.exp(a) / np.sum(np.exp(a), axis=operator.index(axis), keepdims=True),
}


@dataclass(frozen=True)
class Trace:
    """What a function computes; `turns` are a column and a number for each condition in it that is on one column.

    There the function may have a value of its own, as where neither of x < 0 and x > 0 holds.
    """

    expression: Expression
    has_conditions: bool
    turns: tuple[tuple[int, float], ...]


def trace(
    function: Callable[[Any], Any], columns: int, points: Floats | None = None, box: Floats | None = None
) -> Trace | None:
    """The expression that `function` computes from an array `(batch, columns)`; None when it cannot be followed.

    The function is called once. Formulas that it chooses between must meet at the first of `points` `(batch, columns)`,
    by default some of [-1, 1]; coordinates lie in `box` `(columns, 2)`, if that is known. The caller compares what is
    found with the function, where its conditions turn too.

    >>> trace(lambda x: np.exp(-np.sum(x**2, axis=1)), 2).expression.text
    'exp(-(x**2 + y**2))'
    """
    anywhere = np.array([[-math.inf, math.inf]] * columns)
    few = np.random.default_rng(0).uniform(-1, 1, (FEW, columns)) if points is None else points[:FEW]
    tape = Tape(few, anywhere if box is None else box)
    symbols = np.empty((1, columns), dtype=object)
    for column in range(columns):
        symbols[0, column] = Symbol(tape.nodes("variable", value=column), tape)
    try:
        with np.errstate(all="ignore"):
            found = unwrap(_Copy(tape).of(function)(Traced(symbols, tape)), tape)
        if found.ndim > 2 or found.size == 0 or (found.ndim and len(found) != 1):
            return None
        outputs = [tape.output(element) for element in found.reshape(-1).tolist()]
        outputs = without_shifts(tape.nodes, outputs, tape.values)
    except Exception:  # noqa: BLE001 - the function is not ours: whatever it raises, it cannot be followed
        return None
    return Trace(expression_of(outputs, columns), tape.has_conditions, tuple(sorted(tape.turns)))


class _Copy:
    """Copies of a function, and of the functions beside it that it calls, that see the stand-in for NumPy."""

    def __init__(self, tape: Tape) -> None:
        self.numpy = StandInNumPy(tape)
        self.replaced = {id(getattr(np, name)): getattr(self.numpy, name) for name in MAKERS}
        in_special = StandInSpecial()
        self.replaced |= {id(getattr(special, name)): getattr(in_special, name) for name in SPECIAL}
        self.replaced |= {id(np): self.numpy, id(math): StandInMath(), id(special): in_special}
        self.functions: dict[int, Any] = {}
        self.modules: dict[int, dict[str, Any]] = {}

    def of(self, function: Any) -> Any:
        """The copy of a function, method, partial or callable object; anything else as it is."""
        if isinstance(function, types.MethodType):
            return types.MethodType(self.of(function.__func__), function.__self__)
        if isinstance(function, partial):
            return partial(self.of(function.func), *function.args, **function.keywords)
        if not isinstance(function, types.FunctionType) and isinstance(type(function).__call__, types.FunctionType):
            return types.MethodType(self._seen(type(function).__call__), function)
        return self._seen(function)

    def _seen(self, value: Any) -> Any:
        """What the copy sees in place of a value of the function's module or closure."""
        if id(value) in self.replaced:
            return self.replaced[id(value)]
        if not isinstance(value, types.FunctionType) or str(value.__module__).partition(".")[0] in ("numpy", "scipy"):
            return value
        if id(value) not in self.functions:
            cells = tuple(types.CellType() for _ in value.__closure__ or ())
            names = self._names(value.__globals__)
            copy = types.FunctionType(value.__code__, names, value.__name__, value.__defaults__, cells or None)
            copy.__kwdefaults__ = value.__kwdefaults__
            copy.__dict__.update(value.__dict__)
            self.functions[id(value)] = copy
            for cell, original in zip(cells, value.__closure__ or (), strict=True):
                cell.cell_contents = self._seen(original.cell_contents)
        return self.functions[id(value)]

    def _names(self, names: dict[str, Any]) -> dict[str, Any]:
        if id(names) not in self.modules:
            self.modules[id(names)] = copied = dict(names)
            for name, value in names.items():
                is_beside = isinstance(value, types.FunctionType) and value.__globals__ is names
                if is_beside or id(value) in self.replaced:
                    copied[name] = self._seen(value)
        return self.modules[id(names)]
