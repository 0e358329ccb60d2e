"""First values of a fitted prefix: what its keys and values are before the first step.

Each way is one function from material (texts, examples, another prefix, a loss) to keys and values at every site. All
of them work on encoders, causal and encoder-decoder models. How they compare was measured
(benchmarks/tuning/starts); "auto" is the one taken where none is named. How positions are chosen from a longer text
`resize.py` knows, how values are solved for a loss `closed_form.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from foreword.engine.admission import check_fit
from foreword.engine.assignment import PrefixTensors, SiteTensors
from foreword.engine.host import Host
from foreword.engine.tensors import to_array, to_tensor
from foreword.errors import FitError
from foreword.prefix import absent
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.resize import lengthened, shortened
from foreword.tuning.start_texts import Material, judges, lacks, pooled, texts_for
from foreword.tuning.starts import STARTS

# Zero values, begun quietly. The closed form takes the time of six steps of 16 examples: it is ahead before the first
# step and for some steps after it, but ended lower where a causal model writes of real text (benchmarks/LOG.md).
# Demonstrations can lock a model into what they show.
AUTO = "zero"
# Normal values of a "random" start: the standard deviation that the common library draws its own with is 1, after which
# fits go worst of all (ANCHORS 2.: 18.6 against 35.8 from zero); this small they do not drown the context.
VALUE_SCALE = 0.1
# Starts that have nothing to say before the first step, and so begin quietly (`foreword.tuning.loudness`).
SILENT = ("zero", "random", "closed-form")


@dataclass(frozen=True)
class FirstValues:
    """Keys, values and biases by site, the start's `name` ("auto" resolved), and how they came about.

    `own` has, by the index of a fit example, the positions that were made from it: what `leave_one_out` hides from it.
    """

    tensors: PrefixTensors
    name: str
    own: Mapping[int, Sequence[int]] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


def start_for(start: str) -> str:
    """The start that `start` means: "auto" is the one taken where none is named.

    FitError when there is no such start.
    """
    if start not in STARTS:
        raise FitError(
            "There is no such start of a prefix.",
            expected=", ".join(STARTS),
            found=start,
            fix="Name one of these; docs/reference/task-file.md explains each.",
        )
    return AUTO if start == "auto" else start


def first_values(host: Host, start: str, *, positions: int, seed: int, material: Material) -> FirstValues:
    """Keys and values of `positions` positions at every site, deterministic in `seed`.

    "closed-form" begins as "zero" does: `foreword.tuning.closed_form.solve` then finds values for its keys. FitError
    when the start is unknown or lacks its material; PrefixError when a given prefix does not fit the host.
    """
    name = start_for(start)
    generator = torch.Generator().manual_seed(seed)
    details: dict[str, Any] = {}
    own: dict[int, list[int]] = {}
    if name in ("zero", "random", "closed-form"):
        made = _drawn(host, positions, generator, value_scale=VALUE_SCALE if name == "random" else 0.0)
    elif name == "prefix":
        made = _from_prefix(host, positions, generator, material)
    else:
        texts = texts_for(host, name, positions, generator, material)
        details["tokens"] = sum(len(text.read) for text in texts)
        whole, owners = pooled(host, texts)
        made, whose = _resized(host, whole, positions, generator, material, owners)
        for position, owner in enumerate(whose):
            if (index := texts[owner].index) is not None:
                own.setdefault(index, []).append(position)
    return FirstValues({site: _wide(host, found) for site, found in made.items()}, name, own, details)


def cut(first: FirstValues, positions: int) -> FirstValues:
    """The first positions alone: a shorter prefix begins as a longer one does."""
    tensors = {
        site: SiteTensors(
            found.keys[:, :positions],
            found.values[:, :positions],
            None if found.bias is None else found.bias[:, :positions],
        )
        for site, found in first.tensors.items()
    }
    own = {index: [place for place in places if place < positions] for index, places in first.own.items()}
    return replace(first, tensors=tensors, own={index: places for index, places in own.items() if places})


def _wide(host: Host, found: SiteTensors) -> SiteTensors:
    bias = None if found.bias is None else found.bias.float().to(host.device)
    return SiteTensors(found.keys.float().to(host.device), found.values.float().to(host.device), bias)


def _drawn(host: Host, positions: int, generator: torch.Generator, *, value_scale: float) -> dict[str, SiteTensors]:
    """Normal keys as `FittedPrefix` draws them; values normal, or zero."""
    made = {}
    for site in host.sites:
        keys = torch.randn(site.kv_heads, positions, site.key_dim, generator=generator) * FittedPrefix.KEY_SCALE
        values = torch.zeros(site.kv_heads, positions, site.value_dim)
        made[site.name] = SiteTensors(keys, values)
    if value_scale:
        for site in host.sites:
            made[site.name].values.normal_(0.0, value_scale, generator=generator)
    return made


def _from_prefix(host: Host, positions: int, generator: torch.Generator, material: Material) -> dict[str, SiteTensors]:
    """Another prefix, at the sites and key heads that it has; the others start from zero values."""
    prefix = material.prefix
    if prefix is None:
        raise lacks("prefix", "a prefix to start from", "start_prefix")
    if prefix.occupies:
        raise FitError(
            "A fitted prefix cannot start from a baked one: it takes no positions, and a baked one does.",
            expected="a prefix that occupies 0 positions",
            found=f"one that occupies {prefix.occupies}",
            fix='Start from its text: start = "text", start_text = "...".',
        )
    whole = {
        layer.site: SiteTensors(**{name: to_tensor(array).float() for name, array in layer.arrays().items()})
        for layer in prefix.layers
    }
    check_fit(host, whole, is_live=False)
    whole = {site: _wide(host, found) for site, found in whole.items()}
    made = _drawn(host, positions, generator, value_scale=0.0)
    owners = {site: torch.zeros(found.keys.shape[1], dtype=torch.long) for site, found in whole.items()}
    for site, found in _resized(host, whole, positions, generator, material, owners)[0].items():
        made[site] = _revived(found, made[site])
    return made


def _revived(found: SiteTensors, drawn: SiteTensors) -> SiteTensors:
    """`found` with what was drawn in the key heads that carry nothing: under their bias no gradient reaches them."""
    count = len(found.keys)
    gone = torch.from_numpy(absent(None if found.bias is None else to_array(found.bias), count))
    if found.bias is None or not gone.any():
        return found
    keys, values = (
        torch.where(gone[:, None, None], new, old)
        for new, old in ((drawn.keys, found.keys), (drawn.values, found.values))
    )
    bias = found.bias.masked_fill(gone.repeat_interleave(len(found.bias) // count)[:, None], 0.0)
    return SiteTensors(keys, values, bias)


def _resized(
    host: Host,
    whole: PrefixTensors,
    positions: int,
    generator: torch.Generator,
    material: Material,
    owners: Mapping[str, Tensor],
) -> tuple[dict[str, SiteTensors], list[int]]:
    """`whole` with exactly `positions` positions at each site, and the owner of each of them."""
    places = next(iter(owners.values()))
    if any(len(each) > positions or len(each) != len(places) for each in owners.values()):
        is_causal = host.role == "causal"
        judging = judges(host, material)
        whole, places = shortened(host, judging, whole, positions, owners=owners, keep_first=is_causal)
    whose = [int(places[position % len(places)]) for position in range(positions)]
    return {site: lengthened(_on_cpu(found), positions, generator) for site, found in whole.items()}, whose


def _on_cpu(found: SiteTensors) -> SiteTensors:
    """Where random numbers are drawn, so that a seed gives the same ones on every device."""
    return SiteTensors(found.keys.cpu(), found.values.cpu(), None if found.bias is None else found.bias.cpu())
