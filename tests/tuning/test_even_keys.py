"""Even keys: orthogonal directions in pairs of opposites, each direction as random as if it were drawn alone."""

from __future__ import annotations

import pytest
import torch

from foreword.tuning.even_keys import SCALE, even_keys


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("positions", "width"), [(1, 8), (2, 8), (7, 8), (16, 8), (17, 8), (40, 8), (5, 1), (16, 64)])
def test_they_are_pairs_of_opposites_orthogonal_to_each_other(positions: int, width: int) -> None:
    keys = even_keys(3, positions, width, seeded(0))
    assert keys.shape == (3, positions, width)
    assert keys.dtype == torch.float32
    lengths = keys.double().norm(dim=2)
    assert torch.allclose(lengths, torch.full_like(lengths, SCALE * width**0.5), rtol=1e-6)
    opposites = keys[:, 1::2]
    assert torch.equal(opposites, -keys[:, 0::2][:, : opposites.shape[1]])
    for block in keys[:, 0::2].split(width, dim=1):
        gram = block.double() @ block.double().transpose(1, 2) / (SCALE**2 * width)
        assert torch.allclose(gram, torch.eye(block.shape[1], dtype=torch.float64).expand_as(gram), atol=1e-6)


def test_they_follow_from_the_seed_and_differ_between_heads_and_blocks() -> None:
    keys = even_keys(2, 24, 6, seeded(5))
    assert torch.equal(keys, even_keys(2, 24, 6, seeded(5)))
    assert not torch.equal(keys, even_keys(2, 24, 6, seeded(6)))
    assert not torch.equal(keys[0], keys[1])
    assert not torch.equal(keys[:, :12], keys[:, 12:])


def test_every_direction_is_as_likely_as_another() -> None:
    """Of 4,000 first keys in the plane the angles are uniform: each quarter has 1,000, within five standard errors."""
    first = even_keys(4000, 1, 2, seeded(1))[:, 0]
    quarters = (first[:, 0] > 0).long() * 2 + (first[:, 1] > 0).long()
    assert (torch.bincount(quarters, minlength=4) - 1000).abs().max() < 5 * (4000 * 0.25 * 0.75) ** 0.5


def test_a_sum_over_them_varies_less_than_over_keys_drawn_one_by_one() -> None:
    """The log-sum of attention over 16 keys, for one query, over 500 draws: what a quiet prefix weighs."""
    query = torch.randn(64, generator=seeded(2))
    drawn = torch.randn(500, 16, 64, generator=seeded(3)) * SCALE
    even = even_keys(500, 16, 64, seeded(4))
    alone, together = (torch.logsumexp(keys @ query / 8, dim=1).var() for keys in (drawn, even))
    assert together < 0.25 * alone
