"""What the example's data set promises: enough texts in every class, no answer given away, the same bytes each time."""

from __future__ import annotations

import doctest
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from foreword.tuning.task import Task

SCRIPT = Path(__file__).parents[2] / "examples" / "docs-routing" / "build.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_routing_build", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build = _load()


@pytest.fixture(scope="module")
def corpus():
    return build.from_standard_library()


def _package(folder: Path, **files: str) -> Path:
    for name, source in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return folder


def _texts(folder: Path, *modules: str) -> list[tuple[str, str]]:
    topics = [build.Topic(module, (module,)) for module in modules]
    return [(example.label, example.text) for example in build.collect(folder, topics).examples]


def test_every_class_of_the_standard_library_has_enough_texts(corpus):
    counts = corpus.count_by_label()
    assert len(counts) == 16
    assert min(counts.values()) >= 60
    assert max(counts.values()) <= 200
    assert corpus.unreadable == ()


def test_texts_have_the_promised_length_and_stand_on_one_line(corpus):
    for example in corpus.examples:
        assert 40 <= len(example.text) <= 400
        assert example.text == " ".join(example.text.split())


def test_no_text_contains_the_name_of_its_label_as_a_word(corpus):
    for example in corpus.examples:
        words = {word.casefold() for word in re.findall(r"[^\W_]+", example.text)}
        assert example.label not in words, example


def test_no_text_occurs_twice_in_one_class_or_in_two(corpus):
    occurrences = Counter(example.text.casefold() for example in corpus.examples)
    assert max(occurrences.values()) == 1


def test_the_task_file_is_accepted_and_describes_exactly_the_labels_of_the_data(corpus):
    task = Task.load(SCRIPT.with_name("task.toml"))
    assert set(task.labels) == set(corpus.count_by_label()) == set(build.STANDARD_LIBRARY)
    assert (task.data.files, task.data.input, task.data.target) == (("data/data.jsonl",), "text", "label")
    assert min(corpus.count_by_label().values()) > task.splits.fit + task.splits.selection


def test_two_builds_write_the_same_bytes_whatever_the_hash_seed(tmp_path, corpus):
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"  # another one than this process has
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "there")]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True, capture_output=True)
    here = build.write(corpus, tmp_path / "here")
    assert (tmp_path / "there" / "data.jsonl").read_bytes() == here.read_bytes()


@pytest.fixture
def built_once(corpus, monkeypatch):
    """The standard library's texts as they were found before: to find them takes two seconds."""
    monkeypatch.setattr(build, "from_standard_library", lambda: corpus)


@pytest.mark.usefixtures("built_once")
def test_a_row_holds_text_label_and_source_and_the_table_counts_the_rows(tmp_path, capsys, corpus):
    assert build.main(["--out", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["label"], row["source"], row["text"]) for row in rows] == [
        (example.label, example.source, example.text) for example in corpus.examples
    ]
    table = capsys.readouterr().out
    assert all(re.search(rf"^ *{count}  {label}$", table, re.M) for label, count in corpus.count_by_label().items())
    assert f"{len(rows)}  texts in 16 classes" in table


def test_an_installed_package_becomes_a_data_set_of_its_subpackages_without_being_imported(tmp_path):
    arguments = ["build", "--package", "scipy", "--classes", "stats,optimize,signal", "--out", str(tmp_path)]
    program = (
        "import runpy, sys\n"
        f"sys.argv = {arguments!r}\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    sys.exit(end.code or ('scipy' in sys.modules and 'scipy was imported'))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    rows = [json.loads(line) for line in (tmp_path / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = Counter(row["label"] for row in rows)
    assert set(counts) == {"scipy.stats", "scipy.optimize", "scipy.signal"}
    assert min(counts.values()) >= 60
    assert all(row["source"].startswith(row["label"]) for row in rows)


def test_the_best_documented_subpackages_are_chosen_when_none_are_named():
    counts = build.from_package("numpy").count_by_label()
    assert 2 <= len(counts) <= 16
    assert min(counts.values()) >= 60
    assert all(re.fullmatch(r"numpy\.[a-z]\w*", label) for label in counts)


def test_a_text_of_two_classes_is_in_neither(tmp_path):
    shared, own = "Return the number of items that are waiting.", "Put another item at the end of the line."
    _package(
        tmp_path, one=f'"""{shared}"""\ndef f():\n    """{own}"""\n', two=f'def g():\n    """{shared.upper()}"""\n'
    )
    assert _texts(tmp_path, "one", "two") == [("one", own)]


def test_a_text_that_names_one_class_does_not_pass_in_another_under_the_same_words(tmp_path):
    text = "Open the one and only stream that is left here."
    _package(tmp_path, one=f'"""{text}"""\n', two=f'"""{text}"""\n')
    assert _texts(tmp_path, "one", "two") == []


@pytest.mark.parametrize("text", ["Zips.", "a ZIP file", "the zip_file", "see zip.open()", "(zip)"])
def test_case_plural_underscore_and_punctuation_do_not_hide_a_name(text):
    assert build.Topic("zip", ("_zip",)).is_named_in(text)


@pytest.mark.parametrize("text", ["unzipped", "ZipFile", "zipper"])
def test_a_name_inside_another_word_is_not_the_name(text):
    assert not build.Topic("zip", ("_zip",)).is_named_in(text)


def test_tests_are_skipped_and_files_that_do_not_parse_are_listed(tmp_path):
    text = '"""Something long enough to be taken as a text."""\n'
    _package(
        tmp_path, p__good=text, p__tests__one=text.upper(), p__test_two=text[:-5] + "!" + text[-5:], p__bad="def ("
    )
    found = build.collect(tmp_path, [build.Topic("p", ("p",))])
    assert [example.source for example in found.examples] == ["p.good"]
    assert found.unreadable == (tmp_path / "p" / "bad.py",)


def test_source_is_parsed_and_never_executed(tmp_path):
    _package(tmp_path, p='"""A module that would end the test if it were executed."""\nraise SystemExit\n')
    assert len(_texts(tmp_path, "p")) == 1


def test_methods_nested_functions_and_branches_are_found_under_their_dotted_names(tmp_path):
    source = (
        "if True:\n    class A:\n        async def f(self):\n"
        "            '''An asynchronous method, and this is long enough.'''\n"
        "            def g():\n                '''A nested function, and this is long enough.'''\n"
    )
    found = build.collect(_package(tmp_path, p=source), [build.Topic("p", ("p",))], root="q")
    assert [example.source for example in found.examples] == ["q.p.A.f", "q.p.A.f.g"]


def test_prose_stops_before_examples_and_headed_sections():
    assert build.prose("Add.\n\n    More.\n\n    >>> add()\n    1\n") == "Add. More."
    assert build.prose("Add.\n\nParameters\n----------\nx : int") == "Add."
    assert build.prose("Add.\n\nArgs:\n    x: one") == "Add."


def test_a_long_text_ends_at_a_sentence_or_else_at_a_word():
    sentences = build.prose("This is a sentence of words. " * 30)
    assert len(sentences) <= 400
    assert sentences.endswith("words.")
    words = build.prose("word " * 200)
    assert len(words) <= 400
    assert set(words.split()) == {"word"}


@pytest.mark.usefixtures("built_once")
def test_a_write_that_fails_keeps_the_earlier_file_whole_and_leaves_nothing_behind(tmp_path, monkeypatch, corpus):
    build.write(corpus, tmp_path)
    before = (tmp_path / "data.jsonl").read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.os, "fsync", full)
    assert build.main(["--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]
    assert (tmp_path / "data.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--package", "no_such_package_here"], "no_such_package_here"),
        (["--package", "numpy.linalg"], "numpy.linalg"),
        (["--package", "numpy", "--classes", "lib,nothing"], "numpy.nothing with 0"),
        (["--package", "numpy", "--classes", "lib"], "1 classes"),
    ],
)
def test_what_cannot_be_built_is_said_with_a_remedy_and_nothing_is_written(arguments, found, tmp_path, capsys):
    assert build.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert found in message
    assert "to do:" in message
    assert not (tmp_path / "out").exists()


def test_the_examples_in_the_docstrings_run():
    result = doctest.testmod(build)
    assert result.attempted > 0
    assert result.failed == 0
