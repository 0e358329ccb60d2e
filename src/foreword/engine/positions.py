"""Position ids under a prefix: padding must not shift a row against its prefix, and a baked text takes its positions.

A prefix's keys stand at fixed positions, so a token must be where it would be without padding: its position is the
number of real tokens before it in its row, plus the positions that the row's prefix occupies. Models that compute
position ids from the mask themselves, or take none, are left alone.

Some rotary models turn every key by other frequencies once a text is longer than a certain length. A baked text's keys
are turned already, so a context that would take the model across that length is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foreword.engine.attention import signature_of
from foreword.engine.hooks import Hook
from foreword.engine.layout import Layout
from foreword.errors import AttachError

# (batch, device) to the positions that each row's prefix occupies, (row,); None when none does
Occupied = Callable[[int, torch.device], Tensor | None]


def takes_positions(model: nn.Module, backbone: nn.Module) -> bool:
    """Whether a caller can say where the tokens stand, by position ids."""
    found = dict.fromkeys((_transformers_model(model), _transformers_model(backbone)))
    return any("position_ids" in signature_of(module).parameters for module in found)


@contextmanager
def positioned(
    model: nn.Module,
    backbone: nn.Module,
    layout: Layout,
    *,
    occupied: Occupied,
    is_active: Callable[[], bool],
    counting: bool = True,
) -> Iterator[None]:
    """Within this context position ids are filled in where the caller gave none, and shifted by what prefixes occupy.

    Only passes of a thread where `is_active`. Both the model and its backbone may be called; when the model calls its
    backbone, the ids are already right. With `counting`, a row's positions count its real tokens; without, padding too.
    """
    inside = 0
    # Read once here and not at every forward pass, where it would cost a decoding step tens of microseconds.
    read = dict.fromkeys((_transformers_model(model), _transformers_model(backbone)))
    signatures = {module: signature_of(module) for module in read}
    modules = [module for module, signature in signatures.items() if "position_ids" in signature.parameters]

    def enter(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        nonlocal inside
        if module not in signatures:  # a copy that was made while the hooks were there
            return None
        inside += 1
        if inside > 1:
            return None
        given = signatures[module].bind_partial(*arguments, **options).arguments
        return _filled(given if counting else {**given, "attention_mask": None}, arguments, options, occupied, layout)

    def leave(module: nn.Module, *_: Any) -> None:
        nonlocal inside
        inside -= module in signatures

    first, last = Hook(enter, is_active), Hook(leave, is_active)
    hooks = [module.register_forward_pre_hook(first, with_kwargs=True) for module in modules]
    hooks += [module.register_forward_hook(last, always_call=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _transformers_model(module: nn.Module) -> nn.Module:
    """The model that says by its signature what it reads: inside a wrapper, as PEFT's, transformers' own."""
    found = (inner for inner in module.modules() if isinstance(inner, PreTrainedModel))
    return next(found, module)


def _filled(
    given: Mapping[str, Any],
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    occupied: Occupied,
    layout: Layout,
) -> Any:
    """The call's arguments and options with position ids; None when they need none. `given` has both by name."""
    tokens = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    if tokens is None:
        return None
    batch, length = tokens.shape[:2]
    shift = occupied(batch, tokens.device)
    stated, mask = given.get("position_ids"), given.get("attention_mask")
    if stated is not None:
        positions = stated if shift is None else stated + shift[:, None]
    elif isinstance(mask, Tensor) and mask.dim() == 2 and (shift is not None or not bool(mask.all())):
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:] + layout.first_position
        positions = positions if shift is None else positions + shift[:, None]
    elif shift is not None:
        past = given.get("past_key_values")
        seen = int(past.get_seq_length()) if past is not None else 0
        seen += layout.first_position
        positions = torch.arange(seen, seen + length, device=tokens.device)[None] + shift[:, None]
    else:
        return None
    if shift is not None:
        for length in layout.rotary_lengths:
            _check_turn(positions, shift, length)
    return arguments, {**options, "position_ids": positions}


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
