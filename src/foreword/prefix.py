"""The prefix: keys and values that every attention layer reads before its input.

Named axes, never a flattened vector: at each site (one attention module of the base model, in the order in which a
forward pass reaches it) keys are `(kv_head, position, dim)`, values `(kv_head, position, value_dim)`, and an optional
logit bias is `(kv_head, position)`. Arrays are NumPy, read-only; bfloat16 comes from ml_dtypes. How a prefix acts in a
live model is the engine's matter; this module only knows what one is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Protocol

import numpy as np
import psutil
from numpy.typing import NDArray

from foreword.arrays import DTYPES, Array, dtype_of, frozen, is_count, is_finite
from foreword.errors import PrefixError

# A logit bias this low leaves a position weight 0 in every dtype (float16 ends at 65504): exp(-1e4) rounds to 0.
ABSENT = -1e4


class SiteShape(Protocol):
    """What a prefix needs to know of one attention site."""

    @property
    def name(self) -> str: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def key_dim(self) -> int: ...
    @property
    def value_dim(self) -> int: ...


class HasSites(Protocol):
    """Anything that lists attention sites: a host, or a plan of one."""

    @property
    def sites(self) -> Sequence[SiteShape]: ...


def absent(bias: Array | None, kv_heads: int) -> NDArray[np.bool_]:
    """Which key heads `(kv_head,)` carry nothing under this logit bias: it is `ABSENT` at all of their positions."""
    if bias is None:
        return np.zeros(kv_heads, dtype=np.bool_)
    # Half of it: storage rounds a bias, and a longer prefix's is a little lower.
    return np.asarray((bias.astype(np.float64).reshape(kv_heads, -1) <= ABSENT / 2).all(axis=1))


@dataclass(frozen=True, eq=False)
class LayerPrefix:
    """What one attention site reads before its input.

    `keys` is `(kv_head, position, dim)`, `values` is `(kv_head, position, value_dim)`. `bias` is None or added to the
    scaled scores: `(kv_head, position)`, or `(head, position)` where query heads that share a key have biases of their
    own. All three have one dtype and are finite. PrefixError otherwise.
    """

    site: str
    keys: Array
    values: Array
    bias: Array | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.site, str):
            raise PrefixError(
                "A site is named by text.",
                expected="the path of an attention module, as in host.sites",
                found=repr(self.site)[:100],
                fix="Use site.name of the entries of host.sites.",
            )
        object.__setattr__(self, "keys", frozen(self.keys))
        object.__setattr__(self, "values", frozen(self.values))
        if self.bias is not None:
            object.__setattr__(self, "bias", frozen(self.bias))
        self._check_shapes()
        for name, array in self.arrays().items():
            if array.dtype != self.keys.dtype or array.dtype not in DTYPES.values():
                raise PrefixError(
                    f"The prefix's {name} at {self.site} have an unfit dtype.",
                    expected=f"one of {', '.join(DTYPES)}, the same for keys, values and bias",
                    found=str(array.dtype),
                    fix="Convert the arrays, for example with array.astype('float32').",
                )
            if not is_finite(array):
                raise PrefixError(
                    f"The prefix's {name} at {self.site} are not all finite.",
                    expected="finite numbers",
                    found=f"{int((~np.isfinite(array)).sum())} NaN or infinite entries",
                    fix="Find where the fit diverged; lower the learning rate or cast to a wider dtype.",
                )

    def _check_shapes(self) -> None:
        wanted = "(kv_head, position, dim) with at least one head, one position and one dim"
        for name, array in (("keys", self.keys), ("values", self.values)):
            if array.ndim != 3 or 0 in array.shape:
                raise PrefixError(
                    f"The prefix's {name} at {self.site} have the wrong number of axes or an empty one.",
                    expected=wanted,
                    found=str(array.shape),
                    fix="Reshape them; one attention site has one array of keys and one of values.",
                )
        bias_shape = self.keys.shape[:2] if self.bias is None else self.bias.shape
        for_each_head = len(bias_shape) == 2 and bias_shape[0] > 0 and bias_shape[0] % self.keys.shape[0] == 0
        fits = for_each_head and bias_shape[1] == self.keys.shape[1]
        if self.keys.shape[:2] != self.values.shape[:2] or not fits:
            raise PrefixError(
                f"Keys, values and bias at {self.site} disagree on heads or positions.",
                expected=f"(kv_head, position) = {self.keys.shape[:2]} in all; the bias for a multiple of these heads",
                found=f"values {self.values.shape[:2]}, bias {bias_shape}",
                fix="Give every position a key and a value in every head.",
            )

    @property
    def positions(self) -> int:
        return int(self.keys.shape[1])

    @property
    def bias_heads(self) -> int:
        """Heads that the bias tells apart: the key heads when there is none."""
        return int(self.keys.shape[0] if self.bias is None else self.bias.shape[0])

    @property
    def carrying(self) -> tuple[int, ...]:
        """The key heads that carry the prefix: all that are not `absent`."""
        return tuple(np.flatnonzero(~absent(self.bias, len(self.keys))).tolist())

    def bias_for(self, heads: int) -> Array:
        """The bias as `(heads, position)`, for a multiple of `bias_heads`; zeros when there is none."""
        if self.bias is None:
            return np.zeros((heads, self.positions), self.keys.dtype)
        return np.repeat(self.bias, heads // len(self.bias), axis=0)

    def arrays(self) -> dict[str, Array]:
        """The arrays by name; `bias` only when there is one."""
        found = {"keys": self.keys, "values": self.values}
        return found if self.bias is None else {**found, "bias": self.bias}


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values for some or all attention sites of one base model, all with the same number of positions.

    `occupies` says how many positions of the context it takes: 0 for a fitted or compiled prefix, n for a baked text of
    n tokens (the context's position ids then start at n). `reads` says, where several baked texts were merged, up to
    which position each was read. Two prefixes are equal when their `hash` is.

    >>> keys = np.zeros((2, 3, 4), dtype=np.float32)
    >>> prefix = Prefix.from_arrays({"h.0.attn": (keys, keys), "h.1.attn": (keys, keys)})
    >>> prefix.positions, prefix.sites, prefix.nbytes
    (3, ('h.0.attn', 'h.1.attn'), 384)
    >>> prefix.slice(0, 1).positions, prefix.merge(prefix).positions
    (1, 6)
    """

    layers: tuple[LayerPrefix, ...]
    occupies: int = 0
    reads: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, kind, wanted in (("layers", LayerPrefix, "LayerPrefix entries"), ("reads", object, "whole numbers")):
            given = getattr(self, name)
            entries = tuple(given) if isinstance(given, Iterable) else (None,)
            if not all(isinstance(entry, kind) and entry is not None for entry in entries):
                raise PrefixError(
                    f"The {name} of a prefix are of another type.",
                    expected=f"a tuple of {wanted}",
                    found=f"{type(given).__name__}: {given!r}"[:100],
                    fix="Use Prefix.from_arrays({site: (keys, values)}).",
                )
            object.__setattr__(self, name, entries)
        if not self.layers:
            raise PrefixError(
                "A prefix needs at least one layer.",
                expected="keys and values for one attention site or more",
                found="none",
                fix="Use Prefix.from_arrays({site: (keys, values)}); host.sites lists the sites.",
            )
        names = self.sites
        if len(set(names)) != len(names):
            repeated = sorted({name for name in names if names.count(name) > 1})
            raise PrefixError(
                "A site occurs twice in one prefix.",
                expected="each attention site once",
                found=", ".join(repeated),
                fix="Use merge to put two prefixes behind each other.",
            )
        positions = {layer.positions for layer in self.layers}
        if len(positions) != 1 or len({layer.keys.dtype for layer in self.layers}) != 1:
            raise PrefixError(
                "The layers of one prefix disagree.",
                expected="one number of positions and one dtype for all sites",
                found=f"positions {sorted(positions)}, dtypes {sorted({str(x.keys.dtype) for x in self.layers})}",
                fix="Slice or cast the layers to match.",
            )
        if not is_count(self.occupies):
            raise PrefixError(
                "What a prefix occupies is a number of positions.",
                expected="a whole number, 0 or more",
                found=repr(self.occupies)[:100],
                fix="Leave `occupies` out for a fitted prefix.",
            )
        if not all(is_count(read) and 0 < read <= self.occupies for read in self.reads):
            raise PrefixError(
                "A baked text was read up to a position that the prefix occupies.",
                expected=f"1 to {self.occupies}",
                found=repr(self.reads)[:100],
                fix="Leave `reads` out: merge keeps it.",
            )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, tuple[Array, ...]], *, occupies: int = 0) -> Prefix:
        """A prefix from `{site: (keys, values)}` or `{site: (keys, values, bias)}`, in the mapping's order."""
        entries = list(arrays.values()) if isinstance(arrays, Mapping) else [None]
        wrong = [found for found in entries if not isinstance(found, tuple | list) or len(found) not in (2, 3)]
        if wrong:
            raise PrefixError(
                "This is not keys and values by site.",
                expected="{site: (keys, values)} or {site: (keys, values, bias)}",
                found=f"{type(arrays).__name__} with {repr(wrong[0])[:80]}",
                fix="Give each site a tuple of arrays; host.sites lists the sites.",
            )
        return cls(tuple(LayerPrefix(site, *found) for site, found in arrays.items()), occupies=occupies)

    @classmethod
    def random(
        cls, host: HasSites, *, positions: int, seed: int = 0, scale: float = 0.02, dtype: str = "float32"
    ) -> Prefix:
        """Normal keys and values of standard deviation `scale` for every self-attention site of `host`."""
        sites = None if isinstance(host, Prefix) else getattr(host, "sites", None)
        if sites is None or not (is_count(positions) and positions) or not is_count(seed):
            raise PrefixError(
                "No prefix can be drawn from this.",
                expected="a host (Host(model) makes one), 1 position or more, and a seed of 0 or more",
                found=f"{type(host).__name__}, positions={positions!r:.40}, seed={seed!r:.40}",
                fix="Write Prefix.random(host, positions=16, seed=0).",
            )
        if not (isinstance(scale, Real) and 0 <= float(scale) < np.inf):
            raise PrefixError(
                "Numbers cannot be drawn with this standard deviation.",
                expected="a finite number, 0 or more",
                found=f"scale={scale!r:.40}",
                fix="Leave `scale` out for small numbers (0.02), or use 1.0 for ones as large as a text's.",
            )
        drawn = 8 * int(positions) * max((x.kv_heads * max(x.key_dim, x.value_dim) for x in sites), default=0)
        kept = sum(dtype_of(dtype).itemsize * int(positions) * x.kv_heads * (x.key_dim + x.value_dim) for x in sites)
        if kept + 2 * drawn > (room := psutil.virtual_memory().available):
            raise PrefixError(
                "This prefix is too large for the memory of this machine.",
                expected=f"at most {room:,} bytes, which are free",
                found=f"{positions:,} positions, which take {kept + 2 * drawn:,}",
                fix="Use fewer positions.",
            )
        rng = np.random.default_rng(seed)
        layers = []
        for site in sites:
            keys = rng.normal(0.0, scale, (site.kv_heads, positions, site.key_dim))
            values = rng.normal(0.0, scale, (site.kv_heads, positions, site.value_dim))
            layers.append(LayerPrefix(site.name, keys.astype(dtype_of(dtype)), values.astype(dtype_of(dtype))))
        return cls(tuple(layers))

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(layer.site for layer in self.layers)

    @property
    def positions(self) -> int:
        return self.layers[0].positions

    @property
    def read_to(self) -> tuple[int, ...]:
        """Up to which position each of its baked texts was read; none for a fitted or compiled prefix."""
        return self.reads or ((self.occupies,) if self.occupies else ())

    @property
    def dtype(self) -> str:
        return str(self.layers[0].keys.dtype)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all keys, values and biases."""
        return sum(array.nbytes for layer in self.layers for array in layer.arrays().values())

    @cached_property
    def hash(self) -> str:
        """SHA-256 over everything that changes what the prefix computes: sites, order, dtype, shapes, numbers."""
        digest = hashlib.sha256(f"foreword.prefix/1 occupies={self.occupies}".encode())
        for layer in self.layers:
            for name, array in layer.arrays().items():
                digest.update(f"\n{layer.site}\0{name}\0{array.dtype}\0{array.shape}\0".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()

    def layer(self, site: str) -> LayerPrefix:
        """The part at one site; KeyError when the prefix has none there."""
        for layer in self.layers:
            if layer.site == site:
                return layer
        raise KeyError(site)

    def merge(self, other: Prefix) -> Prefix:
        """This prefix's positions, then the other's; both must cover the same sites. They occupy the sum."""
        if not isinstance(other, Prefix) or set(self.sites) != set(other.sites):
            raise PrefixError(
                "Only prefixes of the same sites can be merged.",
                expected=", ".join(self.sites),
                found=", ".join(other.sites) if isinstance(other, Prefix) else type(other).__name__,
                fix="Make both for the same base model and the same layers.",
            )
        layers = []
        for mine in self.layers:
            theirs = other.layer(mine.site)
            wanted, found = _head_shape(mine), _head_shape(theirs)
            fewer, heads = sorted((mine.bias_heads, theirs.bias_heads))
            if wanted != found or heads % fewer:
                raise PrefixError(
                    f"The prefixes have other head shapes at {mine.site}.",
                    expected=f"(kv_head, dim, value_dim) = {wanted}, a bias for {mine.bias_heads} heads",
                    found=f"{found}, a bias for {theirs.bias_heads} heads",
                    fix="Merge prefixes that were made for the same base model.",
                )
            has_bias = mine.bias is not None or theirs.bias is not None
            layers.append(
                LayerPrefix(
                    mine.site,
                    _joined(mine.keys, theirs.keys),
                    _joined(mine.values, theirs.values),
                    _joined(mine.bias_for(heads), theirs.bias_for(heads)) if has_bias else None,
                )
            )
        reads = (*self.read_to, *other.read_to)
        return Prefix(tuple(layers), self.occupies + other.occupies, reads if len(reads) > 1 else ())

    def slice(self, start: int, stop: int) -> Prefix:
        """The positions `start` to `stop` (exclusive, 0 <= start < stop <= positions); occupies what it keeps.

        Only for a prefix that occupies none of the context's positions: of a baked text the rest would be misplaced.
        """
        if self.occupies or not (is_count(start) and is_count(stop) and start < stop <= self.positions):
            raise PrefixError(
                "These positions cannot be cut out.",
                expected=f"0 <= start < stop <= {self.positions}, of a prefix that occupies 0 positions",
                found=f"start {start}, stop {stop}, occupies {self.occupies}",
                fix="Choose positions inside the prefix; bake a shorter text instead of cutting a baked one.",
            )
        return Prefix(
            tuple(
                replace(
                    layer,
                    keys=layer.keys[:, start:stop],
                    values=layer.values[:, start:stop],
                    bias=None if layer.bias is None else layer.bias[:, start:stop],
                )
                for layer in self.layers
            )
        )

    def cast(self, dtype: str) -> Prefix:
        """The same prefix in another dtype; PrefixError when a number does not fit into it."""
        wanted = dtype_of(dtype)
        with np.errstate(over="ignore"):
            layers = tuple(
                LayerPrefix(layer.site, *(array.astype(wanted) for array in layer.arrays().values()))
                for layer in self.layers
            )
        return Prefix(layers, self.occupies, self.reads)

    def select(self, sites: Iterable[str]) -> Prefix:
        """Only the given sites, in this prefix's order; PrefixError when one is not there."""
        wanted = list(sites) if isinstance(sites, Iterable) and not isinstance(sites, str) else [sites]
        unknown = [site for site in wanted if not isinstance(site, str) or site not in self.sites]
        if unknown or not wanted:
            raise PrefixError(
                "The prefix has no such site.",
                expected=f"a list of some of {', '.join(self.sites)}",
                found=", ".join(f"{site!s:.60}" for site in unknown[:3]) or "no site at all",
                fix="Name sites that the prefix carries.",
            )
        return Prefix(tuple(layer for layer in self.layers if layer.site in wanted), self.occupies, self.reads)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prefix) and self.hash == other.hash

    def __hash__(self) -> int:
        return int(self.hash[:15], 16)

    def __repr__(self) -> str:
        return (
            f"Prefix({self.hash[:12]}, positions={self.positions}, sites={len(self.layers)}, "
            f"dtype={self.dtype}, nbytes={self.nbytes}, occupies={self.occupies})"
        )


def _head_shape(layer: LayerPrefix) -> tuple[int, int, int]:
    return layer.keys.shape[0], layer.keys.shape[2], layer.values.shape[2]


def _joined(first: Array, second: Array) -> Array:
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and LayerPrefix refuses it
        return np.concatenate([first, second.astype(first.dtype)], axis=1)
