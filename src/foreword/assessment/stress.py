"""A first set of stress probes: what the chosen candidate does with inputs that the test split does not have.

Invariance: a text with typing errors, in other case, or cut short should get the same answer. Robustness: an empty or
a very long text should get an answer in the allowed form, and no error. Rejection: a text that has nothing to do with
the task should not get a confident answer. Every perturbation is a seeded function of the text.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foreword.assessment.evidence import ProbeEvidence, StressEvidence
from foreword.assessment.metrics import measure
from foreword.confidence import rate_upper_bound
from foreword.errors import ForewordError
from foreword.tuning.examples import Example
from foreword.tuning.predictor import LONGEST_INPUT, Answer, Predictor
from foreword.tuning.scoring import metric_named
from foreword.tuning.sections import Limits

Perturb = Callable[[str], str]
Progress = Callable[[str, int, int], None]

# A letter edit in about one word of eight; a third of the words cut away; ten times what the model reads.
TYPO_RATE, KEPT_SHARE, LONG_FACTOR = 1 / 8, 2 / 3, 10
EXAMPLES_KEPT = 3
SAMPLE = 100

EMPTY = ("", " ", "\n", "\t  \n", "\u200b", "...", "?", "\u3000")
OFF_TOPIC = (
    "Simmer the onions in butter until they are soft, then stir in the rice.",
    "The ferry to the island leaves at seven and again at noon.",
    "She scored twice in the second half and the crowd would not stop singing.",
    "My grandmother kept bees behind the house and sold the honey in autumn.",
    "Light rain in the morning, clearing from the west, with a high of twelve degrees.",
    "The violinist tuned her strings while the hall was still filling.",
    "He pruned the apple trees in February, before the sap began to rise.",
    "Two adults and one child, please, and a seat by the window.",
    "The kitten fell asleep in the laundry basket again.",
    "Turn left at the bakery and follow the river until you see the bridge.",
    "The museum is closed on Mondays except during school holidays.",
    "They painted the fence green and regretted it by the weekend.",
    "Mix equal parts of sand and cement, then add water slowly.",
    "The doctor told him to rest his knee for three weeks.",
    "A flock of geese crossed the valley just before sunset.",
    "The tailor shortened the sleeves and let out the waist.",
    "Our landlord raised the rent without a word of warning.",
    "The children built a dam across the stream out of stones and moss.",
    "Season the fish with salt and lemon, and grill it skin side down.",
    "The orchestra opened with a waltz and closed with a march.",
    "明日は雨が降るので傘を持って行ってください。",
    "Le boulanger ouvre sa boutique à six heures du matin.",
    "Der Zug nach Wien hat heute leider zwanzig Minuten Verspätung.",
    "zxqv blorp fnord wug dax tulver mip gazzle",
    "7 14 21 28 35 42 49 56 63 70 77 84",
    "!!! ??? ### *** ~~~",
    "The goalkeeper guessed right, but the penalty was too well placed.",
    "Water the ferns twice a week and keep them out of direct sun.",
    "The senator declined to comment on the length of the negotiations.",
    "We camped below the glacier and woke to frost on the tents.",
)


def run_stress(
    predictor: Predictor,
    examples: Sequence[Example],
    *,
    candidate: str,
    metric: str,
    limits: Limits,
    seed: int,
    progress: Progress | None = None,
) -> StressEvidence:
    """Run every probe on `predictor`; `examples` are test examples (at most 100 are used, in their order)."""
    bench = _Bench(predictor, list(examples[:SAMPLE]), metric, limits, progress)
    before = bench.answers([example.input for example in bench.examples])
    probes = [
        bench.invariance("typos", lambda text: with_typos(text, seed=seed), before),
        bench.invariance("case", str.swapcase, before),
        bench.invariance("truncation", cut_short, before),
        bench.robustness("empty", EMPTY),
        bench.robustness("very-long", [_very_long(x.input, predictor) for x in bench.examples[:3]]),
    ]
    if predictor.manner.kind == "classify":
        probes.append(bench.rejection("off-topic", OFF_TOPIC, before))
    else:
        probes.append(bench.robustness("off-topic", OFF_TOPIC))
    return StressEvidence(candidate=candidate, probes=probes)


@dataclass(frozen=True)
class _Bench:
    predictor: Predictor
    examples: list[Example]
    metric: str
    limits: Limits
    progress: Progress | None

    def answers(self, texts: Sequence[str], *, name: str = "in-task") -> list[Answer]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self.progress is not None:
                self.progress(name, done, len(texts))

        return self.predictor.answer(texts, progress=advance)

    def invariance(self, name: str, perturb: Perturb, before: Sequence[Answer]) -> ProbeEvidence:
        """Fails where the answer changes; for generation, where it gets worse by the task's metric.

        A text that the perturbation leaves as it is (Japanese has no upper case) shows nothing and is not counted.
        """
        changed = [
            (example.target, text, old.output)
            for example, old in zip(self.examples, before, strict=True)
            if (text := perturb(example.input)[:LONGEST_INPUT]) != example.input
        ]
        after = [answer.output for answer in self.answers([text for _, text, _ in changed], name=name)]
        worse = [
            (text, old, new)
            for (target, text, old), new in zip(changed, after, strict=True)
            if self._is_worse(target, old, new)
        ]
        value = measure(self.metric, [target for target, _, _ in changed], after).value if changed else None
        return _evidence(name, "invariance", len(changed), worse, self.limits.flip_rate, metric=value)

    def _is_worse(self, target: str, old: str, new: str) -> bool:
        score = metric_named(self.metric).score
        if self.predictor.manner.kind == "classify" or score is None:
            return old != new
        return score(target, new) < score(target, old)

    def robustness(self, name: str, texts: Sequence[str]) -> ProbeEvidence:
        """Fails where there is an error, or a label that is not one of the task's."""
        failed: list[tuple[str, str, str]] = []
        for number, text in enumerate(texts, start=1):
            if self.progress is not None:
                self.progress(name, number, len(texts))
            try:
                (answer,) = self.predictor.answer([text])
            except (ForewordError, RuntimeError, IndexError, ValueError) as error:
                failed.append((text, "", f"{type(error).__name__}: {error}"))
                continue
            if self.predictor.manner.kind == "classify" and answer.output not in self.predictor.manner.labels:
                failed.append((text, "", answer.output))
        return _evidence(name, "robustness", len(texts), failed, self.limits.crash_rate)

    def rejection(self, name: str, texts: Sequence[str], before: Sequence[Answer]) -> ProbeEvidence:
        """Fails where an off-topic text gets more confidence than the middle one of the task's own texts."""
        middle = statistics.median(answer.confidence or 0.0 for answer in before)
        answers = self.answers(texts, name=name)
        sure = [
            (text, "", f"{answer.output} ({answer.confidence:.2f})")
            for text, answer in zip(texts, answers, strict=True)
            if answer.confidence is not None and answer.confidence >= middle
        ]
        return _evidence(name, "rejection", len(texts), sure, self.limits.overconfidence_rate)


def with_typos(text: str, *, seed: int) -> str:
    """The text with about one word in eight mistyped: two letters swapped, one dropped, or one doubled.

    At least one word is, when any has two letters.

    >>> with_typos("open the file", seed=1) == with_typos("open the file", seed=1) != "open the file"
    True
    """
    digest = hashlib.sha256(f"{seed}\0{text}".encode()).digest()
    rng = np.random.default_rng(list(digest))
    words = text.split(" ")
    able = [index for index, word in enumerate(words) if len(word) >= 2]
    if not able:
        return text
    hit = [index for index in able if rng.random() < TYPO_RATE] or [able[int(rng.integers(len(able)))]]
    for index in hit:
        word, at = words[index], int(rng.integers(len(words[index]) - 1))
        swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        edits = [swapped, word[:at] + word[at + 1 :], word[: at + 1] + word[at:]]
        words[index] = next(edit for edit in rng.permutation(np.array(edits, dtype=object)) if edit != word)
    return " ".join(words)


def cut_short(text: str) -> str:
    """The first two thirds of the words (of the characters, for a text without spaces)."""
    words = text.split()
    if len(words) < 3:
        return text[: max(1, round(len(text) * KEPT_SHARE))]
    return " ".join(words[: max(1, round(len(words) * KEPT_SHARE))])


def _very_long(text: str, predictor: Predictor) -> str:
    length = min(LONG_FACTOR * predictor.host.max_positions * 4, LONGEST_INPUT)
    return ((text + " ") * (length // (len(text) + 1) + 1))[:length]


def _evidence(
    name: str,
    kind: str,
    n: int,
    failed: list[tuple[str, str, str]],
    limit: float,
    *,
    metric: float | None = None,
) -> ProbeEvidence:
    rate = len(failed) / n if n else None
    return ProbeEvidence(
        name=name,
        kind=kind,
        n=n,
        failures=len(failed),
        rate=rate,
        upper=rate_upper_bound(len(failed), n) if n else None,
        limit=limit,
        passed=None if rate is None else rate <= limit,
        metric=metric,
        examples=[(text[:200], old[:200], new[:200]) for text, old, new in failed[:EXAMPLES_KEPT]],
    )
