"""The frozen weights of `frozen.py` by the names that the model classes give them in their state dicts."""

from __future__ import annotations

import itertools

import numpy as np

from foreword.compiler.arrays import Floats
from foreword.compiler.frozen import Frozen


def state(frozen: Frozen) -> dict[str, Floats]:
    """Every weight of the model by its name: zero, but for norms (1), and attention and norm of the hosting layer."""
    return _gpt2(frozen) if frozen.sizes.family == "gpt2" else _llama(frozen)


def _projections(frozen: Frozen) -> tuple[Floats, Floats, Floats, Floats]:
    """W_Q `(head * dim, hidden)`, W_K and W_V `(kv_head * dim, hidden)`, W_O `(hidden, head * dim)`.

    Each key-value head that carries values has the whole score; the first query head of its group reads it.
    """
    sizes = frozen.sizes
    query = np.zeros((sizes.heads, sizes.head_dim, sizes.hidden))
    key, value = (np.zeros((sizes.kv_heads, sizes.head_dim, sizes.hidden)) for _ in range(2))
    out = np.zeros((sizes.hidden, sizes.heads, sizes.head_dim))
    group = sizes.heads // sizes.kv_heads
    for kv_head in range(frozen.used_heads):
        for lane, dims, turns in zip(frozen.lanes, frozen.dims, frozen.turns, strict=True):
            for coordinate in lane.coordinates:
                query[kv_head * group, list(dims), coordinate] = turns
                key[kv_head, list(dims), coordinate] = 1.0
    for copy, entry in itertools.product(range(frozen.copies), range(frozen.entries)):
        within, dim = divmod(entry, sizes.head_dim)
        kv_head, coordinate = copy * frozen.heads_each + within, frozen.output + copy * frozen.entries + entry
        value[kv_head, dim, coordinate] = 1.0
        out[coordinate, kv_head * group, dim] = 1.0
        if sizes.is_mirrored:
            out[coordinate + sizes.usable, kv_head * group, dim] = -1.0
    rows = [part.reshape(-1, sizes.hidden) for part in (query, key, value)]
    return rows[0], rows[1], rows[2], out.reshape(sizes.hidden, -1)


def _gpt2(frozen: Frozen) -> dict[str, Floats]:
    sizes = frozen.sizes
    hidden, inner = sizes.hidden, sizes.inner
    found: dict[str, Floats] = {
        "wte.weight": np.zeros((sizes.vocabulary, hidden)),
        "wpe.weight": np.zeros((sizes.positions, hidden)),
    }
    shapes = {
        "attn.c_attn": (hidden, 3 * hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (hidden, inner),
        "mlp.c_proj": (inner, hidden),
    }
    norms = ["ln_f"]
    for layer in range(sizes.layers):
        norms += [f"h.{layer}.ln_1", f"h.{layer}.ln_2"]
        for name, shape in shapes.items():
            found[f"h.{layer}.{name}.weight"] = np.zeros(shape)
            found[f"h.{layer}.{name}.bias"] = np.zeros(shape[1])
    for name in norms:
        found[f"{name}.weight"], found[f"{name}.bias"] = np.ones(hidden), np.zeros(hidden)
    query, key, value, out = _projections(frozen)
    found[f"h.{frozen.layer}.attn.c_attn.weight"] = np.concatenate([query, key, value]).T  # Conv1D: (in, out)
    found[f"h.{frozen.layer}.attn.c_proj.weight"] = out.T
    found[f"h.{frozen.layer}.ln_1.weight"] = np.full(hidden, frozen.gain)
    return found


def _llama(frozen: Frozen) -> dict[str, Floats]:
    sizes = frozen.sizes
    hidden, inner = sizes.hidden, sizes.inner
    found: dict[str, Floats] = {
        "embed_tokens.weight": np.zeros((sizes.vocabulary, hidden)),
        "norm.weight": np.ones(hidden),
    }
    own, shared = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    shapes = {
        "self_attn.q_proj": (own, hidden),
        "self_attn.k_proj": (shared, hidden),
        "self_attn.v_proj": (shared, hidden),
        "self_attn.o_proj": (hidden, own),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for layer in range(sizes.layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"layers.{layer}.{name}.weight"] = np.ones(hidden)
        for name, shape in shapes.items():
            found[f"layers.{layer}.{name}.weight"] = np.zeros(shape)
            if name.partition(".")[0] in sizes.biased:
                found[f"layers.{layer}.{name}.bias"] = np.zeros(shape[0])
    for name, part in zip("qkvo", _projections(frozen), strict=True):
        found[f"layers.{frozen.layer}.self_attn.{name}_proj.weight"] = part
    found[f"layers.{frozen.layer}.input_layernorm.weight"] = np.full(hidden, frozen.gain)
    return found
