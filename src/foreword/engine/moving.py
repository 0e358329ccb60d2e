"""Whether a causal model reads a baked text as it reads the text in the prompt: tried once on the loaded model.

A prefix carries keys and values, and what it occupies moves position ids. A model that counts its positions by itself
cannot be moved, and one that also keeps a recurrent state or a convolution over tokens has more of a text to remember
than keys and values: there a baked text would be silently wrong. The trial looks at what comes out, not at how.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foreword.engine.sites import in_evaluation
from foreword.errors import AttachError, PrefixError

if TYPE_CHECKING:
    from foreword.engine.host import Host

# Short enough for any window that a layer may have; several texts, as rounding may send a token to another expert.
TEXT, CONTEXT, TEXTS = 2, 2, 3


def try_moving(host: Host) -> None:
    """PrefixError unless a short text, baked, does to what follows what it does in the prompt."""
    found = "nothing to compare"
    with torch.no_grad(), in_evaluation(host.backbone):
        for ids in _texts(host):
            try:
                wanted, moved = _prompted(host, ids), _baked(host, ids)
            except AttachError as error:
                found = error.what
                continue
            distance = float((moved - wanted).norm() / wanted.norm())
            if distance <= _tolerance(host):
                return
            found = f"{distance:.1e} of the output's size off (rounding: {_tolerance(host):.1e})"
    raise PrefixError(
        "This base model cannot move its context behind a baked text.",
        expected="that it reads a text's keys and values, and shifted position ids, as the text in the prompt",
        found=f"{found}, for {host.family}: it counts positions by itself, or remembers more than keys and values",
        fix="Put the text into the prompt, or fit a prefix, which occupies no positions.",
    )


def _texts(host: Host) -> Iterator[list[int]]:
    config: Any = host.model.config
    size, pad = int(host.model.get_input_embeddings().weight.shape[0]), getattr(config, "pad_token_id", None)
    usable = [token for token in range(1, min(size, 2 + TEXTS * (TEXT + CONTEXT))) if token != pad]
    for start in range(TEXTS):
        yield [usable[(start * (TEXT + CONTEXT) + place) % len(usable)] for place in range(TEXT + CONTEXT)]


def _prompted(host: Host, ids: list[int]) -> Tensor:
    return _read(host, ids)[TEXT:]


def _baked(host: Host, ids: list[int]) -> Tensor:
    from foreword.engine.attach import attached
    from foreword.engine.bake import bake

    with attached(host, bake(host, ids[:TEXT])):
        return _read(host, ids[TEXT:])


def _read(host: Host, ids: list[int]) -> Tensor:
    """The backbone's last hidden states, `(token, hidden)`."""
    found: Any = host.backbone(input_ids=torch.tensor([ids], device=host.device), use_cache=False)
    hidden: Tensor = found[0] if getattr(found, "last_hidden_state", None) is None else found.last_hidden_state
    return hidden[0].double()


def _tolerance(host: Host) -> float:
    """What rounding may add between two correct runs, relative to the output's size.

    In a row lie at most 8 products for each attention with its feed-forward part, each over at most as many terms as
    the widest weight has: n roundings of random sign add up to less than 4 sqrt(n) units with overwhelming probability
    (Higham and Mary, SIAM J. Sci. Comput. 41, 2019, theorem 2.4). Models compute norms and softmax in float32 even
    where they are in float64; where sums are kept in float32, as for half precision, each product rounds once.
    """
    eps = max(torch.finfo(host.dtype).eps, torch.finfo(torch.float32).eps)
    widest = max((max(weight.shape) for weight in host.backbone.parameters() if weight.dim() > 1), default=1)
    terms = widest if eps < 1e-6 else 1
    roundings = 8 * len(host.sites) * terms
    return float(4 * roundings**0.5 * eps / 2)
