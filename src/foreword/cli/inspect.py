"""`foreword inspect FILE`: what a bundle is, without loading its base model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.excerpt import excerpt

if TYPE_CHECKING:
    from foreword.bundle import Bundle
    from foreword.prefix import Prefix
    from foreword.trust import TrustPolicy

SITES_SHOWN = 100  # characters of the names of sites


def inspect(
    file: Path = typer.Argument(..., help="A bundle, such as runs/TASK/best.prefix."),
    as_json: bool = typer.Option(False, "--json", help="Print everything as JSON."),
) -> None:
    """Show a bundle's identity, base model, use, provenance, evidence and signatures.

    Exit code 1 when the trust policy refuses the bundle: it is shown, but no other verb will use it.
    """
    from foreword.bundle import load_bundle
    from foreword.trust import TrustPolicy

    bundle = load_bundle(file, trust=TrustPolicy())  # to look at a bundle is how one finds out whether to trust it
    policy = TrustPolicy.in_force()
    if as_json:
        typer.echo(_as_json(described(bundle) | _trusted(bundle, policy)))
    else:
        _show(_lines(file, bundle) + _trust_lines(bundle, policy))
    if policy.refusal(bundle.signatures) is not None:
        raise typer.Exit(1)


def _show(lines: list[tuple[str, str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from foreword.assessment.quantities import printable

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in lines:
        table.add_row(Text(name, style="bold"), Text(printable(text)))
    Console().print(table, soft_wrap=False)


def _as_json(told: dict[str, Any]) -> str:
    """JSON that a terminal can show: what is not printable is escaped, and means the same."""
    text = json.dumps(told, indent=2, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def described(bundle: Bundle) -> dict[str, Any]:
    """Everything in a bundle but the numbers, as JSON values."""
    return {
        "prefix": {
            "hash": bundle.prefix.hash,
            "positions": bundle.prefix.positions,
            "occupies": bundle.prefix.occupies,
            "sites": list(bundle.prefix.sites),
            "heads": {layer.site: list(layer.carrying) for layer in bundle.prefix.layers},
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


def _trusted(bundle: Bundle, policy: TrustPolicy) -> dict[str, Any]:
    signatures = [
        {
            **signature.described(),
            "key id": signature.key.id,
            "standing": policy.standing(signature),
            "known as": policy.name_of(signature.key),
        }
        for signature in bundle.signatures
    ]
    return {
        "signatures": signatures,
        "trust": {"policy": policy.source, "refused for": policy.refusal(bundle.signatures)},
    }


def _trust_lines(bundle: Bundle, policy: TrustPolicy) -> list[tuple[str, str]]:
    lines = []
    for signature in bundle.signatures:
        standing, name = policy.standing(signature), policy.name_of(signature.key)
        claim = f", calling itself {signature.signer!r}" if signature.signer else ""
        who = f"{standing} key" if name is None else f"{standing} key of {name}"
        lines.append(("signed by", f"{who} ({signature.key.id}{claim}), {signature.time}"))
    refusal = policy.refusal(bundle.signatures)
    verdict = "taken" if refusal is None else f"REFUSED for {refusal}"
    return [*(lines or [("signed by", "nobody")]), ("trust", f"{verdict} ({policy.source})")]


def _lines(file: Path, bundle: Bundle) -> list[tuple[str, str]]:
    prefix = bundle.prefix
    lines = [
        ("bundle", f"{file} ({file.stat().st_size:,} bytes, written by foreword {bundle.version})"),
        ("prefix", f"{prefix.hash}"),
        ("", f"{prefix.positions} positions at {len(prefix.sites)} sites, {prefix.dtype}, {prefix.nbytes:,} bytes"),
        *_heads(prefix),
        ("base model", f"{bundle.reference} ({bundle.family})"),
        ("fingerprint", bundle.fingerprint),
    ]
    for name, told, lines_of in (
        ("use", bundle.use, _use),
        ("provenance", bundle.provenance, _provenance),
        ("evidence", bundle.evidence, _evidence),
    ):
        lines += _told(name, told, lines_of)
    return lines


def _heads(prefix: Prefix) -> list[tuple[str, str]]:
    """The key heads that carry the prefix, for sites at which not all of them do: sites of the same heads together."""
    alike: dict[tuple[tuple[int, ...], int], list[str]] = {}
    for layer in prefix.layers:
        if len(layer.carrying) < len(layer.keys):
            alike.setdefault((layer.carrying, len(layer.keys)), []).append(layer.site)
    return [
        ("", f"heads {', '.join(map(str, heads)) or 'none'} of {of} at {excerpt(', '.join(sites), SITES_SHOWN)}")
        for (heads, of), sites in alike.items()
    ]


def _told(
    name: str, told: dict[str, Any] | None, lines_of: Callable[[dict[str, Any]], list[tuple[str, str]]]
) -> list[tuple[str, str]]:
    """A part of the bundle as the pilot writes it, or as it stands: whoever saves a bundle may say anything in it."""
    if not told:
        return [(name, "none")]
    try:
        return lines_of(told)
    except (KeyError, TypeError, ValueError, AttributeError):
        return [(name, json.dumps(told, ensure_ascii=False))]


def _use(told: dict[str, Any]) -> list[tuple[str, str]]:
    manner, kind = told["manner"], (told["readout"] or {"kind": "the model itself"})["kind"]
    labels = [("labels", ", ".join(manner["labels"]))] if manner["labels"] else []
    by = "calibrated likelihoods" if kind == "calibrated" else kind
    return [("use", f"{manner['kind']}, read out by {by}"), *labels]


def _provenance(told: dict[str, Any]) -> list[tuple[str, str]]:
    commit = str(told["commit"])[:12] + (" (dirty)" if told["dirty"] else "")
    seeds = ", ".join(map(str, told["seeds"]))
    return [
        ("made by", str(told["command"])),
        ("when", f"{told['started']}, {told['seconds']:.0f} s, commit {commit}, seeds {seeds}"),
    ]


def _evidence(told: dict[str, Any]) -> list[tuple[str, str]]:
    metric, task, decision = told["candidate"]["metric"], told["task"], told["decision"]
    interval = f"[{metric['low']:.3f}, {metric['high']:.3f}]"
    return [
        ("task", f"{task['name']}: {task['requirement']['text']}"),
        ("evidence", f"{metric['name']} {metric['value']:.3f} {interval}, {metric['n']} test texts"),
        ("decision", f"{decision['verdict']}, chosen: {decision['chosen']}"),
    ]
