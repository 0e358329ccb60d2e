"""An independent statement of what a prefix means, to hold the engine against; model folders that a test may change."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from foreword.engine.host import Host
from foreword.prefix import LayerPrefix, Prefix

ORACLE = "foreword_test_oracle"
Oracle = Callable[[Host, Prefix | None], Any]


def explicit_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Softmax over the joint scores of [prefix ; context], head by head in float64, with nothing of the engine.

    weight(query, j) = exp(score_j) / sum of exp(score); score = scale * query . key, plus the bias for a position of
    the prefix, plus the model's own mask for a position of the context.
    """
    layer: LayerPrefix | None = getattr(module, "oracle_prefix", None)
    heads, groups = query.shape[1], query.shape[1] // key.shape[1]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for head in range(heads):
        shared = head // groups
        q, k, v = query[:, head].double(), key[:, shared].double(), value[:, shared].double()
        scores = scale * q @ k.transpose(1, 2)
        if attention_mask is not None:
            scores = scores + attention_mask[:, min(head, attention_mask.shape[1] - 1), :, : k.shape[1]].double()
        if layer is not None:
            own_keys, own_values = (torch.tensor(x[shared].astype("float64")) for x in (layer.keys, layer.values))
            own = scale * q @ own_keys.T
            if layer.bias is not None:
                own = own + torch.tensor(layer.bias[shared].astype("float64"))
            scores = torch.cat([own, scores], dim=2)
            v = torch.cat([own_values.expand(len(v), *own_values.shape), v], dim=1)
        weights = torch.exp(scores - scores.amax(dim=2, keepdim=True))
        outputs.append(weights / weights.sum(dim=2, keepdim=True) @ v)
    return torch.stack(outputs, dim=2).to(query.dtype), None


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    """A copy of a host's model in float64 that reads a prefix by `explicit_attention`, with the model's own masks."""
    AttentionInterface.register(ORACLE, explicit_attention)
    AttentionMaskInterface.register(ORACLE, eager_mask)

    def make(host: Host, prefix: Prefix | None) -> Any:
        model = copy.deepcopy(host.model).double()
        model.set_attn_implementation(ORACLE)
        backbone = getattr(model, "base_model", model)
        for layer in () if prefix is None else prefix.layers:
            backbone.get_submodule(layer.site).oracle_prefix = layer
        return model

    yield make
    AttentionInterface._global_mapping.pop(ORACLE)
    AttentionMaskInterface._global_mapping.pop(ORACLE)


@pytest.fixture
def copied(model_folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a family's folder, for a test to change; options go into its configuration."""

    def copy_of(family: str, **options: Any) -> Path:
        target = tmp_path / family
        shutil.copytree(model_folder(family), target)
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, **options}))
        return target

    return copy_of
