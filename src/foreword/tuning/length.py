"""How long a prefix should be: fits of several lengths that share their start, and the shortest that is good enough.

All lengths have the same seed, batches and budget, and each start is the beginning of the longest one's, so that what
differs is the length alone. It is given a way to fit one length; which length to take `length_choice` says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from foreword.bundle import write_bytes_atomically
from foreword.engine.generation import embed
from foreword.engine.host import Host
from foreword.errors import BundleError, FitError, RunFolderError
from foreword.prefix import Prefix
from foreword.tuning.candidates import Workbench
from foreword.tuning.devices import Devices
from foreword.tuning.effective_rank import LayerRank, ranks_of
from foreword.tuning.examples import Splits
from foreword.tuning.fit_folder import FITTED
from foreword.tuning.fit_result import Fit
from foreword.tuning.length_choice import (
    LEVEL,
    LIKENESS,
    MARGIN,
    Comparison,
    LengthTrial,
    PrefixCost,
    Sweep,
    best_of,
    compared,
    shortest_as_good,
    the_best,
)
from foreword.tuning.length_picture import length_picture
from foreword.tuning.measurement import measure_latency
from foreword.tuning.predictor import Predictor
from foreword.tuning.selection_outcomes import Outcomes, outcomes_of

Length = int | Literal["auto"] | None
LENGTHS = (1, 2, 4, 8, 16, 32, 64)
# A length costs a few hundred bytes a position in every head: nothing longer is meant.
LONGEST = 65_536
TIMED_INPUTS, TIMED_SECONDS = 24, 2.0


@dataclass(frozen=True)
class _Fitted:
    """What a sweep keeps of one length, in its folder once it is done."""

    length: int
    selection: float
    steps: int
    seconds: float
    cost: PrefixCost
    ranks: tuple[LayerRank, ...]
    outcomes: Outcomes


def checked_lengths(told: Sequence[int] | None) -> tuple[int, ...] | None:
    """The lengths of a sweep, each once, shortest first; None stays None. FitError when one of them is none."""
    if told is None:
        return None
    told = [told] if isinstance(told, str) or not isinstance(told, Iterable) else list(told)
    wrong = [each for each in told if isinstance(each, bool) or not isinstance(each, int) or not 1 <= each <= LONGEST]
    if wrong or not told:
        raise FitError(
            "The lengths of a sweep cannot be used.",
            expected=f"whole numbers from 1 to {LONGEST:,}, such as 2,8,32",
            found=(str(wrong[0]) or "nothing where a number should be") if wrong else "none",
            fix="Name the numbers of positions to try, or leave them out for the usual ones.",
        )
    return tuple(sorted(set(told)))


def usual_lengths(host: Host, splits: Splits) -> tuple[int, ...]:
    """1, 2, 4 up to 64, but none longer than the model reads, nor than half of all words to learn from.

    With fewer words than positions every word could have a position of its own: such a prefix has nothing left to
    summarise. A heuristic.
    """
    words = sum(len(example.input.split()) + len(example.target.split()) for example in splits.fit)
    longest = max(1, min(host.max_positions, words // 2))
    return tuple(length for length in LENGTHS if length <= longest)


def sweep(
    bench: Workbench,
    lengths: Sequence[int],
    fit_of: Callable[[int, Path | None], Fit],
    *,
    folder: Path | None = None,
    devices: Devices | None = None,
    writes: bool = True,
) -> tuple[Fit, Sweep]:
    """Fit every length with `fit_of(length, its folder)`, and choose the shortest that is as good as the best.

    With `folder` each length that is done stays in a folder of its own there and is not fitted again; `length.json` and
    `length.svg` are written at the end. Without `writes` everything is there, and only read. RunFolderError when a file
    cannot be written.
    """
    devices, fits, done = devices or Devices(), dict[int, Fit](), []
    for length in lengths:
        place = None if folder is None else _place(folder, length)
        # What the first process finds is what all go by: none may fit a length that another skips.
        found = devices.told(None if place is None else _read(place / FITTED, length, len(bench.splits.selection)))
        if found is None:
            fits[length] = fit_of(length, place)
            found = devices.told(_measured(bench, length, fits[length]))
            if place is not None and writes:
                _write(place / FITTED, json.dumps(asdict(found), indent=1, ensure_ascii=False))
        done.append(found)
    made = _sweep(bench, done)
    if folder is not None and writes:
        _write(folder / "length.json", json.dumps(made.as_dict(), indent=1, ensure_ascii=False))
        _write(folder / "length.svg", length_picture(made))
    chosen = fits.get(made.chosen)
    if chosen is None:  # done before an interruption: its folder gives it back without another step
        chosen = fit_of(made.chosen, None if folder is None else _place(folder, made.chosen))
    return chosen, made


def cost_of(host: Host, prefix: Prefix, predictor: Predictor, inputs: Sequence[str]) -> PrefixCost:
    """Bytes, attention's FLOPs per token, and the measured ms added to a forward pass of one input."""
    carriers = [site for site in host.sites if site.name in prefix.sites]
    flops = sum(2 * prefix.positions * site.heads * (site.key_dim + site.value_dim) for site in carriers)

    def bare(text: str) -> None:
        embed(host, predictor.rows([text]))

    def adapted(text: str) -> None:
        with predictor.adaptation.active(), torch.no_grad():
            embed(host, predictor.rows([text]))

    found = measure_latency(adapted, bare, inputs[:TIMED_INPUTS], seconds=TIMED_SECONDS)
    return PrefixCost(prefix.nbytes, flops, round(found.added_ms, 4))


def _measured(bench: Workbench, length: int, made: Fit) -> _Fitted:
    prefix = made.prefix
    outcomes = Outcomes((), made.apart, is_taught=True) if made.apart else outcomes_of(bench, made.predictor)
    inputs = [example.input for example in bench.splits.selection]
    return _Fitted(
        length,
        float(outcomes.likenesses.mean()) if outcomes.is_taught else made.selection,
        made.history[-1].step,
        made.history[-1].seconds,
        cost_of(bench.host, prefix, made.predictor, inputs),
        ranks_of(prefix),
        outcomes,
    )


def _sweep(bench: Workbench, done: Sequence[_Fitted]) -> Sweep:
    metric: str = bench.task.metric
    targets = [example.target for example in bench.splits.selection]
    if done[0].outcomes.is_taught:
        metric, targets = LIKENESS, [""] * len(done[0].outcomes.losses)
    lengths, outcomes = [each.length for each in done], [each.outcomes for each in done]
    best = done[best_of(lengths, [each.selection for each in done], outcomes)]
    comparisons = [
        the_best() if each is best else compared(metric, targets, best.outcomes, each.outcomes) for each in done
    ]
    # Longer than the best is never chosen, however good: it costs more.
    offered = [
        (each.length, found) for each, found in zip(done, comparisons, strict=True) if each.length <= best.length
    ]
    chosen = shortest_as_good(*zip(*offered, strict=True))
    trials = tuple(_trial(each, found) for each, found in zip(done, comparisons, strict=True))
    return Sweep(trials, best.length, chosen, metric, LEVEL, MARGIN, len(targets))


def _trial(found: _Fitted, comparison: Comparison) -> LengthTrial:
    return LengthTrial(
        found.length,
        found.selection,
        found.outcomes.loss,
        found.steps,
        found.seconds,
        found.cost,
        found.ranks,
        comparison,
    )


def _place(folder: Path, length: int) -> Path:
    return folder / "lengths" / f"{length:03}"


def _write(path: Path, text: str) -> None:
    try:
        write_bytes_atomically(path, text.encode())
    except BundleError as error:
        raise RunFolderError(error.what, expected=error.expected, found=error.found, fix=error.fix) from error


def _read(path: Path, length: int, examples: int) -> _Fitted | None:
    """What a sweep kept of a length; None when it is not done, or the file is not whole."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        found = _Fitted(
            **{
                **told,
                "cost": PrefixCost(**told["cost"]),
                "ranks": tuple(LayerRank(**each) for each in told["ranks"]),
                "outcomes": Outcomes(
                    tuple(told["outcomes"]["outputs"]),
                    tuple(told["outcomes"]["losses"]),
                    is_taught=told["outcomes"]["is_taught"],
                ),
            }
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    counts = {len(found.outcomes.outputs), len(found.outcomes.losses)}
    is_whole = found.outcomes.is_taught or counts == {examples}
    return found if found.length == length and is_whole else None
