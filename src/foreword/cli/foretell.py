"""`foreword foretell TASK`: before a fit, whether a prefix can do the task, and what to do if it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from foreword.tuning.foretelling import Foretelling
    from foreword.tuning.probes import Probes

PROBES = {  # what the probes are called, while they run and in the table
    "demonstrations": "examples in context",
    "prefix": "short prefix fit",
    "lora_attention": "rank-1 LoRA, attention",
    "lora_mlp": "rank-1 LoRA, MLP",
    "teacher": "the teacher",
}


def foretell(
    task: Path = typer.Argument(..., help="The task file."),
    model: str | None = typer.Option(
        None, "--model", help="Another base model than the task's: id, folder, package:NAME."
    ),
    seed: int = typer.Option(0, "--seed", min=0, max=2**32 - 1, help="Of the probes' first values and batches."),
    limit: int | None = typer.Option(None, "--limit", min=1, help="Use at most this many examples of each split."),
    as_json: bool = typer.Option(False, "--json", help="Print everything that was found as JSON."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress."),
) -> None:
    """Say before a fit whether a prefix can do a task on its base model, from probes of 40 to 120 steps."""
    from foreword.tuning.task import Task

    loaded = Task.load(task)  # before torch is imported: a wrong task file is told at once

    from transformers.utils import logging

    from foreword.tuning.foretelling import foretell as foretelling

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    found = foretelling(
        model,
        loaded,
        seed=seed,
        limit=limit,
        watch=None if quiet else lambda name: typer.echo(f"probing: {PROBES.get(name, name)}", err=True),
    )
    typer.echo(json.dumps(found.as_dict(), indent=1, ensure_ascii=False) if as_json else _table(found))


def _metrics(probes: Probes) -> list[tuple[str, float]]:
    """The task's metric of the bare model, which the requirement is held against first, and after the short fits."""
    found = [
        ("bare model", probes.metric),
        ("prefix", probes.prefix_metric),
        ("LoRA", probes.lora_metric),
        ("teacher", probes.teacher_metric),
    ]
    return [(name, value) for name, value in found if value is not None]


def _table(found: Foretelling) -> str:
    """What was measured, one line a probe, then the verdict, its reliability and the advice."""
    probes = found.probes
    rows = [
        ("bare model", probes.bare),
        ("ignoring the input", probes.constant),
        (PROBES["demonstrations"], probes.demonstrations),
        (PROBES["prefix"], probes.prefix),
        (PROBES["lora_attention"], probes.lora_attention),
        (PROBES["lora_mlp"], probes.lora_mlp),
    ]
    if probes.teacher is not None:
        rows.append((PROBES["teacher"], probes.teacher))
    lines = [f"loss on {probes.judged} examples, in nats"]
    lines += [f"  {name:<24} {'not measured' if loss is None else f'{loss:.3f}'}" for name, loss in rows]
    lines += [f"metric on them: {', '.join(f'{name} {value:.3f}' for name, value in _metrics(probes))}"]
    shape = probes.gradient
    lines += ["what the gradient wants of attention's output"]
    for name, share in (
        ("one bias for all", shape.mean("constant")),
        ("a bias per example", shape.mean("per_example")),
        ("examples agree", shape.mean("agreement")),
    ):
        lines.append(f"  {name:<24} {share:.3f}")
    lines += ["", f"verdict: {found.verdict} (probability {found.probability:.0%})", found.advice, found.reliability]
    return "\n".join(lines)
