"""Attaching prefixes to a host: enter a context, and leave the model bit for bit as it was.

The model's weights, masks and cache are never touched; only attention sees the prefix, and only in the context (and
thread) that entered. A fitted prefix takes no positions; a baked one shifts the context's position ids.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foreword.engine import current
from foreword.engine.admission import (
    check_attention,
    check_fit,
    check_host,
    check_prefixes,
    check_rows,
    check_turn,
    configurations,
)
from foreword.engine.assignment import Assignment, PrefixTensors
from foreword.engine.attention import AttentionCall, intercepted
from foreword.engine.checkpointing import Replays
from foreword.engine.families import Met
from foreword.engine.forwards import StandIn, standing, unwrapped
from foreword.engine.layout import Layout
from foreword.engine.positions import Positions, takes_positions
from foreword.errors import AttachError, PrefixError
from foreword.prefix import Prefix

if TYPE_CHECKING:
    from foreword.engine.host import Host

Attachable = Prefix | PrefixTensors


@dataclass
class _Place:
    """A site at which the assignment has a prefix, and whether a forward pass has been there."""

    site: str
    is_reached: bool = False


@dataclass
class _Calls:
    """How often a forward pass has called a shared module so far."""

    count: dict[nn.Module, int]


class _CallsOfThread(threading.local):
    """The same, for each thread by itself: a task may hand several passes to threads at once."""

    def __init__(self) -> None:
        self.count: dict[nn.Module, int] = {}


class _Carrier:
    """The handler that lets attention read the prefixes of an assignment.

    `places` has, for each attention module, the place of each of its calls in a forward pass, None where no prefix is.
    `roots` are the modules whose forward passes it follows. A forward pass only writes to what tells afterwards what
    was reached, and never reads it: a graph that has read it would be traced again once it is written.
    """

    def __init__(
        self,
        places: Mapping[nn.Module, tuple[_Place | None, ...]],
        assignment: Assignment,
        roots: tuple[nn.Module, ...],
        positions: Positions | None,
        replays: Replays,
        configs: tuple[Any, ...],
    ) -> None:
        self.places, self.assignment, self.roots, self.positions = places, assignment, roots, positions
        self.replays, self.configs = replays, configs
        self.calls: _Calls | _CallsOfThread = _CallsOfThread()
        self.has_run = False
        self.has_run_bare = False
        self.has_run_bare_anew = False  # in a thread that was started meanwhile
        self.threads = frozenset(threading.enumerate())

    def call(self, call: AttentionCall) -> tuple[Tensor, Tensor | None]:
        site = self._site(call.module)
        return call.run() if site is None else self.assignment.answer(call, site)

    def meet(self, met: Met) -> Tensor:
        site = self._site(met.module)
        return met.context.out if site is None else self.assignment.merge(met, site)

    def frozen(self) -> _Carrier:
        copy = _Carrier(self.places, self.assignment, self.roots, self.positions, self.replays, self.configs)
        copy.calls = _Calls(dict(self.calls.count))  # a layer may be replayed in another thread
        return copy

    def run(self, module: nn.Module, forward: Callable[..., Any], arguments: tuple[Any, ...], options: Any) -> Any:
        """A forward pass: shared modules' calls are counted anew, layers bound, and tokens get their positions.

        AttachError when the model has been switched meanwhile to attention that would not read the prefix.
        """
        check_attention(self.configs)
        self.calls.count = {}
        if not torch.compiler.is_compiling():
            self.replays.bind()
        if self.positions is None or module not in self.positions.parameters:
            return forward(*arguments, **options)
        return self.positions.run(module, forward, arguments, options)

    def missed(self) -> list[str]:
        """The sites with a prefix that no forward pass has reached."""
        found = [place for calls in self.places.values() for place in calls if place is not None]
        return sorted(place.site for place in found if not place.is_reached)

    def _site(self, module: nn.Module) -> str | None:
        calls = self.places.get(module)
        if calls is None:
            return None
        number = 0
        if len(calls) > 1:
            number = self.calls.count.get(module, 0)
            self.calls.count[module] = (number + 1) % len(calls)
        place = calls[number]
        if place is None:
            return None
        place.is_reached = True
        return place.site


class _Followed(StandIn):
    """The forward of a model or its backbone, followed by the carriers of every thread that has attached to it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.carriers: tuple[_Carrier, ...] = ()

    def act(self, *arguments: Any, **options: Any) -> Any:
        for handler in current.handlers:
            if isinstance(handler, _Carrier) and self.module in handler.roots:  # there is at most one
                out = handler.run(self.module, self.forward, arguments, options)
                break
        else:
            for carrier in self.carriers:
                carrier.has_run_bare = True
                if not torch.compiler.is_compiling() and threading.current_thread() not in carrier.threads:
                    carrier.has_run_bare_anew = True
            out = self.forward(*arguments, **options)
        for carrier in self.carriers:  # it has come to its end: one that failed on the way could not reach every site
            carrier.has_run = True
        return out


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
    then or inside, when prefixes are already attached to this host, when a batch has other rows, or when forward
    passes ran without reaching one of the sites, or in another context than this one, in which it is left: never a
    silent no-op. A thread that was started inside, and ran the model without its context, is told by a warning.
    """
    check_host(host)
    given, tensors = _resolved(host, prefixes, rows)
    for whole, found in zip(given, tensors, strict=True):
        if isinstance(whole, Prefix):  # that it fits was seen when it became resident
            check_turn(host, whole)
        else:
            check_fit(host, found, is_live=True)
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
    assignment = Assignment(tensors, rows)
    places = _places(layout, assignment)
    positions = None
    if counts or occupies:
        # An encoder with a table of positions counts as the bare model does: padding too, unless it looks for it.
        each = [found.occupies if isinstance(found, Prefix) else 0 for found in given]
        counting = counts or layout.first_position > 0
        positions = Positions(host.model, host.backbone, layout, occupied=each, rows=assignment.rows, counting=counting)
    roots = dict.fromkeys((unwrapped(host.model), host.backbone, *(() if positions is None else positions.parameters)))
    configs = configurations(module for module in places if module not in layout.watched)
    check_attention(configs)
    carrier = _Carrier(places, assignment, tuple(roots), positions, replays := Replays(layout), configs)
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
        if positions is not None and positions.bare_rows:
            positions.bare_counts = host.counts_by_mask
        for module in roots:
            stack.enter_context(_following(module, carrier, host))
        stack.enter_context(_noticed(module for module in places if module not in layout.watched))
        stack.callback(replays.release)
        replays.bind()
        stack.enter_context(intercepted(carrier, layout.watched, kept=host.stand_ins))
        yield
        is_left_here = any(handler is carrier for handler in current.handlers)
    _check_read(carrier, is_left_here=is_left_here)


def is_attached(host: Host) -> bool:
    """Whether forward passes of `host.model` in this thread read a prefix now, attached to this host or another."""
    carriers = [handler for handler in current.handlers if isinstance(handler, _Carrier)]
    return any(module in carrier.places for carrier in carriers for module in host.layout.sites)


def _check_read(carrier: _Carrier, *, is_left_here: bool) -> None:
    """AttachError when passes ran past some of the prefix, or without it on the way to where the context was left.

    A warning when a thread ran without it that was started inside: mostly one of transformers' streamers, that should
    have read it.
    """
    missed = carrier.missed()
    if carrier.has_run and missed:
        raise AttachError(
            "The model ran without reading the whole prefix.",
            expected=f"all of its {len(carrier.assignment.sites)} sites to be reached",
            found=f"never reached: {', '.join(missed[:3])}",
            fix="Do not change the model's attention implementation while a prefix is attached, and run it in the "
            "thread that attached the prefix. For a part of the model alone, such as a decoder behind kept outputs of "
            "its encoder, attach prefix.select([...]) of its sites.",
        )
    if carrier.has_run_bare and not is_left_here:
        raise AttachError(
            "The prefix was attached in one context and let go in another, and the model ran meanwhile without it.",
            expected="forward passes in the thread or task that attached the prefix, which lets it go as well",
            found="passes without a prefix, as in a generator whose steps are run one by one, in threads of a pool",
            fix="Attach the prefix anew within each step, or make all tokens before the first is handed on.",
        )
    if carrier.has_run_bare_anew:
        warnings.warn(
            "a thread that was started while a prefix was attached ran the model without it: a thread has a context of "
            "its own; start one that is to read the prefix by contextvars.copy_context().run",
            UserWarning,
            stacklevel=4,
        )


@contextmanager
def _following(module: nn.Module, carrier: _Carrier, host: Host) -> Iterator[None]:
    with standing(module, _Followed, host.stand_ins) as followed:
        followed.carriers = (*followed.carriers, carrier)
        try:
            yield
        finally:
            followed.carriers = tuple(found for found in followed.carriers if found is not carrier)


@contextmanager
def _noticed(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Within this context a graph that `torch.compile` traced without the prefix is not used.

    Eager attention has no entry in transformers' registry, and torch does not guard a graph on the absence of one; but
    it does on an instance having no `forward` of its own.
    """
    marked = {module: module.forward for module in modules if "forward" not in vars(module)}
    for module, forward in marked.items():
        vars(module)["forward"] = forward  # as setting it does, in a tenth of the time
    try:
        yield
    finally:
        for module, forward in marked.items():
            if vars(module).get("forward") is forward:  # one that somebody put there meanwhile stays
                del vars(module)["forward"]


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


def _places(layout: Layout, assignment: Assignment) -> dict[nn.Module, tuple[_Place | None, ...]]:
    """For each attention module at which some prefix is, the place of each of its calls; in the layout's order."""
    found = {}
    for module, sites in layout.sites.items():
        if not assignment.sites.isdisjoint(sites):
            found[module] = tuple([_Place(site) if site in assignment.sites else None for site in sites])
    return found
