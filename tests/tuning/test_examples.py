"""How rows become examples and splits: what counts as the same input, and what decides where it stands."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreword.errors import DataError
from foreword.tuning import examples as module
from foreword.tuning.examples import Examples, Splits, load_examples, load_splits, normalised, split_examples
from foreword.tuning.sections import SplitSettings
from foreword.tuning.task import Task

Row = dict[str, Any]
FRACTIONS = SplitSettings(fit=0.5, selection=0.2, test=0.3)


def written(
    folder: Path, rows: list[Row], *, kind: str = "classify", name: str = "data.jsonl", **sections: Any
) -> Task:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return task_in(folder, kind=kind, files=[name], **sections)


def task_in(folder: Path, *, kind: str = "classify", files: list[str], **sections: Any) -> Task:
    metric = "accuracy" if kind == "classify" else "exact-match"
    found = {
        "task": {"name": "t", "kind": kind, "requirement": f"{metric} at least 0.7 with 95% confidence"},
        "data": {"files": files},
        "model": {"reference": "x"},
    }
    return Task.parse({**found, **sections}, folder=folder)


def rows_of(count: int, *labels: str, start: int = 0) -> list[Row]:
    return [{"text": f"{label} {n}", "label": label} for label in labels for n in range(start, start + count)]


def examples_of(rows: list[Row], **sections: Any) -> Examples:
    with tempfile.TemporaryDirectory() as folder:
        return load_examples(written(Path(folder), rows, **sections))


def places(splits: Splits) -> dict[str, str]:
    parts = (("fit", splits.fit), ("selection", splits.selection), ("test", splits.test))
    return {row.id: name for name, part in parts for row in part}


inputs = st.text(alphabet="aAbé É\u0301\t\u00a0İß", min_size=1, max_size=6).filter(lambda text: text.strip() != "")


@given(st.text())
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize("text", ["caf\u00e9 au lait", "cafe\u0301  AU\nlait ", "\u00a0CAFÉ au\tLait"])
def test_case_spacing_and_composition_make_no_other_input(text: str) -> None:
    assert normalised(text) == "caf\u00e9 au lait"


@settings(max_examples=60, deadline=None)
@given(st.lists(inputs, min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_no_input_stands_in_two_splits_whatever_the_duplicates(texts: list[str], random: Any) -> None:
    rows = [{"text": text, "label": "same"} for text in texts] + rows_of(20, "filler")
    random.shuffle(rows)
    examples = examples_of(rows, kind="generate")
    assert len({row.id for row in examples.rows}) == len(examples.rows) == len({normalised(t["text"]) for t in rows})
    assert examples.duplicates_merged == len(rows) - len(examples.rows)
    for shares in (FRACTIONS, SplitSettings(fit=5, selection=4, test=3), SplitSettings(fit=5, selection=4)):
        splits = split_examples(examples, shares)
        parts = [*splits.fit, *splits.selection, *splits.test]
        assert len({normalised(row.input) for row in parts}) == len(parts) == len(examples.rows) - splits.unused


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 40), st.integers(1, 40))
def test_adding_rows_keeps_every_example_in_its_fraction(before: int, added: int) -> None:
    few = split_examples(examples_of(rows_of(before, "a", "b")), FRACTIONS)
    many = split_examples(examples_of(rows_of(before + added, "a", "b")), FRACTIONS)
    assert places(few).items() <= places(many).items()


@settings(max_examples=40, deadline=None)
@given(st.lists(inputs, max_size=10), st.randoms(use_true_random=False))
def test_the_order_of_rows_and_files_changes_nothing(texts: list[str], random: Any) -> None:
    rows = rows_of(12, "a", "b") + [{"text": text, "label": "a"} for text in texts]
    first = examples_of(rows)
    random.shuffle(rows)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for half, part in (("one", rows[::2]), ("two", rows[1::2])):
            written(folder, part, name=f"{half}.jsonl")
        second = load_examples(task_in(folder, files=["two.jsonl", "one.jsonl"]))
    assert second.rows == first.rows
    assert second.hash == first.hash
    assert [file.path for file in second.files] == ["two.jsonl", "one.jsonl"]
    assert sum(file.rows for file in second.files) == len(rows)


def test_splits_are_the_same_in_another_process_with_another_hash_seed(tmp_path: Path) -> None:
    task = written(tmp_path, rows_of(30, "a", "b", "c"))
    here = load_splits(task, limit=10)
    code = (
        "import sys; from pathlib import Path; from foreword.tuning.task import Task;"
        "from foreword.tuning.examples import load_splits; import json;"
        "task = Task.parse(json.loads(sys.argv[1]), folder=Path(sys.argv[2]));"
        "print(repr(load_splits(task, limit=10)))"
    )
    command = [sys.executable, "-c", code, json.dumps(task.settings()), str(tmp_path)]
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(module.__file__).parents[2])}
    there = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert there.stdout.strip() == repr(here)


def test_the_division_of_known_rows_is_pinned() -> None:
    """Expected values were computed apart, from SHA-256 alone. A change here moves everybody's test examples."""
    splits = split_examples(examples_of(rows_of(8, "a", "b"), kind="generate"), FRACTIONS)
    assert [row.input for row in splits.test] == ["a 6", "a 0", "b 6", "b 3", "a 1", "b 1", "a 7", "a 2"]
    assert [row.input for row in splits.selection] == ["b 2"]
    assert splits.hash == "42cd63896cf8af9e545ef921e782b019bda15226a1e73572782b4c7b127a8300"


def test_fractions_are_met_on_average() -> None:
    """With n = 4,000, a share p deviates by more than 4 sqrt(p (1 - p) / n) once in 16,000 draws; this one is fixed."""
    splits = split_examples(examples_of(rows_of(2_000, "a", "b")), FRACTIONS)
    for share, part in ((0.5, splits.fit), (0.2, splits.selection), (0.3, splits.test)):
        assert abs(len(part) / 4_000 - share) < 4 * (share * (1 - share) / 4_000) ** 0.5
    assert splits.unused == 0


def test_another_salt_gives_another_division() -> None:
    examples = examples_of(rows_of(30, "a", "b"))
    other = split_examples(examples, SplitSettings(salt="another"))
    assert places(other) != places(split_examples(examples, SplitSettings()))


def test_whole_numbers_are_met_exactly_for_each_label() -> None:
    rows = rows_of(12, "a") + rows_of(30, "b")
    splits = split_examples(examples_of(rows), SplitSettings(fit=5, selection=3, test=4))
    assert splits.counts == {part: {"a": n, "b": n} for part, n in (("fit", 5), ("selection", 3), ("test", 4))}
    assert splits.unused == 18
    rest = split_examples(examples_of(rows), SplitSettings(fit=5, selection=3, test="rest"))
    assert rest.counts["test"] == {"a": 4, "b": 22}
    assert rest.unused == 0


def test_generation_counts_examples_in_total() -> None:
    splits = split_examples(
        examples_of(rows_of(10, "a", "b"), kind="generate"), SplitSettings(fit=5, selection=3, test=4)
    )
    assert splits.counts == {"fit": {"": 5}, "selection": {"": 3}, "test": {"": 4}}
    assert splits.labels == ()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40))
def test_a_limit_keeps_every_label_and_only_drops(limit: int) -> None:
    examples = examples_of(rows_of(30, "a") + rows_of(20, "b") + rows_of(10, "c"))
    shares = SplitSettings(fit=0.5, selection=0.2, test=0.3)
    whole, capped = split_examples(examples, shares), split_examples(examples, shares, limit=limit)
    more = split_examples(examples, shares, limit=limit + 1)
    for full, kept, wider in (
        (whole.fit, capped.fit, more.fit),
        (whole.selection, capped.selection, more.selection),
        (whole.test, capped.test, more.test),
    ):
        assert len(kept) == min(limit, len(full))
        assert [row for row in full if row in kept] == list(kept)
        assert set(kept) <= set(wider)
        assert len({row.target for row in kept}) == min(limit, 3)
    assert set(capped.counts["fit"]) == {"a", "b", "c"}


@pytest.mark.parametrize("limit", [0, -3, True, 2.5, "3"])
def test_a_limit_below_one_is_refused(limit: Any) -> None:
    with pytest.raises(DataError, match="1 or more"):
        split_examples(examples_of(rows_of(20, "a", "b")), FRACTIONS, limit=limit)


def test_labels_are_in_declared_order_else_sorted() -> None:
    rows = rows_of(3, "b", "c", "a")
    assert examples_of(rows).labels == ("a", "b", "c")
    assert examples_of(rows, labels={"c": "x", "a": "y", "b": "z"}).labels == ("c", "a", "b")


def test_labels_that_differ_only_in_case_are_two_where_both_are_declared() -> None:
    rows = rows_of(3, "polish", "Polish")
    for number, row in enumerate(rows):
        row["text"] = f"text {number}"
    with pytest.raises(DataError, match="differ only in case"):
        examples_of(rows)
    assert examples_of(rows, labels={"Polish": "a language", "polish": "a cream"}).labels == ("Polish", "polish")


def test_merging_keeps_one_spelling_whatever_comes_first() -> None:
    rows = [{"text": "Hello  there", "label": "a"}, {"text": "hello there", "label": "a"}, *rows_of(3, "a", "b")]
    for order in (rows, rows[::-1]):
        examples = examples_of(order)
        assert examples.duplicates_merged == 1
        assert sum(row.input == "Hello  there" for row in examples.rows) == 1


def test_the_data_hash_changes_with_any_input_or_target() -> None:
    rows = rows_of(3, "a", "b")
    hashes = {examples_of(rows).hash}
    hashes.add(examples_of([{**rows[0], "text": "a 0!"}, *rows[1:]]).hash)
    hashes.add(examples_of([{**rows[0], "label": "b"}, *rows[1:]]).hash)
    hashes.add(examples_of(rows[1:]).hash)
    assert len(hashes) == 4


def test_the_three_formats_give_the_same_examples(tmp_path: Path) -> None:
    rows = [*rows_of(3, "a", "b"), {"text": 'two\nlines, "quoted"', "label": "a"}, {"text": "naïve", "label": "b"}]
    first = load_examples(written(tmp_path, rows))
    with (tmp_path / "data.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["label", "text", "more"])
        writer.writeheader()
        writer.writerows({**row, "more": ""} for row in rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data.parquet")
    for name in ("data.csv", "data.parquet"):
        found = load_examples(task_in(tmp_path, files=[name]))
        assert found.rows == first.rows
        assert found.hash == first.hash


def test_numbers_and_truth_values_become_text_as_json_writes_them(tmp_path: Path) -> None:
    rows = [{"text": 1, "label": True}, {"text": 2.5, "label": False}, {"text": "x", "label": 3}]
    found = {row.input: row.target for row in load_examples(written(tmp_path, rows)).rows}
    assert found == {"1": "true", "2.5": "false", "x": "3"}
    table = pyarrow.table({"text": [1, 2], "label": [True, False]})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    found = {row.input: row.target for row in load_examples(task_in(tmp_path, files=["data.parquet"])).rows}
    assert found == {"1": "true", "2": "false"}


def test_spaces_around_a_label_are_not_part_of_it_but_of_a_generated_text() -> None:
    rows = [{"text": "x", "label": " a "}, {"text": "y", "label": "b"}]
    assert Counter(row.target for row in examples_of(rows).rows) == {"a": 1, "b": 1}
    assert Counter(row.target for row in examples_of(rows, kind="generate").rows) == {" a ": 1, "b": 1}


def test_other_columns_may_be_named(tmp_path: Path) -> None:
    rows = [{"question": "x", "answer": "a"}, {"question": "y", "answer": "b"}]
    data = {"files": ["data.jsonl"], "input": "question", "target": "answer"}
    assert len(load_examples(written(tmp_path, rows, data=data)).rows) == 2


def test_examples_and_splits_are_not_changed_after_the_fact() -> None:
    examples = examples_of(rows_of(20, "a", "b"))
    for value in (examples, examples.rows[0], examples.files[0], split_examples(examples, FRACTIONS)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.hash = "x"  # type: ignore[misc, union-attr]
