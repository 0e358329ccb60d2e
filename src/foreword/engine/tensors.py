"""A prefix between its two forms: NumPy values (`foreword.prefix`) and torch tensors on a device."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from foreword.arrays import Array
from foreword.engine.assignment import PrefixTensors, SiteTensors
from foreword.prefix import Prefix


def to_tensors(prefix: Prefix, *, device: torch.device, dtype: torch.dtype) -> dict[str, SiteTensors]:
    """The prefix as torch tensors by site on `device`; numbers are converted to the model's `dtype`.

    PrefixError when a number does not fit into that dtype.
    """
    fitting = prefix.cast(str(dtype).removeprefix("torch."))
    return {
        layer.site: SiteTensors(**{name: to_tensor(array).to(device) for name, array in layer.arrays().items()})
        for layer in fitting.layers
    }


def to_prefix(tensors: PrefixTensors, *, occupies: int = 0) -> Prefix:
    """The current numbers of live tensors as a Prefix (a copy)."""
    arrays: dict[str, tuple[Array, ...]] = {}
    for site, found in tensors.items():
        parts = (found.keys, found.values) if found.bias is None else (found.keys, found.values, found.bias)
        arrays[site] = tuple(to_array(part) for part in parts)
    return Prefix.from_arrays(arrays, occupies=occupies)


def to_tensor(array: Array) -> Tensor:
    """A copy of `array` as a tensor on the CPU, bfloat16 (ml_dtypes) included."""
    if array.dtype == np.dtype(ml_dtypes.bfloat16):
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_array(tensor: Tensor) -> Array:
    """The tensor's numbers as an array, bfloat16 as ml_dtypes has it."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())
