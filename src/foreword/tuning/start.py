"""First values of a fitted prefix: what its keys and values are before the first step.

Each way is one function from material (texts, examples, another prefix, a loss) to keys and values at every site. All
of them work on encoders, causal and encoder-decoder models; "auto" is the one for the base model's role. How positions
are chosen from a longer text `resize.py` knows, how values are solved for a loss `closed_form.py`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from foreword.engine.admission import check_fit
from foreword.engine.assignment import PrefixTensors, SiteTensors
from foreword.engine.bake import bake
from foreword.engine.host import Host
from foreword.engine.reading import captured
from foreword.engine.rendering import tokens
from foreword.engine.tensors import to_tensor
from foreword.errors import FitError
from foreword.prefix import Prefix
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.resize import Texts, lengthened, shortened
from foreword.tuning.starts import STARTS

# Zero everywhere: of what was measured so far (benchmarks/LOG.md) the closed form is often better, once no better, and
# takes the time of some 25 steps; demonstrations can lock a model into what they show.
AUTO: Mapping[str, str] = {"encoder": "zero", "causal": "zero", "encoder-decoder": "zero"}
# Normal values of a "random" start: the standard deviation that the common library draws its own with is 1, after which
# fits go worst of all (ANCHORS 2.: 18.6 against 35.8 from zero); this small they do not drown the context.
VALUE_SCALE = 0.1
# At most so many examples judge positions, and at most so many tokens of demonstrations are read to choose from.
JUDGES, LONGEST = 64, 1024


@dataclass(frozen=True)
class Example:
    """One fit example as the model reads it: `read` its input's tokens, `answer` what it should write (may be empty).

    `told` are the tokens of the example as a demonstration: input and answer together.
    """

    read: tuple[int, ...]
    answer: tuple[int, ...]
    told: tuple[int, ...]


@dataclass(frozen=True)
class Material:
    """What first values can be made from. Each start says what it lacks."""

    examples: Sequence[Example] = ()
    text: str | None = None
    prefix: Prefix | None = None


@dataclass(frozen=True)
class FirstValues:
    """Keys, values and biases by site, the start's `name` ("auto" resolved), and how they came about."""

    tensors: PrefixTensors
    name: str
    details: Mapping[str, Any] = field(default_factory=dict)


def start_for(host: Host, start: str) -> str:
    """The start that `start` means on this host: "auto" is the one that measured best for its role.

    FitError when there is no such start.
    """
    if start not in STARTS:
        raise FitError(
            "There is no such start of a prefix.",
            expected=", ".join(STARTS),
            found=start,
            fix="Name one of these; docs/reference/task-file.md explains each.",
        )
    return AUTO[host.role] if start == "auto" else start


def first_values(host: Host, start: str, *, positions: int, seed: int, material: Material) -> FirstValues:
    """Keys and values of `positions` positions at every site, deterministic in `seed`.

    "closed-form" begins as "zero" does: `foreword.tuning.closed_form.solve` then finds values for its keys. FitError
    when the start is unknown or lacks its material; PrefixError when a given prefix does not fit the host.
    """
    name, began = start_for(host, start), time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    details: dict[str, Any] = {}
    if name in ("zero", "random", "closed-form"):
        made = _drawn(host, positions, generator, value_scale=VALUE_SCALE if name == "random" else 0.0)
    elif name == "prefix":
        made = _from_prefix(host, positions, generator, material)
    else:
        parts = _texts(host, name, positions, generator, material)
        details["tokens"] = sum(len(read) for read, _ in parts)
        made = _resized(host, _pooled(host, parts), positions, generator, material)
    details["seconds"] = time.perf_counter() - began
    return FirstValues({site: _wide(host, found) for site, found in made.items()}, name, details)


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
    """Another prefix, at the sites that it has; the others start from zero values."""
    prefix = material.prefix
    if prefix is None:
        raise _lacks("prefix", "a prefix to start from", "start_prefix")
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
    return made | _resized(host, whole, positions, generator, material)


def _resized(
    host: Host, whole: PrefixTensors, positions: int, generator: torch.Generator, material: Material
) -> dict[str, SiteTensors]:
    if any(found.keys.shape[1] > positions for found in whole.values()):
        whole = shortened(host, judges(host, material), whole, positions, keep_first=host.role == "causal")
    return {site: lengthened(_on_cpu(found), positions, generator) for site, found in whole.items()}


def _on_cpu(found: SiteTensors) -> SiteTensors:
    return SiteTensors(found.keys.cpu(), found.values.cpu(), None if found.bias is None else found.bias.cpu())


def judges(host: Host, material: Material) -> Texts:
    """Rows whose queries judge positions: fit examples, or the text itself where there are none."""
    chosen = material.examples[:JUDGES]
    if not chosen and material.text is not None:
        ids = tokens(host, material.text, special=True)[: host.max_positions]
        return Texts([ids], [ids])
    if not chosen:
        raise _lacks("prefix", "examples by which the positions to keep are chosen", "examples")
    if host.role == "encoder-decoder":
        begin = _decoder_begin(host)
        return Texts([x.read for x in chosen], [[begin, *x.answer] for x in chosen])
    limit = host.max_positions
    return Texts([(*x.read, *(x.answer if host.role == "causal" else ()))[:limit] for x in chosen])


# Texts: what the model reads for its keys and values to be kept

Read = tuple[Sequence[int], Sequence[int]]  # what the model (or its encoder) reads, and what its decoder reads


def _texts(host: Host, name: str, positions: int, generator: torch.Generator, material: Material) -> list[Read]:
    """The texts of a start, each within what the model reads."""
    if name == "vocabulary":
        return [_vocabulary(host, positions, generator)]
    if name == "text":
        return [_text(host, material)]
    if not material.examples:
        raise _lacks(name, "labelled examples", "examples")
    return _demonstrations(host, positions, material.examples)


def _vocabulary(host: Host, positions: int, generator: torch.Generator) -> Read:
    """Random tokens of the vocabulary, special ones left out; a causal model's beginning token first."""
    count = len(host.tokenizer) if host.tokenizer is not None else host.model.get_input_embeddings().weight.shape[0]
    special = set(getattr(host.tokenizer, "all_special_ids", ()) or ())
    allowed = torch.tensor([token for token in range(count) if token not in special])
    ids = allowed[torch.randint(len(allowed), (min(positions, _room(host)),), generator=generator)].tolist()
    begin = _begin(host)
    ids = [*begin, *ids][: len(ids)]
    return ids, _behind(host, ids)


def _text(host: Host, material: Material) -> Read:
    text = material.text
    ids = [] if text is None else [*_begin(host), *tokens(host, text, special=host.role != "causal")]
    if text is None or not text.strip() or not ids:
        raise FitError(
            "There is no text to start the prefix from.",
            expected="a text that is not blank",
            found="none: the task has no label descriptions and its template no words" if text is None else repr(text),
            fix='Write one: start_text = "...", or choose another start.',
        )
    return ids[: _room(host)], _behind(host, ids)


def _demonstrations(host: Host, positions: int, examples: Sequence[Example]) -> list[Read]:
    """A causal model reads as many as fit, one behind the other; the other roles each on its own, as they read inputs.

    At most LONGEST tokens, or `positions` when that is more.
    """
    room = max(LONGEST, positions)
    if host.role == "causal":
        ids, limit = _begin(host), min(room, _room(host))
        for example in examples:
            if len(ids) + len(example.told) > limit and len(ids) > len(_begin(host)):
                break
            ids = [*ids, *example.told]
        return [(ids[:limit], ())]
    parts: list[Read] = []
    for example in examples:
        if sum(len(read) for read, _ in parts) + len(example.told) > room and parts:
            break
        read = example.read if host.role == "encoder-decoder" else example.told
        parts.append((read[: _room(host)], [_decoder_begin(host), *example.answer][: _room(host)]))
    return parts


def _pooled(host: Host, parts: Sequence[Read]) -> dict[str, SiteTensors]:
    """Keys and values of all texts at every site, one text's behind the other's."""
    if host.role == "causal" and not host.layout.is_rotary:
        return {
            layer.site: SiteTensors(**{name: to_tensor(array) for name, array in layer.arrays().items()})
            for layer in bake(host, list(parts[0][0])).layers
        }
    found = [captured(host, read, decoder_ids) for read, decoder_ids in parts]
    return {
        site.name: SiteTensors(
            torch.cat([each[site.name].keys for each in found], dim=1),
            torch.cat([each[site.name].values for each in found], dim=1),
        )
        for site in host.sites
    }


def _begin(host: Host) -> list[int]:
    """A causal model's beginning token, when its tokenizer puts one before a prompt."""
    begin = getattr(host.tokenizer, "bos_token_id", None)
    if host.role != "causal" or begin is None or tokens(host, "", special=True)[:1] != [begin]:
        return []
    return [int(begin)]


def _room(host: Host) -> int:
    """Tokens that can be read at once, with one more behind them (see `bake`)."""
    return host.max_positions - 2


def _behind(host: Host, ids: Sequence[int]) -> list[int]:
    """What the decoder reads beside a text: the same text, as if it wrote it down."""
    return [_decoder_begin(host), *ids][: _room(host)] if host.role == "encoder-decoder" else []


def _decoder_begin(host: Host) -> int:
    config = host.model.config
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    return 0


def _lacks(start: str, expected: str, where: str) -> FitError:
    return FitError(
        f'The start "{start}" lacks what it is made from.',
        expected=expected,
        found="none",
        fix=f"Give {where}, or choose another start.",
    )
