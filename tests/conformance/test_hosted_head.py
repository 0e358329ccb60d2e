"""A compiled head in transformers' own GPT-2 and Llama classes, through the engine, against the float64 reference.

The heads are the usual kind: keys on a net of the sphere, values by least squares to a smooth target.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from foreword.compiler.charts import Flat, Paraboloid
from foreword.compiler.compiled import CompiledFunction
from foreword.compiler.domain import Cube
from foreword.compiler.head import Head
from foreword.compiler.hosting import Hosted, host_in
from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.engine.hosted import host_from_arrays, residual_stream
from foreword.engine.tensors import to_array, to_tensor
from foreword.errors import HostError

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Chart:
    name: str
    width: int

    def __call__(self, points: Any) -> Any:
        return points


SPHERE = Chart("identity", 3)


def gpt2(**options: Any) -> Any:
    shape = {"vocab_size": 8, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 2048}
    return transformers.GPT2Config(**{**shape, "bos_token_id": 0, "eos_token_id": 0, **options})


def llama(**options: Any) -> Any:
    shape = {
        "vocab_size": 8,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "intermediate_size": 8,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    return transformers.LlamaConfig(**{**shape, **options})


CONFIGS = {"gpt2": gpt2, "llama": llama}
LONE = {"num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 64}


def sphere(count: int, columns: int = 3, seed: int = 1) -> Any:
    points = np.random.default_rng(seed).normal(size=(count, columns))
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def targets(points: Any) -> Any:
    """Two smooth functions, largest size about 1."""
    return np.stack([0.5 * np.sin(3 * points[:, 0]) + 0.5 * points[:, -1], np.cos(2 * points[:, 1])], axis=1)


def solved(keys: Any, biases: Any, queries: Any, wanted: Any) -> Head:
    weights = Head(keys, biases, np.eye(len(keys))).weights(queries)
    return Head(keys, biases, np.linalg.lstsq(weights, wanted, rcond=1e-6)[0])


@pytest.fixture(scope="module")
def head() -> Head:
    """Two outputs on the sphere, 96 positions, values below 10."""
    turns = np.arange(96) + 0.5
    height, angle = 1 - 2 * turns / 96, np.pi * (1 + 5**0.5) * turns
    ring = np.sqrt(1 - height**2)
    net = np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    points = sphere(3000, seed=2)
    found = solved(5.0 * net, np.zeros(96), points, targets(points))
    assert np.abs(found.values).max() < 10
    assert np.abs(found.evaluate(sphere(2000)) - targets(sphere(2000))).max() < 1e-3
    return found


def stream_of(host: Host, hosted: Hosted, points: Any, *, natural: bool = False, **options: Any) -> Any:
    """The outputs that are read from the residual stream, `(batch, token, output)`."""
    embeddings = hosted.embed(points)
    if hosted.frozen.sizes.family == "llama" and not natural:
        options["position_ids"] = torch.zeros(embeddings.shape[:2], dtype=torch.long)
    with attached(host, hosted.prefix):
        return hosted.read(residual_stream(host, embeddings, **options))


def gap(
    head: Head, config: Any, *, natural: bool = False, chart: Chart = SPHERE, **options: Any
) -> tuple[float, Hosted]:
    """Largest difference from the reference over two rows of 150 tokens."""
    hosted = host_in(head, chart, config, **options)
    points = sphere(300, chart.width, seed=3)
    wanted = head.evaluate(points).reshape(2, 150, -1)
    host = host_from_arrays(config, hosted.arrays)
    found = stream_of(host, hosted, points.reshape(2, 150, -1), natural=natural)
    return float(np.abs(found - wanted).max()), hosted


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("dtype", "allowed"), [("float64", 1e-12), ("float32", 1e-5), ("bfloat16", 5e-3)])
def test_the_stream_holds_the_reference(head: Head, family: str, dtype: str, allowed: float) -> None:
    difference, hosted = gap(head, CONFIGS[family](), dtype=dtype)
    assert difference <= allowed
    assert difference <= hosted.terms["rounding"] + hosted.context_term(150)


@pytest.mark.parametrize("family", CONFIGS)
def test_rounding_to_bfloat16_that_all_goes_one_way_is_within_the_term(family: str) -> None:
    """Equal values just above 1 and equal weights: what one weight is rounded by is not averaged out."""
    rng = np.random.default_rng(0)
    config = gpt2(n_head=1, n_positions=64) if family == "gpt2" else llama(**LONE)
    host, points = None, sphere(60, 2, seed=4)
    for _ in range(60):
        count, value = int(rng.integers(2, 60)), float(rng.uniform(1.0, 1.03))
        keys, biases = np.zeros((count, 2)), np.zeros(count)
        keys[0, 0], biases[0] = 0.3 * rng.random(), 1.5 * rng.random()
        flat = Head(keys, biases, np.full((count, 1), value))
        hosted = host_in(flat, Chart("identity", 2), config, dtype="bfloat16")
        host = host or host_from_arrays(config, hosted.arrays)
        found = stream_of(host, hosted, points[None])[0]
        assert np.abs(found - flat.evaluate(points)).max() <= hosted.terms["rounding"] + hosted.context_term(60)


def test_heads_to_spare_take_the_rounding_to_bfloat16_down(head: Head) -> None:
    """Behind values of 10 twelve copies, in twelve heads, lose less than half of what one head loses."""
    signs = np.random.default_rng(0).choice([-10.0, 10.0], size=head.values.shape)
    loud = Head(head.keys, head.biases, signs)
    alone, one = gap(loud, gpt2(n_head=1), dtype="bfloat16")
    together, twelve = gap(loud, gpt2(n_embd=192, n_head=12), dtype="bfloat16")
    assert (one.frozen.copies, twelve.frozen.copies) == (1, 12)
    assert together <= alone / 2


@pytest.mark.slow
def test_values_that_cancel_are_replaced_by_small_ones_at_other_keys() -> None:
    """x y from 36 wide Gaussians takes values of 15, whose rounded weights do not cancel in a model of one head."""
    square = Cube([(-1, 1)] * 2)
    centres = np.stack(np.meshgrid(*[np.linspace(-1.1, 1.1, 6)] * 2), axis=-1).reshape(-1, 2)
    keys, biases = 1.6 * centres, -0.8 * np.square(centres).sum(axis=1)
    points = square.sample(1200, np.random.default_rng(5))
    wide = solved(keys, biases, points, points.prod(axis=1, keepdims=True))
    compiled = CompiledFunction(wide, Flat((0.0, 0.0), (1.0, 1.0)), square, None, {}, "by hand", None, None, ())
    config, gaps = gpt2(n_head=1), []
    kept, small = host_in(wide, compiled.chart, config, dtype="bfloat16"), compiled.host_in(config, dtype="bfloat16")
    for hosted in (kept, small):
        found = stream_of(host_from_arrays(config, hosted.arrays), hosted, points[None, :400])[0]
        gaps.append(np.abs(found - wide.evaluate(points[:400])).max())
    assert small.prefix.positions == wide.positions
    assert gaps[1] <= min(4e-3, gaps[0] / 2)


@pytest.mark.parametrize("family", CONFIGS)
def test_what_a_norm_leaves_of_the_context_is_counted_beside_tiny_values(head: Head, family: str) -> None:
    tiny = Head(head.keys, head.biases, 1e-100 * head.values)
    difference, hosted = gap(tiny, CONFIGS[family]())
    assert difference <= hosted.terms["rounding"] + hosted.context_term(150)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_any_layer_and_either_attention_hosts(head: Head, family: str, layer: int, attention: str) -> None:
    config = CONFIGS[family](attn_implementation=attention)
    # transformers' eager Llama computes the softmax in float32: relative error 2^-24 in each weight, times |v| < 10.
    allowed = 10 * 2.0**-23 if (family, attention) == ("llama", "eager") else 1e-12
    assert gap(head, config, layer=layer)[0] <= allowed


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_what_eager_attention_rounds_is_in_the_term(family: str, dtype: str) -> None:
    """A Llama's softmax in float32, and scores in bfloat16, which may be hundreds."""
    rng = np.random.default_rng(0)
    for scale in (1.0, 100.0):
        drawn = Head(scale * rng.normal(size=(9, 3)), rng.normal(size=9), rng.normal(size=(9, 1)))
        difference, hosted = gap(drawn, CONFIGS[family](attn_implementation="eager"), dtype=dtype)
        assert difference <= hosted.terms["rounding"] + hosted.context_term(150)


@pytest.mark.parametrize("family", CONFIGS)
def test_two_thousand_context_tokens_change_nothing(head: Head, family: str) -> None:
    config = CONFIGS[family]()
    hosted = host_in(head, SPHERE, config)
    host = host_from_arrays(config, hosted.arrays)
    tokens = sphere(2001, seed=4)[None]
    alone = stream_of(host, hosted, tokens[:, -1:])[0, 0]
    within = stream_of(host, hosted, tokens)[0, -1]
    assert hosted.context_term(2000) < 1e-10
    # 2^-53 beside it: each result is rounded on its own.
    assert np.abs(alone - within).max() <= hosted.context_term(2000) + hosted.terms["rounding"]
    assert np.abs(alone - within).max() < 1e-10


@pytest.mark.parametrize("family", CONFIGS)
def test_tokens_that_see_each_other_both_ways_get_the_same(head: Head, family: str) -> None:
    config = CONFIGS[family]()
    hosted = host_in(head, SPHERE, config)
    host = host_from_arrays(config, hosted.arrays)
    points = sphere(40, seed=5).reshape(2, 20, 3)
    causal = stream_of(host, hosted, points)
    both = stream_of(host, hosted, points, attention_mask=torch.zeros(2, 1, 20, 20, dtype=torch.float64))
    assert np.abs(causal - both).max() <= 1e-12


@pytest.mark.parametrize(("family", "allowed"), [("gpt2", 1e-12), ("llama", 1e-6)])
def test_outputs_are_read_exactly_through_the_final_norm(head: Head, family: str, allowed: float) -> None:
    config = CONFIGS[family]()
    hosted = host_in(head, SPHERE, config)
    host = host_from_arrays(config, hosted.arrays)
    points = sphere(50, seed=6)
    options = {} if family == "gpt2" else {"position_ids": torch.zeros(1, 50, dtype=torch.long)}
    with torch.no_grad(), attached(host, hosted.prefix):
        states = host.model(inputs_embeds=to_tensor(hosted.embed(points)), **options).last_hidden_state
    # Llama's norm computes in float32: 2^-24 for the output, as much for the coordinate it is divided by.
    assert np.abs(hosted.read(to_array(states))[0] - head.evaluate(points)).max() <= allowed


@pytest.mark.parametrize(
    ("rotation", "allowed"),
    [
        ({"rope_type": "linear", "rope_theta": 1e4, "factor": 1e9}, 1e-12),
        ({"rope_type": "default", "rope_theta": 5e5}, 1e-6),
        ({"rope_type": "default", "rope_theta": 1e30}, 1e-12),
        ({"rope_type": "dynamic", "rope_theta": 5e5, "factor": 4.0}, 1e-6),
        (
            {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
            1e-6,
        ),
    ],
)
def test_natural_positions_hold_where_the_configuration_turns_slowly(head: Head, rotation: Any, allowed: float) -> None:
    difference, hosted = gap(head, llama(rope_parameters=rotation), natural=True)
    assert difference <= allowed
    assert difference <= hosted.terms["rotation"] + hosted.terms["rounding"]


def test_natural_positions_that_cannot_be_cancelled_are_stated(head: Head) -> None:
    config = llama(rope_parameters={"rope_type": "default", "rope_theta": 1e4}, head_dim=8, num_attention_heads=2)
    difference, hosted = gap(head, config, natural=True)
    assert 1e-6 < difference <= hosted.terms["rotation"]
    assert gap(head, config)[0] <= 1e-12


@pytest.mark.parametrize("family", CONFIGS)
def test_a_cube_with_more_outputs_than_a_head_has_dims(family: str) -> None:
    """Six outputs in heads of four dims: two heads carry them; queries have many norms."""
    rng = np.random.default_rng(0)
    axis = np.linspace(-1.2, 1.2, 7)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    queries = rng.uniform(-1, 1, size=(1000, 2))
    wanted = np.stack([np.sin(k * queries[:, 0] + queries[:, 1]) for k in range(6)], axis=1)
    head = solved(4.0 * grid, -2.0 * np.square(grid).sum(axis=1), queries, wanted)
    config = gpt2(n_embd=32, n_head=8) if family == "gpt2" else llama(head_dim=8, num_key_value_heads=4)
    hosted = host_in(head, Chart("flat", 2), config)
    if family == "gpt2":
        assert hosted.frozen.used_heads == 2
    host = host_from_arrays(config, hosted.arrays)
    found = stream_of(host, hosted, queries[:200])
    assert np.abs(found[0] - head.evaluate(queries[:200])).max() <= hosted.terms["rounding"]
    assert np.abs(found[0] - head.evaluate(queries[:200])).max() <= 1e-11 * np.abs(head.values).max()


@pytest.mark.parametrize("family", CONFIGS)
def test_a_prefix_that_grew_over_a_paraboloid(family: str) -> None:
    """Keys of three coordinates for points of a square: the third is a square of the others."""
    rng, chart = np.random.default_rng(0), Paraboloid.of(Flat((1.0, 0.0), (2.0, 1.0)))
    points = rng.uniform((-1.0, -1.0), (3.0, 1.0), size=(300, 2))
    centres = chart(rng.uniform((-1.0, -1.0), (3.0, 1.0), size=(40, 2)))
    keys = 6.0 * np.concatenate([centres[:, :2], np.full((40, 1), -0.5)], axis=1)
    head = solved(keys, -(keys * centres).sum(axis=1), chart(points), np.cos(points))
    config = CONFIGS[family]()
    hosted = host_in(head, chart, config)
    host = host_from_arrays(config, hosted.arrays)
    found = stream_of(host, hosted, points)
    assert np.abs(found[0] - head.evaluate(chart(points))).max() <= hosted.terms["rounding"]


def test_a_query_longer_than_the_radius_is_scaled_onto_the_sphere_by_the_norm(head: Head) -> None:
    """Doubling a GPT-2 token (completion and balance with it) changes nothing: the norm puts it back."""
    config = gpt2()
    hosted = host_in(head, SPHERE, config)
    host = host_from_arrays(config, hosted.arrays)
    points = sphere(30, seed=7)
    with attached(host, hosted.prefix):
        stream = residual_stream(host, 2.0 * hosted.embed(points))
    block = stream[0, :, hosted.frozen.output : hosted.frozen.output + 2]
    # LayerNorm's epsilon (1e-5 of a variance of about 1, less of four times that) moves the scale by 4e-6 at most.
    assert np.abs(block - head.evaluate(points)).max() < 1e-3


def test_arrays_that_are_not_the_models_weights_are_refused(head: Head) -> None:
    hosted = host_in(head, SPHERE, gpt2())
    with pytest.raises(HostError, match="not the weights of GPT2Model"):
        host_from_arrays(gpt2(n_layer=1), hosted.arrays)
    with pytest.raises(HostError, match="several dtypes"):
        host_from_arrays(gpt2(), {"a": np.zeros(1), "b": np.zeros(1, dtype=np.float32)})
