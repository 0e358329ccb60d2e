"""What stands between a frozen base model and a task: nothing, a prefix, or a soft prompt.

An adaptation is entered like a context; inside it the host computes differently, outside it the base model is what it
was. Its parameters are the only things that a fit may change. Each kind is final and knows its own start and its own
learning rates: the scale of keys and values is not that of weights. What changes weights has modules of its own:
`low_rank` and `full_weights`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from foreword.engine.assignment import PrefixTensors, SiteTensors
from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.engine.tensors import to_prefix
from foreword.errors import FitError
from foreword.prefix import Prefix
from foreword.tuning.placement import Placement, masked

ParameterGroup = dict[str, Any]


class Adaptation(ABC):
    """One way to change what a frozen host computes.

    `soft` is a soft prompt `(position, hidden)` that the engine's functions take, or None. `parameters` names every
    number that a fit may change.
    """

    soft: Tensor | None = None

    @abstractmethod
    def active(self) -> AbstractContextManager[None]:
        """Within this context the host computes with the adaptation."""

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """What a fit may change, by name; empty for the bare model."""

    @abstractmethod
    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        """Optimizer groups with this kind's learning rates; `learning_rate` scales them to have that largest one."""

    @property
    def trainable(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters().values())

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored for it."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters().values())

    def recomputed(self) -> AbstractContextManager[None]:
        """What a layer is computed again in, when that happens in a backward pass after `active` was left.

        Nothing for what reaches a layer by way of its input; a prefix is put back by the engine.
        """
        return contextlib.nullcontext()

    def close(self) -> None:
        """Let go of what was fitted beside the model; the adaptation cannot be used afterwards."""
        return


class Bare(Adaptation):
    """The base model as it is."""

    def active(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        del learning_rate
        return []


class FixedPrefix(Adaptation):
    """A finished prefix, as it comes out of a bundle: nothing in it can be fitted."""

    def __init__(self, host: Host, prefix: Prefix) -> None:
        self.host, self.prefix = host, prefix

    def active(self) -> AbstractContextManager[None]:
        return attached(self.host, self.prefix)

    def parameters(self) -> dict[str, nn.Parameter]:
        return {}

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        del learning_rate
        return []

    @property
    def nbytes(self) -> int:
        return self.prefix.nbytes


class FittedPrefix(Adaptation):
    """Keys and values of `positions` positions at every site, or at some, as parameters.

    Until `begin` puts other first values in their place (`foreword.tuning.start`), values are zero and keys normal with
    standard deviation 0.5, so that positions differ. A fit takes the learning rates that were measured for each site
    (`foreword.tuning.loudness`), and Adam with a short memory, as the first steps count; KEY_RATE and VALUE_RATE, seen
    to work on MiniLM, where nothing was measured.

    `placement` says which sites and heads carry it and what of it is fitted. A head that carries nothing has a logit
    bias so low that its positions get weight 0 exactly, in every dtype.
    """

    KEY_RATE, VALUE_RATE, KEY_SCALE = 3e-2, 1e-2, 0.5
    BETAS = (0.6, 0.95)

    def __init__(self, host: Host, *, positions: int, seed: int, placement: Placement | None = None) -> None:
        self.host, self.positions, self.placement = host, positions, placement or Placement()
        generator = torch.Generator().manual_seed(seed)
        self._tensors: dict[str, SiteTensors] = {}
        self._rates: dict[str, tuple[float, float]] = {}
        drawn = {}
        for site in host.sites:
            keys = torch.randn(site.kv_heads, positions, site.key_dim, generator=generator) * self.KEY_SCALE
            drawn[site.name] = SiteTensors(keys, torch.zeros(site.kv_heads, positions, site.value_dim))
        self.begin(drawn)

    def begin(self, tensors: PrefixTensors, rates: Mapping[str, tuple[float, float]] | None = None) -> None:
        """Start from these keys, values and biases at the sites that carry the prefix; other sites' are left out.

        `rates` are learning rates of keys and of values by site.
        """
        self._rates = dict(rates or {})
        carried = self.placement.carried(self.host)
        self._tensors = {name: self._parameters_from(tensors[name], heads) for name, heads in carried.items()}

    def _parameters_from(self, found: SiteTensors, heads: tuple[int, ...] | None) -> SiteTensors:
        placement = self.placement
        keys = self._parameter(found.keys, is_fitted=placement.train == "both")
        values = self._parameter(found.values, is_fitted=True)
        bias = masked(found.bias, heads, len(found.keys), self.positions)
        if placement.sink:
            for part in (keys, values):
                if part.requires_grad:
                    part.register_hook(_without_first)  # type: ignore[no-untyped-call]
        # A bias is never fitted, but a checkpoint holds it too: the numbers belong together.
        return SiteTensors(keys, values, None if bias is None else self._parameter(bias, is_fitted=False))

    def _parameter(self, numbers: Tensor, *, is_fitted: bool) -> nn.Parameter:
        return nn.Parameter(numbers.detach().float().to(self.host.device).clone(), requires_grad=is_fitted)

    @property
    def tensors(self) -> Mapping[str, SiteTensors]:
        """The live parameters by site."""
        return self._tensors

    def active(self) -> AbstractContextManager[None]:
        return attached(self.host, self._tensors)

    def active_without(self, hidden: Sequence[slice | Sequence[int] | None]) -> AbstractContextManager[None]:
        """As `active`, for a batch of as many rows: row i does not see its positions `hidden[i]` (None: it sees all).

        Exact: hidden positions are no part of what the row carries, so no gradient reaches them from it. FitError when
        a row would see no position.
        """
        every = range(self.positions)
        gone = [() if x is None else tuple(every[x]) if isinstance(x, slice) else tuple(x) for x in hidden]
        kept = [tuple(position for position in every if position not in mine) for mine in gone]
        if not all(kept):
            raise FitError(
                "An example would see nothing of the prefix: all of its positions were made from it.",
                expected="positions of other examples beside its own",
                found=f"all {self.positions} positions hidden",
                fix="Start the prefix from more examples, or leave leave_one_out out.",
            )
        each = list(dict.fromkeys(kept))
        whole = tuple(every)
        carried = [self._tensors if mine == whole else _only(self._tensors, mine) for mine in each]
        return attached(self.host, carried, rows=[each.index(mine) for mine in kept])

    def parameters(self) -> dict[str, nn.Parameter]:
        named = {}
        for site, found in self._tensors.items():
            named[f"{site}/keys"], named[f"{site}/values"] = found.keys, found.values
            if found.bias is not None:
                named[f"{site}/bias"] = found.bias
        return {name: parameter for name, parameter in named.items() if isinstance(parameter, nn.Parameter)}

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        groups: list[ParameterGroup] = []
        for site, found in self._tensors.items():
            key_rate, value_rate = self._rates.get(site, (self.KEY_RATE, self.VALUE_RATE))
            if self.placement.train == "both":
                groups.append({"params": [found.keys], "lr": key_rate, "betas": self.BETAS})
            groups.append({"params": [found.values], "lr": value_rate, "betas": self.BETAS})
        factor = 1.0 if learning_rate is None else learning_rate / max(group["lr"] for group in groups)
        return [{**group, "lr": group["lr"] * factor} for group in groups]

    @property
    def trainable(self) -> int:
        numbers = 0
        for site, heads in self.placement.carried(self.host).items():
            found = self._tensors[site]
            count = len(found.keys) if heads is None else len(heads)
            dims = found.values.shape[2] + (found.keys.shape[2] if found.keys.requires_grad else 0)
            numbers += count * (self.positions - self.placement.sink) * dims
        return numbers

    def prefix(self) -> Prefix:
        """The current keys and values as a Prefix (a copy)."""
        return to_prefix(self._tensors)


def _only(tensors: Mapping[str, SiteTensors], positions: Sequence[int]) -> dict[str, SiteTensors]:
    """The same prefix with these of its positions, differentiable."""
    made = {}
    for site, found in tensors.items():
        where = torch.tensor(positions, device=found.keys.device)
        parts = (found.keys, found.values, found.bias)
        made[site] = SiteTensors(*(None if part is None else part.index_select(1, where) for part in parts))  # type: ignore[arg-type]
    return made


def _without_first(gradient: Tensor) -> Tensor:
    """The gradient of keys or values `(kv_head, position, dim)` with the first position's as zero."""
    return torch.cat([torch.zeros_like(gradient[:, :1]), gradient[:, 1:]], dim=1)


class SoftPrompt(Adaptation):
    """`positions` embeddings before the tokens, started as those of the tokens `ids`, over and over until it is full.

    Without `ids` they are drawn from the vocabulary.
    """

    RATE = 1e-2

    def __init__(self, host: Host, *, positions: int, seed: int, ids: Sequence[int] = ()) -> None:
        table = host.model.get_input_embeddings().weight
        if positions >= host.max_positions:
            raise FitError(
                "The soft prompt leaves the base model no room for the input.",
                expected=f"fewer than {host.max_positions} positions",
                found=str(positions),
                fix="Use fewer positions, or a prefix, which takes none.",
            )
        first = torch.randint(len(table), (positions,), generator=torch.Generator().manual_seed(seed))
        if ids:
            first = torch.tensor([ids[place % len(ids)] for place in range(positions)])
        self.soft = nn.Parameter(table[first.to(table.device)].detach().clone().float())

    def active(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"soft": self.soft} if isinstance(self.soft, nn.Parameter) else {}

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        return [{"params": list(self.parameters().values()), "lr": learning_rate or self.RATE}]


def state_of(parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """A copy of all parameters' numbers, on the CPU."""
    return {name: parameter.detach().cpu().clone() for name, parameter in parameters.items()}


def restore(parameters: dict[str, nn.Parameter], state: dict[str, Tensor]) -> None:
    """Put copied numbers back; FitError when names or shapes differ from the parameters'."""
    shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise FitError(
            "The saved state is of another fit.",
            expected=_few(list(shapes)),
            found=_few(list(state)),
            fix="Remove the checkpoint, or resume with the settings it was made with.",
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def _few(names: Sequence[str]) -> str:
    return f"{len(names)} tensors: {', '.join(names[:2])}, …"
