"""How loud a prefix begins, and how far one step moves it: both measured on what the bare model attends to.

A prefix takes attention from the context while its values still say nothing: with zero values the output at a query is
1 - m of what it was, m being the prefix's share. Normal keys take a third and more of a short context, and the longer
the prefix the more; what a model was about to say is drowned, and the first steps go into undoing that. So a start
without values of its own begins under a logit bias, one for each key head, at which the mean share is SHARE (quietly).

Adam moves each number by about its rate, whatever the gradient's size. What that does to the model depends on scales
that differ between models, layers and lengths, so that no rate suits all. They follow from what a step is to do:

    keys    a logit q.k moves by up to LOGITS:                       rate = LOGITS / mean |scale q|_1
    values  the output moves by MOVE of its root mean square o:      rate = MOVE o / share

The figures were chosen on small models that write. Where an answer is read from features, by a read-out that is solved
on a few hundred examples, such steps soon fit these examples alone, and where values are solved for before the first
step, they undo what was solved: GENTLE of them ends as well or better in both cases. Not so where inputs are compared
with texts that the adapted model reads too: nothing is solved there, and GENTLE steps are only slower. All were
measured (benchmarks/LOG.md), the read-outs on MiniLM only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from foreword.engine.assignment import PrefixTensors, SiteTensors
from foreword.engine.host import Host
from foreword.engine.reading import Seen, read
from foreword.errors import FitError
from foreword.tuning.resize import Texts, log_odds

SHARE, LOGITS, MOVE, GENTLE = 0.08, 0.7, 0.06, 1 / 3
# A prefix that is hardly heard does not get values without bound: rates are those of at least this share.
LEAST_SHARE = SHARE / 4
# So many examples are read to measure, and so many tokens of each at most.
ROWS, TOKENS = 16, 1024
# The bias is found by halving: no key head needs less than the first of these, and none is made louder than it is.
QUIETEST, HALVINGS = -40.0, 40


@dataclass(frozen=True)
class Loudness:
    """At one site: the bias `(kv_head,)` to begin with, the mean share of attention with it, and the two rates."""

    bias: Tensor
    share: float
    key_rate: float
    value_rate: float


@dataclass
class _Sample:
    """What was seen at one site: log odds of the prefix by key head, mean |scale q|_1, and the output's mean square."""

    odds: list[list[Tensor]]
    reach: list[Tensor] = field(default_factory=list)
    power: list[Tensor] = field(default_factory=list)


def measured(
    host: Host, texts: Texts, tensors: PrefixTensors, *, share: float | None, sites: Iterable[str], pace: float = 1.0
) -> dict[str, Loudness]:
    """What `tensors` get of the bare model's attention over these texts, at each of these sites that reads them.

    With `share` the bias brings each key head's mean share down to it where it is above; without, biases are zero.
    Rates are `pace` times the usual ones. FitError when what the model attends to is not finite.
    """
    samples = {site: _Sample([[] for _ in range(len(tensors[site].keys))]) for site in sites}

    def see(seen: Seen) -> None:
        if seen.site not in samples:
            return
        sample, found = samples[seen.site], tensors[seen.site]
        for head, odds in enumerate(log_odds(seen, found).unbind(dim=1)):
            sample.odds[head].append(odds.flatten().cpu())
        sample.reach.append(seen.query.float().abs().sum(dim=-1).flatten().cpu() * seen.scale)
        sample.power.append(seen.out.float().square().mean(dim=-1).flatten().cpu())

    rows = [row[:TOKENS] for row in texts.rows[:ROWS]]
    answers = [answer[:TOKENS] for answer in texts.answers[:ROWS]]
    read(host, rows, see, answers=answers, batch_size=1)  # alone: no query is padding, and the scores stay small
    found = {site: _loudness(sample, share, pace) for site, sample in samples.items() if sample.reach}
    for site, each in found.items():
        if not all(0 < rate < math.inf for rate in (each.key_rate, each.value_rate)):
            raise FitError(
                "The base model computes numbers that are not finite, before anything is fitted.",
                expected="finite queries and outputs of attention",
                found=f"infinities or NaN at {site}, on the first {len(rows)} examples",
                fix="Load the model in float32 or bfloat16 (dtype in [model]); if it is, its weights are damaged.",
            )
    return found


def quieted(tensors: PrefixTensors, found: Mapping[str, Loudness]) -> dict[str, SiteTensors]:
    """The same keys and values under the biases that were found, where there is one."""
    made = dict(tensors)
    for site, loudness in found.items():
        part = made[site]
        if not loudness.bias.any():
            continue
        bias = loudness.bias.to(part.keys)[:, None].expand(part.keys.shape[:2])
        if part.bias is not None:
            bias = bias.repeat_interleave(len(part.bias) // len(bias), dim=0) + part.bias
        made[site] = replace(part, bias=bias.contiguous())
    return made


def _loudness(sample: _Sample, share: float | None, pace: float) -> Loudness:
    odds = [torch.cat(parts) for parts in sample.odds]
    bias = torch.tensor([0.0 if share is None else _bias_for(share, each) for each in odds])
    heard = float(sum(torch.sigmoid(each + own).mean() for each, own in zip(odds, bias, strict=True))) / len(odds)
    reach = max(float(torch.cat(sample.reach).mean()), 1e-6)
    output = max(math.sqrt(float(torch.cat(sample.power).mean())), 1e-6)
    return Loudness(bias, heard, pace * LOGITS / reach, pace * MOVE * output / max(heard, LEAST_SHARE))


def _bias_for(share: float, odds: Tensor) -> float:
    """The bias at which the mean of sigmoid(odds + bias) is `share`; 0 when it is no more without one."""
    low, high = QUIETEST, 0.0
    if float(torch.sigmoid(odds).mean()) <= share:
        return 0.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if float(torch.sigmoid(odds + middle).mean()) > share:
            high = middle
        else:
            low = middle
    return low
