"""What does a shared prefix cost at run time, against PEFT prefix tuning and the bare model?

All three run in one process, interleaved round by round on the same tokens; the bare model is the floor. Figures are
medians of the rounds' times and, for the ratios, of the rounds' ratios. Models are built from configurations with
random weights (speed does not depend on their values); nothing is downloaded.

    .venv/bin/python benchmarks/engine/run.py --model gpt2 --prefix 1024 --batch 32 --what decode
    .venv/bin/python benchmarks/engine/run.py --grid            # the whole grid, as in results/

Each cell is one line of JSON with the record of the run, appended to results/cells.jsonl.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.prefix import Prefix
from foreword.record import Stopwatch, command_line

RESULTS = Path(__file__).resolve().parent / "results" / "cells.jsonl"
CONTEXT, STEPS = 32, 8
GRID = [
    (model, what, prefix, batch)
    for model in ("gpt2", "llama")
    for what, cells in (
        ("decode", [(16, 1), (128, 1), (1024, 1), (1024, 8), (1024, 32), (4096, 8), (4096, 32)]),
        ("prefill", [(16, 1), (128, 8), (1024, 8), (4096, 32)]),
        ("many", [(256, 32), (1024, 32), (4096, 32)]),
        ("fit", [(16, 8), (128, 8), (1024, 8)]),
    )
    for prefix, batch in cells
]


def build(name: str) -> Any:
    """GPT-2 small's shape, or a Llama-like model with grouped keys; dropout off.

    `llama` is narrow (width 1024), so reading a long prefix weighs much beside its layers; `llama-wide` has the layers
    of Llama 3.2 1B (width 2048, 32 heads, 8 key heads), four of them.
    """
    import transformers

    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, n_positions=8192)
        return transformers.GPT2LMHeadModel(config)
    narrow = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
    wide = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4}
    config = transformers.LlamaConfig(
        **(wide if name == "llama-wide" else narrow),
        vocab_size=32000,
        num_attention_heads=32 if name == "llama-wide" else 16,
        num_key_value_heads=8 if name == "llama-wide" else 4,
        max_position_embeddings=16384,
    )
    return transformers.LlamaForCausalLM(config)


class Rivals:
    """The same prefix by ours and by PEFT, and the bare model."""

    def __init__(self, model: str, prefix: int, *, only: str | None = None) -> None:
        import peft

        self.host = Host(build(model))
        drawn = Prefix.random(self.host, positions=prefix, seed=0, scale=0.5)
        self.prefix = Prefix(drawn.layers, occupies=prefix)
        self.length = prefix
        self.host.resident(self.prefix)
        if only in ("bare", "ours"):
            return
        self.peft = peft.get_peft_model(
            build(model), peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prefix)
        ).eval()
        flat = [
            part.transpose(1, 0, 2).reshape(prefix, -1)
            for layer in self.prefix.layers
            for part in (layer.keys, layer.values)
        ]
        encoder = self.peft.prompt_encoder["default"]
        encoder.load_prompt_embeddings(torch.from_numpy(numpy.concatenate(flat, axis=1)))
        if only == "peft":
            del self.host

    def decode(self, batch: int) -> dict[str, Callable[[], float]]:
        """Seconds for STEPS cached steps after a prompt of CONTEXT tokens."""
        ids = torch.randint(10, 1000, (batch, CONTEXT), generator=torch.Generator().manual_seed(1))
        token = ids[:, :1]

        def steps(model: Any, past: Any, extra: int) -> float:
            started = time.perf_counter()
            for step in range(STEPS):
                mask = torch.ones(batch, extra + CONTEXT + step + 1, dtype=torch.long)
                past = model(input_ids=token, attention_mask=mask, past_key_values=past, use_cache=True).past_key_values
            return time.perf_counter() - started

        def bare() -> float:
            past = self.host.model(input_ids=ids, use_cache=True).past_key_values
            return steps(self.host.model, past, 0)

        def ours() -> float:
            with attached(self.host, self.prefix):
                past = self.host.model(input_ids=ids, use_cache=True).past_key_values
                return steps(self.host.model, past, 0)

        def rival() -> float:
            found = self.peft(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
            return steps(self.peft.base_model, found.past_key_values, self.length)

        return {"bare": bare, "peft": rival, "ours": ours}

    def many(self, batch: int) -> dict[str, Callable[[], float]]:
        """Seconds for STEPS cached steps: 16 prefixes in one batch, and one shared prefix as long as all together."""
        ids = torch.randint(10, 1000, (batch, CONTEXT), generator=torch.Generator().manual_seed(1))
        each = self.length // 16
        drawn = [Prefix.random(self.host, positions=each, seed=seed, scale=0.5) for seed in range(16)]
        several = [Prefix(found.layers, occupies=each) for found in drawn]

        def steps(prefixes: list[Prefix]) -> float:
            with attached(self.host, prefixes, rows=[row % len(prefixes) for row in range(batch)]):
                past = self.host.model(input_ids=ids, use_cache=True).past_key_values
                started = time.perf_counter()
                for step in range(STEPS):
                    mask = torch.ones(batch, CONTEXT + step + 1, dtype=torch.long)
                    found = self.host.model(
                        input_ids=ids[:, :1], attention_mask=mask, past_key_values=past, use_cache=True
                    )
                    past = found.past_key_values
                return time.perf_counter() - started

        return {"one": lambda: steps([self.prefix]), "ours": lambda: steps(several)}

    def prefill(self, batch: int) -> dict[str, Callable[[], float]]:
        """Seconds to read a prompt of CONTEXT tokens."""
        ids = torch.randint(10, 1000, (batch, CONTEXT), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)

        def timed(run: Callable[[], Any]) -> float:
            started = time.perf_counter()
            run()
            return time.perf_counter() - started

        def ours() -> float:
            with attached(self.host, self.prefix):
                return timed(lambda: self.host.model(input_ids=ids, attention_mask=mask))

        return {
            "bare": lambda: timed(lambda: self.host.model(input_ids=ids, attention_mask=mask)),
            "peft": lambda: timed(lambda: self.peft(input_ids=ids, attention_mask=mask)),
            "ours": ours,
        }

    def fit(self, batch: int) -> dict[str, Callable[[], float]]:
        """Seconds for forward and backward pass with gradients on the prefix alone."""
        ids = torch.randint(10, 1000, (batch, CONTEXT), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        live = {
            site: type(found)(found.keys.clone().requires_grad_(), found.values.clone().requires_grad_())
            for site, found in self.host.resident(self.prefix).items()
        }

        def loss(logits: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy(logits[:, -CONTEXT:-1].flatten(0, 1), ids[:, 1:].flatten())

        def ours() -> float:
            started = time.perf_counter()
            with attached(self.host, live):
                found = self.host.model(input_ids=ids, attention_mask=mask, use_cache=False)
                torch.autograd.backward(loss(found.logits))
            return time.perf_counter() - started

        def rival() -> float:
            started = time.perf_counter()
            torch.autograd.backward(loss(self.peft(input_ids=ids, attention_mask=mask).logits))
            return time.perf_counter() - started

        return {"peft": rival, "ours": ours}


def measure(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Median seconds of each, and the median of the rounds' ratios to ours."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):  # the first round warms up
        for name, run in runs.items():
            seconds = run()
            if number:
                times[name].append(seconds)
    ratios = {
        f"{name}/ours": statistics.median(a / b for a, b in zip(found, times["ours"], strict=True))
        for name, found in times.items()
        if name != "ours"
    }
    return {"seconds": {name: statistics.median(found) for name, found in times.items()}, **ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", action="store_true")
    parser.add_argument("--model", choices=("gpt2", "llama", "llama-wide"), default="gpt2")
    parser.add_argument("--what", choices=("decode", "many", "prefill", "fit"), default="decode")
    parser.add_argument("--prefix", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    cells = GRID if chosen.grid else [(chosen.model, chosen.what, chosen.prefix, chosen.batch)]
    for model, what, prefix, batch in cells:
        watch = Stopwatch(command_line())
        rivals = Rivals(model, prefix)
        with torch.set_grad_enabled(what == "fit"):
            found = measure(getattr(rivals, what)(batch), chosen.rounds)
        line = {"model": model, "what": what, "prefix": prefix, "batch": batch, **found}
        shown = ", ".join(f"{name} {value:.2f}" for name, value in found.items() if name != "seconds")
        print(f"{model} {what} prefix {prefix} batch {batch}: {shown}  {found['seconds']}", flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "record": watch.record().as_dict()}) + "\n")


if __name__ == "__main__":
    main()
