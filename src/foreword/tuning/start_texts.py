"""The texts whose keys and values a prefix can start from, and the rows whose queries judge them.

A causal model reads demonstrations one behind the other, as in a prompt. An encoder reads each text on its own, as it
reads an input, and keeps the positions of all of them. An encoder-decoder model's encoder does the same, and its
decoder reads what stands beside: the answer of an example, or the text itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreword.engine.assignment import SiteTensors
from foreword.engine.bake import bake
from foreword.engine.generation import decoder_start
from foreword.engine.host import Host
from foreword.engine.reading import captured
from foreword.engine.rendering import tokens
from foreword.engine.tensors import to_tensor
from foreword.errors import FitError
from foreword.prefix import Prefix
from foreword.tuning.resize import Texts

# At most so many examples judge positions, and at most so many tokens of demonstrations are read to choose from.
JUDGES, LONGEST = 64, 1024


@dataclass(frozen=True)
class Example:
    """Fit example number `index` as the model reads it: `read` its input's tokens, `answer` what it should write.

    `told` are the tokens of the example as a demonstration: input and answer together.
    """

    index: int
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
class Text:
    """Tokens of a text, and what the decoder of an encoder-decoder model reads beside it; `index` of its example."""

    read: Sequence[int]
    beside: Sequence[int] = ()
    index: int | None = None


def lacks(start: str, expected: str, where: str) -> FitError:
    """The error of a start without its material."""
    return FitError(
        f'The start "{start}" lacks what it is made from.',
        expected=expected,
        found="none",
        fix=f"Give {where}, or choose another start.",
    )


def texts_for(host: Host, start: str, positions: int, generator: torch.Generator, material: Material) -> list[Text]:
    """The texts of a "vocabulary", "text" or "demonstrations" start, each within what the model reads."""
    if start == "vocabulary":
        return [_vocabulary(host, positions, generator)]
    if start == "text":
        return [_text(host, material.text)]
    if not material.examples:
        raise lacks(start, "labelled examples", "examples")
    room = max(LONGEST, positions)
    if host.role == "causal":
        room = min(room, _room(host))
    begin = _begin(host)
    texts, size = [Text(begin)] if begin else [], len(begin)
    for example in material.examples:
        alone = example.read if host.role == "encoder-decoder" else example.told
        alone = alone[: _room(host) - len(begin)]
        size += len(alone)
        if size > room and len(texts) > len(begin):
            break
        beside = [_decoder_begin(host), *example.answer][: _room(host)] if host.role == "encoder-decoder" else ()
        texts.append(Text(alone, beside, example.index))
    return texts


def pooled(host: Host, texts: Sequence[Text]) -> tuple[dict[str, SiteTensors], dict[str, Tensor]]:
    """Keys and values of all texts at every site, one text's behind the other's; and each position's text, by site."""
    if host.role == "causal":
        together = [token for text in texts for token in text.read]
        found = [_causal(host, together)]
        owners = torch.repeat_interleave(torch.arange(len(texts)), torch.tensor([len(text.read) for text in texts]))
        whose = {site.name: owners for site in host.sites}
    else:
        found = [captured(host, text.read, text.beside) for text in texts]
        whose = {
            site.name: torch.cat([torch.full((each[site.name].keys.shape[1],), n) for n, each in enumerate(found)])
            for site in host.sites
        }
    whole = {}
    for site in host.sites:
        parts = [each[site.name] for each in found]
        keys, values = (torch.cat([getattr(x, name) for x in parts], dim=1) for name in ("keys", "values"))
        whole[site.name] = SiteTensors(keys, values, parts[0].bias)
    return whole, whose


def judges(host: Host, material: Material) -> Texts:
    """Rows whose queries judge positions: fit examples, or the text itself where there are none."""
    chosen = material.examples[:JUDGES]
    if not chosen and material.text is not None:
        chosen = (Example(0, tuple(tokens(host, material.text, special=True)[: _room(host)]), (), ()),)
    if not chosen:
        raise lacks("prefix", "examples by which the positions to keep are chosen", "examples")
    if host.role == "encoder-decoder":
        return Texts([x.read for x in chosen], [[_decoder_begin(host), *x.answer][: _room(host)] for x in chosen])
    answers = [x.answer if host.role == "causal" else () for x in chosen]
    return Texts([(*x.read, *answer)[: host.max_positions] for x, answer in zip(chosen, answers, strict=True)])


def _causal(host: Host, ids: Sequence[int]) -> dict[str, SiteTensors]:
    """A text before the context: by rotation where keys turn; else as it is baked, position biases included."""
    if host.layout.is_rotary:
        return captured(host, ids)
    return {
        layer.site: SiteTensors(**{name: to_tensor(array).to(host.device) for name, array in layer.arrays().items()})
        for layer in bake(host, list(ids)).layers
    }


def _vocabulary(host: Host, positions: int, generator: torch.Generator) -> Text:
    """Random tokens of the vocabulary, special ones left out; a causal model's beginning token first."""
    count = host.model.get_input_embeddings().weight.shape[0]
    special: set[int] = set()
    if host.tokenizer is not None:
        count, special = min(count, len(host.tokenizer)), set(host.tokenizer.all_special_ids)
    allowed = torch.tensor([token for token in range(count) if token not in special])
    length = min(positions, _room(host))
    drawn = allowed[torch.randint(len(allowed), (length,), generator=generator)].tolist()
    ids = [*(_begin(host) if host.tokenizer is not None else ()), *drawn][:length]
    return Text(ids, _copied(host, ids))


def _text(host: Host, text: str | None) -> Text:
    ids = [] if text is None else [*_begin(host), *tokens(host, text, special=host.role != "causal")]
    if text is None or not text.strip() or not ids:
        raise FitError(
            "There is no text to start the prefix from.",
            expected="a text that is not blank",
            found="none: the task has no label descriptions and its template no words" if text is None else repr(text),
            fix='Write one: start_text = "...", or choose another start.',
        )
    return Text(ids[: _room(host)], _copied(host, ids))


def _copied(host: Host, ids: Sequence[int]) -> list[int]:
    """What the decoder reads beside a text that has no answer: the text, as if it wrote it down."""
    return [_decoder_begin(host), *ids][: _room(host)] if host.role == "encoder-decoder" else []


def _decoder_begin(host: Host) -> int:
    """The decoder's own first token; 0 for a model without a head that writes, whose features alone are wanted."""
    return decoder_start(host) if host.model.can_generate() else 0


def _begin(host: Host) -> list[int]:
    """A causal model's beginning token, when its tokenizer puts one before a prompt."""
    begin = getattr(host.tokenizer, "bos_token_id", None)
    if host.role != "causal" or begin is None or tokens(host, "", special=True)[:1] != [begin]:
        return []
    return [int(begin)]


def _room(host: Host) -> int:
    """Tokens that can be read at once, with one more behind them (see `bake`)."""
    return host.max_positions - 2
