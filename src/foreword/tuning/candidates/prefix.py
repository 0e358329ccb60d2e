"""Prefix: keys and values at attention sites, fitted by gradient descent; no weight of the model changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from foreword.bundle import Bundle, load_bundle
from foreword.confidence import rate_interval
from foreword.engine.host import Host
from foreword.engine.rendering import Template, render, tokens
from foreword.tuning.adaptation import FittedPrefix as Adapted
from foreword.tuning.candidate_settings import PrefixSettings
from foreword.tuning.candidates.contract import (
    LIKELIHOODS,
    Candidate,
    Fitted,
    Workbench,
    fit_adaptation,
    read_by,
    unset_readout,
)
from foreword.tuning.closed_form import solve
from foreword.tuning.demonstrations import first_examples
from foreword.tuning.fittable import FitWatch
from foreword.tuning.loop import LOOKS_LEFT
from foreword.tuning.loudness import GENTLE, ROWS, measured, quieted
from foreword.tuning.objectives.contract import Objective, masked_positions
from foreword.tuning.objectives.similarity import TextSimilarity
from foreword.tuning.placement import Placement
from foreword.tuning.predictor import Predictor, offsets_in
from foreword.tuning.recomputed import Recomputed
from foreword.tuning.room import check_room, check_time
from foreword.tuning.start import SILENT, cut, first_values, start_for
from foreword.tuning.start_texts import Example, Material, judges

# Examples of the fit split that are read to time what a position costs. A backward pass takes twice a forward one.
TIMED_ROWS, STEP_PASSES = 4, 3


class Prefix(Candidate[PrefixSettings]):
    """`positions` positions each, at all sites or at some, from the first values that the settings name."""

    uses_seed = True

    def fit(
        self, bench: Workbench, *, seed: int, checkpoint: Path | None = None, watch: FitWatch | None = None
    ) -> Fitted:
        settings = self.settings
        placement = Placement(settings.layers, settings.heads, settings.train, settings.sink)
        placement.check(bench.host, settings.positions)
        longest = max(settings.positions, settings.longest or 0)
        _check_length(bench.host, longest)
        if checkpoint is None or not checkpoint.exists():
            _check_pace(bench, settings, longest)
        adaptation = Adapted(bench.host, positions=settings.positions, seed=seed, placement=placement)

        def begin(objective: Objective) -> dict[str, Any]:
            is_kept = checkpoint is not None and checkpoint.exists()
            return put_first_values(bench, objective, settings, seed=seed, is_kept=is_kept)

        speaks = start_for(settings.start) not in SILENT
        try:
            fitted = fit_adaptation(
                bench,
                adaptation,
                settings,
                seed=seed,
                checkpoint=checkpoint,
                watch=watch,
                begin=begin,
                judge_start=partial(behind_the_bare_model, settings.start) if speaks else None,
            )
        except BaseException:
            adaptation.close()
            raise
        fitted.details["positions"] = settings.positions
        return fitted


def _check_length(host: Host, positions: int) -> None:
    """FitError when a prefix of so many positions cannot be fitted in the memory that is free."""
    numbers = sum(site.kv_heads * (site.key_dim + site.value_dim) for site in host.sites)
    check_room(
        host.device,
        positions * numbers * torch.float32.itemsize,
        what=f"A prefix of {positions:,} positions",
        fix="Use fewer positions: a prefix longer than the texts that it is fitted to has nothing left to learn.",
    )


def _check_pace(bench: Workbench, settings: PrefixSettings, positions: int) -> None:
    """FitError when so many positions leave no time for a single step."""
    is_read = read_by(bench, settings) not in (*LIKELIHOODS, "generation")
    predictor = Predictor(bench.host, bench.manner(), readout=unset_readout("linear", bench) if is_read else None)
    examples = examples_for(bench, predictor, TIMED_ROWS)
    looks = (1 + LOOKS_LEFT) * len(bench.splits.selection)
    batch = min(settings.batch_size, len(bench.splits.fit))
    check_time(
        bench.host,
        [example.read for example in examples],
        [] if is_read else [example.answer for example in examples],
        positions,
        passes=min(ROWS, len(bench.splits.fit)) + looks + STEP_PASSES * batch,
        limit=bench.task.limits.fit_seconds if settings.seconds is None else settings.seconds,
    )


def put_first_values(
    bench: Workbench, objective: Objective, settings: PrefixSettings, *, seed: int, is_kept: bool = False
) -> dict[str, Any]:
    """Put the settings' first values into the prefix that `objective` is to fit, and tell how they came about.

    Positions that were made from an example are hidden from it from here on, when the settings ask for that. A fit that
    goes on (`is_kept`) takes its values from a checkpoint: solving them again would be for nothing.
    """
    adaptation = objective.predictor.adaptation
    if not isinstance(adaptation, Adapted):
        raise TypeError("first values are those of a prefix")
    name, host = start_for(settings.start), bench.host
    is_drawn = name in ("zero", "random")
    bundle = None
    if name == "prefix" and settings.start_prefix is not None:
        bundle = load_bundle(bench.task.folder / settings.start_prefix, host=bench.host)
    material = material_for(bench, objective.predictor, settings, bundle, examples=ROWS if is_drawn else None)
    drawn = settings.longest or settings.positions
    first = cut(first_values(host, name, positions=drawn, seed=seed, material=material), settings.positions)
    share = settings.share if name in SILENT and settings.share < 1 else None
    is_read = objective.predictor.readout is not None and not isinstance(objective, TextSimilarity)
    pace = GENTLE if is_read or name == "closed-form" else 1.0
    texts = judges(host, material)
    found = measured(host, texts, first.tensors, share=share, sites=adaptation.tensors, pace=pace)
    rates = {site: (each.key_rate, each.value_rate) for site, each in found.items()}
    adaptation.begin(quieted(first.tensors, found), rates)
    objective.hide(masked_positions(first.own or None, settings.leave_one_out))
    shares = [round(each.share, 4) for each in found.values()]
    told = {"name": first.name, **first.details, "shares": shares}
    # A prefix was fitted with offsets: others would take back some of what it has learned.
    offsets = None if bundle is None else offsets_in(bundle, objective.predictor.manner)
    if offsets is not None:
        objective.calibrate(offsets)
    if name != "closed-form" or is_kept:
        return told
    objective.calibrate()  # what values are solved for is the loss that a fit would begin with
    problem = Recomputed(objective, host, adaptation.recomputed) if settings.checkpointing else objective
    solved = solve(adaptation, problem, material, part=settings.part).as_dict()
    objective.calibrate()
    return told | solved


def behind_the_bare_model(start: str, objective: Objective, score: float) -> str | None:
    """A notice when the first values score worse on the selection split than the bare model does by chance.

    That is, below the interval of the bare model's score, as if each example were right or wrong: of scores between 0
    and 1 with the same mean those vary most.
    """
    bare, count = objective.bare_score(), len(objective.selection)
    if not 0 <= bare <= 1:
        return None
    likely = rate_interval(round(bare * count), count)
    if score >= min(likely.low, bare):
        return None
    return (
        f"the start {start!r} scores {score:.3f} on the selection split, where the bare model has {bare:.3f} "
        f"(at least {likely.low:.3f} with {likely.level:.0%} confidence); few steps may not mend that, and the start "
        "'zero' begins close to the bare model"
    )


def material_for(
    bench: Workbench,
    predictor: Predictor,
    settings: PrefixSettings,
    bundle: Bundle | None,
    *,
    examples: int | None = None,
) -> Material:
    """What the task offers for a start: its examples as the model reads them, its words, a bundle's prefix.

    `examples` is how many of them; None: all.
    """
    text = settings.start_text if settings.start_text is not None else words_of(bench)
    return Material(examples_for(bench, predictor, examples), text, None if bundle is None else bundle.prefix)


def words_of(bench: Workbench) -> str | None:
    """The task in its own words: what its template says around an input, and its labels with their descriptions."""
    template = bench.task.model.template
    parts = [] if template is None else [template.replace("{input}", " ").strip()]
    if bench.task.kind == "classify":
        for label in bench.splits.labels:
            description = bench.task.description(label)
            parts.append(label if description == label else f"{label}: {description}")
    return "\n".join(filter(None, parts)) or None


def examples_for(bench: Workbench, predictor: Predictor, count: int | None = None) -> list[Example]:
    """The first `count` fit examples (None: all) as the model reads them, the labels in turn."""
    host, fit = bench.host, bench.splits.fit
    number = {example.id: index for index, example in enumerate(fit)}
    shown = first_examples(fit, bench.splits.labels if bench.task.kind == "classify" else (), None)[:count]
    rows = predictor.rows([example.input for example in shown])
    gap = tokens(host, "\n\n", special=False) if host.role == "causal" else []
    begin = getattr(host.tokenizer, "bos_token_id", None)
    found = []
    for example, read in zip(shown, rows, strict=True):
        if host.role == "encoder":  # it never writes a label, which it need not be able to spell
            answer, told = [], render(host, Template("", ""), f"{example.input} {example.target}")
        else:
            answer = predictor.completion(example.target)
            told = [*(read[1:] if read[:1] == [begin] else read), *answer, *gap]
        found.append(Example(number[example.id], tuple(read), tuple(answer), tuple(told)))
    return found
