"""The running average of a fit's states: what it is, and that it is what a fit looks at, keeps and goes on with."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foreword.tuning.averaging import RunningAverage
from foreword.tuning.checkpoint import Moment
from foreword.tuning.fittable import FitOutcome, FitWatch, StepTaken
from foreword.tuning.loop import fit
from foreword.tuning.loop_settings import FitSettings

WANTED = torch.tensor([1.0, -2.0])
SETTINGS = FitSettings(steps=20, batch_size=2, seconds=600.0, evaluate_every=4, patience=100, average=0.8)


class Place:
    """Two numbers that are fitted, and a bias of minus infinity that is not."""

    def __init__(self) -> None:
        self.values = nn.Parameter(torch.zeros(2))
        self.bias = nn.Parameter(torch.tensor([-math.inf]), requires_grad=False)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"values": self.values, "bias": self.bias}

    def groups(self, learning_rate: float | None) -> list[dict[str, Any]]:
        return [{"params": [self.values], "lr": 0.3 if learning_rate is None else learning_rate}]


class Noisy:
    """Squared distance to a point that moves with every step; `looked` are the states that were looked at."""

    examples, lengths = 2, (1, 1)

    def __init__(self, place: Place, scores: Any = None, poison: Any = lambda _: 1.0) -> None:
        self.place, self.scores, self.poison = place, scores, poison
        self.looked: dict[int, Tensor] = {}

    def loss(self, indices: list[int], step: int) -> Tensor:
        moved = WANTED + torch.tensor([math.sin(9.0 * step), math.cos(5.0 * step)])
        return self.poison(step) * (self.place.values - moved).square().mean()

    def weight(self, indices: list[int]) -> float:
        return float(len(indices))

    def evaluate(self, step: int) -> tuple[float, float]:
        self.looked[step] = self.place.values.detach().clone()
        return (float(step), 0.0) if self.scores is None else self.scores(step)

    def memory(self) -> dict[str, Tensor]:
        return {}

    def remember(self, memory: dict[str, Tensor]) -> None:
        del memory


class States(FitWatch):
    """The state behind each step, and the one that the parameters hold when a look is told."""

    def __init__(self, place: Place, stops: int = 0) -> None:
        self.place, self.stops = place, stops
        self.after: dict[int, Tensor] = {}
        self.told: dict[int, Tensor] = {}

    def stepped(self, taken: StepTaken) -> None:
        self.after[taken.step] = self.place.values.detach().clone()
        if taken.step == self.stops:
            raise KeyboardInterrupt

    def evaluated(self, moment: Moment) -> None:
        self.told[moment.step] = self.place.values.detach().clone()


def run(
    settings: FitSettings = SETTINGS, *, stops: int = 0, checkpoint: Path | None = None, **options: Any
) -> tuple[Place, Noisy, States, FitOutcome]:
    place = Place()
    problem, watch = Noisy(place, **options), States(place, stops)
    return place, problem, watch, fit(problem, place, settings, seed=0, watch=watch, checkpoint=checkpoint)


def by_hand(states: list[Tensor], decay: float) -> Tensor:
    """The average of a start and the states behind each step: after step n it keeps min(decay, (1 + n) / (10 + n))."""
    found = states[0].double()
    for step, state in enumerate(states[1:], start=1):
        kept = min(decay, (1 + step) / (10 + step))
        found = kept * found + (1 - kept) * state.double()
    return found.float()


@pytest.mark.parametrize("decay", [0.5, 0.8, 0.99])
def test_every_look_is_at_the_average_of_the_states_so_far(decay: float) -> None:
    _, problem, watch, _ = run(replace(SETTINGS, average=decay))
    states = [torch.zeros(2), *watch.after.values()]
    for step, looked in problem.looked.items():
        assert torch.allclose(looked, by_hand(states[: step + 1], decay), rtol=0, atol=1e-6)
        assert torch.equal(looked, watch.told[step])


def test_the_steps_are_those_of_a_fit_without_an_average() -> None:
    _, _, averaged, _ = run()
    _, problem, plain, _ = run(replace(SETTINGS, average=0.0))
    assert all(torch.equal(averaged.after[step], state) for step, state in plain.after.items())
    assert all(torch.equal(plain.after[step], looked) for step, looked in problem.looked.items() if step)


@pytest.mark.parametrize("best", [0, 8, 20])
def test_what_is_given_back_is_the_best_of_the_averages(best: int) -> None:
    place, problem, _, outcome = run(scores=lambda step: (-abs(step - best), 0.0))
    assert outcome.best.step == best
    assert torch.equal(place.values, problem.looked[best])
    assert math.isinf(place.bias)


def test_an_average_varies_less_than_its_states() -> None:
    """Of independent states the variance falls to (1 - d) / (1 + d), the sum of the squared weights: 1/9 for 0.8."""
    parameter = nn.Parameter(torch.zeros(100_000))
    average = RunningAverage({"states": parameter}, 0.8)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        with torch.no_grad():
            parameter.normal_(generator=generator)
        average.follow()
    assert float(average.values["states"].var()) == pytest.approx(1 / 9, rel=0.02)


@pytest.mark.parametrize("stops", [1, 3, 4, 5, 8, 13, 19, 20])
def test_a_fit_that_goes_on_has_its_average(tmp_path: Path, stops: int) -> None:
    whole, _, _, expected = run()
    with pytest.raises(KeyboardInterrupt):
        run(stops=stops, checkpoint=tmp_path / "checkpoint")
    place, _, _, outcome = run(checkpoint=tmp_path / "checkpoint")
    assert torch.equal(place.values, whole.values)
    assert outcome.best.step == expected.best.step == 20


def test_a_state_that_is_taken_back_begins_a_new_average() -> None:
    """From step 8 on the loss is a thousand times larger: at the look of step 12 that of step 8 is taken back."""
    place, problem, watch, outcome = run(
        replace(SETTINGS, steps=16),
        poison=lambda step: 1000.0 if 8 <= step < 12 else 1.0,
        scores=lambda step: (-abs(step - 8), 0.0),
    )
    assert any("back to the state of step 8" in text for text in outcome.notices)
    states = [problem.looked[8], *(watch.after[step] for step in range(13, 17))]
    assert torch.allclose(problem.looked[16], by_hand(states, 0.8), rtol=0, atol=1e-6)
    assert torch.equal(place.values, problem.looked[8])


def test_a_new_best_of_a_loss_that_ran_away_is_gone_on_from() -> None:
    """The score is best where the loss has run away: steps go on from the average that was looked at, not behind it."""
    _, problem, watch, outcome = run(
        replace(SETTINGS, steps=16, learning_rate=1e-6), poison=lambda step: 1000.0 if 8 <= step < 12 else 1.0
    )
    assert any("back to the state of step 12" in text for text in outcome.notices)
    assert torch.allclose(watch.after[13], problem.looked[12], rtol=0, atol=2e-6)


def test_nothing_is_held_without_a_decay_and_what_is_not_fitted_never() -> None:
    parameters = Place().parameters()
    assert RunningAverage(parameters, 0.0).values == {}
    assert list(RunningAverage(parameters, 0.8).values) == ["values"]


def test_the_last_state_is_put_back_when_a_look_fails() -> None:
    place = Place()
    average = RunningAverage(place.parameters(), 0.8)
    with torch.no_grad():
        place.values += 1
    average.follow()
    with pytest.raises(RuntimeError, match="no answer"):
        _fail_within(average)
    assert torch.equal(place.values, torch.ones(2))


def _fail_within(average: RunningAverage) -> None:
    with average.shown():
        raise RuntimeError("no answer")
