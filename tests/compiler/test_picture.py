"""What a picture of a compiled function shows is what evaluating it gives, and drawing leaves nothing behind."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from foreword.assessment.plots import PALETTE
from foreword.compiler import subject
from foreword.compiler.canvas import COLOURS, check_picture_path
from foreword.compiler.domain import Cube, Domain, FiniteSet, Sphere
from foreword.compiler.head import Head
from foreword.compiler.pipeline import CompiledFunction, compile_function, load_compiled
from foreword.compiler.subject import OUTPUTS, WORK, Seen, Subject
from foreword.compiler.target import Target
from foreword.errors import BundleError, PictureError

pytestmark = pytest.mark.usefixtures("hardly_polished")

LINE, SQUARE = Cube([(0, 2)]), Cube([(-1, 1)] * 2)


MADE: dict[tuple[str, str, int, bool], CompiledFunction] = {}


def small(f: Any, domain: Domain, positions: int = 9, *, certify: bool = False) -> CompiledFunction:
    """A short prefix, compiled once for each expression."""
    asked = (str(f), str(domain), positions, certify)
    if asked not in MADE or not isinstance(f, str):
        MADE[asked] = compile_function(f, domain, positions=positions, method="spectral", certify=certify)
    return MADE[asked]


def panel(figure: Figure, title: str) -> Axes:
    [found] = [axes for axes in figure.axes if axes.get_title(loc="left").startswith(title)]
    return found


def line(axes: Axes, label: str) -> tuple[np.ndarray, np.ndarray]:
    found = next(line for line in axes.lines if line.get_label() == label)
    return np.asarray(found.get_xdata(), dtype=np.float64), np.asarray(found.get_ydata(), dtype=np.float64)


def header(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize(
    ("f", "domain", "points"),
    [
        ("sin(2*x) * y", Sphere(1), lambda t: np.stack([np.cos(t), np.sin(t)], axis=1)),
        ("abs(x - 0.7) * exp(x)", LINE, lambda x: x[:, None]),
    ],
)
def test_the_curves_are_target_head_and_their_difference(
    f: str, domain: Domain, points: Callable[[np.ndarray], np.ndarray]
) -> None:
    compiled = small(f, domain, certify=True)
    assert compiled.target is not None
    assert compiled.certificate is not None
    figure = compiled.plot()
    across, head = line(panel(figure, "target and head"), "head")
    where = domain.check(points(across))
    # An angle is recovered within an ulp of pi, and nothing here is steeper than 1e4 by it.
    slack = 1e-11
    assert np.abs(head - compiled.evaluate(where)[:, 0]).max() <= slack
    assert (
        np.abs(line(panel(figure, "target and head"), "target")[1] - compiled.target.evaluate(where)[:, 0]).max()
        <= slack
    )
    _, error = line(panel(figure, "head minus target"), "error")
    measured = np.abs(compiled.evaluate(where) - compiled.target.evaluate(where)).max()
    assert math.isclose(np.abs(error).max(), measured, rel_tol=1e-9, abs_tol=slack)
    assert measured <= compiled.certificate.bound
    assert f"{np.abs(error).max():.3g}" in header(figure)
    assert f"{compiled.certificate.bound:.3g}" in header(figure)


def test_the_bound_is_a_line_on_both_sides_of_the_error() -> None:
    compiled = small("sin(2*x)", Sphere(1), certify=True)
    assert compiled.certificate is not None
    axes = panel(compiled.plot(), "head minus target")
    levels = [float(np.asarray(line.get_ydata())[0]) for line in axes.lines if line.get_label() == "bound"]
    assert levels == [-compiled.certificate.bound, compiled.certificate.bound]
    assert axes.get_ylim()[1] > compiled.certificate.bound


def test_points_near_a_kink_are_drawn() -> None:
    across, _ = line(panel(small("abs(x - 0.7)", LINE).plot(), "head minus target"), "error")
    assert np.count_nonzero(np.abs(across - 0.7) < 1e-6) > 20


@pytest.mark.parametrize("domain", [Sphere(2), SQUARE], ids=str)
def test_a_map_shows_the_errors_of_its_points_on_a_scale_that_ends_at_the_bound(domain: Domain) -> None:
    compiled = small("sin(2*x) * y", domain, 36, certify=True)
    assert compiled.certificate is not None
    figure = compiled.plot()
    drawn = {axes.get_title(loc="left"): axes.collections[0] for axes in figure.axes if axes.collections}
    shown = {name: np.asarray(mesh.get_array()).ravel() for name, mesh in drawn.items() if isinstance(mesh, QuadMesh)}
    assert set(shown) == {"target", "head", "head minus target"}
    assert np.array_equal(shown["head"] - shown["target"], shown["head minus target"])
    points = Subject(compiled).view.points
    assert compiled.target is not None
    measured = np.abs(compiled.evaluate(domain.check(points)) - compiled.target.evaluate(points)).max()
    assert math.isclose(np.abs(shown["head minus target"]).max(), measured, rel_tol=1e-9)
    assert measured <= compiled.certificate.bound
    assert drawn["head minus target"].get_clim() == (-compiled.certificate.bound, compiled.certificate.bound)
    assert drawn["head"].get_clim() == drawn["target"].get_clim()


def test_the_sphere_is_projected_as_the_picture_says() -> None:
    compiled = small("x", Sphere(2))
    figure, view = compiled.plot(), Subject(compiled).view
    assert panel(figure, "target").name == "hammer"
    assert "Hammer" in header(figure)
    x, y, z = view.points.T
    assert view.up is not None
    assert np.allclose(np.arctan2(y, x), view.across)
    assert np.allclose(np.arcsin(z), view.up)


def test_every_position_is_drawn_where_its_weight_is_largest() -> None:
    compiled = small("sin(2*x)", Sphere(1), 7)
    figure = compiled.plot()
    count = compiled.positions
    [dots] = [each for each in panel(figure, f"{count} positions").collections if len(each.get_offsets()) == count]
    angles = np.linspace(-np.pi, np.pi, 2001)
    weights = compiled.head.weights(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    assert np.allclose(dots.get_offsets()[:, 1], weights.max(axis=0))
    # Two neighbours on a grid of step 2 pi / 2000 can share the maximum.
    assert np.abs(dots.get_offsets()[:, 0] - angles[weights.argmax(axis=0)]).max() <= 2 * np.pi / 1000


def test_a_sharp_heads_positions_lie_deep_in_their_cells() -> None:
    centres = np.array([-0.5, 0.1, 0.9])
    head = Head(2e4 * centres[:, None], -1e4 * centres**2, np.zeros((3, 1)))  # softmax of -1e4 (q - centre)^2
    queries = np.linspace(-1, 1, 2001)[:, None]
    seen = Seen.at(head, queries)
    assert np.array_equal(seen.peaks, [1.0, 1.0, 1.0])
    # Odds grow away from an only neighbour. Between two the scores' leads, 1.2e4 (q + 0.2) over the left one and
    # 1.6e4 (0.5 - q) over the right one, are equal at 0.2.
    assert np.allclose(queries[seen.places, 0], [-1.0, 0.2, 1.0], atol=2e-3)


def test_biases_are_told_apart_by_colour() -> None:
    compiled = small("x", SQUARE)
    assert np.ptp(compiled.biases) > 0
    dots = panel(compiled.plot(), f"{compiled.positions} positions").collections[0]
    assert np.array_equal(dots.get_array(), compiled.biases)


@pytest.mark.slow
def test_each_output_has_its_row_and_no_more_than_three_are_drawn() -> None:
    compiled = small("[x, y, x*y, x - y, 2*x]", SQUARE)
    titles = [axes.get_title(loc="left") for axes in compiled.plot().axes]
    assert OUTPUTS == 3
    assert [title for title in titles if title.startswith("head minus")] == [
        f"head minus target, output {output} of 5" for output in (1, 2, 3)
    ]


@pytest.mark.parametrize("domain", [pytest.param(Sphere(3), marks=pytest.mark.slow), Cube([(0, 1)] * 3)], ids=str)
def test_more_dimensions_are_a_section_beside_the_distribution_of_the_error(domain: Domain) -> None:
    compiled = small("x0 * x1" if domain.columns > 3 else "x * y", domain, 27)
    figure = compiled.plot()
    assert "along the" in header(figure)
    across, share = line(panel(figure, "errors at"), "error")
    assert math.isclose(across.max(), compiled.tried[0].sampled or 0.0, rel_tol=1e-9)
    assert share[0] == 1.0
    assert line(panel(figure, "head minus target"), "error")[0].size > 1000


@pytest.mark.parametrize("columns", [1, 2, 3])
def test_a_table_is_drawn_at_its_points(columns: int) -> None:
    points = np.random.default_rng(0).uniform(-1, 1, (30, columns))
    compiled = compile_function(np.sin(points[:, 0]), FiniteSet(points), positions=6)
    figure = compiled.plot()
    assert "all 30 points" in header(figure)
    measured = np.abs(compiled.evaluate(points)[:, 0] - np.sin(points[:, 0])).max()
    assert f"error up to {measured:.3g}" in header(figure)


@pytest.mark.parametrize(
    ("sides", "is_true_to_scale"), [([(0, 1), (0, 2)], True), ([(0, 1e-3), (0, 1e3)], False)], ids=str
)
def test_a_map_fills_its_panel_when_one_side_is_far_longer(
    sides: list[tuple[float, float]], is_true_to_scale: bool
) -> None:
    figure = small("x * y", Cube(sides)).plot()
    figure.draw_without_rendering()
    axes = panel(figure, "head minus target")
    assert (axes.get_aspect() == 1.0) is is_true_to_scale
    assert min(axes.get_window_extent().width, axes.get_window_extent().height) > 50


@pytest.mark.parametrize(
    ("text", "domain", "told"),
    [
        pytest.param("x0*x1", Sphere(4), "x0 = cos t, x1 = sin t", marks=pytest.mark.slow),
        ("x - y + 0*z", Cube([(-1, 1)] * 3), "but for x, which falls"),
    ],
)
def test_a_section_is_along_a_line_on_which_the_target_varies(text: str, domain: Domain, told: str) -> None:
    figure = small(text, domain).plot()
    assert told in header(figure)
    _, target = line(panel(figure, "target and head"), "target")
    assert np.ptp(target) > 0.9


def test_positions_are_drawn_on_a_map_of_the_whole_domain() -> None:
    compiled = compile_function("5", Cube([(-1, 1)] * 2), positions=3, method="nearest", certify=False)
    figure = compiled.plot()
    axes = panel(figure, "3 positions, where each weighs most")
    assert (axes.get_xlim(), axes.get_ylim()) == ((-1.0, 1.0), (-1.0, 1.0))


@pytest.mark.parametrize("points", [[[0.5]], [[0.5, 0.5]], [[0.5, 1.0], [0.5, 1.0]]], ids=str)
def test_a_table_without_extent_is_drawn(points: list[list[float]]) -> None:
    table = FiniteSet(np.array(points))
    compile_function(np.ones(len(points)), table, positions=1, method="spectral").plot().draw_without_rendering()


@pytest.mark.parametrize("size", [1e-300, pytest.param(1e150, marks=pytest.mark.slow), 1e300])
def test_numbers_of_any_size_are_drawn(size: float) -> None:
    compiled = small("x", Sphere(2))
    heads = [replace(compiled.head, keys=size * compiled.keys), replace(compiled.head, values=size * compiled.values)]
    heads += [replace(compiled.head, biases=np.linspace(-size, size, compiled.positions))]
    for head in heads:
        replace(compiled, head=head, target=None).plot().draw_without_rendering()


@pytest.mark.slow
def test_without_a_target_the_head_alone_is_drawn(tmp_path: Path) -> None:
    def untraceable(x: np.ndarray) -> np.ndarray:
        return np.array([math.sin(float(row[0])) for row in x])

    compiled = small(untraceable, LINE)
    compiled.save(tmp_path / "f.prefix")
    loaded = load_compiled(tmp_path / "f.prefix")
    assert loaded.target is None
    figure = loaded.plot()
    assert "the target is unknown: the head alone" in header(figure)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["head", "9 positions, where each weighs most"]
    assert replace(small("x * y", Sphere(2)), target=None).plot().axes[0].get_title(loc="left") == "head"


def test_a_loaded_expression_is_drawn_as_it_was(tmp_path: Path) -> None:
    compiled = small("sin(2*x)", Sphere(1), certify=True)
    compiled.save(tmp_path / "f.prefix")
    compiled.plot(tmp_path / "made.png")
    load_compiled(tmp_path / "f.prefix").plot(tmp_path / "loaded.png")
    assert (tmp_path / "made.png").read_bytes() == (tmp_path / "loaded.png").read_bytes()


def test_what_is_only_an_estimate_is_called_one() -> None:
    def untraceable(x: np.ndarray) -> np.ndarray:
        return np.array([math.sin(float(row[0])) for row in x])

    figure = small(untraceable, LINE, certify=True).plot()
    assert "an estimate, not a proof" in header(figure).replace("\n", " ")
    assert "proved" not in header(figure)
    assert any(text.get_text().startswith("estimate") for text in panel(figure, "head minus").texts)
    assert "no bound on the error" in header(small(untraceable, LINE).plot())


def test_a_name_is_drawn_as_it_is() -> None:
    target = Target(lambda x: x[:, 0], domain=LINE, name="$\\frac{1}{0}$\n\x1b[2J")
    assert "$\\frac{1}{0}$" in header(small(target, LINE).plot())
    assert "\x1b" not in header(small(target, LINE).plot())


def test_a_long_prefix_is_looked_at_from_fewer_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "WORK", WORK // 40)
    rng = np.random.default_rng(0)
    keys = 50 * Sphere(2).sample(5_000, rng)
    compiled = replace(small("x", Sphere(2)), head=Head(keys, np.zeros(len(keys)), keys[:, :1] / 50))
    points = len(Subject(compiled).view.points)
    assert points * compiled.positions <= WORK // 40
    assert f"each weighs most of {points:,} points" in compiled.plot().axes[-1].get_title(loc="left")


@pytest.mark.parametrize(
    ("suffix", "start"),
    [
        (".png", b"\x89PNG"),
        pytest.param(".svg", b"<?xml", marks=pytest.mark.slow),
        pytest.param(".PDF", b"%PDF", marks=pytest.mark.slow),
    ],
)
def test_a_figure_is_written_in_its_suffix_format_and_is_the_same_each_time(
    tmp_path: Path, suffix: str, start: bytes
) -> None:
    compiled = small("x * y", SQUARE)
    made = [tmp_path / "new" / f"{name}{suffix}" for name in "ab"]
    assert all(isinstance(compiled.plot(path), Figure) for path in made)
    assert made[0].read_bytes().startswith(start)
    assert made[0].read_bytes() == made[1].read_bytes()
    assert len(list((tmp_path / "new").iterdir())) == 2


@pytest.mark.parametrize("name", ["f", "f.jpg", "f.png.txt", ".png"])
def test_an_unknown_suffix_is_refused_and_nothing_is_drawn(tmp_path: Path, name: str) -> None:
    with pytest.raises(PictureError, match="which kind of picture") as refused:
        check_picture_path(tmp_path / name)
    assert refused.value.fix
    with pytest.raises(PictureError):
        small("x", LINE).plot(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_refuses_is_found_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    for path in (tmp_path / "file" / "f.png", tmp_path / "folder.png"):
        with pytest.raises(PictureError, match="cannot be written"):
            check_picture_path(path)
    assert check_picture_path(tmp_path / "a" / "b" / "f.png").suffix == ".png"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_full_disk_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, path = small("x", LINE), tmp_path / "f.png"
    path.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(BundleError):
        compiled.plot(path)
    assert [found.read_bytes() for found in tmp_path.iterdir()] == [b"old"]


def test_drawing_leaves_no_pyplot_figure_and_no_changed_setting(tmp_path: Path) -> None:
    import matplotlib as mpl

    before, had_pyplot = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    small("x", Sphere(2)).plot(tmp_path / "f.svg")
    assert dict(mpl.rcParams) == before
    if had_pyplot:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []
    else:
        assert "matplotlib.pyplot" not in sys.modules


def test_the_colours_are_those_of_the_report() -> None:
    shared = COLOURS.keys() & PALETTE.keys()
    assert {"ink", "muted", "line", "prefix", "other", "required"} <= shared
    assert {name: COLOURS[name] for name in shared} == {name: PALETTE[name] for name in shared}
