"""How long a prefix must or need be, for a class of functions, a dimension and a tolerance; and what it costs.

Every bound is the log10 of a number of positions, since the published one has dozens of digits where a prefix of a few
positions does. Each says how far it can be trusted. Statement letters are those of docs/theory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc, gammaln, ive

from foreword.arrays import is_count, is_real
from foreword.compiler.nets import COVERING
from foreword.errors import CompileError

Standing = Literal["proved", "measured", "recalled", "extrapolated", "estimate"]
BITS = {"float64": 64, "float32": 32, "bfloat16": 16, "float16": 16}
LN10 = math.log(10.0)

SHARPENED = 1.05
"""1 + 2 eta of statement A.2: how far the closed form stays above L times the covering radius; lambda pays for it."""

PUBLISHED_FROM = 8
"""The published theorem is, as recalled, for dimensions from 8; below, its formula is extrapolated."""

MOST = 1e15
"""What may be counted at most: beyond, no float tells one count from the next."""

SMOOTH = {1: (6.0, 1.5), 2: (3.7, 0.87), 3: (2.6, 0.81)}
"""N = (a + b log(1/eps))^m, fitted to the prefixes that solved values needed for three smooth targets of size 1 with
Lipschitz constants of 1 to 3, for errors of 1e-2 to 1e-12 (m = 3: to 1e-4); seen within a factor 1.6 of it."""


@dataclass(frozen=True)
class Cost:
    """What a prefix takes beside the model, in log10: bytes held, and floating-point operations a token.

    A position costs one key and one value of `head_dim` numbers in each head, and 4 operations a number and token (two
    multiply-adds); the softmax over the positions is not counted.
    """

    log10_bytes: float
    log10_flops: float


@dataclass(frozen=True)
class LengthBound:
    """So many positions: `log10` of them, `positions` as an integer up to 10^15; why, and with what standing."""

    log10: float
    standing: Standing
    statement: str
    cost: Cost

    @property
    def positions(self) -> int | None:
        """The number of positions, rounded up; None beyond 10^15."""
        return math.ceil(10**self.log10 * (1 - 1e-12)) if self.log10 <= 15 else None

    def __str__(self) -> str:
        return f"{self.positions:,}" if self.positions is not None else f"10^{self.log10:.1f}"


@dataclass(frozen=True)
class PrefixLength:
    """Bounds on the length of a prefix; a bound that does not exist for this domain or dimension is None.

    Enough positions: `published`, with lambda = eps^-4 (its rate; for a coarse tolerance in a high dimension that
    lambda is too small for the theorem), and `published_best`, with the least lambda that smooths little enough;
    `nearest`, ours. Too few: below `at_centres` a prefix whose values are the target's at the net's points
    fails for some function of the class, below `fixed_keys` one whose keys are chosen before the function, below
    `any_keys` any prefix at all in this dtype. `smooth` is what smooth functions needed in fact: an estimate.
    """

    published: LengthBound | None
    published_best: LengthBound | None
    nearest: LengthBound
    at_centres: LengthBound
    fixed_keys: LengthBound
    any_keys: LengthBound
    smooth: LengthBound | None

    def rows(self) -> list[tuple[str, LengthBound]]:
        """Name and bound, in order, without those that do not exist."""
        named = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return [(name, bound) for name, bound in named if bound is not None]


def prefix_length(
    *,
    dimension: int = 2,
    lipschitz: float = 1.0,
    tolerance: float = 0.1,
    supremum: float = 1.0,
    domain: Literal["sphere", "cube"] = "sphere",
    outputs: int = 1,
    dtype: str = "float32",
    heads: int = 1,
    head_dim: int | None = None,
) -> PrefixLength:
    """Bounds for Lipschitz functions on S^m (geodesic) or [-1, 1]^d (Euclidean), and the cost of such a prefix.

    `supremum` is the largest |f|. `head_dim` is by default what the target needs: a constant beside the coordinates.
    CompileError for a dimension, constant or tolerance that cannot be.

    >>> bounds = prefix_length(dimension=1, lipschitz=1.0, tolerance=0.1)
    >>> print(bounds.nearest, bounds.at_centres, bounds.published)
    33 32 10^30.3
    """
    _check({"dimension": dimension, "outputs": outputs, "heads": heads}, 1, MOST)
    width = max(dimension + (2 if domain == "sphere" else 1), outputs) if head_dim is None else head_dim
    _check({"head_dim": width}, 1, MOST)
    _check({"lipschitz": lipschitz, "tolerance": tolerance, "supremum": supremum}, 1e-100, 1e100)
    dimension, outputs, heads, width = int(dimension), int(outputs), int(heads), int(width)
    if dtype not in tuple(BITS) or domain not in ("sphere", "cube"):
        raise CompileError(
            "The dtype or the domain is unknown.",
            expected=f"{', '.join(BITS)}; sphere or cube",
            found=f"{dtype}; {domain}",
            fix='Say dtype="float32", domain="sphere".',
        )
    numbers = heads * width
    asked = _Class(domain, dimension, float(lipschitz), float(tolerance), float(supremum))
    told = {**_published(asked), **_enough(asked), **_too_few(asked, (dimension + 2 + outputs) * BITS[dtype])}

    def bound(log_count: float, standing: Standing, statement: str) -> LengthBound:
        log10 = max(0.0, log_count / LN10)
        cost = Cost(log10 + math.log10(2 * numbers * BITS[dtype] / 8), log10 + math.log10(4 * numbers))
        return LengthBound(log10, standing, statement, cost)

    made = {name: bound(*entry) for name, entry in told.items()}
    return PrefixLength(**{field.name: made.get(field.name) for field in fields(PrefixLength)})  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Class:
    """The functions and the tolerance that are asked for."""

    domain: str
    dimension: int
    lipschitz: float
    tolerance: float
    supremum: float

    @property
    def ratio(self) -> float:
        return self.lipschitz / self.tolerance


Told = dict[str, tuple[float, Standing, str]]


def _published(asked: _Class) -> Told:
    if asked.domain != "sphere":
        return {}
    standing: Standing = "recalled" if asked.dimension >= PUBLISHED_FROM else "extrapolated"
    formula = "B.1: [3 pi (L + lambda |f|) c(lambda) e^lambda / eps]^(2(m+1)), "
    rate, least = -4 * math.log(asked.tolerance), _least_log_lambda(asked.dimension, asked.ratio)
    return {
        "published": (_log_published(asked, rate), standing, formula + "lambda = eps^-4"),
        "published_best": (
            _log_published(asked, least),
            standing,
            formula + "the least lambda that moves f by at most eps/2",
        ),
    }


def _enough(asked: _Class) -> Told:
    is_measured = asked.domain == "sphere" and asked.dimension > 1 and asked.dimension in COVERING
    statement = f"A.2: values at a net of covering radius eps / ({SHARPENED} L)"
    statement += "; its size is measured on our nets" if is_measured else ""
    log_net = _log_net(asked.domain, asked.dimension, SHARPENED * asked.ratio)
    found: Told = {"nearest": (log_net, "measured" if is_measured else "proved", statement)}
    if asked.domain == "sphere" and asked.dimension in SMOOTH:
        intercept, slope = SMOOTH[asked.dimension]
        side = max(1.0, intercept + slope * math.log(asked.supremum / asked.tolerance))
        fitted = "B.3: fitted to solved values for smooth targets of size 1"
        found["smooth"] = (asked.dimension * math.log(side), "estimate", fitted)
    return found


def _too_few(asked: _Class, bits: int) -> Told:
    """With |f| <= tolerance one position of value 0 is enough; else a net's distance and bumps of height eps exist."""
    is_trivial = asked.tolerance >= asked.supremum
    centres = 0.0 if is_trivial else _log_cover(asked.domain, asked.dimension, asked.ratio)
    packed = 0.0 if is_trivial else _log_cover(asked.domain, asked.dimension, asked.ratio / 2)
    return {
        "at_centres": (centres, "proved", "A.2: balls of radius eps/L must cover the domain: its volume by a ball's"),
        "fixed_keys": (packed, "proved", "A.2: the width of the class: bumps of height eps, 2 eps/L apart"),
        "any_keys": (
            packed - math.log(bits),
            "proved",
            "A.2: b bits tell 2^b functions apart, and bumps of height eps, 2 eps/L apart, have 2^count signs",
        ),
    }


def _log_published(asked: _Class, log_lambda: float) -> float:
    """log N of statement B.1; c is the density's constant of the von Mises-Fisher kernel c(lambda) e^(lambda <x, y>).

    c(lambda) = lambda^nu / ((2 pi)^(nu + 1) I_nu(lambda)), nu = (m - 1)/2, on S^m.
    """
    order = (asked.dimension - 1) / 2
    kernel = order * log_lambda - (order + 1) * math.log(2 * math.pi) - _log_bessel(order, log_lambda)
    size = float(np.logaddexp(math.log(asked.lipschitz), log_lambda + math.log(asked.supremum)))
    return 2 * (asked.dimension + 1) * (math.log(3 * math.pi) + size + kernel - math.log(asked.tolerance))


def _log_bessel(order: float, log_lambda: float) -> float:
    """log (I_nu(lambda) e^-lambda), from either end where the function itself under- or overflows."""
    if log_lambda < math.log(1e8):
        scaled = float(ive(order, math.exp(log_lambda)))
        if scaled > 0:
            return math.log(scaled)
        return order * (log_lambda - math.log(2)) - float(gammaln(order + 1)) - math.exp(log_lambda)
    correction = (4 * order * order - 1) / 8 * math.exp(-log_lambda)
    return -0.5 * (math.log(2 * math.pi) + log_lambda) - correction


def _least_log_lambda(dimension: int, ratio: float) -> float:
    """The least log lambda at which the kernel's mean angle is at most eps/2L: what smoothing with it moves f by, at L.

    The angle's density is proportional to e^(lambda cos t) sin^(m-1) t. For large lambda t sqrt(lambda) is a chi
    variable; else the mean is integrated about the mode, where lambda sin^2 t = (m - 1) cos t.
    """
    wanted, free = 1 / (2 * ratio), dimension - 1
    log_chi = 0.5 * math.log(2) + float(gammaln((dimension + 1) / 2) - gammaln(dimension / 2))
    asymptotic = 2 * (log_chi - math.log(wanted))
    if asymptotic > math.log(1e8) + 2 * math.log(dimension):
        return asymptotic
    nodes, weights = np.polynomial.legendre.leggauss(200)

    def gap(log_lambda: float) -> float:
        sharp = math.exp(log_lambda)
        cosine = 2 * sharp / (free + math.hypot(free, 2 * sharp))
        mode = math.acos(cosine)
        width = 1 / math.sqrt(sharp * cosine + free / max(1 - cosine * cosine, 1e-300) * (free > 0))
        low, high = max(0.0, mode - 12 * width), min(math.pi, mode + 12 * width)
        angle = low + (high - low) * (nodes + 1) / 2
        log_density = free * np.log(np.sin(angle)) - 2 * sharp * np.sin(angle / 2) ** 2
        density = weights * np.exp(log_density - log_density.max())
        return math.log(float(density @ angle / density.sum()) / wanted)

    flattest = -20.0
    return flattest if gap(flattest) <= 0 else float(brentq(gap, flattest, asymptotic + 20, xtol=1e-10))


def _log_cover(domain: str, dimension: int, ratio: float) -> float:
    """log of the least number of balls of radius 1/ratio that the domain's volume needs."""
    if domain == "cube":
        return max(0.0, dimension * math.log(2 * ratio) - _log_ball(dimension))
    return -_log_cap(dimension, 1 / ratio, is_upper=True)


def _log_net(domain: str, dimension: int, ratio: float) -> float:
    """log of the size of a net of covering radius 1/ratio that exists: a grid; our nets; a largest packing."""
    if domain == "cube":
        return dimension * math.log(math.ceil(math.sqrt(dimension) * ratio))
    if dimension in COVERING:
        return math.log(COVERING[dimension]) + dimension * math.log(ratio)
    return -_log_cap(dimension, 1 / (2 * ratio), is_upper=False)  # its caps of half the radius do not meet


def _log_cap(dimension: int, angle: float, *, is_upper: bool) -> float:
    """log of a cap's share of S^m, from above or below: I_x(m/2, 1/2)/2 with x = sin^2 angle, up to pi/2.

    Where that underflows: I_x(a, 1/2) = x^a / (a B(a, 1/2)) F with 1 <= F <= (1 - x)^(-1/2), the series' own bounds.
    """
    if angle >= math.pi:
        return 0.0
    half, x = dimension / 2, math.sin(angle) ** 2
    share = float(betainc(half, 0.5, x))
    if angle > math.pi / 2:
        return math.log1p(-share / 2)
    if share > 1e-280:
        return math.log(share / 2)
    log_beta = float(gammaln(half) + gammaln(0.5) - gammaln(half + 0.5))
    leading = 2 * half * math.log(math.sin(angle)) - math.log(2 * half) - log_beta
    return leading - 0.5 * math.log1p(-x) * is_upper


def _log_ball(dimension: int) -> float:
    return float(dimension / 2 * math.log(math.pi) - gammaln(dimension / 2 + 1))


def _check(numbers: dict[str, float], least: float, most: float) -> None:
    """Counts are whole numbers from 1, sizes positive numbers that no power here can overflow."""
    for name, value in numbers.items():
        is_number = is_count(value) if least == 1 else is_real(value)
        if not (is_number and least <= (int(value) if least == 1 else float(value)) <= most):
            usual = {"dimension": "2", "tolerance": "0.1", "head_dim": "64"}.get(name, "1")
            kind = f"a whole number from 1 to {most:g}" if least == 1 else f"a number from {least:g} to {most:g}"
            raise CompileError(f"The {name} cannot be.", expected=kind, found=repr(value), fix=f"Say {name}={usual}.")
