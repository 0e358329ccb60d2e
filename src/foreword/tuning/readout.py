"""How a label is read out of a feature vector: by similarity to the label's text, to class prototypes, or by a line.

All three are linear in the normalised feature, so one record holds them all: scores = scale * feature @ weights.T +
bias, with feature and (except for the linear head) weights of unit length. A read-out is a saved part of a candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from foreword.errors import BundleError

ReadoutKind = Literal["label-text", "prototypes", "linear"]

# Inverse temperature of cosine scores during fitting and for confidences: cosines of sentence encoders differ by a few
# hundredths between near labels, so 1 would leave the softmax flat. 20 is sentence-transformers' own default.
COSINE_SCALE = 20.0
PROBE_PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Readout:
    """Weights `(label, hidden)` and bias `(label,)` in the order of the labels, with the kind that made them."""

    kind: ReadoutKind
    weights: Tensor
    bias: Tensor
    scale: float

    def scores(self, features: Tensor) -> Tensor:
        """Unnormalised log-probabilities `(row, label)` of features `(row, hidden)`."""
        unit = nn.functional.normalize(features.float(), dim=1)
        return self.scale * unit @ self.weights.to(unit.device).T + self.bias.to(unit.device)

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.weights.numel() + (self.bias.numel() if self.kind == "linear" else 0)

    def arrays(self) -> dict[str, Any]:
        """For a bundle."""
        return {"weights": self.weights.detach().cpu().numpy(), "bias": self.bias.detach().cpu().numpy()}

    @classmethod
    def from_arrays(cls, kind: str, scale: float, arrays: dict[str, Any], labels: int) -> Readout:
        """Out of a bundle; BundleError when kind, names or shapes do not fit."""
        names, known = sorted(arrays), ("label-text", "prototypes", "linear")
        fits = names == ["bias", "weights"] and arrays["weights"].ndim == 2 and kind in known
        if not fits or len(arrays["weights"]) != labels or arrays["bias"].shape != (labels,):
            raise BundleError(
                "The bundle's read-out does not fit its labels.",
                expected=f"one of {', '.join(known)}, weights (label, hidden) and bias (label,) for {labels} labels",
                found=f"{kind}, {', '.join(f'{name} {arrays[name].shape}' for name in names)}",
                fix="Fit the prefix again.",
            )
        weights, bias = (torch.from_numpy(np.array(arrays[name], dtype=np.float32)) for name in ("weights", "bias"))
        return cls(kind, weights, bias, scale)  # type: ignore[arg-type]  # checked above


def from_label_texts(features: Tensor) -> Readout:
    """Similarity to the labels' own texts: `features` are their embeddings by the bare model, `(label, hidden)`."""
    unit = nn.functional.normalize(features.float(), dim=1)
    return Readout("label-text", unit, torch.zeros(len(unit)), COSINE_SCALE)


def from_prototypes(features: Tensor, targets: Tensor, labels: int) -> Readout:
    """Similarity to the mean direction of each label's examples: `features` `(row, hidden)`, `targets` `(row,)`."""
    unit = nn.functional.normalize(features.float(), dim=1)
    sums = torch.zeros(labels, unit.shape[1]).index_add_(0, targets, unit)
    return Readout("prototypes", nn.functional.normalize(sums, dim=1), torch.zeros(labels), COSINE_SCALE)


def without_self(features: Tensor, bank: Tensor, targets: Tensor, bank_targets: Tensor, own: Tensor) -> Tensor:
    """Prototype scores `(row, label)` where no row meets itself: each row's own bank entry is left out of its class.

    `features` `(row, hidden)` are differentiable; `bank` `(example, hidden)` are constants; row i is example `own[i]`.
    Without this a prototype made of few examples rewards a row for resembling itself.
    """
    unit, known = nn.functional.normalize(features.float(), dim=1), nn.functional.normalize(bank.float(), dim=1)
    labels = int(bank_targets.max()) + 1
    sums = torch.zeros(labels, known.shape[1]).index_add_(0, bank_targets, known).to(unit.device)
    counts = torch.bincount(bank_targets, minlength=labels)[targets]
    mine = known[own] * (counts > 1)[:, None]  # a class of one keeps its only example
    others = nn.functional.one_hot(targets, labels)[:, :, None].to(unit.device) * mine[:, None].to(unit.device)
    prototypes = nn.functional.normalize(sums[None] - others, dim=2)
    return COSINE_SCALE * torch.einsum("rlh,rh->rl", prototypes, unit)


def logistic_regression(
    features: Tensor, targets: Tensor, labels: int, *, inverse_penalty: float, start: Readout | None = None
) -> Readout:
    """Multinomial logistic regression on unit features: minimises summed cross-entropy + |W|^2 / (2 inverse_penalty).

    The bias is not penalised. Solved to convergence by L-BFGS (scipy), so there is no learning rate and no seed; the
    problem is convex, so `start` changes the time it takes and not the solution.
    """
    unit = nn.functional.normalize(features.double(), dim=1).numpy()
    hidden, onehot = unit.shape[1], np.eye(labels)[targets.numpy()]

    def objective(flat: Any) -> tuple[float, Any]:
        weights, bias = flat[: labels * hidden].reshape(labels, hidden), flat[labels * hidden :]
        logits = unit @ weights.T + bias
        logits -= logits.max(axis=1, keepdims=True)
        log_total = np.log(np.exp(logits).sum(axis=1, keepdims=True))
        loss = -float((onehot * (logits - log_total)).sum()) + float((weights**2).sum()) / (2 * inverse_penalty)
        residual = np.exp(logits - log_total) - onehot
        slope = np.concatenate([(residual.T @ unit + weights / inverse_penalty).ravel(), residual.sum(axis=0)])
        return loss, slope

    first = np.zeros(labels * (hidden + 1))
    if start is not None:
        first = torch.cat([start.weights.flatten(), start.bias]).double().numpy()
    solved = minimize(objective, first, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-7}).x
    weights = torch.from_numpy(solved[: labels * hidden].reshape(labels, hidden)).float()
    return Readout("linear", weights, torch.from_numpy(solved[labels * hidden :]).float(), 1.0)


def best_logistic_regression(
    features: Tensor, targets: Tensor, selection: Tensor, selection_targets: Tensor, labels: int
) -> tuple[Readout, float]:
    """The logistic regression whose penalty does best on the selection split, with that penalty's inverse.

    Best by accuracy, then by cross-entropy.
    """
    found = []
    readout = None
    for inverse_penalty in PROBE_PENALTIES:
        readout = logistic_regression(features, targets, labels, inverse_penalty=inverse_penalty, start=readout)
        scores = readout.scores(selection)
        accuracy = float((scores.argmax(dim=1) == selection_targets).float().mean())
        found.append(
            (accuracy, -float(nn.functional.cross_entropy(scores, selection_targets)), inverse_penalty, readout)
        )
    accuracy, _, inverse_penalty, readout = max(found, key=lambda entry: entry[:2])
    return readout, inverse_penalty
