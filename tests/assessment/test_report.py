"""The report: every figure comes from the evidence, nothing from elsewhere is needed, and no text of a task is code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from foreword.assessment import plots, quantities, report, wording
from foreword.assessment.evidence import Differences, Evidence
from foreword.assessment.report import render, write_report
from foreword.errors import RunFolderError

Sample = Callable[..., Evidence]
HOSTILE = "<script>alert(1)</script>\"'`&{{7*7}}</style><img src=x onerror=alert(1)>"
VOID = {"meta", "br"}
NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?")


class Page(HTMLParser):
    """The tags of a page, checked to be closed in order, and the text outside pictures and style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"svg", "style", "title"} & set(self.open):
            self.text.append(data)


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of a JSON tree that is not itself a tree, with its path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for key, inner in enumerate(value):
            yield from leaves(inner, (*path, key))
    else:
        yield path, value


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


CLOSED = {"schema", "kind", "verdict"}


def hostile(evidence: Evidence) -> Evidence:
    """The evidence with a hostile tail on every text that the schema leaves free, keys included."""

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            free = key in ("counts", "failures", "details", "assumptions", "versions", "machine", "settings")
            free = free or key in ("fit", "selection", "test")
            return {(k + HOSTILE if free else k): spoil(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [spoil(inner, key) for inner in value]
        return value + HOSTILE if isinstance(value, str) and key not in CLOSED else value

    return Evidence.model_validate(spoil(evidence.model_dump(mode="json", by_alias=True)))


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(sample_evidence: Sample) -> None:
    text = render(sample_evidence())
    page = Page(text)
    assert page.open == []
    assert not page.tags & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
    assert all(value.startswith("#") for name, value in page.attributes if name in ("href", "src", "xlink:href"))
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for name, value in page.attributes if name == "href"} <= set(ids)


def test_no_text_of_the_evidence_becomes_markup(sample_evidence: Sample) -> None:
    evidence = hostile(sample_evidence())
    text = render(evidence)
    page = Page(text)
    assert page.open == []
    assert "<script" not in text.lower()
    assert not page.tags & {"script", "img"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "{{7*7}}" in unescape(text)
    assert HOSTILE in "".join(page.text)


def test_hostile_names_stay_text_inside_the_pictures(sample_evidence: Sample) -> None:
    prefix = sample_evidence().candidate("prefix").model_copy(update={"name": "<script>x"})
    picture = plots.interval_picture(sample_evidence(candidates=[prefix]))
    assert picture is not None
    assert "<script" not in picture
    assert "&lt;script&gt;x" in picture


@pytest.mark.parametrize(
    "name", ["$\\frac{", "札幌市の文書", "مرحبا", "🙂", "\x00\x1b[31m", "", " ", "#1d2433", "a" * 400]
)
def test_any_name_can_be_drawn(sample_evidence: Sample, name: str) -> None:
    prefix, rival = (sample_evidence().candidate(kind) for kind in ("prefix", "lora"))
    found = [c.model_copy(update={"name": c.name + name}) for c in (prefix, rival)]
    text = render(sample_evidence(candidates=found))
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)  # noqa: S314  this very test made it
    assert Page(text).open == []


def perturbed(value: float) -> float:
    return 2 * value + 3 if isinstance(value, int) else value * 1.7 + 0.21


@pytest.mark.usefixtures("without_pictures")
def test_the_page_changes_with_every_number_of_the_evidence(sample_evidence: Sample) -> None:
    evidence = sample_evidence()
    tree = evidence.model_dump(mode="json", by_alias=True)
    page, silent = render(evidence), []
    shown = {evidence.decision.chosen}
    for path, value in leaves(tree):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if "failures" in path and path[0] == "candidates" and tree["candidates"][path[1]]["name"] not in shown:
            continue  # errors by label are shown of the chosen candidate and of the best prefix only
        if any(isinstance(part, int) and part > 2 for part in path[2:]):
            continue  # the rest of a list is shown as its first three are
        if render(Evidence.model_validate(replaced(tree, path, perturbed(value)))) == page:
            silent.append(".".join(map(str, path)))
    assert silent == []


def in_every_form(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
        return
    yield str(value)
    forms: list[Callable[[float], str]] = [
        *(quantities.count, quantities.figure, quantities.amount, quantities.byte_size),
        *(quantities.duration, quantities.milliseconds, quantities.months, quantities.nats),
    ]
    yield from (form(value) for form in forms)
    for bound in (None, "low", "high"):
        yield quantities.percent(value, bound=bound)  # type: ignore[arg-type]


@pytest.mark.usefixtures("without_pictures")
def test_every_number_on_the_page_is_one_of_the_evidence(sample_evidence: Sample) -> None:
    evidence = sample_evidence()
    known = {"1,000", "95"}  # "per 1,000 requests"; the level of a probe's upper bound, which the schema fixes
    tree = evidence.model_dump(mode="json", by_alias=True)
    values = [value for _, value in leaves(tree) if value is not None]
    values += [sum(by_label.values()) for by_label in evidence.data.counts.values()]
    values += [found.wrong / found.n for c in evidence.candidates for found in c.failures.values()]
    values += [5, 6]  # the prefix is better than five of six rivals
    names = [str(key) for path, _ in leaves(tree) for key in path]
    for value in [*values, *names]:
        for form in in_every_form(value):
            known |= set(NUMBER.findall(form))
    found = set(NUMBER.findall(" ".join(Page(render(evidence)).text)))
    assert len(found) > 200
    assert found - known == set()


def test_the_picture_says_every_candidates_value_interval_and_the_threshold(sample_evidence: Sample) -> None:
    evidence = sample_evidence()
    picture = plots.interval_picture(evidence) or ""
    for candidate in evidence.candidates:
        assert quantities.percent(candidate.metric.value) in picture
        assert f"{quantities.percent(candidate.metric.low, bound='low').removesuffix('%')}–" in picture
    assert "required: 70.0%" in picture


@pytest.mark.parametrize("draw", [plots.interval_picture, plots.fit_curves, plots.value_against_cost])
def test_pictures_follow_the_numbers_are_equal_every_time_and_change_no_setting(
    sample_evidence: Sample, draw: Callable[[Evidence], str | None]
) -> None:
    evidence, before = sample_evidence(), dict(mpl.rcParams)
    once = draw(evidence)
    moved = []
    for c in evidence.candidates:
        metric = c.metric.model_copy(update={"value": c.metric.value + 0.01})
        history = [p.model_copy(update={"selection": (p.selection or 0) ** 2}) for p in c.history]
        moved.append(c.model_copy(update={"metric": metric, "history": history}))
    assert once == draw(evidence)
    assert once != draw(sample_evidence(candidates=moved))
    assert dict(mpl.rcParams) == before


def test_pictures_take_their_colours_from_the_page(sample_evidence: Sample) -> None:
    for picture in re.findall(r"<svg.*?</svg>", render(sample_evidence()), re.DOTALL):
        bare = re.sub(r"var\(--plot-[a-z-]+, #[0-9a-f]{6}\)", "", picture)
        assert not re.findall(r"#[0-9a-f]{6}\b(?!\w)", re.sub(r'(id|href)="[^"]*"', "", bare))


def test_labels_at_the_margin_stay_apart_and_in_order() -> None:
    placed = plots.spread([0.5, 0.51, 0.52, 0.9, 0.1], gap=0.1, high=1.0)
    ordered = sorted(placed)
    assert min(b - a for a, b in itertools.pairwise(ordered)) >= 0.1 - 1e-9
    assert placed[4] < placed[0] < placed[1] < placed[2] < placed[3]


def test_a_pilot_that_measured_little_still_has_a_page(sample_evidence: Sample) -> None:
    evidence = sample_evidence()
    alone = evidence.candidate("prefix").model_copy(
        update={
            "difference": Differences(baseline=None, best=None),
            "history": [],
            "failures": {},
            "seeds": [],
            "readout": None,
            "forgetting": None,
        }
    )
    nothing = {
        "stress": None,
        "other_text": None,
        "cost": {"currency": "USD", "assumptions": {}, "rows": []},
        "failed": [],
    }
    undecided = {"verdict": "NOT ENOUGH EVIDENCE", "chosen": None, "reasons": [], "changes": []}
    data = {"hash": "0", "files": [], "duplicates_merged": 0, "counts": {}}
    unknown = {
        "commit": None,
        "dirty": None,
        "machine": {"processor": None},
        "versions": {},
        "seeds": [],
        "settings": {},
    }
    provenance = {**evidence.provenance.model_dump(), **unknown}
    for found in ([], [alone.model_dump()]):
        page = render(
            sample_evidence(candidates=found, decision=undecided, data=data, provenance=provenance, **nothing)
        )
        assert "NOT ENOUGH EVIDENCE" in page
        assert "No stress probe was run." in page
        assert "None" not in "".join(Page(page).text)


@pytest.mark.usefixtures("without_pictures")
def test_of_a_model_that_writes_the_nats_added_to_other_text_are_shown(sample_evidence: Sample) -> None:
    evidence = sample_evidence()
    found = []
    for candidate in evidence.candidates:
        forgetting = candidate.forgetting
        if forgetting is not None:
            nats = forgetting.changed.model_copy(update={"value": 0.1234, "low": -0.0321, "high": 0.4567})
            loss = {"loss_bare": 3.4567, "loss_change": nats, "divergence": nats, "turned": None}
            forgetting = forgetting.model_copy(update=loss)
        found.append(candidate.model_copy(update={"forgetting": forgetting}))
    text = " ".join(Page(render(sample_evidence(candidates=found))).text)
    assert all(shown in text for shown in ("+3.457", "+0.123", "−0.032 to +0.457", "likeliest token"))
    assert "nearest neighbour" not in text


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize("verdict", ["GO", "CONDITIONAL", "NO-GO", "NOT ENOUGH EVIDENCE"])
def test_the_verdict_is_said_in_words(sample_evidence: Sample, verdict: str) -> None:
    evidence = sample_evidence(decision={"verdict": verdict, "chosen": None, "reasons": [], "changes": []})
    text = "".join(Page(render(evidence)).text)
    assert verdict in text
    assert wording.VERDICTS[verdict][1] in text


@pytest.mark.usefixtures("without_pictures")
def test_a_changed_base_model_is_an_alarm_on_the_first_screen(sample_evidence: Sample) -> None:
    base = sample_evidence().base.model_dump()
    alarm = "its weights did not stay frozen"
    assert alarm not in render(sample_evidence())
    assert alarm in render(sample_evidence(base={**base, "fingerprint_after": "00"}))


@pytest.mark.usefixtures("without_pictures")
def test_the_written_page_is_what_is_rendered_and_nothing_is_left_beside_it(
    sample_evidence: Sample, tmp_path: Path
) -> None:
    write_report(sample_evidence(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(sample_evidence())
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.usefixtures("without_pictures")
def test_a_full_disk_leaves_the_old_page_whole(
    sample_evidence: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    monkeypatch.setattr(report.os, "fsync", full)
    with pytest.raises(RunFolderError, match="No space left"):
        write_report(sample_evidence(), path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [found.name for found in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.usefixtures("without_pictures")
def test_a_folder_that_is_not_there_is_refused_with_a_remedy(sample_evidence: Sample, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="--out"):
        write_report(sample_evidence(), tmp_path / "missing" / "report.html")
