"""Position ids under a prefix: padding must not shift a row against its prefix, and a baked text takes its positions.

A prefix's keys stand at fixed positions, so a token must be where it would be without padding: its position is the
number of real tokens before it in its row, plus the positions that the row's prefix occupies. A row without a prefix is
the bare model's, padding included: its tokens stand where the bare model puts them, which is tried once. Models that
take no position ids are left alone.

Some rotary models turn every key by other frequencies once a text is longer than a certain length. A baked text's keys
are turned already, so a context that would take the model across that length is refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foreword.engine.forwards import signature_of
from foreword.engine.layout import Layout
from foreword.engine.sites import Inputs, in_evaluation, probing_inputs
from foreword.errors import AttachError


def takes_positions(model: nn.Module, backbone: nn.Module) -> bool:
    """Whether a caller can say where the tokens stand, by position ids."""
    found = dict.fromkeys((_transformers_model(model), _transformers_model(backbone)))
    return any("position_ids" in signature_of(module).parameters for module in found)


def counts_by_mask(backbone: nn.Module, first: int, probe: Inputs | None = None) -> bool:
    """Whether the bare model takes a token's position from the mask, and not from the token's place in the row.

    `first` is the position id of a row's first token. A row that is padded at the left is run as it is, with the ids of
    its places, and with those of its count: the bare model does what it comes nearest to, its places where both agree.
    """
    inputs = dict(probe or probing_inputs(backbone))
    ids = inputs.get("input_ids")
    if ids is None or "position_ids" not in signature_of(backbone).parameters:
        return False
    model: Any = backbone
    stated: Any = getattr(model.config, "pad_token_id", None)
    is_known = isinstance(stated, int) and 0 <= stated < len(model.get_input_embeddings().weight)  # some say -1
    pad = int(stated) if is_known else 0
    ids = torch.cat([torch.full_like(ids[:, :1], pad), ids[ids != pad][None]], dim=1)
    inputs |= {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1], device=ids.device) > 0).long()[None]}
    places = torch.arange(ids.shape[1], device=ids.device)[None] + first

    def run(**options: Tensor) -> Tensor:
        found: Tensor = backbone(**inputs, **options)[0]
        return found[:, 1:].double()

    with torch.no_grad(), in_evaluation(backbone):
        bare, by_place, by_count = run(), run(position_ids=places), run(position_ids=(places - 1).clamp(min=first))
    return bool((bare - by_count).norm() < (bare - by_place).norm())


@dataclass(frozen=True)
class _Asked:
    """What the outermost model was called with: its mask over `length` tokens, and whether positions were stated."""

    is_stated: bool
    mask: Any
    length: int


class _Nesting(threading.local):
    """How deep a thread is inside forward passes: a task may hand several of them to threads at once."""

    def __init__(self) -> None:
        self.depth = 0
        self.asked: _Asked | None = None


class Positions:
    """The position ids of one attachment's forward passes, filled in where the caller gave none, and shifted.

    `occupied` has how many positions each prefix occupies, `rows` which row carries which (None: every row the first).
    Both the model and its backbone may be called; when the model calls its backbone, the ids are already right. Where
    the backbone has a reader inside (`layout.py`), ids are filled in as that is called: what the models around it have
    worked out by themselves, other than the tokens' places, is theirs to know. With `counting`, a row's positions count
    its real tokens; without, padding too.
    """

    def __init__(
        self,
        model: nn.Module,
        backbone: nn.Module,
        layout: Layout,
        *,
        occupied: Sequence[int],
        rows: Sequence[int | None] | None,
        counting: bool = True,
    ) -> None:
        self.layout, self.counting = layout, counting
        self.moves = any(occupied)
        self.bare_counts = False  # whether a row without a prefix is counted by its mask; asked where there is one
        # By row of the batch, or of its beams; a compiled graph takes these numbers as an input.
        carried = [0] if rows is None else rows
        self.occupied = torch.tensor([0 if whose is None else occupied[whose] for whose in carried])
        self.is_bare = torch.tensor([whose is None for whose in carried])
        self.bare_rows = carried.count(None)
        # Read once here and not at every forward pass, where it would cost a decoding step tens of microseconds.
        called = [*map(_transformers_model, (model, backbone)), *([] if layout.reader is None else [layout.reader])]
        read = {module: signature_of(module) for module in called}
        self.parameters = {
            module: tuple(found.parameters) for module, found in read.items() if "position_ids" in found.parameters
        }
        self._nesting = _Nesting()

    def run(self, module: nn.Module, forward: Callable[..., Any], arguments: tuple[Any, ...], options: Any) -> Any:
        """A forward pass of one of the modules, its tokens where they belong."""
        self._nesting.depth += 1
        is_outermost = self._nesting.depth == 1
        try:
            if module is self.layout.reader or (is_outermost and self.layout.reader is None):
                asked = None if is_outermost else self._nesting.asked
                arguments, options = self._filled(self.parameters[module], arguments, options, asked)
            elif is_outermost:
                self._nesting.asked = _asked(self.parameters[module], arguments, options)
            return forward(*arguments, **options)
        finally:
            self._nesting.depth -= 1
            if is_outermost:
                self._nesting.asked = None

    def _filled(
        self, parameters: tuple[str, ...], arguments: tuple[Any, ...], options: dict[str, Any], asked: _Asked | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call's arguments and options, with position ids if it needs them."""
        given = _named(parameters, arguments, options)
        tokens = _tokens(given)
        if tokens is None or self.bare_rows == len(self.occupied):
            return arguments, options
        shift = self._shift(tokens.shape[0], tokens.device)
        positions = self._positions(given, tokens, shift, asked)
        if positions is None:
            return arguments, options
        if shift is not None:
            self._check_table(positions, given, tokens)
            for longest in self.layout.rotary_lengths:
                _check_turn(positions, shift, longest)
        options = {**options, "position_ids": positions}
        before = parameters[: len(arguments)]  # given by place: there it would be given twice
        if "position_ids" in before:
            arguments = tuple(
                options.pop(name) if name == "position_ids" else part
                for name, part in zip(before, arguments, strict=True)
            )
        return arguments, options

    def _positions(
        self, given: dict[str, Any], tokens: Tensor, shift: Tensor | None, asked: _Asked | None
    ) -> Tensor | None:
        """Where the tokens stand, moved by `shift`; None where the model's own way of placing them is right."""
        length = tokens.shape[1]
        mask: Any = given.get("attention_mask")
        stated, worked_out = given.get("position_ids"), None
        if asked is not None:
            mask = asked.mask if asked.length == length else mask
            if not asked.is_stated:
                stated, worked_out = None, stated

        def moved(found: Tensor) -> Tensor:
            return found if shift is None else found + shift[:, None]

        if stated is not None:
            return moved(stated)
        counts = self.counting and isinstance(mask, Tensor) and mask.dim() == 2
        if counts and (shift is not None or _may_hide(mask)):
            return self._by_mask(given, tokens, mask, worked_out, moved)
        if shift is None:
            return None
        return moved(self._places(given, tokens) if worked_out is None else worked_out)

    def _by_mask(
        self,
        given: dict[str, Any],
        tokens: Tensor,
        mask: Tensor,
        worked_out: Tensor | None,
        moved: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Each row's real tokens counted, but where the model has worked out something else, and in bare rows."""
        (batch, length), first = tokens.shape[:2], self.layout.first_position
        counted, columns = mask.long().cumsum(dim=1), _columns(mask, given.get("past_key_values"), length)
        positions = moved((counted - 1).clamp(min=0)[:, columns] + first)
        if worked_out is not None:
            positions = torch.where((worked_out == self._places(given, tokens)).all(), positions, moved(worked_out))
        is_bare = self._by_row(self.is_bare, batch, tokens.device) if self.bare_rows else None
        if is_bare is None:
            return positions
        if worked_out is not None:
            bare = worked_out
        elif self.bare_counts:
            bare = (counted * mask.long() - 1)[:, columns] + first
        else:
            bare = self._places(given, tokens)
        return torch.where(is_bare[:, None], bare, positions)

    def _check_table(self, positions: Tensor, given: dict[str, Any], tokens: Tensor) -> None:
        """AttachError when a token stands behind the last of the learned positions; torch would only fail on an index.

        Numbers are read off the device only where the count of the tokens leaves it open.
        """
        end = self.layout.table_end
        if end is None or torch.compiler.is_compiling():
            return
        past = given.get("past_key_values")
        seen = self.layout.first_position + (0 if past is None else int(past.get_seq_length()))
        if seen + tokens.shape[1] + int(self.occupied.max()) > end and int(positions.max()) >= end:
            raise AttachError(
                "The context behind a baked text is longer than the model reads.",
                expected=f"at most {end - self.layout.first_position} tokens, baked text and context together",
                found=f"{int(positions.max()) + 1 - self.layout.first_position} tokens in one row",
                fix="Shorten the text or the context, or use a model of more positions.",
            )

    def _places(self, given: dict[str, Any], tokens: Tensor) -> Tensor:
        """Where tokens stand that are counted from the row's edge, behind what the cache holds, `(1, token)`."""
        past = given.get("past_key_values")
        seen = self.layout.first_position + (0 if past is None else past.get_seq_length())
        return seen + torch.arange(tokens.shape[1], device=tokens.device)[None]

    def _shift(self, batch: int, device: torch.device) -> Tensor | None:
        """The positions that each row's prefix occupies, `(row,)`; None when none does."""
        return self._by_row(self.occupied, batch, device) if self.moves else None

    def _by_row(self, numbers: Tensor, batch: int, device: torch.device) -> Tensor | None:
        """One number for each row of a batch, or of its beams; None for one without the rows, refused as it attends."""
        return None if batch % len(numbers) else numbers.to(device).repeat_interleave(batch // len(numbers))


def _named(parameters: tuple[str, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(parameters, arguments, strict=False)), **options}


def _tokens(given: dict[str, Any]) -> Any:
    return given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")


def _asked(parameters: tuple[str, ...], arguments: tuple[Any, ...], options: dict[str, Any]) -> _Asked:
    given = _named(parameters, arguments, options)
    tokens, mask = _tokens(given), given.get("attention_mask")
    return _Asked(given.get("position_ids") is not None, mask, 0 if tokens is None else tokens.shape[1])


def _columns(mask: Tensor, past: Any, length: int) -> slice | Tensor:
    """Which columns of a mask are the tokens': behind what the cache holds, as a static cache's mask may go on."""
    spare = mask.shape[1] - length
    if spare <= 0:
        return slice(None)
    seen = 0 if past is None else past.get_seq_length() if hasattr(past, "get_seq_length") else spare
    if isinstance(seen, Tensor):
        return seen.clamp(max=spare) + torch.arange(length, device=mask.device)
    return slice(min(seen, spare), min(seen, spare) + length)


def _may_hide(mask: Tensor) -> bool:
    """Whether a mask has to be counted: a graph does not know its numbers, and counting a full one gives the same."""
    return torch.compiler.is_compiling() or not bool(mask.all())


def _transformers_model(module: nn.Module) -> nn.Module:
    """The model that says by its signature what it reads: inside a wrapper, as PEFT's, transformers' own."""
    found = (inner for inner in module.modules() if isinstance(inner, PreTrainedModel))
    return next(found, module)


def _check_turn(positions: Tensor, shift: Tensor, length: int) -> None:
    """AttachError when this pass turns keys otherwise than a row's baked text, or than the row would turn them alone.

    transformers looks at the largest position id of the whole batch. A text was baked with one token behind it.
    """
    last = positions.flatten(0, -3).amax(dim=0) if positions.dim() > 2 else positions
    last = last.amax(dim=-1).expand(len(shift))
    is_beyond = bool(last.max() >= length)
    alone = torch.where(shift > 0, shift, last) >= length
    if bool((alone != is_beyond).any()):
        raise AttachError(
            "Long texts turn this model's keys otherwise than short ones, and a baked text has its keys turned.",
            expected=f"in every row at most {length} tokens, baked text and context together, or a longer baked text",
            found=f"{int(last.max()) + 1} tokens in one row, beside {int((alone != is_beyond).sum())} rows whose baked "
            "text or context alone stays on the other side",
            fix="Shorten the text or the context, or put the text into the prompt.",
        )
