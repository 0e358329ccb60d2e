"""A model class loaded with given weights, and its residual stream: what running a compiled head in a model needs.

The compiler makes weights and prefix as NumPy arrays (`foreword.compiler.hosting`) and knows no torch; this module
loads the weights into transformers' own class, unmodified, and reads the stream before the model's final norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foreword.arrays import Array
from foreword.engine.host import Host
from foreword.engine.tensors import to_array, to_tensor
from foreword.errors import HostError


def host_from_arrays(config: Any, arrays: Mapping[str, Array], *, device: str = "cpu") -> Host:
    """A host of `config`'s bare model class whose weights are `arrays`, by their names in its state dict.

    The arrays' dtype becomes the model's. HostError when they are not exactly the class's weights.
    """
    import transformers

    dtypes = {str(array.dtype) for array in arrays.values()}
    if len(dtypes) != 1:
        raise HostError(
            "The weights of one model have several dtypes.",
            expected="one dtype for all arrays",
            found=", ".join(sorted(dtypes)) or "no array",
            fix="Cast them to one dtype.",
        )
    dtype = getattr(torch, dtypes.pop())
    model = transformers.AutoModel.from_config(config, dtype=dtype)
    try:
        model.load_state_dict({name: to_tensor(array) for name, array in arrays.items()}, strict=True)
    except RuntimeError as error:
        raise HostError(
            f"The arrays are not the weights of {type(model).__name__}.",
            expected=f"the {len(model.state_dict())} arrays of its state dict",
            found=" ".join(str(error).split())[:300],
            fix="Make them for this configuration.",
        ) from error
    return Host(model.to(device), reference=f"{type(model).__name__} from arrays")


def residual_stream(host: Host, embeddings: Array, **options: Any) -> Array:
    """The stream `(batch, token, hidden)` that reaches the model's final norm, for `embeddings` of that shape.

    `options` go to the model's forward pass (`position_ids=torch.zeros(...)`). What is attached to the host acts.
    """
    final = _final_norm(host.backbone)
    caught: list[Tensor] = []
    hook = final.register_forward_pre_hook(lambda _, given: caught.append(given[0].detach()))
    given = to_tensor(np.asarray(embeddings)).to(host.device)
    try:
        with torch.no_grad():
            host.model(inputs_embeds=given, **options)
    finally:
        hook.remove()
    return to_array(caught[-1])


def _final_norm(backbone: nn.Module) -> nn.Module:
    for name in ("ln_f", "norm"):
        found = getattr(backbone, name, None)
        if isinstance(found, nn.Module):
            return found
    raise HostError(
        f"{type(backbone).__name__} has no final norm that is known here.",
        expected="a module named ln_f (GPT-2) or norm (Llama)",
        found=", ".join(name for name, _ in backbone.named_children()),
        fix="Use a GPT2Model or LlamaModel.",
    )
