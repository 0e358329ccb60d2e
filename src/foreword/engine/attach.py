"""Attaching prefixes to a host: enter a context, and leave the model bit for bit as it was.

The model's weights, masks and cache are never touched; only attention sees the prefix, and only in the context (and
thread) that entered. A fitted prefix takes no positions; a baked one shifts the context's position ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foreword.engine.admission import check_attention, check_fit, check_host, check_prefixes, check_rows, check_turn
from foreword.engine.assignment import Assignment, PrefixTensors
from foreword.engine.attention import AttentionCall, active_handlers, intercepted
from foreword.engine.checkpointing import replayed
from foreword.engine.families import Met
from foreword.engine.hooks import Hook
from foreword.engine.layout import Layout
from foreword.engine.positions import positioned, takes_positions
from foreword.engine.sites import site_name
from foreword.errors import AttachError, PrefixError
from foreword.prefix import Prefix

if TYPE_CHECKING:
    from foreword.engine.host import Host

Attachable = Prefix | PrefixTensors


class _Carrier:
    """The handler that lets attention read the prefixes of an assignment.

    `names` has each attention module's path and how often a forward pass calls it.
    """

    def __init__(self, names: Mapping[nn.Module, tuple[str, int]], assignment: Assignment) -> None:
        self.names, self.assignment = names, assignment
        self.calls: Counter[nn.Module] = Counter()
        self.reached: set[str] = set()
        self.passes = 0

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        site = self._site(call.module)
        return call.run() if site is None else self.assignment.answer(call, site)

    def meet(self, met: Met) -> Tensor:
        site = self._site(met.module)
        return met.context.out if site is None else self.assignment.merge(met, site)

    def frozen(self) -> _Carrier:
        copy = _Carrier(self.names, self.assignment)
        copy.calls, copy.reached = self.calls.copy(), self.reached
        return copy

    def start(self, *_: Any) -> None:
        """A forward pass begins: calls of a shared module are counted anew."""
        self.calls.clear()

    def finish(self, *_: Any) -> None:
        """A forward pass of any thread came to its end; one that failed on the way could not reach every site."""
        self.passes += 1

    def is_active(self) -> bool:
        """Whether attention calls of this thread come here."""
        return any(handler is self for handler in active_handlers())

    def _site(self, module: nn.Module) -> str | None:
        found = self.names.get(module)
        if found is None:
            return None
        path, calls = found
        site = path
        if calls > 1:
            site = site_name(path, self.calls[module] % calls + 1)
            self.calls[module] += 1
        if site not in self.assignment.sites:
            return None
        self.reached.add(site)
        return site


@contextmanager
def attached(
    host: Host, prefixes: Attachable | Sequence[Attachable], rows: Sequence[int | None] | None = None
) -> Iterator[None]:
    """Within this context every forward pass of `host.model` in this thread reads a prefix before its input.

    One prefix serves every row. A list of prefixes needs `rows`: for each row of the batch the index of its prefix, or
    None for no prefix. A prefix is a `Prefix`, or live tensors by site (for fitting: gradients flow to them).

    HostError for a model of an untried family that does not read a prefix as it should, found when the first one is
    attached; PrefixError when a prefix does not fit the host, or occupies positions that the host cannot give it;
    AttachError for a row index out of range, when the model has been switched to attention that cannot read a prefix,
    when prefixes are already attached to this host, when a batch has other rows, or when forward passes ran without
    reaching one of the sites: never a silent no-op.
    """
    check_host(host)
    given, tensors = _resolved(host, prefixes, rows)
    for whole, found in zip(given, tensors, strict=True):
        check_fit(host, found, is_live=not isinstance(whole, Prefix))
        if isinstance(whole, Prefix):
            check_turn(host, whole)
    layout = host.layout
    # Where keys turn with position, padding at the left would turn an encoder's context too, but not its prefix.
    counts = host.role == "causal" or layout.is_rotary
    occupies = any(isinstance(found, Prefix) and found.occupies for found in given)
    if occupies and not (counts or _is_movable(host)):
        raise PrefixError(
            "This base model cannot move its context behind a prefix.",
            expected="a prefix that occupies no positions",
            found=f"one that occupies some, for {host.family}",
            fix="Use a causal or rotary model, an encoder with a table of positions, or a prefix fitted for this one.",
        )
    if host.role == "causal" and occupies:
        host.ensure_moved()
    carrier = _Carrier(_module_names(layout, tensors), Assignment(tensors, rows))
    check_attention(module for module in carrier.names if module not in layout.watched)
    if is_attached(host) or not host.claim():
        raise AttachError(
            "Prefixes are already attached to this host.",
            expected="one attached(...) at a time on one host, and in one thread on one model",
            found="a second one inside the first, or in another thread",
            fix="Leave the first context; attach several prefixes at once with attached(host, [p, q], rows=[0, 1]).",
        )
    with ExitStack() as stack:
        stack.callback(host.release)
        host.ensure_tried()
        start, finish = Hook(carrier.start, carrier.is_active), Hook(carrier.finish, lambda: True)
        for module in dict.fromkeys((host.model, host.backbone)):
            stack.callback(module.register_forward_pre_hook(start).remove)
            stack.callback(module.register_forward_hook(finish).remove)
        if counts or occupies:
            # An encoder with a table of positions counts as the bare model does: padding too, unless it looks for it.
            counting = counts or layout.first_position > 0
            settings = {"occupied": _occupied(given, rows), "is_active": carrier.is_active, "counting": counting}
            stack.enter_context(positioned(host.model, host.backbone, layout, **settings))
        stack.enter_context(_noticed(module for module in carrier.names if module not in layout.watched))
        stack.enter_context(replayed(layout))
        stack.enter_context(intercepted(carrier, layout.watched))
        yield
    missed = carrier.assignment.sites - carrier.reached
    if carrier.passes and missed:
        raise AttachError(
            "The model ran without reading the whole prefix.",
            expected=f"all of its {len(carrier.assignment.sites)} sites to be reached",
            found=f"never reached: {', '.join(sorted(missed)[:3])}",
            fix="Do not change the model's attention implementation while a prefix is attached, and run it in the "
            "thread that attached the prefix.",
        )


def is_attached(host: Host) -> bool:
    """Whether forward passes of `host.model` in this thread read a prefix now, attached to this host or another."""
    carriers = [handler for handler in active_handlers() if isinstance(handler, _Carrier)]
    return any(module in carrier.names for carrier in carriers for module, _ in host.layout.attention.values())


@contextmanager
def _noticed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context a graph that `torch.compile` traced without the prefix is not used.

    Eager attention has no entry in transformers' registry, and torch does not guard a graph on the absence of one; but
    it does on an instance having no `forward` of its own.
    """
    marked = [module for module in modules if "forward" not in vars(module)]
    for module in marked:
        module.forward = module.forward
    try:
        yield
    finally:
        for module in marked:
            del module.forward


def _resolved(
    host: Host, prefixes: Attachable | Sequence[Attachable], rows: Sequence[int | None] | None
) -> tuple[list[Attachable], list[PrefixTensors]]:
    single = isinstance(prefixes, Prefix | Mapping)
    check_prefixes([prefixes] if single else prefixes)
    given: list[Attachable] = [prefixes] if single else list(prefixes)  # type: ignore[list-item,arg-type]
    if not given or (rows is None and len(given) > 1):
        raise AttachError(
            "It is not said which row carries which prefix.",
            expected="one prefix, or a list of prefixes with rows=[index or None, ...]",
            found=f"{len(given)} prefixes and no rows",
            fix="Give one entry of `rows` for each row of the batch.",
        )
    check_rows(rows, len(given))
    return given, [host.resident(found) if isinstance(found, Prefix) else found for found in given]


def _is_movable(host: Host) -> bool:
    """Whether an encoder's tokens have positions that are added to them, and that a caller can state."""
    return host.role == "encoder" and host.layout.has_position_table and takes_positions(host.model, host.backbone)


def _module_names(layout: Layout, tensors: Sequence[PrefixTensors]) -> dict[nn.Module, tuple[str, int]]:
    found = {}
    for path in {site.partition("#")[0] for carried in tensors for site in carried}:
        module, calls = layout.attention[path]
        found[module] = (path, calls)
    return found


def _occupied(given: Sequence[Attachable], rows: Sequence[int | None] | None) -> Any:
    each = [found.occupies if isinstance(found, Prefix) else 0 for found in given]

    def occupied(batch: int, device: torch.device) -> Tensor | None:
        if not any(each):
            return None
        whose = list(rows) if rows is not None else [0]
        counts = [0 if prefix is None else each[prefix] for prefix in whose for _ in range(batch // len(whose))]
        return torch.tensor(counts, device=device)

    return occupied
