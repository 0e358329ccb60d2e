"""`length="auto"`: lengths share their start, the shortest as good as the best is taken, and a kill loses nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import foreword as fw
from foreword.engine.host import Host
from foreword.errors import FitError, RunFolderError
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidate_settings import PrefixSettings
from foreword.tuning.candidates import Workbench
from foreword.tuning.candidates.prefix import put_first_values
from foreword.tuning.effective_rank import effective_rank, ranks_of
from foreword.tuning.examples import load_splits
from foreword.tuning.fittable import FitWatch, StepTaken
from foreword.tuning.length_choice import (
    LIKENESS,
    Comparison,
    LengthTrial,
    PrefixCost,
    Sweep,
    compared,
    shortest_as_good,
    the_best,
)
from foreword.tuning.objective import objective_for
from foreword.tuning.predictor import Predictor
from foreword.tuning.selection_outcomes import Outcomes

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS: dict[str, Any] = {"steps": 4, "batch_size": 4, "evaluate_every": 4}


class StopsAfter(FitWatch):
    """An interruption at the `count`-th step, whichever length it belongs to."""

    def __init__(self, count: int) -> None:
        self.left = count

    def stepped(self, taken: StepTaken) -> None:
        del taken
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture
def task(write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return write_task(tmp_path / "task", model_folder("bert"), [])


# Effective rank


def test_the_effective_rank_is_the_number_of_equal_directions_at_any_scale() -> None:
    for rank in (1, 3, 7):
        basis = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
        assert effective_rank(5.0 * basis[:, :rank] @ basis[:rank]) == pytest.approx(rank)
    assert effective_rank(np.zeros((4, 3))) == 0.0
    # Shares 3/4 and 1/4: exp of the entropy is 4 / 3^(3/4).
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(4 / 3**0.75)


def test_a_prefix_of_one_position_has_rank_one(shared_host: Callable[[str], Host]) -> None:
    prefix = fw.Prefix.random(shared_host("llama"), positions=1, seed=0)
    assert {(found.keys, found.values) for found in ranks_of(prefix)} == {(1.0, 1.0)}


# The choice


def outcomes(right: int, of: int, probability: float = 0.5) -> Outcomes:
    loss = -float(np.log(probability))
    return Outcomes(("yes",) * right + ("no",) * (of - right), (loss,) * of)


def against(best: Outcomes, other: Outcomes, metric: str = "accuracy") -> Comparison:
    return compared(metric, ["yes"] * len(best.outputs), best, other)


def test_a_length_that_loses_many_examples_is_worse_by_the_metric() -> None:
    found = against(outcomes(90, 100), outcomes(70, 100))
    assert (found.finding, found.by, found.wins, found.losses) == ("worse", "metric", 20, 0)
    assert found.low > 0


def test_equal_answers_on_many_examples_are_as_good_by_the_metric() -> None:
    found = against(outcomes(900, 1000, 0.9), outcomes(900, 1000, 0.3))
    assert (found.finding, found.by) == ("as good", "metric")
    assert found.high <= 0.02


def test_on_few_examples_the_losses_decide_when_they_differ_by_more_than_the_margin() -> None:
    """12 of 12 losses lower: a fair coin does that once in 4096 times."""
    found = against(outcomes(10, 12, 0.8), outcomes(9, 12, 0.6))
    assert (found.finding, found.by) == ("worse", "loss")
    assert found.sign_test == pytest.approx(2**-12)
    nearly = against(outcomes(10, 12, 0.8), outcomes(9, 12, 0.79))
    assert (nearly.finding, nearly.by) == ("not shown worse", "neither")  # one example alone is no lean


def mixed(both: int, best: int, other: int, neither: int) -> tuple[Outcomes, Outcomes]:
    """So many examples that both answer rightly, the best alone, the other alone, neither; losses alike."""
    counts = (both, best, other, neither)
    rights = [(True, True), (True, False), (False, True), (False, False)]
    pairs = [right for right, count in zip(rights, counts, strict=True) for _ in range(count)]
    mine, theirs = (tuple("yes" if right else "no" for right in each) for each in zip(*pairs, strict=True))
    return Outcomes(mine, (0.5,) * len(mine)), Outcomes(theirs, (0.5,) * len(theirs))


def test_a_length_behind_by_more_than_a_standard_error_is_likely_worse_and_not_taken() -> None:
    """23 against 17 of 80: 12 to 6 of those that differ is not shown at 95%, and 1.4 standard errors."""
    found = against(*mixed(11, 12, 6, 51))
    assert found.low < 0 < found.difference
    assert (found.finding, found.by) == ("likely worse", "metric")
    assert shortest_as_good([1, 4], [found, the_best()]) == 4
    even = against(*mixed(11, 9, 8, 52))
    assert even.finding == "not shown worse"
    assert shortest_as_good([1, 4], [even, the_best()]) == 1


def test_losses_lean_too_where_the_metric_says_nothing() -> None:
    """The target's probability is 0.5 against 0.3 and 0.6 in turn: 0.05 less, with a standard error of 0.024."""
    best, other = (Outcomes(("no",) * 40, tuple(-np.log(each))) for each in ([0.5] * 40, [0.3, 0.6] * 20))
    found = against(best, other)
    assert (found.finding, found.by) == ("likely worse", "loss")


def test_graded_answers_are_compared_by_their_scores() -> None:
    targets = ["one two three four"] * 60
    best = Outcomes(tuple(targets), (0.1,) * 60)
    half = Outcomes(("one two",) * 60, (0.1,) * 60)
    found = compared("token-f1", targets, best, half)
    assert (found.finding, found.by) == ("worse", "metric")
    assert found.difference == pytest.approx(1 - 2 / 3)  # F1 of two words out of four, both right: 2 * 2 / 6


def test_what_imitates_a_teacher_is_compared_by_its_likeness_to_it() -> None:
    """exp(-0.02) - exp(-0.7) = 0.48 on each of 60 lessons."""
    near, far = (Outcomes((), (loss,) * 60, is_taught=True) for loss in (0.02, 0.7))
    found = compared(LIKENESS, [""] * 60, near, far)
    assert (found.finding, found.by) == ("worse", "metric")
    assert found.difference == pytest.approx(np.exp(-0.02) - np.exp(-0.7))
    assert compared(LIKENESS, [""] * 60, near, near).difference == 0


def test_the_shortest_of_all_is_not_said_to_be_better_than_shorter_ones() -> None:
    """What is best of what was tried need not be what a shorter one would be worse than."""
    cost = PrefixCost(1, 1, 0.0)
    trials = tuple(
        LengthTrial(length, 0.5, 1.0, 1, 0.0, cost, (), found)
        for length, found in ((2, the_best()), (4, against(outcomes(9, 10), outcomes(8, 10))))
    )
    assert Sweep(trials, 2, 2, "accuracy", 0.95, 0.02, 10).sentence == (
        "2 positions: the best of 2, and no shorter one was tried."
    )


@pytest.mark.parametrize(("right", "said"), [(0, "worse"), (7, "likely worse")])
def test_a_length_is_said_to_be_worse_only_as_surely_as_it_is(right: int, said: str) -> None:
    cost = PrefixCost(1, 1, 0.0)
    trials = tuple(
        LengthTrial(length, 0.5, 1.0, 1, 0.0, cost, (), found)
        for length, found in ((2, against(outcomes(9, 10), outcomes(right, 10))), (4, the_best()))
    )
    assert Sweep(trials, 4, 4, "accuracy", 0.95, 0.02, 10).sentence == (
        f"4 positions: the best, and every shorter prefix is {said} by its metric or its losses."
    )


def test_the_shortest_that_is_not_worse_is_taken() -> None:
    worse, open_ = against(outcomes(9, 10), outcomes(0, 10)), against(outcomes(9, 10), outcomes(9, 10))
    assert [worse.finding, open_.finding] == ["worse", "not shown worse"]
    assert shortest_as_good([1, 2, 4, 8], [worse, open_, open_, the_best()]) == 2
    likely = against(outcomes(9, 10), outcomes(7, 10))
    assert likely.finding == "likely worse"
    assert shortest_as_good([1, 2, 4, 8], [worse, likely, open_, the_best()]) == 4
    assert shortest_as_good([1, 2, 4, 8], [worse, worse, worse, the_best()]) == 8


def test_a_length_that_is_as_good_is_called_worse_at_most_so_often() -> None:
    """Both right with probability 0.7, independently, losses alike: 120 repetitions at level 0.95.

    At an error of 0.05, more than 15 misses have probability 2e-4 (Binomial(120, 0.05)); at one of a third,
    more than 57 that are likely worse 5e-4.
    """
    rng, worse, likely = np.random.default_rng(0), 0, 0
    for _ in range(120):
        drawn = [
            Outcomes(
                tuple(np.where(rng.random(40) < 0.7, "yes", "no").tolist()), tuple(rng.exponential(size=40).tolist())
            )
            for _ in range(2)
        ]
        found = against(*drawn).finding
        worse, likely = worse + (found == "worse"), likely + (found == "likely worse")
    assert worse <= 15
    assert likely <= 57


# The sweep


@pytest.mark.parametrize("start", ["zero", "demonstrations"])
def test_a_shorter_start_is_the_beginning_of_a_longer_one(
    shared_host: Callable[[str], Host], write_task: Callable[..., Path], tmp_path: Path, start: str
) -> None:
    host = shared_host("gpt2")
    task = fw.Task.load(write_task(tmp_path, "gpt2", []))
    bench = Workbench(host, task, load_splits(task))

    def begun(positions: int) -> fw.Prefix:
        settings = PrefixSettings(positions=positions, longest=24, start=start)
        adaptation = FittedPrefix(host, positions=positions, seed=3)
        objective = objective_for(
            Predictor(host, bench.manner(), adaptation), bench.splits.fit, bench.splits.selection, bench.score
        )
        put_first_values(bench, objective, settings, seed=3)
        return adaptation.prefix()

    for short, long in zip(begun(5).layers, begun(24).slice(0, 5).layers, strict=True):
        assert (short.keys == long.keys).all()
        assert (short.values == long.values).all()


def test_a_sweep_gives_a_fit_of_the_chosen_length_and_writes_what_it_saw(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = fw.fit(None, task, length="auto", lengths=(4, 1, 4), out=out, **OPTIONS)
    sweep = made.sweep
    assert sweep is not None
    assert [trial.length for trial in sweep.trials] == [1, 4]
    assert made.prefix.positions == sweep.chosen <= sweep.best
    assert fw.load_bundle(out / "best.prefix").prefix == made.prefix
    assert sweep.trial.cost.bytes == made.prefix.nbytes
    # Two layers, 4 heads of 8 dims: 4 FLOPs for each of 32 numbers, layer and position.
    assert [trial.cost.flops_per_token for trial in sweep.trials] == [4 * 2 * 32, 4 * 2 * 32 * 4]
    assert [len(trial.ranks) for trial in sweep.trials] == [2, 2]
    told = json.loads((out / "length.json").read_text())
    assert told["chosen"] == sweep.chosen
    assert told["sentence"] == sweep.sentence
    ElementTree.parse(out / "length.svg")  # noqa: S314 - written a line above
    assert json.loads((out / "result.json").read_text())["sweep"] == told
    single = fw.fit(None, task, length=1, longest=4, **OPTIONS)
    assert single.prefix == fw.load_bundle(out / "lengths" / "001" / "best.prefix").prefix


@pytest.mark.parametrize(
    ("family", "kind", "fields"),
    [
        ("gpt2", "generate", {"teacher_text": "the price of bread and milk rose again this month"}),
        pytest.param("bart", "generate", {"teacher_file": "text.txt", "self_study": 16}, marks=pytest.mark.slow),
        pytest.param(
            "bert",
            "classify",
            {"teacher_text": "the price of bread and milk rose again this month"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_distillations_lengths_are_compared_by_how_far_each_is_from_the_teacher(
    write_task: Callable[..., Path],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    family: str,
    kind: str,
    fields: dict[str, Any],
) -> None:
    """Not by the examples' targets, which the teacher need not answer with."""
    path = write_task(tmp_path / "task", model_folder(family), [{"kind": "zero-shot"}], kind=kind)
    (path.parent / "text.txt").write_text("rain fell on the town while the boats stayed in the harbour. " * 9)
    out, told = tmp_path / "out", {**OPTIONS, **fields, "objective": "distillation"}
    made = fw.fit(None, path, length="auto", lengths=(1, 4), out=out, **told)
    assert made.sweep is not None
    assert made.sweep.metric == "likeness"
    assert made.sweep.best == max(made.sweep.trials, key=lambda trial: trial.selection).length
    for trial in made.sweep.trials:
        single = fw.fit(None, path, length=trial.length, longest=4, **told)
        assert trial.loss == pytest.approx(float(np.mean(single.apart)))
        assert trial.selection == pytest.approx(float(np.exp(-np.array(single.apart)).mean()))
        assert made.sweep.examples == len(single.apart)
    again = fw.fit.resume(out)
    assert again.sweep == made.sweep
    assert json.loads((out / "length.json").read_text())["metric"] == "likeness"


@pytest.mark.usefixtures("without_pictures")
def test_a_sweep_stopped_anywhere_goes_on_to_the_same_numbers(task: Path, tmp_path: Path) -> None:
    lengths, out = (1, 3), tmp_path / "out"
    whole = fw.fit(None, task, length="auto", lengths=lengths, **OPTIONS)
    for steps in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            fw.fit(None, task, length="auto", lengths=lengths, out=out, watch=StopsAfter(steps), **OPTIONS)
    for _ in range(2):  # the second time there is nothing left to do
        again = fw.fit.resume(out)
        assert again.sweep is not None
        assert whole.sweep is not None
        assert again.sweep.chosen == whole.sweep.chosen
        assert [t.loss for t in again.sweep.trials] == [t.loss for t in whole.sweep.trials]
        assert again.prefix == whole.prefix


KILLED = """
import os, signal, sys, threading
import foreword as fw
import foreword.tuning.length
path, out, options, after = sys.argv[1], sys.argv[2], eval(sys.argv[3]), float(sys.argv[4])
fw.Host.load(fw.Task.load(path).reference)
threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
fw.fit(None, path, length="auto", lengths=(1, 2, 4), out=out, **options)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_killed_at_random_until_it_ends_is_the_same_sweep(task: Path, tmp_path: Path) -> None:
    """Real SIGKILLs at any time after loading: in steps, in judging a length, in writing, between two lengths.

    Later ones come later, so that on any machine the sweep is killed a few times and ends.
    """
    out, options = tmp_path / "out", {"steps": 60, "batch_size": 4, "evaluate_every": 2, "patience": 60}
    whole = fw.fit(None, task, length="auto", lengths=(1, 2, 4), **options)
    rng, kills, ended = np.random.default_rng(0), 0, False
    while not ended:
        command = [
            sys.executable,
            "-c",
            KILLED,
            str(task),
            str(out),
            repr(options),
            str(rng.uniform(0.0, 0.5 + 0.3 * kills)),
        ]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert ran.returncode in (0, -signal.SIGKILL), ran.stderr
        ended = ran.returncode == 0
        kills += not ended
        assert kills < 60
    assert kills >= 3
    again = fw.fit.resume(out)
    assert again.sweep is not None
    assert whole.sweep is not None
    assert again.sweep.chosen == whole.sweep.chosen
    assert [trial.loss for trial in again.sweep.trials] == [trial.loss for trial in whole.sweep.trials]
    assert [trial.steps for trial in again.sweep.trials] == [trial.steps for trial in whole.sweep.trials]
    assert again.prefix == whole.prefix


@pytest.mark.usefixtures("without_pictures")
def test_a_damaged_note_of_a_length_is_made_again(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = fw.fit(None, task, length="auto", lengths=(1, 2), out=out, **OPTIONS)
    note = out / "lengths" / "001" / "fitted.json"
    before = json.loads(note.read_text())
    for damaged in (note.read_text()[:40], json.dumps(before | {"length": 2}), json.dumps(before | {"outcomes": {}})):
        note.write_text(damaged)
        assert fw.fit.resume(out).prefix == first.prefix
        assert json.loads(note.read_text())["outcomes"] == before["outcomes"]


@pytest.mark.usefixtures("without_pictures")
def test_the_usual_lengths_stop_where_longer_ones_make_no_sense(task: Path) -> None:
    """18 examples of 5 words with their labels: 45 positions would be half of all words."""
    made = fw.fit(None, task, length="auto", **(OPTIONS | {"steps": 1}))
    assert made.sweep is not None
    assert [trial.length for trial in made.sweep.trials] == [1, 2, 4, 8, 16, 32]


@pytest.mark.usefixtures("without_pictures")
def test_other_lengths_in_the_folder_are_refused_and_discarded_when_asked(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fw.fit(None, task, length="auto", lengths=(1, 2), out=out, **OPTIONS)
    (out / "lengths" / "mine.txt").write_text("kept")
    with pytest.raises(RunFolderError, match="lengths was"):
        fw.fit(None, task, length="auto", lengths=(1, 3), out=out, **OPTIONS)
    with pytest.raises(RunFolderError, match="lengths was"):
        fw.fit(None, task, length=2, out=out, **OPTIONS)
    fw.fit(None, task, length=2, out=out, fresh=True, **OPTIONS)
    assert [path.name for path in (out / "lengths").iterdir()] == ["mine.txt"]
    assert not (out / "length.json").exists()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"length": "auto", "lengths": ()}, "whole numbers from 1"),
    "a number": ({"length": "auto", "lengths": 0}, "found:    0"),
    "a text": ({"length": "auto", "lengths": "1,2"}, "found:    1,2"),
    "zero": ({"length": "auto", "lengths": (4, 0)}, "found:    0"),
    "text": ({"length": "auto", "lengths": ("four",)}, "found:    four"),
    "huge": ({"length": "auto", "lengths": (10**9,)}, "65,536"),
    "word": ({"length": "long"}, 'a whole number from 1, or "auto"'),
    "lora": ({"length": "auto", "method": "lora"}, "every method but prefix"),
    "both": ({"length": 4, "lengths": (1, 2)}, "together with length"),
    "shorter": ({"length": 4, "longest": 2}, "at least the positions"),
}


@pytest.mark.parametrize(("options", "said"), WRONG.values(), ids=WRONG)
def test_wrong_lengths_are_refused_before_any_model_is_loaded(
    task: Path, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "load", None)
    with pytest.raises(FitError, match=said):
        fw.fit(None, task, **options)


@pytest.mark.usefixtures("without_pictures")
def test_a_sweep_of_written_answers_compares_them(
    write_task: Callable[..., Path], model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path = write_task(tmp_path / "task", model_folder("gpt2"), [], kind="generate")
    made = fw.fit(None, path, length="auto", lengths=(1, 2), **(OPTIONS | {"steps": 1}))
    assert made.sweep is not None
    assert made.sweep.metric == "token-f1"
    assert all(trial.loss > 0 for trial in made.sweep.trials)
