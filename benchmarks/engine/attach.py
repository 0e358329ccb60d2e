"""How long does it take to attach a resident prefix, to leave it, and to attach another one instead?

Two prefixes are resident; each entry attaches the other one than the entry before, so every entry is a switch. Figures
are milliseconds, medians and 95th percentiles over 200 entries. No forward pass is run. Models are built from
configurations with random weights; only the number and kind of their modules matters here.

    .venv/bin/python benchmarks/engine/attach.py

Each model is one line of JSON with the record of the run, appended to results/attach.jsonl.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.prefix import Prefix
from foreword.record import Stopwatch, command_line

RESULTS = Path(__file__).resolve().parent / "results" / "attach.jsonl"
ENTRIES, WARM_UP = 200, 20
NAMES = ("gpt2, 12 layers", "llama, 32 layers", "bloom, 24 layers")


def build(name: str) -> Any:
    """GPT-2 small; a deep and narrow Llama; a family whose modules are watched."""
    import transformers

    if name.startswith("gpt2"):
        return transformers.GPT2LMHeadModel(transformers.GPT2Config())
    if name.startswith("llama"):
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=1000, num_hidden_layers=32, **sizes))
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=1000, hidden_size=64, n_layer=24, n_head=4)
    )


def measure(host: Host) -> dict[str, float]:
    """Milliseconds to enter, and to enter and leave."""
    prefixes = [Prefix.random(host, positions=16, seed=seed) for seed in (0, 1)]
    enter, both = [], []
    for number in range(WARM_UP + ENTRIES):
        started = time.perf_counter()
        with attached(host, prefixes[number % 2]):
            inside = time.perf_counter()
        left = time.perf_counter()
        if number >= WARM_UP:
            enter.append(1e3 * (inside - started))
            both.append(1e3 * (left - started))
    return {
        "enter_ms": statistics.median(enter),
        "enter_and_leave_ms": statistics.median(both),
        "enter_and_leave_p95_ms": statistics.quantiles(both, n=20)[-1],
    }


def main() -> None:
    for name in NAMES:
        watch = Stopwatch(command_line())
        found = measure(Host(build(name)))
        print(name, {figure: round(value, 3) for figure, value in found.items()}, flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"model": name, **found, "record": watch.record().as_dict()}) + "\n")


if __name__ == "__main__":
    main()
