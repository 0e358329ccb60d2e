"""Every family against every column; `--write-conformance` turns the outcomes into docs/reference/conformance.md."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.conformance.columns import COLUMNS, SLOW, recomputing
from tests.conformance.families import BUILDERS, UNCHECKPOINTED_FAMILIES, not_applicable
from tests.conformance.subject import subject

from foreword.engine.attach import attached

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "conformance.md"


def cells() -> list[object]:
    return [
        pytest.param(family, column, marks=[pytest.mark.slow] if column in SLOW else [], id=f"{family}-{column}")
        for family in BUILDERS
        for column in COLUMNS
        if not_applicable(family, column) is None
    ]


# torch.compile itself instantiates the autograd function that Bloom's bare GELU is made of, and warns of it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(("family", "column"), cells())
def test_cell(family: str, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By joining prefix and context, which is what costs least at these sizes, and by merging the two."""
    COLUMNS[column](subject(family))
    monkeypatch.setattr("foreword.engine.assignment.is_worth_merging", lambda *_: True)
    COLUMNS[column](subject(family))


def test_a_cell_that_does_not_apply_is_one_that_the_bare_model_refuses() -> None:
    for family in UNCHECKPOINTED_FAMILIES:
        with pytest.raises(ValueError, match=r"does not support (activation|gradient) checkpointing"):
            recomputing(subject(family).model, "enable")()
    gpt = subject("openai-gpt")
    assert getattr(gpt.model(**gpt.inputs()), "past_key_values", None) is None
    falcon = subject("falcon-alibi")
    with pytest.raises(RuntimeError):
        falcon.generate(falcon.inputs(), cache_implementation="static")
    for family in ("gpt_neo", "imagegpt", "imagegpt-upcast"):
        bare = subject(family)
        static = bare.generate(bare.inputs(), 12, cache_implementation="static")
        assert not torch.equal(bare.generate(bare.inputs(), 12), static)
    convolved = subject("convbert")
    ids = convolved.inputs(rows=1)["input_ids"]
    padded, mask = torch.nn.functional.pad(ids, (0, 2)), torch.nn.functional.pad(torch.ones_like(ids), (0, 2))
    with torch.no_grad():
        alone = convolved.output({"input_ids": ids})
        moved = convolved.output({"input_ids": padded, "attention_mask": mask})[:, : ids.shape[1]] - alone
    assert float(moved.abs().max()) > 20 * convolved.tolerance(float(alone.abs().max()))


def test_the_page_lists_every_family_and_every_column_and_nothing_wrong() -> None:
    rows = [line.split(" | ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert [cell.strip("| ") for cell in rows[0][1:]] == list(COLUMNS)
    assert [row[0].strip("| `") for row in rows[1 : 1 + len(BUILDERS)]] == list(BUILDERS)
    for family, row in zip(BUILDERS, rows[1:], strict=False):
        for column, cell in zip(COLUMNS, row[1:], strict=True):
            assert cell.strip("| ").startswith("not applicable" if not_applicable(family, column) else "right")


def test_no_subject_is_left_attached() -> None:
    for family in BUILDERS:
        with attached(subject(family).host, subject(family).prefix):
            pass
