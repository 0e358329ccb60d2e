"""Steps of a function under trace (`np.floor`, `%` and the like), each a choice among whole numbers.

A step jumps; what is made of it need not: `abs(x % 1 - 0.5)` meets at every turn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from foreword.compiler.choices import FORMULAS, Choice
from foreword.compiler.domain import Cube
from foreword.compiler.elementary import UntraceableError
from foreword.compiler.expression import Node
from foreword.compiler.sharp import SharpRanges

if TYPE_CHECKING:
    from foreword.compiler.symbols import Tape

STEPPED = frozenset({"floor", "ceil", "trunc", "rint", "remainder", "fmod", "floor_divide"})


def stepped(tape: Tape, name: str, a: Any, b: Any = 1.0) -> Any:
    """One of NumPy's operations that go in steps, on elements of arrays."""
    match name:
        case "floor":
            return _floor(tape, a)
        case "ceil":
            return tape.apply("negative", _floor(tape, tape.apply("negative", a)))
        case "rint":
            return _floor(tape, tape.apply("add", a, 0.5))
        case "trunc":
            return tape.where(tape.apply("greater", a, 0.0), _floor(tape, a), stepped(tape, "ceil", a))
        case "floor_divide":
            return _floor(tape, tape.apply("divide", a, b))
    whole = stepped(tape, "floor" if name == "remainder" else "trunc", tape.apply("divide", a, b))
    return tape.apply("subtract", a, tape.apply("multiply", b, whole))


def _floor(tape: Tape, element: Any) -> Any:
    """The largest whole number that is no larger, of all that it may be where the coordinates lie."""
    formula = tape.formula(element)
    if isinstance(formula, Choice):
        raise UntraceableError("steps of a choice")
    least, most = _range(tape, formula)
    if not most - least < FORMULAS - 1:
        raise UntraceableError(f"more than {FORMULAS} steps")
    found: Any = float(math.floor(least))
    for number in range(math.floor(least) + 1, math.floor(most) + 1):
        found = tape.where(tape.apply("greater_equal", element, float(number)), float(number), found)
    return found


def _range(tape: Tape, node: Node) -> tuple[float, float]:
    """Between which numbers a node is; where nothing is known of the coordinates, one more than at points, each way."""
    if not np.isfinite(tape.box).all():
        values = tape.values(node)
        return float(values.min()) - 1.0, float(values.max()) + 1.0
    lower, upper = tape.box.T
    found = SharpRanges(Cube(tape.box.tolist()), None, lower[None], upper[None]).of(node)
    return float(found.lo[0]), float(found.hi[0])
