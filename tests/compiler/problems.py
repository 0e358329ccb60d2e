"""Problems for the prover, drawn at random or made with a known error, and nothing fitted at length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.charts import Chart, Paraboloid, chart_of
from foreword.compiler.domain import Cube, Sphere, frame_along
from foreword.compiler.expression import coordinate_names
from foreword.compiler.head import Head
from foreword.compiler.parser import parse_expression
from foreword.compiler.target import Target

# {a} and {c} are linear terms, {b} lies in [-1, 1].
FORMS = (
    "sin({a})", "cos({a})", "exp({a})", "tanh({a})", "sinh({a})", "cosh({a})", "arctan({a})", "sqrt(1.5+{b})",
    "log(2+{b})", "({a})**2", "({a})**3", "1/(2.5+{b})", "abs({a})", "max({a},{c})", "min({a},{c})", "tan(0.4*{b})",
    "arcsin(0.6*{b})", "arccos(0.5*{b})", "erf({a})", "sinc({a})", "({a})*({c})", "({a})/(3+{c}**2)",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A head, a target, and a frame or none."""

    head: Head
    chart: Chart
    target: Target
    domain: Sphere | Cube
    frame: Floats | None

    def errors(self, parameters: Floats) -> Floats:
        """|f - g| of the worst output `(batch,)` at parameters `(batch, axis)`."""
        points = self.domain.embed(parameters)
        points = points if self.frame is None else points @ self.frame.T
        assert self.target.expression is not None
        values = self.target.expression.evaluate(points)
        found: Floats = np.abs(values - self.head.evaluate(self.chart(points))).max(axis=1)
        return found


def expression_text(columns: int, rng: np.random.Generator, depth: int = 2) -> str:
    """A random text over that many coordinates."""
    names = coordinate_names(columns)
    one, two = rng.choice(names), rng.choice(names)
    a = f"{rng.normal() * 2:.3f}*{one}+({rng.normal():.3f})*{two}+({rng.normal():.3f})"
    c = f"(({rng.normal():.3f})*{rng.choice(names)}-({rng.normal():.3f})*{one})"
    text = str(rng.choice(FORMS)).format(a=a, b=f"sin({a})", c=c)
    if depth and rng.random() < 0.5:
        text = f"{text} + ({rng.normal():.3f})*{expression_text(columns, rng, depth - 1)}"
    return text


def random_problem(rng: np.random.Generator) -> Problem:
    """Any domain, chart, frame, temperature, size of values; target and head have nothing to do with each other."""
    dimension = int(rng.integers(1, 4))
    domain: Sphere | Cube = Sphere(dimension)
    if rng.random() < 0.4:
        lower = rng.normal(size=dimension)
        domain = Cube(np.stack([lower, lower + 10 ** rng.uniform(-1, 1, dimension)], axis=1).tolist())
    outputs = int(rng.integers(1, 3))
    texts = [expression_text(domain.columns, rng) for _ in range(outputs)]
    text = texts[0] if outputs == 1 else f"[{', '.join(texts)}]"
    target = Target(domain=domain, expression=parse_expression(text, domain.columns))
    flat = chart_of(domain)
    chart: Chart = flat
    if isinstance(domain, Cube) and rng.random() < 0.4:
        chart = Paraboloid.of(flat)
    frame = frame_along(rng.normal(size=domain.columns)) if isinstance(domain, Sphere) and rng.random() < 0.4 else None
    positions, sharpness = int(rng.integers(1, 20)), 10 ** rng.uniform(-2, 3)
    head = Head(
        sharpness * rng.normal(size=(positions, chart.width)),
        rng.normal(size=positions) * rng.choice([0, 1, 10]),
        rng.normal(size=(positions, outputs)) * 10 ** rng.uniform(-4, 3),
    )
    return Problem(head, chart, target, domain, frame)


def random_cells(domain: Sphere | Cube, count: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Cells `(cell, axis)` of all sizes and proportions, by their corners."""
    low, high = domain.box.T
    size = 10 ** rng.uniform(-5, 0, (count, 1)) * 10 ** rng.uniform(-1, 0, (count, len(low)))
    width = (high - low) * size
    lower = low + rng.random((count, len(low))) * (high - low - width)
    return lower, lower + width


def points_in(lower: Floats, upper: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Points `(cell, point, axis)` of cells, corners among them."""
    share = rng.random((len(lower), count, lower.shape[1]))
    corners = min(count, 2 ** lower.shape[1])
    share[:, :corners] = np.indices((2,) * lower.shape[1]).reshape(lower.shape[1], -1).T[:corners]
    found: Floats = lower[:, None] + (upper - lower)[:, None] * share
    return found


def solved(
    domain: Sphere | Cube, target: Target, keys: Floats, biases: Floats, *, cutoff: float, points: Floats | None = None
) -> Head:
    """Values by truncated least squares on the softmax features of given keys (statement B.3)."""
    chart = chart_of(domain)
    places = domain.spread(6 * len(keys)) if points is None else points
    features = Head(keys, biases, np.zeros((len(keys), 1))).weights(chart(places))
    left, sizes, right = np.linalg.svd(features, full_matrices=False)
    kept = sizes > cutoff * sizes[0]
    values = right[kept].T @ ((left.T @ target.evaluate(places))[kept] / sizes[kept, None])
    return Head(keys, biases, values)


def ridge(positions: int, core: float, normal: Floats, cutoff: float) -> Head:
    """Graded keys along `normal` that make |<normal, x>|: temperatures grow towards the kink (statements A3, B.4)."""
    half = positions // 2
    places = np.geomspace(core, 1.0, half)
    places = np.concatenate([-places[::-1], [0.0] * (positions % 2), places])
    spread = 3 * np.log(1 / core) / half
    size = np.abs(places)
    inner = size < core
    slope = np.where(inner, size / core**2, 1 / core + (1 / core - 1 / np.maximum(size, core)))
    height = np.where(
        inner, size**2 / (2 * core**2),
        0.5 + 2 / core * (size - core) - np.log(np.maximum(size, core) / core),
    )  # fmt: skip
    keys = np.sign(places) * slope / spread**2
    biases = height / spread**2 - keys * places
    line = np.unique(np.concatenate([-np.logspace(0, -9, 1500), [0.0], np.logspace(-9, 0, 1500)]))
    features = Head(keys[:, None], biases, np.zeros((positions, 1))).weights(line[:, None])
    left, sizes, right = np.linalg.svd(features, full_matrices=False)
    kept = sizes > cutoff * sizes[0]
    values = right[kept].T @ ((left.T @ np.abs(line))[kept] / sizes[kept])
    return Head(keys[:, None] * np.asarray(normal), biases, values[:, None])
