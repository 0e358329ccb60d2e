"""Covers: cells made by halving are seen to cover; whatever is removed, shifted or shrunk is seen as a hole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.compiler.cover import Cover
from foreword.errors import CertificateError

KNOTS = ([-1.0, 0.3, 2.0], [0.0, 1.0], [-3.2, 3.2])


def halved(parameters: int, cuts: int, seed: int) -> Cover:
    """A cover by random halvings, as a search makes it."""
    rng = np.random.default_rng(seed)
    whole = Cover.whole(KNOTS[:parameters])
    cells = [(list(map(int, a)), list(map(int, b))) for a, b in zip(whole.levels, whole.indices, strict=True)]
    for _ in range(cuts):
        levels, indices = cells.pop(int(rng.integers(len(cells))))
        axis = int(rng.integers(parameters))
        for half in range(2):
            child, index = levels.copy(), indices.copy()
            child[axis] += 1
            index[axis] = 2 * index[axis] + half
            cells.append((child, index))
    order = rng.permutation(len(cells))
    return Cover(
        np.array([cells[i][0] for i in order], np.int8), np.array([cells[i][1] for i in order], np.uint64), whole.knots
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 3), st.integers(0, 60), st.integers(0, 10**6))
def test_cells_that_come_from_halving_cover_and_contain_every_point(parameters: int, cuts: int, seed: int) -> None:
    cover = halved(parameters, cuts, seed)
    assert cover.find_hole() == ""
    ends = np.array([(axis[0], axis[-1]) for axis in cover.knots])
    points = np.random.default_rng(seed).uniform(ends[:, 0], ends[:, 1], (50, parameters))
    points = np.concatenate([points, cover.lower, cover.upper])
    inside = (points[:, None] >= cover.lower) & (points[:, None] <= cover.upper)
    assert inside.all(axis=2).any(axis=1).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 60), st.integers(0, 10**6), st.sampled_from(["remove", "shrink", "move"]))
def test_a_cell_removed_shrunk_or_moved_is_seen(parameters: int, cuts: int, seed: int, how: str) -> None:
    """The cells are interior-disjoint, so losing any part of one leaves a hole."""
    cover = halved(parameters, cuts, seed)
    rng = np.random.default_rng(seed + 1)
    levels, indices = cover.levels.copy(), cover.indices.copy()
    cell, axis = int(rng.integers(len(cover))), int(rng.integers(parameters))
    if how == "remove":
        levels, indices = np.delete(levels, cell, 0), np.delete(indices, cell, 0)
    elif how == "shrink":
        levels[cell, axis] += 1
        indices[cell, axis] = 2 * indices[cell, axis] + int(rng.integers(2))
    else:
        whole = (len(cover.knots[axis]) - 1) << int(levels[cell, axis])
        if whole == 1:
            return
        indices[cell, axis] = (int(indices[cell, axis]) + 1) % whole
    assert Cover(levels, indices, cover.knots).find_hole()


def test_neighbours_share_the_same_doubles_at_every_depth() -> None:
    """A point between two cells by rounding would be covered by nobody."""
    for level in range(1, 53, 3):
        indices = np.array([[0], [1], [2**level // 3], [2**level // 3 + 1], [2**level - 1]], np.uint64)
        cover = Cover(np.full((5, 1), level, np.int8), indices, [np.array([-1.5707963267948968, 1.1])])
        assert cover.upper[0, 0] == cover.lower[1, 0]
        assert cover.upper[2, 0] == cover.lower[3, 0]
        assert (cover.lower[0, 0], cover.upper[4, 0]) == (-1.5707963267948968, 1.1)
        assert (cover.lower <= cover.upper).all()
    # The same place told at another level is the same double.
    coarse = Cover(np.array([[1]]), np.array([[0]]), [np.array([0.1, 0.7])])
    fine = Cover(np.array([[40]]), np.array([[2**39 - 1]]), [np.array([0.1, 0.7])])
    assert coarse.upper == fine.upper


def test_overlapping_cells_that_cover_are_accepted_where_one_fills_its_part() -> None:
    cover = Cover(np.array([[0], [3]]), np.array([[0], [5]]), [np.array([0.0, 1.0])])
    assert cover.find_hole() == ""


def test_a_deep_cover_is_checked_in_seconds() -> None:
    """2^18 cells: a loop over cells in Python would take minutes."""
    side = np.arange(512)
    indices = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2).astype(np.uint64)
    cover = Cover(np.full(indices.shape, 9, np.int8), indices, [np.array([0.0, 1.0])] * 2)
    assert cover.find_hole() == ""
    assert Cover(cover.levels[1:], cover.indices[1:], cover.knots).find_hole()


def test_what_is_told_is_read_back_with_the_same_digest() -> None:
    cover = halved(2, 20, 5)
    assert Cover.from_arrays(cover.arrays()).digest == cover.digest
    turned = Cover(cover.levels, cover.indices, cover.knots, np.eye(3))
    assert Cover.from_arrays(turned.arrays()).digest == turned.digest != cover.digest


@pytest.mark.parametrize(
    "change",
    [
        {"levels": np.array([[-1]])},
        {"levels": np.array([[53]])},
        {"levels": np.zeros((0, 1), np.int8), "indices": np.zeros((0, 1), np.uint64)},
        {"levels": np.array([[0.5]])},
        {"indices": np.array([[-1]])},
        {"indices": np.array([[1]], np.uint64)},
        {"indices": np.array([[2**64 - 1]], np.uint64)},
        {"knots": [np.array([0.0])]},
        {"knots": [np.array([1.0, 0.0])]},
        {"knots": [np.array([0.0, np.nan])]},
        {"knots": [np.array([0.0, 1.0])] * 2},
        {"frame": np.ones((2, 2))},
        {"frame": np.full((2, 2), np.nan)},
    ],
)
def test_parts_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    parts = {"levels": np.array([[0]]), "indices": np.array([[0]]), "knots": [np.array([0.0, 1.0])], "frame": None}
    with pytest.raises(CertificateError):
        Cover(**(parts | change))  # type: ignore[arg-type]
