"""What a prefix is: its invariants, its identity, and the laws of merge, slice and cast."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.arrays import DTYPES
from foreword.errors import PrefixError
from foreword.prefix import LayerPrefix, Prefix

Arrays = dict[str, tuple[np.ndarray, ...]]


def arrays(*, seed: int = 0, positions: int = 3, dtype: str = "float32", bias: bool = False) -> Arrays:
    """Two sites of two heads, keys of 4 and values of 5 dims."""
    rng = np.random.default_rng(seed)
    shapes = [(2, positions, 4), (2, positions, 5)] + ([(2, positions)] if bias else [])
    return {site: tuple(rng.normal(size=shape).astype(DTYPES[dtype]) for shape in shapes) for site in ("first", "next")}


def a_prefix(**options: Any) -> Prefix:
    return Prefix.from_arrays(arrays(**options))


@st.composite
def prefixes(draw: st.DrawFn, *, dtypes: tuple[str, ...] = tuple(DTYPES), occupies: bool = False) -> Prefix:
    """Prefixes with the same two sites and head shapes, so that any two of one dtype can be merged."""
    made = a_prefix(
        seed=draw(st.integers(0, 2**32 - 1)),
        positions=draw(st.integers(1, 5)),
        dtype=draw(st.sampled_from(dtypes)),
        bias=draw(st.booleans()),
    )
    return Prefix(made.layers, occupies=draw(st.integers(0, 7)) if occupies else 0)


# Identity


def test_equal_numbers_give_equal_prefixes_and_hashes() -> None:
    assert a_prefix() == a_prefix()
    assert hash(a_prefix()) == hash(a_prefix())
    assert a_prefix().hash == a_prefix().hash
    assert a_prefix() != a_prefix(seed=1)
    assert a_prefix() != "a prefix"


def test_the_hash_changes_with_every_single_number() -> None:
    found = {a_prefix(bias=True).hash}
    count = 1
    for site, parts in arrays(bias=True).items():
        for part, array in enumerate(parts):
            for index in np.ndindex(array.shape):
                changed = arrays(bias=True)
                # The smallest change that there is: the neighbouring float32.
                changed[site][part][index] = np.nextafter(array[index], np.float32(np.inf))
                found.add(Prefix.from_arrays(changed).hash)
                count += 1
    assert count == 1 + 2 * (2 * 3 * 4 + 2 * 3 * 5 + 2 * 3)
    assert len(found) == count


def test_the_hash_changes_with_site_order_dtype_bias_shape_and_occupies() -> None:
    plain = a_prefix()
    zero_bias = {site: (*parts, np.zeros((2, 3), np.float32)) for site, parts in arrays().items()}
    turned = {
        site: (values[:, :, :4], np.concatenate([keys, keys[:, :, :1]], axis=2))
        for site, (keys, values) in arrays().items()
    }
    reshaped = {site: (keys.reshape(1, 6, 4), values.reshape(1, 6, 5)) for site, (keys, values) in arrays().items()}
    others = [
        Prefix.from_arrays({f"{site}.attn": parts for site, parts in arrays().items()}),
        Prefix(plain.layers[::-1]),
        Prefix(plain.layers[:1]),
        Prefix(plain.layers, occupies=3),
        Prefix.from_arrays(zero_bias),
        Prefix.from_arrays(turned),
        Prefix.from_arrays(reshaped),
        plain.cast("float64"),
    ]
    assert len({plain.hash, *(other.hash for other in others)}) == 1 + len(others)


def test_the_hash_is_the_same_on_every_machine() -> None:
    """Written out byte by byte: bundles on disk name prefixes by this hash, so another one is another schema."""
    keys = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    made = Prefix.from_arrays({"h.0.attn": (keys, keys + 1)}, occupies=2)
    told = b"foreword.prefix/1 occupies=2"
    told += b"\nh.0.attn\0keys\0float32\0(1, 2, 3)\0" + struct.pack("<6f", 0, 1, 2, 3, 4, 5)
    told += b"\nh.0.attn\0values\0float32\0(1, 2, 3)\0" + struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    assert made.hash == hashlib.sha256(told).hexdigest()


def test_memory_layout_does_not_change_the_hash() -> None:
    fortran = {site: tuple(np.asfortranarray(part) for part in parts) for site, parts in arrays().items()}
    strided = {site: tuple(np.repeat(part, 2, axis=1)[:, ::2] for part in parts) for site, parts in arrays().items()}
    assert Prefix.from_arrays(fortran) == Prefix.from_arrays(strided) == a_prefix()


# Invariants


def test_arrays_are_read_only_copies() -> None:
    given_arrays = arrays(bias=True)
    prefix = Prefix.from_arrays(given_arrays)
    before = prefix.hash
    for parts in given_arrays.values():
        for part in parts:
            part[...] = 0.0
    assert Prefix(prefix.layers).hash == before
    for layer in prefix.layers:
        for array in layer.arrays().values():
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1.0


ZERO = np.zeros((2, 3, 4), np.float32)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a list": (lambda: LayerPrefix("s", ZERO.tolist(), ZERO), "numpy.ndarray"),
    "two axes": (lambda: LayerPrefix("s", ZERO[0], ZERO), r"\(3, 4\)"),
    "no position": (lambda: LayerPrefix("s", ZERO[:, :0], ZERO[:, :0]), r"\(2, 0, 4\)"),
    "no head": (lambda: LayerPrefix("s", ZERO[:0], ZERO[:0]), r"\(0, 3, 4\)"),
    "no dim": (lambda: LayerPrefix("s", ZERO, ZERO[:, :, :0]), r"\(2, 3, 0\)"),
    "other positions": (lambda: LayerPrefix("s", ZERO, ZERO[:, :2]), r"values \(2, 2\)"),
    "other heads": (lambda: LayerPrefix("s", ZERO, ZERO[:1]), r"values \(1, 3\)"),
    "bias of other shape": (lambda: LayerPrefix("s", ZERO, ZERO, np.zeros(3, np.float32)), r"bias \(3,\)"),
    "integers": (lambda: LayerPrefix("s", ZERO.astype(int), ZERO.astype(int)), "int64"),
    "complex": (lambda: LayerPrefix("s", ZERO.astype(complex), ZERO.astype(complex)), "complex128"),
    "big-endian": (lambda: LayerPrefix("s", ZERO.astype(">f4"), ZERO.astype(">f4")), ">f4"),
    "mixed dtypes": (lambda: LayerPrefix("s", ZERO, ZERO.astype(np.float64)), "float64"),
    "bias of other heads": (lambda: LayerPrefix("s", ZERO, ZERO, np.zeros((3, 3), np.float32)), r"bias \(3, 3\)"),
    "mixed dtype of bias": (lambda: LayerPrefix("s", ZERO, ZERO, np.zeros((2, 3))), "float64"),
    "NaN": (lambda: LayerPrefix("s", ZERO, ZERO + np.float32(np.nan)), "24 NaN"),
    "infinity in the bias": (lambda: LayerPrefix("s", ZERO, ZERO, np.full((2, 3), -np.inf, np.float32)), "6 NaN or"),
    "no layer": (lambda: Prefix(()), "none"),
    "a site twice": (lambda: Prefix((LayerPrefix("s", ZERO, ZERO),) * 2), "found:    s"),
    "unequal positions": (
        lambda: Prefix((LayerPrefix("s", ZERO, ZERO), LayerPrefix("t", ZERO[:, :1], ZERO[:, :1]))),
        r"\[1, 3\]",
    ),
    "unequal dtypes": (
        lambda: Prefix((LayerPrefix("s", ZERO, ZERO), LayerPrefix("t", *[ZERO.astype(np.float16)] * 2))),
        "float16",
    ),
    "negative occupies": (lambda: Prefix((LayerPrefix("s", ZERO, ZERO),), occupies=-1), "-1"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_a_prefix_is_refused_with_what_was_found(name: str) -> None:
    make, found = REFUSED[name]
    with pytest.raises(PrefixError, match=found) as caught:
        make()
    assert caught.value.expected
    assert caught.value.fix


def test_a_missing_site_is_a_key_error_and_selecting_one_a_prefix_error() -> None:
    prefix = a_prefix()
    with pytest.raises(KeyError, match="nowhere"):
        prefix.layer("nowhere")
    for wanted in (["nowhere"], ["first", "nowhere"], []):
        with pytest.raises(PrefixError):
            prefix.select(wanted)
    assert prefix.select(["next", "first"]) == prefix
    assert prefix.select(["next"]).sites == ("next",)


# Laws


@given(prefixes(dtypes=("float32",)), prefixes(dtypes=("float32",)), prefixes(dtypes=("float32",)))
def test_merging_is_associative(a: Prefix, b: Prefix, c: Prefix) -> None:
    assert a.merge(b).merge(c) == a.merge(b.merge(c))


@given(prefixes(dtypes=("bfloat16",)), prefixes(dtypes=("bfloat16",)))
def test_slicing_a_merged_prefix_gives_its_parts_back(a: Prefix, b: Prefix) -> None:
    both = a.merge(b)
    assert both.positions == a.positions + b.positions
    for part, wanted in ((both.slice(0, a.positions), a), (both.slice(a.positions, both.positions), b)):
        for found, layer in zip(part.layers, wanted.layers, strict=True):
            assert np.array_equal(found.keys, layer.keys)
            assert np.array_equal(found.values, layer.values)
            has_bias = a.layers[0].bias is not None or b.layers[0].bias is not None
            assert (found.bias is not None) == has_bias
            if has_bias:  # what had none joins with a bias of zero, which computes the same
                assert np.array_equal(found.bias, np.zeros((2, part.positions)) if layer.bias is None else layer.bias)


@given(prefixes(), st.data())
def test_cutting_in_two_and_merging_is_the_whole(prefix: Prefix, data: st.DataObject) -> None:
    assert prefix.slice(0, prefix.positions) == prefix
    if prefix.positions > 1:
        at = data.draw(st.integers(1, prefix.positions - 1))
        assert prefix.slice(0, at).merge(prefix.slice(at, prefix.positions)) == prefix


@given(prefixes(dtypes=("float32",), occupies=True), prefixes(dtypes=("float32",), occupies=True))
def test_merged_prefixes_occupy_the_sum(a: Prefix, b: Prefix) -> None:
    assert a.merge(b).occupies == a.occupies + b.occupies


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 0), (2, 1), (0, 4), (3, 3)])
def test_positions_outside_the_prefix_cannot_be_cut_out(start: int, stop: int) -> None:
    with pytest.raises(PrefixError, match=f"start {start}, stop {stop}"):
        a_prefix(positions=3).slice(start, stop)


def test_a_prefix_that_occupies_positions_cannot_be_cut() -> None:
    with pytest.raises(PrefixError, match="occupies 3"):
        Prefix(a_prefix().layers, occupies=3).slice(0, 2)


@pytest.mark.parametrize("part", [0, 1])
def test_prefixes_of_other_sites_or_head_shapes_do_not_merge(part: int) -> None:
    other = {site: tuple(p if n != part else p[:, :, :2] for n, p in enumerate(ps)) for site, ps in arrays().items()}
    with pytest.raises(PrefixError):
        a_prefix().merge(Prefix.from_arrays(other))
    with pytest.raises(PrefixError):
        a_prefix().merge(a_prefix().select(["first"]))


def test_a_bias_for_each_query_head_merges_with_one_for_each_key_head() -> None:
    rng = np.random.default_rng(0)

    def made(heads: int | None) -> Prefix:
        bias = () if heads is None else (rng.normal(size=(heads, 3)).astype(np.float32),)
        return Prefix.from_arrays({"s": (ZERO, ZERO, *bias)})

    by_query, by_key, none = made(4), made(2), made(None)
    found = by_query.merge(by_key).merge(none).layers[0].bias
    assert by_query.layers[0].bias is not None
    assert by_key.layers[0].bias is not None
    wanted = [by_query.layers[0].bias, by_key.layers[0].bias[[0, 0, 1, 1]], np.zeros((4, 3), np.float32)]
    assert np.array_equal(found, np.concatenate(wanted, axis=1))  # type: ignore[arg-type]
    assert by_query.slice(1, 2).layers[0].bias.shape == (4, 1)  # type: ignore[union-attr]
    with pytest.raises(PrefixError, match="a bias for 4 heads"):
        by_query.merge(made(6))


def test_merging_follows_the_first_ones_order_of_sites() -> None:
    a, b = a_prefix(), a_prefix(seed=1)
    assert a.merge(Prefix(b.layers[::-1])) == a.merge(b)


@given(prefixes(dtypes=("float16", "bfloat16")))
def test_a_wider_dtype_and_back_is_the_same_prefix(prefix: Prefix) -> None:
    for wider in ("float32", "float64"):
        assert prefix.cast(wider).cast(prefix.dtype) == prefix
    assert prefix.cast(prefix.dtype) == prefix


@given(prefixes(dtypes=("float64",)))
def test_casting_rounds_to_nearest(prefix: Prefix) -> None:
    """|x - cast(x)| <= |x| * 2**-p with p bits of significand: 24, 11 and 8; no draw here is subnormal in float16.

    A normal draw below 2**-14 (float16's smallest normal number) has the absolute error 2**-25 instead.
    """
    for dtype, bits in (("float32", 24), ("float16", 11), ("bfloat16", 8)):
        cast = prefix.cast(dtype)
        assert cast.dtype == dtype
        for before, after in zip(prefix.layers, cast.layers, strict=True):
            error = np.abs(before.keys - after.keys.astype(np.float64))
            assert (error <= np.maximum(np.abs(before.keys) * 2.0**-bits, 2.0**-25)).all()


def test_numbers_that_do_not_fit_the_dtype_are_refused() -> None:
    large = {site: tuple(part * np.float32(1e6) for part in parts) for site, parts in arrays().items()}
    prefix = Prefix.from_arrays(large)
    with pytest.raises(PrefixError, match="not all finite"):
        prefix.cast("float16")
    with pytest.raises(PrefixError, match="not all finite"):
        a_prefix(dtype="float16").merge(prefix)
    assert prefix.cast("bfloat16").dtype == "bfloat16"  # bfloat16 has float32's range
    with pytest.raises(PrefixError, match="int8"):
        prefix.cast("int8")


def test_bfloat16_takes_half_the_bytes_of_float32() -> None:
    prefix = a_prefix(bias=True)
    assert prefix.nbytes == 2 * (2 * 3 * 4 + 2 * 3 * 5 + 2 * 3) * 4
    assert prefix.cast("bfloat16").nbytes == prefix.nbytes // 2
    assert prefix.cast("bfloat16").layers[0].keys.dtype == ml_dtypes.bfloat16


# Random prefixes


@dataclass(frozen=True)
class FakeSite:
    name: str
    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class FakeHost:
    sites: tuple[FakeSite, ...] = (FakeSite("a", 3, 8, 16), FakeSite("b", 1, 4, 4))


def test_a_random_prefix_that_no_memory_holds_is_refused_before_it_is_drawn() -> None:
    for positions in (10**13, 1 << 70):
        with pytest.raises(PrefixError, match="too large for the memory"):
            Prefix.random(FakeHost(), positions=positions)


def test_a_random_prefix_fits_every_site_and_follows_its_seed() -> None:
    made = Prefix.random(FakeHost(), positions=50, seed=3, scale=0.1)
    assert [layer.keys.shape for layer in made.layers] == [(3, 50, 8), (1, 50, 4)]
    assert [layer.values.shape for layer in made.layers] == [(3, 50, 16), (1, 50, 4)]
    assert made.occupies == 0
    assert made == Prefix.random(FakeHost(), positions=50, seed=3, scale=0.1)
    assert made != Prefix.random(FakeHost(), positions=50, seed=4, scale=0.1)
    # 2,400 draws: the deviation's standard error is 0.1 / sqrt(2 * 2400) = 0.0014; five of them are 0.007.
    assert abs(float(np.std(made.layers[0].values)) - 0.1) < 0.007
    assert Prefix.random(FakeHost(), positions=2, dtype="bfloat16").dtype == "bfloat16"


@settings(max_examples=20)
@given(prefixes(occupies=True))
def test_a_prefix_shows_what_it_is(prefix: Prefix) -> None:
    shown = repr(prefix)
    for fact in (prefix.hash[:12], f"positions={prefix.positions}", prefix.dtype, f"occupies={prefix.occupies}"):
        assert fact in shown
