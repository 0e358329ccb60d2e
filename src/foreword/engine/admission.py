"""What must hold before a prefix is attached: each failure is a named error, and nothing has been touched yet.

It knows prefixes as tensors by site and the host that should carry them. It deliberately does not know how they are
attached (`attach.py`); what can only be seen in a forward pass, such as the rows of a batch, is checked there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foreword.arrays import DTYPES, is_count
from foreword.engine.assignment import PrefixTensors, SiteTensors
from foreword.engine.attention import IMPLEMENTATIONS
from foreword.errors import AttachError, PrefixError
from foreword.prefix import Prefix

if TYPE_CHECKING:
    from foreword.engine.host import Host

# What a configuration may say of its attention; None where it says nothing.
READ = frozenset((None, *IMPLEMENTATIONS))


def check_host(host: object) -> None:
    """AttachError unless `host` is a host that has its model, and this its weights."""
    if not (isinstance(getattr(host, "model", None), nn.Module) and hasattr(type(host), "layout")):
        raise AttachError(
            "This is not a host with a model.",
            expected="a Host, made by Host(model) or Host.load(reference)",
            found=type(host).__name__ + (", whose model was taken away" if hasattr(type(host), "layout") else ""),
            fix="Make one: host = foreword.Host(model).",
        )
    if host.device.type == "meta":  # type: ignore[attr-defined]
        raise AttachError(
            "The model's weights are not loaded.",
            expected="weights on a device that computes, such as cpu or cuda",
            found="weights on the device meta",
            fix="Load them: Host.load(reference), or from_pretrained(...) outside of torch.device('meta').",
        )


def check_prefixes(given: object) -> None:
    """AttachError unless `given` is a sequence of prefixes or of live tensors by site."""
    entries = given if isinstance(given, Sequence) and not isinstance(given, str | bytes) else [given]
    wrong = [entry for entry in entries if not isinstance(entry, Prefix | Mapping)]
    if wrong:
        raise AttachError(
            "This is not a prefix.",
            expected="a Prefix, live tensors by site, or a list of them",
            found=type(wrong[0]).__name__,
            fix="Make one with Prefix.from_arrays(...), or load a bundle and attach bundle.prefix.",
        )


def check_prefix(given: object) -> None:
    """PrefixError unless `given` is one prefix."""
    if not isinstance(given, Prefix):
        raise PrefixError(
            "This is not a prefix.",
            expected="a Prefix",
            found=type(given).__name__,
            fix="Make one with Prefix.from_arrays(...), or load a bundle and take bundle.prefix.",
        )


def check_rows(rows: object, count: int) -> None:
    """AttachError unless `rows` is None, or says for one row or more an index below `count` or None."""
    if rows is None:
        return
    if not isinstance(rows, Sequence) or isinstance(rows, str | bytes) or not rows:
        raise AttachError(
            "It is not said which row carries which prefix.",
            expected="rows=[index or None, ...], one entry for each row of the batch",
            found=f"rows={rows!r}"[:100],
            fix="Convert an array with rows.tolist(); leave `rows` out when one prefix serves every row.",
        )
    wrong = [row for row in rows if row is not None and not (type(row) is int and 0 <= row < count)]
    if wrong:
        raise AttachError(
            "A row index is out of range.",
            expected=f"0 to {count - 1}, or None for no prefix",
            found=repr(wrong[0])[:100],
            fix="Let each entry of `rows` be an index into the list of prefixes.",
        )


def configurations(modules: Iterable[nn.Module]) -> tuple[Any, ...]:
    """The configurations by which these modules choose their attention function, each once."""
    found = {id(own): own for module in modules if (own := getattr(module, "config", None)) is not None}
    return tuple(found.values())


def check_attention(configs: Iterable[Any]) -> None:
    """AttachError when one of these configurations names an attention that no prefix can be put before."""
    names = {getattr(config, "_attn_implementation", None) for config in configs}
    if names <= READ:
        return
    raise AttachError(
        "The model's attention has been switched since its host was made.",
        expected=" or ".join(repr(name) for name in IMPLEMENTATIONS),
        found=", ".join(sorted(repr(str(name)) for name in names - READ)),
        fix="Switch it back with host.model.set_attn_implementation('sdpa').",
    )


def check_turn(host: Host, prefix: Prefix) -> None:
    """PrefixError when texts were merged whose keys the model turned otherwise than the context behind them."""
    for length in host.layout.rotary_lengths:
        wrong = [read for read in prefix.read_to if (read >= length) != (prefix.occupies >= length)]
        if wrong:
            raise PrefixError(
                "Long texts turn this model's keys otherwise than short ones, and this prefix is of merged texts.",
                expected=f"texts and context on one side of {length} tokens",
                found=f"a text that was read up to {wrong[0]} in a prefix that occupies {prefix.occupies} positions",
                fix="Bake the whole text at once, or use shorter texts.",
            )


def check_fit(host: Host, tensors: PrefixTensors, *, is_live: bool) -> None:
    """PrefixError unless the tensors are those of some of `host`'s sites.

    Live ones must also have the axes, dtype, device and finite numbers that are known of a `Prefix` on this host.
    """
    known = {site.name: site for site in host.sites}
    unknown = [name for name in tensors if name not in known]
    if unknown:
        raise PrefixError(
            "The prefix has a site that this base model does not have.",
            expected=f"some of {', '.join(list(known)[:3])}, … ({len(known)} sites; see host.sites)",
            found=str(unknown[0]),
            fix="Use a prefix that was made for this base model.",
        )
    if not tensors:
        raise PrefixError(
            "The prefix has no site, so it would have no effect.",
            expected="tensors for one site or more",
            found="none",
            fix="Give SiteTensors(keys, values) by site; host.sites lists the sites.",
        )
    device = host.device if is_live else None
    for name, found in tensors.items():
        if device is not None:
            _check_tensors(name, found, device)
        site = known[name]
        wanted = ((site.kv_heads, site.key_dim), (site.kv_heads, site.value_dim))
        shapes = tuple((part.shape[0], part.shape[2]) for part in (found.keys, found.values))
        biased = site.kv_heads if found.bias is None else found.bias.shape[0]
        if shapes != wanted or biased not in (site.kv_heads, site.heads):
            raise PrefixError(
                f"The prefix does not fit the heads at {name}.",
                expected=f"(kv_head, dim) = {wanted[0]} for keys and {wanted[1]} for values; a bias for {site.heads} "
                f"or {site.kv_heads} heads",
                found=f"{shapes[0]} and {shapes[1]}; {biased} heads",
                fix="Use a prefix that was made for this base model.",
            )
    if is_live:
        _check_finite(tensors)


def check_soft(host: Host, soft: object) -> None:
    """PrefixError unless `soft` is a soft prompt of `host`: `(position, hidden)`, floating-point and finite."""
    fits = isinstance(soft, Tensor) and soft.is_floating_point() and soft.dim() == 2 and len(soft) > 0
    if not isinstance(soft, Tensor) or not fits or soft.shape[1] != host.hidden_size:
        raise PrefixError(
            "The soft prompt does not fit this base model.",
            expected=f"a floating-point tensor (position, {host.hidden_size}) of one position or more",
            found=f"{tuple(soft.shape)}, {_dtype(soft)}" if isinstance(soft, Tensor) else type(soft).__name__,
            fix="Use a soft prompt that was fitted for this base model.",
        )
    if not bool(soft.detach().isfinite().all()):
        raise PrefixError(
            "The soft prompt is not all finite.",
            expected="finite numbers",
            found="NaN or infinite entries",
            fix="Find where the fit diverged; lower the learning rate or use a wider dtype.",
        )


def check_tokens(host: Host, content: Any) -> list[int]:
    """Token ids as a list; PrefixError for anything else than a sequence of the model's token ids."""
    listed = content.tolist() if hasattr(content, "tolist") else content
    size = int(host.model.get_input_embeddings().weight.shape[0])
    is_sequence = isinstance(listed, Sequence) and not isinstance(listed, bytes)
    wrong = [part for part in listed if not (is_count(part) and int(part) < size)] if is_sequence else [listed]
    if wrong:
        raise PrefixError(
            "This is neither a text nor messages, token ids or embeddings.",
            expected=f"a text, messages, token ids from 0 to {size - 1}, or embeddings (token, {host.hidden_size})",
            found=f"{type(content).__name__} with {wrong[0]!r:.80}",
            fix="Give one text: of a tokenizer's batch, its row (ids[0]).",
        )
    return [int(part) for part in listed]


def _check_tensors(name: str, found: SiteTensors, device: torch.device) -> None:
    """PrefixError unless keys, values and bias are dense tensors of a dtype of DTYPES on `device`, and fit together."""
    parts = _parts(found) if isinstance(found, SiteTensors) else [found]
    is_dense = all(isinstance(part, Tensor) and part.layout == torch.strided for part in parts)
    if len(parts) < 2 or not is_dense:
        raise PrefixError(
            f"The prefix at {name} is not made of tensors.",
            expected="SiteTensors(keys, values) or SiteTensors(keys, values, bias) of dense torch tensors",
            found=", ".join(type(part).__name__ for part in parts),
            fix="Convert NumPy arrays by Prefix.from_arrays, and sparse tensors with .to_dense().",
        )
    if any(_dtype(part) not in DTYPES or part.device != device for part in parts):
        raise PrefixError(
            f"The prefix at {name} is of another dtype or on another device than the model can read.",
            expected=f"{', '.join(DTYPES)}, on {device}",
            found=", ".join(f"{_dtype(part)} on {part.device}" for part in parts),
            fix="Convert them with tensor.to(host.device, host.dtype).",
        )
    shapes = [tuple(part.shape) for part in parts]
    agree = len(shapes[0]) == len(shapes[1]) == 3 and shapes[0][:2] == shapes[1][:2]
    if not agree or 0 in shapes[0] or (len(shapes) == 3 and (len(shapes[2]) != 2 or shapes[2][1] != shapes[0][1])):
        raise PrefixError(
            f"Keys, values and bias at {name} disagree, or have the wrong axes.",
            expected="keys and values (kv_head, position, dim), a bias (kv_head or head, position); a position or more",
            found=", ".join(map(str, shapes)),
            fix="Give every position a key and a value in every head.",
        )


def _check_finite(tensors: PrefixTensors) -> None:
    """One look at the device for all of them: the largest magnitude of what holds NaN is NaN."""
    parts = {(name, number): part for name, found in tensors.items() for number, part in enumerate(_parts(found))}
    largest = torch.stack([part.detach().abs().max().double() for part in parts.values()])
    if not largest.isfinite().all():
        where = next(key for key, value in zip(parts, largest.tolist(), strict=True) if not value < float("inf"))
        raise PrefixError(
            f"The prefix's {('keys', 'values', 'bias')[where[1]]} at {where[0]} are not all finite.",
            expected="finite numbers",
            found="NaN or infinite entries",
            fix="Find where the fit diverged; lower the learning rate or use a wider dtype.",
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _parts(found: SiteTensors) -> list[Tensor]:
    return [part for part in (found.keys, found.values, found.bias) if part is not None]
