"""What stands in the way of compiling a target, found before any long work: all of it, not the first."""

from __future__ import annotations

import math

import numpy as np

from foreword.arrays import is_count, is_real
from foreword.compiler.arrays import Floats
from foreword.compiler.construction.contract import Obstacle
from foreword.compiler.construction.nearest import LIMIT, feasible_tolerance, positions_for_tolerance
from foreword.compiler.domain import Domain, FiniteSet, Sphere, beside
from foreword.compiler.jumps import jump_of
from foreword.compiler.poles import pole_of
from foreword.compiler.proof import LARGEST_NUMBER, MOST_DIMENSIONS
from foreword.compiler.target import Target
from foreword.compiler.taylor import derivatives_of, smoothness, taylor_values
from foreword.compiler.turning import round_points
from foreword.errors import CompileError

PAIRS = 2_000
ROUNDINGS = 64  # of the largest value: no head computes nearer than that in float64
FAR_AND_CLOSE = (1e-1, 1e-2)  # of the domain's size: how far from a point its derivatives are tried
TAYLOR_SLACK = 1e-6  # of the largest value: the rounding of functions in single precision
DISTINCT = 100  # values, of which that many are no coincidence
LIPSCHITZ_SLACK = 1e-6  # relative; samples contradict a constant only beyond rounding


def check(
    target: Target,
    domain: Domain,
    *,
    tolerance: float | None,
    positions: int | None,
    method: str,
    value_limit: float,
    seconds: float = math.inf,
    seed: int = 0,
) -> list[Obstacle]:
    """Every obstacle that can be seen without compiling; at most about ten thousand evaluations of the target."""
    found = [*_of_the_request(tolerance, positions, value_limit), *_of_the_run(seconds, seed)]
    tolerance = tolerance if is_real(tolerance) else None
    if not isinstance(domain, FiniteSet) and domain.dimension > MOST_DIMENSIONS:
        told = f"{domain.dimension}, of at most {MOST_DIMENSIONS}"
        remedy = "Leave out coordinates that the target does not need."
        found.append(Obstacle("dimensions", "The domain has too many dimensions.", told, remedy))
        return found
    rng = np.random.default_rng(20_240)
    try:
        points = domain.sample(PAIRS, rng)
        values = target.evaluate(points)
        again = target.evaluate(points[::-1])[::-1]
        if not np.allclose(values, again, rtol=1e-9, atol=1e-9 * float(np.abs(values).max())):
            row = int(np.abs(values - again).max(axis=1).argmax())
            found.append(
                Obstacle(
                    "not-deterministic",
                    "The target gives another value when it is asked again.",
                    f"{values[row].tolist()} and {again[row].tolist()} at {points[row].tolist()}",
                    "Remove randomness, state and statistics over the batch from the target.",
                )
            )
            return found
    except CompileError as error:
        return [*found, Obstacle("target", error.what, error.found, error.fix)]
    largest = float(np.abs(values).max())
    found += _of_the_precision(domain, values, tolerance)
    if method != "nearest" and largest > LARGEST_NUMBER:
        found.append(
            Obstacle(
                "size",
                "The target's values are too large to compute with.",
                f"values up to {largest:.3g}, above {LARGEST_NUMBER:g}",
                "Scale the target, or use method='nearest' with a Lipschitz constant.",
            )
        )
    found += _of_the_table(target, domain)
    found += _of_the_poles(target, domain, points)
    found += _of_the_constant(target, domain, points, values, rng)
    found += _of_the_derivatives(target, domain, points, values, rng)
    if tolerance is not None and positions is None and not found:
        found += _of_the_jumps(target, domain, points, values, tolerance)
    if method == "nearest" and tolerance is not None and positions is None and not found:
        found += _of_the_dimension(target, domain, tolerance)
    return found


def _of_the_precision(domain: Domain, values: Floats, tolerance: float | None) -> list[Obstacle]:
    """A tolerance finer than float64 bears, or than the steps of a function that computes in a smaller type."""
    if tolerance is None or not tolerance > 0:
        return []
    largest = float(np.abs(values).max())
    kind = None if isinstance(domain, FiniteSet) else _kind_of(values)  # a table's numbers are what they are
    if kind is not None and tolerance < (step := float(np.finfo(kind).eps) * largest):
        return [
            Obstacle(
                "precision",
                f"The target computes in {kind}, whose numbers are farther apart than the tolerance.",
                f"tolerance {tolerance:g}, values up to {largest:.3g} in steps of {step:.2g}",
                f"Compute in float64, without a conversion to {kind}, or ask for at least {step:.2g}.",
            )
        ]
    floor = ROUNDINGS * float(np.finfo(float).eps) * largest
    if tolerance >= floor:
        return []
    return [
        Obstacle(
            "precision",
            "The tolerance is below what float64 bears for values of this size.",
            f"tolerance {tolerance:g}, values up to {largest:.3g}",
            f"Ask for at least {floor:.2g}.",
        )
    ]


def _kind_of(values: Floats) -> str | None:
    """The smaller type that all values are numbers of, when they are many: "float16", "float32", or None.

    Of points drawn in float64, values that were computed in float64 fill its last digits.
    """
    if len(np.unique(values)) < DISTINCT:
        return None
    with np.errstate(over="ignore"):
        kinds = [kind for kind in ("float16", "float32") if np.array_equal(values, values.astype(kind))]
    return kinds[0] if kinds else None


def _of_the_request(tolerance: float | None, positions: int | None, value_limit: float) -> list[Obstacle]:
    found = []
    if tolerance is None and positions is None:
        found.append(
            Obstacle(
                "request",
                "Neither a tolerance nor a number of positions is given.",
                "neither",
                "Give a tolerance, such as 1e-3, or the most positions, such as 32.",
            )
        )
    if tolerance is not None and not _is_positive(tolerance):
        found.append(Obstacle("tolerance", "The tolerance is not a positive number.", _told(tolerance), "Say 1e-3."))
    if positions is not None and not (is_count(positions) and 1 <= positions <= LIMIT):
        remedy = f"Give an integer from 1 to {LIMIT:,}."
        found.append(Obstacle("positions", "No prefix can have that many positions.", _told(positions), remedy))
    if not _is_positive(value_limit):
        found.append(
            Obstacle("value-limit", "The values' limit is not a positive number.", _told(value_limit), "Say 10.")
        )
    return found


def _of_the_run(seconds: object, seed: object) -> list[Obstacle]:
    found = []
    if not (is_real(seconds) and float(seconds) >= 0):
        found.append(Obstacle("seconds", "The time limit is not a number of seconds.", _told(seconds), "Say 60."))
    if not is_count(seed):
        found.append(Obstacle("seed", "The seed is not a whole number from 0.", _told(seed), "Say 0."))
    return found


def _is_positive(number: object) -> bool:
    return is_real(number) and 0 < float(number) < math.inf


def _told(value: object) -> str:
    return f"{value!r:.60}"


def _of_the_table(target: Target, domain: Domain) -> list[Obstacle]:
    """A point that stands twice in the table, with two values."""
    if target.samples is None or not isinstance(domain, FiniteSet):
        return []
    _, first, of = np.unique(domain.points + 0.0, axis=0, return_index=True, return_inverse=True)
    before = first[of.reshape(-1)]
    differ = (target.samples != target.samples[before]).any(axis=1)
    if not differ.any():
        return []
    row = int(np.argmax(differ))
    values = f"{target.samples[before[row]].tolist()} in row {before[row]}, {target.samples[row].tolist()} in row {row}"
    point = domain.points[row].tolist()
    return [Obstacle("table", "A point of the table has two values.", f"{values}, at {point}", "Keep one of them.")]


def _of_the_poles(target: Target, domain: Domain, points: Floats) -> list[Obstacle]:
    """A divisor of the expression that is 0 between the samples, where the target has no bound."""
    if target.expression is None or isinstance(domain, FiniteSet):
        return []
    pole = pole_of(target.expression, domain, points)
    if pole is None:
        return []
    return [
        Obstacle(
            "pole",
            f"The target has a pole on the domain: it divides by {pole.divisor}, which is 0 there.",
            f"about {pole.magnitude:.2g} beside {(np.round(pole.at, 6) + 0.0).tolist()}",
            "Choose a domain without that point, or write the function so that it stays finite.",
        )
    ]


def _of_the_jumps(target: Target, domain: Domain, points: Floats, values: Floats, tolerance: float) -> list[Obstacle]:
    """A jump: on one side of it or the other a head, whose output is continuous, is wrong by half of it."""
    if target.expression is not None or isinstance(domain, FiniteSet):
        return []
    points = np.concatenate([points, even := round_points(domain)])
    jump = jump_of(target, domain, points, np.concatenate([values, target.evaluate(even)]), 2 * tolerance)
    if jump is None:
        return []
    return [
        Obstacle(
            "jump",
            "The target jumps, and no head does: its output is continuous, so it is wrong by half of the jump.",
            f"a change of {jump.size:.3g} between {jump.one.tolist()} and {jump.other.tolist()}",
            f"Ask for a tolerance above {jump.size / 2:.3g}, for positions instead, or leave out the jump.",
        )
    ]


def _of_the_constant(
    target: Target, domain: Domain, points: Floats, values: Floats, rng: np.random.Generator
) -> list[Obstacle]:
    """Two points whose values differ by more than the Lipschitz constant allows: far ones, and ones close together."""
    if target.lipschitz is None:
        return []
    pairs = [(points, values, points[::-1], values[::-1])]
    if not isinstance(domain, FiniteSet):
        size = 1.0 if isinstance(domain, Sphere) else float(np.ptp(domain.box, axis=1).min())
        for step in (1e-2, 1e-4):
            close = domain.nearest(points + step * size * rng.uniform(-1.0, 1.0, points.shape))
            pairs.append((points, values, close, target.evaluate(close)))
    worst: tuple[float, str] = (0.0, "")
    rounding = 1e-13 * float(np.abs(values).max())
    for one, of_one, other, of_other in pairs:
        length = np.linalg.norm(one - other, axis=1)
        if isinstance(domain, Sphere) and target.metric == "geodesic":
            length = 2 * np.arcsin(np.minimum(length / 2, 1.0))
        change = np.maximum(np.abs(of_one - of_other).max(axis=1) - rounding, 0.0)
        ratio = np.where(length > 0, change / np.maximum(length, 1e-300), 0.0)
        row = int(ratio.argmax())
        if ratio[row] > worst[0]:
            worst = (float(ratio[row]), f"{one[row].tolist()} and {other[row].tolist()}")
    if worst[0] <= target.lipschitz * (1 + LIPSCHITZ_SLACK):
        return []
    kind = _kind_of(values)
    remedy = f"Declare a constant of at least {worst[0]:.6g}, or none."
    if kind is not None:
        remedy = f"The target computes in {kind}, so that it goes in steps: let it compute in float64. Else: {remedy}"
    return [
        Obstacle(
            "lipschitz",
            f"Samples contradict the Lipschitz constant {target.lipschitz:g} ({target.metric}).",
            f"ratio {worst[0]:.6g} between {worst[1]}",
            remedy,
        )
    ]


def _of_the_derivatives(
    target: Target, domain: Domain, points: Floats, values: Floats, rng: np.random.Generator
) -> list[Obstacle]:
    """Two points whose values differ by more than the declared derivatives and their bound allow (Taylor)."""
    order, constant = smoothness(target)
    if order < 2 or isinstance(domain, FiniteSet):
        return []
    try:
        parts = [values, *derivatives_of(target, points)]
    except CompileError as error:
        return [Obstacle("derivatives", error.what, f"{error.found}; expected {error.expected}", error.fix)]
    for step in FAR_AND_CLOSE if not target.kinks else ():
        other = beside(domain, points, step, rng)
        way = other - points
        missed = np.abs(target.evaluate(other) - taylor_values(parts, way[:, None])[:, 0]).max(axis=1)
        allowed = constant * np.linalg.norm(way, axis=1) ** order / math.factorial(order)
        excess = missed - allowed - TAYLOR_SLACK * float(np.abs(values).max())
        row = int(excess.argmax())
        if excess[row] > 0:
            told = "gradient and second" if order == 2 else "gradient, hessian and third"
            return [
                Obstacle(
                    "derivatives",
                    f"Samples contradict the declared {told}.",
                    f"off by {missed[row]:.3g} at {other[row].tolist()}, where at most {allowed[row]:.3g} follows "
                    f"from those at {points[row].tolist()}",
                    "Correct the derivatives, or declare a larger bound.",
                )
            ]
    return []


def _of_the_dimension(target: Target, domain: Domain, tolerance: float) -> list[Obstacle]:
    if target.lipschitz is None or isinstance(domain, FiniteSet):
        return []
    wanted = positions_for_tolerance(domain, target.lipschitz, tolerance)
    if wanted <= 1.5 * LIMIT:
        return []
    feasible = feasible_tolerance(domain, target.lipschitz, tolerance)
    return [
        Obstacle(
            "dimension",
            f"A prefix of about {wanted:.2g} positions would be needed for every target of this class on {domain}.",
            f"dimension {domain.dimension}, Lipschitz constant {target.lipschitz:g}, tolerance {tolerance:g}",
            f"The nearest feasible tolerance is about {feasible:.2g} ({LIMIT:,} positions); a smooth target needs far "
            "fewer with method='spectral'.",
        )
    ]
