"""Position ids under a prefix: padding must not shift a row against its prefix, and a baked text takes its positions.

A prefix's keys stand at fixed positions, so a token must be where it would be without padding: its position is the
number of real tokens before it in its row, plus the positions that the row's prefix occupies. Models that compute
position ids from the mask themselves, or take none, are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from foreword.engine.attention import signature_of

# (batch, device) to the positions that each row's prefix occupies, (row,); None when none does
Occupied = Callable[[int, torch.device], Tensor | None]


@contextmanager
def positioned(model: nn.Module, backbone: nn.Module, occupied: Occupied) -> Iterator[None]:
    """Within this context position ids are filled in where the caller gave none, and shifted by what prefixes occupy.

    Both the model and its backbone may be called; when the model calls its backbone, the ids are already right.
    """
    inside = 0
    # Read once here and not at every forward pass, where it would cost a decoding step tens of microseconds.
    signatures = {module: signature_of(module) for module in dict.fromkeys((model, backbone))}
    modules = [module for module, signature in signatures.items() if "position_ids" in signature.parameters]

    def enter(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        nonlocal inside
        inside += 1
        if inside > 1:
            return None
        return _filled(signatures[module].bind_partial(*arguments, **options).arguments, arguments, options, occupied)

    def leave(*_: Any) -> None:
        nonlocal inside
        inside -= 1

    hooks = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in modules]
    hooks += [module.register_forward_hook(leave, always_call=True) for module in modules]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _filled(given: Mapping[str, Any], arguments: tuple[Any, ...], options: dict[str, Any], occupied: Occupied) -> Any:
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
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -length:]
        positions = positions if shift is None else positions + shift[:, None]
    elif shift is not None:
        past = given.get("past_key_values")
        seen = int(past.get_seq_length()) if past is not None else 0
        positions = torch.arange(seen, seen + length, device=tokens.device)[None] + shift[:, None]
    else:
        return None
    return arguments, {**options, "position_ids": positions}
