"""The columns of the conformance matrix: for each, what must be so for a family's cell to be right."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from tests.conformance.families import MIXED_EXPERTS, SEQUENCE
from tests.conformance.oracle import Oracle
from tests.conformance.subject import (
    START,
    TOKENS,
    Inputs,
    Subject,
    a_prefix,
    assert_close,
    assert_tokens,
    is_windowed,
    live,
    parts,
    read,
)
from torch import Tensor
from transformers import AttentionInterface

import foreword
from foreword.engine.attach import attached
from foreword.engine.attention import intercepted, watchable
from foreword.engine.bake import bake
from foreword.engine.host import Host


def by_oracle(subject: Subject, prefix: Any, given: Inputs) -> Tensor:
    with intercepted(Oracle(subject.host, prefix), watchable(subject.host.backbone)):
        return subject.output(given)


def with_prefix(subject: Subject, given: Inputs, prefix: Any = None) -> Tensor:
    with torch.no_grad(), attached(subject.host, subject.prefix if prefix is None else prefix):
        return subject.output(given)


def forward(subject: Subject, dtype: torch.dtype = torch.float32) -> None:
    """Equal to the explicit softmax, with a prefix whose loss would show."""
    given = subject.inputs()
    with torch.no_grad():
        wanted = by_oracle(subject, subject.host.resident(subject.prefix), given)
        bare = subject.output(given)
    allowed = subject.tolerance(float(wanted.abs().max()), dtype)
    assert_close(with_prefix(subject, given), wanted, allowed)
    if dtype == torch.float32 and not float((wanted - bare).abs().max()) > 20 * allowed:
        raise AssertionError("the prefix changes too little for its loss to show")


def bf16(subject: Subject) -> None:
    """The forward cell with every weight, number and prefix in bfloat16."""
    host = Host(copy.deepcopy(subject.model).to(torch.bfloat16))
    forward(Subject(subject.family, host, subject.prefix, subject.other), torch.bfloat16)


def weighted(out: Tensor) -> Tensor:
    """A loss that every number of the output counts in, each with a weight of its own."""
    return (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum()


def fit_step(subject: Subject) -> None:
    """Gradients are those of the explicit softmax, on the prefix alone; a step leaves every weight as it was."""
    given, host = subject.inputs(), subject.host
    before = host.measure_fingerprint()
    theirs, tensors = live(subject), live(subject)
    wanted = torch.autograd.grad(weighted(by_oracle(subject, theirs, given)), parts(theirs))
    optimizer = torch.optim.SGD(parts(tensors), lr=0.1)
    with attached(host, tensors):
        loss = weighted(subject.output(given))
    loss.backward()
    # Backward goes through every product twice more, once for each factor: three times the forward's depth.
    allowed = 3 * subject.tolerance(max(float(grad.abs().max()) for grad in wanted))
    for part, grad in zip(parts(tensors), wanted, strict=True):
        if part.grad is None or not bool((part.grad != 0).any()):
            raise AssertionError("a site's keys or values got no gradient")
        assert_close(part.grad, grad, allowed)
    optimizer.step()
    if any(weight.grad is not None or weight.requires_grad for weight in subject.model.parameters()):
        raise AssertionError("a weight of the model took part in the fit")
    if host.measure_fingerprint() != before:
        raise AssertionError("the fit changed the model's weights")


def padded(subject: Subject, *, left: bool) -> None:
    """Two rows of different length, each equal to the row alone."""
    whole = subject.inputs(rows=2)
    tokens = whole["input_ids"]
    lengths = (TOKENS, TOKENS - 2)
    ids, mask = torch.zeros_like(tokens), torch.zeros_like(tokens)
    spans = []
    for row, length in enumerate(lengths):
        span = slice(TOKENS - length, TOKENS) if left else slice(0, length)
        ids[row, span], mask[row, span] = tokens[row, :length], 1
        spans.append(span)
    decoder = {name: part for name, part in whole.items() if name != "input_ids"}
    together = _by_token(subject, {**decoder, "input_ids": ids, "attention_mask": mask})
    for row, span in enumerate(spans):
        single = {name: part[row : row + 1] for name, part in decoder.items()}
        alone = _by_token(subject, {**single, "input_ids": tokens[row : row + 1, : lengths[row]]})[0]
        found = together[row] if subject.family in SEQUENCE else together[row, span]
        assert_close(found, alone, subject.tolerance(float(alone.abs().max())))


def _by_token(subject: Subject, given: Inputs) -> Tensor:
    with torch.no_grad(), attached(subject.host, subject.prefix):
        found = subject.model(**given)
    return read(found.text_model_output if hasattr(found, "text_model_output") else found)


def left_padding(subject: Subject) -> None:
    padded(subject, left=True)


def right_padding(subject: Subject) -> None:
    padded(subject, left=False)


def generation(subject: Subject) -> None:
    """Each generated token is the largest logit of a plain forward pass over everything before it."""
    given, steps = subject.inputs(rows=2), 6
    with attached(subject.host, subject.prefix):
        found = subject.generate(_prompt(given), steps)
        sequence = subject.family in SEQUENCE
        read_so_far = torch.full((2, 1), START) if sequence else given["input_ids"]
        name = "decoder_input_ids" if sequence else "input_ids"
        start = read_so_far.shape[1]
        for _ in range(steps):
            with torch.no_grad():
                logits = subject.model(**{**given, name: read_so_far}, use_cache=False).logits
            read_so_far = torch.cat([read_so_far, logits[:, -1:].argmax(dim=-1)], dim=1)
    assert_tokens(found, read_so_far[:, start:])


def _prompt(given: Inputs) -> Inputs:
    return {name: part for name, part in given.items() if not name.startswith("decoder")}


def _equal_generation(subject: Subject, one: dict[str, Any], other: dict[str, Any]) -> None:
    given = _prompt(subject.inputs(rows=2))
    with attached(subject.host, subject.prefix):
        assert_tokens(subject.generate(given, **one), subject.generate(given, **other))


def cache(subject: Subject) -> None:
    _equal_generation(subject, {"use_cache": True}, {"use_cache": False})


def static_cache(subject: Subject) -> None:
    _equal_generation(subject, {"cache_implementation": "static"}, {"use_cache": True})


def beam_search(subject: Subject) -> None:
    _equal_generation(subject, {"num_beams": 3, "use_cache": True}, {"num_beams": 3, "use_cache": False})


def chunked_prefill(subject: Subject) -> None:
    """The input in pieces through the cache gives the logits of one pass."""
    given = subject.inputs(rows=2)
    name = "decoder_input_ids" if subject.family in SEQUENCE else "input_ids"
    with torch.no_grad(), attached(subject.host, subject.prefix):
        whole = subject.model(**given).logits
        past, found = None, []
        for chunk in given[name].split([3, 2, 1][: 3 if name == "input_ids" else 2], dim=1):
            done = subject.model(**{**given, name: chunk}, past_key_values=past, use_cache=True)
            past = done.past_key_values
            found.append(done.logits)
    assert_close(torch.cat(found, dim=1), whole, subject.tolerance(float(whole.abs().max())))


def checkpointing(subject: Subject) -> None:
    """Both kinds give the gradients that there are without, though the backward pass comes after the context."""
    wanted = _gradients(subject, None)
    allowed = 3 * subject.tolerance(max(float(grad.abs().max()) for grad in wanted))
    for reentrant in (False, True):
        for found, grad in zip(_gradients(subject, reentrant), wanted, strict=True):
            assert_close(found, grad, allowed)


def recomputing(model: Any, what: str) -> Callable[..., None]:
    """How the model's checkpointing is switched: what "activation" says now was "gradient" in transformers 5.17."""
    old = f"gradient_checkpointing_{what}"
    found: Callable[..., None] = getattr(model, old.replace("gradient", "activation"), None) or getattr(model, old)
    return found


def _gradients(subject: Subject, reentrant: bool | None) -> list[Tensor]:
    model, tensors, given = subject.model, live(subject), subject.inputs()
    model.train()
    try:
        if reentrant is not None:
            recomputing(model, "enable")({"use_reentrant": reentrant})
        if reentrant:  # the reentrant kind gives gradients only to layers whose input has one
            model.enable_input_require_grads()
            given = {n: part.requires_grad_() if part.is_floating_point() else part for n, part in given.items()}
        with attached(subject.host, tensors):
            loss = weighted(subject.output(given))
        loss.backward()
    finally:
        if reentrant is not None:
            recomputing(model, "disable")()
        if reentrant:
            model.disable_input_require_grads()
        model.eval()
    return [part.grad if part.grad is not None else torch.full_like(part, torch.nan) for part in parts(tensors)]


def mixed_rows(subject: Subject) -> None:
    """Each row is as with its prefix alone; a row without one is bit for bit the bare model's.

    Among mixed experts the other rows decide which tokens an expert's product runs over: there within rounding.
    """
    given = subject.inputs()
    with torch.no_grad():
        bare = subject.output(given)
        with attached(subject.host, [subject.prefix, subject.other], rows=[1, None, 0]):
            found = subject.output(given)
    allowed = subject.tolerance(float(bare.abs().max()))
    assert_close(found[0], with_prefix(subject, given, subject.other)[0], allowed)
    assert_close(found[2], with_prefix(subject, given)[2], allowed)
    if subject.family in MIXED_EXPERTS:
        assert_close(found[1], bare[1], 1e-6)
    elif not torch.equal(found[1], bare[1]):
        raise AssertionError(f"a row without prefix moved by {float((found[1] - bare[1]).abs().max()):.1e}")


def save_and_load(subject: Subject) -> None:
    """A bundle gives back the very prefix, and with it the very output."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.prefix"
        foreword.save_bundle(path, subject.prefix, host=subject.host)
        loaded = foreword.load_bundle(path, host=subject.host).prefix
    given = subject.inputs()
    if loaded != subject.prefix or not torch.equal(with_prefix(subject, given), with_prefix(subject, given, loaded)):
        raise AssertionError("the loaded prefix is another one")


def detach(subject: Subject) -> None:
    """After the context the output is bit-identical; registry, forwards and hooks are the objects they were."""

    def state() -> list[Any]:
        modules = list(subject.model.modules())
        hooks = [(dict(x._forward_hooks), dict(x._forward_pre_hooks)) for x in modules]
        return [dict(AttentionInterface._global_mapping), [vars(x).get("forward") for x in modules], hooks]

    given, before = subject.inputs(), state()
    with torch.no_grad():
        bare = subject.output(given)
        with attached(subject.host, subject.prefix):
            inside = subject.output(given)
        after = subject.output(given)
    if state() != before or not torch.equal(bare, after) or torch.equal(bare, inside):
        raise AssertionError("leaving did not restore the model")


def baked_text(subject: Subject) -> None:
    """Logits and greedy tokens are those of the text in the prompt; under a window of six, within it."""
    text, steps = torch.tensor([11, 5, 42, 23]), 8
    ids = subject.inputs(rows=2)["input_ids"][:, :3]
    if is_windowed(subject):  # the last query stands at the window's sixth position
        text, ids, steps = text[:2], ids[:, :2], 3
    behind = torch.cat([text.expand(2, -1), ids], dim=1)
    with torch.no_grad():
        logits = subject.model(behind).logits[:, len(text) :]
    wanted = subject.generate({"input_ids": behind}, steps)
    with attached(subject.host, bake(subject.host, text.tolist())):
        with torch.no_grad():
            assert_close(subject.model(ids).logits, logits, subject.tolerance(float(logits.abs().max())))
        assert_tokens(subject.generate({"input_ids": ids}, steps), wanted)


def compiled(subject: Subject) -> None:
    """`torch.compile` traces the bare model once and the model with a prefix once, each as one graph without a break.

    The numbers are right bare, with a prefix, with another one of its length, and bare again after leaving.
    """
    given, host, graphs = subject.inputs(), subject.host, []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    traced = torch.compile(host.backbone, backend=keep, fullgraph=True)
    prefixes = [None, subject.prefix, a_prefix(host, subject.prefix.positions, seed=3), None]
    try:
        for prefix in prefixes:
            with torch.no_grad(), nullcontext() if prefix is None else attached(host, prefix):
                wanted, found = subject.output(given), read(traced(**given))
            assert_close(found, wanted, subject.tolerance(float(wanted.abs().max())))
    finally:
        torch._dynamo.reset()
    if len(graphs) != 2:
        raise AssertionError(f"traced {len(graphs)} graphs, not one without and one with a prefix")


COLUMNS: Mapping[str, Callable[[Subject], None]] = {
    "forward": forward,
    "fit step": fit_step,
    "left padding": left_padding,
    "right padding": right_padding,
    "generation": generation,
    "cache": cache,
    "chunked prefill": chunked_prefill,
    "static cache": static_cache,
    "beam search": beam_search,
    "checkpointing": checkpointing,
    "mixed rows": mixed_rows,
    "save and load": save_and_load,
    "detach": detach,
    "baked text": baked_text,
    "torch.compile": compiled,
    "bf16": bf16,
}
SLOW = ("torch.compile",)
