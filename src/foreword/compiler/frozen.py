"""The frozen weights that a hosted head needs: one stated form for each family, the same for every function.

The form, at the hosting layer (all other weights of the model are zero, so that other layers hand the residual stream
on bit for bit):

    token = [ query, in one limb or two | completion | 1 | balance | outputs (zero) ]
    W_Q, W_K: read query and 1 into the head's dims     W_V: reads output     W_O: writes output

`completion` is sqrt(radius^2 - |query|^2), so every token has one norm and the model's own normalisation is a constant,
which the norm's gain undoes. The context takes part: its tokens have keys and values; the values are zero because a
token's output block is. `limbs`: a number as a sum of numbers of a narrower dtype, which go through it unchanged.

Two families need two ways of being exact. LayerNorm subtracts a mean, so every coordinate has its negative in the other
half of the stream, and the balance is as small as a gain that is a power of two allows. RMSNorm computes in float32
whatever the model's dtype; there the balance is four integers with a^2 + b^2 + c^2 + d^2 = hidden size (Lagrange) times
a power of two so large that a token's own squares vanish in float32: the mean square is a power of four, exactly, and
the norm an exact shift of exponents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foreword.arrays import DTYPES
from foreword.compiler.arrays import Floats
from foreword.compiler.copies import scales
from foreword.errors import CompileError

Array = NDArray[Any]

# Unit roundoff of each dtype that a host can have.
ROUNDOFF: Mapping[str, float] = {"float64": 2.0**-53, "float32": 2.0**-24, "bfloat16": 2.0**-8}
# Room between radius^2 and what completion fills: the squares of limbs do not add up to the square of their sum.
SLACK = 1.0 + 2.0**-6
ROTATIONS = ("default", "linear", "llama3", "dynamic")


@dataclass(frozen=True)
class Sizes:
    """What a transformers configuration says that the frozen weights depend on."""

    family: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    layers: int
    inner: int
    vocabulary: int
    positions: int
    epsilon: float
    scaling: float
    rotation: Mapping[str, Any]
    biased: tuple[str, ...]
    is_eager: bool

    @property
    def is_mirrored(self) -> bool:
        """Whether the norm subtracts a mean, so that half of the stream must be the other half's negative."""
        return self.family == "gpt2"

    @property
    def usable(self) -> int:
        """Coordinates of the stream that can be chosen freely."""
        return self.hidden // 2 if self.is_mirrored else self.hidden

    @property
    def lanes(self) -> int:
        """Products that a head's score can hold: one for each dim, or for each pair of dims that turn together."""
        return self.head_dim // 2 if self.family == "llama" else self.head_dim


def sizes_of(config: Any, *, layer: int) -> Sizes:
    """The sizes of a `GPT2Config` or `LlamaConfig` (told by `model_type`); CompileError for what cannot host."""
    family = str(getattr(config, "model_type", ""))
    if family not in ("gpt2", "llama"):
        remedy = "Use a GPT2Config or LlamaConfig; for a pretrained model see foreword.compiler.pretrained."
        raise _cannot(config, "model_type gpt2 or llama", family or type(config).__name__, remedy)
    layers, heads = int(config.num_hidden_layers), int(config.num_attention_heads)
    if not 0 <= layer < layers:
        raise _cannot(
            config, f"a layer from 0 to {layers - 1}", f"layer {layer}", f"Say layer={layers - 1}, for example."
        )
    found = _gpt2(config, layer) if family == "gpt2" else _llama(config)
    return Sizes(
        family=family,
        hidden=int(config.hidden_size),
        heads=heads,
        layers=layers,
        vocabulary=int(config.vocab_size),
        positions=int(config.max_position_embeddings),
        is_eager=getattr(config, "_attn_implementation", None) == "eager",
        **found,
    )


def _gpt2(config: Any, layer: int) -> dict[str, Any]:
    if getattr(config, "add_cross_attention", False) or getattr(config, "reorder_and_upcast_attn", False):
        remedy = "Set add_cross_attention and reorder_and_upcast_attn to False."
        raise _cannot(config, "no cross-attention and no upcast attention", "one of them", remedy)
    dim = int(config.hidden_size) // int(config.num_attention_heads)
    scaling = dim**-0.5 if getattr(config, "scale_attn_weights", True) else 1.0
    if getattr(config, "scale_attn_by_inverse_layer_idx", False):
        scaling /= layer + 1
    return {
        "kv_heads": int(config.num_attention_heads),
        "head_dim": dim,
        "inner": int(config.n_inner or 4 * config.hidden_size),
        "epsilon": float(config.layer_norm_epsilon),
        "scaling": scaling,
        "rotation": {},
        "biased": ("attn", "mlp"),
    }


def _llama(config: Any) -> dict[str, Any]:
    told = getattr(config, "rope_parameters", None)
    if told is None:
        told = {"rope_theta": getattr(config, "rope_theta", 1e4), **(getattr(config, "rope_scaling", None) or {})}
    rotation = {"rope_type": "default", **told}
    if rotation["rope_type"] not in ROTATIONS:
        expected = f"rotary positions of type {', '.join(ROTATIONS)}"
        raise _cannot(config, expected, str(rotation["rope_type"]), "Give the configuration one of those types.")
    dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return {
        "kv_heads": int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads),
        "head_dim": dim,
        "inner": int(config.intermediate_size),
        "epsilon": float(config.rms_norm_eps),
        "scaling": dim**-0.5,
        "rotation": rotation,
        "biased": tuple(
            part
            for part, name in (("self_attn", "attention_bias"), ("mlp", "mlp_bias"))
            if getattr(config, name, False)
        ),
    }


def _cannot(config: Any, expected: str, found: str, fix: str) -> CompileError:
    return CompileError(
        f"A model of this configuration ({type(config).__name__}) cannot host a compiled prefix.",
        expected=expected,
        found=found,
        fix=fix,
    )


def limbs(numbers: Floats, dtype: str, count: int) -> Floats:
    """`numbers` as a sum of `count` numbers of `dtype`, largest first: `(limb, *numbers.shape)`, held in float64.

    >>> limbs(np.array([1.0 + 2.0**-30]), "float32", 2).tolist() == [[1.0], [2.0**-30]]
    True
    """
    rest, found = numbers.astype(np.float64), []
    for _ in range(count):
        found.append(rest.astype(DTYPES[dtype]).astype(np.float64))
        rest = rest - found[-1]
    return np.stack(found)


@dataclass(frozen=True)
class Lane:
    """One product of a score: the sum of some token coordinates times one limb of one number of a key.

    Numbers 0 to width - 1 are the key's, number `width` is the bias.
    """

    coordinates: tuple[int, ...]
    number: int
    limb: int


@dataclass(frozen=True)
class Frozen:
    """Where everything stands, in the stream and in the head, and the balance that makes the norm a constant.

    `lanes` are the products that make a score. `dims` gives each lane's dims in the head, `turns` the weight of each.
    `copies` of the head stand in heads of their own, and each writes its outputs `repeats` times (`copies.py`).
    """

    sizes: Sizes
    layer: int
    dtype: str
    width: int
    outputs: int
    copies: int
    repeats: int
    radius: float
    lanes: tuple[Lane, ...]
    dims: tuple[tuple[int, ...], ...]
    turns: tuple[tuple[float, ...], ...]
    balance: tuple[float, ...]
    gain: float

    @property
    def carrier(self) -> str:
        """The dtype that a token's numbers pass through unchanged."""
        return "float32" if self.sizes.family == "llama" and self.dtype == "float64" else self.dtype

    @property
    def token_limbs(self) -> int:
        return token_limbs(self.sizes.family, self.dtype)

    @property
    def value_limbs(self) -> int:
        return value_limbs(self.dtype)

    @property
    def entries(self) -> int:
        """Numbers that a copy's value consists of: the limbs of every output, as often as it is written."""
        return self.repeats * self.outputs * self.value_limbs

    @property
    def heads_each(self) -> int:
        """Key-value heads that a copy's entries fill."""
        return -(-self.entries // self.sizes.head_dim)

    @property
    def used_heads(self) -> int:
        """Key-value heads that carry values, copy after copy."""
        return self.copies * self.heads_each

    @property
    def constant(self) -> int:
        """The coordinate that holds 1; completion stands before it, balance and output behind."""
        return self.width * self.token_limbs + 1

    @property
    def output(self) -> int:
        """The first output coordinate; there are `entries` for each copy, the limbs of one output together."""
        return self.constant + 1 + len(self.balance)

    @property
    def site(self) -> str:
        """The attention module's name in the backbone, as the engine calls it."""
        return f"h.{self.layer}.attn" if self.sizes.family == "gpt2" else f"layers.{self.layer}.self_attn"

    def tokens(self, queries: Floats) -> Floats:
        """The stream's vectors `(row, hidden)` for `queries` `(row, width)` of norm at most `radius`."""
        rows = np.zeros((len(queries), self.sizes.hidden))
        split = limbs(queries, self.carrier, self.token_limbs)
        rows[:, : self.constant - 1] = np.concatenate(list(split), axis=1)
        left = self.radius**2 * SLACK - np.square(split).sum(axis=(0, 2))
        rows[:, self.constant - 1] = np.sqrt(np.maximum(left, 0.0))
        rows[:, self.constant] = 1.0
        rows[:, self.constant + 1 : self.output] = self.balance
        if self.sizes.is_mirrored:
            half = self.sizes.usable
            rows[:, half : 2 * half] = -rows[:, :half]
        return rows

    def read(self, stream: Floats) -> Floats:
        """Outputs `(..., output)` from the stream `(..., hidden)`, before or after the model's final norm.

        The norm scales a whole vector, so dividing by the coordinate that was 1 undoes it.
        """
        half = self.sizes.usable
        found = stream[..., :half] - stream[..., half : 2 * half] if self.sizes.is_mirrored else stream
        block = found[..., self.output : self.output + self.copies * self.entries]
        shape = (self.copies, self.repeats, self.outputs, self.value_limbs)
        split = block.reshape(*block.shape[:-1], *shape).sum(axis=-1)
        whole = (split / scales(self.copies, self.repeats)[..., None]).mean(axis=(-3, -2))
        return np.asarray(whole / found[..., self.constant, None], dtype=np.float64)


def token_limbs(family: str, dtype: str) -> int:
    """How many numbers carry one coordinate of a query."""
    return 2 if dtype == "bfloat16" or (family == "llama" and dtype == "float64") else 1


def value_limbs(dtype: str) -> int:
    """How many numbers carry one coordinate of a value."""
    return 2 if dtype == "bfloat16" else 1


def score_lanes(family: str, dtype: str, width: int) -> tuple[Lane, ...]:
    """The products that make a score of `width` query coordinates and a bias.

    In bfloat16 each limb has a lane of its own, and the product of two second limbs is left out (2^-16 of the score).
    """
    token = token_limbs(family, dtype)
    constant = width * token + 1
    if dtype == "bfloat16":
        pairs = ((0, 0), (0, 1), (1, 0))
        found = [Lane((limb * width + j,), j, of_key) for j in range(width) for limb, of_key in pairs]
        return (*found, *(Lane((constant,), width, limb) for limb in range(3)))
    whole = [Lane(tuple(limb * width + j for limb in range(token)), j, 0) for j in range(width)]
    return (*whole, Lane((constant,), width, 0))


def balance_of(sizes: Sizes, *, radius: float, dtype: str) -> tuple[tuple[float, ...], float]:
    """The balance and the norm's gain, so that the norm leaves a token as it is."""
    own = radius**2 * SLACK + 1.0
    if not sizes.is_mirrored:
        # Squares of a token must be less than half a unit in the last place of the sum, H 4^k: own < H 4^k 2^-25.
        power = max(0, math.ceil(math.log(2.0**26 * own / sizes.hidden, 4)))
        return tuple(float(part) * 2.0**power for part in four_squares(sizes.hidden)), 2.0**power
    gain = 1.0
    while sizes.hidden * (gain**2 - sizes.epsilon) / 2 < own:
        gain *= 2.0
    left = sizes.hidden * (gain**2 - sizes.epsilon) / 2 - own
    first = float(limbs(np.array(math.sqrt(left) * (1.0 - 2.0 * ROUNDOFF[dtype])), dtype, 1)[0])
    return (first, float(limbs(np.array(math.sqrt(max(0.0, left - first**2))), dtype, 1)[0])), gain


def four_squares(number: int) -> tuple[int, int, int, int]:
    """Four integers whose squares add up to `number` (Lagrange: there always are), largest first.

    >>> four_squares(768)
    (24, 8, 8, 8)
    """
    for a in range(math.isqrt(number), -1, -1):
        for b in range(min(a, math.isqrt(number - a * a)), -1, -1):
            left = number - a * a - b * b
            if left > 2 * b * b:
                break
            for c in range(min(b, math.isqrt(left)), -1, -1):
                d = math.isqrt(left - c * c)
                if d > c:
                    break
                if d * d == left - c * c:
                    return a, b, c, d
    raise ValueError(f"{number} is negative")
