"""`foreword fit TASK`: fit a prefix (or a rival) to a task, and keep everything in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli.bars import Bars
from foreword.cli.paths import named
from foreword.cli.screen import on_one_screen

if TYPE_CHECKING:
    from foreword.tuning.fit_result import Fit
    from foreword.tuning.fittable import FitWatch
    from foreword.tuning.length_choice import Sweep


def fit(
    context: typer.Context,
    task: Path = typer.Argument(..., help="The task file, or the folder of a fit to go on with."),
    method: str = typer.Option("prefix", "--method", help="prefix, soft-prompt, lora or full."),
    length: str | None = typer.Option(
        None, "--length", help="Positions (of LoRA: the rank), or auto: the shortest as good as the best."
    ),
    lengths: str | None = typer.Option(None, "--lengths", help="What --length auto tries, such as 2,8,32."),
    start: str | None = typer.Option(
        None,
        "--start",
        help="First values of a prefix: zero, random, text, demonstrations, vocabulary, prefix or closed-form.",
    ),
    steps: int | None = typer.Option(None, "--steps", min=1, help="At most so many steps."),
    batch_size: int | None = typer.Option(None, "--batch-size", min=1, help="Examples in a step."),
    learning_rate: str | None = typer.Option(None, "--learning-rate", help="The largest step size, or find."),
    seconds: float | None = typer.Option(None, "--seconds", help="At most so long, over all resumes."),
    option: list[str] = typer.Option(
        [], "--option", help="Any other field of the candidate, as NAME=VALUE; repeatable."
    ),
    seed: int = typer.Option(0, "--seed", min=0, max=2**32 - 1, help="Another seed gives another fit."),
    out: Path | None = typer.Option(
        None, "--out", parser=named, metavar="PATH", help="Folder. Default: runs/TASK-NAME-METHOD."
    ),
    limit: int | None = typer.Option(None, "--limit", min=1, help="Use at most this many examples of each split."),
    fresh: bool = typer.Option(False, "--fresh", help="Discard what an earlier fit left in the folder."),
    tensorboard: bool = typer.Option(False, "--tensorboard", help="Write TensorBoard's event files too."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="No progress bar."),
) -> None:
    """Fit a prefix by gradient descent on it alone; the base model stays as it is.

    Ctrl-C or a kill loses nothing: the same command, or `foreword fit FOLDER`, goes on to the same numbers.
    """
    told = {"start": start, "steps": steps, "batch_size": batch_size, "seconds": seconds}
    if learning_rate is not None:
        told["learning_rate"] = _value(learning_rate)
    options = _options({name: value for name, value in told.items() if value is not None}, option)
    resumes = task.is_dir()
    if resumes:
        _only_a_folder(context)

    from foreword.tuning.fit_folder import begun_in
    from foreword.tuning.task import Task

    # Before torch is imported, so that a wrong one is told at once.
    loaded = begun_in(task).task if resumes else Task.load(task)

    from transformers.utils import logging

    from foreword.record import command_line
    from foreword.tuning.devices import is_first_process
    from foreword.tuning.fit import fit as fitting

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    command = command_line()
    try:
        with Bars(quiet=quiet or not is_first_process()) as bars:
            if resumes:
                made = fitting.resume(task, tensorboard=tensorboard, watch=_watch(bars), command=command)
            else:
                made = fitting(
                    None,
                    loaded,
                    method=method,
                    length=None if length is None else _value(length),
                    lengths=None if lengths is None else [_value(each.strip()) for each in lengths.split(",")],
                    seed=seed,
                    out=out or Path("runs") / f"{folder_name(loaded.name)}-{method}",
                    fresh=fresh,
                    limit=limit,
                    tensorboard=tensorboard,
                    watch=_watch(bars),
                    command=command,
                    **options,
                )
    except KeyboardInterrupt as error:
        typer.echo("\ninterrupted: the fit is kept; the same command goes on from there.", err=True)
        raise typer.Exit(130) from error
    if is_first_process():
        _show(made)


def _watch(bars: Bars) -> FitWatch:
    from foreword.tuning.fittable import FitWatch, StepTaken

    class Shown(FitWatch):
        def stepped(self, taken: StepTaken) -> None:
            note = f"loss {taken.loss:.3f}, best {taken.best:.3f}, rate {taken.rate:.2g}"
            bars.watch("fit", taken.step, taken.of, note)

        def studied(self, number: int, of: int) -> None:
            bars.watch("lessons", number, of, "")

        def notice(self, text: str) -> None:
            bars.say(text)

    return Shown()


def _show(made: Fit) -> None:
    first, best = made.history[0], made.best
    size = made.details.get("positions", made.details.get("rank"))
    what = f"{made.method} of {size}" if size is not None else f"{made.method} fine-tune"
    typer.echo(f"{what}, stopped by {made.stopped_by} after {made.history[-1].step} steps")
    typer.echo(f"selection  {first.selection:.3f} at the start, {best.selection:.3f} at step {best.step}")
    if made.details["kept_by"] == "loss":
        start, least = made.details["selection_losses"]
        typer.echo(f"loss       {start:.3g} at the start, {least:.3g} at step {best.step}: how far from the teacher")
    if "teacher_selection" in made.details:
        typer.echo(f"teacher    {made.details['teacher_selection']:.3f} on the selection split")
    if made.sweep is not None:
        _show_sweep(made.sweep)
    for text in (*_cuts(made), *made.notices):
        typer.echo(on_one_screen(f"notice     {text}"))
    if made.folder is None:
        return
    for name, path in (
        ("bundle", "best.prefix"),
        ("adapter", "lora"),
        ("model", "full"),
        ("result", "result.json"),
        ("lengths", "length.svg"),
        ("log", "log.jsonl"),
    ):
        if (made.folder / path).exists():
            typer.echo(f"{name:<10} {made.folder / path}")


def _cuts(made: Fit) -> list[str]:
    """A line when texts were not read whole: what was cut off, or is unknown, was neither fitted to nor scored."""
    lines = []
    inputs = " and ".join(f"{count} of the {name} split" for name, count in made.details["inputs_cut"].items() if count)
    if inputs:
        lines.append(f"inputs longer than the model reads were cut at their end: {inputs}")
    shots = made.details.get("teacher_shots")
    if shots is not None and shots["used"] < shots["given"]:
        lines.append(f"the teacher has room for {shots['used']} of {shots['given']} examples")
    if made.details.get("answers_cut"):
        lines.append(f"answers longer than max_tokens were cut at their end: {made.details['answers_cut']}")
    if made.details.get("answers_unknown"):
        lines.append(
            f"answers with parts that the tokenizer does not know, and no model of it can write: "
            f"{made.details['answers_unknown']}"
        )
    return lines


def _show_sweep(sweep: Sweep) -> None:
    """One line a length, the chosen one marked, and why it was chosen."""
    from foreword.assessment.quantities import byte_size

    typer.echo(f"\n  length  {sweep.metric:<11} loss   ranks k/v        size  ms added  finding")
    for trial in sweep.trials:
        keys, values = (sum(getattr(r, n) for r in trial.ranks) / len(trial.ranks) for n in ("keys", "values"))
        mark = ">" if trial.length == sweep.chosen else " "
        typer.echo(
            f"{mark} {trial.length:>6}  {trial.selection:<11.3f} {trial.loss:<5.3g} {keys:>5.1f}/{values:<5.1f}"
            f" {byte_size(trial.cost.bytes):>10}  {trial.cost.added_ms:>8.2f}  {trial.comparison.finding}"
        )
    typer.echo(f"{sweep.sentence}\n")


def folder_name(name: str) -> str:
    """A task's name as that of a folder: 60 characters take at most the 255 bytes that a file system allows."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return plain[:60].strip("-.") or "fit"


def _options(named: dict[str, Any], told: list[str]) -> dict[str, Any]:
    """What the options of a name of their own say, and what each --option says."""
    from foreword.errors import FitError

    found = dict(named)
    for each in told:
        name, equals, value = each.partition("=")
        if not equals or not name.strip():
            raise FitError(
                "An option cannot be read.",
                expected="NAME=VALUE, such as schedule=cosine",
                found=each,
                fix="Write the name, an equals sign and the value; docs/reference/task-file.md lists the names.",
            )
        if name.strip() in found:
            raise FitError(
                f"The option {name.strip()} is said twice.",
                expected="each option once",
                found=f"{found[name.strip()]} and {value.strip()}",
                fix="Leave one of them out.",
            )
        found[name.strip()] = _value(value.strip())
    return found


def _value(text: str) -> Any:
    """A value as a task file would have it; text where it is not TOML."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _only_a_folder(context: typer.Context) -> None:
    """FitError when more is said than which fit is to go on, and how it is shown."""
    from foreword.errors import FitError

    given = [
        f"--{name.replace('_', '-')}"
        for name in context.params
        if name not in ("task", "tensorboard", "quiet") and _is_given(context, name)
    ]
    if given:
        raise FitError(
            "A fit that goes on keeps the settings that it was started with.",
            expected="the folder alone",
            found=", ".join(given),
            fix="Leave these out, or start another fit with the task file and another --out.",
        )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
