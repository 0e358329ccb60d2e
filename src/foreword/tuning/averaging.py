"""The running average of a fit's states: what is judged, kept and given back, while the steps go on from the last one.

With a few hundred examples a step's batch says little, and the single state that scores best on a small selection split
is partly the luckiest: fits that differ in their seed alone end far apart. The average of the last steps is nearer to
where all of them go. Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


class RunningAverage:
    """Of the fitted ones among `parameters`, whose values it holds once more; with a decay of 0 it holds nothing.

    After the n-th step the average keeps min(decay, (1 + n) / (10 + n)) of itself, so that it hardly lags behind the
    first steps, which go farthest (the rule of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        # What is not fitted is the same in every state; and of a bias of minus infinity there is no average.
        self.parameters = {name: own for name, own in parameters.items() if own.requires_grad} if decay > 0 else {}
        self.decay, self.steps = decay, 0
        self.values = self._copied()

    def follow(self) -> None:
        """Take a new state in, after a step to it."""
        self.steps += 1
        kept = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, parameter in self.parameters.items():
            self.values[name].lerp_(parameter.detach(), 1 - kept)

    def restart(self) -> None:
        """Begin anew from the present state."""
        self.steps, self.values = 0, self._copied()

    def resume(self, values: Mapping[str, Tensor], steps: int) -> None:
        """Go on from what a checkpoint holds."""
        self.steps = steps
        self.values = {name: values[name].to(own.device) for name, own in self.parameters.items()}

    def take(self) -> None:
        """Make the average the present state."""
        for name, parameter in self.parameters.items():
            parameter.detach().copy_(self.values[name])

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within this context the parameters hold the average."""
        last = self._copied()
        self.take()
        try:
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.detach().copy_(last[name])

    def _copied(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
