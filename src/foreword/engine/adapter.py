"""A PEFT adapter's folder by a stranger: what must hold before its numbers are taken, and how one is written.

The folder has `adapter_config.json` and `adapter_model.safetensors`, whose tensor `prompt_embeddings` holds a prefix or
a soft prompt. It knows the two files; what the numbers mean for a host `interop.py` knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from foreword.arrays import Array
from foreword.bundle import write_bytes_atomically
from foreword.errors import BundleError
from foreword.regular_file import content_of
from foreword.tensorfile import decoded, parsed, read_content

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CACHED, SOFT = ("PREFIX_TUNING", "CARTRIDGE"), "PROMPT_TUNING"
EMBEDDINGS = "prompt_embeddings"
# PEFT's own take a kilobyte.
CONFIG_LIMIT = 2**20


@dataclass(frozen=True)
class Adapter:
    """An adapter of `kind`: `numbers` are `(position, width)`, finite; `others` are the tensors beside them."""

    kind: str
    numbers: Array
    config: Mapping[str, Any]
    others: Mapping[str, Array]


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`; BundleError when its files are not PEFT's, or do not fit together."""
    try:
        config = parsed(_config_text(folder / CONFIG))
        kind = config["peft_type"]
        tensors = decoded(folder / WEIGHTS, read_content(folder / WEIGHTS)).tensors
        numbers = tensors.pop(EMBEDDINGS)
    except BundleError as error:
        raise _unreadable(folder, error.found or error.what) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(folder, f"{type(error).__name__}: {error}"[:400]) from error
    if kind not in (*CACHED, SOFT) or numbers.ndim != 2:
        raise unfit(folder, f"one of {', '.join((*CACHED, SOFT))}, two axes", f"{kind}, {numbers.shape}"[:200])
    if 0 in numbers.shape or not np.isfinite(numbers).all():
        raise _unreadable(folder, f"{EMBEDDINGS} of shape {numbers.shape} that are not all finite, or none")
    tokens, parts = config.get("num_virtual_tokens"), config.get("num_transformer_submodules")
    if kind == SOFT and parts == 2 and len(numbers) % 2 == 0:  # an encoder-decoder model reads the first half alone
        numbers = numbers[: len(numbers) // 2]
    if tokens != len(numbers):
        raise _unreadable(folder, f"{len(numbers)} positions where {CONFIG} says num_virtual_tokens {tokens!r}"[:200])
    return Adapter(kind, numbers, config, tensors)


def write_adapter(folder: Path, numbers: Array, config: Mapping[str, Any]) -> None:
    """Write both files, each atomically; BundleError when the folder cannot be written."""
    write_bytes_atomically(folder / WEIGHTS, bytes(save({EMBEDDINGS: np.ascontiguousarray(numbers)})))
    write_bytes_atomically(folder / CONFIG, json.dumps(config, indent=2).encode())


def unfit(folder: str | Path, expected: str, found: str) -> BundleError:
    """The error for an adapter of another base model, or of a kind that is not read."""
    return BundleError(
        f"The PEFT adapter {folder} does not fit this base model.",
        expected=expected,
        found=found,
        fix="Load the base model that the adapter was made for.",
    )


def _config_text(path: Path) -> bytes:
    try:
        return content_of(path, CONFIG_LIMIT)
    except ValueError as error:
        raise ValueError(f"{CONFIG} is {error}") from error


def _unreadable(folder: Path, found: str) -> BundleError:
    return BundleError(
        f"{folder} is not a PEFT adapter that can be read.",
        expected=f"{CONFIG} with a peft_type, and {WEIGHTS} with {EMBEDDINGS}, as PEFT writes them",
        found=found,
        fix="Save it with PEFT's save_pretrained (safetensors; pickles are not read).",
    )
