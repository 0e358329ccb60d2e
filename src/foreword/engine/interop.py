"""To and from other libraries: PEFT's prefix tuning, cartridges and prompt tuning, and soft prompts as one tensor.

A PEFT adapter is a folder (`adapter.py`) whose tensor `prompt_embeddings` is `(position, 2 * layer * kv_head * dim)`
for keys and values (each layer's keys, then its values) and `(position, hidden)` for a soft prompt. PEFT puts keys and
values into the model's cache, so there a prefix takes positions: what is read occupies its length, and what is written
must, too. `occupying` turns the keys of a prefix that takes none so that an engine which lets it take them computes the
same. Linear position biases (ALiBi) the peer adds to what is in the cache; here they are part of the prefix: added when
an adapter is read, and left out when one is written.

An engine that takes prompt embeddings is given soft prompt and tokens as one tensor `(token, hidden)`: transformers as
`inputs_embeds`, vLLM as `prompt_embeds`, over HTTP in base64.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from foreword.arrays import Array
from foreword.bundle import write_bytes_atomically
from foreword.engine.adapter import SOFT, read_adapter, unfit, write_adapter
from foreword.engine.admission import check_fit, check_host, check_prefix, check_soft, check_tokens
from foreword.engine.attention import AttentionCall, intercepted
from foreword.engine.bake import position_biases
from foreword.engine.families import Met
from foreword.engine.tensors import to_array, to_tensor, to_tensors
from foreword.errors import BundleError, PrefixError
from foreword.prefix import LayerPrefix, Prefix
from foreword.tensorfile import file_path

if TYPE_CHECKING:
    from foreword.engine.host import Host

# A turn of the keys that is not a rotation to this accuracy is none: the model's positions are not rotary.
_ROTATION_TOLERANCE = 1e-3
# Biases are read off rounded logits; one that was fitted is further than this share from a position's.
_BIAS_TOLERANCE = 1e-2
# Rounding to float32 moves a key by 6e-8 of its size: along what is this much smaller than the largest, by 6e-3.
_UNSEEN = 1e-5


def read_peft(folder: str | Path, host: Host) -> Prefix | Tensor:
    """A PEFT adapter: prefix tuning or a cartridge as a Prefix, prompt tuning as a soft prompt `(position, hidden)`.

    BundleError when the folder is not such an adapter, does not fit the host, or has trained weights of the model (a
    classifier, as PEFT keeps for a classification task) that are not those of the host: a prefix could not hold them.
    """
    check_host(host)
    adapter = read_adapter(file_path(folder))
    found = adapter.numbers
    if adapter.kind == SOFT:
        if found.shape[1] != host.hidden_size:
            raise unfit(folder, f"embeddings of {host.hidden_size}", str(found.shape))
        _check_others(folder, adapter.others, host)
        return to_tensor(found)
    if host.role == "encoder-decoder":
        raise BundleError(
            f"The PEFT adapter {folder} is for an encoder-decoder model.",
            expected="prefix tuning of an encoder or a causal model",
            found=f"prefix tuning of {host.family}'s decoder, whose own positions PEFT moves behind the prefix",
            fix="Fit a prefix for it with foreword (fw.fit).",
        )
    sites = [site for site in host.sites if site.role == "self"]
    width = sum(site.kv_heads * (site.key_dim + site.value_dim) for site in sites)
    heads = {site.kv_heads for site in sites}
    if (
        found.shape[1] != width
        or any(site.key_dim != site.value_dim for site in sites)
        or (len(heads) == 1 and adapter.config.get("num_attention_heads", *heads) not in heads)
    ):
        raise unfit(
            folder,
            f"(position, {width}) for {len(sites)} attention sites of {', '.join(map(str, sorted(heads)))} key heads",
            f"{found.shape}, {adapter.config.get('num_attention_heads')!r:.40} heads",
        )
    _check_others(folder, adapter.others, host)
    biases = position_biases(host, len(found))
    layers, start = [], 0
    for site in sites:
        parts = []
        for _ in ("keys", "values"):
            stop = start + site.kv_heads * site.key_dim
            parts.append(found[:, start:stop].reshape(-1, site.kv_heads, site.key_dim).transpose(1, 0, 2))
            start = stop
        bias = biases.get(site.name)
        layers.append(LayerPrefix(site.name, parts[0], parts[1], None if bias is None else bias.astype(found.dtype)))
    return Prefix(tuple(layers), occupies=len(found))


def write_peft(folder: str | Path, prefix: Prefix | Tensor, host: Host, *, cartridge: bool = False) -> None:
    """Write a Prefix as PEFT prefix tuning (or a cartridge), or a soft prompt `(position, hidden)` as prompt tuning.

    PrefixError for what does not fit the host, and for a prefix that PEFT cannot hold: one with a logit bias other than
    that of the model's own positions, for some layers only, one that does not occupy its positions (see `occupying`),
    or one for an encoder-decoder model.
    """
    check_host(host)
    target = file_path(folder)
    if host.role == "encoder-decoder":
        raise PrefixError(
            "A prefix or soft prompt for an encoder-decoder model cannot be written as a PEFT adapter.",
            expected="one for an encoder or a causal model",
            found=f"one for {host.reference}, {host.family}",
            fix="Keep it as a bundle (foreword.save_bundle).",
        )
    if isinstance(prefix, Prefix):
        array, kind = _flat(prefix, host), "CARTRIDGE" if cartridge else "PREFIX_TUNING"
    else:
        check_soft(host, prefix)
        array, kind = prefix.detach().cpu().float().numpy(), SOFT
    config: dict[str, Any] = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM" if host.role == "causal" else "FEATURE_EXTRACTION",
        "base_model_name_or_path": host.reference,
        "inference_mode": True,
        "num_virtual_tokens": len(array),
        "num_transformer_submodules": 1,
        "num_layers": len(host.sites),
        "num_attention_heads": host.sites[0].kv_heads,
        "token_dim": array.shape[1] if kind == SOFT else host.sites[0].kv_heads * host.sites[0].key_dim,
    }
    if kind == "PREFIX_TUNING":
        config |= {"prefix_projection": False, "encoder_hidden_size": config["token_dim"]}
    write_adapter(target, array, config)


def occupying(prefix: Prefix, host: Host) -> Prefix:
    """The same prefix for an engine that lets it take positions: keys turned with the context behind them.

    Under rotary positions scores depend on distance alone, so turning every key by the prefix's length undoes what
    moving the context by it does. The turn is read off the model: keys of single tokens at position 0 and at that
    position differ by exactly it. PrefixError for an encoder-decoder model, for one whose positions are not rotary, or
    that turns keys by other frequencies once a text is as long as the prefix; prefix and context together must stay
    below that length, too, and inside the window of layers that have a sliding one: behind it such an engine forgets.
    """
    check_prefix(prefix)
    check_host(host)
    if host.role == "encoder-decoder":
        raise PrefixError(
            "A prefix for an encoder-decoder model cannot be turned so that it takes positions.",
            expected="a prefix for an encoder or a causal model",
            found=f"one for {host.family}: its decoder counts its own positions from the cache, where nothing can move "
            "them, and its cross-attention has none",
            fix="Attach the prefix as it is, or keep it as a bundle.",
        )
    if prefix.occupies:
        return prefix
    for length in host.layout.rotary_lengths:
        if prefix.positions >= length:
            raise PrefixError(
                "Behind this prefix the model would turn its context's keys by other frequencies.",
                expected=f"fewer than {length} positions, where {host.family} begins to turn keys otherwise",
                found=f"{prefix.positions} positions",
                fix="Use a shorter prefix, or attach this one, which takes no positions here.",
            )
    turns = _turns(host, prefix.positions)
    if all(np.allclose(turn, np.eye(len(turn)), atol=_ROTATION_TOLERANCE) for turn in turns.values()):
        raise _unturned(host.sites[0].name, f"the same keys at position 0 and {prefix.positions}")
    layers = tuple(
        LayerPrefix(
            layer.site,
            (layer.keys.astype(np.float64) @ turns[layer.site]).astype(layer.keys.dtype),
            layer.values,
            layer.bias,
        )
        for layer in prefix.layers
    )
    return Prefix(layers, occupies=prefix.positions)


def prompt_embeddings(host: Host, soft: Tensor, content: str | Sequence[int], *, scaled: bool = True) -> Tensor:
    """A soft prompt `(position, hidden)` and a text (or token ids) behind it as prompt embeddings `(token, hidden)`.

    In the host's dtype, on the CPU. A text gets the tokenizer's beginning token, as in a fit. Tokens are embedded as
    the model does it, so that the tensor is what transformers' `generate(inputs_embeds=tensor[None])` takes. With
    `scaled` False everything is divided by what the embedding layer multiplies its table with: for an engine that
    multiplies the embeddings it is given by that itself, as vLLM does for Gemma and Gemma 2.

    PrefixError for a soft prompt of another width.
    """
    check_host(host)
    table = host.model.get_input_embeddings()
    check_soft(host, soft)
    if isinstance(content, str):
        from foreword.engine.rendering import tokens

        content = tokens(host, content, special=True)
    with torch.no_grad():
        ids = torch.tensor(check_tokens(host, content), dtype=torch.long, device=host.device)
        joined = torch.cat([soft.to(device=host.device, dtype=host.dtype), table(ids)])
    if not scaled:
        joined = joined / torch.as_tensor(getattr(table, "embed_scale", 1.0)).to(joined)  # rounded as the layer does it
    return joined.detach().cpu().contiguous()


def write_prompt_embeddings(path: str | Path, embeddings: Tensor) -> None:
    """Write prompt embeddings as a safetensors file with one tensor, `prompt_embeds`."""
    _check_embeddings(embeddings)
    write_bytes_atomically(file_path(path), bytes(save_tensors({"prompt_embeds": embeddings})))


def encoded_prompt(embeddings: Tensor) -> str:
    """Prompt embeddings as vLLM's HTTP interface takes them in `prompt_embeds`: what torch.save writes, in base64.

    The server reads it with `weights_only`; it must be started with `--enable-prompt-embeds` and serve this base model.
    """
    _check_embeddings(embeddings)
    written = io.BytesIO()
    torch.save(embeddings.clone(), written)  # a clone: torch.save writes the whole storage behind a view
    return base64.b64encode(written.getvalue()).decode("ascii")


def _check_embeddings(embeddings: object) -> None:
    """PrefixError unless these are prompt embeddings `(token, hidden)`."""
    if not (isinstance(embeddings, Tensor) and embeddings.is_floating_point() and embeddings.dim() == 2):
        raise PrefixError(
            "These are not prompt embeddings.",
            expected="a floating-point tensor (token, hidden)",
            found=f"{tuple(embeddings.shape)}" if isinstance(embeddings, Tensor) else type(embeddings).__name__,
            fix="Make them with foreword.engine.interop.prompt_embeddings(host, soft, text).",
        )


def _check_others(folder: str | Path, others: Mapping[str, Array], host: Host) -> None:
    """BundleError unless every other tensor of an adapter is the weight that the host has by that name."""
    own = host.model.state_dict() if others else {}
    for name, array in others.items():
        weight = own.get(name.removeprefix("base_model."))
        if weight is None or not np.array_equal(to_array(weight.to(to_tensor(array).dtype)), array):
            raise BundleError(
                f"The PEFT adapter {folder} has weights of the model itself, which a prefix cannot hold.",
                expected="prompt_embeddings alone, or beside them weights that this host's model has",
                found=f"{name[:200]}, {'other numbers' if weight is not None else 'which this model does not have'}",
                fix="Load the model class that has them, and copy them into it with model.load_state_dict(..., "
                "strict=False) before Host(model).",
            )


def _flat(prefix: Prefix, host: Host) -> Array:
    check_fit(host, to_tensors(prefix, device=torch.device("cpu"), dtype=torch.float32), is_live=False)
    sites = [site.name for site in host.sites]
    stands = prefix.occupies == prefix.positions
    if not stands or list(prefix.sites) != sites or not _has_biases(prefix, position_biases(host, prefix.positions)):
        biased = sum(layer.bias is not None for layer in prefix.layers)
        if biased:
            fix = "Fit it with share = 1 and at all heads, which leaves no bias."
        elif stands:
            fix = "Bake it, or read it from an adapter: both keep the bias of the model's own positions (ALiBi)."
        else:
            fix = "Turn it with foreword.engine.interop.occupying(prefix, host) first."
        raise PrefixError(
            "PEFT cannot hold this prefix.",
            expected="keys and values for every layer that occupy their positions, without a bias but for that of the "
            "model's own positions",
            found=f"{len(prefix.sites)} of {len(sites)} sites, {biased} with a bias, occupies {prefix.occupies} of "
            f"{prefix.positions}",
            fix=fix,
        )
    parts = [
        part.transpose(1, 0, 2).reshape(prefix.positions, -1)
        for layer in prefix.layers
        for part in (layer.keys, layer.values)
    ]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _has_biases(prefix: Prefix, biases: Mapping[str, Array]) -> bool:
    """Whether the prefix's logit biases are these, up to rounding, at every site."""
    for layer in prefix.layers:
        wanted = biases.get(layer.site)
        if layer.bias is None or wanted is None:
            if (layer.bias is None) != (wanted is None):
                return False
            continue
        off = np.abs(layer.bias_for(len(wanted)).astype(np.float64) - wanted.astype(np.float64)).max()
        if off > _BIAS_TOLERANCE * np.abs(wanted.astype(np.float64)).max():
            return False
    return True


class _Keys:
    """Keeps the keys of single tokens, `(row, kv_head, dim)` by module."""

    def __init__(self) -> None:
        self.found: dict[nn.Module, Tensor] = {}

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        self.found[call.module] = call.key[:, :, 0].double()
        return call.run()

    def meet(self, met: Met) -> Tensor:
        self.found[met.module] = met.key[:, :, 0].double()
        return met.context.out

    def frozen(self) -> _Keys:
        return self


def _turns(host: Host, by: int) -> dict[str, Array]:
    """For each site the matrix `(dim, dim)` that takes a key at position 0 to the same token's key at `by`."""
    from foreword.engine.attention import watchable

    size = int(host.model.get_input_embeddings().weight.shape[0])
    ids = torch.arange(min(size, 8 * max(site.key_dim for site in host.sites)), device=host.device)[:, None]
    seen = []
    for position in (0, by):
        keys = _Keys()
        with torch.no_grad(), intercepted(keys, watchable(host.backbone)):
            host.backbone(input_ids=ids, position_ids=torch.full_like(ids, position), use_cache=False)
        seen.append(keys.found)
    turns = {}
    for site in host.sites:
        module = host.module(site.name)
        before, after = (found[module].reshape(-1, site.key_dim).cpu().numpy() for found in seen)
        turn = _turn(before, after)
        error = np.abs(before @ turn - after).max() / max(float(np.abs(after).max()), 1e-12)
        unequal = np.abs(turn @ turn.T - np.eye(site.key_dim)).max()
        if error > _ROTATION_TOLERANCE or unequal > _ROTATION_TOLERANCE:
            raise _unturned(
                site.name, f"keys at position 0 and {by} that differ by no rotation ({error:.1e}, {unequal:.1e})"
            )
        turns[site.name] = turn
    return turns


def _turn(before: Array, after: Array) -> Array:
    """The matrix that takes the rows `(row, dim)` of `before` to those of `after`, when some rotation does.

    Keys that went through a layer norm lie in a plane through the origin: they show where the plane goes, and its
    normal goes to the normal of where it goes, on the side that makes the whole a rotation (determinant 1). What is
    smaller than `_UNSEEN` of the largest size is rounding of float32 and shows nothing.
    """
    _, sizes, directions = np.linalg.svd(before, full_matrices=False)
    seen = int((sizes > _UNSEEN * sizes[0]).sum())
    if seen != len(sizes) - 1:
        return np.linalg.lstsq(before, after, rcond=None)[0]
    turn = np.linalg.lstsq(before, after, rcond=_UNSEEN)[0]
    normal = np.linalg.svd(after, full_matrices=False)[2][-1]
    missing = np.outer(directions[-1], normal)
    return turn + missing if np.linalg.det(turn + missing) > 0 else turn - missing


def _unturned(site: str, found: str) -> PrefixError:
    return PrefixError(
        f"The keys at {site} do not turn with position.",
        expected="rotary positions",
        found=found,
        fix="Only models with rotary positions can let a fitted prefix take positions.",
    )
