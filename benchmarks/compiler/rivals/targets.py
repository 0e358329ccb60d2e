"""The targets: a random family, drawn from seeds, and the catalogue; and the points at which everything is judged.

Smooth: two sums of plane waves (band-limited: frequencies 1 to 3), two of Gaussian bumps (widths 0.5 to 0.8) and two of
rational ridges (poles 0.65 to 2 away) in each domain, scaled to about 1. Kinks across random hyperplanes: straight,
curved, and times a plane wave. All are written as expressions, so that certificates can be had.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.charts import chart_of
from foreword.compiler.construction.contract import near_sides
from foreword.compiler.construction.kinks import Kink, kinks_of, near_kinks
from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.expression import coordinate_names
from foreword.compiler.target import Target, target_of

Floats = NDArray[np.float64]

DOMAINS: dict[str, Sphere | Cube] = {
    "S1": Sphere(1),
    "S2": Sphere(2),
    "S3": Sphere(3),
    "square": Cube([(-1, 1)] * 2),
    "cube": Cube([(-1, 1)] * 3),
}
LENGTHS = {"S1": 24, "S2": 128, "S3": 512, "square": 144, "cube": 1728}  # of the comparison on smooth targets
SMOOTH = ("harm", "trig", "bump", "oscillatory")  # entries that are smooth at the family's scale
ROUGHER = ("runge",)  # poles much closer: shown, not compared
JUDGED = 40_000
CHOSEN = 4_000


@dataclass(frozen=True)
class Case:
    """One target on one domain, and how many positions a prefix for it has."""

    domain_name: str
    name: str
    kind: str  # "smooth", "rougher", "kink", "curved kink", "kink times wave"
    text: str
    positions: int

    @property
    def domain(self) -> Sphere | Cube:
        return DOMAINS[self.domain_name]

    @property
    def target(self) -> Target:
        return target_of(self.text, self.domain)

    @property
    def floats(self) -> int:
        """What a prefix stores: a key, a bias and a value for each position; a smooth cube's keys are wider."""
        is_wider = isinstance(self.domain, Cube) and self.kind in ("smooth", "rougher")
        return self.positions * (self.domain.columns + 2 + is_wider)

    @property
    def is_drawn(self) -> bool:
        """Whether it is one of the random family, not the catalogue's."""
        return self.text != self.name

    @property
    def kinks(self) -> list[Kink]:
        """Read off the expression, as the compiler does."""
        return kinks_of(self.target, self.domain, np.random.default_rng(0))[0]


@dataclass(frozen=True)
class Points:
    """Points of the domain, their queries (a cube's scaled to [-1, 1]) and the target's values `(batch,)`."""

    points: Floats
    queries: Floats
    values: Floats


def drawn(case: Case, count: int, seed: int) -> Points:
    """Points drawn at random, some of them on a cube's sides, half of them near a kink where there is one."""
    rng = np.random.default_rng([seed, count])
    points = near_sides(case.domain, case.domain.sample(count, rng), rng)
    points = near_kinks(case.domain, points, case.kinks, rng)
    return Points(points, chart_of(case.domain)(points), case.target.evaluate(points)[:, 0])


def smooth_cases(domain_name: str) -> list[Case]:
    """The six random targets, then the catalogue's."""
    domain, positions = DOMAINS[domain_name], LENGTHS[domain_name]
    made = []
    for number, family in enumerate((_waves, _waves, _bumps, _bumps, _rational, _rational)):
        rng = np.random.default_rng([7, number, domain.columns, isinstance(domain, Cube)])
        name = f"{family.__name__.strip('_')}{number % 2 + 1}"
        made.append(Case(domain_name, name, "smooth", _scaled(family(domain, rng), domain), positions))
    for name in SMOOTH + ROUGHER:
        kind = "smooth" if name in SMOOTH else "rougher"
        made.append(Case(domain_name, name, kind, name, positions))
    return made


def kink_cases(domain_name: str, kind: str, positions: int, *, count: int = 3) -> list[Case]:
    """Across t = <n, x> - c with seeded n and c: |t|, e^-|t| cos 2t, or |t| times a plane wave in another direction."""
    domain, made = DOMAINS[domain_name], []
    for number in range(count):
        rng = np.random.default_rng([8, number, domain.columns, isinstance(domain, Cube)])
        t = _linear(_direction(rng, domain.columns), -rng.uniform(-0.6, 0.6))
        wave = _linear(2 * _direction(rng, domain.columns), rng.uniform(0, 6))
        texts = {"kink": f"abs({t})", "curved kink": f"exp(-abs({t})) * cos(2 * ({t}))"}
        texts["kink times wave"] = f"abs({t}) * sin({wave})"
        made.append(Case(domain_name, f"{kind} {number + 1}", kind, texts[kind], positions))
    return made


def _linear(slopes: Floats, constant: float) -> str:
    names = coordinate_names(len(slopes))
    terms = [f"({slope:.6f}) * {name}" for slope, name in zip(slopes, names, strict=True)]
    return f"{' + '.join(terms)} + ({constant:.6f})"


def _direction(rng: np.random.Generator, columns: int) -> Floats:
    vector = rng.normal(size=columns)
    return np.asarray(vector / np.linalg.norm(vector))


def _waves(domain: Sphere | Cube, rng: np.random.Generator) -> str:
    terms = [
        f"({rng.normal():.6f}) * sin({_linear(rng.uniform(1, 3) * _direction(rng, domain.columns), rng.uniform(0, 6))})"
        for _ in range(4)
    ]
    return " + ".join(terms)


def _bumps(domain: Sphere | Cube, rng: np.random.Generator) -> str:
    names, terms = coordinate_names(domain.columns), []
    for _ in range(3):
        squares = [f"({n} - ({at:.6f}))**2" for n, at in zip(names, domain.sample(1, rng)[0], strict=True)]
        terms.append(f"({rng.normal():.6f}) * exp(-({' + '.join(squares)}) / {2 * rng.uniform(0.5, 0.8) ** 2:.6f})")
    return " + ".join(terms)


def _rational(domain: Sphere | Cube, rng: np.random.Generator) -> str:
    terms = [
        f"({rng.normal():.6f}) / (1 + ({_linear(rng.uniform(0.5, 1.5) * _direction(rng, domain.columns), 0.3)})**2)"
        for _ in range(2)
    ]
    return " + ".join(terms)


def _scaled(text: str, domain: Sphere | Cube) -> str:
    """Divided by its largest magnitude at 4,000 points."""
    size = np.abs(target_of(text, domain).evaluate(domain.spread(4_000))).max()
    return f"({text}) / {size:.6f}"
