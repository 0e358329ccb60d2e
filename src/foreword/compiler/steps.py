"""Steps of a function under trace (`np.floor`, `%` and the like), each a choice among whole numbers.

A step jumps; what is made of it need not: `abs(x % 1 - 0.5)` meets at every turn.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from foreword.compiler.choices import FORMULAS, Choice
from foreword.compiler.elementary import UntraceableError

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
    """The largest whole number that is no larger: those between the values at points, and one more each way."""
    formula = tape.formula(element)
    if isinstance(formula, Choice):
        raise UntraceableError("steps of a choice")
    values = tape.values(formula)
    least, most = float(values.min()), float(values.max())
    if not most - least < FORMULAS - 4:
        raise UntraceableError(f"more than {FORMULAS} steps")
    found: Any = math.floor(least) - 1.0
    for number in range(math.floor(least), math.floor(most) + 2):
        found = tape.where(tape.apply("greater_equal", element, float(number)), float(number), found)
    return found
