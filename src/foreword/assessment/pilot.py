"""The pilot: every candidate on one task, judged alike, and a decision. The stages are on one screen in `run_pilot`.

The protocol is fixed before the data are seen. Candidates are made from the fit and selection splits; each is judged
once on the test split, which nothing else touches. The candidate is chosen on the selection split. Of several seeds,
the best on the selection split is judged; the others are reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from foreword.assessment.cost import cost_of
from foreword.assessment.decision import Case, choose, decide
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
    HistoryPoint,
    Provenance,
    RequirementEvidence,
    SeedResult,
    StressEvidence,
    TaskEvidence,
)
from foreword.assessment.folder import Judged, RunFolder
from foreword.assessment.measurement import PeakMemory, measure_latency
from foreword.assessment.metrics import compare, failures_by_label, measure
from foreword.assessment.report import write_report
from foreword.assessment.stress import run_stress
from foreword.bundle import save_bundle
from foreword.engine.host import Host
from foreword.errors import BundleError, ForewordError, RunFolderError, TaskError
from foreword.record import RunRecord, Stopwatch
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidates import Fitted, Workbench, candidate_for
from foreword.tuning.candidates.zero_shot import ZeroShot
from foreword.tuning.examples import Splits, load_splits
from foreword.tuning.predictor import Predictor
from foreword.tuning.problems import did_you_mean
from foreword.tuning.sections import AnyCandidate, ZeroShotSettings
from foreword.tuning.task import Task

# (stage, done, of, note): for progress bars. A stage is a candidate's name, "judge NAME", "stress", ...
Watch = Callable[[str, int, int, str], None]
# Requests timed for a latency, at most.
LATENCY_TEXTS = 40
# What a latency is at least: noise can make an added time negative.
SHORTEST_LATENCY_MS = 0.001


@dataclass(frozen=True)
class PilotResult:
    """What a pilot leaves: its evidence, and where folder, report and (when a prefix was fitted) bundle are."""

    evidence: Evidence
    folder: Path
    report: Path
    bundle: Path | None


@dataclass(frozen=True)
class _Run:
    """One pilot under way."""

    task: Task
    candidates: Sequence[AnyCandidate]
    seeds: tuple[int, ...]
    limit: int | None
    bench: Workbench
    bare: Predictor
    folder: RunFolder
    watch: Watch

    @property
    def splits(self) -> Splits:
        return self.bench.splits

    @property
    def targets(self) -> list[str]:
        return [example.target for example in self.splits.test]

    @property
    def inputs(self) -> list[str]:
        return [example.input for example in self.splits.test]


def run_pilot(
    task: Task | Path | str,
    *,
    out: Path | str | None = None,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (),
    limit: int | None = None,
    fresh: bool = False,
    watch: Watch | None = None,
    command: str = "foreword.run_pilot",
) -> PilotResult:
    """Run a task's candidates, judge them, and write evidence, report and the best prefix's bundle to `out`.

    `only` names the candidates (or kinds) to run; `seeds` and `limit` (examples per split) override the task's. The
    default folder is runs/TASK. A pilot that was interrupted goes on where it stopped; `fresh` starts again. A
    ForewordError says what is wrong before anything is written; a single candidate's failure is part of the evidence.
    """
    task = task if isinstance(task, Task) else Task.load(task)
    chosen_seeds = _checked_seeds(seeds) or task.run.seeds
    watched = watch or _unwatched
    stopwatch = Stopwatch(command, seeds=chosen_seeds)
    candidates = _selected(task, only)
    splits = load_splits(task, limit=limit)
    watched("base model", 0, 1, task.reference)
    host = Host.load(task.reference, dtype=task.model.dtype, device=task.model.device)
    before = host.fingerprint
    watched("base model", 1, 1, before[:12])
    bench = Workbench(host, task, splits, lambda targets, outputs: measure(task.metric, targets, outputs).value)
    bare = ZeroShot(ZeroShotSettings()).predictor(bench)
    folder = RunFolder(Path(out) if out is not None else Path("runs") / _file_name(task.name))
    settings = {"task": task.settings(), "limit": limit, "seeds": list(chosen_seeds)}
    with folder.held({**settings, "data": splits.hash, "base": before}, fresh=fresh):
        run = _Run(task, candidates, chosen_seeds, limit, bench, bare, folder, watched)
        results, failed = _make_candidates(run)
        evidence = _candidate_evidence(run, results)
        chosen = choose(evidence)
        stress = None if chosen is None else _stress(run, chosen, results)
        after = host.measure_fingerprint()
        record = stopwatch.record(settings)
        whole = _evidence(run, evidence, failed, stress, results, (before, after), record)
        bundle = _save_best_prefix(run, whole, results)
        folder.write(folder.evidence, whole.to_json())
        write_report(whole, folder.report)
    return PilotResult(whole, folder.path, folder.report, bundle)


def _unwatched(*_: object) -> None:
    return


def _selected(task: Task, only: Sequence[str]) -> list[AnyCandidate]:
    """The task's candidates that `only` names, by name or kind; all when it names none."""
    known = [name for found in task.candidates for name in (found.name, found.kind)]
    for name in only:
        if name not in known:
            raise TaskError(
                f"The task has no candidate {name!r}.",
                expected=", ".join(dict.fromkeys(known)),
                found=name + did_you_mean(name, known),
                fix="Name candidates of the task file, by name or kind.",
            )
    return [found for found in task.candidates if not only or found.name in only or found.kind in only]


def _checked_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Each seed once; TaskError for one that a task file may not have either."""
    wrong = [seed for seed in seeds if not 0 <= seed < 2**32]
    if wrong:
        raise TaskError(
            "A seed is out of range.",
            expected="whole numbers from 0 to 4294967295",
            found=", ".join(map(str, wrong)),
            fix="Choose other seeds.",
        )
    return tuple(dict.fromkeys(seeds))


def _file_name(name: str) -> str:
    """A task's name as that of one folder: 60 characters take at most the 255 bytes that a file system allows."""
    plain = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
    return plain[:60].strip("-.") or "pilot"


def _make_candidates(run: _Run) -> tuple[dict[str, list[Judged]], list[FailedCandidate]]:
    """Make and judge every candidate with every seed that matters to it; what an earlier run finished is not redone."""
    results: dict[str, list[Judged]] = {}
    failed: list[FailedCandidate] = []
    for settings in run.candidates:
        seeds = run.seeds if candidate_for(settings).uses_seed else run.seeds[:1]
        try:
            for seed in seeds:
                judged = run.folder.finished(settings.name, seed, answers=len(run.targets))
                if judged is None:
                    judged = _judge(run, settings, seed)
                    run.folder.finish(settings.name, judged)
                results.setdefault(settings.name, []).append(judged)
                run.watch(settings.name, 1, 1, f"selection {judged.selection:.3f}")
        except (RunFolderError, BundleError):  # the folder's failure or the disk's, not the candidate's
            raise
        except (ForewordError, MemoryError, RuntimeError) as error:  # torch has no finer class for most of its own
            results.pop(settings.name, None)
            failed.append(
                FailedCandidate(
                    name=settings.name, kind=settings.kind, code=type(error).__name__, message=str(error)[:2000]
                )
            )
            run.watch(settings.name, 1, 1, f"failed: {str(error).partition(chr(10))[0]}")
    return results, failed


def _fit(run: _Run, settings: AnyCandidate, seed: int) -> Fitted:
    checkpoint = run.folder.checkpoint(settings.name, seed)
    return candidate_for(settings).fit(
        run.bench,
        seed=seed,
        checkpoint=checkpoint,
        progress=lambda done, of, note: run.watch(settings.name, done, of, note),
    )


def _judge(run: _Run, settings: AnyCandidate, seed: int) -> Judged:
    """Make one candidate, answer the test split once, and measure what it took."""
    run.watch(settings.name, 0, 1, "starting")
    clock = Stopwatch(settings.name)
    with PeakMemory() as memory:
        fitted = _fit(run, settings, seed)
        seconds = max(clock.seconds, fitted.history[-1].seconds if fitted.history else 0.0)
        try:
            done = 0

            def advance(count: int) -> None:
                nonlocal done
                done += count
                run.watch(f"judge {settings.name}", done, len(run.inputs), "")

            outputs = [answer.output for answer in fitted.predictor.answer(run.inputs, progress=advance)]
            latency = measure_latency(
                lambda text: fitted.predictor.answer([text]),
                lambda text: run.bare.answer([text]),
                run.inputs[:LATENCY_TEXTS],
            )
        finally:
            fitted.predictor.adaptation.close()
    return Judged(
        seed=seed,
        readout=fitted.readout,
        selection=fitted.selection,
        outputs=outputs,
        trainable=fitted.trainable,
        bytes=fitted.nbytes,
        fit_seconds=seconds,
        peak_memory_bytes=memory.bytes,
        bare_latency_ms=latency.bare_ms,
        latency_added_ms=latency.added_ms,
        history=_history(fitted),
        details=fitted.details,
    )


def _history(fitted: Fitted) -> list[HistoryPoint]:
    return [HistoryPoint(step=m.step, seconds=m.seconds, loss=m.loss, selection=m.selection) for m in fitted.history]


def best_seed(results: Sequence[Judged]) -> Judged:
    """The fit that is judged: the best on the selection split, of equals the one run first."""
    return max(results, key=lambda found: found.selection)


def _candidate_evidence(run: _Run, results: dict[str, list[Judged]]) -> list[CandidateEvidence]:
    settings = {found.name: found for found in run.candidates if found.name in results}
    baseline = next((name for name, found in settings.items() if found.kind == "zero-shot"), None)
    drafts = {name: best_seed(found) for name, found in results.items()}
    best = max(drafts, key=lambda name: (drafts[name].selection, -drafts[name].trainable), default=None)
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
        )
        for name, found in settings.items()
    ]


def _difference(run: _Run, mine: Judged, rival: Judged, name: str) -> Difference:
    if mine is rival:  # nothing is uncertain about the difference of a candidate to itself
        n = len(run.targets)
        return Difference(value=0, low=0, high=0, level=0.95, method="identity", n=n, to=name, wins=0, losses=0)
    return compare(run.task.metric, run.targets, mine.outputs, rival.outputs, to=name)


def _seed_result(run: _Run, judged: Judged, best: Judged) -> SeedResult:
    value = measure(run.task.metric, run.targets, judged.outputs).value
    return SeedResult(seed=judged.seed, selection=judged.selection, test=value, judged=judged is best)


def _revived(run: _Run, name: str, results: dict[str, list[Judged]]) -> Fitted:
    """A judged candidate again, ready to answer: a fit goes on from its final checkpoint, which is at once.

    RunFolderError when that is not the fit that was judged, which its history of seconds tells.
    """
    settings, judged = next(found for found in run.candidates if found.name == name), best_seed(results[name])
    fitted = _fit(run, settings, judged.seed)
    if _history(fitted) != judged.history:
        fitted.predictor.adaptation.close()
        checkpoint = run.folder.checkpoint(name, judged.seed)
        raise RunFolderError(
            f"The checkpoint of {name!r} is not that of the fit that was judged.",
            expected=f"{checkpoint} as the pilot left it",
            found="another fit, or none",
            fix=f"Remove {checkpoint.parent} and run the same command again: it is then fitted and judged anew.",
        )
    return fitted


def _stress(run: _Run, chosen: CandidateEvidence, results: dict[str, list[Judged]]) -> StressEvidence:
    fitted = _revived(run, chosen.name, results)
    try:
        return run_stress(
            fitted.predictor,
            run.splits.test,
            candidate=chosen.name,
            metric=run.task.metric,
            limits=run.task.limits,
            seed=run.seeds[0],
            progress=lambda name, done, of: run.watch(f"stress {name}", done, of, ""),
        )
    finally:
        fitted.predictor.adaptation.close()


def _evidence(
    run: _Run,
    candidates: list[CandidateEvidence],
    failed: list[FailedCandidate],
    stress: StressEvidence | None,
    results: dict[str, list[Judged]],
    fingerprints: tuple[str, str],
    record: RunRecord,
) -> Evidence:
    """All findings in one value, with the decision that follows from them."""
    by_name = {found.name: found for found in candidates}
    chosen, requirement = choose(candidates), run.task.requirement
    prefix = choose([found for found in candidates if found.kind == "prefix"])
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
        cost=cost,
        decision=decision,
        provenance=Provenance(**record.as_dict()),
    )


def _task_evidence(run: _Run) -> TaskEvidence:
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


def _data_evidence(splits: Splits) -> DataEvidence:
    return DataEvidence(
        hash=splits.hash,
        files=[FileHash(path=file.path, sha256=file.sha256, rows=file.rows) for file in splits.files],
        duplicates_merged=splits.duplicates_merged,
        counts=splits.counts,
    )


def _save_best_prefix(run: _Run, evidence: Evidence, results: dict[str, list[Judged]]) -> Path | None:
    """The bundle of the prefix that did best on the selection split, with the evidence on it; None without a prefix."""
    prefix = choose([found for found in evidence.candidates if found.kind == "prefix"])
    if prefix is None:
        return None
    fitted = _revived(run, prefix.name, results)
    adaptation, readout = fitted.predictor.adaptation, fitted.predictor.readout
    if not isinstance(adaptation, FittedPrefix):
        raise TypeError(f"the prefix candidate came with {type(adaptation).__name__}")
    save_bundle(
        run.folder.bundle,
        adaptation.prefix(),
        host=run.bench.host,
        use=fitted.predictor.use(),
        readout=None if readout is None else readout.arrays(),
        provenance=evidence.provenance.model_dump(mode="json"),
        evidence={
            "task": evidence.task.model_dump(mode="json"),
            "data": evidence.data.hash,
            "candidate": prefix.model_dump(mode="json"),
            "decision": evidence.decision.model_dump(mode="json"),
        },
    )
    return run.folder.bundle
