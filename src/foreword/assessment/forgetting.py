"""What a fitted candidate does to text outside its task, while it is active, against the bare model on the same text.

For a model that writes: the change of its next-token loss, how far its predictions move (Kullback-Leibler), and how
often the likeliest token is another one. For an encoder: how far the texts' features turn, and how many texts have
another nearest neighbour. A text is the unit that intervals are made over: its tokens depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from foreword.assessment.evidence import Estimate, ForgettingEvidence
from foreword.assessment.other_text import other_text
from foreword.engine.batches import in_batches
from foreword.engine.generation import completion_logits, embed
from foreword.engine.host import Host
from foreword.engine.rendering import Template, render
from foreword.errors import DataError
from foreword.tuning.adaptation import Adaptation
from foreword.tuning.predictor import Predictor
from foreword.tuning.sections import ForgettingSettings

# Tokens of a text that are read at most, and texts read at once: their predictions are held twice.
LONGEST_ROW, BATCH = 128, 8
DRAWS, DRAWS_SEED, LEVEL = 4000, 20261124, 0.95

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class _Row:
    """Sums over one text's predicted tokens."""

    tokens: int
    bare: float
    change: float
    divergence: float
    changed: int


def forgetting_of(predictor: Predictor, texts: Sequence[str] | None = None) -> ForgettingEvidence:
    """What a fit's predictor does to texts outside its task: `fw.forgetting_of(fw.fit(...).predictor)`.

    `texts` None: the passages of Python's own manual that a pilot looks at. DataError when there are not two texts of
    two tokens or more.
    """
    if texts is None:
        found = other_text(ForgettingSettings(), Path())
        texts = () if found is None else found.passages
    is_list = not isinstance(texts, str) and all(isinstance(text, str) for text in texts)
    count = len(_rows(predictor.host, predictor.adaptation, texts)) if is_list else 0
    if count < 2:
        raise DataError(
            "There is no text to look at what a fit does to it.",
            expected="a list of two texts or more, each of two tokens or more",
            found=f"{count} such of {len(texts)}" if is_list else "something else than a list of texts",
            fix="Give passages of the kind of text that the model should stay good at.",
        )
    return measure_forgetting(predictor.host, predictor.adaptation, texts)


def measure_forgetting(host: Host, adaptation: Adaptation, texts: Sequence[str]) -> ForgettingEvidence:
    """What `adaptation` does to these texts; every change is exactly 0 for an adaptation that does nothing."""
    soft = None if adaptation.soft is None else adaptation.soft.detach()
    rows = _rows(host, adaptation, texts)
    if host.role == "encoder":
        return _of_features(host, adaptation, soft, rows)
    return _of_predictions(host, adaptation, soft, rows)


def _rows(host: Host, adaptation: Adaptation, texts: Sequence[str]) -> list[list[int]]:
    """The texts' tokens, as many as are read; a text of a single one has nothing to foretell and is left out."""
    reserve = 0 if adaptation.soft is None else len(adaptation.soft)
    longest = max(2, min(LONGEST_ROW, host.max_positions - reserve))
    rows = [render(host, Template("", ""), text, max_tokens=longest, reserve=reserve) for text in texts]
    return [row for row in rows if len(row) >= 2]


def _of_predictions(
    host: Host, adaptation: Adaptation, soft: Tensor | None, rows: list[list[int]]
) -> ForgettingEvidence:
    # An encoder-decoder model writes the second half of what it has read the first half of.
    cuts = [len(row) // 2 if host.role == "encoder-decoder" else 1 for row in rows]
    found: list[_Row] = []

    def compared(indices: list[int]) -> list[_Row]:
        prompts, told = [rows[i][: cuts[i]] for i in indices], [rows[i][cuts[i] :] for i in indices]
        bare = completion_logits(host, prompts, told)
        with adaptation.active():
            return _compared(bare, completion_logits(host, prompts, told, soft=soft), told)

    with torch.no_grad():
        for _, part in in_batches([len(row) for row in rows], BATCH, compared):
            found += part
    tokens = np.array([row.tokens for row in found], dtype=np.float64)
    return ForgettingEvidence(
        texts=len(found),
        tokens=int(tokens.sum()),
        loss_bare=float(sum(row.bare for row in found) / tokens.sum()),
        loss_change=estimate([row.change for row in found], tokens),
        divergence=estimate([row.divergence for row in found], tokens),
        turned=None,
        changed=estimate([row.changed for row in found], tokens),
    )


def _compared(bare: Tensor, adapted: Tensor, told: Sequence[Sequence[int]]) -> list[_Row]:
    """One record a text, from the logits `(token, vocabulary)` that predict the texts' tokens one after another."""
    before, after = (torch.log_softmax(logits.float(), dim=-1) for logits in (bare, adapted))
    ids = torch.tensor([token for row in told for token in row], device=before.device)
    losses = [-found.gather(1, ids[:, None])[:, 0].double() for found in (before, after)]
    apart = nn.functional.kl_div(after, before, log_target=True, reduction="none").sum(dim=1).double()
    changed = before.argmax(dim=1) != after.argmax(dim=1)
    rows, start = [], 0
    for length in map(len, told):
        part = slice(start, start + length)
        # Of two equal predictions the sum can be -1e-9: rounding, not a distance.
        divergence = max(float(apart[part].sum()), 0.0)
        change = float((losses[1][part] - losses[0][part]).sum())
        rows.append(_Row(length, float(losses[0][part].sum()), change, divergence, int(changed[part].sum())))
        start += length
    return rows


def _of_features(host: Host, adaptation: Adaptation, soft: Tensor | None, rows: list[list[int]]) -> ForgettingEvidence:
    before = nn.functional.normalize(embed(host, rows).double(), dim=1)
    with adaptation.active():
        after = nn.functional.normalize(embed(host, rows, soft=soft).double(), dim=1)
    # Half the squared distance of unit vectors is 1 minus their cosine, without its loss of digits near 1.
    turned = (before - after).square().sum(dim=1) / 2
    changed = _nearest(before) != _nearest(after)
    each = np.ones(len(rows))
    return ForgettingEvidence(
        texts=len(rows),
        tokens=sum(map(len, rows)),
        loss_bare=None,
        loss_change=None,
        divergence=None,
        turned=estimate(turned.tolist(), each),
        changed=estimate(changed.double().tolist(), each),
    )


def _nearest(unit: Tensor) -> Tensor:
    """Each text's nearest other text by cosine: `unit` `(text, hidden)` are features of length 1."""
    near = unit @ unit.T
    near.fill_diagonal_(-torch.inf)
    return near.argmax(dim=1)


def estimate(sums: Sequence[float], weights: Floats) -> Estimate:
    """The ratio of two sums over texts, with the interval of the Bayesian bootstrap over texts: an estimate.

    Rubin, "The Bayesian bootstrap", 1981: texts weigh as a flat Dirichlet draws. The measured value lies inside.
    """
    values = np.asarray(sums, dtype=np.float64)
    ratio = float(values.sum() / weights.sum())
    drawn = np.random.default_rng(DRAWS_SEED).dirichlet(np.ones(len(values)), size=DRAWS)
    ratios = (drawn @ values) / (drawn @ weights)
    low, high = (float(np.quantile(ratios, side)) for side in ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(
        value=ratio, low=min(low, ratio), high=max(high, ratio), level=LEVEL, method="bayes-bootstrap", n=len(values)
    )
