"""The pilot: every candidate on one task, judged alike, and a decision. The stages are on one screen in `run_pilot`.

The protocol is fixed before the data are seen. Candidates are made from the fit and selection splits; each is judged
once on the test split, which nothing else touches. The candidate is chosen on the selection split. Of several seeds,
the best on the selection split is judged; the others are reported.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.assessment.decision import best_prefix, choose
from foreword.assessment.evidence import (
    CandidateEvidence,
    Evidence,
    StressEvidence,
)
from foreword.assessment.findings import candidate_evidence, whole_evidence
from foreword.assessment.folder import Judged, RunFolder
from foreword.assessment.judging import Run, Watch, make_candidates, revived
from foreword.assessment.other_text import other_text
from foreword.assessment.report import write_report
from foreword.assessment.stress import run_stress
from foreword.bundle import load_bundle, save_bundle
from foreword.engine.host import Host
from foreword.errors import BundleError, DataError, TaskError
from foreword.prefix import Prefix
from foreword.record import Stopwatch
from foreword.trust import TrustPolicy
from foreword.tuning.adaptation import FittedPrefix
from foreword.tuning.candidate_settings import AnyCandidate, ZeroShotSettings
from foreword.tuning.candidates import Workbench
from foreword.tuning.candidates.contract import unset_readout
from foreword.tuning.candidates.zero_shot import ZeroShot
from foreword.tuning.examples import load_splits
from foreword.tuning.predictor import Predictor
from foreword.tuning.problems import did_you_mean
from foreword.tuning.task import Task
from foreword.version import __version__


@dataclass(frozen=True)
class PilotResult:
    """What a pilot leaves: its evidence, and where folder, report and (when a prefix was fitted) bundle are."""

    evidence: Evidence
    folder: Path
    report: Path
    bundle: Path | None


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
    other = other_text(task.forgetting, task.folder)
    watched("base model", 0, 1, task.reference)
    host = Host.load(task.reference, dtype=task.model.dtype, device=task.model.device)
    before = host.fingerprint
    watched("base model", 1, 1, before[:12])
    bench = Workbench(host, task, splits)
    bare = _bare(bench, candidates)
    folder = RunFolder(Path(out) if out is not None else Path("runs") / _file_name(task.name))
    settings = {"task": task.settings(), "limit": limit, "seeds": list(chosen_seeds)}
    read = {"data": splits.hash, "other_text": None if other is None else other.sha256}
    with folder.held({**settings, **read, "base": before, "foreword": __version__}, fresh=fresh):
        run = Run(task, candidates, chosen_seeds, limit, bench, bare, folder, other, watched)
        results, failed = make_candidates(run)
        evidence = candidate_evidence(run, results)
        chosen = choose(evidence, examples=len(splits.selection))
        stress = None if chosen is None else _stress(run, chosen, results)
        after = host.measure_fingerprint()
        record = stopwatch.record(settings)
        whole = whole_evidence(run, evidence, failed, stress, results, (before, after), record)
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
                fix="Name candidates of the task file, by name or kind, each on its own: --only A --only B.",
            )
    return [found for found in task.candidates if not only or found.name in only or found.kind in only]


def _bare(bench: Workbench, candidates: Sequence[AnyCandidate]) -> Predictor:
    """The model as it is, which latencies are measured against; DataError when it cannot spell the labels.

    Candidates that all read labels from features need no more than those, and then neither does the model as it is.
    """
    try:
        return ZeroShot(ZeroShotSettings()).predictor(bench)
    except DataError:
        if not all(_reads_features(candidate) for candidate in candidates):
            raise
        return Predictor(bench.host, bench.manner(), readout=unset_readout("linear", bench))


def _reads_features(candidate: AnyCandidate) -> bool:
    return candidate.kind == "probe" or getattr(candidate, "readout", "auto") in ("prototypes", "linear")


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


def _stress(run: Run, chosen: CandidateEvidence, results: dict[str, list[Judged]]) -> StressEvidence:
    fitted = revived(run, chosen.name, results)
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


def _save_best_prefix(run: Run, evidence: Evidence, results: dict[str, list[Judged]]) -> Path | None:
    """The bundle of the prefix that did best on the selection split, with the evidence on it; None without a prefix."""
    prefix = best_prefix(evidence.candidates)
    if prefix is None:
        return None
    fitted = revived(run, prefix.name, results)
    adaptation = fitted.predictor.adaptation
    if not isinstance(adaptation, FittedPrefix):
        raise TypeError(f"the prefix candidate came with {type(adaptation).__name__}")
    told = {
        "task": evidence.task.model_dump(mode="json"),
        "data": evidence.data.hash,
        "candidate": prefix.model_dump(mode="json"),
        "decision": evidence.decision.model_dump(mode="json"),
    }
    if not _is_kept(run.folder.bundle, made := adaptation.prefix(), told):
        save_bundle(
            run.folder.bundle,
            made,
            host=run.bench.host,
            use=fitted.predictor.use(),
            readout=fitted.predictor.arrays(),
            provenance=evidence.provenance.model_dump(mode="json"),
            evidence=told,
        )
    return run.folder.bundle


def _is_kept(path: Path, prefix: Prefix, evidence: dict[str, Any]) -> bool:
    """Whether an earlier run of this pilot left this prefix with this evidence there: it may have been signed since."""
    try:
        found = load_bundle(path, trust=TrustPolicy())
    except BundleError:
        return False
    return found.prefix.hash == prefix.hash and found.evidence == json.loads(json.dumps(evidence))
