"""Hosting without a model: the frozen form, limbs, the floor of the scores, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from foreword.arrays import DTYPES
from foreword.compiler.charts import Flat
from foreword.compiler.compiled import CompiledFunction
from foreword.compiler.domain import Cube, Domain, FiniteSet
from foreword.compiler.frozen import ROUNDOFF, four_squares, limbs
from foreword.compiler.head import Head
from foreword.compiler.hosting import host_in
from foreword.compiler.hosting_terms import score_floor, smaller_values
from foreword.compiler.rotation import ROUNDINGS, _frequencies, turning
from foreword.errors import CompileError


@dataclass(frozen=True)
class Identity:
    width: int
    name: str = "identity"

    def __call__(self, points: Any) -> Any:
        return points


GPT2 = SimpleNamespace(
    model_type="gpt2",
    hidden_size=48,
    num_attention_heads=2,
    num_hidden_layers=2,
    vocab_size=5,
    max_position_embeddings=64,
    n_inner=None,
    layer_norm_epsilon=1e-5,
)
LLAMA = SimpleNamespace(
    model_type="llama",
    hidden_size=24,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    num_hidden_layers=2,
    intermediate_size=8,
    vocab_size=5,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
    rope_parameters={"rope_type": "default", "rope_theta": 1e4},
)


def head(seed: int = 0, *, positions: int = 7, width: int = 3, outputs: int = 2, scale: float = 3.0) -> Head:
    rng = np.random.default_rng(seed)
    shapes = ((positions, width), (positions,), (positions, outputs))
    return Head(*(scale * rng.normal(size=shape) for shape in shapes))


def sphere(count: int, rng: np.random.Generator) -> Any:
    points = rng.normal(size=(count, 3))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def ball(count: int, width: int, rng: np.random.Generator) -> Any:
    points = rng.normal(size=(count, width))
    return points / np.linalg.norm(points, axis=1, keepdims=True) * rng.uniform(size=(count, 1)) ** (1 / width)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_frozen_weights_do_not_depend_on_the_function(config: Any, dtype: str) -> None:
    one, other = (host_in(head(seed), Identity(3), config, dtype=dtype) for seed in (0, 1))
    assert all((one.arrays[name] == other.arrays[name]).all() for name in one.arrays)
    assert one.prefix != other.prefix


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_every_token_has_one_norm_and_reads_back_as_no_output(config: Any) -> None:
    hosted = host_in(head(), Identity(3), config, radius=1.0)
    tokens = hosted.embed(ball(200, 3, np.random.default_rng(0)))
    norms = np.square(tokens).sum(axis=-1)
    assert np.ptp(norms) <= 1e-13 * norms.max()  # a sum of at most 48 squares: 48 * 2^-53 relative
    assert (hosted.read(tokens) == 0).all()


def test_a_numbers_limbs_are_of_the_dtype_and_add_up_to_it() -> None:
    wanted = np.random.default_rng(0).normal(size=50)
    for dtype, count, error in (("bfloat16", 3, 2.0**-25), ("float32", 2, 2.0**-47)):
        found = limbs(wanted, dtype, count)
        assert (found == limbs(found.sum(axis=0), dtype, count)).all()
        assert (np.abs(found.sum(axis=0) - wanted) <= error * np.abs(wanted)).all()


def test_every_number_is_a_sum_of_four_squares() -> None:
    for number in range(1, 800):
        assert sum(part**2 for part in four_squares(number)) == number


@pytest.mark.parametrize("seed", range(5))
def test_the_floor_is_below_every_score_sum_and_close_to_the_least(seed: int) -> None:
    found = head(seed, positions=20)
    scores = ball(20_000, 3, np.random.default_rng(seed)) @ found.keys.T + found.biases
    sums = np.log(np.exp(scores).sum(axis=1))
    floor = score_floor(found, 1.0)
    assert floor <= sums.min()
    # The gradient of the sum is a mean of keys, so over the distance to the nearest of 20,000 points (below 0.2) it
    # falls by less than 0.2 times the longest key.
    assert sums.min() - floor <= 0.2 * np.linalg.norm(found.keys, axis=1).max()


def test_roundoff_is_half_the_step_above_one() -> None:
    for name, unit in ROUNDOFF.items():
        assert unit == float(ml_dtypes.finfo(DTYPES[name]).eps) / 2


@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_more_pairs_cancel_more_of_the_rotation(theta: float) -> None:
    rotation = {"rope_type": "default", "rope_theta": theta}
    few, many = (
        turning(rotation, head_dim=dim, numbers=4, positions=400, dtype="float64").error.max() for dim in (8, 64)
    )
    assert many < few / 100


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}
TURNS = [
    {"rope_type": "default", "rope_theta": 1e4},
    {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    LLAMA3,
]


@pytest.mark.parametrize("rotation", TURNS, ids=lambda rotation: rotation["rope_type"])
def test_frequencies_are_those_of_transformers(rotation: dict[str, Any]) -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=1024, rope_parameters=rotation)
    theirs = LlamaRotaryEmbedding(config).inv_freq.numpy()
    assert np.abs(_frequencies(rotation, 32) / theirs - 1).max() <= ROUNDINGS * 2.0**-24


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("rotation", TURNS, ids=lambda rotation: rotation["rope_type"])
def test_no_number_is_turned_by_more_than_is_stated(rotation: dict[str, Any], dtype: str) -> None:
    """By transformers' own code, for numbers of all digits that bfloat16 has; float64's cosines are float32's."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=64, num_attention_heads=1, max_position_embeddings=512, rope_parameters=rotation)
    turned = turning(rotation, head_dim=64, numbers=6, positions=512, dtype=dtype)
    numbers = torch.linspace(0.5, 1.0, 129, dtype=getattr(torch, dtype))
    told = torch.zeros(len(numbers), 1, 512, 64, dtype=numbers.dtype)
    cosines = LlamaRotaryEmbedding(config)(told[:1, 0], torch.arange(512)[None])
    for dims, weights, error in zip(turned.dims, turned.turns, turned.error, strict=True):
        told[:] = 0.0
        for dim, weight in zip(dims, weights, strict=True):
            told[:, 0, :, dim] = weight * numbers[:, None]
        found = apply_rotary_pos_emb(told, told, *cosines)[0][:, 0, :, list(dims)].double().sum(dim=-1)
        assert float((found / numbers.double()[:, None] - 1.0).abs().max()) <= error


def test_smaller_values_lose_less_in_bfloat16() -> None:
    rng = np.random.default_rng(0)
    keys, queries = 3.0 * sphere(120, rng), sphere(3000, rng)
    weights = Head(keys, np.zeros(120), np.eye(120)).weights(queries)
    large = Head(keys, np.zeros(120), np.linalg.lstsq(weights, np.sin(3 * queries[:, :1]), rcond=1e-9)[0])
    small, change = smaller_values(large, queries)
    unseen = sphere(1000, rng)
    rounded = large.weights(unseen).astype(DTYPES["bfloat16"]).astype(np.float64)
    lost = [float(np.abs(rounded @ found.values - large.evaluate(unseen)).max()) for found in (large, small)]
    assert lost[1] < lost[0] / 2
    assert np.abs(small.evaluate(queries) - large.evaluate(queries)).max() == pytest.approx(change)


def test_a_head_that_is_drafted_anew_is_taken_where_it_loses_less_and_asked_for_where_it_may() -> None:
    rng = np.random.default_rng(0)
    queries = sphere(1000, rng)
    plane = Head(np.array([[1e-3, 0.0, 0.0], [-1e-3, 0.0, 0.0]]), np.zeros(2), np.array([[1e3], [-1e3]]))
    near = Head(np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), np.zeros(2), np.array([[1.2], [-1.2]]))  # 1.2 tanh(x)
    taken, change = smaller_values(plane, queries, drafted=lambda: near)
    assert taken.positions == plane.positions
    assert np.abs(taken.values).max() < 2
    assert np.abs(taken.evaluate(queries) - plane.evaluate(queries)).max() == pytest.approx(change)
    longer, _ = smaller_values(plane.lengthened(5), queries, drafted=lambda: near)
    assert longer.positions == 5
    even, nothing = near.lengthened(40), "many small weights lose little"
    gentle, _ = smaller_values(even, queries, drafted=lambda: pytest.fail(nothing))
    assert np.abs(gentle.values).max() < 2


def varied(config: Any, **changes: Any) -> Any:
    return SimpleNamespace(**{**vars(config), **changes})


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (varied(GPT2, model_type="bert"), {}, "gpt2 or llama"),
        (varied(GPT2, hidden_size=16), {}, "coordinates of the stream"),
        (varied(GPT2, num_attention_heads=16), {}, "dims in a head"),
        (varied(LLAMA, head_dim=4), {}, "pairs of dims"),
        (varied(LLAMA, rope_parameters={"rope_type": "yarn"}), {}, "yarn(.|\n)*one of those types"),
        (GPT2, {"layer": 2}, r"layer from 0 to 1(.|\n)*layer=1"),
        (GPT2, {"dtype": "int8"}, "float64"),
        (varied(GPT2, add_cross_attention=True), {}, "cross-attention"),
    ],
)
def test_a_model_that_cannot_host_is_refused_with_what_it_lacks(config: Any, options: Any, words: str) -> None:
    with pytest.raises(CompileError, match=words):
        host_in(head(), Identity(3), config, **options)


def test_all_sizes_that_are_too_small_are_named_at_once() -> None:
    config = varied(GPT2, hidden_size=8, num_attention_heads=4)
    with pytest.raises(CompileError) as caught:
        host_in(head(), Identity(3), config)
    assert "stream" in caught.value.expected
    assert "dims in a head" in caught.value.expected


def test_points_outside_the_ball_and_charts_without_a_radius_are_refused() -> None:
    hosted = host_in(head(), Identity(3), GPT2)
    with pytest.raises(CompileError, match="norm at most 1"):
        hosted.embed(np.full((1, 3), 0.7))
    with pytest.raises(CompileError, match="radius"):
        host_in(head(), replace(Identity(3), name="other"), GPT2)


# Smaller values are looked for where the queries tell of the whole domain


def overlapping(positions: int, domain: Domain) -> CompiledFunction:
    """Keys in a plane that overlap, and values that cancel."""
    rng = np.random.default_rng(positions)
    centres = rng.uniform(-1.0, 1.0, size=(positions, 2))
    values = 10.0 * rng.uniform(-1.0, 1.0, size=(positions, 1))
    made = Head(3.0 * centres, -1.5 * np.square(centres).sum(axis=1), values)
    return CompiledFunction(made, Flat((0.0, 0.0), (1.0, 1.0)), domain, None, {}, "drawn", None, None, ())


SQUARE = Cube([(-1, 1), (-1, 1)])
TABLE = FiniteSet(np.random.default_rng(9).uniform(-1.0, 1.0, size=(80, 2)))


@pytest.mark.parametrize(
    ("positions", "domain", "is_replaced"),
    [(60, SQUARE, True), (501, SQUARE, False), (10_000, SQUARE, False), (60, TABLE, True)],
)
def test_values_are_replaced_where_what_that_changes_is_seen(positions: int, domain: Domain, is_replaced: bool) -> None:
    """In a square few queries for a key leave other values open between them; a table's points are all there is."""
    compiled = overlapping(positions, domain)
    hosted = compiled.host_in(LLAMA, dtype="bfloat16")
    kept = host_in(compiled.head, compiled.chart, LLAMA, dtype="bfloat16")
    assert (hosted.prefix != kept.prefix) is is_replaced
    assert (hosted.terms["damping"] > 0) is is_replaced
