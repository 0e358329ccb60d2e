"""The rival of the comparison with PEFT whose classifier begins solved."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

from foreword.engine.generation import embed
from foreword.engine.host import Host
from foreword.tuning.readout import best_logistic_regression


def test_a_solved_classifier_begins_as_our_read_out_does(
    import_scripts: Callable[..., dict[str, ModuleType]], shared_host: Callable[[str], Host]
) -> None:
    rival = import_scripts("peft_rival", folders=("peft_prefix",))["peft_rival"]
    host, drawn = shared_host("bert"), torch.Generator().manual_seed(0)
    rows = [torch.randint(5, 20, (24, 4), generator=drawn).tolist() for _ in range(2)]
    targets = [torch.tensor([row[0] % 3 for row in part]) for part in rows]
    head = rival._MeanHead(host.model, host.hidden_size, 3, is_unit=True).eval()
    ids = torch.tensor(rows[1])
    drawn_scores = head(ids, torch.ones_like(ids)).detach()
    rival.solve_classifier(head, host, rows, targets)
    solved_scores = head(ids, torch.ones_like(ids)).detach()

    read = [embed(host, part) for part in rows]
    ours, _ = best_logistic_regression(read[0], targets[0], read[1], targets[1], 3)
    # Each solver stops where a step gains less than 1e-7 of the loss, which is at most 24 ln 3 = 26.4 and curves by at
    # least 1/100 (the weakest penalty): |W - best|^2 <= 2 * 100 * 26.4e-7, 0.023 for each. What is read has length 1.
    assert torch.allclose(solved_scores, ours.scores(read[1]), atol=2 * 0.023)
    assert not torch.allclose(drawn_scores, ours.scores(read[1]), atol=2 * 0.023)
