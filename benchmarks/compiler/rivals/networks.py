"""Multilayer perceptrons with at least as many parameters as a prefix stores, trained in float64 to their best.

Every shape (activation and depth) starts from several seeds and learning rates, all trained at once by Adam with a
cosine schedule on the whole sample. The best three by the error at the points of selection go on to L-BFGS with a
strong Wolfe search, and the best of those, where its parameters are few enough, to Levenberg and Marquardt's method,
the strongest that there is for small networks. After each the outer layer is solved by least squares. The best on the
points of selection is judged.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from interpolants import Result
from targets import Case, Points, drawn
from torch import Tensor
from torch.func import jacrev, vmap

from foreword.compiler.charts import chart_of
from foreword.compiler.domain import Cube

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "gelu": torch.nn.functional.gelu,
    "sine": torch.sin,
    "relu": torch.relu,
}
RATES = (3e-3, 1e-2, 1e-2, 3e-2)  # of Adam, one for each restart
MARQUARDT_LIMIT = 1_100  # parameters: its matrix is dense
ADAM, L_BFGS = 0.3, 0.6  # of the time, counted from the start; the rest is Levenberg and Marquardt's
FINALISTS = 3
Shapes = tuple[tuple[str, int], ...]
SMOOTH: Shapes = (("tanh", 1), ("tanh", 2), ("gelu", 2))
SINES: Shapes = (("sine", 1), ("sine", 2))  # apart: a sum of waves is such a network itself
RELU: Shapes = (("relu", 1), ("relu", 2), ("relu", 3))


@dataclass
class Network:
    """Restarts of one shape: each layer's weights `(restart, in, out)` and biases `(restart, 1, out)`."""

    activation: str
    layers: list[tuple[Tensor, Tensor]]
    label: str
    floats: int
    history: list[str] = field(default_factory=list)

    def __call__(self, queries: Tensor) -> Tensor:
        """Outputs `(restart, batch)`."""
        return _output(self.layers, self.activation, queries.expand(len(self.layers[0][0]), *queries.shape))

    def hidden(self, queries: Tensor) -> Tensor:
        """What the outer layer reads, `(restart, batch, width)`."""
        found = queries.expand(len(self.layers[0][0]), *queries.shape)
        for weights, biases in self.layers[:-1]:
            found = ACTIVATIONS[self.activation](torch.baddbmm(biases, found, weights))
        return found

    def parts(self) -> list[Network]:
        """Each restart by itself."""
        return [self.only(restart) for restart in range(len(self.layers[0][0]))]

    def only(self, restart: int) -> Network:
        """One of the restarts by itself."""
        layers = [(w[restart : restart + 1].clone(), b[restart : restart + 1].clone()) for w, b in self.layers]
        return Network(self.activation, layers, self.label, self.floats, list(self.history))


def _output(layers: list[tuple[Tensor, Tensor]], activation: str, found: Tensor) -> Tensor:
    for weights, biases in layers[:-1]:
        found = ACTIVATIONS[activation](torch.baddbmm(biases, found, weights))
    return torch.baddbmm(layers[-1][1], found, layers[-1][0])[..., 0]


def trained(
    case: Case, selection: Points, judged: Points, *, seconds: float, shapes: Shapes, told: bool = False
) -> list[Result]:
    """The best network after so many seconds: by Adam and L-BFGS; and, where few enough parameters, by the third too.

    With `told`, the first neurons are the kink's two sides, and a network counts as it starts, too.
    """
    started = time.process_time()
    generator = torch.Generator().manual_seed(0)
    sample = drawn(case, min(4_000, max(600, 4 * case.floats)), 5)
    queries, wanted = torch.from_numpy(sample.queries), torch.from_numpy(sample.values)
    middle, size = wanted.mean(), wanted.std()
    wanted = (wanted - middle) / size
    chosen = (torch.from_numpy(selection.queries), (torch.from_numpy(selection.values) - middle) / size)
    made = [_made(case, activation, depth, generator, told=told) for activation, depth in shapes]
    found: list[tuple[float, Network]] = []
    for index, network in enumerate(made):
        if told:
            _solve_outer(network, queries, wanted)
            found += zip(_errors(network, chosen), network.parts(), strict=True)
        until = started + seconds * ADAM * (index + 1) / len(made)
        _adam(network, queries[:2_000], wanted[:2_000], until)
        found += zip(_errors(network, chosen), network.parts(), strict=True)
    finalists = sorted(found, key=lambda made: made[0])[:FINALISTS]
    is_small = finalists[0][1].floats <= MARQUARDT_LIMIT
    polished = []
    for number, (_, network) in enumerate(finalists):
        share = ((L_BFGS if is_small else 1.0) - ADAM) * (number + 1) / len(finalists)
        _l_bfgs(network, queries, wanted, started + seconds * (ADAM + share))
        polished.append(_solved(network, queries, wanted, chosen))
    best = min(finalists + polished, key=lambda made: made[0])

    def judge() -> Result:
        with torch.no_grad():
            outputs = best[1](torch.from_numpy(judged.queries))[0] * size + middle
        error = float(np.abs(outputs.numpy() - judged.values).max())
        label = f"{best[1].label}, {best[1].floats} floats: {', '.join(best[1].history)}"
        return Result(error, time.process_time() - started, label)

    results = [judge()]
    if is_small:
        network = min(polished, key=lambda made: made[0])[1].only(0)
        _marquardt(network, queries, wanted, started + seconds)
        best = min(best, _solved(network, queries, wanted, chosen), key=lambda made: made[0])
        results.append(judge())
    return results


def _made(case: Case, activation: str, depth: int, generator: torch.Generator, *, told: bool) -> Network:
    columns = case.domain.columns

    def floats(width: int) -> int:
        return columns * width + width + (depth - 1) * (width * width + width) + width + 1

    width = 1
    while floats(width) < case.floats:
        width += 1
    sizes = [columns, *[width] * depth, 1]
    layers = []
    for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        # Glorot's width, wider in the first layer, where the inputs are few: sharper features from the start.
        scale = math.sqrt(2.0 / fan_in) * (1.5 if number == 0 else 1.0)
        weights = scale * torch.randn(len(RATES), fan_in, fan_out, generator=generator, dtype=torch.float64)
        biases = torch.rand(len(RATES), 1, fan_out, generator=generator, dtype=torch.float64) * 2 - 1
        layers.append((weights, biases * (scale if number == 0 else 0.1)))
    name = f"{activation} {'x'.join([str(width)] * depth)}"
    network = Network(activation, layers, name + (" told the kink" if told else ""), floats(width))
    if told:
        _tell(network, case)
    return network


def _tell(network: Network, case: Case) -> None:
    """The first two neurons of every inner layer carry the two sides max(t, 0) and max(-t, 0), t = <n, x> - c."""
    normal, offset = case.kinks[0]
    if isinstance(case.domain, Cube):
        chart = chart_of(case.domain)
        offset = offset - float(normal @ np.array(chart.middle))  # type: ignore[union-attr]
        normal = normal * np.array(chart.half)  # type: ignore[union-attr]
    weights, biases = network.layers[0]
    sides = torch.from_numpy(np.stack([normal, -normal], axis=1))
    weights[:, :, :2], biases[:, :, :2] = sides, torch.tensor([-offset, offset], dtype=torch.float64)
    for weights, biases in network.layers[1:-1]:
        weights[:, :, :2], biases[:, :, :2] = 0.0, 0.0
        weights[:, 0, 0] = weights[:, 1, 1] = 1.0


def _adam(network: Network, queries: Tensor, wanted: Tensor, until: float) -> None:
    """Full batches; the schedule ends when the time does."""
    parameters = [part.requires_grad_() for layer in network.layers for part in layer]
    rates = torch.tensor(RATES, dtype=torch.float64)[:, None, None]
    first = [torch.zeros_like(part) for part in parameters]
    second = [torch.zeros_like(part) for part in parameters]
    begun, step = time.process_time(), 0
    while (now := time.process_time()) < until:
        step += 1
        share = (now - begun) / (until - begun)
        loss = ((network(queries) - wanted) ** 2).mean(dim=1).sum()
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            cosine = rates * 0.5 * (1 + math.cos(math.pi * share)) * min(1.0, step / 50)
            for part, gradient, m, v in zip(parameters, gradients, first, second, strict=True):
                m.mul_(0.9).add_(gradient, alpha=0.1)
                v.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
                part -= cosine * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-12)
    network.layers = [(weights.detach(), biases.detach()) for weights, biases in network.layers]
    network.history.append(f"Adam {step}")


def _l_bfgs(network: Network, queries: Tensor, wanted: Tensor, until: float) -> None:
    parameters = [part.requires_grad_() for layer in network.layers for part in layer]
    steps = 0
    while time.process_time() < until:
        optimiser = torch.optim.LBFGS(
            parameters,
            max_iter=50,
            history_size=100,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )
        before = math.inf
        while time.process_time() < until:

            def closure(optimiser: torch.optim.Optimizer = optimiser) -> Tensor:
                optimiser.zero_grad()
                loss = ((network(queries) - wanted) ** 2).mean()
                torch.autograd.backward(loss)
                return loss.detach()

            loss = float(optimiser.step(closure))
            steps += 50
            if not loss < before * (1 - 1e-7):
                break
            before = loss
        if before == math.inf or not loss < before:
            break
    network.layers = [(weights.detach(), biases.detach()) for weights, biases in network.layers]
    network.history.append(f"L-BFGS {steps}")


def _marquardt(network: Network, queries: Tensor, wanted: Tensor, until: float) -> None:
    """(J'J + damping diag) step = -J'r, the damping lowered after a success and raised after a failure."""
    shapes = [part.shape for layer in network.layers for part in layer]
    sizes = [shape.numel() for shape in shapes]
    flat = torch.cat([part.reshape(-1) for layer in network.layers for part in layer])

    def output(parameters: Tensor, row: Tensor) -> Tensor:
        parts = [p.reshape(s) for p, s in zip(parameters.split(sizes), shapes, strict=True)]
        layers = list(zip(parts[::2], parts[1::2], strict=True))
        return _output(layers, network.activation, row[None, None])[0, 0]

    jacobian = vmap(jacrev(output), in_dims=(None, 0))
    outputs = vmap(output, in_dims=(None, 0))
    rows = slice(0, max(1_000, 4 * network.floats))
    queries, wanted = queries[rows], wanted[rows]
    damping, steps = 1e-2, 0
    residual = outputs(flat, queries) - wanted
    while time.process_time() < until and damping < 1e12:
        J = jacobian(flat, queries)
        normal, slope = J.T @ J, J.T @ residual
        floor = normal.diagonal() + 1e-12 * normal.diagonal().max()
        while damping < 1e12 and time.process_time() < until:
            factor, info = torch.linalg.cholesky_ex(normal + torch.diag(damping * floor))
            if not int(info):
                tried = flat - torch.cholesky_solve(slope[:, None], factor)[:, 0]
                found = outputs(tried, queries) - wanted
                if float(found.square().sum()) < float(residual.square().sum()):
                    flat, residual, damping = tried, found, max(damping / 4, 1e-16)
                    break
            damping *= 3
        steps += 1
    parts = [p.reshape(s) for p, s in zip(flat.split(sizes), shapes, strict=True)]
    network.layers = list(zip(parts[::2], parts[1::2], strict=True))
    network.history.append(f"Levenberg-Marquardt {steps}")


def _errors(network: Network, chosen: tuple[Tensor, Tensor]) -> list[float]:
    with torch.no_grad():
        found = (network(chosen[0]) - chosen[1]).abs().amax(dim=1)
    return [float(error) if math.isfinite(error) else math.inf for error in found]


def _solved(network: Network, queries: Tensor, wanted: Tensor, chosen: tuple[Tensor, Tensor]) -> tuple[float, Network]:
    """The network as it is, or with its outer layer solved, whichever is better; a copy."""
    as_it_is, again = network.only(0), network.only(0)
    _solve_outer(again, queries, wanted)
    again.history.append("outer layer solved")
    return min(((_errors(made, chosen)[0], made) for made in (as_it_is, again)), key=lambda found: found[0])


def _solve_outer(network: Network, queries: Tensor, wanted: Tensor) -> None:
    with torch.no_grad():
        hidden = network.hidden(queries)
        ones = torch.ones(*hidden.shape[:2], 1, dtype=hidden.dtype)
        right = wanted.expand(len(hidden), -1)[..., None]
        solved = torch.linalg.lstsq(torch.cat([hidden, ones], dim=2), right, driver="gelsd", rcond=1e-13).solution
        network.layers[-1] = (solved[:, :-1].clone(), solved[:, -1:].clone())
