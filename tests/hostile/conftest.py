"""A small bundle that is whole, to be damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.hostile.liar import FakeHost

from foreword.bundle import save_bundle
from foreword.prefix import Prefix


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def whole(folder: Path) -> bytes:
    """A small valid bundle of about two kilobytes."""
    rng = np.random.default_rng(0)
    parts = tuple(rng.normal(size=shape).astype(np.float32) for shape in ((1, 2, 3), (1, 2, 3), (1, 2)))
    save_bundle(
        folder / "whole",
        Prefix.from_arrays({"h.0.attn": parts, "h.1.attn": parts}),
        host=FakeHost(),
        use={"labels": ["yes", "no"]},
        readout={"weights": np.ones((2, 3), np.float32)},
    )
    return (folder / "whole").read_bytes()
