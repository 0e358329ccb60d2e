"""What of a model's modules concerns a prefix, walked once and kept for as long as the model is built that way.

Walking all modules of a deep model takes longer than attaching a prefix to it. What the walk finds changes only when a
module on the way to an attention site is replaced, so each of these links is kept, and comparing them is the check: a
library that swaps what lies *inside* an attention module, as LoRA does with its projections, leaves them all in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from foreword.engine.attention import watchable
from foreword.engine.forwards import signature_of


@dataclass(frozen=True)
class Layout:
    """The modules of one backbone that attaching has to know.

    `sites` has for each attention module the names of its calls in a forward pass, the first of which is its path;
    `watched` are those that are not on the interface; `layers` may be run under activation checkpointing; `is_rotary`
    says whether keys turn with position, and `rotary_lengths` beyond which lengths of a text they turn otherwise;
    `first_position` is the position id of a row's first token, and `has_position_table` says whether positions are
    learned ones that are added to the tokens. `reader` is the innermost model inside the backbone that takes position
    ids and has all sites: around it may be one that works them out by itself, as those of pictures. `table_end` is the
    first id behind a learned table of positions, None where there is none. `links` are (parent, name, child) from the
    backbone down to each attention module.
    """

    sites: Mapping[nn.Module, tuple[str, ...]]
    watched: tuple[nn.Module, ...]
    layers: tuple[nn.Module, ...]
    is_rotary: bool
    rotary_lengths: tuple[int, ...]
    first_position: int
    has_position_table: bool
    reader: nn.Module | None
    table_end: int | None
    links: tuple[tuple[nn.Module, str, nn.Module], ...]

    @classmethod
    def of(cls, backbone: nn.Module, sites: Iterable[str], *, first_position: int = 0) -> Layout:
        """Walk `backbone`; AttributeError when it has no module where one of `sites` (by name) should be.

        `first_position` is what a probing pass saw, for a model that does not read it off a table.
        """
        calls: dict[nn.Module, tuple[str, ...]] = {}
        links = {}
        for site in sites:
            path, parent = site.partition("#")[0], backbone
            for name in path.split(".") if path else ():
                child = parent.get_submodule(name)
                links[parent, name] = child
                parent = child
            calls[parent] = (*calls.get(parent, ()), site)
        modules, reader = list(backbone.modules()), _reader(backbone, calls)
        return cls(
            sites=calls,
            watched=tuple(watchable(backbone)),
            layers=tuple(module for module in modules if hasattr(module, "gradient_checkpointing")),
            is_rotary=any("Rotary" in type(module).__name__ for module in modules),
            rotary_lengths=tuple(sorted({length for module in modules for length in _changing_lengths(module)})),
            first_position=_behind_padding(backbone) or first_position,
            has_position_table=any(
                isinstance(module, nn.Embedding) and name.rpartition(".")[2] == "position_embeddings"
                for name, module in backbone.named_modules()
            ),
            reader=reader,
            table_end=_table_end(backbone if reader is None else reader),
            links=tuple((parent, name, child) for (parent, name), child in links.items()),
        )

    def holds(self) -> bool:
        """Whether every attention module is still reached through the same modules."""
        return all(parent._modules.get(name) is child for parent, name, child in self.links)


def _reader(backbone: nn.Module, attending: Iterable[nn.Module]) -> nn.Module | None:
    """The innermost of transformers' models inside `backbone` that takes position ids and has all these modules.

    Where none has all and `backbone` takes no ids itself, the innermost that has the last one to attend: the language
    model behind one of pictures or sound.
    """
    wanted = list(attending)
    found = _innermost(backbone, set(wanted))
    if found is None and wanted and "position_ids" not in signature_of(backbone).parameters:
        found = _innermost(backbone, set(wanted[-1:]))
    return found


def _innermost(backbone: nn.Module, wanted: set[nn.Module]) -> nn.Module | None:
    found = None
    for module in backbone.modules():
        if isinstance(module, PreTrainedModel) and module is not backbone and wanted.issubset(module.modules()):
            found = module if "position_ids" in signature_of(module).parameters else found
    return found


def _table_end(model: nn.Module) -> int | None:
    """Behind the last row of a learned position table; some add an offset of their own to the ids."""
    return min(
        (
            module.num_embeddings - int(getattr(module, "offset", 0))
            for name, module in model.named_modules()
            if isinstance(module, nn.Embedding) and ("position" in (own := name.rpartition(".")[2]) or own == "wpe")
        ),
        default=None,
    )


def _behind_padding(backbone: nn.Module) -> int:
    """Behind the padding index of a learned position table: RoBERTa-like models never use the rows up to it."""
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
            return module.padding_idx + 1
    return 0


def _changing_lengths(module: Any) -> Iterator[int]:
    """The lengths of a text beyond which a rotary module of transformers turns all keys by other frequencies.

    Its kinds "dynamic" and "longrope" do; a family with several kinds of layers has one for each.
    """
    kinds, told = getattr(module, "rope_type", None), getattr(getattr(module, "config", None), "rope_parameters", None)
    for name, kind in kinds.items() if isinstance(kinds, Mapping) else [(None, kinds)]:
        if kind == "longrope" and isinstance(told, Mapping):
            yield int((told if name is None else told[name])["original_max_position_embeddings"])
        elif isinstance(kind, str) and "dynamic" in kind:
            yield int(module.original_max_seq_len)
