"""The cells over which a bound was proved, as exact numbers, and the exact check that they leave no hole.

A cell is a box of the domain's parameters. Along each axis the range is cut first into pieces at given `knots` (the
ends of the range, and kinks in between), then by halving. A cell of level l and index i on an axis with pieces
0, 1, ... lies in piece i >> l and is the (i mod 2^l)-th of that piece's 2^l equal parts. Everything about who touches
whom is integer arithmetic; positions are doubles that neighbours share, so cells that cover in integers cover in
doubles.

It knows nothing of targets and heads. The search makes covers, the checker and the file use them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.compiler.arrays import Floats
from foreword.errors import CertificateError

Integers = NDArray[np.int64]

# An index over 2^level stays an exact double.
DEEPEST = 52
MOST_PIECES = 1024
MOST_CELLS = 20_000_000


@dataclass(frozen=True, eq=False)
class Cover:
    """Cells of a box: `levels` int8 `(cell, parameter)`, `indices` uint64 `(cell, parameter)`.

    `knots` has one increasing array for each parameter: the range's ends, and what lies between them. `frame`, on a
    sphere, is an orthogonal matrix `(columns, columns)` (up to rounding): points are `frame @ x(angles)`.
    CertificateError when the parts do not fit together. Whether the cells cover is asked by `find_hole`.

    >>> halves = Cover(np.array([[1], [1]]), np.array([[0], [1]]), [[0.0, 1.0]])
    >>> halves.lower.ravel().tolist(), halves.upper.ravel().tolist(), halves.find_hole()
    ([0.0, 0.5], [0.5, 1.0], '')
    """

    levels: NDArray[np.int8]
    indices: NDArray[np.uint64]
    knots: Sequence[Floats]
    frame: Floats | None = None

    def __post_init__(self) -> None:
        levels, indices = np.asarray(self.levels), np.asarray(self.indices)
        if levels.ndim != 2 or levels.shape != indices.shape or not 1 <= levels.size <= MOST_CELLS:
            raise _misfit("levels and indices of one shape (cell, parameter)", f"{levels.shape} and {indices.shape}")
        if levels.dtype.kind not in "iu" or indices.dtype.kind not in "iu" or len(self.knots) != levels.shape[1]:
            raise _misfit("integers, and knots for every parameter", f"{levels.dtype}, {indices.dtype}")
        knots = tuple(np.array(axis, dtype=np.float64) for axis in self.knots)
        if not all(_are_knots(axis) for axis in knots):
            raise _misfit(f"2 to {MOST_PIECES + 1} increasing finite knots a parameter", "others")
        pieces = np.array([len(axis) - 1 for axis in knots])
        if levels.min() < 0 or levels.max() > DEEPEST:
            raise _misfit(f"levels from 0 to {DEEPEST}", f"{levels.min()} to {levels.max()}")
        if indices.min() < 0 or np.any(indices.astype(np.uint64) >> levels.astype(np.uint64) >= pieces):
            raise _misfit("indices within the pieces", "an index outside")
        object.__setattr__(self, "levels", levels.astype(np.int8))
        object.__setattr__(self, "indices", indices.astype(np.uint64))
        object.__setattr__(self, "knots", knots)
        if self.frame is not None:
            frame = np.array(self.frame, dtype=np.float64)
            if frame.ndim != 2 or frame.shape[0] != frame.shape[1] or not _is_nearly_orthogonal(frame):
                raise _misfit("an orthogonal square frame", f"a {frame.shape} array")
            object.__setattr__(self, "frame", frame)

    def __len__(self) -> int:
        return int(self.levels.shape[0])

    @cached_property
    def lower(self) -> Floats:
        """The cells' lower corners `(cell, parameter)`, exact doubles."""
        return self._positions(0)

    @cached_property
    def upper(self) -> Floats:
        """The cells' upper corners `(cell, parameter)`; a neighbour's lower corner is the same double."""
        return self._positions(1)

    def _positions(self, end: int) -> Floats:
        positions = np.empty(self.levels.shape)
        for axis, knots in enumerate(self.knots):
            levels = self.levels[:, axis].astype(np.int64)
            indices = self.indices[:, axis].astype(np.int64)
            piece = indices >> levels
            part = (indices - (piece << levels) + end) / np.exp2(levels)  # exact: at most 53 bits
            low, high = knots[piece], knots[piece + 1]
            # Rounding is monotone, so positions are too; the last one is the knot itself.
            positions[:, axis] = np.where(part == 1, high, np.minimum(low + (high - low) * part, high))
        return positions

    def find_hole(self) -> str:
        """Empty text when the cells cover the whole box, by integers alone; otherwise what is missing.

        The box is halved where no cell of it is cut, until one cell is the whole of each part. Cells that come from
        halving always pass; overlapping ones may be refused although they cover.
        """
        levels, indices = self.levels.astype(np.int64), self.indices.astype(np.int64)
        shape = tuple(len(axis) - 1 for axis in self.knots)
        groups = np.ravel_multi_index(tuple((indices >> levels).T), shape)
        if len(np.unique(groups)) != np.prod([float(count) for count in shape]):
            return "a piece between knots has no cell"
        order = np.argsort(groups, kind="stable")
        # `left` counts halvings still to be undone on each axis: how much smaller the cell is than its part of the box.
        left, indices, groups = levels[order], indices[order], groups[order]
        while len(left):
            starts = np.flatnonzero(np.diff(groups, prepend=-1))
            rank = np.cumsum(np.diff(groups, prepend=groups[0]) != 0)
            is_filled = np.minimum.reduceat(left.sum(axis=1), starts) == 0
            smallest = np.minimum.reduceat(left, starts, axis=0)
            axes = smallest.argmax(axis=1)
            if np.any((smallest.max(axis=1) == 0) & ~is_filled):
                return "a part of the box is neither one cell nor free to be halved"
            keep = ~is_filled[rank]
            left, indices, rank = left[keep], indices[keep], rank[keep]
            rows, axis = np.arange(len(left)), axes[rank]
            left[rows, axis] -= 1
            halves = 2 * rank + ((indices[rows, axis] >> left[rows, axis]) & 1)
            if len(np.unique(halves)) != 2 * np.count_nonzero(~is_filled):
                return "half of a part of the box has no cell"
            order = np.argsort(halves, kind="stable")
            left, indices, groups = left[order], indices[order], halves[order]
        return ""

    @property
    def digest(self) -> str:
        """SHA-256 of the exact numbers."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            digest.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The cover as named arrays; `from_arrays` reads them back."""
        named: dict[str, NDArray[Any]] = {"levels": self.levels, "indices": self.indices}
        named |= {f"knots/{axis}": knots for axis, knots in enumerate(self.knots)}
        return named if self.frame is None else {**named, "frame": self.frame}

    @classmethod
    def from_arrays(cls, named: Mapping[str, NDArray[Any]]) -> Cover:
        """The cover that `arrays` told; CertificateError when it is none."""
        try:
            parameters = named["levels"].shape[1]
            knots = [named[f"knots/{axis}"] for axis in range(parameters)]
            cover = cls(named["levels"], named["indices"], knots, named.get("frame"))
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise _misfit("levels, indices and knots", f"{type(error).__name__}: {error}") from error
        if set(named) != set(cover.arrays()):
            raise _misfit("arrays of a cover and no other", ", ".join(sorted(set(named) - set(cover.arrays()))))
        return cover

    @classmethod
    def whole(cls, knots: Sequence[Sequence[float] | Floats], frame: Floats | None = None) -> Cover:
        """The coarsest cover: every cell is one combination of pieces between knots.

        >>> len(Cover.whole([[0.0, 0.3, 1.0], [0.0, 1.0]]))
        2
        """
        arrays = [np.asarray(axis, dtype=np.float64) for axis in knots]
        shape = [len(axis) - 1 for axis in arrays]
        indices = np.indices(shape).reshape(len(shape), -1).T
        return cls(np.zeros(indices.shape, np.int8), indices.astype(np.uint64), arrays, frame)


def _are_knots(axis: Floats) -> bool:
    return (
        axis.ndim == 1
        and 2 <= len(axis) <= MOST_PIECES + 1
        and bool(np.isfinite(np.diff(axis)).all() and (np.diff(axis) > 0).all())
    )


def _is_nearly_orthogonal(frame: Floats) -> bool:
    return bool(np.isfinite(frame).all() and np.abs(frame @ frame.T - np.eye(len(frame))).max() < 1e-9)


def _misfit(expected: str, found: str) -> CertificateError:
    return CertificateError(
        "These are not the cells of a cover.",
        expected=expected,
        found=found,
        fix="Prove the prefix again; the cover is written with its certificate.",
    )
