"""Bad input on the command line: one clear screen, exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import foreword as fw

pytestmark = pytest.mark.usefixtures("one_thread", "without_pictures")

PROBE: list[dict[str, Any]] = [{"kind": "zero-shot"}, {"kind": "probe"}]
SCREEN = 25


@dataclass
class Place:
    """A folder with a task in it, and what `foreword pilot` says of it."""

    folder: Path
    task: Path
    run: Callable[..., Any]

    def refusal(self, *options: object) -> str:
        """The message of a pilot that must be refused, with all that a good one has; nothing may be left of it."""
        before = contents(self.folder)
        said = refused(self.run("pilot", self.task, "--out", self.folder / "run", *options))
        assert contents(self.folder) == before
        return said


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Everything below a folder, but for the locks, which hold nothing."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.name != ".lock"
    }


def refused(ran: Any) -> str:
    assert ran.code == 2, ran
    assert ran.out == ""
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) <= SCREEN, ran.err  # the lines that tell progress included
    message = str(ran.err).partition("error: ")[2]
    assert message.splitlines()[-1].startswith("  to do: "), ran.err
    return message


@pytest.fixture
def place(
    tmp_path: Path, foreword: Any, model_folder: Callable[[str], Path], write_task: Callable[..., Path]
) -> Callable[..., Place]:
    """A place whose task is good but for what is given."""

    def made(candidates: list[dict[str, Any]] = PROBE, **changes: Any) -> Place:
        changes.setdefault("base", model_folder("bert"))
        base = changes.pop("base")
        return Place(tmp_path, write_task(tmp_path, base, candidates, **changes), foreword)

    return made


def rows(*pairs: tuple[Any, Any]) -> bytes:
    return "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in pairs).encode()


def many(label: str, count: int = 20) -> list[tuple[str, str]]:
    return [(f"{label} text number {number}", label) for number in range(count)]


GOOD = rows(*many("red"), *many("blue"), *many("green"))


def test_the_place_is_good_as_it_stands(place: Callable[..., Place]) -> None:
    found = place(content=GOOD)
    ran = found.run("pilot", found.task, "--out", found.folder / "run", "--only", "zero-shot", "-q")
    assert (ran.code, ran.err) == (0, "")


# The task file


def test_a_missing_task_file(foreword: Any, tmp_path: Path) -> None:
    said = refused(foreword("pilot", tmp_path / "none.toml"))
    assert "none.toml cannot be read" in said
    assert "No such file" in said
    assert "foreword init" in said


def test_a_folder_for_a_task_file(foreword: Any, tmp_path: Path) -> None:
    assert "Is a directory" in refused(foreword("pilot", tmp_path))
    (tmp_path / "task.toml").write_text("")
    assert f"Name the file in it: {tmp_path / 'task.toml'}" in refused(foreword("pilot", tmp_path))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "task: expected this field, found nothing"),
        (b"[task\nname=1", "is not valid TOML"),
        (b"name = 'a'\nname = 'b'", "is not valid TOML"),
        (b"\xff\xfe[\x00t\x00", "cannot be read"),
        (bytes(range(256)), "cannot be read"),
        ("[task]\nname = 'café'".encode("latin-1"), "cannot be read"),
        (b"[task]\nname = \x00", "is not valid TOML"),
        (b"a = " + b"[" * 100_000, "is not valid TOML"),
        (b"# " + b"x" * 10_000_000, "task: expected this field"),
    ],
    ids=["empty", "malformed", "twice", "utf-16", "binary", "latin-1", "nul", "deep", "10 MB"],
)
def test_a_malformed_task_file(place: Callable[..., Place], content: bytes, expected: str) -> None:
    found = place()
    found.task.write_bytes(content)
    assert expected in found.refusal()


def test_an_unknown_field_is_named_with_the_nearest_known_one(place: Callable[..., Place]) -> None:
    said = place([{"kind": "prefix", "positons": 4}]).refusal()
    assert "candidates[0].positons: expected no such field (did you mean 'positions'?)" in said


def test_an_unknown_section_and_kind(place: Callable[..., Place]) -> None:
    said = place([{"kind": "prefxi"}], prces={"currency": "EUR"}).refusal()
    assert "did you mean 'prefix'?" in said
    assert "did you mean 'prices'?" in said


def test_a_thousand_wrong_fields_still_fit_on_a_screen(place: Callable[..., Place]) -> None:
    said = place(task={f"field{number}": 1 for number in range(1000)}).refusal()
    assert "1000 problems" in said
    assert "more lines" in said


def test_control_characters_in_a_wrong_field_do_not_reach_the_terminal(place: Callable[..., Place]) -> None:
    said = place(task={"kind": "\x1b[2J\x07"}).refusal()
    assert "\x1b" not in said
    assert "\x07" not in said


@pytest.mark.parametrize("field", ["name", "kind", "requirement"])
def test_a_missing_field(place: Callable[..., Place], field: str) -> None:
    found = place()
    lines = found.task.read_text(encoding="utf-8").splitlines(keepends=True)
    at = lines.index("[task]\n")
    kept = [line for number, line in enumerate(lines) if not (number > at and line.startswith(f"{field} ="))]
    found.task.write_text("".join(kept), encoding="utf-8")
    if field != "kind":  # the candidates have one, too
        assert f"task.{field}: expected this field, found nothing" in found.refusal()
    else:
        assert "task.kind" in found.refusal()


# Data


@pytest.mark.parametrize("column", ["input", "target"])
def test_a_wrong_column_is_named_with_those_that_are_there(place: Callable[..., Place], column: str) -> None:
    said = place(content=GOOD, data={column: "txet"}).refusal()
    assert "expected a column 'txet'" in said
    assert "found 'text', 'label'" in said


@pytest.mark.parametrize(("mark", "name"), [(b";", "semicolons"), (b"\t", "tabs")])
def test_a_csv_without_commas(place: Callable[..., Place], mark: bytes, name: str) -> None:
    found = place(data={"files": ["data.csv"]})
    (found.folder / "data.csv").write_bytes(b"text" + mark + b"label\na" + mark + b"red\n")
    assert f"expected commas between columns, found {name}" in found.refusal()


def test_a_label_without_examples(place: Callable[..., Place]) -> None:
    said = place(content=rows(*many("red"), *many("blue"))).refusal()
    assert "labels.green: expected examples, found none" in said


def test_a_label_that_is_not_declared(place: Callable[..., Place]) -> None:
    said = place(content=GOOD + rows(("a rose", "rde"))).refusal()
    assert "line 61" in said
    assert "did you mean 'red'?" in said


def test_one_class_only(place: Callable[..., Place]) -> None:
    assert "There is only one label" in place(content=rows(*many("red")), labels=None).refusal()


def test_fewer_examples_than_are_needed(place: Callable[..., Place]) -> None:
    said = place(content=rows(*many("red", 10), *many("blue"), *many("green", 3))).refusal()
    assert "label 'red': expected 11 (6 fit, 4 selection, 1 test), found 10" in said
    assert "label 'green'" in said
    assert "blue" not in said


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv", "data.parquet"])
@pytest.mark.parametrize(
    "content",
    [b"", b"  \n\n ", bytes(range(256)) * 16, random.Random(0).randbytes(10_000_000), b"x" * 10_000_000],
    ids=["empty", "blank", "binary", "10 MB binary", "10 MB line"],
)
def test_a_data_file_that_is_no_data(place: Callable[..., Place], name: str, content: bytes) -> None:
    found = place(data={"files": [name]})
    (found.folder / name).write_bytes(content)
    assert name in found.refusal()


def test_a_text_of_10_mb(place: Callable[..., Place]) -> None:
    said = place(content=GOOD + rows(("x" * 10_000_000, "red"))).refusal()
    assert "line 61: text: expected at most 1,000,000 bytes of text, found 10,000,000" in said


@pytest.mark.parametrize(("name", "content"), [("data.csv", b"text,label\n"), ("data.jsonl", b"\xef\xbb\xbf\n")])
def test_a_data_file_of_no_rows(place: Callable[..., Place], name: str, content: bytes) -> None:
    found = place(data={"files": [name]})
    (found.folder / name).write_bytes(content)
    assert name in found.refusal()


def test_data_that_are_not_utf_8(place: Callable[..., Place]) -> None:
    said = place(content=GOOD + '{"text": "café", "label": "red"}'.encode("latin-1")).refusal()
    assert "is not UTF-8 text" in said
    assert "line 61" in said


def test_duplicate_rows_with_conflicting_labels(place: Callable[..., Place]) -> None:
    said = place(content=GOOD + rows(("Red  TEXT number 3", "blue"))).refusal()
    assert "The same input stands with different targets." in said
    assert "line 4" in said
    assert "line 61" in said


def test_a_data_file_that_is_missing_or_a_folder(place: Callable[..., Place]) -> None:
    found = place(data={"files": ["none.jsonl"]})
    assert "No such file" in found.refusal()
    (found.folder / "none.jsonl").mkdir()
    assert "found:    a folder" in found.refusal()


# The base model


@pytest.fixture
def broken_model(tmp_path: Path, model_folder: Callable[[str], Path]) -> Callable[[str, bytes | None], Path]:
    """A copy of the tiny BERT with one file replaced, or, for None, removed."""

    def broken(name: str, content: bytes | None) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(model_folder("bert"), folder)
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        return folder

    return broken


def config(model: Path, **changes: Any) -> bytes:
    return json.dumps({**json.loads((model / "config.json").read_text(encoding="utf-8")), **changes}).encode()


def test_a_model_folder_without_weights(place: Callable[..., Place], broken_model: Callable[..., Path]) -> None:
    said = place(base=broken_model("model.safetensors", None)).refusal()
    assert "has no weights" in said
    assert "config.json" in said


@pytest.mark.parametrize("content", [b"", b"x" * 3000, b"\x08\0\0\0\0\0\0\0{}      "], ids=["empty", "junk", "hollow"])
def test_a_model_folder_with_broken_weights(
    place: Callable[..., Place], broken_model: Callable[..., Path], content: bytes
) -> None:
    assert "model" in place(base=broken_model("model.safetensors", content)).refusal()


def test_weights_cut_off_by_a_copy(
    place: Callable[..., Place], broken_model: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    whole = (model_folder("bert") / "model.safetensors").read_bytes()
    assert "could not be loaded" in place(base=broken_model("model.safetensors", whole[: len(whole) // 2])).refusal()


def test_the_weights_of_another_model(
    place: Callable[..., Place], broken_model: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    other = (model_folder("gpt2") / "model.safetensors").read_bytes()
    assert "are not those of its config.json" in place(base=broken_model("model.safetensors", other)).refusal()


def test_an_unknown_model_family(
    place: Callable[..., Place], broken_model: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    said = place(base=broken_model("config.json", config(model_folder("bert"), model_type="frobnicator"))).refusal()
    assert "frobnicator" in said
    assert "of a family that transformers knows" in said


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"{}"], ids=repr)
def test_a_model_without_a_readable_configuration(
    place: Callable[..., Place], broken_model: Callable[..., Path], content: bytes
) -> None:
    assert "could not be loaded" in place(base=broken_model("config.json", content)).refusal()


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("/nowhere/at/all", "nothing there"),
        ("package:no-such-package-here", "is not installed"),
        ("package:", "is not installed"),
        ("package:filelock", "carries no model"),
        ("nobody/no-such-model", "could not be loaded"),
        ("models/mine", "No folder of this name is in"),
        (" ", "model.reference: expected text that is not blank"),
    ],
)
def test_a_base_model_that_is_not_there(place: Callable[..., Place], reference: str, expected: str) -> None:
    assert expected in place(base=reference).refusal()


def test_an_encoder_asked_to_generate_leaves_no_folder_behind(place: Callable[..., Place]) -> None:
    assert "An encoder cannot do this task" in place([{"kind": "zero-shot"}], kind="generate").refusal()


# Options


@pytest.mark.parametrize(
    "options", [["--limit", "0"], ["--limit", "x"], ["--seed", "-1"], ["--seed", str(2**32)], ["--frob"]], ids=" ".join
)
def test_an_option_out_of_range_is_refused_before_anything_is_read(foreword: Any, options: list[str]) -> None:
    ran = foreword("pilot", "none.toml", *options)
    assert ran.code == 2
    assert options[0] in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) <= SCREEN


def test_only_an_unknown_candidate(place: Callable[..., Place]) -> None:
    said = place().refusal("--only", "prob")
    assert "The task has no candidate 'prob'" in said
    assert "did you mean 'probe'?" in said
    assert "--only A --only B" in said
    assert "expected: zero-shot, probe" in said


# The run folder


@pytest.mark.parametrize("out", ["data.jsonl", "data.jsonl/below", "/proc/none", "/dev/null"])
def test_an_output_folder_that_cannot_be_written(place: Callable[..., Place], out: str) -> None:
    found = place()
    before = contents(found.folder)
    said = refused(found.run("pilot", found.task, "--out", found.folder / out))
    assert "cannot be written" in said
    assert "--out" in said
    assert contents(found.folder) == before


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run folder."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


def test_two_runs_in_one_folder_at_once(foreword: Any, finished: Path, copied: Path) -> None:
    before = contents(copied)
    with FileLock(copied / ".lock"):
        said = refused(foreword("pilot", finished.parent / "task.toml", "--out", copied))
    assert "Another pilot is running" in said
    assert contents(copied) == before


def test_a_folder_with_another_pilot_s_work(foreword: Any, place: Callable[..., Place], copied: Path) -> None:
    other, before = place(content=GOOD), contents(copied)
    said = refused(foreword("pilot", other.task, "--out", copied))
    assert "holds the work of another pilot" in said
    assert "data was" in said
    assert "--fresh" in said
    assert contents(copied) == before
    assert foreword("pilot", other.task, "--out", copied, "--fresh", "--only", "zero-shot", "-q").code == 0
    assert not (copied / "best.prefix").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]"], ids=repr)
def test_a_run_folder_whose_owner_was_overwritten_by_hand(
    foreword: Any, finished: Path, copied: Path, content: bytes
) -> None:
    (copied / "run.json").write_bytes(content)
    before = contents(copied)
    assert "run.json" in refused(foreword("pilot", finished.parent / "task.toml", "--out", copied))
    assert contents(copied) == before


def test_results_changed_by_hand_are_made_again(foreword: Any, finished: Path, copied: Path) -> None:
    for path, content in (("probe/seed-0.json", b"{"), ("zero-shot/seed-0.json", b"\xff")):
        (copied / "candidates" / path).write_bytes(content)
    (copied / "evidence.json").write_text("not evidence", encoding="utf-8")
    assert foreword("pilot", finished.parent / "task.toml", "--out", copied, "-q").code == 0
    told, again = (json.loads((folder / "evidence.json").read_bytes()) for folder in (finished, copied))
    assert [found["metric"] for found in again["candidates"]] == [found["metric"] for found in told["candidates"]]


@pytest.mark.parametrize("content", [b"", b"x" * 100, None], ids=["empty", "junk", "gone"])
def test_the_prefix_s_checkpoint_changed_by_hand(
    foreword: Any, finished: Path, copied: Path, content: bytes | None
) -> None:
    checkpoint = copied / "candidates" / "prefix" / "seed-0.pt"
    checkpoint.unlink()
    if content is not None:
        checkpoint.write_bytes(content)
    before = contents(copied)
    said = refused(foreword("pilot", finished.parent / "task.toml", "--out", copied, "-q"))
    assert str(checkpoint.parent) in said.replace("\n", "")
    after = contents(copied)
    assert all(after[copied / name] == before[copied / name] for name in ("best.prefix", "evidence.json"))


def test_a_disk_that_fills_up_while_the_bundle_is_written(
    foreword: Any, finished: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, sync = copied / "best.prefix", os.fsync
    bundle.write_bytes(bundle.read_bytes()[:-1])  # a whole one of this very pilot would be left as it is
    before = contents(copied)

    def full(descriptor: int) -> None:
        if "best.prefix" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    said = refused(foreword("pilot", finished.parent / "task.toml", "--out", copied, "-q"))
    assert "best.prefix could not be written; what was there before is unchanged." in said
    assert "No space left on device" in said
    assert contents(copied) == before


def test_a_disk_that_is_full_from_the_start(place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    found = place()
    monkeypatch.setattr(os, "fsync", full)
    said = refused(found.run("pilot", found.task, "--out", found.folder / "run", "-q"))
    assert "No space left on device" in said
    assert [path.name for path in (found.folder / "run").rglob("*")] == [".lock"]


def test_init_overwrites_nothing_and_needs_a_folder(foreword: Any, tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text("mine", encoding="utf-8")
    assert "already holds task.toml" in refused(foreword("init", tmp_path))
    assert "cannot be written" in refused(foreword("init", tmp_path / "task.toml" / "below"))
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {"task.toml": "mine"}


# Bundles


@pytest.fixture
def spoilt(finished: Path, tmp_path: Path) -> Callable[[Callable[[bytes], bytes]], Path]:
    """The finished bundle with its bytes changed."""

    def change(by: Callable[[bytes], bytes]) -> Path:
        path = tmp_path / "spoilt.prefix"
        path.write_bytes(by((finished / "best.prefix").read_bytes()))
        return path

    return change


def flipped(at: float) -> Callable[[bytes], bytes]:
    def flip(content: bytes) -> bytes:
        place = min(int(at * len(content)), len(content) - 1)
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return flip


@pytest.mark.parametrize("verb", [["inspect"], ["predict", "--bundle"]], ids=" ".join)
@pytest.mark.parametrize(
    "by",
    [
        lambda _: b"",
        lambda content: content[:7],
        lambda content: content[:1000],
        lambda content: content[:-1],
        lambda content: content + b"x",
        flipped(0),
        flipped(0.3),
        flipped(0.99),
        flipped(1),
        lambda content: content.replace(b"red", b"rot", 1),
        lambda _: b"not a bundle",
        lambda _: b"\0" * 10_000_000,
    ],
    ids=[
        "empty", "7 bytes", "1000 bytes", "last byte gone", "a byte more", "first bit", "a bit of the manifest",
        "a bit of the tensors", "last bit", "another label", "junk", "10 MB of zeros",
    ],
)  # fmt: skip
def test_a_truncated_or_tampered_bundle(
    foreword: Any, spoilt: Callable[..., Path], verb: list[str], by: Callable[[bytes], bytes]
) -> None:
    assert "is not a whole foreword bundle" in refused(foreword(*verb, spoilt(by), stdin=b'"apple"'))


def test_a_fitted_and_a_compiled_prefix_are_told_apart(foreword: Any, finished: Path, tmp_path: Path) -> None:
    compiled = tmp_path / "compiled.prefix"
    fw.compile_function(lambda x: x[:, 0], domain=fw.Sphere(1), positions=4, method="spectral", certify=False).save(
        compiled
    )
    for verb in (["inspect"], ["predict", "--bundle"]):
        assert "Check it with `foreword verify`" in refused(foreword(*verb, compiled, stdin=b'"apple"'))
    assert "See what it is with `foreword inspect`" in refused(foreword("verify", finished / "best.prefix"))


@pytest.mark.parametrize(
    "command", [["fit", "t.toml"], ["pilot", "t.toml"], ["predict", "--bundle", "b"], ["compile", "x"]], ids=" ".join
)
def test_an_output_without_a_name_is_refused(foreword: Any, command: list[str]) -> None:
    ran = foreword(*command, "--out", "")
    assert (ran.code, ran.out) == (2, "")
    assert "it names nothing" in ran.err


@pytest.mark.parametrize("verb", [["inspect"], ["predict", "--bundle"]], ids=" ".join)
def test_a_bundle_that_is_not_there(foreword: Any, tmp_path: Path, verb: list[str]) -> None:
    assert "No such file" in refused(foreword(*verb, tmp_path / "none.prefix"))
    refused(foreword(*verb, tmp_path))
    (tmp_path / "best.prefix").write_bytes(b"")
    assert f"Name the bundle in it: {tmp_path / 'best.prefix'}" in refused(foreword(*verb, tmp_path))


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_a_text_or_nothing_in_place_of_a_prefix(foreword: Any, tmp_path: Path, verb: str) -> None:
    (tmp_path / "task.toml").write_text("# A task for foreword")
    assert "a text that begins with '# A task'" in refused(foreword(verb, tmp_path / "task.toml"))
    assert "Check the path" in refused(foreword(verb, tmp_path / "none.prefix"))


def test_a_bundle_for_another_base(foreword: Any, finished: Path, model_folder: Callable[[str], Path]) -> None:
    said = refused(
        foreword("predict", "--bundle", finished / "best.prefix", "--model", model_folder("distilbert"), stdin=b'"a"')
    )
    assert "This bundle was made for another base model." in said
    assert str(model_folder("bert")) in said
    assert str(model_folder("distilbert")) in said


def test_a_base_that_is_gone_and_a_device_that_is_not_there(foreword: Any, finished: Path) -> None:
    bundle = finished / "best.prefix"
    assert "nothing there" in refused(foreword("predict", "--bundle", bundle, "--model", "/nowhere", stdin=b'"a"'))
    assert "device" in refused(foreword("predict", "--bundle", bundle, "--device", "abacus", stdin=b'"a"'))


# Inputs of predict


@pytest.mark.parametrize(
    ("stdin", "found"),
    [
        (b"", "The input is empty"),
        (b"\n \n", "The input is empty"),
        (b"apple\n", "put a bare text in quotes"),
        (b'"apple"\n{"text": "sky"\n', "Line 2"),
        (b'{"text": "apple"}\n\n{"txt": "sky"}\n', "Line 3"),
        (b'{"text": 3}', "int in 'text'"),
        (b'{"text": null}', "NoneType in 'text'"),
        (b'["apple"]', "list"),
        (b"{}", "an object with nothing in it"),
        (b'{"text": "apple", "output": "red"}', "'output' in the line, which the answer would replace"),
        (b'{"text": "apple", "confidence": 1}', "'confidence' in the line, which the answer would replace"),
        ('"café"'.encode("latin-1"), "can't decode byte 0xe9"),
        ('"apple"'.encode("utf-16"), "can't decode byte"),
        (bytes(range(256)), "Line 1"),
        (b'"\\ud800 apple"', "surrogates not allowed"),
        (b'{"text": "apple", "other": "\\udfff"}', "surrogates not allowed"),
        (b"[" * 100_000, "recursion"),
        (b'"' + b"x" * 10_000_000 + b'"', "10,000,000 characters"),
        (b'"apple"\n' * 300 + b'"' + b"x" * 10_000_000 + b'"', "Line 301"),
        (json.dumps({f"\x1b[2J{n}": n for n in range(3000)}).encode(), "Line 1"),
    ],
    ids=[
        "empty", "blank", "no JSON", "half an object", "no such field", "number", "null", "list", "nothing", "answered",
        "confident", "latin-1",
        "utf-16", "binary", "half a pair", "half a pair beside", "deep", "10 MB", "10 MB in line 301", "many fields",
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_no_answer_is_left_in_the_file(
    foreword: Any, finished: Path, tmp_path: Path, stdin: bytes, found: str
) -> None:
    out = tmp_path / "answers.jsonl"
    out.write_text("before", encoding="utf-8")
    said = refused(foreword("predict", "--bundle", finished / "best.prefix", "--out", out, stdin=stdin))
    assert found in said
    assert "\x1b" not in said
    assert {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()} == {out.name: "before"}


@pytest.mark.parametrize("replaced", ["inputs", "bundle"])
def test_answers_that_would_replace_what_they_are_made_from(
    foreword: Any, finished: Path, tmp_path: Path, replaced: str
) -> None:
    bundle, source = tmp_path / "b.prefix", tmp_path / "in.jsonl"
    bundle.write_bytes((finished / "best.prefix").read_bytes())
    source.write_bytes(b'"apple"\n')
    before = {path.name: path.read_bytes() for path in (bundle, source)}
    out = tmp_path / "." / (source if replaced == "inputs" else bundle).name
    said = refused(foreword("predict", "--bundle", bundle, "--input", source, "--out", out))
    assert f"would replace the {replaced}" in said
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("source", ["none.jsonl", "."])
def test_an_input_file_that_cannot_be_read(foreword: Any, finished: Path, tmp_path: Path, source: str) -> None:
    said = refused(foreword("predict", "--bundle", finished / "best.prefix", "--input", tmp_path / source))
    assert "cannot be read" in said


def test_a_column_that_is_not_there(foreword: Any, finished: Path) -> None:
    said = refused(
        foreword("predict", "--bundle", finished / "best.prefix", "--column", "body", stdin=b'{"text": "apple"}')
    )
    assert "--column" in said
    assert "an object with text" in said


@pytest.mark.parametrize("out", [".", "file/below"])
def test_answers_that_cannot_be_written(foreword: Any, finished: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    bundle = finished / "best.prefix"
    said = refused(foreword("predict", "--bundle", bundle, "--out", tmp_path / out, stdin=b'"apple"'))
    assert "could not be written" in said
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
