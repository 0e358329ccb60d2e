"""Error against length, measured; and the bounds on a length, drawn with their cost."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from foreword.compiler.bounds import prefix_length
from foreword.compiler.domain import Cube, FiniteSet, Sphere
from foreword.compiler.length_picture import NAMES, plot_prefix_length
from foreword.compiler.lengths import LengthStudy, measure_lengths
from foreword.errors import CompileError, PictureError


@pytest.fixture(scope="module")
def study(hardly_polished: None) -> LengthStudy:
    return measure_lengths("abs(x - 0.2)", Sphere(1), positions=[6, 12, 24], lipschitz=1.0, seconds=0.5)


def test_every_construction_is_measured_and_what_is_proved_is_above(study: LengthStudy) -> None:
    assert {row.method for row in study.rows} == {"adaptive", "spectral", "nearest"}
    assert study.left_out == {}
    for row in study.rows:
        assert row.bound is not None
        assert row.error <= row.bound
        assert row.positions <= 24
    nearest = [row.error for row in study.of("nearest")]
    assert nearest == sorted(nearest, reverse=True)


def test_the_figure_has_the_measured_errors_and_every_bound_on_axes_of_logarithms(
    study: LengthStudy, tmp_path: Path
) -> None:
    figure = study.plot(tmp_path / "lengths.png")
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = {str(line.get_label()): line for part in figure.axes for line in part.lines}
    for method in ("adaptive", "spectral", "nearest"):
        rows = study.of(method)
        assert np.array_equal(lines[f"{method}: measured"].get_xdata(), [row.positions for row in rows])
        assert np.array_equal(lines[f"{method}: measured"].get_ydata(), [row.error for row in rows])
        assert np.array_equal(lines[f"{method}: proved"].get_ydata(), [row.bound for row in rows])
    assert set(NAMES.values()) <= set(lines)
    asked = {"dimension": 1, "lipschitz": 1.0, "supremum": study.supremum, "dtype": "float64"}
    enough = lines[NAMES["nearest"]]
    for count, tolerance in zip(enough.get_xdata(), enough.get_ydata(), strict=True):  # type: ignore[arg-type]
        expected = prefix_length(tolerance=float(tolerance), **asked).nearest.log10  # type: ignore[arg-type]
        assert math.isclose(math.log10(float(count)), expected, abs_tol=1e-12)
    assert (tmp_path / "lengths.png").stat().st_size > 10_000


def test_a_method_that_cannot_is_left_out_and_says_why() -> None:
    study = measure_lengths("sin(2*x)", Sphere(1), positions=[8], seconds=0.0)
    assert "kink" in study.left_out["adaptive"].lower()
    assert all(row.bound is None for row in study.rows)
    figure = study.plot()
    told = " ".join(text.get_text() for text in figure.texts)
    assert "adaptive left out" in told
    assert "No bounds for its class" in told
    assert len(figure.axes) == 1


def test_the_class_of_a_larger_cube_is_that_of_the_unit_cube_with_a_larger_constant() -> None:
    large = measure_lengths("x*y/9", Cube([(-3, 3)] * 2), positions=[9], methods=["spectral"], lipschitz=1.0, seconds=0)
    [[(_, found)]] = [told for name, told in large.class_bounds([0.1]).items() if name == "at_centres"]
    expected = prefix_length(
        dimension=2, lipschitz=3.0, tolerance=0.1, supremum=large.supremum, domain="cube", dtype="float64"
    )
    assert math.isclose(found.log10, expected.at_centres.log10)
    oblong = measure_lengths("x", Cube([(0, 1), (0, 2)]), positions=[9], methods=["spectral"], lipschitz=1, seconds=0)
    assert oblong.class_bounds([0.1]) == {}
    table = measure_lengths("x", FiniteSet(np.eye(3)), positions=[3], methods=["spectral"], lipschitz=1, seconds=0)
    assert table.class_bounds([0.1]) == {}


def test_nothing_to_measure_and_bad_targets_are_refused() -> None:
    with pytest.raises(CompileError, match="nothing to measure"):
        measure_lengths("x", Sphere(1), positions=[])
    with pytest.raises(CompileError, match="contradict the Lipschitz constant"):
        measure_lengths("sin(9*x)", Sphere(1), positions=[8], lipschitz=0.1)
    with pytest.raises(CompileError, match="method is unknown"):
        measure_lengths("x", Sphere(1), positions=[8], methods=["magic"])


def test_lengths_and_their_cost_are_drawn_for_every_bound(tmp_path: Path) -> None:
    asked = [0.1, 0.01, 0.001]
    figure = plot_prefix_length(tmp_path / "bounds.svg", dimension=2, tolerances=asked, dtype="bfloat16", heads=4)
    lengths, cost, published = figure.axes
    found = [prefix_length(dimension=2, tolerance=tolerance, dtype="bfloat16", heads=4) for tolerance in asked]
    drawn = {str(line.get_label()): list(line.get_ydata()) for line in lengths.lines}
    assert drawn[NAMES["nearest"]] == [bound.nearest.log10 for bound in found]
    assert drawn[NAMES["any_keys"]] == [bound.any_keys.log10 for bound in found]
    sizes = {str(line.get_label()): list(line.get_ydata()) for line in cost.lines}
    assert sizes[NAMES["nearest"]] == [bound.nearest.cost.log10_bytes for bound in found]
    [operations] = [child for child in cost.child_axes if "operations" in child.get_ylabel()]
    figure.draw_without_rendering()
    shift = found[0].nearest.cost.log10_flops - found[0].nearest.cost.log10_bytes
    assert np.allclose(operations.get_ylim(), np.add(cost.get_ylim(), shift))
    assert len(published.lines) == 2
    assert (tmp_path / "bounds.svg").read_bytes().startswith(b"<?xml")


def test_a_cube_has_no_published_bound_and_one_tolerance_no_curve() -> None:
    assert len(plot_prefix_length(domain="cube", tolerances=[0.1, 0.05]).axes) == 2
    with pytest.raises(PictureError, match="two points"):
        plot_prefix_length(tolerances=[0.1])
    with pytest.raises(PictureError, match="which kind of picture"):
        plot_prefix_length("lengths.gif")
    with pytest.raises(CompileError):
        plot_prefix_length(tolerances=[0.1, -1.0])
