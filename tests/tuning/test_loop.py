"""The fitting loop on problems whose answers are known: where it goes, when it stops, and that it can go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foreword.engine.batches import in_batches
from foreword.errors import FitError
from foreword.tuning.adaptation import restore, state_of
from foreword.tuning.batching import Batches
from foreword.tuning.checkpoint import Moment
from foreword.tuning.fittable import FitOutcome, FitWatch, StepTaken
from foreword.tuning.loop import fit
from foreword.tuning.loop_settings import FitSettings

TARGETS = torch.tensor([[1.0, -2.0, 0.5], [1.2, -1.8, 0.7], [0.8, -2.2, 0.3], [1.0, -2.0, 0.5]])


class Vector:
    """Three numbers in two named parameters, each with its own learning rate."""

    def __init__(self) -> None:
        self.first, self.rest = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))
        self.rate = 0.1

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"first": self.first, "rest": self.rest}

    def groups(self, learning_rate: float | None) -> list[dict[str, Any]]:
        rate = self.rate if learning_rate is None else learning_rate
        return [{"params": [self.first], "lr": rate}, {"params": [self.rest], "lr": rate / 2}]

    @property
    def value(self) -> Tensor:
        return torch.cat([self.first, self.rest])


@dataclass
class Quadratic:
    """Mean squared distance to four points: least at their mean, (1, -2, 0.5).

    It also remembers a running sum that its losses depend on, as a real objective's bank of features does.
    """

    vector: Vector
    examples: int = 4
    lengths: Sequence[int] = (1, 1, 1, 1)
    remembered: Tensor = field(default_factory=lambda: torch.zeros(()))
    drawn: list[list[int]] = field(default_factory=list)
    scores: Callable[[int], tuple[float, float]] | None = None
    is_kept_by_loss: bool = False

    def loss(self, indices: list[int], step: int) -> Tensor:
        self.drawn.append(indices)
        self.remembered = self.remembered + 0.01 * (step + 1)
        return (self.vector.value - TARGETS[indices]).square().mean() * (1 + 0.1 * torch.sin(self.remembered))

    def weight(self, indices: list[int]) -> float:
        return float(len(indices))

    def evaluate(self, step: int) -> tuple[float, float]:
        if self.scores is not None:
            return self.scores(step)
        return 0.5, -float((self.vector.value.detach() - TARGETS.mean(dim=0)).square().sum())

    def memory(self) -> dict[str, Tensor]:
        return {"remembered": self.remembered}

    def remember(self, memory: dict[str, Tensor]) -> None:
        self.remembered = memory["remembered"]


SETTINGS = FitSettings(steps=20, batch_size=2, seconds=600.0, evaluate_every=4, patience=100)


def run(
    settings: FitSettings = SETTINGS, *, scores: Any = None, by_loss: bool = False, seed: int = 0, **options: Any
) -> tuple[Vector, Quadratic, FitOutcome]:
    vector = Vector()
    problem = Quadratic(vector, scores=scores, is_kept_by_loss=by_loss)
    return vector, problem, fit(problem, vector, settings, seed=seed, **options)


class Told(FitWatch):
    """Calls `stop` with the number of each step."""

    def __init__(self, stop: Callable[[int], None]) -> None:
        self.stop = stop

    def stepped(self, taken: StepTaken) -> None:
        self.stop(taken.step)


def without_time(history: tuple[Moment, ...]) -> list[Moment]:
    return [replace(moment, seconds=0.0) for moment in history]


def is_the_same(first: Vector, second: Vector) -> bool:
    return torch.equal(first.value, second.value)


# Where it goes


def test_a_convex_problem_is_solved() -> None:
    """Adam moves at most about a learning rate a step: 400 steps of 0.05 and more cover 20, the way is below 3.

    Batches of all four points make the loss smooth, so what remains is the last steps' size, below the learning rate.
    """
    vector, _, outcome = run(FitSettings(steps=400, batch_size=4, seconds=600.0, patience=1000))
    assert torch.allclose(vector.value.detach(), TARGETS.mean(dim=0), rtol=0, atol=0.05)
    assert outcome.stopped_by == "steps"
    assert outcome.history[-1].step == 400


def test_the_first_step_is_adams() -> None:
    """Adam's first step is its learning rate against the gradient's sign: m / (sqrt(v) + eps) = g / (|g| + eps)."""
    vector, _, _ = run(FitSettings(steps=1, batch_size=4, seconds=600.0), scores=lambda step: (step, 0.0))
    assert torch.allclose(vector.value.detach(), torch.tensor([0.1, -0.05, 0.05]), rtol=0, atol=1e-5)


def test_each_group_has_its_learning_rate() -> None:
    settings = FitSettings(steps=1, batch_size=4, seconds=600.0, learning_rate=0.3)
    vector, _, _ = run(settings, scores=lambda step: (step, 0.0))
    assert torch.allclose(vector.value.detach(), torch.tensor([0.3, -0.15, 0.15]), rtol=0, atol=1e-5)


def test_batches_are_distinct_examples_and_follow_the_seed() -> None:
    _, first, _ = run(seed=1)
    _, again, _ = run(seed=1)
    _, other, _ = run(seed=2)
    assert first.drawn == again.drawn != other.drawn
    assert first.drawn[:4] != first.drawn[4:8]  # nor do they start again with each evaluation
    assert all(len(set(batch)) == 2 and set(batch) <= set(range(4)) for batch in first.drawn)
    _, whole, _ = run(replace(SETTINGS, batch_size=99))
    assert all(sorted(batch) == [0, 1, 2, 3] for batch in whole.drawn)


# When it stops


def test_the_score_is_taken_at_the_start_every_few_steps_and_at_the_end() -> None:
    _, _, outcome = run(replace(SETTINGS, steps=10))
    assert [moment.step for moment in outcome.history] == [0, 4, 8, 10]
    assert outcome.history[0].loss is None
    assert all(moment.loss is not None for moment in outcome.history[1:])
    assert all(a.seconds <= b.seconds for a, b in zip(outcome.history, outcome.history[1:], strict=False))


def test_the_best_state_is_kept_and_not_the_last() -> None:
    scored = {0: 0.1, 4: 0.5, 8: 0.9, 12: 0.3, 16: 0.2, 20: 0.1}
    vector, _, outcome = run(scores=lambda step: (scored[step], 0.0))
    at_eight, _, _ = run(replace(SETTINGS, steps=8), scores=lambda step: (float(step), 0.0))
    assert (outcome.best.step, outcome.best.selection) == (8, 0.9)
    assert is_the_same(vector, at_eight)


def test_a_fit_that_never_helps_gives_the_start_back() -> None:
    vector, _, outcome = run(scores=lambda step: (-float(step), 0.0))
    assert outcome.best.step == 0
    assert is_the_same(vector, Vector())


def test_equal_scores_are_decided_by_the_tie_breaker() -> None:
    losses = {0: -3.0, 4: -1.0, 8: -2.0, 12: -1.0, 16: -4.0, 20: -9.0}
    _, _, outcome = run(scores=lambda step: (0.7, losses[step]))
    assert outcome.best.step == 4  # the first of the two best


def test_where_the_loss_says_what_is_wanted_the_state_of_the_least_loss_is_kept_and_patience_waits_for_it() -> None:
    """The score is highest at the start and falls, as that of a task which the fit does not aim at may."""
    losses = {0: -9.0, 4: -5.0, 8: -3.0, 12: -1.0, 16: -2.0, 20: -1.0}
    shown: list[float] = []

    class Shown(FitWatch):
        def stepped(self, taken: StepTaken) -> None:
            shown.append(taken.best)

    settings = replace(SETTINGS, patience=3)
    scored = lambda step: (1 / (1 + step), losses[step])  # noqa: E731
    _, _, outcome = run(settings, scores=scored, by_loss=True, watch=Shown())
    assert (outcome.best.step, outcome.best.selection) == (12, 1 / 13)
    assert (outcome.start_loss, outcome.best_loss) == (9.0, 1.0)
    assert outcome.history[-1].step == 20
    assert shown[-1] == 1 / 13
    _, _, by_score = run(settings, scores=scored)
    assert (by_score.best.step, by_score.best_loss, by_score.history[-1].step) == (0, 9.0, 12)


def test_it_stops_after_patience_evaluations_without_a_better_one() -> None:
    scored = {0: 0.1, 4: 0.5, 8: 0.4, 12: 0.6, 16: 0.6, 20: 0.5, 24: 0.2}
    settings = replace(SETTINGS, steps=100, patience=3)
    _, problem, outcome = run(settings, scores=lambda step: (scored[step], 0.0))
    assert (outcome.stopped_by, outcome.best.step) == ("patience", 12)
    assert outcome.history[-1].step == 24
    assert len(problem.drawn) == 24


def test_it_stops_when_its_time_is_over_and_evaluates_once_more() -> None:
    _, problem, outcome = run(replace(SETTINGS, steps=10**6, seconds=1e-9))
    assert outcome.stopped_by == "seconds"
    assert len(problem.drawn) <= 1
    assert outcome.history[-1].step == len(problem.drawn)


@dataclass
class Slow(Quadratic):
    """A step takes one second of `now`, a look ten."""

    now: float = 0.0

    def loss(self, indices: list[int], step: int) -> Tensor:
        self.now += 1
        return super().loss(indices, step)

    def evaluate(self, step: int) -> tuple[float, float]:
        self.now += 10
        return super().evaluate(step)


@pytest.mark.parametrize(("seconds", "last"), [(100.0, 59), (40.0, 9)])
def test_a_fit_leaves_time_for_its_last_look_and_for_its_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seconds: float, last: int
) -> None:
    """The first look takes 10 seconds, so three are left out, but at most half of all; and one for another step."""
    settings, path = replace(SETTINGS, steps=1000, seconds=seconds, evaluate_every=1000), tmp_path / "checkpoint"
    problem = Slow(Vector())
    monkeypatch.setattr("foreword.tuning.loop.time.perf_counter", lambda: problem.now)
    outcome = fit(problem, problem.vector, settings, seed=0, checkpoint=path)
    assert (outcome.stopped_by, outcome.history[-1].step, problem.now) == ("seconds", last, 20.0 + last)
    again = Slow(Vector())
    monkeypatch.setattr("foreword.tuning.loop.time.perf_counter", lambda: again.now)
    assert fit(again, again.vector, settings, seed=0, checkpoint=path).history == outcome.history
    assert again.now == 0


# That it can go on


@pytest.fixture
def unbroken() -> tuple[Vector, FitOutcome]:
    vector, _, outcome = run()
    return vector, outcome


@pytest.mark.parametrize("stops", range(1, 21))
def test_a_fit_interrupted_after_any_step_goes_on_as_if_it_was_not(
    tmp_path: Path, unbroken: tuple[Vector, FitOutcome], stops: int
) -> None:
    """Bit-equal parameters and history: the optimizer's moments, the batches and the problem's memory are all kept."""
    path = tmp_path / "checkpoint"

    def stop(step: int) -> None:
        if step == stops:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, watch=Told(stop))
    vector, problem, outcome = run(checkpoint=path)
    assert len(problem.drawn) == 20 - stops  # no step is taken twice
    assert is_the_same(vector, unbroken[0])
    assert without_time(outcome.history) == without_time(unbroken[1].history)
    assert outcome.best.step == unbroken[1].best.step


class Interrupting(Quadratic):
    """Stops in the middle of a loss or an evaluation, when half of the work is done."""

    at: int = 0
    where: str = ""

    def loss(self, indices: list[int], step: int) -> Tensor:
        made = super().loss(indices, step)
        if self.where == "loss" and step == self.at:
            raise KeyboardInterrupt
        return made

    def evaluate(self, step: int) -> tuple[float, float]:
        self.remembered = self.remembered * 1.5  # what only a whole evaluation may leave behind
        if self.where == "evaluation" and step == self.at:
            raise KeyboardInterrupt
        self.remembered = self.remembered / 1.5
        return super().evaluate(step)


WITHIN = [("loss", at) for at in (0, 1, 5, 8, 19)] + [("evaluation", at) for at in (0, 4, 8, 20)]


@pytest.mark.parametrize(("where", "at"), WITHIN)
def test_a_fit_interrupted_within_a_step_goes_on_from_before_it(
    tmp_path: Path, unbroken: tuple[Vector, FitOutcome], where: str, at: int
) -> None:
    path, broken = tmp_path / "checkpoint", Vector()
    problem = Interrupting(broken)
    problem.where, problem.at = where, at
    with pytest.raises(KeyboardInterrupt):
        fit(problem, broken, SETTINGS, seed=0, checkpoint=path)
    vector, _, outcome = run(checkpoint=path)
    assert is_the_same(vector, unbroken[0])
    assert without_time(outcome.history) == without_time(unbroken[1].history)


def test_a_fit_interrupted_again_and_again_is_the_same_fit(tmp_path: Path, unbroken: tuple[Vector, FitOutcome]) -> None:
    path = tmp_path / "checkpoint"

    def stop(step: int) -> None:
        raise KeyboardInterrupt

    interrupted = 0
    for _ in range(25):
        try:
            vector, _, outcome = run(checkpoint=path, watch=Told(stop))
            break
        except KeyboardInterrupt:
            interrupted += 1
    assert interrupted == 20
    assert is_the_same(vector, unbroken[0])
    assert without_time(outcome.history) == without_time(unbroken[1].history)


def test_a_finished_fit_is_not_fitted_again(tmp_path: Path, unbroken: tuple[Vector, FitOutcome]) -> None:
    path = tmp_path / "checkpoint"
    run(checkpoint=path)
    vector, problem, outcome = run(checkpoint=path)
    assert problem.drawn == []
    assert is_the_same(vector, unbroken[0])
    assert outcome.stopped_by == "steps"


def test_the_time_of_all_resumes_counts(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"

    def stop(step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, watch=Told(stop))
    _, _, outcome = run(checkpoint=path)
    times = [moment.seconds for moment in outcome.history]
    assert times == sorted(times)
    assert outcome.seconds >= times[-1] > 0


# What is not gone on from


IDENTITY = {"seed": 0, "files": {"teacher_file": "a1"}}


def saved(path: Path) -> bytes:
    run(checkpoint=path, identity=IDENTITY)
    return path.read_bytes()


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "identity": ({"identity": {**IDENTITY, "files": {"teacher_file": "b2"}}}, 'files.teacher_file was "a1", is "b2"'),
    "none": ({"identity": {}}, "seed was 0, is null"),
    "batch size": ({"settings": replace(SETTINGS, batch_size=3)}, "batch_size was 2, is 3"),
    "steps": ({"settings": replace(SETTINGS, steps=21)}, "steps was 20, is 21"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_the_checkpoint_of_another_fit_is_refused_naming_both(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    path = tmp_path / "checkpoint"
    before = saved(path)
    with pytest.raises(FitError, match="of another fit") as caught:
        run(change.get("settings", SETTINGS), checkpoint=path, identity=change.get("identity", IDENTITY))
    assert caught.value.expected != caught.value.found
    assert said in str(caught.value.found)
    assert path.read_bytes() == before


def test_the_checkpoint_of_other_parameters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    saved(path)
    vector = Vector()
    vector.rest = nn.Parameter(torch.zeros(3))
    with pytest.raises(FitError, match="of another fit"):
        fit(Quadratic(vector), vector, SETTINGS, seed=0, checkpoint=path, identity=IDENTITY)


def is_refused(path: Path, content: bytes) -> bool:
    path.write_bytes(content)
    try:
        run(checkpoint=path, identity=IDENTITY)
    except FitError as error:
        return "cannot be read" in error.what and str(path) in error.what
    return False


def test_a_damaged_checkpoint_is_refused_wherever_the_damage_is(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    whole = saved(path)
    for length in (0, 1, 31, 32, 33, len(whole) // 2, len(whole) - 1):
        assert is_refused(path, whole[:length]), length
    for position in range(0, len(whole), 53):
        assert is_refused(path, whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :]), position
    rng = np.random.default_rng(0)
    for length in range(0, 200, 7):
        assert is_refused(path, rng.bytes(length))
    path.write_bytes(whole)
    assert run(checkpoint=path, identity=IDENTITY)[1].drawn == []  # and the whole one is still good


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("a pickle was executed",))


WITHOUT_PARTS = ({"identity": "this fit"}, {"identity": "this fit", "settings": {}, "state": 3})


@pytest.mark.parametrize(
    "content",
    [{}, [], "text", 3, None, torch.ones(3), *WITHOUT_PARTS, Evil()],
    ids=lambda content: type(content).__name__,
)
def test_a_whole_file_of_something_else_is_refused_and_never_executed(tmp_path: Path, content: object) -> None:
    import hashlib
    import io

    buffer = io.BytesIO()
    torch.save(content, buffer)
    written = buffer.getvalue()
    assert is_refused(tmp_path / "checkpoint", hashlib.sha256(written).digest() + written)
    assert is_refused(tmp_path / "checkpoint", written)


def test_a_folder_in_the_checkpoints_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FitError, match="cannot be read"):
        run(checkpoint=tmp_path)


# What is told


def test_the_first_score_is_judged_once_and_what_is_found_is_told_by_a_fit_that_goes_on_too(tmp_path: Path) -> None:
    judged: list[float] = []

    def judge(score: float) -> list[str]:
        judged.append(score)
        return [f"it begins at {score}"]

    def stop(step: int) -> None:
        if step == 6:
            raise KeyboardInterrupt

    path = tmp_path / "checkpoint"
    options: dict[str, Any] = {
        "checkpoint": path,
        "identity": IDENTITY,
        "judge_start": judge,
        "notices": ["told before"],
    }
    with pytest.raises(KeyboardInterrupt):
        run(watch=Told(stop), **options)
    _, _, outcome = run(**options)
    assert judged == [0.5]
    assert outcome.notices == ("told before", "it begins at 0.5")


@dataclass
class Crowded(Quadratic):
    """Four points are scored by two at a time, as memory has no room for more."""

    def evaluate(self, step: int) -> tuple[float, float]:
        def computed(part: list[int]) -> list[int]:
            if len(part) > 2:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return part

        assert len(list(in_batches(self.lengths, 4, computed))) == 2
        return super().evaluate(step)


def test_what_is_scored_in_halves_is_told_once_and_is_no_warning_where_somebody_is_told() -> None:
    text = "a batch of 4 texts does not fit into memory: read in halves"
    vector = Vector()
    outcome = fit(Crowded(vector), vector, SETTINGS, seed=0, watch=FitWatch())
    assert outcome.notices == (text,)
    vector = Vector()
    with pytest.warns(RuntimeWarning, match=text):
        fit(Crowded(vector), vector, SETTINGS, seed=0)


@pytest.mark.parametrize(("more", "told"), [({}, 1), ({"WORLD_SIZE": "1"}, 0)], ids=["on CPUs", "one"])
def test_one_process_where_several_were_asked_for_is_told(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, str], told: int
) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of the one process that it starts."""
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", **more}.items():
        monkeypatch.setenv(name, value)
    _, _, outcome = run()
    assert len(outcome.notices) == told
    assert all("torchrun" in text for text in outcome.notices)


# What is not a number


@dataclass
class Poisoned(Quadratic):
    """Losses that are not finite at some steps."""

    bad: Callable[[int], bool] = lambda _: False
    value: float = math.nan

    def loss(self, indices: list[int], step: int) -> Tensor:
        made = super().loss(indices, step)
        return made * self.value if self.bad(step) else made


@pytest.fixture(params=[math.nan, math.inf], ids=["NaN", "inf"])
def poison(request: pytest.FixtureRequest) -> float:
    return request.param


def test_a_step_that_is_not_finite_changes_nothing_but_halves_the_learning_rates(poison: float) -> None:
    """Step 0 is spoilt, so step 1 is Adam's first, with half its rate: 0.05 and 0.025 (see above)."""
    vector = Vector()
    problem = Poisoned(vector, bad=lambda step: step == 0, value=poison, scores=lambda step: (step, 0.0))
    settings = FitSettings(steps=2, batch_size=4, seconds=600.0)
    outcome = fit(problem, vector, settings, seed=0)
    assert torch.allclose(vector.value.detach(), torch.tensor([0.05, -0.025, 0.025]), rtol=0, atol=1e-5)
    assert outcome.history[-1].loss is not None
    assert math.isfinite(outcome.history[-1].loss)


def test_a_few_steps_that_are_not_finite_do_not_spoil_a_fit(poison: float) -> None:
    vector = Vector()
    problem = Poisoned(vector, bad=lambda step: step in (3, 50), value=poison)
    outcome = fit(problem, vector, FitSettings(400, 4, 600.0, patience=1000), seed=0)
    assert torch.allclose(vector.value.detach(), TARGETS.mean(dim=0), rtol=0, atol=0.05)
    assert all(moment.loss is None or math.isfinite(moment.loss) for moment in outcome.history)


def test_a_fit_that_stays_not_finite_is_refused(poison: float) -> None:
    """0.05 halved 26 times is below 1e-9, the least learning rate."""
    vector = Vector()
    problem = Poisoned(vector, bad=lambda _: True, value=poison)
    with pytest.raises(FitError, match="diverges"):
        fit(problem, vector, FitSettings(100, 2, 600.0, patience=1000), seed=0)
    assert len(problem.drawn) == 26
    assert is_the_same(vector, Vector())


@dataclass
class Cliff(Poisoned):
    """Not finite, gradient and score included, where a number is above 5: no smaller step leads away from there."""

    def loss(self, indices: list[int], step: int) -> Tensor:
        self.bad = lambda _: bool(self.vector.value.abs().max() > 5)
        return super().loss(indices, step)

    def evaluate(self, step: int) -> tuple[float, float]:
        score, tie_breaker = super().evaluate(step)
        return (1.0, math.nan) if self.vector.value.abs().max() > 5 else (score, tie_breaker)


@pytest.mark.parametrize("evaluate_every", [1, 4, 100])
def test_a_fit_that_leaves_what_is_finite_goes_back_and_reaches_the_least_loss(
    poison: float, evaluate_every: int
) -> None:
    vector = Vector()
    vector.rate = 100.0
    settings = FitSettings(400, 4, 600.0, evaluate_every=evaluate_every, patience=1000)
    outcome = fit(Cliff(vector, value=poison), vector, settings, seed=0)
    assert torch.allclose(vector.value.detach(), TARGETS.mean(dim=0), rtol=0, atol=0.05)
    assert any("back to the state of step 0" in text for text in outcome.notices)


@dataclass
class Trap(Cliff):
    """As good as can be where a number is above 5, by score and its tie-breaker; but no gradient there is finite."""

    def evaluate(self, step: int) -> tuple[float, float]:
        return (1.0, 0.0) if self.vector.value.abs().max() > 5 else super().evaluate(step)


@pytest.mark.parametrize("evaluate_every", [1, 3, 4, 100])
def test_a_state_that_no_step_leads_away_from_is_not_the_one_to_go_back_to(poison: float, evaluate_every: int) -> None:
    vector = Vector()
    vector.rate = 100.0
    settings = FitSettings(400, 4, 600.0, evaluate_every=evaluate_every, patience=1000)
    outcome = fit(Trap(vector, value=poison), vector, settings, seed=0)
    assert torch.allclose(vector.value.detach(), TARGETS.mean(dim=0), rtol=0, atol=0.05)
    assert outcome.best.step > 300


def test_the_last_state_may_be_the_best_though_no_step_follows() -> None:
    _, _, outcome = run(scores=lambda step: (float(step), 0.0))
    assert outcome.best.step == outcome.history[-1].step


@pytest.mark.parametrize("bad", [(math.nan, 0.0), (0.5, math.nan), (0.5, -math.inf), (math.nan, math.nan)])
def test_a_score_that_is_not_a_number_is_worse_than_any(bad: tuple[float, float]) -> None:
    scored = {0: bad, 4: (0.5, -1.0), 8: bad, 12: (0.5, -2.0), 16: bad, 20: bad}
    _, _, outcome = run(scores=lambda step: scored[step])
    assert outcome.best.step == 4


def test_a_fit_without_any_score_gives_the_start_back() -> None:
    vector, _, outcome = run(scores=lambda _: (math.nan, math.nan))
    assert outcome.best.step == 0
    assert is_the_same(vector, Vector())


# States


def test_a_state_is_a_copy_that_can_be_put_back() -> None:
    vector = Vector()
    state = state_of(vector.parameters())
    with torch.no_grad():
        vector.rest += 1
    assert torch.equal(state["rest"], torch.zeros(2))
    restore(vector.parameters(), state)
    assert is_the_same(vector, Vector())
    for other in ({}, {"first": torch.zeros(1)}, {"first": torch.zeros(1), "rest": torch.zeros(3)}):
        with pytest.raises(FitError):
            restore(vector.parameters(), other)


# What the loop does of its own accord


def test_a_loss_that_runs_away_takes_the_best_state_back_with_half_the_rates() -> None:
    """The loss at steps 8 to 11 is a thousand times larger: above three times the first mean and 1."""
    vector = Vector()
    problem = Poisoned(vector, bad=lambda step: 8 <= step < 12, value=1000.0, scores=lambda step: (-abs(step - 4), 0.0))
    outcome = fit(problem, vector, replace(SETTINGS, steps=12), seed=0)
    at_four, _, _ = run(replace(SETTINGS, steps=4), scores=lambda step: (step, 0.0))
    assert is_the_same(vector, at_four)
    assert outcome.factor == 0.5
    assert any("ran away" in text for text in outcome.notices)


def test_a_loss_that_runs_away_before_the_first_look_is_seen_there() -> None:
    """Three times the first loss: the mean of all steps up to the first look would hide what ran away in them."""
    vector = Vector()
    problem = Poisoned(vector, bad=lambda step: 1 <= step < 8, value=1000.0, scores=lambda step: (-step, 0.0))
    outcome = fit(problem, vector, replace(SETTINGS, steps=8), seed=0)
    assert outcome.factor < 1
    assert any("back to the state of step 0" in text for text in outcome.notices)


def test_a_first_batch_without_the_examples_that_cost_most_is_no_measure_of_what_runs_away() -> None:
    """All steps but the first cost 10 more, as the selection split does from the start on."""
    vector = Vector()

    class Rare(Quadratic):
        def loss(self, indices: list[int], step: int) -> Tensor:
            return super().loss(indices, step) + (10.0 if step else 0.0)

    plain, _, _ = run(replace(SETTINGS, steps=8), scores=lambda step: (step, -11.0))
    outcome = fit(Rare(vector, scores=lambda step: (step, -11.0)), vector, replace(SETTINGS, steps=8), seed=0)
    assert outcome.notices == ()
    assert is_the_same(vector, plain)


def test_what_was_remembered_of_a_state_that_ran_away_is_forgotten_with_it() -> None:
    """The sum that the losses depend on grows by 0.01 (step + 1) a step; from step 12 on it begins anew."""
    vector = Vector()
    problem = Poisoned(vector, bad=lambda step: 8 <= step < 12, value=1000.0, scores=lambda step: (-abs(step - 4), 0.0))
    fit(problem, vector, replace(SETTINGS, steps=14), seed=0)
    assert float(problem.remembered) == pytest.approx(0.01 * (13 + 14))


def test_what_has_no_part_in_the_loss_is_refused() -> None:
    class Detached(Quadratic):
        def loss(self, indices: list[int], step: int) -> Tensor:
            return super().loss(indices, step).detach()

    vector = Vector()
    with pytest.raises(FitError, match="has a part in the answers"):
        fit(Detached(vector), vector, SETTINGS, seed=0)


class Narrow(Quadratic):
    """Memory for so many examples at once."""

    room: int = 99

    def loss(self, indices: list[int], step: int) -> Tensor:
        if len(indices) > self.room:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: can't allocate memory")
        self.drawn.append(indices)
        return (self.vector.value - TARGETS[indices]).square().mean()


def narrow(room: int, **options: Any) -> tuple[Vector, Narrow, FitOutcome]:
    vector = Vector()
    problem = Narrow(vector)
    problem.room = room
    return vector, problem, fit(problem, vector, replace(SETTINGS, batch_size=4, **options), seed=0)


def test_a_batch_that_does_not_fit_is_read_in_parts_with_a_notice() -> None:
    """The mean over four points is that over its halves' means: equal up to rounding at every step."""
    whole, _, _ = narrow(4)
    for room, parts in ((2, 2), (1, 1)):
        vector, problem, outcome = narrow(room)
        assert torch.allclose(vector.value, whole.value, rtol=0, atol=1e-5)
        assert {len(part) for part in problem.drawn} == {parts}
        assert len(outcome.notices) == 2 // parts
    with pytest.raises(FitError, match="Not even one example"):
        narrow(0)


def test_an_error_that_is_not_about_memory_is_not_hidden() -> None:
    class Broken(Quadratic):
        def loss(self, indices: list[int], step: int) -> Tensor:
            raise RuntimeError("shapes differ")

    vector = Vector()
    with pytest.raises(RuntimeError, match="shapes differ"):
        fit(Broken(vector), vector, SETTINGS, seed=0)


def test_a_search_finds_rates_whose_first_steps_lower_the_loss_most() -> None:
    """Of multiples of a rate that is far too small the largest is the best; of one that is far too large, the least."""
    for told, expected in ((1e-3, 10.0), (30.0, 1 / 30)):
        vector = Vector()
        vector.rate = told
        outcome = fit(Quadratic(vector), vector, replace(SETTINGS, learning_rate="find", batch_size=4), seed=0)
        assert outcome.factor == expected
        assert any("learning rates found" in text for text in outcome.notices)


def test_a_search_leaves_no_trace_but_the_rates() -> None:
    vector, _, outcome = run(replace(SETTINGS, learning_rate="find"))
    by_hand, _, _ = run(replace(SETTINGS, learning_rate=0.1 * outcome.factor))
    assert is_the_same(vector, by_hand)


def test_a_search_that_was_interrupted_is_the_same_fit(tmp_path: Path) -> None:
    settings = replace(SETTINGS, learning_rate="find")
    whole, _, _ = run(settings)

    def stop(step: int) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(settings, checkpoint=tmp_path / "checkpoint", watch=Told(stop))
    again, problem, _ = run(settings, checkpoint=tmp_path / "checkpoint")
    assert is_the_same(whole, again)
    assert len(problem.drawn) == 15  # nothing is searched twice


def test_the_cosine_rises_and_falls_to_a_tenth() -> None:
    settings = replace(SETTINGS, steps=100, schedule="cosine")
    rates = [settings.rate_at(step) for step in range(101)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0
    assert all(a >= b for a, b in pairwise(rates[5:]))
    assert rates[100] == pytest.approx(0.1)


def test_the_inverse_root_does_not_ask_how_many_steps_are_to_come() -> None:
    few, many = (replace(SETTINGS, steps=steps, schedule="inverse-sqrt") for steps in (10, 1000))
    assert [few.rate_at(step) for step in range(10)] == [many.rate_at(step) for step in range(10)]
    assert few.rate_at(0) == 1.0
    assert [many.rate_at(step) for step in (32, 96, 480)] == pytest.approx([0.5**0.5, 0.5, 0.25])


# Which examples a step reads


def test_an_epoch_reads_every_example_once_as_far_as_whole_batches_go() -> None:
    batches = Batches(23, 5, 3)
    epoch = [index for step in range(4) for index in batches.at(step)]
    assert len(set(epoch)) == 20
    assert sorted(Batches(23, 5, 3).at(2)) == sorted(batches.at(2))
    assert epoch != [index for step in range(4, 8) for index in batches.at(step)]


def test_bucketed_batches_hold_examples_of_like_length() -> None:
    """40 lengths in batches of 4 out of one pool: sorted neighbours, so each spans 4 of the 32 in its pool."""
    lengths = np.random.default_rng(0).permutation(40)
    batches = Batches(40, 4, 0, lengths)
    pools = [sorted(lengths[batches.at(step)]) for step in range(10)]
    spans = [found[-1] - found[0] for found in pools]
    plain = [np.ptp(lengths[Batches(40, 4, 0).at(step)]) for step in range(10)]
    assert np.mean(spans) < np.mean(plain) / 2
    assert sorted(index for step in range(10) for index in batches.at(step)) == list(range(40))
