"""What a caller states of a target, brought into its form: constants, functions, kinks, values and samples.

Each is checked by itself, and the error says what it should be. Whether it is true of the target is found out at
samples (`checks.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from foreword.arrays import is_real
from foreword.compiler.arrays import Floats
from foreword.errors import CompileError


def as_constant(name: str, value: Any) -> float | None:
    """A declared constant as Python's float; CompileError when it is none."""
    if value is None:
        return None
    if not (is_real(value) and math.isfinite(value) and value >= 0):
        raise CompileError(
            f"The constant {name!r} cannot be.",
            expected="a finite number of at least 0",
            found=repr(value)[:80],
            fix="Declare one number that holds for every output, or leave it out.",
        )
    return float(value)


def no_domain(what: str, found: object) -> CompileError:
    """The error for what was found in a domain's place."""
    return CompileError(
        what,
        expected="Sphere, Cube or FiniteSet",
        found=f"{type(found).__name__} {found!r:.60}",
        fix="Pass domain=Sphere(2), or domain=Cube([(-1, 1), (0, 2)]), say.",
    )


def check_callable(name: str, value: Any) -> None:
    """CompileError when something was stated that is no function."""
    if value is not None and not callable(value):
        raise CompileError(
            f"The target's {name} is no function.",
            expected="a function of points (batch, column)",
            found=f"{type(value).__name__} {value!r:.60}",
            fix=f"Pass {name}=lambda x: ..., or leave it out.",
        )


def unit_kinks(
    kinks: Sequence[tuple[Sequence[float], float]], columns: int
) -> tuple[tuple[tuple[float, ...], float], ...]:
    """Hyperplanes `(normal, offset)` with unit normals; CompileError for what is none of the domain's coordinates."""
    found = []
    if not isinstance(kinks, Iterable):
        raise CompileError(
            "The kinks are not a list.",
            expected="a list of (normal, offset)",
            found=f"{type(kinks).__name__} {kinks!r:.60}",
            fix="For |x0| on the sphere S^2, say kinks=[((1, 0, 0), 0)]; without kinks leave them out.",
        )
    for entry in kinks:
        try:
            normal, offset = np.asarray(entry[0], dtype=np.float64), float(entry[1])
            length = float(np.linalg.norm(normal))
        except (TypeError, ValueError, IndexError) as error:
            raise CompileError(
                "A kink is not a hyperplane.", expected="(normal, offset): numbers", found=repr(entry)[:80]
            ) from error
        if normal.shape != (columns,) or not (0 < length < math.inf) or not math.isfinite(offset):
            raise CompileError(
                "A kink is not a hyperplane of the domain's coordinates.",
                expected=f"a non-zero normal of {columns} numbers, and an offset",
                found=repr(entry)[:80],
                fix="For |x0| on the sphere S^2, say kinks=[((1, 0, 0), 0)].",
            )
        found.append((tuple(float(number) for number in normal / length), offset / length))
    return tuple(found)


def as_values(found: Any, batch: int, who: str) -> Floats:
    """`found` as `(batch, output)` float64; CompileError when it is not one number, or one row of them, a point."""
    try:
        values = np.asarray(found)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"numbers of type {values.dtype}")
    except (TypeError, ValueError, RuntimeError) as error:  # the last by tensors that carry a gradient
        raise CompileError(
            f"{who} must give real numbers.",
            expected=f"an array of {batch} rows",
            found=str(error)[:200],
            fix="Return an array of floats; of complex numbers, real and imaginary parts as two outputs.",
        ) from error
    if np.ma.isMaskedArray(found):  # what lies under a mask is no value
        values = np.where(np.ma.getmaskarray(found), np.nan, values)
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or len(values) != batch or values.shape[1] == 0:
        raise CompileError(
            f"{who} gave an array of the wrong shape.",
            expected=f"({batch},) or ({batch}, outputs) for {batch} points",
            found=str(np.shape(found)),
            fix="Return one number, or one row of outputs, for each row of points.",
        )
    return values.astype(np.float64)


def as_table(samples: Any, count: int) -> Floats:
    """Samples as `(count, output)`, read-only; CompileError unless each point of a table has one finite row."""
    if not count:
        raise CompileError(
            "Samples are values at the points of a table.",
            expected="domain=FiniteSet(points)",
            found="another domain",
            fix="Make the points of the samples the domain.",
        )
    table = as_values(samples, count, "The samples")
    if not np.isfinite(table).all():
        row = int(np.argmin(np.isfinite(table).all(axis=1)))
        raise CompileError(
            "A sample is not finite.", expected="finite numbers", found=f"{table[row].tolist()}, row {row}"
        )
    table.setflags(write=False)
    return table
