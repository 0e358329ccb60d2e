"""All weights of the base model as an adaptation: a fitted copy that takes the place of the originals while active.

The originals are never written to: inside `active` every module holds the copy's parameters, outside it the very
tensors that it held before. So the host stays bit-identical, at the price of memory, which is looked at first.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from foreword.engine.host import Host
from foreword.tuning.replaced import Place, Replaced
from foreword.tuning.room import check_room


class FullWeights(Replaced):
    """A copy of all floating-point weights, in float32 at least, to be fitted; a weight used twice stays one weight.

    FitError when copy, gradients, optimizer and checkpoint do not fit into the memory that is free: 16 bytes a weight
    on the model's device and 24 in main memory (40 together on the CPU).
    """

    RATE = 5e-5

    def __init__(self, host: Host) -> None:
        self.host = host
        _ = host.fingerprint  # kept from here on: inside `active` it would be measured of the copy
        fitted = {name: own for name, own in host.model.named_parameters() if own.is_floating_point()}
        check_room(
            host.device,
            sum(own.numel() * _dtype(own).itemsize for own in fitted.values()),
            what="A full fine-tune of this base model",
            fix="Fit a prefix or LoRA instead, name a smaller base model, or leave the full fine-tune out.",
        )
        named = {name: nn.Parameter(own.detach().to(_dtype(own), copy=True)) for name, own in fitted.items()}
        copies = {id(own): named[name] for name, own in fitted.items()}
        places = [
            Place(module, attribute, own, copies[id(own)])
            for module in host.model.modules()
            for attribute, own in module.named_parameters(recurse=False)
            if id(own) in copies
        ]
        super().__init__(named, places)

    def save(self, folder: Path) -> None:
        """Write the fitted model and its tokenizer as transformers does; `Host.load(str(folder))` reads them."""
        with self.active():
            self.host.model.save_pretrained(str(folder))
        if self.host.tokenizer is not None:
            self.host.tokenizer.save_pretrained(str(folder))


def _dtype(own: nn.Parameter) -> torch.dtype:
    """What the copy is fitted in: steps of 1e-5 would be lost in half precision."""
    return torch.promote_types(own.dtype, torch.float32)
