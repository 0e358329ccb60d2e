"""Prefix: keys and values at attention sites, fitted by gradient descent; no weight of the model changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foreword.bundle import load_bundle
from foreword.engine.assignment import SiteTensors
from foreword.engine.rendering import Template, render, tokens
from foreword.tuning.adaptation import FittedPrefix as Adapted
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench, fit_adaptation
from foreword.tuning.closed_form import solve
from foreword.tuning.demonstrations import first_examples
from foreword.tuning.fittable import FitWatch, Problem
from foreword.tuning.placement import Placement
from foreword.tuning.sections import PrefixSettings
from foreword.tuning.start import Example, Material, first_values, start_for


class Prefix(Candidate[PrefixSettings]):
    """`positions` positions each, at all sites or at some, from the first values that the settings name."""

    uses_seed = True

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        settings, started = self.settings, dict[str, Any]()
        placement = Placement(settings.layers, settings.heads, settings.train, settings.sink)
        placement.check(bench.host, settings.positions)
        adaptation = Adapted(bench.host, positions=settings.positions, seed=seed, placement=placement)

        def begin(problem: Problem) -> None:
            is_kept = checkpoint is not None and checkpoint.exists()
            started.update(put_first_values(bench, adaptation, problem, settings, seed=seed, is_kept=is_kept))

        try:
            fitted = fit_adaptation(
                bench, adaptation, settings, seed=seed, checkpoint=checkpoint, watch=watch, begin=begin
            )
        except BaseException:
            adaptation.close()
            raise
        fitted.details |= {"positions": settings.positions, "start": started}
        return fitted


def put_first_values(
    bench: Workbench,
    adaptation: Adapted,
    problem: Problem,
    settings: PrefixSettings,
    *,
    seed: int,
    is_kept: bool = False,
) -> dict[str, Any]:
    """Put the settings' first values into the adaptation, and tell how they came about.

    A fit that goes on (`is_kept`) takes its values from a checkpoint: solving them again would be for nothing.
    """
    name = start_for(bench.host, settings.start)
    material = material_for(bench, name, settings)
    drawn = settings.longest or settings.positions
    first = first_values(bench.host, name, positions=drawn, seed=seed, material=material)
    adaptation.begin({site: cut(found, settings.positions) for site, found in first.tensors.items()})
    told = {"name": first.name, **first.details}
    if name == "closed-form" and not is_kept:
        told |= solve(adaptation, problem, material).as_dict()
    # How long it took is left out: what is told of a fit is the same each time that it is made.
    return {key: value for key, value in told.items() if not key.endswith("seconds")}


def cut(found: SiteTensors, positions: int) -> SiteTensors:
    """The first positions: a shorter prefix begins as a longer one does."""
    bias = None if found.bias is None else found.bias[:, :positions]
    return SiteTensors(found.keys[:, :positions], found.values[:, :positions], bias)


def material_for(bench: Workbench, start: str, settings: PrefixSettings) -> Material:
    """What the task offers for a start: its examples as the model reads them, its words, a bundle's prefix."""
    prefix = None
    if start == "prefix" and settings.start_prefix is not None:
        prefix = load_bundle(bench.task.folder / settings.start_prefix, host=bench.host).prefix
    text = settings.start_text if settings.start_text is not None else words_of(bench)
    return Material(examples_for(bench), text, prefix)


def words_of(bench: Workbench) -> str | None:
    """The task in its own words: what its template says around an input, and its labels with their descriptions."""
    template = bench.task.model.template
    parts = [] if template is None else [template.replace("{input}", " ").strip()]
    if bench.task.kind == "classify":
        for label in bench.splits.labels:
            description = bench.task.description(label)
            parts.append(label if description == label else f"{label}: {description}")
    return "\n".join(filter(None, parts)) or None


def examples_for(bench: Workbench) -> list[Example]:
    """The fit examples as the model reads them, the labels in turn."""
    host, template = bench.host, bench.template
    shown = first_examples(bench.splits.fit, bench.splits.labels if bench.task.kind == "classify" else (), None)
    space = "" if not template.after or template.after[-1].isspace() else " "
    bare = Template("", "")
    found = []
    for example in shown:
        written = f"{template.before}{example.input}{template.after}{space}{example.target}"
        answer = tokens(host, space + example.target, special=False)
        room = bench.task.limits.max_input_tokens
        read = render(host, template, example.input, max_tokens=room, reserve=len(answer))
        is_causal = host.role == "causal"
        told = tokens(host, written + "\n\n", special=False) if is_causal else render(host, bare, written)
        found.append(Example(tuple(read), tuple(answer), tuple(told)))
    return found
