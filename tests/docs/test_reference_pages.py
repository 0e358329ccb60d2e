"""The reference pages say what the code has: every field, every default, nothing that is gone."""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

from foreword import bundle
from foreword.assessment import evidence, wording
from foreword.compiler.parser import FUNCTIONS
from foreword.prefix import Prefix
from foreword.tuning import candidate_settings, sections
from foreword.tuning.field_values import Section
from foreword.tuning.task import Task

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "reference"

Fields = dict[str, str]


def tables(page: str) -> dict[str, Fields]:
    """By the record that a heading names: each field of the table below it, with the cell beside."""
    found: dict[str, Fields] = {}
    for part in re.split(r"^#+ ", (PAGES / page).read_text(encoding="utf-8"), flags=re.MULTILINE):
        heading, _, body = part.partition("\n")
        rows = re.findall(r"^\| `([^`|]+)` \| (.*?) \|", body.partition("| code |")[0], flags=re.MULTILINE)
        for name in re.findall(r"`([A-Z]\w+)`", heading)[:1]:
            assert name not in found, f"{name} has two headings"
            assert len(dict(rows)) == len(rows), f"{name} lists a field twice"
            found[name] = dict(rows)
    return found


def own_fields(record: type[BaseModel]) -> list[str]:
    """The fields that a record adds to those of its base, as a file spells them."""
    return [field.alias or name for name, field in record.model_fields.items() if name in record.__annotations__]


def records(module: object, base: type[BaseModel]) -> dict[str, type[BaseModel]]:
    return {name: found for name, found in inspect.getmembers(module, inspect.isclass) if issubclass(found, base)}


def default_as_toml(record: type[BaseModel], name: str) -> str | None:
    """What the page's cell must be; None where the default is to leave the choice open."""
    field = record.model_fields[name]
    if field.is_required():
        return "required"
    if field.default is None:
        return None
    return f"`{json.dumps(field.default)}`"


EVIDENCE = {name: found for name, found in records(evidence, evidence.Record).items() if name != "Record"}
SECTIONS = {
    name: found
    for module in (sections, candidate_settings)
    for name, found in records(module, Section).items()
    if name != "Section"
}


def test_every_record_of_the_evidence_has_its_table_and_no_other() -> None:
    assert set(tables("evidence-schema.md")) == set(EVIDENCE)


@pytest.mark.parametrize("name", EVIDENCE)
def test_the_evidence_page_lists_exactly_the_fields_of(name: str) -> None:
    assert list(tables("evidence-schema.md")[name]) == own_fields(EVIDENCE[name])


def test_the_evidence_page_explains_every_code_that_has_a_sentence() -> None:
    page = (PAGES / "evidence-schema.md").read_text(encoding="utf-8")
    codes = {key.partition(".")[0] for key in wording.REASONS} | set(wording.METHODS) | set(wording.PROBES)
    assert {code for code in codes if f"`{code}`" not in page} == set()


def test_every_section_of_the_task_file_has_its_table_and_no_other() -> None:
    assert set(tables("task-file.md")) == set(SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_task_file_page_lists_exactly_the_fields_of(name: str) -> None:
    named_by_its_heading = {"kind"} if name != "CandidateSettings" and "Settings" in name else set()
    expected = [field for field in own_fields(SECTIONS[name]) if field not in named_by_its_heading]
    assert list(tables("task-file.md")[name]) == expected


@pytest.mark.parametrize("name", SECTIONS)
def test_the_task_file_page_tells_the_default_of_every_field_of(name: str) -> None:
    for field, told in tables("task-file.md")[name].items():
        expected = default_as_toml(SECTIONS[name], field)
        assert told == expected or (expected is None and told != "required" and not told.startswith("`")), field


def test_every_table_of_the_task_file_has_a_heading() -> None:
    page = (PAGES / "task-file.md").read_text(encoding="utf-8")
    for name in Task.model_fields:
        heading = f"## `[[{name}]]`" if name == "candidates" else f"## `[{name}]`"
        assert heading in page


def test_every_kind_of_candidate_has_a_heading() -> None:
    page = (PAGES / "task-file.md").read_text(encoding="utf-8")
    for kind, settings in candidate_settings.BY_KIND.items():
        assert f'### `kind = "{kind}"`: `{settings.__name__}`' in page


@dataclass(frozen=True)
class Base:
    reference: str = "a base model"
    fingerprint: str = "0" * 64
    family: str = "bert"


def test_the_bundle_page_names_every_line_of_a_manifest(tmp_path: Path) -> None:
    ones = np.ones((1, 2, 3), dtype=np.float32)
    baked = Prefix.from_arrays({"attention": (ones, ones)}, occupies=2)
    bundle.save_bundle(tmp_path / "one.prefix", baked.merge(baked), host=Base())
    content = (tmp_path / "one.prefix").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    manifest = json.loads(header["__metadata__"]["foreword"])
    lines = {name for name in manifest if name not in ("prefix", "base")}
    lines |= {f"{part}.{name}" for part in ("prefix", "base") for name in manifest[part]}
    table = (PAGES / "bundle-format.md").read_text(encoding="utf-8").partition("## Manifest")[2].partition("\n## ")[0]
    cells = " ".join(line.split(" | ")[0] for line in table.splitlines())
    assert set(re.findall(r"`([\w.]+)`", cells)) == lines
    assert manifest["schema"] == bundle.SCHEMA
    assert f"`{bundle.SCHEMA}`" in table


def test_the_functions_of_an_expression_are_listed_one_by_one() -> None:
    page = (ROOT / "docs" / "how-to" / "compile-a-function.md").read_text(encoding="utf-8")
    sentence = page.partition("and the functions")[2].partition(";")[0]
    listed = re.findall(r"`(\w+)`", sentence)
    assert sorted({FUNCTIONS[name] for name in listed}) == sorted(set(FUNCTIONS.values()))
    assert len(listed) == len(set(FUNCTIONS.values()))
