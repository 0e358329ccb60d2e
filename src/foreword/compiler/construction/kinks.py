"""Hyperplanes off which a target is smooth: declared, read off its expression, or found by sampling.

A kink is (unit normal, offset): the points with <normal, x> = offset. What is found here only guides where keys are
put; no proof rests on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.compiler.construction.crossings import crossings
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.expression import Node, walk
from foreword.compiler.target import Target
from foreword.errors import CompileError

Kink = tuple[Floats, float]
Affine = tuple[Floats, float]
Pieces = tuple[Affine, ...]

PIECES = 16  # of a piecewise affine part of an expression; beyond, its kinks are too many for gates
LINES = 400  # segments on which a kink is looked for
CELLS = 16  # intervals of a segment
STEP = 1e-5  # arms of the second difference that tells a kink from curvature
SAME = 1e-6  # largest distance of a found point from its hyperplane
CLOSEST = 1e-9  # least distance from a kink at which samples are taken
RAYS = 64  # points of a side from which it is asked how the target goes on inwards
DEPTHS = (1e-2, 1e-3, 1e-4)  # how far inwards, in lengths of the domain along the axis
NOISE = 1e-12  # of the values: a second difference no larger is one of their rounding
ROOTED = 1.9  # a second difference that falls as (depth)^2 is that of a smooth function; as less, of none


def kinks_of(target: Target, domain: Domain, rng: np.random.Generator) -> tuple[list[Kink], str]:
    """The kinks, and how they are known: "declared", "read from the expression", "found by sampling" or "none"."""
    if target.kinks:
        return [(np.array(normal), float(offset)) for normal, offset in target.kinks], "declared"
    if isinstance(domain, FiniteSet):
        return [], "none"
    if target.expression is not None:
        outputs = target.expression.outputs
        read = [kink for kink in expression_kinks(outputs, domain.columns) if _cuts(domain, kink)]
        for kink in crossings(outputs, domain):
            read += [kink] if _cuts(domain, kink) and not any(_is_same(kink, other) for other in read) else []
        return read, "read from the expression" if read else "none"
    found = sampled_kinks(target.evaluate, domain, rng)
    return found, "found by sampling" if found else "none"


def expression_kinks(outputs: tuple[Node, ...], columns: int) -> list[Kink]:
    """Where the argument of an absolute value, or the difference of a maximum's arguments, vanishes, if it is affine
    in pieces: every piece of the one against every piece of the other. Of `max(x, y, z)` these are three planes.

    Such a hyperplane may be one along which the target turns only here and there, or not at all.
    """
    found: list[Kink] = []

    def visit(node: Node, arguments: list[Pieces | None]) -> Pieces | None:
        if node.operation in ("absolute", "maximum", "minimum"):
            for gradient, constant in _turning(arguments):
                length = float(np.linalg.norm(gradient))
                if not 0 < length < math.inf or not math.isfinite(constant):
                    continue
                kink = (gradient / length, -constant / length)
                found.extend([kink] if not any(_is_same(kink, other) for other in found) else [])
        return _pieces(node, arguments, columns)

    with np.errstate(all="ignore"):  # what overflows is left out
        walk(outputs, visit)
    return found


def _turning(arguments: list[Pieces | None]) -> list[Affine]:
    """What vanishes where an absolute value of the argument, or a maximum of the two, turns."""
    first, *others = arguments
    if first is None or (others and others[0] is None):
        return []
    return list(first) if not others else _pairs(first, others[0] or (), -1.0)


def _pieces(node: Node, arguments: list[Pieces | None], columns: int) -> Pieces | None:
    """The affine functions (gradient, constant) of which the node is one everywhere; None where it is of none, or of
    more than `PIECES`."""
    given = [pieces for pieces in arguments if pieces is not None]
    if len(given) < len(arguments):
        return None
    match node.operation:
        case "variable":
            found: list[Affine] = [(np.eye(columns)[int(node.value or 0)], 0.0)]
        case "constant":
            found = [(np.zeros(columns), float(node.value or 0.0))]
        case "pi":
            found = [(np.zeros(columns), math.pi)]
        case "add" | "subtract":
            found = _pairs(given[0], given[1], 1.0 if node.operation == "add" else -1.0)
        case "negative":
            found = _times(given[0], -1.0)
        case "absolute":
            found = [*given[0], *_times(given[0], -1.0)]
        case "maximum" | "minimum":
            found = [*given[0], *given[1]]
        case "multiply" | "divide":
            found = _scaled(node.operation, given[0], given[1])
        case _:
            found = []
    kept: list[Affine] = []
    for one in found:
        if not any(one[1] == other[1] and np.array_equal(one[0], other[0]) for other in kept):
            kept.append(one)
    return tuple(kept) if 0 < len(kept) <= PIECES else None


def _pairs(first: Pieces, second: Pieces, sign: float) -> list[Affine]:
    return [(a[0] + sign * b[0], a[1] + sign * b[1]) for a in first for b in second]


def _times(pieces: Pieces, factor: float) -> list[Affine]:
    return [(gradient * factor, constant * factor) for gradient, constant in pieces]


def _scaled(operation: str, first: Pieces, second: Pieces) -> list[Affine]:
    """The product with, or the quotient by, a number; nothing where neither factor is one."""
    if operation == "multiply" and not (len(second) == 1 and not second[0][0].any()):
        first, second = second, first
    gradient, number = second[0]
    if len(second) > 1 or gradient.any() or (operation == "divide" and number == 0):
        return []
    return _times(first, number if operation == "multiply" else 1.0 / number)


def sampled_kinks(evaluate: Callable[[Floats], Floats], domain: Sphere | Cube, rng: np.random.Generator) -> list[Kink]:
    """Hyperplanes that carry many of the kinks met along random segments; at most four.

    Along a segment, the cell with the largest second difference is halved until it is short. There a kink has a second
    difference of (jump of the slope) * step, a smooth function one of order step^2. The point itself is where the two
    sides' straight lines meet. Hyperplanes are what many such points have in common.
    """
    starts, ends = domain.sample(LINES, rng), domain.sample(LINES, rng)
    places, is_kink = _kink_places(evaluate, domain, starts, ends)
    points = _on_segments(domain, starts, ends, places)[is_kink]
    found: list[Kink] = []
    while len(points) >= max(12, LINES // 40) and len(found) < 4:
        kink, holds = _common_plane(points, rng)
        if holds.sum() < max(12, LINES // 40):
            break
        found.append(kink)
        points = points[~holds]
    return found


def rooted_planes(
    evaluate: Callable[[Floats], Floats], domain: Cube, kinks: Sequence[Kink], rng: np.random.Generator
) -> list[Kink]:
    """Where the target is like a root or a logarithm: those of the kinks along an axis, then sides of the cube.

    Off such a plane f(0) - 2 f(h) + f(2 h) falls as h^p with p < 2, as it does for t^p, at h from a hundredth to a
    ten-thousandth of the domain: of a smooth function it falls as h^2 at least, and beside a kink, too. A plane counts
    if that is so from a quarter of its points on.
    """
    found = []
    for kink in kinks:
        axis = along_axis(kink[0])
        if axis is not None:
            place, (low, high) = kink[1] / kink[0][axis], domain.box[axis]
            ways = (high - place, low - place)
            found += [kink] if any(_is_rooted(evaluate, domain, axis, place, way, rng) for way in ways) else []
    for axis, (low, high) in enumerate(domain.box):
        for side, way in ((low, high - low), (high, low - high)):
            is_rooted = _is_rooted(evaluate, domain, axis, float(side), float(way), rng)
            found += [(np.eye(domain.columns)[axis], float(side))] if is_rooted else []
    return found


def _is_rooted(
    evaluate: Callable[[Floats], Floats], domain: Cube, axis: int, place: float, way: float, rng: np.random.Generator
) -> bool:
    """Whether the target is so where the coordinate has the value `place`, on the side where it goes `way`."""
    depths = np.array([0.0, *DEPTHS, *(2 * depth for depth in DEPTHS)])
    points = np.tile(domain.sample(RAYS, rng), (len(depths), 1, 1))
    points[:, :, axis] = np.clip(place + depths * way, *domain.box[axis])[:, None]
    values = evaluate(points.reshape(-1, domain.columns)).reshape(len(depths), RAYS, -1)
    here, near, far = values[0], values[1 : 1 + len(DEPTHS)], values[1 + len(DEPTHS) :]
    bends = np.abs(here - 2 * near + far)
    with np.errstate(all="ignore"):
        falls = np.log10(bends[:-1] / bends[1:])
    is_told = bends[1:] > NOISE * np.abs(values).max(axis=0)
    return bool(((falls < ROOTED) & is_told).all(axis=0).any(axis=1).mean() >= 1 / 4)


def along_axis(normal: Floats) -> int | None:
    """The axis that the normal is along, or None.

    >>> along_axis(np.array([0.0, -1.0])), along_axis(np.array([0.6, 0.8]))
    (1, None)
    """
    axes = np.flatnonzero(np.abs(normal) > 1e-12)
    return int(axes[0]) if len(axes) == 1 else None


def _on_segments(domain: Sphere | Cube, starts: Floats, ends: Floats, places: Floats) -> Floats:
    """Points `(line, column)` at places in [0, 1] of chords, put back on the sphere."""
    points: Floats = starts + places[:, None] * (ends - starts)
    if isinstance(domain, Sphere):
        points = points / np.maximum(np.linalg.norm(points, axis=1, keepdims=True), 1e-12)
    return points


def _kink_places(
    evaluate: Callable[[Floats], Floats], domain: Sphere | Cube, starts: Floats, ends: Floats
) -> tuple[Floats, NDArray[np.bool_]]:
    """For each segment the place of its sharpest bend, and whether that is a kink."""

    def at(places: Floats) -> Floats:  # (line, place) -> (line, place, output)
        flat = places.T.reshape(-1)
        count = places.shape[1]
        points = _on_segments(domain, np.tile(starts, (count, 1)), np.tile(ends, (count, 1)), flat)
        return np.swapaxes(evaluate(points).reshape(count, len(starts), -1), 0, 1)

    def bend(places: Floats) -> Floats:  # (line, place - 2)
        values = at(places)
        found: Floats = np.abs(values[:, 2:] - 2 * values[:, 1:-1] + values[:, :-2]).max(axis=2)
        return found

    middle, width = np.full(len(starts), 0.5), 0.48
    rows = np.arange(len(starts))
    while width > STEP:
        places = middle[:, None] + width * np.linspace(-1.0, 1.0, CELLS + 1)
        middle = places[rows, 1 + bend(places).argmax(axis=1)]
        width *= 2.5 / CELLS
    # Two pairs of points well off the bend on either side: their lines meet at a kink's place.
    arms = np.array([-4.0, -2.0, 2.0, 4.0]) * STEP
    values = at(middle[:, None] + arms)
    left, right = values[:, 1] - values[:, 0], values[:, 3] - values[:, 2]
    jump = (right - left) / (2 * STEP)
    output = np.abs(jump).argmax(axis=1)
    slope_left, turn = left[rows, output] / (2 * STEP), jump[rows, output]
    size = np.abs(values).max(axis=(1, 2)) + np.abs(slope_left)
    is_kink = np.abs(turn) > 1e-2 * size + 1e-6
    with np.errstate(all="ignore"):
        # left: y1 + a (p + 2 STEP), right: y2 + (a + turn) (p - 2 STEP); equal at p
        gap = values[rows, 1, output] - values[rows, 2, output] + 2 * STEP * (2 * slope_left + turn)
        shift = np.where(is_kink, gap / turn, 0.0)
    is_kink &= np.abs(shift) < 2 * STEP
    # Around that place, arms a quarter as long show the same jump of the slope; of curvature, a quarter.
    places = middle + np.where(is_kink, shift, 0.0)
    values = at(places[:, None] + np.array([-1.0, -0.5, 0.5, 1.0]) * STEP)
    again = (values[:, 3] - values[:, 2] - values[:, 1] + values[:, 0])[rows, output] / (STEP / 2)
    return places, is_kink & (np.abs(again) > 0.7 * np.abs(turn))


def _common_plane(points: Floats, rng: np.random.Generator) -> tuple[Kink, NDArray[np.bool_]]:
    """The hyperplane that most points lie on, by random minimal sets, then by all that agree; and which they are."""
    best = np.zeros(len(points), dtype=bool)
    for _ in range(200):
        rows = rng.choice(len(points), size=points.shape[1], replace=False)
        holds = np.abs(_offsets(points, _plane(points[rows]))) < SAME
        best = holds if holds.sum() > best.sum() else best
    kink = _plane(points[best]) if best.sum() >= points.shape[1] else (np.eye(points.shape[1])[0], 2.0)
    kink = _rounded(kink)
    return kink, np.abs(_offsets(points, kink)) < SAME


def _plane(points: Floats) -> Kink:
    middle = points.mean(axis=0)
    normal = np.linalg.svd(points - middle)[2][-1]
    return normal, float(normal @ middle)


def _offsets(points: Floats, kink: Kink) -> Floats:
    found: Floats = points @ kink[0] - kink[1]
    return found


def _rounded(kink: Kink) -> Kink:
    """Numbers within 1e-7 of a multiple of 1e-4 are taken for it: people write 0, 1 and 0.25, not 1e-12."""
    normal, offset = kink
    normal = normal * (1.0 if normal[np.abs(normal).argmax()] > 0 else -1.0) + 0.0
    offset = offset * (1.0 if normal @ kink[0] > 0 else -1.0)
    near = np.round(normal, 4)
    normal = np.where(np.abs(near - normal) < 1e-7, near, normal)
    offset = round(offset, 4) if abs(round(offset, 4) - offset) < 1e-7 else offset
    length = float(np.linalg.norm(normal))
    return normal / length, offset / length


def _is_same(one: Kink, other: Kink) -> bool:
    sign = 1.0 if one[0] @ other[0] > 0 else -1.0
    return bool(np.abs(one[0] - sign * other[0]).max() < 1e-9 and abs(one[1] - sign * other[1]) < 1e-9)


def _cuts(domain: Domain, kink: Kink) -> bool:
    """Whether the hyperplane meets the domain's inside."""
    low, high = range_along(domain, kink[0])
    return low < kink[1] < high


def range_along(domain: Domain, normal: Floats) -> tuple[float, float]:
    """The least and largest <normal, x> over the domain."""
    match domain:
        case Sphere():
            return -1.0, 1.0
        case Cube():
            ends = domain.box * normal[:, None]
            return float(ends.min(axis=1).sum()), float(ends.max(axis=1).sum())
    found = domain.points @ normal
    return float(found.min()), float(found.max())


def near_kinks(domain: Domain, points: Floats, kinks: list[Kink], rng: np.random.Generator) -> Floats:
    """The points, every second one moved along the normal of a random one of the kinks.

    A third of those to anywhere between the domain's ends, the others to a log-uniform distance from 1e-9 on.
    """
    if not kinks or isinstance(domain, FiniteSet):
        return points
    found = np.array(points)
    which = rng.integers(2 * len(kinks), size=len(points))
    for index, (normal, offset) in enumerate(kinks):
        rows = np.flatnonzero(which == 2 * index + 1)
        low, high = range_along(domain, normal)
        side = np.where(rng.random(len(rows)) < (high - offset) / (high - low), high - offset, low - offset)
        share = np.exp(rng.uniform(math.log(CLOSEST), 0.0, len(rows)))
        even = np.sin(rng.uniform(0.0, math.pi / 2, len(rows)))  # more of them towards the ends
        wanted = offset + side * np.where(rng.random(len(rows)) < 1 / 3, even, share)
        moved, is_inside = _moved(domain, found[rows], normal, wanted)
        found[rows[is_inside]] = moved[is_inside]
    return found


def _moved(domain: Sphere | Cube, points: Floats, normal: Floats, wanted: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """The points moved along (on the sphere: around) until <normal, x> is as wanted; and which could be.

    In a cube those that would leave it go towards the corner that is the furthest along: only there are values of
    <normal, x> near its ends, and of three or more dimensions hardly a point drawn at random has one.
    """
    along = points @ normal
    if isinstance(domain, Cube):
        moved: Floats = points + (wanted - along)[:, None] * normal
        lower, upper = domain.box.T
        has_left = ((moved < lower) | (moved > upper)).any(axis=1)
        corner = np.where((normal > 0) == (wanted > along)[:, None], upper, lower)
        rise = corner @ normal
        share = np.clip((wanted - along) / np.where(rise == along, 1.0, rise - along), 0.0, 1.0)
        moved[has_left] = (points + share[:, None] * (corner - points))[has_left]
        return np.clip(moved, lower, upper), np.ones(len(points), dtype=bool)
    across = points - along[:, None] * normal
    length = np.linalg.norm(across, axis=1, keepdims=True)
    shrink = np.sqrt(np.maximum(1.0 - wanted**2, 0.0))[:, None]
    moved = wanted[:, None] * normal + across * shrink / np.maximum(length, 1e-12)
    moved = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return moved, length[:, 0] > 1e-9


def check_kinks(domain: Domain, kinks: list[Kink]) -> None:
    """CompileError for a declared kink that does not meet the domain: it would only lengthen the prefix."""
    for normal, offset in kinks:
        if not _cuts(domain, (normal, offset)):
            low, high = range_along(domain, normal)
            raise CompileError(
                f"A declared kink does not meet {domain}.",
                expected=f"an offset between {low:g} and {high:g} along {np.round(normal, 6).tolist()}",
                found=f"{offset:g}",
                fix="Leave the kink out, or correct its offset.",
            )
