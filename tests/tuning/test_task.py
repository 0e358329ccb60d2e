"""What the task file accepts, what it fills in, and that it says everything that is wrong at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from foreword.errors import TaskError
from foreword.tuning.sections import METRICS, Requirement
from foreword.tuning.task import Task

CLASSIFY = "accuracy at least 0.70 with 95% confidence"
GENERATE = "rouge-l at least 0.3 with 95% confidence"


def values(*, kind: str = "classify", **sections: Any) -> dict[str, Any]:
    requirement = CLASSIFY if kind == "classify" else GENERATE
    least = {
        "task": {"name": "routing", "kind": kind, "requirement": requirement},
        "data": {"file": "data.jsonl"},
        "model": {"reference": "package:some-model"},
    }
    return {**least, **sections}


def parsed(*, kind: str = "classify", **sections: Any) -> Task:
    return Task.parse(values(kind=kind, **sections), folder=Path("somewhere"))


def refusal(*, kind: str = "classify", **sections: Any) -> str:
    with pytest.raises(TaskError) as caught:
        parsed(kind=kind, **sections)
    assert caught.value.fix
    return str(caught.value)


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, foreword.tuning.task, foreword.tuning.examples, foreword.tuning.starter;"
        "sys.exit(bool({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "sentence",
    [
        "accuracy at least 0.70 with 95% confidence",
        "Accuracy at least 70% with 0.95 confidence.",
        "  ACCURACY  of at least .7,  with 95 %  Confidence",
        "accuracy >= 70 % at 95% confidence",
    ],
)
def test_spellings_of_one_requirement_mean_the_same(sentence: str) -> None:
    assert Requirement.parse(sentence) == Requirement(metric="accuracy", at_least=0.7, confidence=0.95)


@pytest.mark.parametrize(
    ("name", "metric"), [("Macro F1", "macro-f1"), ("ROUGE_L", "rouge-l"), ("json valid", "json-valid")]
)
def test_a_metric_may_be_spelled_with_spaces_and_capitals(name: str, metric: str) -> None:
    assert Requirement.parse(f"{name} at least 0.5 with 90% confidence").metric == metric


@given(
    st.sampled_from([metric for metrics in METRICS.values() for metric in metrics]),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
    st.floats(0.5, 1, exclude_max=True),
)
def test_a_requirement_reads_back_from_its_own_text(metric: Any, at_least: float, confidence: float) -> None:
    requirement = Requirement(metric=metric, at_least=at_least, confidence=confidence)
    assert Requirement.parse(requirement.text) == requirement


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "good",
        "accuracy at least 0.7",
        "accuracy at least 70 with 95% confidence",
        "accuracy at least 0.7 with 95 confidence",
        "accuracy at least 100% with 95% confidence",
        "accuracy at least 0.7 with 100% confidence",
        "accuracy at least -0.7 with 95% confidence",
        "accuracy at least . with 95% confidence",
        "beauty at least 0.7 with 95% confidence",
    ],
)
def test_a_requirement_that_says_nothing_checkable_is_refused(sentence: str) -> None:
    with pytest.raises((ValueError, ValidationError)):
        Requirement.parse(sentence)
    task = {"name": "x", "kind": "classify", "requirement": sentence}
    assert "task.requirement" in refusal(task=task)


def test_the_metric_is_that_of_the_requirement() -> None:
    assert parsed().metric == "accuracy"
    task = values()["task"]
    assert parsed(task={**task, "metric": "Accuracy"}).metric == "accuracy"
    assert "task.metric: expected 'accuracy'" in refusal(task={**task, "metric": "macro-f1"})


def test_a_metric_of_the_other_kind_is_refused() -> None:
    assert "accuracy or macro-f1" in refusal(task={**values()["task"], "requirement": GENERATE})
    assert "exact-match" in refusal(task={**values()["task"], "kind": "generate"})


def test_settings_are_json_and_read_back_to_an_equal_task() -> None:
    for kind in ("classify", "generate"):
        task = parsed(kind=kind)
        assert Task.parse(json.loads(json.dumps(task.settings())), folder=task.folder) == task


def test_settings_have_the_defaults_filled_in() -> None:
    settings = parsed().settings()
    assert set(settings) == {
        "task",
        "data",
        "labels",
        "model",
        "splits",
        "candidates",
        "run",
        "limits",
        "forgetting",
        "prices",
    }
    assert settings["data"]["files"] == ["data.jsonl"]
    assert settings["run"]["seeds"] == [0]
    assert settings["prices"]["currency"] == "JPY"


def test_without_candidates_every_kind_that_needs_no_options_competes() -> None:
    kinds = [candidate.kind for candidate in parsed().candidates]
    assert kinds == ["zero-shot", "few-shot", "probe", "soft-prompt", "prefix", "lora"]
    kinds = [candidate.kind for candidate in parsed(kind="generate").candidates]
    assert kinds == ["zero-shot", "few-shot", "soft-prompt", "prefix", "lora"]


def test_a_candidate_is_named_after_its_kind_unless_named() -> None:
    task = parsed(candidates=[{"kind": "prefix"}, {"kind": "prefix", "name": "long", "positions": 64}])
    assert [candidate.name for candidate in task.candidates] == ["prefix", "long"]


def test_candidates_of_one_name_are_refused_whatever_the_case() -> None:
    assert "'prefix' twice" in refusal(candidates=[{"kind": "prefix"}, {"kind": "lora", "name": "Prefix"}])


def test_an_option_of_another_kind_is_an_error_that_names_the_field() -> None:
    found = refusal(
        candidates=[{"kind": "zero-shot"}, {"kind": "prefix", "alpha": 3.0}, {"kind": "lora", "positons": 3}]
    )
    assert "candidates[1].alpha: expected no such field (known: kind, name, readout, " in found
    assert "candidates[2].positons" in found


def test_an_unknown_field_suggests_the_nearest_known_one() -> None:
    found = refusal(
        modle={},
        data={"file": "data.jsonl", "inptu": "text"},
        candidates=[{"kind": "prefix", "positons": 3}, {"kind": "prefx"}, {"name": "x"}],
    )
    assert "modle: expected no such field (did you mean 'model'?)" in found
    assert "data.inptu: expected no such field (did you mean 'input'?)" in found
    assert "candidates[0].positons: expected no such field (did you mean 'positions'?)" in found
    assert "candidates[1].kind: expected one of zero-shot, " in found
    assert "(did you mean 'prefix'?), found 'prefx'" in found
    assert "full, found nothing" in found


@pytest.mark.parametrize(
    ("section", "content", "line"),
    [
        ("task", 3, "task: expected a table, found 3"),
        ("task", {"kind": "classify", "requirement": CLASSIFY}, "task.name: expected this field, found nothing"),
        ("task", {**values()["task"], "name": " "}, "task.name: expected text that is not blank, found ' '"),
        (
            "task",
            {**values()["task"], "kind": "regress"},
            "task.kind: expected 'classify' or 'generate', found 'regress'",
        ),
        ("data", {}, "data.files: expected this field, found nothing"),
        ("data", {"files": []}, "data.files: expected at least one"),
        ("data", {"files": ["a.txt"]}, "data.files[0]: expected a file that ends in .jsonl, .csv or .parquet"),
        ("data", {"file": "a.csv", "files": ["a.csv"]}, "data: expected either file or files, found both"),
        ("data", {"file": "a.csv", "target": "text"}, "data.target: expected another column than the input's"),
        ("labels", {"one": "the only one"}, "labels: expected two labels or more"),
        ("labels", {"a": "", "b": "x"}, "labels.a: expected text that is not blank"),
        ("labels", {" a": "x", "b": "x"}, "labels.' a': expected a label"),
        ("model", {"reference": "x", "template": "no place"}, "model.template: expected text that contains {input}"),
        ("model", {"reference": "x", "template": "{input}\nAgain: {input}"}, "text that contains {input} once, where"),
        ("model", {"reference": "x", "device": "gpu"}, "model.device: expected auto, cpu, cuda"),
        ("model", {"reference": "x", "dtype": "int8"}, "model.dtype: expected 'float32'"),
        ("model", {"reference": "x", "max_tokens": "64"}, "model.max_tokens: expected a whole number, found '64'"),
        ("splits", {"fit": 5, "selection": 0.2}, "splits: expected all fractions or all whole numbers; found 5, 0.2"),
        ("splits", {"fit": 0.9, "selection": 0.1}, "splits: expected fractions that leave something to each split"),
        ("splits", {"fit": 0.5, "selection": 0.4, "test": 0.2}, "found a sum of 1.1"),
        ("splits", {"fit": "rest"}, 'splits: expected numbers for fit and selection; only test may be "rest"'),
        ("splits", {"fit": 0}, "splits.fit: expected a fraction between 0 and 1, a whole number from 1"),
        ("splits", {"fit": True}, "splits.fit: expected a fraction"),
        ("candidates", [], "candidates: expected at least one"),
        ("candidates", {"kind": "prefix"}, "candidates: expected a list"),
        ("candidates", [{"kind": "hard-prompt"}], "candidates[0].templates: expected this field, found nothing"),
        ("candidates", [{"kind": "hard-prompt", "templates": ["x"]}], "candidates[0].templates[0]: expected text that"),
        ("candidates", [{"kind": "prefix", "positions": 0}], "candidates[0].positions: expected a number greater than"),
        ("candidates", [{"kind": "lora", "name": "a/b"}], "candidates[0].name: expected letters, digits"),
        ("candidates", [{"kind": "lora", "readout": "eye"}], "candidates[0].readout: expected 'auto'"),
        ("run", {"seeds": [1, 1]}, "run.seeds: expected seeds that differ"),
        ("run", {"seeds": [-1]}, "run.seeds[0]: expected a number greater than or equal to 0, found -1"),
        ("limits", {"flip_rate": 1.5}, "limits.flip_rate: expected a number less than or equal to 1, found 1.5"),
        ("limits", {"fit_seconds": float("nan")}, "limits.fit_seconds: expected a finite number, found nan"),
        ("limits", {"fit_seconds": True}, "limits.fit_seconds: expected a number, found True"),
        ("prices", {"currency": "yen"}, "prices.currency: expected a currency's three letters"),
        ("prices", {"currency": "EUR"}, "prices: expected every price in EUR"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_expected(section: str, content: Any, line: str) -> None:
    assert line in refusal(**{section: content})


def test_generation_takes_no_labels_no_probe_and_no_readout() -> None:
    found = refusal(
        kind="generate",
        labels={"a": "x", "b": "y"},
        candidates=[{"kind": "probe"}, {"kind": "prefix", "readout": "linear"}],
    )
    assert "labels: expected no labels" in found
    assert "no probe ('probe')" in found
    assert "no readout in 'prefix'" in found


def test_all_problems_are_listed_at_once_one_line_each() -> None:
    found = refusal(data={"file": "a.txt", "inptu": "x"}, run={"seeds": []}, limits={"crash_rate": -1})
    assert "has 4 problems:" in found
    assert sum(line.startswith("  - ") for line in found.splitlines()) == 4


def test_another_currency_is_accepted_with_every_price_given() -> None:
    given_prices = {"machine_per_hour": 0.2, "label_per_example": 0.3, "engineer_per_hour": 60, "currency": "EUR"}
    assert parsed(prices=given_prices).prices.engineer_per_hour == 60.0


def test_a_task_is_not_changed_after_the_fact() -> None:
    task = parsed()
    with pytest.raises(ValidationError):
        task.run.seeds = (1,)  # type: ignore[misc]
    with pytest.raises(ValidationError):
        task.run = None  # type: ignore[misc, assignment]


def test_a_label_without_description_describes_itself() -> None:
    task = parsed(labels={"a": "the first", "b": "the second"})
    assert task.description("a") == "the first"
    assert parsed().description("a") == "a"


def test_a_model_folder_beside_the_task_file_is_resolved_against_it(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    for reference, expected in [
        ("weights", str((tmp_path / "weights").resolve())),
        ("owner/model", "owner/model"),
        ("package:weights", "package:weights"),
    ]:
        assert Task.parse(values(model={"reference": reference}), folder=tmp_path).reference == expected


TOML = f"""
[task]
name = "routing"
kind = "classify"
requirement = "{CLASSIFY}"
[data]
file = "data.jsonl"
[labels]
"zwei Wörter" = "first"
b = "second"
[model]
reference = "package:some-model"
"""


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_is_read_with_or_without_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "task.toml"
    path.write_text(TOML, encoding=encoding)
    task = Task.load(path)
    assert task == Task.load(str(path))
    assert task.folder == tmp_path
    assert list(task.labels) == ["zwei Wörter", "b"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"", "task: expected this field"),
        (b"[task\nname = 3", "line 1"),
        (b"[task]\nname = routing", "line 2"),
        (TOML.encode("utf-16"), "decode byte 0xff"),
        (b"\xe9t\xe9 = 3", "decode byte 0xe9"),
        (b"\0\1\2", "not valid TOML"),
        (b"a = " + b"[" * 100_000, "not valid TOML"),
        (b"a = " + b"9" * 10_000, "not valid TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "task.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TaskError, match=r"task\.toml") as caught:
        Task.load(path)
    assert says in str(caught.value)
    assert caught.value.fix


def test_what_is_no_path_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match=r"expected: a path(.|\n)*found:    int"):
        Task.load(7)  # type: ignore[arg-type]


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="directory"):
        Task.load(tmp_path)
