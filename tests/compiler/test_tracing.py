"""However people write a vectorised NumPy function, its expression is found; and what is found is what it computes."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy import asarray, empty
from scipy import special
from scipy.special import expit, j0, softmax

from foreword.compiler.domain import Cube, Sphere
from foreword.compiler.target import target_of
from foreword.compiler.tracing import trace

CENTRE = np.array([0.1, 0.2, 0.3])
WEIGHTS = np.arange(6.0).reshape(3, 2) / 7
SPHERE = Sphere(2)


def unpacked(x: Any) -> Any:
    a, b, c = x.T
    return a * b + np.cos(c)


def summed_in_a_loop(x: Any) -> Any:
    y = np.zeros(len(x))
    for j in range(x.shape[1]):
        y += (j + 1) * x[:, j] ** 2
    return y


def filled(x: Any) -> Any:
    out = np.empty((x.shape[0], 2))
    out[:, 0] = np.sin(x[:, 0])
    out[:, 1] = x[:, 1] * x[:, 2]
    return out


def filled_and_scaled(x: Any) -> Any:
    out = np.zeros((len(x), 2))
    out[:, 0] += np.sin(x[:, 0])
    out[..., 1] = x[:, 1]
    out *= 2
    return out


def filled_like(x: Any) -> Any:
    y = np.zeros_like(x[:, 0])
    y[:] = x[:, 0]
    y -= x[:, 1]
    return y


def changed_in_place(x: Any) -> Any:
    y = x.copy()
    y *= 2
    y[:, 0] = 0
    y -= 1
    return y.sum(axis=1)


def with_output_argument(x: Any) -> Any:
    y = np.zeros(len(x))
    np.sin(x[:, 0], out=y)
    return y + 1


def converted(x: Any) -> Any:
    x = np.asarray(x, dtype=float)
    return np.sin(x[:, 0]) * x[:, 1]


def converted_by_a_bare_name(x: Any) -> Any:
    x = asarray(x, dtype=np.float64)
    out = empty(len(x))
    out[:] = x @ CENTRE
    return out


def helper(x: Any) -> Any:
    out = np.zeros(len(x))
    out += np.exp(x[:, 0])
    return out


def by_a_helper(x: Any) -> Any:
    return helper(x) + helper(2 * x)


def network(x: Any) -> Any:
    return np.tanh(x @ WEIGHTS + 0.1) @ np.array([[1.0, -1.0], [2.0, 3.0]])


def checked_first(x: Any) -> Any:
    assert x.ndim == 2
    assert x.shape[1] == 3
    assert x.dtype == np.float64
    assert np.shape(x)[1] == len(x.T) == 3
    return x[:, 0]


def hat(x: Any) -> Any:
    square = x[:, 0] ** 2 + x[:, 1] ** 2
    return np.where(square < 0.5, (0.5 - square) ** 3, 0.0)


def huber(x: Any) -> Any:
    size = np.abs(x[:, 0])
    return np.where(size <= 0.5, 0.5 * size**2, 0.5 * (size - 0.25))


def filled_by_masks(x: Any) -> Any:
    out = np.zeros(len(x))
    above = x[:, 0] > 0.2
    out[above] = (x[:, 0][above] - 0.2) ** 2
    return out


def leaky(x: Any) -> Any:
    height = x[:, 0] - 0.3 * x[:, 1]
    return np.where(height > 0, height, 0.1 * height)


def rectified_by_a_mask(x: Any) -> Any:
    y = x.copy()
    y[y < 0] = 0
    return y.sum(axis=1)


def broken_spline(x: Any) -> Any:
    t = x[:, 0]
    pieces = [lambda t: -t - 0.125, lambda t: 2 * t**2, lambda t: 2 * t - 0.5]
    return np.piecewise(t, [t < -0.25, (t >= -0.25) & (t < 0.5), t >= 0.5], pieces)


def filled_on_both_sides(x: Any) -> Any:
    t = x[:, 0]
    out = np.empty(len(x))
    below = t < 0.25
    out[below] = 1 + t[below]
    out[~below] = 1.5 - t[~below]
    return out


def filled_in_three_parts(x: Any) -> Any:
    t = x[:, 0]
    out = np.full(len(x), np.nan)
    first, second, third = t <= -0.5, (t > -0.5) & (t <= 0.5), t > 0.5
    out[first], out[second], out[third] = 2 * t[first], -1.0, t[third] - 1.5
    return out


def changed_in_one_column(x: Any) -> Any:
    y = x.copy()
    is_above = y[:, 0] > 0
    y[is_above, 0] = 0
    y[is_above, 1] = y[is_above, 1] - x[is_above, 0]
    return y


def moved_where_each_side_is(x: Any) -> Any:
    y = x[:, 0].copy()
    is_above = y > 0
    y[is_above] -= 1
    y[~is_above] -= 1
    return y


def spline_of_indicators(x: Any) -> Any:
    """A cubic B-spline by de Boor's recursion, which begins with steps."""
    t, knots = x[:, 0], np.linspace(-1.3, 1.3, 14)
    parts = [np.where((t >= low) & (t < high), 1.0, 0.0) for low, high in itertools.pairwise(knots)]
    for d in range(1, 4):
        parts = [
            (t - knots[i]) / (knots[i + d] - knots[i]) * parts[i]
            + (knots[i + d + 1] - t) / (knots[i + d + 1] - knots[i + 1]) * parts[i + 1]
            for i in range(len(parts) - 1)
        ]
    return sum(np.sin(i) * part for i, part in enumerate(parts))


def bent_often(x: Any) -> Any:
    y = 0 * x[:, 0]
    for place in np.linspace(-0.9, 0.9, 100):
        y = np.where(x[:, 0] > place, y + 0.1 * (x[:, 0] - place), y)
    return y


def quotient_with_a_guard(x: Any) -> Any:
    return np.where(np.abs(x[:, 0]) < 1e-7, 1.0, np.sin(x[:, 0]) / x[:, 0])


def quotient_filled_where_it_is_one(x: Any) -> Any:
    t = 5 * x[:, 0]
    out = np.ones_like(t)
    np.divide(np.sin(t), t, out=out, where=t != 0)
    return out


def quotient_by_a_mask(x: Any) -> Any:
    t, out = 5 * x[:, 0], np.ones(len(x))
    out[t != 0] = np.tan(t[t != 0] / 9) / t[t != 0] * 9
    return out


def quotient_whose_divisor_is_guarded(x: Any) -> Any:
    r = np.linalg.norm(x, axis=1)
    return np.where(r == 0, 1.0, np.sin(r) / np.where(r == 0, 1.0, r))


def shifted_logarithm_of_a_sum(x: Any) -> Any:
    z = x @ WEIGHTS
    largest = z.max(axis=1, keepdims=True)
    return (largest + np.log(np.exp(z - largest).sum(axis=1, keepdims=True)))[:, 0]


class Model:
    scale = 2.0

    def __call__(self, x: Any) -> Any:
        out = np.zeros(len(x))
        out[:] = self.scale * x[:, 0]
        return out

    def method(self, x: Any) -> Any:
        return np.array(x)[:, 1] * self.scale


def scaled(x: Any, factor: float = 1.0, *, power: int = 1) -> Any:
    return factor * x[:, 0] ** power


FOLLOWED: dict[str, Callable[[Any], Any]] = {
    "column": lambda x: x[:, 0],
    "column by an ellipsis": lambda x: x[..., 0],
    "last column": lambda x: x[:, -1],
    "columns by a list": lambda x: x[:, [0, 2]],
    "unpacked transpose": unpacked,
    "row of the transpose": lambda x: x.T[0],
    "sum of sines": lambda x: np.sin(x).sum(axis=1),
    "sum of squares": lambda x: (x**2).sum(-1),
    "np.sum": lambda x: np.sum(x * x, axis=-1, keepdims=True),
    "np.add.reduce": lambda x: np.add.reduce(x, axis=1),
    "sum of a list": lambda x: np.sum([x[:, j] ** 2 for j in range(3)], axis=0),
    "python's sum": lambda x: sum(x[:, j] for j in range(3)),
    "mean": lambda x: x.mean(1),
    "product": lambda x: np.prod(x, axis=1),
    "variance": lambda x: np.var(x, axis=1, ddof=1),
    "deviation": lambda x: x.std(axis=1),
    "average": lambda x: np.average(x, axis=1, weights=[1, 2, 3.0]),
    "matmul": lambda x: x @ WEIGHTS,
    "matmul with a vector": lambda x: x @ CENTRE,
    "np.dot": lambda x: np.dot(x, CENTRE),
    "method dot": lambda x: x.reshape(-1, 3).dot(CENTRE),
    "inner": lambda x: np.inner(x, CENTRE),
    "tensordot": lambda x: np.tensordot(x, WEIGHTS, axes=1),
    "einsum": lambda x: np.einsum("ij,j->i", x, CENTRE),
    "einsum of squares": lambda x: np.einsum("bi,bi->b", x, x),
    "quadratic form": lambda x: np.einsum("bi,ij,bj->b", x, np.eye(3) + 0.1, x, optimize=True),
    "vecdot": lambda x: np.vecdot(x, CENTRE),
    "cross": lambda x: np.cross(x, CENTRE),
    "norm": lambda x: np.linalg.norm(x, axis=1),
    "norm of a difference": lambda x: np.linalg.norm(x - CENTRE, axis=-1, keepdims=True),
    "norm of order 1": lambda x: np.linalg.norm(x, ord=1, axis=1),
    "norm of order infinity": lambda x: np.linalg.norm(x, np.inf, 1),
    "stack": lambda x: np.stack([x[:, 0] * 2, np.exp(x[:, 1])], axis=-1),
    "column_stack": lambda x: np.column_stack([x[:, 0], x[:, 1] ** 3]),
    "hstack": lambda x: np.hstack((x, x)),
    "concatenate": lambda x: np.concatenate([x[:, :1], x[:, 1:] ** 2], axis=1),
    "np.c_": lambda x: np.c_[x[:, 0], x[:, 1]],
    "np.array of columns": lambda x: np.array([x[:, 0], x[:, 1]]).T,
    "squeeze": lambda x: np.squeeze(x[:, :1], axis=1),
    "roll": lambda x: np.roll(x, 1, axis=1) * x,
    "cumsum": lambda x: np.cumsum(x, axis=1),
    "diff": lambda x: np.diff(x, axis=1),
    "absolute by where": lambda x: np.where(x[:, 0] > 0, x[:, 0], -x[:, 0]),
    "absolute by where, turned": lambda x: np.where(x[:, 0] <= 0, -x[:, 0], x[:, 0]),
    "minus absolute by where": lambda x: np.where(x[:, 0] < 0, x[:, 0], -x[:, 0]),
    "minimum by where": lambda x: np.where(x[:, 0] < x[:, 1], x[:, 0], x[:, 1]),
    "rectifier by where": lambda x: np.where(x > 0, x, 0).sum(1),
    "rectifier by a product": lambda x: x[:, 0] * (x[:, 0] > 0),
    "rectifier": lambda x: np.maximum(x[:, 0], 0),
    "largest": lambda x: x.max(axis=1),
    "largest of absolutes": lambda x: np.abs(x).max(axis=-1, keepdims=True),
    "smallest": lambda x: np.minimum.reduce(x, axis=1),
    "clip": lambda x: np.clip(x[:, 0], -0.5, 0.5) + x.clip(max=0.2)[:, 1],
    "fmax and fmin": lambda x: np.fmax(x[:, 0], x[:, 1]) - np.fmin(x[:, 1], x[:, 2]) + np.fabs(x[:, 0]),
    "Gaussian": lambda x: np.exp(-np.sum((x - CENTRE) ** 2, axis=1) / (2 * 0.4 * 0.4)),
    "mixture": lambda x: np.exp(-((x[:, None] - WEIGHTS.T[None]) ** 2).sum(-1)) @ np.array([1.0, 2.0]),
    "distance to a set": lambda x: np.linalg.norm(x[:, None, :] - np.eye(3)[None], axis=-1).min(axis=1),
    "math.pi": lambda x: math.pi * x[:, 0] + np.pi,
    "loop": summed_in_a_loop,
    "filled": filled,
    "filled and scaled": filled_and_scaled,
    "filled like": filled_like,
    "changed in place": changed_in_place,
    "output argument": with_output_argument,
    "asarray with a dtype": converted,
    "asarray by a bare name": converted_by_a_bare_name,
    "helper that fills": by_a_helper,
    "network": network,
    "checked first": checked_first,
    "callable object": Model(),
    "method": Model().method,
    "partial": functools.partial(scaled, factor=3.0, power=2),
    "Chebyshev series": lambda x: np.polynomial.chebyshev.chebval(x[:, 0], [1, 2, 3]),
    "polyval": lambda x: np.polyval([1, 2, 3], x[:, 0]),
    "expit": lambda x: expit(x[:, 0]),
    "softplus": lambda x: np.logaddexp(0, x[:, 0]),
    "logarithms": lambda x: np.log1p(x[:, 0] ** 2) + np.log10(2 + x[:, 1]) + np.log2(3 + x[:, 2]),
    "exponentials": lambda x: np.exp2(x[:, 2]) + np.expm1(x[:, 0]),
    "angles": lambda x: np.deg2rad(x[:, 0]) + np.degrees(x[:, 1]),
    "hypot": lambda x: np.hypot(x[:, 0], x[:, 1]),
    "reciprocal": lambda x: np.reciprocal(x[:, 0] + 3) + (x[:, 1] + 3) ** -2,
    "root": lambda x: np.abs(x[:, 0]) ** 0.5 + np.sqrt(1 + x[:, 1]) ** 3,
    "power of a variable": lambda x: (2 + x[:, 0]) ** x[:, 1],
    "exponential of base 2": lambda x: 2 ** x[:, 0],
    "Runge": lambda x: 1 / (1 + 25 * x[:, 0] ** 2),
    "constant": lambda x: np.full(len(x), 3.0),
    "constant like": lambda x: np.ones_like(x[:, 0]),
    "identity": lambda x: x,
    "row by row": lambda x: np.array([row[0] ** 2 + math.sin(row[1]) for row in x]),
    "list": lambda x: [math.exp(number) for number in x[:, 0]],
    "vectorize": lambda x: np.vectorize(lambda number: number**2 + 1)(x[:, 0]),
    "np.float64 scalars": lambda x: np.float64(2) * x[:, 0] + np.float64(1) / (2 + x[:, 1]),
    "float32 scalar": lambda x: np.float32(2) * x[:, 0],
    "square on one side": lambda x: np.where(x[:, 0] > 0, x[:, 0] ** 2, 0.0),
    "a root on one side": lambda x: np.where(x[:, 0] > 0, np.sqrt(np.abs(x[:, 0])), 0.0),
    "exponential unit": lambda x: np.where(x[:, 0] > 0, x[:, 0], np.expm1(x[:, 0])),
    "exponential unit of a line": lambda x: np.where(x @ CENTRE > 0, x @ CENTRE, np.exp(x @ CENTRE) - 1),
    "leaky rectifier": leaky,
    "cube of a multiple": lambda x: np.where(-2 * x[:, 0] + 1 < 0, (1 - 2 * x[:, 0]) ** 3, 0.0),
    "hat": hat,
    "Huber's loss": huber,
    "square between bounds": lambda x: np.where((x[:, 0] > -0.5) & (x[:, 0] < 0.5), x[:, 0] ** 2, 0.25),
    "square within a size": lambda x: np.where(np.abs(x[:, 1]) < 0.5, x[:, 1] ** 2 * x[:, 0], 0.25 * x[:, 0]),
    "corner": lambda x: np.where(np.logical_and(x[:, 0] > 0, x[:, 1] > -0.5), x[:, 0] * (x[:, 1] + 0.5), 0),
    "outside": lambda x: np.where((x[:, 0] < -0.5) | (x[:, 0] > 0.5), 0.25, x[:, 0] ** 2),
    "not below": lambda x: np.where(~(x[:, 0] < 0.2), x[:, 0], 0.2),
    "saturated by select": lambda x: np.select([x[:, 0] < -0.5, x[:, 0] > 0.5], [-0.5, 0.5], default=x[:, 0]),
    "broken spline": broken_spline,
    "piecewise with a default": lambda x: np.piecewise(x[:, 0], [x[:, 0] > 0], [lambda t: t**2, 0]),
    "sign as a factor": lambda x: np.sign(x[:, 0]) * x[:, 0] ** 2,
    "step as a factor": lambda x: np.heaviside(x[:, 0], 0.5) * x[:, 0] ** 2,
    "filled by masks": filled_by_masks,
    "rectified by a mask": rectified_by_a_mask,
    "interpolation": lambda x: np.interp(x[:, 0], [-1, -0.2, 0.3, 1], [0, 1, 0.5, 2]),
    "interpolation of a part": lambda x: np.interp(x[:, 0], [-0.5, 0.5], [1, 0]),
    "angle on one side": lambda x: np.arctan2(x[:, 0], x[:, 1] + 2),
    "cardinal sine": lambda x: np.sinc(3 * x[:, 0]) * np.sinc(x[:, 1]),
    "Gaussian unit": lambda x: x[:, 0] * (1 + special.erf(x[:, 0] / np.sqrt(2))) / 2,
    "normal distribution": lambda x: special.ndtr(x[:, 0]) - special.erfc(x[:, 1]),
    "cube root": lambda x: np.cbrt(x[:, 0] + 2),
    "arcsinh": lambda x: np.arcsinh(x[:, 0]),
    "filled on both sides": filled_on_both_sides,
    "filled in three parts": filled_in_three_parts,
    "changed in one column": changed_in_one_column,
    "moved where each side is": moved_where_each_side_is,
    "formulas times their conditions": lambda x: (x[:, 0] < 0) * (1 + x[:, 0]) + (x[:, 0] >= 0) * (1 - x[:, 0]),
    "one less a condition": lambda x: (1 - (x[:, 0] > 0)) * x[:, 0],
    "a condition as a number": lambda x: (x[:, 0] > 0).astype(float) * x[:, 0] + x[:, 1] ** (1 + (x[:, 1] > 0)),
    "product of conditions": lambda x: (x[:, 0] > 0) * (x[:, 0] < 0.5) * x[:, 0] * (0.5 - x[:, 0]),
    "all of a row": lambda x: np.where((x[:, :2] > 0).all(axis=1), x[:, 0] * x[:, 1], 0),
    "any of a row": lambda x: np.where(np.any(np.abs(x) > 0.9, axis=1), 0, np.prod(0.81 - x**2, axis=1)),
    "size with a sign": lambda x: np.copysign(x[:, 0] ** 2, x[:, 0]),
    "steps that cancel": lambda x: np.where(x[:, 0] > 0, 1.0, 2.0) - np.where(x[:, 0] > 0, 0.0, 1.0),
    "steps that exclude each other": lambda x: (x[:, 0] < 0.3) * x[:, 1] * (x[:, 0] > 0.5) + x[:, 0],
    "logarithm with a guard": lambda x: np.where(x[:, 0] > 0.5, np.log(np.where(x[:, 0] > 0, x[:, 0], 1)), -np.log(2)),
    "quotient with a guard": quotient_with_a_guard,
    "spline of indicators": spline_of_indicators,
    "bent often": bent_often,
    "interpolation with its own ends": lambda x: np.interp(x[:, 0], [-0.5, 0.5], [0, 1], left=0.0, right=1.0),
    "sorting": lambda x: np.sort(x, axis=1) @ CENTRE,
    "median": lambda x: np.median(x, axis=1) + np.median(x[:, :2], axis=-1),
    "spread": lambda x: np.ptp(x, axis=1),
    "softmax": lambda x: softmax(x, axis=1) @ CENTRE,
    "logarithms of sums": lambda x: special.logsumexp(x, axis=1) + special.log_softmax(x, axis=-1)[:, 0],
    "logarithm of a weighted sum": lambda x: special.logsumexp(x, axis=1, b=CENTRE),
    "sums of exponentials, one after another": lambda x: np.logaddexp.reduce(x, axis=1),
    "shifted softmax": lambda x: (e := np.exp(x - np.max(x, axis=1, keepdims=True))) / e.sum(axis=1, keepdims=True),
    "shifted logarithm of a sum": shifted_logarithm_of_a_sum,
    "quotient but at 0": lambda x: np.where(x[:, 0] != 0, np.sin(3 * x[:, 0]) / x[:, 0], 3.0),
    "quotient upside down": lambda x: np.where(x[:, 0] == 0, 2.0, 2 * x[:, 0] / np.sin(x[:, 0])),
    "quotient by closeness": lambda x: np.where(np.isclose(x[:, 0], 0), 1.0, np.sin(x[:, 0]) / x[:, 0]),
    "quotient filled where it is one": quotient_filled_where_it_is_one,
    "quotient by a mask": quotient_by_a_mask,
    "quotient whose divisor is guarded": quotient_whose_divisor_is_guarded,
    "triangular wave": lambda x: np.abs((2 * x[:, 0]) % 1 - 0.5),
    "distance to a whole number": lambda x: np.abs(3 * x[:, 0] - np.round(3 * x[:, 0])),
    "saw of a sine": lambda x: np.sin(2 * np.pi * (x[:, 0] - np.floor(x[:, 0]))),
    "norm of order 3": lambda x: np.linalg.norm(x, 3, axis=1),
    "least magnitude": lambda x: np.linalg.norm(x, -np.inf, axis=1),
    "determinant": lambda x: np.linalg.det(x[:, :, None] * np.eye(3) + np.ones((3, 3)) / 4),
    "linear system": lambda x: np.linalg.solve(np.eye(3) + 0.1, x.T).T,
    "middle of a partition": lambda x: np.partition(x, 1, axis=1)[:, 1],
    "integral by trapezoids": lambda x: np.trapezoid(np.exp(x[:, :1] * np.linspace(0, 1, 5)), dx=0.25, axis=1),
    "convolution of rows": lambda x: np.array([np.convolve(row, [1, 0.5])[1] for row in x]),
    "polynomial of two": lambda x: np.polynomial.polynomial.polyval2d(x[:, 0], x[:, 1], WEIGHTS),
    "sum without gaps": lambda x: np.nansum(x**2, axis=1) + np.nanmean(x, axis=1),
    "Legendre polynomial": lambda x: special.eval_legendre(4, x[:, 0]) + special.eval_laguerre(3, x[:, 1]),
    "Chebyshev polynomial": lambda x: special.eval_chebyt(3, x[:, 0]) * special.eval_chebyu(2, x[:, 1]),
    "Hermite polynomial": lambda x: special.eval_hermite(4, x[:, 0]) + special.eval_hermitenorm(3, x[:, 1]),
    "losses": lambda x: special.huber(0.3, x[:, 0]) + special.pseudo_huber(0.3, x[:, 1]),
    "logarithms of shares": lambda x: special.log_expit(x[:, 0]) + special.log_ndtr(x[:, 1]),
    "entropies": lambda x: special.entr(x[:, 0] + 2) + special.rel_entr(x[:, 1] + 2, 1.5) + special.cosm1(x[:, 2]),
    "numbers times logarithms": lambda x: special.xlogy(x[:, 0], x[:, 1] + 3) + special.xlog1py(x[:, 1], x[:, 2] + 2),
    "along the rows": lambda x: np.apply_along_axis(lambda row: row[0] ** 2 + math.sin(row[1]), 1, x),
    "broadcast": lambda x: np.ones((len(x), 1)) * x[:, :1] + np.arange(3),
}

NOT_FOLLOWED: dict[str, Callable[[Any], Any]] = {
    "a step": lambda x: np.where(x[:, 0] > 0, 1.0, 0.0),
    "a mask": lambda x: (x[:, 0] > 0) * 1.0,
    "a jump between smooth parts": lambda x: np.where(x[:, 0] > 0, x[:, 0], x[:, 1] + 5),
    "sorting many": lambda x: np.sort(np.hstack([x, x + 1, x + 2]), axis=1)[:, 0],
    "a value of its own at 0": lambda x: np.select([x[:, 0] < 0, x[:, 0] > 0], [1 + x[:, 0], 1 - x[:, 0]]),
    "a value of its own on a diagonal": lambda x: np.select(
        [x[:, 0] < x[:, 1], x[:, 0] > x[:, 1]], [x[:, 1], x[:, 0]], 5
    ),
    "steps that both hold at 0.5": lambda x: (x[:, 0] <= 0.5) * 1.0 * (x[:, 0] >= 0.5) + x[:, 0],
    "steps that differ in a sliver": lambda x: (x[:, 0] > 0.3) * 1.0 - (x[:, 0] > 0.3000001) * 1.0 + x[:, 0],
    "a jump small beside the largest value": lambda x: np.where(x[:, 0] > 0, np.exp(30 * x[:, 0]), 0.0),
    "a jump in a sliver beside": lambda x: np.where(x[:, 0] > 0, 1e6 * np.maximum(x[:, 1] - 0.99999, 0), 0.0) + x[:, 0],
    "another value at 0": lambda x: np.where(x[:, 0] != 0, np.sin(x[:, 0]) / x[:, 0], 2.0),
    "another value on a plane": lambda x: np.where(x @ CENTRE == 0, 1.0, x[:, 0]),
    "a sign as a quotient": lambda x: np.where(x[:, 0] != 0, np.abs(x[:, 0]) / x[:, 0], 0.0),
    "a quotient that is no sine's": lambda x: np.where(x[:, 0] != 0, np.expm1(x[:, 0]) / x[:, 0], 1.0),
    "0 log 0": lambda x: special.entr(x[:, 0] ** 2),
    "a maximum that stays": lambda x: np.floor(np.max(x, axis=1)),
    "a sum of conditions": lambda x: ((x[:, 0] > 0) + (x[:, 0] > 0.5)) * x[:, 0],
    "eighty steps": lambda x: sum(np.where(x[:, 0] > np.cos(i), 1.0, 0.0) for i in range(80)),
    "interpolation of places that decrease": lambda x: np.interp(x[:, 0], [1, 0, -1], [0, 1, 0]),
    "floor": lambda x: np.floor(x[:, 0]),
    "remainder": lambda x: x[:, 0] % 1,
    "sign": lambda x: np.sign(x[:, 0]),
    "arctan2": lambda x: np.arctan2(x[:, 0], x[:, 1]),
    "special function": lambda x: j0(x[:, 0]),
    "interpolation with another end": lambda x: np.interp(x[:, 0], [-0.5, 0.5], [0, 1], left=2.0),
    "a jump in a sliver": lambda x: np.where(x[:, 0] > 0.999999, 5.0, x[:, 0]),
    "formulas that meet nowhere near": lambda x: np.where(x[:, 0] > 0.5, x[:, 0] ** 2, x[:, 0]),
    "single precision": lambda x: x.astype(np.float32)[:, 0],
    "piecewise": lambda x: np.piecewise(x[:, 0], [x[:, 0] > 0], [1, 0]),
    "assignment by a mask": lambda x: np.copyto(y := x[:, 0].copy(), 0, where=y < 0) or y,
}


def values(function: Callable[[Any], Any], points: Any) -> Any:
    found = np.asarray(function(points.copy()), dtype=np.float64)
    return found[:, None] if found.ndim == 1 else found


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_expression_of_a_function_is_found_and_computes_it(name: str) -> None:
    points = SPHERE.sample(200, np.random.default_rng(0))
    traced = trace(FOLLOWED[name], 3)
    assert traced is not None
    expression = traced.expression
    expected = values(FOLLOWED[name], points)
    # A few dozen roundings of the largest value: sums of three terms in another order, log and exp for powers.
    assert np.allclose(expression.evaluate(points), expected, rtol=0, atol=1e-14 * max(1, np.abs(expected).max()))
    target = target_of(FOLLOWED[name], SPHERE)
    assert target.expression is not None
    assert target.is_traced


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_what_no_expression_says_stays_a_black_box_with_its_values(name: str) -> None:
    points = SPHERE.sample(200, np.random.default_rng(0))
    target = target_of(NOT_FOLLOWED[name], SPHERE)
    assert target.expression is None
    assert not target.is_traced
    assert np.array_equal(target.evaluate(points), values(NOT_FOLLOWED[name], points))


def branching_on_the_batch(x: Any) -> Any:
    return x[:, 0] if len(x) == 1 else x[:, 0] ** 2


def test_a_trace_that_disagrees_with_the_function_is_dropped() -> None:
    single = trace(branching_on_the_batch, 3)
    assert single is not None
    assert single.expression.text == "x"
    # Rows evaluated by themselves come in eights, so the function passes for one of each point.
    target = target_of(branching_on_the_batch, SPHERE)
    assert target.expression is None
    assert not target.is_traced


def test_tracing_leaves_the_functions_module_state_and_numpy_as_they_were() -> None:
    before = dict(globals())
    makers = (np.zeros, np.asarray, np.empty, math.sin)
    for function in FOLLOWED.values():
        trace(function, 3)
    assert dict(globals()) == before
    assert (np.zeros, np.asarray, np.empty, math.sin) == makers
    assert helper.__globals__ is globals()


def test_a_recursive_function_and_a_closure_are_followed() -> None:
    factor = np.array([2.0])

    def inner(x: Any, depth: int) -> Any:
        out = np.zeros(len(x))
        out[:] = factor * x[:, 0]
        return out if depth == 0 else inner(x, depth - 1) * out

    found = trace(lambda x: inner(x, 3), 3)
    assert found is not None
    assert found.expression.evaluate(np.array([[0.5, 0, 0]]))[0, 0] == 1.0
    assert found.expression.evaluate(np.array([[1.0, 0, 0]]))[0, 0] == 16.0


def test_a_long_computation_stays_a_black_box_instead_of_an_endless_proof() -> None:
    weights = np.random.default_rng(0).normal(size=(3, 10_000))
    assert trace(lambda x: np.tanh(x @ weights).sum(axis=1), 3) is None


@pytest.mark.parametrize("error", [ValueError, RecursionError, ZeroDivisionError, MemoryError])
def test_whatever_a_function_raises_under_trace_stays_inside(error: type[Exception]) -> None:
    def raising(x: Any) -> Any:
        raise error("no")

    assert trace(raising, 3) is None


def test_a_choice_is_written_as_maxima_and_kept_to_where_its_formulas_meet() -> None:
    """In a sliver that no sample need meet, too: what they are where they meet is compared wherever a point lies."""
    found = {name: trace(FOLLOWED[name], 3) for name in ("square on one side", "hat", "square between bounds")}
    assert {name: traced and traced.expression.text for name, traced in found.items()} == {
        "square on one side": "max(x, 0)**2",
        "hat": "(0.5 - min(x**2 + y**2, 0.5))**3",
        "square between bounds": "max(min(x, 0.5), -0.5)**2",
    }
    assert trace(NOT_FOLLOWED["a jump in a sliver"], 3) is None


def pieces_one_after_the_other(x: Any) -> Any:
    t, out = x[:, 0], np.zeros(len(x))
    for low, high in itertools.pairwise(np.linspace(-1, 1.05, 42)):
        is_between = (t >= low) & (t < high)
        out[is_between] = np.sin(low) + (t[is_between] - low) * (np.sin(high) - np.sin(low)) / (high - low)
    return out


def test_a_condition_that_holds_all_over_the_domain_decides() -> None:
    """Below its first knot and above its last the function is 0: jumps, but beyond the domain."""
    from foreword.compiler.domain import Cube

    assert target_of(pieces_one_after_the_other, Cube([(-1, 1)])).expression is not None
    assert target_of(pieces_one_after_the_other, SPHERE).expression is not None
    assert target_of(pieces_one_after_the_other, Cube([(-1, 1.1)])).expression is None
    last = target_of(lambda x: np.where(x[:, 0] < 1, x[:, 0], 5), Cube([(-1, 1)]))  # a value of its own at the end
    assert last.expression is None


def test_a_black_box_of_choices_is_proved_and_checked() -> None:
    from foreword.certificate import Verdict
    from foreword.compiler.domain import Cube
    from foreword.compiler.pipeline import compile_function

    compiled = compile_function(huber, Cube([(-2, 2)]), tolerance=1e-2)
    assert compiled.certificate.verdict is Verdict.PROVED
    assert compiled.verify().verdict is Verdict.PROVED


def test_the_text_of_a_trace_is_what_a_person_would_write() -> None:
    found = trace(FOLLOWED["Gaussian"], 3)
    assert found is not None
    assert found.expression.text == "exp(-((x - 0.1)**2 + (y - 0.2)**2 + (z - 0.3)**2) / 0.32000000000000006)"


def test_steps_that_no_sample_meets_are_among_those_of_a_spike() -> None:
    def spike(x: Any) -> Any:
        return np.abs(3 * np.exp(-1e10 * (x[:, 0] - 0.3) ** 2) % 1 - 0.5)

    found = target_of(spike, Cube([(-1, 1)]))
    points = np.linspace(0.3 - 3e-5, 0.3 + 3e-5, 1_001)[:, None]
    assert found.expression is not None
    assert np.abs(found.expression.evaluate(points)[:, 0] - spike(points)).max() <= 1e-12
