"""What stands between a frozen base model and a task: nothing, a prefix, a soft prompt, or LoRA.

An adaptation is entered like a context; inside it the host computes differently, outside it the base model is what it
was. Its parameters are the only things that a fit may change. Each kind is final and knows its own start and its own
learning rates: the scale of keys and values is not that of weights.
"""

from __future__ import annotations

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foreword.engine.assignment import SiteTensors
from foreword.engine.attach import attached
from foreword.engine.host import Host
from foreword.engine.tensors import to_prefix
from foreword.errors import FitError
from foreword.prefix import Prefix

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

    def close(self) -> None:
        """Take back whatever was put into the model; the adaptation cannot be used afterwards."""
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
    """Keys and values of `positions` positions at every site, as parameters.

    Values start at zero, so that the first forward pass only dampens attention and the read-out starts near where the
    bare model's is; keys start normal with standard deviation 0.5, so that positions differ. Learning rates 3e-2 for
    keys and 1e-2 for values: seen to work on MiniLM (benchmarks/LOG.md), a heuristic elsewhere.
    """

    KEY_RATE, VALUE_RATE, KEY_SCALE = 3e-2, 1e-2, 0.5

    def __init__(self, host: Host, *, positions: int, seed: int) -> None:
        self.host, self.positions = host, positions
        generator = torch.Generator().manual_seed(seed)
        self._tensors: dict[str, SiteTensors] = {}
        for site in host.sites:
            keys = torch.randn(site.kv_heads, positions, site.key_dim, generator=generator) * self.KEY_SCALE
            values = torch.zeros(site.kv_heads, positions, site.value_dim)
            self._tensors[site.name] = SiteTensors(
                nn.Parameter(keys.to(host.device)), nn.Parameter(values.to(host.device))
            )

    def active(self) -> AbstractContextManager[None]:
        return attached(self.host, self._tensors)

    def parameters(self) -> dict[str, nn.Parameter]:
        named = {}
        for site, found in self._tensors.items():
            named[f"{site}/keys"], named[f"{site}/values"] = found.keys, found.values
        return {name: parameter for name, parameter in named.items() if isinstance(parameter, nn.Parameter)}

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        factor = 1.0 if learning_rate is None else learning_rate / self.KEY_RATE
        return [
            {"params": [found.keys for found in self._tensors.values()], "lr": self.KEY_RATE * factor},
            {"params": [found.values for found in self._tensors.values()], "lr": self.VALUE_RATE * factor},
        ]

    def prefix(self) -> Prefix:
        """The current keys and values as a Prefix (a copy)."""
        return to_prefix(self._tensors)


class SoftPrompt(Adaptation):
    """`positions` embeddings before the tokens, started as the embeddings of randomly drawn tokens."""

    RATE = 1e-2

    def __init__(self, host: Host, *, positions: int, seed: int) -> None:
        table = host.model.get_input_embeddings().weight
        if positions >= host.max_positions:
            raise FitError(
                "The soft prompt leaves the base model no room for the input.",
                expected=f"fewer than {host.max_positions} positions",
                found=str(positions),
                fix="Use fewer positions, or a prefix, which takes none.",
            )
        drawn = torch.randint(len(table), (positions,), generator=torch.Generator().manual_seed(seed))
        self.soft = nn.Parameter(table[drawn.to(table.device)].detach().clone().float())

    def active(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def parameters(self) -> dict[str, nn.Parameter]:
        return {"soft": self.soft} if isinstance(self.soft, nn.Parameter) else {}

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        return [{"params": list(self.parameters().values()), "lr": learning_rate or self.RATE}]


class Lora(Adaptation):
    """Low-rank updates of the weights by the peft library: put into the model when made, taken out by `close`.

    Outside `active` the updates are switched off. `targets` are names of linear layers ("down_proj"); None: peft's own
    choice for the family, or all linear layers where it has none. FitError when the model has no layer of such a name.
    """

    RATE = 2e-3

    def __init__(self, host: Host, *, rank: int, seed: int, targets: Sequence[str] | None = None) -> None:
        try:
            import peft
        except ImportError as error:
            raise FitError(
                "LoRA needs the peft library, which is not installed.",
                expected="peft 0.21 or later",
                found="no peft in this environment",
                fix="pip install 'foreword[compare]', or leave the lora candidate out of the task file.",
            ) from error
        self.host = host
        linear = {name.rpartition(".")[2] for name, module in host.model.named_modules() if _is_linear(module)}
        if targets is not None and (unknown := sorted(set(targets) - linear)):
            raise FitError(
                "LoRA cannot change a layer that the base model does not have.",
                expected=f"names of its linear layers: {', '.join(sorted(linear))}",
                found=", ".join(unknown),
                fix="Correct targets, or leave it out.",
            )
        wanted = None if targets is None else list(targets)
        _ = host.fingerprint  # kept from here on: with the updates in the model it would be measured with them
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # What peft says of itself: it asks transformers by a name that is going, and sets GPT-2's layout by itself.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False", UserWarning)
            torch.manual_seed(seed)
            try:
                config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=wanted)
                self._peft = peft.get_peft_model(host.model, config)
            except ValueError:  # peft has no default targets for this family
                config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear")
                self._peft = peft.get_peft_model(host.model, config)
        self._peft.eval()
        self._named = {name: p for name, p in self._peft.named_parameters() if p.requires_grad}
        self._switch(on=False)

    @contextmanager
    def active(self) -> Iterator[None]:
        self._switch(on=True)
        try:
            yield
        finally:
            self._switch(on=False)

    def _switch(self, *, on: bool) -> None:
        layers = self._peft.base_model
        (layers.enable_adapter_layers if on else layers.disable_adapter_layers)()
        for parameter in self._named.values():  # peft's switch changes this too
            parameter.requires_grad_(True)

    def parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._named)

    def groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        return [{"params": list(self._named.values()), "lr": learning_rate or self.RATE}]

    def save(self, folder: Path) -> None:
        """Write the updates in peft's own format."""
        self._peft.save_pretrained(str(folder))

    def close(self) -> None:
        self._peft.unload()


def _is_linear(module: nn.Module) -> bool:
    """GPT-2 keeps its linear layers' weights transposed, in a class of its own."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


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
