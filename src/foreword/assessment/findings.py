"""From what was judged to evidence: metrics with intervals, paired differences, cost and decision in one value.

It measures nothing and runs no model; everything it needs is in the judged results.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from foreword.assessment.cost import cost_of
from foreword.assessment.decision import Case, best_prefix, choose, decide
from foreword.assessment.evidence import (
    SCHEMA,
    BaseEvidence,
    CandidateEvidence,
    DataEvidence,
    Difference,
    Differences,
    Evidence,
    FailedCandidate,
    FileHash,
    OtherTextEvidence,
    Provenance,
    RequirementEvidence,
    SeedResult,
    StressEvidence,
    TaskEvidence,
)
from foreword.assessment.folder import Judged
from foreword.assessment.judging import Run, best_seed
from foreword.assessment.metrics import compare, failures_by_label, measure
from foreword.engine.host import Host
from foreword.record import RunRecord
from foreword.tuning.examples import Splits

# What a latency is at least: noise can make an added time negative.
SHORTEST_LATENCY_MS = 0.001


@dataclass(frozen=True)
class _Standing:
    name: str
    kind: str
    selection: float
    trainable: int


def candidate_evidence(run: Run, results: dict[str, list[Judged]]) -> list[CandidateEvidence]:
    settings = {found.name: found for found in run.candidates if found.name in results}
    baseline = next((name for name, found in settings.items() if found.kind == "zero-shot"), None)
    drafts = {name: best_seed(found) for name, found in results.items()}
    standings = [_Standing(name, settings[name].kind, x.selection, x.trainable) for name, x in drafts.items()]
    chosen = choose(standings, examples=len(run.splits.selection))
    best = None if chosen is None else chosen.name
    # Candidates are timed minutes apart, each in turn with the bare model: only the added time can be compared.
    bare_ms = statistics.median(found.bare_latency_ms for found in drafts.values()) if drafts else 0.0
    return [
        CandidateEvidence(
            name=name,
            kind=found.kind,
            readout=drafts[name].readout,
            metric=measure(run.task.metric, run.targets, drafts[name].outputs),
            selection=drafts[name].selection,
            difference=Differences(
                baseline=None if baseline is None else _difference(run, drafts[name], drafts[baseline], baseline),
                best=None if best is None else _difference(run, drafts[name], drafts[best], best),
            ),
            trainable=drafts[name].trainable,
            bytes=drafts[name].bytes,
            fit_seconds=drafts[name].fit_seconds,
            peak_memory_bytes=drafts[name].peak_memory_bytes,
            latency_ms=max(bare_ms + drafts[name].latency_added_ms, SHORTEST_LATENCY_MS),
            latency_added_ms=drafts[name].latency_added_ms,
            failures=failures_by_label(run.targets, drafts[name].outputs) if run.task.kind == "classify" else {},
            seeds=[_seed_result(run, judged, drafts[name]) for judged in results[name]],
            history=drafts[name].history,
            details=drafts[name].details,
            forgetting=drafts[name].forgetting,
        )
        for name, found in settings.items()
    ]


def _difference(run: Run, mine: Judged, rival: Judged, name: str) -> Difference:
    if mine is rival:  # nothing is uncertain about the difference of a candidate to itself
        n = len(run.targets)
        return Difference(value=0, low=0, high=0, level=0.95, method="identity", n=n, to=name, wins=0, losses=0)
    return compare(run.task.metric, run.targets, mine.outputs, rival.outputs, to=name)


def _seed_result(run: Run, judged: Judged, best: Judged) -> SeedResult:
    value = measure(run.task.metric, run.targets, judged.outputs).value
    return SeedResult(seed=judged.seed, selection=judged.selection, test=value, judged=judged is best)


def whole_evidence(
    run: Run,
    candidates: list[CandidateEvidence],
    failed: list[FailedCandidate],
    stress: StressEvidence | None,
    results: dict[str, list[Judged]],
    fingerprints: tuple[str, str],
    record: RunRecord,
) -> Evidence:
    """All findings in one value, with the decision that follows from them."""
    by_name = {found.name: found for found in candidates}
    chosen = choose(candidates, examples=len(run.splits.selection))
    requirement, prefix = run.task.requirement, best_prefix(candidates)
    outputs = {name: best_seed(found) for name, found in results.items()}
    cost = cost_of(candidates, run.splits, run.task.prices)
    decision = decide(
        Case(
            requirement=requirement,
            candidates=candidates,
            failed=failed,
            chosen=chosen,
            baseline=next((found for found in candidates if found.kind == "zero-shot"), None),
            judged=None
            if chosen is None
            else measure(run.task.metric, run.targets, outputs[chosen.name].outputs, level=requirement.confidence),
            prefix=prefix,
            versus_prefix=[
                _difference(run, outputs[prefix.name], outputs[name], name) for name in by_name if name != prefix.name
            ]
            if prefix is not None
            else [],
            versus_chosen=[
                (by_name[name], _difference(run, outputs[name], outputs[chosen.name], chosen.name))
                for name in by_name
                if chosen is not None and name != chosen.name
            ]
            if chosen is not None
            else [],
            stress=stress,
            cost=cost,
            base_unchanged=fingerprints[0] == fingerprints[1],
            limit=run.limit,
        )
    )
    return Evidence(
        schema_=SCHEMA,
        task=_task_evidence(run),
        base=_base_evidence(run.bench.host, fingerprints),
        data=_data_evidence(run.splits),
        candidates=candidates,
        failed=failed,
        stress=stress,
        other_text=_other_text_evidence(run),
        cost=cost,
        decision=decision,
        provenance=Provenance(**record.as_dict()),
    )


def _task_evidence(run: Run) -> TaskEvidence:
    needed, template = run.task.requirement, run.bench.template
    return TaskEvidence(
        name=run.task.name,
        kind=run.task.kind,
        metric=run.task.metric,
        requirement=RequirementEvidence(
            text=needed.text, metric=needed.metric, at_least=needed.at_least, confidence=needed.confidence
        ),
        labels=list(run.splits.labels) if run.task.kind == "classify" else [],
        template=f"{template.before}{{input}}{template.after}",
    )


def _base_evidence(host: Host, fingerprints: tuple[str, str]) -> BaseEvidence:
    return BaseEvidence(
        reference=host.reference,
        family=host.family,
        parameters=host.parameters,
        bytes=host.nbytes,
        fingerprint_before=fingerprints[0],
        fingerprint_after=fingerprints[1],
    )


def _other_text_evidence(run: Run) -> OtherTextEvidence | None:
    found = run.other_text
    if found is None:
        return None
    return OtherTextEvidence(sources=list(found.sources), passages=len(found.passages), sha256=found.sha256)


def _data_evidence(splits: Splits) -> DataEvidence:
    return DataEvidence(
        hash=splits.hash,
        files=[FileHash(path=file.path, sha256=file.sha256, rows=file.rows) for file in splits.files],
        duplicates_merged=splits.duplicates_merged,
        counts=splits.counts,
    )
