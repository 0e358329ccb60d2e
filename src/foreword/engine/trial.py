"""A family that nobody has tried is tried on the loaded model itself, before it carries its first prefix.

The law that must hold at every site: what a text's own keys and values do in front of a context, they must do as a
prefix. So a short input is run bare. Each attention module is then run again on the rest of that input alone, with the
keys and values of its first tokens as a prefix, joined and merged, in another order: its output must be what it was.
That sees whatever the module does outside the interface with keys, values or scores. A linear position bias in the mask
or in the module's own function is refused, as a prefix's columns carry none.

And no self-attention may be computed beside the interface: a prefix there would be a silent no-op in some layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from foreword.engine.assignment import Assignment, SiteTensors
from foreword.engine.attention import AttentionCall, intercepted
from foreword.engine.families import CONFORMING, SOFTMAX, Met
from foreword.engine.layout import Layout
from foreword.engine.sites import PROBE_TOKENS, Inputs, in_evaluation, probing_inputs, site_name
from foreword.errors import AttachError, HostError


@dataclass(frozen=True)
class _Seen:
    """One run of an attention module in the bare run: its input, its output, and the keys and values of its calls."""

    module: nn.Module
    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    output: Tensor
    calls: Mapping[str, tuple[Tensor, Tensor]]

    @property
    def site(self) -> str:
        return next(iter(self.calls))

    @property
    def tokens(self) -> int:
        return self.calls[self.site][0].shape[2]

    @property
    def text(self) -> int:
        """How many of the first tokens are given as a prefix: those without a place where only the last have one."""
        places = self.options.get("position_embeddings")
        placed = places[0].shape[-2] if isinstance(places, tuple) and isinstance(places[0], Tensor) else self.tokens
        return self.tokens - placed if 0 < placed < self.tokens else self.tokens // 2

    @property
    def prefix(self) -> Mapping[str, SiteTensors]:
        """The text's keys and values, last token first: a prefix knows no order."""
        return {
            site: SiteTensors(*(part[0, :, : self.text].flip(1) for part in parts))
            for site, parts in self.calls.items()
        }

    def rest(self, found: Any) -> Any:
        """What is left of an input or output without the text: every axis that counts tokens is cut."""
        if isinstance(found, tuple | list):
            return type(found)(self.rest(part) for part in found)
        if hasattr(found, "get_seq_length"):  # a cache: it already holds the text
            return None
        if not isinstance(found, Tensor):
            return found
        # Of four axes the last two are a mask's; of fewer, numbers have features on the last, whatever its size.
        axes = range(found.dim() - 2, found.dim()) if found.dim() >= 4 else range(found.dim())
        for axis in axes[:-1] if found.is_floating_point() and found.dim() < 4 else axes:
            if found.shape[axis] == self.tokens:
                found = found.narrow(axis, self.text, self.tokens - self.text)
        return found


class _Recorder(TorchFunctionMode):
    """Records the bare run: each call through the interface, and each self-attention that is computed beside it."""

    def __init__(self, layout: Layout, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.names, self.watched = names, set(layout.watched)
        self.running: list[nn.Module] = []
        self.given: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.open: dict[nn.Module, dict[str, tuple[Tensor, Tensor]]] = {}
        self.calls: Counter[nn.Module] = Counter()
        self.seen: list[_Seen] = []
        self.beside: set[str] = set()
        self.inside = False

    def enter(self, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self.running.append(module)
        self.given[module] = (arguments, options)

    def leave(self, module: nn.Module, _: Any, output: Any) -> None:
        self.running.pop()
        arguments, options = self.given.pop(module)
        if module in self.open:
            out = output if isinstance(output, Tensor) else output[0]
            self.seen.append(_Seen(module, arguments, options, out, self.open.pop(module)))

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        """The bare call; a position bias that is handed over apart is known to concern the context alone."""
        keys = call.key.shape[2]
        bias = call.options.get("position_bias")
        if bias is not None:
            kept = torch.arange(keys, device=bias.device) >= keys // 2
            call = call._replace(options={**call.options, "position_bias": bias * kept})
        self.calls[call.module] += 1
        site = site_name(self.names.get(call.module, ""), self.calls[call.module])
        self.open.setdefault(call.module, {})[site] = (call.key, call.value)
        self.inside = True
        try:
            return call.run()
        finally:
            self.inside = False

    def meet(self, met: Met) -> Tensor:
        return met.context.out

    def frozen(self) -> _Recorder:
        return self

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not self.inside and not self.watched.intersection(self.running):
            if func in SOFTMAX and args and args[0].dim() >= 3:
                queries, keys = args[0].shape[-2:]
            elif func is nn.functional.scaled_dot_product_attention:
                queries, keys = args[0].shape[-2], args[1].shape[-2]
            else:
                queries, keys = 0, 1
            if queries == keys > 1:
                self.beside.add(self.names[self.running[-1]] if self.running else "the model itself")
        return func(*args, **(kwargs or {}))


class _Alone:
    """The handler of one module's second run: each of its calls reads the text as a prefix."""

    def __init__(self, seen: _Seen, *, merging: bool) -> None:
        self.sites = iter(seen.calls)
        self.assignment = Assignment([seen.prefix], None, merging=merging)

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        return self.assignment.answer(call, next(self.sites, ""))

    def meet(self, met: Met) -> Tensor:
        return met.context.out

    def frozen(self) -> _Alone:
        return self


def is_known(model: nn.Module) -> bool:
    """Whether this is transformers' own model of a family that the conformance table covers."""
    config = getattr(model, "config", None)
    return type(model).__module__.startswith("transformers.") and getattr(config, "model_type", None) in CONFORMING


def try_family(backbone: nn.Module, layout: Layout, probe: Inputs | None = None) -> None:
    """Hold the law at every site that is on the interface; HostError with the first site where it does not hold."""
    with torch.no_grad(), in_evaluation(backbone):
        recorder = _record(backbone, layout, probe)
        if recorder.beside:
            raise _refusal(backbone, min(recorder.beside), "self-attention that is not on transformers' interface")
        tried = {site for seen in recorder.seen for site in seen.calls}
        for module, sites in layout.sites.items():
            if module not in recorder.watched and sites[0] not in tried:
                raise _refusal(backbone, sites[0], "an attention call of a module that did not run")
        for seen in recorder.seen:
            for merging in (False, True):
                _hold(backbone, seen, merging=merging)


def _record(backbone: nn.Module, layout: Layout, probe: Inputs | None = None) -> _Recorder:
    recorder = _Recorder(layout, {module: name for name, module in backbone.named_modules()})
    with ExitStack() as stack:
        for module in recorder.names:
            stack.callback(module.register_forward_pre_hook(recorder.enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(recorder.leave).remove)
        stack.enter_context(intercepted(recorder, layout.watched, alone=True))
        stack.enter_context(recorder)
        backbone(**(probe or probing_inputs(backbone, _tokens(backbone))))
    return recorder


def _tokens(backbone: nn.Module) -> int:
    """How long the input is: within the window of layers that have a sliding one, where nothing is forgotten yet."""
    config: Any = getattr(backbone, "config", None)
    windows = [getattr(part, "sliding_window", None) for part in (config, getattr(config, "text_config", None))]
    return max(2, min([PROBE_TOKENS, *(window for window in windows if isinstance(window, int))]))


def _hold(backbone: nn.Module, seen: _Seen, *, merging: bool) -> None:
    wanted = seen.rest(seen.output)
    arguments, options = seen.rest(seen.arguments), {name: seen.rest(part) for name, part in seen.options.items()}
    with intercepted(_Alone(seen, merging=merging), alone=True), _quiet_failure(backbone, seen.site):
        output = seen.module(*arguments, **options)
    found = output if isinstance(output, Tensor) else output[0]
    if found.shape != wanted.shape:
        raise _refusal(backbone, seen.site, f"an output of shape {tuple(found.shape)}, not {tuple(wanted.shape)}")
    distance, allowed = float((found - wanted).abs().max()), _tolerance(seen)
    if not distance <= allowed:
        raise _refusal(backbone, seen.site, f"an output that is off by {distance:.1e} (rounding: {allowed:.1e})")


def _tolerance(seen: _Seen) -> float:
    """What rounding may add between the two runs of one module, to first order.

    In a row lie at most 6 products (projection, scores, weighted values and output, and two for low-rank ones), each
    over at most as many terms as the widest of its weights has: that times the unit roundoff, relative to the largest
    number (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.5). Where sums are kept in float32,
    as for half precision, each product rounds once.
    """
    eps = torch.finfo(seen.output.dtype).eps
    widest = max((max(weight.shape) for weight in seen.module.parameters() if weight.dim() > 1), default=seen.tokens)
    relative = widest * eps if eps < 1e-6 else eps
    return 6 * relative / 2 * float(seen.output.abs().max())


@contextmanager
def _quiet_failure(backbone: nn.Module, site: str) -> Iterator[None]:
    """A module that cannot run on the rest of its input has not been shown to work."""
    try:
        yield
    except AttachError as error:  # as of windows of a fixed size, whose masks and biases cannot be cut
        raise _refusal(backbone, site, f"{error.found}, where {error.expected} was expected") from error
    except (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError, AttributeError) as error:
        raise _refusal(backbone, site, f"{type(error).__name__}: {error}") from error


def _refusal(backbone: nn.Module, site: str, found: str) -> HostError:
    return HostError(
        f"{type(backbone).__name__} has not been shown to read a prefix as it reads a text: it fails at {site}.",
        expected="at every attention, a text's own keys and values as a prefix to do what the text does",
        found=found,
        fix="Use a family of the conformance table (docs/reference/conformance.md), or compute this attention by "
        "transformers' interface alone.",
    )
