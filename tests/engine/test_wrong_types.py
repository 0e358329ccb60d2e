"""Anything at all in the place of an argument: the call takes it, or refuses it by an error of Foreword's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import foreword as fw
from foreword.engine import interop
from foreword.engine.assignment import SiteTensors

ODD: list[Any] = [
    None, 0, -1, 2.5, True, 10**13, 1 << 70, float("nan"), "", "x", "a\0b", "\ud800", b"x", [], [None], ["x"], [1.5],
    {}, {"x": 1}, {1: 2}, (), object(), object, np.zeros(3), np.float32(2), torch.zeros(2), torch.zeros(2).long(), {3},
    range(3), 1j, Path("/dev/null/at/all"), np.zeros((2, 3, 4), object),
]  # fmt: skip


@pytest.fixture(scope="module")
def host() -> fw.Host:
    sizes = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=32, bos_token_id=0, eos_token_id=1)
    return fw.Host(GPT2LMHeadModel(sizes))


def calls(host: fw.Host, folder: Path) -> dict[str, Callable[[Any], Any]]:
    prefix, model = fw.Prefix.random(host, positions=3, seed=1), host.model
    taking = fw.Prefix(prefix.layers, occupies=3)
    site, keys = prefix.sites[0], prefix.layers[0].keys
    good, other, soft = folder / "good.prefix", folder / "other.prefix", torch.zeros(2, 8)
    key = fw.SigningKey.new()
    fw.save_bundle(good, prefix, host=host)
    live = {site: SiteTensors(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))}

    def attach(host: Any, prefixes: Any, rows: Any = None) -> None:
        with fw.attached(host, prefixes, rows=rows):
            model(input_ids=torch.zeros(1, 2, dtype=torch.long))

    attach(host, live)
    saved = {
        f"save_bundle {name}": lambda x, name=name: fw.save_bundle(other, prefix, host=host, **{name: x})
        for name in ("use", "readout", "provenance", "evidence", "sign_with", "signer")
    }
    return {
        **saved,
        "Host": fw.Host,
        "Host pooling": lambda x: fw.Host(model, pooling=x),
        "Host reference": lambda x: fw.Host(model, reference=x),
        "Host.load": lambda x: None if isinstance(x, str) else fw.Host.load(x),
        "host.resident": host.resident,
        "host.module": host.module,
        "Prefix": fw.Prefix,
        "Prefix occupies": lambda x: fw.Prefix(prefix.layers, x),
        "Prefix reads": lambda x: fw.Prefix(prefix.layers, 3, x),
        "LayerPrefix site": lambda x: fw.LayerPrefix(x, keys, keys),
        "LayerPrefix keys": lambda x: fw.LayerPrefix("s", x, keys),
        "LayerPrefix bias": lambda x: fw.LayerPrefix("s", keys, keys, x),
        "from_arrays": fw.Prefix.from_arrays,
        "from_arrays value": lambda x: fw.Prefix.from_arrays({site: x}),
        "random host": lambda x: fw.Prefix.random(x, positions=2),
        "random positions": lambda x: fw.Prefix.random(host, positions=x),
        "random seed": lambda x: fw.Prefix.random(host, positions=2, seed=x),
        "random scale": lambda x: fw.Prefix.random(host, positions=2, scale=x),
        "slice": lambda x: prefix.slice(x, 2),
        "merge": prefix.merge,
        "cast": prefix.cast,
        "select": prefix.select,
        "select one": lambda x: prefix.select([x]),
        "attached host": lambda x: attach(x, prefix),
        "attached": lambda x: attach(host, x),
        "attached rows": lambda x: attach(host, [prefix], x),
        "attached row": lambda x: attach(host, [prefix], [x]),
        "attached live": lambda x: attach(host, {site: x}),
        "attached live keys": lambda x: attach(host, {site: SiteTensors(x, live[site].values)}),
        "attached live bias": lambda x: attach(host, {site: SiteTensors(live[site].keys, live[site].values, x)}),
        "bake host": lambda x: fw.bake(x, [3, 4]),
        "bake": lambda x: fw.bake(host, x),
        "bake after": lambda x: fw.bake(host, [3], after=x),
        "save_bundle path": lambda x: None if isinstance(x, str) else fw.save_bundle(x, prefix, host=host),
        "save_bundle": lambda x: fw.save_bundle(other, x, host=host),
        "save_bundle host": lambda x: fw.save_bundle(other, prefix, host=x),
        "load_bundle": fw.load_bundle,
        "load_bundle host": lambda x: fw.load_bundle(good, host=x),
        "load_bundle trust": lambda x: fw.load_bundle(good, trust=x),
        "sign_bundle path": lambda x: fw.sign_bundle(x, key),
        "sign_bundle": lambda x: fw.sign_bundle(good, x),
        "TrustPolicy.load": fw.TrustPolicy.load,
        "PublicKey.parse": fw.PublicKey.parse,
        "SigningKey.read": fw.SigningKey.read,
        "passphrase": lambda x: key.write(folder / f"key-{id(x)}", passphrase=x),
        "read_peft": lambda x: interop.read_peft(x, host),
        "read_peft host": lambda x: interop.read_peft(folder, x),
        "write_peft": lambda x: interop.write_peft(folder / "peft", x, host),
        "write_peft host": lambda x: interop.write_peft(folder / "peft", taking, x),
        "occupying": lambda x: interop.occupying(x, host),
        "occupying host": lambda x: interop.occupying(prefix, x),
        "prompt_embeddings": lambda x: interop.prompt_embeddings(host, soft, x),
        "write_prompt_embeddings": lambda x: interop.write_prompt_embeddings(folder / "embeds", x),
        "encoded_prompt": interop.encoded_prompt,
    }


def test_whatever_stands_for_an_argument_is_taken_or_refused_by_name(host: fw.Host, tmp_path: Path) -> None:
    wrong: list[str] = []
    for name, call in calls(host, tmp_path).items():
        for odd in ODD:
            try:
                call(odd)
            except fw.ForewordError as error:
                if not (error.expected and error.found and error.fix):
                    wrong.append(f"{name}({odd!r:.30}): an error without a remedy: {error}")
            except Exception as error:  # noqa: BLE001  collected, to be told all at once
                wrong.append(f"{name}({odd!r:.30}): {type(error).__name__}: {error!s:.80}")
    assert not wrong, "\n".join(wrong)
