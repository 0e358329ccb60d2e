"""The arrays that a prefix is made of: which dtypes, whether finite, and closed to changes.

NumPy's own, and bfloat16 from ml_dtypes. What the axes of an array mean is `prefix.py`'s matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from foreword.errors import PrefixError

Array = NDArray[Any]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def is_finite(array: Array) -> bool:
    """Whether an array of one of `DTYPES` has neither NaN nor infinities."""
    return bool(np.isfinite(array).all())


def is_count(number: object) -> bool:
    """Whether this is a whole number of things: 0 or more, of any integer type, and no truth value."""
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= 0


def is_real(number: object) -> TypeGuard[float]:
    """Whether this is one real number of any numeric type, NumPy's among them, and no truth value; a float holds it."""
    if not isinstance(number, Real) or isinstance(number, bool):
        return False
    try:
        float(number)
    except OverflowError:
        return False
    return True


def dtype_of(name: str) -> np.dtype[Any]:
    if not isinstance(name, str) or name not in DTYPES:
        raise PrefixError(
            "A prefix cannot be held in this dtype.",
            expected=", ".join(DTYPES),
            found=f"{name!r:.60}",
            fix="Use float32, or bfloat16 to halve its size.",
        )
    return DTYPES[name]


def frozen(array: Array) -> Array:
    """A read-only, C-contiguous array that no caller can change behind the hash's back."""
    if not isinstance(array, np.ndarray):
        raise PrefixError(
            "Keys and values must be NumPy arrays.",
            expected="numpy.ndarray",
            found=type(array).__name__,
            fix="Convert with numpy.asarray(x), or x.detach().cpu().numpy() for a torch tensor.",
        )
    copy = np.array(array, order="C", copy=True)
    copy.flags.writeable = False
    return copy
