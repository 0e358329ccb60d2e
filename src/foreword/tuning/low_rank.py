"""LoRA as an adaptation: low-rank updates of the weights by the peft library, in the model while active and only then.

It knows which layers each choice of targets names, on any family: attention's are found where attention was seen to
happen, not by their names' spelling.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from foreword.engine.host import Host
from foreword.errors import FitError
from foreword.tuning.replaced import Place, Replaced
from foreword.tuning.room import check_room

Targets = Literal["auto", "attention", "mlp", "all-linear"]


class Lora(Replaced):
    """Low-rank updates of rank `rank`. While active, peft's layers stand in the places of those that they change.

    An update is `alpha / rank` times the product of its two factors, with `rank_stabilized` `alpha / sqrt(rank)`
    (Kalajdzievski, 2023); `alpha` None: twice the rank. `targets` are the linear layers that get one: of attention, of
    the layers' other part, of both; "auto" is peft's own choice for the family, or all where it has none. Outside
    `active` the model holds the very modules that it held before, so that a host can carry one fit after another.
    """

    RATE = 2e-3

    def __init__(
        self,
        host: Host,
        *,
        rank: int,
        seed: int,
        alpha: float | None = None,
        rank_stabilized: bool = False,
        targets: Targets = "auto",
    ) -> None:
        try:
            import peft
        except ImportError as error:
            raise FitError(
                "LoRA needs the peft library, which is not installed.",
                expected="peft 0.21 or later",
                found="no peft in this environment",
                fix="pip install 'foreword[compare]', or leave the lora candidate out of the task file.",
            ) from error
        self.host = host
        check_room(
            host.device,
            # at least one layer of each site gets two factors, each at least as wide as the site's keys
            sum(2 * rank * site.kv_heads * site.key_dim for site in host.sites) * torch.float32.itemsize,
            what=f"LoRA of rank {rank:,}",
            fix="Use a lower rank: one above the width of the layers that it changes adds nothing.",
        )
        _ = host.fingerprint  # kept from here on: while active it would be measured with the updates
        options: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank if alpha is None else alpha, "lora_dropout": 0.0}
        options["use_rslora"] = rank_stabilized
        if targets != "auto":
            options["target_modules"] = linear_layers(host, targets)
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # What peft says of itself: it asks transformers by a name that is going, and sets GPT-2's layout by itself.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
            torch.manual_seed(seed)
            try:
                self._peft = peft.get_peft_model(host.model, peft.LoraConfig(**options))
            except ValueError:  # peft has no default targets for this family
                if targets != "auto":
                    raise
                options["target_modules"] = linear_layers(host, "all-linear")
                self._peft = peft.get_peft_model(host.model, peft.LoraConfig(**options))
        self._peft.eval()
        places = [
            Place(holder, attribute, layer.base_layer, layer)
            for holder in host.model.modules()
            for attribute, layer in holder.named_children()
            if isinstance(layer, peft.tuners.lora.LoraLayer)
        ]
        del host.model.peft_config  # peft would take the next fit's layers for more of this one's
        super().__init__({name: p for name, p in self._peft.named_parameters() if p.requires_grad}, places)

    def save(self, folder: Path) -> None:
        """Write the updates in peft's own format."""
        with self.active():
            self._peft.save_pretrained(str(folder))


def linear_layers(host: Host, targets: Targets) -> list[str]:
    """Names, in the model, of the linear modules of its layers that `targets` means; no head, no pooler.

    Those of attention lie in the module that holds an attention site (the output projection may stand beside it); the
    others of the same layers are the layers' other part. FitError when there are none.
    """
    backbone, sites = host.backbone, [site.name.partition("#")[0] for site in host.sites]
    attention = {id(module) for site in sites for module in backbone.get_submodule(_holder(site)).modules()}
    names = {id(module): name for name, module in host.model.named_modules()}
    chosen = {
        names[id(module)]: None
        for site in sites
        for module in backbone.get_submodule(_layer(site)).modules()
        if isinstance(module, nn.Linear | Conv1D)
        and (targets == "all-linear" or (id(module) in attention) == (targets == "attention"))
    }
    if not chosen:
        raise FitError(
            f"This base model has no linear layers of the kind that LoRA is to change: {targets}.",
            expected="linear modules in the model's layers",
            found=f"none in {host.family}",
            fix='Leave targets out, or choose "all-linear".',
        )
    return list(chosen)


def _holder(site: str) -> str:
    """The largest module around a site that is still attention's alone: its parent where that is named so.

    >>> _holder("encoder.layer.0.attention.self"), _holder("layers.0.self_attn")
    ('encoder.layer.0.attention', 'layers.0.self_attn')
    """
    parent = site.rpartition(".")[0]
    return parent if "att" in parent.rpartition(".")[2].lower() else site


def _layer(site: str) -> str:
    """The layer that a site lies in: its name up to the first number.

    >>> _layer("encoder.layer.11.attention.self")
    'encoder.layer.11'
    """
    found = re.match(r".*?\.\d+(?=\.)", site)
    return found[0] if found else site.rpartition(".")[0]
