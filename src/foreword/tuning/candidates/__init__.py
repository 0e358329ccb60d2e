"""The candidates by kind: one file each behind the contract in `contract.py`, one line each here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword.tuning.candidate_settings import CandidateSettings
from foreword.tuning.candidates.contract import Candidate, Fitted, Workbench
from foreword.tuning.candidates.few_shot import FewShot
from foreword.tuning.candidates.full import Full
from foreword.tuning.candidates.hard_prompt import HardPrompt
from foreword.tuning.candidates.lora import Lora
from foreword.tuning.candidates.prefix import Prefix
from foreword.tuning.candidates.probe import Probe
from foreword.tuning.candidates.soft_prompt import SoftPrompt
from foreword.tuning.candidates.zero_shot import ZeroShot

CANDIDATES: Mapping[str, type[Candidate[Any]]] = {
    "zero-shot": ZeroShot,
    "hard-prompt": HardPrompt,
    "few-shot": FewShot,
    "probe": Probe,
    "soft-prompt": SoftPrompt,
    "prefix": Prefix,
    "lora": Lora,
    "full": Full,
}


def candidate_for(settings: CandidateSettings) -> Candidate[Any]:
    """The candidate that a [[candidates]] table of the task file asks for."""
    return CANDIDATES[settings.kind](settings)


__all__ = ["CANDIDATES", "Candidate", "Fitted", "Workbench", "candidate_for"]
