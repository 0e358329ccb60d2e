"""What is to be compiled: a function on a domain, with what is known of it, and what of that is only assumed.

It knows values and declared or traced regularity. It deliberately knows nothing of heads or proofs, and it never
guesses a constant: what nobody declared and no expression shows is absent here, and a certificate then says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from foreword.certificate import Assumption
from foreword.compiler.arrays import Floats
from foreword.compiler.catalogue import CATALOGUE, Entry
from foreword.compiler.domain import Domain, FiniteSet, Sphere
from foreword.compiler.expression import Expression
from foreword.compiler.parser import READ_BACK_LIMIT, parse_expression
from foreword.compiler.stated import as_constant, as_table, as_values, check_callable, no_domain, unit_kinks
from foreword.compiler.tracing import trace
from foreword.compiler.turning import sides_of, turning_points
from foreword.errors import CompileError

Metric = Literal["geodesic", "euclidean"]

COMPARED = 2_000
"""Points at which a function and the expression that should be it are compared."""

AGREEMENT = 1e-12
"""Largest difference there, in units of the largest value: thousands of roundings, far below any other expression."""

REPEATED = 8
"""Rows of a batch that are evaluated again by themselves: a value that changes is no function of its point."""

REPEATABILITY = 1e-9
"""Largest change there, in units of the largest value: a batch of another size may sum in another order."""

SINGLE_REPEATABILITY = 1e-5
"""The same for a function that computes in single precision: the whole batch must then repeat exactly."""


@dataclass(frozen=True, eq=False)
class Target:
    """A function on `domain`, with its regularity as far as it is known.

    `function` maps points `(batch, columns)` to `(batch,)` or `(batch, output)`; without one, `expression` (a text is
    parsed) or `samples` (values at the points of a finite domain, in their order) are the function. `lipschitz` holds
    for every output, in `metric`. `gradient` `(batch, output, columns)` and `hessian` `(batch, output, columns,
    columns)` are with respect to the columns (one output may leave its axis out); `second` and `third` bound the
    operator norm of the second and third derivative of every output on the convex hull of the domain. `kinks` are
    hyperplanes `<normal, x> = offset` off which the target is smooth; they are stored with unit normals.

    CompileError for facts that cannot be: no function at all, a negative constant, a kink without a direction.
    """

    function: Callable[[Floats], ArrayLike] | None = None
    _: KW_ONLY
    domain: Domain
    expression: Expression | None = None
    lipschitz: float | None = None
    metric: Metric = "geodesic"
    gradient: Callable[[Floats], Floats] | None = None
    hessian: Callable[[Floats], Floats] | None = None
    second: float | None = None
    third: float | None = None
    kinks: tuple[tuple[tuple[float, ...], float], ...] = ()
    samples: Floats | None = None
    name: str = ""
    is_traced: bool = False

    def __post_init__(self) -> None:
        if self.function is None and self.expression is None and self.samples is None:
            raise CompileError(
                "A target needs values.",
                expected="a function, an expression or samples",
                found="none of them",
                fix='Pass a function of an array (batch, columns), or an expression such as "sin(x) * y".',
            )
        if not isinstance(self.domain, Domain):
            raise no_domain("The target's domain is none.", self.domain)
        if isinstance(self.expression, str):
            object.__setattr__(self, "expression", parse_expression(self.expression, self.domain.columns))
        for name in ("lipschitz", "second", "third"):
            object.__setattr__(self, name, as_constant(name, getattr(self, name)))
        for name in ("function", "gradient", "hessian"):
            check_callable(name, getattr(self, name))
        if self.metric not in ("geodesic", "euclidean"):
            raise CompileError("The metric is unknown.", expected="'geodesic' or 'euclidean'", found=repr(self.metric))
        if self.expression is not None and len(self.expression.variables) != self.domain.columns:
            raise CompileError(
                "The expression is over another number of coordinates than the domain has.",
                expected=f"{self.domain.columns} coordinates",
                found=f"{len(self.expression.variables)} ({', '.join(self.expression.variables[:6])})",
                fix="Make the expression for this domain, or choose the domain of its coordinates.",
            )
        object.__setattr__(self, "kinks", unit_kinks(self.kinks, self.domain.columns))
        if self.samples is not None:
            count = len(self.domain.points) if isinstance(self.domain, FiniteSet) else 0
            object.__setattr__(self, "samples", as_table(self.samples, count))

    def evaluate(self, points: Floats) -> Floats:
        """Values `(batch, output)` at `points` `(batch, columns)`.

        CompileError, with the point, when a value is not finite, has the wrong shape, or changes when its row is
        evaluated again by itself (a target must be a function of each point alone); and when the function raises.
        """
        points = np.asarray(points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != self.domain.columns:
            raise CompileError(
                "The points have the wrong shape.",
                expected=f"(batch, {self.domain.columns})",
                found=str(points.shape),
                fix="Pass one row of coordinates a point.",
            )
        values = self._call(points)
        finite = np.isfinite(values).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise CompileError(
                "The target has a value that is not finite.",
                expected="a finite number everywhere on the domain",
                found=f"{values[row].tolist()} at {points[row].tolist()}",
                fix="Choose a domain on which the target is defined, or give it a value there.",
            )
        if self.function is not None and len(points):
            self._check_repeats(points, values)
        return values

    def gradient_at(self, points: Floats) -> Floats:
        """The declared gradient `(batch, output, column)` at `points` `(batch, column)`.

        CompileError when it raises, has another shape, or is not finite. On a kink any finite value will do.
        """
        return self._derivative("gradient", points, 1)

    def hessian_at(self, points: Floats) -> Floats:
        """The declared Hessian `(batch, output, column, column)`, made symmetric; CompileError as for the gradient."""
        found = self._derivative("hessian", points, 2)
        return np.asarray((found + found.swapaxes(2, 3)) / 2)

    @cached_property
    def outputs(self) -> int:
        """The number of outputs, from the expression or from one evaluation at two points."""
        if self.expression is not None:
            return len(self.expression.outputs)
        if self.samples is not None:
            return int(self.samples.shape[1])
        return int(self.evaluate(self.domain.sample(2, np.random.default_rng(0))).shape[1])

    @property
    def regularity(self) -> str:
        """What is known, for a report."""
        known = []
        if self.expression is not None:
            known += ["expression (traced)" if self.is_traced else "expression"]
        if self.lipschitz is not None:
            known += [f"Lipschitz constant {self.lipschitz:g} ({self.metric})"]
        known += ["gradient"] if self.gradient is not None else []
        known += ["Hessian"] if self.hessian is not None else []
        known += [f"second derivative at most {self.second:g}"] if self.second is not None else []
        known += [f"third derivative at most {self.third:g}"] if self.third is not None else []
        if self.kinks:
            known += [f"smooth off {len(self.kinks)} hyperplane{'s' * (len(self.kinks) > 1)}"]
        known += [f"table of {len(self.samples)} samples"] if self.samples is not None else []
        return ", ".join(known) or "values only"

    @property
    def assumptions(self) -> tuple[Assumption, ...]:
        """Every premise about the target that a caller declared or that only samples support; a proof names those it
        used by their codes: `expression`, `lipschitz`, `gradient`, `hessian`, `second`, `third`."""
        compared = f"(compared at {COMPARED:,} points)"
        off = ", off the declared hyperplanes" if self.kinks else ""
        told: list[tuple[str, object, str, str]] = [
            ("lipschitz", self.lipschitz, f"Lipschitz constant {self.lipschitz!r} ({self.metric})", "declared"),
            ("gradient", self.gradient, "the declared gradient is the target's", "declared"),
            ("hessian", self.hessian, "the declared Hessian is the target's", "declared"),
            ("second", self.second, f"second derivative at most {self.second!r} on the convex hull{off}", "declared"),
            ("third", self.third, f"third derivative at most {self.third!r} on the convex hull{off}", "declared"),
        ]
        if self.is_traced:
            told.insert(0, ("expression", True, f"the function computes the traced expression {compared}", "sampled"))
        elif self.expression is not None and self.function is not None:
            told.insert(0, ("expression", True, f"the function computes the given expression {compared}", "declared"))
        return tuple(Assumption(code, text, standing) for code, fact, text, standing in told if fact is not None)

    def as_dict(self) -> dict[str, Any]:
        """What a certificate says of the target: plain JSON values."""
        expression = self.expression
        return {
            "name": self.name,
            "expression": None if expression is None else expression.text,
            "variables": None if expression is None else list(expression.variables),
            "traced": self.is_traced,
            "lipschitz": self.lipschitz,
            "metric": self.metric,
            "second": self.second,
            "third": self.third,
            "kinks": [[list(normal), offset] for normal, offset in self.kinks],
            "outputs": self.outputs,
        }

    def _call(self, points: Floats) -> Floats:
        if self.function is None and self.expression is not None:
            with np.errstate(all="ignore"):
                return self.expression.evaluate(points)
        if self.function is None:
            return self._look_up(points)
        try:
            with np.errstate(all="ignore"):
                found = self.function(points.copy())
        except Exception as error:
            raise CompileError(
                "The target raised an error.",
                expected=f"values of shape ({len(points)},) or ({len(points)}, outputs)",
                found=f"{type(error).__name__}: {error}",
                fix="Write the target for a whole array of points, one row a point.",
            ) from error
        return as_values(found, len(points), "The target")

    def _derivative(self, name: str, points: Floats, order: int) -> Floats:
        shape = (len(points), self.outputs, *[self.domain.columns] * order)
        shapes = f"{shape}, or {shape[:1] + shape[2:]} for one output" if self.outputs == 1 else str(shape)
        declared = getattr(self, name)
        try:
            with np.errstate(all="ignore"):
                found = np.asarray(declared(points.copy()), dtype=np.float64)
        except Exception as error:
            raise CompileError(
                f"The declared {name} raised an error.",
                expected=f"numbers of shape {shapes}",
                found=f"{type(error).__name__}: {error}"[:200],
                fix=f"Write the {name} for a whole array of points, one row a point.",
            ) from error
        short = tuple(length for length in shape[1:] if length != 1)  # axes of one entry may be left out
        if found.shape[:1] != shape[:1] or tuple(length for length in found.shape[1:] if length != 1) != short:
            raise CompileError(
                f"The declared {name} has the wrong shape.",
                expected=shapes,
                found=str(found.shape),
                fix="Return one row a point, then outputs, then columns.",
            )
        finite = np.isfinite(found.reshape(len(points), -1)).all(axis=1)
        if not finite.all():
            row = int(np.argmin(finite))
            raise CompileError(
                f"The declared {name} is not finite.",
                expected="finite numbers everywhere on the domain",
                found=f"{found[row].tolist()} at {points[row].tolist()}",
                fix="Give it its value there; on a declared kink any finite one will do.",
            )
        return found.reshape(shape)

    def _look_up(self, points: Floats) -> Floats:
        if not isinstance(self.domain, FiniteSet) or self.samples is None:  # refused when the target was made
            raise CompileError("There are no samples.", expected="samples on a finite domain", found="none")
        rows = {row.tobytes(): index for index, row in enumerate(self.domain.points + 0.0)}
        found = [rows.get(row.tobytes()) for row in points + 0.0]
        if None in found:
            raise CompileError(
                "A table of samples was asked for a point that it does not hold.",
                expected=f"one of its {len(rows)} points",
                found=f"{points[found.index(None)].tolist()}",
                fix="Compile an expression or a function to evaluate between the samples.",
            )
        return self.samples[np.array(found, dtype=np.int64)]

    def _check_repeats(self, points: Floats, values: Floats) -> None:
        rows = np.unique(np.linspace(0, len(points) - 1, REPEATED).astype(np.int64))
        again = self._call(points[rows])
        gap = np.abs(again - values[rows]).max(axis=1) if again.shape == values[rows].shape else np.full(len(rows), 1.0)
        scale = float(np.abs(values).max())
        if gap.max() <= REPEATABILITY * scale:
            return
        if gap.max() <= SINGLE_REPEATABILITY * scale and np.array_equal(self._call(points), values):
            return
        worst = int(np.argmax(gap))
        raise CompileError(
            "The target is not a function of each point alone.",
            expected=f"{values[rows[worst]].tolist()} again at {points[rows[worst]].tolist()}",
            found=f"{again[worst].tolist()} when {len(rows)} of {len(points)} rows were evaluated by themselves",
            fix="Remove randomness, state and statistics over the batch from the target.",
        )


def target_of(
    f: Target | Expression | str | Callable[[Floats], ArrayLike] | Floats, domain: Domain | None = None, **facts: Any
) -> Target:
    """The target that is meant by `f`: a Target, an expression or its text, a catalogue name, a function, or samples.

    `facts` are those of `Target` (`lipschitz`, `metric`, `gradient`, `kinks`, ...), and override what is known already.
    A function is traced; if the expression found agrees with it at 2,000 points, the target carries it. An array is the
    values at the points of a finite domain. CompileError when nothing can be made of it, when values are not finite,
    or when a given expression and a given function disagree.

    >>> from foreword.compiler.domain import Sphere
    >>> target_of(lambda x: np.sin(x[:, 0]) * x[:, 1], Sphere(2)).expression.text
    'sin(x) * y'
    """
    if isinstance(f, Target):
        target = replace(f if domain is None else replace(f, domain=domain), **facts)
    elif domain is None:
        raise CompileError(
            "The target's domain is missing.", expected="a domain", found="none", fix="Pass domain=Sphere(2), say."
        )
    elif not isinstance(domain, Domain):
        raise no_domain("This is no domain.", domain)
    elif isinstance(f, str) and f.strip() in CATALOGUE:
        target = _listed(CATALOGUE[f.strip()], domain, facts)
    elif isinstance(f, str):
        target = Target(expression=parse_expression(f, domain.columns), domain=domain, **{"name": f.strip(), **facts})
    elif isinstance(f, Expression):
        target = Target(expression=f, domain=domain, **{"name": f.text, **facts})
    elif isinstance(f, np.ndarray):
        target = Target(samples=f, domain=domain, **facts)
    elif callable(f):
        target = Target(f, domain=domain, **{"name": str(getattr(f, "__name__", "")), **facts})
    else:
        raise CompileError(
            "This is no target.",
            expected="a function of an array (batch, columns), an expression, a catalogue name or samples",
            found=type(f).__name__,
            fix=f"Names in the catalogue: {', '.join(CATALOGUE)}.",
        )
    return _compared(target)


def _listed(entry: Entry, domain: Domain, facts: dict[str, Any]) -> Target:
    """A catalogue's entry on this domain; its Lipschitz constant only where it is proved."""
    columns, is_sphere = domain.columns, isinstance(domain, Sphere)
    reached = domain.points if isinstance(domain, FiniteSet) else np.array([[-1.0, 1.0]]) if is_sphere else domain.box
    low, high = entry.inside or (-math.inf, math.inf)
    is_inside = bool(low <= reached.min() and reached.max() <= high)
    if not entry.least <= columns <= (entry.most or columns) or (entry.has_poles and not is_inside):
        several = "" if entry.most == entry.least else " or more"
        raise CompileError(
            f'The target "{entry.name}" does not exist on this domain.',
            expected=f"{entry.least} coordinates{several}" + f" in [{low}, {high}]" * entry.has_poles,
            found=f"{columns} coordinates in [{reached.min():.3g}, {reached.max():.3g}]",
            fix="Choose another domain, or write the expression that you mean.",
        )
    expression = parse_expression(entry.text(columns), columns, length_limit=READ_BACK_LIMIT)
    known: dict[str, Any] = {"name": entry.name, "kinks": tuple(entry.kinks(columns))}
    if is_inside:
        known |= {"lipschitz": entry.lipschitz(columns, is_sphere), "metric": "euclidean"}
    return Target(expression=expression, domain=domain, **{**known, **facts})


def _compared(target: Target) -> Target:
    """The target, with the expression that its function traces to if that agrees; a given expression must agree."""
    points = target.domain.sample(COMPARED, np.random.default_rng(0))
    values = target.evaluate(points)
    if target.function is None:
        return target
    columns, box = target.domain.columns, sides_of(target.domain)
    followed = trace(target.function, columns, points, box) if target.expression is None else None
    expression = target.expression if followed is None else followed.expression
    if expression is None:
        return target
    if followed is not None:
        turning = turning_points(target.domain, points, followed.turns) if followed.has_conditions else points[:0]
        if len(turning):
            points, values = np.concatenate([points, turning]), np.concatenate([values, target._call(turning)])
    found = expression.evaluate(points)
    gap = np.abs(found - values) if found.shape == values.shape else np.full(values.shape, math.inf)
    if (gap <= AGREEMENT * np.abs(values).max(axis=0)).all():
        return target if target.expression is not None else replace(target, expression=expression, is_traced=True)
    if target.expression is None or target.is_traced:
        return replace(target, expression=None, is_traced=False)
    worst = int(np.argmax(np.nan_to_num(gap, nan=math.inf).max(axis=1)))
    raise CompileError(
        "The function and the expression of the target are not the same.",
        expected=f"{found[worst].tolist()} at {points[worst].tolist()}, by the expression",
        found=f"{values[worst].tolist()}, by the function",
        fix="Leave one of them out, or correct it.",
    )
