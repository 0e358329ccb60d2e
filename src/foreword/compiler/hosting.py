"""A compiled head inside an unmodified `GPT2Model` or `LlamaModel`: frozen weights, a prefix, and the way in and out.

`host_in` needs a configuration's numbers only: neither torch nor transformers is imported. What it returns is NumPy;
`foreword.engine.hosted` loads it into the model class. The prefix is keys and values and nothing else (no logit bias),
so a model's own key-value cache could carry it as well as the engine does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from foreword.arrays import DTYPES
from foreword.compiler.arrays import Floats
from foreword.compiler.copies import MOST_COPIES, MOST_REPEATS, change, copies_of, scales
from foreword.compiler.frozen import (
    ROUNDOFF,
    Frozen,
    Sizes,
    balance_of,
    limbs,
    score_lanes,
    sizes_of,
    token_limbs,
    value_limbs,
)
from foreword.compiler.head import Head
from foreword.compiler.hosting_terms import (
    context_score,
    context_value,
    linear_reading,
    numbers,
    rotation,
    rounding,
    score_floor,
    smaller_values,
)
from foreword.compiler.rotation import turning
from foreword.compiler.weights import state
from foreword.errors import CompileError
from foreword.prefix import Prefix

Array = NDArray[Any]


class ChartLike(Protocol):
    """From points `(batch, column)` to queries `(batch, width)`."""

    @property
    def name(self) -> str: ...
    @property
    def width(self) -> int: ...
    def __call__(self, points: Floats) -> Floats: ...


# The norm that no query of a chart exceeds.
_RADII: Mapping[str, Callable[[int], float]] = {
    "identity": lambda _: 1.0,
    "flat": math.sqrt,
    "paraboloid": math.sqrt,
}


@dataclass(frozen=True)
class Hosted:
    """A compiled head as weights and a prefix of one model class.

    `arrays` are all of the model's weights by their names in its state dict, in the model's dtype; they depend on the
    configuration, the chart's width and the number of outputs, and on nothing else. `prefix` covers the one site
    `frozen.site`. `terms` bound what is added to the head's own error, each for every output (see `context_term` for
    the context's): `rounding` in the model's dtype, by the attention that the configuration names ("sdpa" where it
    names none), `rotation` at natural positions (0 where `position_ids` are 0 or there are none), and
    `linear_reading`, relative, if the final norm is read as if it were the identity instead of by `read`.
    """

    head: Head
    chart: ChartLike
    frozen: Frozen
    arrays: dict[str, Array]
    prefix: Prefix
    margin: float
    terms: dict[str, float]

    def embed(self, points: Floats) -> Array:
        """`inputs_embeds` `(batch, token, hidden)` for points `(batch, token, column)` or `(token, column)`."""
        rows = np.asarray(points, dtype=np.float64)
        rows = rows[None] if rows.ndim == 2 else rows
        queries = self.chart(rows.reshape(-1, rows.shape[-1]))
        _check_radius(queries, self.frozen.radius)
        made = self.frozen.tokens(queries).astype(DTYPES[self.frozen.dtype])
        return np.asarray(made.reshape(*rows.shape[:2], -1))

    def read(self, stream: Array) -> Floats:
        """Outputs `(batch, token, output)` from the residual stream or from the model's last hidden state."""
        return self.frozen.read(np.asarray(stream).astype(np.float64))

    def context_term(self, tokens: int) -> float:
        """What a context of `tokens` tokens can change of any output: (max |v| + what is left of its own) T e^-m."""
        return float((np.abs(self.head.values).max() + context_value(self.frozen)) * tokens * math.exp(-self.margin))


def host_in(
    head: Head,
    chart: ChartLike,
    config: Any,
    *,
    dtype: str = "float64",
    layer: int = 0,
    radius: float | None = None,
    queries: Floats | None = None,
    drafted: Callable[[], Head | None] | None = None,
) -> Hosted:
    """Frozen weights and a prefix that make `config`'s model class compute `head` of its input, at every token.

    `config` is a transformers `GPT2Config` or `LlamaConfig`; `layer` hosts the head, the others hand its output on.
    `dtype` is the model's: in bfloat16 queries, keys, biases and values go as sums of bfloat16 numbers (limbs), and
    heads that are not needed hold copies whose roundings average out (`copies.py`).
    `radius` bounds the norm of the chart's queries where the chart's name does not say it. `queries` `(row, width)`,
    eight or more for each position that fill the domain, or all of a finite one, let bfloat16 have smaller values that
    do the same there (`smaller_values`); `drafted` may give a head of small values, at most as long, for what is left.
    CompileError names all that the configuration lacks.
    """
    if dtype not in ROUNDOFF:
        raise CompileError(
            "A head cannot be hosted in this dtype.",
            expected=", ".join(ROUNDOFF),
            found=dtype,
            fix="Use float64 for the reference's accuracy, float32 or bfloat16 to serve.",
        )
    sizes = sizes_of(config, layer=layer)
    bound = _radius(chart, radius)
    frozen, error = _plan(sizes, head, layer=layer, dtype=dtype, radius=bound)
    small, damping = head, 0.0
    if dtype == "bfloat16" and queries is not None:
        small, damping = smaller_values(head, queries, copies=frozen.copies, drafted=drafted)
    margin = math.log(sizes.positions / ROUNDOFF[dtype])
    made = copies_of(small, scales(frozen.copies, frozen.repeats))
    offsets = [margin + context_score(frozen) - score_floor(copy, bound) for copy in made]
    placed = [_keys(frozen, copy, offset) for copy, offset in zip(made, offsets, strict=True)]
    each = list(zip(made, offsets, (stored for _, stored in placed), strict=True))
    largest = float(np.abs(small.values).max())
    terms = {
        "rounding": max(rounding(frozen, *told) for told in each) + change(frozen.copies) * largest,
        "rotation": max(rotation(frozen, copy, offset, error, margin) for copy, offset, _ in each),
        "linear_reading": linear_reading(frozen, made),
        "damping": damping,
    }
    cast = DTYPES[dtype]
    arrays = {name: array.astype(cast) for name, array in state(frozen).items()}
    values = _over_heads(frozen, [_values(frozen, copy) for copy in made])
    keys = _over_heads(frozen, [keys for keys, _ in placed])
    prefix = Prefix.from_arrays({frozen.site: (keys.astype(cast), values.astype(cast))})
    return Hosted(head, chart, frozen, arrays, prefix, margin, terms)


def _radius(chart: ChartLike, stated: float | None) -> float:
    if stated is None and chart.name not in _RADII:
        raise CompileError(
            "The chart does not say how long its queries are.",
            expected=f"a chart named {', '.join(_RADII)}, or radius=...",
            found=chart.name,
            fix="Give radius=..., the largest norm of a query.",
        )
    return float(stated) if stated is not None else _RADII[chart.name](chart.width)


def _check_radius(queries: Floats, radius: float) -> None:
    longest = float(np.sqrt(np.square(queries).sum(axis=1).max(initial=0.0)))
    if not longest <= radius * (1.0 + 1e-9):
        raise CompileError(
            "A point is outside what the hosted head was compiled for.",
            expected=f"queries of norm at most {radius:g}",
            found=f"{longest:g}",
            fix="Embed points of the compiled domain only.",
        )


def _plan(sizes: Sizes, head: Head, *, layer: int, dtype: str, radius: float) -> tuple[Frozen, Floats]:
    """Where everything stands, and each lane's rotation error; CompileError with every size that is too small."""
    width, outputs = head.keys.shape[1], head.values.shape[1]
    lanes = score_lanes(sizes.family, dtype, width)
    balance, gain = balance_of(sizes, radius=radius, dtype=dtype)
    entries = outputs * value_limbs(dtype)
    heads_each, before = -(-entries // sizes.head_dim), width * token_limbs(sizes.family, dtype) + 2 + len(balance)
    needs = {
        "free coordinates of the stream": (before + entries, sizes.usable),
        "pairs of dims in a head" if sizes.family == "llama" else "dims in a head": (len(lanes), sizes.lanes),
        "key-value heads": (heads_each, sizes.kv_heads),
    }
    short = {name: pair for name, pair in needs.items() if pair[0] > pair[1]}
    if short:
        raise CompileError(
            f"The model is too small for this head ({width} query coordinates, {outputs} outputs, {dtype}).",
            expected="; ".join(f"at least {needed} {name}" for name, (needed, _) in short.items()),
            found="; ".join(f"{there} {name}" for name, (_, there) in short.items()),
            fix="Raise hidden_size (half of it is free in GPT-2), the size of a head or the number of heads.",
        )
    copies = repeats = 1
    if dtype == "bfloat16":
        room = (sizes.usable - before) // entries
        copies = min(MOST_COPIES, sizes.kv_heads // heads_each, room)
        repeats = min(MOST_REPEATS, heads_each * sizes.head_dim // entries, room // copies)
    if sizes.family == "llama":
        turned = turning(
            sizes.rotation, head_dim=sizes.head_dim, numbers=len(lanes), positions=sizes.positions, dtype=dtype
        )
        dims, turns, error = turned.dims, turned.turns, turned.error
    else:
        dims, turns = tuple((lane,) for lane in range(len(lanes))), ((1.0,),) * len(lanes)
        error = np.zeros(len(lanes))
    return Frozen(
        sizes, layer, dtype, width, outputs, copies, repeats, radius, lanes, dims, turns, balance, gain
    ), error


def _keys(frozen: Frozen, head: Head, offset: float) -> tuple[Floats, float]:
    """A copy's keys `(kv_head, position, dim)` and the largest score that limbs leave out."""
    sizes, told = frozen.sizes, numbers(head, offset) / frozen.sizes.scaling
    count = 1 + max(lane.limb for lane in frozen.lanes)
    split = limbs(told, frozen.dtype, count)
    keys = np.zeros((frozen.heads_each, head.positions, sizes.head_dim))
    kept = np.zeros_like(told)
    for lane, dims in zip(frozen.lanes, frozen.dims, strict=True):
        for dim in dims:
            keys[:, :, dim] = split[lane.limb, :, lane.number]
    for number, limb in {(lane.number, lane.limb) for lane in frozen.lanes}:
        kept[:, number] += split[limb, :, number]
    lost = np.abs(told - kept) @ np.array([*[frozen.radius] * frozen.width, 1.0])
    return keys, float(lost.max() * sizes.scaling)


def _values(frozen: Frozen, head: Head) -> Floats:
    """A copy's values `(kv_head, position, dim)`: the limbs of all outputs, head after head."""
    split = limbs(head.values, frozen.dtype, frozen.value_limbs)
    flat = np.zeros((head.positions, frozen.heads_each * frozen.sizes.head_dim))
    flat[:, : frozen.entries] = np.moveaxis(split, 0, 2).reshape(head.positions, -1)
    return np.moveaxis(flat.reshape(head.positions, frozen.heads_each, -1), 0, 1)


def _over_heads(frozen: Frozen, copies: list[Floats]) -> Floats:
    """The copies' keys or values, one after another, over all key-value heads; those that are not used get zeros."""
    placed = np.concatenate(copies)
    unused = frozen.sizes.kv_heads - len(placed)
    return np.concatenate([placed, np.zeros((unused, *placed.shape[1:]))])
