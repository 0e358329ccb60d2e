"""Data files that are broken, foreign or misleading: each is refused with its place, and the remedy, on one screen."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from foreword.errors import DataError
from foreword.tuning.examples import Splits, load_splits
from foreword.tuning.rows import LARGEST_TEXT_BYTES
from foreword.tuning.task import Task

GOOD = [{"text": f"{label} {n}", "label": label} for label in ("a", "b") for n in range(6)]
COUNTS = {"fit": 2, "selection": 1, "test": 1}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def splits_of(
    folder: Path, content: bytes | None, *, name: str = "data.jsonl", kind: str = "classify", **sections: Any
) -> Splits:
    if content is not None:
        (folder / name).write_bytes(content)
    metric = "accuracy" if kind == "classify" else "exact-match"
    least = {
        "task": {"name": "t", "kind": kind, "requirement": f"{metric} at least 0.7 with 95% confidence"},
        "data": {"file": name},
        "model": {"reference": "x"},
        "splits": COUNTS,
    }
    return load_splits(Task.parse({**least, **sections}, folder=folder))


def refusal(folder: Path, content: bytes | None, **more: Any) -> str:
    """What the user is told; always with a remedy, and at most a screen long."""
    with pytest.raises(DataError) as caught:
        splits_of(folder, content, **more)
    assert caught.value.fix
    assert len(str(caught.value).splitlines()) <= 24
    assert max(map(len, str(caught.value).splitlines())) <= 300
    assert str(caught.value).isprintable() or set(filter(lambda c: not c.isprintable(), str(caught.value))) == {"\n"}
    return str(caught.value)


def test_good_rows_are_accepted(tmp_path: Path) -> None:
    assert splits_of(tmp_path, lines(*GOOD)).counts["fit"] == {"a": 2, "b": 2}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path, None, name="absent.csv")


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").mkdir()
    assert "found:    a folder" in refusal(tmp_path, None)


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes are made by os.mkfifo")
def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.jsonl")
    assert "a pipe or device" in refusal(tmp_path, None)


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.parquet"])
@pytest.mark.parametrize("content", [b"", b" \n\r\n\t"])
def test_an_empty_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    assert "is empty" in refusal(tmp_path, content, name=name)


@pytest.mark.parametrize(("name", "content"), [("data.csv", b"text,label\n"), ("data.jsonl", b"\xef\xbb\xbf")])
def test_a_file_without_rows_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    assert "has no rows" in refusal(tmp_path, content, name=name)


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_binary_content_is_refused_with_its_place(tmp_path: Path, name: str) -> None:
    assert "a NUL byte at byte 4" in refusal(tmp_path, b"\x7fELF\0\1\2", name=name)


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_utf_16_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    assert "UTF-16" in refusal(tmp_path, "text,label\nx,a\n".encode("utf-16"), name=name)


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_text_that_is_not_utf_8_is_refused_with_byte_and_line(tmp_path: Path, name: str, mark: bytes) -> None:
    content = mark + b"text,label\ncaf\xe9,a\n"
    assert f"byte 0xe9 at byte {len(mark) + 14}, line 2" in refusal(tmp_path, content, name=name)


def test_malformed_lines_are_listed_with_their_numbers(tmp_path: Path) -> None:
    content = lines(GOOD[0]) + b'{"text": "x"\n\n[1, 2]\n"text"\n{"text": "x", "label": NaN}\n' + b"[" * 100_000 + b"\n"
    found = refusal(tmp_path, content)
    assert "data.jsonl: line 2: expected one JSON object, found malformed JSON" in found
    assert "line 4: expected one JSON object a line, found a list" in found
    assert "line 5: expected one JSON object a line, found 'text'" in found
    assert "line 6: label: expected text, found nan" in found
    assert "line 7: expected one JSON object, found malformed JSON" in found


def test_a_number_of_ten_thousand_digits_is_refused(tmp_path: Path) -> None:
    assert "line 1" in refusal(tmp_path, b'{"text": ' + b"9" * 10_000 + b', "label": "a"}\n' + lines(*GOOD))


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.parquet"])
def test_a_wrong_column_lists_those_found_and_the_nearest(tmp_path: Path, name: str) -> None:
    rows = [{"txt": row["text"], "label": row["label"]} for row in GOOD]
    if name.endswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
        content = None
    else:
        csv_lines = ["txt,label", *(f"{row['txt']},{row['label']}" for row in rows)]
        content = lines(*rows) if name.endswith("jsonl") else "\n".join(csv_lines).encode()
    found = refusal(tmp_path, content, name=name)
    assert "expected a column 'text' (did you mean 'txt'?), found 'txt', 'label'" in found
    assert found.count("expected a column") == 1


def test_a_column_that_one_row_lacks_is_refused_with_its_line(tmp_path: Path) -> None:
    assert "line 13: expected a column 'label', found 'text'" in refusal(tmp_path, lines(*GOOD, {"text": "x"}))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": None, "label": "a"}, "text: expected text, found null"),
        ({"text": "x", "label": None}, "label: expected text, found null"),
        ({"text": True, "label": "a"}, "text: expected text, found true"),
        ({"text": ["x"], "label": "a"}, "text: expected text, found a list"),
        ({"text": "x", "label": {"a": 1}}, "label: expected text, found an object"),
        ({"text": "", "label": "a"}, "text: expected text, found an empty text"),
        ({"text": " \t\u2003\n", "label": "a"}, "text: expected text, found only spaces"),
        ({"text": "x", "label": " "}, "label: expected text, found only spaces"),
        ({"text": "x\ud800", "label": "a"}, "text: expected text, found half a surrogate pair at character 1"),
        ({"text": "x", "label": "\udfff"}, "label: expected text, found half a surrogate pair at character 0"),
        ({"text": float("inf"), "label": "a"}, "text: expected text, found inf"),
    ],
)
def test_a_value_that_is_no_text_is_refused_with_its_line(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    assert f"data.jsonl: line 13: {says}" in refusal(tmp_path, lines(*GOOD, row))


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.parquet"])
def test_an_input_of_ten_megabytes_is_refused_with_its_row(tmp_path: Path, name: str) -> None:
    rows = [*GOOD, {"text": "x" * 10_000_000, "label": "a"}]
    content: bytes | None = lines(*rows)
    if name.endswith("csv"):
        content = "\n".join(["text,label", *(f"{row['text']},{row['label']}" for row in rows)]).encode()
    if name.endswith("parquet"):
        content = None
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    place = {"data.jsonl": "line 13", "data.csv": "line 14", "data.parquet": "row 13"}[name]
    says = f"{name}: {place}: text: expected at most 1,000,000 bytes of text, found 10,000,000"
    assert says in refusal(tmp_path, content, name=name)


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_an_input_just_within_the_limit_is_read(tmp_path: Path, name: str) -> None:
    before = csv.field_size_limit()
    rows = [*GOOD, {"text": "x" * LARGEST_TEXT_BYTES, "label": "a"}]
    as_csv = "\n".join(["text,label", *(f"{row['text']},{row['label']}" for row in rows)]).encode()
    content = as_csv if name.endswith("csv") else lines(*rows)
    assert splits_of(tmp_path, content, name=name).unused == 13 - 8
    assert csv.field_size_limit() == before


def test_at_most_ten_problems_of_a_file_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    found = refusal(tmp_path, lines(*GOOD, *([{"text": "", "label": "a"}] * 50)))
    assert found.count("an empty text") == 10
    assert "data.jsonl: and 40 more" in found


def test_the_problems_of_all_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "more.csv").write_text("text,label\n ,a\n", encoding="utf-8")
    found = refusal(tmp_path, lines({"text": 1}, *GOOD), data={"files": ["data.jsonl", "more.csv"]})
    assert "data.jsonl: line 1: expected a column 'label'" in found
    assert "more.csv: line 2: text: expected text, found only spaces" in found


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text,label\nx,a,b\n", "line 2: expected 2 cells, as in the header, found 3"),
        ("text,label\n\nx\n", "line 3: expected 2 cells, as in the header, found 1"),
        ('text,label\n"two\nlines",a\nx,a,b\n', "line 4: expected 2 cells"),
        ('text,label\nx,a\n"never closed,a\nx,b\n', "expected comma-separated values"),
        ("text,label,label\nx,a,b\n", "header: expected columns that differ, found 'label' twice"),
        ("text;label\nx;a\n", "expected a column 'text', found 'text;label'"),
    ],
)
def test_malformed_csv_is_refused_with_its_line(tmp_path: Path, content: str, says: str) -> None:
    assert says in refusal(tmp_path, content.encode(), name="data.csv")


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1 and then nothing PAR1", b"text,label\nx,a\n"])
def test_a_damaged_parquet_file_is_refused(tmp_path: Path, content: bytes) -> None:
    assert "cannot be read as Parquet" in refusal(tmp_path, content, name="data.parquet")


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(GOOD), path)
    assert "cannot be read as Parquet" in refusal(tmp_path, path.read_bytes()[:-20], name="data.parquet")


def test_parquet_values_that_are_no_text_are_refused_with_their_row(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [b"x", None], "label": ["a", "b"]})
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    found = refusal(tmp_path, None, name="data.parquet")
    assert "row 1: text: expected text, found b'x'" in found
    assert "row 2: text: expected text, found null" in found


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install 'foreword[parquet]'" in refusal(tmp_path, b"PAR1", name="data.parquet")


@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_duplicates_with_conflicting_targets_are_listed_with_both_places(tmp_path: Path, kind: str) -> None:
    found = refusal(tmp_path, lines(*GOOD, {"text": " A  0", "label": "b"}), kind=kind)
    assert "'a 0': 'a' in data.jsonl line 1, 'b' in data.jsonl line 13" in found


def test_a_declared_label_without_examples_is_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path, lines(*GOOD), labels={"a": "x", "b": "y", "c": "z"})
    assert "labels.c: expected examples, found none" in found


def test_a_label_that_is_not_declared_is_refused_with_its_line(tmp_path: Path) -> None:
    labels = {"a": "x", "b": "y", "billing": "z"}
    found = refusal(tmp_path, lines(*GOOD, {"text": "x", "label": "biling"}), labels=labels)
    assert "line 13: label: expected a label declared in [labels] (did you mean 'billing'?), found 'biling'" in found


def test_labels_that_differ_only_in_case_or_spacing_are_refused_with_their_counts(tmp_path: Path) -> None:
    rows = [*GOOD, {"text": "x", "label": "A"}, {"text": "y", "label": "b  c"}, {"text": "z", "label": "b c"}]
    found = refusal(tmp_path, lines(*rows))
    assert "'A' (1), 'a' (6)" in found
    assert "'b  c' (1), 'b c' (1)" in found


def test_one_class_only_is_refused(tmp_path: Path) -> None:
    assert "only one label" in refusal(tmp_path, lines(*GOOD[:6]))


def test_too_few_examples_of_a_label_say_how_many_would_do(tmp_path: Path) -> None:
    found = refusal(tmp_path, lines(*GOOD[:6], *GOOD[6:8]))
    assert "label 'b': expected 4 (2 fit, 1 selection, 1 test), found 2" in found
    assert "label 'a'" not in found


def test_one_fit_example_is_enough_when_the_counts_say_so(tmp_path: Path) -> None:
    rows = [*GOOD[:3], *GOOD[6:9]]
    assert splits_of(tmp_path, lines(*rows), splits={"fit": 1, "selection": 1, "test": "rest"}).unused == 0


def test_too_few_for_the_fractions_say_about_how_many_would_do(tmp_path: Path) -> None:
    """With n examples, each split misses its minimum with at most 5% in all: n = 15 for 0.5, 0.2, 0.3, as computed
    apart: 16 * 0.5**15 + 0.8**15 + 0.7**15 = 0.0404, and 15 * 0.5**14 + 0.8**14 + 0.7**14 = 0.0517 for n = 14."""
    found = refusal(tmp_path, lines(GOOD[0], GOOD[6]), splits={"fit": 0.5, "selection": 0.2, "test": 0.3})
    assert found.count("expected at least 2 fit, 1 selection, 1 test") == 2
    assert found.count("about 15 examples would do") == 2


def test_too_few_for_generation_are_refused(tmp_path: Path) -> None:
    assert "examples: expected 4" in refusal(tmp_path, lines(*GOOD[:3]), kind="generate")


def test_free_text_taken_for_labels_is_refused_on_one_screen(tmp_path: Path) -> None:
    rows = [{"text": f"question {n}", "label": f"a long answer, number {n}"} for n in range(200)]
    found = refusal(tmp_path, lines(*rows))
    assert "and 190 more" in found
