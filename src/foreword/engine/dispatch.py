"""Where a model computes, and what its weights are, while accelerate keeps some of them elsewhere.

A model that is larger than its device has hooks on its modules that bring their weights before each run and take them
away after it. Meanwhile these stand on the device meta, which has no numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import nn


def computing_device(model: nn.Module) -> torch.device:
    """The device of the model's first weight; of one that is kept elsewhere, where its module runs."""
    device = next(iter(model.parameters())).device
    if device.type == "meta":
        for module in model.modules():
            for hook in _bringing(module):
                if hook.execution_device is not None:
                    return torch.device(hook.execution_device)
    return device


def all_weights(model: nn.Module) -> dict[str, Any]:
    """The model's state dict, with the numbers of weights that are kept elsewhere."""
    found: dict[str, Any] = dict(model.state_dict())
    for path, module in model.named_modules():
        for hook in _bringing(module):
            deep = bool(hook.place_submodules)
            for own, part in chain(module.named_parameters(recurse=deep), module.named_buffers(recurse=deep)):
                name = f"{path}.{own}" if path else own
                if part.device.type == "meta" and name in found:
                    found[name] = hook.weights_map[own]
    return found


def _bringing(module: nn.Module) -> Iterator[Any]:
    """The hooks of accelerate on a module that bring its weights."""
    hook = getattr(module, "_hf_hook", None)
    for found in getattr(hook, "hooks", (hook,)):
        if getattr(found, "offload", False) and getattr(found, "weights_map", None) is not None:
            yield found
