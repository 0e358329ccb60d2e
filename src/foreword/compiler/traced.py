"""The array of a function under trace: NumPy itself indexes, stacks and sums it, and each operation leaves a node.

Its elements are symbols and numbers in an array of objects, so shapes and broadcasting are NumPy's own. What this
module adds is what NumPy cannot do with objects: its elementary functions, maxima, choices and norms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import NDArray

from foreword.arrays import is_real
from foreword.compiler.choices import Condition
from foreword.compiler.elementary import UntraceableError
from foreword.compiler.symbols import TRUTHS, Symbol, Tape

Symbols = NDArray[np.object_]

SHAPING = frozenset(
    """append array_split atleast_1d atleast_2d atleast_3d block broadcast_arrays broadcast_to column_stack concatenate
    copy delete diag diagonal dstack expand_dims flip fliplr flipud hsplit hstack insert matrix_transpose moveaxis
    permute_dims ravel real repeat reshape roll rollaxis rot90 split squeeze stack swapaxes take take_along_axis tile
    transpose unstack vsplit vstack""".split()  # noqa: SIM905 - forty words
)
SUMMING = frozenset(
    """average convolve correlate cross cumprod cumsum diff dot einsum inner kron mean outer polyval polyval2d polyval3d
    prod sum tensordot trace trapezoid vdot""".split()  # noqa: SIM905
)
METHODS = frozenset(
    """all any clip copy cumprod cumsum diagonal dot max mean min prod ravel repeat squeeze std sum swapaxes take trace
    var""".split()  # noqa: SIM905
)
WRITTEN_OUT = 4  # rows of a matrix at most, whose determinant is a formula
SORTED = 8  # numbers at most: beyond, the graph of all comparisons is too large for a proof


class Traced(NDArrayOperatorsMixin):
    """Stands for an array `(batch, ...)` of float64 in a function; `symbols` has its shape, with one row."""

    def __init__(self, symbols: Any, tape: Tape) -> None:
        if isinstance(symbols, (Symbol, Condition)):
            held = np.empty((), dtype=object)
            held[()] = symbols
            symbols = held
        self.symbols: Symbols = np.asarray(symbols)
        self.tape = tape

    shape = property(lambda self: self.symbols.shape)
    ndim = property(lambda self: self.symbols.ndim)
    size = property(lambda self: self.symbols.size)
    dtype = np.dtype(np.float64)
    T = property(lambda self: Traced(self.symbols.T, self.tape))

    def __len__(self) -> int:
        return len(self.symbols)

    def __iter__(self) -> Iterator[Traced]:
        return (self[index] for index in range(len(self)))

    def __bool__(self) -> bool:
        raise UntraceableError("a decision that depends on the values")

    def __float__(self) -> float:
        raise UntraceableError("a number in place of a symbol")

    def __getitem__(self, index: Any) -> Traced:
        mask, rest = _mask_of(index)
        if mask is not None:  # what is computed for some rows is computed for all; `where` chooses
            return Traced(self.symbols[rest].copy(), self.tape)
        return Traced(self.symbols[self._plain(index)], self.tape)

    def __setitem__(self, index: Any, value: Any) -> None:
        mask, rest = _mask_of(index)
        if mask is not None:
            held = self.symbols[rest]
            spread = mask.symbols.reshape(mask.shape + (1,) * (held.ndim - mask.ndim))
            held[...] = _where(self.tape, spread, value, Traced(held, self.tape)).symbols
        else:
            self.symbols[self._plain(index)] = unwrap(value, self.tape)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in METHODS:
            raise AttributeError(name)
        return partial(getattr(np, name), self)

    def astype(self, dtype: Any, **_: Any) -> Traced:
        if np.dtype(dtype) != np.float64:
            raise UntraceableError(f"a conversion to {dtype}")
        return Traced(np.frompyfunc(self.tape.number, 1, 1)(self.symbols), self.tape)

    def reshape(self, *shape: Any, **options: Any) -> Traced:
        return Traced(self.symbols.reshape(*shape, **options), self.tape)

    def transpose(self, *axes: Any) -> Traced:
        return Traced(self.symbols.transpose(*axes), self.tape)

    def flatten(self) -> Traced:
        return Traced(self.symbols.flatten(), self.tape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found: NDArray[Any] = self.symbols if dtype is None else self.symbols.astype(dtype)
        return found

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = None, **options: Any) -> Any:
        name = {"true_divide": "divide"}.get(ufunc.__name__, ufunc.__name__)
        operands = [unwrap(operand, self.tape) for operand in inputs]
        if ufunc.signature is not None and method == "__call__":  # matmul and the like: NumPy multiplies the symbols
            found = ufunc(*operands, **options)
        elif method == "__call__":
            where = options.pop("where", True)
            if set(options) - {"dtype", "casting"} or (where is not True and out is None):
                raise UntraceableError(f"options of {name}")
            found = np.frompyfunc(partial(self.tape.apply, name), len(operands), 1)(*operands)
            found = found if where is True else _where(self.tape, where, found, out[0]).symbols
        elif method in ("reduce", "accumulate") and name in ("add", "multiply"):
            found = getattr(ufunc, method)(*operands, **options)
        elif method == "reduce" and name in ("maximum", "minimum", "logical_and", "logical_or", "logaddexp", "hypot"):
            found = _along_axis(self.tape, name, operands[0], *operands[1:], **options)
        else:
            raise UntraceableError(f"{name}.{method}")
        return self._stored(found, out)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        own = OWN.get(function)
        if own is not None:
            return own(self.tape, *args, **kwargs)
        if function.__name__ not in SHAPING and function.__name__ not in SUMMING:
            raise UntraceableError(f"the function {function.__name__}")
        options = {name: _unwrap_nested(value, self.tape) for name, value in kwargs.items() if name != "out"}
        found = function(*[_unwrap_nested(value, self.tape) for value in args], **options)
        if isinstance(found, (list, tuple)):
            return type(found)(Traced(part, self.tape) for part in found)
        return self._stored(found, kwargs.get("out"))

    def _stored(self, found: Any, out: Any) -> Any:
        """The result, written into `out` too if that is a stand-in; `plain += x` binds its name to the result."""
        result = Traced(found, self.tape)
        out = out[0] if isinstance(out, tuple) else out
        if isinstance(out, Traced):
            out.symbols[...] = result.symbols
            return out
        return result

    def _plain(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        if any(isinstance(part, (Traced, Symbol)) for part in parts):
            raise UntraceableError("an index that depends on the values")
        return index


def _mask_of(index: Any) -> tuple[Traced | None, tuple[Any, ...]]:
    """The conditions that an index chooses rows by, if it does, and the index without them: `[m]`, `[m, 0]`."""
    mask, *rest = index if isinstance(index, tuple) and index else (index,)
    is_mask = isinstance(mask, Traced) and mask.size > 0 and all(isinstance(x, TRUTHS) for x in mask.symbols.flat)
    if not is_mask or (rest and (mask.ndim != 1 or not all(isinstance(part, (int, slice)) for part in rest))):
        return None, ()
    return mask, (slice(None), *rest) if rest else (...,)


def unwrap(operand: Any, tape: Tape) -> Symbols:
    """An operand as an array of symbols and numbers."""
    found = operand if isinstance(operand, Traced) else Traced(operand, tape)
    return found.symbols.astype(object, copy=False)


def _unwrap_nested(value: Any, tape: Tape) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_unwrap_nested(part, tape) for part in value)
    is_operand = isinstance(value, Traced) or (isinstance(value, np.ndarray) and value.dtype == np.float64)
    return unwrap(value, tape) if is_operand else value


def _along_axis(tape: Tape, name: str, symbols: Symbols, axis: Any = 0, dtype: Any = None, **options: Any) -> Any:
    if axis is None or isinstance(axis, tuple) or dtype is not None or set(options) - {"keepdims"}:
        raise UntraceableError(f"{name} over several axes")
    found = np.frompyfunc(partial(tape.apply, name), 2, 1).reduce(symbols, axis=axis)
    return np.expand_dims(found, axis) if options.get("keepdims") else found


def _extreme(name: str, tape: Tape, a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> Traced:
    if out is not None:
        raise UntraceableError("an output")
    return Traced(_along_axis(tape, name, unwrap(a, tape), axis, keepdims=keepdims is True), tape)


def _where(tape: Tape, condition: Any, *branches: Any) -> Traced:
    parts = [unwrap(part, tape) for part in (condition, *branches)]
    if len(parts) != 3:
        raise UntraceableError("where without its branches")
    return Traced(np.frompyfunc(tape.where, 3, 1)(*parts), tape)


def _select(tape: Tape, condlist: Any, choicelist: Any, default: Any = 0) -> Traced:
    if len(condlist) != len(choicelist):
        raise UntraceableError("as many conditions as choices")
    found = Traced(unwrap(default, tape), tape)
    for condition, choice in reversed(list(zip(condlist, choicelist, strict=True))):
        found = _where(tape, condition, choice, found)
    return found


def _piecewise(tape: Tape, x: Any, condlist: Any, funclist: Any, *rest: Any, **options: Any) -> Traced:
    conditions = list(condlist) if isinstance(condlist, (list, tuple)) else [condlist]
    x = Traced(unwrap(x, tape), tape)
    pieces = [piece(x, *rest, **options) if callable(piece) else piece for piece in funclist]
    default = pieces.pop() if len(pieces) == len(conditions) + 1 else 0.0
    return _select(tape, conditions[::-1], pieces[::-1], default)  # the last that holds is taken


def _interp(tape: Tape, x: Any, xp: Any, fp: Any, left: Any = None, right: Any = None, period: Any = None) -> Any:
    """A broken line: from each of its points on, how far x has come towards the next, times the slope there."""
    places, heights = np.asarray(xp, dtype=np.float64), np.asarray(fp, dtype=np.float64)
    if period is not None or not (np.diff(places) > 0).all():
        raise UntraceableError("interp of a period, or of places that do not increase")
    x = Traced(unwrap(x, tape), tape)
    found: Any = x * 0.0 + heights[0]
    for start, end, slope in zip(places, places[1:], np.diff(heights) / np.diff(places), strict=False):
        found = found + (np.clip(x, start, end) - start) * slope
    found = found if left is None else np.where(x < places[0], left, found)
    return found if right is None else np.where(x > places[-1], right, found)


def _clip(tape: Tape, a: Any, a_min: Any = None, a_max: Any = None, **bounds: Any) -> Any:
    low, high = bounds.pop("min", a_min), bounds.pop("max", a_max)
    if bounds:
        raise UntraceableError("options of clip")
    found = Traced(unwrap(a, tape), tape)
    found = found if low is None else np.maximum(found, low)
    return found if high is None else np.minimum(found, high)


def _sort(tape: Tape, a: Any, axis: int = -1, **_: Any) -> Traced:
    """Neighbours in the wrong order changed, as often as it takes: each pair to its minimum and its maximum."""
    found = np.moveaxis(unwrap(a, tape).copy(), axis, -1)
    if found.shape[-1] > SORTED:
        raise UntraceableError(f"sorting more than {SORTED} numbers")
    low, high = (np.frompyfunc(partial(tape.apply, name), 2, 1) for name in ("minimum", "maximum"))
    for last in range(found.shape[-1] - 1, 0, -1):
        for place in range(last):
            one, other = found[..., place].copy(), found[..., place + 1].copy()
            found[..., place], found[..., place + 1] = low(one, other), high(one, other)
    return Traced(np.moveaxis(found, -1, axis), tape)


def _median(tape: Tape, a: Any, axis: int, *, keepdims: bool = False) -> Any:
    found = _sort(tape, a, axis)
    count = found.shape[axis]
    middle = np.take(found, range((count - 1) // 2, count // 2 + 1), axis=axis)
    return np.mean(middle, axis=axis, keepdims=keepdims)


def _along_rows(tape: Tape, func1d: Callable[..., Any], axis: int, arr: Any, *args: Any, **kwargs: Any) -> Traced:
    rows = unwrap(arr, tape)
    if rows.ndim != 2 or axis not in (1, -1):
        raise UntraceableError("a function along another axis than a row's")
    return Traced(np.stack([unwrap(func1d(Traced(row, tape), *args, **kwargs), tape) for row in rows]), tape)


def _norm(tape: Tape, x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:  # noqa: A002 - NumPy's
    found = Traced(unwrap(x, tape), tape)
    if isinstance(axis, tuple) or (axis is None and found.ndim != 1) or not (ord is None or is_real(ord)) or ord == 0:
        raise UntraceableError("a norm of matrices")
    order, size = 2.0 if ord is None else float(ord), np.abs(found)
    if np.isinf(order):
        name = "maximum" if order > 0 else "minimum"
        return Traced(_along_axis(tape, name, unwrap(size, tape), axis or 0, keepdims=keepdims), tape)
    summed = np.sum(size if order == 1 else found * found if order == 2 else size**order, axis=axis, keepdims=keepdims)
    return summed if order == 1 else np.sqrt(summed) if order == 2 else summed ** (1 / order)


def _determinant(tape: Tape, a: Any) -> Any:
    """By the first row: of matrices as small as people write out."""
    rows = unwrap(a, tape)
    if rows.ndim < 2 or rows.shape[-1] != rows.shape[-2] or rows.shape[-1] > WRITTEN_OUT:
        raise UntraceableError("a determinant of a large matrix")
    first, below = Traced(rows[..., 0, :], tape), rows[..., 1:, :]
    if rows.shape[-1] == 1:
        return first[..., 0]
    minors = [_determinant(tape, np.delete(below, column, axis=-1)) for column in range(rows.shape[-1])]
    return sum((-1) ** column * first[..., column] * minor for column, minor in enumerate(minors))


def _solved(tape: Tape, a: Any, b: Any) -> Any:
    if isinstance(a, Traced):
        raise UntraceableError("a linear system that depends on the values")
    return np.linalg.inv(a) @ Traced(unwrap(b, tape), tape)


def _partition(tape: Tape, a: Any, _: Any, axis: int = -1, **__: Any) -> Traced:
    """Sorted through and through: where only some places are promised, the rest is anybody's guess."""
    return _sort(tape, a, axis)


def _close(tape: Tape, a: Any, b: Any, rtol: float = 1e-5, atol: float = 1e-8, **_: Any) -> Any:
    one, other = (Traced(unwrap(part, tape), tape) for part in (a, b))
    return np.abs(one - other) <= atol + rtol * np.abs(other)


def _rounded(tape: Tape, a: Any, decimals: int = 0, out: Any = None) -> Any:
    if decimals != 0 or out is not None:
        raise UntraceableError("rounding to decimals")
    return np.rint(Traced(unwrap(a, tape), tape))


def _variance(tape: Tape, a: Any, axis: Any = None, *, ddof: int = 0, keepdims: bool = False) -> Any:
    found = Traced(unwrap(a, tape), tape)
    gap = found - np.mean(found, axis=axis, keepdims=True)
    count = found.size if axis is None else found.shape[axis]
    return np.sum(gap * gap, axis=axis, keepdims=keepdims) / (count - ddof)


def _filled(value: float, tape: Tape, a: Any, dtype: Any = None, *, shape: Any = None, **_: Any) -> Traced:
    if dtype is not None and np.dtype(dtype) != np.float64:
        raise UntraceableError(f"an array of {dtype}")
    return Traced(np.full(np.shape(a) if shape is None else shape, value, dtype=object), tape)


OWN: dict[Any, Callable[..., Any]] = {
    np.where: _where,
    np.select: _select,
    np.piecewise: _piecewise,
    np.interp: _interp,
    np.clip: _clip,
    np.sinc: lambda tape, x: Traced(np.frompyfunc(partial(tape.apply, "sinc"), 1, 1)(unwrap(x, tape)), tape),
    np.linalg.norm: _norm,
    np.linalg.det: _determinant,
    np.linalg.solve: _solved,
    np.partition: _partition,
    np.isclose: _close,
    np.round: _rounded,
    np.nansum: lambda _, a, axis=None, **options: np.sum(a, axis=axis, **options),
    np.nanmean: lambda _, a, axis=None, **options: np.mean(a, axis=axis, **options),
    np.max: partial(_extreme, "maximum"),
    np.amax: partial(_extreme, "maximum"),
    np.min: partial(_extreme, "minimum"),
    np.amin: partial(_extreme, "minimum"),
    np.all: partial(_extreme, "logical_and"),
    np.any: partial(_extreme, "logical_or"),
    np.ptp: lambda _, a, axis, **options: np.max(a, axis, **options) - np.min(a, axis, **options),
    np.sort: _sort,
    np.apply_along_axis: _along_rows,
    np.median: _median,
    np.var: _variance,
    np.std: lambda tape, a, axis=None, **options: np.sqrt(_variance(tape, a, axis, **options)),
    np.zeros_like: partial(_filled, 0.0),
    np.ones_like: partial(_filled, 1.0),
    np.empty_like: partial(_filled, 0.0),
    np.full_like: lambda tape, a, fill_value, **options: _filled(fill_value, tape, a, **options),
    np.shape: lambda tape, a: np.shape(unwrap(a, tape)),
    np.ndim: lambda tape, a: np.ndim(unwrap(a, tape)),
    np.size: lambda tape, a, axis=None: np.size(unwrap(a, tape), axis),
}
