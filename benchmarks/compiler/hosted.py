"""How far is a compiled prefix in an unmodified GPT-2 or Llama class from the float64 reference, in each dtype?

Every target is compiled to the length that the aims name for its domain and hosted in models of several sizes: with no
head to spare, with one, and with GPT-2 small's twelve or a Llama's four. Differences are the largest over 1,200 points
that the compiler has not seen, 8 rows of 150 tokens. Each line of results/hosted.jsonl is one target with the record
of the run.

    .venv/bin/python benchmarks/compiler/hosted.py
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import foreword as fw
from foreword.compiler.compiled import CompiledFunction
from foreword.compiler.domain import Cube, Sphere
from foreword.engine.attach import attached
from foreword.engine.hosted import host_from_arrays, residual_stream
from foreword.record import Stopwatch, command_line

RESULTS = Path(__file__).resolve().parent / "results" / "hosted.jsonl"
ROWS, TOKENS = 8, 150
SQUARE = Cube([(-1, 1)] * 2)
TARGETS: list[tuple[str, Sphere | Cube, int]] = [
    ("sin(2*x - y)", Sphere(1), 24),
    ("exp(sin(4*x) + y) / 7", Sphere(1), 24),
    ("1 / (2 + x - y)", Sphere(1), 24),
    ("sin(3*x + y) * exp(z) / 2", Sphere(2), 128),
    ("cos(4*x*y) - z / 2", Sphere(2), 128),
    ("1 / (1 + 4*(x - 0.3)**2 + z**2)", Sphere(2), 128),
    ("sin(3*x) * exp(-y**2)", SQUARE, 144),
    ("(x**2 - y**2 + x*y) / 1.25", SQUARE, 144),
    ("sin(4*x + 1) * cos(3*y)", SQUARE, 144),
    ("tanh(3*x + 2*y)", SQUARE, 144),
]
NO_TOKENS = {"vocab_size": 8, "bos_token_id": 0, "eos_token_id": 0}


def _gpt2(width: int, heads: int) -> Any:
    return transformers.GPT2Config(n_embd=width, n_head=heads, n_layer=1, n_positions=2048, **NO_TOKENS)


def _llama(width: int, heads: int, kv_heads: int) -> Any:
    return transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=1,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        **NO_TOKENS,
    )


MODELS = {
    "gpt2, 1 head": _gpt2(64, 1),
    "gpt2, 2 heads": _gpt2(64, 2),
    "gpt2 small": _gpt2(768, 12),
    "llama, 16 heads on 4": _llama(1024, 16, 4),
}


def difference(compiled: CompiledFunction, config: Any, dtype: str) -> float:
    """The largest distance from `compiled.evaluate` over points that are drawn anew."""
    points = compiled.domain.sample(ROWS * TOKENS, np.random.default_rng(5))
    hosted = compiled.host_in(config, dtype=dtype)
    host = host_from_arrays(config, hosted.arrays)
    embeddings = hosted.embed(points.reshape(ROWS, TOKENS, -1))
    options = {}
    if config.model_type == "llama":
        options["position_ids"] = torch.zeros(ROWS, TOKENS, dtype=torch.long)
    with attached(host, hosted.prefix):
        found = hosted.read(residual_stream(host, embeddings, **options))
    return float(np.abs(found.reshape(len(points), -1) - compiled.evaluate(points)).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for text, domain, positions in TARGETS:
        watch = Stopwatch(command_line())
        compiled = fw.compile_function(text, domain=domain, positions=positions)
        found = {
            name: {dtype: difference(compiled, config, dtype) for dtype in ("float64", "float32", "bfloat16")}
            for name, config in MODELS.items()
        }
        largest = float(np.abs(compiled.values).max())
        told = "; ".join(f"{name} {', '.join(f'{one:.1e}' for one in each.values())}" for name, each in found.items())
        print(f"{text}: values up to {largest:.1f}; {told}", flush=True)
        line = {"target": text, "positions": positions, "largest_value": largest, "found": found}
        lines.append({**line, "record": asdict(watch.record({"seed": 0}))})
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
