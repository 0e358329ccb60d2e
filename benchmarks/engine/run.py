"""What does a shared prefix cost at run time, against PEFT prefix tuning and the bare model?

All three run in one process, interleaved round by round on the same tokens; the bare model is the floor. Figures are
medians of the rounds' times and, for the ratios, of the rounds' ratios. Models are built from configurations with
random weights (speed does not depend on their values); nothing is downloaded.

    .venv/bin/python benchmarks/engine/run.py --model gpt2 --prefix 1024 --batch 32 --what decode
    .venv/bin/python benchmarks/engine/run.py --grid            # the whole grid, as in results/

Each cell is one line of JSON with the record of the run, appended to results/cells.jsonl; a grid that was interrupted
goes on where it stopped (cells measured at this commit are not measured again). PEFT copies the prefix for every row,
and once more when its cache grows: where that needs more memory than there is, the cell says so and has no ratio to it.
The same commands run on a GPU where torch sees one (`--device`).
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
import psutil
import torch
from torch import Tensor

from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.engine.merge import FusedCall, Share, fused
from foreword.prefix import Prefix
from foreword.record import Stopwatch, checkout_state, command_line

RESULTS = Path(__file__).resolve().parent / "results" / "cells.jsonl"
CONTEXT, STEPS = 32, 8
# Width, inner width, layers, query heads, key heads.
LLAMAS = {
    "llama-small": (768, 2048, 12, 12, 4),
    "llama": (1024, 2816, 8, 16, 4),
    "llama-wide": (2048, 8192, 4, 32, 8),
}
MODELS = ("gpt2", *LLAMAS)
BATCHES = {"gpt2": (1, 8, 32, 64), "llama-small": (1, 8, 32, 64), "llama": (1, 32), "llama-wide": (1, 32)}
GRID = [
    (model, what, prefix, batch)
    for model in MODELS
    for what, cells in (
        ("decode", [(prefix, batch) for prefix in (16, 128, 1024, 4096) for batch in BATCHES[model]]),
        ("prefill", [(16, 1), (128, 8), (1024, 8), (4096, 32)]),
        ("read", [(1024, 32), (4096, 32)]),
        ("many", [(256, 32), (1024, 32), (4096, 32)]),
        ("fit", [(16, 8), (128, 8), (1024, 8)]),
    )
    for prefix, batch in cells
]


def build(name: str) -> Any:
    """GPT-2 small's shape, or a Llama-like model with grouped keys; dropout off.

    `llama-small` has GPT-2 small's width, layers and heads (12 query heads on 4 key heads); `llama` is wider (1024) and
    has fewer layers; `llama-wide` has the layers of Llama 3.2 1B (width 2048, 32 heads on 8), four of them.
    """
    import transformers

    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, n_positions=8192)
        return transformers.GPT2LMHeadModel(config)
    width, inner, layers, heads, kv_heads = LLAMAS[name]
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=32000,
        max_position_embeddings=16384,
    )
    return transformers.LlamaForCausalLM(config)


class Rivals:
    """The same prefix by ours and by PEFT, and the bare model."""

    def __init__(self, model: str, prefix: int, *, only: str | None = None, device: str = "cpu") -> None:
        import peft

        self.device = torch.device(device)
        self.host = Host(build(model).to(self.device))
        drawn = Prefix.random(self.host, positions=prefix, seed=0, scale=0.5)
        self.prefix = Prefix(drawn.layers, occupies=prefix)
        self.length = prefix
        self.host.resident(self.prefix)
        if only in ("bare", "ours"):
            return
        same = build(model).to(self.device)
        # The same numbers at the same addresses: where weights lie in memory alone makes some percent.
        same.load_state_dict(self.host.model.state_dict(), assign=True)
        self.peft = peft.get_peft_model(
            same, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=prefix)
        ).eval()
        flat = [
            part.transpose(1, 0, 2).reshape(prefix, -1)
            for layer in self.prefix.layers
            for part in (layer.keys, layer.values)
        ]
        encoder = self.peft.prompt_encoder["default"]
        encoder.load_prompt_embeddings(torch.from_numpy(numpy.concatenate(flat, axis=1)).to(self.device))

    def ids(self, batch: int) -> Tensor:
        """A prompt of CONTEXT tokens for each row."""
        drawn = torch.randint(10, 1000, (batch, CONTEXT), generator=torch.Generator().manual_seed(1))
        return drawn.to(self.device)

    def timed(self, run: Callable[[], Any]) -> float:
        """Seconds of a run, with what it has left the device to do."""
        self.wait()
        started = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - started

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def steps(self, model: Any, past: Any, token: Tensor, before: int) -> float:
        """Seconds for STEPS cached steps, with `before` positions in front of the prompt in the cache."""

        def run(past: Any = past) -> None:
            for step in range(STEPS):
                mask = torch.ones(len(token), before + CONTEXT + step + 1, dtype=torch.long, device=self.device)
                found = model(input_ids=token, attention_mask=mask, past_key_values=past, use_cache=True)
                past = found.past_key_values

        return self.timed(run)

    def decode(self, batch: int) -> dict[str, Callable[[], float]]:
        """Seconds for STEPS cached steps after a prompt of CONTEXT tokens, of which only the last is scored."""
        ids = self.ids(batch)
        token = ids[:, :1]

        def bare() -> float:
            past = self.host.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
            return self.steps(self.host.model, past, token, 0)

        def ours() -> float:
            with attached(self.host, self.prefix):
                past = self.host.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
                return self.steps(self.host.model, past, token, 0)

        def rival() -> float:
            found = self.peft(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True, logits_to_keep=1)
            return self.steps(self.peft.base_model, found.past_key_values, token, self.length)

        return {"bare": bare, "peft": rival, "ours": ours}

    def many(self, batch: int) -> dict[str, Callable[[], float]]:
        """Seconds for STEPS cached steps: 16 prefixes in one batch, and one shared prefix as long as all together."""
        ids = self.ids(batch)
        each = self.length // 16
        drawn = [Prefix.random(self.host, positions=each, seed=seed, scale=0.5) for seed in range(16)]
        several = [Prefix(found.layers, occupies=each) for found in drawn]

        def run(prefixes: list[Prefix]) -> float:
            with attached(self.host, prefixes, rows=[row % len(prefixes) for row in range(batch)]):
                past = self.host.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
                return self.steps(self.host.model, past, ids[:, :1], 0)

        return {"one": lambda: run([self.prefix]), "ours": lambda: run(several)}

    def prefill(self, batch: int) -> dict[str, Callable[[], float]]:
        """Seconds to read a prompt of CONTEXT tokens."""
        ids = self.ids(batch)
        mask = torch.ones_like(ids)

        def ours() -> float:
            with attached(self.host, self.prefix):
                return self.timed(lambda: self.host.model(input_ids=ids, attention_mask=mask))

        return {
            "bare": lambda: self.timed(lambda: self.host.model(input_ids=ids, attention_mask=mask)),
            "peft": lambda: self.timed(lambda: self.peft(input_ids=ids, attention_mask=mask)),
            "ours": ours,
        }

    def fit(self, batch: int) -> dict[str, Callable[[], float]]:
        """Seconds for forward and backward pass with gradients on the prefix alone."""
        ids = self.ids(batch)
        mask = torch.ones_like(ids)
        live = {
            site: type(found)(found.keys.clone().requires_grad_(), found.values.clone().requires_grad_())
            for site, found in self.host.resident(self.prefix).items()
        }

        def loss(logits: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy(logits[:, -CONTEXT:-1].flatten(0, 1), ids[:, 1:].flatten())

        def ours() -> None:
            with attached(self.host, live):
                found = self.host.model(input_ids=ids, attention_mask=mask, use_cache=False)
                torch.autograd.backward(loss(found.logits))

        def rival() -> None:
            torch.autograd.backward(loss(self.peft(input_ids=ids, attention_mask=mask).logits))

        return {"peft": lambda: self.timed(rival), "ours": lambda: self.timed(ours)}

    def read(self, batch: int) -> dict[str, Callable[[], float]]:
        """Seconds to attend from one query a row to the prefix alone, in every layer; and to copy its bytes as often.

        A prefix that is read once per batch cannot be quicker than a copy of it, and need not be slower while its
        products keep up: on a GPU the ratio to the copy says whether it is read once or once a row.
        """
        held = list(self.host.resident(self.prefix).values())
        heads = self.host.model.config.num_attention_heads
        width = held[0].keys.shape[-1]
        query = torch.randn(batch, heads, 1, width, device=self.device)
        none = held[0].keys.new_zeros(batch, held[0].keys.shape[0], 1, width)
        call = FusedCall(query, none, none, None, causal=False, scale=width**-0.5)
        into = [torch.empty_like(part) for site in held for part in (site.keys, site.values)]

        def copy() -> None:
            for to, part in zip(into, (part for site in held for part in (site.keys, site.values)), strict=True):
                to.copy_(part)

        def ours() -> None:
            for site in held:
                fused(call, [Share(site.keys, site.values, site.bias, None)])

        return {"copy": lambda: self.timed(copy), "ours": lambda: self.timed(ours)}

    def copied_bytes(self, batch: int) -> int:
        """What PEFT's cache holds for a batch: the prefix once a row."""
        return batch * sum(layer.keys.nbytes + layer.values.nbytes for layer in self.prefix.layers)

    def room(self) -> int:
        """Bytes free for what a run needs."""
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return psutil.virtual_memory().available


def measure(runs: dict[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Median seconds of each, and the median of the rounds' ratios to ours."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for number in range(rounds + 1):  # the first round warms up
        order = order[1:] + order[:1]  # each is first as often as last
        for name in order:
            seconds = runs[name]()
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
    parser.add_argument("--model", choices=MODELS, default="gpt2")
    parser.add_argument("--what", choices=("decode", "many", "prefill", "read", "fit"), default="decode")
    parser.add_argument("--prefix", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    chosen = parser.parse_args()
    cells = GRID if chosen.grid else [(chosen.model, chosen.what, chosen.prefix, chosen.batch)]
    done = measured(chosen.device) if chosen.grid else set()
    for number, (model, what, prefix, batch) in enumerate(cells, start=1):
        if (model, what, prefix, batch) in done:
            continue
        watch = Stopwatch(command_line())
        rivals = Rivals(model, prefix, device=chosen.device)
        with torch.set_grad_enabled(what == "fit"):
            runs = getattr(rivals, what)(batch)
            needs = 2.2 * rivals.copied_bytes(batch)  # the cache, and its copy while a token is added to it
            if "peft" in runs and needs > rivals.room() - 2e9:
                del runs["peft"]
            found = measure(runs, chosen.rounds)
        line = {"model": model, "what": what, "prefix": prefix, "batch": batch, "device": chosen.device, **found}
        shown = ", ".join(f"{name} {value:.2f}" for name, value in found.items() if name != "seconds")
        beyond = "" if "peft" in runs or what in ("many", "read") else f", PEFT needs {needs / 1e9:.0f} GB"
        print(f"{number}/{len(cells)} {model} {what} prefix {prefix} batch {batch}: {shown}{beyond}", flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, "record": watch.record().as_dict()}) + "\n")


def measured(device: str) -> set[tuple[str, str, int, int]]:
    """The cells that stand in the results at this commit, on this device."""
    if not RESULTS.exists():
        return set()
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    commit, _ = checkout_state()
    return {
        (line["model"], line["what"], line["prefix"], line["batch"])
        for line in lines
        if line["record"]["commit"] == commit and line.get("device", "cpu") == device
    }


if __name__ == "__main__":
    main()
