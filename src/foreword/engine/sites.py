"""Where attention happens in a model: found by one probing forward pass, never read off a table of architectures.

A site is one attention call of a forward pass. Its name is the module's path inside the backbone (the model without its
head), so that the same prefix fits a model loaded with a head and without one; a module that is called several times (a
shared layer) has one site for each call, told apart by `#2`, `#3`, ...
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foreword.engine.attention import AttentionCall, intercepted, watchable
from foreword.engine.dispatch import computing_device
from foreword.engine.families import Met
from foreword.errors import HostError

Role = Literal["self", "cross"]
# What a forward pass is given, by name.
Inputs = Mapping[str, Any]
# Lengths of the probing texts; they differ so that a cross-attention is told by its number of keys.
PROBE_TOKENS, PROBE_DECODER_TOKENS = 5, 3


@dataclass(frozen=True)
class Site:
    """One attention call: its place in the forward pass and the shapes of a prefix for it."""

    name: str
    order: int
    role: Role
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    causal: bool


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Within this context the model is in evaluation mode; then each of its modules is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def site_name(path: str, call: int) -> str:
    """The name of a module's call number `call`, counted from 1."""
    return path if call == 1 else f"{path}#{call}"


@dataclass(frozen=True)
class Probed:
    """What a probing pass found: the sites in their order, and the position id that a row's first token got.

    `first_position` is 0 where no module was handed position ids.
    """

    sites: tuple[Site, ...]
    first_position: int


class _Recorder:
    """Notes every attention call of a forward pass and lets it through."""

    def __init__(self, backbone: nn.Module) -> None:
        self.names = {module: name for name, module in backbone.named_modules()}
        self.calls: Counter[nn.Module] = Counter()
        self.sites: list[Site] = []
        self.first_position: int | None = None

    def enter(self, _: nn.Module, __: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Before a module runs: note where the first token stands, once a module is told."""
        stated = options.get("position_ids")
        if self.first_position is None and isinstance(stated, Tensor) and stated.numel() and not stated.is_meta:
            self.first_position = int(stated.flatten()[0])

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        queries, keys = call.query.shape[2], call.key.shape[2]
        self._note(
            call.module,
            "self" if queries == keys else "cross",
            (call.query.shape[1], call.key.shape[1], call.key.shape[3], call.value.shape[3]),
            causal=call.is_causal or call.mask is not None,
        )
        return call.run()

    def meet(self, met: Met) -> Tensor:
        shape = (met.query.shape[1], met.key.shape[1], met.key.shape[3], met.value.shape[3])
        self._note(met.module, "self" if met.query.shape[2] == met.key.shape[2] else "cross", shape, causal=True)
        return met.context.out

    def frozen(self) -> _Recorder:
        return self

    def _note(self, module: nn.Module, role: Role, shape: tuple[int, int, int, int], *, causal: bool) -> None:
        self.calls[module] += 1
        name = site_name(self.names.get(module, ""), self.calls[module])
        self.sites.append(Site(name, len(self.sites), role, *shape, causal))


def probed(backbone: nn.Module, probe: Inputs | None = None) -> Probed:
    """The attention sites of `backbone`, in the order in which a forward pass of `probe`, or a short one, reaches them.

    HostError when the model cannot be probed, or when no attention could be met: a prefix there would be a silent
    no-op.
    """
    recorder = _Recorder(backbone)
    try:
        with torch.no_grad(), in_evaluation(backbone), ExitStack() as stack:
            for module in recorder.names:
                stack.callback(module.register_forward_pre_hook(recorder.enter, with_kwargs=True).remove)
            stack.enter_context(intercepted(recorder, watchable(backbone)))
            backbone(**(probe or probing_inputs(backbone)))
    except (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError, AttributeError) as error:
        raise HostError(
            f"The model {type(backbone).__name__} could not be probed with a short input.",
            expected="a transformers model that reads token ids, pixel values or audio features",
            found=f"{type(error).__name__}: {error}",
            fix="Give the inputs of a forward pass that reaches every attention: Host(model, probe=inputs), such as "
            "what its processor makes of a short example.",
        ) from error
    if not recorder.sites:
        implementation = getattr(getattr(backbone, "config", None), "_attn_implementation", None)
        raise HostError(
            f"No attention of {type(backbone).__name__} could be met, so a prefix would have no effect.",
            expected="attention by 'sdpa' or 'eager' on transformers' interface, or a family listed in families.py",
            found=f"implementation {implementation!r}, no call seen in a forward pass",
            fix="Load the model with attn_implementation='sdpa', or use a family on the interface.",
        )
    return Probed(tuple(recorder.sites), recorder.first_position or 0)


def probing_inputs(backbone: nn.Module, tokens: int = PROBE_TOKENS) -> dict[str, Tensor]:
    """A smallest input that reaches every attention: token ids, pixels or audio features as the model reads them.

    `tokens` is the length of a text; a decoder's is PROBE_DECODER_TOKENS or less.
    """
    config: Any = backbone.config
    device, dtype = computing_device(backbone), next(iter(backbone.parameters())).dtype
    ids = torch.arange(1, 1 + tokens, device=device)[None]
    inputs: dict[str, Tensor] = {}
    main = getattr(backbone, "main_input_name", "input_ids")
    text, vision = getattr(config, "text_config", None), getattr(config, "vision_config", None)
    if main == "input_features":
        frames = 2 * int(config.max_source_positions)
        inputs[main] = torch.zeros(1, int(config.num_mel_bins), frames, device=device, dtype=dtype)
    elif main == "input_values":
        inputs[main] = torch.zeros(1, *_sound_shape(config), device=device, dtype=dtype)
    elif main == "pixel_values" or (vision is not None and text is not None and _reads_both(backbone)):
        seen = vision or config
        size = seen.image_size if isinstance(seen.image_size, int) else seen.image_size[0]
        shape = (1, int(getattr(seen, "num_channels", 3)), size, size)
        inputs["pixel_values"] = torch.zeros(shape, device=device, dtype=dtype)
        if main != "pixel_values":
            inputs[main] = ids
    else:
        inputs["input_ids"] = ids
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids[:, :PROBE_DECODER_TOKENS]
    return inputs


def _reads_both(backbone: nn.Module) -> bool:
    """Whether a model needs text and pictures side by side, as CLIP does; one that writes can do without pictures."""
    return hasattr(backbone, "vision_model") and hasattr(backbone, "get_text_features")


def _sound_shape(config: Any) -> tuple[int, ...]:
    """What a model of sound reads: a spectrogram of one length, or samples, so many that its convolutions leave some.

    `input_values` are either: `(frame, mel bin)` where the configuration has a number of bins, `(sample,)` elsewhere.
    """
    if hasattr(config, "num_mel_bins"):
        return int(config.max_length), int(config.num_mel_bins)
    samples = PROBE_TOKENS
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * int(stride) + int(kernel)
    return (samples,)
