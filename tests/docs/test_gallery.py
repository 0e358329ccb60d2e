"""The gallery shows what its script makes, says what the runs found, and stays small."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

import foreword as fw

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "docs" / "gallery"
PAGE = (GALLERY / "README.md").read_text(encoding="utf-8")
MOST_BYTES = 2_500_000


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gallery_build", GALLERY / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build = _load()


def test_every_case_is_on_the_page_with_its_image_and_its_call_and_nothing_else_is() -> None:
    images = re.findall(r"^!\[.+\]\((.+)\)$", PAGE, flags=re.MULTILINE)
    assert images == [case.file for case in build.CASES]
    assert set(images) == {path.name for path in GALLERY.glob("*.*")} - {"README.md", "build.py"}
    assert re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE) == [case.title for case in build.CASES]
    assert all(case.call in PAGE and case.about in PAGE for case in build.CASES)


def test_the_images_are_small() -> None:
    assert sum(path.stat().st_size for path in GALLERY.iterdir() if path.is_file()) < MOST_BYTES


@pytest.mark.parametrize("page", ["README.md", "docs/theory/compiler.md"])
def test_the_gallery_is_linked_from(page: str) -> None:
    links = re.findall(r"\]\(([\w./-]*gallery[\w./-]*)\)", (ROOT / page).read_text(encoding="utf-8"))
    assert any((ROOT / page).parent.joinpath(link).resolve() == GALLERY / "README.md" for link in links)


def test_a_caption_is_what_the_run_found(tmp_path: Path) -> None:
    case = build.Compilation("line.png", "A line", "About it.", "x", fw.Cube([(-1, 1)]), {"tolerance": 1e-3})
    build.build(tmp_path, (case,), say=lambda _: None)
    page = (tmp_path / "README.md").read_text(encoding="utf-8")
    compiled = fw.compile_function("x", fw.Cube([(-1, 1)]), tolerance=1e-3)
    assert compiled.certificate is not None
    assert f"**{compiled.positions} positions** by `{compiled.method}`" in page
    assert f"at most **{compiled.certificate.bound:.2e}**" in page
    assert (tmp_path / "line.png").read_bytes().startswith(b"\x89PNG")
