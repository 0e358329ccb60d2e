"""Batches that do not fit into memory: computed in halves, to the same results, and refused only for a single row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from foreword.engine.batches import in_batches
from foreword.engine.generation import embed
from foreword.engine.host import Host
from foreword.engine.reading import Seen, read
from foreword.errors import HostError

FULL = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
ROWS = [[5, 6, 7, 8], [9], [10, 11, 12], [13, 14], [15, 16, 17], [18, 19]]


def fits(most: int, part: list[int]) -> list[int]:
    if len(part) > most:
        raise RuntimeError(FULL)
    return part


@pytest.mark.filterwarnings("ignore:a batch of")
@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_a_batch_that_does_not_fit_is_computed_in_halves_and_every_row_once(most: int) -> None:
    made = list(in_batches([3, 9, 1, 4, 7], 4, lambda part: fits(most, part)))
    assert all(part == found for part, found in made)
    assert [index for part, _ in made for index in part] == [1, 4, 3, 0, 2]  # the longest first, as ever


def test_halving_is_told_and_one_row_that_does_not_fit_is_refused() -> None:
    with (
        pytest.warns(RuntimeWarning, match="a batch of 2 texts does not fit"),
        pytest.raises(HostError, match="one text"),
    ):
        list(in_batches([1, 1], 2, lambda part: fits(0, part)))


def test_other_errors_are_nobody_elses() -> None:
    def broken(_: list[int]) -> int:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        list(in_batches([1, 1], 2, broken))


@contextlib.contextmanager
def little_memory(host: Host, site: str, rows: int) -> Iterator[None]:
    """More rows than these do not get past this module."""

    def fill(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        hidden = arguments[0] if arguments else options["hidden_states"]
        if len(hidden) > rows:
            raise RuntimeError(FULL)

    handle = host.backbone.get_submodule(site).register_forward_pre_hook(fill, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.filterwarnings("ignore:a batch of")
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_what_is_read_in_halves_is_what_is_read_whole(shared_host: Callable[[str], Host], family: str) -> None:
    """Sums over queries, equal up to rounding, though the first layers saw some batches whole before it failed."""
    host = shared_host(family)

    def found() -> tuple[Tensor, dict[str, Tensor]]:
        sums = {site.name: torch.zeros(()) for site in host.sites}

        def add(seen: Seen) -> None:
            sums[seen.site] += seen.out.transpose(1, 2)[seen.real].sum()

        read(host, ROWS, add)
        return embed(host, ROWS), sums

    features, sums = found()
    with little_memory(host, host.sites[-1].name, 1):
        again, in_halves = found()
    assert torch.allclose(again, features, rtol=0, atol=1e-5)
    assert all(torch.allclose(in_halves[name], sums[name], rtol=1e-4, atol=1e-4) for name in sums)
