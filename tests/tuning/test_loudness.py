"""How loud a prefix begins and how far a step moves it, against attention written out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import foreword as fw
from foreword.engine.assignment import SiteTensors
from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.engine.interop import occupying, write_peft
from foreword.engine.reading import Seen, read
from foreword.errors import FitError, PrefixError
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.loudness import LEAST_SHARE, LOGITS, MOVE, Loudness, measured, quieted
from foreword.tuning.resize import Texts

ROWS = ([7, 21, 33, 8, 40], [50, 6, 9], [12, 13, 14, 15, 16, 17, 18])
TEXTS = Texts(ROWS)


def drawn(host: Host, *, positions: int = 24, scale: float = 0.5) -> dict[str, SiteTensors]:
    generator = torch.Generator().manual_seed(0)
    return {
        site.name: SiteTensors(
            scale * torch.randn(site.kv_heads, positions, site.key_dim, generator=generator),
            torch.zeros(site.kv_heads, positions, site.value_dim),
        )
        for site in host.sites
    }


def found(host: Host, tensors: Mapping[str, SiteTensors], share: float | None = 0.08) -> dict[str, Loudness]:
    return measured(host, TEXTS, tensors, share=share, sites=[site.name for site in host.sites])


def seen_by(host: Host) -> dict[str, list[Seen]]:
    kept: dict[str, list[Seen]] = {}
    for row in ROWS:  # alone: no padding to think of
        read(host, [row], lambda seen: kept.setdefault(seen.site, []).append(seen))
    return kept


def shares_by_hand(seen: Seen, part: SiteTensors, *, is_causal: bool) -> Tensor:
    """The prefix's part of a softmax over all keys, `(kv_head, query and head of its group)`."""
    kv_heads, queries = seen.key.shape[1], seen.query.shape[2]
    out = []
    for head in range(seen.query.shape[1]):
        of = head * kv_heads // seen.query.shape[1]
        mine = seen.query[0, head] @ part.keys[of].T * seen.scale
        mine = mine if part.bias is None else mine + part.bias[of]
        others = seen.query[0, head] @ seen.key[0, of].T * seen.scale
        if is_causal:
            others = others.masked_fill(torch.ones(queries, queries).triu(1).bool(), -math.inf)
        out.append(torch.softmax(torch.cat([mine, others], dim=1), dim=1)[:, : mine.shape[1]].sum(dim=1))
    return torch.stack(out).reshape(kv_heads, -1)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_each_key_head_begins_with_the_share_that_was_asked_for(
    shared_host: Callable[[str], Host], family: str
) -> None:
    host = shared_host(family)
    tensors = drawn(host)
    quiet = quieted(tensors, found(host, tensors, share=0.05))
    for site, calls in seen_by(host).items():
        shares = torch.cat([shares_by_hand(x, quiet[site], is_causal=family == "llama") for x in calls], dim=1)
        assert shares.mean(dim=1).tolist() == pytest.approx([0.05] * len(shares), rel=1e-3)


def test_a_head_that_hears_less_than_that_is_not_made_louder(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("llama")
    tensors = drawn(host, positions=1)
    for loudness in found(host, tensors, share=0.9).values():
        assert not loudness.bias.any()
        assert loudness.share < 0.9
    assert quieted(tensors, found(host, tensors, share=0.9)) == tensors


def test_without_a_share_nothing_is_quieted(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("bert")
    tensors = drawn(host)
    assert quieted(tensors, found(host, tensors, share=None)) == tensors


def test_a_bias_that_is_there_is_added_to(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("llama")
    plain = drawn(host)
    bias = {site: torch.full(part.keys.shape[:2], 0.7) for site, part in plain.items()}
    louder = {site: SiteTensors(part.keys, part.values, bias[site]) for site, part in plain.items()}
    for site, part in quieted(louder, found(host, louder)).items():
        same = quieted(plain, found(host, plain))[site]
        assert part.bias is not None
        assert same.bias is not None
        assert torch.allclose(part.bias, same.bias, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_rates_are_what_a_step_is_to_do(shared_host: Callable[[str], Host], family: str) -> None:
    host = shared_host(family)
    loudness = found(host, drawn(host))
    for site, calls in seen_by(host).items():
        reach = torch.cat([(x.query * x.scale).abs().sum(dim=-1).flatten() for x in calls]).mean()
        power = torch.cat([x.out.square().mean(dim=-1).flatten() for x in calls]).mean().sqrt()
        assert loudness[site].key_rate * float(reach) == pytest.approx(LOGITS, rel=1e-4)
        assert loudness[site].value_rate * loudness[site].share == pytest.approx(MOVE * float(power), rel=1e-4)


def test_the_pace_multiplies_both_rates_and_nothing_else(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("bert")
    tensors, sites = drawn(host), [site.name for site in host.sites]
    usual = found(host, tensors)
    for site, slow in measured(host, TEXTS, tensors, share=0.08, sites=sites, pace=0.5).items():
        assert slow.key_rate == pytest.approx(usual[site].key_rate / 2)
        assert slow.value_rate == pytest.approx(usual[site].value_rate / 2)
        assert torch.equal(slow.bias, usual[site].bias)


def test_a_prefix_that_is_hardly_heard_does_not_get_values_without_bound(shared_host: Callable[[str], Host]) -> None:
    host = shared_host("llama")
    whispers = {
        site: SiteTensors(part.keys, part.values, torch.full(part.keys.shape[:2], -30.0))
        for site, part in drawn(host).items()
    }
    loud = found(host, drawn(host))
    for site, loudness in found(host, whispers).items():
        assert loudness.share < 1e-6
        assert loudness.value_rate == pytest.approx(loud[site].value_rate * loud[site].share / LEAST_SHARE, rel=1e-4)


def test_rates_follow_the_scale_of_the_model(load_host: Callable[[str], Host]) -> None:
    """Values ten times as large, and an output projection that takes it back: the same model, other numbers in it."""
    host = load_host("llama")
    before = found(host, drawn(host))
    with torch.no_grad():
        for layer in host.model.model.layers:
            layer.self_attn.v_proj.weight *= 10
            layer.self_attn.o_proj.weight /= 10
    for site, loudness in found(host, drawn(host)).items():
        assert loudness.value_rate == pytest.approx(10 * before[site].value_rate, rel=1e-3)
        assert loudness.key_rate == pytest.approx(before[site].key_rate, rel=1e-3)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_model_that_computes_nothing_finite_is_refused_before_it_is_fitted(
    load_host: Callable[[str], Host], number: float
) -> None:
    """As one does whose numbers leave float16's range."""
    host = load_host("llama")
    with torch.no_grad():
        host.model.model.layers[1].self_attn.q_proj.weight[0] = number
    with pytest.raises(FitError, match="not finite"):
        found(host, drawn(host))


@pytest.mark.parametrize("positions", [4, 64])
def test_the_model_is_hardly_disturbed_however_long_the_prefix(
    shared_host: Callable[[str], Host], positions: int
) -> None:
    host = shared_host("llama")
    tensors = drawn(host, positions=positions)
    ids = torch.tensor([ROWS[2]])

    def moved(carried: Mapping[str, SiteTensors]) -> float:
        with torch.no_grad(), attached(host, carried):
            return float((host.model(input_ids=ids).logits - bare).norm())

    with torch.no_grad():
        bare = host.model(input_ids=ids).logits
    assert moved(quieted(tensors, found(host, tensors))) < moved(tensors) / 3


def test_share_one_leaves_a_prefix_that_other_engines_can_hold(
    shared_host: Callable[[str], Host], write_task: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT knows no logit bias; the default start has one, and share = 1 none."""
    host = shared_host("llama")
    task = write_task(tmp_path, "llama", [])
    for share, has_bias in ((0.08, True), (1.0, False)):
        made = fw.fit(host, task, steps=2, length=3, share=share)
        adaptation = made.predictor.adaptation
        assert isinstance(adaptation, FittedPrefix)
        prefix = adaptation.prefix()
        made.close()
        assert all((layer.bias is not None) == has_bias for layer in prefix.layers)
        if has_bias:
            with pytest.raises(PrefixError, match="PEFT cannot hold"):
                write_peft(tmp_path / "adapter", occupying(prefix, host), host)
        else:
            write_peft(tmp_path / "adapter", occupying(prefix, host), host)
