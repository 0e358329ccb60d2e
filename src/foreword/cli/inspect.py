"""`foreword inspect FILE`: what a bundle is, without loading its base model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from foreword.bundle import Bundle


def inspect(
    file: Path = typer.Argument(..., help="A bundle, such as runs/TASK/best.prefix."),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Show a bundle's identity, base model, use, provenance and evidence."""
    from foreword.bundle import load_bundle

    bundle = load_bundle(file)
    if as_json:
        typer.echo(json.dumps(described(bundle), indent=2, ensure_ascii=False))
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in _lines(file, bundle):
        table.add_row(f"[bold]{name}[/bold]", text, style=None)
    Console().print(table, soft_wrap=False)


def described(bundle: Bundle) -> dict[str, Any]:
    """Everything in a bundle but the numbers, as JSON values."""
    return {
        "prefix": {
            "hash": bundle.prefix.hash,
            "positions": bundle.prefix.positions,
            "occupies": bundle.prefix.occupies,
            "sites": list(bundle.prefix.sites),
            "dtype": bundle.prefix.dtype,
            "nbytes": bundle.prefix.nbytes,
        },
        "base": {"reference": bundle.reference, "fingerprint": bundle.fingerprint, "family": bundle.family},
        "use": bundle.use,
        "readout": {name: list(array.shape) for name, array in bundle.readout.items()},
        "provenance": bundle.provenance,
        "evidence": bundle.evidence,
        "version": bundle.version,
    }


def _lines(file: Path, bundle: Bundle) -> list[tuple[str, str]]:
    from rich.markup import escape

    prefix, manner = bundle.prefix, bundle.use.get("manner") or {}
    readout = bundle.use.get("readout") or {}
    lines = [
        ("bundle", f"{file} ({file.stat().st_size:,} bytes, written by foreword {bundle.version})"),
        ("prefix", f"{prefix.hash}"),
        ("", f"{prefix.positions} positions at {len(prefix.sites)} sites, {prefix.dtype}, {prefix.nbytes:,} bytes"),
        ("base model", f"{bundle.reference} ({bundle.family})"),
        ("fingerprint", bundle.fingerprint),
    ]
    if manner:
        labels = manner.get("labels") or []
        lines.append(("use", f"{manner.get('kind')}, read out by {readout.get('kind', 'the model itself')}"))
        lines += [("labels", ", ".join(labels))] if labels else []
    lines += _provenance(bundle.provenance) + _evidence(bundle.evidence)
    return [(name, escape(text)) for name, text in lines]


def _provenance(told: dict[str, Any]) -> list[tuple[str, str]]:
    if not told:
        return [("provenance", "none")]
    commit = str(told.get("commit"))[:12] + (" (dirty)" if told.get("dirty") else "")
    return [
        ("made by", str(told.get("command"))),
        ("when", f"{told.get('started')}, {told.get('seconds', 0):.0f} s, commit {commit}, seeds {told.get('seeds')}"),
    ]


def _evidence(told: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not told:
        return [("evidence", "none")]
    metric, task, decision = told["candidate"]["metric"], told["task"], told["decision"]
    return [
        ("task", f"{task['name']}: {task['requirement']['text']}"),
        (
            "evidence",
            f"{metric['name']} {metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}], {metric['n']} test texts",
        ),
        ("decision", f"{decision['verdict']}, chosen: {decision['chosen']}"),
    ]
