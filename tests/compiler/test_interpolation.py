"""The statements that bounds by interpolation rest on (statement C.3), each against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from foreword.compiler import interpolation

FINE = np.cos(np.linspace(0, np.pi, 4001))


@pytest.mark.parametrize("count", [2, 3, 5, 8, 12, 20])
def test_the_amplification_bounds_the_lebesgue_constant_closely(count: int) -> None:
    x = interpolation.nodes(count)
    cardinal = interpolation.to_coefficients(count).T @ np.cos(np.outer(np.arange(count), np.arccos(FINE)))
    assert np.allclose(cardinal.T @ np.ones(count), 1.0)
    found = np.abs(cardinal).sum(axis=0).max()
    assert found <= interpolation.amplification(count) <= 1.3 * found
    assert np.allclose(
        np.cos(np.outer(np.arange(count), np.arccos(x))).T @ interpolation.to_coefficients(count), np.eye(count)
    )


@pytest.mark.parametrize("rho", [1.3, 2.0, 5.0])
@pytest.mark.parametrize("count", [4, 8, 12])
def test_the_remainder_of_a_function_with_a_pole_is_below_the_ellipse_bound(rho: float, count: int) -> None:
    """1/(a - x) with its pole just outside the ellipse, where it is at most 1/(a - (rho + 1/rho)/2)."""
    reach = (rho + 1 / rho) / 2
    pole = reach * 1.05
    values = 1 / (pole - interpolation.nodes(count))
    coefficients = interpolation.to_coefficients(count) @ values
    error = np.abs(np.polynomial.chebyshev.chebval(FINE, coefficients) - 1 / (pole - FINE)).max()
    bound = 4 / (pole - reach) * rho ** (1 - count) / (rho - 1)
    assert 1e-6 * bound < error <= bound


@pytest.mark.parametrize("shape", [(6,), (5, 4), (4, 1, 3)])
def test_the_largest_value_of_polynomials_is_bounded_and_nearly_found(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    coefficients = rng.normal(size=(40, *shape, 2)) * 10 ** rng.uniform(-9, 9, size=(40, *[1] * len(shape), 1))
    points = rng.uniform(-1, 1, (3000, len(shape)))
    basis = np.ones((3000, 1))
    for axis, count in enumerate(shape):
        column = np.cos(np.arange(count) * np.arccos(points[:, axis])[:, None])
        basis = (basis[:, :, None] * column[:, None, :]).reshape(3000, -1)
    truth = np.abs(np.einsum("pk,cko->cpo", basis, coefficients.reshape(40, -1, 2))).max(axis=1)
    coarse, _ = interpolation.largest(coefficients, 2)
    fine, where = interpolation.largest(coefficients, 8)
    assert np.all(truth <= fine * (1 + 1e-12))
    assert np.all(fine <= coarse * (1 + 0.1))
    assert np.median(fine / truth) < 1.35
    assert np.abs(where).max() <= 1


def test_values_come_back_from_coefficients_within_the_transform_error() -> None:
    counts = (8, 5, 3)
    rng = np.random.default_rng(1)
    values = rng.normal(size=(7, *counts, 2))
    coefficients = interpolation.coefficients_of(values)
    again = interpolation.along_axes([interpolation.to_values(count, count) for count in counts], coefficients)
    assert np.abs(again - values).max() <= interpolation.transform_error(counts) * np.abs(values).max() < 1e-9
    assert interpolation.grid(counts).shape == (120, 3)
