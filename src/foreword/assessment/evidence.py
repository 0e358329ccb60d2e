"""The evidence of one pilot: the single file that every report, table and decision is made from.

Language-free: it holds numbers and codes, never sentences, so that a report in any language says the same. The schema
is versioned by `SCHEMA`; a reader refuses a file of another schema instead of guessing.

It knows nothing of models or HTML. A value that is not known is `None`, never 0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from foreword.errors import DataError

SCHEMA = "foreword.evidence/1"

CandidateKind = Literal["zero-shot", "hard-prompt", "few-shot", "probe", "soft-prompt", "prefix", "lora", "full"]
Verdict = Literal["GO", "CONDITIONAL", "NO-GO", "NOT ENOUGH EVIDENCE"]


class Record(BaseModel):
    """Base of all evidence records: unknown fields are refused, values are not changed after the fact."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Estimate(Record):
    """A measured value with its interval: `value` in [`low`, `high`] at confidence `level`, by `method`, from `n`."""

    value: float
    low: float
    high: float
    level: float
    method: str
    n: int


class MetricEstimate(Estimate):
    name: str


class Difference(Estimate):
    """Paired difference candidate minus rival on the same examples; positive means the candidate is better.

    `wins` and `losses` count the examples that only the candidate, or only the rival, got right (better, for a graded
    metric). `to` names the rival.
    """

    to: str
    wins: int
    losses: int


class Differences(Record):
    baseline: Difference | None
    best: Difference | None


class LabelFailures(Record):
    """Of `n` test examples of this label, `wrong` were answered otherwise, most often with `confused_with`."""

    n: int
    wrong: int
    confused_with: str | None = None


class SeedResult(Record):
    """One seed's fit: metric on the selection split, and on the test split; `judged` marks the one that is reported."""

    seed: int
    selection: float
    test: float
    judged: bool


class HistoryPoint(Record):
    """State of a fit after `step` steps: seconds since its start, training loss, metric on the selection split."""

    step: int
    seconds: float
    loss: float | None
    selection: float | None


class ForgettingEvidence(Record):
    """What a fitted candidate does, while it is active, to `texts` outside the task, `tokens` of which were read.

    For a model that writes: `loss_bare` is the bare model's next-token loss, `loss_change` what is added to it (both in
    nats a token), `divergence` the Kullback-Leibler divergence of the bare model's predictions from the candidate's, in
    nats a token, and `changed` the share of tokens with another likeliest prediction. For an encoder: `turned` is 1
    minus the cosine of a text's two features, and `changed` the share of texts with another nearest neighbour.
    """

    texts: int
    tokens: int
    loss_bare: float | None
    loss_change: Estimate | None
    divergence: Estimate | None
    turned: Estimate | None
    changed: Estimate


class OtherTextEvidence(Record):
    """The passages outside the task: their number, the SHA-256 of them all, and what they were drawn from."""

    sources: list[str]
    passages: int
    sha256: str


class CandidateEvidence(Record):
    """What was measured of one candidate.

    Latencies are in milliseconds for a single request (batch of one). `latency_added_ms` is the median difference to
    the bare model timed in turn with it; `latency_ms` adds it to the bare model's median over the whole run, so that
    candidates timed at different moments of a busy machine can be compared.
    """

    name: str
    kind: CandidateKind
    readout: str | None = Field(
        description="label-text, prototypes, linear, likelihood, calibrated; None for generation"
    )
    metric: MetricEstimate
    selection: float = Field(description="the same metric on the selection split: what the choice was made on")
    difference: Differences
    trainable: int = Field(description="numbers that were fitted, read-out included")
    bytes: int = Field(description="size of what is stored for this candidate")
    fit_seconds: float
    peak_memory_bytes: int = Field(description="highest resident memory during fit and test, above that before")
    latency_ms: float
    latency_added_ms: float = Field(description="median latency minus the bare model's, measured in turn")
    failures: dict[str, LabelFailures] = Field(description="by label; empty for generation")
    seeds: list[SeedResult]
    history: list[HistoryPoint]
    details: dict[str, Any] = Field(description="settings that matter: positions, template chosen, rank, ...")
    forgetting: ForgettingEvidence | None = Field(None, description="None for what leaves the model as it is")


class FailedCandidate(Record):
    """A candidate that could not be judged; `code` is the error class, `message` what it said."""

    name: str
    kind: CandidateKind
    code: str
    message: str


class RequirementEvidence(Record):
    text: str
    metric: str
    at_least: float
    confidence: float


class TaskEvidence(Record):
    name: str
    kind: Literal["classify", "generate"]
    metric: str
    requirement: RequirementEvidence
    labels: list[str]
    template: str


class BaseEvidence(Record):
    reference: str
    family: str
    parameters: int
    bytes: int
    fingerprint_before: str
    fingerprint_after: str


class FileHash(Record):
    path: str
    sha256: str
    rows: int


class DataEvidence(Record):
    """`counts` is by split, then by label (one label "" for generation)."""

    hash: str
    files: list[FileHash]
    duplicates_merged: int
    counts: dict[str, dict[str, int]]


class ProbeEvidence(Record):
    """One family of stress probes. `failures` of `n`; `upper` is the 95% upper bound of the failure rate.

    kind "invariance": the answer should not change; "robustness": an answer in the allowed form must come back without
    an error; "rejection": an input outside the task should not be answered with confidence. `limit` is the failure rate
    that the task allows, `passed` whether the measured rate keeps it. `examples` are a few failures, as
    (input, answer before, answer after).
    """

    name: str
    kind: Literal["invariance", "robustness", "rejection"]
    n: int
    failures: int
    rate: float | None
    upper: float | None
    limit: float
    passed: bool | None
    metric: float | None
    examples: list[tuple[str, str, str]]


class StressEvidence(Record):
    candidate: str
    probes: list[ProbeEvidence]


class CostRow(Record):
    """Money is in the task file's currency. `break_even_months` compares with doing the task as `alternative` says."""

    candidate: str
    latency_ms: float
    requests_per_second: float
    per_1k_requests: float
    one_off: float
    monthly: float
    bytes: int
    peak_memory_bytes: int
    break_even_months: float | None


class CostEvidence(Record):
    currency: str
    assumptions: dict[str, float | str]
    rows: list[CostRow]


class Reason(Record):
    """A code with its parameters; the report turns it into a sentence."""

    code: str
    parameters: dict[str, float | int | str | None] = {}


class DecisionEvidence(Record):
    """`reasons` say why; `changes` say what would change the verdict."""

    verdict: Verdict
    chosen: str | None
    reasons: list[Reason]
    changes: list[Reason]


class Provenance(Record):
    command: str
    commit: str | None
    dirty: bool | None
    seeds: list[int]
    versions: dict[str, str]
    machine: dict[str, str | int | float | None]
    started: str
    seconds: float
    settings: dict[str, Any] = Field(description="the task file as it was understood, defaults filled in")


class Evidence(Record):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    schema_: str = Field(alias="schema")
    task: TaskEvidence
    base: BaseEvidence
    data: DataEvidence
    candidates: list[CandidateEvidence]
    failed: list[FailedCandidate]
    stress: StressEvidence | None
    other_text: OtherTextEvidence | None = None
    cost: CostEvidence
    decision: DecisionEvidence
    provenance: Provenance

    def to_json(self) -> str:
        """The file's text: UTF-8, indented, keys in the order of this module, NaN and infinities refused."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False, allow_nan=False)

    def candidate(self, name: str) -> CandidateEvidence:
        """The evidence on one candidate; KeyError when it was not judged."""
        for candidate in self.candidates:
            if candidate.name == name:
                return candidate
        raise KeyError(name)


def read_evidence(path: Path) -> Evidence:
    """Read an evidence file back. DataError when it is missing, not JSON, of another schema, or incomplete."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"The evidence file {path} cannot be read.",
            expected="a JSON file written by `foreword pilot`",
            found=str(error),
            fix="Run the pilot again, or name another file.",
        ) from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise DataError(
            f"The evidence file {path} is of another schema.",
            expected=SCHEMA,
            found=str(schema),
            fix="Read it with the version of foreword that wrote it, or run the pilot again.",
        )
    try:
        return Evidence.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(
            f"The evidence file {path} is incomplete.",
            expected=f"field {'.'.join(map(str, first['loc']))}: {first['msg']}",
            found=str(first.get("input"))[:80],
            fix="Run the pilot again.",
        ) from error
