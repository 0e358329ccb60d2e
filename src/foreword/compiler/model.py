"""What a proof knows of f and g on a block of cells: ranges, slopes, rounding errors, values at points.

f comes as an expression (its tape), or as a callable with derivatives or a Lipschitz constant (`taylor.py`). g is a
head; keys that cannot matter on a block are left out of it, and what they could add is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.compiler import rectangles
from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, Identity
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import Node
from foreword.compiler.head import Head
from foreword.compiler.intervals import TINY, ULP, finite, point
from foreword.compiler.recording import tape_of
from foreword.compiler.rectangles import Rectangle
from foreword.compiler.sharp import SharpRanges
from foreword.compiler.tape import KINKED, Known, StandIn, Tape
from foreword.compiler.target import Target
from foreword.compiler.taylor import ON_KINK, taylor_of, taylor_size, taylor_values

UP = 1 + 1e-9  # outward: covers a handful of roundings of nonnegative terms
NEGLIGIBLE = 1e-4  # share of the goal that left-out keys may add


@dataclass
class Surface:
    """f and the query on a block of cells, in local parameters s in [-1, 1]; see the fields' comments for shapes."""

    centre: Floats  # (cell, axis)
    half: Floats  # (cell, axis)
    query: Floats  # (cell, q): at the centre
    query_error: Floats  # (cell, q): rounding of computed queries anywhere on the cell
    query_size: Floats  # (cell, q): largest |q_c| on the cell
    jacobian: Floats  # (cell, axis, q): near dq/ds at the centre
    wobble: Floats  # (cell, axis, q): bounds |dq/ds - jacobian| on the real cell
    curvature: Floats  # (cell, region, q): bounds |q(s) - q(0) - jacobian s|; region 0 is the real cell
    reach: Floats  # (cell, q): bounds |q(s) - q(0)| on the real cell
    value: Floats  # (cell, output): near f at the centre
    swing: Floats  # (cell, region, output): bounds |stand-in - value|
    slope: Floats  # (cell, axis, output): bounds |d stand-in / ds| on the real cell
    error: Floats  # (cell, output): bounds the rounding of the stand-in's values at points
    rest: Floats  # (cell, output): bounds |f - stand-in| on the real cell
    extent: Floats  # (cell, axis): half lengths of the cell in the domain's metric
    blame: Floats  # (cell, axis): how much each axis does to make the rest
    span: Floats  # (cell, 2, output): middle and radius of f's range
    frozen: NDArray[np.bool_]  # (cell,): the stand-in is the constant `value`
    stand_ins: dict[int, StandIn]
    taylor: list[Floats]  # for a callable: value, gradient, Hessian at the centre

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return int(self.value.shape[1])

    def rows(self, rows: NDArray[np.intp]) -> Surface:
        """The same for some of the cells."""
        chosen = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in ("stand_ins", "taylor")}
        stand_ins = {index: stand.rows(rows) for index, stand in self.stand_ins.items()}
        return Surface(**chosen, stand_ins=stand_ins, taylor=[array[rows] for array in self.taylor])


class Model:
    """f, g and their domain, ready for `Residual`."""

    def __init__(self, head: Head, chart: Chart, target: Target, domain: Sphere | Cube, frame: Floats | None) -> None:
        self.head, self.target, self.domain = head, target, domain
        self.parameters = domain.dimension
        self.frame = frame
        self.has_expression = target.expression is not None
        outputs = target.expression.outputs if target.expression is not None else _columns_and_kinks(target, domain)
        is_plain = isinstance(chart, Identity) or chart.name == "identity"
        self.tape: Tape = tape_of(domain, outputs, () if is_plain else chart.expressions(domain.columns), frame)
        self.keys, self.biases, self.values = head.keys, head.biases, head.values
        self.key_error = 0.0
        if is_plain and frame is not None:  # <u, F y> = <F'u, y>; the frame meant is within `gap` of the one given
            gap = float(np.linalg.norm(frame.T @ frame - np.eye(len(frame)))) + 1e-14
            self.keys = head.keys @ frame
            self.key_error = gap * float(np.linalg.norm(head.keys, axis=1).max())
        self.value_range = float(np.ptp(head.values, axis=0).max())
        self.key_sizes = np.abs(self.keys).sum(axis=1) + np.abs(self.biases)
        self.largest_value = float(np.abs(head.values).max())
        depends = self.turns = self.tape.depends()
        used = [place for column, place in enumerate(self.tape.queries) if self.keys[:, column].any()]
        self.depends = depends[[*used, *self.tape.outputs]].any(axis=0)
        if not self.has_expression:
            self.depends = np.ones(self.parameters, dtype=bool)

    def surface(self, centre: Floats, half: Floats) -> Surface:
        """Everything about f and the query on the real cells; `extended` adds the complex regions."""
        cells, axes = centre.shape
        sharp = SharpRanges(self.domain, self.frame, centre - half, centre + half)
        known, stand_ins = self.tape.on_cells(centre - half, centre + half, sharp)
        middles = self.tape.at_points(centre[:, None, :], stand_ins)
        steps = [known[place] for place in self.tape.queries]
        jacobian = np.zeros((cells, axes, len(steps)))
        wobble, reach = np.zeros_like(jacobian), np.zeros((cells, len(steps)))
        for column, step in enumerate(steps):
            for axis, slope in enumerate(step.slopes):
                if slope is not None:
                    near = np.broadcast_to(slope.re.middle(), (cells,))
                    jacobian[:, axis, column] = near * half[:, axis]
                    wobble[:, axis, column] = (slope + Rectangle(point(-near))).size() * half[:, axis] * UP
                    reach[:, column] += slope.size() * half[:, axis] * UP
        nothing = np.zeros((cells, 0, 0))
        surface = Surface(
            centre=centre, half=half, jacobian=jacobian, wobble=wobble, reach=reach,
            query=np.stack([_column(middles[place], cells) for place in self.tape.queries], axis=1),
            query_error=np.stack([step.error + step.rest for step in steps], axis=1),
            query_size=np.stack([_column(step.range.size(), cells) for step in steps], axis=1),
            curvature=wobble.sum(axis=1)[:, None, :] * UP, value=nothing, swing=nothing, slope=nothing, error=nothing,
            rest=nothing, span=nothing, extent=self._extents(half, known), blame=nothing,
            frozen=np.zeros(cells, dtype=bool), stand_ins=stand_ins, taylor=[],
        )  # fmt: skip
        if self.has_expression:
            self._add_expression(surface, known, middles, sharp)
        else:
            self._add_callable(surface, known, middles)
        return surface

    def extended(self, surface: Surface, ellipses: list[Rectangle]) -> Surface:
        """The surface with all regions; `ellipses` are the parameters on the complex ones, `(axis, ratio, cell)`."""
        complexes = self.tape.on_rectangles(ellipses, surface.stand_ins)
        shape = np.broadcast_shapes(*[box.re.lo.shape for box in ellipses])
        stretch = [box.re.radius() * (1 + 8 * ULP) for box in ellipses]
        curvature = np.zeros((*shape, len(self.tape.queries)))
        for column, place in enumerate(self.tape.queries):
            for axis, around in enumerate(complexes[place][1]):
                if around is not None:
                    near = self._per_radian(surface, axis, column)
                    curvature[..., column] += (around + Rectangle(point(-near))).size() * stretch[axis]
        if self.has_expression:
            offsets = [Rectangle(point(-surface.value[:, column])) for column in range(surface.outputs)]
            sizes = [(complexes[p][0] + offset).size() for p, offset in zip(self.tape.outputs, offsets, strict=True)]
        else:
            base, places = self._columns_at(surface), self.tape.outputs[: self.domain.columns]
            moves = [complexes[place][0] + Rectangle(point(-base[:, c])) for c, place in enumerate(places)]
            sizes = [taylor_size([part[:, o] for part in surface.taylor[1:]], moves) for o in range(surface.outputs)]
        swing = np.stack([np.broadcast_to(size, shape) for size in sizes], axis=-1)
        swing = np.where(surface.frozen[:, None], 0.0, swing)
        swing, curvature = _by_region(swing * UP), _by_region(curvature * UP)
        found = replace(
            surface,
            swing=np.concatenate([surface.swing, swing], axis=1),
            curvature=np.concatenate([surface.curvature, curvature], axis=1),
        )
        # Where f is singular close to the cell, a constant stands in for it.
        nearest = swing.reshape(len(swing), self.parameters, -1, surface.outputs)[:, :, 0]
        _freeze(found, ~np.isfinite(nearest).all(axis=(1, 2)))
        return found

    def _per_radian(self, surface: Surface, axis: int, column: int) -> Floats:
        """The middle slope by the parameter itself, as near as makes no difference to `curvature` (it is widened)."""
        half = surface.half[:, axis]
        return np.asarray(surface.jacobian[:, axis, column] / np.where(half > 0, half, 1.0))

    def _columns_at(self, surface: Surface) -> Floats:
        base = self.tape.at_points(surface.centre[:, None, :], surface.stand_ins)
        places = self.tape.outputs[: self.domain.columns]
        return np.stack([_column(base[place], len(surface.centre)) for place in places], axis=-1)

    def _extents(self, half: Floats, known: list[Known]) -> Floats:
        """Half lengths of the cells: on the sphere angle i moves at the speed cos a_0 ... cos a_(i-1)."""
        found = half.copy()
        if isinstance(self.domain, Sphere):
            speed = np.ones(len(half))
            for axis in range(1, self.parameters):
                cosine = np.cos(np.maximum(np.abs(_axis_range(known, axis - 1)).min(axis=0), 0.0))
                crosses = np.prod(np.sign(_axis_range(known, axis - 1)), axis=0) < 0
                speed = speed * np.where(crosses, 1.0, np.clip(np.abs(cosine) + 8 * ULP, 0.0, 1.0))
                found[:, axis] *= speed
        return found

    def _add_expression(self, surface: Surface, known: list[Known], middles: list[Any], sharp: SharpRanges) -> None:
        cells, outputs = len(surface.centre), self.tape.outputs
        ranges = [known[place].range.re for place in outputs]
        value = np.stack([_column(middles[place], cells) for place in outputs], axis=1)
        is_lost = np.asarray(~np.isfinite(value).all(axis=1))
        surface.value = finite(value)
        surface.rest = np.stack([_column(known[place].rest, cells) for place in outputs], axis=1)
        surface.error = np.stack([_column(known[place].error, cells) for place in outputs], axis=1)
        offsets = [Rectangle(point(-surface.value[:, column])) for column in range(len(outputs))]
        swing = [(Rectangle(span) + offset).size() for span, offset in zip(ranges, offsets, strict=True)]
        surface.swing = np.stack([_column(size, cells) for size in swing], axis=-1)[:, None, :] * UP
        surface.slope = np.zeros((cells, self.parameters, len(outputs)))
        for column, place in enumerate(outputs):
            for axis, inner in enumerate(known[place].slopes):
                if inner is not None:
                    surface.slope[:, axis, column] = inner.size() * surface.half[:, axis] * UP
        surface.blame = self._blame(surface, known)
        # Where f has no bounded slope or no bounded rounding, a constant stands in for it, if f is sure to exist.
        is_lost = is_lost | ~(np.isfinite(surface.slope).all(axis=(1, 2)) & np.isfinite(surface.error).all(axis=1))
        if is_lost.any() and self.target.expression is not None:
            sure = [Rectangle(sharp.of(node)) for node in self.target.expression.outputs]
            pairs = zip(sure, ranges, strict=True)
            ranges = [rectangles.where(is_lost, there, Rectangle(span)).re for there, span in pairs]
        spans = [[_column(span.middle(), cells), _column(span.radius(), cells)] for span in ranges]
        surface.span = np.array(spans).transpose(2, 1, 0)
        _freeze(surface, is_lost)

    def _blame(self, surface: Surface, known: list[Known]) -> Floats:
        found = np.zeros(surface.centre.shape)
        for index, step in enumerate(self.tape.steps):
            if step.operation not in KINKED and index not in surface.stand_ins:
                continue
            given = [known[place] for place in step.arguments]
            is_split = known[index].rest > np.max([inner.rest for inner in given], axis=0)
            for axis in range(self.parameters):
                slopes = [inner.slopes[axis] for inner in given]
                size = sum((slope.size() for slope in slopes if slope is not None), np.zeros(len(found)))
                if len(slopes) == 2 and slopes[0] is not None and slopes[1] is not None:
                    size = (slopes[0] - slopes[1]).size()
                size = np.where(np.isfinite(size), size, 1.0 * self.turns[index, axis])
                found[:, axis] += np.where(is_split, size * surface.half[:, axis], 0.0)
        return found

    def _add_callable(self, surface: Surface, known: list[Known], middles: list[Any]) -> None:
        cells, columns = len(surface.centre), self.domain.columns
        points = np.stack([_column(middles[place], cells) for place in self.tape.outputs[:columns]], axis=1)
        # The point at which f is evaluated is this far from the middle of the cell.
        off = sum((known[place].error + known[place].rest for place in self.tape.outputs[:columns]), np.zeros(cells))
        length = np.sqrt((surface.extent**2).sum(axis=1)) * UP + off
        is_split = np.zeros(cells, dtype=bool)
        for place in self.tape.outputs[columns:]:
            side = known[place].range.re
            is_split |= (side.lo < -ON_KINK) & (side.hi > ON_KINK)
        found = taylor_of(self.target, points, length, is_split)
        surface.taylor, surface.value = found.parts, found.value
        surface.swing, surface.slope = found.swing[:, None, :], found.slope[:, None, :] * surface.extent[:, :, None]
        surface.rest, surface.error = found.rest, found.error
        surface.span = np.stack([found.value, (found.swing + found.rest) * UP], axis=1)
        surface.blame = surface.extent

    def kept_keys(self, surface: Surface, goal: float) -> tuple[NDArray[np.intp], float]:
        """The keys that can matter on the block, and a bound on what the others could change in g."""
        count = self.head.positions
        middle = surface.query.mean(axis=0)
        radius = (np.abs(surface.query - middle) + surface.reach).max(axis=0)
        scores = self.keys @ middle + self.biases
        top = int(np.argmax(scores))
        ahead = scores - scores[top] + np.abs(self.keys - self.keys[top]) @ radius
        margin = 1e-9 * (1 + float(self.key_sizes.max()))
        share = NEGLIGIBLE * goal / (self.value_range * count) if self.value_range > 0 else 1.0
        limit = np.log(share) if share > 0 else -np.inf
        is_kept = ~(ahead + margin < min(limit, -1.0))
        is_kept[top] = True
        left_out = ahead[~is_kept] + margin
        far = float(np.exp(left_out).sum()) * self.value_range * (1 + 1e-6) if left_out.size else 0.0
        return np.flatnonzero(is_kept), far

    def eta(self, surface: Surface, rows: slice, kept: NDArray[np.intp], size_of_spread: Floats) -> Floats:
        """Relative error `(cell,)` of weights, up to a factor common to all keys (statement C.4).

        `size_of_spread` `(cell, key, q)` is |key - mean key|: the query's own rounding moves scores by that much more
        or less than the mean key's score.
        """
        keys = np.abs(self.keys[kept])
        size = (surface.query_size[rows] @ keys.T + np.abs(self.biases[kept])).max(axis=1)
        moved = (size_of_spread @ surface.query_error[rows][:, :, None])[..., 0].max(axis=1)
        moved = moved + self.key_error * np.sqrt((surface.query_size[rows] ** 2).sum(axis=1))
        found = (self.keys.shape[1] + 4) * ULP * size * (1 + 1e-9) + moved + 8 * ULP
        return np.where(np.isnan(found), np.inf, found)

    def head_error(self, spread: Floats, eta: Floats, count: int) -> Floats:
        """Rounding `(cell, output)` of g with `count` keys at points (statement C.4); `spread` bounds
        sum_k w_k |v_k - g| and `eta` `(cell,)` the weights' relative error."""
        spread = np.minimum(spread, self.value_range)
        return np.asarray(
            np.expm1(2 * eta)[:, None] * spread + (2 * count + 8) * ULP * self.largest_value + TINY, dtype=np.float64
        )

    def errors_at(self, surface: Surface, local: Floats, kept: NDArray[np.intp], mean: Floats) -> Floats:
        """stand-in - g `(cell, point, output)` at local points `(point, axis)`; `mean` `(cell, q)`: the mean keys."""
        parameters = surface.centre[:, None, :] + surface.half[:, None, :] * local
        found = self.tape.at_points(parameters, surface.stand_ins)
        shape = parameters.shape[:2]
        queries = np.stack([np.broadcast_to(found[place], shape) for place in self.tape.queries], axis=-1)
        places = self.tape.outputs if self.has_expression else self.tape.outputs[: self.domain.columns]
        values = np.stack([np.broadcast_to(found[place], shape) for place in places], axis=-1)
        if not self.has_expression:
            values = taylor_values(surface.taylor, values - self._columns_at(surface)[:, None, :])
        values = np.where(surface.frozen[:, None, None], surface.value[:, None, :], values)
        return values - self._head_values(queries, kept, surface.query, mean)

    def _head_values(self, queries: Floats, kept: NDArray[np.intp], middle: Floats, mean: Floats) -> Floats:
        cells, points, width = queries.shape
        keys, biases = self.keys[kept], self.biases[kept]
        # One shift for all scores of a point: the largest at the centre, and what all keys together gain from there.
        shift = (middle @ keys.T + biases).max(axis=1)[:, None]
        shift = shift + ((queries - middle[:, None, :]) @ mean[:, :, None])[..., 0]
        table = np.concatenate([keys.T, biases[None, :], np.ones((1, len(kept)))])
        rows = np.empty((cells, points, width + 2))
        rows[..., :width], rows[..., width], rows[..., width + 1] = queries, 1.0, -shift
        weights = rows.reshape(cells * points, width + 2) @ table
        np.exp(weights, out=weights)
        sums = weights @ np.concatenate([self.values[kept], np.ones((len(kept), 1))], axis=1)
        found: Floats = (sums[:, :-1] / sums[:, -1:]).reshape(cells, points, -1)
        return found


def query_norm(chart: Chart, domain: Sphere | Cube) -> float:
    """A bound on the length of queries over the whole domain."""
    tape = tape_of(domain, (), chart.expressions(domain.columns))
    with np.errstate(all="ignore"):
        known, _ = tape.on_cells(domain.box[None, :, 0], domain.box[None, :, 1])
    sizes = np.array([float(np.max(known[place].range.size())) for place in tape.queries])
    return float(np.sqrt((sizes**2).sum())) * (1 + 1e-9)


def _columns_and_kinks(target: Target, domain: Sphere | Cube) -> tuple[Node, ...]:
    """The columns as nodes, and <normal, x> - offset for every declared kink."""
    columns = [Node("variable", value=column) for column in range(domain.columns)]
    sides = []
    for normal, offset in target.kinks:
        total = Node("constant", value=-offset)
        for weight, column in zip(normal, columns, strict=True):
            total = Node("add", (total, Node("multiply", (Node("constant", value=weight), column))))
        sides.append(total)
    return (*columns, *sides)


def _column(values: Any, cells: int) -> Floats:
    """Values of a step as `(cell,)`."""
    array = np.asarray(values, dtype=np.float64)
    return np.array(np.broadcast_to(array[:, 0] if array.ndim == 2 else array, (cells,)))


def _axis_range(known: list[Known], axis: int) -> Floats:
    span = known[axis].range.re
    return np.stack([span.lo, span.hi])


def _by_region(values: Floats) -> Floats:
    """`(axis, ratio, cell, column)` as `(cell, region, column)`."""
    return np.moveaxis(values.reshape(-1, *values.shape[2:]), 0, 1)


def _freeze(surface: Surface, rows: Any) -> None:
    """On these cells a constant, the middle of f's range, stands in for f."""
    lost = rows[:, None]
    surface.frozen = surface.frozen | rows
    surface.value = np.where(lost, surface.span[:, 0], surface.value)
    surface.rest, surface.error = np.where(lost, surface.span[:, 1], surface.rest), np.where(lost, 0.0, surface.error)
    surface.swing = np.where(lost[:, None], 0.0, surface.swing)
    surface.slope = np.where(lost[:, None], 0.0, surface.slope)
