"""Has a base model learned what it was trained on? One at chance is refused: what is measured on it tells nothing.

A loss alone does not say: two nats can be much for one task and little for another. So it is held against chance, what
is reached without reading. What that is follows from the task:

an answer to an input       the model's own loss on the same answers, each behind another row's input. A model whose
                            answers do not hang on what it reads loses nothing by that, however well it has learned
                            what answers look like.
a token of a text           the loss of tokens by how often each occurs in the training's text, which is all that is
                            left to a model that does not look at the tokens around.

Both are taken on rows that the training did not draw.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foreword.errors import FitError

# A loss must be this share below chance. Seen (benchmarks/LOG.md): models that had learned next to nothing were at most
# 0.03 below it, and one that had seen 20 batches of sequences to sort 0.14.
LEAST = 0.05
HELD_OUT_ROWS = 256


class ChanceError(FitError):
    """A base model ended its training at chance."""


def check_reads(name: str, loss: Callable[[Tensor, Tensor], Tensor], read: Tensor, answers: Tensor) -> None:
    """ChanceError unless the model's answers hang on what it reads.

    `read` and `answers` are `(row, token)`; `loss` gives the model's mean loss on some answers behind some inputs.
    """
    with torch.no_grad():
        own, exchanged = float(loss(read, answers)), float(loss(read.roll(1, dims=0), answers))
    _check(name, own, exchanged, "the same answers behind other rows' inputs")


def check_predicts(name: str, loss: float, wanted: Tensor, seen: Tensor) -> None:
    """ChanceError unless the `loss` on the tokens `wanted` is below that by their frequency among those `seen`."""
    counts = torch.bincount(seen.flatten(), minlength=int(wanted.max()) + 1).double() + 1
    _check(name, loss, float(-(counts / counts.sum()).log()[wanted].mean()), "tokens by their frequency alone")


def _check(name: str, loss: float, chance: float, reached_by: str) -> None:
    if not loss <= (1 - LEAST) * chance:  # a loss that is no number is refused as well
        raise ChanceError(
            f"The base model {name} has learned nothing: it is not saved.",
            expected=f"a held-out loss of at most {(1 - LEAST) * chance:.3f} nats a token, {LEAST:.0%} below chance "
            f"({chance:.3f}, reached by {reached_by})",
            found=f"{loss:.3f}",
            fix="Train it for more steps, at another learning rate, wider, or with another seed.",
        )
